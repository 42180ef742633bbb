"""M3: a job that hangs ends by itself, in time, and says where.

The steps of the tiny net take milliseconds: here three seconds without one are a hang.
"""

import re
import signal
import time
from pathlib import Path

import pytest
from test_many_processes import HEARTBEAT, STEPS, Job, assert_same_run, job
from test_many_processes import settings as settings
from test_many_processes import whole as whole
from test_pretrain import logged

from sfrik_jax.processes import local

HANG = 3
# Looks, the answers of the others, the stacks, and that all have heard of it.
MORE = 8


@pytest.fixture
def hanging(settings, tmp_path, monkeypatch):
    """Starts processes in which a fault happens; returns them and their directory."""

    def start(count: int, fault: str) -> tuple[Job, Path]:
        monkeypatch.setenv("SFRIK_TESTING", "1")
        monkeypatch.setenv("SFRIK_FAULTS", fault)
        run = tmp_path / "run"
        return job(count, 1, run, [*settings, f"processes.hang_seconds={HANG}"]), run

    return start


def seconds_to_end(running: Job) -> float:
    start = time.monotonic()
    for process in running.processes:
        process.wait(timeout=60)
    return time.monotonic() - start


CASES = [(2, "data_read", 1), (2, "step", 1), (2, "data_read", 0), (1, "data_read", 0)]


@pytest.mark.parametrize(
    ("count", "point", "rank"),
    [CASES[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES[1:])],
)
def test_m3_a_process_that_hangs_ends_all(hanging, count, point, rank):
    running, run = hanging(count, f"{point}:7@{rank}=sleep:300")
    # What came before the hang is logged as far as the step is known to have ended.
    running.after(4, run)
    seconds = seconds_to_end(running)
    codes, said = running.end()
    assert codes == [76] * count, said
    assert HANG - 1 < seconds < HANG + MORE
    print(f"\nfrom the last logged step to the end: {seconds:.1f} s")
    told = rf"no step for \d+ s \(N = {HANG} s\); last step 7 at rank {rank} "
    told += rf"\({point}\); stacks of all threads are in {run}/hang_rank\*\.txt"
    assert len(re.findall(told, said[0])) == 1
    assert "Traceback" not in "".join(said)
    assert sum("error: " in each for each in said) <= count
    for index in range(count):
        stacks = (run / f"hang_rank{index}.txt").read_text()
        assert re.match(r"\S+ step \d+ \(\w+\)\n", stacks)
        assert stacks.count("hread 0x") > 3
        assert "loop.py" in stacks and "in run_steps" in stacks
    stacks = (run / f"hang_rank{rank}.txt").read_text()
    assert f"step 7 ({point})" in stacks
    assert "faults.py" in stacks and "in happen" in stacks
    assert local.newest_step(run) == 4


@pytest.mark.slow
def test_m3_a_job_that_hung_goes_on(hanging, settings, whole, monkeypatch):
    running, run = hanging(2, "data_read:9@1=sleep:300")
    assert running.end()[0] == [76, 76]
    monkeypatch.setenv("SFRIK_FAULTS", "")
    codes, said = job(2, 2, run, settings).end()
    assert codes == [0, 0], said
    assert_same_run(run, whole)


@pytest.mark.slow
def test_m3_a_stopped_process_is_noticed_by_the_heartbeat(settings, whole, tmp_path):
    run = tmp_path / "run"
    running = job(2, 2, run, settings)
    running.after(8, run)
    running.processes[1].send_signal(signal.SIGSTOP)
    start = time.monotonic()
    running.processes[0].wait(timeout=HEARTBEAT + 30)
    seconds = time.monotonic() - start
    print(f"\na stopped peer: {seconds:.1f} s")
    assert seconds < HEARTBEAT + 5
    running.processes[1].kill()
    codes, said = running.end()
    assert codes[0] in (76, -signal.SIGABRT), said
    assert len(logged(run, "train/loss")) < STEPS
    codes, said = job(2, 2, run, settings).end()
    assert codes == [0, 0], said
    assert_same_run(run, whole)
