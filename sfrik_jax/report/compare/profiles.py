"""Profiles K(t) of the kernels that runs were trained with."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sfrik_jax import kernel_presets

POINTS = 161
# Cosines of random unit vectors of R^q have the standard deviation 1/sqrt(q).
DEVIATIONS = 4.0


def profile(weights: Sequence[float], t: np.ndarray, dim: int) -> np.ndarray:
    """K(t)/K(1) of `K(t) = sum_l b_l P_l(q; t)`, with q = `dim` >= 2.

        (l + q - 2) P_{l+1}(t) = (2l + q - 2) t P_l(t) - l P_{l-1}(t)

    In NumPy and float64: a page may be written while an accelerator trains.
    Args: weights: b_1 … b_L, of a positive sum, which is K(1); t: cosines, any shape.
    Returns: as t. Errors: ValueError for weights that make no kernel.
    """
    total = math.fsum(weights)
    if dim < 2 or not total > 0:
        raise ValueError(f"weights {weights} in dimension {dim} make no kernel")
    before, now = np.ones_like(t), t
    value = np.zeros_like(t)
    for l, weight in enumerate(weights, 1):
        value = value + weight * now
        after = ((2 * l + dim - 2) * t * now - l * before) / (l + dim - 2)
        before, now = now, after
    return value / total


def lines(
    weights: Sequence[float], dim: int
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Points (t, K) over [-1, 1], and (t sqrt(q), K) of the cosines that occur."""
    t = np.linspace(-1, 1, POINTS)
    scale = math.sqrt(dim)
    near = np.linspace(-DEVIATIONS, DEVIATIONS, POINTS)
    near = near[np.abs(near) <= scale]
    whole = zip(t.tolist(), profile(weights, t, dim).tolist(), strict=True)
    close = profile(weights, near / scale, dim)
    return list(whole), list(zip(near.tolist(), close.tolist(), strict=True))


def weights_of(setting: Any, dim: int) -> tuple[float, ...] | None:
    """The numbers b_1 … b_L of a list or a name; None where they make no kernel."""
    if not isinstance(setting, list | str):
        return None
    try:
        weights = kernel_presets.resolve(setting, dim)
        usable = math.isfinite(math.fsum(weights)) and sum(weights) > 0
    except (TypeError, ValueError, OverflowError):
        return None
    return weights if usable else None
