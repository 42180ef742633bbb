"""Host input: CPU seconds for 1,000 JPEGs of 500x375 px, two VICReg views of 224 px.

    python bench/input.py [--json PATH]

What the host does for each source: ours decodes, crops, resizes and hands uint8 over to
the device; the others make finished float32 views. CPU seconds of the whole process,
since they are what a machine has; wall time depends on what else runs.
"""

import argparse
import io
import itertools
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere
from bench import command, timing
from bench.peers import Original, PillowCrops, Torchvision
from sfrik_jax.data import photos
from sfrik_jax.data.decode import Picture
from sfrik_jax.data.loader import TrainLoader
from sfrik_jax.data.sources import Source
from sfrik_jax.data.views import View, build, crop_boxes, hash_uniform

WIDTH, HEIGHT, SIZE = 500, 375, 224
QUALITY = 90
ORIGINAL, TORCHVISION = "original", "original by torchvision"
_STREAM = 100
_LIBRARIES = ("jax", "grain", "numpy", "pillow", "simplejpeg")
_LIBRARIES += ("opencv-python-headless", "torch", "torchvision")

Boxes = np.ndarray


class Way(NamedTuple):
    """One way: `run(round)` goes through all sources, `crops` makes its uint8 crops."""

    name: str
    run: Callable[[int], object]
    crops: Callable[[bytes, Boxes], list[np.ndarray]] | None = None

    def arm(self) -> timing.Arm:
        """Each call goes through the sources with other random numbers."""
        numbers = itertools.count()

        def run(count: int) -> None:
            for number in itertools.islice(numbers, count):
                self.run(number)

        return timing.Arm(self.name, run, peers=(ORIGINAL, TORCHVISION))


class Jpegs(Source):
    """Encoded pictures in memory, so that no disk is measured."""

    def __init__(self, items: Sequence[bytes]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def read(self, i: int) -> bytes:
        return self.items[i]

    def name(self, i: int) -> str:
        return f"picture {i}"

    @property
    def fingerprint(self) -> str:
        raise NotImplementedError


def make_jpegs(count: int) -> list[bytes]:
    """Parts of the shipped photographs, in turn, 500x375 px, quality 90, 4:2:0."""
    whole = [photos.photograph(name) for name in photos.CLASSES]
    return [_jpeg(_part(whole[i % len(whole)], i)) for i in range(count)]


def _part(photo: Image.Image, number: int) -> Image.Image:
    """A 4:3 box with 70 to 100 % of the largest one's sides, as 500x375 px."""
    shrink, across, down = hash_uniform(0, _STREAM, number, draws=3)
    unit = min(photo.width / WIDTH, photo.height / HEIGHT) * (1 - 0.3 * shrink)
    width, height = int(unit * WIDTH), int(unit * HEIGHT)
    left = int(across * (photo.width - width + 1))
    top = int(down * (photo.height - height + 1))
    part = photo.crop((left, top, left + width, top + height))
    return part.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=QUALITY, subsampling="4:2:0")
    return buffer.getvalue()


def make_ways(items: Sequence[bytes], views: Sequence[View], workers: int) -> list[Way]:
    original, crops = Original(views), PillowCrops(views)
    ways = [
        Way(ORIGINAL, lambda _: original.batch(items), original.crops),
        Way("pillow crops", lambda _: crops.batch(items), original.crops),
        _ours("exact", items, views, workers),
        _ours("fast", items, views, workers),
        Way("decode alone", lambda _: [len(Picture(item).rgb()) for item in items]),
    ]
    try:
        transforms = Torchvision(views, tensors=False)
        tensors = Torchvision(views, tensors=True)
    except ImportError as error:
        print(f"no arms of torchvision ({error}); see requirements-bench.txt")
        return ways
    return [
        *ways,
        Way(TORCHVISION, lambda _: transforms.batch(items), transforms.crops),
        Way("torchvision v2", lambda _: tensors.batch(items), tensors.crops),
    ]


