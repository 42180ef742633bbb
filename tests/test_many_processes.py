"""Whole jobs in several processes: the result of one, however they stop and go on.

The rate is small: at a rate that trains, rounding grows a thousandfold in ten steps of
such a small net, and no two partitions of the same sums would agree for long.
"""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import CACHE
from test_pretrain import ROOT, SMALL, command, logged, summary, write_pictures

from sfrik_jax import metrics
from sfrik_jax.__main__ import main
from sfrik_jax.data.crops import Order
from sfrik_jax.processes import local

STEPS = 32
HEARTBEAT = 10
CALM = [
    "optim.name=sgd",
    "optim.base_lr=3e-5",
    "optim.epochs=8",
    "eval.baselines=False",
    f"processes.heartbeat_seconds={HEARTBEAT}",
    "processes.join_seconds=60",
]


@pytest.fixture(scope="module")
def settings(data_dir):
    """Overrides of a run of 32 steps of a tiny net."""
    return [*SMALL, *CALM, f"data.path={data_dir}"]


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    """The run in one process with four devices, never stopped."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    assert main(command(workdir, [*settings, "mesh.data=4"])) == 0
    return workdir


def environment() -> dict[str, str]:
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(CACHE / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        "JAX_PLATFORMS": "cpu",
    }


class Job:
    """The processes of a job, with the words of each."""

    def __init__(self, commands: list[list[str]], devices: int) -> None:
        port, count = local.free_port(), len(commands)
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "sfrik_jax", *words],
                cwd=ROOT,
                env=environment() | local.environment(index, count, devices, port),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index, words in enumerate(commands)
        ]

    def end(self) -> tuple[list[int], list[str]]:
        """The codes and what was said."""
        try:
            said = [process.communicate(timeout=300) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [p.returncode for p in self.processes], [out + err for out, err in said]

    def after(self, steps: int, workdir: Path) -> None:
        """Waits until so many steps are in the metrics."""
        while len(logged(workdir, "train/loss")) < steps:
            assert self.processes[0].poll() is None, self.end()
            time.sleep(0.05)


def job(count: int, devices: int, workdir: Path, settings: list[str]) -> Job:
    return Job([command(workdir, settings)] * count, devices)


def assert_same_run(workdir: Path, whole: Path, rtol: float = 1e-5) -> None:
    """Every step once, its scalars, and the figures at the end."""
    rows, expected = (
        [row for row in metrics.read_rows(run) if "train/loss" in row]
        for run in (workdir, whole)
    )
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for name in ("train/loss", "train/alignment", "train/mmd_offdiagonal", "z/std"):
        np.testing.assert_allclose(
            [row[name] for row in rows], [row[name] for row in expected], rtol=rtol
        )
    found, wanted = summary(workdir), summary(whole)
    assert found["steps"] == wanted["steps"] == STEPS
    # Of 40 pictures, 2.5 % each, some lie so near two classes that rounding decides.
    assert abs(found["knn5_top1"] - wanted["knn5_top1"]) <= 7.5
    for key in ("protocol", "train_images", "test_images"):
        assert found[key] == wanted[key]


def test_m1_two_processes_do_as_one_and_a_signal_to_one_stops_both(
    settings, whole, tmp_path
):
    run = tmp_path / "run"
    running = job(2, 2, run, settings)
    running.after(8, run)
    running.processes[1].send_signal(signal.SIGTERM)
    start = time.monotonic()
    codes, said = running.end()
    print(f"\nfrom the signal to the end of both: {time.monotonic() - start:.1f} s")
    assert codes == [75, 75], said
    stopped = len(logged(run, "train/loss"))
    assert 8 <= stopped < STEPS
    assert f"preempted at step {stopped}, saved" in said[0]
    assert "error" not in said[1] and "Traceback" not in said[0] + said[1]
    newest = local.newest_step(run)
    assert newest == stopped
    # One checkpoint of both processes, and no half of one.
    names = {path.name for path in (run / "checkpoints").iterdir() if path.is_dir()}
    assert names <= {str(step) for step in (stopped, *range(0, stopped, 4))}
    codes, said = job(2, 2, run, settings).end()
    assert codes == [0, 0], said
    assert "step 32/32" in said[0] and "step 32" not in said[1]
    assert_same_run(run, whole)
    sessions = json.loads((run / "run.json").read_text())["sessions"]
    assert [session["processes"] for session in sessions] == [2, 2]
    assert len(sessions[0]["devices"]) == 4
    # One process goes on with the run of two, and finds nothing to do.
    assert main(command(run, [*settings, "mesh.data=4"])) == 0
    assert len(json.loads((run / "run.json").read_text())["sessions"]) == 2


def test_m4_a_job_whose_processes_do_not_meet(settings, tmp_path):
    """One that waits for another in vain, and one whose port is taken."""
    run = tmp_path / "run"
    words = command(run, [*settings, "processes.join_seconds=1"])
    with socket.create_server(("127.0.0.1", 0)) as server:
        ports = {"missing": local.free_port(), "taken": server.getsockname()[1]}
        started = {
            name: subprocess.Popen(
                [sys.executable, "-m", "sfrik_jax", *words],
                cwd=ROOT,
                env=environment() | local.environment(0, 2, 1, port),
                stderr=subprocess.PIPE,
                text=True,
            )
            for name, port in ports.items()
        }
        said = {name: each.communicate(timeout=60)[1] for name, each in started.items()}
    missing, taken = (f"127.0.0.1:{port}" for port in ports.values())
    assert started["missing"].returncode == 76, said
    assert f"process 1 of 2 did not come to {missing} within 1 s" in said["missing"]
    assert started["taken"].returncode == 2, said
    assert f"port {taken} is taken by another program" in said["taken"]
    assert all(text.count("\n") == 1 for text in said.values())
    assert not run.exists()


@pytest.fixture(scope="module")
def refused(settings, tmp_path_factory):
    """The codes and words of jobs that cannot be, started at once: by name."""
    runs = tmp_path_factory.mktemp("refused")
    run = runs / "run"
    other_rate = [*settings, "optim.base_lr=1e-5"]
    jobs = {
        "batch": job(3, 1, run, settings),
        "rate": Job([command(run, settings), command(run, other_rate)], 1),
        "place": Job([command(run, settings), command(runs / "other", settings)], 1),
    }
    found = {name: started.end() for name, started in jobs.items()}
    for _, said in found.values():
        assert "Traceback" not in "".join(said)
        assert said[0].count("error: ") == 1
    assert not (run / "config.json").exists() and not (runs / "other").exists()
    assert logged(run, "train/loss") == []
    return runs, found


def test_e2_a_batch_that_the_devices_cannot_share(refused):
    codes, said = refused[1]["batch"]
    assert codes == [2, 2, 2], said
    assert (
        "data.batch_size=16 leaves 1 images over on 3 devices; use 15 or 18" in said[0]
    )


def test_m5_another_configuration_is_refused_before_a_step(refused):
    codes, said = refused[1]["rate"]
    assert codes == [78, 78], said
    assert "process 1 has optim.base_lr=1e-05, process 0 has 3e-05" in said[0]


def test_m6_a_run_directory_that_not_all_see(refused):
    runs, found = refused
    codes, said = found["place"]
    assert codes == [73, 73], said
    assert f"--workdir {runs / 'run'} is not shared: process 1 on " in said[0]
    assert str(runs / "other") in said[0]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_processes_of_one_device_do_as_one_process(settings, whole, tmp_path, count):
    codes, said = job(count, 1, tmp_path / "run", settings).end()
    assert codes == [0] * count, said
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
def test_e1_other_numbers_of_devices_and_processes_go_on(settings, whole, tmp_path):
    run = tmp_path / "run"
    for count, devices, until in ((4, 1, 8), (2, 1, 16), (1, 1, 24), (2, 2, STEPS)):
        running = job(count, devices, run, settings)
        if until < STEPS:
            running.after(until, run)
            running.processes[-1].send_signal(signal.SIGINT)
        codes, said = running.end()
        assert set(codes) == {75 if until < STEPS else 0}, said
    assert_same_run(run, whole)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [1, 0])
def test_m2_a_killed_process_ends_the_others_and_the_job_goes_on(
    settings, whole, tmp_path, killed
):
    run = tmp_path / "run"
    running = job(2, 2, run, settings)
    running.after(8, run)
    running.processes[killed].kill()
    start = time.monotonic()
    other = running.processes[1 - killed]
    other.wait(timeout=HEARTBEAT + 30)
    seconds = time.monotonic() - start
    print(f"\na dead process {killed}: {seconds:.1f} s")
    assert seconds < HEARTBEAT + 5
    codes, said = running.end()
    assert codes[1 - killed] in (76, -signal.SIGABRT), said
    codes, said = job(2, 2, run, settings).end()
    assert codes == [0, 0], said
    assert_same_run(run, whole)


@pytest.mark.slow
def test_m2_the_supervisor_starts_a_job_again_that_lost_a_process(
    settings, whole, tmp_path
):
    run = tmp_path / "run"
    words = ["2", "--devices", "2", "--", *command(run, settings)]
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "sfrik_jax.processes.local", *words],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    listed = Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children")
    for steps, killed in ((8, -1), (20, 0)):
        while len(logged(run, "train/loss")) < steps:
            assert supervisor.poll() is None, supervisor.communicate()
            time.sleep(0.05)
        started = sorted(map(int, listed.read_text().split()))
        os.kill(started[killed], signal.SIGKILL)
        while set(started) & set(map(int, listed.read_text().split())):
            time.sleep(0.05)
    _, err = supervisor.communicate(timeout=300)
    assert supervisor.returncode == 0, err
    assert err.count("ended by SIGKILL") == 2
    assert_same_run(run, whole)


@pytest.mark.slow
def test_e1_a_fixed_order_gives_the_same_bits_in_any_number_of_processes(
    settings, tmp_path
):
    """1, 2, 4 devices in each of 1, 2, 4 processes; then on from one to another."""
    own = [*settings, "step.deterministic_reduce=16", "optim.epochs=2"]
    hashes = {}
    for count, devices in itertools.product((1, 2, 4), repeat=2):
        run = tmp_path / f"{count}x{devices}"
        codes, said = job(count, devices, run, own).end()
        assert codes == [0] * count, said
        hashes[count, devices] = summary(run)["weights_sha256"]
    assert len(set(hashes.values())) == 1, hashes
    run = tmp_path / "on"
    running = job(2, 1, run, own)
    running.after(3, run)
    running.processes[1].send_signal(signal.SIGTERM)
    assert running.end()[0] == [75, 75]
    codes, said = job(1, 4, run, own).end()
    assert codes == [0], said
    assert summary(run)["weights_sha256"] == hashes[1, 1]


UNREADABLE = """
import os, sys
if os.environ.get("SFRIK_PROCESS_INDEX") == "1" and "pretrain" in sys.orig_argv:
    from orbax.checkpoint import StandardCheckpointHandler
    read = StandardCheckpointHandler.restore
    def restore(self, directory, *args, **settings):
        if os.environ["UNREADABLE"] in str(directory).split(os.sep):
            raise OSError("Stale file handle")
        return read(self, directory, *args, **settings)
    StandardCheckpointHandler.restore = restore
