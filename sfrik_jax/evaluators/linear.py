"""Linear probe: a softmax classifier on frozen features, fair to every encoder.

A random network, a colour histogram and a trained network give features of other
scales. So features are standardised, several learning rates are tried side by side on
a held-out tenth of the train split, and the test split is used once.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sfrik_jax.errors import ConfigError
from sfrik_jax.evaluators import checks, heads
from sfrik_jax.evaluators.checks import Array
from sfrik_jax.evaluators.heads import Heads

# Features have unit norm on average, so that one grid serves any dimension: on
# Fashion-MNIST (5,000 images) the best rate of pixels is 3, of random and trained
# convolutions (d = 128 … 2048) 3 to 30.
LEARNING_RATES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
# A feature that almost never fires must not be blown up to the size of the others.
STD_FLOOR = 0.05  # of the root mean square deviation of all features
HELD_OUT = 10  # one example in ten chooses the learning rate


def probe(
    train_features: Array,
    train_labels: Array,
    test_features: Array,
    test_labels: Array,
    *,
    num_classes: int,
    epochs: int = 100,
    batch_size: int = 256,
    learning_rates: tuple[float, ...] = LEARNING_RATES,
    weight_decay: float = 1e-6,
    seed: int = 0,
) -> dict[str, float]:
    """Accuracy of a linear classifier on standardised features.

        minimise mean cross-entropy(x W + b) + weight_decay / 2 (|W|^2 + |b|^2)
        x = (feature - mean) / (std sqrt(d)),  mean and std of the fitted examples

    std is at least STD_FLOOR of that of a typical feature; d counts features that vary.
    SGD with momentum 0.9, cosine per epoch, W from a normal law of deviation 0.01,
    b = 0. The learning rate that a held-out tenth of the train split chooses, as
    `heads.best` says, is fitted again on the whole train split.

    Args:
      train_features, test_features: [N, d] and [M, d]; N >= 2.
      train_labels, test_labels: integers [N] and [M] in 0 … num_classes - 1.
      batch_size: at most N are used; a last partial batch of an epoch is dropped.
      seed: of the split, the initial weights and the order of the examples.
    Returns: {"top1", "top5", "held_out_top1"} in percent, and {"learning_rate"}.
    Raises: ConfigError for impossible settings, shapes, labels, non-finite features;
      NonFiniteError when every rate diverges.
    """
    _check_settings(epochs, batch_size, learning_rates, weight_decay)
    train_labels, test_labels = checks.labelled_sets(
        train_features,
        train_labels,
        test_features,
        test_labels,
        num_classes=num_classes,
    )
    settings = dict(
        num_classes=num_classes,
        epochs=epochs,
        batch_size=batch_size,
        weight_decay=weight_decay,
        seed=seed,
    )
    fit_rows, held_out = split(train_labels, seed=seed)
    answers = _fit_and_score(
        (train_features[fit_rows], train_labels[fit_rows]),
        (train_features[held_out], train_labels[held_out]),
        learning_rates=learning_rates,
        **settings,
    )
    best = heads.best(
        [answer["top1"] for answer in answers],
        [answer["loss"] for answer in answers],
        len(held_out),
    )
    [final] = _fit_and_score(
        (train_features, train_labels),
        (test_features, test_labels),
        learning_rates=learning_rates[best : best + 1],
        **settings,
    )
    return {
        "top1": final["top1"],
        "top5": final["top5"],
        "held_out_top1": answers[best]["top1"],
        "learning_rate": float(learning_rates[best]),
    }


def split(labels: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers (nine tenths to fit, one tenth held out), every class in proportion.

    Raises: ConfigError when there are fewer than two examples.
    """
    if len(labels) < 2:
        raise ConfigError(f"{len(labels)} train example; the linear probe needs two")
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    held_out = np.zeros(len(labels), bool)
    held_out[by_class[::HELD_OUT]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _check_settings(epochs, batch_size, learning_rates, weight_decay) -> None:
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigError(f"probe {name}={value}; it must be at least 1")
    if not learning_rates or not all(0 < r < np.inf for r in learning_rates):
        raise ConfigError(
            f"probe learning_rates={learning_rates}; give one or more positive numbers"
        )
    if not 0 <= weight_decay < np.inf:
        raise ConfigError(f"probe weight_decay={weight_decay}; it must not be negative")


def _fit_and_score(
    fitted,
    scored,
    *,
    learning_rates,
    num_classes,
    epochs,
    batch_size,
    weight_decay,
    seed,
) -> list[dict[str, float]]:
    """Fits one head per learning rate; its top1, top5 (%) and loss on `scored`."""
    mean, scale = _standardisation(jnp.asarray(fitted[0]))
    fitted_heads = _fit(
        _standardise(jnp.asarray(fitted[0]), mean, scale),
        jnp.asarray(fitted[1]),
        jnp.asarray(learning_rates, jnp.float32),
        jax.random.key(seed),
        weight_decay,
        num_classes=num_classes,
        epochs=epochs,
        batch_size=min(batch_size, len(fitted[0])),
    )
    correct = _score(
        fitted_heads,
        _standardise(jnp.asarray(scored[0]), mean, scale),
        jnp.asarray(scored[1]),
    )
    top1, top5, loss = (np.asarray(sums, np.float64) for sums in correct)
    count = len(scored[0])
    return [
        {"top1": 100 * a / count, "top5": 100 * b / count, "loss": c / count}
        for a, b, c in zip(top1.tolist(), top5.tolist(), loss.tolist(), strict=True)
    ]


@jax.jit
def _standardisation(features: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and scale [1, d] that standardise features [N, d], as `probe` says."""
    wide = features.astype(jnp.float32)
    mean = wide.mean(axis=0, keepdims=True)
    std = wide.std(axis=0, keepdims=True)
    floor = STD_FLOOR * jnp.sqrt(jnp.mean(jnp.square(std)))
    floored = jnp.maximum(std, jnp.maximum(floor, 1e-12))
    # Constant features (empty bins, dead units) count in neither d nor the norm.
    norm = jnp.sqrt(jnp.sum(jnp.square(std / floored)))
    return mean, 1 / (floored * jnp.maximum(norm, 1e-12))


@jax.jit
def _standardise(features, mean, scale):
    return (features.astype(jnp.float32) - mean) * scale


@partial(jax.jit, static_argnames=("num_classes", "epochs", "batch_size"))
def _fit(
    x, labels, rates, key, weight_decay, *, num_classes, epochs, batch_size
) -> Heads:
    """Trains the heads of all `rates` [R] side by side on x [N, d], labels [N]."""
    (n, d), num_rates = x.shape, len(rates)
    init_key, order_key = jax.random.split(key)
    start = heads.init(init_key, d, num_rates, num_classes)
    steps = n // batch_size

    def step(carry, batch):
        rows, cosine = batch
        fitted, velocity = carry
        gradient = jax.grad(heads.loss)(fitted, x[rows], labels[rows])
        carry = heads.sgd(
            fitted,
            velocity,
            gradient,
            rates=cosine * rates,
            weight_decays=jnp.full(num_rates, weight_decay),
        )
        return carry, None

    def epoch(carry, number):
        order = jax.random.permutation(jax.random.fold_in(order_key, number), n)
        batches = order[: steps * batch_size].reshape(steps, batch_size)
        cosine = heads.cosine(number, epochs)
        return jax.lax.scan(step, carry, (batches, jnp.full(steps, cosine)))

    carry = (start, jax.tree.map(jnp.zeros_like, start))
    return jax.lax.scan(epoch, carry, jnp.arange(epochs))[0][0]


@jax.jit
def _score(fitted: Heads, x: jax.Array, labels: jax.Array):
    """Sums over x [M, d] of top-1 hits, top-5 hits and cross-entropy, each [R]."""
    hits = heads.rank(fitted, x) == labels[:, None, None]
    losses = heads.cross_entropy(fitted, x, labels)
    return hits[..., 0].sum(0), hits.any(-1).sum(0), losses.sum(0)
