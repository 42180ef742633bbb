"""What a step of a configuration costs on each device: traced, not compiled, not run.

No data is opened and no device is needed: the step is traced on an abstract mesh.
"""

import math
from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.sharding import AbstractMesh, AxisType, Mesh
from ml_collections import ConfigDict

from sfrik_jax import config as configs
from sfrik_jax import mesh as mesh_lib
from sfrik_jax import pretrain
from sfrik_jax.collectives import DATA, MODEL
from sfrik_jax.data.views import num_views, size_groups
from sfrik_jax.errors import ConfigError
from sfrik_jax.planning import arithmetic, memory, received
from sfrik_jax.planning.arithmetic import WEIGHT_BYTES, Work
from sfrik_jax.planning.hardware import Hardware
from sfrik_jax.planning.programs import (
    BACKBONE,
    LOSS,
    PARTS,
    PROJECTOR,
    equations,
    nbytes,
)
from sfrik_jax.target import portable

# Where the number of images is not known: nothing that is counted depends on it.
SOME_STEPS = 1000


class TracedStep(NamedTuple):
    """A step as a program, and how its arguments lie on the devices.

    Attributes:
      arguments: leaves of state and batch, with their shardings.
      labels: whose each of them is.
      donated: which of them the step may overwrite.
    """

    program: core.Jaxpr
    mesh: AbstractMesh
    parts: pretrain.StepParts
    arguments: list[Any]
    labels: list[str]
    donated: list[bool]

    def peak(self) -> memory.Peak:
        """The most that lives at the same time on one device."""
        arrays = [
            memory.Array(-(-nbytes(variable) // splits), label, splits)
            for variable, leaf, label in zip(
                self.program.invars, self.arguments, self.labels, strict=True
            )
            for splits in [memory.splits(leaf.sharding)]
        ]
        return memory.peak(self.program, arrays, donated=self.donated)

    def held(self) -> dict[str, int]:
        """Bytes of the arguments on one device, by label."""
        total = Counter[str]()
        for leaf, label in zip(self.arguments, self.labels, strict=True):
            size = math.prod(leaf.shape) * leaf.dtype.itemsize
            total[label] += size // memory.splits(leaf.sharding)
        return dict(total)


def trace(config: ConfigDict, devices: int) -> TracedStep:
    """The step of a configuration on so many devices.

    Errors: ConfigError where the settings do not suit the number of devices, and for
        sums in a fixed order, whose program does not tell how often its parts run.
    """
    configs.validate(config, num_devices=devices)
    if config.step.deterministic_reduce:
        raise ConfigError(
            f"step.deterministic_reduce={config.step.deterministic_reduce} is not "
            "planned; see the costs in docs/scaling.md, or set it to 0"
        )
    model = config.mesh.model
    data = devices // model if config.mesh.data == -1 else config.mesh.data
    auto = (AxisType.Auto, AxisType.Auto)
    mesh: Any = AbstractMesh((data, model), (DATA, MODEL), axis_types=auto)
    plan = configs.derive(config, SOME_STEPS * config.data.batch_size)
    parts = pretrain.build_step(config, mesh, plan)
    batch = batch_of(config, parts, mesh)
    with portable():
        program = parts.step.trace(parts.state, batch).jaxpr.jaxpr  # pyright: ignore
    labels = [
        name
        for name, part in (*parts.state._asdict().items(), ("batch", batch))
        for _ in jax.tree.leaves(part)
    ]
    leaves = jax.tree.leaves((parts.state, batch))
    donated = [label != "batch" for label in labels]
    return TracedStep(program, mesh, parts, leaves, labels, donated)


def batch_of(
    config: ConfigDict, parts: pretrain.StepParts, mesh: Mesh
) -> dict[str, Any]:
    """Shapes of a batch from the host, uint8 crops."""
    rows, whole = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
    n, views = config.data.batch_size, parts.views

    def shaped(shape: tuple[int, ...], dtype: Any, sharding: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    sides = [(len(group), views[group[0]].size) for group in size_groups(views)]
    crops = [shaped((n, v, side, side, 3), jnp.uint8, rows) for v, side in sides]
    return {
        "views": tuple(crops),
        "index": shaped((n,), jnp.int32, rows),
        "epoch": shaped((), jnp.int32, whole),
    }


def compiled(config: ConfigDict) -> tuple[Any, pretrain.StepParts, dict[str, Any]]:
    """The step compiled for the devices here, its parts, and the shapes of a batch.

    `memory.of_compiled` tells XLA's own plan for its memory.
    """
    mesh = mesh_lib.make_mesh(config.mesh.data, config.mesh.model)
    plan = configs.derive(config, SOME_STEPS * config.data.batch_size)
    parts = pretrain.build_step(config, mesh, plan)
    batch = batch_of(config, parts, mesh)
    lowered = parts.step.lower(  # pyright: ignore[reportFunctionMemberAccess]
        parts.state, batch
    )
    return lowered.compile(), parts, batch


def count(config: ConfigDict, devices: int) -> dict[str, Any]:
    """All that is counted of a step, as a record of plain values.

    Keys: `devices`, `mesh`; `parameters` of backbone and projector; of one device:
    `held` (bytes of state and batch by name), `peak_bytes` and `peak_parts`, `flop` by
    part, `traffic_bytes` to and from memory, `collectives` and `received_bytes`.
    """
    step = trace(config, devices)
    held = step.held()
    peak, products = step.peak(), work_by_part(step)
    found = received.collectives(step.program)
    params = step.parts.state.params
    return {
        "devices": devices,
        "mesh": dict(step.mesh.shape),
        "views": num_views(step.parts.views),
        "parameters": {
            part: sum(leaf.size for leaf in jax.tree.leaves(params[part]))
            for part in (BACKBONE, PROJECTOR)
        },
        "held": held,
        "peak_bytes": peak.bytes,
        "peak_parts": peak.parts,
        "flop": {part: work.flop for part, work in products.items()},
        "traffic_bytes": _traffic(config, step, products, held["params"] / 4),
        "uncounted": _uncounted(config),
        "collectives": received.summary(found),
        "received_bytes": sum(each.times * each.received for each in found),
    }


def _uncounted(config: ConfigDict) -> str:
    """What a plan of these settings leaves out, for its reader."""
    left_out = []
    if config.loss.method != "sfrik":
        left_out.append(f"what the loss of {config.loss.method} sends")
    if config.data.residence != "host":
        left_out.append("a data set that lives on the device (data.residence)")
    return ", ".join(left_out)


def work_by_part(step: TracedStep) -> dict[str, Work]:
    """FLOP of the products on one device, and bytes of their operands and results.

    Outside of `jax.shard_map` the rows of a batch are split over `data`.
    """
    total: dict[str, Work] = dict.fromkeys(PARTS, Work(0, 0))
    for ran in equations(step.program):
        if ran.equation.primitive.name in arithmetic.PRODUCTS:
            share = 1 if ran.axes else 1 / step.mesh.shape[DATA]
            total[ran.part] += arithmetic.product_work(ran.equation).times(
                ran.times * share
            )
    return total


def _traffic(
    config: ConfigDict, step: TracedStep, products: dict[str, Work], weights: float
) -> float:
    """Bytes to and from the memory of one device, batch norm fused with convolutions.

    Of the backbone as `arithmetic.network` counts them, and more where its products
    are computed again; of projector and loss the products' operands and results; and
    the weights' own.
    """
    backbone, views = step.parts.model.backbone, step.parts.views
    flop = traffic = 0.0
    per_device = config.data.batch_size / step.mesh.shape[DATA]
    for group in size_groups(views):
        first = views[group[0]]
        side = first.patch_size if first.patches else first.size
        pixels = jax.ShapeDtypeStruct((2, side, side, 3), backbone.dtype)
        plain = backbone.clone(remat="none")
        cost = arithmetic.network(plain, pixels, views=2)
        count = per_device * sum(views[number].count for number in group)
        flop, traffic = flop + count * cost.flop, traffic + count * cost.fused
    again = products[BACKBONE].flop / flop
    rest = products[PROJECTOR].bytes + products[LOSS].bytes
    return again * traffic + rest + WEIGHT_BYTES * weights


def seconds(counted: dict[str, Any], sheet: Hardware) -> dict[str, float]:
    """The least time of a step at a data sheet's rates, and what it is made of.

    The longer of arithmetic and traffic, and after it the network: nothing is taken
    to run beside a collective, and nothing to fall short of the sheet.
    """
    arithmetic_ = sum(counted["flop"].values()) / sheet.flop
    traffic = counted["traffic_bytes"] / sheet.traffic
    together = math.prod(counted["mesh"].values())
    network = counted["received_bytes"] / sheet.network(together)
    return {
        "arithmetic": arithmetic_,
        "traffic": traffic,
        "network": network,
        "step": max(arithmetic_, traffic) + network,
    }
