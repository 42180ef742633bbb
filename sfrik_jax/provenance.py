"""Where numbers come from: command, versions, source revision, devices."""

import hashlib
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from sfrik_jax.data.pipeline import num_threads
from sfrik_jax.redaction import redact

LIBRARIES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorflow-datasets",
    "grain",
    "numpy",
    "pillow",
    "simplejpeg",
)


def now() -> str:
    """The time of this place, with its zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def about_this_process() -> dict[str, Any]:
    """Command, versions, source revision and devices."""
    return {
        "started": now(),
        "command": ["python -m sfrik_jax", *map(redact, sys.argv[1:])],
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
        "platform": platform.platform(),
        "cpus": num_threads(0),
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
    }


def about_the_program() -> dict[str, str]:
    """Digests of the source by file, and versions: what processes have to agree on."""
    root = Path(__file__).parent
    files = {
        f"code {path.relative_to(root)}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*.py"))
    }
    versions = {f"version of {name}": metadata.version(name) for name in LIBRARIES}
    return files | versions | {"version of Python": platform.python_version()}


def git_revision() -> str | None:
    """The commit of the source, "-dirty" appended where it is changed; None without."""

    def git(*words: str) -> str:
        here = Path(__file__).parent
        command = ["git", "-C", str(here), *words]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        tracked = git("ls-files", "--error-unmatch", Path(__file__).name)
        changed = git("status", "--porcelain", "--untracked-files=no")
        return (
            git("rev-parse", "HEAD") + ("-dirty" if changed else "")
            if tracked
            else None
        )
    except (OSError, subprocess.SubprocessError):
        return None
