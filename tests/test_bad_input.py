"""Bad pictures and bad data sets, by the real command: code, message, files."""

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_pretrain import SMALL, command, finish, logged, start, summary

from sfrik_jax import metrics
from sfrik_jax.__main__ import main
from sfrik_jax.data import tfds_source
from sfrik_jax.data.opening import open_source
from sfrik_jax.errors import BadPictureError

BROKEN = {
    "a/03.jpg": lambda whole: b"",
    "b/07.jpg": lambda whole: b"<!doctype html><html></html>",
    "c/20.jpg": lambda whole: whole[: len(whole) // 2],
    "a/33.jpg": lambda whole: whole[:-2],
    "c/41.jpg": lambda whole: bytes(range(256)),
}


def write_split(folder: Path, count: int, classes: str = "abc") -> None:
    rng = np.random.default_rng(count)
    for number in range(count):
        path = folder / classes[number % len(classes)] / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (34 + number % 5, 40, 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    """48 pictures to train on, five of them broken, and 12 to test on."""
    write_split(tmp_path / "pictures" / "train", 48)
    write_split(tmp_path / "pictures" / "test", 12)
    for number, (name, damage) in enumerate(BROKEN.items()):
        found = sorted((tmp_path / "pictures" / "train" / name[0]).iterdir())
        path = found[3 * number]
        path.write_bytes(damage(path.read_bytes()))
    return tmp_path / "pictures"


def of_folder(folder: Path, *more: str) -> list[str]:
    own = ["data.source=folder", f"data.path={folder}"]
    splits = ["data.train_split=train", "eval.test_split=test"]
    return [*SMALL, *own, *splits, *more]


def listed(run: Path) -> list[str]:
    record = json.loads((run / "bad_pictures.json").read_text())
    return [Path(each["id"]).name for each in record["pictures"]]


def test_i1_a_bad_picture_ends_the_command_with_65_and_skip_goes_on(tmp_path, folder):
    run = tmp_path / "run"
    process = start(run, of_folder(folder))
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (65, "")
    assert err.startswith(f"error: SFRIK-DATA-BAD id={folder}/train/")
    assert "reason=cannot be decoded (" in err
    assert err.endswith("; replace or remove it, or set data.on_error=skip\n")
    assert err.count("\n") == 1
    said = finish(start(run, of_folder(folder, "data.on_error=skip")), code=0)
    assert said.count("SFRIK-DATA-BAD") == len(BROKEN)
    assert "5 bad pictures, replaced in training; 5 left out" in said
    assert len(set(listed(run))) == len(BROKEN)
    found = summary(run)
    assert (found["bad_pictures"], found["train_images_left_out"]) == (5, 5)
    assert (found["train_images"], found["test_images"]) == (43, 12)
    assert main(["report", str(run)]) == 0
    assert "5 replaced, 5 left out" in (run / "report.html").read_text()


@pytest.mark.slow  # three runs, 75 s
def test_i1_skipping_is_bitwise_the_same_by_more_threads_and_resumed(tmp_path, folder):
    skip = ["data.on_error=skip", "optim.epochs=30", "checkpoint.every_steps=5"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finish(start(whole, of_folder(folder, *skip, "data.workers=1")), code=0)
    process = start(cut, of_folder(folder, *skip, "data.workers=2"))
    while process.poll() is None and not logged(cut, "train/loss"):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    finish(process, code=75)
    finish(start(cut, of_folder(folder, *skip, "data.workers=2")), code=0)
    assert logged(cut, "train/loss") == logged(whole, "train/loss")
    assert summary(cut)["weights_sha256"] == summary(whole)["weights_sha256"]
    assert listed(cut) == listed(whole)


@pytest.mark.slow
def test_i1_above_the_budget_the_command_ends_with_65(tmp_path, folder, capsys):
    run = tmp_path / "run"
    over = of_folder(folder, "data.on_error=skip", "data.max_bad=2")
    assert main(command(run, over)) == 65
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert "the budget is 2" in last
    assert "raise data.max_bad" in last
    assert len(listed(run)) > 2
    assert not (run / "summary.json").exists()


@pytest.mark.slow
def test_i1_a_bad_picture_to_test_on_ends_with_65_also_with_skip(
    tmp_path, folder, capsys
):
    path = next((folder / "test").rglob("*.jpg"))
    path.write_bytes(b"")
    run = tmp_path / "run"
    assert main(command(run, of_folder(folder, "data.on_error=skip"))) == 65
    assert f"error: SFRIK-DATA-BAD id={path} " in capsys.readouterr().err
    # The training is done: with the picture restored the evaluation alone is left.
    write_split(folder / "test", 12)
    assert main(command(run, of_folder(folder, "data.on_error=skip"))) == 0
    rows = [r["step"] for r in metrics.read_rows(run) if "train/loss" in r]
    assert rows == list(range(1, 10))


def damage_a_record(data_dir: Path) -> str:
    """Flips one bit of the train records such that one of the first 64 is bad."""
    (path,) = data_dir.rglob("*-train.array_record-*")
    whole = path.read_bytes()
    for place in range(1_000, 60_000, 1_000):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        source = tfds_source.TfdsSource("fashion_mini", str(data_dir), "train[:64]")
        for i in range(64):
            try:
                source.read(i)
            except BadPictureError as error:
                return error.id
    raise AssertionError("no such bit is one of these records")


@pytest.fixture
def prepared(tmp_path, data_dir):
    """A copy of fashion_mini, to be damaged."""
    shutil.copytree(data_dir / "fashion_mini", tmp_path / "data" / "fashion_mini")
    return tmp_path / "data"


@pytest.mark.slow
def test_i4_a_flipped_bit_in_a_record_follows_the_policy(tmp_path, prepared):
    id = damage_a_record(prepared)
    own = [*SMALL, f"data.path={prepared}"]
    said = finish(start(tmp_path / "first", [*own, "data.residence=device"]), code=65)
    assert f"error: SFRIK-DATA-BAD id={id} reason=record cannot be read (" in said
    assert said.count("\n") == 1
    skip = [*own, "data.residence=host", "data.on_error=skip"]
    said = finish(start(tmp_path / "run", skip), code=0)
    assert said.count("SFRIK-DATA-BAD") == 1
    found = summary(tmp_path / "run")
    assert (found["bad_pictures"], found["train_images"]) == (1, 63)


def edit(path: Path, **changes) -> None:
    """Replaces values of a JSON file, wherever in the tree their keys stand."""

    def changed(node):
        if isinstance(node, list):
            return [changed(each) for each in node]
        if isinstance(node, dict):
            return {k: changes.get(k, changed(v)) for k, v in node.items()}
        return node

    path.write_text(json.dumps(changed(json.loads(path.read_text()))))


def refused(tmp_path, overrides, code, words, capsys) -> None:
    """The command ends so before a step, with one line, and leaves no run behind."""
    assert main(command(tmp_path / "run", overrides)) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert not (tmp_path / "run" / "config.json").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


def set_of(prepared: Path) -> Path:
    (version,) = (prepared / "fashion_mini").iterdir()
    return version


PREPARED_DAMAGE = {
    "a record file is gone": (
        lambda at: next(at.glob("*-test.*")).unlink(),
        "lacks fashion_mini-test.array_record-00000-of-00001",
    ),
    "a record file is cut short": (
        lambda at: cut(next(at.glob("*-train.*"))),
        "is damaged or cut short; shardLengths in dataset_info.json: 5000",
    ),
    "no features": (
        lambda at: (at / "features.json").unlink(),
        "features.json or a file beside it is damaged or missing",
    ),
    "damaged features": (
        lambda at: (at / "features.json").write_text('{"featuresDict'),
        "features.json or a file beside it is damaged or missing",
    ),
    "damaged description": (
        lambda at: (at / "dataset_info.json").write_text("{"),
        "dataset_info.json is damaged",
    ),
    "too few examples described": (
        lambda at: edit(at / "dataset_info.json", shardLengths=["900"]),
        "holds 5000 records; shardLengths in dataset_info.json: 900",
    ),
    "too many examples described": (
        lambda at: edit(at / "dataset_info.json", shardLengths=["5001"]),
        "holds 5000 records; shardLengths in dataset_info.json: 5001",
    ),
    "a split without examples": (
        lambda at: edit(at / "dataset_info.json", shardLengths=[]),
        "split 'train[:64]' of",
    ),
    "labels beyond the classes": (
        lambda at: edit(at / "features.json", numClasses="5"),
        "outside 0 … 4 of the feature label",
    ),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100_000])


@pytest.mark.parametrize("what", PREPARED_DAMAGE)
def test_i5_a_damaged_prepared_set_ends_with_65(tmp_path, prepared, capsys, what):
    damage, words = PREPARED_DAMAGE[what]
    damage(set_of(prepared))
    own = [*SMALL, f"data.path={prepared}"]
    refused(tmp_path, own, 65, words, capsys)


def test_i5_a_label_below_zero_ends_with_65(tmp_path, small, capsys, monkeypatch):
    own = tfds_source.TfdsSource._record
    monkeypatch.setattr(
        tfds_source.TfdsSource,
        "_record",
        lambda self, i: own(self, i) | ({"label": -2} if i == 7 else {}),
    )
    words = "train[7] has label -2, outside 0 … 9 of the feature label"
    refused(tmp_path, small, 65, words, capsys)


@pytest.fixture
def small(data_dir):
    return [*SMALL, f"data.path={data_dir}"]


@pytest.mark.parametrize(
    ("override", "code", "words"),
    [
        ("data.train_split=train[5:5]", 65, "split 'train[5:5]' of"),
        ("eval.test_split=test[:0]", 65, "split 'test[:0]' of"),
        ("data.batch_size=72", 2, "data.batch_size=72 is more than the 64 images"),
        ("data.path=/nowhere", 66, "is not prepared in /nowhere"),
    ],
)
def test_i5_settings_that_the_set_cannot_serve(
    tmp_path, small, capsys, override, code, words
):
    refused(tmp_path, [*small, override], code, words, capsys)


def test_i5_a_folder_that_is_not_there_ends_with_66(tmp_path, capsys):
    gone = of_folder(tmp_path / "gone")
    refused(tmp_path, gone, 66, "there is no folder", capsys)


@pytest.mark.parametrize("split", ["train", "test"])
def test_i5_a_folder_without_pictures_ends_with_65(tmp_path, capsys, split):
    pictures = tmp_path / "pictures"
    write_split(pictures / ("test" if split == "train" else "train"), 20)
    (pictures / split).mkdir()
    refused(
        tmp_path, of_folder(pictures), 65, f"no pictures in {pictures}/{split}", capsys
    )


def test_i5_one_class_alone_ends_with_65(tmp_path, capsys):
    pictures = tmp_path / "pictures"
    write_split(pictures / "train", 48)
    write_split(pictures / "test", 12)
    own = of_folder(pictures, "eval.train_split=train[:10]")
    assert main(command(tmp_path / "run", own)) == 65
    *_, last = capsys.readouterr().err.splitlines()
    assert "have label 0; kNN and probe need two classes or more" in last
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_slice_that_lacks_whole_classes_is_warned_of(tmp_path, caplog):
    write_split(tmp_path / "train", 12)
    settings: dict[str, Any] = {"source": "folder", "name": "", "path": str(tmp_path)}
    open_source(**settings, split="train[:6]")
    assert caplog.messages == [
        f"split 'train[:6]' of {tmp_path}/train has no pictures of 1 of 3 classes "
        "(c); a subset such as per_class:N or fraction:F has them all"
    ]
    caplog.clear()
    open_source(**settings, split="train[:9]")
    open_source(**settings, split="train")
    assert not caplog.messages
