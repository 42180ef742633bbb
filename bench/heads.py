"""What eight heads of the linear probe cost beside one: a step of the job `linear`.

    python bench/heads.py [--backbone resnet14] [--width 32] [--size 48] [--batch 128]

The compiled step of the job: crops on the device, the frozen backbone, the gradients
and the SGD of all heads; the batch lies on the device. Random weights and pictures of
noise, which cost what others cost. The arms differ in the number of heads alone and
alternate, by the clock and in CPU seconds.
"""

import argparse
import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere
from bench import command, timing
from sfrik_jax import config as configs
from sfrik_jax import models, weights
from sfrik_jax.jobs import linear
from sfrik_jax.jobs.bench import Bench, open_bench

COLUMNS: dict[str, timing.Column] = {
    "heads": "d",
    **timing.MEDIAN,
    "pictures/s": ".0f",
    "times one head": (lambda row: 1 / row["ratios"]["1 heads"], ".3f"),
    "CPU ms": (lambda row: 1e3 * row["median_cpu_seconds"], ".1f"),
    "CPU times one head": ".3f",
}
STATISTICS = {"mean": [0.5] * 3, "std": [0.25] * 3}


def write_weights(path: Path, args: argparse.Namespace) -> None:
    """A backbone of random weights."""
    backbone = models.BACKBONES[args.backbone](width=args.width, stem=args.stem)
    pixels = np.zeros((1, args.size, args.size, 3), np.float32)
    variables = jax.jit(backbone.init)(jax.random.key(0), pixels)
    about = {
        "arch": args.backbone,
        "width": args.width,
        "stem": args.stem,
        "preprocessing": {"image_size": args.size, "resize": args.size, **STATISTICS},
    }
    weights.save(path, variables, about)


def write_pictures(folder: Path, args: argparse.Namespace) -> None:
    """A batch to train on and one picture to test on, of all classes in turn."""
    rng = np.random.default_rng(0)
    for i in range(max(args.batch, args.classes)):
        for split in ("train", "val")[: 1 + (i < args.classes)]:
            path = folder / split / f"{i % args.classes:04}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (args.size, args.size, 3), np.uint8)
            Image.fromarray(pixels).save(path, compress_level=0)


def open_job(folder: Path, args: argparse.Namespace) -> Bench:
    """The job `linear` on those pictures."""
    write_weights(folder / "backbone.safetensors", args)
    write_pictures(folder / "pictures", args)
    overrides = {
        "weights": folder / "backbone.safetensors",
        "data.source": "folder",
        "data.path": folder / "pictures",
        "data.test_split": "val",
        "data.batch_size": args.batch,
        "data.residence": "device",
        "data.crop_scale": "(0.25,1.0)",
        "model.dtype": args.dtype,
    }
    words = [f"{key}={value}" for key, value in overrides.items()]
    return open_bench(configs.apply_overrides(configs.default("linear"), words))


def arm(bench: Bench, heads: int) -> timing.Arm:
    """Steps with so many heads, each with a learning rate of its own."""
    rates = tuple(0.1 / 2**i for i in range(heads))
    config = configs.apply_overrides(
        bench.config, [f"probe.learning_rates={rates}", "probe.weight_decays=(1e-6,)"]
    )
    recipe = linear.recipe(bench._replace(config=config))
    assert len(recipe.settings) == heads
    batch = bench.loader.batch(0)
    state: Any = recipe.first()

    def run(count: int) -> None:
        nonlocal state
        for _ in itertools.repeat(None, count):
            state, _ = recipe.step(state, batch)
        jax.block_until_ready(state)

    return timing.Arm(f"{heads} heads", run, peers=("1 heads",))


def measure(args: argparse.Namespace, where: dict[str, Any]) -> list[timing.Record]:
    """One record for each number of heads."""
    counts = sorted({1, *args.heads})
    with tempfile.TemporaryDirectory() as folder:
        bench = open_job(Path(folder), args)
        arms = [arm(bench, count) for count in counts]
        spent = timing.take_turns(arms, args.rounds, args.seconds)
    names = ("backbone", "width", "stem", "size", "classes", "batch")
    shapes = {name: getattr(args, name) for name in names}
    rows = timing.records(
        "heads", arms, spent, dtype=args.dtype, shapes=shapes, where=where
    )
    one = rows[0]["median_cpu_seconds"]
    for row, count in zip(rows, counts, strict=True):
        row["heads"] = count
        row["pictures/s"] = args.batch / row["median_seconds"]
        row["CPU times one head"] = row["median_cpu_seconds"] / one
    return rows


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--backbone", default="resnet14", choices=models.BACKBONES)
    parser.add_argument("--width", type=command.integer, default=32)
    parser.add_argument("--stem", default="imagenet", choices=("imagenet", "small"))
    parser.add_argument(
        "--size", type=command.integer, default=48, help="of a picture, in px"
    )
    parser.add_argument("--classes", type=command.integer, default=10)
    parser.add_argument("--batch", type=command.integer, default=128, help="pictures")
    parser.add_argument(
        "--heads",
        type=command.integers,
        default="8",
        help="with commas, beside one head",
    )
    parser.add_argument("--dtype", default="float32", choices=command.DTYPES)
    parser.add_argument("--rounds", type=command.integer, default=7)
    parser.add_argument(
        "--seconds", type=command.seconds, default=2.0, help="per arm and round"
    )
    args = parser.parse_args()
    where = timing.environment(("jax", "flax", "numpy"))
    print(where)
    rows = measure(args, where)
    print(f"{args.backbone} at {args.size} px, batch {args.batch}")
    print(timing.table(rows, COLUMNS))
    command.write_json(args.json, rows)


if __name__ == "__main__":
    command.run(main)
