"""The evaluation commands on quickstart's network, as a user runs them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from sfrik_jax import weights
from sfrik_jax.__main__ import main
from sfrik_jax.feature_set import FeatureSet

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "quickstart_eval.py"
# Of each part few pictures, and few passes over them.
SMALL = {
    "data.train_split": "train[:256]",
    "data.val_split": "train[256:384]",
    "data.test_split": "test[:128]",
}
OF_JOB = {
    "linear": {"data.batch_size": 64, "probe.epochs": 2, "probe.val_every_epochs": 1},
    "finetune": {
        "data.train_subset": "",
        "data.batch_size": 64,
        "finetune.epochs": 1,
        "finetune.val_every_epochs": 0,
    },
    "knn": {"knn.k": "5,20"},
    "logreg": {"logreg.l2": "0.1,0.01", "logreg.max_iterations": 50},
    "voc-svm": {"data.val_split": "", "svm.costs": "0.1,1", "svm.low_shot": "1,2"},
    "gauges": {"data.val_split": "", "data.test_split": "", "gauges.images": 64},
}
FIGURE = {
    "linear": "linear/top1",
    "finetune": "finetune/top1",
    "features": "features/dimension",
    "knn": "knn/top1_k20",
    "logreg": "logreg/top1",
    "voc-svm": "voc_svm/map_voc07",
    "gauges": "features/rankme",
}
STEPS = (2, 4)


@pytest.fixture(scope="module")
def run_dir(data_dir, tmp_path_factory):
    """Quickstart's network after four steps, with two checkpoints, by the command."""
    workdir = tmp_path_factory.mktemp("runs") / "quickstart"
    overrides = {
        "data.path": data_dir,
        "data.train_split": f"train[:{4 * 64}]",
        "data.batch_size": 64,
        "eval.test_split": "test[:64]",
        "eval.probe_epochs": 1,
        "eval.baselines": False,
        "eval.every_epochs": 0,
        "optim.epochs": 1,
        "optim.warmup_epochs": 0,
        "checkpoint.every_steps": 2,
    }
    words = [f"--config.{key}={value}" for key, value in overrides.items()]
    config = str(ROOT / "configs" / "quickstart.py")
    code = main(["pretrain", "--config", config, "--workdir", str(workdir), *words])
    assert code == 0
    return workdir


def words_of(command: str, run_dir: Path, data_dir: Path, **more) -> list[str]:
    overrides = SMALL | OF_JOB.get(command, {}) | {"data.path": data_dir} | more
    return [
        command,
        "--config",
        f"{CONFIG}:{command}",
        "--weights",
        str(run_dir),
        *(f"--config.{key}={value}" for key, value in overrides.items()),
    ]


@pytest.mark.parametrize("command", FIGURE)
def test_each_command_leaves_its_figures(command, run_dir, data_dir, capfd):
    assert main(words_of(command, run_dir, data_dir)) == 0
    path = run_dir / "eval" / f"{command}.json"
    record = json.loads(path.read_text())
    assert str(path) in capfd.readouterr().out
    figure = record["figures"][FIGURE[command]]
    assert 0 < figure <= 2048
    protocol = record["protocol"]
    assert (protocol["data.image_size"], protocol["data.resize"]) == (48, 48)
    assert len(protocol["data.mean"]) == 3 and protocol["data.decoder"] == "pillow"
    assert {"pillow", "simplejpeg"} <= record["session"]["libraries"].keys()
    exported = weights.open_file(run_dir / "backbone.safetensors")
    digest = weights.fingerprint(exported.variables, exported.arch)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert record["weights"]["sha256"] == digest == summary["backbone_sha256"]
    assert record["weights"]["step"] == STEPS[-1]
    assert record["data"]["train"]["images"] == 256
    assert all(len(part["fingerprint"]) == 64 for part in record["data"].values())

    # Once more: nothing is left to do, and nothing changes.
    before = path.stat().st_mtime_ns
    assert main(words_of(command, run_dir, data_dir)) == 0
    assert path.stat().st_mtime_ns == before
    assert f"{figure:.4g}"[:4] in capfd.readouterr().out


