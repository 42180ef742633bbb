"""Preparing the sets that need no download, without TensorFlow and without network."""

import gzip
import io
import struct
import sys
import time
import urllib.error

import numpy as np
import pytest
from PIL import Image

from sfrik_jax.data import builders, decode, idx, photos, prepared, sources, tfds_source
from sfrik_jax.data.builders import base, fashion
from sfrik_jax.errors import (
    ConfigError,
    CorruptInputError,
    MissingInputError,
    OutputError,
)

MINI = fashion.MINI_FILE


@pytest.fixture
def few_patches(monkeypatch):
    monkeypatch.setattr(photos, "PER_CLASS", {"train": 4, "test": 2})


def class_counts(source):
    assert source.labels is not None
    return np.bincount(source.labels).tolist()


def write_idx(path, array):
    header = struct.pack(">HBB", 0, 8, array.ndim)
    data = header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def idx_folder(tmp_path):
    """Four small files of Fashion-MNIST's form; the train ones gzipped."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "idx"
    folder.mkdir()
    for split, suffix, count in (("train", ".gz", 20), ("test", "", 10)):
        images, labels = (folder / f"{name}{suffix}" for name in idx.FILES[split])
        write_idx(images, rng.integers(0, 256, (count, 28, 28), np.uint8))
        write_idx(labels, np.arange(count, dtype=np.uint8) % 10)
    return folder


def test_the_shipped_images_are_balanced_and_small():
    with np.load(MINI, allow_pickle=False) as arrays:
        for split, count in (("train", 5_000), ("test", 1_000)):
            assert arrays[f"{split}_images"].shape == (count, 28, 28)
            assert arrays[f"{split}_images"].dtype == np.uint8
            per_class = np.bincount(arrays[f"{split}_labels"])
            assert per_class.tolist() == [count // 10] * 10
            flat = arrays[f"{split}_images"].reshape(count, -1)
            assert len(np.unique(flat, axis=0)) > 0.99 * count
    assert MINI.stat().st_size < 2_700_000
    assert "Zalando" in (MINI.parent / "LICENSE").read_text()


def test_preparing_keeps_every_pixel_and_label(tmp_path):
    builders.prepare("fashion_mini", tmp_path)
    assert "tensorflow" not in sys.modules
    source = tfds_source.TfdsSource("fashion_mini", str(tmp_path), "test")
    got = {}
    for i in range(len(source)):
        data, label = source.example(i)
        got[decode.decode_rgb(data)[..., 0].tobytes()] = label
    with np.load(MINI, allow_pickle=False) as arrays:
        pairs = zip(arrays["test_images"], arrays["test_labels"], strict=True)
        want = {image.tobytes(): label for image, label in pairs}
    assert got == want


def test_preparing_twice_is_quick_and_gives_the_same_directory(tmp_path, idx_folder):
    first = builders.prepare("fashion_mnist", tmp_path, idx_folder, allow_counts=True)
    assert first == tmp_path / "fashion_mnist" / "1.0.0"
    start = time.perf_counter()
    assert (
        builders.prepare("fashion_mnist", tmp_path, idx_folder, allow_counts=True)
        == first
    )
    assert time.perf_counter() - start < 0.1


def test_an_interrupted_preparation_leaves_nothing_to_read(
    tmp_path, idx_folder, monkeypatch
):
    def interrupted(*_):
        yield "0", {"image": b"", "label": 0}
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fashion, "_grey_examples", interrupted)
        with pytest.raises(KeyboardInterrupt):
            builders.prepare("fashion_mnist", tmp_path, idx_folder, allow_counts=True)
    assert prepared.whole("fashion_mnist", tmp_path) is None
    builders.prepare("fashion_mnist", tmp_path, idx_folder, allow_counts=True)
    assert len(tfds_source.TfdsSource("fashion_mnist", str(tmp_path), "train")) == 20


@pytest.mark.parametrize("lost", ["dataset_info.json", "fashion_mnist-test"])
def test_a_directory_that_is_not_whole_is_made_again(tmp_path, idx_folder, lost):
    directory = builders.prepare(
        "fashion_mnist", tmp_path, idx_folder, allow_counts=True
    )
    for path in directory.glob(f"{lost}*"):
        path.unlink()
    assert prepared.whole("fashion_mnist", tmp_path) is None
    assert (
        builders.prepare("fashion_mnist", tmp_path, idx_folder, allow_counts=True)
        == directory
    )
    assert len(tfds_source.TfdsSource("fashion_mnist", str(tmp_path), "test")) == 10


def test_idx_files_are_checked(tmp_path, idx_folder):
    labels = idx_folder / "t10k-labels-idx1-ubyte"
    whole = labels.read_bytes()
    for broken in (whole[:-1], whole[:3], b"PK" + whole[2:], b""):
        labels.write_bytes(broken)
        with pytest.raises(CorruptInputError, match="not a whole idx file"):
            builders.prepare("fashion_mnist", tmp_path, idx_folder, allow_counts=True)
    write_idx(labels, np.zeros(7, np.uint8))
    with pytest.raises(CorruptInputError, match=r"holds \[10, 28, 28\]"):
        builders.prepare("fashion_mnist", tmp_path, idx_folder, allow_counts=True)
    labels.unlink()
    with pytest.raises(MissingInputError, match="the folder of the four idx files"):
        builders.prepare("fashion_mnist", tmp_path, idx_folder, allow_counts=True)
    train = idx_folder / "train-images-idx3-ubyte.gz"
    train.write_bytes(train.read_bytes()[:200])
    with pytest.raises(CorruptInputError, match="not a whole idx file"):
        builders.prepare("fashion_mnist", tmp_path, idx_folder, allow_counts=True)


def test_without_network_the_remedy_is_told(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(base.urllib.request, "urlopen", unreachable)
    with pytest.raises(MissingInputError, match=r"apt-get install .* --from "):
        builders.prepare("fashion_mnist", tmp_path)
    assert prepared.whole("fashion_mnist", tmp_path) is None


def test_names_and_folders_are_checked(tmp_path):
    with pytest.raises(ConfigError, match=r"did you mean .*imagenet2012"):
        builders.prepare("imagenet201", tmp_path)
    with pytest.raises(ConfigError, match="takes no source folder"):
        builders.prepare("fashion_mini", tmp_path, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        builders.prepare("fashion_mini", tmp_path / "file")


def test_photo_patches_are_balanced_colour_jpegs(tmp_path, few_patches):
    builders.prepare("photo_patches", tmp_path)
    assert "tensorflow" not in sys.modules
    for split, per_class in photos.PER_CLASS.items():
        source = tfds_source.TfdsSource("photo_patches", str(tmp_path), split)
        assert source.image_shape is None
        assert source.class_names == list(photos.CLASSES)
        assert class_counts(source) == [per_class] * len(photos.CLASSES)
        for i in range(len(source)):
            image = Image.open(io.BytesIO(source.read(i)))
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert min(image.size) >= 64
            assert max(image.size) <= 160


def test_patches_depend_on_the_seed_alone(few_patches):
    first, again, other = (list(photos.patches("test", seed)) for seed in (0, 0, 1))
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("name", ["china", "retina", "astronaut"])
def test_train_and_test_parts_share_no_pixel_and_cover_all(name):
    photo = photos.photograph(name)
    parts = [np.asarray(photos._part(photo, split)) for split in ("train", "test")]
    axis = 1 if photo.width >= photo.height else 0
    np.testing.assert_array_equal(np.concatenate(parts, axis=axis), np.asarray(photo))


def test_patches_as_a_folder_are_a_labelled_source(tmp_path, few_patches):
    photos.write_folder(tmp_path)
    for split, per_class in photos.PER_CLASS.items():
        source = sources.FolderSource(tmp_path, split)
        assert source.class_names == sorted(photos.CLASSES)
        assert class_counts(source) == [per_class] * len(photos.CLASSES)


def test_photographs_that_are_not_installed_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(photos.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingInputError, match='pip install "scikit-image"'):
        builders.prepare("photo_patches", tmp_path)
    assert prepared.whole("photo_patches", tmp_path) is None
