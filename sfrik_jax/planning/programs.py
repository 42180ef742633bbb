"""A traced program as a list of equations, those of its inner programs among them."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.extend import core

from sfrik_jax.target import portable

# Parts of a step. OUTSIDE is what the network's programs do outside of its modules:
# they make the views and add up gradients. The rest is the optimiser and the gauges.
PARTS = BACKBONE, PROJECTOR, LOSS, OUTSIDE, REST = (
    "backbone",
    "projector",
    "loss",
    "views and gradients",
    "rest",
)


class Ran(NamedTuple):
    """An equation, and where it stands.

    Attributes:
      times: how often it runs.
      axes: the devices along each mesh axis where it is inside `jax.shard_map`, whose
        arrays are those of one device; empty outside.
      part: of the step, one of PARTS.
    """

    equation: Any
    times: int
    axes: Mapping[str, int]
    part: str


def trace(function: Callable, *args: Any) -> core.Jaxpr:
    """The program of a function of arrays, or of `jax.ShapeDtypeStruct`s in trees.

    Traced as for an accelerator, whatever this machine is.
    """
    with portable():
        return jax.make_jaxpr(function)(*args).jaxpr


def equations(
    jaxpr: core.Jaxpr,
    times: int = 1,
    axes: Mapping[str, int] | None = None,
    part: str = REST,
) -> Iterator[Ran]:
    """Every equation of a program and of those within it.

    Of branches all are given; a loop whose length is not known counts once.
    """
    axes = axes or {}
    for equation in jaxpr.eqns:
        yield Ran(equation, times, axes, part_of(equation, part))
        length = times * equation.params.get("length", 1)
        within = part_within(equation, part)
        for inner in inner_programs(equation):
            yield from equations(inner, length, {**axes, **mesh_axes(equation)}, within)


def inner_programs(equation: Any) -> list[core.Jaxpr]:
    """The programs that an equation runs."""
    found = core.jaxprs_in_params(equation.params)
    return [getattr(each, "jaxpr", each) for each in found]


def mesh_axes(equation: Any) -> dict[str, int]:
    """The mesh that an equation enters, by axis; empty where it enters none."""
    if equation.primitive.name != "shard_map":
        return {}
    return dict(equation.params["mesh"].shape)


def part_of(equation: Any, part: str) -> str:
    """The part of the step that an equation belongs to, inside a program of `part`.

    Modules give their names to what they trace; the loss is what else is
    differentiated.
    """
    name = str(equation.source_info.name_stack)
    named = next((each for each in (BACKBONE, PROJECTOR) if each in name), part)
    return LOSS if named == REST and "jvp(" in name else named


def part_within(equation: Any, part: str) -> str:
    """The part of what carries no name in the programs of an equation of `part`."""
    if mesh_axes(equation):
        (inner,) = inner_programs(equation)
        if any(ran.part in (BACKBONE, PROJECTOR) for ran in equations(inner)):
            return OUTSIDE
    return part_of(equation, part)


def nbytes(variable: Any) -> int:
    """Of an array; keys of random numbers count with their words."""
    aval = variable.aval
    return math.prod(aval.shape) * aval.dtype.itemsize
