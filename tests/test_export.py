"""Import and export: commands, the program for other machines, the model card."""

import errno
import hashlib
import json
import os

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_form
from filled import random_variables
from safetensors.numpy import load_file

from sfrik_jax import augment, models, weights
from sfrik_jax.__main__ import main
from sfrik_jax.errors import ConfigError, CorruptInputError
from sfrik_jax.models import layers
from sfrik_jax.target import portable
from sfrik_jax.weights import card, export, files

PREPROCESSING = {
    "image_size": 28,
    "resize": 32,
    "mean": [0.1, 0.2, 0.3],
    "std": [0.3, 0.2, 0.1],
}
ABOUT = {"arch": "resnet14", "width": 4, "stem": "imagenet"}
ABOUT |= {"preprocessing": PREPROCESSING}


@pytest.fixture(scope="module")
def network():
    model = models.BACKBONES["resnet14"](width=4)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 28, 28, 3)))
    return model, random_variables(shapes)


@pytest.fixture
def stored(network, tmp_path):
    path = tmp_path / "in" / "backbone.safetensors"
    path.parent.mkdir()
    weights.save(path, network[1], ABOUT)
    return path


# --- The program --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_the_program_gives_the_backbones_features_of_any_batch(
    network, tmp_path, dtype
):
    model, variables = network
    path = tmp_path / "net.stablehlo"
    digest = export.export_stablehlo(
        path, model, variables, PREPROCESSING, input_dtype=dtype
    )
    content = path.read_bytes()
    assert digest == hashlib.sha256(content).hexdigest()
    program = jax.export.deserialize(bytearray(content))
    assert set(program.platforms) == {"cpu", "cuda", "tpu"}
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 28, 28, 3)).astype(dtype)
    pixels = augment.normalize(
        jnp.asarray(images), PREPROCESSING["mean"], PREPROCESSING["std"]
    )
    with jax.default_matmul_precision("highest"):
        want = np.asarray(jax.jit(model.apply)(variables, pixels))
    for count in (1, 5):
        found = np.asarray(program.call(images[:count]))
        np.testing.assert_allclose(found, want[:count], rtol=1e-5, atol=1e-5)
    # Images differ in their features, so a batch in disorder would show.
    assert np.abs(want[0] - want[1]).max() > 0.01


def test_the_program_does_not_depend_on_the_machine_that_exports(
    network, tmp_path, monkeypatch
):
    model, variables = network
    images = jax.ShapeDtypeStruct((2, 28, 28, 3), np.float32)
    found, traced = set(), set()
    for backend, devices in (("cpu", 8), ("cpu", 1), ("tpu", 4)):
        monkeypatch.setattr(jax, "default_backend", lambda name=backend: name)
        for name in ("device_count", "local_device_count"):
            monkeypatch.setattr(jax, name, lambda count=devices: count)
        path = tmp_path / "net.stablehlo"
        export.export_stablehlo(path, model, variables, PREPROCESSING)
        found.add(path.read_bytes())
        trace = jax.make_jaxpr(lambda x: model.apply(variables, x))
        traced.add(str(trace(images)))
    assert len(found) == 1
    # The network itself takes three forms there.
    assert len(traced) == 3


