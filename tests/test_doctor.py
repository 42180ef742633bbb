"""`doctor`: each check finds what it is for, says what to do, and ends no other."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from test_pretrain import ROOT

from sfrik_jax import config as configs
from sfrik_jax import doctor
from sfrik_jax.__main__ import main
from sfrik_jax.checkpoint import room
from sfrik_jax.commands import checkup
from sfrik_jax.doctor import devices, findings, installed, places, trials
from sfrik_jax.doctor.findings import Context, Finding
from sfrik_jax.errors import OutputError
from sfrik_jax.planning import plan as plans

QUICKSTART = str(ROOT / "configs" / "quickstart.py")


@pytest.fixture
def context(tmp_path):
    return Context(tmp_path / "runs" / "run")


@pytest.fixture
def with_config(tmp_path, data_dir):
    def make(*overrides):
        own = [f"data.path={data_dir}", "data.batch_size=16", *overrides]
        return Context(tmp_path, configs.load(QUICKSTART, own))

    return make


def test_the_command_finds_this_machine_fit(tmp_path, data_dir):
    """All checks with the real command; it leaves nothing behind."""
    cache = os.environ.get("SFRIK_TEST_CACHE", str(ROOT / ".cache"))
    words = ["--config", QUICKSTART, f"--config.data.path={data_dir}", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "sfrik_jax", "doctor", "--workdir", tmp_path, *words],
        cwd=ROOT,
        env=os.environ
        | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": f"{cache}/jax"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert [each["name"] for each in found] == list(doctor.CHECKS)
    assert {each["outcome"] for each in found} <= {"ok", "warning"}
    words = {each["name"]: each["words"] for each in found}
    assert "5,000 pictures to train on, 1,000 pictures to test on" in words["data"]
    assert "2 steps, was saved and restored, with the same bits" in words["training"]
    assert "a step is counted at" in words["memory"]
    assert list(tmp_path.iterdir()) == []


def test_lines_and_codes_are_those_of_the_findings(monkeypatch, capsys, tmp_path):
    def breaks(_):
        raise ZeroDivisionError("line\none")

    def refused(_):
        raise OutputError("the disk is away; bring it back")

    checks = {
        "libraries": lambda _: findings.warning("not tested", "install it"),
        "writing": refused,
        "memory": breaks,
        "data": lambda _: findings.ok("all there"),
    }
    monkeypatch.setattr(doctor, "CHECKS", checks)
    assert main(["doctor", "--workdir", str(tmp_path)]) == OutputError.code
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[:4] == [
        "warning  libraries      not tested; install it",
        "failed   writing        the disk is away; bring it back",
        "failed   memory         ZeroDivisionError: line one; report it with the "
        "output of --json",
        "ok       data           all there",
    ]
    assert out.splitlines()[4].startswith("2 failed, 1 to look at, of 4 checks in ")


def test_without_devices_what_needs_them_is_not_tried(monkeypatch, context):
    tried = []
    checks = {
        "devices": lambda _: findings.failed("none", "get one", 2),
        "training": tried.append,
    }
    monkeypatch.setattr(doctor, "CHECKS", checks)
    results = list(doctor.examine(context, lambda _: None))
    assert not tried and results[1].finding.words == "not tried"
    assert doctor.exit_code(results) == 2
    assert doctor.exit_code(results[1:]) == 0


def test_a_check_that_does_not_end_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(checkup, "PATIENCE", 0.0625)
    checks = {
        "python": lambda _: findings.ok("quick"),
        "collective": lambda _: time.sleep(0.5) or findings.ok("slow"),
    }
    monkeypatch.setattr(doctor, "CHECKS", checks)
    assert main(["doctor", "--workdir", str(tmp_path)]) == 0
    told = "collective: no end after 0.0625 s; it is given up after 600 s\n"
    assert capsys.readouterr().err == told


STUCK = """
import contextlib, ctypes, sys
from pathlib import Path
from sfrik_jax import doctor
from sfrik_jax.__main__ import main
from sfrik_jax.checkpoint import room
from sfrik_jax.commands import checkup
from sfrik_jax.doctor import places

def stuck(context):
    with places.trial_folder(context) as folder:
        (folder / "file").write_text("")
        ctypes.CDLL(None).sleep(60)

