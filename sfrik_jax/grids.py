"""The runs of a sweep: each choice of the values that are listed, with a name."""

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sfrik_jax.errors import ConfigError

NAME_LENGTH = 100

Overrides = dict[str, str]  # setting -> its text


class Run(NamedTuple):
    """One run of a sweep: a plain file name, and what it sets."""

    name: str
    overrides: Overrides

    def texts(self) -> list[str]:
        """The overrides as `configs.load` takes them."""
        return [f"{key}={text}" for key, text in self.overrides.items()]


def parse_grid(text: str) -> tuple[str, list[str]]:
    """`key=a,b` to the setting and the texts of its values.

    Commas inside brackets and quotes part no values: `loss.weights=(1,),(1,40)`.
    Errors: ConfigError.
    """
    key, equals, listed = text.partition("=")
    values = [value.strip() for value in _parted(listed)]
    if not equals or not all(values):
        raise ConfigError(f"--grid {text}: write KEY=VALUE,VALUE …")
    if len(set(values)) < len(values):
        raise ConfigError(f"--grid {text}: a value is there twice")
    return key, values


def _parted(text: str) -> list[str]:
    depth, quote, parts = 0, "", [""]
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        depth += (letter in "([{") - (letter in ")]}") if not quote else 0
        if letter == "," and not quote and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def product(grids: Iterable[tuple[str, list[str]]]) -> list[Overrides]:
    """Every choice of one value of each setting; the last setting changes fastest.

    Errors: ConfigError for a setting that is there twice.
    """
    grids = list(grids)
    keys = [key for key, _ in grids]
    twice = [key for key, times in Counter(keys).items() if times > 1]
    if twice:
        raise ConfigError(f"--grid {twice[0]} is there twice; list all its values once")
    choices = itertools.product(*(values for _, values in grids))
    return [dict(zip(keys, choice, strict=True)) for choice in choices]


def named(points: Sequence[Overrides]) -> list[Run]:
    """Runs with names that say what they set, each once.

    `loss.weights=(1,40)` and `model.embed_dim=64` give `weights-1-40_embed_dim-64`. A
    name that is too long, or that two would have, ends in a hash of the settings.
    """
    short = {key: key.rpartition(".")[2] for point in points for key in point}
    taken = Counter(short.values())
    words = {key: last if taken[last] == 1 else key for key, last in short.items()}
    names = ["_".join(f"{words[k]}-{_plain(v)}" for k, v in p.items()) for p in points]
    count = Counter(names)
    return [
        Run(name if _good(name, count) else _hashed(name, point), point)
        for name, point in zip(names, points, strict=True)
    ]


def _plain(text: str) -> str:
    sign = "-" if re.match(r"-[\d.]", text) else ""
    return sign + re.sub(r"[^\w.+]+", "-", text, flags=re.ASCII).strip("-")


def _good(name: str, count: Counter[str]) -> bool:
    return count[name] == 1 and len(name) <= NAME_LENGTH


def _hashed(name: str, point: Overrides) -> str:
    text = json.dumps(point, sort_keys=True)
    return f"{name[:NAME_LENGTH]}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
