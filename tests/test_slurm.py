"""launch/slurm.sbatch: on a real SLURM, and with stand-ins for its commands."""

import contextlib
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm_here
from conftest import CACHE
from test_pretrain import SMALL

from sfrik_jax import metrics

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "launch" / "slurm.sbatch"
TASKS = 2
FAKE_DEVICES = {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "1",
    "JAX_COMPILATION_CACHE_DIR": str(CACHE / "jax"),
    # Every start after the first finds its programs.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


@pytest.fixture(scope="module")
def slurm():
    """A real SLURM; where none can be started, the reason is the test's outcome."""
    with contextlib.ExitStack() as stack:
        try:
            running = stack.enter_context(slurm_here.started())
        except slurm_here.CannotStart as error:
            pytest.skip(f"SLURM cannot start: {error}")
        yield running


def submit(slurm, data_dir, workdir, *options, overrides=()):
    """Submits the real script with a tiny configuration. Returns the job's number."""
    settings = [*SMALL, f"data.path={data_dir}", *overrides]
    return slurm(
        "sbatch",
        "--parsable",
        f"--output={workdir.parent}/%x-%A.log",
        *options,
        str(SCRIPT),
        "--config",
        "configs/quickstart.py",
        "--workdir",
        str(workdir),
        *(f"--config.{setting}" for setting in settings),
        cwd=ROOT,
        environment={"PYTHON": sys.executable} | FAKE_DEVICES,
    )


def steps(workdir):
    return [row["step"] for row in metrics.read_rows(workdir) if "train/loss" in row]


def wait_for(what, happens, seconds=120):
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.05)


def test_a_job_is_requeued_in_the_middle_and_ends(slurm, data_dir, tmp_path):
    run, seeds = tmp_path / "run", tmp_path / "seeds"
    job = submit(
        slurm,
        data_dir,
        run,
        f"--ntasks-per-node={TASKS}",
        overrides=["optim.epochs=15"],
    )
    wait_for("steps", lambda: len(steps(run)) > 2)
    # As at the time limit: the batch script alone gets the signal.
    slurm("scancel", "--batch", "--signal=USR1", job)
    array = submit(
        slurm,
        data_dir,
        seeds,
        "--array=0-1",
        overrides=["optim.epochs=1", "seed=%a"],
    )
    wait_for("requeue", lambda: slurm.job(job)["Restarts"] == "1")
    stopped = len(steps(run))
    for number in (job, f"{array}_0", f"{array}_1"):
        wait_for(
            f"end of job {number}",
            lambda n=number: slurm.job(n)["JobState"] in ("COMPLETED", "FAILED"),
        )
    log = (tmp_path / f"sfrik-{job}.log").read_text()
    assert slurm.job(job)["ExitCode"] == "0:0", log
    assert slurm.job(job)["Restarts"] == "1"
    assert f"preempted at step {stopped}, saved" in log
    assert 2 < stopped < 60
    assert steps(run) == list(range(1, 61))
    assert json.loads((run / "summary.json").read_text())["steps"] == 60
    sessions = json.loads((run / "run.json").read_text())["sessions"]
    assert [session["processes"] for session in sessions] == [TASKS, TASKS]
    for index in range(2):
        config = json.loads((seeds / str(index) / "config.json").read_text())
        assert config["seed"] == index
        assert (seeds / str(index) / "summary.json").exists()


# Stand-ins: `srun` starts TASKS tasks and returns the highest code, the interpreter
# ends as CODES say, `scontrol` notes its words and ends with SCONTROL.
SRUN = """
while [ "$1" != bash ]; do shift; done
highest=0
for SLURM_PROCID in $(seq 0 $((TASKS - 1))); do
  export SLURM_PROCID
  "$@"; code=$?
  [ $code -gt $highest ] && highest=$code
done
exit $highest
"""
PROGRAM = """
echo "task $SLURM_PROCID: $*" >>"$SAID"
if [ -n "$STEP" ]; then mkdir -p "$RUN/checkpoints/$STEP"; fi
set -- $CODES
shift $SLURM_PROCID
case $1 in SIG*) kill -s ${1#SIG} $$ ;; *) exit $1 ;; esac
"""
SCONTROL = """
for word in "$@"; do echo "$word" >>"$SAID.scontrol"; done
echo "$RUN"/checkpoints/* >"$SAID.stored"
exit $SCONTROL
"""
SYSTEM = ("bash", "dirname", "mkdir", "printf", "rm", "sed", "seq", "xargs")