def test_the_plain_operations_are_plain_only_within_the_block(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    x = jnp.zeros((1, 4, 4, 3))
    forms = [str(jax.make_jaxpr(lambda x: layers.max_pool(x))(x))]
    with portable():
        forms.append(str(jax.make_jaxpr(lambda x: layers.max_pool(x))(x)))
    forms.append(str(jax.make_jaxpr(lambda x: layers.max_pool(x))(x)))
    assert forms[0] == forms[2] != forms[1]
    assert "reduce_window" in forms[1]


def test_an_input_type_that_is_not_offered_is_refused(network, tmp_path):
    path, (model, variables) = tmp_path / "x", network
    with pytest.raises(ConfigError, match="'int8'; choose one of uint8, float32"):
        export.export_stablehlo(
            path, model, variables, PREPROCESSING, input_dtype="int8"
        )
    assert not list(tmp_path.iterdir())


# --- The model card -----------------------------------------------------------------


@pytest.fixture
def run(network, tmp_path):
    """A run directory with figures of its weights, and of others."""
    path = tmp_path / "run"
    (path / "eval").mkdir(parents=True)
    weights.save(path / "backbone.safetensors", network[1], ABOUT)
    own = weights.fingerprint(network[1], "resnet14")
    config = {
        "init_from": "/home/me/start.safetensors",
        "loss": {"method": "sfrik", "weights": [1, 40]},
        "data": {
            "source": "tfds",
            "name": "stl|",
            "path": "/home/me/tfds",
            "subset": "/home/me/one_percent.txt",
        },
    }
    session = {"git_revision": "abc", "libraries": {"jax": "0.10"}, "devices": ["TPU"]}
    files = {
        "config.json": config,
        "run.json": {"sessions": [session], "data_fingerprint": "fed"},
        "summary.json": {
            "linear_top1": 84.12345,
            "knn20_top1": 80.0,
            "random_init_linear_top1": 70.0,
            "backbone_sha256": own,
            "protocol": {"knn_k": 20, "resize": 32},
        },
        "eval/linear.json": {
            "name": "linear",
            "figures": {"top1": 55.5},
            "protocol": {"epochs": 100, "data.path": "/home/me", "x": "C:\\me"},
            "weights": {"sha256": own},
        },
        "eval/knn.json": {
            "name": "knn",
            "figures": {"top1": 11.25},
            "protocol": {},
            "weights": {"sha256": "0" * 64},
        },
    }
    for name, value in files.items():
        (path / name).write_text(json.dumps(value))
    (path / "eval" / "broken.json").write_text("{")
    return path


def card_of(network, run, restored=False, **changes):
    model = {key: ABOUT[key] for key in ("arch", "width", "stem")} | changes
    return card.model_card(model, network[1], PREPROCESSING, run=run, restored=restored)


def test_a_card_states_figures_of_these_weights_with_their_protocol(network, run):
    text = card_of(network, run)
    trained, probed = text.partition("## Figures")[2].split("###")[1:]
    assert "| linear_top1 | 84.12 |" in trained and "| knn20_top1 | 80 |" in trained
    assert "Protocol: knn_k=20, resize=32." in trained
    assert "| top1 | 55.5 |" in probed and "Protocol: epochs=100." in probed
    # Neither those of the untrained network, nor of other weights.
    assert "| 70 |" not in text and "11.25" not in text
    assert "Left out, as they are of other weights: eval/knn.json." in text
    assert f"`{weights.fingerprint(network[1], 'resnet14')}`" in text
    assert "By sfrik on stl|" in text
    for row in (
        "| source revision | abc |",
        "| `data.name` | stl\\| |",
        "| jax | 0.10",
    ):
        assert row in text
    assert text.startswith("---\nlibrary_name: sfrik_jax\n")


def test_a_card_states_no_figure_of_other_weights(network, run):
    model, variables = network
    other = jax.tree.map(lambda leaf: leaf + 1, variables)
    text = card_of((model, other), run, restored=True)
    assert "By sfrik on stl|" in text
    assert "None has been measured with these weights." in text
    assert "summary.json, eval/knn.json, eval/linear.json." in text


def test_weights_that_only_lie_in_a_run_do_not_get_its_story(network, run):
    model, variables = network
    other = jax.tree.map(lambda leaf: leaf + 1, variables)
    text = card_of((model, other), run)
    assert "Not known here" in text
    for words in ("sfrik on", "loss.method", "summary.json", "self-supervised"):
        assert words not in text


def test_a_card_tells_no_paths(network, run):
    text = card_of(network, run)
    assert "home" not in text and "me" not in text.split() and "C:" not in text
    assert "| `data.subset` | one_percent.txt |" in text
    assert "| started from | weights of a file, not random ones |" in text


def test_a_card_names_the_source_of_the_data(network, run):
    config = json.loads((run / "config.json").read_text())
    config["data"]["source"] = "folder"
    (run / "config.json").write_text(json.dumps(config))
    text = card_of(network, run)
    assert "By sfrik on a folder of pictures" in text and "stl" not in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eval/x.json", {"figures": {"a": 1}, "weights": [], "protocol": []}),
        ("eval/x.json", {"figures": {"a": 1}, "weights": {"sha256": []}}),
        ("eval/x.json", []),
        ("run.json", {"sessions": {}, "data_subset": []}),
        ("run.json", {"sessions": [[]], "data_subset": {"name": []}}),
        ("run.json", {"sessions": [{"libraries": [], "devices": 3}]}),
        ("config.json", {"data": [], "loss": 3}),
        ("config.json", {"data": {"source": "tfds", "name": "\ud800"}}),
        ("config.json", []),
    ],
)
def test_a_record_of_another_form_is_passed_over(network, run, name, value):
    (run / name).write_text(json.dumps(value))
    text = card_of(network, run)
    assert "84.12" in text and text.encode()


