"""Arms take turns; a record says what was measured, against whom and where."""

import json
import subprocess

import pytest

from bench import timing
from bench.timing import Arm, Spent

WHERE = {"device": "cpu", "cores": 2}


def silent(_):
    return None


def test_arms_take_turns_after_one_call_each():
    calls = []
    arms = [
        Arm(name, lambda count, name=name: calls.append((name, count))) for name in "ab"
    ]
    spent = timing.take_turns(arms, rounds=2)
    assert calls == [("a", 1), ("b", 1)] * 3
    assert {name: len(each) for name, each in spent.items()} == {"a": 2, "b": 2}


def test_an_arm_is_called_as_often_as_fills_the_seconds(monkeypatch):
    now = 0.0

    def run(count):
        nonlocal now
        now += 0.25 * count

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    monkeypatch.setattr(timing.time, "process_time", lambda: 2 * now)
    spent = timing.take_turns([Arm("quarter", run)], rounds=3, seconds=2.0)
    # Two calls to compile, two to tell the time, eight in each round.
    assert now == 0.25 * (2 + 2 + 3 * 8)
    assert spent["quarter"] == [Spent(0.25, 0.5)] * 3


def test_an_arm_without_memory_is_left_out_with_a_line(capsys):
    def full(count):
        raise RuntimeError("CUDA out of memory. Tried to allocate\nmore")

    arms = [Arm("ours", silent, peers=("torch",)), Arm("torch", full)]
    spent = timing.take_turns(arms, rounds=2)
    assert spent.keys() == {"ours"}
    assert capsys.readouterr().out == (
        "no arm torch: CUDA out of memory. Tried to allocate\n"
    )
    (row,) = timing.records(
        "step", arms, spent, dtype="float32", shapes={}, where=WHERE
    )
    assert (row["arm"], "peer" in row) == ("ours", False)

    def broken(count):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        timing.take_turns([Arm("torch", broken)], rounds=1)


def rows(clock):
    arms = [
        Arm("ours", silent, flop=8e9, bytes=4e6, peers=("missing", "torch")),
        Arm("torch", silent, flop=12e9),
    ]
    spent = {
        "ours": [Spent(2.0, 1.0), Spent(4.0, 1.0), Spent(3.0, 1.0)],
        "torch": [Spent(6.0, 2.0)] * 3,
    }
    found = timing.records(
        "loss",
        arms,
        spent,
        dtype="float32",
        shapes={"n": 4},
        where=WHERE,
        clock=clock,
        limit=lambda arm: arm.flop / 16e9,
        extras={"ours": {"agreement": {"loss": 1e-6}}},
    )
    return {row["arm"]: row for row in found}


def test_a_record_has_medians_ratios_and_the_share_of_the_limit():
    ours, torch = rows("wall").values()
    assert ours | WHERE == ours
    assert (ours["name"], ours["dtype"], ours["shapes"]) == (
        "loss",
        "float32",
        {"n": 4},
    )
    assert ours["median_seconds"] == ours["median_wall_seconds"] == 3.0
    assert (ours["rounds"], ours["round_seconds"]) == (3, [2.0, 4.0, 3.0])
    assert ours["spread"] == pytest.approx(1 / 3)  # quartiles 2.5 and 3.5
    assert (ours["peer"], ours["ratio_to_peer"]) == ("torch", 2.0)
    assert ours["ratios"] == {"torch": 2.0}
    assert (ours["flop"], ours["bytes"]) == (8e9, 4e6)
    assert ours["limit_seconds"] == 0.5
    assert ours["share_of_limit"] == pytest.approx(1 / 6)
    assert ours["agreement"] == {"loss": 1e-6}
    # Nobody counted the peer's bytes, and it has no peer.
    assert not torch.keys() & {"bytes", "peer", "ratio_to_peer", "ratios", "agreement"}


def test_a_record_by_the_other_clock_keeps_both_medians():
    ours = rows("cpu")["ours"]
    assert (ours["clock"], ours["median_seconds"]) == ("cpu", 1.0)
    assert (ours["median_cpu_seconds"], ours["median_wall_seconds"]) == (1.0, 3.0)
    assert ours["ratio_to_peer"] == 2.0


def test_a_table_shows_what_is_there():
    columns = timing.ARM | timing.MEDIAN | timing.RATE | timing.RATIO | timing.SHARE
    lines = timing.table(list(rows("wall").values()), columns).splitlines()
    assert lines[0] == (
        "| arm | ms | spread | TFLOP/s | peer | peer / arm | share of limit |"
    )
    assert lines[2] == "| ours | 3000.00 | 33% | 0.00267 | torch | 2.00 | 17% |"
    assert lines[3] == "| torch | 6000.00 | 0% | 0.002 | – | – | 12% |"


def test_the_environment_says_date_and_commit(monkeypatch, tmp_path):
    where = timing.environment(("jax", "no-such-library"))
    assert where.keys() >= {"device", "cpu", "cores", "load_average", "date"}
    assert where["versions"].keys() == {"jax"}
    json.dumps(where)
    # Outside a repository there is no commit to name.
    monkeypatch.setattr(timing, "ROOT", tmp_path)
    assert "commit" not in timing.environment(())


def test_the_commit_of_changed_files_has_a_plus(monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "ROOT", tmp_path)
    who = ["-c", "user.name=n", "-c", "user.email=e"]

    def git(*words):
        subprocess.run(["git", "-C", tmp_path, *who, *words], check=True)

    git("init", "-q")
    (tmp_path / "code").write_text("1")
    git("add", "code")
    git("commit", "-qm", "first")
    clean = timing.commit()
    assert clean and "+" not in clean
    (tmp_path / "figures.json").write_text("[]")
    assert timing.commit() == clean, "an output is no change"
    (tmp_path / "code").write_text("2")
    assert timing.commit() == f"{clean}+"