"""


@pytest.mark.slow
def test_what_one_process_cannot_read_no_process_takes(
    settings, whole, tmp_path, monkeypatch
):
    """With columns of the projector in each, which is then resumed whole in one."""
    run = tmp_path / "run"
    split = [*settings, "mesh.projector=data", "checkpoint.every_steps=4"]
    running = job(2, 1, run, split)
    running.after(10, run)
    running.processes[0].send_signal(signal.SIGTERM)
    assert running.end()[0] == [75, 75]
    newest = local.newest_step(run)
    (tmp_path / "sitecustomize.py").write_text(UNREADABLE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("UNREADABLE", str(newest))
    running = job(2, 1, run, [*split, "log.every_steps=1"])
    running.after(newest + 1, run)
    running.processes[0].send_signal(signal.SIGTERM)
    codes, said = running.end()
    assert codes == [75, 75], said
    assert f"SFRIK-CKPT-CORRUPT step {newest}: cannot be read" in said[0]
    assert (run / "checkpoints" / f"{newest}.corrupt").is_dir()
    assert main(command(run, [*settings, "mesh.data=4"])) == 0
    assert_same_run(run, whole)


@pytest.mark.slow
def test_an_error_of_one_process_ends_all_with_its_code(settings, tmp_path):
    """A picture that process 1 alone reads: its half of the first batch holds it."""
    pictures = write_pictures(tmp_path / "pictures", count=64)
    rows = Order(64, 16, 0).indices(0)[8:]
    names = sorted(pictures.rglob("*.jpg"))
    names[int(rows[0])].write_bytes(b"no picture")
    own = [*settings, "data.source=folder", f"data.path={pictures}"]
    own += ["data.train_split=train", "data.residence=host"]
    codes, said = job(2, 1, tmp_path / "run", own).end()
    assert codes == [65, 65], said
    assert "error: process 1: SFRIK-DATA-BAD" in said[0]
