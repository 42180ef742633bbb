"""The configuration of a run: read, overridden, checked, stored, compared.

A run is described by one ConfigDict whose tree and defaults stand in `settings.py`.
It comes from a Python file with `get_config()` or from the `config.json` of a
run; then dotted overrides are applied, then it is checked. Values derived from it
(steps, peak rate) come from `derive` alone.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict, FieldReference

from sfrik_jax import config_checks, config_files, config_keys, device_checks
from sfrik_jax.errors import ConfigError, CorruptInputError
from sfrik_jax.settings import (
    CHOICES,
    LOSS_DEFAULTS,
    NAMED_NUMBERS,
    RESUME_FREE,
    VARIANTS,
)

__all__ = [
    "CHOICES",
    "LOSS_DEFAULTS",
    "RESUME_FREE",
    "Schedule",
    "apply_overrides",
    "augment_section",
    "chosen",
    "default",
    "derive",
    "device_count",
    "diff",
    "flatten",
    "from_json",
    "load",
    "load_for",
    "loss_section",
    "to_json",
    "validate",
    "validate_here",
]

Choice = TypeVar("Choice")
Change = tuple[str, Any, Any]  # key, value here, value there


@dataclass(frozen=True)
class Schedule:
    """What the settings and the number of images make together.

    peak_lr = base_lr · batch_size / 256. The last, short batch of an epoch is dropped.
    """

    steps_per_epoch: int
    total_steps: int
    warmup_steps: float
    peak_lr: float


def default(job: str = "pretrain") -> ConfigDict:
    """All settings of a job with their defaults, locked: a new key is refused.

    Errors: ConfigError for an unknown job.
    """
    return _tree(config_keys.known({"job": job}))


def chosen(choices: Mapping[str, Choice], arg: str) -> Choice:
    """What a file with an argument (`configs/x.py:ARG`) has under it.

    Errors: ConfigError naming the choices.
    """
    if arg not in choices:
        raise ConfigError(
            f"--config FILE.py:{arg}: after the colon stands one of "
            f"{', '.join(choices)}{config_checks.nearest(arg, tuple(choices))}"
        )
    return choices[arg]


def loss_section(method: str) -> ConfigDict:
    """The section `loss` of `method` with its defaults, for config files.

    Errors: ConfigError for an unknown method.
    """
    return _tree(config_keys.known({"loss.method": method})).loss.lock()


def augment_section(recipe: str) -> ConfigDict:
    """The section `augment` of `recipe` with its defaults, for config files.

    Errors: ConfigError for an unknown recipe.
    """
    return _tree(config_keys.known({"augment.recipe": recipe})).augment.lock()


def load(spec: str | Path, overrides: Iterable[str] = ()) -> ConfigDict:
    """The configuration of `spec` with `overrides` applied; keys and types are checked.

    Args: spec: `configs/x.py`, `configs/x.py:arg` (the argument of its `get_config`),
        the `config.json` of a run, or a run's directory. A Python file is run as code.
      overrides: texts such as `data.batch_size=64`.
    Errors: ConfigError; CorruptInputError for a damaged config.json. Whether values
        make sense is the business of `validate`.
    """
    path, arg = config_files.split_spec(str(spec))
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        others = tuple(str(p) for p in path.parent.glob("*.py"))
        hint = config_checks.nearest(str(path), others)
        raise ConfigError(f"--config {path}: no such file{hint}")
    if path.suffix == ".json":
        config = from_json(config_files.read(path), where=str(path))
    elif path.suffix == ".py":
        flat = flatten(config_files.run(path, arg))
        config_files.refuse_renamed_recipe(flat, path)
        config = _typed(flat)
    else:
        raise ConfigError(f"--config {path}: give a .py file or a run's config.json")
    return apply_overrides(config, overrides)


def load_for(job: str, spec: str | Path, overrides: Iterable[str] = ()) -> ConfigDict:
    """`load` for the command of `job`; a configuration of another one is refused.

    Errors: as `load`; ConfigError for another job.
    """
    found = load(spec).job
    if found != job:
        raise ConfigError(
            f"--config {spec} is for the command {found.replace('_', '-')}, not for "
            f"{job.replace('_', '-')}"
        )
    return load(spec, overrides)


def apply_overrides(config: ConfigDict, overrides: Iterable[str]) -> ConfigDict:
    """A locked copy of `config` with texts such as `optim.epochs=5` applied.

    The last of two overrides of one key counts. Another `loss.method` or
    `augment.recipe` first replaces its section by that name's defaults; the name that
    is there changes nothing.
    Errors: ConfigError for an unknown key (with the nearest one) or a wrong type.
    """
    texts: dict[str, str] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"{key}: an override is written as key=value")
        texts[key] = text
    flat = flatten(config)
    if texts.get("job", flat["job"]) != flat["job"]:
        raise ConfigError(
            f"job={texts['job']}: the settings are those of job={flat['job']!r}; give "
            "a configuration file of that job"
        )
    selectors = [s for s, _ in VARIANTS.values() if s in flat]
    names = {selector: flat[selector] for selector in selectors}
    chosen = {k: config_keys.parsed(texts.get(k) or v, "") for k, v in names.items()}
    chosen["job"] = flat["job"]
    settings = config_keys.known(chosen)
    for section, (selector, _) in VARIANTS.items():
        if selector in names and chosen[selector] != names[selector]:
            flat = {k: v for k, v in flat.items() if not k.startswith(f"{section}.")}
    flat = settings | flat
    for key, text in texts.items():
        config_keys.refuse_unknown(key, chosen)
        flat[key] = config_keys.parsed(text, settings[key])
    return _typed(flat)


def flatten(config: ConfigDict) -> dict[str, Any]:
    """All settings by dotted name, in the order of the tree of settings."""
    return config_keys.flatten(config, ConfigDict)


def validate(
    config: ConfigDict,
    *,
    num_examples: int | None = None,
    num_devices: int | None = None,
) -> None:
    """Refuses impossible values with one line: setting, value, remedy.

    Args: num_examples: training images. num_devices: devices of all hosts. What is
        None is not known yet and not checked.
    Errors: ConfigError with the first finding.
    """
    at = config_keys.typed(flatten(config))
    findings = list(config_checks.problems(at))
    if num_examples is not None and not findings:
        findings += config_checks.data_problems(at, num_examples)
    if num_devices is not None and not findings:
        findings += device_checks.device_problems(at, num_devices)
    if findings:
        raise ConfigError(findings[0])


def validate_here(config: ConfigDict, *, devices: bool = True) -> int | None:
    """`validate` with the data and the devices of this machine, cheap checks first.

    The settings alone come first, then the size of the data set; jax is loaded last.
    Args: devices: whether to ask jax for the devices, which starts its backend.
    Returns: the number of training images, None where it is not known yet, and of a
        job of evaluation.
    Errors: ConfigError; MissingInputError when a list of file names is not there.
    """
    validate(config)
    if config.job != "pretrain":  # its parts are opened with the weights
        return None
    from sfrik_jax.data import opening

    data = config.data
    num_examples = opening.num_examples(
        source=data.source,
        name=data.name,
        path=data.path,
        split=data.train_split,
        subset=data.subset,
        seed=config.seed,
    )
    validate(config, num_examples=num_examples)
    if devices:
        validate(config, num_devices=device_count())
    return num_examples


def derive(config: ConfigDict, num_examples: int) -> Schedule:
    """Steps and peak rate for `num_examples` training images.

        steps_per_epoch = floor(num_examples / batch_size)

    Errors: ConfigError when there is not one whole batch.
    """
    validate(config, num_examples=num_examples)
    batch_size = config.data.batch_size
    steps_per_epoch = num_examples // batch_size
    return Schedule(
        steps_per_epoch=steps_per_epoch,
        total_steps=config.optim.epochs * steps_per_epoch,
        warmup_steps=config.optim.warmup_epochs * steps_per_epoch,
        peak_lr=config.optim.base_lr * batch_size / 256,
    )


def to_json(config: ConfigDict) -> str:
    """The settings as indented JSON in the order of the tree; tuples become lists."""
    tree: dict[str, Any] = {}
    for key, value in flatten(config).items():
        section, _, name = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[name] = value
    return json.dumps(tree, indent=2)


def from_json(text: str, where: str = "config.json") -> ConfigDict:
    """The configuration that `to_json` wrote; a setting that it lacks gets its default.

    Errors: CorruptInputError when `text` (from the file `where`) is not a JSON object;
        ConfigError for a key or type that does not belong.
    """
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptInputError(f"{where} is not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise CorruptInputError(f"{where} holds no settings; give a run's config.json")
    return _typed(config_keys.flatten(tree, dict))


def diff(a: ConfigDict, b: ConfigDict) -> list[Change]:
    """The settings that differ as (key, value in a, value in b); None = absent."""
    left, right = flatten(a), flatten(b)
    keys = [*left, *(key for key in right if key not in left)]
    pairs = [(key, left.get(key), right.get(key)) for key in keys]
    return [pair for pair in pairs if pair[1] != pair[2]]


def device_count() -> int:
    """The devices of all hosts. Errors: ConfigError where jax cannot start."""
    import jax

    try:
        return jax.device_count()
    except (AssertionError, RuntimeError) as error:  # how jax says: no such backend
        asked = f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')!r}"
        why = f"unset it or install jax for that ({str(error) or 'no such device'})"
        raise ConfigError(f"jax cannot start with {asked}; {why}") from error


def _typed(flat: Mapping[str, Any]) -> ConfigDict:
    return _tree(config_keys.typed(flat))


def _tree(flat: Mapping[str, Any]) -> ConfigDict:
    config = ConfigDict()
    for key, value in flat.items():
        section, _, name = key.rpartition(".")
        if section and section not in config:
            config[section] = ConfigDict()
        if (
            key in NAMED_NUMBERS
        ):  # numbers or text: a ConfigDict holds to the first type
            value = FieldReference(value, field_type=object)
        (config[section] if section else config)[name] = value
    return config.lock()
