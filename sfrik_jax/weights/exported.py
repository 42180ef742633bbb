"""The directory of an export: what an earlier export wrote there may be replaced.

The model card ends with the SHA-256 of each file of its export, itself included, so
that a later export knows its own files, and finds those that somebody changed.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from sfrik_jax.errors import OutputError

WEIGHTS, PROGRAM, CARD = "backbone.safetensors", "backbone.stablehlo", "README.md"
FILES = (WEIGHTS, PROGRAM, CARD)
SEAL = re.compile(r"<!-- sfrik_jax export (\{[^\n]*\}) -->\n\Z")


def sealed(text: str, digests: Mapping[str, str]) -> str:
    """A card with the sums of its export behind it.

    Args: digests: SHA-256 by name of the files beside the card.
    """
    sums = {**digests, CARD: hashlib.sha256(text.encode()).hexdigest()}
    return f"{text}<!-- sfrik_jax export {json.dumps(sums)} -->\n"


def check_place(out: Path) -> None:
    """Refuses a directory in which an export would replace what is no export.

    Raises:
      OutputError: it is a run's, or holds a file of an export's names that no export
        wrote, or that was changed since.
    """
    if (out / "config.json").exists():
        raise OutputError(
            f"--out {out} is the directory of a run; name an empty directory"
        )
    sums = _sums(out / CARD)
    for name in FILES:
        path = out / name
        if (path.is_symlink() or path.exists()) and (
            not path.is_file() or name not in sums or _sum(path) != sums[name]
        ):
            raise OutputError(
                f"--out {out} holds a {name} that is of no export, or was changed "
                "since; name an empty directory"
            )


def _sums(card: Path) -> dict[str, str]:
    """The sums at the end of a card; empty when there is no sound one."""
    try:
        text = card.read_bytes().decode()
        match = SEAL.search(text)
        return json.loads(match[1]) if match else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _sum(path: Path) -> str:
    """SHA-256 of a file; of a card without the line that says it."""
    if path.name == CARD:
        text = SEAL.sub("", path.read_bytes().decode())
        return hashlib.sha256(text.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
