"""What a training step takes and returns."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sfrik_jax.models import SSLModel


class Skipped(NamedTuple):
    """Steps whose update was left out, as loss or gradient was not finite.

    Attributes:
      total: int32 [], of the run.
      in_row: int32 [], since the last step that was not skipped.
    """

    total: jax.Array
    in_row: jax.Array


class TrainState(NamedTuple):
    """Everything that a step changes; a restart needs nothing else.

    Attributes:
      step: int32 [], the number of steps done, those that were skipped included.
      params: {"backbone": …, "projector": …}.
      batch_stats: running statistics, in the same tree.
      opt_state: the optimiser's, which counts updates: skipped steps are none.
      skipped: see `step.nonfinite` of the settings.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    skipped: Skipped


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
        skipped=Skipped(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)),
    )


def variables(state: TrainState) -> dict[str, Any]:
    """What the network computes with, projector included."""
    return {"params": state.params, "batch_stats": state.batch_stats}


def backbone_variables(state: TrainState) -> dict[str, Any]:
    """The backbone's own variables, for evaluation and export."""
    return {
        "params": state.params["backbone"],
        "batch_stats": state.batch_stats["backbone"],
    }
