"""Error of SFRIK's bfloat16 gradient against float64, for `loss.py --gradient-error`.

The views are rounded to bfloat16 first, as a projector in bfloat16 gives them, and both
sides start from those. What is compared by the Frobenius norm is dL/dx of the rows
before normalisation: of the MMD as it is summed, and of the MMD and the whole loss as
the projector gets them, rounded to bfloat16 (0.17 % at most, alone). The reference is
NumPy in float64, in blocks of rows.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench import timing
from sfrik_jax import losses
from sfrik_jax.mmd import value_and_moments
from sfrik_jax.settings import LOSS_DEFAULTS

SFRIK = LOSS_DEFAULTS["sfrik"]
WEIGHTS = (1.0, 40.0, 40.0)
MUST, AIM = 0.005, 0.0025
COLUMNS: dict[str, timing.Column] = {
    "n": (lambda row: row["shapes"]["n"], "d"),
    "q": (lambda row: row["shapes"]["q"], "d"),
    "embeddings": "",
    "MMD": (lambda row: row["errors"]["mmd"], ".3%"),
    "MMD, rounded": (lambda row: row["errors"]["mmd_rounded"], ".3%"),
    "loss, rounded": (lambda row: row["errors"]["loss_rounded"], ".3%"),
}


def embeddings(kind: str, n: int, q: int) -> Iterator[np.ndarray]:
    """Two views [n, q]: "uniform", nearly; or "clustered", ten directions and noise."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((n, q), np.float32)
    if kind == "clustered":
        centres = rng.standard_normal((10, q), np.float32)
        shared = centres[rng.integers(0, 10, n)] + 0.5 * shared
    for _ in range(2):
        yield shared + 0.3 * rng.standard_normal((n, q), np.float32)


def exact_mmd(x: np.ndarray, rows: int = 1024) -> np.ndarray:
    """d/dx of the MMD of one view in float64, from P_1 … P_3 as they read."""
    n, q = x.shape
    inverse = 1 / np.linalg.norm(x, axis=1, keepdims=True)
    z, (b1, b2, b3), gradient = x * inverse, WEIGHTS, np.empty_like(x)
    for i in range(0, n, rows):
        t = z[i : i + rows] @ z.T
        slope = b1 + (2 * q * b2 * t + b3 * (3 * (q + 2) * t**2 - 3)) / (q - 1)
        gradient[i : i + rows] = 2 / n**2 * slope @ z
    return through_normalisation(gradient, z, inverse)


def exact_alignment(views: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """d/dx of the alignment of two views in float64, for each view."""
    inverses = [1 / np.linalg.norm(x, axis=1, keepdims=True) for x in views]
    unit = [x * inverse for x, inverse in zip(views, inverses, strict=True)]
    gap = 2 * (unit[0] - unit[1]) / unit[0].size
    for z, inverse, sign in zip(unit, inverses, (1, -1), strict=True):
        yield through_normalisation(sign * gap, z, inverse)


def through_normalisation(
    gradient: np.ndarray, z: np.ndarray, inverse: np.ndarray
) -> np.ndarray:
    """From d/dz to d/dx for z = x / ‖x‖; in place."""
    gradient -= np.sum(gradient * z, axis=1, keepdims=True) * z
    gradient *= inverse
    return gradient


def our_gradients(views: list[jax.Array]) -> dict[str, list[jax.Array]]:
    """Of the MMD before and after the last rounding, and of the loss after it."""

    def mmd(wide, views):
        unit = [losses.normalize(x) for x in wide]
        return value_and_moments(unit, views, WEIGHTS)[0]

    def loss(views, alignment_coeff=SFRIK["alignment_coeff"]):
        settings = SFRIK | {"weights": WEIGHTS, "alignment_coeff": alignment_coeff}
        return losses.sfrik(views, **settings)[0]

    return {
        "mmd": jax.jit(jax.grad(mmd))([x.astype(jnp.float32) for x in views], views),
        "mmd_rounded": jax.jit(jax.grad(lambda v: loss(v, 0.0)))(views),
        "loss_rounded": jax.jit(jax.grad(loss))(views),
    }


def errors(kind: str, n: int, q: int) -> dict[str, float]:
    """Relative errors of `our_gradients`, over both views."""
    views = [jnp.asarray(x, jnp.bfloat16) for x in embeddings(kind, n, q)]
    ours = our_gradients(views)
    wide = [np.asarray(x, np.float64) for x in views]
    squares = {name: np.zeros(2) for name in ours}
    pulls = exact_alignment(wide)
    for i, (x, pull) in enumerate(zip(wide, pulls, strict=True)):
        mmd = exact_mmd(x) / 2
        loss = SFRIK["mmd_coeff"] * mmd + SFRIK["alignment_coeff"] * pull
        for name, want in {
            "mmd": mmd,
            "mmd_rounded": mmd,
            "loss_rounded": loss,
        }.items():
            gap = np.asarray(ours[name][i], np.float64) - want
            squares[name] += np.linalg.norm(gap) ** 2, np.linalg.norm(want) ** 2
    return {name: float(np.sqrt(gap / want)) for name, (gap, want) in squares.items()}


def measure(n: int, dims: Sequence[int], where: dict[str, Any]) -> list[timing.Record]:
    """One record for each dimension and kind of embeddings."""
    return [
        {
            "name": "loss",
            "arm": "gradient error",
            "dtype": "bfloat16",
            "shapes": {"n": n, "q": q, "views": 2},
            "embeddings": kind,
            "errors": errors(kind, n, q),
            "must": MUST,
            "aim": AIM,
            **where,
        }
        for q in dims
        for kind in ("clustered", "uniform")
    ]
