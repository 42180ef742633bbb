"""T1, T2, T3: SIGTERM, SIGINT and SIGUSR1 in every phase of a run end it with 75.

Before its first step nothing is written; afterwards no step is lost. How a stopped run
goes on bitwise is in test_pretrain.py, several processes in test_many_processes.py.
"""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import CACHE
from test_pretrain import ROOT, SMALL, command, logged, summary

from sfrik_jax import augment, loop, pretrain, previews, weights
from sfrik_jax.__main__ import main
from sfrik_jax.evaluators import knn
from sfrik_jax.interrupts import SIGNALS
from sfrik_jax.processes import local

STEPS = 12
SHORT = [*SMALL, "eval.every_epochs=1", "eval.baselines=False"]

# Signals itself when a module is about to be imported.
AT_IMPORT = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["AT"]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), int(os.environ["SIGNAL"]))
if "sfrik_jax" in sys.orig_argv:
    sys.meta_path.insert(0, Finder())
"""


@pytest.fixture
def settings(data_dir):
    """Overrides of a run of twelve steps, evaluated after each fourth."""
    return [*SHORT, f"data.path={data_dir}"]


def environment(**variables: str) -> dict[str, str]:
    own = {"JAX_COMPILATION_CACHE_DIR": str(CACHE / "jax"), "JAX_PLATFORMS": "cpu"}
    return os.environ | own | variables


def started(words: list[str], **variables: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "sfrik_jax", *words],
        cwd=ROOT,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said_by(process: subprocess.Popen, code: int) -> str:
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == code, out + err
    assert "Traceback" not in err
    return out + err


def ended(process: subprocess.Popen, number: int) -> tuple[float, str]:
    """Seconds from the signal to the end with 75, and what was said."""
    process.send_signal(number)
    start = time.monotonic()
    process.wait(120)
    return time.monotonic() - start, said_by(process, code=75)


def files_of(run: Path) -> set[str]:
    return {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}


def assert_all_is_there(run: Path) -> None:
    """Each step once, each evaluation once, and the files of the end."""
    assert logged(run, "train/loss") and summary(run)["steps"] == STEPS
    rows = [row["step"] for row in loop.metrics.read_rows(run) if "train/loss" in row]
    assert rows == list(range(1, STEPS + 1))
    assert len(logged(run, "online/knn5_top1")) == 3
    assert (run / "backbone.safetensors").exists()


# The command line, the settings, jax, the trainer, the data.
MODULES = (
    "sfrik_jax.commands",
    "ml_collections",
    "jax",
    "orbax.checkpoint",
    "array_record",
)
FAST = {(MODULES[0], signal.SIGTERM), (MODULES[1], signal.SIGINT)}


@pytest.mark.parametrize(
    ("module", "number"),
    [
        pytest.param(
            module, number, marks=[] if (module, number) in FAST else pytest.mark.slow
        )
        for module in MODULES
        for number in SIGNALS
    ],
)
def test_t2_a_signal_while_modules_are_imported(tmp_path, settings, module, number):
    (tmp_path / "sitecustomize.py").write_text(AT_IMPORT)
    run = tmp_path / "run"
    path = {"PYTHONPATH": str(tmp_path), "AT": module, "SIGNAL": str(int(number))}
    said = said_by(started(command(run, settings), **path), code=75)
    assert "nothing to save" in said or "preempted before" in said
    assert not run.exists() or files_of(run) <= {"lock"}


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    ("job", "module"), [("linear", "sfrik_jax.commands"), ("knn", "jax")]
)
def test_t2_an_evaluation_ends_as_a_run_does(tmp_path, number, job, module):
    (tmp_path / "sitecustomize.py").write_text(AT_IMPORT)
    path = {"PYTHONPATH": str(tmp_path), "AT": module, "SIGNAL": str(int(number))}
    config = ROOT / "configs" / f"{job}_imagenet.py"
    words = [job, "--config", str(config), "--weights", str(tmp_path / "none")]
    words += ["--workdir", str(tmp_path / "run")]
    process = started(words, **path)
    # A signal that comes before anything was looked for is heeded before the error.
    assert process.wait(60) in ((75,) if module != "jax" else (75, 66))
    process.communicate()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_t2_a_short_command_ends_as_the_system_has_it(tmp_path, number):
    (tmp_path / "sitecustomize.py").write_text(AT_IMPORT)
    path = {"PYTHONPATH": str(tmp_path), "AT": "ml_collections"}
    config = str(ROOT / "configs" / "quickstart.py")
    words = ["config", "show", "--config", config]
    process = started(words, **path, SIGNAL=str(int(number)))
    _, err = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert err == "error: interrupted\n"
    else:
        assert process.returncode == -signal.SIGTERM


class Phase(NamedTuple):
    """Something that a run does, and where it has to stop when a signal meets it.

    Attributes:
      owner, name: what does it. call: the how manieth time the signal comes.
      saved: the step of the newest checkpoint then.
    """

    owner: Any
    name: str
    call: int
    saved: int

    @contextlib.contextmanager
    def signalled(self, number: int, monkeypatch) -> Iterator[None]:
        """Sends the signal as it begins."""
        function, calls = getattr(self.owner, self.name), itertools.count(1)

        def wrapped(*args, **keywords):
            if next(calls) == self.call:
                os.kill(os.getpid(), number)
            return function(*args, **keywords)

        with monkeypatch.context() as patch:
            patch.setattr(self.owner, self.name, wrapped)
            yield


PHASES = {
    "opening the data": Phase(pretrain, "open_source", 1, 0),
    "the first state": Phase(pretrain, "first_state", 1, 0),
    "the first picture": Phase(previews, "draw", 1, 0),
    "a batch": Phase(loop, "next_batch", 7, 7),
    # Called where the picture and then the step are traced, to be compiled.
    "the compiler": Phase(augment, "make_views", 2, 1),
    "a save": Phase(loop.Checkpoints, "save", 1, 5),
    "kNN": Phase(knn, "classify", 2, 9),
    "the last save": Phase(loop.Checkpoints, "save", 3, STEPS),
    "the last kNN": Phase(knn, "classify", 3, STEPS),
    "the export": Phase(weights, "save", 1, STEPS),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "number"), list(zip(PHASES, itertools.cycle(SIGNALS), strict=False))
)
def test_t2_a_signal_in_a_phase_of_the_run(
    tmp_path, settings, monkeypatch, name, number
):
    run, phase = tmp_path / "run", PHASES[name]
    with phase.signalled(number, monkeypatch):
        assert main(command(run, settings)) == 75
    assert local.newest_step(run) == phase.saved
    assert len(logged(run, "train/loss")) == phase.saved
    assert not (run / "summary.json").exists()
    if phase.saved == 0:
        assert files_of(run) <= {
            "lock",
            "config.json",
            "run.json",
            "pictures/views.png",
        }
    assert main(command(run, settings)) == 0
    assert_all_is_there(run)


@pytest.mark.slow
def test_t2_a_signal_while_a_run_is_restored(tmp_path, settings, monkeypatch):
    run, number = tmp_path / "run", signal.SIGINT
    with PHASES["a batch"].signalled(number, monkeypatch):
        assert main(command(run, settings)) == 75
    before = files_of(run)
    restore = Phase(loop.Checkpoints, "restore", 1, 7)
    with restore.signalled(number, monkeypatch):
        assert main(command(run, settings)) == 75
    assert files_of(run) == before
    assert len(json.loads((run / "run.json").read_text())["sessions"]) == 1
    assert main(command(run, settings)) == 0
    assert_all_is_there(run)


def waiting_in_step(run: Path, settings: list[str], step: int) -> subprocess.Popen:
    """A run whose step does not end, with the checkpoint before it."""
    faults = {"SFRIK_TESTING": "1", "SFRIK_FAULTS": f"step:{step}=sleep:300"}
    process = started(command(run, settings), **faults)
    before = step - 1
    while not (run / "checkpoints" / str(before)).exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    time.sleep(0.5)
    return process


def test_t3_a_step_outlasts_the_grace(tmp_path, settings):
    run, grace = tmp_path / "run", 1
    own = [*settings, f"processes.grace_seconds={grace}"]
    process = waiting_in_step(run, own, step=5)
    seconds, said = ended(process, signal.SIGTERM)
    assert grace - 0.2 < seconds < grace + 1
    assert f"stopped after {grace} s of grace; the last checkpoint is valid" in said
    assert local.newest_step(run) == 4
    assert json.loads((run / "run.json").read_text())["sessions"]


@pytest.mark.slow
def test_t3_a_second_signal_ends_the_run_and_it_goes_on(tmp_path, settings):
    run = tmp_path / "run"
    process = waiting_in_step(run, settings, step=5)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    seconds, said = ended(process, signal.SIGTERM)
    assert seconds < 1
    assert "stopped at once; the last checkpoint is valid" in said
    assert local.newest_step(run) == 4
    said_by(started(command(run, settings)), code=0)
    assert_all_is_there(run)


# What takes the signals once jax has started, and what a signal does then.
TAKEN = """
import os, signal
from sfrik_jax import interrupts, processes
from sfrik_jax.processes import cluster
with interrupts.heard(), interrupts.Stop() as stop:
    ours = [signal.getsignal(number) for number in interrupts.SIGNALS]
    place = cluster.Place("127.0.0.1:PORT", 1, 0, "test", "127.0.0.1")
    processes._client(place, 10)
    import jax
    jax.devices()
    assert [signal.getsignal(number) for number in interrupts.SIGNALS] == ours
    assert not stop.requested
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.requested
    jax.distributed.shutdown()
"""


def test_t1_jax_leaves_the_signals_to_us():
    code = TAKEN.replace("PORT", str(local.free_port()))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_t1_a_signal_loses_no_step(tmp_path, settings, number):
    """One process without a scheduler: the running step is the last, and is saved."""
    run = tmp_path / "run"
    own = [*settings, "optim.epochs=30", "eval.every_epochs=0"]
    process = started(command(run, own))
    while len(logged(run, "train/loss")) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    seconds, said = ended(process, number)
    stopped = len(logged(run, "train/loss"))
    assert f"preempted at step {stopped}, saved" in said
    assert local.newest_step(run) == stopped >= 3
    assert seconds < 60
    print(f"\nfrom the signal to the exit: {seconds:.2f} s")
