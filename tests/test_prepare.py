"""`data prepare`, the real command: from archives to a run, and every refusal."""

import hashlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_ins
import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered as tfds_registered

from sfrik_jax.data import (
    builders,
    decode,
    opening,
    prepared,
    progress,
    tfds_source,
)
from sfrik_jax.data.builders import base, records, registered
from sfrik_jax.errors import (
    ConfigError,
    CorruptInputError,
    DiskFullError,
    MissingInputError,
    OutputError,
)

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(ROOT),
    # A run of eight pictures a step, on eight devices.
    "JAX_NUM_CPU_DEVICES": "8",
}
SMALL_RUN = (
    "--config.data.name=imagenet2012",
    "--config.data.batch_size=8",
    "--config.data.image_size=16",
    "--config.eval.test_split=validation",
    "--config.eval.baselines=false",
    "--config.eval.image_size=16",
    "--config.eval.resize=16",
    "--config.eval.knn_k=5",
    "--config.eval.probe_epochs=2",
    "--config.model.width=4",
    "--config.model.hidden_dims=16,",
    "--config.model.embed_dim=16",
    "--config.optim.epochs=1",
    "--config.optim.warmup_epochs=0",
)


@pytest.fixture
def sfrik(tmp_path):
    """Runs `python -m sfrik_jax` in an empty directory; checks the exit code."""

    def run(code, *words):
        result = subprocess.run(
            [sys.executable, "-m", "sfrik_jax", *map(str, words)],
            cwd=tmp_path,
            env=os.environ | ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == code, result.stderr
        assert "Traceback" not in result.stderr
        return result

    return run


@pytest.fixture
def tars(tmp_path):
    """The folder of the two stand-ins of ImageNet."""
    stand_ins.write_imagenet(tmp_path / "tars")
    return tmp_path / "tars"


def test_imagenet_from_its_tars_to_a_run(sfrik, tmp_path, tars):
    words = ("imagenet2012", "--from", "tars", "--data-dir", "data")
    refused = sfrik(65, "data", "prepare", *words)
    assert "train 80, validation 12 pictures; published are" in refused.stderr
    assert "train 1,281,167, validation 50,000" in refused.stderr
    assert prepared.find("imagenet2012", tmp_path / "data") is None

    words = ("imagenet2012:5.1.0", *words[1:])
    done = sfrik(0, "data", "prepare", *words, "--allow-counts")
    assert done.stdout == "data/imagenet2012/5.1.0\n"
    assert done.stderr == "imagenet2012: train 80, validation 12 pictures\n"
    assert sfrik(0, "data", "prepare", *words).stderr == ""

    found = sfrik(0, "data", "check", "imagenet2012", "--data-dir", "data")
    assert "train       80        0    1000     996" in found.stdout

    # Of each class the first 10 by name: half of the pictures, five steps.
    names = [
        name
        for wnid in stand_ins.WNIDS
        for name in sorted(
            name
            for name in stand_ins.imagenet_pictures()["train"]
            if name.startswith(wnid)
        )[:10]
    ]
    (tmp_path / "first.txt").write_text("\n".join(names))
    run = ("pretrain", "--config", ROOT / "configs" / "quickstart.py")
    options = (*SMALL_RUN, "--config.data.subset=list:first.txt")
    said = sfrik(0, *run, "--workdir", "run", *options, "--config.data.path=data")
    assert "step 5/5" in said.stderr + said.stdout
    for name in ("backbone.safetensors", "metrics.jsonl", "config.json"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["data_subset"]["size"] == 40


def test_imagenet_keeps_every_byte_name_and_label(tmp_path, tars, monkeypatch):
    # Several shards, as a set of hundreds of gigabytes has.
    monkeypatch.setattr(records, "SHARD_BYTES", 50_000)
    directory = builders.prepare("imagenet2012", tmp_path, tars, allow_counts=True)
    assert len(list(directory.glob("*-train.array_record-*-of-00003"))) == 3
    labels = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
    wnids = labels.read_text().split()
    for split, want in stand_ins.imagenet_pictures().items():
        source = tfds_source.TfdsSource("imagenet2012", str(tmp_path), split)
        classes, names = source.class_names, source.file_names
        assert classes == sorted(classes or [])
        assert classes is not None
        assert len(classes) == 1000
        assert names is not None
        assert sorted(names) == sorted(want)
        assert names != sorted(names), "stored in a shuffled order"
        for i, name in enumerate(names):
            data, label = source.example(i)
            assert data == want[name]
            assert decode.decode_rgb(data).shape == (32, 32, 3)
            number = int(name[15:23]) - 1 if split == "validation" else 0
            wnid = wnids[number] if split == "validation" else name[:9]
            assert label == classes.index(wnid)
    # TFDS's own builder finds and reads it.
    theirs: Any = tfds.builder("imagenet2012", data_dir=tmp_path)
    assert theirs.info.splits["train"].num_examples == 80
    decoders = {"image": tfds.decode.SkipDecoding()}
    first = theirs.as_data_source(split="validation", decoders=decoders)[0]
    assert first["file_name"].decode().startswith("ILSVRC2012_val_")


def test_a_slice_has_all_classes(tmp_path, tars):
    builders.prepare("imagenet2012", tmp_path, tars, allow_counts=True)
    source = tfds_source.TfdsSource("imagenet2012", str(tmp_path), "train[:40]")
    assert source.labels is not None
    sizes = np.unique(source.labels, return_counts=True)[1]
    assert len(sizes) == len(stand_ins.WNIDS)
    assert sizes.min() >= 5


@pytest.mark.slow
def test_the_20_percent_are_the_first_260_of_each_class_by_name(tmp_path):
    # All thousand classes, as the rule asks; a picture is one and the same.
    wnids = tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split()
    picture = stand_ins.encoded(0)
    pictures = {
        f"{wnid}_{number + 2}.JPEG": picture for wnid in wnids for number in range(262)
    }
    stand_ins.write_imagenet(tmp_path / "tars", pictures)
    builders.prepare("imagenet2012", tmp_path, tmp_path / "tars", allow_counts=True)
    source = opening.open_source(
        source="tfds",
        name="imagenet2012",
        path=str(tmp_path),
        split="train",
        subset="in20",
    )
    want: list[str] = []
    for wnid in wnids:
        want += sorted(f"{wnid}_{number + 2}.JPEG" for number in range(262))[:260]
    assert source.file_names is not None
    assert sorted(source.file_names) == sorted(want)


def pixels_and_labels(folder, name, split):
    source = tfds_source.TfdsSource(name, str(folder), split)
    examples = [source.example(i) for i in range(len(source))]
    return {
        decode.decode_rgb(data).tobytes(): -1 if label is None else label
        for data, label in examples
    }


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_binary_archives_keep_every_pixel_and_label(tmp_path, name):
    made = stand_ins.write_binary(tmp_path, name)
    with pytest.raises(CorruptInputError, match="published are"):
        builders.prepare(name, tmp_path, tmp_path)
    directory = builders.prepare(name, tmp_path, tmp_path, allow_counts=True)
    for split, (images, labels) in made.items():
        want = {
            image.tobytes(): int(label)
            for image, label in zip(images, labels, strict=True)
        }
        assert pixels_and_labels(tmp_path, name, split) == want
    kept = {each.suffix for each in directory.iterdir()}
    assert not kept & {".bin", ".gz"}, "nothing of the archive stays"
    source = tfds_source.TfdsSource(name, str(tmp_path), "test")
    assert source.class_names is not None
    assert source.class_names[3] == "class 3"


def test_missing_tars_are_told_with_the_way_to_them(sfrik, tmp_path):
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "ILSVRC2012_img_val.tar").touch()
    result = sfrik(66, "data", "prepare", "imagenet2012", "--from", "tars")
    assert result.stderr.startswith("error: ILSVRC2012_img_train.tar not in tars;")
    assert "https://image-net.org/download-images" in result.stderr
    assert result.stderr.count("\n") == 1
    result = sfrik(66, "data", "prepare", "imagenet2012", "--data-dir", "data")
    assert "not in data/downloads/manual" in result.stderr


@pytest.mark.parametrize(
    ("tar", "files", "words"),
    [
        ("train", [("x.tar", b"")], "holds 'x.tar', which is not of ILSVRC2012"),
        (
            "train",
            [("n00000001.tar", stand_ins.tar_bytes([]))],
            "holds 'n00000001.tar', which is not",
        ),
        (
            "train",
            [("n01440764.tar", stand_ins.tar_bytes([("n01443537_1.JPEG", b"1")]))],
            "n01440764.tar holds 'n01443537_1.JPEG', which is not",
        ),
        (
            "train",
            [("n01440764.tar", stand_ins.tar_bytes([("../n01440764_1.JPEG", b"1")]))],
            "leads out of the archive",
        ),
        ("train", [("n01440764.tar", b"no archive" * 99)], "is no whole archive"),
        ("val", [("ILSVRC2012_val_00050001.JPEG", b"1")], "which is not"),
        ("val", [("ILSVRC2012_val_00000001.JPEG", b"1")] * 2, "is there twice"),
    ],
)
def test_a_tar_that_is_not_imagenets_is_refused(tmp_path, tars, tar, files, words):
    path = tars / f"ILSVRC2012_img_{tar}.tar"
    path.write_bytes(stand_ins.tar_bytes(files))
    with pytest.raises(CorruptInputError, match=words):
        builders.prepare("imagenet2012", tmp_path, tars, allow_counts=True)
    assert prepared.find("imagenet2012", tmp_path) is None


def test_a_tar_that_is_cut_short_is_refused(tmp_path, tars):
    path = tars / "ILSVRC2012_img_train.tar"
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(CorruptInputError, match=r"is no whole archive|ends within"):
        builders.prepare("imagenet2012", tmp_path, tars, allow_counts=True)


def test_a_class_that_loses_pictures_to_a_damaged_header_is_refused(tmp_path, tars):
    path = tars / "ILSVRC2012_img_train.tar"
    data = bytearray(path.read_bytes())
    # The tenth picture of the second class: a header in the midst of a tar in a tar.
    data[data.index(f"{stand_ins.WNIDS[1]}_11.JPEG".encode())] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptInputError, match=f"{stand_ins.WNIDS[1]}.tar is damaged"):
        builders.prepare("imagenet2012", tmp_path, tars, allow_counts=True)


