"""Runs that differ in the seed alone are one cell; what differs between cells."""

import ast
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sfrik_jax.report.compare.gather import Member
from sfrik_jax.report.compare.statistics import Difference, Spread, paired, spread
from sfrik_jax.report.run import finite
from sfrik_jax.report.verdict import score_order

SEED, METHOD, WEIGHTS, DIM = "seed", "loss.method", "loss.weights", "model.embed_dim"
# Settings that name a cell before others do.
FIRST = (METHOD, WEIGHTS, DIM)
ABSENT = "–"
TITLES = {METHOD: "method", DIM: "q", WEIGHTS: "weights"}


@dataclass(frozen=True)
class Cell:
    """Runs of the same settings but for the seed.

    Attributes:
      members: all of its runs, of one for each seed where they are done.
      values: text of each axis, by setting.
      label: unique on the page.
    """

    members: Sequence[Member]
    values: Mapping[str, str]
    label: str

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings that its runs share; the seed is that of the first."""
        return self.members[0].settings

    def by_seed(self, quantity: Callable[[Member], float | None]) -> dict[str, float]:
        """A figure of each run that is done, by the seed."""
        values = {
            text(m.settings.get(SEED)): quantity(m) for m in self.members if m.done
        }
        return {seed: value for seed, value in values.items() if value is not None}

    def spread(self, quantity: Callable[[Member], float | None]) -> Spread | None:
        """Mean, deviation and number of a figure over the seeds."""
        return spread(self.by_seed(quantity).values())

    def against(
        self, other: "Cell", quantity: Callable[[Member], float | None]
    ) -> Difference | None:
        """The paired difference of a figure to another cell, over common seeds."""
        return paired(self.by_seed(quantity), other.by_seed(quantity))


@dataclass(frozen=True)
class Layout:
    """The cells of a page.

    Attributes:
      axes: the settings that tell the cells apart.
      varying: all settings that differ between runs, the seed aside.
      names: of those settings on the page; "L" where the weights are prefixes.
      repeats: names of runs left out, of settings and a seed that another has.
    """

    cells: list[Cell]
    axes: list[str]
    varying: list[str]
    names: Mapping[str, str]
    repeats: list[str]

    def shown(self, key: str, settings: Mapping[str, Any]) -> str:
        """The text of a setting below its name: of "L" the number of weights."""
        return shown(key, settings, self.names.get(WEIGHTS) == "L")


def layout(members: Sequence[Member]) -> Layout:
    """The cells of the runs that have settings, in the order of their values."""
    readable = [member for member in members if member.settings]
    keys = {key for member in readable for key in member.settings}
    varying = sorted(
        (key for key in keys if key != SEED and _number_of(readable, [key]) > 1),
        key=lambda key: (FIRST.index(key) if key in FIRST else len(FIRST), key),
    )
    axes = _axes(readable, varying)
    names = {key: TITLES.get(key, _short(key, varying)) for key in varying}
    prefixes = _are_prefixes([m.settings.get(WEIGHTS) for m in readable])
    if prefixes and WEIGHTS in names:
        names[WEIGHTS] = "L"
    groups: dict[tuple[str, ...], list[Member]] = {}
    for member in readable:
        groups.setdefault(_place(member, axes), []).append(member)
    cells, repeats = [], []
    for group in groups.values():
        kept = _one_a_seed(group, repeats)
        values = {key: shown(key, kept[0].settings, prefixes) for key in axes}
        cells.append(Cell(kept, values, _label(values, names)))
    cells.sort(key=lambda cell: [natural(cell.values[key]) for key in axes])
    return Layout(_told_apart(cells), axes, varying, names, repeats)


def score(name: str) -> Callable[[Member], float | None]:
    """The figure "linear" or "knn20" of a run, in %."""
    return lambda member: (
        member.run.results.get("", {}).get(name) if member.run else None
    )


def summary(name: str) -> Callable[[Member], float | None]:
    """A number of summary.json."""

    def value(member: Member) -> float | None:
        found = ((member.run and member.run.summary) or {}).get(name)
        return float(found) if finite(found) else None

    return value


def last(name: str) -> Callable[[Member], float | None]:
    """The last value of a curve."""
    return lambda member: member.run.last(name) if member.run else None


def step_seconds(member: Member) -> float | None:
    """Seconds of a step: by the median rate, or of old runs the mean over the training.

    The mean has the compilation in it.
    """
    views, rate = summary("views_per_step")(member), summary("views_per_second")(member)
    if views and rate:
        return views / rate
    seconds, steps = summary("train_seconds")(member), summary("steps")(member)
    return seconds / steps if seconds and steps else None


def scores(cells: Sequence[Cell]) -> list[str]:
    """The scores that runs which are done have, the linear probe first."""
    found = {
        name
        for cell in cells
        for member in cell.members
        if member.done and member.run
        for name in member.run.results.get("", {})
    }
    return sorted(found, key=score_order)


def text(value: Any) -> str:
    """A setting's value, as short as it can be read."""
    if value is None:
        return ABSENT
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"{value:g}" if abs(value) >= 1e6 else str(int(value))
    if isinstance(value, list | tuple):
        return f"({', '.join(map(text, value))})"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def shown(key: str, settings: Mapping[str, Any], prefixes: bool = False) -> str:
    """The text of a setting; of weights that are prefixes the order L."""
    value = settings.get(key)
    if key == WEIGHTS and prefixes and isinstance(value, list):
        return str(len(value))
    return text(value)


