"""The jobs that train: their arithmetic, what they leave, and how they go on."""

import json
import os
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_jobs
from PIL import Image
from tiny_jobs import BATCH, TRAIN

from sfrik_jax import loop, metrics
from sfrik_jax.errors import ConfigError, MismatchError, NonFiniteError, Preempted
from sfrik_jax.evaluators import heads as linear_heads
from sfrik_jax.jobs import finetune, linear, results, supervised
from sfrik_jax.jobs.bench import Bench, open_bench

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
        "linear", "probe.learning_rates=(1e-3,2e-4)", "probe.weight_decays=(0.0,0.3)"
    )
    bench = open_bench(config)
    before = jax.device_get(bench.subject.variables)
    recipe = linear.recipe(bench)
    start = jax.device_get(recipe.first().heads)
    found = steps(bench, recipe, STEPS)
    assert [each["learning_rate"] for each in recipe.settings] == [
        1e-3,
        1e-3,
        2e-4,
        2e-4,
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
    assert told[-1] < told[0]
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
    rates = (0.001, 1e38, 0.0002)
    found = {}
    for chosen in (rates, rates[:1], rates[2:]):
        listed = ",".join(map(str, chosen)) + ","
        bench = open_bench(settings("linear", f"probe.learning_rates=({listed})"))
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
        "finetune.backbone_learning_rate=0.0001",
        "finetune.head_learning_rate=0.003",
        "finetune.weight_decay=0.1",
    )
    bench = open_bench(config)
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
    bench = open_bench(settings("finetune", "finetune.backbone_learning_rate=0.0"))
    [(state, _)] = steps(bench, finetune.recipe(bench), 1)
    before = jax.device_get(bench.subject.variables)
    chex.assert_trees_all_equal(state.params["backbone"], before["params"])
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), state.batch_stats, before["batch_stats"]
    )
    assert all(jax.tree.leaves(moved))
    head = linear_heads.init(jax.random.key(0), 128, 1, 10)
    assert (state.params["head"].kernel != head.kernel).all()


# --- Whole jobs ---------------------------------------------------------------------


def run(config, workdir, name="job"):
    return getattr(JOBS[config.job], config.job)(config, workdir, name)


MODEST = {
    "linear": ("probe.learning_rates=(0.001,0.0001)", "probe.weight_decays=(0.0,0.1)"),
    "finetune": (
        "finetune.backbone_learning_rate=0.0001",
        "finetune.head_learning_rate=0.001",
    ),
}


@pytest.fixture
def watched(monkeypatch):
    """The parts that are encoded, the batches taken, and the last state of each job."""
    found = {"parts": [], "batches": 0, "states": []}
    pictures, next_batch = Bench.pictures, loop.next_batch
    finish = supervised._finish

    def watch_pictures(self, part, batch_size):
        found["parts"].append(part)
        return pictures(self, part, batch_size)

    def watch_batch(batches, stop):
        found["batches"] += 1
        if found["batches"] == found.get("stop_at"):
            os.kill(os.getpid(), signal.SIGTERM)
        return next_batch(batches, stop)

    def watch_finish(bench, recipe, state, val, best):
        found["states"].append(jax.device_get(state))
        return finish(bench, recipe, state, val, best)

    monkeypatch.setattr(Bench, "pictures", watch_pictures)
    monkeypatch.setattr(loop, "next_batch", watch_batch)
    monkeypatch.setattr(supervised, "_finish", watch_finish)
    return found


