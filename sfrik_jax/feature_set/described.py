"""Whether about.json and the notes of shards say what they have to, before use."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sfrik_jax.errors import MissingInputError
from sfrik_jax.feature_set import layout

_SHA256 = re.compile("[0-9a-f]{64}")


def read_about(folder: Path) -> dict[str, Any]:
    """The description of a set.

    Raises:
      MissingInputError: there is none.
      CorruptInputError: it is damaged, or lacks something.
    """
    path = folder / layout.ABOUT
    try:
        about = layout.read_json(path)
    except OSError as error:
        raise MissingInputError(
            f"no feature set in {folder} ({layout.ABOUT}: {error.strerror}); "
            "make one with the features command"
        ) from error
    if about.get("format") != layout.FORMAT:
        raise layout.damaged(
            path, f"format {about.get('format')!r}, not {layout.FORMAT}"
        )
    _hold(about, _ABOUT, path)
    return about


def read_notes(folder: Path, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The notes of all shards, in order; `about` is that of `read_about`.

    Raises:
      MissingInputError: shards are not there.
      CorruptInputError: a note or the description is damaged, or all rows are missing.
    """
    count = layout.shard_count(about["rows"], about["shard_rows"])
    # Found before any is opened: a damaged count may be of any size.
    present = sum(number < count for number in layout.finished(folder))
    if present < count:
        raise MissingInputError(
            f"{folder} has {present} of {count} shards of features; run the "
            "features command again, which makes the others"
        )
    notes = [_read_note(folder, number, about) for number in range(count)]
    path = folder / layout.ABOUT
    if not any(note["rows"] for note in notes):
        raise layout.damaged(path, "all pictures were left out")
    _hold(about, _OF_ROWS, path)
    names = about["class_names"]
    if names is not None and about["num_classes"] != len(names):
        raise layout.damaged(
            path, f"num_classes={about['num_classes']} of {len(names)} class_names"
        )
    for number, note in enumerate(notes):
        _check_files(folder, number, note, about["labelled"])
    return notes


def _read_note(folder: Path, number: int, about: Mapping[str, Any]) -> dict[str, Any]:
    path = layout.shard_path(folder, number, "json")
    try:
        note = layout.read_json(path)
    except OSError as error:
        raise layout.damaged(path, str(error.strerror)) from error
    _hold(note, _NOTE, path)
    if note["rows"] > about["shard_rows"]:
        raise layout.damaged(
            path, f"{note['rows']} rows, and shard_rows={about['shard_rows']}"
        )
    return note


def _check_files(
    folder: Path, number: int, note: Mapping[str, Any], labelled: bool
) -> None:
    """Which files a note lists, and that each has bytes and a SHA-256.

    A shard whose pictures were all left out has none, neither listed nor beside it.
    """
    path = layout.shard_path(folder, number, "json")
    due = {layout.FEATURES, layout.NAMES} | ({layout.LABELS} if labelled else set())
    if note["files"].keys() != (due if note["rows"] else set()):
        raise layout.damaged(path, "lists other files than are due")
    for file in note["files"].values():
        if not isinstance(file, dict):
            raise layout.damaged(path, "a file is no JSON object")
        _hold(file, _FILE, path)
    if not note["rows"]:
        for kind in (layout.FEATURES, layout.LABELS, layout.NAMES):
            if layout.shard_path(folder, number, kind).exists():
                raise layout.damaged(path, f"no rows, and there is {kind}")


def _hold(
    value: Mapping[str, Any],
    due: Mapping[str, tuple[Callable[[Any], bool], str]],
    path: Path,
) -> None:
    """CorruptInputError where a JSON object lacks a key, or has no such value."""
    missing = [key for key in due if key not in value]
    if missing:
        raise layout.damaged(path, f"without {', '.join(missing)}")
    for key, (fits, what) in due.items():
        if not fits(value[key]):
            raise layout.damaged(path, f"{key} is no {what}")


def _at_least(least: int) -> Callable[[Any], bool]:
    # A bool is an int, and so is a number too large for an array.
    return lambda value: type(value) is int and least <= value < 1 << 62


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_count_or_none(value: Any) -> bool:
    return value is None or _at_least(0)(value)


def _is_names_or_none(value: Any) -> bool:
    texts = isinstance(value, list) and all(isinstance(each, str) for each in value)
    return value is None or texts


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


_ABOUT = {
    "rows": (_at_least(1), "number from 1"),
    "shard_rows": (_at_least(1), "number from 1"),
    "dtype": (lambda value: value in layout.DTYPES, f"one of {list(layout.DTYPES)}"),
    "class_names": (_is_names_or_none, "list of texts"),
    "identity": (_is_object, "JSON object"),
}
# What the first block of rows completes the description with.
_OF_ROWS = {
    "dim": (_at_least(1), "number from 1"),
    "labelled": (_is_bool, "true or false"),
    "multi_label": (_is_bool, "true or false"),
    "num_classes": (_is_count_or_none, "number"),
}
_NOTE = {
    "rows": (_at_least(0), "number from 0"),
    "files": (_is_object, "JSON object"),
}
_FILE = {
    "bytes": (_at_least(0), "number from 0"),
    "sha256": (_is_sha256, "SHA-256"),
}
