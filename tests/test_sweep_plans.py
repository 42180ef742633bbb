"""A configuration's own sweep, its tuning, and what is written instead of run."""

import io
import json
import shlex
import sys
from functools import partial

import pytest
from rich.console import Console
from test_pretrain import ROOT
from test_sweeps import STAND_IN

from sfrik_jax import config as configs
from sfrik_jax import grids, sweeps
from sfrik_jax.__main__ import main
from sfrik_jax.errors import ConfigError, CorruptInputError
from sfrik_jax.sweeps import board, plans, running, tuning

CONFIG = """
from sfrik_jax.config import load

def get_config(arg=""):
    return load({quickstart!r})
"""
SWEEP = """
def sweep(arg="b"):
    for method in ("sfrik", "simclr"):
        for seed in (0, 1):
            yield {"loss.method": method, "seed": seed}
"""
TUNE = """
def tune(arg="b"):
    for method in ("sfrik", "simclr"):
        for rate in (1.0, 2.0):
            yield {"loss.method": method, "optim.base_lr": rate}

def validation(arg="b"):
    return {"eval.test_split": "train[90%:]"}
"""
# Ends a run with the figures of values.json, by name; a code where there is one.
FIGURES = STAND_IN.replace(
    '.write_text("{}")',
    ".write_text(json.dumps({'linear_top1': json.loads("
    "(run.parent / 'values.json').read_text())[run.name]}))",
)


@pytest.fixture
def file(tmp_path):
    """Writes a configuration file of these parts."""

    def write(*parts: str) -> str:
        path = tmp_path / "study.py"
        text = CONFIG.format(quickstart=str(ROOT / "configs" / "quickstart.py"))
        path.write_text("\n".join((text, *parts)))
        return str(path)

    return write


def test_a_file_yields_its_runs_and_a_grid_multiplies_them(file):
    plan = plans.read(file(SWEEP, TUNE), ["optim.epochs=2,3", "data.batch_size=64"])
    assert len(plan.final) == 8
    assert plan.final[1] == {
        "loss.method": "sfrik",
        "seed": "0",
        "optim.epochs": "3",
        "data.batch_size": "64",
    }
    # Each value of the grid is tuned for itself.
    assert len(plan.candidates) == 8
    assert plan.validation == ["eval.test_split=train[90%:]"]


def test_seeds_of_a_grid_are_of_the_final_runs(file):
    part = 'def sweep():\n    yield {"model.embed_dim": 64}\n'
    tune = TUNE.replace('arg="b"', "")
    plan = plans.read(file(part, tune), ["seed=0,1,2"])
    assert len(plan.final) == 3
    assert len(plan.candidates) == 4


def test_the_argument_of_the_file_is_the_functions_too(file):
    part = 'def sweep(arg):\n    return [{"data.name": arg}]\n'
    assert plans.read(f"{file(part)}:x", []).final == [{"data.name": "x"}]


@pytest.mark.parametrize(
    ("parts", "grid", "words"),
    [
        ([], [], "has no function sweep; say what the runs are with --grid"),
        (["def sweep():\n    return []\n"], [], "yields nothing"),
        ([SWEEP], ["seed=1,2"], "--grid seed: the configuration's own sweep sets it"),
        (["def sweep():\n    yield 3\n"], [], "yielded 3; yield settings by dotted"),
        (["def sweep():\n    return 3\n"], [], "must yield the settings of each run"),
        (["def sweep():\n    return [{}, {}]\n"], [], "yields {} twice"),
        (["def sweep():\n    return 1 / 0\n"], [], "ZeroDivisionError"),
        ([SWEEP, TUNE.partition("def validation")[0]], [], "belong together"),
    ],
)
def test_what_means_nothing_is_refused(file, parts, grid, words):
    with pytest.raises(ConfigError, match=words):
        plans.read(file(*parts), grid)


def runs(*points: dict[str, str]) -> list[grids.Run]:
    return grids.named(points)


def test_the_best_candidate_of_each_group_is_chosen_over_seeds():
    final = [{"m": m, "seed": s} for m in "ab" for s in "012"]
    candidates = runs(
        *({"m": m, "rate": r, "seed": s} for m in "ab" for r in "12" for s in "01")
    )
    figures = [70.0, 80.0, 76.0, 75.0, 60.0, 60.0, 59.0, 61.0]
    values = {run.name: v for run, v in zip(candidates, figures, strict=True)}
    first, second = tuning.choose(final, candidates, values)
    # The mean of 76 and 75 beats that of 70 and 80, whose best seed is better.
    assert (first.group, first.chosen, first.value) == ({"m": "a"}, {"rate": "2"}, 75.5)
    # Of equal ones the first.
    assert (second.chosen, second.value) == ({"rate": "1"}, 60.0)
    applied = tuning.applied(final, [first, second])
    assert applied[0] == {"m": "a", "seed": "0", "rate": "2"}
    assert [point["rate"] for point in applied] == ["2"] * 3 + ["1"] * 3


