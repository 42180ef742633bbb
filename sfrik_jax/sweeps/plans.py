"""Which runs a sweep has: those of its configuration file, times those of `--grid`.

Besides `get_config` a file may have these functions, each called with the argument of
`FILE.py:ARG` if there is one. Settings are given by dotted name, with plain values.

    sweep()        yields the settings of each run
    tune()         yields the settings of each candidate, see `tuning`
    validation()   the settings that all candidates have besides: the split to test on
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sfrik_jax import config_files, grids
from sfrik_jax.errors import ConfigError
from sfrik_jax.grids import Overrides

SEED = "seed"


class Plan(NamedTuple):
    """What a sweep is to run.

    Attributes:
      final: the settings of each run.
      candidates: those of each candidate of a tuning; none without one.
      validation: what the candidates have besides, as `configs.load` takes it.
    """

    final: list[Overrides]
    candidates: list[Overrides]
    validation: list[str]


def read(spec: str, grid: Sequence[str]) -> Plan:
    """The plan of a configuration file and of the texts of `--grid`.

    A grid is combined with every run of the file, and, but for seeds, with every
    candidate: each of its values is tuned for itself.

    Errors: ConfigError for a file without a sweep where there is no grid either, for
        what its functions yield, and for a setting that both set.
    """
    path, arg = config_files.split_spec(spec)
    found = config_files.functions(path, arg, ("sweep", "tune", "validation"))
    if "sweep" not in found and not grid:
        raise ConfigError(
            f"--config {spec} has no function sweep; say what the runs are with "
            "--grid KEY=VALUE,VALUE"
        )
    if ("tune" in found) != ("validation" in found):
        raise ConfigError(
            f"--config {spec}: tune and validation belong together: candidates are "
            "compared on pictures that no final figure is of"
        )
    listed = [grids.parse_grid(text) for text in grid]
    choices = grids.product(listed)
    final = combined(_points(found.get("sweep", [{}]), f"{spec}: sweep"), choices)
    tuned = grids.product([(k, v) for k, v in listed if k != SEED])
    candidates = []
    if "tune" in found:
        candidates = combined(_points(found["tune"], f"{spec}: tune"), tuned)
    [validation] = _points([found.get("validation", {})], f"{spec}: validation")
    texts = [f"{key}={text}" for key, text in validation.items()]
    return Plan(final, candidates, texts)


def combined(
    points: Sequence[Overrides], choices: Sequence[Overrides]
) -> list[Overrides]:
    """Every point with every choice. Errors: ConfigError where both set a key."""
    twice = {key for point in points for key in point} & set(choices[0])
    if twice:
        raise ConfigError(
            f"--grid {min(twice)}: the configuration's own sweep sets it too; "
            "leave the grid out, or sweep a file without a sweep of its own"
        )
    return [{**point, **choice} for point in points for choice in choices]


def _points(yielded: Any, where: str) -> list[Overrides]:
    """The settings of each run as texts."""
    if not isinstance(yielded, Iterable):
        raise ConfigError(f"--config {where} must yield the settings of each run")
    points = []
    for point in yielded:
        if not isinstance(point, Mapping) or not all(isinstance(k, str) for k in point):
            raise ConfigError(
                f"--config {where} yielded {point!r}; yield settings by dotted name, "
                'such as {"model.embed_dim": 64}'
            )
        texts = {key: _text(value) for key, value in point.items()}
        if texts in points:
            raise ConfigError(f"--config {where} yields {texts} twice")
        points.append(texts)
    if not points:
        raise ConfigError(f"--config {where} yields nothing")
    return points


def _text(value: Any) -> str:
    """A value as `configs.load` takes it; numbers of NumPy are plain ones."""
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, str) else repr(value)