def test_a_protocol_of_another_form_is_passed_over(network, run):
    own = weights.fingerprint(network[1], "resnet14")
    record = {"figures": {"a": 7.5}, "weights": {"sha256": own}, "protocol": []}
    (run / "eval" / "x.json").write_text(json.dumps(record))
    assert "| a | 7.5 |" in card_of(network, run)


def test_a_card_of_a_standard_network_tells_how_others_load_it(network):
    assert "no network of this shape" in card_of(network, None)
    text = card_of(network, None, width=64)
    assert "no network of this shape" in text
    standard = {"arch": "resnet18", "width": 64, "stem": "imagenet"}
    assert "torchvision.models.resnet18()" in card._usage(standard, PREPROCESSING, "")
    small = standard | {"stem": "small"}
    assert "no network of this shape" in card._usage(small, PREPROCESSING, "")


# --- The commands -------------------------------------------------------------------


def test_import_writes_ours_and_says_what_it_is(network, tmp_path, capsys):
    content = torch_form.saved(weights.to_torch(network[1], "resnet14"))
    source, out = tmp_path / "net.pth", tmp_path / "new" / "net.safetensors"
    source.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    assert main(["import", str(source), "--out", str(out), "--sha256", digest]) == 0
    rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    rows = {key: value.strip() for key, value in rows.items()}
    assert rows["architecture"] == "resnet14, width 4, stem imagenet"
    assert rows["sha256 of the file"] == digest
    own = weights.fingerprint(network[1], "resnet14")
    assert rows["sha256 of the weights"] == own
    count = sum(leaf.size for leaf in jax.tree.leaves(network[1]["params"]))
    assert rows["parameters"] == f"{count:,}"
    found = weights.open_file(out)
    assert weights.fingerprint(found.variables, "resnet14") == own
    assert found.about["imported_from"] == {"file": "net.pth", "sha256": digest}


def refused(capsys, words, code, message):
    assert main(list(map(str, words))) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert message in err


def test_a_file_that_is_swapped_is_not_mixed_up(stored, network, monkeypatch):
    other = stored.with_name("other.safetensors")
    weights.save(other, jax.tree.map(lambda leaf: leaf + 1, network[1]), ABOUT)
    digest = hashlib.sha256(stored.read_bytes()).hexdigest()
    real = files._content

    def swapping(path, file):
        other.replace(path)
        return real(path, file)

    monkeypatch.setattr(files, "_content", swapping)
    found, told = weights.open_with_sum(stored, digest.upper())
    assert told == digest
    chex.assert_trees_all_equal(found.variables, network[1])


def test_a_file_that_changes_while_it_is_read_is_refused(stored, monkeypatch):
    real = files._content

    def changing(path, file):
        found = real(path, file)
        with path.open("r+b") as writer:
            writer.seek(-1, 2)
            writer.write(b"\x01")
        return found

    monkeypatch.setattr(files, "_content", changing)
    with pytest.raises(CorruptInputError, match="changed while it was read"):
        weights.open_with_sum(stored)


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_one_line_and_leaves_nothing(
    stored, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "new"
    out.mkdir()
    (out / "o.partial").write_text("mine")
    monkeypatch.setattr(os, "fsync", full)
    words = ("import", stored, "--out", out / "o.safetensors")
    refused(capsys, words, 74, f"the disk of {out / 'o.safetensors'} is full")
    refused(capsys, ("export", stored, "--out", out), 74, "is full; make room")
    assert [path.name for path in out.iterdir()] == ["o.partial"]
    assert (out / "o.partial").read_text() == "mine"


def test_a_place_that_takes_no_file_is_one_line(stored, capsys):
    words = ("import", stored, "--out", "/proc/x/o.safetensors")
    refused(capsys, words, 73, "/proc")


def test_what_is_written_leaves_files_of_other_names_alone(stored, tmp_path, capsys):
    mine = tmp_path / "o.partial"
    mine.write_text("mine")
    assert main(["import", str(stored), "--out", str(tmp_path / "o.safetensors")]) == 0
    assert mine.read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "in",
        "o.partial",
        "o.safetensors",
    ]


