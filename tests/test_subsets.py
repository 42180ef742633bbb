"""Subsets: which pictures they are, what refuses them, and what a run notes."""

import hashlib
import io
import itertools
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from sfrik_jax import config as configs
from sfrik_jax import pretrain
from sfrik_jax.__main__ import main
from sfrik_jax.data import opening, sources, subset_setting, subsets, tfds_source, views
from sfrik_jax.errors import ConfigError, MismatchError, MissingInputError
from sfrik_jax.evaluation import Evaluation
from sfrik_jax.rundir import RunDirectory

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "configs" / "quickstart.py"
CLASSES = ("cat", "dog", "fox")
SMALL = ["data.batch_size=8", "data.image_size=16", "eval.knn_k=2", "model.width=4"]
# Computed once; see the tests that name them.
DRAWN = [1, 3, 7, 10, 12, 16]
DIGEST = "ab25350e3e65efebe24584461683ecda68725576e825e550038b90e7b1479946"


@pytest.fixture
def shuffled():
    """Names as ImageNet's and labels of 90 pictures, as TFDS stores them: shuffled."""
    order = np.random.default_rng(0).permutation(90)
    labels = np.repeat([0, 1, 2], [20, 30, 40])[order]
    names = [f"n{labels[i]:02d}_{order[i]}.JPEG" for i in range(90)]
    return names, labels


def arrays(labels, side=4):
    shape = (len(labels), side, side, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return sources.ArraySource(images, np.asarray(labels))


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures of each class, of train and of test, numbered without padding."""
    for split in ("train", "test"):
        for label, name in enumerate(CLASSES):
            for number in range(12):
                path = tmp_path / "pictures" / split / name / f"{name}_{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (16, 16), (label, number, 0)).save(path)
    return tmp_path / "pictures"


# --- Which pictures -------------------------------------------------------------------


@pytest.mark.parametrize(("start", "count"), [(0, 20), (0, 7), (5, 3), (19, 1)])
def test_the_first_of_a_class_are_those_of_its_sorted_names(shuffled, start, count):
    names, labels = shuffled
    want = []
    for label in range(3):
        mine = [i for i in range(90) if labels[i] == label]
        want += sorted(mine, key=lambda i: names[i])[start : start + count]
    got = subsets.first_per_class(names, labels, start=start, count=count)
    assert got.tolist() == sorted(want)
    assert got.dtype == np.int64


def test_names_are_sorted_as_strings():
    names = ["n01440764_2.JPEG", "n01440764_10026.JPEG", "n01440764_10.JPEG"]
    first = [
        subsets.first_per_class(names, np.zeros(3, int), start=place, count=1).item()
        for place in range(3)
    ]
    assert [names[i] for i in first] == [names[2], names[1], names[0]]


def test_the_validation_pictures_begin_one_after_the_training_pictures_end():
    """The official code's off-by-one: picture 260 of a class is in neither part."""
    labels = np.repeat([0, 1], 600)
    names = [f"{i % 600:03d}.png" for i in range(1200)]
    parts = [
        opening.subset_of(_Named(labels, names), text, seed=0)
        for text in ("in20", "in20_val")
    ]
    train, val = (part.file_names or [] for part in parts)
    assert train == [f"{i:03d}.png" for i in range(260)] * 2
    assert val == [f"{i:03d}.png" for i in range(261, 521)] * 2


class _Named(sources.ArraySource):
    """Pictures in memory that have file names."""

    def __init__(self, labels, names):
        super().__init__(np.zeros((len(names), 1, 1, 3), np.uint8), labels)
        self._names = names

    @property
    def file_names(self):
        return self._names


def drawn_order(members, seed):
    keys = {i: int(views.hash_bits(seed, views.SUBSET_STREAM, i)) for i in members}
    return sorted(members, key=keys.__getitem__)


@pytest.mark.parametrize("count", [1, 13, 20])
def test_so_many_of_each_class_are_drawn(shuffled, count):
    _, labels = shuffled
    want = []
    for label in range(3):
        mine = [i for i in range(90) if labels[i] == label]
        want += drawn_order(mine, seed=4)[:count]
    got = subsets.per_class(labels, count=count, seed=4)
    assert got.tolist() == sorted(want)
    assert np.bincount(labels[got]).tolist() == [count] * 3


@pytest.mark.parametrize("share", [0.001, 0.1, 0.33, 0.5, 1.0])
def test_a_share_of_each_class_is_drawn(shuffled, share):
    _, labels = shuffled
    want = []
    for label, size in enumerate((20, 30, 40)):
        mine = [i for i in range(90) if labels[i] == label]
        want += drawn_order(mine, seed=4)[: max(1, int(share * size + 0.5))]
    assert subsets.fraction(labels, share=share, seed=4).tolist() == sorted(want)


def test_an_unlabelled_set_is_one_class():
    got = subsets.fraction(50, share=0.2, seed=1)
    assert got.tolist() == sorted(drawn_order(range(50), seed=1)[:10])
    assert got.dtype == np.int64


def test_a_smaller_draw_is_contained_in_a_larger_one(shuffled):
    _, labels = shuffled
    for draw in (
        lambda n: subsets.per_class(labels, count=n, seed=0),
        lambda n: subsets.fraction(labels, share=n / 20, seed=0),
    ):
        sets = [set(draw(n).tolist()) for n in range(1, 21)]
        assert all(a < b for a, b in itertools.pairwise(sets))
    other = subsets.per_class(labels, count=10, seed=1)
    assert other.tolist() != subsets.per_class(labels, count=10, seed=0).tolist()


def test_a_draw_never_changes():
    # A run that was stopped resumes on its pictures only if this stays.
    labels = np.arange(20) % 2
    assert subsets.per_class(labels, count=3, seed=0).tolist() == DRAWN


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (["n01_3.JPEG", "n02_10.JPEG"], [0, 2]),
        (["n02_10", "n01_3"], [0, 2]),
        (["train/n02/n02_10.JPEG", "/data/n01/n01_3.png"], [0, 2]),
        (["a/b.c.jpg", "n01_3"], [0, 3]),
        (["b.c"], [3]),
    ],
)
def test_a_list_may_leave_out_folders_and_endings(wanted, found):
    names = ["n01_3.JPEG", "n01_30.JPEG", "n02_10.JPEG", "a/b.c.jpg", "a/b.jpg"]
    assert subsets.from_list(names, wanted).tolist() == found


