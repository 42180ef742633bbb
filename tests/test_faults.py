"""Faults on purpose happen where and as often as they say, under a switch alone."""

import errno

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sfrik_jax import faults, number_faults
from sfrik_jax.passes import ADDED


def test_a_fault_happens_at_its_point_and_step_once(arm):
    arm("step:3=raise eval=raise")
    faults.at("step", 2)
    faults.at("data_read", 3)
    with pytest.raises(faults.InjectedError, match="raise at step"):
        faults.at("step", 3)
    faults.at("step", 3)
    with pytest.raises(faults.InjectedError):
        faults.at("eval", 8)


def test_a_full_disk_is_full_as_often_as_told(arm):
    arm("before_save=enospc:2")
    for _ in range(2):
        with pytest.raises(OSError) as caught:
            faults.at("before_save", 4)
        assert caught.value.errno == errno.ENOSPC
    faults.at("before_save", 4)


def test_another_process_is_spared(arm):
    arm("step@1=raise")
    faults.at("step", 1)


@pytest.mark.parametrize("testing", ["", "0", "yes"])
def test_without_the_switch_nothing_happens(arm, testing):
    arm("step=kill", testing=testing)
    faults.at("step", 1)


def test_numbers_are_put_into_a_program_at_their_step(arm):
    arm("views:2=nan:7 loss:3=inf gradient=nan")
    batch = {"index": jnp.array([5, 7])}
    added = [number_faults.in_batch(batch, jnp.int32(k))[ADDED] for k in (1, 2)]
    np.testing.assert_array_equal(added, [[0, 0], [0, np.nan]])
    losses = [number_faults.in_value("loss", jnp.ones(2), jnp.int32(k)) for k in (2, 3)]
    np.testing.assert_array_equal(losses, [[1, 1], [np.inf, np.inf]])
    tree = {"a": jnp.ones(1), "b": jnp.ones(1)}
    tree = number_faults.in_first("gradient", tree, jnp.int32(1))
    np.testing.assert_array_equal([tree["a"], tree["b"]], [[np.nan], [1]])


def test_a_program_without_faults_of_numbers_has_no_trace_of_them(arm):
    arm("step=raise")

    def program(index, loss, step):
        batch = number_faults.in_batch({"index": index}, step)
        return batch, number_faults.in_first("gradient", {"loss": loss}, step)

    ones = jnp.ones(2)
    assert not jax.make_jaxpr(program)(ones, ones, jnp.int32(3)).eqns


@pytest.mark.parametrize(
    "text",
    [
        *("step", "nowhere=kill", "step:x=kill", "step=KILL", "step=nan"),
        *("loss=kill", "loss=nan:3", "views=nan", "views@1=nan:3"),
    ],
)
def test_a_fault_that_means_nothing_is_refused(arm, text):
    arm(text)
    with pytest.raises(ValueError, match="SFRIK_FAULTS"):
        faults.at("step", 1)
