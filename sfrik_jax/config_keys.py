"""Which settings exist and of which type they are; how a text becomes a value.

Works on settings by dotted name, `{"data.batch_size": 64}`, without ConfigDict and jax.
"""

import ast
import math
from collections.abc import Mapping
from typing import Any

from sfrik_jax.config_checks import choice_problem, nearest, shown
from sfrik_jax.errors import ConfigError
from sfrik_jax.eval_settings import JOBS
from sfrik_jax.settings import DEFAULTS, NAMED_NUMBERS, VARIANTS

KIND_WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple: "numbers separated by commas",
}
WORDS = {
    "true": True,
    "false": False,
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
}


def flatten(tree: Any, section_type: type) -> dict[str, Any]:
    """The values of a tree of sections by dotted name, in the order of `known`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, section_type):
            flat |= {f"{key}.{name}": entry for name, entry in value.items()}
        else:
            flat[key] = value
    try:
        order = known(flat)
    except ConfigError:  # a name that does not exist is found where values are checked
        order = {}
    return {key: flat[key] for key in order if key in flat} | flat


def tree_of(names: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the job that `names` holds, as a tree; a run's without "job".

    Errors: ConfigError for an unknown job.
    """
    job = names.get("job", DEFAULTS["job"])
    problem = choice_problem("job", job)
    if problem:
        raise ConfigError(problem)
    return JOBS[job]


def known(names: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a job and their defaults, in the tree's order.

    Args: names: may hold "job", which has its own tree, and "loss.method" and
        "augment.recipe", on which their sections depend; other keys are not looked at.
    Errors: ConfigError for an unknown job, method or recipe.
    """
    flat: dict[str, Any] = {}
    for key, value in tree_of(names).items():
        if key in VARIANTS:
            selector, variants = VARIANTS[key]
            name = names.get(selector, default_of(selector))
            problem = choice_problem(selector, name)
            if problem:
                raise ConfigError(problem)
            value = {selector.removeprefix(f"{key}."): name, **variants[name]}
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": entry for name, entry in value.items()}
        else:
            flat[key] = value
    return flat


def typed(flat: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a run: those of `flat` in their default's type, else defaults.

    Errors: ConfigError for an unknown key, an unknown method or a wrong type.
    """
    all_settings = known(flat)
    for key in flat:
        refuse_unknown(key, flat)
    return {
        key: converted(key, flat.get(key, like), like)
        for key, like in all_settings.items()
    }


def default_of(key: str) -> Any:
    """The default of a setting such as `loss.method`."""
    section, _, name = key.rpartition(".")
    return DEFAULTS[section][name]


def refuse_unknown(key: str, names: Mapping[str, Any]) -> None:
    """Raises ConfigError, with the nearest name, unless `key` is a setting."""
    settings = known(names)
    if key in settings:
        return
    tree = tree_of(names)
    if key in tree:
        fields = [k for k in settings if k.startswith(f"{key}.")]
        raise ConfigError(f"{key} is a section; set one of {', '.join(fields)}")
    section, _, name = key.rpartition(".")
    selector, variants = (
        VARIANTS.get(section, ("", {})) if section in tree else ("", {})
    )
    owners = [m for m, fields in variants.items() if name in fields]
    if owners:
        chosen = names.get(selector, default_of(selector))
        raise ConfigError(
            f"{key} belongs to the {selector.rpartition('.')[2]} "
            f"{' and '.join(owners)}; {selector}={chosen!r} has "
            f"{', '.join(variants[chosen])}"
        )
    fields = [k[len(section) + 1 :] for k in settings if k.startswith(f"{section}.")]
    listed = f"{section} has" if fields else "there are"
    raise ConfigError(
        f"{shown(key)[1:-1]} is not a setting{nearest(key, tuple(settings))} "
        f"({listed} {', '.join(fields or tree)})"
    )


def parsed(text: str, like: Any) -> Any:
    """The value that `text` writes for a setting with the default `like`.

    Python's notation, true and false, nan and inf; anything else is text. Where the
    default is text, so is `text`, unless it is a quoted Python string.
    """
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = WORDS.get(text.strip().lower(), text)
    return text if isinstance(like, str) and not isinstance(value, str) else value


def converted(key: str, value: Any, like: Any) -> Any:
    """`value` in the type of the default `like`; whole numbers may become floats.

    A text that begins with a letter stays one where it may name numbers, see
    `settings.NAMED_NUMBERS`; whether it names any is for `config_checks`.
    Errors: ConfigError naming the type that `key` needs.
    """
    name = NAMED_NUMBERS.get(key)
    if name and _is_name(value):
        return value.strip()
    kind = type(like)
    many = kind is tuple
    entries = tuple(value) if isinstance(value, tuple | list) else (value,)
    entry_kind = type(like[0]) if many else kind
    accepted = (float, int) if entry_kind is float else (entry_kind,)
    if many != isinstance(value, tuple | list) or not all(
        type(entry) in accepted for entry in entries
    ):
        needs = KIND_WORDS[kind]
        other = f", or a name such as {name}" if name else ""
        raise ConfigError(
            f"{key}={shown(value)} needs {needs}, such as {shown(like)}{other}"
        )
    if entry_kind is float:
        entries = tuple(map(_as_float, entries))
    return entries if many else entries[0]


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.strip()[:1].isalpha()


def _as_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:  # a whole number above 1e308; refused later as not finite
        return math.inf