def test_folders_tell_equal_names_apart():
    names = ["cat/1.jpg", "dog/1.jpg", "dog/1.png", "2.jpg", "cat/2.jpg"]
    assert subsets.from_list(names, ["dog/1.png", "train/cat/1"]).tolist() == [0, 2]
    assert subsets.from_list(names, ["2.jpg"]).tolist() == [3]
    with pytest.raises(ConfigError, match=r"1 of 1 .*'fox/1\.jpg'\) are not in the"):
        subsets.from_list(names, ["fox/1.jpg"])
    with pytest.raises(ConfigError, match=r"first '1\.jpg'\) are those of several"):
        subsets.from_list(names, ["dog/1.png", "1.jpg"])
    with pytest.raises(ConfigError, match=r"first 'dog/1'\) are those of several"):
        subsets.from_list(names, ["dog/1"])


def test_unknown_and_repeated_names_are_counted_and_quoted():
    names = [f"{i}.png" for i in range(9)]
    with pytest.raises(
        ConfigError, match=r"^4 of 5 listed names \(first 'a', 'b', 'c'\) are not in"
    ):
        subsets.from_list(names, ["a", "3", "b", "c", "d"])
    with pytest.raises(
        ConfigError, match=r"^2 of 4 listed names \(first '3\.png', 'x/1'\) name a"
    ):
        subsets.from_list(names, ["3", "1", "3.png", "x/1"])


