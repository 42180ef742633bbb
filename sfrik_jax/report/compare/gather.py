"""The runs below some directories, whatever state they are in."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sfrik_jax.errors import MissingInputError, SfrikError
from sfrik_jax.report.run import Run, finite, load
from sfrik_jax.sweeps import running
from sfrik_jax.sweeps.board import ELSEWHERE, RUNNING

SWEEP, TUNED, TUNING = "sweep.json", "tuned.json", "tuning"
DONE, MISSING, UNFINISHED, DAMAGED = "done", "not started", "not finished", "damaged"


@dataclass(frozen=True)
class Member:
    """One run of a comparison.

    Attributes:
      name: unique on the page.
      state: "done", "failed (code 70)", "not started", …
      run: what its directory says; None where there is nothing to read.
      settings: by dotted key, of config.json.
      overrides: what the sweep set for it, as texts.
      spectrum: eigenvalues by what they are of ("embeddings", "features").
    """

    name: str
    state: str
    run: Run | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, str] = field(default_factory=dict)
    spectrum: dict[str, list[float]] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether its figures are final."""
        return self.state == DONE


@dataclass(frozen=True)
class Sweep:
    """What sweep.json says, as far as it can be read."""

    place: Path
    again: list[str]  # the words of the command that carries it out
    runs: list[dict[str, Any]]


@dataclass
class Collection:
    """All runs of a page, and what could not be read."""

    title: str
    members: list[Member] = field(default_factory=list)
    sweeps: list[Sweep] = field(default_factory=list)
    choices: list[dict[str, Any]] = field(default_factory=list)
    tuning: list[Member] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)


def is_sweep(directory: Path) -> bool:
    """Whether a directory holds many runs; first those of a tuning alone."""
    return any((each / SWEEP).is_file() for each in (directory, directory / TUNING))


def collect(directories: Sequence[Path]) -> Collection:
    """The runs in sweep directories and of single run directories.

    A damaged file is named in `damaged` and hides nothing else.
    Errors: MissingInputError for a directory that is neither of them.
    """
    title = " · ".join(directory.resolve().name for directory in directories[:3])
    if len(directories) > 3:
        title += f" and {len(directories) - 3} more"
    found = Collection(title)
    alone = len(directories) == 1
    for directory in directories:
        if is_sweep(directory):
            _add_sweep(found, directory, "" if alone else f"{directory.name}/")
        else:
            found.members.append(_alone(found, directory))
    found.members = _once(found.members)
    return found


def flat(tree: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested settings by dotted key; lists are leaves."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _add_sweep(found: Collection, directory: Path, before: str) -> None:
    sweep = _sweep(found, directory, before)
    found.sweeps.append(sweep)
    found.members += _members(found, sweep, before)
    listed = {entry["name"] for entry in sweep.runs} | {TUNING}
    found.unlisted += [
        f"{before}{path.name}"
        for path in _runs_in(directory)
        if path.name not in listed
    ]
    if (directory / TUNING).is_dir():
        place = f"{before}{TUNING}/"
        tuning = _sweep(found, directory / TUNING, place)
        found.tuning += _members(found, tuning, place)
    tuned = _json(found, directory / TUNED, f"{before}{TUNED}") or {}
    choices = tuned.get("choices")
    for choice in choices if isinstance(choices, list) else []:
        if isinstance(choice, dict):
            found.choices.append({"metric": tuned.get("metric"), **choice})


def _sweep(found: Collection, directory: Path, before: str) -> Sweep:
    """sweep.json; where it is damaged, the directories that look like runs."""
    about = _json(found, directory / SWEEP, f"{before}{SWEEP}")
    if about is None:
        names = [path.name for path in _runs_in(directory)]
        return Sweep(directory, [], [{"name": name} for name in names])
    listed, again = about.get("runs"), about.get("again")
    entries = listed if isinstance(listed, list) else []
    good = [e for e in entries if isinstance(e, dict) and _is_name(e.get("name"))]
    if len(good) < len(entries) or not isinstance(listed, list):
        found.damaged.append(f"{before}{SWEEP}")
    words = again if isinstance(again, list) else []
    return Sweep(directory, [*map(str, words)], good)


def _is_name(name: Any) -> bool:
    """Whether a text names a directory inside the sweep, and nothing outside it."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not set("/\\\0") & set(name)
    )


def _runs_in(directory: Path) -> list[Path]:
    return sorted(path.parent for path in directory.glob("*/config.json"))


def _members(found: Collection, sweep: Sweep, before: str) -> Iterator[Member]:
    for entry in sweep.runs:
        overrides, noted = entry.get("overrides"), entry.get("state")
        place = sweep.place / entry["name"]
        member = _member(found, place, before + entry["name"])
        texts = overrides if isinstance(overrides, dict) else {}
        yield replace(
            member,
            state=_state(member, noted if isinstance(noted, str) else "", place),
            overrides={str(key): str(value) for key, value in texts.items()},
        )


def _state(member: Member, noted: str, place: Path) -> str:
    """The state by what is there; the sweep's own word tells how it ended.

    A sweep that was killed still calls "running" what has its summary by now, or what
    was killed with it.
    """
    if noted in (RUNNING, ELSEWHERE) and not running.may_be_at_work(place):
        return member.state
    if member.done and noted.startswith("failed"):
        return noted
    if member.state in (MISSING, UNFINISHED) and noted and noted != DONE:
        return noted
    return member.state


def _alone(found: Collection, directory: Path) -> Member:
    member = _member(found, directory, directory.resolve().name)
    if member.state == MISSING:
        raise MissingInputError(
            f"{directory} holds neither a run (config.json) nor a sweep ({SWEEP}); "
            "name directories of `pretrain` or `sweep`"
        )
    return member


def _member(found: Collection, place: Path, name: str) -> Member:
    try:
        run = load(place)
    except MissingInputError:
        return Member(name, MISSING)
    except (SfrikError, OSError, RecursionError) as error:
        found.damaged.append(f"{name} ({error})")
        return Member(name, DAMAGED)
    if not run.config:
        return Member(name, MISSING)
    state = DONE if run.summary is not None else UNFINISHED
    settings = dict(flat(run.config))
    content = _json(found, place / "spectrum.json", f"{name}/spectrum.json") or {}
    spectrum = {
        what: [float(v) for v in values if finite(v) and v > 0]
        for what in ("embeddings", "features")
        if isinstance(values := content.get(what), list)
    }
    return Member(name, state, run, settings, spectrum=spectrum)


def _json(found: Collection, path: Path, name: str) -> dict[str, Any] | None:
    """A JSON object; None where there is none, and noted where it is damaged."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        found.damaged.append(name)
        return None
    return content


def _once(members: Sequence[Member]) -> list[Member]:
    """The members under names that no two have: theirs, or their paths."""
    taken = Counter(member.name for member in members)
    twice = {name for name, times in taken.items() if times > 1}
    if not twice:
        return list(members)
    places = [str(m.run.workdir.resolve()) if m.run else m.name for m in members]
    above = os.path.commonpath(places) if all(map(os.path.isabs, places)) else ""
    return [
        replace(m, name=os.path.relpath(place, above))
        if m.name in twice and above
        else m
        for m, place in zip(members, places, strict=True)
    ]
