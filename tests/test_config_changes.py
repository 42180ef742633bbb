"""F2: what a run may change when it goes on, and how that is told and recorded."""

import json

import pytest
from test_pretrain import SMALL, command

from sfrik_jax import config as configs
from sfrik_jax import metrics, resuming, sweeps
from sfrik_jax.__main__ import main
from sfrik_jax.errors import ConfigError

FREE = [("log.every_steps", 5, 7), ("eval.every_epochs", 1, 2), ("mesh.data", 1, 8)]
FORBIDDEN = [
    ("seed", 0, 1),
    ("data.batch_size", 16, 32),
    ("optim.base_lr", 1.0, 2.0),
    ("optim.epochs", 3, 2),
    ("loss.temperature", 0.1, 0.15),
    ("step.micro_batches", 1, 2),
]
NEVER = [
    ("model.width", 4, 8),
    ("model.dtype", "float32", "bfloat16"),
    ("optim.name", "lars", "sgd"),
    ("data.name", "stl10", "imagenet2012"),
    ("data.source", "tfds", "folder"),
    ("data.subset", "", "in20"),
    ("data.train_split", "train", "train[:9]"),
]


def test_f2_harmless_changes_and_more_epochs_are_no_conflict():
    assert resuming.conflicts([*FREE, ("optim.epochs", 3, 4)]) == []


@pytest.mark.parametrize("change", FORBIDDEN, ids=lambda change: change[0])
def test_f2_a_forbidden_change_is_let_through_by_its_name_or_section(change):
    key = change[0]
    assert resuming.conflicts([change]) == [change]
    assert f"--allow-config-change {key}" in resuming.remedy([change])
    assert "--allow" not in resuming.remedy([change], "linear")
    assert resuming.conflicts([change], [key]) == []
    assert resuming.conflicts([change], [key.partition(".")[0]]) == []
    assert resuming.conflicts([change], ["optim.momentum", f"{key}s"]) == [change]


@pytest.mark.parametrize("change", NEVER, ids=lambda change: change[0])
def test_f2_other_tensors_and_other_data_are_never_let_through(change):
    key = change[0]
    assert resuming.conflicts([change], [key, key.partition(".")[0]]) == [change]
    assert f"{key} cannot be changed" in resuming.remedy([change])
    assert "--allow-config-change" not in resuming.remedy([change])


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["loss.method=simclr", "seed=1"], ["seed", "loss"]),
        (["augment.recipe=swav"], ["augment"]),
        (["loss.weights=1,", "augment.hue=0"], ["augment.hue", "loss.weights"]),
    ],
)
def test_f2_the_advice_is_taken(overrides, names):
    """Also where another method or recipe takes settings away."""
    before, now = (
        configs.default(),
        configs.apply_overrides(configs.default(), overrides),
    )
    changes = configs.diff(before, now)
    advice = resuming.remedy(resuming.conflicts(changes))
    words = advice.partition("--allow-config-change ")[2]
    found = words.split(" --allow-config-change ")
    assert found == names
    allowed = resuming.checked(found, configs.flatten(now))
    assert resuming.conflicts(changes, allowed) == []
    # Of another method's settings those that are gone have no name of their own.
    left = resuming.conflicts(changes, ["loss.method", "augment.recipe"])
    assert set(resuming._names(left)) <= {*names, *configs.flatten(now)}


def test_f2_both_reasons_are_given():
    said = resuming.remedy([*NEVER, ("seed", 0, 1)])
    assert "model.width, model.dtype, optim.name cannot be changed, as the sto" in said
    assert "data.subset, data.train_split cannot be changed, as a run stays wi" in said


def test_f2_a_name_that_is_no_setting_is_refused_with_the_nearest():
    flat = configs.flatten(configs.default())
    assert resuming.checked(["optim", "seed"], flat) == ["optim", "seed"]
    with pytest.raises(ConfigError, match=r"did you mean optim.base_lr\?"):
        resuming.checked(["optim.base_l"], flat)


def test_f2_changed_settings_end_with_78_or_are_told_and_recorded(
    tmp_path, data_dir, capsys, arm
):
    run = tmp_path / "run"
    own = [*SMALL, f"data.path={data_dir}", "mesh.data=1", "optim.warmup_epochs=0"]
    own += ["optim.epochs=1"]
    longer, lower = "optim.epochs=2", "optim.base_lr=0.5"
    arm("step:4=term")
    assert main(command(run, own)) == 75
    before = (run / "run.json").read_text()
    capsys.readouterr()
    # Forbidden: the difference, and nothing is changed.
    assert main(command(run, [*own, longer, lower])) == 78
    said = capsys.readouterr().err
    assert "(optim.base_lr: 3.0 -> 0.5); " in said
    assert "go on with --allow-config-change optim.base_lr" in said
    allow = ["--allow-config-change", "optim.base_lr"]
    assert main([*command(run, [*own, "model.width=8"]), *allow]) == 78
    assert "model.width cannot be changed" in capsys.readouterr().err
    wrong = ["--allow-config-change", "optim.base_l"]
    assert main([*command(run, own), *wrong]) == 2
    assert "did you mean optim.base_lr?" in capsys.readouterr().err
    assert (run / "run.json").read_text() == before
    # More epochs, another rate by name, and a log of every second step.
    other = [*own, longer, lower, "log.every_steps=2"]
    # The end of the shorter run is not that of the longer one.
    (run / "summary.json").write_text("{}")
    assert sweeps.is_done(run, configs.load(run))
    arm("step:6=term")
    assert main([*command(run, other), *allow]) == 75
    assert not sweeps.is_done(run, configs.load(run))
    said = capsys.readouterr().err
    # A cosine of four steps is at its end, one of eight half way.
    assert "SFRIK-CONFIG-CHANGED optim.epochs: 1 -> 2 from step 5 on, where " in said
    assert "the rate is 0.01564 instead of 0.0001875" in said
    assert "log.every_steps" not in said
    stored = configs.load(run)
    assert (stored.optim.epochs, stored.optim.base_lr) == (2, 0.5)
    changes = json.loads((run / "run.json").read_text())["config_changes"]
    assert [(c["key"], c["old"], c["new"], c["step"]) for c in changes] == [
        ("optim.base_lr", 3.0, 0.5, 4),
        ("optim.epochs", 1, 2, 4),
        ("log.every_steps", 1, 2, 4),
    ]
    assert all(change["when"] for change in changes)
    assert [row["step"] for row in metrics.read_rows(run)] == [1, 2, 3, 4, 6, 6]
    # A run does not end before where it is.
    shorter = [*other, "optim.epochs=1"]
    allow = ["--allow-config-change", "optim.epochs"]
    assert main([*command(run, shorter), *allow]) == 78
    assert "has done 6 steps, and with these settings ends at 4" in (
        capsys.readouterr().err
    )
    assert configs.load(run).optim.epochs == 2