def test_a_list_is_read_line_by_line(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"one.png\r\n\n  two.png \nthr\xff.png")
    assert subsets.read_list(path) == ["one.png", "two.png", "thr\udcff.png"]
    path.write_text("\n")
    with pytest.raises(ConfigError, match="lists no file names"):
        subsets.read_list(path)
    with pytest.raises(MissingInputError, match=r"absent\.txt.* cannot be read"):
        subsets.read_list(tmp_path / "absent.txt")


def test_the_digest_is_that_of_little_endian_int64():
    indices = [0, 1, 2**40]
    want = hashlib.sha256(struct.pack("<3q", *indices)).hexdigest()
    assert subsets.digest(np.array(indices)) == want
    for dtype in (np.int32, np.int64, ">i8"):
        assert subsets.digest(np.arange(3, dtype=dtype)) == DIGEST


def test_a_class_with_too_few_pictures_is_named(shuffled):
    names, labels = shuffled
    with pytest.raises(
        ConfigError,
        match=r"class 0 'cat' has 20 pictures, 31 are needed \(2 of 3 classes have",
    ):
        subsets.first_per_class(names, labels, start=1, count=30, classes=CLASSES)
    with pytest.raises(ConfigError, match="class 0 has 20 pictures, 21 are needed"):
        subsets.per_class(labels, count=21, seed=0)
    with pytest.raises(ConfigError, match="class 3 'owl' has 0 pictures, 1 are"):
        subsets.per_class(labels, count=1, seed=0, classes=(*CLASSES, "owl"))


# --- As a source ----------------------------------------------------------------------


def test_a_part_of_arrays_reads_as_its_pictures_do():
    whole = arrays(np.arange(30) % 3)
    part = opening.subset_of(whole, "per_class:4", seed=0)
    assert isinstance(part, opening.SubsetSource)
    assert (len(part), part.num_classes, part.image_shape) == (12, 3, (4, 4, 3))
    assert part.class_names == whole.class_names
    assert part.whole is whole
    assert part.labels is not None
    for i, number in enumerate(part.indices):
        np.testing.assert_array_equal(part.read(i), whole.read(number))
        assert part.name(i) == whole.name(number)
        assert part.example(i)[1] == part.labels[i] == number % 3
    assert part.subset == {
        "name": "per_class:4",
        "size": 12,
        "digest": subsets.digest(part.indices),
    }
    assert opening.subset_of(whole, "", seed=0) is whole


def test_the_classes_stay_those_of_the_whole():
    part = opening.SubsetSource(arrays([0, 1, 2, 3]), np.array([0, 2]), "two")
    assert part.num_classes == 4
    assert part.labels is not None
    assert part.labels.tolist() == [0, 2]


@pytest.mark.parametrize("indices", [[], [2, 1], [1, 1], [-1, 2], [2, 4], [[0, 1]]])
def test_indices_must_rise_within_the_source(indices):
    with pytest.raises(ConfigError, match="'x' is no rising list of numbers from 0"):
        opening.SubsetSource(arrays([0, 1, 0, 1]), np.array(indices, int), "x")


def test_the_fingerprint_is_that_of_the_set_and_of_the_choice():
    def fingerprint(whole, indices):
        return opening.SubsetSource(whole, np.array(indices), "x").fingerprint

    one, other = arrays([0, 1, 0, 1]), arrays([0, 1, 1, 1])
    assert fingerprint(one, [0, 1]) == fingerprint(one, [0, 1])
    different = {
        one.fingerprint,
        fingerprint(one, [0, 1]),
        fingerprint(one, [0, 2]),
        fingerprint(other, [0, 1]),
    }
    assert len(different) == 4


def open_folder(folder, subset, split="train", seed=0):
    return opening.open_source(
        source="folder",
        name="",
        path=str(folder),
        split=split,
        subset=subset,
        seed=seed,
    )


def folder_count(folder, subset):
    return opening.num_examples(
        source="folder", name="", path=str(folder), split="train", subset=subset
    )


