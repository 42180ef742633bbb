"""Feature extraction, and the evaluators on its features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sfrik_jax import evaluators
from sfrik_jax.errors import ConfigError, NonFiniteError
from sfrik_jax.evaluators import features


def mean_colours(images):
    return images.astype(jnp.float32).mean(axis=(1, 2))


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), np.uint8)


@pytest.mark.parametrize("batch_size", [3, 5, 10, 64])
def test_features_are_in_order_for_any_batch_size(images, batch_size):
    got = features.extract(jax.jit(mean_colours), images, batch_size=batch_size)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, images.mean(axis=(1, 2)), rtol=1e-6)


def test_a_ragged_set_compiles_once(images):
    traces = []

    @jax.jit
    def encode(batch):
        traces.append(batch.shape)
        return mean_colours(batch)

    features.extract(encode, images, batch_size=4)
    features.extract(encode, images[:3], batch_size=4)
    assert traces == [(4, 4, 4, 3)]


def test_bfloat16_features_come_back_as_float32(images):
    def encode(batch):
        return mean_colours(batch).astype(jnp.bfloat16)

    assert features.extract(encode, images).dtype == np.float32


def test_features_stream_one_batch_behind_the_pictures(images):
    given = []

    def batches():
        for start in range(0, 10, 4):
            given.append(start)
            yield images[start : start + 4]

    got = features.stream(mean_colours, batches(), batch_size=4)
    assert not given
    first = next(got)
    assert given == [0, 4]
    rest = list(got)
    assert [len(part) for part in (first, *rest)] == [4, 4, 2]
    assert first.dtype == np.float32
    np.testing.assert_array_equal(
        np.concatenate([first, *rest]), features.extract(mean_colours, images)
    )


def test_a_diverged_encoder_is_reported(images):
    def encode(batch):
        return jnp.where(batch[:, 0, 0] == images[6, 0, 0], jnp.nan, 1.0)

    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        features.extract(encode, images)


def test_an_empty_set_is_refused(images):
    with pytest.raises(ConfigError, match="N > 0"):
        features.extract(mean_colours, images[:0])
    with pytest.raises(ConfigError, match="batch_size=0"):
        features.extract(mean_colours, images, batch_size=0)


def test_evaluate_yields_names_that_carry_the_protocol():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    # Class c is bright in channel c.
    images = rng.integers(0, 100, (60, 4, 4, 3), np.uint8)
    images[np.arange(60), :, :, labels] += 120
    settings = evaluators.Settings(num_classes=3, knn_k=5, probe_epochs=10)
    got = dict(
        evaluators.evaluate_features(
            features.extract(jax.jit(mean_colours), images[:30]),
            labels[:30],
            features.extract(jax.jit(mean_colours), images[30:]),
            labels[30:],
            settings,
        )
    )
    assert got.pop("linear_learning_rate") in settings.probe_learning_rates
    assert got == {
        "knn5_top1": 100.0,
        "knn5_top5": 100.0,
        "linear_top1": 100.0,
        "linear_top5": 100.0,
        "linear_held_out_top1": 100.0,
    }
