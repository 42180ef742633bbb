"""Which settings a run may have changed when it goes on.

Those that leave weights and data alone (`settings.RESUME_FREE`), and more epochs than
before; others when they are allowed by name; those that the tensors of the state depend
on (`settings.RESUME_NEVER`), or that name the data (`OF_THE_DATA`), never.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sfrik_jax import config_keys, processes
from sfrik_jax.errors import MismatchError
from sfrik_jax.settings import RESUME_FREE, RESUME_NEVER, VARIANTS

Change = tuple[str, Any, Any]  # key, value before, value now

# What names the data: others have another fingerprint, which ends a run in any case.
OF_THE_DATA = ("data.source", "data.name", "data.train_split", "data.subset")
NEVER = (*RESUME_NEVER, *OF_THE_DATA)


def conflicts(changes: Iterable[Change], allowed: Collection[str] = ()) -> list[Change]:
    """The changes that forbid to go on.

    Args: allowed: settings, or sections of them.
    """
    return [
        change
        for change in changes
        if not (
            change[0].startswith(RESUME_FREE)
            or _longer(*change)
            or (_named(change[0], allowed) and not change[0].startswith(NEVER))
        )
    ]


def remedy(found: Sequence[Change], job: str = "pretrain") -> str:
    """What to do about the `conflicts` of a job; of pretraining some can be allowed."""
    reasons = {
        RESUME_NEVER: "the stored state has other tensors",
        OF_THE_DATA: "a run stays with the data that it was started with",
    }
    never = []
    for group, reason in reasons.items():
        keys = [key for key, *_ in found if key.startswith(group)]
        if keys:
            never.append(f"{', '.join(keys)} cannot be changed, as {reason}")
    if never:
        return f"{'; '.join(never)}; use those settings, or another --workdir"
    if job != "pretrain":
        return "use those settings, or another --workdir"
    flags = " ".join(f"--allow-config-change {name}" for name in _names(found))
    return f"use those settings, or another --workdir, or go on with {flags}"


def _names(found: Sequence[Change]) -> list[str]:
    """What allows changes: settings, or the section where they depend on a name."""
    changed = {key for key, *_ in found}
    names = []
    for key, before, now in found:
        section = key.partition(".")[0]
        selector, _ = VARIANTS.get(section, ("", {}))
        whole = selector in changed or None in (before, now)
        names.append(section if whole else key)
    return list(dict.fromkeys(names))


def refuse_the_past(done: int, total: int, run: Path) -> None:
    """Raises MismatchError where a run has gone beyond the end of its settings."""
    if done > total:
        raise processes.of_all(
            MismatchError(
                f"{run} has done {done} steps, and with these settings ends at "
                f"{total}; raise optim.epochs, or use another --workdir"
            )
        )


def notable(changes: Iterable[Change]) -> list[Change]:
    """The changes that are not free: a user is told of them."""
    return [change for change in changes if not change[0].startswith(RESUME_FREE)]


def told(changes: Iterable[Change], step: int, rates: tuple[float, float]) -> list[str]:
    """Lines about changes.

    Args: step: done so far. rates: of the next update by the settings before and now.
    """
    lines = [
        f"SFRIK-CONFIG-CHANGED {key}: {before!r} -> {now!r} from step {step + 1} on"
        for key, before, now in changes
    ]
    if rates[0] != rates[1]:
        lines[-1] += f", where the rate is {rates[1]:.4g} instead of {rates[0]:.4g}"
    return lines


def checked(names: Iterable[str], flat: Mapping[str, Any]) -> list[str]:
    """The names, if each is one of the settings `flat` or a section of them.

    Errors: ConfigError for another one, with the nearest setting.
    """
    found = list(names)
    for name in found:
        if not any(_named(key, (name,)) for key in flat):
            config_keys.refuse_unknown(name, flat)
    return found


def _longer(key: str, before: Any, now: Any) -> bool:
    return key == "optim.epochs" and None not in (before, now) and now > before


def _named(key: str, names: Collection[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)
