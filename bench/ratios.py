"""Ratios of arms of ours to their peers, and how two sets of them differ."""

import json
from collections.abc import Iterable
from typing import Any

from bench import timing
from bench.timing import DENSE, OURS
from sfrik_jax.data.loader import RESAMPLES

# What has to be equal for two ratios to be compared.
KEY = ("bench", "arm", "peer", "shapes", "dtype", "device")
_PLACE = ("bench", "shapes", "dtype", "device")
Ratio = dict[str, Any]


def of(rows: Iterable[timing.Record]) -> list[Ratio]:
    """What each arm of ours is to each of its peers, with where it was measured."""
    return [
        {
            "bench": row["name"],
            "arm": row["arm"],
            "peer": peer,
            "shapes": row["shapes"],
            "dtype": row["dtype"],
            "device": kind_of_device(row),
            "ratio": ratio,
            "spread": row["spread"],
            **{name: row[name] for name in ("date", "commit") if name in row},
        }
        for row in rows
        for peer, ratio in row.get("ratios", {}).items()
        if peer != row["arm"] and is_ours(row)
    ]


def is_ours(row: timing.Record) -> bool:
    """Whether the arm is what the library does; others are there to compare with."""
    name = row["arm"].partition(",")[0]
    return row["arm"] != DENSE and (
        row["name"] == "heads" or name in (OURS, *RESAMPLES)
    )


def kind_of_device(row: timing.Record) -> str:
    """An accelerator's name; of CPUs the cores, which change ratios, and the name."""
    if row["device"] != "cpu":
        return row["device"]
    return f"{row['cores']} cores of {row['cpu']}"


def key(ratio: Ratio, names: Iterable[str] = KEY) -> str:
    """Those of a ratio's keys as text, to compare."""
    return json.dumps([ratio[name] for name in names], sort_keys=True)


def compare(
    recorded: Iterable[Ratio], now: Iterable[Ratio], tolerance: float
) -> list[Ratio]:
    """A row for each ratio of now: recorded, now, change and verdict.

    Verdicts: "slower" where the ratio fell by more than the tolerance, or is no number;
    "faster" where it rose by more, "not recorded", or "same".
    """
    known = {key(each): each["ratio"] for each in recorded}
    rows = []
    for each in now:
        row = {name: each[name] for name in KEY} | {"now": each["ratio"]}
        before = known.get(key(each))
        if before is None:
            rows.append(row | {"verdict": "not recorded"})
            continue
        change = each["ratio"] / before - 1
        verdict = "same"
        if not change >= -tolerance:
            verdict = "slower"
        elif change > tolerance:
            verdict = "faster"
        rows.append(row | {"recorded": before, "change": change, "verdict": verdict})
    return rows


def unmeasured(
    recorded: Iterable[Ratio], now: Iterable[Ratio]
) -> tuple[list[Ratio], list[Ratio]]:
    """Recorded ratios of the benches and the device of now that are not among them.

    Returns: those whose peer ran at that shape and dtype, so that the arm is gone, and
        all others.
    """
    now = list(now)
    measured = {key(each) for each in now}
    benches = {key(each, ("bench", "device")) for each in now}
    ran = {(each["peer"], key(each, _PLACE)) for each in now}
    gone, others = [], []
    for each in recorded:
        if key(each) in measured or key(each, ("bench", "device")) not in benches:
            continue
        place = (each["peer"], key(each, _PLACE))
        (gone if place in ran else others).append(each)
    return gone, others


def better(first: Iterable[Ratio], second: Iterable[Ratio]) -> list[Ratio]:
    """The larger of each ratio of two runs."""
    best = {key(each): each for each in first}
    for each in second:
        name = key(each)
        if name not in best or each["ratio"] > best[name]["ratio"]:
            best[name] = each
    return list(best.values())


def merge(recorded: Iterable[Ratio], now: Iterable[Ratio]) -> list[Ratio]:
    """The records with those of now in their place, in order."""
    kept = {key(each): each for each in recorded} | {key(each): each for each in now}
    return [kept[name] for name in sorted(kept)]
