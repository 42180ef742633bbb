"""The state that a run begins with."""

from collections.abc import Callable

import jax
from jax.sharding import Mesh

from sfrik_jax import mesh as mesh_lib
from sfrik_jax import weights
from sfrik_jax.errors import ConfigError
from sfrik_jax.train_state import TrainState


def first_state(
    random_state: Callable[[], TrainState], path: str, mesh: Mesh
) -> TrainState:
    """Random weights, and the backbone of the weights file where one is given.

    Args: path: the setting `init_from`; empty for none.
    Raises:
      ConfigError: the file holds another network.
      MissingInputError, CorruptInputError: see `weights.load`.
    """
    state = random_state()
    if not path:
        return state
    _, loaded, _ = weights.load(path)
    for kind in ("params", "batch_stats"):
        section = getattr(state, kind)
        shapes = [
            jax.tree.map(lambda x: x.shape, tree)
            for tree in (loaded[kind], section["backbone"])
        ]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                f"init_from={path!r} holds another network than the `model` settings"
            )
        backbone = jax.tree.map(
            lambda new, old: new.astype(old.dtype), loaded[kind], section["backbone"]
        )
        backbone = mesh_lib.replicate(backbone, mesh)
        state = state._replace(**{kind: {**section, "backbone": backbone}})
    return state
