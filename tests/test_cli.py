"""The real command: exit code, one line on stderr, and nothing written on refusal."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sfrik_jax.__main__ import split_overrides
from sfrik_jax.commands.parsing import checked_name, checked_output, default_workdir
from sfrik_jax.errors import ConfigError

ROOT = Path(__file__).parents[1]
QUICKSTART = str(ROOT / "configs" / "quickstart.py")
PRETRAIN = ("pretrain", "--config", QUICKSTART, "--workdir", "runs/x")


@pytest.fixture
def sfrik(tmp_path):
    """Runs `python -m sfrik_jax` in an empty directory, on eight fake devices."""

    def run(*words):
        environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
        environment |= os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, "-m", "sfrik_jax", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def assert_refused(result, code, words, directory):
    assert result.returncode == code, result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    assert words in result.stderr
    assert result.stdout == ""
    assert not (directory / "runs").exists()


def cpu_seconds() -> float:
    """Of the processes that were waited for: a loaded machine does not add to it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--config.data.batchsize=4", "did you mean data.batch_size?"),
        ("--config.dta.batch_size=4", "did you mean data.batch_size?"),
        ("--config.data.batch_size=many", "needs a whole number"),
        ("--config.model.embed_dim=1", "model.embed_dim=1: it must be at least 2"),
        ("--config.loss.weights=1,-40", "loss.weights=(1.0, -40.0)"),
        ("--config.loss.weights=rfb(2.5)", "did you mean rbf?"),
        ("--config.optim.base_lr=nan", "optim.base_lr=nan: it must be a finite"),
        ("--config.optim.base_lr=-0.1", "optim.base_lr=-0.1: it must be above 0"),
        ("--config.data.batch_size", "needs a value"),
        ("--confg.seed=1", "unrecognized arguments: --confg.seed=1"),
        ("--config=nothing.py", "no such file"),
        ("--allow-config-change=sed", "did you mean seed?"),
        ("--config.checkpoint.keep=1", "checkpoint.keep=1: it must be at least 2"),
    ],
)
def test_f1_a_wrong_setting_ends_with_2_and_one_line(sfrik, tmp_path, option, words):
    """At once: neither jax nor TensorFlow is loaded by then."""
    for library in ("jax", "tensorflow", "tensorflow_datasets"):
        # `python -m` puts the working directory first in the search path.
        (tmp_path / f"{library}.py").write_text("raise SystemExit(99)")
    before = cpu_seconds()
    assert_refused(sfrik(*PRETRAIN, option), 2, words, tmp_path)
    assert cpu_seconds() - before < 3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("new\nline", "without control characters"),
        ("x" * 300, "longer than 255 bytes"),
        ("$(reboot)", "give a name without control characters, a - in front, and"),
        ("x;reboot", "'x;reboot': give a name without"),
        ("a/`b`/c", "'`b`': give a name without"),
        ("it's", "give a name without"),
    ],
)
def test_x6_a_run_directory_with_a_name_of_that_kind_ends_with_2(
    sfrik, tmp_path, name, words
):
    assert_refused(
        sfrik("pretrain", "--config", QUICKSTART, f"--workdir=runs/{name}"),
        2,
        words,
        tmp_path,
    )


@pytest.mark.parametrize(
    "name", ["../../x", "a/b", "..", "", "new\nline", "x" * 300, "x;y", "-x", "$x"]
)
def test_x6_a_name_is_one_plain_word(name):
    with pytest.raises(ConfigError) as caught:
        checked_name(name, "--name")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200
    assert checked_name("Ünder_score-1.5 (two)", "--name")


def test_x6_a_name_of_figures_that_is_a_path_ends_with_2(sfrik, tmp_path):
    config = f"{ROOT}/configs/quickstart_eval.py:knn"
    words = ("knn", "--config", config, "--weights", "x.pth", "--name", "../../x")
    assert_refused(sfrik(*words), 2, "--name '../../x' is no plain file", tmp_path)


def test_x6_what_is_there_keeps_its_name(tmp_path):
    place = tmp_path / "it's & there"
    place.mkdir()
    assert checked_output(str(place / "new"), "--workdir") == place / "new"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "required: COMMAND"),
        (("pretrian",), "invalid choice: 'pretrian'"),
        (("pretrain", "--workdir", "runs/x"), "required: --config"),
        (("report", "a", "--config.seed=1"), "this command takes no settings"),
        (("data", "preview", "--config", QUICKSTART, "--out", "x.jpg"), "end in .png"),
        (
            ("data", "preview", "--config", QUICKSTART, "--out", "x.png", "--step=-1"),
            "-1 is less than 0",
        ),
    ],
)
def test_f1_a_wrong_command_line_ends_with_2(sfrik, tmp_path, words, message):
    assert_refused(sfrik(*words), 2, message, tmp_path)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(40):
        Image.new("RGB", (32, 32), (i, i, i)).save(folder / f"{i}.png")
    return ("--config.data.source=folder", f"--config.data.path={folder}")


