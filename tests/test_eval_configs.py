"""The files of the paper's evaluations: valid, as the protocol says, never tuned on the
final split."""

import ast
from pathlib import Path

import pytest

from sfrik_jax import config as configs
from sfrik_jax.__main__ import main
from sfrik_jax.errors import ConfigError
from sfrik_jax.eval_settings import JOBS

ROOT = Path(__file__).parents[1]
# File, its argument, and the job.
FILES = [
    ("linear_imagenet", "full", "linear"),
    ("linear_imagenet", "in20", "linear"),
    ("linear_imagenet", "in20_tune", "linear"),
    ("finetune_imagenet", "1", "finetune"),
    ("finetune_imagenet", "10", "finetune"),
    ("features_imagenet", "full", "features"),
    ("features_imagenet", "in20", "features"),
    ("knn_imagenet", "full", "knn"),
    ("knn_imagenet", "in20", "knn"),
    ("logreg_imagenet", "full", "logreg"),
    ("logreg_imagenet", "in20", "logreg"),
    ("logreg_imagenet", "in20_tune", "logreg"),
    ("logreg_stl10", "sgd", "logreg"),
    ("logreg_stl10", "lbfgs", "logreg"),
    ("voc07_svm", None, "voc_svm"),
    ("gauges_imagenet", "vicreg", "gauges"),
    *(("quickstart_eval", job, job) for job in JOBS if job != "pretrain"),
]
NAMES = sorted({name for name, _, _ in FILES})


def load(name, arg=None, *overrides):
    colon = "" if arg is None else f":{arg}"
    return configs.load(
        f"{ROOT}/configs/{name}.py{colon}", ["weights=runs/x", *overrides]
    )


def refusal(name, arg=None, *overrides):
    with pytest.raises(ConfigError) as caught:
        configs.validate(load(name, arg, *overrides))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def settings(name, arg=None):
    return configs.flatten(load(name, arg))


def test_every_file_of_an_evaluation_is_tested_here():
    files = (ROOT / "configs").glob("*.py")
    ours = [p.stem for p in files if configs.load(p).job != "pretrain"]
    assert sorted(ours) == NAMES


@pytest.mark.parametrize(("name", "arg", "job"), FILES)
def test_each_file_is_a_valid_configuration_of_its_job(name, arg, job):
    config = load(name, arg)
    configs.validate(config)
    assert config.job == job


@pytest.mark.parametrize("name", NAMES)
def test_each_file_tells_how_to_run_it(name):
    story = ast.get_docstring(ast.parse((ROOT / "configs" / f"{name}.py").read_text()))
    assert story is not None
    (job, *_) = [job for each, _, job in FILES if each == name]
    command = f"python -m sfrik_jax {job.replace('_', '-')} --config configs/{name}.py"
    assert command in story
    for words in ("Source:", "Hardware:", "Time"):
        assert words in story


@pytest.mark.parametrize("name", [n for n in NAMES if n != "voc07_svm"])
def test_an_argument_that_no_file_knows_is_refused_by_name(name):
    with pytest.raises(ConfigError, match=r"'nothing'"):
        configs.validate(load(name, "nothing"))


def test_quickstart_s_jobs_may_be_named_as_their_commands():
    assert load("quickstart_eval", "voc-svm") == load("quickstart_eval", "voc_svm")


# --- The protocol ---------------------------------------------------------------------