def number(value: str) -> float | None:
    """The number that a text is; None where it is none."""
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return float(found) if finite(found) else None


def natural(value: str) -> tuple[int, float, str]:
    """Sorts numbers by size, before texts."""
    found = number(value)
    return (1, 0.0, value) if found is None else (0, found, "")


def _place(member: Member, keys: Sequence[str]) -> tuple[str, ...]:
    # Not `text`: 1 and "1" are two settings.
    return tuple(
        json.dumps(member.settings[key]) if key in member.settings else ""
        for key in keys
    )


def _number_of(members: Sequence[Member], keys: Sequence[str]) -> int:
    return len({_place(member, keys) for member in members})


def _axes(members: Sequence[Member], varying: Sequence[str]) -> list[str]:
    """The settings, first ones first, each of which parts what those before did not.

    Settings that follow from others (those of a method, widths that go with q) are no
    axes: their names would say nothing new.
    """
    axes: list[str] = []
    parts = 1
    for key in varying:
        finer = _number_of(members, [*axes, key])
        if finer > parts:
            axes, parts = [*axes, key], finer
    return axes


def _are_prefixes(weights: Sequence[Any]) -> bool:
    """Whether weights are lists that go on where a shorter one ends."""
    lists = [w for w in weights if w is not None]
    if not all(isinstance(w, list) for w in lists):
        return False
    if len({len(w) for w in lists}) < 2:  # one choice of weights is shown whole
        return False
    longest = max(lists, key=len)
    return all(w == longest[: len(w)] for w in lists)


def _short(key: str, keys: Sequence[str]) -> str:
    """The last word of a key, where no other key ends in it."""
    word = key.rpartition(".")[2]
    ends = [other.rpartition(".")[2] for other in keys]
    return word if ends.count(word) == 1 else key


def _one_a_seed(group: Sequence[Member], repeats: list[str]) -> list[Member]:
    """The runs of a cell; of those done with one seed the first alone."""
    seen: set[str] = set()
    kept = []
    for member in group:
        seed = text(member.settings.get(SEED))
        if member.done and seed in seen:
            repeats.append(member.name)
            continue
        seen |= {seed} if member.done else set()
        kept.append(member)
    return kept


def _label(values: Mapping[str, str], names: Mapping[str, str]) -> str:
    """The values in words: "vicreg, q = 64"."""
    parts = [
        value if key == METHOD else f"{names[key]} = {value}"
        for key, value in values.items()
        if value != ABSENT
    ]
    return ", ".join(parts) or "all runs"


def _told_apart(cells: Sequence[Cell]) -> list[Cell]:
    """The cells with labels of which no two are the same."""
    counts: dict[str, int] = {}
    found = []
    for cell in cells:
        counts[cell.label] = counts.get(cell.label, 0) + 1
        extra = f" ({counts[cell.label]})" if counts[cell.label] > 1 else ""
        found.append(Cell(cell.members, cell.values, cell.label + extra))
    return found
