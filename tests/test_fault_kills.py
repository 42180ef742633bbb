"""Kills of whole runs, by the ids of docs/reliability.md: they end with the same bits.

The fast test takes one run through a kill of each kind; the slow ones take many.
"""

import random
import re
import shutil
import time
from pathlib import Path

import fault_runs as runs
import pytest

from sfrik_jax.faults import POINTS


@pytest.fixture(scope="module")
def undisturbed(data_dir, tmp_path_factory) -> runs.Reference:
    """The run that nothing happened to."""
    return runs.reference(tmp_path_factory.mktemp("runs") / "whole", data_dir)


def session(workdir: Path, wanted: runs.Reference, faults: str = "") -> runs.Outcome:
    """A start of the run with faults, and what must hold after it."""
    before, sessions = runs.whole_steps(workdir), runs.sessions_of(workdir)
    outcome = runs.end(runs.start(workdir, wanted.settings, faults=faults))
    assert "Traceback" not in outcome.said
    runs.check(workdir, wanted)
    if len(runs.sessions_of(workdir)) > len(sessions):
        assert runs.resumed_at(workdir) == max(before, default=0)
    return outcome


def bytes_below(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_k2_k4_d1_a_run_through_kills_and_a_full_disk_has_the_same_bits(
    undisturbed, tmp_path
):
    run = tmp_path / "run"
    assert session(run, undisturbed, "in_save:30=kill").code == runs.KILLED
    assert list((run / "checkpoints").glob("30.orbax-checkpoint-tmp*"))
    assert runs.whole_steps(run)[-1] == 25
    # The next step that knows of the failure tries again.
    again = " ".join(f"before_save:{step}=enospc" for step in range(61, 66))
    full = session(run, undisturbed, f"in_save:60=enospc {again}")
    assert full.code == 74
    assert "removed" in full.said and "30.orbax-checkpoint-tmp" in full.said
    said = r"error: the disk is full: the checkpoint of step 6[1-5] does not fit .* "
    said += r"MB needed, .* free\); step 55 is kept\. Make room .*"
    assert re.search(said, full.said)
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"50", "55"}
    assert session(run, undisturbed, "delete:70=kill").code == runs.KILLED
    assert (run / "checkpoints" / "70.deleting").is_dir()
    assert runs.whole_steps(run)[-2:] == [75, 80]
    assert session(run, undisturbed).code == 0
    runs.check_finished(run, undisturbed)
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"115", "120"}


@pytest.mark.slow
@pytest.mark.parametrize("point", [p for p in POINTS if p != "metrics"])
def test_k2_killed_twice_at_each_point_the_bits_are_the_same(
    undisturbed, tmp_path, point
):
    run, steps = tmp_path / "run", (40, 80)  # with a save and an evaluation
    # What is restored is known by the step; what is deleted is two saves older.
    if point == "restore":
        assert session(run, undisturbed, "step:43=kill").code == runs.KILLED
        steps = (40, 40)
    for step in steps:
        code = session(run, undisturbed, f"{point}:{step}=kill").code
        assert code == runs.KILLED
    assert session(run, undisturbed).code == 0
    runs.check_finished(run, undisturbed)


@pytest.mark.slow
def test_k1_fifty_kills_at_any_moment_leave_the_same_bits(undisturbed, tmp_path):
    """Uniform over the whole life, import, compilation, restore and saves included."""
    seed = 20261123
    rng, run = random.Random(seed), tmp_path / "run"
    start = time.monotonic()
    assert session(run, undisturbed).code == 0
    length = time.monotonic() - start
    shutil.rmtree(run)
    kills = finished = 0
    while kills < 50:
        before, sessions = runs.whole_steps(run), len(runs.sessions_of(run))
        process = runs.start(run, undisturbed.settings)
        time.sleep(rng.uniform(0, length))
        process.kill()
        outcome = runs.end(process)
        runs.check(run, undisturbed)
        assert max(runs.whole_steps(run), default=0) >= max(before, default=0)
        if len(runs.sessions_of(run)) > sessions:
            assert runs.resumed_at(run) == max(before, default=0)
        if outcome.code == 0:
            runs.check_finished(run, undisturbed)
            finished += 1
            shutil.rmtree(run)
        else:
            assert outcome.code == runs.KILLED
            kills += 1
    assert session(run, undisturbed).code == 0
    runs.check_finished(run, undisturbed)
    print(f"seed {seed}: {kills} kills, {finished + 1} runs to their end, same bits")


@pytest.mark.slow
def test_k3_twenty_kills_in_a_save_leave_no_litter(undisturbed, tmp_path):
    run = tmp_path / "run"
    often = [*undisturbed.settings, "checkpoint.every_steps=3"]
    for step in range(6, 121, 6):
        fault = f"in_save:{step}=kill"
        outcome = runs.end(runs.start(run, often, faults=fault))
        assert outcome.code == runs.KILLED, outcome.said
        assert runs.whole_steps(run)[-1] == step - 3
        if step > 6:
            assert f"{step - 6}.orbax-checkpoint-tmp" in outcome.said
    newest = run / "checkpoints" / "117"
    limit = (runs.KEPT + 1) * bytes_below(newest)
    assert bytes_below(run / "checkpoints") <= limit
    assert runs.end(runs.start(run, often)).code == 0
    runs.check_finished(run, undisturbed)
