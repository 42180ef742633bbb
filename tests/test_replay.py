"""replay: a step that was not finite, again and alone, told in plain words."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_nonfinite import SHORT, indices_of, sample_of, steps_of
from test_pretrain import command, width_of

from sfrik_jax import faults, metrics, replay
from sfrik_jax.__main__ import main
from sfrik_jax.errors import MismatchError


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    """A run of seven steps that has skipped three; the faults stay armed."""
    run = tmp_path_factory.mktemp("runs") / "run"
    own = [*SHORT, f"data.path={data_dir}", "checkpoint.every_steps=2"]
    text = f"views:3=nan:{sample_of(3)} loss:4=nan gradient:5=inf step:7=term"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFRIK_TESTING", "1")
        patch.setenv("SFRIK_FAULTS", text)
        faults._armed.cache_clear()
        assert main(command(run, own)) == 75
        yield run
    faults._armed.cache_clear()


def contents(run: Path) -> dict[str, bytes]:
    paths = (path for path in run.rglob("*") if path.is_file())
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


def replayed(run: Path, *words: str) -> list[str]:
    return ["replay", "--workdir", str(run), *words]


def test_a_replay_names_the_sample_whose_views_are_not_finite(run, capsys):
    """From the start, as the checkpoints were not kept; nothing else is written."""
    stored = (run / "checkpoints").rename(run.parent / "stored")
    before = contents(run)
    assert main(replayed(run, "--step", "3")) == 0
    said = capsys.readouterr().out.splitlines()
    sample = sample_of(3)
    assert said[0].startswith("step 3 again, from the start: loss nan, ")
    one = f"1 of 16 rows are not finite, sample {sample}"
    assert said[1] == f"views: view 1: {one}; view 2: {one}"
    # Batch norm mixes the rows.
    assert said[2].startswith("embeddings: view 1: 16 of 16 rows are not finite")
    assert said[3].startswith("state before the step: all finite, the largest ")
    assert "tensors are not finite: ['backbone']" in said[4]
    assert said[5].startswith("It begins in the views")
    out = run / "replay_3"
    assert said[6] == f"written: {out}/views.png, {out}/report.json"
    report = json.loads((out / "report.json").read_text())
    assert report["views_not_finite"] == [[sample]] * 2
    assert report["terms"]["loss"] == "nan"
    assert report["samples"] == indices_of(3)
    assert width_of(out / "views.png") > 100
    shutil.rmtree(out)
    assert contents(run) == before
    stored.rename(run / "checkpoints")


def test_a_replay_goes_on_from_the_newest_checkpoint_before(run, tmp_path, capsys):
    """The last listed step, where one tensor of the gradient alone is infinite."""
    assert steps_of(run) == [4, 6, 7]
    before, out = contents(run), tmp_path / "out"
    assert main(replayed(run, "--out", str(out))) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("step 5 again, from the checkpoint of step 4: loss ")
    assert said[1:3] == ["views: all finite", "embeddings: all finite"]
    first = "['backbone']['bn1']['bias']"
    assert said[4].endswith(f"1 of 56 tensors are not finite: {first}")
    assert said[5] == "It begins in the gradient: the loss is finite."
    report = json.loads((out / "report.json").read_text())
    assert report["largest_of_gradient"][first] == "inf"
    # The loss of the replay is that of the run, bit for bit.
    [loss] = [r["train/loss"] for r in metrics.read_rows(run) if r["step"] == 5]
    assert report["terms"]["loss"] == loss
    assert contents(run) == before


def test_a_replay_without_what_it_needs_is_refused(run, tmp_path, capsys):
    refused = {
        ("--step", "3"): (66, "and none before 3; raise checkpoint.keep"),
        ("--step", "6"): (66, "nonfinite_6.json; the steps 3, 4, 5 are listed"),
        ("--config.seed=1",): (2, "seed: the step of"),
        # Free for a resumed run, but they change what the step is.
        ("--config.step.nonfinite=raise",): (2, "step.nonfinite: the step of"),
        ("--config.data.on_error=skip",): (2, "data.on_error: the step of"),
        ("--config.sed=1",): (2, "did you mean seed?"),
        ("--out", str(run / "run.json")): (73, "is a file; name a directory"),
    }
    for words, (code, message) in refused.items():
        assert main(replayed(run, *words)) == code
        assert message in capsys.readouterr().err
    assert main(replayed(tmp_path)) == 66
    assert "it has no config.json" in capsys.readouterr().err
    shutil.copy(run / "config.json", tmp_path)
    assert main(replayed(tmp_path)) == 66
    assert "lists no step that was not finite" in capsys.readouterr().err
    other = json.loads((run / "nonfinite_5.json").read_text())
    for text, code in ((json.dumps({**other, "index": [1]}), 78), ("{", 65)):
        (tmp_path / "nonfinite_5.json").write_text(text)
        assert main(replayed(tmp_path)) == code
    assert not list(tmp_path.glob("replay*"))


@pytest.mark.parametrize(
    ("key", "old", "new", "refused"),
    [
        ("optim.base_lr", 3.0, 1.0, True),
        ("optim.epochs", 2, 4, True),
        # Its skipped steps would be taken.
        ("step.nonfinite", "skip", "raise", True),
        ("step.nonfinite", "raise", "skip", False),
        ("log.every_steps", 1, 2, False),
    ],
)
def test_a_replay_over_a_change_of_settings_is_refused(
    tmp_path, key, old, new, refused
):
    change = {"key": key, "old": old, "new": new, "step": 4}
    (tmp_path / "run.json").write_text(json.dumps({"config_changes": [change]}))
    replay._refuse_changed(tmp_path, 5)
    for start in (0, 4):
        if refused:
            with pytest.raises(MismatchError, match=f"changed {key} .* at step 4, and"):
                replay._refuse_changed(tmp_path, start)
        else:
            replay._refuse_changed(tmp_path, start)


def test_a_replay_asks_the_history_of_its_run(run, capsys):
    path = run / "run.json"
    before = path.read_bytes()
    change = {"key": "optim.base_lr", "old": 1.0, "new": 3.0, "step": 6}
    path.write_text(json.dumps({**json.loads(before), "config_changes": [change]}))
    try:
        assert main(replayed(run)) == 78
    finally:
        path.write_bytes(before)
    assert "changed optim.base_lr from 1.0 to 3.0 at step 6" in capsys.readouterr().err


def found_with(**changes) -> replay.Findings:
    """Findings of a step of two samples where all is finite, but for `changes`."""
    fine = np.zeros(2, bool)
    values = {"terms": {"loss": 1.0, "mmd": 2.0}, "start": 4}
    values |= {"views": [fine], "embeddings": [fine, fine]}
    values |= {"before": {"a": 1.0, "b": 3.0}, "gradient": {"a": 0.5, "b": 0.0}}
    return replay.Findings(samples=np.array([7, 9]), **{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "line", "words"),
    [
        ({}, 5, "All is finite here"),
        ({}, 3, "all finite, the largest 3 in b"),
        ({"before": {"a": 1.0, "b": np.nan}}, 5, "begins before this step"),
        ({"before": {"a": 1.0, "b": np.inf}}, 3, "1 of 2 tensors are not finite: b"),
        ({"embeddings": [np.array([False, True])]}, 5, "It begins in the network"),
        ({"embeddings": [np.array([False, True])]}, 2, "1 of 2 rows are not finite, s"),
        ({"terms": {"loss": np.inf, "mmd": np.inf}}, 5, "in the loss, in loss, mmd"),
    ],
)
def test_the_last_line_tells_where_it_begins(changes, line, words):
    assert words in replay.told(found_with(**changes), 5)[line]


def test_the_worst_rows_are_drawn_first():
    bad = [np.isin(np.arange(12), rows) for rows in ([10], [3, 10])]
    found = found_with(views=bad[:1], embeddings=bad[1:])
    assert replay._rows(found) == [10, 3, 0, 1, 2, 4, 5, 6]
