"""What the processes of a job tell each other: texts, notices, and when to stop.

All of it goes through the key-value store of jax's coordination service, so that it
waits for slow hosts without a device, and nothing of it is in the way of a step. jax
has the store behind a private name; this module is the only one that uses it.
"""

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from sfrik_jax.errors import LostPeerError, ToldError

log = logging.getLogger("sfrik")

# A wait in the store cannot be interrupted: it is done in pieces of so many ms.
PIECE = 500
# Seconds between two looks for a notice. To wait for one in pieces would leave a note
# of each piece in the store, for as long as none comes.
LOOK = 0.5
# And where all are about to agree on a step to stop at.
SOON = 0.05
# Seconds in which the store may fail to answer before it counts as gone.
TOLERATED = 4.0
# Seconds that process 0 has to close its files once another process has failed.
GRACE = 5.0
# Seconds that process 0, which keeps the store, waits for the others to hear of it.
HEARD = 3.0
# Seconds in which all is told that a process can tell before it ends at once.
TOLD = 1.0
# Seconds from the notice of a hang until all have heard it and written where they are.
# The first end breaks what the others wait for: their stacks would be those of errors.
WRITTEN = 1.5


class Talk:
    """The talk of one process with the others of its job.

    Args:
      client: jax's client of the coordination service.
      index: of this process. count: of all.
    """

    def __init__(self, client: Any, index: int, count: int) -> None:
        self.index, self.count = index, count
        self._client = client
        self._calls = 0
        self.failure: ToldError | None = None
        # The last step that was asked about, and the one to stop at once it is known.
        self._step, self.stop_at = -1, None
        self.stop_requested = False
        # What this process says where others ask for it, and does where one of them
        # found that the job hangs: see `watchdog`.
        self.answer: Callable[[], str] = str
        self.on_hang: Callable[[], None] = lambda: None
        self._turn = threading.Condition()
        self._asked = False  # whether others know of _step, and wait for the rest
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def gather(self, text: str) -> list[str]:
        """The texts of all processes, in their order. Waits for the slowest.

        All processes call it equally often, in one order.

        Raises:
          ToldError: another process has failed meanwhile.
          LostPeerError: process 0 is gone.
        """
        self._calls += 1
        place = f"sfrik/gather/{self._calls}"
        self._client.key_value_set(f"{place}/{self.index}", text)
        texts = [self._get(f"{place}/{i}") for i in range(self.count)]
        # All have called this one, so all are through with the one before.
        if self._calls > 1:
            self._client.key_value_delete(
                f"sfrik/gather/{self._calls - 1}/{self.index}"
            )
        return texts

    def reached(self, step: int) -> bool:
        """Whether all processes stop at this step; asked once for each, in order.

        It costs a lock that nobody holds: a stop is agreed by the threads that watch.
        The first asked of any process that none has passed is where all of them stop.

        Raises:
          ToldError: another process has failed before all could agree.
        """
        with self._turn:
            while self._asked and self.stop_at is None:
                self.raise_failure()
                self._turn.wait(LOOK)
            self._step = step
            return self.stop_at is not None and step >= self.stop_at

    def ask(self, patience: float, over: threading.Event) -> list[str | None]:
        """What all processes answer; None for those that do not within `patience` s.

        Args:
          over: the answers are not needed any more.

        Raises:
          Exception: the store is gone.
        """
        number = self._client.key_value_increment("sfrik/asked", 1)
        place = f"sfrik/answer/{number}/"
        self._notify({"asked": number})
        deadline = time.monotonic() + patience
        found: list[str | None] = [None] * self.count
        while None in found and time.monotonic() < deadline and not over.wait(SOON):
            for index, text in enumerate(found):
                if text is None:
                    found[index] = self._look(f"{place}{index}")
        self._client.key_value_delete(place)
        return found

    def fail(self, code: int, message: str, *, hangs: bool = False) -> None:
        """Tells the others that this process ends, and why."""
        about = {"failed": self.index, "code": code, "message": message}
        with contextlib.suppress(Exception):
            self._notify(about | ({"hangs": True} if hangs else {}))

    def fail_at_once(self, code: int, message: str, *, hangs: bool = False) -> None:
        """`fail` and `hear` from any thread, for no longer than they are worth."""

        def tell() -> None:
            self.fail(code, message, hangs=hangs)
            time.sleep(WRITTEN if hangs else 0)
            self.hear()

        telling = threading.Thread(target=tell, daemon=True)
        telling.start()
        telling.join(TOLD + WRITTEN + (0 if self.index else HEARD))

    def hear(self) -> None:
        """To be called before the end: process 0 goes last, as it keeps the store."""
        self._over.set()
        with contextlib.suppress(Exception):
            if self.index > 0:
                self._client.key_value_set(f"sfrik/heard/{self.index}", "")
            else:
                self._wait_until_heard()

    def close(self) -> None:
        """Ends the watching, of which nothing may be left when Python ends."""
        self._over.set()
        self._watcher.join()

    def _get(self, key: str) -> str:
        while True:
            self.raise_failure()
            try:
                return self._client.blocking_key_value_get(key, PIECE)
            except Exception as error:
                if not _is_timeout(error):
                    raise lost(error) from error

    def raise_failure(self) -> None:
        """Raises what another process told of its end, if one did."""
        if self.failure is not None:
            raise self.failure

    def _notify(self, about: dict[str, Any]) -> None:
        number = self._client.key_value_increment("sfrik/notices", 1)
        self._client.key_value_set(f"sfrik/notice/{number}", json.dumps(about))

    def _watch(self) -> None:
        """Hears notices, and tells the others of a signal that came here."""
        number, told, answered = 1, False, time.monotonic()
        while not self._over.is_set():
            try:
                if self.stop_requested and not told:
                    self._notify({"stop": self.index})
                    told = True
                self._settle_stop()
                text = self._look(f"sfrik/notice/{number}")
            except Exception as error:
                if time.monotonic() < answered + TOLERATED:
                    self._over.wait(LOOK)
                    continue
                if not self._over.is_set():
                    self._left_alone(error)
                return
            answered = time.monotonic()
            if text is None:
                settling = self._asked and self.stop_at is None
                self._over.wait(SOON if settling else LOOK)
                continue
            number += 1
            about = json.loads(text)
            if "stop" in about:
                self._ask_to_stop()
            elif "asked" in about:
                place = f"sfrik/answer/{about['asked']}/{self.index}"
                self._client.key_value_set(place, self.answer())
            elif about["failed"] != self.index:
                self._told_of_failure(about)

    def _look(self, key: str) -> str | None:
        """A text of the store, None where it is not there."""
        try:
            return self._client.key_value_try_get(key)
        except Exception as error:
            if "NOT_FOUND" in str(error):
                return None
            raise

    def _ask_to_stop(self) -> None:
        """Tells the others the last step that was asked about here.

        From here on no step is passed until all agree.
        """
        with self._turn:
            if self._asked:
                return
            self._asked = True
        self._client.key_value_set(f"sfrik/at/{self.index}", str(self._step))

    def _settle_stop(self) -> None:
        """stop_at = 1 + the last step that any process has asked about, once known."""
        if not self._asked or self.stop_at is not None:
            return
        texts = [self._look(f"sfrik/at/{i}") for i in range(self.count)]
        steps = [int(text) for text in texts if text is not None]
        if len(steps) == self.count:
            with self._turn:
                self.stop_at = 1 + max(steps)
                self._turn.notify_all()

    def _told_of_failure(self, about: dict[str, Any]) -> None:
        message = f"process {about['failed']}: {about['message']}"
        self.failure = ToldError(message, about["code"])
        if "hangs" in about:
            self.on_hang()
            time.sleep(WRITTEN)
        if self.index > 0:
            self.hear()
            end("", about["code"])
        # This process has files to close. What it waits for fails when the other ends,
        # on most backends.
        if not self._over.wait(GRACE):
            end(f"error: {message}", about["code"])

    def _wait_until_heard(self) -> None:
        deadline = time.monotonic() + HEARD
        for index in range(1, self.count):
            left = deadline - time.monotonic()
            self._client.blocking_key_value_get(
                f"sfrik/heard/{index}", max(1, round(left * 1000))
            )
        time.sleep(0.3)  # they end right after that word

    def _left_alone(self, error: Exception) -> None:
        """The store is gone, and process 0 with it: jax is about to raise SIGABRT."""
        end(f"error: process {self.index}: {lost(error)}", LostPeerError.code)


def end(line: str, code: int) -> NoReturn:
    """Ends the process at once: what waits for others that are gone waits no more."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os.write(2, f"{line}\n".encode() if line else b"")
    os._exit(code)


def lost(error: BaseException) -> LostPeerError:
    """A loss of another process, from how jax tells it."""
    first = " ".join(str(error).split())[:160]
    return LostPeerError(
        f"another process of this job is gone ({first}); the last checkpoint is valid: "
        "start all of them again"
    )


def _is_timeout(error: Exception) -> bool:
    return "DEADLINE_EXCEEDED" in str(error)
