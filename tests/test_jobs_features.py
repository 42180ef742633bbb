"""Features are made once, of the right pictures, and used by every job that asks."""

import os
import signal

import jax
import numpy as np
import pytest
import stand_in_voc
import tiny_jobs
from PIL import Image

from sfrik_jax.data.images import named_batches
from sfrik_jax.errors import (
    BadPictureError,
    ConfigError,
    CorruptInputError,
    MismatchError,
    Preempted,
)
from sfrik_jax.evaluators import features as extraction
from sfrik_jax.feature_set import FeatureSet, FeatureWriter
from sfrik_jax.jobs import features as feature_job
from sfrik_jax.jobs import results, runner
from sfrik_jax.jobs.features import FOLDER

COUNTS = {"train": 40, "val": 16, "test": 16}
FEW = (
    "data.train_split=train[:40]",
    "data.val_split=train[40:56]",
    "data.test_split=test[:16]",
    "features.batch_size=8",
    "features.shard_rows=16",
)
KNN = ("knn.k=(1,5)",)
LOGREG = ("logreg.solver=lbfgs", "logreg.l2=(0.1,0.01)", "logreg.max_iterations=5")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_jobs.backbone_file(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def settings(data_dir, weights):
    """Settings of a job on few pictures, with overrides."""
    return lambda job, *overrides: tiny_jobs.settings(
        job, data_dir, weights, *FEW, *overrides
    )


@pytest.fixture
def made(monkeypatch):
    """The shards that are written, as (part, number)."""
    found = []
    write_shard = FeatureWriter.write_shard

    def watch(self, number, blocks):
        write_shard(self, number, blocks)
        found.append((self.path.name.rpartition("-")[0], number))

    monkeypatch.setattr(FeatureWriter, "write_shard", watch)
    return found


ALL = [("train", 0), ("train", 1), ("train", 2), ("val", 0), ("test", 0)]


def stored(record):
    return {part: FeatureSet(place) for part, place in record["places"].items()}


def test_stored_features_are_those_of_the_pictures(settings, tmp_path, made):
    config = settings("features")
    record = runner.run(config, tmp_path, "features")
    assert made == ALL
    assert record["figures"] == {
        **{f"features/{part}_images": count for part, count in COUNTS.items()},
        "features/dimension": 128,
    }
    job = feature_job.open_job(config)
    model, variables = job.subject.backbone, job.subject.variables
    mean, std = 0.4, 0.3

    @jax.jit
    def encode(images):
        return model.apply(variables, (images / np.float32(255) - mean) / std)

    for part, found in stored(record).items():
        found.verify()
        source = job.parts[part]
        images, labels, names = zip(
            *named_batches(
                source, image_size=16, resize=20, batch_size=7, method="bicubic"
            ),
            strict=True,
        )
        want = extraction.extract(encode, images, batch_size=8)
        np.testing.assert_allclose(found[:], want, rtol=1e-4, atol=1e-3)
        np.testing.assert_array_equal(found.labels, np.concatenate(labels))
        assert found.names == [name for each in names for name in each]
        assert found.class_names == source.class_names
        identity = found.about["identity"]
        assert identity["weights"] == record["weights"]["sha256"]
        assert identity["data"] == record["data"][part]["fingerprint"]


def test_jobs_share_features_and_a_finished_one_is_not_done_again(
    settings, tmp_path, made
):
    record = runner.run(settings("knn", *KNN), tmp_path, "knn")
    assert made == ALL
    figures = record["figures"]
    assert {f"knn/top1_k{k}" for k in (1, 5)} <= figures.keys()
    assert figures["knn/val_images"] == figures["knn/images"] == 16
    made.clear()
    again = runner.run(settings("logreg", *LOGREG), tmp_path, "logreg")
    assert 0 <= again["figures"]["logreg/top1"] <= 100
    assert np.trace(again["confusion"]) * 100 / 16 == again["figures"]["logreg/top1"]
    written = results.path_of(tmp_path, "knn").read_bytes()
    assert runner.run(settings("knn", *KNN), tmp_path, "knn") == record
    assert results.path_of(tmp_path, "knn").read_bytes() == written
    # Another question to the same features.
    with pytest.raises(MismatchError, match="holds figures of other protocol; give"):
        runner.run(settings("knn", "knn.k=(3,)"), tmp_path, "knn")
    assert results.path_of(tmp_path, "knn").read_bytes() == written
    changed = runner.run(settings("knn", "knn.k=(3,)"), tmp_path, "knn3")
    assert "knn/top1_k3" in changed["figures"]
    assert not made


def test_other_weights_or_sizes_make_other_features(settings, data_dir, tmp_path, made):
    runner.run(settings("features"), tmp_path, "features")
    folders = set((tmp_path / FOLDER).iterdir())
    assert len(folders) == 3
    other = tiny_jobs.backbone_file(tmp_path, seed=1)
    for changed in (
        settings("features", "data.resize=24"),
        settings("features", "data.method=bilinear"),
        settings("features", "features.dtype=float16"),
        tiny_jobs.settings("features", data_dir, other, *FEW),
    ):
        made.clear()
        runner.run(changed, tmp_path, "features")
        assert made == ALL
        now = set((tmp_path / FOLDER).iterdir())
        assert len(now - folders) == 3
        folders = now
    # Of another part of the pictures, only that part is made.
    made.clear()
    runner.run(settings("features", "data.test_split=test[:20]"), tmp_path, "features")
    assert made == [("test", 0), ("test", 1)]


def test_a_stop_leaves_whole_shards_and_the_next_run_makes_the_others(
    settings, tmp_path, made, monkeypatch
):
    encoded = []
    pairs = extraction.pairs

    def stopping(encode, pieces, batch_size):
        for features, (labels, names) in pairs(encode, pieces, batch_size):
            encoded.append(len(names))
            if len(encoded) == 3:  # the first batch of the second shard
                os.kill(os.getpid(), signal.SIGTERM)
            yield features, (labels, names)

    monkeypatch.setattr(extraction, "pairs", stopping)
    config = settings("features")
    with pytest.raises(Preempted, match="finished shards are kept") as caught:
        runner.run(config, tmp_path, "features")
    assert caught.value.code == 75
    assert encoded == [8] * 3 and made == [("train", 0)]
    assert not results.path_of(tmp_path, "features").exists()
    record = runner.run(config, tmp_path, "features")
    assert made == ALL
    whole = runner.run(config, tmp_path / "whole", "features")
    for part, found in stored(record).items():
        np.testing.assert_array_equal(found[:], stored(whole)[part][:])


@pytest.fixture
def pictures(tmp_path):
    """A folder of 20 pictures to train on, two of them damaged, and 8 to test on."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    for split, count in (("train", 20), ("test", 8)):
        for i in range(count):
            path = folder / split / f"class{i % 2}" / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    for number in (4, 11):
        path = folder / "train" / f"class{number % 2}" / f"{number:02}.png"
        path.write_bytes(path.read_bytes()[:50])
    return folder


def of_folder(pictures, weights, job, *overrides):
    own = ["data.source=folder", "data.train_split=train", "data.test_split=test"]
    own += ["data.val_split=", "features.batch_size=8", "features.shard_rows=8"]
    return tiny_jobs.settings(job, pictures, weights, *own, *overrides)


def test_bad_pictures_are_left_out_of_train_where_that_is_asked_for(
    pictures, weights, tmp_path, capsys
):
    with pytest.raises(BadPictureError, match=r"data\.on_error=skip"):
        runner.run(of_folder(pictures, weights, "features"), tmp_path, "features")
    skipping = of_folder(pictures, weights, "features", "data.on_error=skip")
    record = runner.run(skipping, tmp_path, "features")
    assert record["figures"]["features/train_images"] == 18
    train = stored(record)["train"]
    assert len(train) == len(train.names) == 18
    left = {name.rpartition("/")[2].partition(".")[0] for name in train.names}
    assert left == {f"{i:02}" for i in range(20)} - {"04", "11"}
    classes = [int("class1" in name) for name in train.names]
    np.testing.assert_array_equal(train.labels, classes)
    said = capsys.readouterr().err
    assert said.count("SFRIK-DATA-BAD") == 2
    assert "2 bad pictures are left out" in said
    strict = of_folder(
        pictures, weights, "features", "data.on_error=skip", "data.max_bad=1"
    )
    with pytest.raises(CorruptInputError, match=r"data\.max_bad"):
        runner.run(strict, tmp_path / "strict", "features")


def test_a_bad_picture_to_test_on_always_raises(pictures, weights, tmp_path):
    bad = pictures / "test" / "class0" / "02.png"
    bad.write_bytes(b"")
    config = of_folder(pictures, weights, "features", "data.on_error=skip")
    with pytest.raises(BadPictureError, match=r"02\.png"):
        runner.run(config, tmp_path, "features")
    assert not results.path_of(tmp_path, "features").exists()


def test_a_classifier_refuses_pictures_of_several_classes_before_it_encodes(
    weights, tmp_path, made
):
    stand_in_voc.prepare(tmp_path / "data")
    voc = ["data.name=voc/2007", "data.val_split=", "data.train_split=train"]
    voc += ["data.test_split=test"]
    for job in ("knn", "logreg"):
        config = tiny_jobs.settings(job, tmp_path / "data", weights, *voc)
        with pytest.raises(ConfigError, match="several classes in a picture"):
            runner.run(config, tmp_path, job)
    assert not made


def test_the_svms_need_pictures_to_test_on_before_anything_is_encoded(
    settings, tmp_path, made
):
    config = settings("voc_svm", "data.test_split=")
    with pytest.raises(ConfigError, match="voc-svm needs one"):
        runner.run(config, tmp_path, "svm")
    assert not made
