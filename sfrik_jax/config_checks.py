"""Which values the settings may have: choices, ranges, and rules.

Each finding is one line: the setting, its value, what to do. Nothing here needs jax.
A rule gets all settings by dotted name and returns the finding, or None.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sfrik_jax import addresses, eval_checks, kernel_presets, redaction
from sfrik_jax.config_ranges import EVAL_RANGES, RANGES, Range
from sfrik_jax.data import subset_setting
from sfrik_jax.settings import CHOICES, MULTI_CROP, PATCH_SHIFT

Settings = Mapping[str, Any]
Rule = Callable[[Settings], str | None]

# Steps, sizes and seeds are 32-bit numbers on the device.
LARGEST_INT = 2**31 - 1
# Above this side the 3x3 stem without pooling costs 16 times the standard stem.
SMALL_STEM_LARGEST = 64
# A TFDS name: data set, then optionally /config and :version.
TFDS_NAME = re.compile(r"[A-Za-z]\w*(/[\w.\-]+)?(:[\w.*]+)?")


def shown(value: Any) -> str:
    """`repr(value)` on one line, cut after 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def nearest(word: str, words: tuple[str, ...]) -> str:
    """`; did you mean …?` for the nearest of `words`, or nothing."""
    close = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def choice_problem(key: str, value: Any) -> str | None:
    """What is wrong with the name `value` of setting `key`, if anything."""
    choices = CHOICES[key]
    if value in choices:
        return None
    hint = nearest(str(value), choices)
    return f"{key}={shown(value)}; choose one of {', '.join(choices)}{hint}"


def number_problems(key: str, value: Any, ranges: Mapping[str, Range]) -> Iterator[str]:
    """What is wrong with one number, or with the numbers of a tuple."""
    entries = value if isinstance(value, tuple) else (value,)
    each = "each entry" if isinstance(value, tuple) else "it"
    numbers = [n for n in entries if not isinstance(n, str | bool)]
    if any(isinstance(n, int) and abs(n) > LARGEST_INT for n in numbers):
        yield f"{key}={shown(value)}: {each} must be at most {LARGEST_INT}"
    elif not all(math.isfinite(n) for n in numbers):
        yield f"{key}={shown(value)}: {each} must be a finite number"
    elif key in ranges:
        accepts, words = ranges[key]
        if not all(accepts(n) for n in numbers):
            yield f"{key}={shown(value)}: {each} must be {words}"


def check_secrets(at: Settings) -> str | None:
    """Settings are stored with the run and printed: none holds a password or token."""
    for key, value in at.items():
        if isinstance(value, str) and (secret := redaction.secret_in(value)):
            return (
                f"{key} holds {secret}, which would be stored with the run; name a "
                "place that needs none, such as a mounted directory"
            )
    return None


def check_source(at: Settings) -> str | None:
    """A folder needs a path, a TFDS data set a name, and both a directory."""
    name, path = at["data.name"], at["data.path"]
    problem = addresses.problem("data.path", path)
    if problem is not None:
        return problem
    if at["data.source"] == "folder" and not path:
        return (
            "data.path='' with data.source='folder'; give the folder with "
            "--config.data.path=DIR"
        )
    if at["data.source"] == "tfds" and not TFDS_NAME.fullmatch(name):
        return f"data.name={shown(name)}; give the name of a TFDS data set"
    if not at["data.train_split"]:
        return "data.train_split=''; name the split to train on, such as train"
    return None


def check_picture_size(at: Settings) -> str | None:
    """The centre crop must fit; the small stem is for small pictures."""
    crop, resize = at["eval.image_size"], at["eval.resize"]
    if resize < crop:
        return (
            f"eval.resize={resize} is less than eval.image_size={crop}; "
            f"set eval.resize to {crop} or more"
        )
    size = at["data.image_size"]
    if at["model.stem"] == "small" and size > SMALL_STEM_LARGEST:
        return (
            f"model.stem='small' with data.image_size={size}; it is for pictures up "
            f"to {SMALL_STEM_LARGEST} px: set model.stem=imagenet"
        )
    return None


def check_recipe(at: Settings) -> str | None:
    """Pairs are pairs, patches fit, and multi-crop has something to compare."""
    for key, value in at.items():
        if not key.startswith("augment.") or not isinstance(value, tuple):
            continue
        if len(value) != 2:
            return f"{key}={shown(value)}; give two numbers"
        if key.endswith("_scale") and value[0] > value[1]:
            return f"{key}={shown(value)}; give the smaller share first"
    recipe = at["augment.recipe"]
    if recipe not in MULTI_CROP:
        return None
    if at["loss.method"] != "sfrik":
        return (
            f"loss.method={at['loss.method']!r} takes two views, and augment.recipe="
            f"{recipe!r} makes more; use loss.method=sfrik"
        )
    counts = [key for key in at if re.fullmatch(r"augment\.\w+_count", key)]
    views = sum(at[key] for key in counts) + (recipe == "obow")
    if views < 2:
        return f"{', '.join(counts)} leave a single view; make at least two"
    if recipe == "obow":
        side, patch = at["augment.patch_image_size"], at["augment.patch_size"]
        if at["augment.patch_count"] and side < patch + PATCH_SHIFT:
            return (
                f"augment.patch_size={patch} does not fit augment.patch_image_size="
                f"{side} with shifts of {PATCH_SHIFT} px; use at most "
                f"{side - PATCH_SHIFT}"
            )
        if at["augment.resize"] < at["data.image_size"]:
            return (
                f"augment.resize={at['augment.resize']} is less than data.image_size="
                f"{at['data.image_size']}; raise it"
            )
    return None


