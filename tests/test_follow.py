"""The probe of every checkpoint of a run: which are taken, which one is tested."""

import json
import os
import shutil
import signal
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_jobs
from filled import random_variables
from test_pretrain import ROOT, SMALL

from sfrik_jax import config as configs
from sfrik_jax import pretrain
from sfrik_jax.__main__ import main
from sfrik_jax.checkpoint import Checkpoints
from sfrik_jax.data import opening
from sfrik_jax.errors import CorruptInputError, MissingInputError, Preempted
from sfrik_jax.interrupts import Stop
from sfrik_jax.jobs import follow, parts, results, runner

STEPS = (4, 8, 12)


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    """A finished run of twelve steps, drawn instead of trained; to be copied."""
    run = tmp_path_factory.mktemp("trained") / "run"
    config = configs.load(
        ROOT / "configs" / "quickstart.py", [*SMALL, f"data.path={data_dir}"]
    )
    state = jax.device_get(pretrain.build(config).random_state())
    with Checkpoints(run / "checkpoints", keep=5) as checkpoints:
        for step in STEPS:
            params = random_variables(state.params, seed=step)
            own = state._replace(step=np.asarray(step, np.int32), params=params)
            checkpoints.save(step, own, wait=True)
    (run / "config.json").write_text(configs.to_json(config))
    (run / "summary.json").write_text(json.dumps({"steps": STEPS[-1]}))
    return run


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run, to be changed."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def config(run, data_dir):
    return tiny_jobs.settings("linear", data_dir, run, "probe.epochs=1")


class Jobs:
    """Stands for the probe: figures by step, and what was asked for."""

    def __init__(self) -> None:
        self.top1: dict[int, float] = dict.fromkeys(STEPS, 50.0)
        self.asked: list[tuple[str, int, str]] = []
        self.hook = lambda step: None

    def __call__(self, config, workdir, name):
        step = int(Path(config.weights).name)
        self.asked.append((name, step, config.data.test_split))
        self.hook(step)
        figures = {"linear/val_top1": self.top1[step]}
        if config.data.test_split:
            figures["linear/top1"] = 1.0
        return results.write(
            workdir,
            name,
            job="linear",
            figures=figures,
            identity={"weights": {"path": "run", "step": step, "sha256": "0" * 64}},
            details={},
        )


@pytest.fixture
def jobs(monkeypatch):
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.1)
    jobs = Jobs()
    monkeypatch.setitem(runner.JOBS, "linear", jobs)
    return jobs


def words(run: Path, data_dir: Path, *more: str) -> list[str]:
    config = str(ROOT / "configs" / "quickstart_eval.py") + ":linear"
    given = ["linear", "--config", config, "--weights", str(run), "--every-checkpoint"]
    return [*given, f"--config.data.path={data_dir}", *more]


# --- What is judged, and what is tested ---------------------------------------------


def test_each_is_judged_on_val_and_the_best_alone_tested_once(
    config, run, capfd, monkeypatch
):
    opened, open_source = [], opening.open_source

    def count(**place):
        opened.append(place["split"])
        return open_source(**place)

    monkeypatch.setattr(opening, "open_source", count)
    found = follow.every_checkpoint(config, run, "each", wait=False)
    assert tuple(found) == STEPS
    for step in STEPS:
        record = results.read(run, f"each_step{step}")
        assert record["weights"]["step"] == step
        assert record["figures"]["linear/val_top1"] == found[step]
        assert set(record["data"]) == {"train", "val"}
        assert not {"linear/top1", "confusion", "per_class"} & (
            record.keys() | record["figures"].keys()
        )
    best = max(STEPS, key=lambda step: (found[step], step))
    final = results.read(run, "each")
    assert final["weights"]["step"] == best
    assert final["figures"]["linear/val_top1"] == found[best]
    assert final["figures"]["linear/images"] == tiny_jobs.TEST
    # One opening of each split, however many jobs there were.
    data = config.data
    assert opened == [data.train_split, data.val_split, data.test_split]

    out = capfd.readouterr().out.splitlines()
    assert [line.split()[1] for line in out[:3]] == [str(step) for step in STEPS]
    assert out[3].split() == ["step", "val_top1", "chosen"]
    rows = [line.split() for line in out[4:7]]
    assert [row[0] for row in rows] == [str(step) for step in STEPS]
    assert [row[0] for row in rows if row[-1] == "*"] == [str(best)]
    assert out[-1] == str(run / "eval" / "each.json")

    # Once more: all is there, and nothing is written again.
    before = (run / "eval" / "each.json").stat().st_mtime_ns
    assert follow.every_checkpoint(config, run, "each", wait=True) == found
    assert (run / "eval" / "each.json").stat().st_mtime_ns == before


