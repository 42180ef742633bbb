"""One training step: a pure function of state and batch."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from sfrik_jax import losses, metrics, number_faults
from sfrik_jax.data.views import View, anchors, num_views
from sfrik_jax.fixed_order import in_fixed_order
from sfrik_jax.mesh import batch_sharding, replicated
from sfrik_jax.models import SSLModel
from sfrik_jax.passes import (
    STEP,
    Loss,
    Network,
    Pass,
    Result,
    at_once,
    in_parts,
)
from sfrik_jax.settings import LOSS_DEFAULTS
from sfrik_jax.train_state import Skipped, TrainState

Scalars = dict[str, jax.Array]
Step = Callable[[TrainState, Mapping[str, Any]], tuple[TrainState, Scalars]]

# Rows of the first view that the gauges look at: their cost does not grow with n.
GAUGE_ROWS = 256
# Keeps the keys of losses apart from others made from the same seed.
_LOSS_STREAM = 0x6C6F7373


class Learner(NamedTuple):
    """A batch's way through the network and the loss, and back.

    Attributes:
      network: as it runs on each device.
      run: the form of the pass, see `passes` and `fixed_order`.
      draws: whether the loss draws at random, by the number of the step.
    """

    network: Network
    run: Pass
    draws: bool = False

    def __call__(self, state: TrainState, batch: Mapping[str, Any]) -> Result:
        """What the next step of a state learns from a batch."""
        step = state.step + 1
        batch = number_faults.in_batch(batch, step)
        if self.draws:
            batch = {**batch, STEP: step}
        found = self.run(state.params, state.batch_stats, batch)
        return found._replace(
            value=number_faults.in_value("loss", found.value, step),
            grads=number_faults.in_first("gradient", found.grads, step),
        )


def make_learner(
    model: SSLModel,
    mesh: Mesh,
    *,
    views: tuple[View, ...],
    method: str,
    loss_settings: Mapping[str, Any],
    seed: int,
    columns: str | None = None,
    reduce_dtype: str = "float32",
    micro_batches: int = 1,
    deterministic_reduce: int = 0,
) -> Learner:
    """Network and loss over `mesh`.

    The network runs in one `jax.shard_map`, on each device's rows, and the loss of
    SFRIK in another: every sum over devices is written out.

    Args:
      views: the recipe; the batch holds their crops (see `augment.make_views`).
      method: a name of `losses.METHODS`; `loss_settings` are its arguments.
      columns: the mesh axis over which the projector's columns are split; None for a
        whole projector on each device.
      reduce_dtype: in which the gradients of the devices are added up; a network in
        float64 adds in float64.
      micro_batches: parts of the batch that pass the network one after the other, see
        `passes.in_parts`.
      deterministic_reduce: parts of the batch in a fixed order, see `fixed_order`; 0
        for none. It excludes `columns` and `micro_batches`.
    """
    in_float64 = jnp.dtype(model.backbone.dtype) == jnp.float64
    dtype = jnp.dtype(jnp.float64 if in_float64 else reduce_dtype)
    network = Network(model, mesh, views, seed, columns, dtype)
    settings = {"method": method, "settings": loss_settings, "seed": seed}
    loss = make_loss(views, **settings, mesh=mesh, columns=columns)
    if deterministic_reduce:
        alone = make_loss(views, **settings, mesh=None)
        run = partial(in_fixed_order, network, alone, deterministic_reduce)
    elif micro_batches > 1:
        run = partial(in_parts, network, loss, micro_batches)
    else:
        run = partial(at_once, network, loss)
    return Learner(network, run, method in losses.DRAWING)


def make_train_step(
    learner: Learner,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    *,
    schedule: Callable[[jax.Array], jax.Array],
    log_every: int,
    last_step: int,
    skip_nonfinite: bool = False,
) -> Step:
    """The jitted step over the learner's mesh; it donates the state that it is given.

    The partitioner adds up over devices what the learner does not: the optimiser's
    norms of tensors and the gauges.

    Args:
      state: shapes, dtypes and shardings, see `mesh.abstract`.
      schedule: the rate of an update (0-based), for the log.
      log_every, last_step: the gauges of z are computed at the first and the last step
        and every so many steps, and are NaN in between.
      skip_nonfinite: where the loss or the norm of the gradient is not finite, the new
        state is the old one, one step and one skip later, and is so on all devices.

    Returns:
      step(state, batch) -> (state, scalars). The scalars are named as in
      metrics.jsonl, each over the global batch.
    """
    mesh = learner.network.mesh

    def train_step(state: TrainState, batch: Mapping[str, Any]):
        found = learner(state, batch)
        updates, opt_state = optimizer.update(
            found.grads, state.opt_state, state.params
        )
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        scalars = {f"train/{name}": term for name, term in found.terms.items()}
        scalars["train/loss"] = found.value
        scalars["train/learning_rate"] = schedule(state.step - state.skipped.total)
        norm = scalars["train/gradient_norm"] = optax.tree.norm(found.grads)
        due = (step % log_every == 0) | (step == 1) | (step == last_step)
        for name, value in _gauges_when(due, found.z, mesh).items():
            scalars[f"z/{name}"] = value
        # Where steps are not skipped, none is in a row of them.
        skipped = state.skipped._replace(in_row=jnp.zeros_like(state.skipped.in_row))
        new = TrainState(step, params, found.batch_stats, opt_state, skipped)
        if skip_nonfinite:
            fine = jnp.isfinite(found.value) & jnp.isfinite(norm)
            new = _skipped_unless(fine, new, state)
            scalars["train/skipped"] = new.skipped.total
            scalars["train/skipped_in_row"] = new.skipped.in_row
        return new, scalars

    # The output sharding is stated: left to the partitioner, the second call could
    # see a state that is sharded otherwise, and compile again.
    out = jax.tree.map(lambda leaf: leaf.sharding, state), replicated(mesh)
    return jax.jit(train_step, donate_argnums=0, out_shardings=out)


def _skipped_unless(fine: jax.Array, new: TrainState, old: TrainState) -> TrainState:
    """`new`, or bit for bit `old` but for the counts where the step is not fine."""
    kept = jax.tree.map(lambda n, o: jnp.where(fine, n, o), new, old)
    total = old.skipped.total + jnp.where(fine, 0, 1)
    in_row = jnp.where(fine, 0, old.skipped.in_row + 1)
    return kept._replace(step=new.step, skipped=Skipped(total, in_row))


def make_loss(
    views: tuple[View, ...],
    *,
    method: str,
    settings: Mapping[str, Any],
    mesh: Mesh | None,
    columns: str | None = None,
    seed: int = 0,
) -> Loss:
    """The loss of the embeddings of a recipe's views, its anchors known.

    loss(z) -> (value, terms); a method of `losses.DRAWING` gives loss(z, step), whose
    draws are a function of (seed, step) alone.

    Args:
      columns: the mesh axis over which the embeddings' columns are split. SFRIK takes
        them so; other methods take whole rows, made by an exchange of parts.
    """
    loss = partial(losses.METHODS[method], mesh=mesh, **settings)
    if len(anchors(views)) < num_views(views):
        loss = partial(loss, anchors=anchors(views))
    if method in losses.DRAWING:
        loss = partial(_drawn, loss, seed)
    if columns is None or mesh is None:
        return loss
    if method == "sfrik":
        return partial(loss, columns=columns)
    rows = batch_sharding(mesh)
    return lambda z, *step: loss(jax.lax.with_sharding_constraint(z, rows), *step)


def _drawn(loss: Loss, seed: int, z: list[jax.Array], step: jax.Array):
    """The loss with the key of a step."""
    # The generator is named, as that of the views is.
    key = jax.random.key(seed, impl="threefry2x32")
    for coordinate in (_LOSS_STREAM, step):
        key = jax.random.fold_in(key, coordinate)
    return loss(z, key=key)


def _gauges_when(due: jax.Array, z: Sequence[jax.Array], mesh: Mesh) -> Scalars:
    """The gauges of the first rows of z where `due`; else NaN, at no cost.

    Alignment and off-diagonal MMD are those of SFRIK's default loss, so that methods
    can be compared.
    """

    def measure():
        first, second = (
            losses.normalize(
                jax.lax.with_sharding_constraint(v[:GAUGE_ROWS], replicated(mesh))
            )
            for v in z[:2]
        )
        _, terms = losses.sfrik([first, second], **LOSS_DEFAULTS["sfrik"])
        shared = {name: terms[name] for name in ("alignment", "mmd_offdiagonal")}
        return metrics.gauges(first) | shared

    shapes = jax.eval_shape(measure)
    return jax.lax.cond(
        due,
        measure,
        lambda: jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), shapes),
    )