def test_a_candidate_that_diverged_is_none_and_a_group_without_any_is_an_error():
    final = [{"m": "a"}]
    candidates = runs({"m": "a", "rate": "1"}, {"m": "a", "rate": "9"})
    one = {candidates[0].name: 50.0}
    [choice] = tuning.choose(final, candidates, one)
    assert choice.chosen == {"rate": "1"}
    assert [each["value"] for each in choice.candidates] == [50.0, None]
    with pytest.raises(ConfigError, match="no candidate for m=a came to an end"):
        tuning.choose(final, candidates, {})
    with pytest.raises(ConfigError, match="no candidate of the tuning is for m=c"):
        tuning.choose([{"m": "c"}], candidates, one)


def test_settings_that_are_written_in_two_ways_are_one_group():
    candidates = runs({"w": "(1.0, 40.0)", "q": "64", "rate": "1"})
    final = [{"w": "(1,40)", "q": "64.0"}]
    [choice] = tuning.choose(final, candidates, {candidates[0].name: 1.0})
    assert choice.chosen == {"rate": "1"}
    assert tuning.applied(final, [choice]) == [{**final[0], "rate": "1"}]


def test_candidates_and_final_runs_agree_in_what_both_list():
    """One method is tuned for each q, the other once; one run has no q of its own."""
    candidates = runs(
        {"m": "a", "q": "64", "rate": "1"},
        {"m": "a", "q": "128", "rate": "2"},
        {"m": "b", "rate": "3"},
    )
    values = {run.name: float(i) for i, run in enumerate(candidates)}
    final = [{"m": m, "q": q} for m in "ab" for q in ("64", "128")]
    applied = tuning.applied(final, tuning.choose(final, candidates, values))
    assert [point["rate"] for point in applied] == ["1", "2", "3", "3"]
    final = [{"m": "a"}, {"m": "a", "q": "64"}]
    applied = tuning.applied(final, tuning.choose(final, candidates, values))
    assert applied == [{"m": "a", "q": "128", "rate": "2"}, {**final[1], "rate": "1"}]


def test_a_choice_is_kept_for_these_candidates_alone(tmp_path):
    final = [{"m": "a"}]
    candidates = runs({"m": "a", "rate": "1"}, {"m": "a", "rate": "2"})
    choices = tuning.choose(final, candidates, {r.name: 5.0 for r in candidates})
    assert tuning.kept(tmp_path, "linear_top1", ["a=1"], final, candidates) is None
    tuning.keep(tmp_path, "linear_top1", ["a=1"], choices)
    # Made with other settings of all candidates.
    assert tuning.kept(tmp_path, "linear_top1", ["a=2"], final, candidates) is None
    assert tuning.kept(tmp_path, "linear_top1", ["a=1"], final, candidates) == choices
    assert tuning.kept(tmp_path, "knn20_top1", ["a=1"], final, candidates) is None
    assert tuning.kept(tmp_path, "linear_top1", ["a=1"], final, candidates[:1]) is None
    (tmp_path / tuning.FILE).write_text('{"choices": [3]}')
    with pytest.raises(CorruptInputError, match="remove it"):
        tuning.kept(tmp_path, "linear_top1", ["a=1"], final, candidates)


@pytest.fixture
def tuned(tmp_path, file, monkeypatch):
    """The command, with a stand-in for the trainings; returns code and names that ran.

    Its `values` are the figures and `codes` the ends of runs, by name.
    """
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "stand_in.py").write_text(FIGURES)
    program = [sys.executable, str(tmp_path / "stand_in.py")]
    monkeypatch.setattr(sweeps, "carry_out", partial(sweeps.carry_out, program=program))
    place, spec = tmp_path / "runs", file(SWEEP, TUNE)

    def command(*words: str, values=None, codes=None) -> tuple[int, list[str]]:
        for folder in (place, place / "tuning"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "codes.json").write_text(json.dumps(codes or {}))
            (folder / "values.json").write_text(json.dumps(values or {}))
        code = main(["sweep", "--config", spec, "--workdir", str(place), *words])
        ran = []
        for path in (place / "tuning" / "ran.txt", place / "ran.txt"):
            ran += path.read_text().split() if path.exists() else []
            path.unlink(missing_ok=True)
        return code, ran

    command.place = place  # pyright: ignore
    return command


