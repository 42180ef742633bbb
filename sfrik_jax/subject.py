"""What an evaluation evaluates: a backbone, wherever its weights lie.

`weights` is a run directory (its newest whole checkpoint, or its backbone.safetensors),
one of its checkpoints (`RUN/checkpoints/STEP`), or a file that `weights.load` reads.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sfrik_jax import config as configs
from sfrik_jax import finite, models, optim, train_state, weights
from sfrik_jax import mesh as mesh_lib
from sfrik_jax.checkpoint import Checkpoints
from sfrik_jax.data import views as view_recipes
from sfrik_jax.encoding import encoder
from sfrik_jax.errors import MissingInputError
from sfrik_jax.evaluators.features import Encode
from sfrik_jax.models.resnet import ResNet
from sfrik_jax.train_state import TrainState

CHECKPOINTS = "checkpoints"


class Subject(NamedTuple):
    """A backbone with its weights, and where they come from.

    Attributes:
      backbone: its arithmetic has the dtype that was asked for.
      variables: {"params", "batch_stats"}.
      preprocessing: "image_size", "resize", "mean", "std".
      about: path, step, architecture and hash of the weights, as results state them.
      run: the run directory that the weights come from, if it is one.
      config: of that run.
      state: of that run at a checkpoint, which has the projector too.
    """

    backbone: ResNet
    variables: dict[str, Any]
    preprocessing: dict[str, Any]
    about: dict[str, Any]
    run: Path | None = None
    config: ConfigDict | None = None
    state: TrainState | None = None

    def encoder(self, mesh: Mesh, variables: Any = None) -> Encode:
        """Features of uint8 pictures, with its own weights or what became of them."""
        return encoder(
            self.backbone,
            self.variables if variables is None else variables,
            mesh,
            mean=self.preprocessing["mean"],
            std=self.preprocessing["std"],
        )


def open_subject(path: str | Path, dtype: str = "float32") -> Subject:
    """Opens the weights at `path`.

    Args: dtype: of the backbone's arithmetic.
    Raises:
      MissingInputError: there is nothing, or a run that has not saved yet.
      CorruptInputError: a file, or each checkpoint of a run, is damaged, or its values
        are not all finite.
    """
    path = Path(path)
    run, step = run_of(path)
    if run is None:
        return _from_file(path, dtype)
    if step is None and not steps_of(run):
        if (run / "backbone.safetensors").is_file():
            return _from_file(run / "backbone.safetensors", dtype)._replace(run=run)
        raise MissingInputError(
            f"{run} has no checkpoint yet; train it first, or name another directory"
        )
    return _from_run(run, step, dtype)


def run_of(path: Path) -> tuple[Path | None, int | None]:
    """The run directory and the step of a checkpoint that `path` names, if it does."""
    if (path / "config.json").is_file():
        return path, None
    inside = path.parent.name == CHECKPOINTS and path.name.isdecimal()
    if inside and (path.parent.parent / "config.json").is_file():
        if not path.is_dir():
            raise MissingInputError(
                f"there is no checkpoint {path}; {path.parent.parent} has those of the "
                f"steps {', '.join(map(str, steps_of(path.parent.parent))) or '–'}"
            )
        return path.parent.parent, int(path.name)
    if path.is_dir():
        raise MissingInputError(
            f"{path} is no run directory (it has no config.json); name one, or a file"
        )
    return None, None


def steps_of(run: Path) -> list[int]:
    """The steps at which a run has checkpoints, oldest first."""
    if not (run / CHECKPOINTS).is_dir():
        return []
    with Checkpoints(run / CHECKPOINTS, read_only=True) as checkpoints:
        return checkpoints.steps()


def _from_file(path: Path, dtype: str) -> Subject:
    found = weights.open_file(path)
    about = {
        "path": str(path),
        "arch": found.arch,
        "width": found.width,
        "stem": found.stem,
        "sha256": weights.fingerprint(found.variables, found.arch),
    }
    backbone = found.backbone.clone(dtype=jnp.dtype(dtype))
    return Subject(backbone, found.variables, found.preprocessing, about)


def _from_run(run: Path, step: int | None, dtype: str) -> Subject:
    config = configs.load(run)
    mesh = mesh_lib.make_mesh(devices=jax.local_devices()[:1])
    with Checkpoints(run / CHECKPOINTS, read_only=True) as checkpoints:
        state = checkpoints.restore(_abstract(config, mesh), step)
    if state is None:
        raise MissingInputError(f"{run} has no checkpoint")
    finite.refuse_stored(train_state.variables(state), int(state.step), run)
    model, first = config.model, view_recipes.build(**_recipe(config))[0]
    variables = train_state.backbone_variables(state)
    about = {
        "path": str(run),
        "step": int(state.step),
        "arch": model.backbone,
        "width": model.width,
        "stem": model.stem,
        "sha256": weights.fingerprint(variables, model.backbone),
    }
    preprocessing = {
        "image_size": config.eval.image_size,
        "resize": config.eval.resize,
        "mean": first.mean,
        "std": first.std,
    }
    backbone = models.build(**(model.to_dict() | {"dtype": dtype})).backbone
    return Subject(backbone, variables, preprocessing, about, run, config, state)


def _recipe(config: ConfigDict) -> dict[str, Any]:
    return {"size": config.data.image_size, **config.augment}


def _abstract(config: ConfigDict, mesh: Any) -> Any:
    """The training state of a run; its shapes do not depend on the schedule."""
    model = models.build(**config.model)
    settings = dict(config.optim)
    for schedule in ("base_lr", "epochs", "warmup_epochs"):
        del settings[schedule]
    optimizer = optim.build(lambda step: 0.0, **settings)
    size = config.data.image_size
    return mesh_lib.abstract(
        lambda: train_state.create(config.seed, model, optimizer, size), mesh
    )
