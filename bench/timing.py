"""What the benches share: arms that take turns, records, tables and JSON.

A record is a dictionary:

    name, arm, dtype, shapes     what was measured; `shapes` has all sizes by name
    median_seconds               of one call, of all rounds; by the clock of the bench
    clock                        "wall", or "cpu" for CPU seconds of the whole process
    round_seconds, spread        those of each round; their quartiles' distance over the
                                 median
    median_cpu_seconds, median_wall_seconds   by the one clock and by the other
    peer, ratio_to_peer          the first of the arm's peers that ran, and its median
                                 over the arm's: above 1 where the arm is faster
    ratios                       the same for each of its peers that ran
    flop, bytes                  counted, of one call
    limit_seconds, share_of_limit   what the hardware needs for those, and that over the
                                 median (`bench/roofline.py`)
    peak_bytes, agreement        of memory; errors against the peer by name
    device, cpu, cores, load_average, python, versions, date, commit   see `environment`

A key is absent where nobody measured or counted it.
"""

import datetime
import importlib.metadata
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

ROOT = Path(__file__).parents[1]
# Names of arms that more than one bench has.
OURS, DENSE, TORCH, COMPILED = "ours", "ours, dense autodiff", "torch", "torch.compile"
Record = dict[str, Any]
# A key of a record, or what makes a value of one, and the value's format.
Column = str | tuple[Callable[[Record], Any], str]


class Arm(NamedTuple):
    """One way: `run(count)` does the work so many times and waits for its end.

    `flop` and `bytes` are the arithmetic and the traffic of one call as counted, 0
    where nobody counts them; `peers` are the arms that it is compared with, the most
    telling one first.
    """

    name: str
    run: Callable[[int], object]
    flop: float = 0.0
    bytes: float = 0.0
    peers: tuple[str, ...] = ()


class Spent(NamedTuple):
    """Seconds of one call: by the wall clock, and of all threads of the process."""

    wall: float
    cpu: float


def take_turns(
    arms: Sequence[Arm], rounds: int, seconds: float = 0.0
) -> dict[str, list[Spent]]:
    """What one call of each arm takes, in every round; a round has each arm once.

    Args:
      seconds: each arm is called as often in a round as fills about so long, told from
        a first timing; the calls before it compile and warm up. With 0 it is called
        once to warm up and once in each round.

    An arm that finds no memory to warm up is left out, with a line.
    """
    counts = {}
    for arm in arms:
        try:
            arm.run(2 if seconds else 1)
            once = _spent(arm, 2).wall if seconds else 1.0
        except RuntimeError as error:
            leave_out(arm.name, error)
            continue
        counts[arm.name] = max(1, round(seconds / once))
    fit = [arm for arm in arms if arm.name in counts]
    spent: dict[str, list[Spent]] = {arm.name: [] for arm in fit}
    for _ in range(rounds):
        for arm in fit:
            spent[arm.name].append(_spent(arm, counts[arm.name]))
    return spent


def leave_out(name: str, error: RuntimeError) -> None:
    """A line where an arm finds no memory. Raises: the error, where it is another."""
    if "out of memory" not in str(error).lower():
        raise error
    print(f"no arm {name}: {str(error).partition(chr(10))[0]}")


def _spent(arm: Arm, count: int) -> Spent:
    wall, cpu = time.perf_counter(), time.process_time()
    arm.run(count)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Spent(wall / count, cpu / count)


def alternate(arms: Sequence[Arm], rounds: int, seconds: float) -> dict[str, float]:
    """Median wall seconds of one call of each arm."""
    spent = take_turns(arms, rounds, seconds)
    return {
        name: statistics.median(each.wall for each in of_arm)
        for name, of_arm in spent.items()
    }


def of_jax(
    name: str,
    function: Callable,
    *args: Any,
    flop: float = 0.0,
    bytes: float = 0.0,
    peers: tuple[str, ...] = (),
) -> Arm:
    """An arm of a jitted function of arrays that stay as they are."""

    def run(count: int) -> None:
        result = None
        for _ in range(count):
            result = function(*args)
        jax.block_until_ready(result)

    return Arm(name, run, flop, bytes, peers)