CANDIDATES = [
    f"method-{m}_base_lr-{r}" for m in ("sfrik", "simclr") for r in (1.0, 2.0)
]
FINAL = [
    f"method-{m}_seed-{s}_base_lr-{r}"
    for m, r in (("sfrik", 2.0), ("simclr", 1.0))
    for s in (0, 1)
]
VALUES = dict(zip(CANDIDATES, (50.0, 60.0, 40.0, 30.0), strict=True))
VALUES |= dict.fromkeys(FINAL, 55.0)


def test_a_sweep_tunes_chooses_and_then_runs_the_final_ones(tuned, capsys):
    assert tuned(values=VALUES) == (0, CANDIDATES + FINAL)
    said = capsys.readouterr().out
    assert "loss.method=sfrik   optim.base_lr=2.0               60.00" in said
    # Candidates are tested on the validation split, final runs on the test split.
    splits = {
        name: configs.load(tuned.place / name).eval.test_split
        for name in (f"tuning/{CANDIDATES[0]}", FINAL[0])
    }
    assert list(splits.values()) == ["train[90%:]", "test"]
    stored = json.loads((tuned.place / "tuned.json").read_text())
    assert stored["choices"][0]["for"] == {"loss.method": "sfrik"}
    # What is done is kept, the choice too, though a figure has changed since.
    summary = tuned.place / "tuning" / CANDIDATES[0] / "summary.json"
    summary.write_text('{"linear_top1": 99.0}')
    assert tuned(values=VALUES) == (0, [])


def test_a_candidate_that_diverges_does_not_stop_the_others(tuned):
    codes = {CANDIDATES[0]: 70}
    assert tuned(values=VALUES, codes=codes) == (0, CANDIDATES + FINAL)
    # It is chosen already: nothing is tried again.
    assert tuned(values=VALUES, codes=codes) == (0, [])


def test_a_candidate_that_fails_otherwise_is_tried_again_first(tuned, capsys):
    codes = {CANDIDATES[3]: 66}
    assert tuned(values=VALUES, codes=codes) == (1, CANDIDATES)
    assert f"{CANDIDATES[3]} failed (code 66)" in capsys.readouterr().err
    assert tuned(values=VALUES) == (0, [CANDIDATES[3], *FINAL])


def test_the_states_can_be_asked_for_without_running_anything(tuned, capsys):
    assert tuned("--status") == (0, [])
    said = capsys.readouterr().out
    assert said.count("waiting") == 4
    tuned(values=VALUES, codes={FINAL[0]: 66})
    capsys.readouterr()
    assert tuned("--status") == (0, [])
    said = capsys.readouterr().out
    assert said.count(" done") == 3
    assert said.count("waiting") == 1


def test_what_is_left_is_written_as_commands_of_a_shell(tuned, capsys):
    assert tuned("--write", "slurm", "--jobs", "3", "--config.seed=3") == (0, [])
    said = capsys.readouterr().out
    [path] = (tuned.place / "tuning").glob("commands_*.txt")
    assert f"{path}: 4 of 4 runs, one a line" in said
    submit = "sbatch --array=1-4%3 launch/slurm.sbatch --commands"
    assert f"{submit} {shlex.quote(str(path))}" in said
    lines = path.read_text().splitlines()
    words = shlex.split(lines[1])
    assert words[:4] == ["python", "-m", "sfrik_jax", "pretrain"]
    assert "--config.eval.test_split=train[90%:]" in words
    assert words[words.index("--workdir") + 1].endswith(f"/tuning/{CANDIDATES[1]}")
    # After the tuning the final runs are listed, then nothing.
    tuned(values=VALUES, codes=dict.fromkeys(FINAL[1:], 66))
    assert tuned("--write", "commands") == (0, [])
    [path] = tuned.place.glob("commands_*.txt")
    lines = path.read_text().splitlines()
    assert [shlex.split(line)[7].rpartition("/")[2] for line in lines] == FINAL[1:]
    tuned(values=VALUES)
    capsys.readouterr()
    tuned("--write", "commands")
    assert "all 4 runs of" in capsys.readouterr().out
    # The list of before is as it was: an array may still read it.
    assert path.read_text().splitlines() == lines
    # What ran elsewhere is known without having been started here.
    stored = json.loads((tuned.place / "sweep.json").read_text())
    assert {run["state"] for run in stored["runs"]} == {"done"}
    assert stored["again"][0] == "sweep"


def test_a_candidate_that_diverged_elsewhere_does_not_stop_the_final_runs(
    tuned, capsys
):
    tuned(values=VALUES, codes={CANDIDATES[0]: 66})
    place = tuned.place / "tuning" / CANDIDATES[0]
    config = configs.load(tuned.place / "tuning" / CANDIDATES[1])
    (place / "config.json").write_text(configs.to_json(config))
    (place / "nonfinite_7.json").write_text("{}")
    capsys.readouterr()
    assert tuned("--write", "commands") == (0, [])
    assert ": 4 of 4 runs, one a line" in capsys.readouterr().out
    assert (tuned.place / "tuned.json").exists()


