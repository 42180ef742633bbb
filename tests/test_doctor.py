"""`doctor`: each check finds what it is for, says what to do, and ends no other."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
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
    """All checks with the real command, within a minute; it leaves nothing behind."""
    cache = os.environ.get("SFRIK_TEST_CACHE", str(ROOT / ".cache"))
    words = ["--config", QUICKSTART, f"--config.data.path={data_dir}", "--json"]
    begin = time.monotonic()
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
    assert time.monotonic() - begin < 60
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
    monkeypatch.setattr(checkup, "PATIENCE", 0.05)
    checks = {
        "python": lambda _: findings.ok("quick"),
        "collective": lambda _: time.sleep(0.5) or findings.ok("slow"),
    }
    monkeypatch.setattr(doctor, "CHECKS", checks)
    assert main(["doctor", "--workdir", str(tmp_path)]) == 0
    assert capsys.readouterr().err == "collective: no end after 0 s; Ctrl-C gives up\n"


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
    assert devices.compiles(context).outcome == "failed"


def usage(free):
    return lambda _: types.SimpleNamespace(free=free)


def test_room_is_that_of_the_checkpoints(monkeypatch, context, with_config):
    assert places.disk(context).outcome == "ok"
    monkeypatch.setattr(shutil, "disk_usage", usage(10**8))
    found = places.disk(context)
    assert found.code == 74 and "100 MB free" in found.words
    assert "1 GB are needed" in found.words
    kept = [places.needed(with_config(f"checkpoint.keep={k}")) for k in (2, 5)]
    one = (kept[1] - kept[0]) / 3
    assert kept[0] == 10**8 + 3 * one and 10**6 < one < 10**8
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


@pytest.mark.parametrize(
    ("count", "want"), [(512, "512 B"), (3.4e6, "3.4 MB"), (2e15, "2e+03 TB")]
)
def test_bytes_in_words(count, want):
    assert findings.size(count) == want
