"""`data check`: every bad picture by its id, and never a crash."""

import json
import shutil
from pathlib import Path

import pytest
from stand_ins import encoded

from sfrik_jax.__main__ import main
from sfrik_jax.data import checking
from sfrik_jax.data.decode import decode_rgb
from sfrik_jax.data.tfds_source import TfdsSource
from sfrik_jax.errors import BadPictureError, CorruptInputError, OutputError

ROOT = Path(__file__).parents[1]
PER_CLASS = 6


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    for split, label, name in (
        (split, label, f"{number}.jpg")
        for split in ("train", "test")
        for label in range(2)
        for number in range(PER_CLASS)
    ):
        path = folder / split / f"class {label}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(len(split) * 100 + label * 10 + int(name[0])))
    return folder


def check(capsys, *words):
    """Exit code, (id, reason) of each bad picture, stdout, and the last line."""
    code = main(["data", "check", *map(str, words)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    bad = {}
    for line in err.splitlines():
        if line.startswith("SFRIK-DATA-BAD "):
            assert line.count("SFRIK-DATA-BAD") == line.count(" reason=") == 1
            shown, reason = line.removeprefix("SFRIK-DATA-BAD id=").split(" reason=")
            id = json.loads(shown) if " " in shown else shown
            assert id not in bad
            bad[id] = reason
    assert err == "" if code == 0 else err.splitlines()[-1].startswith("error: ")
    return code, bad, out, err


def flip(path, place, bit=1):
    data = bytearray(path.read_bytes())
    data[place] ^= bit
    path.write_bytes(data)


def test_a_whole_set_passes(capsys, pictures, tmp_path):
    sums = tmp_path / "new" / "sums"
    code, bad, out, err = check(capsys, "--folder", pictures, "--hashes", sums)
    assert (code, bad, err) == (0, {}, "")
    assert out.splitlines()[1].split()[:5] == ["train", "12", "0", "2", "0"]
    assert out.splitlines()[2].split()[:5] == ["test", "12", "0", "2", "0"]
    assert len(sums.read_text().splitlines()) == 24
    code, bad, _, _ = check(capsys, "--folder", pictures, "--against", sums)
    assert (code, bad) == (0, {})


def test_i4_a_flipped_bit_that_decodes_is_named_by_the_list(capsys, pictures, tmp_path):
    sums = tmp_path / "sums"
    check(capsys, "--folder", pictures, "--hashes", sums)
    victim = pictures / "train" / "class 1" / "3.jpg"
    flip(victim, 40, bit=2)  # in the table of quantisation
    assert check(capsys, "--folder", pictures)[0] == 0
    moved = shutil.copytree(pictures, tmp_path / "elsewhere")
    code, bad, _, _ = check(capsys, "--folder", moved, "--against", sums)
    assert code == 65
    id = str(moved / "train" / "class 1" / "3.jpg")
    assert list(bad) == [id]
    assert "SHA-256" in bad[id]


def test_lost_and_new_pictures_are_named_by_the_list(capsys, pictures, tmp_path):
    sums = tmp_path / "sums"
    check(capsys, "--folder", pictures, "--hashes", sums)
    lost, new = (pictures / "test" / "class 0" / name for name in ("0.jpg", "new.jpg"))
    lost.rename(new)
    code, bad, _, _ = check(capsys, "--folder", pictures, "--against", sums)
    assert code == 65
    assert bad == {
        str(lost): f"{sums} lists it, and it is not there",
        str(new): f"{sums} does not list it",
    }
    # A part of the set says nothing of the others.
    code, bad, _, _ = check(
        capsys, "--folder", pictures, "--split", "train", "--against", sums
    )
    assert (code, bad) == (0, {})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-2],
        lambda data: b"<html></html>",
    ],
    ids=["empty", "half", "without its end", "html"],
)
def test_damaged_pictures_are_named_and_all_others_read(
    capsys, pictures, tmp_path, spoil
):
    sums = tmp_path / "sums"
    check(capsys, "--folder", pictures, "--hashes", sums)
    victim = pictures / "test" / "class 0" / "2.jpg"
    victim.write_bytes(spoil(victim.read_bytes()))
    code, bad, out, err = check(capsys, "--folder", pictures)
    assert code == 65
    assert list(bad) == [str(victim)]
    with pytest.raises(BadPictureError) as raised:
        decode_rgb(victim.read_bytes(), str(victim))
    assert bad[str(victim)] == raised.value.reason
    assert out.splitlines()[2].split()[:3] == ["test", "12", "1"]
    assert "error: 1 bad of 24 pictures" in err
    # The list adds nothing: the picture is bad once.
    _, bad, _, err = check(capsys, "--folder", pictures, "--against", sums)
    assert list(bad) == [str(victim)]
    assert "error: 1 bad of 24 pictures" in err


