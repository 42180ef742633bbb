"""What the subset settings say. Plain values: checked before numpy or jax is loaded."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from sfrik_jax.errors import ConfigError

FORMS = ("in20", "in20_val", "per_class:N", "fraction:F", "list:PATH")


class Subset(NamedTuple):
    """A subset in words: its kind, and those of the numbers that the kind needs."""

    kind: str
    start: int = 0  # position within a class, its files sorted by name
    count: int = 0  # pictures of each class
    share: float = 0.0  # of the set, above 0 and at most 1
    path: str = ""  # text file of file names


# The official code's validation pictures are 261 … 520, counted from 0: it leaves out
# picture 260. Kept, so that tuning sees the pictures that the paper's authors saw.
_FIXED = {
    "in20": Subset("in20", start=0, count=260),
    "in20_val": Subset("in20_val", start=261, count=260),
}


def parse(text: str, key: str = "data.subset") -> Subset:
    """The subset that `text` names. Only its form is looked at.

    Errors: ConfigError with `key`, the text and the forms.
    """
    kind, colon, value = text.partition(":")
    if text in _FIXED:
        return _FIXED[text]
    if colon and kind in _PARSERS:
        subset = _PARSERS[kind](value)
        if subset is None:
            raise ConfigError(f"{key}={text!r}; {_NEEDS[kind]}")
        return subset
    raise ConfigError(f"{key}={text!r}; choose one of {', '.join(FORMS)}")


def probe_data(at: Mapping[str, Any]) -> tuple[str, str]:
    """Split and subset that probes are fitted on: of the training, unless `eval` says.

    Args: at: settings by dotted name.
    """
    split, subset = at["eval.train_split"], at["eval.train_subset"]
    if split:
        return split, subset
    return at["data.train_split"], subset or at["data.subset"]


def check_form(at: Mapping[str, Any]) -> str | None:
    """A subset is written in one of the known forms."""
    for key in (key for key in at if key.endswith("subset")):
        try:
            if at[key]:
                parse(at[key], key)
        except ConfigError as error:
            return str(error)
    return None


def check_overlap(at: Mapping[str, Any]) -> str | None:
    """No picture to test on is trained on, as far as the settings tell.

    The official code tests on training pictures when the subset is left out.
    """
    tested = at["eval.test_split"], at["eval.test_subset"]
    pretrained = at["data.train_split"], at["data.subset"]
    for trained in (pretrained, probe_data(at)):
        if may_share(trained, tested):
            return (
                f"eval.test_split={tested[0]!r} and eval.test_subset={tested[1]!r} "
                f"have pictures of the training (subset {trained[1]!r}); test on "
                "another split, or train on in20 and test on in20_val"
            )
    return None


def may_share(first: tuple[str, str], second: tuple[str, str]) -> bool:
    """Whether two parts (split, subset) are of one split and not known to be apart.

    Splits may be joined, "train+validation". Slices are compared when they are opened.
    """
    subsets = (first[1], second[1])
    # Two lists, or a list and a drawn subset, may well have nothing in common.
    listed = any(text.startswith("list:") for text in subsets) and all(subsets)
    apart = set(subsets) == {"in20", "in20_val"}
    shared = set(first[0].split("+")) & set(second[0].split("+"))
    return bool(shared) and not apart and not listed


def _per_class(value: str) -> Subset | None:
    whole = value.isascii() and value.isdigit() and len(value) < 10
    count = int(value) if whole else 0
    return Subset("per_class", count=count) if count else None


def _fraction(value: str) -> Subset | None:
    try:
        share = float(value)
    except ValueError:
        share = math.nan
    return Subset("fraction", share=share) if 0 < share <= 1 else None


def _list(value: str) -> Subset | None:
    return Subset("list", path=value) if value else None


_PARSERS = {"per_class": _per_class, "fraction": _fraction, "list": _list}
_NEEDS = {
    "per_class": "N is a whole number of at least 1, such as per_class:100",
    "fraction": "F is a number above 0 and at most 1, such as fraction:0.1",
    "list": "give the text file of file names, such as list:1percent.txt",
}
