"""The leaves of a state by path, and figures of them that every process gets whole."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by path, such as ".params['backbone']['conv1']"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def computed(make: Callable[[Any], dict[str, jax.Array]], tree: Any) -> dict[str, Any]:
    """`make(tree)`, computed on the devices in one pass, as NumPy arrays by name.

    Whole on each device, as a process sees its own devices alone: all processes of a
    sharded tree call it.
    """
    return jax.device_get(_compiled(make, _mesh(tree))(tree))


def _mesh(tree: Any) -> Mesh | AbstractMesh | None:
    places = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(tree))
    return next((p.mesh for p in places if isinstance(p, NamedSharding)), None)


@functools.cache
def _compiled(make: Callable, mesh: Mesh | AbstractMesh | None) -> Callable:
    whole = None if mesh is None else NamedSharding(mesh, P())
    return jax.jit(make, out_shardings=whole)