def test_of_equal_ones_the_later_is_tested(config, run, jobs):
    jobs.top1 = {4: 60.0, 8: 60.0, 12: 59.0}
    assert follow.every_checkpoint(config, run, "x", wait=False) == jobs.top1
    assert jobs.asked == [
        ("x_step4", 4, ""),
        ("x_step8", 8, ""),
        ("x_step12", 12, ""),
        ("x", 8, config.data.test_split),
    ]
    assert follow.best_first(jobs.top1) == [8, 4, 12]


def test_without_a_final_split_none_is_looked_at(config, run, jobs, capfd):
    with config.unlocked():
        config.data.test_split = ""
    follow.every_checkpoint(config, run, "x", wait=False)
    assert [name for name, *_ in jobs.asked] == ["x_step4", "x_step8", "x_step12"]
    assert capfd.readouterr().out.splitlines()[-1].split() == ["12", "50.00", "*"]


def test_the_best_that_was_deleted_is_not_tested(config, run, jobs, capfd):
    jobs.top1 = {4: 70.0, 8: 60.0, 12: 50.0}

    def delete(step):
        if step == 12:
            shutil.rmtree(run / "checkpoints" / "4", ignore_errors=True)

    jobs.hook = delete
    follow.every_checkpoint(config, run, "x", wait=False)
    assert jobs.asked[-1] == ("x", 8, config.data.test_split)
    seen = capfd.readouterr()
    assert "step 4 has the best val_top1 and is deleted" in seen.err
    assert [r.split()[0] for r in seen.out.splitlines() if r.endswith("*")] == ["8"]

    jobs.hook = lambda step: shutil.rmtree(run / "checkpoints" / str(step))
    with pytest.raises(MissingInputError, match="there any longer"):
        follow.every_checkpoint(config, run, "x", wait=False)


# --- What is passed over, and what ends the command ---------------------------------


def test_a_checkpoint_that_is_deleted_before_its_turn_is_passed_over(
    config, run, monkeypatch, capfd
):
    steps_of = follow.steps_of

    def listed(run):
        steps = steps_of(run)
        for step in (4, 8):
            shutil.rmtree(run / "checkpoints" / str(step), ignore_errors=True)
        return steps

    monkeypatch.setattr(follow, "steps_of", listed)
    assert list(follow.every_checkpoint(config, run, "x", wait=False)) == [12]
    error = capfd.readouterr().err
    assert "step 4 is passed over: there is no checkpoint" in error
    assert "step 8 is passed over: there is no checkpoint" in error
    assert results.read(run, "x")["weights"]["step"] == 12


def test_a_checkpoint_that_is_deleted_while_it_is_read_is_passed_over(
    config, run, jobs, capfd
):
    def read(step):
        if step == 8:
            shutil.rmtree(run / "checkpoints" / "8")
            raise CorruptInputError("half of it was read")

    jobs.hook = read
    assert list(follow.every_checkpoint(config, run, "x", wait=False)) == [4, 12]
    assert "step 8 is passed over: there is no checkpoint" in capfd.readouterr().err


@pytest.mark.parametrize("error", [CorruptInputError, MissingInputError])
def test_an_error_that_is_not_of_the_checkpoint_ends_the_command(
    config, run, jobs, capfd, error
):
    def fail(step):
        raise error("a picture is bad")

    jobs.hook = fail
    with pytest.raises(error, match="a picture is bad"):
        follow.every_checkpoint(config, run, "x", wait=True)
    assert len(jobs.asked) == 1 and "passed over" not in capfd.readouterr().err


def test_a_data_set_that_is_not_there_is_66(run, tmp_path, jobs, capsys):
    for wait in ([], ["--no-wait"]):
        assert main(words(run, tmp_path / "nowhere", *wait)) == 66
        error = capsys.readouterr().err
        assert "nowhere" in error and error.count("\n") == 1
    assert not jobs.asked


def test_the_final_split_is_opened_before_the_first_checkpoint(
    run, data_dir, jobs, capsys
):
    shared = "--config.data.test_split=train[50%:95%]"
    assert main(words(run, data_dir, shared)) == 2
    assert "pictures" in capsys.readouterr().err
    assert not jobs.asked