def test_jobs_share_the_stored_features(run_dir, data_dir):
    for command in ("features", "knn", "logreg"):
        assert main(words_of(command, run_dir, data_dir)) == 0
    found = sorted(path.name[:5] for path in (run_dir / "features").iterdir())
    assert found == ["test-", "train", "val-6"] or len(found) == 3
    stored = FeatureSet(next((run_dir / "features").glob("train-*")))
    assert stored.shape == (256, 1024)
    stored.verify()


def test_a_job_of_another_command_is_refused(run_dir, data_dir, capsys):
    words = words_of("knn", run_dir, data_dir)
    for command in ("linear", "pretrain"):
        given = [w for w in words[1:] if w not in ("--weights", str(run_dir))]
        assert main([command, *given]) == 2
        error = capsys.readouterr().err
        assert f"is for the command knn, not for {command}" in error
    quickstart = str(ROOT / "configs" / "quickstart.py")
    assert main(["knn", "--config", quickstart, "--weights", str(run_dir)]) == 2
    assert "is for the command pretrain, not for knn" in capsys.readouterr().err


def test_the_settings_of_a_job_are_shown(capsys):
    words = ["config", "show", "--config", f"{CONFIG}:knn", "--config.weights=x"]
    assert main(words) == 0
    assert "knn.temperature" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data.val_split": ""}, "8 settings to choose from and data.val_split=''"),
        ({"data.val_split": "test[:128]"}, "settings are not chosen on the final"),
        ({"data.val_split": "train[200:384]"}, "have 56 pictures in common"),
        ({"data.test_split": "train[380:500]"}, "have 4 pictures in common"),
        ({"weights": "nowhere.pth"}, "there is no weights file nowhere.pth"),
    ],
)
def test_what_cannot_be_right_is_refused_before_it_begins(
    run_dir, data_dir, capsys, change, words
):
    given = words_of("linear", run_dir, data_dir, **change)
    if "weights" in change:
        at = given.index("--weights")
        del given[at : at + 2]
    name = "refused"
    assert main([*given, "--name", name, "--workdir", str(run_dir)]) in (2, 66)
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (run_dir / "eval" / f"{name}.json").exists()
    assert not (run_dir / "eval" / name / "config.json").exists()


def test_a_file_of_weights_has_a_directory_of_its_own(
    run_dir, data_dir, tmp_path, monkeypatch
):
    shutil.copy(run_dir / "backbone.safetensors", tmp_path / "mine.safetensors")
    monkeypatch.chdir(tmp_path)
    words = words_of("knn", Path("mine.safetensors"), data_dir)
    assert main(words) == 0
    record = json.loads(Path("runs/mine/eval/knn.json").read_text())
    stored = run_dir / "eval" / "knn.json"
    if not stored.exists():  # another process took the test that writes it
        assert main(words_of("knn", run_dir, data_dir)) == 0
    known = json.loads(stored.read_text())
    assert record["weights"]["sha256"] == known["weights"]["sha256"]
    assert record["figures"] == known["figures"]


def test_pretraining_and_probe_in_one_line(run_dir, data_dir):
    """The run is done: the first command finds that out, and the second goes on."""
    cache = jax.config.jax_compilation_cache_dir  # pyright: ignore
    sfrik = f"{sys.executable} -m sfrik_jax"
    first = f"{sfrik} pretrain --config {run_dir} --workdir {run_dir}"
    second = " ".join(
        [sfrik, *words_of("linear", run_dir, data_dir), "--name", "chain"]
    )
    result = subprocess.run(
        ["bash", "-c", f"{first} && {second}"],
        cwd=ROOT,
        env=os.environ
        | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "is done: step 4 of 4" in result.stdout
    assert "linear/top1 " in result.stdout and "Traceback" not in result.stderr
    record = json.loads((run_dir / "eval" / "chain.json").read_text())
    confusion = np.array(record["confusion"])
    assert confusion.sum() == 128
    assert record["figures"]["linear/top1"] == 100 * np.trace(confusion) / 128
