"""Small states of training for the tests of checkpoints."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sfrik_jax.checkpoint import Checkpoints
from sfrik_jax.mesh import batch_sharding, make_mesh, replicated


class State(NamedTuple):
    step: jax.Array
    params: dict
    moments: list


def state_of(step, seed=0):
    """Leaves of every kind, with NaN, infinities, -0 and denormals among them."""
    rng = np.random.default_rng(100 * seed + step)
    odd = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-42, 0.0, 1.0, -1.0], np.float32)
    wide = rng.standard_normal((16, 24))
    return State(
        step=jnp.asarray(step, jnp.int32),
        params={
            "kernel": jnp.asarray(wide, jnp.float32),
            "half": jnp.asarray(wide[:8], jnp.bfloat16),
            "odd": jnp.asarray(odd),
            "mask": jnp.asarray(wide[:, 0] > 0),
        },
        moments=[jnp.asarray(rng.integers(-(2**31), 2**31, (256, 3)), jnp.int32)],
    )


def placed(state, devices):
    """The state on a mesh: leaves split over it where their first axis allows."""
    mesh = make_mesh(devices, devices=jax.devices()[:devices])

    def place(x):
        split = x.ndim > 0 and x.shape[0] % devices == 0
        return jax.device_put(x, batch_sharding(mesh) if split else replicated(mesh))

    return jax.tree.map(place, state)


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def bits(state):
    return [(x.dtype, x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(state)]


def opened(path, *, keep=3, keep_period=None):
    return Checkpoints(path, keep=keep, keep_period=keep_period)