def records(
    name: str,
    arms: Sequence[Arm],
    spent: Mapping[str, Sequence[Spent]],
    *,
    dtype: str,
    shapes: Mapping[str, Any],
    where: Mapping[str, Any],
    clock: str = "wall",
    limit: Callable[[Arm], float | None] | None = None,
    extras: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Record]:
    """One record for each arm that ran.

    Args:
      name: of the bench.
      spent: from `take_turns`.
      where: from `environment`.
      clock: "wall" or "cpu": what `median_seconds` and the ratios are made of.
      limit: seconds that the hardware needs at least for an arm's work.
      extras: more keys of the record of an arm, by its name.
    """
    medians = {
        name: statistics.median(getattr(each, clock) for each in of_arm)
        for name, of_arm in spent.items()
    }
    rows = []
    for arm in (arm for arm in arms if arm.name in spent):
        median, ran = medians[arm.name], [p for p in arm.peers if p in spent]
        row: Record = {"name": name, "arm": arm.name, "dtype": dtype}
        row |= {"shapes": dict(shapes), **_seconds(spent[arm.name], clock)}
        if ran:
            ratios = {peer: medians[peer] / median for peer in ran}
            row |= {"peer": ran[0], "ratio_to_peer": ratios[ran[0]], "ratios": ratios}
        row |= {key: value for key in ("flop", "bytes") if (value := getattr(arm, key))}
        least = limit(arm) if limit else None
        if least:
            row |= {"limit_seconds": least, "share_of_limit": least / median}
        rows.append(row | dict((extras or {}).get(arm.name, {})) | dict(where))
    return rows


def _seconds(spent: Sequence[Spent], clock: str) -> Record:
    """The medians by both clocks, and the rounds by the clock of the bench."""
    wall, cpu = map(statistics.median, zip(*spent, strict=True))
    each = [getattr(one, clock) for one in spent]
    return {
        "median_seconds": {"wall": wall, "cpu": cpu}[clock],
        "clock": clock,
        "rounds": len(each),
        "round_seconds": each,
        "spread": spread(each),
        "median_wall_seconds": wall,
        "median_cpu_seconds": cpu,
    }


def spread(values: Sequence[float]) -> float:
    """The distance of the quartiles over the median; 0 of a single value."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / middle


def environment(libraries: Sequence[str]) -> dict[str, Any]:
    """Hardware, versions, date and commit; what is not there is left out."""
    versions = {}
    for name in libraries:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    where = {
        "device": jax.devices()[0].device_kind,
        "cpu": cpu_name(),
        "cores": cores(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    code = commit()
    return where | ({"commit": code} if code else {})


def commit() -> str | None:
    """The commit of the code, with "+" where tracked files differ from it."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}{'+' * bool(changed)}"


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", "-C", ROOT, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str:
    """The processor's name as Linux tells it, else what Python knows."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if "model name" in line:
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _times(key: str, factor: float) -> Callable[[Record], float | None]:
    return lambda row: None if row.get(key) is None else factor * row[key]


def _rate(row: Record) -> float | None:
    return row["flop"] / row["median_seconds"] / 1e12 if row.get("flop") else None


# What every bench shows of an arm; a bench puts its own columns beside.
ARM: dict[str, Column] = {"arm": ""}
MEDIAN: dict[str, Column] = {
    "ms": (_times("median_seconds", 1e3), ".2f"),
    "spread": ".0%",
}
RATE: dict[str, Column] = {"TFLOP/s": (_rate, ".3g")}
RATIO: dict[str, Column] = {
    "peer": "",
    "peer / arm": (_times("ratio_to_peer", 1), ".2f"),
}
SHARE: dict[str, Column] = {"share of limit": (_times("share_of_limit", 1), ".0%")}
PEAK: dict[str, Column] = {"peak MB": (_times("peak_bytes", 1e-6), ".0f")}


def table(rows: Sequence[Record], columns: Mapping[str, Column]) -> str:
    """A Markdown table.

    Args:
      columns: by heading: the format of the key of that name, or a function of the
        record and the format of its value.
    """
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    lines += ["| " + " | ".join(_cells(row, columns)) + " |" for row in rows]
    return "\n".join(lines)


def _cells(row: Record, columns: Mapping[str, Column]) -> Iterable[str]:
    for heading, column in columns.items():
        if isinstance(column, str):
            value, form = row.get(heading), column
        else:
            value, form = column[0](row), column[1]
        yield "–" if value is None else format(value, form)
