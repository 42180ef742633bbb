"""What this machine can do, measured, and what a training step needs, counted.

    python bench/roofline.py [--backbone resnet50] [--size 224] [--batch 512] [--q 8192]

Two limits are measured: FLOP/s of a square matrix product of each dtype, and bytes/s of
`a <- 0.999 a + b` on arrays far larger than any cache, in place. No work takes less
than the longer of its FLOP at the one rate and its bytes at the other. Convolutions are
counted as they read: one that saves multiplications (Winograd's) can pass the limit.
The table has the networks of the paper's configurations, or the one that is named; the
forms of the loss and a whole step stand below it.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere
from bench import command, counts, timing
from sfrik_jax import losses, models
from sfrik_jax.planning import arithmetic, hardware
from sfrik_jax.settings import LOSS_DEFAULTS

NETWORKS = (("resnet50", 224), ("resnet18", 224), ("resnet18", 96), ("resnet18", 64))
COLUMNS: dict[str, timing.Column] = {
    "net @ px": "",
    "M parameters": (lambda row: row["parameters"] / 1e6, ".1f"),
    "GFLOP/view": (lambda row: row["flop"] / 1e9, ".2f"),
    "activations MB/view": (lambda row: row["activation_bytes"] / 1e6, ".2f"),
    "of products": (lambda row: row["product_bytes"] / 1e6, ".2f"),
    "MB/view unfused": (lambda row: row["unfused_bytes"] / 1e6, ".1f"),
    "fused": (lambda row: row["fused_bytes"] / 1e6, ".1f"),
    "limit, views/s": (lambda row: row["limit_views_per_second"], ",.0f"),
    "unfused, views/s": (lambda row: row["unfused_views_per_second"], ",.0f"),
}


class Limits(NamedTuple):
    """What the hardware can do: FLOP/s by dtype, and bytes/s."""

    flop_per_second: dict[str, float]
    bytes_per_second: float

    def seconds(self, flop: float, bytes: float, dtype: str) -> float:
        """What work takes at least; 0 where nothing is counted."""
        return max(flop / self.flop_per_second[dtype], bytes / self.bytes_per_second)

    def of(self, dtype: str) -> Callable[[timing.Arm], float]:
        """For `timing.records(limit=…)`: the limit of an arm of that dtype."""
        return lambda arm: self.seconds(arm.flop, arm.bytes, dtype)


def measure(dtypes: Sequence[str], *, short: bool = False) -> Limits:
    """The limits of the first device, in about a second each.

    Args: short: small arrays, for tests; the figures are then those of a cache.
    """
    gpu = jax.default_backend() != "cpu"
    side = 128 if short else 8192 if gpu else 2048
    rates = {kind: matmul_rate(jnp.dtype(kind), side) for kind in dtypes}
    return Limits(rates, bandwidth(2**16 if short else 2**28 if gpu else 2**26))


def matmul_rate(dtype: Any, side: int) -> float:
    """FLOP/s of a square matrix product of random numbers: the limit of arithmetic."""
    a, b = jax.random.normal(jax.random.key(0), (2, side, side)).astype(dtype)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=dtype))
    arm = timing.of_jax("product", product, a, b)
    return 2 * side**3 / timing.alternate([arm], 5, 0.1)["product"]


def bandwidth(count: int) -> float:
    """Bytes/s of a <- 0.999 a + b with so many float32.

    In place: a fresh array of 256 MB makes the operating system clear its pages, which
    takes five times the time of the sum on two cores (8 against 43 GB/s).
    """
    total = jnp.ones(count, jnp.float32)
    other = jnp.full(count, 0.5, jnp.float32)
    update = jax.jit(lambda a, b: 0.999 * a + b, donate_argnums=0)

    def run(times: int) -> None:
        nonlocal total
        for _ in range(times):
            total = update(total, other)
        jax.block_until_ready(total)

    median = timing.alternate([timing.Arm("triad", run)], 5, 0.2)["triad"]
    return 3 * 4 * count / median


def network_row(backbone: str, size: int, args: Any, limits: Limits) -> timing.Record:
    """What a view costs in a backbone, and the views/s that the limits allow."""
    model = models.BACKBONES[backbone](stem=args.stem, dtype=jnp.dtype(args.dtype))
    pixels = jax.ShapeDtypeStruct((2, size, size, 3), model.dtype)
    cost = arithmetic.network(model, pixels, views=2)
    small = ", small stem" * (args.stem == "small")
    seconds = partial(limits.seconds, cost.flop, dtype=args.dtype)
    return {
        "net @ px": f"{backbone} @{size}{small}",
        "parameters": cost.parameters,
        "flop": cost.flop,
        "activation_bytes": cost.activations,
        "product_bytes": cost.products,
        "unfused_bytes": cost.unfused,
        "fused_bytes": cost.fused,
        "limit_views_per_second": 1 / seconds(cost.fused),
        "unfused_views_per_second": 1 / seconds(cost.unfused),
    }


def loss_work(args: argparse.Namespace, method: str) -> arithmetic.Work:
    """The work of our loss alone, forward and backward. Args: args: as `step_work`."""
    z = jax.ShapeDtypeStruct((args.batch, args.q), jnp.dtype(args.dtype))
    loss = partial(losses.METHODS[method], **LOSS_DEFAULTS[method])
    return arithmetic.work(jax.grad(lambda z: loss(z)[0]), [z] * 2)


def step_model(args: argparse.Namespace) -> models.SSLModel:
    """Backbone and projector. Args: args: as `step_work`, without batch and size."""
    return models.build(
        backbone=args.backbone,
        width=64,
        stem=args.stem,
        hidden_dims=(args.hidden, args.hidden),
        embed_dim=args.q,
        dtype=args.dtype,
    )


def step_work(args: argparse.Namespace, method: str) -> arithmetic.Work:
    """The least work of a step of two views of a batch.

    Args: args: backbone, stem, size, batch, hidden, q, dtype.
    """
    model = step_model(args)
    shape = (args.batch, 2, args.size, args.size, 3)
    images = jax.ShapeDtypeStruct(shape, jnp.dtype(args.dtype))
    loss = partial(losses.METHODS[method], **LOSS_DEFAULTS[method])
    return arithmetic.training_step(model, images, lambda z: loss(z)[0])


def step_line(args: argparse.Namespace, limits: Limits) -> str:
    """A step's work and limit in words."""
    work = step_work(args, args.method)
    seconds = limits.seconds(*work, args.dtype)
    bound = "arithmetic" if seconds > work.bytes / limits.bytes_per_second else "bytes"
    needs = f"{work.flop / 1e9:,.1f} GFLOP, {work.bytes / 1e9:,.2f} GB"
    rate = 2 * args.batch / seconds
    return (
        f"a step of {args.backbone} @{args.size}, {args.method}, batch {args.batch}, "
        f"q = {args.q}: {needs}; at least {1e3 * seconds:,.1f} ms ({bound}), "
        f"{rate:,.0f} views/s"
    )


