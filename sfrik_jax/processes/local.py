"""Several processes of one job on this machine: started, watched, started again.

    python -m sfrik_jax.processes.local 2 --devices 2 -- pretrain --config … --workdir …

Each process has D CPU devices; they talk over the loopback alone, on a free port. What
process 0 prints is shown, lines of the others behind their number. SIGTERM, SIGINT and
SIGUSR1 go to all processes.

When the job ends with 75 without having been asked to, with 76, or by a signal, it is
started again, but not more than R times without a newer checkpoint. The exit code is
the job's: of several, that of the error that ended the others.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from sfrik_jax.commands.parsing import default_workdir
from sfrik_jax.errors import LostPeerError, Preempted
from sfrik_jax.interrupts import SIGNALS

PROGRAM = (sys.executable, "-m", "sfrik_jax")
# Once a process has failed, the others end by themselves within the heartbeat and 5 s.
PATIENCE = 60.0
PAUSE = 0.1
# What gloo says whenever it connects.
NOISE = "[Gloo] Rank "


class Job:
    """N processes of one command, from their start to the end of the last."""

    def __init__(self, count: int, devices: int, command: Sequence[str]) -> None:
        port = free_port()
        self._handed = 0  # signals
        self._processes: list[subprocess.Popen[str]] = []
        for index in range(count):
            process = subprocess.Popen(
                [*PROGRAM, *command],
                env=environment(index, count, devices, port),
                stdin=subprocess.DEVNULL,
                stdout=None if index == 0 else subprocess.PIPE,
                stderr=None if index == 0 else subprocess.STDOUT,
                text=True,
                # Ctrl-C comes to the launcher alone, which hands it on once.
                process_group=0,
            )
            self._processes.append(process)
        self._readers = [
            threading.Thread(target=_show, args=(index, process.stdout), daemon=True)
            for index, process in enumerate(self._processes)
            if process.stdout is not None
        ]
        for reader in self._readers:
            reader.start()
        self.codes: dict[int, int] = {}  # by process, in the order of their ends

    def send(self, number: int) -> None:
        """Hands a signal to those that still run."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)

    def hand(self, signals: Sequence[int]) -> None:
        """Hands on those of all signals so far that it has not had yet."""
        while self._handed < len(signals):
            self._handed += 1
            self.send(signals[self._handed - 1])

    def wait(self) -> int:
        """Waits for all to end, and ends those that do not; the code of the job."""
        failed_at = None
        while len(self.codes) < len(self._processes):
            time.sleep(PAUSE)
            for index, process in enumerate(self._processes):
                code = process.poll()
                if code is None or index in self.codes:
                    continue
                self.codes[index] = code
                if code and failed_at is None:
                    failed_at = time.monotonic()
                if code < 0:
                    say(f"process {index} ended by {signal.Signals(-code).name}")
            if failed_at and time.monotonic() > failed_at + PATIENCE:
                say(f"ending what is left {PATIENCE:g} s after the first failure")
                self.send(signal.SIGKILL)
                failed_at = None
        for reader in self._readers:
            reader.join()
        return job_code(list(self.codes.values()))


def job_code(codes: Sequence[int]) -> int:
    """The code of a job from those of its processes, in the order of their ends."""
    failed = [code for code in codes if code]
    own = [code for code in failed if code > 0 and code != LostPeerError.code]
    lost = [code for code in failed if code == LostPeerError.code]
    killed = [128 - code for code in failed if code < 0]
    return next(iter([*own, *lost, *killed]), 0)


def supervise(
    count: int, devices: int, restarts: int, command: Sequence[str], workdir: Path
) -> int:
    """Runs the job, again where that helps; the exit code of the last time."""
    asked: list[int] = []
    running: list[Job] = []

    def hand_on(number: int, frame: object) -> None:
        # A terminal that closes is a wish to stop too.
        asked.append(signal.SIGTERM if number == signal.SIGHUP else number)
        for job in running:
            job.hand(asked)

    for number in (*SIGNALS, signal.SIGHUP):
        # What is ignored stays so: nohup means that a closed terminal ends nothing.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, hand_on)
    try:
        return _until_done(count, devices, restarts, command, workdir, asked, running)
    finally:
        for job in running:
            job.send(signal.SIGKILL)  # nothing may train on without its launcher


def _until_done(
    count: int,
    devices: int,
    restarts: int,
    command: Sequence[str],
    workdir: Path,
    asked: list[int],
    running: list[Job],
) -> int:
    tries, newest = 0, newest_step(workdir)
    while True:
        job = Job(count, devices, command)
        running[:] = [job]
        job.hand(asked)  # what came while it started
        code = job.wait()
        again = code in (Preempted.code, LostPeerError.code) or code > 128
        if asked or not again:
            return code
        tries = 0 if newest_step(workdir) > newest else tries
        newest = newest_step(workdir)
        if tries == restarts:
            say(f"code {code}, and no newer checkpoint after {restarts} restarts")
            return code
        tries += 1
        say(f"code {code} at the checkpoint of step {newest}; restart {tries}")


def newest_step(workdir: Path) -> int:
    """The step of the newest checkpoint, 0 without one."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdecimal()), default=0)


def environment(index: int, count: int, devices: int, port: int) -> dict[str, str]:
    """Of one process; CPU devices unless JAX_PLATFORMS names others."""
    place = {
        "SFRIK_COORDINATOR": f"127.0.0.1:{port}",
        "SFRIK_PROCESS_COUNT": str(count),
        "SFRIK_PROCESS_INDEX": str(index),
        "JAX_NUM_CPU_DEVICES": str(devices),
    }
    return {"JAX_PLATFORMS": "cpu"} | dict(os.environ) | place


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def say(line: str) -> None:
    """A line of the launcher's own."""
    print(f"local: {line}", file=sys.stderr, flush=True)


def _show(index: int, lines: IO[str]) -> None:
    with lines:
        for line in lines:
            if not line.startswith(NOISE):
                print(f"[{index}] {line}", end="", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and supervises the job."""
    parser = argparse.ArgumentParser(
        prog="launch/local.sh",
        description="N processes of one job on this machine.",
        epilog="example: launch/local.sh 2 --devices 2 -- pretrain --config "
        "configs/quickstart.py --workdir runs/quickstart",
        allow_abbrev=False,
    )
    parser.add_argument("count", type=_positive, metavar="N", help="processes")
    parser.add_argument(
        "--devices", type=_positive, default=1, metavar="D", help="of each (default 1)"
    )
    parser.add_argument(
        "--restarts",
        type=int,
        default=3,
        metavar="R",
        help="without a newer checkpoint (default 3)",
    )
    parser.add_argument("command", nargs="+", metavar="-- COMMAND …", help="of sfrik")
    args = parser.parse_args(argv)
    return supervise(
        args.count, args.devices, args.restarts, args.command, _workdir(args.command)
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _workdir(command: Sequence[str]) -> Path:
    """Where a command's checkpoints go."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--workdir")
    parser.add_argument("--config", default="")
    options, _ = parser.parse_known_args(command)
    return Path(options.workdir or default_workdir(options.config))


if __name__ == "__main__":
    sys.exit(main())
