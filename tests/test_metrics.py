"""Gauges of collapse, the metrics files, and the display."""

import csv
import importlib.machinery
import io
import json
import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from sfrik_jax import metrics


def sphere(m, q, seed=0, dtype=np.float32):
    z = np.random.default_rng(seed).standard_normal((m, q))
    return jnp.asarray(z / np.linalg.norm(z, axis=1, keepdims=True), dtype)


def gauges(z):
    return {name: float(value) for name, value in jax.jit(metrics.gauges)(z).items()}


# --- Gauges -------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "q"), [(256, 16), (16, 256), (256, 4096)])
def test_uniform_embeddings_have_full_spread_and_rank(m, q):
    found = gauges(sphere(m, q))
    assert abs(found["std"] - 1) < 0.05
    assert 0.95 * min(m, q) < found["effective_rank"] <= min(m, q) * (1 + 1e-5)


def test_uniformity_of_uniform_embeddings_is_that_of_the_sphere():
    # E exp(-4 (1 - t)) over the circle is exp(-4) I_0(4).
    angles = jnp.linspace(0, 2 * np.pi, 256, endpoint=False)
    found = gauges(jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1))
    # The mean is over pairs of two: the diagonal's 1 goes from the sum of n values.
    want = (256 * math.exp(-4) * np.i0(4) - 1) / 255
    np.testing.assert_allclose(found["uniformity"], math.log(want), rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_collapse_has_rank_one_no_spread_and_no_uniformity(dtype):
    z = jnp.zeros((256, 64), dtype).at[:, 3].set(1)
    found = gauges(z)
    assert abs(found["effective_rank"] - 1) < 1e-4
    assert abs(found["std"]) < 1e-6
    assert abs(found["uniformity"]) < 1e-4


def test_the_rank_is_the_exponential_of_the_singular_values_entropy():
    z = np.asarray(sphere(64, 48)) * np.geomspace(1, 0.05, 48)
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    p = np.linalg.svd(z, compute_uv=False)
    p = p / p.sum()
    want = np.exp(-np.sum(p * np.log(p)))
    found = gauges(jnp.asarray(z, jnp.float32))
    np.testing.assert_allclose(found["effective_rank"], want, rtol=1e-3)


def test_embeddings_in_a_subspace_have_its_rank():
    z = jnp.zeros((128, 64)).at[:, :5].set(sphere(128, 5))
    assert 4.5 < gauges(z)["effective_rank"] < 5.001


# --- Files --------------------------------------------------------------------------


def lines(workdir):
    return (workdir / "metrics.jsonl").read_text().splitlines()


def write_three_rows(workdir):
    with metrics.Writer(workdir) as writer:
        for step in (1, 2, 3):
            writer.write(step, step / 2, {"train/loss": 10.0 / step})


def test_rows_come_back_as_they_were_written(tmp_path):
    write_three_rows(tmp_path)
    rows = metrics.read_rows(tmp_path)
    assert rows[1] == {"step": 2, "epoch": 1.0, "train/loss": 5.0}
    assert [row["step"] for row in rows] == [1, 2, 3]


def test_a_value_that_is_not_finite_is_null(tmp_path):
    with metrics.Writer(tmp_path) as writer:
        values = {"a": math.nan, "b": math.inf, "c": np.float32(0.5), "d": jnp.ones(())}
        writer.write(1, 0.1, values)
    assert json.loads(lines(tmp_path)[0]) == {
        "step": 1,
        "epoch": 0.1,
        "a": None,
        "b": None,
        "c": 0.5,
        "d": 1.0,
    }


def test_a_last_line_that_a_kill_cut_is_ignored_and_rewritten(tmp_path):
    write_three_rows(tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-9])
    assert [row["step"] for row in metrics.read_rows(tmp_path)] == [1, 2]
    with metrics.Writer(tmp_path, last_step=2) as writer:
        writer.write(3, 1.5, {"train/loss": 7.0})
    rows = [json.loads(line) for line in lines(tmp_path)]
    assert [row["train/loss"] for row in rows] == [10.0, 5.0, 7.0]


