"""The pictures of a job: the parts to learn from, to choose on and to test on."""

import contextlib
import json
from collections.abc import Generator, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from sfrik_jax import config as configs
from sfrik_jax.data import opening
from sfrik_jax.data.bad_pictures import BadPictures
from sfrik_jax.data.images import named_batches
from sfrik_jax.data.sources import Source
from sfrik_jax.errors import ConfigError, CorruptInputError
from sfrik_jax.subject import Subject

NAMES = ("train", "val", "test")

_kept: ContextVar[dict[tuple[str, ...], Source] | None] = ContextVar(
    "kept", default=None
)


class Sizes(NamedTuple):
    """The side of the pictures, and of their short side before the centre is cut."""

    image_size: int
    resize: int


def sizes(config: ConfigDict, subject: Subject) -> Sizes:
    """The sizes of the settings, or those of the weights where they are 0.

    Raises:
      ConfigError: the centre is larger than the picture.
    """
    stated = subject.preprocessing
    crop = config.data.image_size or int(stated["image_size"])
    resize = config.data.resize or int(stated["resize"])
    if resize < crop:
        raise ConfigError(
            f"data.resize={resize} is less than data.image_size={crop} (0 in the "
            "settings is what the weights say); set both"
        )
    return Sizes(crop, resize)


@contextlib.contextmanager
def kept_open() -> Iterator[None]:
    """Splits that are opened meanwhile are opened once, for jobs one after another.

    What changes on the disk meanwhile is not seen.
    """
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def open_parts(config: ConfigDict) -> dict[str, Source]:
    """The parts that the settings name, by "train", "val" and "test".

    Raises:
      ConfigError: two of them have pictures in common.
      MissingInputError, CorruptInputError: as the sources say.
    """
    data = config.data
    kept = _kept.get()
    whole = {} if kept is None else kept
    parts: dict[str, Source] = {}
    for name in NAMES:
        split = data[f"{name}_split"]
        if not split:
            continue
        # Reading the labels of a split takes as long as its pictures: open it once.
        place = (data.source, data.name, data.path, split)
        if place not in whole:
            whole[place] = opening.open_source(
                source=data.source, name=data.name, path=data.path, split=split
            )
        key = f"data.{name}_subset"
        parts[name] = opening.subset_of(
            whole[place], data[f"{name}_subset"], seed=config.seed, key=key
        )
    for first, second in (("val", "test"), ("train", "test"), ("train", "val")):
        if {first, second} <= parts.keys():
            _refuse_overlap(first, parts[first], second, parts[second])
    return parts


def _refuse_overlap(first: str, a: Source, second: str, b: Source) -> None:
    common = opening.overlap(a, b)
    if common:
        raise ConfigError(
            f"data.{first}_split and data.{second}_split have {common} pictures in "
            "common; choose parts that have none"
        )


def classes(parts: dict[str, Source]) -> int:
    """The number of classes, on which all parts agree.

    Raises:
      CorruptInputError: a part has no labels, or other classes.
    """
    counts = {name: part.num_classes for name, part in parts.items()}
    count = next(iter(counts.values()))
    if count is None or len(set(counts.values())) > 1:
        raise CorruptInputError(
            f"the parts have {counts} classes (None: no labels, or of one class "
            "alone); each needs labels of the same classes"
        )
    return count


def pictures(
    source: Source,
    config: ConfigDict,
    size: Sizes,
    batch_size: int,
    *,
    rows: range | None = None,
    bad: BadPictures | None = None,
) -> Generator[tuple[np.ndarray, np.ndarray | None, list[str]]]:
    """A part as it is evaluated: resized and cut, in order; see `named_batches`."""
    return named_batches(
        source,
        image_size=size.image_size,
        resize=size.resize,
        batch_size=batch_size,
        workers=config.data.workers,
        method=config.data.method,
        rows=rows,
        bad=bad,
    )


def identity(
    config: ConfigDict, subject: Subject, parts: dict[str, Source], size: Sizes
) -> dict[str, Any]:
    """All that a figure depends on, as JSON gives it back.

    "protocol" are the settings, with the sizes and the normalisation that were taken
    from the weights; "weights" what is evaluated; "data" the parts.
    """
    settings = configs.flatten(config)
    free = (*configs.RESUME_FREE, "data.path", "features.shard_rows")
    protocol = {k: v for k, v in settings.items() if not k.startswith(free)}
    if "data.on_error" in settings:  # decides whether pictures may be left out
        protocol["data.on_error"] = settings["data.on_error"]
    protocol |= {"data.image_size": size.image_size, "data.resize": size.resize}
    # simplejpeg gives Pillow's bytes; the session tells the versions of both.
    protocol["data.decoder"] = "pillow"
    protocol |= {f"data.{k}": subject.preprocessing[k] for k in ("mean", "std")}
    data = {
        name: {
            "images": len(part),
            "fingerprint": part.fingerprint,
            "subset": part.subset,
        }
        for name, part in parts.items()
    }
    whole = {"protocol": protocol, "weights": subject.about, "data": data}
    return json.loads(json.dumps(whole))
