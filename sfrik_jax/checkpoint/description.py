"""What a checkpoint says of itself: its leaves with dtype, shape and digest."""

from collections.abc import Mapping
from importlib import metadata
from typing import Any

from sfrik_jax.checkpoint.digest import digests
from sfrik_jax.checkpoint.manifest import check_sum
from sfrik_jax.leaves import by_path
from sfrik_jax.version import VERSION

# Of what lies in a checkpoint's directory, and how.
FORMAT = 1


def describe(state: Any) -> dict[str, Any]:
    """Format, versions and leaves of a state, as JSON has them, with a check sum."""
    found, leaves = digests(state), by_path(state)
    content = {
        "format": FORMAT,
        "versions": versions(),
        "leaves": {k: {"type": _type(leaves[k]), "digest": found[k]} for k in leaves},
    }
    return content | {"check": check_sum(content)}


def versions() -> dict[str, str]:
    """Of this program and of what it stores arrays with."""
    return {
        "sfrik_jax": VERSION,
        "orbax-checkpoint": metadata.version("orbax-checkpoint"),
        "jax": metadata.version("jax"),
    }


def checked(meta: dict[str, Any]) -> dict[str, Any]:
    """A description that is as it was written. Errors: ValueError, AttributeError."""
    content = {key: value for key, value in meta.items() if key != "check"}
    if meta.get("check") != check_sum(content):
        raise ValueError("its description is damaged")
    return content


def mismatch(meta: Mapping[str, Any], abstract: Any) -> str:
    """Why a sound checkpoint does not fit this program; "" where it does.

    Orbax would cast float32 to bfloat16, or integers to floats, and say nothing.
    """
    if meta["format"] != FORMAT:
        return (
            f"it has format {meta['format']}, written by {_told(meta['versions'])}; "
            f"this is format {FORMAT}, {_told(versions())}"
        )
    stored = {path: about["type"] for path, about in meta["leaves"].items()}
    expected = {path: _type(leaf) for path, leaf in by_path(abstract).items()}
    for path in sorted(stored.keys() | expected.keys()):
        here, there = expected.get(path, "no such leaf"), stored.get(path, "nothing")
        if here != there:
            return f"leaf {path} is {there} on the disk, {here} is expected"
    return ""


def damaged_leaf(meta: Mapping[str, Any], state: Any) -> str:
    """The first leaf that is not what was stored; "" where all are."""
    found = digests(state)
    for path, about in sorted(meta["leaves"].items()):
        if found[path] != about["digest"]:
            return path
    return ""


def _type(leaf: Any) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _told(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
