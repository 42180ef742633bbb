"""Host input: CPU seconds for 1,000 JPEGs of 500x375 px, two VICReg views of 224 px.

    python bench/input.py [--json PATH]

What the host does for each source: ours decodes, crops, resizes and hands uint8 over to
the device; the others make finished float32 views. CPU seconds of the whole process,
since they are what a machine has; wall time depends on what else runs.
"""

import argparse
import importlib.metadata
import io
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere
from bench import timing
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
_LIBRARIES = ("jax", "grain", "numpy", "pillow", "simplejpeg", "opencv-python-headless")

Boxes = np.ndarray


class Arm(NamedTuple):
    """One way: `run(round)` goes through all sources, `crops` makes its uint8 crops."""

    name: str
    run: Callable[[int], object]
    crops: Callable[[bytes, Boxes], list[np.ndarray]] | None = None


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


def make_arms(items: Sequence[bytes], views: Sequence[View], workers: int) -> list[Arm]:
    original, crops = Original(views), PillowCrops(views)
    arms = [
        Arm(ORIGINAL, lambda _: original.batch(items), original.crops),
        Arm("pillow crops", lambda _: crops.batch(items), original.crops),
        _ours("exact", items, views, workers),
        _ours("fast", items, views, workers),
        Arm("decode alone", lambda _: [len(Picture(item).rgb()) for item in items]),
    ]
    try:
        transforms = Torchvision(views, tensors=False)
        tensors = Torchvision(views, tensors=True)
    except ImportError as error:
        print(f"no arms of torchvision ({error}); see requirements-bench.txt")
        return arms
    print(transforms.versions)
    return [
        *arms,
        Arm(TORCHVISION, lambda _: transforms.batch(items), transforms.crops),
        Arm("torchvision v2", lambda _: tensors.batch(items), tensors.crops),
    ]


def _ours(
    resample: str, items: Sequence[bytes], views: Sequence[View], workers: int
) -> Arm:
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

    return Arm(resample, lambda step: jax.block_until_ready(loader.batch(step)), crops)


def measure(arms: Sequence[Arm], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """CPU and wall seconds of each round, arm after arm in each round."""
    seconds: dict[str, list[tuple[float, float]]] = {arm.name: [] for arm in arms}
    for number in range(rounds + 1):
        for arm in arms:
            cpu, wall = time.process_time(), time.perf_counter()
            arm.run(number)
            spent = time.process_time() - cpu, time.perf_counter() - wall
            if number:  # the first round warms up
                seconds[arm.name].append(spent)
    return seconds


def fidelity(
    arm: Arm, exact: Arm, items: Sequence[bytes], views: Sequence[View]
) -> dict[str, float]:
    """Grey levels between an arm's crops and the exact ones: mean and 99th percentile.

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
    assert arm.crops and exact.crops
    counts = np.zeros(256, np.int64)
    for item, pair in zip(items, boxes, strict=True):
        got, want = arm.crops(item, pair), exact.crops(item, pair)
        gap = abs(np.stack(got).astype(np.int16) - np.stack(want))
        counts += np.bincount(gap.ravel(), minlength=256)
    share = np.cumsum(counts) / counts.sum()
    return {
        "mean_difference": float(counts @ np.arange(256) / counts.sum()),
        "p99_difference": int(np.searchsorted(share, 0.99)),
    }


def hardware() -> dict[str, object]:
    return {
        "cpu": timing.cpu_name(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
    }


def records(
    arms: Sequence[Arm], items: Sequence[bytes], views: Sequence[View], args
) -> list[dict[str, object]]:
    """One dictionary per arm; seconds are CPU seconds for 1,000 sources."""
    seconds = measure(arms, args.rounds)
    medians = {
        name: [statistics.median(column) for column in zip(*spent, strict=True)]
        for name, spent in seconds.items()
    }
    exact = next(arm for arm in arms if arm.name == "exact")
    common = {
        "name": "input",
        "peer": ORIGINAL,
        "sources": len(items),
        "jpeg_bytes": round(statistics.mean(len(item) for item in items)),
        "rounds": args.rounds,
        "workers": args.workers,
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "hardware": hardware(),
    }
    rows = []
    for arm in arms:
        cpu, wall = (each * 1000 / len(items) for each in medians[arm.name])
        row = common | {
            "arm": arm.name,
            "median_seconds": cpu,
            "images_per_second_per_core": 1000 / cpu,
            "wall_seconds": wall,
        }
        for key, peer in (
            ("ratio_to_peer", ORIGINAL),
            ("ratio_to_torchvision", TORCHVISION),
        ):
            if peer in medians:
                row[key] = medians[peer][0] / medians[arm.name][0]
        if arm.crops:
            row |= fidelity(arm, exact, items, views)
        rows.append(row)
    return rows


def table(rows: Sequence[dict]) -> str:
    lines = [
        "| arm | CPU s for 1,000 | images/s and core | original takes |"
        " by torchvision | wall s | mean, 99th percentile |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        gap = vision = "–"
        if "mean_difference" in row:
            gap = f"{row['mean_difference']:.2f}, {row['p99_difference']}"
        if "ratio_to_torchvision" in row:
            vision = f"{row['ratio_to_torchvision']:.2f} x"
        lines.append(
            f"| {row['arm']} | {row['median_seconds']:.2f} | "
            f"{row['images_per_second_per_core']:.0f} | {row['ratio_to_peer']:.2f} x | "
            f"{vision} | {row['wall_seconds']:.2f} | {gap} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=128, help="JPEGs per round")
    parser.add_argument("--rounds", type=int, default=7, help="after one of warm-up")
    parser.add_argument("--workers", type=int, default=1, help="threads of our arms")
    parser.add_argument("--json", type=Path, help="where the figures go")
    args = parser.parse_args()
    items, views = make_jpegs(args.pictures), build(SIZE, recipe="vicreg")
    rows = records(make_arms(items, views, args.workers), items, views, args)
    first = rows[0]
    print(f"{first['hardware']}\n{first['versions']}")
    print(f"{args.pictures} JPEGs, {first['jpeg_bytes']} bytes; {args.rounds} rounds")
    print(table(rows))
    timing.write_json(args.json, rows)


if __name__ == "__main__":
    main()