checkup.PATIENCE, checkup.LIMIT = 0.1, 0.4
doctor.CHECKS = {"collective": stuck}
main(["doctor", "--workdir", sys.argv[1]])
"""


def test_a_check_that_is_stuck_in_c_is_given_up(tmp_path):
    """Where no signal reaches Python; the folder for trials is removed all the same."""
    done = subprocess.run(
        [sys.executable, "-c", STUCK, tmp_path],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 76
    late, given_up = done.stderr.splitlines()
    assert late == "collective: no end after 0.1 s; it is given up after 0.4 s"
    assert given_up.startswith("error: collective: no end after 0.4 s: a device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_a_signal_leaves_nothing_behind(monkeypatch, tmp_path, number, code):
    def check(context):
        with places.trial_folder(context):
            os.kill(os.getpid(), number)
            time.sleep(10)

    before = threading.active_count(), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(doctor, "CHECKS", {"training": check})
    try:
        ended = main(["doctor", "--workdir", str(tmp_path)])
    except SystemExit as error:
        ended = error.code
    assert ended == code
    assert list(tmp_path.iterdir()) == []
    # No timer is left that ends the process later.
    assert signal.getsignal(signal.SIGTERM) == before[1]
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join(5)
    assert threading.active_count() <= before[0]


def test_errors_in_a_trial_keep_their_own_words(context):
    gone = pytest.raises(FileNotFoundError, match="some driver")
    with gone, places.trial_folder(context):
        raise FileNotFoundError("some driver")
    hidden = outcome(lambda _: 1 / int("https://me:pass@host"), context)
    assert "https://***@host" in hidden.words


def test_settings_without_a_configuration_are_refused(capsys):
    assert main(["doctor", "--config.seed=1"]) == 2
    assert "needs --config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("version", "bounds", "want"),
    [
        ("0.10.2", ">=0.10.2,<0.13", True),
        ("0.10.1", ">=0.10.2,<0.13", False),
        ("0.13.0", ">=0.10.2,<0.13", False),
        ("0.13.0rc1", ">=0.10.2,<0.13", False),
        ("0.9.9", ">=0.10", False),
        ("3", ">=3.0,<4", True),
        ("1.0.1", "==1.0", False),
        ("1.0.1", "!=1.0.1", False),
        ("5.0.post1", "> 4, <= 5", True),
        ("7", "", True),
    ],
)
def test_versions_are_compared_as_numbers(version, bounds, want):
    assert installed.within(version, bounds) == want


def test_libraries_are_those_of_the_requirements(monkeypatch, context):
    wanted = installed.requirements()
    assert wanted["jax"] == ">=0.10.2,<0.13" and "scikit-learn" in wanted
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert len(wanted) == sum(not line.startswith("#") for line in lines if line)
    assert installed.libraries(context).outcome == "ok"
    monkeypatch.setattr(installed, "requirements", lambda: {"numpy": ">=99"})
    found = installed.libraries(context)
    assert found.outcome == "warning"
    assert f"numpy {np.__version__} (tested: >=99)" in found.words
    monkeypatch.setattr(installed, "requirements", lambda: {"no-such-library": ""})
    assert installed.libraries(context).code == 66


def test_requirements_of_somebody_else_are_not_ours(monkeypatch, tmp_path, context):
    """Beside an installed package lies what other packages left in site-packages."""
    (tmp_path / "requirements.txt").write_text("no-such-library\n")
    monkeypatch.setattr(installed, "ROOT", tmp_path)
    monkeypatch.setattr(installed.metadata, "requires", lambda _: ["numpy>=1"])
    assert installed.requirements() == {"numpy": ">=1"}
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\n')
    assert installed.requirements() == {"numpy": ">=1"}

    def unknown(name):
        raise installed.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(installed.metadata, "requires", unknown)
    assert installed.libraries(context).outcome == "warning"


def test_python_is_compared_with_the_least_one(monkeypatch, context):
    assert installed.python(context).outcome == "ok"
    monkeypatch.setattr(installed, "LEAST_PYTHON", (99, 1))
    found = installed.python(context)
    assert (found.outcome, found.code) == ("failed", 2)
    assert found.line.endswith("; install 99.1 or newer")


def test_devices_are_counted_and_add_up(monkeypatch, context):
    assert "8 x cpu" in devices.devices(context).words
    assert devices.collective(context).words == "a sum over 8 devices is right (36)"
    monkeypatch.setattr(jax.lax, "psum", lambda x, axis: jax.lax.pmean(x, axis))
    found = devices.collective(context)
    assert found.outcome == "failed"
    assert found.words == "the sum over 8 devices is 4.5, not 36"
    assert found.code == 71


def test_a_gpu_that_jax_does_not_use_is_told(monkeypatch, tmp_path, context):
    monkeypatch.setenv("JAX_PLATFORMS", "")
    assert devices.devices(context).outcome == "ok"
    monkeypatch.setattr(devices, "GPU", tmp_path)
    assert "jax[cuda12]" in devices.devices(context).remedy
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert devices.devices(context).outcome == "ok"


def test_a_program_that_computes_wrong_is_told(monkeypatch, context):
    assert devices.compiles(context).outcome == "ok"
    monkeypatch.setattr(devices, "SLOW_COMPILE", 0.0)
    assert devices.compiles(context).outcome == "warning"
    monkeypatch.setattr(devices.jnp, "tanh", lambda x: x)
    assert devices.compiles(context).code == 71


def usage(free):
    return lambda _: types.SimpleNamespace(free=free)


def test_room_is_that_of_the_checkpoints(monkeypatch, tmp_path, context, with_config):
    assert places.disk(context).outcome == "ok"
    monkeypatch.setattr(shutil, "disk_usage", usage(10**8))
    found = places.disk(context)
    assert found.code == 74 and "100.0 MB free" in found.words
    assert "1.0 GB are needed" in found.words
    own = with_config("checkpoint.keep=2", "optim.epochs=8")
    one = room.bytes_of(own.traced.parts.state)
    assert places.needed(own) == 10**8 + 3 * one
    own.config.step.deterministic_reduce = 8  # the same state
    assert places.needed(Context(tmp_path, own.config)) == 10**8 + 3 * one
    assert outcome(trials.memory, own).words.startswith("not counted")
    own.config.checkpoint.milestone_epochs = 3  # of which 3 and 6 stay
    assert places.needed(own) == 10**8 + 5 * one
    for step in range(1, 5):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    assert places.needed(own) == 10**8 + one
    monkeypatch.setattr(shutil, "disk_usage", usage(10**12))
    few = types.SimpleNamespace(f_files=10**6, f_favail=7)
    monkeypatch.setattr(os, "statvfs", lambda _: few)
    assert "takes only 7 more files" in places.disk(context).words


def test_what_cannot_be_written_is_told(tmp_path, context):
    found = places.writing(context)
    assert found.outcome == "ok" and found.words.endswith("and has locks")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OutputError, match="is a file; name"):
            places.writing(Context(path))


def test_a_disk_without_locks_is_told(monkeypatch, context):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    found = places.writing(context)
    assert found.outcome == "warning" and "has no locks" in found.words
    # Locks that keep nobody out are none.
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    assert places.writing(context).outcome == "warning"


def test_little_shared_memory_is_told(monkeypatch, context):
    assert places.shared_memory(context).outcome == "ok"
    monkeypatch.setattr(shutil, "disk_usage", usage(64 << 20))
    assert "--shm-size" in places.shared_memory(context).remedy
    monkeypatch.setattr(places, "SHARED", Path("/nowhere"))
    assert places.shared_memory(context).outcome == "ok"


def outcome(check, context) -> Finding:
    return doctor._carried_out(check, context)


def test_the_data_of_the_configuration_is_opened(with_config, tmp_path):
    found = outcome(trials.data, with_config())
    assert found.words.startswith("5,000 pictures to train on, 1,000 pictures to test")
    assert outcome(trials.data, with_config("data.path=/nowhere")).code == 66
    assert outcome(trials.data, with_config("data.batch_size=8000")).code == 2
    folder = tmp_path / "pictures"
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        for number in range(16):
            (folder / split / f"{number}.jpg").write_bytes(b"<html>")
    own = ["data.source=folder", f"data.path={folder}"]
    found = outcome(trials.data, with_config(*own))
    assert found.code == 65 and "SFRIK-DATA-BAD" in found.words


def test_the_data_that_a_run_puts_up_with_is_told(with_config, tmp_path):
    """A folder without a test split, and bad pictures that are skipped."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(16):
        content = b"P6 2 3 255\n" + bytes(18) if number else b"<html>"
        (folder / f"{number:02}.ppm").write_bytes(content)
    own = ["data.source=folder", f"data.path={folder}", "data.image_size=32"]
    assert outcome(trials.data, with_config(*own)).code == 65
    found = outcome(trials.data, with_config(*own, "data.on_error=skip"))
    assert found.outcome == "warning"
    assert "16 pictures to train on, none to test on, so no accu" in found.words
    assert "the last of 3 x 2 px" in found.words and "00.ppm is bad" in found.words
    own += ["data.on_error=skip", "data.max_bad=0"]
    assert "the budget is 0" in outcome(trials.data, with_config(*own)).words
    (folder / "00.ppm").write_bytes(b"P6 2 3 255\n" + bytes(18))
    assert outcome(trials.data, with_config(*own)).outcome == "ok"


def test_a_step_that_does_not_fit_is_told_with_what_is_smaller(
    monkeypatch, with_config
):
    context = with_config("model.hidden_dims=(8192,8192)", "model.embed_dim=8192")
    assert trials.memory(context).outcome == "ok"
    peak = context.traced.peak().bytes
    # Eight devices share what a CPU has.
    monkeypatch.setattr(trials, "device_memory", lambda: 8 * peak)
    found = trials.memory(context)
    assert found.outcome == "warning"
    assert "mesh.projector=data" in found.remedy
    monkeypatch.setattr(plans.Remedies, "for_memory", lambda *_: None)
    assert "more devices" in trials.memory(context).remedy


def test_one_bit_that_comes_back_otherwise_is_named():
    state = {"a": np.arange(4.0), "b": np.array([np.nan, -0.0])}
    assert trials.differing(state, {k: v.copy() for k, v in state.items()}) == []
    other = {"a": state["a"], "b": np.array([np.nan, 0.0])}
    assert trials.differing(state, other) == ["['b']"]
