"""The benches of loss, step and heads run, and write what their readers look for."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import loss, timing

ROOT = Path(__file__).parents[1]


def run(bench, path, *options):
    done = subprocess.run(
        [sys.executable, ROOT / "bench" / bench, *options, "--json", path],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        cwd=path.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text())


def test_loss_counts_the_arithmetic_of_each_arm_and_compares_it(tmp_path):
    options = "--n 32 --q 48,128 --order 2 --rounds 1 --seconds 0.01 --short"
    out, rows = run("loss.py", tmp_path / "loss.json", *options.split())
    counts = {
        "ours": lambda n, q: 8 * n * n * q,
        "ours, dense autodiff": lambda n, q: 12 * n * n * q,
        "ours, feature": lambda n, q: 8 * n * q * q,
        "torch": lambda n, q: 12 * n * n * q,
        "torch, VICReg": lambda n, q: 12 * n * q * q,
    }
    found = {(row["arm"], row["shapes"]["q"]): row for row in rows}
    ours = ("ours", "ours, feature", "ours, dense autodiff", "ours, VICReg")
    assert found.keys() >= {(arm, q) for arm in ours for q in (48, 128)}
    # Below q = 2n the covariance is formed, from there on the Gram.
    forms = [found["ours, VICReg", q]["form"] for q in (48, 128)]
    assert forms == ["covariance", "gram"]
    for (arm, q), row in found.items():
        if arm in counts:
            want = counts[arm](32, q)
            # Beside the Gram products ours has one with the inverse lengths, 4 n q.
            assert want <= row["flop"] <= want + 4 * 32 * q
        assert row.keys() >= {"name", "median_seconds", "bytes", "share_of_limit"}
        assert f"| {q} | {arm} | {row['form']} |" in out
        if arm in ours:
            assert row["peak_bytes"] > 8 * 32 * q
            assert row.get("agreement", {"gradient": 0})["gradient"] < 1e-5
    # The peer is compared with where it is installed, and missed aloud where not.
    peer = "ours, dense autodiff" if "no arms of torch" in out else "torch"
    assert [row["peer"] for row in rows if row["arm"] == "ours"] == [peer, peer]


def test_loss_ends_with_an_error_where_arms_disagree():
    right = np.ones((2, 3, 4), np.float32)
    arms = {"ours": (1.0, right), "torch": (1.0, 1.001 * right)}
    entries = [
        loss.Entry(
            timing.Arm(name, print), lambda answer=answer: answer, ("torch",), {}
        )
        for name, answer in arms.items()
    ]
    with pytest.raises(SystemExit, match="ours and torch disagree"):
        loss.agreements(entries, "float32")
    found = loss.agreements(entries, "bfloat16")["ours"]["agreement"]
    assert found == {"with": "torch", "value": 0, "gradient": pytest.approx(1e-3, 1e-2)}


def test_the_gradient_error_is_told_with_its_goals(tmp_path):
    options = "--gradient-error --n 64 --q 128"
    out, rows = run("loss.py", tmp_path / "error.json", *options.split())
    assert [row["embeddings"] for row in rows] == ["clustered", "uniform"]
    for row in rows:
        assert all(
            0 < error < row["aim"] < row["must"] for error in row["errors"].values()
        )
        assert f"| 64 | 128 | {row['embeddings']} | " in out


@pytest.mark.slow  # it compiles for 40 s
def test_step_is_timed_alone_and_fed_from_jpegs(tmp_path):
    options = "--size 16 --stem small --batch 8 --q 32 --hidden 32 --rounds 1"
    more = f"--seconds 0.1 --fed fast --workers 2 --float-views --profile {tmp_path}"
    out, rows = run("step.py", tmp_path / "step.json", *options.split(), *more.split())
    arms = {row["arm"]: row for row in rows}
    ours = {"ours", "ours, from float views", "ours, fed (fast)"}
    assert arms.keys() >= ours
    for row in rows:
        assert math.isclose(row["views_per_second"] * row["median_seconds"], 16)
        assert row["share_of_limit"] > 0
        assert row["shapes"]["q"] == 32
        assert f"| {row['arm']} |" in out
    assert all(arms[name]["peak_bytes"] > 0 for name in ours)
    assert "ours" in arms["ours, from float views"]["ratios"]
    assert "ratios" not in arms["ours, fed (fast)"], "it took no turns with others"
    assert (tmp_path / "sfrik" / "operations.png").is_file()
    # With the peer goes its agreement, without it a line.
    assert ("agreement" in arms["ours"]) != ("no arms of torch" in out)


def test_heads_are_timed_beside_one(tmp_path):
    options = "--width 4 --size 16 --classes 3 --batch 8"
    short = "--rounds 1 --seconds 0.01"
    out, rows = run(
        "heads.py", tmp_path / "heads.json", *options.split(), *short.split()
    )
    assert [row["heads"] for row in rows] == [1, 8]
    one, cpu = (rows[0][f"median_{clock}seconds"] for clock in ("", "cpu_"))
    for row in rows:
        assert row["ratio_to_peer"] == pytest.approx(one / row["median_seconds"])
        found = row["CPU times one head"]
        assert found == pytest.approx(row["median_cpu_seconds"] / cpu)
        assert row["pictures/s"] == pytest.approx(8 / row["median_seconds"])
        assert f"| {row['heads']} | " in out
