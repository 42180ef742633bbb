"""A batch's pass through the network and back, over the devices of a mesh.

The network runs in `jax.shard_map` on the rows of each device: batch norm and the
projector say themselves what they exchange, and the gradients of parameters are added
up here.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from sfrik_jax import augment
from sfrik_jax.collectives import DATA, Split, embeddings_split, shared, varying
from sfrik_jax.data.views import View, size_groups
from sfrik_jax.mesh import specs
from sfrik_jax.models import SSLModel

Batch = Mapping[str, Any]
Terms = dict[str, jax.Array]
# Of the embeddings of each view, and with a batch that has it of the step's number.
Loss = Callable[..., tuple[jax.Array, Terms]]

# The number of the step in a batch, for a loss that draws at random; others lack it.
STEP = "step"
# What a batch has whole on each device, see `data.loader`; the rest it has by rows.
WHOLE_IN_BATCH = ("images", "epoch", STEP)
# What it has by rows [B] in a test alone: numbers to be added to all pixels of a row.
ADDED = "added_to_views"


class Result(NamedTuple):
    """What a step learns from a batch.

    Attributes:
      value, terms: of the loss of the whole batch.
      z: embeddings of each view.
      batch_stats: the new running statistics.
      grads: by the parameters.
    """

    value: jax.Array
    terms: Terms
    z: list[jax.Array]
    batch_stats: Any
    grads: Any


Pass = Callable[[Any, Any, Batch], Result]


class Network(NamedTuple):
    """The network of a step as it runs on each device.

    Attributes:
      columns: the mesh axis over which the projector's columns are split, or None.
      reduce_dtype: in which the gradients of devices are added up.
    """

    model: SSLModel
    mesh: Mesh
    views: tuple[View, ...]
    seed: int
    columns: str | None = None
    reduce_dtype: jax.typing.DTypeLike = jnp.float32

    @property
    def split(self) -> Split:
        """How the embeddings [n, q] are split."""
        return embeddings_split(self.columns)

    def embed(self, model: SSLModel, params: Any, stats: Any, batch: Batch) -> tuple:
        """Views are made of a batch and pass the model: z and the new statistics."""
        groups = self.make_views(batch, model.backbone.dtype)
        joint = [self.views[g[0]].joint for g in size_groups(self.views)]
        return forward(model, params, stats, groups, joint)

    def make_views(
        self, batch: Batch, dtype: jax.typing.DTypeLike = jnp.float32
    ) -> list[jax.Array]:
        """The network's input, see `augment.make_views`."""
        groups = augment.make_views(batch, self.views, self.seed, dtype)
        if ADDED not in batch:
            return list(groups)
        added = batch[ADDED][:, None, None, None, None]
        return [group + added.astype(group.dtype) for group in groups]

    def add_up(self, grads: jax.Array, axis: str) -> jax.Array:
        """The sum over a mesh axis, taken in `reduce_dtype`."""
        return jax.lax.psum(grads.astype(self.reduce_dtype), axis).astype(grads.dtype)

    def on_device(self, params: Any, stats: Any, batch: Batch) -> tuple:
        """`embed` of the rows of a device, inside `jax.shard_map`."""
        model = self.model.on_axes(DATA, self.columns, self.reduce_dtype)
        return self.embed(model, params, stats, batch)


def at_once(
    network: Network, loss: Loss, params: Any, batch_stats: Any, batch: Batch
) -> Result:
    """Forward and backward of the whole batch."""
    split, stats = _specs(network, params, batch_stats)

    def local(params, batch_stats, batch):
        params = _on_data(params, split, partial(shared, dtype=network.reduce_dtype))
        return network.on_device(params, batch_stats, batch)

    island = jax.shard_map(
        local,
        mesh=network.mesh,
        in_specs=(split, stats, batch_specs(batch)),
        out_specs=(network.split.spec, stats),
    )

    def loss_of(params):
        z, new_stats = island(params, batch_stats, batch)
        value, terms = loss(z, *step_of(batch))
        return value, (terms, z, new_stats)

    found, grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    value, (terms, z, new_stats) = found
    return Result(value, terms, z, new_stats, grads)