@pytest.mark.parametrize("job", JOBS)
def test_a_job_is_the_same_stopped_or_not_and_is_done_once(
    settings, tmp_path, watched, job
):
    config = settings(job, *MODEST[job])
    whole = run(config, tmp_path / "whole")
    assert watched["batches"] == STEPS
    # Frozen features of "val" are made once. The final split is looked at once.
    looks = {"linear": ["val"], "finetune": ["val"] * 2}
    assert watched["parts"] == [*looks[job], "test"]

    watched |= {"batches": 0, "stop_at": 3}
    with pytest.raises(Preempted, match="preempted at step 3, saved"):
        run(config, tmp_path / "cut")
    assert not results.path_of(tmp_path / "cut", "job").exists()
    assert watched["batches"] == 3
    again = run(config, tmp_path / "cut")
    assert watched["batches"] == STEPS
    chex.assert_trees_all_equal(*watched["states"])
    figures = [dict(each["figures"]) for each in (whole, again)]
    assert all(each.pop("train_seconds") > 0 for each in figures)
    assert figures[0] == figures[1]
    rows = metrics.read_rows(results.directory(tmp_path / "cut", "job"))
    assert [r["step"] for r in rows if "train/loss" in r] == list(range(1, STEPS + 1))
    assert [r["step"] for r in rows if "val/top1" in r] == [STEPS // 2, STEPS]

    watched["parts"].clear()
    written = results.path_of(tmp_path / "cut", "job").read_bytes()
    assert run(config, tmp_path / "cut") == again
    assert watched["batches"] == STEPS and not watched["parts"]
    assert results.path_of(tmp_path / "cut", "job").read_bytes() == written


def test_other_weights_settings_or_data_do_not_go_on_with_a_job(
    settings, data_dir, tmp_path, watched
):
    short = (*MODEST["linear"], "probe.epochs=1")
    own = tiny_jobs.backbone_file(tmp_path)
    run(tiny_jobs.settings("linear", data_dir, own, *short), tmp_path)
    before = results.read(tmp_path, "job")
    tiny_jobs.backbone_file(tmp_path, seed=1).replace(own)
    with pytest.raises(MismatchError, match="started with other weights") as caught:
        run(tiny_jobs.settings("linear", data_dir, own, *short), tmp_path)
    assert caught.value.code == 78
    tiny_jobs.backbone_file(tmp_path).replace(own)
    for changed, said in (
        ("probe.momentum=0.8", "probe.momentum: 0.9 -> 0.8"),
        ("data.test_split=test[:49]", "data.test_split"),
    ):
        with pytest.raises(MismatchError, match=said):
            run(tiny_jobs.settings("linear", data_dir, own, *short, changed), tmp_path)
    # What touches no figure may change.
    free = tiny_jobs.settings("linear", data_dir, own, *short, "log.every_steps=2")
    assert run(free, tmp_path) == before
    assert watched["batches"] == STEPS // 2


def test_other_pictures_under_the_same_settings_are_refused(
    weights, tmp_path, monkeypatch
):
    pictures = tmp_path / "pictures"
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 8)):
        for i in range(count):
            place = pictures / split / f"class{i % 2}" / f"{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place)
    config = tiny_jobs.settings(
        "linear",
        pictures,
        weights,
        "data.source=folder",
        "data.train_split=train",
        "data.val_split=val",
        "data.test_split=",
        "data.batch_size=4",
        "probe.epochs=1",
    )
    first = run(config, tmp_path)
    assert first["figures"]["linear/val_images"] == 8
    extra = pictures / "train" / "class0" / "other.png"
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(extra)
    with pytest.raises(MismatchError, match="started with other data"):
        run(config, tmp_path)


def test_a_record_says_what_its_figures_are_of(settings, tmp_path):
    config = settings("linear", *MODEST["linear"])
    record = run(config, tmp_path)
    assert json.loads((tmp_path / "eval" / "job.json").read_text()) == record
    protocol = record["protocol"]
    sizes = {key: protocol[f"data.{key}"] for key in ("image_size", "resize")}
    assert sizes == {"image_size": tiny_jobs.SIZE, "resize": 20}
    assert protocol["data.mean"] == [0.4] * 3 and protocol["data.std"] == [0.3] * 3
    assert protocol["data.method"] == "bilinear"
    assert protocol["probe.learning_rates"] == [0.001, 0.0001]
    assert not {"weights", "data.path", "log.every_steps"} & protocol.keys()
    bench = open_bench(config)
    assert record["weights"]["sha256"] == bench.subject.about["sha256"]
    for part, images in (("train", TRAIN), ("val", 40), ("test", tiny_jobs.TEST)):
        fingerprint = bench.parts[part].fingerprint
        assert record["data"][part]["images"] == images
        assert record["data"][part]["fingerprint"] == fingerprint
    # Four heads were compared on "val"; one of them was looked at on "test".
    compared = record["compared"]
    best = linear_heads.best(
        [each["val_top1"] for each in compared],
        [each["val_loss"] for each in compared],
        40,
    )
    assert record["chosen"] == compared[best]
    assert [(each["learning_rate"], each["weight_decay"]) for each in compared] == [
        (0.001, 0.0),
        (0.001, 0.1),
        (0.0001, 0.0),
        (0.0001, 0.1),
    ]
    figures = record["figures"]
    assert figures["linear/val_top1"] == compared[best]["val_top1"]
    assert figures["linear/val_top1_best_epoch"] >= figures["linear/val_top1"]
    confusion = np.array(record["confusion"])
    labels, names = bench.parts["test"].labels, bench.parts["test"].class_names
    assert labels is not None and names is not None
    np.testing.assert_array_equal(confusion.sum(axis=1), np.bincount(labels))
    assert figures["linear/top1"] == 100 * np.trace(confusion) / tiny_jobs.TEST
    assert list(record["per_class"]) == names
    share = 100 * np.diag(confusion) / confusion.sum(axis=1)
    np.testing.assert_allclose(list(record["per_class"].values()), share, atol=0.005)
    assert all(
        each["images"]
        == confusion[names.index(each["true"])][names.index(each["predicted"])]
        for each in record["most_confused"]
    )


