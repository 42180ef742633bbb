"""The processes of a sweep: started as there is room, told to stop, waited for."""

import contextlib
import fcntl
import itertools
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from sfrik_jax.errors import LostPeerError, OutputError, Preempted
from sfrik_jax.files import make_folder
from sfrik_jax.interrupts import REPEATED, SIGNALS
from sfrik_jax.locks import Lock, is_locked
from sfrik_jax.sweeps.board import DONE, ELSEWHERE, RUNNING, STOPPED, WAITING, Board

PAUSE = 0.1
# Of a run directory: the file that the process of a sweep holds.
TIE = "sweep_lock"
Process = subprocess.Popen[bytes]


def run_all(
    commands: Mapping[str, Sequence[str]],
    directory: Path,
    board: Board,
    jobs: int,
    grace: float,
    is_done: Callable[[str], bool],
) -> None:
    """Runs the commands by name, `jobs` at a time, in `directory`/NAME.

    What a killed sweep has left running takes one of the `jobs` until its end.

    Args:
      grace: seconds that a run has to end after it was told to; then it is killed.
      is_done: whether one that was left behind has come to its end.

    Raises:
      Preempted: a signal asked to stop.
    """
    crew = _Crew(commands, directory, board, jobs, is_done)
    with _taking_signals() as asked:
        try:
            while crew.running or (crew.has_more() and not asked):
                while not asked and crew.has_room():
                    crew.start_next()
                crew.stop(asked, grace)
                time.sleep(PAUSE)
                board.tick()
                crew.note_ends()
        except BaseException:
            # Nothing is left behind by an error either.
            asked[:] = asked or [time.monotonic()]
            crew.wait(asked, grace)
            raise
    if asked:
        raise Preempted("the sweep was stopped; the same command goes on with it")


class _Crew:
    """The runs that wait, those that run, and those that were found running."""

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        directory: Path,
        board: Board,
        jobs: int,
        is_done: Callable[[str], bool],
    ) -> None:
        self.running: dict[str, Process] = {}
        self._commands, self._directory, self._board = commands, directory, board
        self._jobs, self._is_done = max(1, min(jobs, len(commands))), is_done
        self._shares = shared_cores(self._jobs)
        self._places: dict[str, int] = {}
        self._told: Counter[str] = Counter()  # how often each was told to stop
        self._found = {n for n in commands if is_left_behind(directory / n)}
        self._waiting = [name for name in commands if name not in self._found]
        for name in self._found:
            board.set(name, ELSEWHERE)

    def has_more(self) -> bool:
        return bool(self._waiting or self._found)

    def has_room(self) -> bool:
        """Whether one waits, and may start."""
        return bool(self._waiting) and (
            len(self.running) + len(self._found) < self._jobs
        )

    def start_next(self) -> None:
        name = self._waiting.pop(0)
        place = self._directory / name
        if is_held(place):
            self._board.set(name, ELSEWHERE)
            return
        self._board.set(name, RUNNING)
        taken = {self._places[n] for n in self.running}
        self._places[name] = min({*range(self._jobs)} - taken)
        # Which cores the others have is not known: the system shares out.
        cores = set() if self._found else self._shares[self._places[name]]
        self.running[name] = _start(self._commands[name], place, cores)

    def stop(self, asked: Sequence[float], grace: float) -> None:
        """Hands each signal on, and kills what still runs `grace` s after the first.

        As many as have come since: a run ends at once on the second one. Not from the
        signal's handler, which may interrupt the start of a run.
        """
        for name, process in self.running.items():
            if self._told[name] < len(asked):
                self._told[name] += 1
                _ask(process)
            if asked and time.monotonic() > asked[0] + grace:
                process.kill()

    def wait(self, asked: Sequence[float], grace: float) -> None:
        """Waits for the ends of those that run, and tells nobody of them."""
        while any(process.poll() is None for process in self.running.values()):
            self.stop(asked, grace)
            time.sleep(PAUSE)

    def note_ends(self) -> None:
        """Notes which runs have ended, and how."""
        for name, process in list(self.running.items()):
            if process.poll() is not None:
                del self.running[name]
                self._board.set(name, state_of(process.returncode))
        for name in [*self._found]:
            if is_left_behind(self._directory / name):
                continue
            self._found.remove(name)
            done = self._is_done(name)
            self._board.set(name, DONE if done else WAITING)
            self._waiting += [] if done else [name]


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
    with (place / "log.txt").open("ab") as log, (place / TIE).open("ab") as tie:
        # The process inherits the lock with the file, and holds it from its first
        # moment to its last, whatever becomes of the sweep.
        _lock(tie)
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(tie.fileno(),),
            # Ctrl-C comes to the sweep alone, which hands it on once.
            process_group=0,
        )
    if cores:
        # Long before it starts a thread. It may have ended already.
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, cores)
    return process


def _lock(file: IO[bytes]) -> None:
    """Locks a file; without one where the file system has none."""
    for _ in range(20):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # somebody asks whether it is locked
            time.sleep(0.01)
        except OSError:
            return
        else:
            return


def is_left_behind(place: Path) -> bool:
    """Whether a process that a sweep has started there still runs.

    To be asked by the sweep that has the directory, of what it has not started itself.
    """
    return is_locked(place / TIE) is True


def is_held(place: Path) -> bool:
    """Whether a process has locked a run directory."""
    path = place / "lock"
    found = is_locked(path)
    if found is not None:
        return found
    try:
        Lock(path, str(place), "wait for it").close()
    except OutputError:
        return True
    except OSError:  # the run itself says what is wrong there
        return False
    return False


def is_at_work(place: Path) -> bool:
    """Whether a process of a sweep or of a user is at work in a run directory."""
    return is_left_behind(place) or is_held(place)


def may_be_at_work(place: Path) -> bool:
    """`is_at_work` at once; True where the file system has no locks to tell by."""
    return any(is_locked(place / name) is not False for name in (TIE, "lock"))


def _ask(process: Process) -> None:
    """Asks a run to save and stop."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)


@contextlib.contextmanager
def _taking_signals() -> Iterator[list[float]]:
    """Takes signals; when they came, those that come with another left out."""
    asked: list[float] = []

    def take(number: int, frame: object) -> None:
        now = time.monotonic()
        if not asked or now > asked[-1] + REPEATED:
            asked.append(now)

    # What is ignored stays so: nohup means that a closed terminal ends nothing.
    handled = [
        number
        for number in (*SIGNALS, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN
    ]
    before = {number: signal.signal(number, take) for number in handled}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def state_of(code: int) -> str:
    """The state of a run whose process has ended: stopped where it can just go on."""
    if code < 0:
        return f"{STOPPED} ({signal.Signals(-code).name})"
    if code == LostPeerError.code:
        return f"{STOPPED} (code {code})"
    if code == Preempted.code:
        return STOPPED
    return f"failed (code {code})" if code else DONE
