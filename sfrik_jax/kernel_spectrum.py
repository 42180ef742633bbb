"""The weights b_l of any kernel on the sphere that is a function of the cosine.

By the formula of Funk and Hecke (Müller, "Analysis of Spherical Symmetries in Euclidean
Spaces", 1998),

    b_l = N(q, l) |S^{q-2}|/|S^{q-1}| ∫_{-1}^{1} K(t) P_l(q; t) (1 - t²)^((q-3)/2) dt

which is N(q, l) times the mean of K P_l over the cosine t of uniform vectors.
"""

import math
from collections.abc import Callable

import numpy as np

from sfrik_jax.kernel_presets import harmonics

# Nodes of the two Gauss rules; their difference is an estimate of the error. In the
# plane exp(1000 t) needs about 190. With 300 the outermost masses at a large q, near
# exp(-2 · 300), still are numbers.
NODES = (200, 300)
# Rounding of the mean of K p_l as a share of √(mean of K²): 64 epsilons. Up to 58 were
# seen for exp(50 t) and q > 2; where there are more, the two rules differ by as much.
ROUNDING = 64 * float(np.finfo(np.float64).eps)


def spectrum(
    kernel: Callable[[np.ndarray], np.ndarray],
    q: int,
    order: int,
    *,
    tolerance: float = 1e-6,
) -> np.ndarray:
    """b_0 … b_order of `kernel`; NaN where rounding or the quadrature hides a value.

    With the orthonormal polynomials p_l = √N(q, l) P_l the integral is √N(q, l) times
    the mean of K p_l, so that nothing overflows. What limits it: that mean is rounded
    at about 1e-16 √(mean of K²), hence b_l at √N(q, l) times as much. At q = 32768 and
    l = 3, √N is 2.4e6; at l = 8 it is 5.7e15, and nothing is left of exp(5t). A kernel
    that is not smooth is limited by the quadrature, whose error falls as a power of
    the number of nodes.

    Args:
      kernel: K, from an array of cosines in (-1, 1) to an array of that shape.
      q: the dimension, >= 2.
      order: the last order, from 0 to 100.
      tolerance: the largest relative error. A weight whose error may be larger is NaN;
        a weight that is 0 is NaN too, as rounding does not tell it from a small one.

    Returns:
      [order + 1], float64.

    Raises:
      ValueError: q, order or tolerance out of range, or K of another shape, complex or
        not finite.
    """
    if q < 2 or not 0 <= order <= NODES[0] // 2:
        raise ValueError(
            f"q={q} must be >= 2 and order={order} from 0 to {NODES[0] // 2}"
        )
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance={tolerance} must be above 0 and below 1")
    roots = np.sqrt([float(harmonics(q, k)) for k in range(order + 1)])
    coarse, _ = _means(kernel, q, order, NODES[0])
    fine, size = _means(kernel, q, order, NODES[1])
    # Of all orders the largest difference: that of one may be small by chance.
    error = 4 * np.max(np.abs(fine - coarse)) + ROUNDING * size
    return np.where(error <= tolerance * np.abs(fine), roots * fine, np.nan)


def _means(kernel, q: int, order: int, nodes: int) -> tuple[np.ndarray, float]:
    """The means of K p_l for l = 0 … order, and the root of that of K²."""
    t, mass, polys = _gauss(q, nodes)
    values = np.asarray(kernel(t))
    if values.shape != t.shape or np.iscomplexobj(values):
        raise ValueError(f"kernel gave {values.shape}, {values.dtype} for {t.shape}")
    if not np.all(np.isfinite(values)):
        raise ValueError("kernel is not finite on all of (-1, 1)")
    largest = np.max(np.abs(values))
    if largest == 0:
        return np.zeros(order + 1), 0.0
    values = values / largest  # their squares could overflow
    # Sums in full precision: the terms of a high order nearly cancel.
    means = [math.fsum(mass * values * p) for p in polys[: order + 1]]
    size = math.sqrt(math.fsum(mass * values**2))
    return largest * np.array(means), largest * size


def _gauss(q: int, nodes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes, their masses (together 1), and p_0 … p_{nodes-1} at them.

    The orthonormal polynomials of the law of t have the recurrence

        c_{l+1} p_{l+1} = t p_l - c_l p_{l-1},
        c_l² = l (l + q - 3)/((2l + q - 2)(2l + q - 4)),  c_1² = 1/q

    The nodes are the eigenvalues of the symmetric tridiagonal matrix of the c_l (Golub
    and Welsch, 1969). The masses are 1 / sum_l p_l(t)²: the squares of the first
    components of the eigenvectors lose all digits of those below 1e-32.
    """
    k = np.arange(2, nodes)
    squares = k * (k + q - 3) / ((2.0 * k + q - 2) * (2.0 * k + q - 4))
    c = np.sqrt(np.concatenate([[1 / q], squares]))
    t = np.linalg.eigvalsh(np.diag(c, -1))
    polys = [np.ones(nodes), t / c[0]]
    for each in range(1, nodes - 1):
        polys.append((t * polys[each] - c[each - 1] * polys[each - 1]) / c[each])
    table = np.stack(polys)
    mass = 1 / np.sum(table**2, axis=0)
    return t, mass / np.sum(mass), table
