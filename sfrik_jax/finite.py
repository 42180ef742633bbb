"""Where a tree of arrays holds NaN or an infinity, and what is refused for it."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from sfrik_jax import leaves, processes
from sfrik_jax.errors import CorruptInputError, NonFiniteError


def magnitudes(tree: Any) -> dict[str, float]:
    """max |x| of each leaf, sorted by path; NaN where it holds one.

    Leaves of whole numbers are left out. Found on the devices, in one pass that moves a
    number a leaf; all processes of a sharded tree call it, and get the same.
    """
    found = leaves.computed(leaf_magnitudes, tree)
    return {path: float(value) for path, value in found.items()}


def not_finite(tree: Any) -> list[str]:
    """The paths of the leaves with a number that is not finite, sorted."""
    return [path for path, m in magnitudes(tree).items() if not math.isfinite(m)]


def first_not_finite(tree: Any) -> str | None:
    """The first path of `not_finite`; None where all is finite."""
    return next(iter(not_finite(tree)), None)


def refuse_stored(tree: Any, step: int, run: Path) -> None:
    """Refuses what the checkpoint of a step holds.

    Raises:
      CorruptInputError: a number is not finite; names the leaf.
    """
    leaf = first_not_finite(tree)
    if leaf is not None:
        raise processes.of_all(
            CorruptInputError(
                f"the checkpoint of step {step} in {run} holds values that are not "
                f"finite in the leaf {leaf}; name another one, or move checkpoints/"
                f"{step} away to go on from the one before it"
            )
        )


def refuse_to_store(step: int, tree: Any) -> None:
    """Refuses what a step has made: of a finite gradient an update can overflow.

    Raises:
      NonFiniteError: a number is not finite; names the leaf.
    """
    leaf = first_not_finite(tree)
    if leaf is not None:
        raise processes.of_all(
            NonFiniteError(
                f"{leaf} is not finite after step {step}, whose gradient was: the "
                "update overflowed; it is not saved, checkpoints before it are kept. "
                "Lower optim.base_lr in another --workdir"
            )
        )


def leaf_magnitudes(tree: Any) -> dict[str, jax.Array]:
    """`magnitudes`, to be traced."""
    return {
        path: jnp.max(jnp.abs(leaf), initial=0)
        for path, leaf in leaves.by_path(tree).items()
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
