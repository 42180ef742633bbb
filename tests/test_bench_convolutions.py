"""The bench of convolutions finds a network's, compares the arms and times them."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from bench import convolutions, roofline

ROOT = Path(__file__).parents[1]


def test_the_convolutions_of_a_network_are_those_that_it_runs():
    args = Namespace(backbone="resnet18", stem="imagenet", size=96, images=2)
    found = convolutions.shapes(args)
    assert sum(shape.times for shape in found) == 20
    first, second, *_ = found
    assert first == (2, 96, 96, 3, 64, 7, 2, 1)
    assert second == (2, 24, 24, 64, 64, 3, 1, 4)
    assert [shape.first for shape in found] == [True] + [False] * 10


def test_a_disagreement_is_the_largest_relative_one():
    want = [np.array([3.0, 4.0]), np.array([1.0])]
    assert convolutions.disagreement(want, want) == 0
    found = [np.array([3.0, 4.5]), np.array([1.2])]
    assert convolutions.disagreement(found, want) == pytest.approx(0.2)


def test_an_arm_that_disagrees_ends_the_bench(monkeypatch):
    shape = convolutions.Shape(2, 4, 4, 2, 2, 3, 1)
    monkeypatch.setattr(convolutions, "disagreement", lambda found, want: 1.0)
    args = Namespace(dtype="float32", rounds=1, seconds=0)
    with pytest.raises(SystemExit, match="ours and xla differ by 1"):
        convolutions.measure(shape, args, roofline.Limits({}, 1.0), {})


def test_all_arms_of_a_small_network_are_timed(tmp_path):
    path = tmp_path / "convolutions.json"
    words = "--backbone resnet14 --stem small --size 8 --images 1 --rounds 1"
    more = ["--seconds", "0", "--json", path]
    done = subprocess.run(
        [sys.executable, ROOT / "bench/convolutions.py", *words.split(), *more],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())
    ours = [row for row in rows if row["arm"] == "ours"]
    assert {row["form"] for row in ours} == {"xla", "winograd", "patches"}
    assert all(row["agreement"]["xla"] < 1e-5 for row in ours)
    assert len([row for row in rows if row["arm"] == "xla"]) == len(ours)
    for row in ours:
        assert f"| {convolutions.Shape(**row['shapes'])} | {row['form']} |" in (
            done.stdout
        )
    assert "all: ours" in done.stdout
    assert ("torch" in {row["arm"] for row in rows}) != (
        "no arms of torch" in done.stdout
    )
