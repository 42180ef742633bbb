"""The guard compares ratios, each with the one of equal bench, shapes and device."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import guard, ratios
from sfrik_jax.errors import WorkerError

ROOT = Path(__file__).parents[1]
ROW = {
    "name": "loss",
    "arm": "ours",
    "shapes": {"n": 512, "q": 1024},
    "dtype": "float32",
    "device": "cpu",
    "cpu": "some processor",
    "cores": 2,
    "median_seconds": 1.0,
    "spread": 0.02,
    "date": "2026-11-23",
    "commit": "abc",
    "ratios": {"torch": 2.0, "ours, dense": 1.5},
}


def row(**changes):
    return ROW | changes


def call(tmp_path, rows, *options):
    """Exit code, output and the records after the guard looked at made-up rows."""
    recorded, files = tmp_path / "recorded.json", []
    for number, each in enumerate(rows):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps([each]))
        files += ["--from", path]
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "bench/guard.py",
            *files,
            "--recorded",
            recorded,
            *options,
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr, json.loads(recorded.read_text())


@pytest.fixture
def recorded(tmp_path):
    known = ratios.merge([], ratios.of([ROW]))
    (tmp_path / "recorded.json").write_text(json.dumps(known))
    return known


def test_equal_ratios_pass_whatever_the_seconds(tmp_path, recorded):
    code, out, after = call(tmp_path, [row(median_seconds=50.0)])
    assert code == 0, out
    line = (
        "| loss | ours | torch | n 512, q 1024 | float32 | 2.00 | 2.00 | +0% | same |"
    )
    assert line in out
    assert after == recorded


def test_a_ratio_that_fell_fails(tmp_path, recorded):
    fallen = row(ratios={"torch": 1.6, "ours, dense": 1.5})
    code, out, after = call(tmp_path, [fallen])
    assert code == 1
    assert "| 2.00 | 1.60 | -20% | slower |" in out
    assert "2 ratios: 1 fell, 0 are gone, 0 were never recorded" in out
    assert after == recorded, "only --record writes"
    assert call(tmp_path, [fallen], "--tolerance", "0.25")[0] == 0


def test_a_ratio_that_rose_is_said_and_passes(tmp_path, recorded):
    code, out, _ = call(tmp_path, [row(ratios={"torch": 3.0})])
    assert code == 0
    assert "| 2.00 | 3.00 | +50% | faster |" in out


@pytest.mark.parametrize(
    "change",
    [
        {"shapes": {"n": 512, "q": 2048}},
        {"dtype": "bfloat16"},
        {"cores": 4},
        {"device": "NVIDIA H200"},
    ],
    ids=str,
)
def test_what_was_never_recorded_is_said_and_fails_nothing(tmp_path, recorded, change):
    code, out, _ = call(tmp_path, [row(ratios={"torch": 0.1}, **change)])
    assert code == 0
    assert "| – | 0.10 | – | not recorded |" in out


def test_a_missing_peer_leaves_the_ratios_of_our_own_arms(tmp_path, recorded):
    code, out, _ = call(tmp_path, [row(ratios={"ours, dense": 1.0})])
    assert code == 1
    assert "| ours | torch |" not in out
    assert "| ours, dense |" in out
    line = "1 recorded ratios of these benches were not measured, with their peers: "
    assert f"{line}ours to torch (n 512, q 1024, float32)\n" in out


def test_an_arm_that_is_gone_though_its_peer_ran_fails(tmp_path, recorded):
    chunked = row(arm="ours, chunked", ratios={"torch": 2.0})
    now = [row(ratios={"torch": 2.0, "ours, dense": 1.5})]
    assert call(tmp_path, [*now, chunked], "--record")[0] == 0
    code, out, _ = call(tmp_path, now)
    assert code == 1
    assert "1 recorded ratios of these benches were not measured, though" in out
    assert "2 ratios: 0 fell, 1 are gone, 0 were never recorded" in out
    # Another shape of the bench is no reason to miss it.
    assert call(tmp_path, [row(shapes={"n": 4})])[0] == 0
    _, _, after = call(tmp_path, now, "--record")
    assert "ours, chunked" not in {each["arm"] for each in after}


@pytest.mark.parametrize(
    ("arm", "counts"),
    [
        ("ours, VICReg by gram", True),
        ("exact", True),
        ("ours, dense autodiff", False),
        ("torch, VICReg by Gram", False),
        ("original by torchvision", False),
    ],
)
def test_only_arms_of_ours_are_compared(arm, counts):
    assert bool(ratios.of([row(arm=arm)])) == counts


@pytest.mark.parametrize("tolerance", ["0", "1", "-0.1", "nan", "x"])
def test_a_tolerance_is_between_0_and_1(tmp_path, recorded, tolerance):
    code, out, _ = call(tmp_path, [ROW], f"--tolerance={tolerance}")
    assert (code, out.count("\n")) == (2, 1)
    assert "--tolerance" in out


def test_a_ratio_that_is_no_number_fails_and_is_not_recorded(tmp_path, recorded):
    broken = [row(ratios={"torch": float("nan"), "ours, dense": 1.5})]
    assert call(tmp_path, broken)[0] == 1
    code, out, after = call(tmp_path, broken, "--record")
    assert (code, after) == (70, recorded)
    assert "ours: the ratio to torch is nan; nothing was recorded" in out


def test_the_first_record_needs_no_file(tmp_path):
    code, out, after = call(tmp_path, [ROW], "--record")
    assert code == 0, out
    assert {each["ratio"] for each in after} == {2.0, 1.5}


def test_record_takes_the_first_run(monkeypatch, recorded):
    runs = iter([1.0])
    monkeypatch.setattr(
        guard, "run", lambda bench: ratios.of([row(ratios={"torch": next(runs)})])
    )
    args = guard.argparse.Namespace(files=[], only="loss", tolerance=0.15, record=True)
    now, _ = guard.measured(args, recorded)
    assert [each["ratio"] for each in now] == [1.0]


def test_a_bench_that_ends_with_an_error_is_no_fallen_ratio(monkeypatch):
    monkeypatch.setitem(guard.SHORT, "loss", ("loss.py --rounds 0",))
    with pytest.raises(WorkerError, match=r"loss\.py --rounds 0 ended with 2"):
        guard.run("loss")


def test_record_replaces_what_was_measured_and_keeps_the_rest(tmp_path, recorded):
    code, out, after = call(tmp_path, [row(ratios={"torch": 1.0})], "--record")
    assert code == 0, out
    assert {(each["peer"], each["ratio"]) for each in after} == {
        ("torch", 1.0),
        ("ours, dense", 1.5),
    }
    assert call(tmp_path, [row(ratios={"torch": 1.0})])[0] == 0


def test_an_arm_is_not_its_own_peer():
    assert ratios.of([row(arm="torch", ratios={"torch": 1.0})]) == []
    assert ratios.of([{k: v for k, v in ROW.items() if k != "ratios"}]) == []


def test_files_that_are_missing_or_damaged_are_named(tmp_path, recorded):
    code, out, _ = call(tmp_path, [], "--from", tmp_path / "none.json")
    assert (code, out.count("\n")) == (66, 1)
    assert "none.json is not there" in out
    (tmp_path / "half.json").write_text('[{"name":')
    code, out, _ = call(tmp_path, [], "--from", tmp_path / "half.json")
    assert (code, out.count("\n")) == (65, 1)
    assert "half.json is no JSON" in out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1]", "holds no list of records"),
        ('[{"name": "roofline"}]', "has no ratio of an arm of ours"),
        ('[{"ratios": {"torch": 2}}]', "holds no records of a bench"),
    ],
)
def test_files_of_something_else_are_named(tmp_path, recorded, content, words):
    path = tmp_path / "other.json"
    path.write_text(content)
    code, out, _ = call(tmp_path, [], "--from", path)
    assert (code, out.count("\n")) == (65, 1), out
    assert words in out
    code, out, _ = call(tmp_path, [ROW], "--recorded", path)
    assert (code, out.count("\n")) == (65, 1), out
    code, out, _ = call(tmp_path, [ROW], "--recorded", tmp_path)
    assert (code, out.count("\n")) == (65, 1), out


def test_a_bench_that_fell_runs_once_more(monkeypatch, recorded, capsys):
    runs = iter([1.0, 1.9])
    monkeypatch.setattr(
        guard, "run", lambda bench: ratios.of([row(ratios={"torch": next(runs)})])
    )
    args = guard.argparse.Namespace(files=[], only="loss", tolerance=0.15, record=False)
    now, rows = guard.measured(args, recorded)
    assert [each["ratio"] for each in now] == [1.9]
    assert [each["verdict"] for each in rows] == ["same"]
    assert next(runs, None) is None
    assert "loss runs once more" in capsys.readouterr().out


def test_every_short_bench_is_there_and_the_records_have_its_name():
    for settings in guard.SHORT.values():
        for words in settings:
            assert (ROOT / "bench" / words.split()[0]).is_file()
    records = guard.read(guard.RECORDED)
    assert {"loss", "step"} <= {each["bench"] for each in records} <= guard.SHORT.keys()
    assert records == ratios.merge([], records), "sorted, and none twice"