PICTURES = {"data.image_size": 224, "data.resize": 256}
PROTOCOL = {
    ("linear_imagenet", "full"): PICTURES
    | {
        "probe.learning_rates": (0.4,),
        "probe.weight_decays": (1e-6,),
        "probe.momentum": 0.9,
        "probe.epochs": 100,
        "data.batch_size": 256,
        "data.method": "bilinear",
        "data.crop_scale": (0.08, 1.0),
        "data.flip_prob": 0.5,
        "data.train_subset": "",
        "data.test_split": "validation",
    },
    ("linear_imagenet", "in20"): {
        "data.train_subset": "in20",
        "data.test_split": "validation",
        "probe.learning_rates": (0.4,),
    },
    ("linear_imagenet", "in20_tune"): {
        "data.train_subset": "in20",
        "data.val_split": "train",
        "data.val_subset": "in20_val",
        "data.test_split": "",
    },
    **{
        ("finetune_imagenet", percent): PICTURES
        | {
            "finetune.backbone_learning_rate": backbone,
            "finetune.head_learning_rate": head,
            "finetune.momentum": 0.9,
            "finetune.weight_decay": 0.0,
            "finetune.epochs": 20,
            "data.batch_size": 256,
            "data.method": "bilinear",
            "data.train_subset": f"list:{percent}percent.txt",
            "data.test_split": "validation",
        }
        for percent, backbone, head in (("1", 0.004, 1.0), ("10", 0.02, 0.1))
    },
    ("features_imagenet", None): PICTURES | {"data.method": "bicubic"},
    ("knn_imagenet", None): PICTURES
    | {
        "data.method": "bicubic",
        "knn.k": (10, 20, 100, 200),
        "knn.temperature": 0.07,
    },
    **{
        (name, None): {
            "logreg.solver": "sgd",
            "logreg.learning_rates": (0.4,),
            "logreg.weight_decays": (1e-6,),
            "logreg.momentum": 0.9,
            "logreg.epochs": 100,
            "logreg.batch_size": 256,
            "data.method": "bicubic",
        }
        for name in ("logreg_imagenet", "logreg_stl10")
    },
    ("logreg_stl10", "lbfgs"): {
        "data.image_size": 96,
        "data.resize": 96,
        "data.train_split": "train[:90%]",
        "data.val_split": "train[90%:]",
        "data.test_split": "test",
    },
    ("voc07_svm", None): {
        "data.train_split": "train+validation",
        "data.test_split": "test",
        "svm.costs": (
            *(0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0),
        ),
        "svm.low_shot": (1, 2, 4, 8, 16, 32, 64, 96),
        "svm.low_shot_samples": 5,
    },
}


@pytest.mark.parametrize(("name", "arg"), PROTOCOL)
def test_the_numbers_are_those_of_the_protocol(name, arg):
    found = settings(name, arg)
    want = PROTOCOL[name, arg]
    assert {key: found[key] for key in want} == want


def test_knn_and_regression_use_the_features_that_are_stored():
    # Everything that a feature set depends on, besides weights and pictures.
    def asked(name, arg):
        found = settings(name, arg)
        parts = ("data.", "features.", "model.")
        return {k: v for k, v in found.items() if k.startswith(parts)}

    for arg in ("full", "in20"):
        stored = asked("features_imagenet", arg)
        assert asked("knn_imagenet", arg) == stored
        assert asked("logreg_imagenet", arg) == stored


# --- Refusals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arg", "override"),
    [
        ("linear_imagenet", "full", "probe.learning_rates=0.1,0.4"),
        ("linear_imagenet", "in20", "probe.weight_decays=0,1e-6"),
        ("logreg_imagenet", "full", "logreg.learning_rates=0.1,0.4"),
        ("logreg_stl10", "lbfgs", "data.val_split="),
    ],
)
def test_several_settings_need_a_validation_split(name, arg, override):
    message = refusal(name, arg, override)
    assert "settings to choose from and data.val_split=''" in message
    assert "--config.data.val_split=train --config.data.val_subset=in20_val" in message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.val_split=validation"], "settings are not chosen on the final split"),
        (["data.test_split=train"], "choose parts that have no picture in common"),
        (["data.val_split=train"], "choose parts that have no picture in common"),
        (["data.test_split=train+validation"], "no picture in common"),
        (["data.test_split="], "data.test_split='' and data.val_split=''"),
        (["weights="], "--weights PATH"),
        (["data.image_size=300"], "set data.resize to 300 or more"),
        (["knn.k=3,"], "knn.k is not a setting"),
        (["finetune.epochs=3"], "finetune.epochs is not a setting"),
        (["probe.learning_rates=()"], "give one or more numbers"),
        (["job=knn"], "give a configuration file of that job"),
    ],
)
def test_the_probe_refuses_in_words(overrides, words):
    assert words in refusal("linear_imagenet", "full", *overrides)


def test_the_parts_of_the_20_percent_are_apart():
    configs.validate(load("linear_imagenet", "in20_tune", "data.test_split=validation"))
    message = refusal("linear_imagenet", "in20_tune", "data.val_subset=in20")
    assert "data.train_split='train' and data.train_subset='in20'" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["knn", "--config", "configs/linear_imagenet.py", "--weights", "x"],
            "configs/linear_imagenet.py is for the command linear, not for knn",
        ),
        (
            ["voc-svm", "--config", "configs/knn_imagenet.py", "--weights", "x"],
            "configs/knn_imagenet.py is for the command knn, not for voc-svm",
        ),
        (["linear", "--config", "configs/linear_imagenet.py"], "with --weights PATH"),
    ],
)
def test_a_command_takes_the_files_of_its_job(words, message, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
