"""The processes of a sweep: started as there is room, told to stop, waited for."""

import contextlib
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sfrik_jax.errors import LostPeerError, OutputError, Preempted
from sfrik_jax.files import make_folder
from sfrik_jax.interrupts import SIGNALS
from sfrik_jax.locks import Lock
from sfrik_jax.sweeps.board import DONE, ELSEWHERE, RUNNING, STOPPED, Board

PAUSE = 0.1
Process = subprocess.Popen[bytes]


def run_all(
    commands: Mapping[str, Sequence[str]],
    directory: Path,
    board: Board,
    jobs: int,
    grace: float,
) -> None:
    """Runs the commands by name, `jobs` at a time, in `directory`/NAME.

    Args:
      grace: seconds that a run has to end after it was told to.

    Raises:
      Preempted: a signal asked to stop.
    """
    waiting = list(commands)
    running: dict[str, Process] = {}
    jobs = max(1, min(jobs, len(commands)))
    shares = shared_cores(jobs)
    places: dict[str, int] = {}
    with _handing_on(running, grace) as asked:
        while running or (waiting and not asked):
            while waiting and len(running) < jobs and not asked:
                name = waiting.pop(0)
                if is_held(directory / name):
                    board.set(name, ELSEWHERE)
                    continue
                board.set(name, RUNNING)
                places[name] = min({*range(jobs)} - {places[n] for n in running})
                cores = shares[places[name]]
                running[name] = _start(commands[name], directory / name, cores)
                if asked:  # it came while this one started
                    _ask(running[name])
            time.sleep(PAUSE)
            board.tick()
            for name, process in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    board.set(name, state_of(process.returncode))
    if asked:
        raise Preempted("the sweep was stopped; the same command goes on with it")


def shared_cores(jobs: int) -> list[set[int]]:
    """The cores of each of several jobs; empty sets where they cannot be shared out.

    Else each program would start as many threads as there are cores, and they would
    wait for each other.
    """
    allowed = getattr(os, "sched_getaffinity", lambda _: ())
    cores = sorted(allowed(0))
    if jobs < 2 or len(cores) < jobs:
        return [set() for _ in range(jobs)]
    ends = [len(cores) * i // jobs for i in range(jobs + 1)]
    return [set(cores[a:b]) for a, b in itertools.pairwise(ends)]


def _start(words: Sequence[str], place: Path, cores: set[int]) -> Process:
    make_folder(place)
    with (place / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C comes to the sweep alone, which hands it on once.
            process_group=0,
        )
    if cores:
        # Long before it starts a thread. It may have ended already.
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, cores)
    return process


def is_held(place: Path) -> bool:
    """Whether a process is at work in a run directory."""
    path = place / "lock"
    if not path.exists():
        return False
    try:
        Lock(path, str(place), "wait for it").close()
    except OutputError:
        return True
    except OSError:  # the run itself says what is wrong there
        return False
    return False


def _ask(process: Process) -> None:
    """Asks a run to save and stop."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)


@contextlib.contextmanager
def _handing_on(running: dict[str, Process], grace: float) -> Iterator[list[int]]:
    """Hands signals on to what runs; the signals so far.

    Nothing is left behind: what runs when an error ends the sweep is asked to stop too,
    and is killed `grace` seconds later.
    """
    asked: list[int] = []

    def hand_on(number: int, frame: object) -> None:
        asked.append(number)
        for process in list(running.values()):
            _ask(process)

    # What is ignored stays so: nohup means that a closed terminal ends nothing.
    handled = [
        number
        for number in (*SIGNALS, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN
    ]
    before = {number: signal.signal(number, hand_on) for number in handled}
    try:
        yield asked
    finally:
        # A second signal would end at once those that were asked before.
        for process in () if asked else running.values():
            _ask(process)
        _end_within(grace, list(running.values()))
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_within(seconds: float, processes: Sequence[Process]) -> None:
    """Waits for processes to end, and kills those that have not by then."""
    deadline = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def state_of(code: int) -> str:
    """The state of a run whose process has ended: stopped where it can just go on."""
    if code < 0:
        return f"{STOPPED} ({signal.Signals(-code).name})"
    if code == LostPeerError.code:
        return f"{STOPPED} (code {code})"
    if code == Preempted.code:
        return STOPPED
    return f"failed (code {code})" if code else DONE
