"""The input bench runs and writes what its readers look for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "input.json"
    options = ["--pictures", "4", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, ROOT / "bench" / "input.py", *options, "--json", path],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        cwd=path.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "| fast |" in done.stdout
    return {row["arm"]: row for row in json.loads(path.read_text())}


def test_each_arm_has_its_figures(rows):
    assert rows.keys() >= {"original", "pillow crops", "exact", "fast", "decode alone"}
    for row in rows.values():
        assert row["name"] == "input"
        assert row["median_seconds"] > 0
        want = rows["original"]["median_seconds"] / row["median_seconds"]
        assert row["ratio_to_peer"] == pytest.approx(want)
        assert row["median_seconds"] == row["median_cpu_seconds"]
        assert row["shapes"] == {"pictures": 4, "size": 224, "workers": 1}
        assert {"versions", "cpu", "cores", "date", "rounds"} <= row.keys()


def test_the_exact_crops_are_the_originals_and_the_fast_ones_near(rows):
    assert rows["original"]["mean_difference"] == 0
    assert 0 < rows["fast"]["mean_difference"] < 1
    assert "mean_difference" not in rows["decode alone"]
