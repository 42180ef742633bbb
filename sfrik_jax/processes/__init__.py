"""One job in many processes: who they are, joining, agreeing, leaving.

A process learns which one it is from its environment, the first of these that is there:

1. SFRIK_COORDINATOR=HOST:PORT, SFRIK_PROCESS_COUNT=N and SFRIK_PROCESS_INDEX=0 … N-1:
   all three, or none. HOST is that of process 0, which listens on PORT.
   SFRIK_BIND=HOST narrows where it listens; 127.0.0.1 and localhost as HOST of the
   coordinator listen on the loopback alone, all others on every interface.
2. A SLURM step of several tasks (`srun`), by SLURM_PROCID, SLURM_STEP_NUM_TASKS and
   what else jax reads.
3. Open MPI, or a Cloud TPU slice by TPU_WORKER_HOSTNAMES or the metadata server, as jax
   has it.
4. A Kubernetes JobSet or indexed Job, by JOB_COMPLETION_INDEX; jax asks the cluster for
   the rest, for which it needs the package `kubernetes`. Without it, set the three
   variables of 1 in the manifest.

SFRIK_PORT replaces the port that jax chooses in 2 to 4. One process alone is not
joined: an interactive shell inside an allocation runs as everywhere.

The processes run one program on one configuration, in step. Process 0 writes files and
speaks; the others speak when they fail. An error of one ends all, with one exit code.
"""

import contextlib
import hashlib
import json
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

from sfrik_jax.errors import (
    ConfigError,
    MismatchError,
    Preempted,
    SfrikError,
    ToldError,
)
from sfrik_jax.interrupts import Stop
from sfrik_jax.processes import cluster, roll_call
from sfrik_jax.processes.cluster import Place
from sfrik_jax.processes.talk import Talk, end, lost
from sfrik_jax.redaction import redact

T = TypeVar("T")

# How jax, gloo and NCCL tell of a process that is gone.
GONE = re.compile(
    r"gloo|nccl|connection|socket closed|heartbeat|coordination|UNAVAILABLE", re.I
)
# Seconds in which the notice of a process that failed arrives before what it breaks.
NOTICE = 1.5
SHUTDOWN = 20
LEAST_INITIALIZATION = 10

_talk: Talk | None = None


def count() -> int:
    """Processes of the job that this one has joined; 1 for one alone."""
    return 1 if _talk is None else _talk.count


def index() -> int:
    """Of this process."""
    return 0 if _talk is None else _talk.index


def first() -> bool:
    """Whether this is the process that writes and speaks."""
    return index() == 0


@contextlib.contextmanager
def joined(join_seconds: int, heartbeat_seconds: int, stop: Stop) -> Iterator[None]:
    """One of the processes of a job, where there are several, until the body ends.

    To be entered before anything asks jax for devices. Where the body raises, all
    processes end with the code of the error, and this one does so here.

    Args:
      join_seconds: how long the others may take to come.
      heartbeat_seconds: after so long in silence a process counts as dead.
      stop: heeded while waiting.

    Raises:
      LostPeerError, ConfigError: see `roll_call.hold`.
      Preempted: all have stopped; in process 0 alone, the others end with its code.
    """
    global _talk
    place = cluster.find()
    if place is None:
        yield
        return
    roll_call.hold(
        place, join_seconds, lambda: stop.check("before the processes had met")
    )
    if place.index > 0:
        for name in ("sfrik", "absl"):
            logging.getLogger(name).setLevel(logging.ERROR)
    try:
        client = _client(place, heartbeat_seconds)
    except RuntimeError as error:
        raise _not_joined(place, error) from error
    talk = _talk = Talk(client, place.index, place.count)
    stopped = None
    try:
        try:
            yield
        except Preempted as error:
            if not error.of_all:
                raise
            stopped = error
        _leave(talk)
    except BaseException as error:
        _fail(talk, error)
    finally:
        _talk = None
    if stopped is not None:
        raise stopped if talk.index == 0 else SystemExit(stopped.code)


def gather(text: str) -> list[str]:
    """The texts of all processes, in their order (see `Talk.gather`)."""
    return [text] if _talk is None else _talk.gather(text)


def barrier() -> None:
    """Waits until all processes are here, without a device."""
    gather("")


def from_first(make: Callable[[], T]) -> T:
    """What `make` gives in process 0, in all processes: a value that JSON can hold."""
    if _talk is None:
        return make()
    texts = gather(json.dumps(make()) if first() else "")
    return json.loads(texts[0])


