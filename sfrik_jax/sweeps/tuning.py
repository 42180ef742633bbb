"""Tuning: candidates are compared on the validation split, and the best is run for all.

A candidate stands for every final run that agrees with it in the settings that both
list; seeds are left aside. Of those of equal settings but for the seed the mean counts.
`DIR/tuned.json` keeps what was compared and chosen: the final runs read it, so that a
choice is made once.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from sfrik_jax import config_keys
from sfrik_jax.errors import ConfigError, CorruptInputError
from sfrik_jax.files import write_whole
from sfrik_jax.grids import Overrides, Run
from sfrik_jax.sweeps.plans import SEED

FOLDER, FILE = "tuning", "tuned.json"


class Choice(NamedTuple):
    """What was chosen for some of the final runs.

    Attributes:
      group: the settings that candidates and those runs share.
      chosen: the other settings of the best candidate, but for its seed.
      value: its figure, the mean over seeds.
      run: the name of its run, the first one of several seeds.
      candidates: all that were compared: run, overrides, value (None of one without).
    """

    group: Overrides
    chosen: Overrides
    value: float
    run: str
    candidates: list[dict[str, Any]]


def choose(
    final: Sequence[Overrides], candidates: Sequence[Run], values: Mapping[str, float]
) -> list[Choice]:
    """The best candidate for each group of final runs; of equal ones the first.

    Args:
      values: figures of the candidates by name, higher is better; one that diverged
        has none.

    Errors: ConfigError where a final run has no candidate, or none with a figure.
    """
    return [
        _best(group, [r for r in candidates if _agrees(r.overrides, group)], values)
        for group in groups(final, candidates)
    ]


def groups(final: Sequence[Overrides], candidates: Sequence[Run]) -> list[Overrides]:
    """What final runs share with their candidates, each once.

    Errors: ConfigError where a final run has no candidate.
    """
    found: list[Overrides] = []
    for point in final:
        group = _group(point, {key for run in candidates for key in run.overrides})
        if group in found:
            continue
        if not any(_agrees(run.overrides, group) for run in candidates):
            raise ConfigError(f"no candidate of the tuning is for {_words(group)}")
        found.append(group)
    return found


def applied(final: Sequence[Overrides], choices: Sequence[Choice]) -> list[Overrides]:
    """The settings of the final runs with what was chosen for each."""
    keys = {key for c in choices for each in c.candidates for key in each["overrides"]}
    found = []
    for point in final:
        group = _group(point, keys)
        choice = next(c for c in choices if c.group == group)
        found.append({**point, **choice.chosen})
    return found


def figures(directory: Path, runs: Sequence[Run], metric: str) -> dict[str, float]:
    """The metric of each run that has ended, by name.

    Errors: ConfigError where a run has ended without it; CorruptInputError.
    """
    values = {}
    for run in runs:
        path = directory / run.name / "summary.json"
        if not path.exists():
            continue
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CorruptInputError(
                f"{path} is damaged ({error}); remove it: the run is evaluated again"
            ) from error
        value = summary.get(metric)
        if not isinstance(value, int | float) or not math.isfinite(value):
            known = sorted(k for k, v in summary.items() if isinstance(v, float))
            raise ConfigError(
                f"--metric {metric}: {path} has no such number, but {', '.join(known)}"
            )
        values[run.name] = float(value)
    return values


def keep(
    directory: Path, metric: str, common: Sequence[str], choices: Sequence[Choice]
) -> None:
    """Writes tuned.json. Raises: as `files.write_whole`.

    Args:
      common: overrides of all candidates.
    """
    rows = [
        {"for": c.group, "chosen": c.chosen, "run": c.run, "value": c.value}
        | {"candidates": c.candidates}
        for c in choices
    ]
    about = {"metric": metric, "common": list(common), "choices": rows}
    text = json.dumps(about, indent=2)
    write_whole(directory / FILE, (text + "\n").encode())


def kept(
    directory: Path,
    metric: str,
    common: Sequence[str],
    final: Sequence[Overrides],
    candidates: Sequence[Run],
) -> list[Choice] | None:
    """What tuned.json has chosen among just these candidates, or None.

    Errors: CorruptInputError for a damaged file.
    """
    path = directory / FILE
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        choices = [
            Choice(c["for"], c["chosen"], c["value"], c["run"], c["candidates"])
            for c in stored["choices"]
        ]
        compared = [
            (each["run"], each["overrides"]) for c in choices for each in c.candidates
        ]
        same = (stored["metric"], stored["common"]) == (metric, list(common))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CorruptInputError(
            f"{path} is damaged ({error}); remove it: it is made anew from "
            f"{FOLDER}/*/summary.json"
        ) from error
    wanted = groups(final, candidates)
    same &= [c.group for c in choices] == wanted
    expected = [
        (run.name, run.overrides)
        for group in wanted
        for run in candidates
        if _agrees(run.overrides, group)
    ]
    return choices if same and compared == expected else None


def _best(group: Overrides, runs: Sequence[Run], values: Mapping[str, float]) -> Choice:
    by_settings: dict[str, list[Run]] = {}
    for run in runs:
        rest = {k: v for k, v in run.overrides.items() if k != SEED}
        by_settings.setdefault(json.dumps(rest, sort_keys=True), []).append(run)
    # A candidate that diverged with one seed is no candidate.
    means = {
        key: fmean(values[r.name] for r in each)
        for key, each in by_settings.items()
        if all(r.name in values for r in each)
    }
    if not means:
        raise ConfigError(
            f"no candidate for {_words(group)} came to an end; see log.txt in {FOLDER}"
        )
    best = max(means, key=lambda key: means[key])  # of equal ones the first
    chosen = {k: v for k, v in json.loads(best).items() if k not in group}
    compared = [
        {"run": r.name, "overrides": r.overrides, "value": values.get(r.name)}
        for r in runs
    ]
    return Choice(group, chosen, means[best], by_settings[best][0].name, compared)


def _group(point: Overrides, keys: Collection[str]) -> Overrides:
    """Those of its settings that candidates list too, but for the seed."""
    return {k: _plain(v) for k, v in point.items() if k in keys and k != SEED}


def _agrees(overrides: Overrides, group: Overrides) -> bool:
    """Whether a candidate has the values of a group, in what it lists of it."""
    return all(_plain(overrides[k]) == v for k, v in group.items() if k in overrides)


def _plain(text: str) -> str:
    """One text for each value: (1,40) and (1.0, 40.0) are the same."""
    value = config_keys.parsed(text, None)
    return value if isinstance(value, str) else repr(_number(value))


def _number(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(map(_number, value))
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole else value


def _words(group: Overrides) -> str:
    return ", ".join(f"{k}={v}" for k, v in group.items()) or "the runs"
