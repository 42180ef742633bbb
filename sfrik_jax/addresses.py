"""A directory has to be one: the address of an object store is told apart."""

import re

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def problem(name: str, value: str) -> str | None:
    """Why `value` is no directory, where it is an address such as gs://bucket/runs.

    Not a word of what follows the scheme, as it can hold a password.
    """
    found = SCHEME.match(value)
    if found is None:
        return None
    return (
        f"{name} is an address ({found[1]}://…), and a directory is needed: an object "
        "store has no locks, no renames and no files that grow; mount it and name the "
        "mounted directory, see docs/multi-host.md"
    )