@pytest.fixture
def mini(data_dir, tmp_path):
    """A copy of the prepared fashion_mini: data_dir and directory of its version."""
    shutil.copytree(data_dir / "fashion_mini", tmp_path / "fashion_mini")
    return tmp_path, tmp_path / "fashion_mini" / "1.0.0"


def test_i4_a_flipped_bit_in_a_record_names_the_record(capsys, mini, data_dir):
    root, version = mini
    flip(version / "fashion_mini-test.array_record-00000-of-00001", 300_000)
    code, bad, out, _ = check(capsys, "fashion_mini", "--data-dir", root)
    assert code == 65
    assert len(bad) == 1
    name, reason = bad.popitem()
    with pytest.raises(BadPictureError) as raised:
        TfdsSource("fashion_mini", str(root), "test").read(int(name[5:-1]))
    assert (raised.value.id, raised.value.reason) == (name, reason)
    assert raised.value.remedy == f"delete {version} and prepare it again"
    assert out.splitlines()[1].split()[:3] == ["train", "5,000", "0"]
    assert out.splitlines()[2].split()[:3] == ["test", "1,000", "1"]
    # Neither is a record that cannot be read told twice.
    sums = root / "sums"
    check(capsys, "fashion_mini", "--data-dir", data_dir, "--hashes", sums)
    code, bad, _, _ = check(
        capsys, "fashion_mini", "--data-dir", root, "--against", sums
    )
    assert (code, list(bad)) == (65, [name])


def test_a_record_file_that_is_cut_short_names_its_records(capsys, mini):
    root, version = mini
    shard = version / "fashion_mini-test.array_record-00000-of-00001"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    code, bad, out, _ = check(capsys, "fashion_mini", "--data-dir", root)
    assert code == 65
    assert set(bad) == {f"test[{i}]" for i in range(1_000)}
    assert out.splitlines()[1].split()[:3] == ["train", "5,000", "0"]


def test_records_that_nobody_counts_are_told(capsys, mini):
    root, version = mini
    about = version / "dataset_info.json"
    about.write_text(about.read_text().replace('"1000"', '"999"'))
    code, bad, out, _ = check(capsys, "fashion_mini", "--data-dir", root)
    assert (code, list(bad)) == (65, ["test"])
    assert "holds 1000 records; shardLengths in dataset_info.json: 999" in bad["test"]
    assert out.splitlines()[2].split()[:3] == ["test", "999", "1"]


def test_a_split_that_cannot_be_opened_does_not_hide_the_others(capsys, pictures):
    (pictures / "test" / "class 1").rename(pictures / "test" / "other")
    code, bad, out, _ = check(capsys, "--folder", pictures)
    assert code == 65
    assert "the train split beside it lacks" in bad["test"]
    assert out.splitlines()[1].split()[:3] == ["train", "12", "0"]


def test_what_cannot_be_opened_is_not_told_as_lost(capsys, pictures, tmp_path):
    sums = tmp_path / "sums"
    check(capsys, "--folder", pictures, "--hashes", sums)
    (pictures / "test" / "class 1").rename(pictures / "test" / "other")
    lost = pictures / "train" / "class 0" / "0.jpg"
    lost.unlink()
    code, bad, _, _ = check(capsys, "--folder", pictures, "--against", sums)
    assert code == 65
    assert set(bad) == {"test", str(lost)}


def test_records_that_cannot_be_opened_are_not_told_as_lost(
    capsys, mini, data_dir, monkeypatch
):
    root, _ = mini
    sums = root / "sums"
    check(capsys, "fashion_mini", "--data-dir", data_dir, "--hashes", sums)
    own = TfdsSource.__init__

    def fail(self, name, path, split, **options):
        if split == "test":
            raise CorruptInputError("no test")
        own(self, name, path, split, **options)

    monkeypatch.setattr(TfdsSource, "__init__", fail)
    code, bad, _, _ = check(
        capsys, "fashion_mini", "--data-dir", root, "--against", sums
    )
    assert (code, bad) == (65, {"test": "no test"})


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (OutputError("x"), 73)]
)
def test_what_ends_a_check_leaves_no_part_of_a_list(
    capsys, pictures, tmp_path, monkeypatch, error, code
):
    def fail(*_):
        raise error
        yield

    monkeypatch.setattr(checking, "_all_seen", fail)
    sums = tmp_path / "new" / "sums"
    sums.parent.mkdir()
    sums.write_text("of earlier")
    assert check(capsys, "--folder", pictures, "--hashes", sums)[0] == code
    assert [each.name for each in sums.parent.iterdir()] == ["sums"]
    assert sums.read_text() == "of earlier"


