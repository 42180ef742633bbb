"""The memory of a traced program on one device: which arrays live at the same time.

The program is read in the order in which it was written, every inner program in its
place. An array lives from the equation that makes it to the last one that reads it, in
the program's own dtype; arguments that are donated end so too, others stay. Not
counted as arrays of their own:

- what only names, reshapes or broadcasts another one,
- what elementwise arithmetic makes for one reader that is elementwise or a sum: the
  compiler computes it within its reader, which then needs the operands,
- the result of elementwise arithmetic that takes the place of an operand.

A compiler may order equations otherwise and needs room of its own (workspaces of
convolutions, pieces that fit nowhere), so that this is a count and no measurement.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jax.extend import core

from sfrik_jax.planning.programs import (
    REST,
    inner_programs,
    mesh_axes,
    nbytes,
    part_of,
    part_within,
)

SAME = {"name", "reshape", "squeeze", "expand_dims", "pvary", "stop_gradient", "copy"}
SAME |= {"optimization_barrier", "reshard", "psum_invariant_to_varying", "copy_p"}
CHEAP = {"broadcast_in_dim", "iota", "random_wrap", "random_unwrap"}
SUMS = {"reduce_sum", "reduce_max", "reduce_min", "argmax", "reduce_and", "reduce_or"}
# Everything that is none of these makes each of its values from those at its place.
NOT_ELEMENTWISE = SUMS | {
    "all_gather",
    "all_to_all",
    "argmin",
    "concatenate",
    "conv_general_dilated",
    "cumsum",
    "dot_general",
    "dynamic_slice",
    "dynamic_update_slice",
    "eigh",
    "gather",
    "pad",
    "ppermute",
    "psum",
    "psum_invariant",
    "random_bits",
    "reduce_scatter",
    "reduce_window_max",
    "reduce_window_sum",
    "rev",
    "scatter",
    "scatter_add",
    "select_and_gather_add",
    "select_and_scatter_add",
    "slice",
    "sort",
    "transpose",
}
LOOPS = {"scan", "while", "cond"}


class Peak(NamedTuple):
    """The most bytes that live at the same time, and whose they are."""

    bytes: int
    parts: dict[str, int]


@dataclass(eq=False)
class Array:
    """What is held of a variable, on one device.

    divisor: over how many devices the variable's array is split.
    """

    bytes: int
    part: str
    divisor: int = 1
    born: int = -1
    last: int = -1
    readers: list[int] = field(default_factory=list)


def of_compiled(program: Any) -> int:
    """What a compiled program holds at most by XLA's plan, arguments and results too.

    On a CPU bfloat16 arrays are held as float32 ones: compare on an accelerator only.
    """
    plan = program.memory_analysis()
    held = plan.argument_size_in_bytes + plan.output_size_in_bytes
    return held + plan.temp_size_in_bytes - plan.alias_size_in_bytes


class _Line(NamedTuple):
    """An equation of the program written out."""

    name: str
    takes: list[Array]
    gives: list[Array]
    room: Peak  # what its inner programs need beside


def peak(
    program: core.Jaxpr,
    arguments: Sequence[Array],
    *,
    donated: Sequence[bool] | None = None,
) -> Peak:
    """The peak of a program over one device.

    Args:
      arguments: one for each of the program's.
      donated: which of them end with their last reader; none by default.
    """
    written = _Written()
    results = written.out(program, arguments, {})
    end = len(written.lines)
    for array in results:
        array.last = end
    keep = donated or [False] * len(arguments)
    for array, given in zip(arguments, keep, strict=True):
        array.last = array.last if given else end
    written.fuse()
    return written.peak(arguments)


class _Written:
    """A program as one list of equations, and which arrays they take and give."""

    def __init__(self) -> None:
        self.lines: list[_Line] = []

    def out(
        self,
        program: core.Jaxpr,
        takes: Sequence[Array],
        axes: Mapping[str, int],
        part: str = REST,
    ) -> list[Array]:
        """Adds a program's equations; returns its results."""
        known: dict[Any, Array] = dict(zip(program.invars, takes, strict=True))

        def of(variable: Any) -> Array:
            if isinstance(variable, core.Literal):
                return Array(0, "")
            return known.setdefault(variable, Array(nbytes(variable), "constants"))

        for equation in program.eqns:
            inputs = [of(variable) for variable in equation.invars]
            outputs = self._results(equation, inputs, axes, part)
            known.update(zip(equation.outvars, outputs, strict=True))
        return [of(variable) for variable in program.outvars]

    def _results(
        self, equation: Any, inputs: list[Array], axes: Mapping[str, int], part: str
    ) -> list[Array]:
        name, inner = equation.primitive.name, inner_programs(equation)
        if name in SAME and len(inputs) == len(equation.outvars):
            return inputs
        if inner and name not in LOOPS:
            inside = {**axes, **mesh_axes(equation)}
            outputs = self.out(inner[0], inputs, inside, part_within(equation, part))
            if inside and not axes:
                for array, variable in zip(outputs, equation.outvars, strict=True):
                    array.divisor = max(1, nbytes(variable) // max(array.bytes, 1))
            return outputs
        divisor = 1 if axes else _divisor(equation, inputs)
        part = part_of(equation, part)
        outputs = [
            Array(
                0 if name in CHEAP else -(-nbytes(variable) // divisor),
                part,
                divisor,
                len(self.lines),
                len(self.lines),
            )
            for variable in equation.outvars
        ]
        for array in inputs:
            array.last = len(self.lines)
            array.readers.append(len(self.lines))
        rooms = [_room(each, axes, divisor, part) for each in inner]
        room = max(rooms, key=lambda each: each.bytes, default=Peak(0, {}))
        self.lines.append(_Line(name, inputs, outputs, room))
        return outputs

    def fuse(self) -> None:
        """Takes out what is computed within its one reader."""
        for place in reversed(range(len(self.lines))):
            line = self.lines[place]
            if not _elementwise(line) or len(line.gives) != 1:
                continue
            made = line.gives[0]
            if made.last == len(self.lines) or len(made.readers) != 1:
                continue
            reader = self.lines[made.readers[0]]
            if _elementwise(reader) or reader.name in SUMS:
                made.bytes = 0
                for array in line.takes:
                    array.last = max(array.last, made.last)

    def peak(self, arguments: Sequence[Array]) -> Peak:
        ends: dict[int, list[Array]] = {}
        arrays = [*arguments, *(a for line in self.lines for a in line.gives)]
        for array in arrays:
            ends.setdefault(array.last, []).append(array)
        live = sum(array.bytes for array in arguments)
        most, where, room = live, -1, Peak(0, {})
        for place, line in enumerate(self.lines):
            made = sum(array.bytes for array in line.gives)
            freed = sum(array.bytes for array in ends.get(place, ()))
            reused = min(made, freed) if _elementwise(line) else 0
            here = live + made - reused + line.room.bytes
            if here > most:
                most, where, room = here, place, line.room
            live += made - freed
        parts = Counter(room.parts)
        for array in arrays:
            if array.born <= where <= array.last:
                parts[array.part] += array.bytes
        return Peak(most, dict(parts))


def _elementwise(line: _Line) -> bool:
    return line.name not in NOT_ELEMENTWISE | LOOPS


def _room(
    program: core.Jaxpr, axes: Mapping[str, int], divisor: int, part: str
) -> Peak:
    """What one run of a loop's or a branch's program needs beside what it takes."""
    written = _Written()
    takes = [Array(0, "", divisor) for _ in program.invars]
    for array in written.out(program, takes, axes, part):
        array.last = len(written.lines)
    written.fuse()
    return written.peak(takes)


def _divisor(equation: Any, inputs: Sequence[Array]) -> int:
    """Over how many devices the partitioner splits a result: as its operands are."""
    if equation.primitive.name == "sharding_constraint":
        return splits(equation.params["sharding"])
    return max((array.divisor for array in inputs), default=1)


def splits(sharding: Any) -> int:
    """Over how many devices a sharding splits an array."""
    if sharding is None:
        return 1
    axes = [axis for each in sharding.spec if each for axis in _names(each)]
    return math.prod(sharding.mesh.shape[axis] for axis in axes)


def _names(entry: Any) -> Sequence[str]:
    return (entry,) if isinstance(entry, str) else entry