def loss_lines(args: argparse.Namespace, limits: Limits) -> list[str]:
    """The arithmetic of each form of the loss, and its limit."""
    lines = []
    for form in counts.LOSS_FLOP:
        flop = counts.loss_flop(form, args.batch, args.q)
        seconds = limits.seconds(flop, 0, args.dtype)
        lines.append(
            f"loss, {form}, n = {args.batch}, q = {args.q}: {flop / 1e9:,.2f} GFLOP, "
            f"at least {1e3 * seconds:,.3f} ms"
        )
    return lines


def add_step_arguments(parser: argparse.ArgumentParser) -> None:
    """What a step is made of, for this bench and that of the step."""
    gpu = jax.default_backend() != "cpu"
    parser.add_argument("--backbone", default="resnet18", choices=models.BACKBONES)
    parser.add_argument("--stem", default="imagenet", choices=("imagenet", "small"))
    parser.add_argument(
        "--size", type=command.integer, default=96, help="of a view, in px"
    )
    parser.add_argument("--batch", type=command.integer, default=64, help="pictures")
    parser.add_argument("--q", type=command.integer, default=1024)
    parser.add_argument(
        "--hidden", type=command.integer, default=1024, help="projector's widths"
    )
    default = "bfloat16" if gpu else "float32"
    parser.add_argument("--dtype", default=default, choices=command.DTYPES)


def main() -> None:
    parser = command.parser(__doc__)
    add_step_arguments(parser)
    parser.add_argument("--method", default="sfrik", choices=("sfrik", "vicreg"))
    parser.add_argument("--short", action="store_true", help="small arrays, for a test")
    args = parser.parse_args()
    named = {"--backbone", "--size", "--stem"} & {w.partition("=")[0] for w in sys.argv}
    where = timing.environment(("jax", "numpy"))
    limits = measure(sorted({"bfloat16", "float32", args.dtype}), short=args.short)
    print(where)
    for dtype, rate in limits.flop_per_second.items():
        print(f"matrix product, {dtype}: {rate / 1e12:.3f} TFLOP/s measured")
    print(f"memory: {limits.bytes_per_second / 1e9:.1f} GB/s measured")
    sheet = hardware.of_kind(where["device"])
    if sheet:
        print(
            f"data sheet, not measured: {sheet.flop / 1e12:.0f} TFLOP/s bfloat16, "
            f"{sheet.traffic / 1e9:.0f} GB/s"
        )
    nets = [(args.backbone, args.size)] if named else NETWORKS
    rows = [network_row(*net, args, limits) for net in nets]
    print(f"What a view costs, forward and backward, {args.dtype}:")
    print(timing.table(rows, COLUMNS))
    print("\n".join([*loss_lines(args, limits), step_line(args, limits)]))
    common = {"name": "roofline", "dtype": args.dtype, "limits": limits._asdict()}
    command.write_json(args.json, [row | common | where for row in rows])


if __name__ == "__main__":
    command.run(main)
