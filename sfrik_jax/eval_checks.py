"""Rules for the settings of evaluation jobs; `config_checks.py` says what a rule is.

The tuning protocol is kept here: settings are chosen on a validation split, and the
split of the final figure is used once, for what was chosen.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from sfrik_jax.data import subset_setting

Settings = Mapping[str, Any]

# Lists of settings of which a job chooses the best one, or the best combination.
CANDIDATES: dict[str, tuple[str, ...]] = {
    "linear": ("probe.learning_rates", "probe.weight_decays"),
    "logreg/sgd": ("logreg.learning_rates", "logreg.weight_decays"),
    "logreg/lbfgs": ("logreg.l2",),
}
LISTS = (
    "probe.learning_rates",
    "probe.weight_decays",
    "logreg.learning_rates",
    "logreg.weight_decays",
    "logreg.l2",
    "knn.k",
    "svm.costs",
)
# The jobs that need pictures to test on: the others make no figure of accuracy.
TESTED = ("linear", "finetune", "knn", "logreg", "voc_svm")


def check_weights(at: Settings) -> str | None:
    """There is something to evaluate."""
    if at["weights"]:
        return None
    return (
        "weights=''; give a run directory, a checkpoint, a .safetensors or a .pth file "
        "with --weights PATH"
    )


def check_lists(at: Settings) -> str | None:
    """Lists of candidates have at least one."""
    for key in LISTS:
        if key in at and not at[key]:
            return f"{key}=(); give one or more numbers, such as 1,"
    return None


def candidates(at: Settings) -> int:
    """How many settings the job compares."""
    keys = CANDIDATES.get(at["job"]) or CANDIDATES.get(
        f"{at['job']}/{at.get('logreg.solver')}", ()
    )
    return math.prod(len(at[key]) for key in keys)


def check_tuning(at: Settings) -> str | None:
    """What is chosen is chosen on a validation split, never on the final one."""
    if at["job"] in TESTED and not (at["data.test_split"] or at["data.val_split"]):
        return "data.test_split='' and data.val_split=''; name one of them"
    count = candidates(at)
    if count > 1 and not at["data.val_split"]:
        return (
            f"{count} settings to choose from and data.val_split=''; the final split "
            "is no place to choose on: name a validation split, such as "
            "--config.data.val_split=train --config.data.val_subset=in20_val"
        )
    return None


def check_parts(at: Settings) -> str | None:
    """The three sets have no picture in common, as far as the settings tell."""
    parts = {
        name: (at[f"data.{name}_split"], at[f"data.{name}_subset"])
        for name in ("train", "val", "test")
        if at[f"data.{name}_split"]
    }
    for first, second in (("val", "test"), ("train", "test"), ("train", "val")):
        if {first, second} <= parts.keys() and subset_setting.may_share(
            parts[first], parts[second]
        ):
            split, subset = parts[first]
            return (
                f"data.{first}_split={split!r} and data.{first}_subset={subset!r} have "
                f"pictures of data.{second}_split; "
                + (
                    "settings are not chosen on the final split"
                    if first == "val"
                    else "choose parts that have no picture in common"
                )
            )
    return None


def check_picture_size(at: Settings) -> str | None:
    """The centre crop must fit."""
    crop, resize = at["data.image_size"], at["data.resize"]
    if crop and resize and resize < crop:
        return (
            f"data.resize={resize} is less than data.image_size={crop}; set "
            f"data.resize to {crop} or more"
        )
    return None


RULES: tuple[Callable[[Settings], str | None], ...] = (
    check_weights,
    check_lists,
    check_tuning,
    check_parts,
    check_picture_size,
)