def test_a_part_of_a_folder_by_class_share_or_list(folder, tmp_path):
    names = open_folder(folder, "per_class:2").file_names
    assert names is not None
    assert [name.partition("/")[0] for name in names] == [
        name for name in CLASSES for _ in range(2)
    ]
    assert len(open_folder(folder, "fraction:0.25")) == 9
    (tmp_path / "list.txt").write_text("dog_10\ncat_2.png\n")
    listed = open_folder(folder, f"list:{tmp_path}/list.txt")
    assert listed.file_names == ["cat/cat_2.png", "dog/dog_10.png"]
    assert listed.class_names == list(CLASSES)
    for subset in ("per_class:2", "fraction:0.25", f"list:{tmp_path}/list.txt"):
        assert folder_count(folder, subset) == len(open_folder(folder, subset))
    message = r"^data\.subset='in20': class 0 'cat' has 12 pictures, 260 are needed"
    with pytest.raises(ConfigError, match=message):
        open_folder(folder, "in20")


def test_a_set_without_labels_or_names_says_what_it_can_give(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"no labels; use fraction:F or list:PATH"):
        open_folder(tmp_path, "per_class:1")
    with pytest.raises(ConfigError, match=r"stores none .*; use per_class:N or frac"):
        opening.subset_of(arrays([0, 1]), "in20", seed=0)


class Shuffled(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS set like ImageNet: three classes of 12 with the feature file_name."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(4, 4, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=list(CLASSES)),
                "file_name": tfds.features.Text(),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(36):
            name = f"{CLASSES[number % 3]}_{number}.JPEG"
            image = io.BytesIO()
            Image.new("RGB", (4, 4), (number, 0, 0)).save(image, "PNG")
            yield name, {"image": image, "label": number % 3, "file_name": name}


@pytest.fixture(scope="module")
def prepared_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    Shuffled(file_format="array_record", data_dir=folder).download_and_prepare()
    return str(folder)


def open_prepared(prepared_dir, subset="", split="train"):
    return opening.open_source(
        source="tfds", name="shuffled", path=prepared_dir, split=split, subset=subset
    )


def test_a_prepared_set_is_chosen_by_its_file_names(
    prepared_dir, tmp_path, monkeypatch
):
    monkeypatch.setitem(
        subset_setting._FIXED, "in20", subset_setting.Subset("in20", count=4)
    )
    names = [f"{CLASSES[i % 3]}_{i}.JPEG" for i in range(36)]
    want = [name for c in CLASSES for name in sorted(names) if c in name]
    want = [name for place in (0, 12, 24) for name in want[place : place + 4]]
    part = open_prepared(prepared_dir, "in20")
    assert sorted(part.file_names or []) == want
    for i, name in enumerate(part.file_names or []):
        assert CLASSES[part.example(i)[1] or 0] == name.partition("_")[0]
    (tmp_path / "list.txt").write_text("n/cat_3.JPEG\nfox_2\n")
    listed = open_prepared(prepared_dir, f"list:{tmp_path}/list.txt")
    assert sorted(listed.file_names or []) == ["cat_3.JPEG", "fox_2.JPEG"]


def test_labels_and_names_are_read_in_one_pass(prepared_dir, monkeypatch):
    read = []
    record = tfds_source.TfdsSource._record
    monkeypatch.setattr(
        tfds_source.TfdsSource,
        "_record",
        lambda self, i: (read.append(i), record(self, i))[1],
    )
    whole = open_prepared(prepared_dir, split="train[:20]")
    for _ in range(2):
        assert len(whole.file_names or []) == 20
        assert whole.labels is not None
    assert read == list(range(20))


def test_the_size_of_a_prepared_part_is_told_where_files_tell_it(
    prepared_dir, data_dir, tmp_path
):
    def count(subset, name="shuffled", path=prepared_dir):
        return opening.num_examples(
            source="tfds", name=name, path=str(path), split="train", subset=subset
        )

    (tmp_path / "list.txt").write_text("cat_3\nfox_2\n")
    assert count("per_class:4") == 12
    assert count("in20", "fashion_mini", data_dir) == 2600
    assert count(f"list:{tmp_path}/list.txt") == 2
    # A share is one of each class, and the labels are not read yet.
    assert count("fraction:0.5") is None
    assert count("per_class:4", "absent") is None


# --- As a setting ---------------------------------------------------------------------


def refusal(*overrides, **facts):
    with pytest.raises(ConfigError) as caught:
        config = configs.apply_overrides(configs.default(), overrides)
        configs.validate(config, **facts)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("in20", subset_setting.Subset("in20", start=0, count=260)),
        ("in20_val", subset_setting.Subset("in20_val", start=261, count=260)),
        ("per_class:7", subset_setting.Subset("per_class", count=7)),
        ("fraction:1e-2", subset_setting.Subset("fraction", share=0.01)),
        ("list:a:b.txt", subset_setting.Subset("list", path="a:b.txt")),
    ],
)
def test_each_form_is_understood(text, want):
    assert subset_setting.parse(text) == want
    assert want.kind in opening._CHOOSE
    config = configs.apply_overrides(configs.default(), [f"data.subset={text}"])
    configs.validate(config)


