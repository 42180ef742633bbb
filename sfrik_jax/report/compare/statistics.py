"""Means over seeds and paired differences between settings; it needs no arrays."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

EQUAL = 1e-9  # an error that rounding makes of equal differences, in points
COVERED = 0.95  # of the interval that a difference has to leave


@dataclass(frozen=True)
class Spread:
    """Values of one quantity over seeds.

    Attributes:
      mean: their mean.
      deviation: the standard deviation with n - 1; None for a single value, which tells
        nothing of its spread.
      n: how many there are.
    """

    mean: float
    deviation: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """The mean of differences a - b, each between two runs of the same seed.

    Attributes:
      mean: of the differences.
      error: its standard error, sd / sqrt(n); None for a single pair.
      n: pairs.
    """

    mean: float
    error: float | None
    n: int

    @property
    def noise(self) -> float | None:
        """Half the width of the 95 % interval by Student's t; None of a single pair.

        error * t(n - 1): 12.7 errors of two pairs, 4.3 of three, 2 of many. An error
        from two pairs is too uncertain for less. None too where all differences are
        equal: scores are counts of pictures, and a few of those meet by chance.
        """
        if self.error is None or self.error < EQUAL:
            return None
        # Takes 0.1 s to import, which a page of one seed need not wait for.
        from scipy.special import stdtrit

        return self.error * float(stdtrit(self.n - 1, (1 + COVERED) / 2))

    @property
    def exceeds_noise(self) -> bool | None:
        """Whether |mean| > noise; None where that cannot be told."""
        return None if self.noise is None else abs(self.mean) > self.noise


def spread(values: Iterable[float]) -> Spread | None:
    """Mean and standard deviation (n - 1) of the values; None without any.

    sd = sqrt(sum_i (x_i - mean)^2 / (n - 1))
    """
    numbers = list(values)
    if not numbers:
        return None
    n = len(numbers)
    mean = math.fsum(numbers) / n
    if n == 1:
        return Spread(mean, None, 1)
    squares = math.fsum((number - mean) ** 2 for number in numbers)
    return Spread(mean, math.sqrt(squares / (n - 1)), n)


def paired(a: Mapping[str, float], b: Mapping[str, float]) -> Difference | None:
    """The mean difference a - b over the seeds that both have; None without any.

    What a seed does to both runs (the order of the pictures, the first weights) falls
    out of the difference, so that its error is often below that of two separate means.
    """
    differences = spread(a[seed] - b[seed] for seed in a if seed in b)
    if differences is None:
        return None
    n, deviation = differences.n, differences.deviation
    error = None if deviation is None else deviation / math.sqrt(n)
    return Difference(differences.mean, error, n)