def test_a_set_of_another_format_is_not_touched(sfrik, tmp_path):
    place = tmp_path / "data" / "fashion_mini" / "1.0.0"
    place.mkdir(parents=True)
    about = {"name": "fashion_mini", "fileFormat": "tfrecord", "splits": []}
    (place / "dataset_info.json").write_text(json.dumps(about))
    (place / "fashion_mini-train.tfrecord-00000-of-00001").write_bytes(b"records")
    before = {each.name: each.read_bytes() for each in place.iterdir()}
    words = ("fashion_mini", "--data-dir", "data")
    told = sfrik(73, "data", "prepare", *words).stderr
    assert "data/fashion_mini/1.0.0 holds the set as tfrecord; move or delete" in told
    assert "--data-dir" in told
    assert {each.name: each.read_bytes() for each in place.iterdir()} == before
    assert not (tmp_path / "data" / ".preparing").exists()
    told = sfrik(66, "data", "check", *words).stderr
    assert "move or delete that directory, or choose another --data-dir" in told
    (place / "dataset_info.json").unlink()
    assert "holds no ArrayRecord set" in sfrik(73, "data", "prepare", *words).stderr
    assert len(list(place.iterdir())) == 1


def test_what_lacks_files_stays_until_the_new_set_stands(tmp_path, monkeypatch):
    place = builders.prepare("fashion_mini", tmp_path)
    shard = place / "fashion_mini-test.array_record-00000-of-00001"
    shard.unlink()
    kept = sorted(each.name for each in place.iterdir())
    rename = Path.rename

    def fail(path, target):
        if Path(target) == place and "replaced" not in path.name:
            raise PermissionError(13, "denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OutputError, match="denied"):
        builders.prepare("fashion_mini", tmp_path)
    assert sorted(each.name for each in place.iterdir()) == kept
    monkeypatch.undo()
    assert builders.prepare("fashion_mini", tmp_path) == place
    assert shard.stat().st_size > 0


def test_a_default_config_is_locked_by_its_full_name(tmp_path, monkeypatch):
    monkeypatch.setattr(registered.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(builders, "_check_room", lambda *_: None)
    held, looked = [], []

    def generate(builder, root, manual):
        held.extend(each.name for each in (root / "." / ".preparing").iterdir())
        assert Path(builder.data_dir_root).name == "voc+2007"
        raise DiskFullError("enough")

    whole = prepared.whole
    monkeypatch.setattr(
        prepared, "whole", lambda name, root: looked.append(name) or whole(name, root)
    )
    monkeypatch.setattr(builders, "_generate", generate)
    for name in ("voc", "voc/2007"):
        with pytest.raises(DiskFullError, match="enough"):
            builders.prepare(name, tmp_path)
        assert looked[-1] == "voc/2007"
    assert set(held) == {"voc+2007", "voc+2007.lock"}


def test_an_unknown_name_ends_with_2_and_near_names(sfrik, tmp_path):
    result = sfrik(2, "data", "prepare", "imagenet_2012", "--data-dir", "data")
    assert "did you mean imagenet2012" in result.stderr
    assert not (tmp_path / "data").exists()
    for name, words in {
        "voc/1999": "has no config '1999'",
        "kaggle:x": "write NAME, NAME/CONFIG",
        "cifar10:9.9.9": "version 3.0.2 can be prepared",
        "qwertz": "catalog lists them",
    }.items():
        with pytest.raises(ConfigError, match=words):
            builders.prepare(name, tmp_path / "data")


def test_without_tensorflow_the_requirement_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(registered.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingInputError, match=r"-r requirements-prepare\.txt"):
        builders.prepare("voc/2007", tmp_path)
    assert (ROOT / "requirements-prepare.txt").is_file()


HOLD = """
import signal, sys, time
from sfrik_jax.__main__ import main
from sfrik_jax.data.builders import records
deal = records._deal
def slow(features, examples, paths):
    def wait():
        for example in examples:
            yield example
            print("at work", file=sys.__stdout__, flush=True)
            for _ in range(600):
                time.sleep(0.1)  # a signal just before a long one would wait for it
    return deal(features, wait(), paths)
records._deal = slow
# A shell starts what it runs in the background with this signal ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
words = ["imagenet2012", "--data-dir", sys.argv[1], "--from", sys.argv[2]]
sys.exit(main(["data", "prepare", *words, "--allow-counts"]))
"""


@pytest.fixture
def at_work(tmp_path, tars):
    """A process in the midst of preparing imagenet2012 into tmp_path."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), str(tars)],
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "at work\n"
            yield process
        finally:
            process.kill()


def test_a_second_preparation_ends_with_73_and_a_dead_one_leaves_no_lock(
    sfrik, tmp_path, tars, at_work
):
    words = ("imagenet2012", "--from", tars, "--data-dir", tmp_path, "--allow-counts")
    refused = sfrik(73, "data", "prepare", *words)
    assert f"is locked by {os.uname().nodename} pid {at_work.pid} since 2" in (
        refused.stderr
    )
    # Another set is not held up.
    builders.prepare("fashion_mini", tmp_path)
    at_work.kill()
    at_work.wait()
    left = tmp_path / ".preparing" / "imagenet2012"
    assert any(left.rglob("*.dealt")), "a killed process cannot clean up"
    assert prepared.find("imagenet2012", tmp_path) is None
    sfrik(0, "data", "prepare", *words)
    assert len(tfds_source.TfdsSource("imagenet2012", str(tmp_path), "train")) == 80
    assert not left.exists()


def test_ctrl_c_leaves_nothing_but_the_lock(tmp_path, at_work):
    at_work.send_signal(signal.SIGINT)
    assert at_work.wait(timeout=120) == 130
    left = [each.name for each in (tmp_path / ".preparing").iterdir()]
    assert left == ["imagenet2012.lock"]
    assert prepared.find("imagenet2012", tmp_path) is None


def test_a_full_disk_ends_with_both_sizes(tmp_path, tars, monkeypatch):
    usage = builders.shutil.disk_usage(tmp_path)._replace(free=1234)
    monkeypatch.setattr(builders.shutil, "disk_usage", lambda _: usage)
    size = sum(path.stat().st_size for path in tars.iterdir())
    with pytest.raises(DiskFullError, match=f"about {size} bytes .* and 1234 are free"):
        builders.prepare("imagenet2012", tmp_path, tars)
    monkeypatch.setattr(registered.importlib.util, "find_spec", lambda _: object())
    with pytest.raises(DiskFullError, match="about 2700000000 bytes"):
        builders.prepare("voc", tmp_path)


def test_a_disk_that_fills_up_meanwhile_is_told(tmp_path, tars, monkeypatch):
    class Full:
        def write(self, record):
            pass

        def close(self):
            raise RuntimeError("write() failed: No space left on device; writing x")

    monkeypatch.setattr(records, "_writer", lambda _: Full())
    with pytest.raises(DiskFullError, match=r"is full, .* bytes are free"):
        builders.prepare("imagenet2012", tmp_path, tars)


@pytest.fixture
def colours():
    """A set that TFDS finds by its name, like its own; made without TensorFlow."""

    class TinyColours(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("2.1.0")
        MANUAL_DOWNLOAD_INSTRUCTIONS = "Put colours.txt there."
        error: Exception | None = None

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {"image": tfds.features.Image(encoding_format="jpeg")}
                ),
            )

        def _split_generators(self, dl_manager):
            if self.error is not None:
                raise self.error
            count = int((dl_manager.manual_dir / "colours.txt").read_text())
            return {"train": self._generate_examples(count)}

        def _generate_examples(self, count):
            for number in range(count):
                yield number, {"image": stand_ins.encoded(number)}

    yield TinyColours
    tfds_registered._DATASET_REGISTRY.pop("tiny_colours")


def test_a_set_of_tfds_is_prepared_by_its_builder(tmp_path, monkeypatch, colours):
    monkeypatch.setattr(registered.importlib.util, "find_spec", lambda _: object())
    with pytest.raises(MissingInputError, match=r"TFDS says: Put colours\.txt there"):
        builders.prepare("tiny_colours", tmp_path)
    manual = tmp_path / "mine"
    manual.mkdir()
    (manual / "colours.txt").write_text("7")
    directory = builders.prepare("tiny_colours", tmp_path, manual)
    assert directory == tmp_path / "tiny_colours" / "2.1.0"
    source = tfds_source.TfdsSource("tiny_colours", str(tmp_path), "train")
    assert len(source) == 7
    assert source.labels is None


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (ImportError("no", name="cv2"), MissingInputError, "needs cv2"),
        (ModuleNotFoundError("x", name="tensorflow"), MissingInputError, "tensorflow"),
        (tfds.download.DownloadError("404"), MissingInputError, "could not be fetched"),
        (OSError("no route"), MissingInputError, "could not be fetched"),
        (PermissionError(13, "denied"), OutputError, "cannot be written"),
        (FileNotFoundError(2, "x"), MissingInputError, "TFDS says: Put colours"),
    ],
)
def test_errors_of_a_builder_are_told(
    tmp_path, monkeypatch, colours, error, kind, words
):
    monkeypatch.setattr(registered.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(colours, "error", error)
    with pytest.raises(kind, match=words):
        builders.prepare("tiny_colours", tmp_path, ROOT)
    assert prepared.find("tiny_colours", tmp_path) is None


class Manager:
    """TFDS's manager of downloads, with the files at hand."""

    def __init__(self, path):
        self.path = path

    def download(self, url):
        return self.path


def test_a_fetched_file_has_to_have_its_digest(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    url = path.as_uri()
    good = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    # urllib opens file: addresses too; there is no HEAD to refuse.
    assert base.fetch(Manager(path), url, good, "remedy") == path
    with pytest.raises(CorruptInputError, match=f"sha256 {good}"):
        base.fetch(Manager(path), url, "0" * 64, "remedy")
    with pytest.raises(MissingInputError, match=r"could not be fetched .*; remedy"):
        base.fetch(Manager(path), f"{url}.gone", good, "remedy")


def test_an_archive_is_fetched_once_and_kept(tmp_path, monkeypatch):
    made = stand_ins.write_binary(tmp_path, "cifar10")
    data = (tmp_path / "cifar-10-binary.tar.gz").read_bytes()
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, body):
            asked.append(self.command)
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self):
            self.answer(b"")

        def do_GET(self):
            self.answer(data)

        def log_message(self, format, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        archive = builders.Cifar10.archive._replace(
            url=f"http://127.0.0.1:{server.server_port}/cifar-10-binary.tar.gz",
            sha256=hashlib.sha256(data).hexdigest(),
        )
        monkeypatch.setattr(builders.Cifar10, "archive", archive)
        for _ in range(2):
            directory = builders.prepare("cifar10", tmp_path, allow_counts=True)
            shutil.rmtree(directory)
        place = builders.prepare("cifar10", tmp_path, allow_counts=True)
        server.shutdown()
    assert asked.count("GET") == 1
    assert place == directory
    assert len(pixels_and_labels(tmp_path, "cifar10", "test")) == len(made["test"][0])


def test_a_long_work_tells_how_far_it_is(capsys, tmp_path):
    (tmp_path / "x").write_bytes(bytes(1234))
    with progress.Progress("work", [tmp_path], interval=0.01) as told:
        time.sleep(0.1)
        told.count("train", 3, 12)
        time.sleep(0.1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("work: 1,234 bytes, 00:00:0")
    assert lines[-1].startswith("work: train 3 of 12, ")
