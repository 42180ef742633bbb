"""Pictures to look at: augmented views, and the nearest neighbours of test images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sfrik_jax.errors import ConfigError, OutputError
from sfrik_jax.evaluators import knn

CELL = (
    96  # pixels on a side; small images are enlarged to about this, large ones reduced
)
FRAME, GAP, GUTTER = (
    4,
    6,
    22,
)  # pixels: the coloured frame, between cells, after column 0
RIGHT, WRONG, NEUTRAL = (31, 143, 98, 255), (205, 66, 70, 255), (128, 128, 128, 90)


def views(
    sources: np.ndarray | Sequence[np.ndarray],
    augmented: Sequence[np.ndarray],
    path: Path,
    *,
    mean: Sequence[float] | np.ndarray | None = None,
    std: Sequence[float] | np.ndarray | None = None,
) -> Path:
    """Writes a PNG with one row per source image: the image, then its views.

    Args:
      sources: n images uint8 [H, W, 1 or 3], of one size or of several.
      augmented: V arrays [n, s, s, 3], uint8 or float. Floats are in 0 … 255, or
        normalised when `mean` and `std` (for values in 0 … 1) are given.
    Raises: ConfigError when the counts differ, OutputError when the file can't be made.
    """
    if len(sources) == 0 or any(len(view) != len(sources) for view in augmented):
        counts = [len(view) for view in augmented]
        raise ConfigError(f"{len(sources)} source images with views of {counts} images")
    shown = [to_uint8(view, mean=mean, std=std) for view in augmented]
    rows = [[source, *(view[i] for view in shown)] for i, source in enumerate(sources)]
    return _save(_grid(rows, [[NEUTRAL] * len(row) for row in rows]), path)


def neighbours(
    train_images: np.ndarray,
    test_images: np.ndarray,
    train_features: np.ndarray,
    test_features: np.ndarray,
    path: Path,
    *,
    train_labels: np.ndarray | None = None,
    test_labels: np.ndarray | None = None,
    rows: int = 8,
    k: int = 8,
    seed: int = 0,
) -> Path:
    """Writes a PNG: test images, each followed by its k nearest train images.

    With labels, a neighbour of the same class has a green frame, another one a red
    frame with a notched corner. The test images are drawn with `seed`, spread over the
    classes. Fewer rows or columns are shown when the sets are smaller.

    Args: images uint8 [N, S, S, 1 or 3], features [N, d], labels integers [N].
    Raises: ConfigError for sets that do not match, OutputError.
    """
    if len(train_images) != len(train_features) or len(test_images) != len(
        test_features
    ):
        raise ConfigError(
            f"{len(train_images)} train and {len(test_images)} test images with "
            f"{len(train_features)} and {len(test_features)} rows of features"
        )
    chosen = spread(test_labels, len(test_images), rows, seed=seed)
    _, found = knn.nearest(
        train_features, test_features[chosen], k=min(k, len(train_images))
    )
    cells, frames = [], []
    for query, nearest in zip(chosen, found, strict=True):
        cells.append([test_images[query], *(train_images[i] for i in nearest)])
        frame = [NEUTRAL] * len(nearest)
        if train_labels is not None and test_labels is not None:
            same = np.asarray(train_labels)[nearest] == test_labels[query]
            frame = [RIGHT if s else WRONG for s in same]
        frames.append([NEUTRAL, *frame])
    return _save(_grid(cells, frames), path)


def spread(labels: np.ndarray | None, n: int, count: int, *, seed: int) -> np.ndarray:
    """`count` of n indices, drawn with `seed`, from as many classes as possible."""
    order = np.random.default_rng(seed).permutation(n)
    if labels is None:
        return order[:count]
    turn, seen = np.empty(n, np.int64), {}
    for index in order:  # the first of each class has turn 0, the second turn 1, …
        label = int(labels[index])
        turn[index] = seen[label] = seen.get(label, -1) + 1
    chosen = order[np.argsort(turn[order], kind="stable")][:count]
    return chosen[np.argsort(np.asarray(labels)[chosen], kind="stable")]


def to_uint8(
    images: np.ndarray,
    *,
    mean: Sequence[float] | np.ndarray | None = None,
    std: Sequence[float] | np.ndarray | None = None,
) -> np.ndarray:
    """Images as uint8; floats are clipped to 0 … 255 after undoing a normalisation."""
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images
    levels = images.astype(np.float32)
    if mean is not None and std is not None:
        levels = 255 * (
            levels * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
        )
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def _grid(rows: list[list[np.ndarray]], frames: list[list[tuple]]) -> Image.Image:
    """Framed cells on a transparent ground; column 0 stands apart."""
    outer = CELL + 2 * FRAME
    width = GUTTER - GAP + len(rows[0]) * (outer + GAP) - GAP
    sheet = Image.new("RGBA", (width, len(rows) * (outer + GAP) - GAP))
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            left = c * (outer + GAP) + (GUTTER - GAP if c else 0)
            sheet.paste(_cell(image, frames[r][c]), (left, r * (outer + GAP)))
    return sheet


def _cell(image: np.ndarray, frame: tuple) -> Image.Image:
    height, width = image.shape[:2]
    picture = Image.fromarray(np.broadcast_to(image, (height, width, 3)).copy())
    scale = CELL / max(height, width)
    enlarged = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    outer = CELL + 2 * FRAME
    cell = Image.new("RGBA", (outer, outer), frame)
    hole = Image.new("RGBA", (CELL, CELL))
    hole.paste(
        picture.resize(size, enlarged), ((CELL - size[0]) // 2, (CELL - size[1]) // 2)
    )
    cell.paste(hole, (FRAME, FRAME))
    if frame == WRONG:  # legible without telling red from green
        notch = CELL // 4
        ImageDraw.Draw(cell).polygon(
            [(outer, 0), (outer - notch, 0), (outer, notch)], WRONG
        )
    return cell


def _save(image: Image.Image, path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, format="PNG", optimize=True)
    except OSError as error:
        raise OutputError(
            f"cannot write the picture {path}: {error.strerror}"
        ) from error
    return path
