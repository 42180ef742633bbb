"""A signal reaches whoever has to stop, once; the second one ends the process."""

import os
import signal

import pytest

from sfrik_jax.errors import Preempted
from sfrik_jax.interrupts import SIGNALS, Stop


class Ended(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def ends(monkeypatch):
    """Lets the end of the process be an exception, with its code."""

    def end(code):
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", end)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_the_old_handlers_come_back(number):
    before = [signal.getsignal(each) for each in SIGNALS]
    with Stop() as stop:
        stop.check("here")
        os.kill(os.getpid(), number)
        with pytest.raises(Preempted, match="preempted here; run the same command"):
            stop.check("here")
    assert [signal.getsignal(each) for each in SIGNALS] == before
    with Stop() as another:
        assert not another.requested


def test_a_signal_within_a_job_stops_the_series_too(ends):
    with Stop() as series:
        with Stop() as first:
            assert not first.requested
        assert not series.requested
        with Stop():
            os.kill(os.getpid(), signal.SIGINT)
        assert series.requested
        with Stop() as late:
            assert late.requested
            with pytest.raises(Ended, match="75"):
                os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Ended, match="75"):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_between_two_jobs_stops_the_next_one():
    with Stop() as series:
        os.kill(os.getpid(), signal.SIGTERM)
        assert series.requested
        with Stop() as job, pytest.raises(Preempted):
            job.check("before its first step")
