"""A signal reaches whoever has to stop, once; the second one ends the process."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sfrik_jax import interrupts
from sfrik_jax.errors import Preempted
from sfrik_jax.interrupts import SIGNALS, Stop

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_the_old_handlers_come_back(number):
    before = [signal.getsignal(each) for each in SIGNALS]
    threads = threading.active_count()
    with Stop() as stop:
        stop.check("here")
        os.kill(os.getpid(), number)
        with pytest.raises(Preempted, match="preempted here; run the same command"):
            stop.check("here")
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert threading.active_count() == threads
    assert signal.set_wakeup_fd(-1) == -1
    with Stop() as another:
        assert not another.requested


def test_a_signal_within_a_job_stops_the_series_too():
    with Stop() as series:
        with Stop() as first:
            assert not first.requested
        assert not series.requested
        with Stop():
            os.kill(os.getpid(), signal.SIGINT)
        assert series.requested
        with Stop() as late:
            assert late.requested


def test_a_signal_between_two_jobs_stops_the_next_one():
    with Stop() as series:
        os.kill(os.getpid(), signal.SIGTERM)
        assert series.requested
        with Stop() as job, pytest.raises(Preempted):
            job.check("before its first step")


def test_a_launcher_that_signals_twice_asks_once():
    """To the group and to each process: both come within a moment."""
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(interrupts.REPEATED / 2)
        assert stop.requested


# Nothing of Python runs in the main thread while the hash is made, which takes seconds.
BUSY = """
import hashlib, sys
from sfrik_jax import interrupts
interrupts.REPEATED = 0.0
with interrupts.Stop(grace=float(sys.argv[1])):
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 60_000_000)
"""


def ended(code: str, *words: str, signals: int) -> tuple[float, str]:
    """Seconds from the last signal to the end with 75, and what was said."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "busy\n"
        start = time.monotonic()
        for _ in range(signals):
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            start = time.monotonic()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    return time.monotonic() - start, said


def test_t3_a_second_signal_ends_a_process_that_runs_no_python():
    seconds, said = ended(BUSY, "60", signals=2)
    assert seconds < 1
    assert said.splitlines()[-1] == "stopped at once; the last checkpoint is valid"


def test_t3_the_end_of_the_grace_ends_a_process_that_runs_no_python():
    seconds, said = ended(BUSY, "0.5", signals=1)
    assert 0.4 < seconds < 2
    assert "stopped after 0.5 s of grace; the last checkpoint is valid" in said


NOTHING = """
import time
from sfrik_jax import interrupts
with interrupts.heard():
    print("busy", flush=True)
    time.sleep(60)
"""


def test_t2_a_run_that_has_not_begun_ends_at_once():
    seconds, said = ended(NOTHING, signals=1)
    assert seconds < 1
    assert said == "stopped with nothing to save\n"


def test_t2_a_signal_at_the_very_end_does_not_change_the_code():
    code = """
import os, signal, sys
from sfrik_jax import interrupts
with interrupts.heard(to_the_end=True):
    pass
for number in interrupts.SIGNALS:
    os.kill(os.getpid(), number)
sys.exit(65)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 65
