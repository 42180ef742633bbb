"""The pickles of PyTorch's state dicts, read without running anything.

A pickle is a program. Python's own `Unpickler` would have to be tamed here: a file of
nine bytes makes it allocate 4 GB (a memo entry of a high number), a dictionary key of a
million nested tuples ends the process by a segmentation fault, and one of 28 doublings
takes 3.6 s (Python 3.11). This machine knows the few instructions that a state dict
needs, has no recursion, and calls only functions that it was given.
"""

import io
import pickletools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sfrik_jax.weights.stored import reason, shown

Function = Callable[..., Any]


class Refused(Exception):
    """The pickle asks for something that no state dict needs; it was not done."""


class _Mark:
    """Where a tuple, list or dictionary begins on the stack."""


MARK = _Mark()
# Of dictionaries. Tuples hash without limit; numbers of a hostile choice all alike:
# 39,000 multiples of 2^61 - 1 take 33 s. Text is hashed with a secret of the process.
KEYS = (str, int, bool, type(None))
MAX_KEY = 1 << 31  # such numbers are their own hashes
MAX_ITEMS = 1 << 15  # of a dictionary; ResNet-101 has 626
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
VALUES |= {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def unpickle(
    data: bytes,
    *,
    functions: Mapping[str, Function],
    values: Mapping[str, Any],
    persistent: Function,
) -> Any:
    """What a pickle describes, of strings, numbers, tuples, lists and dictionaries.

    Args:
      functions: what a global name stands for that the pickle may call, such as
        "torch._utils._rebuild_tensor_v2". What one of them returns may be built on
        (`__setstate__`) if it is a dictionary: the state is dropped.
      values: what a global name stands for that may only be passed on.
      persistent: makes an object of a persistent identifier.

    Raises:
      Refused: a global name that is not listed, or an instruction that is not needed.
      ValueError: the pickle is damaged, or an argument makes no sense.
    """
    return _Machine(functions, values, persistent).run(data)


class _Machine:
    def __init__(
        self,
        functions: Mapping[str, Function],
        values: Mapping[str, Any],
        persistent: Function,
    ) -> None:
        self._functions, self._values = functions, values
        self._persistent = persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for name, argument in _instructions(data):
            if name == "STOP":
                break
            if name in CONSTANTS:
                self._stack.append(CONSTANTS[name])
            elif name in VALUES:
                self._stack.append(argument)
            elif name in TUPLES:
                self._stack.append(tuple(self._take(TUPLES[name])))
            elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
                number = len(self._memo) if name == "MEMOIZE" else argument
                self._memo[number] = self._top()
            elif name in ("BINGET", "LONG_BINGET"):
                if argument not in self._memo:
                    raise ValueError(f"memo entry {argument} is used before it is set")
                self._stack.append(self._memo[argument])
            elif name in STEPS:
                STEPS[name](self, argument)
            else:
                raise Refused(f"pickle instruction {name}")
        if len(self._stack) != 1:
            raise ValueError("the pickle leaves no single object")
        return self._take(1)[0]

    def _top(self) -> Any:
        if not self._stack or self._stack[-1] is MARK:
            raise ValueError("the pickle's stack is empty")
        return self._stack[-1]

    def _take(self, count: int) -> list[Any]:
        """The last `count` objects, in the order in which they were pushed."""
        taken = self._stack[len(self._stack) - count :] if count else []
        if len(taken) < count or any(each is MARK for each in taken):
            raise ValueError("the pickle's stack is empty")
        del self._stack[len(self._stack) - count :]
        return taken

    def _take_to_mark(self) -> list[Any]:
        taken = []
        while self._stack:
            each = self._stack.pop()
            if each is MARK:
                return taken[::-1]
            taken.append(each)
        raise ValueError("the pickle closes what it has not opened")

    def _set_items(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is not dict or len(items) % 2:
            raise ValueError("the pickle sets items of what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in KEYS or (type(key) is int and abs(key) >= MAX_KEY):
                raise ValueError("a key of a dictionary is neither text nor small")
            target[key] = value
        if len(target) > MAX_ITEMS:
            raise ValueError(f"a dictionary has more than {MAX_ITEMS} items")

    def _append(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is not list:
            raise ValueError("the pickle appends to what is no list")
        target.extend(items)

    def _global(self, name: str) -> None:
        if name not in self._functions and name not in self._values:
            raise Refused(f"global {shown(name)}")
        known = self._values if name in self._values else self._functions
        self._stack.append(known[name])

    def _stack_global(self) -> None:
        parts = self._take(2)
        if not all(type(part) is str for part in parts):
            raise ValueError("the name of a global is no text")
        self._global(".".join(parts))

    def _reduce(self) -> None:
        function, arguments = self._take(2)
        if not any(function is each for each in self._functions.values()):
            raise Refused("a call of what is no function")
        if type(arguments) is not tuple:
            raise ValueError("the arguments of a call are no tuple")
        try:
            self._stack.append(function(*arguments))
        except TypeError as error:
            raise ValueError(f"a call has wrong arguments: {error}") from error

    def _persist(self) -> None:
        self._stack.append(self._persistent(*self._take(1)))

    def _build(self) -> None:
        target, state = self._take(2)
        if type(target) is not dict or type(state) is not dict:
            raise Refused("a state for what is no dictionary")
        # PyTorch keeps `_metadata`, the versions of modules, as an attribute.
        self._stack.append(target)


STEPS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": lambda machine, _: machine._stack.append(MARK),
    "TUPLE": lambda machine, _: machine._stack.append(tuple(machine._take_to_mark())),
    "EMPTY_LIST": lambda machine, _: machine._stack.append([]),
    "APPEND": lambda machine, _: machine._append(machine._take(1)),
    "APPENDS": lambda machine, _: machine._append(machine._take_to_mark()),
    "EMPTY_DICT": lambda machine, _: machine._stack.append({}),
    "SETITEM": lambda machine, _: machine._set_items(machine._take(2)),
    "SETITEMS": lambda machine, _: machine._set_items(machine._take_to_mark()),
    "GLOBAL": lambda machine, name: machine._global(name.replace(" ", ".")),
    "STACK_GLOBAL": lambda machine, _: machine._stack_global(),
    "REDUCE": lambda machine, _: machine._reduce(),
    "BUILD": lambda machine, _: machine._build(),
    "BINPERSID": lambda machine, _: machine._persist(),
}


def _instructions(data: bytes) -> Iterator[tuple[str, Any]]:
    """Names and arguments; `INST` is told as the global that it names."""
    stream = io.BytesIO(data)
    try:
        for instruction, argument, _ in pickletools.genops(stream):
            name = instruction.name
            if name == "INST":
                raise Refused(f"global {shown(str(argument).replace(' ', '.'))}")
            yield name, argument
    except (ValueError, OverflowError, Warning) as error:
        raise ValueError(f"the pickle is damaged: {reason(error)}") from error
    if stream.tell() != len(data):
        raise ValueError("data follows the end of the pickle")