def test_import_refuses_another_sum_and_unsafe_files(stored, tmp_path, capsys):
    out = tmp_path / "new" / "out.safetensors"
    words = ("import", stored, "--out", out)
    refused(capsys, (*words, "--sha256", "0" * 64), 65, "fetch it again")
    refused(capsys, ("import", stored, "--out", "x.pth"), 2, "must end in .safetensors")
    refused(capsys, ("import", stored, "--out", stored), 2, "is the file to import")
    missing = stored.with_name("nothing.pth")
    refused(capsys, ("import", missing, "--out", out), 66, "there is no weights file")
    refused(capsys, ("import", stored, "--out", stored / "x.safetensors"), 73, "a file")
    unsafe = tmp_path / "bad.pth"
    unsafe.write_bytes(torch_form.file_of(b"\x80\x02cposix\nsystem\n."))
    message = "SFRIK-UNSAFE refused global posix.system"
    refused(capsys, ("import", unsafe, "--out", out), 65, message)
    refused(capsys, ("export", unsafe, "--out", out), 65, message)
    assert not out.parent.exists()


def test_export_writes_weights_program_and_card(network, run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(run), "--out", str(out), "--input", "float32"]) == 0
    names = ["backbone.safetensors", "backbone.stablehlo", "README.md"]
    assert capsys.readouterr().out.split() == [str(out / name) for name in names]
    assert {path.name for path in out.iterdir()} == set(names)
    tensors = load_file(out / "backbone.safetensors")
    want = weights.to_torch(network[1], "resnet14")
    assert tensors.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_array_equal(tensors[name], value)
    program = jax.export.deserialize(
        bytearray((out / "backbone.stablehlo").read_bytes())
    )
    assert program.in_avals[0].dtype == np.float32
    text = (out / "README.md").read_text()
    assert "images float32 in 0 … 255" in text and "55.5" in text


def test_export_without_the_program_of_a_file(stored, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(stored), "--out", str(out), "--no-stablehlo"]) == 0
    assert {p.name for p in out.iterdir()} == {"backbone.safetensors", "README.md"}
    assert "Not known here" in (out / "README.md").read_text()


def exported(source, out, *words):
    return main(["export", str(source), "--out", str(out), *map(str, words)])


@pytest.mark.parametrize("name", ["README.md", "backbone.safetensors"])
def test_export_replaces_no_file_that_no_export_wrote(stored, tmp_path, capsys, name):
    out = tmp_path / "project"
    out.mkdir()
    (out / name).write_text("---\nlibrary_name: sfrik_jax\n---\nmine\n")
    words = ("export", stored, "--out", out, "--no-stablehlo")
    refused(capsys, words, 73, f"holds a {name} that is of no export")
    assert "mine" in (out / name).read_text() and len(list(out.iterdir())) == 1


def test_export_replaces_nothing_of_another_run(stored, run, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    words = ("export", stored, "--out", run, "--no-stablehlo")
    refused(capsys, words, 73, "is the directory of a run; name an empty directory")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_an_export_replaces_an_earlier_one_unless_it_was_changed(
    stored, network, tmp_path, capsys
):
    out = tmp_path / "out"
    assert exported(stored, out) == 0
    other = tmp_path / "other.safetensors"
    weights.save(other, jax.tree.map(lambda leaf: leaf + 1, network[1]), ABOUT)
    assert exported(other, out, "--no-stablehlo") == 0
    # The program of the first would be one of other weights.
    assert {p.name for p in out.iterdir()} == {"backbone.safetensors", "README.md"}
    assert weights.open_file(out / "backbone.safetensors").about["arch"] == "resnet14"
    capsys.readouterr()
    (out / "backbone.stablehlo").write_text("mine")
    words = ("export", stored, "--out", out, "--no-stablehlo")
    refused(capsys, words, 73, "holds a backbone.stablehlo that is of no export")
    (out / "backbone.stablehlo").unlink()
    card_file = out / "README.md"
    card_file.write_text(
        card_file.read_text().replace("# license: to be", "license: x")
    )
    refused(capsys, words, 73, "holds a README.md that is of no export, or was changed")
    assert "license: x" in card_file.read_text()


def test_export_does_not_write_over_what_it_exports(stored, run, tmp_path, capsys):
    refused(capsys, ("export", stored, "--out", stored.parent), 2, "name another")
    refused(capsys, ("export", run, "--out", run), 2, "name another directory")
    refused(capsys, ("export", run, "--out", stored), 73, "is a file")
    refused(
        capsys, ("export", tmp_path / "x", "--out", "o"), 66, "there are no weights"
    )


@pytest.mark.parametrize("command", ["import", "export"])
def test_each_help_ends_with_an_example(capsys, command):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"example:\n  python -m sfrik_jax {command} " in capsys.readouterr().out
