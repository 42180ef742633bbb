"""Logistic regression on stored features: the original's SGD recipe, and L-BFGS.

Features may lie in a memory-mapped file larger than the memory: they are read in
pieces, and go to the device once and stay there when they fit.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sfrik_jax import mesh as mesh_lib
from sfrik_jax.errors import ConfigError
from sfrik_jax.evaluators import choosing, descent, heads
from sfrik_jax.evaluators.choosing import Labelled, Result
from sfrik_jax.evaluators.heads import Heads
from sfrik_jax.evaluators.linear import STD_FLOOR

FITS_BYTES = 2 << 30  # a train set up to this size goes to the device whole
BUFFER_BYTES = 512 << 20  # of a larger one, this much at a time
# Neighbouring rows that are read together. Where classes follow one another, as in
# ImageNet, a buffer of 5 % has nearly all 1,000 of them; with blocks of 256 a quarter.
# Rows of 8 KiB came from a disk at 0.16 GB/s, by 256 at 0.21, by 4 at 0.11, by 1 0.04.
BLOCK = 16
Say = Callable[[str], None]


def sgd(
    train: Labelled,
    validation: Labelled | None,
    test: Labelled | None,
    *,
    num_classes: int,
    learning_rates: Sequence[float] = (0.4,),
    weight_decays: Sequence[float] = (1e-6,),
    epochs: int = 100,
    batch_size: int = 256,
    momentum: float = heads.MOMENTUM,
    seed: int = 0,
    say: Say = lambda line: None,
) -> Result:
    """The original's recipe on features as they are, not standardised.

    SGD with momentum, cosine per epoch, weights from a normal law of deviation 0.01,
    bias 0 and decayed like the weights. Every pair of a learning rate and a weight
    decay is a head; all are trained on the same batches in one pass.

    A train set that fits is shuffled whole each epoch. Of a larger one blocks of 16
    neighbouring rows are drawn into a buffer of 512 MiB and shuffled there, which has
    most classes of a set in their order, and reads at three quarters of the speed of
    far longer blocks. A last partial batch of an epoch, or of a buffer, is dropped.

    Args:
      validation: chooses among several settings; one alone needs none.
      batch_size: at most N are used.
      seed: of the initial weights and the order.
      say: gets a line for each epoch.
    Raises: ConfigError for impossible settings, shapes, labels, non-finite features,
      and for several settings without a validation set; NonFiniteError when every head
      diverges.
    """
    settings = list(product(learning_rates, weight_decays))
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigError(f"logreg {name}={value}; it must be at least 1")
    _check_values("learning_rates", learning_rates, above_zero=True)
    _check_values("weight_decays", weight_decays)
    rows = [{"learning_rate": r, "weight_decay": w} for r, w in settings]
    train, validation, test = choosing.checked(
        train, validation, test, num_classes=num_classes, settings=len(settings)
    )
    start = heads.init(
        jax.random.key(seed), train.features.shape[1], len(settings), num_classes
    )
    carry = (start, jax.tree.map(jnp.zeros_like, start))
    rates, decays = jnp.asarray(settings, jnp.float32).T
    rng = np.random.default_rng(seed)
    epoch_of = _shuffled(train, min(batch_size, len(train.labels)))
    for number in range(epochs):
        cosine = heads.cosine(number, epochs)
        for x, labels, order in epoch_of(rng):
            # The next buffer is read while the device still trains on this one.
            jax.block_until_ready(carry)
            carry = _steps(carry, x, labels, order, cosine * rates, decays, momentum)
        say(f"epoch {number + 1} of {epochs}")
    return choosing.answer(carry[0], rows, validation, test)


def lbfgs(
    train: Labelled,
    validation: Labelled | None,
    test: Labelled | None,
    *,
    num_classes: int,
    l2: Sequence[float] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6),
    standardise: bool = True,
    tolerance: float = 1e-5,
    max_iterations: int = 1000,
    mesh: Mesh | None = None,
    say: Say = lambda line: None,
) -> Result:
    """Multinomial logistic regression to its optimum, for each regularisation.

        minimise  mean cross-entropy(x W + b) + l2 / 2 ‖W‖²

    The bias is not penalised: scikit-learn's C is 1 / (N l2). Full-batch L-BFGS, from
    the strongest l2 to the weakest, each starting at the optimum of the one before.

    Args:
      validation: chooses among several l2; one alone needs none.
      standardise: x = (feature - mean) / std of the train set; std is at least 0.05 of
        a typical feature's. W is penalised in these units.
      tolerance: of the gradient's Euclidean norm, where the descent ends.
      mesh: its `data` axis shares the examples. Of devices of this process: several
        processes work side by side, each on a mesh of its own.
      say: gets a line for each l2.
    Returns: rows hold "l2", "objective", "gradient_norm", "iterations", "converged".
    Raises: as `sgd`.
    """
    _check_values("l2", l2)
    if not tolerance > 0 or max_iterations < 1:
        raise ConfigError(
            f"logreg tolerance={tolerance}, max_iterations={max_iterations}; "
            "both must be above 0"
        )
    train, validation, test = choosing.checked(
        train, validation, test, num_classes=num_classes, settings=len(l2)
    )
    shift, scale = _standardisation(train, standardise)
    objective = _objective(train, shift, scale, num_classes, mesh)
    d = train.features.shape[1]
    fitted = Heads(jnp.zeros((d, 1, num_classes)), jnp.zeros((1, num_classes)))
    if mesh is not None:
        fitted = mesh_lib.replicate(fitted, mesh)
    rows, found = [], []
    for strength in sorted(l2, reverse=True):
        fitted, row = descent.minimise(
            partial(objective, l2=strength),
            fitted,
            tolerance=tolerance,
            max_iterations=max_iterations,
        )
        rows.append({"l2": strength} | row)
        found.append(_for_features_as_they_are(fitted, shift, scale))
        say(_told(rows[-1]))
    kernels, biases = zip(*found, strict=True)
    whole = Heads(
        jnp.asarray(np.concatenate(kernels, axis=1), jnp.float32),
        jnp.asarray(np.concatenate(biases), jnp.float32),
    )
    return choosing.answer(whole, rows, validation, test)


def _for_features_as_they_are(fitted: Heads, shift, scale):
    """(x - shift) scale W + b = x (scale W) + (b - shift scale W): both, in float64."""
    kernel, bias = (np.asarray(leaf) for leaf in fitted)
    kernel = scale[:, None, None] * kernel
    return kernel, bias - np.tensordot(shift, kernel, 1)


def _told(row: dict[str, Any]) -> str:
    return (
        f"l2 {row['l2']:g}: objective {row['objective']:.6f}, gradient norm "
        f"{row['gradient_norm']:.1e} after {row['iterations']} iterations"
        + ("" if row["converged"] else ", not converged")
    )


def _check_values(name: str, values: Sequence[float], *, above_zero=False) -> None:
    least = np.nextafter(0, 1) if above_zero else 0
    if not len(values) or not all(least <= value < np.inf for value in values):
        kind = "positive numbers" if above_zero else "numbers that are not negative"
        raise ConfigError(f"logreg {name}={tuple(values)}; give one or more {kind}")


def _shuffled(train: Labelled, batch_size: int) -> Callable[..., Iterator[tuple]]:
    """A function from a generator of random numbers to one epoch's buffers.

    A buffer is features and labels on the device, and rows of it [steps, batch_size].
    """
    count, row_bytes = len(train.labels), train.features[:1].nbytes
    whole, buffer_rows = None, count
    if count * row_bytes <= FITS_BYTES:
        whole = jnp.asarray(train.features[:])
    else:
        buffer_rows = max(1, BUFFER_BYTES // row_bytes // batch_size) * batch_size

    def epoch(rng: np.random.Generator) -> Iterator[tuple]:
        blocks = rng.permutation(-(-count // BLOCK))
        drawn = (blocks[:, None] * BLOCK + np.arange(BLOCK)).ravel()
        drawn = drawn[drawn < count]
        for start in range(0, count - batch_size + 1, buffer_rows):
            rows = np.sort(drawn[start : start + buffer_rows])
            steps = len(rows) // batch_size
            if steps:
                order = rng.permutation(len(rows))[: steps * batch_size]
                x = jnp.asarray(train.features[rows]) if whole is None else whole
                yield x, train.labels[rows], order.reshape(steps, batch_size)

    return epoch


@partial(jax.jit, donate_argnums=0)
def _steps(carry, x, labels, order, rates, decays, momentum):
    """Trains heads and velocity (`carry`) on the batches x[order[0]], x[order[1]], …"""

    def step(carry, rows):
        fitted, velocity = carry
        gradient = jax.grad(heads.loss)(fitted, x[rows], labels[rows])
        carry = heads.sgd(
            fitted,
            velocity,
            gradient,
            rates=rates,
            weight_decays=decays,
            momentum=momentum,
        )
        return carry, None

    return jax.lax.scan(step, carry, order)[0]


def _standardisation(train: Labelled, wanted: bool) -> tuple[np.ndarray, np.ndarray]:
    """float64 [d] and [d]: x = (feature - shift) scale."""
    count, d = train.features.shape
    if not wanted:
        return np.zeros(d), np.ones(d)
    rows = choosing.chunk_rows(d)
    # Around the first chunk's mean, so that the squares lose nothing to a large mean.
    middle = train.features[:rows].mean(axis=0, dtype=np.float64)
    total, squares = np.zeros(d), np.zeros(d)
    for start in range(0, count, rows):
        moved = train.features[start : start + rows] - middle
        total += moved.sum(axis=0)
        squares += np.square(moved).sum(axis=0)
    std = np.sqrt(np.maximum(squares / count - np.square(total / count), 0))
    floor = STD_FLOOR * np.sqrt(np.mean(np.square(std)))
    # Where every feature is constant there is nothing to scale.
    return middle + total / count, 1 / np.maximum(std, floor if floor > 0 else 1.0)


def _objective(train, shift, scale, num_classes: int, mesh: Mesh | None):
    """evaluate(heads, l2=…) -> objective and gradient over the whole train set."""
    count, d = train.features.shape
    devices = 1 if mesh is None else mesh.shape[mesh_lib.DATA]
    rows = min(choosing.chunk_rows(d, num_classes), -(-count // devices)) * devices
    scaling = jnp.asarray(np.stack([shift, scale]), jnp.float32)
    # The mesh is this process's own, so that all rows of a chunk go onto it.
    sharding = None if mesh is None else mesh_lib.batch_sharding(mesh)
    if mesh is not None:
        scaling = mesh_lib.replicate(scaling, mesh)

    def read() -> Iterator[tuple[jax.Array, ...]]:
        for chunk in choosing.chunks(train, rows):
            yield jax.device_put(chunk, sharding)

    fits = count * train.features[:1].nbytes <= FITS_BYTES * devices
    held = list(read()) if fits else None

    def evaluate(fitted: Heads, *, l2: float) -> tuple[jax.Array, Heads]:
        total = _penalty(fitted, l2)
        for x, labels, weights in read() if held is None else held:
            total = _add_chunk(total, fitted, x, labels, weights / count, scaling)
        return total

    return evaluate


@jax.jit
@jax.value_and_grad
def _penalty(fitted: Heads, l2) -> jax.Array:
    return l2 / 2 * jnp.sum(jnp.square(fitted.kernel))


@jax.jit
def _add_chunk(total, fitted, x, labels, weights, scaling):
    """Adds a chunk's value and gradient to `total`; weights [rows] sum to its share."""
    x = (x.astype(jnp.float32) - scaling[:1]) * scaling[1:]

    def value(fitted):
        return (weights[:, None] * heads.cross_entropy(fitted, x, labels)).sum()

    return jax.tree.map(jnp.add, total, jax.value_and_grad(value)(fitted))
