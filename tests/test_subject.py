"""A backbone is the same wherever its weights lie, and reading changes nothing."""

import json
import re
import shutil
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
import tiny_jobs
import torch_form
from test_pretrain import SMALL, command

from sfrik_jax import mesh as mesh_lib
from sfrik_jax import weights
from sfrik_jax.__main__ import main
from sfrik_jax.checkpoint import Checkpoints
from sfrik_jax.errors import CorruptInputError, MissingInputError
from sfrik_jax.subject import open_subject, run_of, steps_of

STEPS = [4, 8, 12]


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    """A run of twelve steps with a checkpoint at each fourth; to be copied."""
    run = tmp_path_factory.mktemp("trained") / "run"
    kept = [f"data.path={data_dir}", "checkpoint.keep=5", "eval.baselines=False"]
    assert main(command(run, [*SMALL, *kept])) == 0
    return run


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def contents(folder):
    """Every file and directory below a folder, with sizes and times."""
    about = {
        path.relative_to(folder): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }
    assert about
    return about


def damage(checkpoint):
    """Lets the digest of one leaf be another than that of its values."""
    notes = checkpoint / "meta" / "metadata"
    about = json.loads(notes.read_text())
    next(iter(about["leaves"].values()))["digest"][0] ^= 1
    notes.write_text(json.dumps(about))


def test_the_same_weights_are_the_same_from_every_place(run, tmp_path):
    checkpoint = run / "checkpoints" / "12"
    exported = run / "backbone.safetensors"
    net = tmp_path / "net.pth"
    variables = weights.load(exported)[1]
    net.write_bytes(torch_form.saved(weights.to_torch(variables, "resnet14")))
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("config.json", "backbone.safetensors"):
        shutil.copy(run / name, alone / name)
    before = contents(run)
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    mesh = mesh_lib.make_mesh(1)
    found = {}
    for place in (run, checkpoint, exported, net, alone):
        subject = open_subject(place)
        found[place] = subject
        chex.assert_trees_all_equal(subject.variables, variables)
        assert subject.about["sha256"] == weights.fingerprint(variables, "resnet14")
        about = [subject.about[key] for key in ("arch", "width", "stem")]
        assert about[:2] == ["resnet14", 4] and about[2] == found[run].about["stem"]
        assert subject.backbone.features == 128
        if place != net:  # it does not say what its pictures looked like
            assert subject.preprocessing["image_size"] == 32
            features = np.asarray(subject.encoder(mesh)(images))
            want = np.asarray(found[run].encoder(mesh)(images))
            np.testing.assert_array_equal(features, want)
    assert [found[each].run for each in (run, checkpoint, alone)] == [run, run, alone]
    assert found[net].run is None and found[exported].run is None
    assert [found[each].about.get("step") for each in (run, net)] == [12, None]
    assert found[net].preprocessing["image_size"] == 224
    state = found[run].state
    assert state is not None and found[alone].state is None
    assert "projector" in state.params
    assert contents(run) == before


def test_a_checkpoint_is_told_by_its_step_and_weights_by_their_hash(run):
    assert steps_of(run) == STEPS
    found = [open_subject(run / "checkpoints" / str(step)) for step in STEPS]
    assert [each.about["step"] for each in found] == STEPS
    assert len({each.about["sha256"] for each in found}) == 3
    assert run_of(run / "checkpoints" / "8") == (run, 8)
    assert run_of(run) == (run, None)


def test_arithmetic_has_the_type_that_is_asked_for(run):
    for place in (run, run / "backbone.safetensors"):
        subject = open_subject(place, "bfloat16")
        assert subject.backbone.dtype == "bfloat16"
        kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(subject.variables)}
        assert kinds == {"float32"}


def test_c4_a_damaged_newest_checkpoint_is_passed_over_and_left_as_it_is(run, caplog):
    damage(run / "checkpoints" / "12")
    before = contents(run)
    assert open_subject(run).about["step"] == 8
    assert "SFRIK-CKPT-CORRUPT step 12" in caplog.text
    with pytest.raises(CorruptInputError, match="step 12") as caught:
        open_subject(run / "checkpoints" / "12")  # named: no other will do
    assert caught.value.code == 65
    assert contents(run) == before
    for step in (4, 8):
        damage(run / "checkpoints" / str(step))
    before = contents(run)
    with pytest.raises(CorruptInputError, match="evaluate another checkpoint"):
        open_subject(run)
    assert contents(run) == before


def test_a_run_that_is_being_written_is_read_and_nothing_deleted(run):
    """Orbax deletes half-written checkpoints at its start, unless it only reads."""
    unfinished = run / "checkpoints" / "12.orbax-checkpoint-tmp-1764000000000000"
    (run / "checkpoints" / "12").rename(unfinished)
    before = contents(run)
    assert steps_of(run) == [4, 8]
    assert open_subject(run).about["step"] == 8
    assert contents(run) == before
    # A writer does take it for one of its own, and deletes it.
    with Checkpoints(run / "checkpoints", keep=2):
        assert not unfinished.exists()


def test_c4_a_step_that_is_not_there_is_told_with_those_that_are(run):
    with pytest.raises(MissingInputError, match="steps 4, 8, 12") as caught:
        open_subject(run / "checkpoints" / "7")
    assert caught.value.code == 66


def test_what_holds_no_weights_is_told(run, tmp_path):
    (tmp_path / "folder").mkdir()
    shutil.rmtree(run / "checkpoints")
    (run / "backbone.safetensors").unlink()
    for place, said in (
        (run, "has no checkpoint yet"),
        (tmp_path / "folder", "is no run directory"),
        (tmp_path / "nowhere", "nowhere"),
        (tmp_path / "nothing.pth", r"nothing\.pth"),
    ):
        with pytest.raises(MissingInputError, match=said) as caught:
            open_subject(place)
        assert caught.value.code == 66
        assert "\n" not in str(caught.value)
    (run / "checkpoints").mkdir()
    with pytest.raises(MissingInputError, match="has no checkpoint yet"):
        open_subject(run)


def test_a_damaged_configuration_of_a_run_is_told(run):
    (run / "config.json").write_text("{")
    with pytest.raises(CorruptInputError, match=re.escape(str(run / "config.json"))):
        open_subject(run)


def test_a_file_says_its_sizes_and_statistics(tmp_path):
    subject = open_subject(tiny_jobs.backbone_file(tmp_path))
    assert subject.preprocessing == tiny_jobs.PREPROCESSING
    assert json.loads(json.dumps(subject.about)) == subject.about
    assert "step" not in subject.about
