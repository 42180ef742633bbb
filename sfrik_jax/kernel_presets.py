"""Weights b_1 … b_L of kernels on the sphere that have a name, for any dimension q.

    rbf(s)          K = exp(-s ‖u - v‖²) = exp(-2s (1 - t)), the kernel of AUH
    exponential(τ)  K = exp(t/τ), that of SimCLR
    heat(τ)         b_l = N(q, l) exp(-τ l (l + q - 2)), the heat kernel at time τ
    bandlimited(L)  b_l = N(q, l) for l <= L, the projection on the degrees up to L

`K(t) = sum_l b_l P_l(q; t)`, and N(q, l) is the number of spherical harmonics of
degree l. rbf(s) is exp(-2s) times exponential(1/(2s)): normalised they are one.
Everything is float64, and logarithms until the end, as N(q, l) and the Bessel functions
leave its range. `kernel_spectrum` has the weights of any other function of t.
"""

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

# L where a text does not say it: that of the paper's runs, with weights 1-40-40.
DEFAULT_ORDER = 3
# The recurrence is written out in the program, so that each order costs compilation.
LARGEST_ORDER = 64
# Of the exponent's slope 2s or 1/τ, whose series has about as many terms.
LARGEST_SLOPE = 1e4
CALL = re.compile(r"\s*([A-Za-z_]\w*)\s*\(([^()]*)\)\s*")
FORM = "write NAME(NUMBER), such as rbf(2.5) or rbf(2.5, order=4)"


class Preset(NamedTuple):
    """A kernel with a name.

    Attributes:
      name: a key of `PRESETS`.
      value: s or τ; of bandlimited the order again.
      order: L.
    """

    name: str
    value: float
    order: int


def harmonics(dim: int, order: int) -> int:
    """N(q, l), the dimension of the spherical harmonics of degree l in R^q; exact.

        N(q, l) = C(l + q - 1, l) - C(l + q - 3, l - 2)

    The polynomials of degree l less those that hold the factor ‖x‖².

    Raises:
      ValueError: dim < 2 or order < 0.
    """
    if dim < 2 or order < 0:
        raise ValueError(f"dim={dim} must be >= 2 and order={order} must be >= 0")
    if order < 2:
        return dim if order else 1
    return math.comb(order + dim - 1, order) - math.comb(order + dim - 3, order - 2)


def _log_harmonics(dim: int, order: int) -> np.ndarray:
    return np.array([math.log(harmonics(dim, k)) for k in range(order + 1)])


def _log_exponential(slope: float, dim: int, order: int) -> np.ndarray:
    """log b_0 … b_order of exp(a t), a = `slope`.

        b_l = N(q, l) Γ(q/2) (2/a)^(q/2-1) I_{l+q/2-1}(a)
            = N(q, l) (a/2)^l / (q/2)_l  sum_k (a²/4)^k / (k! (l + q/2)_k)

    by the series of the Bessel function (DLMF 10.25.2). (x)_k is x … (x + k - 1).
    All terms are positive, so that nothing cancels. From k = a on each is less than a
    quarter of the one before: 40 more leave less than 1e-24.
    """
    log_half = math.log(slope / 2)
    k = np.arange(1, math.ceil(slope) + 41)
    orders = np.arange(order + 1)
    rising = np.concatenate([[0], np.cumsum(np.log(dim / 2 + orders[:-1]))])
    sums = []
    for each in orders:
        ratios = 2 * log_half - np.log(k) - np.log(each + dim / 2 + k - 1)
        sums.append(_log_sum(np.concatenate([[0], np.cumsum(ratios)])))
    return _log_harmonics(dim, order) + orders * log_half - rising + np.array(sums)


def _log_rbf(scale: float, dim: int, order: int) -> np.ndarray:
    return _log_exponential(2 * scale, dim, order) - 2 * scale


def _log_simclr(temperature: float, dim: int, order: int) -> np.ndarray:
    return _log_exponential(1 / temperature, dim, order)


def _log_heat(time: float, dim: int, order: int) -> np.ndarray:
    orders = np.arange(order + 1, dtype=np.float64)
    return _log_harmonics(dim, order) - time * orders * (orders + dim - 2)


def _log_bandlimited(last: float, dim: int, order: int) -> np.ndarray:
    kept = np.arange(order + 1) <= last
    return np.where(kept, _log_harmonics(dim, order), -np.inf)


class Kind(NamedTuple):
    """What a name stands for: log b_0 … b_order, and the values that it takes."""

    log_series: Callable[[float, int, int], np.ndarray]
    low: float
    high: float
    symbol: str


PRESETS = {
    "rbf": Kind(_log_rbf, 0, LARGEST_SLOPE / 2, "s"),
    "exponential": Kind(_log_simclr, 1 / LARGEST_SLOPE, math.inf, "τ"),
    "heat": Kind(_log_heat, 0, 1e6, "τ"),
    "bandlimited": Kind(_log_bandlimited, 1, LARGEST_ORDER, "L"),
}


