"""Preparing data sets: ours without TensorFlow, all others by TFDS's builders.

All work is done in a folder beside the prepared sets, under a lock, and moved to its
place when all is written and counted. So what was cut short is never taken for whole.
"""

import contextlib
import errno
import io
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from sfrik_jax.data import prepared
from sfrik_jax.data.builders import registered
from sfrik_jax.data.builders.base import OwnBuilder
from sfrik_jax.data.builders.binary import Cifar10, Cifar100, Stl10
from sfrik_jax.data.builders.fashion import FashionMini, FashionMnist
from sfrik_jax.data.builders.imagenet import Imagenet2012
from sfrik_jax.data.builders.patches import PhotoPatches
from sfrik_jax.data.progress import Progress
from sfrik_jax.errors import (
    ConfigError,
    CorruptInputError,
    DiskFullError,
    OutputError,
    SfrikError,
)
from sfrik_jax.locks import Lock

BUILDERS: dict[str, type[OwnBuilder]] = {
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "fashion_mini": FashionMini,
    "fashion_mnist": FashionMnist,
    "imagenet2012": Imagenet2012,
    "photo_patches": PhotoPatches,
    "stl10": Stl10,
}
# Made of what is installed.
_WITHOUT_FILES = ("fashion_mini", "photo_patches")
_WORK = ".preparing"


def prepare(
    name: str,
    data_dir: str | os.PathLike[str] = "",
    source_dir: str | os.PathLike[str] | None = None,
    *,
    allow_counts: bool = False,
) -> Path:
    """Prepares a data set; returns its directory, at once if it is there already.

    Args:
      name: one of BUILDERS, or TFDS's name, with config and version where needed.
      data_dir: the folder of prepared sets; "" is TFDS's default.
      source_dir: the folder of files that the user brings; None is data_dir's
        downloads/manual, or the network.
      allow_counts: takes other numbers of pictures than the published ones.

    Raises:
      ConfigError: unknown name, or a source_dir for a set that takes none.
      MissingInputError: the set's origin or TensorFlow is not there; says how to mend.
      CorruptInputError: the origin is damaged, or the counts are not those published.
      OutputError: data_dir cannot be written, another process prepares this set, or
        it is there in another format.
      DiskFullError: not enough room.
    """
    if source_dir is not None and name in _WITHOUT_FILES:
        raise ConfigError(f"data set {name!r} takes no source folder; leave it out")
    if ready := prepared.whole(name, data_dir):
        return ready
    root = prepared.data_root(data_dir)
    manual = Path(source_dir or root / "downloads" / "manual").expanduser()
    work = root / _WORK / name.partition(":")[0].replace("/", "+")
    builder: Any = _builder(name, work, manual, given=source_dir is not None)
    full = _full_name(builder) + "".join(name.partition(":")[1:])
    if full != name:  # "voc" and "voc/2007" are one set, under one lock
        return prepare(full, data_dir, source_dir, allow_counts=allow_counts)
    _check_place(root / Path(builder.data_path).relative_to(work))
    try:
        with _held(work, name):
            # Another process may have been quicker.
            if ready := prepared.whole(name, data_dir):
                return ready
            _check_room(name, builder, root)
            _generate(builder, root, manual)
            _check_counts(builder, allow_counts)
            return _deliver(Path(builder.data_path), work, root)
    except SfrikError:
        raise
    except (OSError, RuntimeError) as error:
        raise _output_error(name, root, error) from error


def _builder(name: str, work: Path, manual: Path, *, given: bool) -> Any:
    """The set's builder, if all is there that it needs."""
    base, _, version = name.partition(":")
    if base not in BUILDERS:
        builder = registered.builder(name, work)
        registered.check_needs(builder, manual)
        return builder
    builder = BUILDERS[base](file_format="array_record", data_dir=work)
    if version not in ("", str(builder.version)):
        raise ConfigError(
            f"data set {name!r}: version {builder.version} can be prepared, no other"
        )
    if given or base == "imagenet2012":
        builder.source_dir = manual
    builder.origin_bytes()
    return builder


