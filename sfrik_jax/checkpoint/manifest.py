"""The list of a checkpoint's files with their SHA-256, inside the checkpoint.

It is written before the directory gets its name, so that a directory with the name of a
step has one, and every file that it names is on the disk by then.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from sfrik_jax import files

NAME = "manifest.json"
# What Orbax writes once all else is there, and nobody reads.
HARMLESS = ("_CHECKPOINT_METADATA", "commit_success.txt")
_PIECE = 2**22


def write(directory: Path) -> None:
    """Lists the files of a checkpoint and brings them to the disk."""
    listed = {name: _sha256(directory / name, sync=True) for name in _files(directory)}
    content = {"files": listed, "check": check_sum(listed)}
    files.write_whole(directory / NAME, json.dumps(content, indent=0).encode())


def problem(directory: Path) -> str:
    """What is wrong with the files of a checkpoint; "" where all are as they were."""
    try:
        with _opened(directory / NAME) as file:
            content = json.loads(file.read())
        listed = dict(content["files"])
        if content["check"] != check_sum(listed):
            return f"{NAME} is damaged"
    except FileNotFoundError:
        return f"{NAME} is missing"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"{NAME} cannot be read ({type(error).__name__})"
    try:
        found = set(_files(directory))
        changed = sorted(found ^ set(listed))
        if changed:
            state = "is new" if changed[0] in found else "is missing"
            return f"file {changed[0]} {state}"
        for name, wanted in listed.items():
            if _sha256(directory / name) != wanted:
                return f"file {name} sha256 mismatch"
    except OSError as error:
        return f"file {error.filename} cannot be read ({error.strerror})"
    return ""


def _files(directory: Path) -> list[str]:
    """Everything below but directories, by name; a link is a file of its own."""
    found = []
    for folder, folders, names in os.walk(directory, onerror=_refuse):
        links = [name for name in folders if Path(folder, name).is_symlink()]
        found += [Path(folder, name).relative_to(directory) for name in names + links]
    names = sorted(path.as_posix() for path in found)
    return [name for name in names if name not in (NAME, *HARMLESS)]


def _refuse(error: OSError) -> None:
    raise error


def _sha256(path: Path, *, sync: bool = False) -> str:
    digest = hashlib.sha256()
    with _opened(path) as file:
        if sync:
            os.fsync(file.fileno())
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _opened(path: Path) -> IO[bytes]:
    """A file to read; a link is refused, and a pipe, which is empty, not waited for."""
    return open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")


def check_sum(content: Mapping[str, Any]) -> str:
    """SHA-256 of what JSON makes of a mapping, whatever its order."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