def agree(values: Mapping[str, Any]) -> None:
    """Refuses values that differ between processes.

    Raises:
      MismatchError: in all of them, naming the process, the key and the two values.
    """
    text = json.dumps({k: repr(v) for k, v in values.items()}, sort_keys=True)
    hashes = gather(hashlib.sha256(text.encode()).hexdigest())
    if len(set(hashes)) == 1:
        return
    said = [json.loads(each) for each in gather(text)]
    for other, theirs in enumerate(said):
        for key in sorted(said[0].keys() | theirs.keys()):
            here, there = said[0].get(key), theirs.get(key)
            if here != there:
                raise of_all(
                    MismatchError(
                        f"process {other} has {key}={there}, process 0 has {here}; "
                        "start all of them with the same configuration, code and data"
                    )
                )


def ask(patience: float, over: threading.Event) -> list[str | None]:
    """What all processes answer, in their order (see `Talk.ask`)."""
    assert _talk is not None
    return _talk.ask(patience, over)


def listen(answer: Callable[[], str], on_hang: Callable[[], None]) -> None:
    """What this process answers where others `ask`, and does where one finds a hang."""
    if _talk is not None:
        _talk.answer, _talk.on_hang = answer, on_hang


def end_all(error: SfrikError, *, hangs: bool = False) -> NoReturn:
    """Ends all processes with the code of an error, at once and from any thread."""
    message, who = redact(str(error)), ""
    if _talk is not None:
        _talk.fail_at_once(error.code, message, hangs=hangs)
        who = f"process {_talk.index}: " if _talk.index else ""
    end(f"error: {who}{message}", error.code)


def of_all(error: SfrikError) -> SfrikError:
    """An error that all processes raise at one place: the first one tells it."""
    return error if first() else ToldError(str(error), error.code)


def shared_stop() -> Stop:
    """A `Stop` that all processes heed at one step."""
    return Stop() if _talk is None else SharedStop(_talk)


class SharedStop(Stop):
    """A signal to any process stops all of them, at the same step."""

    def __init__(self, talk: Talk) -> None:
        super().__init__()
        self._talk = talk

    def reached(self, step: int) -> bool:
        self._talk.stop_requested |= self.requested
        return self._talk.reached(step)

    def leave(self, why: str) -> None:
        self._talk.fail_at_once(Preempted.code, why)

    def check(self, where: str) -> None:
        flags = gather(str(int(self.requested or self._talk.stop_at is not None)))
        if "1" in flags:
            raise Preempted(
                f"preempted {where}; run the same command again to go on", of_all=True
            )


def _client(place: Place, heartbeat_seconds: int) -> Any:
    """Joins jax's distributed runtime; returns the client of its store."""
    import jax
    from jax._src import distributed

    # It would take SIGTERM for itself, and never be asked.
    jax.config.update("jax_enable_preemption_service", False)
    bind = place.bind
    if bind:
        bind = f"[{bind}]" if ":" in bind else bind
        bind = f"{bind}:{place.port}"
    jax.distributed.initialize(
        place.coordinator,
        place.count,
        place.index,
        local_device_ids=place.device_ids,
        cluster_detection_method="deactivate",
        # They have all met a moment ago.
        initialization_timeout=max(heartbeat_seconds, LEAST_INITIALIZATION),
        heartbeat_timeout_seconds=heartbeat_seconds,
        shutdown_timeout_seconds=SHUTDOWN,
        coordinator_bind_address=bind or None,
    )
    return distributed.global_state.client


def _not_joined(place: Place, error: RuntimeError) -> SfrikError:
    """What jax could not do although all had met."""
    if "Failed to start RPC server" in str(error):
        return ConfigError(
            f"the coordinator's port {place.coordinator} was taken meanwhile; choose "
            "another one for all processes"
        )
    return lost(error)


def _leave(talk: Talk) -> None:
    """Leaves when all do: process 0 may have had work left."""
    import jax

    talk.gather("")
    talk.close()
    jax.distributed.shutdown()


def _fail(talk: Talk, error: BaseException) -> NoReturn:
    """Tells the others, says why, and ends."""
    original, error = error, _translated(talk, error)
    code = error.code if isinstance(error, SfrikError) else 1
    message = " ".join(redact(str(error)).splitlines()) or type(error).__name__
    told = isinstance(error, ToldError)
    if not told:
        talk.fail(code, message)
    # Also of what only seems to be another process's end: it may be this one's fault.
    if not isinstance(original, SfrikError) and not told:
        sys.excepthook(type(original), original, original.__traceback__)
    who = f"process {talk.index}: " if talk.index else ""
    line = "" if told and talk.index else f"error: {who}{message}"
    talk.hear()
    end(line, code)


def _translated(talk: Talk, error: BaseException) -> BaseException:
    """Of an error in a device's words that a peer is gone: what ended that, if told."""
    import jax

    of_a_device = isinstance(error, jax.errors.JaxRuntimeError)
    if not of_a_device or not GONE.search(str(error)):
        return error
    deadline = time.monotonic() + NOTICE
    while talk.failure is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return talk.failure or lost(error)