def test_the_figure_on_test_is_that_of_the_chosen_head(settings, tmp_path, watched):
    config = settings("linear", *MODEST["linear"])
    record = run(config, tmp_path)
    bench, [state] = open_bench(config), watched["states"]
    chosen = record["compared"].index(record["chosen"])
    encode = bench.encoder(bench.subject.variables)
    [images], [labels] = zip(*bench.pictures("test", 64), strict=True)
    features = np.asarray(encode(images), np.float64)
    scores = features @ state.heads.kernel[:, chosen] + state.heads.bias[chosen]
    hits = (scores.argmax(axis=1) == labels).sum()
    assert record["figures"]["linear/top1"] == 100 * hits / tiny_jobs.TEST


def test_one_head_needs_no_validation_and_tuning_no_test(settings, tmp_path, watched):
    one = settings("linear", "data.val_split=", "probe.learning_rates=(0.001,)")
    record = run(one, tmp_path, "one")
    assert watched["parts"] == ["test"]
    assert not {"compared", "chosen"} & record.keys()
    assert not [key for key in record["figures"] if "val" in key]
    rows = metrics.read_rows(results.directory(tmp_path, "one"))
    assert not [key for row in rows for key in row if key.startswith("val/")]

    watched["parts"].clear()
    tuning = settings("linear", *MODEST["linear"], "data.test_split=")
    record = run(tuning, tmp_path, "tuning")
    assert watched["parts"] == ["val"]
    figures = record["figures"].keys() - {"train_seconds"}
    assert figures and all(key.startswith("linear/val_") for key in figures)
    assert not {"per_class", "confusion"} & record.keys()


def test_a_job_ends_with_its_last_head_and_not_before(settings, tmp_path):
    one = settings("linear", "probe.learning_rates=(0.001,1e38)")
    record = run(one, tmp_path, "one")
    assert record["chosen"]["learning_rate"] == 0.001
    assert record["compared"][1]["val_loss"] is None
    rows = metrics.read_rows(results.directory(tmp_path, "one"))
    diverged = [r["train/diverged_heads"] for r in rows if "train/diverged_heads" in r]
    assert diverged[0] == 0 and diverged[-1] == 1
    both = settings("linear", "probe.learning_rates=(1e38,3e38)")
    with pytest.raises(NonFiniteError, match=r"Lower probe\.learning_rates") as caught:
        run(both, tmp_path, "both")
    assert caught.value.code == 70
    assert not results.path_of(tmp_path, "both").exists()


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (
            {"val": "test[:60%]", "test": "test[50%:]"},
            r"data\.val_split and data\.test_split have 100 pictures in common",
        ),
        (
            {"train": "train[:60%]", "val": "", "test": "train[50%:]"},
            r"data\.train_split and data\.test_split have 500 pictures in common",
        ),
        (
            {"train": "train[:60%]", "val": "train[59%:]"},
            r"data\.train_split and data\.val_split have 50 pictures in common",
        ),
    ],
)
def test_parts_with_pictures_in_common_are_refused(settings, tmp_path, parts, said):
    slices = [f"data.{part}_split={split}" for part, split in parts.items()]
    config = settings("linear", "probe.learning_rates=(0.001,)", *slices)
    with pytest.raises(ConfigError, match=said):
        run(config, tmp_path)
    assert list(tmp_path.rglob("*.json")) == []
