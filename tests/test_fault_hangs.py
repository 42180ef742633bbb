"""M3: a job that hangs ends by itself, in time, and says where.

The steps of the tiny net take milliseconds, so a hang is told after three seconds here.
"""

import signal
import time

import pytest
from conftest import CACHE
from test_many_processes import HEARTBEAT, job
from test_many_processes import settings as settings
from test_pretrain import command

from sfrik_jax.processes import local

HANG = 3


@pytest.fixture
def faults(monkeypatch):
    """Arms the faults of a text in the processes that are started after it."""

    def arm(text: str) -> None:
        monkeypatch.setenv("SFRIK_TESTING", "1")
        monkeypatch.setenv("SFRIK_FAULTS", text)

    return arm


@pytest.mark.parametrize("point", ["data_read", "step"])
def test_m3_scratch(settings, tmp_path, faults, point):
    faults(f"{point}:6@1=sleep:120")
    run = tmp_path / "run"
    own = [*settings, f"processes.hang_seconds={HANG}"]
    running = job(2, 1, run, own)
    running.after(2, run)
    start = time.monotonic()
    codes, said = running.end()
    print(time.monotonic() - start, codes)
    print(said[0]); print(said[1])
    print(sorted(run.iterdir()))
    print((run/"hang_rank0.txt").read_text()); print((run/"hang_rank1.txt").read_text())
    assert 0
