"""Heads side by side: closed forms, independence, padded rows, PyTorch's SGD."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sfrik_jax.errors import NonFiniteError
from sfrik_jax.evaluators import heads
from sfrik_jax.evaluators.heads import Heads

B, D, C = 32, 6, 7
RATES = np.array([0.1, 0.3, 1, 3, 0.1, 0.3, 1, 3], np.float32)
DECAYS = np.array([0, 0, 0, 0, 0.1, 0.1, 0.01, 0.01], np.float32)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return rng.standard_normal((B, D)).astype(np.float32), np.arange(B) % C


@pytest.fixture
def some_heads():
    rng = np.random.default_rng(1)
    kernel = rng.standard_normal((D, 3, C)).astype(np.float32)
    bias = rng.standard_normal((3, C)).astype(np.float32)
    return Heads(jnp.asarray(kernel), jnp.asarray(bias))


@jax.jit
def train(x, labels, rates, decays):
    """Ten steps from the common start."""
    start = heads.init(jax.random.key(0), D, len(rates), C)

    def step(carry, _):
        fitted, velocity = carry
        gradient = jax.grad(heads.loss)(fitted, x, labels)
        carry = heads.sgd(fitted, velocity, gradient, rates=rates, weight_decays=decays)
        return carry, None

    carry = (start, jax.tree.map(jnp.zeros_like, start))
    return jax.lax.scan(step, carry, length=10)[0][0]


def test_eight_heads_together_are_each_alone(batch):
    together = train(*batch, RATES, DECAYS)
    for r in range(8):
        alone = train(*batch, RATES[r : r + 1], DECAYS[r : r + 1])
        np.testing.assert_allclose(together.kernel[:, r], alone.kernel[:, 0], atol=1e-5)
        np.testing.assert_allclose(together.bias[r], alone.bias[0], atol=1e-5)
    spread = np.ptp(np.asarray(together.kernel), axis=1).max()
    assert spread > 0.1  # the settings do differ


def test_a_head_that_diverges_harms_no_other(batch):
    x, labels = 1e4 * batch[0], batch[1]
    wild = train(x, labels, np.array([1e-9, 1e36], np.float32), np.zeros(2, np.float32))
    tame = train(x, labels, np.array([1e-9], np.float32), np.zeros(1, np.float32))
    assert not np.isfinite(wild.kernel[:, 1]).all()
    np.testing.assert_allclose(wild.kernel[:, 0], tame.kernel[:, 0], atol=1e-5)


def test_heads_start_alike_with_deviation_one_hundredth():
    start = heads.init(jax.random.key(3), 500, 4, 10)
    assert start.kernel.shape == (500, 4, 10) and start.bias.shape == (4, 10)
    assert np.array_equal(start.kernel[:, 0], start.kernel[:, 3])
    assert np.std(start.kernel) == pytest.approx(0.01, rel=0.05)
    assert not start.bias.any()


def test_loss_and_ranking_are_their_definition(batch, some_heads):
    x, labels = batch[0].astype(np.float64), batch[1]
    total = 0.0
    for r in range(3):
        z = x @ np.asarray(some_heads.kernel[:, r]) + np.asarray(some_heads.bias[r])
        right = z[np.arange(B), labels]
        total += np.mean(np.log(np.exp(z).sum(axis=1)) - right)
        want = np.argsort(-z, axis=1, kind="stable")[:, :5]
        assert np.array_equal(heads.rank(some_heads, batch[0])[:, r], want)
    assert heads.loss(some_heads, *batch) == pytest.approx(total, rel=1e-5)


def test_equal_logits_go_to_the_lower_class():
    level = Heads(jnp.zeros((D, 1, C)), jnp.zeros((1, C)))
    assert heads.rank(level, jnp.ones((1, D))).tolist() == [[[0, 1, 2, 3, 4]]]


def test_rows_of_no_weight_change_nothing(batch, some_heads):
    x, labels = batch
    weights = (np.arange(B) < 20).astype(np.float32)
    value_and_grad = jax.jit(jax.value_and_grad(heads.loss))
    want = value_and_grad(some_heads, x[:20], labels[:20])
    got = value_and_grad(some_heads, x, labels, weights)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, got, want)


def test_steps_are_those_of_pytorch():
    """w = 1, gradient 1, decay 0.5, momentum 0.9, rate 0.1: two steps by hand."""
    one = Heads(jnp.ones((1, 1, 1)), jnp.ones((1, 1)))
    step = partial(
        heads.sgd,
        gradient=one,
        rates=jnp.array([0.1]),
        weight_decays=jnp.array([0.5]),
        momentum=0.9,
    )
    fitted, velocity = step(one, jax.tree.map(jnp.zeros_like, one))
    # v = 1 + 0.5 · 1; w = 1 - 0.1 · 1.5
    assert [float(leaf.ravel()[0]) for leaf in velocity] == pytest.approx([1.5, 1.5])
    assert [float(leaf.ravel()[0]) for leaf in fitted] == pytest.approx([0.85, 0.85])
    fitted, velocity = step(fitted, velocity)
    # v = 0.9 · 1.5 + 1 + 0.5 · 0.85; w = 0.85 - 0.1 · 2.775
    assert [float(leaf.ravel()[0]) for leaf in velocity] == pytest.approx([2.775] * 2)
    assert [float(leaf.ravel()[0]) for leaf in fitted] == pytest.approx([0.5725] * 2)


def test_the_rate_falls_as_a_cosine_over_the_epochs():
    got = [float(heads.cosine(epoch, 4)) for epoch in range(4)]
    half = np.sqrt(0.5)
    np.testing.assert_allclose(got, [1, (1 + half) / 2, 0.5, (1 - half) / 2], rtol=1e-6)


def test_of_heads_that_are_equally_good_the_lowest_loss_is_the_best():
    # The best of 100 images is 60 %, its standard error 4.9 points.
    top1, losses = [60.0, 56.0, 54.0, 57.0], [0.9, 0.5, 0.1, 0.6]
    assert heads.best(top1, losses, 100) == 1
    # Of 10,000 images it is 0.49 points.
    assert heads.best(top1, losses, 10_000) == 0


def test_a_head_that_diverged_is_passed_over():
    losses = [np.nan, 0.7, -np.inf, 0.5, np.inf]
    assert heads.best([90.0, 50.0, 90.0, 50.0, 90.0], losses, 100) == 3
    with pytest.raises(NonFiniteError, match="all 2 linear heads diverged"):
        heads.best([10.0, 10.0], [np.nan, np.inf], 100)
