"""What a training step takes and returns."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sfrik_jax.models import SSLModel


class TrainState(NamedTuple):
    """Everything that a step changes; a restart needs nothing else.

    Attributes:
      step: int32 [], the number of steps done.
      params: {"backbone": …, "projector": …}.
      batch_stats: running statistics, in the same tree.
      opt_state: the optimiser's.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState


def create(
    seed: int,
    model: SSLModel,
    optimizer: optax.GradientTransformation,
    image_size: int,
) -> TrainState:
    """A fresh state. Traceable: `jax.jit` with shardings places it on a mesh."""
    images = jnp.zeros((1, 1, image_size, image_size, 3), jnp.float32)
    variables = model.init(jax.random.key(seed), images, train=False)
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(params),
    )


def backbone_variables(state: TrainState) -> dict[str, Any]:
    """The backbone's own variables, for evaluation and export."""
    return {
        "params": state.params["backbone"],
        "batch_stats": state.batch_stats["backbone"],
    }
