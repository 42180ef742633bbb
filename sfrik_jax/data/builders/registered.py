"""TFDS's own builders, by name: with TensorFlow they encode and shuffle."""

import difflib
import importlib.util
import re
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from sfrik_jax.data.prepared import OWN_SETS
from sfrik_jax.errors import (
    ConfigError,
    CorruptInputError,
    MissingInputError,
)

# How builders, and TensorFlow within them, say that a file is not there.
_NOT_FOUND = ("NotFoundError", "FileNotFoundError", "AssertionError")
# Without a namespace, which would ask a server.
_NAME = re.compile(r"\w+(/[\w.+-]+)?(:\d+\.\d+\.\d+)?")


def builder(name: str, data_dir: Path) -> Any:
    """TFDS's builder of "name", "name/config" or "name/config:version".

    Raises:
      ConfigError: unknown; names that are near.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"data set {name!r}: write NAME, NAME/CONFIG or NAME/CONFIG:1.2.3"
        )
    base, _, config = name.partition(":")[0].partition("/")
    try:
        configs = [each.name for each in tfds.builder_cls(base).BUILDER_CONFIGS]
        if config and config not in configs:
            raise ConfigError(
                f"data set {base!r} has no config {config!r}{_near(config, configs)}"
            )
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        known = [*OWN_SETS, *tfds.list_builders(with_community_datasets=False)]
        raise ConfigError(
            f"data set {base!r} is not known{_near(base, known)}"
        ) from error
    except (AssertionError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        # TFDS adds what it was called with, and then the reason.
        reason = str(error).strip().splitlines()[-1]
        raise ConfigError(f"data set {name!r}: {reason}") from error


def _near(name: str, known: list[str]) -> str:
    found = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.6)
    if not found:
        return "; https://www.tensorflow.org/datasets/catalog lists them"
    return f"; did you mean {' or '.join(found)}?"


def check_needs(made: Any, manual_dir: Path) -> None:
    """Refuses before anything is fetched.

    Raises:
      MissingInputError: TensorFlow is not installed, or files that the user has to
        bring are not in `manual_dir`.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise MissingInputError(
            f"preparing {made.name} needs TensorFlow, which training does not: "
            "pip install -r requirements-prepare.txt"
        )
    words = made.MANUAL_DOWNLOAD_INSTRUCTIONS
    if words and not (manual_dir.is_dir() and any(manual_dir.iterdir())):
        raise MissingInputError(
            f"{made.name} is not to be fetched by a program, and {manual_dir} holds "
            f"nothing; put its files into a folder and name it with --from. TFDS says: "
            f"{' '.join(words.split())}"
        )


def explain(made: Any, error: BaseException) -> Exception | None:
    """What to tell the user about an error of a builder; None if it is a fault."""
    download = tfds.download
    if isinstance(error, ImportError):
        library = error.name or str(error).splitlines()[-1]
        return MissingInputError(
            f"preparing {made.name} needs {library}: pip install {library}"
        )
    if type(error).__name__ == "NonMatchingChecksumError":
        return CorruptInputError(
            f"a file of {made.name} is not the one that TFDS expects "
            f"({_one_line(error)}); delete it and fetch it again"
        )
    words = made.MANUAL_DOWNLOAD_INSTRUCTIONS
    if words and type(error).__name__ in _NOT_FOUND:
        return MissingInputError(
            f"a file of {made.name} is not there ({_one_line(error)}). TFDS says: "
            f"{' '.join(words.split())}"
        )
    # The errors of the network have no number.
    network = isinstance(error, OSError) and error.errno is None
    if isinstance(error, download.DownloadError) or network:
        return MissingInputError(
            f"{made.name} could not be fetched ({_one_line(error)}); "
            "what was fetched is kept; run the command again, or get the files and "
            "name their folder with --from"
        )
    return None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
