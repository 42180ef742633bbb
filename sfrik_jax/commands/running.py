"""What a job is run in: signals heard, processes joined, and watched."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from sfrik_jax import processes, watchdog
from sfrik_jax.interrupts import Stop


@contextlib.contextmanager
def job(settings: Mapping[str, int], workdir: Path) -> Iterator[None]:
    """To be entered before anything asks for devices.

    Args:
      settings: the section `processes` of a configuration.
      workdir: where the stacks of a job that hangs go.

    Raises:
      SfrikError: see `processes.joined`.
    """
    join, heartbeat = settings["join_seconds"], settings["heartbeat_seconds"]
    with (
        Stop(settings["grace_seconds"]) as stop,
        processes.joined(join, heartbeat, stop),
        watchdog.watching(workdir, settings["hang_seconds"]),
    ):
        yield
