"""What becomes of pictures that cannot be read or decoded: `data.on_error`.

With "raise" the first one ends the run. With "skip" training takes another picture in
its place,

    i itself, then c_k = hash(seed, i, k) mod N for k = 0, 1, …: the first good one,

which depends on nothing else. So host and device, all processes and every resumed run
agree. The crops and colours stay those of sample i. The pictures that a probe learns
from have no place to fill: there a bad one is left out. Pictures to test on are not
touched by any of this.
"""

import functools
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from sfrik_jax import processes
from sfrik_jax.data.decode import Picture
from sfrik_jax.data.sources import Source
from sfrik_jax.data.views import REPLACEMENT_STREAM, hash_bits
from sfrik_jax.errors import BadPictureError, CorruptInputError

T = TypeVar("T")
Found = list[BadPictureError]

# The file of a run directory that lists them.
FILE = "bad_pictures.json"
LEAST_BUDGET = 100
# Where nine of ten pictures are bad, one search in 40,000 ends without a good one.
_TRIES = 100


class BadPictures:
    """The bad pictures of a run, each noted once, within a budget.

    Reading happens in threads and ahead of time; noting happens in the order in which
    batches are taken. So what is noted, and where the budget ends, does not depend on
    the number of threads.

    Args:
      count: pictures of the training set.
      on_error: "raise" or "skip".
      max_bad: how many may be bad; -1 is one in a thousand of `count`, or 100 where
        that is more. All processes together have this budget (see `share`).
      may_skip: whether a message may say that the setting is there.
    """

    def __init__(
        self,
        count: int,
        *,
        seed: int = 0,
        on_error: str = "raise",
        max_bad: int = -1,
        may_skip: bool = True,
    ) -> None:
        self.skips = on_error == "skip"
        self.budget = max(LEAST_BUDGET, count // 1000) if max_bad < 0 else max_bad
        self.noted: dict[str, str] = {}  # reasons by id
        self.save: Callable[[dict[str, Any]], None] = lambda record: None
        self._seed, self._may_skip = seed, may_skip
        self._met: dict[str, BadPictureError] = {}
        self._unshared: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs to find bad pictures; noting stays here."""
        return self.__dict__ | {"save": None}

    def attempt(self, name: str, use: Callable[[], T]) -> tuple[T | None, Found]:
        """`use()`, or None and what is wrong with the picture `name`.

        A picture that was bad once is bad for the rest of the run: it is not read
        again, and a disk that answers at times does not change batches.

        Raises:
          BadPictureError: with "raise".
        """
        if name not in self._met:
            try:
                return use(), []
            except BadPictureError as error:
                if not self.skips:
                    remedy = error.remedy
                    if self._may_skip:
                        remedy += ", or set data.on_error=skip"
                    raise BadPictureError(name, error.reason, remedy) from error
                # A new one: the one that was raised holds on to the picture's bytes.
                kept = BadPictureError(name, error.reason, error.remedy)
                self._met.setdefault(name, kept)
        return None, [self._met[name]]

    def good(
        self, source: Source, i: int, use: Callable[[Picture], T]
    ) -> tuple[T, Found]:
        """`use` of picture i or of that in its place, and the bad ones on the way.

        Raises:
          BadPictureError: with "raise".
          CorruptInputError: no good picture is found.
        """
        found: Found = []
        for number in itertools.chain([i], self._drawn(i, len(source))):
            name = source.name(number)
            made, bad = self.attempt(
                name, functools.partial(_used, source, number, name, use)
            )
            if made is not None:
                return made[0], found
            found += bad
        raise CorruptInputError(
            f"{source.name(i)} is bad, and so are {_TRIES} pictures drawn in its "
            f"place, such as {found[-1].id} ({found[-1].reason}); check data.path"
        )

    def note(self, found: Iterable[BadPictureError]) -> None:
        """Prints, counts and stores those that are new; of processes the first prints.

        Raises:
          CorruptInputError: they are more than the budget.
        """
        new = {bad.id: bad for bad in found if bad.id not in self.noted}
        for bad in new.values():
            self.noted[bad.id] = self._unshared[bad.id] = bad.reason
            if processes.first():
                print(bad.line, file=sys.stderr, flush=True)
        if new:
            self.save(self.record())
            self._check_budget()

    def share(self) -> None:
        """Brings together what the processes of the job have noted.

        All of them call it, with each checkpoint. In between, each has the budget for
        itself.

        Raises:
          CorruptInputError: together they are more than the budget.
        """
        for text in processes.gather(json.dumps(self._unshared)):
            found = [BadPictureError(*each) for each in json.loads(text).items()]
            self._met |= {bad.id: bad for bad in found}
            self.note(found)
        self._unshared.clear()

    def record(self) -> dict[str, Any]:
        """What `FILE` holds."""
        pictures = [{"id": id, "reason": reason} for id, reason in self.noted.items()]
        return {"budget": self.budget, "pictures": pictures}

    def resume(self, record: dict[str, Any]) -> None:
        """Takes over what an earlier session of the run has noted; "raise" does not.

        Raises:
          CorruptInputError: that is more than the budget.
        """
        if not self.skips:
            return
        earlier = [
            BadPictureError(each["id"], each["reason"])
            for each in record.get("pictures", [])
        ]
        self._met = {bad.id: bad for bad in earlier} | self._met
        self.noted = {bad.id: bad.reason for bad in earlier} | self.noted
        self._check_budget()

    def _check_budget(self) -> None:
        if len(self.noted) > self.budget:
            id, reason = next(reversed(self.noted.items()))
            raise CorruptInputError(
                f"{len(self.noted)} pictures are bad, the budget is {self.budget}; the "
                f"last is {id} ({reason}). Replace them, or raise data.max_bad"
            )

    def _drawn(self, i: int, count: int) -> Iterator[int]:
        bits = hash_bits(self._seed, REPLACEMENT_STREAM, i, np.arange(_TRIES))
        return map(int, bits % np.uint64(count))


def _used(source: Source, i: int, name: str, use: Callable[[Picture], T]) -> tuple[T]:
    return (use(Picture(source.read(i), name)),)
