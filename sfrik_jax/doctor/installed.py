"""Python and the libraries, against what this version was tested with."""

import contextlib
import re
import sys
from importlib import metadata
from pathlib import Path

from sfrik_jax.doctor.findings import Context, Finding, failed, ok, warning
from sfrik_jax.errors import ConfigError, MissingInputError

PACKAGE = "sfrik_jax"
ROOT = Path(__file__).parents[2]
LEAST_PYTHON = (3, 11)
INSTALL = "pip install -r requirements.txt"
_REQUIREMENT = re.compile(r"([A-Za-z0-9][\w.-]*)\s*((?:[<>=!~]=?\s*[\w.*]+\s*,?\s*)*)")
_BOUND = re.compile(r"([<>=!~]=?)\s*([\w.]+)")


def python(context: Context) -> Finding:
    """A version that the code is written for."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < LEAST_PYTHON:
        least = ".".join(map(str, LEAST_PYTHON))
        return failed(f"Python {found}", f"install {least} or newer", ConfigError.code)
    if sys.maxsize < 1 << 32:
        return failed(f"Python {found} of 32 bits", "install one of 64 bits", 2)
    return ok(f"Python {found}, {sys.executable}")


def libraries(context: Context) -> Finding:
    """Each library that is needed is there, in a version that was tested."""
    wanted, strange = requirements(), []
    if not wanted:
        return warning("nothing here tells which libraries are needed", INSTALL)
    for name, bounds in wanted.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            code = MissingInputError.code
            return failed(f"{name} is not installed", INSTALL, code)
        if not within(version, bounds):
            strange.append(f"{name} {version} (tested: {bounds})")
    if strange:
        return warning(f"not tested with {', '.join(strange)}", INSTALL)
    return ok(f"{len(wanted)} libraries, all in versions that were tested")


def requirements() -> dict[str, str]:
    """Libraries and their bounds: of requirements.txt, or of the installed package.

    That file counts in the package's own repository alone: in site-packages it is
    somebody else's.
    """
    lines: list[str] = []
    if f'name = "{PACKAGE}"' in _beside("pyproject.toml"):
        lines = _beside("requirements.txt").splitlines()
    else:
        with contextlib.suppress(metadata.PackageNotFoundError):
            lines = metadata.requires(PACKAGE) or []
    found = {}
    for line in lines:
        match = _REQUIREMENT.match(line.partition("#")[0].partition(";")[0].strip())
        if match and "extra ==" not in line:
            found[match[1]] = match[2].strip()
    return found


def _beside(name: str) -> str:
    """The text of a file beside the package; "" where there is none."""
    path = ROOT / name
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def within(version: str, bounds: str) -> bool:
    """Whether a version such as 0.10.2 is within bounds such as >=0.10,<0.13."""
    here = _release(version)
    for operator, text in _BOUND.findall(bounds):
        there = _release(text)
        length = max(len(here), len(there))
        a, b = (v + (0,) * (length - len(v)) for v in (here, there))
        held = {">=": a >= b, ">": a > b, "<=": a <= b, "<": a < b, "==": a == b}
        if not held.get(operator, a != b):
            return False
    return True


def _release(version: str) -> tuple[int, ...]:
    """(0, 10, 2) of 0.10.2, 0.10.2rc1 and 0.10.2.dev3."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()
