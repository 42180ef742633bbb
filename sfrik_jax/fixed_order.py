"""A pass whose bits do not depend on how many devices or processes share the batch.

Sums of floating-point numbers depend on their order, and a compiler's choice of order
on the shapes it sees. Here the batch is cut into a fixed number of parts. Each part is
computed by the same program of the same shapes, one after the other on its device; what
the parts add up (batch norm's statistics, gradients) is gathered, which moves bits and
adds nothing, and summed from the first part to the last. The loss is computed from all
embeddings on every device.

The network's program is traced for one part, with the sums over parts left as they are,
and run in pieces between them.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.sharding import PartitionSpec as P

from sfrik_jax.collectives import DATA
from sfrik_jax.passes import (
    Batch,
    Loss,
    Network,
    Result,
    batch_specs,
    rows_of,
    step_of,
    whole_of,
)
from sfrik_jax.target import portable

PARTS = "parts"  # the axis that the traced program sums over


class Program:
    """A function of one part, traced, to be run on several parts at once.

    Args:
      function: of arrays; it may sum over the axis `PARTS`, with `jax.lax.psum` at the
        top level of its program.
      parts: how many there are on all devices.
      inputs: shapes of its arguments, trees of `jax.ShapeDtypeStruct`.
    """

    def __init__(self, function: Callable, parts: int, *inputs: Any) -> None:
        trace = jax.make_jaxpr(function, axis_env=[(PARTS, parts)], return_shape=True)
        with portable():  # the forms of a CPU differ with the number of its devices
            self._closed, self.shapes = trace(*inputs)
        self._tree = jax.tree.structure(self.shapes)

    def __call__(
        self, turns: jax.Array, whole: Sequence[Any], stacked: Sequence[Any]
    ) -> Any:
        """Runs all parts of this device.

        Args:
          turns: the number of parts of this device, as a value of the running program.
          whole: the first arguments, equal for all parts.
          stacked: the others, with an axis of the parts in front, as the results have.
        """
        jaxpr = self._closed.jaxpr
        shared, own = jax.tree.leaves(list(whole)), jax.tree.leaves(list(stacked))
        equal = dict(zip(jaxpr.constvars, self._closed.consts, strict=True))
        equal |= dict(zip(jaxpr.invars[: len(shared)], shared, strict=True))
        each = dict(zip(jaxpr.invars[len(shared) :], own, strict=True))
        count = len(own[0])
        groups = [
            (summed, list(equations))
            for summed, equations in itertools.groupby(jaxpr.eqns, _is_sum)
        ]
        needed = _needed_after([equations for _, equations in groups], jaxpr.outvars)
        for (summed, equations), later in zip(groups, needed, strict=True):
            if summed:
                for equation in equations:
                    terms = (_stacked(v, equal, each, count) for v in equation.invars)
                    sums = map(ordered_sum, terms)
                    equal |= dict(zip(equation.outvars, sums, strict=True))
            else:
                each |= _in_turn(jaxpr, equations, later, equal, each, count, turns)
        leaves = [_stacked(var, equal, each, count) for var in jaxpr.outvars]
        return jax.tree.unflatten(self._tree, leaves)


def _is_sum(equation: Any) -> bool:
    return equation.primitive.name == "psum" and PARTS in equation.params["axes"]


def _needed_after(groups: list[list[Any]], outputs: Sequence[Any]) -> Iterator[set]:
    """For each group of equations the variables that later ones or the end read."""
    needed = [{var for var in outputs if isinstance(var, core.Var)}]
    for equations in reversed(groups[1:]):
        needed.append(needed[-1] | _read(equations))
    return reversed(needed)


def _read(equations: Sequence[Any]) -> set:
    return {
        var for each in equations for var in each.invars if isinstance(var, core.Var)
    }


def _in_turn(
    jaxpr: Any,
    equations: list,
    later: set,
    equal: dict,
    each: dict,
    count: int,
    turns: jax.Array,
) -> dict:
    """Runs equations for each part, in turn; the variables that are needed later."""
    made = [var for equation in equations for var in equation.outvars]
    outputs = [var for var in made if var in later]
    inputs = _read(equations) - set(made)
    shared = [var for var in equal if var in inputs]
    own = [var for var in each if var in inputs]
    piece = jaxpr.replace(
        constvars=[], invars=[*shared, *own], outvars=outputs, eqns=equations
    )
    run = core.jaxpr_as_fun(core.ClosedJaxpr(piece, ()))

    def one(i, results):
        values = [each[var][i] for var in own]
        made = run(*(equal[var] for var in shared), *values)
        return [into.at[i].set(x) for into, x in zip(results, made, strict=True)]

    blank = [jnp.zeros((count, *v.aval.shape), v.aval.dtype) for v in outputs]
    # How often it runs is not known to the compiler: a loop that runs once would be
    # joined to what is around it, and add up in another order.
    results = jax.lax.fori_loop(0, turns, one, blank)
    return dict(zip(outputs, results, strict=True))


def _stacked(var: Any, equal: dict, each: dict, count: int) -> jax.Array:
    if isinstance(var, core.Literal):
        value = jnp.asarray(var.val)
    elif var in each:
        return each[var]
    else:
        value = equal[var]
    return jnp.broadcast_to(value, (count, *value.shape))


def ordered_sum(x: jax.Array) -> jax.Array:
    """The sum over the parts of all devices, from the first to the last.

    Each device gets all parts of its slice of the entries, adds them up in order, and
    gathers the slices: two exchanges that move bits and add nothing.

    x: [parts of this device, …], inside `jax.shard_map`; all devices return the same.
    """
    own, size = len(x), x[0].size
    devices = jax.lax.axis_size(DATA)
    padded = -(-size // devices) * devices
    flat = jnp.pad(x.reshape(own, size), [(0, 0), (0, padded - size)])
    parts = jax.lax.all_to_all(flat, DATA, split_axis=1, concat_axis=0, tiled=True)
    total = parts[0]
    for part in parts[1:]:
        total = jax.lax.optimization_barrier(total + part)
    everything = jax.lax.all_gather(total, DATA, axis=0, tiled=True)
    return everything[:size].reshape(x.shape[1:])


def in_fixed_order(
    network: Network,
    loss: Loss,
    parts: int,
    params: Any,
    batch_stats: Any,
    batch: Batch,
) -> Result:
    """The pass of a batch in a fixed number of parts, a multiple of the devices.

    Args:
      loss: of all embeddings, in its form for one device.
    """

    def local(params, batch_stats, batch):
        own = parts // jax.lax.axis_size(DATA)
        whole = whole_of(batch)
        mine = jax.tree.map(lambda x: x.reshape(own, -1, *x.shape[1:]), rows_of(batch))
        forward, backward = _programs(network, parts, params, batch_stats, whole, mine)
        turns = own + jnp.minimum(batch["epoch"], 0)
        z, stats, kept = forward(turns, (params, batch_stats, whole), (mine,))
        everything = [_all_rows(each) for each in z]
        with_value = jax.value_and_grad(loss, has_aux=True)
        (value, terms), z_bar = with_value(everything, *step_of(batch))
        mine = [_own_parts(each, own, parts) for each in z_bar]
        grads = jax.tree.map(ordered_sum, backward(turns, (), (kept, mine)))
        stats = jax.tree.map(lambda x: x[0], stats)
        return jax.lax.optimization_barrier(
            Result(value, terms, everything, stats, grads)
        )

    return jax.shard_map(
        local,
        mesh=network.mesh,
        in_specs=(P(), P(), batch_specs(batch)),
        out_specs=P(),
        check_vma=False,  # nothing is differentiated through it
    )(params, batch_stats, batch)


def _programs(
    network: Network, parts: int, params: Any, stats: Any, whole: Any, rows: Any
) -> tuple[Program, Program]:
    """Forward and backward of one part.

    (params, stats, whole, part) -> embeddings, new statistics, and what the second one
    needs; that and the gradient by the embeddings -> the part's gradients.
    """
    model = network.model.on_axes(PARTS, None, network.reduce_dtype)
    pulls = []

    def forward(params, stats, whole, part):
        def embed(params):
            return network.embed(model, params, stats, {**whole, **part})

        z, pull, stats = jax.vjp(embed, params, has_aux=True)
        residuals, tree = jax.tree.flatten(pull)
        pulls.append(tree)
        return z, stats, residuals

    def backward(residuals, z_bar):
        (grads,) = jax.tree.unflatten(pulls[0], residuals)(z_bar)
        return grads

    part = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)
    forth = Program(forward, parts, params, stats, whole, part)
    z, _, residuals = forth.shapes
    return forth, Program(backward, parts, residuals, z)


def _all_rows(z: jax.Array) -> jax.Array:
    """[own parts, b, q] of this device to [n, q], the rows of all."""
    return jax.lax.all_gather(z.reshape(-1, z.shape[-1]), DATA, axis=0, tiled=True)


def _own_parts(z: jax.Array, own: int, parts: int) -> jax.Array:
    """[n, q] to [own parts, b, q]."""
    z = z.reshape(parts, -1, z.shape[-1])
    first = jax.lax.axis_index(DATA) * own
    return jax.lax.dynamic_slice_in_dim(z, first, own)
