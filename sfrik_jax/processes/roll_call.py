"""The roll-call before a job starts: all are there, each once, and of one mind.

jax's own service ends a process by SIGABRT when another does not come, names nobody,
and takes a second process of one index for a restart of the first, which ends the
whole job. So process 0 first listens on the port itself and hears who there is; each
other process says one line and reads one. Then jax starts on the same port.
"""

import contextlib
import errno
import json
import socket
import time
from collections.abc import Callable, Iterator

from sfrik_jax.errors import ConfigError, LostPeerError, SfrikError, ToldError
from sfrik_jax.processes.cluster import Place

GREETING = "sfrik"
LONGEST = 4096  # bytes of a line
PATIENCE = 5.0  # seconds for a line of one that has connected
PAUSE = 0.1

Check = Callable[[], None]


def hold(place: Place, seconds: float, check: Check) -> None:
    """Waits until all processes are there.

    Args:
      seconds: how long at most.
      check: called many times a second while waiting; raises where a stop is asked for.

    Raises:
      LostPeerError: one did not come in time.
      ConfigError: the port is taken, or two processes disagree about their number or
        have one index.
    """
    deadline = time.monotonic() + seconds
    if place.index == 0:
        _call(place, seconds, deadline, check)
    else:
        _answer(place, seconds, deadline, check)


def _call(place: Place, seconds: float, deadline: float, check: Check) -> None:
    there: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(place))
        try:
            while len(there) < place.count - 1:
                check()
                if time.monotonic() > deadline:
                    raise LostPeerError(_missing(place, there, seconds))
                for connection in _accepted(listener):
                    stack.enter_context(connection)
                    index = _index_of(connection, place, there)
                    if index is not None:
                        there[index] = connection
        except SfrikError as error:
            for connection in there.values():
                _say(connection, {"code": error.code, "message": str(error)})
            raise
        for connection in there.values():
            _say(connection, {"code": 0})
        for connection in there.values():
            # They hang up first, so that the port is free at once.
            with contextlib.suppress(OSError):
                connection.recv(1)


def _missing(place: Place, there: dict[int, socket.socket], seconds: float) -> str:
    missing = [i for i in range(1, place.count) if i not in there]
    shown = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
    return (
        f"process {shown} of {place.count} did not come to {place.coordinator} within "
        f"{seconds:g} s; start all of them (is the port open between the hosts?), or "
        "raise processes.join_seconds"
    )


def _index_of(
    connection: socket.socket, place: Place, there: dict[int, socket.socket]
) -> int | None:
    """The index of one that has connected; None for a stranger."""
    said = _heard(connection)
    if said is None or said.get("greeting") != GREETING:
        return None
    index, count = said.get("index"), said.get("count")
    problem = None
    if count != place.count:
        problem = (
            f"process {index} was told of {count} processes, process 0 of "
            f"{place.count}; start all with one count"
        )
    elif index in there or index == 0:
        problem = (
            f"two processes have index {index} of {place.count} at "
            f"{place.coordinator}; number them from 0 to {place.count - 1}"
        )
    if problem is not None:
        _say(connection, {"code": ConfigError.code, "message": problem})
        raise ConfigError(problem)
    return index


def _answer(place: Place, seconds: float, deadline: float, check: Check) -> None:
    with _connected(place, seconds, deadline, check) as connection:
        _say(
            connection,
            {"greeting": GREETING, "index": place.index, "count": place.count},
        )
        verdict = None
        # Process 0 may have begun later: it waits longer than this one.
        while verdict is None and time.monotonic() < deadline + seconds:
            check()
            verdict = _heard(connection, PAUSE)
    if not verdict or "code" not in verdict:
        raise LostPeerError(
            f"process 0 at {place.coordinator} answered process {place.index} of "
            f"{place.count} with nothing that this program says; see its messages"
        )
    if verdict["code"]:
        raise ToldError(verdict["message"], verdict["code"])


def _connected(
    place: Place, seconds: float, deadline: float, check: Check
) -> socket.socket:
    why = ""
    while time.monotonic() < deadline:
        check()
        try:
            return socket.create_connection((place.host, place.port), PATIENCE)
        except OSError as error:
            why = error.strerror or str(error)
            time.sleep(PAUSE)
    raise LostPeerError(
        f"process {place.index} of {place.count} cannot reach process 0 at "
        f"{place.coordinator} within {seconds:g} s ({why}); start it, or look whether "
        "the port is open"
    )


def _listen(place: Place) -> socket.socket:
    host = place.bind or None
    where = socket.getaddrinfo(
        host, place.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    # All interfaces in one socket: that of IPv6 hears IPv4 too.
    where.sort(key=lambda each: each[0] != socket.AF_INET6)
    if not socket.has_dualstack_ipv6():
        where = where[::-1]
    refused: OSError | None = None
    for family, _, _, _, address in where:
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind(address)
            listener.listen(place.count)
        except OSError as error:
            listener.close()
            refused = error
            if error.errno == errno.EADDRNOTAVAIL:  # localhost may name ::1 in vain
                continue
            break
        listener.settimeout(PAUSE)
        return listener
    taken = refused is not None and refused.errno == errno.EADDRINUSE
    why = "is taken by another program" if taken else f"cannot be used ({refused})"
    raise ConfigError(
        f"the coordinator's port {place.coordinator} {why}; choose another one for all "
        "processes"
    ) from refused


def _accepted(listener: socket.socket) -> Iterator[socket.socket]:
    with contextlib.suppress(TimeoutError):
        yield listener.accept()[0]


def _say(connection: socket.socket, value: dict) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(value).encode() + b"\n")


def _heard(connection: socket.socket, patience: float = PATIENCE) -> dict | None:
    """A line from the other side; None when none comes, {} for the end or nonsense."""
    connection.settimeout(patience)
    line = b""
    try:
        while not line.endswith(b"\n") and len(line) < LONGEST:
            part = connection.recv(LONGEST)
            if not part:
                return {}
            line += part
            connection.settimeout(PATIENCE)
        value = json.loads(line)
    except TimeoutError:
        return None
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
