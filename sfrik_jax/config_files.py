"""Configuration files: Python code with a function `get_config`, run and checked."""

import runpy
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sfrik_jax.errors import ConfigError, CorruptInputError, SfrikError
from sfrik_jax.settings import DEFAULTS, RECIPE_DEFAULTS

# What the code of a config file raises when its author made a mistake.
CONFIG_FILE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


def split_spec(spec: str) -> tuple[Path, str | None]:
    """The path of `configs/x.py:ARG`, and its argument; None without one."""
    stem, colon, arg = spec.rpartition(".py:")
    return (Path(f"{stem}.py"), arg) if colon else (Path(spec), None)


def read(path: Path) -> str:
    """The text of a file; CorruptInputError when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptInputError(f"{path} cannot be read: {error}") from error


def run(path: Path, arg: str | None) -> ConfigDict:
    """What a file's `get_config` returns; ConfigError with the line of a mistake."""
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        if get_config is None:
            raise ConfigError(f"--config {path} has no function get_config")
        config = get_config() if arg is None else get_config(arg)
    except SfrikError:
        raise
    except CONFIG_FILE_ERRORS as error:
        raise ConfigError(_location(error, path)) from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"--config {path}: get_config must return a ConfigDict")
    return config


def functions(path: Path, arg: str | None, names: Iterable[str]) -> dict[str, Any]:
    """What those of the functions return that a file has, by name; lists for yields.

    Errors: ConfigError as of `run`. A file that is no Python code has none.
    """
    if path.suffix != ".py" or not path.is_file():
        return {}
    found = {}
    try:
        code = runpy.run_path(str(path))
        for name in names:
            if name in code:
                made = code[name]() if arg is None else code[name](arg)
                found[name] = list(made) if isinstance(made, Iterator) else made
    except SfrikError:
        raise
    except CONFIG_FILE_ERRORS as error:
        raise ConfigError(_location(error, path)) from error
    return found


def refuse_renamed_recipe(flat: Mapping[str, Any], path: Path) -> None:
    """A file that sets the recipe's name alone has the settings of another recipe."""
    first = DEFAULTS["augment"]["recipe"]
    recipe = flat.get("augment.recipe", first)
    left = {f"augment.{k}": v for k, v in RECIPE_DEFAULTS[first].items()}
    if recipe != first and all(flat.get(key) == value for key, value in left.items()):
        raise ConfigError(
            f"{path}: augment.recipe={recipe!r} with the settings of {first}; write "
            f"config.augment = augment_section({recipe!r}) (of sfrik_jax.config)"
        )


def _location(error: Exception, path: Path) -> str:
    """`file:line: what`, the line being the last one of the file that was run."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if f.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1:] and lines[-1]
    # ml_collections quotes its message, line ends included.
    words = " ".join(str(error).replace("\\n", " ").replace("\\'", "'").split())
    return f"{path}:{line or 1}: {type(error).__name__}: {words}"
