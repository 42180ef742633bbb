"""The jobs that train: their arithmetic, what they leave, and how they go on."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_jobs
from tiny_jobs import BATCH, TRAIN

from sfrik_jax.evaluators import heads as linear_heads
from sfrik_jax.jobs import finetune, linear, supervised

JOBS = {"linear": linear, "finetune": finetune}
STEPS = 2 * (TRAIN // BATCH)  # of two epochs


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_jobs.backbone_file(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def settings(data_dir, weights):
    """Settings of a job with overrides."""
    return lambda job, *overrides: tiny_jobs.settings(
        job, data_dir, weights, *overrides
    )


def run(config, workdir, name=None):
    job = getattr(JOBS[config.job], config.job)
    return job(config, workdir, name or config.job)


def steps(bench, recipe, count):
    """The states after each of the first `count` steps, with their scalars."""
    state = recipe.first()
    found = []
    for step in range(count):
        state, scalars = recipe.step(state, bench.loader.batch(step))
        found.append(jax.device_get((state, scalars)))
        state = jax.device_put(found[-1][0])
    return found


# --- One step -----------------------------------------------------------------------


def log_softmax(scores):
    scores = scores - scores.max(axis=1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def plain_probe(bench, start, rate, decay, count):
    """SGD of one head in float64 on the features of the crops; head and losses."""
    backbone, variables = bench.subject.backbone, bench.subject.variables
    crops = jax.jit(bench.crops)
    features_of = jax.jit(lambda images: backbone.apply(variables, images))
    w, b = (np.asarray(value, np.float64) for value in start)
    velocity_w, velocity_b, losses = 0.0, 0.0, []
    for step in range(count):
        batch = bench.loader.batch(step)
        x = np.asarray(features_of(crops(batch)[0]), np.float64)
        labels = bench.parts["train"].labels[np.asarray(batch["index"])]
        log_p = log_softmax(x @ w + b)
        losses.append(-log_p[np.arange(len(x)), labels].mean())
        error = (np.exp(log_p) - np.eye(10)[labels]) / len(x)
        velocity_w = 0.9 * velocity_w + x.T @ error + decay * w
        velocity_b = 0.9 * velocity_b + error.sum(axis=0) + decay * b
        epoch = step // (TRAIN // BATCH)
        factor = rate * 0.5 * (1 + np.cos(np.pi * epoch / 2))
        w, b = w - factor * velocity_w, b - factor * velocity_b
    return w, b, losses


def test_every_head_of_the_probe_is_sgd_as_numpy_has_it(settings):
    config = settings(
        "linear", "probe.learning_rates=(0.01,0.002)", "probe.weight_decays=(0.0,0.3)"
    )
    bench = supervised.open_bench(config)
    before = jax.device_get(bench.subject.variables)
    recipe = linear.recipe(bench)
    start = jax.device_get(recipe.first().heads)
    found = steps(bench, recipe, STEPS)
    assert [each["learning_rate"] for each in recipe.settings] == [
        0.01,
        0.01,
        0.002,
        0.002,
    ]
    assert [each["weight_decay"] for each in recipe.settings] == [0.0, 0.3, 0.0, 0.3]
    last, losses = found[-1][0].heads, []
    for r, each in enumerate(recipe.settings):
        w, b, loss = plain_probe(
            bench,
            (start.kernel[:, r], start.bias[r]),
            each["learning_rate"],
            each["weight_decay"],
            STEPS,
        )
        np.testing.assert_allclose(last.kernel[:, r], w, rtol=1e-4, atol=2e-6)
        np.testing.assert_allclose(last.bias[r], b, rtol=1e-4, atol=2e-6)
        losses.append(loss)
    told = [scalars["train/loss"] for _, scalars in found]
    np.testing.assert_allclose(told, np.min(losses, axis=0), rtol=1e-5)
    # The rate is that of the head whose loss is told; half in the second epoch.
    best = np.argmin(losses, axis=0)
    rates = np.array([each["learning_rate"] for each in recipe.settings])
    factors = np.repeat([1.0, 0.5], STEPS // 2)
    told = [scalars["train/learning_rate"] for _, scalars in found]
    # All heads start alike: the rounding of a product decides the first one.
    np.testing.assert_allclose(told[1:], (factors * rates[best])[1:], rtol=1e-6)
    assert all(scalars["train/diverged_heads"] == 0 for _, scalars in found)
    chex.assert_trees_all_equal(jax.device_get(bench.subject.variables), before)


def test_heads_side_by_side_are_each_alone_also_beside_one_that_diverges(settings):
    rates = (0.01, 1e38, 0.002)
    found = {}
    for chosen in (rates, rates[:1], rates[2:]):
        listed = ",".join(map(str, chosen)) + ","
        bench = supervised.open_bench(
            settings("linear", f"probe.learning_rates=({listed})")
        )
        found[chosen] = steps(bench, linear.recipe(bench), STEPS)
    together, scalars = found[rates][-1]
    assert scalars["train/diverged_heads"] == 1
    assert np.isfinite(scalars["train/loss"])
    assert np.isfinite(scalars["train/gradient_norm"])
    assert not np.isfinite(together.heads.kernel[:, 1]).any()
    for place in (0, 2):
        alone = found[rates[place : place + 1]][-1][0].heads
        for ours, theirs in zip(together.heads, alone, strict=True):
            np.testing.assert_allclose(
                ours[..., place, :], theirs[..., 0, :], rtol=1e-4, atol=1e-6
            )


def plain_finetune(bench, count):
    """SGD without Optax: parameters and statistics after each step, and its loss."""
    settings, backbone = bench.config.finetune, bench.subject.backbone
    rates = {
        "backbone": settings.backbone_learning_rate,
        "head": settings.head_learning_rate,
    }
    head = linear_heads.init(jax.random.key(0), backbone.features, 1, 10)
    params = {"backbone": bench.subject.variables["params"], "head": tuple(head)}
    statistics = bench.subject.variables["batch_stats"]

    def loss_of(params, statistics, images, labels):
        x, changed = backbone.apply(
            {"params": params["backbone"], "batch_stats": statistics},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        kernel, bias = params["head"]
        scores = jax.nn.log_softmax(x @ kernel[:, 0] + bias)
        picked = jnp.take_along_axis(scores, labels[:, None], axis=1)
        return -picked.mean(), changed["batch_stats"]

    gradient_of = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
    crops = jax.jit(bench.crops)
    velocity = jax.tree.map(jnp.zeros_like, params)
    found = []
    for step in range(count):
        images, labels = crops(bench.loader.batch(step))
        (loss, statistics), gradient = gradient_of(params, statistics, images, labels)
        # Kernels decay; so do the biases of heads, which have an axis for the head.
        velocity = jax.tree.map(
            lambda v, g, p: 0.9 * v + g + settings.weight_decay * p * (p.ndim > 1),
            velocity,
            gradient,
            params,
        )
        factor = 0.5 * (1 + np.cos(np.pi * (step // (TRAIN // BATCH)) / 2))
        params = {
            part: jax.tree.map(
                lambda p, v, rate=factor * rate: p - rate * v,
                params[part],
                velocity[part],
            )
            for part, rate in rates.items()
        }
        found.append(jax.device_get((params, statistics, loss)))
    return found


def test_finetuning_is_sgd_with_a_rate_for_the_backbone_and_one_for_the_head(settings):
    config = settings(
        "finetune",
        "finetune.backbone_learning_rate=0.01",
        "finetune.head_learning_rate=0.3",
        "finetune.weight_decay=0.1",
    )
    bench = supervised.open_bench(config)
    found = steps(bench, finetune.recipe(bench), 4)
    want = plain_finetune(bench, 4)
    for step in (0, 3):  # the fourth is of the second epoch
        params, statistics, loss = want[step]
        state, scalars = found[step]
        np.testing.assert_allclose(scalars["train/loss"], loss, rtol=1e-4)
        got = {
            "backbone": state.params["backbone"],
            "head": tuple(state.params["head"]),
        }
        chex.assert_trees_all_close(got, params, rtol=2e-3, atol=2e-5)
        chex.assert_trees_all_close(state.batch_stats, statistics, rtol=1e-3, atol=1e-5)


def test_a_backbone_of_rate_0_keeps_its_weights_and_not_its_statistics(settings):
    bench = supervised.open_bench(
        settings("finetune", "finetune.backbone_learning_rate=0.0")
    )
    [(state, _)] = steps(bench, finetune.recipe(bench), 1)
    before = jax.device_get(bench.subject.variables)
    chex.assert_trees_all_equal(state.params["backbone"], before["params"])
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), state.batch_stats, before["batch_stats"]
    )
    assert all(jax.tree.leaves(moved))
    head = linear_heads.init(jax.random.key(0), 128, 1, 10)
    assert (state.params["head"].kernel != head.kernel).all()
