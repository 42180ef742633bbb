"""The loop: resuming, replaying, refusing, and what a run leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from PIL import Image

from sfrik_jax import config as configs
from sfrik_jax import evaluation, metrics, pretrain, weights
from sfrik_jax.__main__ import main
from sfrik_jax.warm_start import first_state

ROOT = Path(__file__).parents[1]
SMALL = [
    "data.train_split=train[:64]",
    "eval.test_split=test[:40]",
    "data.batch_size=16",
    "data.image_size=32",
    "eval.image_size=32",
    "eval.resize=32",
    "model.width=4",
    "model.hidden_dims=(16,)",
    "model.embed_dim=16",
    "optim.epochs=3",
    "optim.warmup_epochs=1",
    "eval.every_epochs=0",
    "eval.knn_k=5",
    "eval.probe_epochs=5",
    "checkpoint.every_steps=4",
    "log.every_steps=1",
]

# `python -m sfrik_jax` on one core: XLA with several threads is not bitwise
# reproducible on every CPU.
PINNED = """
import os, runpy, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
runpy.run_module("sfrik_jax", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def small(data_dir):
    """Overrides that shrink configs/quickstart.py to twelve steps of a tiny net."""
    return [*SMALL, f"data.path={data_dir}"]


def command(workdir: Path, overrides: list[str]) -> list[str]:
    config = str(ROOT / "configs" / "quickstart.py")
    words = ["pretrain", "--config", config, "--workdir", str(workdir)]
    return words + [f"--config.{override}" for override in overrides]


def job_of(overrides: list[str]) -> pretrain.Job:
    config = configs.load(ROOT / "configs" / "quickstart.py", overrides)
    return pretrain.build(config)


def start(workdir: Path, overrides: list[str], **variables: str) -> subprocess.Popen:
    """The real command in a process of its own, pinned to one core."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        "JAX_PLATFORMS": "cpu",
    }
    environment |= variables
    return subprocess.Popen(
        [sys.executable, "-c", PINNED, *command(workdir, overrides)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, code: int) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, out + err
    assert "Traceback" not in err
    return out + err


def summary(workdir: Path) -> dict:
    return json.loads((workdir / "summary.json").read_text())


def width_of(picture: Path) -> int:
    with Image.open(picture) as image:
        return image.width


def logged(workdir: Path, name: str) -> list[float]:
    return [row[name] for row in metrics.read_rows(workdir) if name in row]


def test_a_shrunk_quickstart_leaves_all_its_files(tmp_path, small):
    run = tmp_path / "run"
    overrides = [
        *small,
        "eval.every_epochs=1",
        "eval.baselines=True",
        "log.every_steps=5",
    ]
    said = finish(start(run, overrides), code=0)
    assert "random initialisation" in said
    assert "step 12/12" in said
    found = summary(run)
    for key in (
        "linear_top1",
        "knn5_top1",
        "random_init_linear_top1",
        "random_init_knn5_top1",
        "color_histogram_linear_top1",
        "pixels_knn5_top1",
    ):
        assert 0 <= found[key] <= 100
    assert found["steps"] == 12
    assert found["train_seconds"] > 0
    assert found["views_per_second"] > 0
    assert found["views_per_step"] == 32
    # A process with jax and a net: more than 100 MiB, and no more than the machine has.
    assert found["memory_of"] == "process"
    assert 1e8 < found["peak_memory_bytes"] < 1e12
    spectrum = json.loads((run / "spectrum.json").read_text())
    assert spectrum["images"] == found["test_images"]
    for name, size in (("embeddings", 16), ("features", 128)):
        values = spectrum[name]
        assert len(values) <= min(size, spectrum["images"])
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1, abs=1e-4)
    rows = metrics.read_rows(run)
    assert [r["step"] for r in rows if "train/loss" in r] == [1, 5, 10, 12]
    online = {r["step"]: r for r in rows if "online/knn5_top1" in r}
    assert list(online) == [4, 8, 12]
    # The last of them is the figure of the summary, and its time does not count.
    assert online[12]["online/linear_top1"] == found["linear_top1"]
    assert found["train_seconds"] == round(online[12]["time/seconds"], 1)
    [last] = [r for r in rows if r["step"] == 12 and "train/loss" in r]
    assert last["time/seconds"] == online[12]["time/seconds"]
    assert np.isfinite(last["z/std"])
    first = rows[0]
    for name in ("alignment", "mmd", "mmd_offdiagonal", "learning_rate"):
        assert np.isfinite(first[f"train/{name}"])
    gauges = ("uniformity", "std", "effective_rank", "alignment", "mmd_offdiagonal")
    assert all(np.isfinite(first[f"z/{name}"]) for name in gauges)
    assert first["train/learning_rate"] == 0
    header = (run / "metrics.csv").read_text().splitlines()[0]
    assert header.startswith("step,epoch,train/")
    for picture in ("views.png", "neighbours.png"):
        assert width_of(run / "pictures" / picture) > 100
    session = json.loads((run / "run.json").read_text())["sessions"][0]
    assert session["libraries"]["jax"] == jax.__version__
    backbone, variables, preprocessing = weights.load(run / "backbone.safetensors")
    features = np.asarray(backbone.apply(variables, np.zeros((2, 32, 32, 3))))
    assert features.shape == (2, 128)
    assert preprocessing["image_size"] == 32
    # The second run finds nothing to do and leaves no trace.
    before = (run / "run.json").read_text()
    assert "is done" in finish(start(run, overrides), code=0)
    assert (run / "run.json").read_text() == before
    # Another evaluation is carried out, without a step.
    assert main(command(run, [*overrides, "eval.knn_k=3"])) == 0
    assert "knn3_top1" in summary(run)
    assert summary(run)["train_seconds"] == found["train_seconds"]
    # The report needs the files alone.
    assert main(["report", str(run)]) == 0
    assert "<svg" in (run / "report.html").read_text()


def test_t1_stopped_and_resumed_is_never_stopped(tmp_path, small):
    """A signal in the middle, then the same command again: bitwise the same run."""
    overrides = [*small, "optim.epochs=30", "checkpoint.every_steps=5"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finish(start(whole, overrides), code=0)
    stopped = 0
    for number in (signal.SIGTERM, signal.SIGINT):
        process = start(cut, overrides)
        while process.poll() is None and len(logged(cut, "train/loss")) <= stopped:
            time.sleep(0.02)
        process.send_signal(number)
        said = finish(process, code=75)
        stopped = len(logged(cut, "train/loss"))
        assert f"preempted at step {stopped}, saved" in said
        assert 0 < stopped < 120
    finish(start(cut, overrides), code=0)
    assert summary(cut)["weights_sha256"] == summary(whole)["weights_sha256"]
    assert logged(cut, "train/loss") == logged(whole, "train/loss")
    assert len(json.loads((cut / "run.json").read_text())["sessions"]) == 3


def test_the_step_compiles_once_and_a_step_can_be_replayed(small):
    job = job_of(small)
    state = job.random_state()
    batches = job.loader.iterate(0)
    for _ in range(3):
        state, _ = job.step(state, next(batches))
    kept = jax.device_get(state)
    want, _ = job.step(state, next(batches))
    again = jax.device_put(kept, jax.tree.leaves(want.params)[0].sharding)
    got, _ = job.step(again, job.loader.batch(3))
    chex.assert_trees_all_equal(jax.device_get(got), jax.device_get(want))
    assert job.step._cache_size() == 1  # pyright: ignore


@pytest.mark.parametrize(
    "method", ["sfrik", pytest.param("vicreg", marks=pytest.mark.slow)]
)
def test_training_on_eight_devices_is_training_on_one(small, method):
    losses = {}
    for devices in (1, 8):
        overrides = [*small, f"loss.method={method}", f"mesh.data={devices}"]
        job = job_of(overrides)
        state, values = job.random_state(), []
        for step in range(3):
            state, scalars = job.step(state, job.loader.batch(step))
            values.append(float(scalars["train/loss"]))
        losses[devices] = values
    np.testing.assert_allclose(losses[8], losses[1], rtol=1e-4)


def test_batches_from_the_host_train_like_those_on_the_device(small):
    losses = {}
    for residence in ("device", "host"):
        job = job_of([*small, f"data.residence={residence}"])
        assert job.loader.resident == (residence == "device")
        _, scalars = job.step(job.random_state(), job.loader.batch(0))
        losses[residence] = float(scalars["train/loss"])
    # The crops differ by a grey level in places.
    np.testing.assert_allclose(losses["host"], losses["device"], rtol=0.02)


def test_a_start_that_failed_does_not_bind_the_next(tmp_path, small, capsys):
    run = tmp_path / "run"
    short = [*small, "optim.epochs=1", "optim.warmup_epochs=0"]
    missing = [*short, "data.source=folder", f"data.path={tmp_path}/nowhere"]
    assert main(command(run, missing)) == 66
    assert main(command(run, [*short, f"init_from={tmp_path}/none.safetensors"])) == 66
    assert main(command(run, short)) == 0
    assert len(json.loads((run / "run.json").read_text())["sessions"]) == 1


def test_other_data_under_the_same_settings_is_refused(tmp_path, small, capsys):
    pictures = write_pictures(tmp_path / "pictures", count=20)
    own = [*small, "data.source=folder", f"data.path={pictures}", "optim.epochs=2"]
    own += ["data.train_split=train"]
    run = tmp_path / "run"
    assert main(command(run, own)) == 0
    Image.new("RGB", (40, 40)).save(pictures / "0" / "deeper" / "0.jpg")
    assert main(command(run, own)) == 78
    assert "was started with other data" in capsys.readouterr().err


def test_t2_a_stop_during_the_last_evaluation_is_heeded(tmp_path, small, monkeypatch):
    run = tmp_path / "run"
    short = [*small, "optim.epochs=1", "optim.warmup_epochs=0"]
    evaluate = evaluation.Evaluation.run

    def evaluate_and_stop(self, state):
        results = evaluate(self, state)
        os.kill(os.getpid(), signal.SIGTERM)
        return results

    monkeypatch.setattr(evaluation.Evaluation, "run", evaluate_and_stop)
    assert main(command(run, short)) == 75
    assert not (run / "summary.json").exists()
    monkeypatch.undo()
    assert main(command(run, short)) == 0
    assert summary(run)["steps"] == 4


def test_neighbours_beyond_the_examples_are_refused_before_a_step(
    tmp_path, small, capsys
):
    few = [*small, "eval.train_split=train[:3]"]
    assert main(command(tmp_path / "run", few)) == 2
    assert "eval.knn_k=5 is more than the 3 images" in capsys.readouterr().err


def test_d4_a_run_directory_has_one_writer(tmp_path, small, capsys):
    from sfrik_jax.rundir import RunDirectory

    config = configs.load(ROOT / "configs" / "quickstart.py", small)
    with RunDirectory(tmp_path / "run", config):
        assert main(command(tmp_path / "run", small)) == 73
    assert f"pid {os.getpid()}" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, small, capsys):
    run = tmp_path / "run"
    diverging = [
        *small,
        "optim.name=sgd",
        "optim.base_lr=1e30",
        "checkpoint.every_steps=1",
    ]
    assert main(command(run, diverging)) == 70
    said = capsys.readouterr().err
    assert "optim.base_lr=1e+30" in said
    [listed] = run.glob("nonfinite_*.json")
    batch = json.loads(listed.read_text())
    assert len(batch["index"]) == 16
    last = max(int(p.name) for p in (run / "checkpoints").iterdir())
    assert last < batch["step"]


def write_pictures(folder: Path, count: int = 40) -> Path:
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"{i % 3}" / "deeper" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (30 + i, 50, 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(path)
    return folder


def test_a_folder_of_pictures_without_labels_trains(tmp_path, small, capsys):
    pictures = write_pictures(tmp_path / "pictures" / "all")
    own = [
        "data.source=folder",
        f"data.path={pictures.parent}",
        "data.train_split=train",
    ]
    run = tmp_path / "run"
    assert main(command(run, [*small, *own, "optim.epochs=2"])) == 0
    found = summary(run)
    assert found["steps"] == 4
    assert not any("top1" in key for key in found)
    assert (run / "pictures" / "neighbours.png").exists()
    assert main(["report", str(run)]) == 0


def test_a_backbone_file_starts_another_run(tmp_path, small, capsys):
    first = tmp_path / "first"
    assert (
        main(command(first, [*small, "optim.epochs=1", "optim.warmup_epochs=0"])) == 0
    )
    path = first / "backbone.safetensors"
    job = job_of(small)
    state = first_state(job.random_state, str(path), job.mesh)
    _, variables, _ = weights.load(path)
    chex.assert_trees_all_equal(
        jax.device_get(state.params["backbone"]), jax.device_get(variables["params"])
    )
    other = [*small, f"init_from={path}", "model.width=8"]
    assert main(command(tmp_path / "other", other)) == 2
    assert "init_from" in capsys.readouterr().err


def test_milestones_and_the_profile_are_kept(tmp_path, small):
    run = tmp_path / "run"
    kept = [
        "checkpoint.every_steps=1",
        "checkpoint.keep=2",
        "checkpoint.milestone_epochs=1",
    ]
    traced = ["profile.first_step=2", "profile.last_step=3"]
    assert main(command(run, [*small, *kept, *traced])) == 0
    steps = sorted(int(p.name) for p in (run / "checkpoints").iterdir())
    assert steps == [4, 8, 11, 12]
    assert list((run / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_a_profile_beyond_the_last_step_is_written(tmp_path, small):
    run = tmp_path / "run"
    traced = ["profile.first_step=11", "profile.last_step=40"]
    assert main(command(run, [*small, *traced])) == 0
    assert list((run / "profile").rglob("*.xplane.pb"))


def test_a_mesh_of_two_axes_is_built(small):
    job = job_of([*small, "mesh.data=4", "mesh.model=2", "mesh.projector=model"])
    assert dict(job.mesh.shape) == {"data": 4, "model": 2}


def test_preview_draws_the_views_of_a_step(tmp_path, small):
    out = tmp_path / "views.png"
    config = str(ROOT / "configs" / "quickstart.py")
    words = ["data", "preview", "--config", config, "--out", str(out), "--step", "2"]
    assert main(words + [f"--config.{override}" for override in small]) == 0
    assert width_of(out) > 100
