"""The device mesh, how host arrays get onto it, and how a state is split over it.

Axis `data` splits the batch. The columns of the projector's layers can be split over
`model`, or over `data` as well. One process sees its own devices; the arrays of a step
are global.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sfrik_jax.collectives import DATA, MODEL
from sfrik_jax.errors import ConfigError

# What `specs` splits; everything else is whole on each device.
SPLIT = "projector"


def make_mesh(
    data: int = -1, model: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh of shape [data, model] with automatic partitioning.

    Args:
      data: devices along the batch; -1 takes all that `model` leaves.
      model: devices along wide layers.
      devices: the devices to use; all of the backend's by default.

    Raises:
      ConfigError: the two sizes do not fit the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    if model < 1 or len(devices) % model:
        raise ConfigError(f"mesh.model={model} does not divide {len(devices)} devices")
    if data == -1:
        data = len(devices) // model
    if data < 1 or data * model > len(devices):
        raise ConfigError(
            f"mesh.data={data} x mesh.model={model} needs {data * model} devices; "
            f"there are {len(devices)}. Use -1 for all of them"
        )
    grid = np.asarray(devices[: data * model]).reshape(data, model)
    # jax.make_mesh would make the axes Explicit, and a Gram matrix of batch-sharded
    # rows then has no defined sharding.
    return Mesh(grid, (DATA, MODEL), axis_types=(AxisType.Auto, AxisType.Auto))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over `data`, everything else whole on each device."""
    return NamedSharding(mesh, P(DATA))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on each device."""
    return NamedSharding(mesh, P())


def shard_batch(tree: Any, mesh: Mesh) -> Any:
    """Puts this process's rows of each array onto the mesh as global arrays.

    Args:
      tree: arrays [rows of this process, …]; all processes have equally many.

    Returns:
      The same tree of jax.Arrays [rows of all processes, …], sharded over `data`.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts each array whole on every device of the mesh."""
    return jax.device_put(tree, replicated(mesh))


def specs(tree: Any, columns: str | None) -> Any:
    """Of each leaf of a state, or of a part of it, how it is split.

    The last axis of what lies under the key "projector" is split over the mesh axis
    `columns`, optimiser state and statistics included; all else is whole.
    """

    def of_leaf(path: tuple, leaf: Any) -> P:
        split = columns and any(getattr(key, "key", None) == SPLIT for key in path)
        return P(*(None,) * (leaf.ndim - 1), columns) if split and leaf.ndim else P()

    return jax.tree_util.tree_map_with_path(of_leaf, tree)


def shardings(tree: Any, mesh: Mesh, columns: str | None = None) -> Any:
    """`specs` on a mesh."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(tree, columns))


def abstract(make: Callable[[], Any], mesh: Mesh, columns: str | None = None) -> Any:
    """Shapes, dtypes and shardings of what `make` returns; nothing is computed.

    Args:
      columns: see `specs`; None for all of it whole on each device of the mesh.
    """
    shapes = jax.eval_shape(make)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings(shapes, mesh, columns),
    )


def process_rows(batch_size: int, mesh: Mesh | None) -> np.ndarray:
    """The rows of a global batch that this process supplies, in their order: int [b].

    Those of its devices. Processes whose devices have the same rows supply them all.

    Raises:
      ConfigError: a process has no device in the mesh, or shares some of its rows with
        another but not all.
    """
    every = np.arange(batch_size)
    if mesh is None or jax.process_count() == 1:
        return every
    rows: dict[int, set[int]] = {index: set() for index in range(jax.process_count())}
    for device, (part,) in (
        batch_sharding(mesh).devices_indices_map((batch_size,)).items()
    ):
        rows[device.process_index] |= set(every[part])
    sizes = f"mesh.data={mesh.shape[DATA]} and mesh.model={mesh.shape[MODEL]}"
    for index, mine in rows.items():
        if not mine:
            raise ConfigError(f"{sizes} leave process {index} without a device")
        if any(mine & other and mine != other for other in rows.values()):
            raise ConfigError(
                f"{sizes} give process {index} some of the rows of another process and "
                "not all; let mesh.model divide the devices of a process, or be a "
                "multiple of them"
            )
    return np.array(sorted(rows[jax.process_index()]))
