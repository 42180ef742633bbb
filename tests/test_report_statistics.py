"""Statistics over seeds against hand numbers, and profiles against the kernels."""

import jax.numpy as jnp
import numpy as np
import pytest

from sfrik_jax import kernels
from sfrik_jax.report.compare import profiles, statistics


def test_a_spread_by_hand():
    found = statistics.spread([1.0, 2.0, 6.0])
    # deviations -2, -1, 3: 14/2 = 7
    assert found is not None and (found.mean, found.n) == (3.0, 3)
    assert found.deviation == pytest.approx(7**0.5)
    assert statistics.spread([5.0]) == statistics.Spread(5.0, None, 1)
    assert statistics.spread([]) is None


def test_paired_differences_by_hand():
    a, b = {"0": 5.0, "1": 7.0, "2": 9.0, "8": 0.0}, {"0": 4.0, "1": 5.0, "2": 6.0}
    # 1, 2, 3: sd 1, error 1/sqrt(3)
    found = statistics.paired(a, b)
    assert found is not None and (found.mean, found.n) == (2.0, 3)
    assert found.error == pytest.approx(3**-0.5)
    # Student's t of 2 degrees of freedom is 4.303: 2 < 2.48.
    assert found.noise == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    assert not found.exceeds_noise
    more = statistics.paired({**a, "3": 2.5, "4": 2.2}, {**b, "3": 0.0, "4": 0.0})
    assert more is not None and more.exceeds_noise  # 5 pairs: 2.14 > 2.776 * 0.33
    wide = statistics.paired({"0": 1.0, "1": 4.0}, {"0": 0.0, "1": 0.0})
    assert wide is not None and wide.error == pytest.approx(1.5)
    assert wide.mean == 2.5 and not wide.exceeds_noise  # 2.5 < 19.1
    one = statistics.paired(a, {"0": 1.0})
    assert one is not None and (one.mean, one.error, one.n) == (4.0, None, 1)
    assert one.exceeds_noise is None
    assert statistics.paired(a, {"9": 1.0}) is None


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 40.0), (2.0, 0.0, 1.0, 3.0)])
@pytest.mark.parametrize("dim", [3, 64])
def test_profiles_are_those_of_the_kernels(weights, dim):
    t = np.linspace(-1, 1, 21)
    want = kernels.TruncatedKernel(weights)(jnp.asarray(t), dim) / sum(weights)
    np.testing.assert_allclose(profiles.profile(weights, t, dim), want, atol=1e-5)
