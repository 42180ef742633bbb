"""What the benches share: alternated rounds, what they ran on, tables and JSON."""

import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Arm(NamedTuple):
    """One way: `run(count)` does the work so many times and waits for its end.

    `flop` is the arithmetic of one call as counted by hand, 0 where nobody counts it.
    """

    name: str
    run: Callable[[int], object]
    flop: float = 0.0


def alternate(
    arms: Sequence[Arm],
    rounds: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of one call by the clock; each round times every arm once.

    Each arm is called as often as fills about `seconds`, told from a first timing; the
    calls before it compile and warm up. With `time.process_time` they are CPU seconds.
    """
    counts = {}
    for arm in arms:
        arm.run(2)
        counts[arm.name] = max(1, round(seconds / _seconds(arm, 2, clock)))
    spent: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for _ in range(rounds):
        for arm in arms:
            spent[arm.name].append(_seconds(arm, counts[arm.name], clock))
    return {name: statistics.median(each) for name, each in spent.items()}


def _seconds(arm: Arm, count: int, clock: Callable[[], float]) -> float:
    start = clock()
    arm.run(count)
    return (clock() - start) / count


def of_jax(name: str, function: Callable, *args: Any, flop: float = 0.0) -> Arm:
    """An arm of a jitted function of arrays that stay as they are."""

    def run(count: int) -> None:
        result = None
        for _ in range(count):
            result = function(*args)
        jax.block_until_ready(result)

    return Arm(name, run, flop)


def matmul_rate(dtype: Any, side: int) -> float:
    """FLOP/s of a square matrix product of random numbers: the limit of arithmetic."""
    a, b = jax.random.normal(jax.random.key(0), (2, side, side)).astype(dtype)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=dtype))
    arm = of_jax("product", product, a, b)
    return 2 * side**3 / alternate([arm], 5, 0.1)["product"]


def environment(libraries: Sequence[str]) -> dict[str, Any]:
    """Hardware and versions; a library that is not installed is left out."""
    versions = {}
    for name in libraries:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": jax.devices()[0].device_kind,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions,
    }


def cpu_name() -> str:
    """The processor's name as Linux tells it, else what Python knows."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if "model name" in line:
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def table(rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> str:
    """A Markdown table; columns: key of a row -> format of its value."""
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for row in rows:
        cells = [
            format(row[key], form) if row.get(key) is not None else "–"
            for key, form in columns.items()
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_json(path: Path | None, rows: Sequence[dict[str, Any]]) -> None:
    """Writes the rows where a path is given."""
    if path:
        path.write_text(json.dumps(list(rows), indent=1))
