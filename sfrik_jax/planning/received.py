"""What a device receives from the others, counted from a step's traced collectives.

Bytes are those of the program's dtypes, by ring algorithms over the d devices of the
named axes: (d-1)/d of the whole for a gather, a reduce-scatter and an exchange, twice
that for an all-reduce. Sums that the partitioner adds outside of `jax.shard_map` (norms
of split tensors, gauges) are not in the traced program; `bench/comm.py` holds the
compiled one against it.
"""

import math
from collections import Counter, defaultdict
from typing import Any, NamedTuple

from jax.extend import core

from sfrik_jax.planning.programs import OUTSIDE, Ran, equations, nbytes

ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER = "all-reduce", "all-gather", "reduce-scatter"
EXCHANGE, PERMUTE = "all-to-all", "permute"
KINDS = {
    "psum": ALL_REDUCE,
    "psum_invariant": ALL_REDUCE,
    "pmax": ALL_REDUCE,
    "pmin": ALL_REDUCE,
    "all_gather": ALL_GATHER,
    "all_gather_invariant": ALL_GATHER,
    "reduce_scatter": REDUCE_SCATTER,
    "all_to_all": EXCHANGE,
    "ppermute": PERMUTE,
}


class Collective(NamedTuple):
    """One that a step runs, `times` over.

    Attributes:
      kind: as XLA names it.
      part: of the step, see `programs.PARTS`; outside of the network's modules,
        "gradients", which alone are sent there.
      dtype: of what is sent, the widest where it is several arrays.
      whole: bytes of its whole result, or of all that it adds up.
      received: bytes that one device receives, for one run.
      devices: that take part together.
    """

    kind: str
    part: str
    dtype: str
    whole: int
    received: float
    times: int
    devices: int


def collectives(program: core.Jaxpr) -> list[Collective]:
    """Every explicit collective over more than one device, in the program's order."""
    found = [_collective(each) for each in equations(program)]
    return [each for each in found if each is not None]


def received_bytes(program: core.Jaxpr) -> float:
    """Bytes that a device receives in one run of a program."""
    return sum(each.times * each.received for each in collectives(program))


def summary(found: list[Collective]) -> list[dict[str, Any]]:
    """Count and received bytes by part, kind and dtype, the largest first."""
    counts, bytes_ = Counter[tuple](), defaultdict[tuple, float](float)
    for each in found:
        key = each.part, each.kind, each.dtype
        counts[key] += each.times
        bytes_[key] += each.times * each.received
    return [
        {
            "part": part,
            "kind": kind,
            "dtype": dtype,
            "count": counts[part, kind, dtype],
            "bytes": received,
        }
        for (part, kind, dtype), received in sorted(
            bytes_.items(), key=lambda item: item[1], reverse=True
        )
    ]


def _collective(ran: Ran) -> Collective | None:
    kind = KINDS.get(ran.equation.primitive.name)
    if kind is None:
        return None
    names = ran.equation.params.get("axes", ran.equation.params.get("axis_name"))
    names = (names,) if isinstance(names, str) else names
    devices = math.prod(ran.axes.get(name, 1) for name in names)
    if devices == 1:
        return None
    given = ran.equation.outvars if kind == ALL_GATHER else ran.equation.invars
    whole = sum(map(nbytes, given))
    share = 1.0 if kind == PERMUTE else (devices - 1) / devices
    passes = 2 if kind == ALL_REDUCE else 1
    widest = max((each.aval.dtype for each in given), key=lambda dtype: dtype.itemsize)
    part = "gradients" if ran.part == OUTSIDE else ran.part
    return Collective(
        kind, part, widest.name, whole, passes * share * whole, ran.times, devices
    )