def test_a_run_without_checkpoints_is_66(run, data_dir, jobs, capsys):
    shutil.rmtree(run / "checkpoints")
    for wait in ([], ["--no-wait"]):
        assert main(words(run, data_dir, *wait)) == 66
        error = capsys.readouterr().err
        assert f"error: {run} has no checkpoint that can be opened" in error
        assert "without --every-checkpoint" in error and error.count("\n") == 1
    assert not jobs.asked and not (run / "eval").exists()


def test_a_finished_run_ends_the_waiting_whatever_steps_it_has(config, run, jobs):
    shutil.rmtree(run / "checkpoints" / "12")
    assert list(follow.every_checkpoint(config, run, "x", wait=True)) == [4, 8]


def test_a_checkpoint_is_not_chosen_on_the_final_split(run, data_dir, jobs, capsys):
    none = ("--config.data.val_split=", "--config.probe.learning_rates=0.1,")
    one = "--config.probe.weight_decays=0,"
    assert main(words(run, data_dir, *none, one)) == 2
    error = capsys.readouterr().err
    assert "data.val_split='' with --every-checkpoint" in error
    assert "--config.data.val_split=train" in error and not jobs.asked


def test_a_record_of_another_evaluation_is_not_tested_again(
    config, run, jobs, data_dir, capsys
):
    """Found out before the work, not when the best of all is to be tested."""
    jobs(follow.Series(config, run, run, "x").at(8), run, "x")
    jobs.asked.clear()
    assert main(words(run, data_dir, "--name", "x", "--no-wait")) == 78
    error = capsys.readouterr().err
    assert "eval/x.json is of run alone" in error and "--name" in error
    assert not jobs.asked
    assert main(words(run, data_dir, "--name", "y", "--no-wait")) == 0


# --- Waiting and stopping -----------------------------------------------------------


def test_a_run_is_followed_to_its_end(config, run, jobs, tmp_path, capfd):
    later = tmp_path / "later"
    summary = (run / "summary.json").rename(tmp_path / "summary.json")
    (run / "checkpoints" / "12").rename(later)
    first_seen = threading.Event()

    def train_on() -> None:
        assert first_seen.wait(60)
        later.rename(run / "checkpoints" / "12")
        summary.rename(run / "summary.json")

    jobs.top1[12] = 80.0
    trainer = threading.Thread(target=train_on)
    trainer.start()
    pauses, pause = [], follow._pause

    def paused(stop):
        pauses.append(len(jobs.asked))
        if len(pauses) == 3:
            first_seen.set()
        pause(stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(follow, "_pause", paused)
        found = follow.every_checkpoint(config, run, "x", wait=True)
    trainer.join()
    assert list(found) == list(STEPS)
    assert pauses[:3] == [2, 2, 2]  # the final split waits for the last step
    assert jobs.asked[-1] == ("x", 12, config.data.test_split)
    lines = capfd.readouterr().err.splitlines()
    assert lines.count(f"waiting for a checkpoint of {run} after step 8") == 1


def test_waiting_ends_at_a_signal(config, run, jobs, monkeypatch):
    (run / "summary.json").unlink()
    pause = follow._pause

    def told(stop):
        os.kill(os.getpid(), signal.SIGTERM)
        pause(stop)

    monkeypatch.setattr(follow, "_pause", told)
    with pytest.raises(Preempted, match="between two checkpoints"):
        follow.every_checkpoint(config, run, "x", wait=True)
    assert [name for name, *_ in jobs.asked] == ["x_step4", "x_step8", "x_step12"]


@pytest.mark.parametrize("at", [4, 12])
def test_a_signal_at_the_end_of_a_job_stops_before_the_next(config, run, jobs, at):
    """The job had looked for the last time: its record is kept, no other begins."""

    def late(step):
        if step == at:
            with Stop():
                os.kill(os.getpid(), signal.SIGINT)

    jobs.hook = late
    with pytest.raises(Preempted):
        follow.every_checkpoint(config, run, "x", wait=False)
    assert jobs.asked[-1] == (f"x_step{at}", at, "")
    assert results.path_of(run, f"x_step{at}").exists()


def test_splits_stay_open_for_as_long_as_it_is_said(config):
    with parts.kept_open():
        first, second = parts.open_parts(config), parts.open_parts(config)
        assert all(first[name] is second[name] for name in parts.NAMES)
    after = parts.open_parts(config)
    assert all(first[name] is not after[name] for name in parts.NAMES)
