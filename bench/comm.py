"""What devices send each other in a step: kinds, counts and bytes of its collectives.

    python bench/comm.py [--devices 2,4,8] [--q 32768] [--batch 2048] [--hidden 8192]

Two tables, counted from the traced program in its own dtypes, by ring algorithms
(`sfrik_jax/planning/received.py`); nothing of that size is computed. First the last
layer with the loss behind it, forward and backward:

    rows                  the layer whole on each device, row blocks of the Gram
    rows, bfloat16 sums   the same with step.reduce_dtype=bfloat16
    columns               the layer's columns split over the devices
    gather + autodiff     the original's way: float32 rows gathered, the loss of all of
                          them by autodiff on each device, its gradient all-reduced

Then the whole step of `--config`. With `--check`, each arm is also compiled at a small
size on fake CPU devices, and what the compiled program exchanges stands beside what was
counted: more of it would be the partitioner's.
"""

import math
import re
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh
from jax.sharding import PartitionSpec as P

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere
from bench import command, timing
from bench.loss import dense
from bench.torch_losses import SFRIK
from sfrik_jax import config as configs
from sfrik_jax import losses
from sfrik_jax.collectives import DATA, MODEL, embeddings_split, shared
from sfrik_jax.mesh import specs
from sfrik_jax.models.projector import Projector
from sfrik_jax.planning import counted, received
from sfrik_jax.planning.programs import PROJECTOR
from sfrik_jax.target import portable

CONFIG = str(timing.ROOT / "configs" / "imagenet_resnet50.py")
VIEWS = 2
ROWS, HALF_SUMS, COLUMNS_SPLIT = "rows", "rows, bfloat16 sums", "columns"
PEER = "gather + autodiff"
# By arm of ours: the projector's columns, and in which dtype gradients add up.
ARMS: dict[str, tuple[str | None, str]] = {
    ROWS: (None, "float32"),
    HALF_SUMS: (None, "bfloat16"),
    COLUMNS_SPLIT: (DATA, "float32"),
}
TABLE: dict[str, timing.Column] = {
    "devices": (lambda row: row["shapes"]["devices"], "d"),
    "arm": "",
    "part": "",
    "kind": "",
    "dtype": "",
    "count": "d",
    "MB received": (lambda row: row["bytes"] / 1e6, ",.1f"),
}


class Sizes(NamedTuple):
    """Pictures, features that the last layer takes, and q."""

    batch: int
    hidden: int
    q: int


def abstract_mesh(devices: int) -> Any:
    """A mesh of devices that need not be there."""
    auto = (AxisType.Auto, AxisType.Auto)
    return AbstractMesh((devices, 1), (DATA, MODEL), axis_types=auto)


def operands(sizes: Sizes, dtype: str) -> tuple[Any, Any]:
    """Shapes of the last layer's parameters and of its input, rows of all views."""
    layer = Projector((), sizes.q, jnp.dtype(dtype))
    rows = jax.ShapeDtypeStruct((VIEWS * sizes.batch, sizes.hidden), jnp.dtype(dtype))
    start = partial(layer.init, jax.random.key(0), train=False)
    return jax.eval_shape(start, rows)["params"], rows


def last_layer_and_loss(
    arm: str, mesh: Mesh, sizes: Sizes, dtype: str
) -> Callable[[Any, jax.Array], Any]:
    """Value, and gradients by the layer's parameters and input, of global arrays."""
    columns, reduce_dtype = ARMS.get(arm, (None, "float32"))
    # The name by which what it sends is told apart from what the loss sends.
    layer = Projector(
        (),
        sizes.q,
        jnp.dtype(dtype),
        DATA,
        columns,
        jnp.dtype(reduce_dtype),
        name=PROJECTOR,
    )
    split = specs({"projector": operands(sizes, dtype)[0]}, columns)["projector"]

    def local(params, h):
        params = jax.tree.map(
            lambda p, spec: p if DATA in spec else shared(p, DATA, reduce_dtype),
            params,
            split,
        )
        z: Any = layer.apply({"params": params}, h, train=True)
        if arm == PEER:
            return value_of_gathered(z)
        z = z.reshape(-1, VIEWS, z.shape[-1])
        return [z[:, view] for view in range(VIEWS)]

    out = P() if arm == PEER else embeddings_split(columns).spec
    island = jax.shard_map(local, mesh=mesh, in_specs=(split, P(DATA)), out_specs=out)

    def value(params, h):
        if arm == PEER:
            return island(params, h)
        z: Any = island(params, h)
        return losses.sfrik(z, mesh=mesh, columns=columns, **SFRIK)[0]

    return jax.value_and_grad(value, argnums=(0, 1))


def value_of_gathered(z: jax.Array) -> jax.Array:
    """The loss of all rows by autodiff on each device, from float32 rows."""
    devices = jax.lax.axis_size(DATA)
    z = gather(z.astype(jnp.float32)).reshape(-1, VIEWS, z.shape[-1])
    value = dense([z[:, view] for view in range(VIEWS)])
    # Each device has the same; their mean is equal along the axis.
    return jax.lax.psum(value / devices, DATA)


@jax.custom_vjp
def gather(z: jax.Array) -> jax.Array:
    """All devices' rows; back, the all-reduced gradient of all rows, and one's own."""
    return jax.lax.all_gather(z, DATA, axis=0, tiled=True)