def parse(text: str) -> Preset:
    """The preset that a text such as `rbf(2.5)` or `heat(0.01, order=4)` names.

    Raises:
      ValueError: no such form or name, or a number out of its range; in one line.
    """
    call = CALL.fullmatch(text)
    if not call:
        raise ValueError(f"{FORM}; the names are {', '.join(PRESETS)}")
    name = call[1]
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"choose one of {', '.join(PRESETS)}{hint}")
    value, *rest = call[2].split(",")
    keys = [each.partition("=")[0].strip() for each in rest]
    if len(rest) > 1 or keys not in ([], ["order"]):
        raise ValueError(f"{FORM}; order is the one key that may follow")
    number = _number(value, float)
    if name != "bandlimited":
        last = rest[0].partition("=")[2] if rest else f"{DEFAULT_ORDER}"
        return _checked(Preset(name, number, _number(last, int)))
    if rest:
        raise ValueError("bandlimited(L) has its order already; leave order out")
    return _checked(Preset(name, number, _number(value, int)))


def _number(text: str, kind: type) -> Any:
    try:
        return kind(text.strip())
    except ValueError:
        words = "a whole number" if kind is int else "a number"
        raise ValueError(f"{text.strip()!r} is not {words}; {FORM}") from None


def _checked(preset: Preset) -> Preset:
    kind, value = PRESETS[preset.name], preset.value
    inside = kind.low <= value <= kind.high and 0 < value < math.inf
    if not inside:
        low = f"at least {kind.low:g}" if kind.low else "above 0"
        high = f" and at most {kind.high:g}" if kind.high < math.inf else " and finite"
        raise ValueError(f"{kind.symbol}={value:g} must be {low}{high}")
    if not 1 <= preset.order <= LARGEST_ORDER:
        raise ValueError(f"order={preset.order} must be from 1 to {LARGEST_ORDER}")
    return preset


def series(preset: str | Preset, dim: int, order: int) -> np.ndarray:
    """b_0 … b_order of the whole kernel: not cut at its L, not normalised.

    Those of rbf, exponential and heat add up to K(1). (The heat kernel's b_0 is 1.)

    Args:
      preset: a text, see `parse`, or what it stands for.
      dim: q >= 2.
      order: the last one, >= 0.

    Returns:
      [order + 1], float64; what is below 5e-324 is 0.

    Raises:
      ValueError: a weight above 1.8e308, or an argument out of range.
    """
    found = _log_series(preset, dim, order)
    if np.max(found) >= math.log(np.finfo(np.float64).max):
        raise ValueError(f"{preset} has weights above 1.8e308 at dim={dim}")
    return np.exp(found)


def _log_series(preset: str | Preset, dim: int, order: int) -> np.ndarray:
    name, value, _ = _checked(parse(preset) if isinstance(preset, str) else preset)
    if dim < 2 or order < 0:
        raise ValueError(f"dim={dim} must be >= 2 and order={order} must be >= 0")
    return PRESETS[name].log_series(value, dim, order)


def weights(preset: str | Preset, dim: int) -> tuple[float, ...]:
    """b_1 … b_L of a preset for q = `dim`, normalised: each >= 0, together 1.

    b_0 adds a constant to every kernel and is left out. Beside a larger one, a weight
    of less than 5e-324 is 0.

    Raises:
      ValueError: see `parse`; dim < 2.
    """
    preset = parse(preset) if isinstance(preset, str) else preset
    logs = _log_series(preset, dim, preset.order)[1:]
    return tuple(np.exp(logs - _log_sum(logs)).tolist())


def normalised(sequence: Sequence[float]) -> tuple[float, ...]:
    """Any b_1 … b_L >= 0, divided by their sum.

    Raises:
      ValueError: none is given, all are 0, or one is negative or not finite.
    """
    array = np.asarray(sequence, np.float64)
    if array.ndim != 1 or not np.all(np.isfinite(array) & (array >= 0)):
        raise ValueError(f"weights={sequence}: each must be finite and >= 0")
    if not np.any(array):
        raise ValueError(f"weights={sequence}: give at least one above 0")
    array = array / np.max(array)  # their sum may overflow
    return tuple((array / np.sum(array)).tolist())


def resolve(setting: str | Sequence[float], dim: int) -> tuple[float, ...]:
    """The numbers b_1 … b_L that the setting `loss.weights` stands for at q = `dim`.

    Numbers stay what they are; a text is a preset, whose weights add up to 1.

    Raises:
      ValueError: see `parse`.
    """
    if isinstance(setting, str):
        return weights(setting, dim)
    return tuple(float(weight) for weight in setting)


def resolved(loss_settings: Mapping[str, Any], dim: int) -> dict[str, Any]:
    """The settings of a loss with numbers for its `weights`, where it has such."""
    settings = dict(loss_settings)
    if "weights" in settings:
        settings["weights"] = resolve(settings["weights"], dim)
    return settings


def _log_sum(logs: np.ndarray) -> float:
    top = np.max(logs)
    return float(top + np.log(np.sum(np.exp(logs - top))))
