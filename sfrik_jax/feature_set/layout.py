"""The files of a feature set: their names, and how each is read and put in place."""

import json
import os
import reprlib
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sfrik_jax.errors import ConfigError, CorruptInputError

FORMAT = 1
SHARD_ROWS = 65_536  # 512 MiB of 2048 float32 features
ABOUT = "about.json"
STALE_SECONDS = 3600
FEATURES, LABELS, NAMES = "features.npy", "labels.npy", "names.txt"
DTYPES = ("float32", "float16")


def shard_path(folder: Path, number: int, kind: str) -> Path:
    """The file of a shard: FEATURES, LABELS, NAMES, or "json"."""
    return folder / f"{number:05d}.{kind}"


def partial(path: Path) -> Path:
    """Where a file of a shard is while it is written."""
    return path.with_name(path.name + ".partial")


def shard_count(rows: int, shard_rows: int) -> int:
    """Shards of a set of `rows` pictures; the last one may have fewer."""
    return -(-rows // shard_rows)


def finished(folder: Path) -> set[int]:
    """Numbers of the shards whose note is there."""
    notes = (path.stem for path in folder.glob("*.json"))
    return {int(stem) for stem in notes if stem.isascii() and stem.isdecimal()}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of the set.

    Raises:
      FileNotFoundError: it is not there.
      CorruptInputError: it is damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from error
    if not isinstance(value, dict):
        raise damaged(path, "no JSON object")
    return value


def damaged(path: Path, what: str) -> CorruptInputError:
    """The error about a file, with its remedy."""
    number = path.name.partition(".")[0]
    remedy = (
        f"delete {path.with_name(number + '.json')} and run the features command "
        "again, which makes this shard anew"
        if number.isdigit()
        else f"delete {path.parent} and run the features command again"
    )
    return CorruptInputError(f"{path} is damaged ({what}); {remedy}")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replaces a JSON file at once; processes may write the same one together."""
    own = f"{path.name}.{socket.gethostname()}-{os.getpid()}.partial"
    temporary = path.with_name(own)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps(value, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def remove_stale(folder: Path, numbers: Iterable[int]) -> None:
    """Deletes what a writer that was killed left half-written.

    Args:
      numbers: shards that the caller alone may write. A JSON file may be another
        process's as well: it stays while that process lives, and, of a process on
        another host, for an hour (writing one takes milliseconds).
    """
    for number in numbers:
        for kind in (FEATURES, LABELS, NAMES):
            partial(shard_path(folder, number, kind)).unlink(missing_ok=True)
    for path in folder.glob("*.json.*.partial"):
        host, _, pid = path.name.split(".json.", 1)[1][:-8].rpartition("-")
        try:
            age = time.time() - path.stat().st_mtime
        except FileNotFoundError:  # its writer has just put it in place
            continue
        gone = host == socket.gethostname() and not _lives(pid)
        if gone or age > STALE_SECONDS:
            path.unlink(missing_ok=True)


def _lives(pid: str) -> bool:
    """Whether a process of this host runs; true for what is no number of one."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except (PermissionError, ValueError):
        pass
    return True


def feature_dtype(name: str) -> np.dtype:
    """The type of stored features; ConfigError for another than DTYPES."""
    if name not in DTYPES:
        raise ConfigError(f"feature dtype={name!r}; choose one of {list(DTYPES)}")
    return np.dtype(name)


def name_line(name: str) -> str:
    """A name as its line of the file: plain, or as JSON where that would be unclear."""
    plain = name.isprintable() and not name.startswith('"')
    return (name if plain else json.dumps(name)) + "\n"


def parse_names(text: str) -> list[str]:
    """The names of a file, by `name_line`."""
    lines = text.split("\n")[:-1]
    return [json.loads(line) if line.startswith('"') else line for line in lines]


def differences(stored: Mapping[str, Any], due: Mapping[str, Any]) -> str:
    """The values of `due` that are stored otherwise, "key: stored -> due; …"; or ""."""
    old = _flat({key: stored.get(key) for key in due})
    new = _flat(due)
    return "; ".join(
        f"{key}: {reprlib.repr(old.get(key))} -> {reprlib.repr(new.get(key))}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    )


def _flat(about: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in about.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
