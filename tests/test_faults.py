"""Faults on purpose happen where and as often as they say, under a switch alone."""

import errno

import pytest

from sfrik_jax import faults


def test_a_fault_happens_at_its_point_and_step_once(armed):
    armed("step:3=raise eval=raise")
    faults.at("step", 2)
    faults.at("data_read", 3)
    with pytest.raises(faults.InjectedError, match="raise at step"):
        faults.at("step", 3)
    faults.at("step", 3)
    with pytest.raises(faults.InjectedError):
        faults.at("eval", 8)


def test_a_full_disk_is_full_as_often_as_told(armed):
    armed("before_save=enospc:2")
    for _ in range(2):
        with pytest.raises(OSError) as caught:
            faults.at("before_save", 4)
        assert caught.value.errno == errno.ENOSPC
    faults.at("before_save", 4)


def test_another_process_is_spared(armed):
    armed("step@1=raise")
    faults.at("step", 1)


@pytest.mark.parametrize("testing", ["", "0", "yes"])
def test_without_the_switch_nothing_happens(armed, testing):
    armed("step=kill", testing=testing)
    faults.at("step", 1)


@pytest.mark.parametrize("text", ["step", "nowhere=kill", "step:x=kill", "step=KILL"])
def test_a_fault_that_means_nothing_is_refused(armed, text):
    armed(text)
    with pytest.raises(ValueError, match="SFRIK_FAULTS"):
        faults.at("step", 1)