@pytest.mark.parametrize("key", ["data.subset", "eval.train_subset"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("in21", "one of in20, in20_val, per_class:N, fraction:F, list:PATH"),
        ("per_class", "one of in20"),
        ("in20:3", "one of in20"),
        (" ", "one of in20"),
        ("per_class:", "N is a whole number of at least 1"),
        ("per_class:0", "N is a whole number"),
        ("per_class:1.5", "N is a whole number"),
        ("per_class:-3", "N is a whole number"),
        ("per_class:" + "9" * 5000, "N is a whole number"),
        ("fraction:0", "F is a number above 0 and at most 1"),
        ("fraction:1.1", "F is a number above 0"),
        ("fraction:nan", "F is a number above 0"),
        ("fraction:half", "F is a number above 0"),
        ("list:", "give the text file of file names"),
    ],
)
def test_another_form_is_refused_with_the_forms(key, text, words):
    message = refusal(f"{key}={text}")
    assert message.startswith(f"{key}='")
    assert words in message


def test_a_message_about_sizes_names_the_subset():
    message = refusal("data.subset=per_class:9", num_examples=90)
    assert "the 90 images of data.train_split='train' with data.subset='per_c" in (
        message
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ["eval.test_subset=in20_val"],  # the official code's slip
        ["data.subset=in20", "eval.test_subset="],
        ["data.subset=in20", "eval.test_subset=in20"],
        ["data.subset=per_class:5", "eval.test_subset=in20_val"],
        ["data.subset=in20", "eval.train_split=train", "eval.test_subset=in20_val"],
        ["data.subset=list:a.txt"],
    ],
)
def test_pictures_to_train_on_are_not_tested_on(overrides):
    message = refusal(*overrides, "eval.test_split=train")
    assert "have pictures of the training" in message
    assert "train on in20 and test on in20_val" in message


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.subset=in20", "eval.test_subset=in20_val"],
        ["data.subset=in20_val", "eval.test_subset=in20"],
        ["data.subset=list:a.txt", "eval.test_subset=list:b.txt"],
        ["data.train_split=train[:50]"],
    ],
)
def test_parts_that_may_lie_apart_are_allowed(overrides):
    settings = [*overrides, "eval.test_split=train"]
    configs.validate(configs.apply_overrides(configs.default(), settings))


def test_probes_learn_from_what_is_trained_on_unless_told(data_dir):
    def probe(*overrides):
        config = configs.apply_overrides(
            configs.default(), ["data.subset=in20", *overrides]
        )
        return subset_setting.probe_data(configs.flatten(config))

    assert probe() == ("train", "in20")
    assert probe("eval.train_subset=per_class:5") == ("train", "per_class:5")
    assert probe("eval.train_split=train") == ("train", "")
    assert probe("eval.train_split=val", "eval.train_subset=fraction:0.1") == (
        "val",
        "fraction:0.1",
    )


