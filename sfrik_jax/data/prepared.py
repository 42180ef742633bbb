"""Where TFDS keeps prepared data sets, and what their dataset_info.json says.

Read as plain files: importing TFDS takes a second, which validation cannot spend.
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from sfrik_jax.errors import ConfigError, CorruptInputError, MissingInputError

# Prepared by `sfrik_jax.data.builders`, without TensorFlow.
OWN_SETS = (
    "cifar10",
    "cifar100",
    "fashion_mini",
    "fashion_mnist",
    "imagenet2012",
    "photo_patches",
    "stl10",
)
# Pictures of each split, as published; a set by its name, or its name and config.
PUBLISHED = {
    "cifar10": {"train": 50_000, "test": 10_000},
    "cifar100": {"train": 50_000, "test": 10_000},
    "fashion_mini": {"train": 5_000, "test": 1_000},
    "fashion_mnist": {"train": 60_000, "test": 10_000},
    "imagenet2012": {"train": 1_281_167, "validation": 50_000},
    "imagenet_resized/64x64": {"train": 1_281_167, "validation": 50_000},
    "imagenette/full-size-v2": {"train": 9_469, "validation": 3_925},
    "stl10": {"train": 5_000, "test": 8_000, "unlabelled": 100_000},
    "voc/2007": {"train": 2_501, "validation": 2_510, "test": 4_952},
}
# Bytes that a set of TFDS takes at least: download, its unpacked files, records; from
# TFDS's catalog, which does not tell the records of imagenet_resized.
DISK = {
    "imagenet_resized/64x64": 14_100_000_000,
    "imagenette/full-size-v2": 4_680_000_000,
    "voc/2007": 2_700_000_000,
}
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_SPLIT = re.compile(r"([\w-]+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")


@dataclass(frozen=True)
class Prepared:
    """One prepared data set: its directory and the facts of dataset_info.json."""

    directory: Path
    file_format: str
    shards: dict[str, list[int]]
    info: dict

    @property
    def lengths(self) -> dict[str, int]:
        """Number of examples of each split."""
        return {split: sum(shards) for split, shards in self.shards.items()}

    @property
    def num_classes(self) -> int | None:
        """Classes of the feature `label`, from features.json; None without."""
        try:
            tree = json.loads((self.directory / "features.json").read_text())
            label = tree["featuresDict"]["features"]["label"]
            return int(label["classLabel"]["numClasses"])
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def missing_files(self) -> list[str]:
        """Names of record files that ought to be there and are not, or are empty."""
        # The file prefix is the data set's name, also below a config's directory.
        prefix, suffix = self.info["name"], self.file_format
        names = [
            f"{prefix}-{split}.{suffix}-{shard:05d}-of-{len(shards):05d}"
            for split, shards in self.shards.items()
            for shard in range(len(shards))
        ]
        return [name for name in names if not _has_bytes(self.directory / name)]


def _has_bytes(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def data_root(data_dir: str | os.PathLike[str] = "") -> Path:
    """The folder of all prepared sets; "" is TFDS's own default."""
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(data_dir or default).expanduser()


def find(name: str, data_dir: str | os.PathLike[str] = "") -> Prepared | None:
    """The newest prepared version of `name`, ArrayRecord first; else None.

    `name` may carry a config and a version, "imagenet2012_subset/10pct:5.0.0". Without
    a config, a set that has exactly one is found too.
    """
    path, _, version = name.partition(":")
    base = data_root(data_dir) / path
    found = _versions(base, version)
    if not found and base.is_dir() and "/" not in path:
        configs = [_versions(child, version) for child in base.iterdir()]
        configs = [versions for versions in configs if versions]
        found = configs[0] if len(configs) == 1 else []
    sets = [read(directory) for directory in found]
    random_access = [each for each in sets if each.file_format == "array_record"]
    return (random_access or sets or [None])[-1]


def _versions(base: Path, version: str) -> list[Path]:
    if not base.is_dir():
        return []
    names = [version] if version else filter(_VERSION.fullmatch, os.listdir(base))
    names = [name for name in names if (base / name / "dataset_info.json").is_file()]
    return [base / name for name in sorted(names, key=_version_order)]


def _version_order(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def read(directory: Path) -> Prepared:
    """Reads a version's dataset_info.json; CorruptInputError when it is damaged."""
    path = directory / "dataset_info.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        shards = {
            split["name"]: [int(length) for length in split.get("shardLengths", [])]
            for split in info["splits"]
        }
        return Prepared(directory, info.get("fileFormat", "tfrecord"), shards, info)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptInputError(
            f"{path} is damaged ({error!r}); delete {directory} and prepare it again"
        ) from error


def find_whole(name: str, data_dir: str = "") -> Prepared:
    """The prepared set, whole and readable; else an error with the command to run."""
    found = find(name, data_dir)
    if found is None:
        raise MissingInputError(
            f"data set {name!r} is not prepared in {data_root(data_dir)}; "
            f"run: {prepare_command(name, data_dir)}"
        )
    if found.file_format != "array_record":
        raise MissingInputError(
            f"{found.directory} is prepared as {found.file_format}, which has no "
            "random access; move or delete that directory, or choose another "
            f"--data-dir, and run: {prepare_command(name, data_dir)}"
        )
    if missing := found.missing_files():
        raise CorruptInputError(
            f"{found.directory} lacks {missing[0]} ({len(missing)} files in all); "
            f"delete that directory and run: {prepare_command(name, data_dir)}"
        )
    return found


def whole(name: str, data_dir: str | os.PathLike[str] = "") -> Path | None:
    """The directory of a set that is prepared and lacks nothing, else None."""
    found = find(name, data_dir)
    ready = found and found.file_format == "array_record" and not found.missing_files()
    return found.directory if found and ready else None


def prepare_command(name: str, data_dir: str = "") -> str:
    """The shell command that prepares a data set."""
    where = f" --data-dir {data_dir}" if data_dir else ""
    needs = "" if name in OWN_SETS else " (needs tensorflow)"
    return f"python -m sfrik_jax data prepare {name}{where}{needs}"


def split_names(split: str) -> list[str]:
    """["train", "validation[:500]"] for "train+validation[:500]"."""
    return split.split("+")


def split_range(split: str, lengths: dict[str, int]) -> tuple[str, int, int]:
    """("train", 0, 500) for "train[:500]": split name, first example, one past last.

    Slices are TFDS's: counts or percentages, negative ones from the end.

    Raises:
      ConfigError: the form is not understood, or there is no such split.
    """
    match = _SPLIT.fullmatch(split)
    if not match or match[1] not in lengths:
        raise ConfigError(
            f"split {split!r} is not one of {sorted(lengths)} or a slice of one, such "
            "as train[:500] or train[10%:20%]"
        )
    total = lengths[match[1]]
    start = _boundary(match[2], total, 0)
    return match[1], start, max(start, _boundary(match[3], total, total))


def _boundary(text: str | None, total: int, default: int) -> int:
    if text is None:
        return default
    count = int(text.rstrip("%"))
    if text.endswith("%"):
        count = round(count * total / 100)
    return min(max(count + total if count < 0 else count, 0), total)
