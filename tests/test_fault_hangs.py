"""M3: a job that hangs ends by itself, in time, and says where.

The steps of the tiny net take milliseconds: here three seconds without one are a hang.
"""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_many_processes import HEARTBEAT, STEPS, Job, assert_same_run, job
from test_many_processes import settings as settings
from test_many_processes import whole as whole
from test_pretrain import ROOT, logged

from sfrik_jax import errors, processes, watchdog
from sfrik_jax.processes import local

HANG = 3
# Looks, the answers of the others, the stacks, and that all have heard of it.
MORE = 12


@pytest.fixture
def hanging(settings, tmp_path, monkeypatch):
    """Starts processes in which a fault happens; returns them and their directory."""

    def start(count: int, fault: str) -> tuple[Job, Path]:
        monkeypatch.setenv("SFRIK_TESTING", "1")
        monkeypatch.setenv("SFRIK_FAULTS", fault)
        run = tmp_path / "run"
        own = [f"processes.hang_seconds={HANG}", "checkpoint.every_steps=3"]
        return job(count, 1, run, [*settings, *own]), run

    return start


def seconds_to_end(running: Job) -> float:
    start = time.monotonic()
    for process in running.processes:
        process.wait(timeout=60)
    return time.monotonic() - start


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "point", "rank"),
    [(2, "data_read", 1), (2, "step", 1), (2, "data_read", 0), (1, "data_read", 0)],
)
def test_m3_a_run_that_hangs_ends(hanging, count, point, rank):
    running, run = hanging(count, f"{point}:7@{rank}=sleep:300")
    running.after(6, run)  # which is saved, and logged before
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
    assert local.newest_step(run) == 6


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


# A job without a net: what all wait for is the talk in place of a collective.
LOOP = """
import sys, time
from pathlib import Path
from sfrik_jax import interrupts, processes, watchdog
from sfrik_jax.__main__ import SfrikError
from sfrik_jax.commands import running
settings = {"join_seconds": 30, "heartbeat_seconds": 5, "grace_seconds": 1}
try:
    with running.job(settings | {"hang_seconds": int(sys.argv[2])}, Path(sys.argv[1])):
        with processes.shared_stop() as stop:
            for step in range(1, 1000):
                watchdog.at("data_read", step, settled=True)
                watchdog.at("step", step, settled=True)
                processes.barrier()
                if step == 5 and processes.first():
                    print("running", flush=True)
                if stop.reached(step):
                    sys.exit(75)
                time.sleep(0.1)
except SfrikError as error:
    sys.exit(error.code)
"""


def loops(
    tmp_path: Path, count: int, fault: str = "", hang: int = 2
) -> list[subprocess.Popen]:
    """Processes of that job, five steps later."""
    port = local.free_port()
    testing = {"SFRIK_TESTING": "1", "SFRIK_FAULTS": fault}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", LOOP, str(tmp_path), str(hang)],
            cwd=ROOT,
            env=local.environment(index, count, 1, port) | testing,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    assert started[0].stdout is not None
    assert started[0].stdout.readline() == "running\n"
    return started


