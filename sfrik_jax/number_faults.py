"""Faults on purpose in the numbers of a training step, see `faults`.

They are put in where the step is traced: a program that is traced without them has no
trace of them. The step of a fault is a value of the running program, so that it can be
taken again.
"""

from typing import Any

import jax
import jax.numpy as jnp

from sfrik_jax import faults
from sfrik_jax.passes import ADDED, Batch


def in_batch(batch: Batch, step: jax.Array) -> Batch:
    """The batch of a step, with what is added to its views where they have a fault."""
    armed = faults.of_numbers("views")
    if not armed:
        return batch
    added = jnp.zeros(batch["index"].shape, jnp.float32)
    for fault in armed:
        hit = _taken(fault, step) & (batch["index"] == int(fault.argument))
        added = jnp.where(hit, float(fault.action), added)
    return {**batch, ADDED: added}


def in_value(point: str, value: jax.Array, step: jax.Array) -> jax.Array:
    """`value`, or in a step with a fault of `point` an array of its number."""
    for fault in faults.of_numbers(point):
        number = jnp.asarray(float(fault.action), value.dtype)
        value = jnp.where(_taken(fault, step), number, value)
    return value


def in_first(point: str, tree: Any, step: jax.Array) -> Any:
    """A tree whose first leaf is `in_value`."""
    (first, *others), structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [in_value(point, first, step), *others])


def _taken(fault: faults.Fault, step: jax.Array) -> jax.Array:
    return jnp.full((), True) if fault.step is None else step == fault.step