class Batch:
    """The batch script in a folder of its own, started as SLURM starts it."""

    def __init__(self, folder):
        self.folder, self.run = folder, folder / "run"
        (folder / "bin").mkdir()
        (folder / "launch").symlink_to(ROOT / "launch")
        for name in SYSTEM:
            (folder / "bin" / name).symlink_to(shutil.which(name))
        for name, text in (("srun", SRUN), ("python", PROGRAM), ("scontrol", SCONTROL)):
            self.program(name, text)

    def program(self, name, text):
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}")
        path.chmod(0o755)

    def __call__(self, codes, *words, **variables):
        """Runs it to its end; a word of `codes` is how a task ends."""
        process = self.start(codes, *words, **variables)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess([], process.returncode, out, err)

    def start(self, codes, *words, **variables):
        self.said("said").unlink(missing_ok=True)
        self.said("said.scontrol").unlink(missing_ok=True)
        words = words or ("--config", "c.py", "--workdir", str(self.run))
        environment = {
            "PATH": str(self.folder / "bin"),
            "PYTHON": "python",
            "SLURM_JOB_ID": "41",
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_NTASKS": str(len(codes.split())),
            "TASKS": str(len(codes.split())),
            "CODES": codes,
            "SCONTROL": "0",
            "SAID": str(self.said("said")),
            "RUN": str(self.run),
            "STEP": "",
        }
        return subprocess.Popen(
            ["bash", str(SCRIPT), *words],
            env=environment | variables,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def said(self, name):
        return self.folder / name

    def tasks(self):
        return self.said("said").read_text().splitlines()

    def requeued(self):
        """The words of scontrol, if it was called."""
        path = self.said("said.scontrol")
        return path.read_text().splitlines() if path.exists() else None


@pytest.fixture
def batch(tmp_path):
    return Batch(tmp_path)


IN_ARRAY = {"SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "2"}


@pytest.mark.parametrize("codes", ["75 75", "76 SIGABRT", "SIGKILL SIGABRT"])
def test_t4_a_stopped_job_is_requeued_once(batch, codes):
    result = batch(codes, STEP="7")
    assert result.returncode == 75, result.stderr
    assert batch.requeued() == ["requeue", "41"]
    # After all tasks have ended, and the checkpoint is there.
    assert len(batch.tasks()) == 2
    assert batch.said("said.stored").read_text() == f"{batch.run}/checkpoints/7\n"


def test_t4_an_element_of_an_array_is_requeued_alone(batch):
    words = ("--workdir=a dir/x", "--config", "c.py:%a", "--config.seed=%a")
    assert batch("75", *words, **IN_ARRAY).returncode == 75
    assert batch.requeued() == ["requeue", "40_2"]
    [task] = batch.tasks()
    assert task.startswith("task 0: -m sfrik_jax pretrain ")
    assert "--config c.py:2 --config.seed=2 " in task
    assert task.endswith(" --workdir a dir/x/2")
    batch("0", "--config", "c.py", "--workdir", "runs/seed_%a", **IN_ARRAY)
    assert batch.tasks()[0].endswith("--workdir runs/seed_2")


def test_an_array_s_element_has_the_words_of_its_line(batch, tmp_path):
    """launch/slurm.sbatch --commands, with a stand-in for srun."""
    listed = tmp_path / "commands.txt"
    words = ["--workdir", "runs/a b", "--config.data.name='x'", "--config.w=(1, 40)"]
    lines = [["python", "-m", "sfrik_jax", "pretrain", *w] for w in (["--x"], words)]
    listed.write_text("".join(f"{shlex.join(line)}\n" for line in lines))
    result = batch("0", "--commands", str(listed), **IN_ARRAY)
    assert result.returncode == 0, result.stderr
    [task] = batch.tasks()
    assert "--workdir runs/a b --config.data.name='x' --config.w=(1, 40) " in task
    assert task.endswith(" --workdir runs/a b")
    result = batch(
        "0", "--commands", str(listed), **{**IN_ARRAY, "SLURM_ARRAY_TASK_ID": "3"}
    )
    assert result.returncode == 2
    assert "it has no line 3" in result.stderr


@pytest.mark.parametrize("how", ["missing", "failing"])
def test_t4_a_requeue_that_fails_says_what_to_do(batch, how):
    if how == "missing":
        (batch.folder / "bin" / "scontrol").unlink()
    result = batch("75", **IN_ARRAY, SCONTROL="1")
    assert result.returncode == 75
    assert result.stderr.splitlines()[-1] == (
        "warning: the job is not requeued; go on with: scontrol requeue 40_2"
    )


@pytest.mark.parametrize("code", [0, 1, 2, 65, 66, 70, 71, 73, 74, 78])
def test_a_code_that_no_restart_mends_is_the_job_s(batch, code):
    # The peers of a process that ended die by signal.
    result = batch(f"{code}" if code == 0 else f"SIGABRT {code} 76")
    assert result.returncode == code
    assert batch.requeued() is None


def test_three_restarts_without_a_new_checkpoint_are_enough(batch):
    for _ in range(2):
        batch("76", STEP="5")
        assert batch.requeued() == ["requeue", "41"]
    for _ in range(3):  # a newer checkpoint begins the count afresh
        batch("76", STEP="10")
        assert batch.requeued() == ["requeue", "41"]
    result = batch("76", STEP="10")
    assert batch.requeued() is None
    assert result.returncode == 76
    assert result.stderr.splitlines()[-1] == (
        "error: 3 restarts without a checkpoint after step 10; look at the log, then "
        "submit again"
    )


@pytest.mark.parametrize(
    ("words", "variables", "message"),
    [
        (("--config", "c.py"), {}, "--workdir DIR is missing"),
        ((), {"PYTHON": "nowhere/python"}, "no interpreter at nowhere/python"),
        ((), {"SLURM_SUBMIT_DIR": "/"}, "/ is not the root of the repository"),
    ],
)
def test_a_job_that_cannot_start_ends_with_2(batch, words, variables, message):
    result = batch("0", *words, **variables)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_step_gets_the_processors_of_the_job(batch):
    batch.program("python", 'echo "$SRUN_CPUS_PER_TASK" >>"$SAID"')
    batch("0", SLURM_CPUS_PER_TASK="12")
    assert batch.tasks() == ["12"]


# A step that ends 0.3 s after its first signal, or when it is told by a file.
WAITING = """
import os, pathlib, signal, sys, time
asked, said = [], pathlib.Path(os.environ["SAID"])
signal.signal(signal.SIGUSR1, lambda *_: asked.append("asked\\n"))
said.write_text("up\\n")
while not asked and not said.with_name("end").exists():
    time.sleep(0.01)
time.sleep(0.3)
said.write_text("up\\n" + "".join(asked))
sys.exit(75)
"""


@pytest.mark.parametrize(
    ("number", "told", "requeued"),
    [
        (signal.SIGUSR1, ["up", "asked"], ["requeue", "41"]),
        (signal.SIGTERM, ["up"], None),  # of scancel; all tasks have got it too
    ],
)
def test_t4_a_signal_to_the_script_reaches_the_step_once(batch, number, told, requeued):
    srun = batch.folder / "bin" / "srun"
    srun.write_text(f"#!{sys.executable}\n{WAITING}")
    started = batch.start("75")
    wait_for("the step", lambda: batch.said("said").exists())
    for _ in range(3):
        started.send_signal(number)
    if number == signal.SIGTERM:
        batch.said("end").touch()
    out, err = started.communicate(timeout=60)
    assert started.returncode == 75, out + err
    assert batch.tasks() == told
    assert batch.requeued() == requeued
    assert ("ended from outside" in out) == (requeued is None)