# --- In a run -------------------------------------------------------------------------


def test_a_job_trains_and_is_evaluated_on_its_subset(data_dir):
    overrides = [
        *SMALL,
        f"data.path={data_dir}",
        "data.train_split=train[:400]",
        "data.subset=per_class:3",
        "eval.test_split=test[:100]",
        "eval.test_subset=fraction:0.1",
    ]
    config = configs.load(QUICKSTART, overrides)
    job = pretrain.build(config)
    assert job.plan.steps_per_epoch == 30 // 8
    assert np.bincount(job.source.labels).tolist() == [3] * 10  # pyright: ignore
    index = np.asarray(job.loader.batch(0)["index"])
    assert index.max() < 30
    evaluation = Evaluation(
        config, job.mesh, job.model.backbone, job.views[0], job.source
    )
    assert evaluation._train.source.fingerprint == job.source.fingerprint
    assert evaluation._train.source.whole is job.source.whole
    assert evaluation._test is not None
    test = evaluation._test.source
    assert test.subset is not None
    assert (test.subset["name"], len(test)) == ("fraction:0.1", test.subset["size"])
    assert test.num_classes == 10


def test_more_neighbours_than_pictures_are_refused_before_training(data_dir):
    overrides = [*SMALL, f"data.path={data_dir}", "eval.train_subset=per_class:1"]
    config = configs.load(QUICKSTART, [*overrides, "eval.knn_k=11"])
    configs.validate(config, num_examples=10)  # of the training, not of the probe
    job = pretrain.build(config)
    with pytest.raises(ConfigError, match=r"eval\.knn_k=11 is more than the 10 images"):
        Evaluation(config, job.mesh, job.model.backbone, job.views[0], job.source)


def test_a_run_notes_its_subset_and_refuses_another(folder, tmp_path, capsys):
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{n}_{i}.png\n" for n in CLASSES for i in range(4)))
    overrides = [
        *SMALL,
        "data.source=folder",
        f"data.path={folder}",
        f"data.subset=list:{listed}",
    ]
    config = configs.load(QUICKSTART, overrides)
    source = open_folder(folder, config.data.subset)
    with RunDirectory(tmp_path / "run", config) as run:
        run.agree_on_data(source.fingerprint)
        run.start(source.fingerprint, source.subset)
        run.agree_on_data(source.fingerprint)
        other = open_folder(folder, "per_class:4")
        with pytest.raises(MismatchError, match="was started with other data"):
            run.agree_on_data(other.fingerprint)
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["data_subset"] == source.subset
    assert about["data_subset"]["size"] == 12
    listed.write_text(listed.read_text().replace("cat_3", "cat_11"))
    words = ["pretrain", "--config", str(QUICKSTART), "--workdir", str(run.path)]
    assert main(words + [f"--config.{override}" for override in overrides]) == 78
    assert "was started with other data" in capsys.readouterr().err


def test_a_missing_list_ends_before_anything_is_loaded(folder, tmp_path, capsys):
    overrides = [*SMALL, "data.source=folder", f"data.path={folder}"]
    overrides += [f"data.subset=list:{tmp_path}/absent.txt"]
    words = ["config", "show", "--config", str(QUICKSTART)]
    assert main(words + [f"--config.{override}" for override in overrides]) == 66
    assert "absent.txt' cannot be read" in capsys.readouterr().err


def test_the_config_of_the_paper_is_tuned_on_its_validation_pictures():
    path = ROOT / "configs" / "imagenet20.py"
    config = configs.load(path)
    assert (config.data.subset, config.eval.test_split) == ("in20", "validation")
    assert configs.derive(config, 260_000).steps_per_epoch == 126
    tuned = ["eval.test_split=train", "eval.test_subset=in20_val"]
    configs.validate(configs.load(path, tuned))
    with pytest.raises(ConfigError, match="pictures of the training"):
        configs.validate(configs.load(path, tuned[:1]))
