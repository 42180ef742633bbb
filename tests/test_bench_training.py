"""The benches of loss, step and heads run, and write what their readers look for."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_loss_counts_the_arithmetic_of_each_arm(tmp_path):
    options = ["--n", "32", "--q", "64,128", "--rounds", "1", "--seconds", "0.01"]
    out, rows = run("loss.py", tmp_path / "loss.json", *options)
    flop = {"ours": 8 * 32**2, "ours, dense autodiff": 12 * 32**2}
    assert {(row["arm"], row["q"]) for row in rows} >= {
        (arm, q) for arm in flop for q in (64, 128)
    }
    for row in rows:
        want = flop.get(row["arm"])
        if want is not None:
            found = row["TFLOP/s"] * 1e12 * row["ms"] / 1000
            assert found == pytest.approx(want * row["q"])
        assert f"| {row['q']} | {row['arm']} |" in out
    # The peer is compared with where it is installed, and missed aloud where not.
    assert ("torch" in {row["arm"] for row in rows}) != ("no arms of torch" in out)


@pytest.mark.slow  # it compiles for 40 s
def test_step_is_timed_alone_and_fed_from_jpegs(tmp_path):
    options = "--size 16 --stem small --batch 8 --q 32 --hidden 32 --rounds 1"
    fed = "--seconds 0.1 --fed fast --workers 2"
    out, rows = run("step.py", tmp_path / "step.json", *options.split(), *fed.split())
    times = {row["arm"]: row["ms"] for row in rows}
    assert times.keys() >= {"ours", "ours, fed (fast)"}
    for row in rows:
        assert math.isclose(row["views/s"] * row["ms"] / 1000, 16)
        assert row["settings"]["fed"] == "fast"
        assert f"| {row['arm']} |" in out


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
