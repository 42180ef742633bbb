"""The linear probe: scikit-learn, fairness, choice of the rate, bad input."""

from typing import Any

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sfrik_jax.errors import ConfigError
from sfrik_jax.evaluators import linear

SHORT: dict[str, Any] = {"num_classes": 4, "epochs": 30, "batch_size": 64}


def blobs(rng, n, *, spread, dim=24, classes=4):
    """Features around one centre per class, and their labels."""
    centres = np.random.default_rng(5).standard_normal((classes, dim))
    labels = np.arange(n) % classes
    noise = rng.standard_normal((n, dim))
    return (centres[labels] + spread * noise).astype(np.float32), labels


@pytest.fixture(scope="module")
def overlapping():
    rng = np.random.default_rng(0)
    return (*blobs(rng, 1200, spread=2.5), *blobs(rng, 1200, spread=2.5))


def test_agrees_with_logistic_regression(overlapping):
    x, y, x_test, y_test = overlapping
    scaler = StandardScaler().fit(x)
    peer = LogisticRegression(max_iter=500).fit(scaler.transform(x), y)
    want = 100 * peer.score(scaler.transform(x_test), y_test)
    assert 60 < want < 95  # neither trivial nor hopeless
    assert linear.probe(*overlapping, **SHORT)["top1"] == pytest.approx(want, abs=1.5)


def test_separable_classes_are_all_found():
    rng = np.random.default_rng(0)
    sets = (*blobs(rng, 400, spread=0.1), *blobs(rng, 200, spread=0.1))
    got = linear.probe(*sets, **SHORT)
    assert got["top1"] == got["top5"] == got["held_out_top1"] == 100.0
    assert got["learning_rate"] in linear.LEARNING_RATES


def test_scale_shift_and_dead_features_change_nothing(overlapping):
    x, y, x_test, y_test = overlapping
    want = linear.probe(*overlapping, **SHORT)["top1"]
    dead = [np.full((len(x), 8), 7, np.float32)] * 2

    def other(features, constant):
        return np.concatenate([100 * features + 3, constant], axis=1)

    got = linear.probe(other(x, dead[0]), y, other(x_test, dead[1]), y_test, **SHORT)
    assert got["top1"] == pytest.approx(want, abs=1.0)


def test_a_bin_that_is_empty_in_training_does_not_explode(overlapping):
    x, y, x_test, y_test = overlapping
    rare = [np.zeros((len(x), 1), np.float32), np.ones((len(x), 1), np.float32)]
    got = linear.probe(
        np.hstack([x, rare[0]]), y, np.hstack([x_test, rare[1]]), y_test, **SHORT
    )
    assert got["top1"] == pytest.approx(
        linear.probe(*overlapping, **SHORT)["top1"], abs=1.5
    )


def test_the_rate_is_chosen_without_the_test_split(overlapping):
    x, y, x_test, y_test = overlapping
    want = linear.probe(*overlapping, **SHORT)
    wrong = linear.probe(x, y, x_test, (y_test + 1) % 4, **SHORT)
    for name in ("learning_rate", "held_out_top1"):
        assert wrong[name] == want[name]


def test_heads_side_by_side_are_heads_alone(overlapping):
    x, y = jax.numpy.asarray(overlapping[0]), jax.numpy.asarray(overlapping[1])
    key, rates = jax.random.key(0), np.array([0.3, 10.0], np.float32)
    settings = {"num_classes": 4, "epochs": 3, "batch_size": 100}
    x = x / 10
    both = linear._fit(x, y, rates, key, 1e-6, **settings)
    for r in range(2):
        alone = linear._fit(x, y, rates[r : r + 1], key, 1e-6, **settings)
        np.testing.assert_allclose(
            both.kernel[:, r], alone.kernel[:, 0], rtol=1e-4, atol=1e-5
        )


def test_the_same_seed_gives_the_same_answer(overlapping):
    first = linear.probe(*overlapping, **SHORT, seed=3)
    assert linear.probe(*overlapping, **SHORT, seed=3) == first


def test_a_tenth_of_each_class_is_held_out():
    labels = np.repeat(np.arange(5), 40)
    fitted, held_out = linear.split(labels, seed=1)
    assert np.array_equal(np.bincount(labels[held_out]), [4] * 5)
    assert np.array_equal(np.sort(np.concatenate([fitted, held_out])), np.arange(200))
    assert not np.array_equal(held_out, linear.split(labels, seed=2)[1])


def test_two_examples_are_enough():
    x = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    got = linear.probe(x, np.array([0, 1]), x, np.array([0, 1]), num_classes=2)
    assert got["top1"] == 100.0


def test_constant_features_give_chance():
    x, y = np.ones((40, 3), np.float32), np.arange(40) % 4
    assert linear.probe(x, y, x, y, **SHORT)["top1"] == 25.0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"epochs": 0}, "probe epochs=0"),
        ({"batch_size": 0}, "probe batch_size=0"),
        ({"learning_rates": ()}, "learning_rates"),
        ({"learning_rates": (0.1, -1.0)}, "learning_rates"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"num_classes": 3}, "num_classes=3"),
    ],
)
def test_bad_settings_are_named(overlapping, settings, says):
    with pytest.raises(ConfigError, match=says):
        linear.probe(*overlapping, **{**SHORT, **settings})


def test_bad_features_are_named(overlapping):
    x, y, x_test, y_test = overlapping
    with pytest.raises(ConfigError, match="dimension 24, test_features 23"):
        linear.probe(x, y, x_test[:, :23], y_test, **SHORT)
    broken = x.copy()
    broken[17, 2] = np.inf
    with pytest.raises(ConfigError, match="the first is row 17"):
        linear.probe(broken, y, x_test, y_test, **SHORT)
    with pytest.raises(ConfigError, match="needs two"):
        linear.probe(x[:1], y[:1], x_test, y_test, **SHORT)