def test_a_list_that_cannot_be_written_is_told(capsys, pictures, tmp_path):
    sums, partial = tmp_path / "new" / "sums", tmp_path / "new" / "sums.partial"
    sums.parent.mkdir()
    partial.symlink_to("/dev/full")
    code, _, _, err = check(capsys, "--folder", pictures, "--hashes", sums)
    assert code == 74
    assert f"error: --hashes {sums}" in err
    assert not list(sums.parent.iterdir())
    partial.mkdir()
    code, _, _, err = check(capsys, "--folder", pictures, "--hashes", sums)
    assert code == 73
    assert f"error: --hashes {sums}" in err


def test_a_list_is_not_compared_with_itself(capsys, pictures, tmp_path):
    sums = tmp_path / "sums"
    check(capsys, "--folder", pictures, "--hashes", sums)
    before = sums.read_text()
    (tmp_path / "link").symlink_to(sums)
    for other in (sums, tmp_path / "link"):
        code, _, _, err = check(
            capsys, "--folder", pictures, "--hashes", sums, "--against", other
        )
        assert code == 2
        assert "--against" in err
        assert sums.read_text() == before


def test_labels_out_of_range_are_named(capsys, mini):
    root, version = mini
    features = version / "features.json"
    tree = json.loads(features.read_text())
    tree["featuresDict"]["features"]["label"]["classLabel"]["numClasses"] = "9"
    features.write_text(json.dumps(tree))
    names = version / "label.labels.txt"
    names.write_text("".join(names.read_text().splitlines(keepends=True)[:9]))
    code, bad, _, _ = check(capsys, "fashion_mini", "--data-dir", root, "--split=test")
    assert code == 65
    assert len(bad) == 100
    assert set(bad.values()) == {"label 9 is not from 0 to 8"}


def test_labels_below_zero_are_named(capsys, data_dir, monkeypatch):
    own = TfdsSource._record
    monkeypatch.setattr(
        TfdsSource,
        "_record",
        lambda self, i: own(self, i) | ({"label": -2} if i == 7 else {}),
    )
    words = ("fashion_mini", "--data-dir", data_dir, "--split=test")
    code, bad, _, _ = check(capsys, *words)
    assert (code, bad) == (65, {"test[7]": "label -2 is not from 0 to 9"})


def test_empty_classes_are_told_and_are_not_bad(capsys, pictures):
    shutil.rmtree(pictures / "test" / "class 1")
    other = pictures / "test" / "class 0"
    shutil.copytree(other, pictures / "test" / "class 2")
    shutil.copytree(other, pictures / "train" / "class 2")
    code, bad, out, _ = check(capsys, "--folder", pictures)
    assert (code, bad) == (0, {})
    assert "test: 1 classes are empty, first class 1" in out


def test_a_set_is_named_once(capsys, pictures):
    for words in ((), ("fashion_mini", "--folder", str(pictures))):
        code, _, _, err = check(capsys, *words)
        assert code == 2
        assert "name one set to check" in err
    code, _, _, err = check(capsys, "fashion_mini", "--config.data.path=x")
    assert code == 2
    assert "--config.data.path=x: needs --config SPEC" in err
    code, _, _, err = check(capsys, "--folder", pictures, "--hashes", pictures)
    assert code == 73
    assert "is a directory" in err


def test_a_list_that_is_none_is_told(capsys, pictures, tmp_path):
    path = tmp_path / "list"
    code, _, _, err = check(capsys, "--folder", pictures, "--against", path)
    assert code == 66
    assert "--hashes" in err
    path.write_text("no sum\n")
    code, _, _, err = check(capsys, "--folder", pictures, "--against", path)
    assert code == 65
    assert "line 1 is no SHA-256 sum" in err


def test_the_set_of_a_configuration_is_checked(capsys, pictures):
    code, bad, out, _ = check(
        capsys,
        "--config",
        ROOT / "configs" / "quickstart.py",
        "--config.data.source=folder",
        f"--config.data.path={pictures}",
        "--config.data.batch_size=8",
    )
    assert (code, bad) == (0, {})
    assert out.splitlines()[2].split()[:2] == ["test", "12"]
