"""What a check is asked about, and what it says."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

OUTCOMES = ("ok", "warning", "failed")


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
      outcome: "ok", "warning" or "failed".
      words: what is so, in plain words.
      remedy: what to do about it; "" where nothing is to do.
      code: with which a failed check ends the command, see `errors.py`.
    """

    outcome: str
    words: str
    remedy: str = ""
    code: int = 0

    @property
    def line(self) -> str:
        """Words and remedy."""
        return f"{self.words}; {self.remedy}" if self.remedy else self.words


def ok(words: str) -> Finding:
    """All is as it should be."""
    return Finding("ok", words)


def warning(words: str, remedy: str) -> Finding:
    """A run works, and something about it can be better."""
    return Finding("warning", words, remedy)


def failed(words: str, remedy: str, code: int) -> Finding:
    """A run would end with this code, or make something wrong."""
    return Finding("failed", words, remedy, code)


@dataclass
class Context:
    """What is examined: this machine, a place for runs, and perhaps a configuration.

    Args:
      workdir: where runs go; need not be there.
    """

    workdir: Path
    config: ConfigDict | None = None

    @property
    def place(self) -> Path:
        """The nearest directory of `workdir` that is there."""
        path = self.workdir.absolute()
        return next(p for p in (path, *path.parents) if p.is_dir())

    @functools.cached_property
    def traced(self) -> Any:
        """The step of the configuration, as `planning.counted.trace` gives it.

        With sums in the order of the devices, which has the same state and is counted.
        """
        from sfrik_jax.planning import counted

        assert self.config is not None
        config = self.config.copy_and_resolve_references()
        config.step.deterministic_reduce = 0
        return counted.trace(config, jax.device_count())


def programs_folder() -> Path | None:
    """Where jax keeps compiled programs; None where it keeps none."""
    settings: Any = jax.config  # its attributes are made as they are declared
    folder = settings.jax_compilation_cache_dir
    return Path(folder) if folder else None