def _ours(
    resample: str, items: Sequence[bytes], views: Sequence[View], workers: int
) -> Way:
    loader = TrainLoader(
        Jpegs(items),
        views,
        batch_size=len(items),
        seed=0,
        residence="host",
        workers=workers,
        worker_type="thread",  # the CPU seconds are those of this process
        resample=resample,
    )
    methods = ["bicubic" if resample == "exact" else "fast"] * len(views)

    def crops(item: bytes, boxes: Boxes) -> list[np.ndarray]:
        return Picture(item).crops(list(boxes), [view.size for view in views], methods)

    return Way(resample, lambda step: jax.block_until_ready(loader.batch(step)), crops)


def fidelity(
    way: Way, exact: Way, items: Sequence[bytes], views: Sequence[View]
) -> dict[str, float]:
    """Grey levels between a way's crops and the exact ones: mean and 99th percentile.

    Crops of the same boxes, before anything photometric.
    """
    index = np.arange(len(items))
    heights, widths = np.full(len(items), HEIGHT), np.full(len(items), WIDTH)
    boxes = np.stack(
        [
            crop_boxes(
                heights, widths, view, seed=0, epoch=0, index=index, view_id=number
            )
            for number, view in enumerate(views)
        ],
        axis=1,
    )
    assert way.crops and exact.crops
    counts = np.zeros(256, np.int64)
    for item, pair in zip(items, boxes, strict=True):
        got, want = way.crops(item, pair), exact.crops(item, pair)
        gap = abs(np.stack(got).astype(np.int16) - np.stack(want))
        counts += np.bincount(gap.ravel(), minlength=256)
    share = np.cumsum(counts) / counts.sum()
    return {
        "mean_difference": float(counts @ np.arange(256) / counts.sum()),
        "p99_difference": int(np.searchsorted(share, 0.99)),
    }


def measure(args: argparse.Namespace, where: dict[str, Any]) -> list[timing.Record]:
    """One record for each way, of all pictures; seconds are CPU seconds."""
    items, views = make_jpegs(args.pictures), build(SIZE, recipe="vicreg")
    ways = make_ways(items, views, args.workers)
    arms = [way.arm() for way in ways]
    spent = timing.take_turns(arms, args.rounds)
    exact = next(way for way in ways if way.name == "exact")
    size = round(statistics.mean(len(item) for item in items))
    return timing.records(
        "input",
        arms,
        spent,
        dtype="uint8",
        shapes={"pictures": len(items), "size": SIZE, "workers": args.workers},
        where=where,
        clock="cpu",
        extras={
            way.name: {"jpeg_bytes": size}
            | (fidelity(way, exact, items, views) if way.crops else {})
            for way in ways
        },
    )


def _of_1000(key: str) -> Callable[[timing.Record], float]:
    return lambda row: row[key] * 1000 / row["shapes"]["pictures"]


def _difference(row: timing.Record) -> str | None:
    if "mean_difference" not in row:
        return None
    return f"{row['mean_difference']:.2f}, {row['p99_difference']}"


COLUMNS: dict[str, timing.Column] = {
    **timing.ARM,
    "CPU s for 1,000": (_of_1000("median_seconds"), ".2f"),
    "spread": ".0%",
    "images/s and core": (lambda row: 1000 / _of_1000("median_seconds")(row), ".0f"),
    "original takes": (lambda row: row["ratios"][ORIGINAL], ".2f"),
    "by torchvision": (lambda row: row["ratios"].get(TORCHVISION), ".2f"),
    "wall s": (_of_1000("median_wall_seconds"), ".2f"),
    "mean, 99th percentile": (_difference, ""),
}


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument(
        "--pictures", type=command.integer, default=128, help="JPEGs per round"
    )
    parser.add_argument(
        "--rounds", type=command.integer, default=7, help="after one of warm-up"
    )
    parser.add_argument(
        "--workers", type=command.integer, default=1, help="threads of our arms"
    )
    args = parser.parse_args()
    where = timing.environment(_LIBRARIES)
    print(where)
    rows = measure(args, where)
    size = rows[0]["jpeg_bytes"]
    print(f"{args.pictures} JPEGs, {size} bytes each; {args.rounds} rounds")
    print(timing.table(rows, COLUMNS))
    command.write_json(args.json, rows)


if __name__ == "__main__":
    command.run(main)
