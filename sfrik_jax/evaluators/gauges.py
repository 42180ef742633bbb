"""Label-free gauges of a whole set of features: rank, spread, distance to uniform.

All are computed in float64 by slices, so that the set may be longer than memory; see
`checks.Array` for what a set may be. u is a feature divided by its length, and 0 for a
feature of length 0. `metrics.gauges` looks at one batch within the training step.

rankme and wasserstein each take singular values from the smaller Gram matrix of the
set, of order m = min(N, d): 2 m² max(N, d) operations, 4/3 m³ slower ones for its
eigenvalues, and 16 m² bytes. All gauges of 1,024 rows of dimension 32,768 took 19 CPU
seconds and 0.8 GB, of 2,048 rows 54 and 1.0 GB. Twice the rows are 4 to 8 times the
work: some 5 minutes for 4,096 rows, an hour for 10,000 (estimates).
"""

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from sfrik_jax.errors import ConfigError
from sfrik_jax.evaluators import checks
from sfrik_jax.evaluators.checks import Array
from sfrik_jax.kernels import TruncatedKernel

# Of the paper, for float32. It adds 1.6e-6 to the entropy for each singular value of 0.
RANKME_EPSILON = 1e-7
# Gauges of pairs cost N² d: longer sets are thinned out to at most so many rows.
PAIR_ROWS = 20_000
PAIR_BLOCK = 512  # rows whose pairs are held at once: 134 MB where d is 32,768
Rows = Callable[[np.ndarray], np.ndarray]  # of stored rows [n, d], in float64


def all_gauges(features: Array, second: Array | None = None) -> dict[str, float]:
    """The gauges by name: rankme, uniformity, wasserstein, std, and alignment.

    std is the mean over coordinates of the standard deviation of sqrt(d) u: 1 for the
    uniform law, 0 for a collapse.

    Args:
      features: [N, d], N >= 2. Of more than PAIR_ROWS rows, uniformity takes every
        s-th, with the least s that leaves no more than those.
      second: [N, d], other views of the same pictures; alignment only with them.
    Raises: ConfigError for impossible shapes or non-finite features.
    """
    checks.features("features", features)
    _check_pairs(features)
    moments = _unit_moments(features)
    found = {
        "rankme": rankme(features),
        "uniformity": uniformity(_thinned(features)),
        "wasserstein": _distance_to_uniform(features, *moments),
        "std": float(np.sqrt(moments[1]).mean() * np.sqrt(features.shape[1])),
    }
    if second is not None:
        found["alignment"] = alignment(features, second)
    return found


def rankme(features: Array) -> float:
    """Effective rank: exp of the entropy of the normalised singular values.

        exp(-sum_k p_k log p_k),  p_k = s_k / sum_j s_j + 1e-7,  k <= min(N, d)

    s are the singular values of features [N, d], neither centred nor normalised; a set
    of zeros has rank 0. They are the roots of eigenvalues of the smaller Gram matrix:
    an error of 1e-16 of the largest eigenvalue is one of 1e-8 in p, so that those below
    1e-8 of the largest drown, but in less than the paper's own constant. Against exact
    values down to 1e-16 the rank differs by 4e-7 of itself (300 x 700).

    Source: Garrido et al., RankMe, ICML 2023, arXiv 2210.02885.
    Raises: ConfigError for impossible shapes or non-finite features.
    """
    checks.features("features", features)
    singular = _singular_values(features, _wide)
    if not singular.any():
        return 0.0
    p = singular / singular.sum() + RANKME_EPSILON
    return float(np.exp(-np.sum(p * np.log(p))))


def alignment(first: Array, second: Array) -> float:
    """Mean ‖u - v‖² of the unit rows u, v of two views [N, d] of the same pictures.

    0 for equal directions, 2 for independent uniform ones.

    Source: Wang and Isola, ICML 2020, arXiv 2005.10242.
    Raises: ConfigError for shapes that differ or non-finite features.
    """
    checks.features("first", first)
    checks.features("second", second)
    if first.shape != second.shape:
        raise ConfigError(
            f"first has shape {first.shape}, second {second.shape}; "
            "give two views of the same pictures"
        )
    total = 0.0
    for start, rows in checks.chunks(first):
        other = np.asarray(second[start : start + len(rows)])
        total += np.sum((_unit(rows) - _unit(other)) ** 2)
    return float(total / len(first))


def uniformity(features: Array, t: float = 2.0) -> float:
    """log mean_{i != j} exp(-t ‖u_i - u_j‖²), with ‖u_i - u_j‖² = 2 - 2 u_i·u_j.

    0 for a collapse; lower is more uniform. Exact, so its cost is N² d.

    Source: Wang and Isola, ICML 2020, arXiv 2005.10242.
    Args: features [N, d], N >= 2; t in (0, 100]: exp(-4 t) has to be a number.
    Raises: ConfigError for an impossible t or shape or non-finite features.
    """
    if not 0 < t <= 100:
        raise ConfigError(f"uniformity t={t}; choose above 0 and at most 100")
    mean = _mean_over_pairs(features, lambda cosines: np.exp(2 * t * (cosines - 1)))
    return float(np.log(mean))