@contextlib.contextmanager
def _held(work: Path, name: str) -> Iterator[None]:
    """The working folder, empty, locked, and removed at the end."""
    work.parent.mkdir(parents=True, exist_ok=True)
    remedy = "wait for it; what it prepares will be found"
    with Lock(work.with_name(f"{work.name}.lock"), f"data set {name!r}", remedy):
        # What a killed process left.
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            yield
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _check_room(name: str, builder: Any, root: Path) -> None:
    if isinstance(builder, OwnBuilder):
        needed = builder.origin_bytes()
    else:
        needed = prepared.DISK.get(_full_name(builder), 0)
    free = shutil.disk_usage(root).free
    if needed > free:
        raise DiskFullError(
            f"data set {name!r} needs about {needed} bytes in {root}, and {free} are "
            "free; make room or choose another data folder"
        )


def _generate(builder: Any, root: Path, manual: Path) -> None:
    own = isinstance(builder, OwnBuilder)
    # On a terminal TFDS's bars say more about its own builders than we know.
    if own or not sys.stderr.isatty():
        tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
    folders = (Path(builder.data_dir_root), root / "downloads")
    with Progress(f"preparing {builder.name}", folders) as progress:
        builder.progress = progress
        # TFDS announces itself with sizes that it does not know.
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                builder.download_and_prepare(
                    download_dir=root / "downloads", download_config=config
                )
            except SfrikError:
                raise
            except Exception as error:
                told = None if own else registered.explain(builder, error)
                if told is None:
                    raise
                raise told from error


def _check_counts(builder: Any, allowed: bool) -> None:
    found = {split: each.num_examples for split, each in builder.info.splits.items()}
    name = _full_name(builder)
    want = prepared.PUBLISHED.get(name)
    print(f"{name}: {_counts(found)} pictures", file=sys.stderr)
    if want is None or found == want or allowed:
        return
    raise CorruptInputError(
        f"{name} has {_counts(found)} pictures; published are {_counts(want)}: the "
        "origin is not whole; get it again, or take it as it is with --allow-counts"
    )


def _full_name(builder: Any) -> str:
    """The name with its config, also where that was not given."""
    config = builder.builder_config
    return builder.name if config is None else f"{builder.name}/{config.name}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{split} {count:,}" for split, count in sorted(counts.items()))


def _check_place(place: Path) -> None:
    """Refuses to replace what is no ArrayRecord set, which others may read."""
    if not place.exists():
        return
    holds = "no ArrayRecord set"
    if (place / "dataset_info.json").is_file():
        file_format = prepared.read(place).file_format
        if file_format == "array_record":
            return
        holds = f"the set as {file_format}"
    elif not any(place.iterdir()) or any(place.glob("*.array_record-*")):
        return
    raise OutputError(
        f"{place} holds {holds}; move or delete that directory, or choose another "
        "--data-dir"
    )


def _deliver(made: Path, work: Path, root: Path) -> Path:
    """Moves a version's directory to its place; one that is not whole makes way."""
    place = root / made.relative_to(work)
    _check_place(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.exists():
        return made.rename(place)
    # Goes with the working folder, once the new one stands.
    replaced = place.rename(work / ".replaced")
    try:
        return made.rename(place)
    except BaseException:
        replaced.rename(place)
        raise


def _output_error(name: str, root: Path, error: OSError | RuntimeError) -> Exception:
    full = os.strerror(errno.ENOSPC)
    if getattr(error, "errno", None) == errno.ENOSPC or full in str(error):
        free = shutil.disk_usage(root).free
        return DiskFullError(
            f"{root} is full, {free} bytes are free, while data set {name!r} was "
            "written; make room or choose another data folder"
        )
    if isinstance(error, RuntimeError):
        return error
    return OutputError(
        f"data set {name!r} cannot be written to {root} ({error}); make room or "
        "choose another data folder"
    )
