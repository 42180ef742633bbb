"""Where the time of a compiled program goes: a profiler's trace, a table, a picture."""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import jax
from matplotlib.figure import Figure

from bench import timing

# They last as long as what runs within them, which has events of its own.
AROUND = ("while", "call", "conditional")
COLUMNS: dict[str, timing.Column] = {
    "operation": "",
    "ms": ".3f",
    "share": ".1%",
    "what": "",
}


def keep(folder: Path, compiled: Any, step: Callable[[], object], steps: int) -> str:
    """Traces some steps into a folder, with `operations.md` and `operations.png`.

    Args:
      compiled: the program, whose text says what its operations come from.
      step: runs it once, to its end.

    Returns:
      The table by kind of operation.
    """
    with jax.profiler.trace(str(folder)):
        for _ in range(steps):
            step()
    sources = _sources(compiled.as_text())
    events = [(name, seconds / steps) for name, seconds in _events(folder)]
    spent = _sum(events)
    kinds = _sum((_kind(name, sources), each) for name, each in events)
    tables = [_table(kinds, {}), _table(spent, sources)]
    (folder / "operations.md").write_text("\n\n".join(tables) + "\n")
    places = _sum((_place(name, sources), each) for name, each in events)
    _picture(folder / "operations.png", kinds, places)
    return tables[0]


def _sum(events: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The seconds of each name, the longest first."""
    total: dict[str, float] = {}
    for name, seconds in events:
        total[name] = total.get(name, 0.0) + seconds
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def _sources(text: str) -> dict[str, str]:
    """The JAX operation of each instruction of a compiled program, where it is told."""
    found = re.findall(r'^\s*(?:ROOT )?%?([\w.-]+) = .*op_name="([^"]+)"', text, re.M)
    return dict(found)


def _events(folder: Path) -> Iterator[tuple[str, float]]:
    """Names and seconds of the operations of the newest trace in a folder."""
    path = max(folder.rglob("*.xplane.pb"), key=lambda each: each.stat().st_mtime)
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                name = dict(event.stats).get("hlo_op")
                if name and not str(name).startswith(AROUND):
                    yield str(name), event.duration_ns / 1e9


def _kind(name: str, sources: dict[str, str]) -> str:
    """The last word of where an operation comes from, backward ones apart."""
    source = sources.get(name, "")
    word = source.rpartition("/")[2] or re.sub(r"[.\d]+$", "", name)
    return f"{word}, backward" if "transpose(" in source else word


def _place(name: str, sources: dict[str, str]) -> str:
    """The end of where an operation comes from: a layer and what it does."""
    source = sources.get(name)
    if not source:
        return name
    backward = ", backward" * ("transpose(" in source)
    return f"{'/'.join(source.split('/')[-3:])}{backward}"


def _table(spent: dict[str, float], sources: dict[str, str], top: int = 40) -> str:
    whole = sum(spent.values())
    rows = [
        {
            "operation": name,
            "ms": 1e3 * seconds,
            "share": seconds / whole,
            "what": sources.get(name),
        }
        for name, seconds in islice(spent.items(), top)
    ]
    columns = COLUMNS if sources else {k: v for k, v in COLUMNS.items() if k != "what"}
    return timing.table(rows, columns)


def _picture(path: Path, kinds: dict[str, float], places: dict[str, float]) -> None:
    figure = Figure(figsize=(12, 6), layout="constrained")
    titles = ("by kind", "by place")
    for axes, title, each in zip(
        figure.subplots(1, 2), titles, (kinds, places), strict=True
    ):
        names, seconds = zip(*reversed(list(each.items())[:20]), strict=True)
        axes.barh([name[-60:] for name in names], [1e3 * s for s in seconds])
        axes.set_xlabel("ms in a step, over all threads or streams")
        axes.set_title(title)
        axes.tick_params(axis="y", labelsize=7)
    figure.savefig(path, dpi=120)
