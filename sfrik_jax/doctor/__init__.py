"""Whether a machine is fit for a run, in plain words.

Each check is a function of what is examined that returns one `Finding`. They go from
what everything needs, Python and its libraries, to a run of two steps.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from sfrik_jax.doctor import devices, installed, places, trials
from sfrik_jax.doctor.findings import Context, Finding, warning
from sfrik_jax.errors import SfrikError
from sfrik_jax.redaction import redact

__all__ = ["CHECKS", "Context", "Finding", "Result", "examine", "exit_code"]

Check = Callable[[Context], Finding]

CHECKS: Mapping[str, Check] = {
    "python": installed.python,
    "libraries": installed.libraries,
    "devices": devices.devices,
    "compiling": devices.compiles,
    "collective": devices.collective,
    "writing": places.writing,
    "disk": places.disk,
    "shared memory": places.shared_memory,
    "data": trials.data,
    "memory": trials.memory,
    "training": trials.training,
}
# Without these the checks after them would only say so again.
FIRST = ("python", "libraries", "devices")


class Result(NamedTuple):
    """A finding with the name of its check, and the seconds that it took."""

    name: str
    finding: Finding
    seconds: float


def examine(context: Context, tell: Callable[[str], None]) -> Iterator[Result]:
    """Carries out the checks, one after the other; none ends the others by an error.

    Args:
      tell: is called with the name of each check before it begins.
    """
    broken = ""
    for name, check in CHECKS.items():
        tell(name)
        begin = time.perf_counter()
        if broken:
            finding = warning("not tried", f"see to {broken} first")
        else:
            finding = _carried_out(check, context)
        if finding.outcome == "failed" and name in FIRST:
            broken = name
        yield Result(name, finding, time.perf_counter() - begin)


def _carried_out(check: Check, context: Context) -> Finding:
    try:
        return check(context)
    except SfrikError as error:
        return Finding("failed", _line_of(str(error)), code=error.code)
    except Exception as error:  # a check says what is wrong, whatever that is
        words = _line_of(f"{type(error).__name__}: {error}")[:300]
        return Finding("failed", words, "report it with the output of --json", 1)


def _line_of(text: str) -> str:
    """On one line, without passwords and tokens."""
    return " ".join(redact(text).split())


def exit_code(results: list[Result]) -> int:
    """That of the first check that failed; 0 without one."""
    codes = [each.finding.code for each in results if each.finding.outcome == "failed"]
    return codes[0] if codes else 0
