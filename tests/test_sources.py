"""Folders, arrays and prepared sets as sources of pictures."""

import io
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import stand_in_voc
from PIL import Image

from sfrik_jax.data import builders, decode, opening, prepared, sources, tfds_source
from sfrik_jax.data.builders import fashion
from sfrik_jax.errors import ConfigError, CorruptInputError, MissingInputError


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = Image.registered_extensions()[path.suffix.lower()]
    Image.new("RGB", (8, 6), (value, 0, 0)).save(path, kind)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """fashion_mini, prepared."""
    folder = tmp_path_factory.mktemp("tfds")
    builders.prepare("fashion_mini", folder)
    return str(folder)


def folder_source(path, split="train"):
    source = opening.open_source(source="folder", name="", path=str(path), split=split)
    assert isinstance(source, sources.FolderSource)
    return source


def labels_of(source):
    assert source.labels is not None
    return source.labels


def find(name, folder):
    found = prepared.find(name, folder)
    assert found is not None
    return found


def folder_count(path, split="train"):
    return opening.num_examples(source="folder", name="", path=str(path), split=split)


def test_a_flat_folder_is_unlabelled_and_sorted(tmp_path):
    for name in ("b.png", "a.jpg", "c.PPM", "d.tif", "e.webp", "f.bmp", "g.gif"):
        picture(tmp_path / name)
    source = folder_source(tmp_path)
    assert source.labels is None
    assert source.num_classes is None
    names = ["a.jpg", "b.png", "c.PPM", "d.tif", "e.webp", "f.bmp", "g.gif"]
    assert [source.name(i) for i in range(len(source))] == [
        str(tmp_path / name) for name in names
    ]
    for i in range(len(source)):
        assert decode.decode_rgb(source.read(i)).shape == (6, 8, 3)


def test_hidden_files_and_other_files_are_passed_over(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / ".hidden" / "b.png")
    picture(tmp_path / ".c.png")
    (tmp_path / "notes.txt").write_text("no picture")
    assert folder_source(tmp_path).files == ["a.png"]


def test_sub_folders_are_classes(tmp_path):
    for name in ("dog/2.png", "cat/1.png", "cat/deep/0.png", "dog/0.png"):
        picture(tmp_path / name)
    (tmp_path / "empty").mkdir()
    source = folder_source(tmp_path)
    assert source.class_names == ["cat", "dog"]
    assert source.files == ["cat/1.png", "cat/deep/0.png", "dog/0.png", "dog/2.png"]
    assert labels_of(source).tolist() == [0, 0, 1, 1]
    assert labels_of(source).dtype == np.int32
    assert source.example(2)[1] == 1


@pytest.mark.parametrize(
    "names", [["x/1.png", "x/y/2.png"], ["a/1.png", "b/1.png", "1.png"]]
)
def test_one_sub_folder_or_loose_pictures_are_no_classes(tmp_path, names):
    for name in names:
        picture(tmp_path / name)
    assert folder_source(tmp_path).labels is None
    assert len(folder_source(tmp_path)) == len(names)


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_splits_are_sub_folders(tmp_path, held_out):
    for name in ("train/cat/1.png", "train/dog/1.png", "train/fox/1.png"):
        picture(tmp_path / name)
    picture(tmp_path / held_out / "cat" / "2.png")
    picture(tmp_path / held_out / "fox" / "2.png")
    assert len(folder_source(tmp_path)) == 3
    test = folder_source(tmp_path, "test")
    # Numbered as in the train split, although there is no dog here.
    assert labels_of(test).tolist() == [0, 2]
    assert test.class_names == ["cat", "dog", "fox"]


def test_a_class_unknown_to_the_train_split_is_an_error(tmp_path):
    for name in ("train/cat/1.png", "train/dog/1.png", "test/cat/1.png"):
        picture(tmp_path / name)
    picture(tmp_path / "test" / "owl" / "1.png")
    with pytest.raises(CorruptInputError, match=r"class 'owl', which the train split"):
        folder_source(tmp_path, "test")