def _gather_back(_, bar):
    total = jax.lax.psum(bar, DATA)
    rows = len(bar) // jax.lax.axis_size(DATA)
    own = jax.lax.dynamic_slice_in_dim(total, jax.lax.axis_index(DATA) * rows, rows)
    return (own,)


gather.defvjp(lambda z: (gather(z), None), _gather_back)


def of_last_layer(arm: str, devices: int, sizes: Sizes, dtype: str = "bfloat16"):
    """The collectives of an arm, counted. Returns: a list of `received.Collective`."""
    function = last_layer_and_loss(arm, abstract_mesh(devices), sizes, dtype)
    with portable():
        program = jax.make_jaxpr(function)(*operands(sizes, dtype))
    return received.collectives(program.jaxpr)


def of_step(spec: str, overrides: list[str], arm: str, devices: int):
    """The collectives of a whole step of a configuration, counted."""
    columns, reduce_dtype = ARMS[arm]
    settings = [
        f"mesh.projector={columns or 'replicated'}",
        f"step.reduce_dtype={reduce_dtype}",
    ]
    config = configs.load_for("pretrain", spec, [*overrides, *settings])
    return received.collectives(counted.trace(config, devices).program)


def in_compiled(text: str) -> Counter[str]:
    """Elements that the collectives of a compiled program give, by kind.

    Elements, since XLA widens bfloat16 on a CPU. Those of a reduce-scatter count whole.
    """
    found = Counter[str]()
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    for shapes, kind in re.findall(rf"= (.+?) ({kinds})(?:-start)?\(", text):
        for dims in re.findall(r"\w+\[([\d,]*)\]", shapes):
            found[kind] += math.prod(int(each) for each in dims.split(",") if each)
    return found


def in_traced(collectives: list[received.Collective]) -> Counter[str]:
    """The same of traced ones; a reduce-scatter gives a part of what it takes."""
    found = Counter[str]()
    for each in collectives:
        count = each.whole // jnp.dtype(each.dtype).itemsize
        if each.kind == received.REDUCE_SCATTER:
            count //= each.devices
        found[each.kind] += each.times * count
    return found


def rows_of(name: str, arm: str, devices: int, sizes: dict, found: list) -> list[dict]:
    """A record for each kind of collective."""
    shapes = {"devices": devices, **sizes}
    common = {"name": name, "arm": arm, "shapes": shapes}
    total = sum(each.times * each.received for each in found)
    whole = {"part": "in all", "kind": "", "dtype": "", "bytes": total}
    whole["count"] = sum(each.times for each in found)
    return [common | row for row in (*received.summary(found), whole)]


def check(devices: int) -> list[dict[str, Any]]:
    """Elements exchanged by each arm at a small size: traced, and as compiled."""
    sizes, rows = Sizes(64, 48, 96), []
    mesh = Mesh(
        [[device] for device in jax.devices()[:devices]],
        (DATA, MODEL),
        axis_types=(AxisType.Auto, AxisType.Auto),
    )
    for arm in (*ARMS, PEER):
        function = last_layer_and_loss(arm, mesh, sizes, "float32")
        lowered = jax.jit(function).lower(*operands(sizes, "float32"))
        compiled = in_compiled(str(lowered.compile().as_text()))
        traced = in_traced(of_last_layer(arm, devices, sizes, "float32"))
        for kind in sorted(compiled.keys() | traced.keys()):
            row = {"devices": devices, "arm": arm, "kind": kind}
            rows.append(row | {"traced": traced[kind], "compiled": compiled[kind]})
    return rows


def arguments() -> Namespace:
    parser = command.parser(__doc__)
    parser.add_argument("--devices", type=command.integers, default="2,4,8")
    parser.add_argument("--batch", type=command.integer, default=2048, help="pictures")
    parser.add_argument("--hidden", type=command.integer, default=8192)
    parser.add_argument("--q", type=command.integer, default=32768)
    parser.add_argument("--config", default=CONFIG, metavar="SPEC")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--check", action="store_true", help="compiled at a small size")
    args = parser.parse_args()
    for name in ("batch", "q"):
        value, most = getattr(args, name), max(args.devices)
        if any(value % devices for devices in args.devices):
            parser.error(f"--{name} {value} is not shared evenly by {most} devices")
    return args


def main() -> None:
    args = arguments()
    jax.config.update("jax_num_cpu_devices", max(args.devices))
    where = timing.environment(("jax", "jaxlib", "flax"))
    print(where)
    sizes, rows = Sizes(args.batch, args.hidden, args.q), []
    for devices in args.devices:
        for arm in (*ARMS, PEER):
            found = of_last_layer(arm, devices, sizes)
            rows += rows_of("comm, last layer", arm, devices, sizes._asdict(), found)
    print(f"last layer and loss: {args.batch} pictures, {args.hidden} to {args.q}")
    print(timing.table(rows, TABLE))
    steps = []
    for devices in args.devices:
        for arm in ARMS:
            found = of_step(args.config, args.set, arm, devices)
            steps += rows_of("comm, step", arm, devices, {"config": args.config}, found)
    print(f"a step of {args.config}")
    print(timing.table(steps, TABLE))
    if args.check:
        small = [row for devices in args.devices for row in check(devices)]
        print("elements exchanged at a small size")
        names = ("devices", "arm", "kind", "traced", "compiled")
        print(timing.table(small, dict.fromkeys(names, "")))
    command.write_json(args.json, [row | where for row in (*rows, *steps)])


if __name__ == "__main__":
    command.run(main)