def test_a_final_run_without_a_candidate_is_refused_before_the_tuning(
    file, tmp_path, capsys
):
    spec = file(SWEEP, TUNE.replace('("sfrik", "simclr")', '("sfrik",)'))
    place = tmp_path / "new"
    assert main(["sweep", "--config", spec, "--workdir", str(place)]) == 2
    assert "no candidate of the tuning is for loss.method=simclr" in (
        capsys.readouterr().err
    )
    assert not place.exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ablation_L.py", "no such file; did you mean"),
        ("ablation_L_q.py:smal", "one of full, small, wide; did you mean small?"),
        ("ablation_kernels.py:wide", "after the colon stands one of full, small"),
        ("knn_imagenet.py", "is for the command knn, not for pretrain"),
    ],
)
def test_a_configuration_that_is_none_of_a_run_is_told(tmp_path, capsys, name, words):
    spec = f"{ROOT}/configs/{name}"
    assert main(["sweep", "--config", spec, "--workdir", str(tmp_path / "new")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_sweep_does_not_go_into_a_run(file, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    words = ["sweep", "--config", file(SWEEP), "--workdir", str(tmp_path)]
    assert main(words) == 73
    assert "holds a run" in capsys.readouterr().err


def test_a_metric_that_no_run_has_names_those_it_has(tuned, capsys):
    assert tuned("--metric", "knn5_top1", values=VALUES)[0] == 2
    said = capsys.readouterr().err
    assert "--metric knn5_top1" in said
    assert "no such number, but linear_top1" in said


def test_the_final_settings_are_checked_before_the_tuning(file, tmp_path, capsys):
    spec = file(SWEEP.replace("(0, 1)", "(0, -1)"), TUNE)
    place = tmp_path / "new"
    assert main(["sweep", "--config", spec, "--workdir", str(place)]) == 2
    assert "seed=-1: it must be at least 0" in capsys.readouterr().err
    assert not place.exists()


ABLATIONS = [
    f"ablation_{name}.py{size}"
    for name in ("L_q", "methods", "kernels", "batch")
    for size in ("", ":small")
]


@pytest.mark.parametrize(
    "config",
    [*ABLATIONS, "ablation_L_q.py:wide", "ablation_methods.py:neighbours"],
)
def test_the_ablations_of_the_project_are_sound(config):
    """Every run and candidate has settings that pass, and a name of its own."""
    spec = f"{ROOT}/configs/{config}"
    plan = plans.read(spec, [])
    assert len(plan.final) >= 6
    for points, common in ((plan.final, []), (plan.candidates, plan.validation)):
        planned = sweeps.Sweep(spec, common, grids.named(points))
        assert len(planned.settings()) == len(points)
        seeds = {point.get("seed") for point in points}
        assert points is plan.candidates or len(seeds) >= 2


def test_cores_are_shared_out_and_none_twice(monkeypatch):
    monkeypatch.setattr(running.os, "sched_getaffinity", lambda _: {1, 3, 4, 7, 8})
    assert running.shared_cores(2) == [{1, 3}, {4, 7, 8}]
    assert running.shared_cores(1) == [set()]
    assert running.shared_cores(6) == [set()] * 6


def test_how_far_a_run_is_stands_in_its_own_words(tmp_path):
    assert board.progress(tmp_path) == ("", "")
    log = tmp_path / "log.txt"
    log.write_text("x" * 9_000 + "\nstep 1/184  eta –  – views/s\n")
    assert board.progress(tmp_path) == ("1 of 184", "–")
    log.write_text(log.read_text() + "step 65/184  eta 0:19  3,250 views/s  loss 8\n")
    assert board.progress(tmp_path) == ("65 of 184", "0:19")


def test_a_terminal_has_a_table_of_what_runs_and_what_failed(tmp_path):
    table = board.LiveTable("sweep")
    file = io.StringIO()
    table._live.console = Console(file=file, width=100, force_terminal=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "log.txt").write_text("step 3/9  eta 1:02  5 views/s\n")
    states = {"a": "done", "b": "running", "c": "failed (code 65)", "d": "waiting"}
    with table:
        table.show(states, tmp_path)
        table.say("sweep: b running (1 of 4 done)")
        table.say("sweep: c failed (code 65) (1 of 4 done)")
    said = file.getvalue()
    assert "3 of 9" in said and "1:02" in said and "failed (code 65)" in said
    assert table._summary(states) == "1 done, 1 running, 1 failed, 1 waiting"
    assert "sweep: b running" not in said
    # An end tells how long the rest may take.
    table._begun -= 120
    assert "about 4 min left" in table._summary({**states, "b": "done", "e": "waiting"})
