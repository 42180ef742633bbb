"""Semi-supervised evaluation: backbone and head trained on few labels.

Source: the 1 % and 10 % protocols of arXiv 2208.00789. Two learning rates, batch norm
in train mode, SGD with momentum, cosine per epoch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from sfrik_jax import mesh as mesh_lib
from sfrik_jax.evaluators import choosing
from sfrik_jax.evaluators import heads as linear_heads
from sfrik_jax.evaluators.choosing import Scored
from sfrik_jax.jobs import bench as benches
from sfrik_jax.jobs import supervised
from sfrik_jax.jobs.bench import Bench
from sfrik_jax.jobs.supervised import Recipe


class TunedState(NamedTuple):
    """What a step changes: params are {"backbone": …, "head": Heads of one}."""

    step: jax.Array
    params: dict[str, Any]
    batch_stats: Any
    opt_state: optax.OptState


def finetune(config: ConfigDict, workdir: Path, name: str) -> dict[str, Any]:
    """Trains backbone and head, tests once, and returns the record that it wrote."""
    return supervised.run(config, workdir, name, recipe)


def recipe(bench: Bench) -> Recipe:
    """The training of a configuration's `finetune` section."""
    settings = bench.config.finetune
    optimizer = make_optimizer(bench)

    def first() -> TunedState:
        head = linear_heads.init(
            jax.random.key(bench.config.seed),
            bench.subject.backbone.features,
            1,
            bench.num_classes,
        )
        # A copy: the step gives its state's memory away.
        loaded = jax.tree.map(jnp.copy, bench.subject.variables)
        params = {"backbone": loaded["params"], "head": head}
        return TunedState(
            jnp.zeros((), jnp.int32),
            params,
            loaded["batch_stats"],
            optimizer.init(params),
        )

    def evaluate(state: TunedState, part: str, only: int | None) -> Scored:
        variables = {
            "params": state.params["backbone"],
            "batch_stats": state.batch_stats,
        }
        blocks = benches.encoded(bench, part, bench.encoder(variables))
        return choosing.score(state.params["head"], blocks)

    rates = {
        "backbone_learning_rate": settings.backbone_learning_rate,
        "head_learning_rate": settings.head_learning_rate,
    }
    return Recipe(
        name="finetune",
        epochs=settings.epochs,
        val_every_epochs=settings.val_every_epochs,
        first=first,
        step=make_step(bench, optimizer),
        evaluate=evaluate,
        settings=[rates],
        remedy="Lower finetune.head_learning_rate="
        f"{settings.head_learning_rate} (with another --name)",
    )


def make_optimizer(bench: Bench) -> optax.GradientTransformation:
    """SGD with a learning rate for the backbone and one for the head."""
    settings = bench.config.finetune

    def part(rate: float) -> optax.GradientTransformation:
        def rate_at(step: Any) -> jax.Array:
            return rate * supervised.cosine_of(
                step, epochs=settings.epochs, steps_per_epoch=bench.steps_per_epoch
            )

        # All tensors decay, as PyTorch's SGD has it.
        return optax.chain(
            optax.add_decayed_weights(settings.weight_decay),
            optax.sgd(rate_at, momentum=settings.momentum),
        )

    parts: dict[Any, optax.GradientTransformation] = {
        "backbone": part(settings.backbone_learning_rate),
        "head": part(settings.head_learning_rate),
    }
    return optax.multi_transform(parts, {name: name for name in parts})


def make_step(bench: Bench, optimizer: optax.GradientTransformation):
    """step(state, batch) -> (state, scalars)."""
    backbone, settings = bench.subject.backbone, bench.config.finetune

    def loss_of(params, batch_stats, images, labels):
        features, changed = backbone.apply(
            {"params": params["backbone"], "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        loss = linear_heads.loss(params["head"], features, labels)
        return loss, changed["batch_stats"]

    def step(state: TunedState, batch: Mapping[str, Any]):
        images, labels = bench.crops(dict(batch))
        (loss, batch_stats), gradient = jax.value_and_grad(loss_of, has_aux=True)(
            state.params, state.batch_stats, images, labels
        )
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        scalars = {
            "train/loss": loss,
            "train/gradient_norm": optax.tree.norm(gradient),
            "train/learning_rate": settings.head_learning_rate
            * supervised.cosine_of(
                state.step,
                epochs=settings.epochs,
                steps_per_epoch=bench.steps_per_epoch,
            ),
        }
        return TunedState(state.step + 1, params, batch_stats, opt_state), scalars

    whole = mesh_lib.replicated(bench.mesh)
    return jax.jit(step, donate_argnums=0, out_shardings=(whole, whole))