def test_a_folder_without_splits_has_no_test_split(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(
        MissingInputError, match=r"no split 'test'; put its pictures in"
    ):
        folder_source(tmp_path, "test")
    assert folder_count(tmp_path, "test") is None
    assert folder_count(tmp_path) == 1


def test_pictures_for_testing_never_serve_for_training(tmp_path):
    picture(tmp_path / "test" / "a.png")
    picture(tmp_path / "b.png")
    with pytest.raises(MissingInputError, match="no split 'train'"):
        folder_source(tmp_path)


def test_folders_can_be_sliced(tmp_path):
    for number in range(10):
        picture(tmp_path / f"{number}.png")
    assert folder_source(tmp_path, "train[2:5]").files == ["2.png", "3.png", "4.png"]
    assert folder_count(tmp_path, "train[:30%]") == 3


def test_an_empty_or_missing_folder_says_what_to_do(tmp_path):
    with pytest.raises(
        CorruptInputError, match=r"no pictures in .*put files ending in"
    ):
        folder_source(tmp_path)
    with pytest.raises(MissingInputError, match=r"no folder .*; set data\.path"):
        folder_source(tmp_path / "absent")
    assert folder_count(tmp_path / "absent") is None


def test_links_are_followed_but_not_in_circles(tmp_path):
    picture(tmp_path / "real" / "a.png")
    (tmp_path / "set").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "set" / "linked")
    os.symlink(tmp_path / "set", tmp_path / "set" / "circle")
    assert folder_source(tmp_path / "set").files == ["linked/a.png"]


def test_a_vanished_picture_is_named(tmp_path):
    picture(tmp_path / "a.png")
    source = folder_source(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(CorruptInputError, match=r"a\.png reason=cannot be read"):
        source.read(0)


def test_the_fingerprint_tells_contents_apart(tmp_path):
    for name in ("one/a.png", "one/b.png", "two/a.png", "two/b.png"):
        picture(tmp_path / name)
    one, two = (folder_source(tmp_path / name).fingerprint for name in ("one", "two"))
    assert one == two
    assert folder_source(tmp_path / "one", "train[:1]").fingerprint != one
    with (tmp_path / "two" / "b.png").open("ab") as file:
        file.write(b"more")
    assert folder_source(tmp_path / "two").fingerprint != one


def test_arrays_are_checked_and_fingerprinted():
    images = np.arange(4 * 5 * 6 * 3, dtype=np.uint8).reshape(4, 5, 6, 3)
    source = sources.ArraySource(images, np.array([0, 2, 1, 2]))
    assert (len(source), source.image_shape, source.num_classes) == (4, (5, 6, 3), 3)
    np.testing.assert_array_equal(source.read(2), images[2])
    changed = images.copy()
    changed[3, 4, 5, 2] ^= 1
    assert sources.ArraySource(changed).fingerprint != source.fingerprint
    for bad in (images.astype(float), images[..., :2], images[0]):
        with pytest.raises(ConfigError, match="takes uint8"):
            sources.ArraySource(bad)
    for labels in ([0, 1], [0, 1, 2, -1]):
        with pytest.raises(ConfigError, match="one label from 0 upwards"):
            sources.ArraySource(images, np.array(labels))


def test_a_prepared_set_is_read_at_random(data_dir):
    source = tfds_source.TfdsSource("fashion_mini", data_dir, "train")
    assert (len(source), source.image_shape) == (5_000, (28, 28, 1))
    assert source.class_names == list(fashion.FASHION_CLASSES)
    assert np.bincount(labels_of(source)).tolist() == [500] * 10
    image = Image.open(io.BytesIO(source.read(4_321)))
    assert (image.size, image.mode, image.format) == ((28, 28), "L", "PNG")
    assert source.example(7)[1] == labels_of(source)[7]


def test_prepared_sets_are_sliced_as_counted(data_dir):
    whole = tfds_source.TfdsSource("fashion_mini", data_dir, "train")
    for split, start, stop in (
        ("train[:500]", 0, 500),
        ("train[4990:]", 4_990, 5_000),
        ("train[10%:20%]", 500, 1_000),
        ("train[-10:]", 4_990, 5_000),
    ):
        part = tfds_source.TfdsSource("fashion_mini", data_dir, split)
        count = opening.num_examples(
            source="tfds", name="fashion_mini", path=data_dir, split=split
        )
        assert len(part) == count == stop - start
        assert part.read(0) == whole.read(start)
        assert part.fingerprint != whole.fingerprint
        np.testing.assert_array_equal(labels_of(part), labels_of(whole)[start:stop])


def test_reads_from_many_threads_agree(data_dir):
    source = tfds_source.TfdsSource("fashion_mini", data_dir, "test")
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(source.read, range(1_000)))
    again = tfds_source.TfdsSource("fashion_mini", data_dir, "test")
    assert read == [again.read(i) for i in range(1_000)]


