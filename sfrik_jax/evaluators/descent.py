"""Descent to the minimum of a convex objective that is summed over pieces of data.

Optax's own line search needs an objective that can be traced; this one may read its
data from a file, one pass for each value and gradient.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from sfrik_jax.evaluators.heads import Heads

Evaluate = Callable[[Heads], tuple[jax.Array, Heads]]  # value and gradient

_OPTIMIZER = optax.lbfgs(learning_rate=1.0, linesearch=None)
_start = jax.jit(_OPTIMIZER.init)
_norm = jax.jit(optax.tree.norm)
_dot = jax.jit(optax.tree.vdot)


@jax.jit
def _direction(gradient: Heads, state, fitted: Heads):
    """L-BFGS's step, its slope along the objective, and the new memory."""
    step, state = _OPTIMIZER.update(gradient, state, fitted)
    return step, optax.tree.vdot(step, gradient), state


@jax.jit
def _moved(fitted: Heads, step: Heads, size) -> Heads:
    return jax.tree.map(lambda w, p: w + size * p, fitted, step)


def minimise(
    evaluate: Evaluate, fitted: Heads, *, tolerance: float, max_iterations: int
) -> tuple[Heads, dict[str, Any]]:
    """The minimum of a convex objective, from `fitted` on, and how it was reached.

    Args:
      tolerance: of the gradient's Euclidean norm, where the descent ends.
    Returns: the heads, and {"objective", "gradient_norm", "iterations", "converged"};
      converged means that the norm is within the tolerance.
    """
    value, gradient = evaluate(fitted)
    state, fresh, iterations = _start(fitted), True, 0
    while float(_norm(gradient)) > tolerance and iterations < max_iterations:
        step, slope, state = _direction(gradient, state, fitted)
        found = _search(evaluate, fitted, float(value), step, float(slope))
        if found is not None:
            (fitted, value, gradient), fresh = found, False
            iterations += 1
        elif fresh:
            break  # no descent along the gradient itself: float32 gives no more
        else:
            state, fresh = _start(fitted), True
    norm = float(_norm(gradient))
    return fitted, {
        "objective": float(value),
        "gradient_norm": norm,
        "iterations": iterations,
        "converged": norm <= tolerance,
    }


def _search(
    evaluate: Evaluate, fitted: Heads, value: float, step: Heads, slope: float
) -> tuple[Heads, jax.Array, Heads] | None:
    """The first of the steps 1, 1/2, 1/4 … that descends enough, or None.

    Enough is Armijo's rule or, where the objective's rounding hides the descent, a
    flatter slope (the idea of Hager and Zhang, SIAM J. Optim. 16, 2005). Halving alone
    will do: along a convex objective the curvature is never negative.
    """
    for halvings in range(20 if slope < 0 else 0):
        size = 0.5**halvings
        moved = _moved(fitted, step, size)
        new, gradient = evaluate(moved)
        enough = float(new) <= value + 1e-4 * size * slope
        level = float(new) <= value + 1e-6 * abs(value)
        if enough or (level and abs(float(_dot(step, gradient))) <= -0.9 * slope):
            return moved, new, gradient
    return None