def in_parts(
    network: Network,
    loss: Loss,
    parts: int,
    params: Any,
    batch_stats: Any,
    batch: Batch,
) -> Result:
    """Two passes over parts of the batch, with the loss of the whole batch in between.

    First all embeddings, of which nothing else is kept; then the loss and its gradient
    by them; then each part again, with its rows of that gradient. The gradients add up
    to those of the loss of all embeddings; one part's activations live at a time, for
    one more forward pass. Batch norm sees a part, every so manieth image of the batch:
    its statistics normalise it, and the running ones are updated part after part.

    Source: Gao et al., "Scaling deep contrastive learning batch size under memory
    limited setup", RepL4NLP 2021, arXiv 2101.06983.
    """
    split, stats = _specs(network, params, batch_stats)
    rows = network.split.spec
    over_mesh = partial(jax.shard_map, mesh=network.mesh)

    def cache(params, batch_stats, batch):
        def one(_, part):
            z, _ = network.on_device(params, batch_stats, part)
            return None, z

        _, z = _scan_parts(one, None, batch, parts)
        return [_joined(each) for each in z]

    def back(params, batch_stats, batch, z_bar):
        params = _on_data(params, split, varying)
        z_bar = [_parted(each, parts) for each in z_bar]

        def one(carry, part, z_bar):
            total, batch_stats = carry

            def embed(params):
                return network.on_device(params, batch_stats, part)

            _, pull, batch_stats = jax.vjp(embed, params, has_aux=True)
            (grads,) = pull(z_bar)
            return (jax.tree.map(jnp.add, total, grads), batch_stats), None

        start = jax.tree.map(jnp.zeros_like, params), batch_stats
        (grads, batch_stats), _ = _scan_parts(one, start, batch, parts, z_bar)
        return _on_data(grads, split, network.add_up), batch_stats

    z = over_mesh(cache, in_specs=(split, stats, batch_specs(batch)), out_specs=rows)(
        params, batch_stats, batch
    )
    with_value = jax.value_and_grad(loss, has_aux=True)
    (value, terms), z_bar = with_value(z, *step_of(batch))
    grads, batch_stats = over_mesh(
        back,
        in_specs=(split, stats, batch_specs(batch), rows),
        out_specs=(split, stats),
    )(params, batch_stats, batch, z_bar)
    return Result(value, terms, z, batch_stats, grads)


def forward(
    model: SSLModel,
    params: Any,
    batch_stats: Any,
    groups: Sequence[jax.Array],
    joint: Sequence[bool],
) -> tuple[list[jax.Array], Any]:
    """Embeddings of every view in training mode, and the new batch statistics.

    Args:
      groups: views of equal size, [B, V_g, s, s, 3]; one pass of the network each,
        from the first group to the last.
      joint: for each group, whether its views share their batch statistics.

    Returns:
      z, a list of [B, q], one for each view; the running statistics.
    """
    z = []
    for images, together in zip(groups, joint, strict=True):
        variables = {"params": params, "batch_stats": batch_stats}
        (_, embeddings), changed = model.apply(
            variables, images, train=True, joint=together, mutable=["batch_stats"]
        )
        batch_stats = changed["batch_stats"]
        z += [embeddings[:, view] for view in range(images.shape[1])]
    return z, batch_stats


def _specs(network: Network, params: Any, batch_stats: Any) -> tuple[Any, Any]:
    return specs(params, network.columns), specs(batch_stats, network.columns)


def batch_specs(batch: Batch) -> dict[str, P]:
    """How a batch is split, for `jax.shard_map`."""
    return {name: P() if name in WHOLE_IN_BATCH else P(DATA) for name in batch}


def step_of(batch: Batch) -> tuple[jax.Array, ...]:
    """What the loss of a batch takes beside the embeddings."""
    return (batch[STEP],) if STEP in batch else ()


def whole_of(batch: Batch) -> Batch:
    """What every part of a batch needs."""
    return {name: batch[name] for name in WHOLE_IN_BATCH if name in batch}


def rows_of(batch: Batch) -> Batch:
    """What a part of a batch has its rows of."""
    return {name: each for name, each in batch.items() if name not in WHOLE_IN_BATCH}


def _on_data(tree: Any, split: Any, function: Callable) -> Any:
    """function(leaf, axis) of the leaves that are not split over `data`."""
    return jax.tree.map(
        lambda x, spec: x if DATA in spec else function(x, DATA), tree, split
    )


def _scan_parts(
    one: Callable, carry: Any, batch: Batch, parts: int, *others: Any
) -> tuple[Any, Any]:
    """A scan of one(carry, part, *others) over parts of the rows of a batch."""
    whole = whole_of(batch)

    def step(carry, xs):
        part, others = xs
        return one(carry, {**whole, **part}, *others)

    rows = jax.tree.map(lambda x: _parted(x, parts), rows_of(batch))
    return jax.lax.scan(step, carry, (rows, others))


def _parted(x: jax.Array, parts: int) -> jax.Array:
    """Row r goes to part r mod parts: the same on any number of devices."""
    return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)


def _joined(x: jax.Array) -> jax.Array:
    """The rows of `_parted` in their order."""
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