def test_a_split_that_does_not_exist_is_refused(data_dir):
    for split in ("validation", "train[a:b]", "train[:5"):
        with pytest.raises(ConfigError, match=r"not one of \['test', 'train'\]"):
            tfds_source.TfdsSource("fashion_mini", data_dir, split)
    with pytest.raises(CorruptInputError, match="is empty"):
        tfds_source.TfdsSource("fashion_mini", data_dir, "train[5:5]")


def test_a_set_that_is_not_prepared_says_how(tmp_path):
    where = str(tmp_path)
    command = rf"data prepare fashion_mini --data-dir {where}"
    with pytest.raises(MissingInputError, match=command):
        tfds_source.TfdsSource("fashion_mini", where, "train")
    with pytest.raises(MissingInputError, match="data prepare cifar10 --data-dir"):
        tfds_source.TfdsSource("cifar10", where, "train")
    for name in ("fashion_mini", "cifar10"):
        count = opening.num_examples(
            source="tfds", name=name, path=where, split="train"
        )
        assert count is None


def prepared_info(folder, *, file_format="array_record", shards=("3", "2")):
    folder.mkdir(parents=True)
    info = {
        "name": "thing",
        "fileFormat": file_format,
        "splits": [{"name": "train", "shardLengths": list(shards)}],
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))


@pytest.fixture(scope="module")
def voc_dir(tmp_path_factory):
    """voc/2007, prepared."""
    folder = tmp_path_factory.mktemp("voc")
    stand_in_voc.prepare(folder)
    return str(folder)


def voc_name(source, i):
    assert source.file_names is not None
    return source.file_names[i].removesuffix(".jpg")


def test_a_picture_may_have_several_classes(voc_dir):
    source = tfds_source.TfdsSource("voc/2007", voc_dir, "train")
    assert (len(source), source.multi_label, source.num_classes) == (6, True, 4)
    assert source.class_names == list(stand_in_voc.CLASSES)
    assert source.labels is None
    seen = set()
    for i in range(6):
        name = voc_name(source, i)
        data, present = source.multi_example(i)
        assert data == source.read(i) == source.example(i)[0]
        assert data == stand_in_voc.encoded(int(name))
        assert present.dtype == np.int8
        assert present.tolist() == stand_in_voc.PRESENT[name]
        np.testing.assert_array_equal(source.present(i), present)
        assert source.label(i) is None
        seen.add(name)
    assert seen == set(stand_in_voc.PICTURES)


def test_parts_of_a_multi_label_set_are_multi_label(voc_dir):
    settings = {"source": "tfds", "name": "voc/2007", "path": voc_dir}
    whole = opening.open_source(**settings, split="train")
    for split, subset, numbers in (
        ("train[2:5]", "", [2, 3, 4]),
        ("train", "fraction:0.5", None),
    ):
        part = opening.open_source(**settings, split=split, subset=subset)
        count = opening.num_examples(**settings, split=split, subset=subset)
        assert count == len(part) == 3
        assert part.multi_label and part.class_names == whole.class_names
        names = [voc_name(part, i) for i in range(3)]
        if numbers is not None:
            assert names == [voc_name(whole, i) for i in numbers]
        for i, name in enumerate(names):
            assert part.present(i).tolist() == stand_in_voc.PRESENT[name]
            assert part.multi_example(i)[1].tolist() == stand_in_voc.PRESENT[name]
    with pytest.raises(ConfigError, match="has several labels a picture; use"):
        opening.open_source(**settings, split="train", subset="per_class:1")


def test_a_class_out_of_range_is_told(voc_dir, monkeypatch):
    source = tfds_source.TfdsSource("voc/2007", voc_dir, "test")
    record = source._record(1) | {"labels": [np.int64(4)], "labels_no_difficult": []}
    monkeypatch.setattr(source, "_record", lambda i: record)
    with pytest.raises(CorruptInputError, match=r"test\[1\] has label 4, outside"):
        source.present(1)