def mmd(features: Array, weights: Sequence[float]) -> float:
    """MMD² to the uniform law, over distinct pairs.

        mean_{i != j} sum_l b_l P_l(u_i·u_j)

    `losses.sfrik` has the kernel's source. 0 in expectation for uniform features (so
    below 0 at times), the sum of the weights for a collapse. Exact, at a cost of N² d.

    Args: features [N, d], N >= 2, d >= 2; weights b_1 … b_L.
    Raises: ConfigError for an impossible shape or non-finite features.
    """
    kernel = TruncatedKernel(tuple(weights))
    with jax.enable_x64(True):
        return _mean_over_pairs(
            features, lambda cosines: np.asarray(kernel(cosines, features.shape[1]))
        )


def wasserstein(features: Array) -> float:
    """2-Wasserstein distance of the Gaussian fit of u to N(0, I/d).

        sqrt(‖mu‖² + 1 + tr S - 2 / sqrt(d) tr S^(1/2))

    mu and S are mean and covariance (divided by N) of u; the uniform law on the sphere
    has those of N(0, I/d). 0 is the best, sqrt(2) a collapse to one point. N <= d rows
    cannot reach 0: S is of rank N - 1 at most.

    Source: Fang et al., ICLR 2024, arXiv 2403.00642.
    Raises: ConfigError for impossible shapes or non-finite features.
    """
    checks.features("features", features)
    return _distance_to_uniform(features, *_unit_moments(features))


def spectrum(features: Array) -> np.ndarray:
    """Eigenvalues of the covariance of u, falling, divided by their sum.

    The uniform law on the sphere of R^d has d equal ones; few that are large mean that
    the directions are used unevenly. A set whose rows are all equal has zeros alone.

    Returns: [min(N, d)], float64.
    Raises: ConfigError for impossible shapes or non-finite features.
    """
    checks.features("features", features)
    mean, _ = _unit_moments(features)
    values = _singular_values(features, lambda rows: _unit(rows) - mean)[::-1] ** 2
    # What is left of N equal rows is rounding: 1e-16 of their length, squared.
    total = values.sum()
    return values / total if total > 1e-24 * len(features) else np.zeros_like(values)


def _distance_to_uniform(
    features: Array, mean: np.ndarray, variance: np.ndarray
) -> float:
    singular = _singular_values(features, lambda rows: _unit(rows) - mean)
    root = singular.sum() / np.sqrt(len(features))  # the trace of S^(1/2)
    square = mean @ mean + 1 + variance.sum() - 2 * root / np.sqrt(len(mean))
    return float(np.sqrt(max(square, 0.0)))


def _singular_values(features: Array, rows_of: Rows) -> np.ndarray:
    """Those of the matrix rows_of(features), [min(N, d)], rising."""
    count, d = features.shape
    gram = np.zeros((min(count, d),) * 2)
    if count > d:
        for _, rows in checks.chunks(features):
            x = rows_of(rows)
            gram += x.T @ x
    else:
        for a, x in _blocks(features, rows_of):
            for b, y in _blocks(features, rows_of, first=a):
                # `eigvalsh` looks at the lower triangle alone.
                gram[b : b + len(y), a : a + len(x)] = y @ x.T
    return np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0))


def _unit_moments(features: Array) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d] and variances [d] of the unit rows."""
    total, squares = np.zeros((2, features.shape[1]))
    for _, rows in checks.chunks(features):
        u = _unit(rows)
        total += u.sum(axis=0)
        squares += np.square(u).sum(axis=0)
    mean = total / len(features)
    return mean, np.maximum(squares / len(features) - np.square(mean), 0)


def _wide(rows: np.ndarray) -> np.ndarray:
    return rows.astype(np.float64)


def _unit(rows: np.ndarray) -> np.ndarray:
    wide = _wide(rows)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(norms > 0, norms, 1)


def _mean_over_pairs(
    features: Array, function: Callable[[np.ndarray], np.ndarray]
) -> float:
    """Mean of function(u_i·u_j) over i != j, block by block of the upper half."""
    checks.features("features", features)
    _check_pairs(features)
    count, total = len(features), 0.0
    for start, u in _blocks(features, _unit):
        for other, v in _blocks(features, _unit, first=start):
            values = function(u @ v.T)
            total += np.triu(values, 1).sum() if other == start else values.sum()
    return float(total / (count * (count - 1) / 2))


def _blocks(
    features: Array, rows_of: Rows, *, first: int = 0
) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(first, len(features), PAIR_BLOCK):
        yield start, rows_of(np.asarray(features[start : start + PAIR_BLOCK]))


def _check_pairs(features: Array) -> None:
    if len(features) < 2:
        raise ConfigError("1 row of features has no pairs; give at least 2")


def _thinned(features: Array) -> Array:
    """The features, or every s-th row where they are more than PAIR_ROWS."""
    step = -(-len(features) // PAIR_ROWS)
    if step == 1:
        return features
    # A stored set may be in the order of its classes: the first rows would be a few.
    return np.concatenate(
        [rows[-start % step :: step] for start, rows in checks.chunks(features)]
    )