def test_f1_a_batch_above_the_data_set_ends_with_2(sfrik, tmp_path, pictures):
    result = sfrik(*PRETRAIN, *pictures)
    assert_refused(result, 2, "more than the 40 images", tmp_path)


def test_f1_a_batch_that_the_devices_cannot_share_ends_with_2(
    sfrik, tmp_path, pictures
):
    before = cpu_seconds()
    result = sfrik(*PRETRAIN, *pictures, "--config.data.batch_size=30")
    words = "leaves 6 images over on 8 devices; use 24 or 32, or set mesh.data to"
    assert_refused(result, 2, words, tmp_path)
    assert cpu_seconds() - before < 3


def test_an_accelerator_that_is_not_there_ends_with_2(sfrik, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "abacus")
    assert_refused(sfrik(*PRETRAIN), 2, "JAX_PLATFORMS='abacus'", tmp_path)


@pytest.mark.parametrize(
    "words",
    [("report", "nothing"), ("data", "prepare", "fashion_mnist", "--from", "nothing")],
)
def test_a_missing_directory_ends_with_66(sfrik, tmp_path, words):
    assert_refused(sfrik(*words), 66, "no such", tmp_path)


@pytest.mark.parametrize(
    "command",
    [
        ("pretrain",),
        ("replay",),
        ("sweep",),
        ("config", "show"),
        ("config", "diff"),
        ("data", "prepare"),
        ("data", "check"),
        ("data", "preview"),
        ("report",),
        ("doctor",),
    ],
)
def test_each_help_ends_with_an_example(sfrik, command):
    result = sfrik(*command, "--help")
    assert result.returncode == 0
    assert f"example:\n  python -m sfrik_jax {' '.join(command)} " in result.stdout


def test_show_prints_each_setting_and_its_json_is_a_config(sfrik, tmp_path):
    options = (
        "--config",
        QUICKSTART,
        "--config.seed",
        "-0",
        "--config.log.every_steps=3",
    )
    shown = sfrik("config", "show", *options)
    assert shown.returncode == 0, shown.stderr
    rows = dict(line.split(maxsplit=1) for line in shown.stdout.splitlines())
    assert rows["log.every_steps"] == "3"
    assert rows["data.name"] == "'fashion_mini'"
    stored = sfrik("config", "show", *options, "--json").stdout
    (tmp_path / "config.json").write_text(stored)
    changes = sfrik("config", "diff", QUICKSTART, "config.json")
    assert changes.stdout == "log.every_steps  5  3\n"


def test_show_says_how_many_steps_the_data_gives(sfrik, pictures):
    options = (
        *pictures,
        "--config.data.batch_size=16",
        "--config.optim.epochs=4",
        "--config.optim.warmup_epochs=2",
        "--config.optim.base_lr=1.2",
    )
    result = sfrik("config", "show", "--config", QUICKSTART, *options)
    assert result.stdout.endswith(
        "# 40 images: 2 steps per epoch, 8 in all, 4 of warm-up, peak rate 0.075\n"
    )


def test_a_reader_that_leaves_early_is_no_traceback(tmp_path):
    words = [
        sys.executable,
        "-m",
        "sfrik_jax",
        "config",
        "show",
        "--config",
        QUICKSTART,
    ]
    with subprocess.Popen(
        words,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_overrides_are_written_with_or_without_an_equals_sign():
    rest, overrides = split_overrides(
        ["show", "--config.a.b=1=2", "--config", "x.py", "--config.seed", "-1"]
    )
    assert rest == ["show", "--config", "x.py"]
    assert overrides == ["a.b=1=2", "seed=-1"]
    with pytest.raises(ConfigError, match="needs a value"):
        split_overrides(["--config.seed", "--workdir", "x"])


@pytest.mark.parametrize(
    ("spec", "workdir"),
    [
        ("configs/quickstart.py", "runs/quickstart"),
        ("configs/sweep.py:small", "runs/sweep"),
        ("runs/one/config.json", "runs/one"),
    ],
)
def test_a_run_has_a_default_place(spec, workdir):
    assert default_workdir(spec) == workdir


def test_a_runs_directory_is_its_own_place(tmp_path):
    assert default_workdir(str(tmp_path)) == str(tmp_path)