def test_joined_splits_are_one_after_the_other(data_dir):
    settings = {"source": "tfds", "name": "fashion_mini", "path": data_dir}
    whole = opening.open_source(**settings, split="train[:3]+test[2:6]+train[10:12]")
    pieces = [
        opening.open_source(**settings, split=split)
        for split in ("train[:3]", "test[2:6]", "train[10:12]")
    ]
    want = [(each, i) for each in pieces for i in range(len(each))]
    assert len(whole) == len(want) == 9
    assert opening.num_examples(**settings, split="train[:3]+test[2:6]") == 7
    for i, (piece, number) in enumerate(want):
        assert whole.example(i) == piece.example(number)
        assert whole.read(i) == piece.read(number)
        assert whole.name(i) == piece.name(number)
        assert whole.label(i) == piece.label(number)
    labels = np.concatenate([labels_of(piece) for piece in pieces])
    np.testing.assert_array_equal(whole.labels, labels)
    assert whole.class_names == pieces[0].class_names
    assert (whole.num_classes, whole.image_shape) == (10, (28, 28, 1))
    assert whole.file_names is None
    for beyond in (-1, 9):
        with pytest.raises(IndexError):
            whole.read(beyond)
    turned = opening.open_source(**settings, split="test[2:6]+train[:3]+train[10:12]")
    assert turned.fingerprint != whole.fingerprint


def test_joined_splits_may_have_several_labels_a_picture(voc_dir):
    settings = {"source": "tfds", "name": "voc/2007", "path": voc_dir}
    whole = opening.open_source(**settings, split="train[3:]+test")
    assert whole.multi_label and whole.labels is None
    assert len({voc_name(whole, i) for i in range(len(whole))}) >= 3
    for i in range(6):
        want = stand_in_voc.PRESENT[voc_name(whole, i)]
        assert whole.present(i).tolist() == want
        assert whole.multi_example(i)[1].tolist() == want


def test_joined_splits_have_no_picture_twice_and_no_subset(data_dir):
    settings = {"source": "tfds", "name": "fashion_mini", "path": data_dir}
    with pytest.raises(ConfigError, match=r"has 5 pictures twice; join splits"):
        opening.open_source(**settings, split="train[:10]+test+train[5:20]")
    with pytest.raises(
        ConfigError, match=r"split '' is not one of \['test', 'train'\]"
    ):
        opening.open_source(**settings, split="train+")
    with pytest.raises(ConfigError, match="it is a part of one split, not of several"):
        opening.open_source(**settings, split="train+test", subset="fraction:0.1")
    joined = opening.open_source(**settings, split="train[:10]+test[:10]")
    for split, common in (("train[5:]", 5), ("test", 10), ("test[10:]", 0)):
        other = opening.open_source(**settings, split=split)
        assert opening.overlap(joined, other) == common
        assert opening.overlap(other, joined) == common


def test_a_set_with_one_label_a_picture_has_no_vectors(data_dir):
    array = sources.ArraySource(np.zeros((2, 4, 4, 3), np.uint8), np.arange(2))
    for source in (array, tfds_source.TfdsSource("fashion_mini", data_dir)):
        assert not source.multi_label
        with pytest.raises(ConfigError, match="one label a picture"):
            source.present(1)


def shared_names(a, b):
    return len({a.name(i) for i in range(len(a))} & {b.name(i) for i in range(len(b))})


def test_pictures_in_both_of_two_parts_are_counted(data_dir, monkeypatch):
    def part(split, subset=""):
        return opening.open_source(
            source="tfds",
            name="fashion_mini",
            path=data_dir,
            split=split,
            subset=subset,
        )

    parts = [
        part("train"),
        part("train[:500]"),
        part("train[400:600]"),
        part("train[600:]"),
        part("train", "per_class:20"),
        part("train[300:900]", "fraction:0.5"),
        opening.subset_of(part("train", "per_class:20"), "fraction:0.1", seed=3),
        part("test"),
        part("test[:300]", "fraction:0.2"),
    ]
    want = [[shared_names(a, b) for b in parts] for a in parts]
    # Nothing is read or spelt out for it.
    monkeypatch.setattr(tfds_source.TfdsSource, "_record", None)
    monkeypatch.setattr(tfds_source.TfdsSource, "name", None)
    assert [[opening.overlap(a, b) for b in parts] for a in parts] == want
    assert (want[1][2], want[1][3], want[0][7]) == (100, 0, 0)
    assert 0 < want[4][5] < 200