def check_loss(at: Settings) -> str | None:
    """Something must be trained: a kernel that is not zero, a term that counts."""
    weights = at.get("loss.weights", (1.0,))
    if isinstance(weights, str):
        try:
            kernel_presets.parse(weights)
        except ValueError as error:
            return f"loss.weights={shown(weights)}: {error}"
    if not weights:
        return "loss.weights=(); give b_1 … b_L, such as 1,40,40"
    if not any(weights):
        return f"loss.weights={shown(weights)} are all 0; set at least one b_l above 0"
    terms = {key: at[key] for key in at if re.fullmatch(r"loss\.\w+_coeff", key)}
    if terms and not any(terms.values()):
        return f"{', '.join(terms)} are all 0; set at least one of them above 0"
    return None


def check_schedule(at: Settings) -> str | None:
    """The warm-up ends within the run."""
    epochs, warmup = at["optim.epochs"], at["optim.warmup_epochs"]
    if warmup > epochs:
        return (
            f"optim.warmup_epochs={warmup} is more than optim.epochs={epochs}; "
            f"set it to {epochs} or less"
        )
    return None


def check_probe(at: Settings) -> str | None:
    """The probe chooses among at least one learning rate."""
    if not at["eval.probe_learning_rates"]:
        return "eval.probe_learning_rates=(); give one or more, such as 0.05,0.2,"
    return None


def check_profile(at: Settings) -> str | None:
    """The profile is a window of steps, counted from 1, or 0 and 0."""
    first, last = at["profile.first_step"], at["profile.last_step"]
    if (first, last) == (0, 0) or 1 <= first <= last:
        return None
    return (
        f"profile.first_step={first} and profile.last_step={last}; set both to 0, or "
        "1 <= first_step <= last_step"
    )


def check_mesh(at: Settings) -> str | None:
    """The axis `data` takes a number of devices, or all that are left."""
    if at["mesh.data"] == -1 or at["mesh.data"] >= 1:
        return None
    return f"mesh.data={at['mesh.data']}; set -1 (all devices) or at least 1"


def check_projector(at: Settings) -> str | None:
    """The axis `model` has something to split, and the projector an axis."""
    model, projector = at["mesh.model"], at["mesh.projector"]
    if (model > 1) == (projector == "model"):
        return None
    if model > 1:
        return (
            f"mesh.model={model} with mesh.projector={projector!r}: devices along that "
            "axis would repeat each other's work; set mesh.projector=model, or "
            "mesh.model=1"
        )
    return (
        "mesh.projector='model' with mesh.model=1 splits nothing; set mesh.model to "
        "the number of parts, or mesh.projector=data"
    )


def check_fixed_order(at: Settings) -> str | None:
    """A fixed order of sums has a pass of its own."""
    plain = {"mesh.model": 1, "mesh.projector": "replicated"}
    plain |= {"step.remat": "none", "step.micro_batches": 1}
    plain |= {"step.reduce_dtype": "float32"}
    for key, value in plain.items():
        if at["step.deterministic_reduce"] and at[key] != value:
            return (
                f"{key}={shown(at[key])} does not go with step.deterministic_reduce="
                f"{at['step.deterministic_reduce']}; set {key}={value}, or "
                "step.deterministic_reduce=0"
            )
    return None


# Of every job, then those of a run and of an evaluation.
COMMON_RULES: tuple[Rule, ...] = (
    check_secrets,
    check_source,
    subset_setting.check_form,
    check_mesh,
)
RUN_RULES: tuple[Rule, ...] = (
    subset_setting.check_overlap,
    check_picture_size,
    check_recipe,
    check_loss,
    check_schedule,
    check_probe,
    check_profile,
    check_projector,
    check_fixed_order,
)


def problems(at: Settings) -> Iterator[str]:
    """All findings about the settings alone, in the order of the tree."""
    of_a_run = at["job"] == "pretrain"
    ranges = RANGES if of_a_run else EVAL_RANGES
    for key, value in at.items():
        finding = choice_problem(key, value) if key in CHOICES else None
        if finding:
            yield finding
        else:
            yield from number_problems(key, value, ranges)
    rules = RUN_RULES if of_a_run else eval_checks.RULES
    yield from filter(None, (rule(at) for rule in (*COMMON_RULES, *rules)))


def data_problems(at: Settings, num_examples: int) -> Iterator[str]:
    """Findings about the settings and the number of training images."""
    batch = at["data.batch_size"]
    images = f"data.train_split={at['data.train_split']!r}"
    if at["data.subset"]:
        images += f" with data.subset={shown(at['data.subset'])}"
    if num_examples < 2:
        yield f"{images} has {num_examples} images; choose one with at least 2"
    if batch > num_examples:
        yield (
            f"data.batch_size={batch} is more than the {num_examples} images of "
            f"{images}; use at most {num_examples}"
        )
