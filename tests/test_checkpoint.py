"""Checkpoints: bitwise, verified, with a way back, and never a silent fresh start."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from states import State, abstract, bits, opened, placed, state_of

from sfrik_jax.checkpoint.digest import digests


@pytest.mark.parametrize(("saved_on", "restored_on"), [(1, 1), (8, 8), (8, 1), (1, 8)])
def test_a_state_comes_back_bit_for_bit(tmp_path, saved_on, restored_on):
    state = placed(state_of(7), saved_on)
    target = abstract(placed(state_of(7), restored_on))
    with opened(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(7, state, wait=True)
        assert checkpoints.steps() == [7]
    with opened(tmp_path / "checkpoints") as checkpoints:
        found = checkpoints.restore(target)
    assert isinstance(found, State)
    assert bits(found) == bits(state)
    for leaf, like in zip(jax.tree.leaves(found), jax.tree.leaves(target), strict=True):
        assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)


def test_a_background_save_is_complete_after_closing(tmp_path):
    with opened(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(7, state_of(7))
    with opened(tmp_path / "checkpoints") as checkpoints:
        assert bits(checkpoints.restore(abstract(state_of(7)))) == bits(state_of(7))


@pytest.fixture
def two(tmp_path):
    """A directory with steps 10 and 20."""
    with opened(tmp_path) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, state_of(step), wait=True)
    return tmp_path


def test_the_newest_of_several_comes_back(two):
    with opened(two) as checkpoints:
        assert checkpoints.steps() == [10, 20]
        assert bits(checkpoints.restore(abstract(state_of(0)))) == bits(state_of(20))


def test_nothing_saved_is_no_state(tmp_path):
    with opened(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.restore(abstract(state_of(0))) is None


def test_saving_a_stored_step_again_changes_nothing(two):
    with opened(two) as checkpoints:
        checkpoints.save(20, state_of(20, seed=1), wait=True)
        assert checkpoints.steps() == [10, 20]
        assert bits(checkpoints.restore(abstract(state_of(0)))) == bits(state_of(20))


def test_the_newest_stay_and_milestones_stay_for_good(tmp_path):
    with opened(tmp_path / "checkpoints", keep=2, keep_period=20) as checkpoints:
        for step in range(10, 71, 10):
            checkpoints.save(step, state_of(step), wait=True)
    with opened(tmp_path / "checkpoints", keep=2, keep_period=20) as checkpoints:
        assert checkpoints.steps() == [20, 40, 60, 70]
        found = checkpoints.restore(abstract(state_of(0)))
        assert bits(found) == bits(state_of(70))


def test_without_milestones_only_the_newest_stay(tmp_path):
    with opened(tmp_path / "checkpoints", keep=2) as checkpoints:
        for step in (10, 20, 30, 40):
            checkpoints.save(step, state_of(step), wait=True)
        assert checkpoints.steps() == [30, 40]


# --- Digests ------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [2, 8])
def test_digests_are_the_same_for_every_sharding(devices):
    want = digests(state_of(3))
    assert digests(placed(state_of(3), devices)) == want
    assert len(want) == 6


def flip(x, index, bit):
    """x with one bit of one element flipped."""
    raw = np.array(x).reshape(-1)
    words = raw.view(f"uint{8 * raw.itemsize}")
    words[index] ^= words.dtype.type(1 << bit)
    return jnp.asarray(raw.reshape(x.shape))


@pytest.mark.parametrize("leaf", ["kernel", "half", "odd"])
def test_every_flipped_bit_changes_its_leafs_digest_alone(leaf):
    state = state_of(3)
    want, rng = digests(state), random.Random(leaf)
    x = state.params[leaf]
    for _ in range(20):
        index, bit = rng.randrange(x.size), rng.randrange(8 * x.dtype.itemsize)
        params = {**state.params, leaf: flip(x, index, bit)}
        found = digests(state._replace(params=params))
        changed = [name for name in want if want[name] != found[name]]
        assert changed == [f".params['{leaf}']"]


def test_exchanged_elements_change_the_digest():
    x = jnp.arange(12.0)
    y = x.at[jnp.array([2, 9])].set(x[jnp.array([9, 2])])
    assert digests({"x": x}) != digests({"x": y})