def test_a_copy_of_a_prepared_set_has_the_same_pictures(data_dir, tmp_path, voc_dir):
    shutil.copytree(os.path.join(data_dir, "fashion_mini"), tmp_path / "fashion_mini")
    a, b = (
        tfds_source.TfdsSource("fashion_mini", str(place), "test")
        for place in (data_dir, tmp_path)
    )
    assert opening.overlap(a, b) == 1000
    other = tfds_source.TfdsSource("voc/2007", voc_dir, "test")
    assert opening.overlap(a, other) == 0


def test_pictures_in_both_of_two_folders_are_counted(tmp_path):
    for split, count in (("train", 6), ("test", 3)):
        for number in range(count):
            picture(tmp_path / split / f"{number}.png")
    os.symlink(tmp_path, tmp_path / "link")
    whole = folder_source(tmp_path)
    for other, count in (
        (folder_source(tmp_path, "train[4:]"), 2),
        (folder_source(tmp_path / "link", "train[:5]"), 5),
        (opening.subset_of(whole, "fraction:0.5", seed=0), 3),
        (folder_source(tmp_path, "test"), 0),
    ):
        assert opening.overlap(whole, other) == opening.overlap(other, whole) == count


def test_pictures_in_both_of_two_arrays_are_counted():
    images = np.zeros((4, 5, 5, 3), np.uint8)
    source = sources.ArraySource(images)
    assert opening.overlap(source, sources.ArraySource(images)) == 4
    assert opening.overlap(source, sources.ArraySource(images + 1)) == 0
    last = opening.SubsetSource(source, np.array([3]), "list:last")
    assert opening.overlap(source, last) == 1


def test_the_newest_version_with_random_access_is_taken(tmp_path):
    prepared_info(tmp_path / "thing" / "2.0.0")
    prepared_info(tmp_path / "thing" / "10.0.0")
    prepared_info(tmp_path / "thing" / "11.0.0", file_format="tfrecord")
    (tmp_path / "thing" / "12.0.0.incompleteABC").mkdir()
    assert find("thing", tmp_path).directory.name == "10.0.0"
    assert find("thing:2.0.0", tmp_path).directory.name == "2.0.0"
    assert find("thing", tmp_path).lengths == {"train": 5}


def test_configs_are_sub_folders(tmp_path):
    prepared_info(tmp_path / "thing" / "small" / "1.0.0")
    assert prepared.find("thing/small", tmp_path) == prepared.find("thing", tmp_path)
    prepared_info(tmp_path / "thing" / "large" / "1.0.0")
    assert prepared.find("thing", tmp_path) is None


@pytest.mark.parametrize("version", ["", ":5.0.0"])
def test_a_set_with_config_and_version_is_opened_by_its_name(
    data_dir, tmp_path, version
):
    # As TFDS prepares the 10 % of ImageNet.
    place = tmp_path / "imagenet2012_subset" / "10pct" / "5.0.0"
    shutil.copytree(os.path.join(data_dir, "fashion_mini", "1.0.0"), place)
    name = f"imagenet2012_subset/10pct{version}"
    source = tfds_source.TfdsSource(name, str(tmp_path), "test")
    want = tfds_source.TfdsSource("fashion_mini", data_dir, "test")
    assert len(source) == len(want) == 1000
    assert source.read(7) == want.read(7)
    np.testing.assert_array_equal(labels_of(source), labels_of(want))


def test_the_other_file_format_is_refused_with_a_remedy(tmp_path):
    prepared_info(tmp_path / "thing" / "1.0.0", file_format="tfrecord")
    with pytest.raises(MissingInputError, match="tfrecord, which has no random access"):
        tfds_source.TfdsSource("thing", str(tmp_path), "train")


def test_missing_record_files_are_named(tmp_path):
    prepared_info(tmp_path / "thing" / "1.0.0")
    (tmp_path / "thing" / "1.0.0" / "thing-train.array_record-00000-of-00002").touch()
    with pytest.raises(CorruptInputError, match=r"00000-of-00002 \(2 files in all\)"):
        tfds_source.TfdsSource("thing", str(tmp_path), "train")


def test_a_damaged_description_is_told(tmp_path):
    prepared_info(tmp_path / "thing" / "1.0.0")
    (tmp_path / "thing" / "1.0.0" / "dataset_info.json").write_text('{"name": 3')
    with pytest.raises(CorruptInputError, match=r"dataset_info\.json is damaged"):
        tfds_source.TfdsSource("thing", str(tmp_path), "train")


def test_an_unknown_kind_of_source_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.source='web'; choose one of"):
        opening.open_source(source="web", name="", path="", split="train")