@pytest.mark.parametrize(("last_step", "kept"), [(0, []), (2, [1, 2]), (9, [1, 2, 3])])
def test_rows_after_the_restored_step_are_dropped(tmp_path, last_step, kept):
    write_three_rows(tmp_path)
    with metrics.Writer(tmp_path, last_step=last_step):
        assert [json.loads(line)["step"] for line in lines(tmp_path)] == kept


def test_a_fresh_writer_of_a_fresh_run_drops_every_row(tmp_path):
    write_three_rows(tmp_path)
    with metrics.Writer(tmp_path) as writer:
        writer.write(1, 0.5, {"train/loss": 3.0})
    assert [row["train/loss"] for row in metrics.read_rows(tmp_path)] == [3.0]


def test_flushed_rows_are_on_the_disk_before_the_writer_closes(tmp_path):
    with metrics.Writer(tmp_path) as writer:
        writer.write(1, 0.5, {"train/loss": 3.0})
        writer.flush()
        assert len(lines(tmp_path)) == 1


def test_a_run_without_metrics_has_no_rows(tmp_path):
    assert metrics.read_rows(tmp_path) == []


def test_the_table_has_a_column_for_each_name_and_gaps_where_not_measured(tmp_path):
    with metrics.Writer(tmp_path) as writer:
        writer.write(1, 0.5, {"train/loss": 3.0, "z/std": math.nan})
        writer.write(1, 0.5, {"online/knn20_top1": 70.0})
    with (tmp_path / "metrics.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == [
        "step",
        "epoch",
        "train/loss",
        "z/std",
        "online/knn20_top1",
    ]
    assert rows[0]["train/loss"] == "3.0"
    assert rows[0]["z/std"] == rows[0]["online/knn20_top1"] == ""
    assert rows[1]["online/knn20_top1"] == "70.0"
    assert rows[1]["train/loss"] == ""


# --- Display ------------------------------------------------------------------------


def test_without_a_terminal_steps_are_plain_lines(capsys):
    with metrics.Display(total=40, done=0, interval=3600) as display:
        for step in range(1, 41):
            display.step(step, 1234.5, 95.0 * (40 - step), {"loss": 0.5 / step})
        display.say("saved [bold]3[/bold]")
    out, err = capsys.readouterr()
    assert out == ""
    # The first, the last, and between them one in an hour.
    assert err.splitlines() == [
        "step 1/40  eta 1:01:45  1,234 views/s  loss 0.5",
        "step 40/40  eta 0:00  1,234 views/s  loss 0.0125",
        "saved [bold]3[/bold]",
    ]


def test_without_an_interval_every_step_is_a_line(capsys):
    with metrics.Display(total=3, done=1, interval=0.0) as display:
        for step in (2, 3):
            display.step(step, 10.0, 75.0, {})
    assert [line[:8] for line in capsys.readouterr().err.splitlines()] == [
        "step 2/3",
        "step 3/3",
    ]


def test_a_terminal_gets_a_bar(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(
        metrics,
        "Console",
        lambda file: rich.console.Console(file=screen, force_terminal=True, width=120),
    )
    with metrics.Display(total=40, done=10) as display:
        display.step(20, 1234.5, 30.0, {"loss": 0.5})
        display.say("step 20  saved [bold]3[/bold]")
    shown = screen.getvalue()
    for words in ("20/40", "eta", "1,234 views/s", "loss 0.5"):
        assert words in shown
    assert "saved [bold]3[/bold]" in shown


# --- TensorBoard --------------------------------------------------------------------


def test_tensorboard_gets_the_values_and_forgets_steps_to_come(tmp_path, monkeypatch):
    calls = []

    class SummaryWriter:
        def __init__(self, path, purge_step):
            calls.append(("open", path, purge_step))

        def add_scalar(self, name, value, step):
            calls.append((name, value, step))

        def close(self):
            calls.append(("close",))

    module = types.ModuleType("tensorboardX")
    module.SummaryWriter = SummaryWriter  # pyright: ignore
    module.__spec__ = importlib.machinery.ModuleSpec("tensorboardX", None)
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    with metrics.Writer(tmp_path, last_step=6) as writer:
        writer.write(7, 0.5, {"train/loss": 2.0, "z/std": float("nan")})
    assert calls == [
        ("open", str(tmp_path / "tensorboard"), 7),
        ("train/loss", 2.0, 7),
        ("close",),
    ]
