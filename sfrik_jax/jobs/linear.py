"""Linear probe on random crops: heads of several settings on one frozen backbone.

Source: the linear evaluation of arXiv 2208.00789. The backbone is in eval mode, its
features go to all heads side by side, so that settings cost next to nothing more.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sfrik_jax import mesh as mesh_lib
from sfrik_jax.evaluators import choosing
from sfrik_jax.evaluators import heads as linear_heads
from sfrik_jax.evaluators.choosing import Scored
from sfrik_jax.evaluators.heads import Heads
from sfrik_jax.jobs import bench as benches
from sfrik_jax.jobs import supervised
from sfrik_jax.jobs.bench import Bench
from sfrik_jax.jobs.supervised import Recipe


class ProbeState(NamedTuple):
    """What a step of the probe changes: R heads and their velocities."""

    step: jax.Array
    heads: Heads
    velocity: Heads


def linear(config: ConfigDict, workdir: Path, name: str) -> dict[str, Any]:
    """Trains the heads, chooses one on "val", tests it once; the record it wrote."""
    return supervised.run(config, workdir, name, recipe)


def recipe(bench: Bench) -> Recipe:
    """The probe of a configuration's `probe` section."""
    probe = bench.config.probe
    settings = [
        {"learning_rate": rate, "weight_decay": decay}
        for rate, decay in itertools.product(probe.learning_rates, probe.weight_decays)
    ]
    cache: dict[str, list] = {}
    encode = bench.encoder(bench.subject.variables)

    def evaluate(state: ProbeState, part: str, only: int | None) -> Scored:
        blocks = benches.encoded(bench, part, encode)
        if part == "val":
            # Frozen: the features of one pass serve all epochs.
            cache[part] = cache.get(part) or list(blocks)
            blocks = iter(cache[part])
        heads = state.heads
        if only is not None:
            one = slice(only, only + 1)
            heads = Heads(heads.kernel[:, one], heads.bias[one])
        return choosing.score(heads, blocks)

    def first() -> ProbeState:
        heads = linear_heads.init(
            jax.random.key(bench.config.seed),
            bench.subject.backbone.features,
            len(settings),
            bench.num_classes,
        )
        zeros = jax.tree.map(jnp.zeros_like, heads)
        return ProbeState(jnp.zeros((), jnp.int32), heads, zeros)

    return Recipe(
        name="linear",
        epochs=probe.epochs,
        val_every_epochs=probe.val_every_epochs,
        first=first,
        step=make_step(bench, settings),
        evaluate=evaluate,
        settings=settings,
        remedy=f"Lower probe.learning_rates={tuple(probe.learning_rates)} (with "
        "another --name)",
    )


def make_step(bench: Bench, settings: list[dict[str, float]]):
    """step(state, batch) -> (state, scalars) of all heads."""
    probe, backbone = bench.config.probe, bench.subject.backbone
    rates = jnp.asarray([each["learning_rate"] for each in settings], jnp.float32)
    decays = jnp.asarray([each["weight_decay"] for each in settings], jnp.float32)

    def losses(heads: Heads, features: jax.Array, labels: jax.Array):
        each = linear_heads.cross_entropy(heads, features, labels).mean(axis=0)
        return each.sum(), each

    def step(variables, state: ProbeState, batch: Mapping[str, Any]):
        images, labels = bench.crops(dict(batch))
        features = jax.lax.stop_gradient(backbone.apply(variables, images))
        gradient, each = jax.grad(losses, has_aux=True)(state.heads, features, labels)
        factor = supervised.cosine_of(
            state.step, epochs=probe.epochs, steps_per_epoch=bench.steps_per_epoch
        )
        heads, velocity = linear_heads.sgd(
            state.heads,
            state.velocity,
            gradient,
            rates=factor * rates,
            weight_decays=decays,
            momentum=probe.momentum,
        )
        # A head whose rate is too high ends alone: the job ends with the last one.
        well = jnp.isfinite(each)
        first = jnp.argmin(jnp.where(well, each, jnp.inf))
        norms = jnp.sqrt(
            jnp.square(gradient.kernel).sum((0, 2)) + jnp.square(gradient.bias).sum(1)
        )
        scalars = {
            "train/loss": each[first],
            "train/gradient_norm": norms[first],
            "train/learning_rate": factor * rates[first],
            "train/diverged_heads": (~well).sum(),
        }
        return ProbeState(state.step + 1, heads, velocity), scalars

    whole = mesh_lib.replicated(bench.mesh)
    jitted = jax.jit(step, donate_argnums=1, out_shardings=(whole, whole))
    return lambda state, batch: jitted(bench.subject.variables, state, batch)