def ended(started: list[subprocess.Popen]) -> tuple[float, list[int], list[str]]:
    """The seconds until all have ended, their codes, and what they said."""
    start = time.monotonic()
    try:
        said = [process.communicate(timeout=60)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return time.monotonic() - start, [p.returncode for p in started], said


@pytest.mark.parametrize(("count", "rank"), [(1, 0), (3, 2)])
def test_m3_all_end_with_their_stacks(tmp_path, count, rank):
    point = "data_read" if rank else "step"
    started = loops(tmp_path, count, f"{point}:7@{rank}=sleep:300")
    seconds, codes, said = ended(started)
    print(f"\n{count} processes: {seconds:.1f} s")
    assert codes == [76] * count, said
    assert seconds < 2 + MORE
    told = f"s (N = 2 s); last step 7 at rank {rank} ({point}); stacks of all threads"
    assert said[0].count("error: ") == said[0].count(told) == 1
    for index in range(count):
        stacks = (tmp_path / f"hang_rank{index}.txt").read_text()
        place = f"step 7 ({point if index == rank else 'step'})"
        assert place in stacks.splitlines()[0]
        assert 'File "<string>", line' in stacks
        assert ("in happen" in stacks) == (index == rank)


@pytest.mark.parametrize(
    ("number", "rank"),
    [(signal.SIGKILL, 1), (signal.SIGKILL, 0), (signal.SIGSTOP, 1)],
)
def test_m2_a_dead_or_stopped_process_is_noticed(tmp_path, number, rank):
    """By the heartbeat of five seconds: no connection of a collective breaks here."""
    started = loops(tmp_path, 2, hang=0)
    started[rank].send_signal(number)
    start, other = time.monotonic(), started[1 - rank]
    other.wait(60)
    seconds = time.monotonic() - start
    started[rank].kill()
    _, codes, said = ended(started)
    print(f"\n{number.name} of process {rank}: {seconds:.1f} s, {codes}")
    assert codes[1 - rank] in (76, -signal.SIGABRT), said
    assert seconds < 5 + 5


def test_t3_the_grace_of_one_process_ends_all(tmp_path):
    """Process 1 sleeps in a step, and so no process comes to where all may stop."""
    started = loops(tmp_path, 2, "step:7@1=sleep:300")
    time.sleep(0.5)
    started[1].send_signal(signal.SIGTERM)
    seconds, codes, said = ended(started)
    print(f"\nfrom the signal to the end of both: {seconds:.1f} s")
    assert codes == [75, 75], said
    assert seconds < 1 + MORE
    assert "stopped after 1 s of grace; the last checkpoint is valid" in said[1]


class Told(Exception):
    """Stands for the end of all processes."""


@pytest.fixture
def watch(tmp_path, monkeypatch):
    """A watch that looks when it is told to; the others answer with `others`."""

    def end_all(error: errors.SfrikError, *, hangs: bool):
        assert hangs and error.code == 76
        raise Told(str(error))

    others: list[str | None] = []

    def made(hang_seconds: float, *said: str | None) -> watchdog.Watch:
        watch = watchdog.Watch(tmp_path, hang_seconds)
        others[:] = said
        monkeypatch.setattr(processes, "count", lambda: 1 + len(said))
        monkeypatch.setattr(processes, "ask", lambda *_: [watch.answer(), *others])
        return watch

    monkeypatch.setattr(processes, "end_all", end_all)
    yield made
    watchdog.at("start")


def step_on(watch: watchdog.Watch, step: int, seconds: float) -> None:
    """One step of so many seconds, as the watch sees it."""
    watchdog.at("data_read", step, settled=True)
    watch.look(0.0)
    for _ in range(round(seconds / watchdog.LOOK)):
        watch.look(watchdog.LOOK)


def test_m3_the_limit_is_ten_median_steps_and_at_least_a_minute(watch):
    automatic = watch(-1)
    for step in range(10, 15):
        step_on(automatic, step, 1.0)
    assert automatic.limit() == 60
    for step in range(15, 35):
        step_on(automatic, step, 59.0 if step == 20 else 9.0)
    assert automatic.limit() == pytest.approx(90, rel=0.01)
    fixed = watch(3)
    step_on(fixed, 35, 0)
    assert fixed.limit() == 3


@pytest.mark.parametrize("phase", ["resume", "data_read", "step", "save", "profile"])
def test_m3_what_compiles_restores_or_saves_has_an_hour(watch, phase):
    for hang_seconds in (-1, 3):
        made = watch(hang_seconds)
        watchdog.at(phase, 1)
        made.look(0.0)
        assert made.limit() == 3600


@pytest.mark.parametrize("phase", ["start", "eval", "end"])
def test_m3_what_nobody_can_tell_from_a_hang_is_not_watched(watch, phase):
    made = watch(3)
    watchdog.at(phase, 1)
    made.look(0.0)
    assert made.limit() == float("inf")


def test_m3_a_process_that_slept_has_not_hung(watch):
    made = watch(60)
    step_on(made, 7, 10.0)
    made.look(100_000.0)  # no look in between: it was suspended
    step_on(made, 7, 59.0)
    with pytest.raises(Told, match=r"no step for 60 s \(N = 60 s\); last step 7 at "):
        for _ in range(4):
            made.look(watchdog.LOOK)


def answer(step: int, phase: str, late: bool) -> str:
    return json.dumps([step, phase, late])


@pytest.mark.parametrize(
    ("others", "told"),
    [
        ([answer(7, "data_read", True)], "last step 7 at rank 1 (data_read)"),
        ([answer(9, "step", True)], "last step 8 at rank 0 (step)"),
        ([answer(8, "step", True)], "last step 8 at rank 0, 1 (step)"),
        ([answer(8, "data_read", True)], "last step 8 at rank 1 (data_read)"),
        ([None, answer(8, "step", True)], "rank 1 does not answer"),
        # It may still save, has moved a moment ago, or does not watch yet.
        ([answer(6, "save", False)], None),
        ([answer(8, "step", True), answer(8, "step", False)], None),
        ([""], None),
    ],
)
def test_m3_who_is_behind_is_named_and_who_may_take_its_time_excuses(
    watch, tmp_path, others, told
):
    made = watch(2, *others)
    watchdog.at("step", 8, settled=True)
    made.look(0.0)
    if told is None:
        for _ in range(100):
            made.look(watchdog.LOOK)
        assert not (tmp_path / "hang_rank0.txt").exists()
        return
    with pytest.raises(Told) as caught:
        for _ in range(100):
            made.look(watchdog.LOOK)
    assert f"; {told}; stacks" in str(caught.value)
    assert "step 8 (step)" in (tmp_path / "hang_rank0.txt").read_text()


def test_m3_saying_where_one_is_costs_a_microsecond():
    start = time.perf_counter()
    for step in range(100_000):
        watchdog.at("step", step, settled=True)
    each = (time.perf_counter() - start) / 100_000
    print(f"\n{1e6 * each:.2f} us")
    assert each < 20e-6
    watchdog.at("start")
