"""Features on the disk: shards, resuming, damage, and memory."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import namedtuple

import numpy as np
import pytest

from sfrik_jax.errors import (
    ConfigError,
    CorruptInputError,
    DiskFullError,
    MismatchError,
    MissingInputError,
    NonFiniteError,
    OutputError,
)
from sfrik_jax.feature_set import (
    FeatureSet,
    FeatureWriter,
    layout,
    shard,
    shard_file,
    writer,
)

IDENTITY = {"weights_sha256": "ab" * 32, "protocol": {"resize": 256}}
ROWS, DIM, SHARD_ROWS, BLOCK = 23, 5, 10, 4


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)


def names_of(rows):
    return [f"train[{i}]" for i in rows]


def open_writer(path, **kwargs):
    settings = {"rows": ROWS, "identity": IDENTITY, "shard_rows": SHARD_ROWS}
    return FeatureWriter(path, **settings | kwargs)


def blocks(features, rows, labels=None, names=None):
    """The blocks of a range of rows, the last one shorter."""
    names = names or names_of(range(len(features)))
    for start in range(rows.start, rows.stop, BLOCK):
        part = slice(start, min(start + BLOCK, rows.stop))
        yield features[part], None if labels is None else labels[part], names[part]


def write(path, features, labels=None, names=None, **kwargs):
    with open_writer(path, **kwargs) as made:
        for number in made.pending():
            made.write_shard(
                number, blocks(features, made.rows_of(number), labels, names)
            )
    return FeatureSet(path)


def test_what_was_written_is_read(tmp_path, features):
    labels = np.arange(ROWS) % 3
    got = write(tmp_path, features, labels, class_names=["cat", "dog", "fox"])
    assert (len(got), got.shape, got.dtype) == (ROWS, (ROWS, DIM), np.float32)
    np.testing.assert_array_equal(got[:], features)
    np.testing.assert_array_equal(got.labels, labels)
    assert got.labels is not None and got.labels.dtype == np.int32
    assert got.names == names_of(range(ROWS))
    assert (got.class_names, got.num_classes) == (["cat", "dog", "fox"], 3)
    assert not got.multi_label
    assert got.about["identity"] == IDENTITY
    got.verify()
    files = sorted(path.name for path in tmp_path.glob("00002.*"))
    assert files == [
        "00002.features.npy",
        "00002.json",
        "00002.labels.npy",
        "00002.names.txt",
    ]
    # The files are NumPy's own.
    np.testing.assert_array_equal(
        np.load(tmp_path / "00002.features.npy", mmap_mode="r"), features[20:]
    )


@pytest.mark.parametrize("shard_rows", [1, 7, 23, 100])
def test_rows_are_chosen_as_in_numpy_across_shards(tmp_path, features, shard_rows):
    got = write(tmp_path, features, shard_rows=shard_rows)
    rng = np.random.default_rng(1)
    for index in (
        slice(6, 15),
        slice(-3, None),
        slice(20, 2, -4),
        slice(9, 9),
        slice(15, 3),
        rng.integers(-ROWS, ROWS, 50),  # in any order, with repeats
        np.array([22, 0, 10, 9], np.uint8),
        [3, 1],
        np.array([], np.int64),
        np.arange(ROWS) % 4 == 1,
        -1,
        np.int64(13),
    ):
        np.testing.assert_array_equal(got[index], features[index])
    np.testing.assert_array_equal(np.concatenate(list(got.blocks(6))), features)
    for bad in (ROWS, [0, -ROWS - 1], np.ones(3, bool), np.zeros((2, 2), int), 0.5):
        with pytest.raises(IndexError):
            got[bad]


def test_what_is_read_is_a_copy(tmp_path, features):
    got = write(tmp_path, features)
    got[:][:] = 0
    np.testing.assert_array_equal(got[:], features)


def test_without_labels_there_are_none(tmp_path, features):
    got = write(tmp_path, features)
    assert got.labels is None and got.num_classes is None
    assert not list(tmp_path.glob("*.labels.npy"))


def test_several_labels_of_a_picture(tmp_path, features):
    labels = np.random.default_rng(2).integers(-1, 2, (ROWS, 4)).astype(np.int8)
    got = write(tmp_path, features, labels)
    assert got.multi_label and got.num_classes == 4
    assert got.labels is not None and got.labels.dtype == np.int8
    np.testing.assert_array_equal(got.labels, labels)


def test_half_precision_rounds_once(tmp_path, features):
    got = write(tmp_path, features, dtype="float16")
    assert got[:].dtype == np.float32
    np.testing.assert_array_equal(got[:], features.astype(np.float16))
    features[7, 2] = 7e4  # above the largest float16, 65504
    with pytest.raises(NonFiniteError, match=r"row 7 .train\[7\].*store float32"):
        write(tmp_path / "other", features, dtype="float16")


def test_names_of_any_kind_come_back(tmp_path, features):
    names = [f"plain {i}.png" for i in range(ROWS)]
    odd = ["a\nb", "a\r\nb", '"quoted"', "", "é/ü", os.fsdecode(b"\xff"), "\\n", "\x85"]
    names[5 : 5 + len(odd)] = odd
    got = write(tmp_path, features, names=names)
    assert got.names == names
    assert len((tmp_path / "00000.names.txt").read_bytes().split(b"\n")) == 11


def test_pictures_that_are_left_out_have_no_row(tmp_path, features):
    kept = np.setdiff1d(np.arange(ROWS), [3, *range(10, 20), 22])
    with open_writer(tmp_path) as made:
        for number in made.pending():
            rows = made.rows_of(number)
            mine = kept[(kept >= rows.start) & (kept < rows.stop)]
            parts = [mine[:2], mine[2:]] if len(mine) else []
            made.write_shard(
                number, ((features[part], None, names_of(part)) for part in parts)
            )
    got = FeatureSet(tmp_path)
    assert got.about["rows"] == ROWS and len(got) == len(kept) == 11
    np.testing.assert_array_equal(got[:], features[kept])
    np.testing.assert_array_equal(got[[10, 9, 8]], features[kept[[10, 9, 8]]])
    assert got.names == names_of(kept)
    got.verify()


def test_a_long_length_fits_into_the_header(tmp_path):
    ones = np.ones((12_345, 1), np.float32)
    # Written with the header of length 0 first.
    with open_writer(tmp_path, rows=12_345, shard_rows=20_000) as made:
        names = ["n"] * 12_345
        made.write_shard(0, [(ones[:1], None, names[:1]), (ones[1:], None, names[1:])])
    assert FeatureSet(tmp_path).shape == (12_345, 1)
    assert np.load(tmp_path / "00000.features.npy").sum() == 12_345


def test_processes_share_the_shards(tmp_path, features):
    first, second = open_writer(tmp_path), open_writer(tmp_path)
    assert (first.pending(0, 2), second.pending(1, 2)) == ([0, 2], [1])
    with first, second:
        for made, number in ((second, 1), (first, 0)):
            made.write_shard(number, blocks(features, made.rows_of(number)))
    with pytest.raises(MissingInputError, match=r"2 of 3 shards .* features command"):
        FeatureSet(tmp_path)
    # Another number of processes goes on with what is there.
    np.testing.assert_array_equal(write(tmp_path, features)[:], features)


def test_two_writers_with_the_same_index_exclude_each_other(tmp_path):
    with open_writer(tmp_path) as first, open_writer(tmp_path) as second:
        first.pending()
        with pytest.raises(OutputError, match="is locked by"):
            second.pending()
        first.close()
        assert second.pending() == [0, 1, 2]


def files_of(path):
    return {
        file.name: (file.stat().st_ino, file.stat().st_mtime_ns)
        for file in path.glob("0000*")
        if not file.name.endswith(".partial")
    }


KILLED = """
import sys, time
import numpy as np
from sfrik_jax.feature_set import FeatureWriter

def blocks(rows):
    for i in rows:
        if i == 13:
            print("halfway", flush=True)
            time.sleep(600)
        yield np.full((1, 5), i, np.float32), None, [f"train[{i}]"]

writer = FeatureWriter(sys.argv[1], rows=23, identity={"a": 1}, shard_rows=10)
for number in writer.pending():
    writer.write_shard(number, blocks(writer.rows_of(number)))
"""


def test_a_killed_writer_leaves_whole_shards_alone(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "halfway\n"
        killed.send_signal(signal.SIGKILL)
    before = files_of(tmp_path)
    assert sorted(before) == ["00000.features.npy", "00000.json", "00000.names.txt"]
    assert (tmp_path / "00001.features.npy.partial").exists()
    values = np.repeat(np.arange(23, dtype=np.float32)[:, None], 5, axis=1)
    time.sleep(0.01)
    with open_writer(tmp_path, identity={"a": 1}) as made:
        assert made.pending() == [1, 2]
        for number in made.pending():
            made.write_shard(number, blocks(values, made.rows_of(number)))
    after = files_of(tmp_path)
    assert after.items() >= before.items()
    assert not list(tmp_path.glob("*.partial"))
    np.testing.assert_array_equal(FeatureSet(tmp_path)[:], values)


def test_other_features_are_refused_with_what_differs(tmp_path, features):
    write(tmp_path, features)
    other = {"weights_sha256": "cd" * 32, "protocol": {"resize": 224}}
    with pytest.raises(MismatchError, match=r"protocol\.resize: 256 -> 224; identity"):
        open_writer(tmp_path, identity=other)
    with pytest.raises(MismatchError, match="'float32' -> 'float16'"):
        open_writer(tmp_path, dtype="float16")
    with pytest.raises(MismatchError, match=r"\(rows: 23 -> 24\)"):
        open_writer(tmp_path, rows=24)
    with open_writer(tmp_path) as same:
        assert same.pending() == []


def test_finished_shards_without_description_are_refused(tmp_path, features):
    write(tmp_path, features)
    (tmp_path / "about.json").unlink()
    with pytest.raises(CorruptInputError, match=r"about\.json is damaged \(missing"):
        open_writer(tmp_path)
    with pytest.raises(MissingInputError, match="no feature set in"):
        FeatureSet(tmp_path)


@pytest.mark.parametrize("file", ["features.npy", "labels.npy", "names.txt"])
def test_damage_is_found(tmp_path, features, file):
    path = tmp_path / f"00001.{file}"
    got = write(tmp_path, features, np.zeros(ROWS, int))
    whole = path.read_bytes()
    path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 4]) + whole[-2:])
    FeatureSet(tmp_path)  # only the sizes are looked at
    with pytest.raises(CorruptInputError, match=rf"00001\.{file} .*SHA-256 differs; 1"):
        got.verify()
    path.write_bytes(whole[:-3])
    with pytest.raises(
        CorruptInputError, match=r"bytes, \d+ noted\); delete .*00001\."
    ):
        FeatureSet(tmp_path)
    path.unlink()
    with pytest.raises(CorruptInputError, match="No such file"):
        FeatureSet(tmp_path)
    # The remedy of the message.
    (tmp_path / "00001.json").unlink()
    again = write(tmp_path, features, np.zeros(ROWS, int))
    again.verify()
    assert path.read_bytes() == whole


def test_a_file_that_gets_shorter_while_it_is_open_is_told(tmp_path, features):
    got = write(tmp_path, features)
    os.truncate(tmp_path / "00001.features.npy", 150)
    np.testing.assert_array_equal(got[:10], features[:10])
    with pytest.raises(CorruptInputError, match=r"00001\.features.* became shorter"):
        got[[19]]


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2}', '{"format": 1}'])
def test_a_damaged_description_is_told(tmp_path, features, text):
    write(tmp_path, features)
    (tmp_path / "about.json").write_text(text)
    with pytest.raises(CorruptInputError, match=r"about\.json is damaged"):
        FeatureSet(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", '{"rows": 10}'])
def test_a_damaged_note_is_told(tmp_path, features, text):
    write(tmp_path, features)
    (tmp_path / "00001.json").write_text(text)
    with pytest.raises(CorruptInputError, match=r"00001\.json is damaged"):
        FeatureSet(tmp_path)


def test_damaged_labels_and_names_are_told(tmp_path, features):
    write(tmp_path, features, np.zeros(ROWS, int))
    for file, old, new in (
        ("labels.npy", b"(10,)", b"(01,)"),
        ("labels.npy", b"NUMPY", b"BUMPY"),
        ("names.txt", b"\n", b" "),
        ("names.txt", b"train[0]", b"train[\xff]"),
        ("names.txt", b"train[0]", b'"rain[0]'),
    ):
        path = tmp_path / f"00000.{file}"
        whole = path.read_bytes()
        assert old in whole
        path.write_bytes(whole.replace(old, new))
        got = FeatureSet(tmp_path)
        with pytest.raises(CorruptInputError, match=rf"00000\.{file} is damaged"):
            _ = got.labels if file == "labels.npy" else got.names
        path.write_bytes(whole)


def test_a_damaged_header_is_told(tmp_path, features):
    write(tmp_path, features)
    path = tmp_path / "00002.features.npy"
    whole = path.read_bytes()
    assert b"(3, 5)" in whole
    for changed in (b"?" + whole[1:], whole.replace(b"(3, 5)", b"(5, 3)")):
        path.write_bytes(changed)
        with pytest.raises(CorruptInputError, match=r"00002\.features\.npy is damaged"):
            FeatureSet(tmp_path)


def test_a_full_disk_is_told_before_and_while_writing(tmp_path, features, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda path: usage(free=459))
    with pytest.raises(DiskFullError, match=r"23 rows .* need 460 bytes .* 459 free"):
        write(tmp_path, features)
    monkeypatch.undo()

    with open_writer(tmp_path) as made:
        monkeypatch.setattr(shard_file.ShardFile, "_add_array", full)
        with pytest.raises(DiskFullError, match="is full; what is finished is kept"):
            made.write_shard(0, blocks(features, range(10)))
    assert not (tmp_path / "00000.json").exists()


def full(*_):
    with open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(tmp_path, features, value):
    features[17, 4] = value
    with pytest.raises(NonFiniteError, match=r"row 17 \(train\[17\]\) has NaN"):
        write(tmp_path, features)
    with open_writer(tmp_path) as made:
        assert made.pending() == [1, 2]


def test_blocks_of_a_wrong_form_are_refused(tmp_path, features):
    names = names_of(range(10))
    with open_writer(tmp_path, class_names=["cat", "dog"]) as made:

        def refused(error, match, *given):
            with pytest.raises(error, match=match):
                made.write_shard(0, given)

        refused(ConfigError, "1 names; give", (features[:2], None, names[:1]))
        refused(ConfigError, r"\[5\]", (features[0], None, names[:5]))
        refused(
            ConfigError, "10 rows got 11", (features[:11], None, names_of(range(11)))
        )
        refused(ConfigError, "float64", (features[:2], np.zeros(2), names[:2]))
        bad = np.array([1, 2])
        refused(
            CorruptInputError, r"train\[1\] has label 2", (features[:2], bad, names[:2])
        )
        bad = np.array([[0, 1], [2, 0]])
        refused(
            CorruptInputError, r"\[2, 0\], outside -1", (features[:2], bad, names[:2])
        )
        refused(
            ConfigError,
            "for 2 classes",
            (features[:2], np.zeros((2, 3), int), names[:2]),
        )
        refused(
            ConfigError,
            "'labelled': True.*'labelled': False",
            (features[:2], np.zeros(2, int), names[:2]),
            (features[2:4], None, names[2:4]),
        )
        with pytest.raises(ConfigError, match="shard 3 of 3"):
            made.write_shard(3, [])
    for wrong in ({"rows": 0}, {"shard_rows": 0}, {"dtype": "int8"}):
        with pytest.raises(ConfigError, match=r"at least 1|choose one of"):
            open_writer(tmp_path / "new", **wrong)


LARGE = """
import sys
import numpy as np
from sfrik_jax.feature_set import FeatureSet, FeatureWriter

ROWS, DIM = 51_200, 2_048  # 400 MiB

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))

def blocks(rows):
    block = np.zeros((512, DIM), np.float32)
    for start in range(rows.start, rows.stop, 512):
        block[:] = np.arange(start, start + 512)[:, None]
        yield block, None, [str(i) for i in range(start, start + 512)]

before = peak()
with FeatureWriter(sys.argv[1], rows=ROWS, identity={}, shard_rows=20_480) as writer:
    for number in writer.pending():
        writer.write_shard(number, blocks(writer.rows_of(number)))
x = FeatureSet(sys.argv[1])
total = sum(float(block[:, 0].sum(dtype=np.float64)) for block in x.blocks(512))
assert total == ROWS * (ROWS - 1) / 2, total
rng = np.random.default_rng(0)
for _ in range(50):
    rows = rng.integers(0, ROWS, 512)
    np.testing.assert_array_equal(x[rows][:, -1], rows)
x.verify()
print(peak() - before)
"""


def test_memory_stays_at_a_block(tmp_path):
    command = [sys.executable, "-c", LARGE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # Blocks of 4 MiB, of which a few copies are held.
    assert int(done.stdout) < 32 * 1024, done.stdout


def test_opening_takes_no_jax(tmp_path, features):
    write(tmp_path, features)
    code = (
        "import sys; from sfrik_jax.feature_set import FeatureSet;"
        f"assert len(FeatureSet({str(tmp_path)!r})) == {ROWS};"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_labels_without_names_are_counted(tmp_path, features):
    labels = np.arange(ROWS) % 4
    assert write(tmp_path, features, labels).num_classes == 4
    bad = labels - 1
    with pytest.raises(CorruptInputError, match=r"train\[0\] has label -1"):
        write(tmp_path / "bad", features, bad)


def test_a_set_without_any_row_is_told(tmp_path):
    with open_writer(tmp_path) as made:
        for number in made.pending():
            made.write_shard(number, [])
    with pytest.raises(CorruptInputError, match="all pictures were left out"):
        FeatureSet(tmp_path)


def test_the_description_is_plain_json(tmp_path, features):
    write(tmp_path, features, np.zeros(ROWS, int), class_names=["only"])
    assert json.loads((tmp_path / "about.json").read_text()) == {
        "format": 1,
        "rows": ROWS,
        "dtype": "float32",
        "shard_rows": SHARD_ROWS,
        "class_names": ["only"],
        "identity": IDENTITY,
        "dim": DIM,
        "labelled": True,
        "multi_label": False,
        "num_classes": 1,
    }


def use(path):
    got = FeatureSet(path)
    _ = (got[:], got.labels, got.names, got.shape, got.num_classes, got.class_names)
    got.verify()


@pytest.fixture
def labelled(tmp_path, features):
    write(tmp_path, features, np.arange(ROWS) % 3, class_names=["cat", "dog", "fox"])
    return tmp_path


@pytest.mark.parametrize(
    "file",
    [
        "about.json",
        "00001.json",
        "00001.features.npy",
        "00001.labels.npy",
        "00001.names.txt",
    ],
)
def test_any_damage_is_one_line_or_harmless(labelled, file):
    """Seeded bit flips, cut ends and swapped bytes."""
    path = labelled / file
    whole, told = path.read_bytes(), 0
    rng = np.random.default_rng(0)
    for i in range(300):
        data = bytearray(whole)
        # Half of them in the header, where there is one.
        place = int(rng.integers(min(len(data), 128) if i % 2 else len(data)))
        if i % 10 == 0:
            del data[place:]
        elif i % 10 == 1:
            data[place] = rng.integers(256)
        else:
            data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            use(labelled)
        except (CorruptInputError, MissingInputError) as error:
            assert "\n" not in str(error)
            told += 1
        else:
            assert file.endswith(".json") or data == whole
    assert told > 100


HOSTILE = [
    *(None, True, -1, 0, 1, 8, 10**18, 10**400, 1.5, float("nan"), "x", ""),
    *([], {}, [1], ["a"], {"a": 1}, [[]]),
]


@pytest.mark.parametrize("file", ["about.json", "00000.json"])
def test_any_value_of_a_description_is_told_or_harmless(labelled, file):
    path = labelled / file
    whole = json.loads(path.read_text())
    for key in whole:
        for value in HOSTILE:
            path.write_text(json.dumps(whole | {key: value}))
            try:
                use(labelled)
            except (CorruptInputError, MissingInputError) as error:
                assert "\n" not in str(error)
    path.write_text("[" * 100_000)
    with pytest.raises(CorruptInputError, match="is damaged"):
        use(labelled)


@pytest.mark.parametrize(
    ("file", "key", "value", "says"),
    [
        ("about.json", "rows", "x", "rows is no number from 1"),
        ("about.json", "shard_rows", 0, "shard_rows is no number from 1"),
        ("about.json", "dtype", "object", "dtype is no one of"),
        ("about.json", "dtype", "float16", r"<f4 \(10, 5\), and <f2"),
        ("about.json", "dim", True, "dim is no number from 1"),
        ("about.json", "multi_label", True, r"<i4 \(10,\), and \|i1 \(10, 3\)"),
        ("about.json", "class_names", ["a"], "num_classes=3 of 1 class_names"),
        ("00000.json", "rows", "x", "rows is no number from 0"),
        ("00000.json", "rows", 11, "11 rows, and shard_rows=10"),
        ("00000.json", "rows", 0, "lists other files"),
        ("00000.json", "files", [], "files is no JSON object"),
        ("00000.json", "files", {}, "lists other files"),
        (
            "00000.json",
            "files",
            {f"{kind}": {} for kind in ("features.npy", "labels.npy", "names.txt")},
            "without bytes, sha256",
        ),
    ],
)
def test_a_wrong_description_is_told(labelled, file, key, value, says):
    path = labelled / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(CorruptInputError, match=f"is damaged.*{says}"):
        use(labelled)


def test_a_note_without_rows_hides_no_shard(labelled):
    (labelled / "00001.json").write_text('{"rows": 0, "files": {}}')
    with pytest.raises(CorruptInputError, match="no rows, and there is features"):
        FeatureSet(labelled)


def test_many_shards_are_missed_at_once(labelled):
    path = labelled / "about.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rows": 10**18}))
    with pytest.raises(MissingInputError, match="has 3 of 100000000000000000 shards"):
        FeatureSet(labelled)


def test_verifying_tells_how_far_it_is(labelled, monkeypatch):
    monkeypatch.setattr(shard, "HASH_BYTES", 100)
    seen = []
    FeatureSet(labelled).verify(lambda done, total: seen.append((done, total)))
    size = sum(path.stat().st_size for path in labelled.glob("0*[yt]"))
    assert seen[-1] == (size, size) and len(seen) > size / 100
    assert all(0 < b[0] - a[0] <= 100 for a, b in itertools.pairwise(seen))


def test_what_a_killed_writer_left_goes_with_the_lock(tmp_path, features):
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    host = socket.gethostname()
    mine = ["00000.features.npy.partial", f"about.json.{host}-{ended.pid}.partial"]
    old = [f"00001.json.{host}x-1.partial"]
    others = [
        "00001.features.npy.partial",  # of the process of index 1
        f"about.json.{host}-{os.getppid()}.partial",
        f"00000.json.{host}x-1.partial",
    ]
    for name in [*mine, *old, *others]:
        (tmp_path / name).touch()
    os.utime(tmp_path / old[0], (1, 1))
    with open_writer(tmp_path) as made:
        made.pending(0, 2)
        left = sorted(path.name for path in tmp_path.glob("*.partial"))
        assert left == sorted(others)


def test_a_disk_that_fills_is_told_and_keeps_nothing_unfinished(tmp_path, features):
    with open_writer(tmp_path) as made:
        made.pending()
        # Closing such a file fails as well.
        (tmp_path / "00000.features.npy.partial").symlink_to("/dev/full")
        with pytest.raises(DiskFullError, match="is full; what is finished is kept"):
            made.write_shard(0, blocks(features, range(10)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["about.json", "lock-0"]


def test_a_description_that_cannot_be_put_in_place_leaves_nothing(tmp_path):
    (tmp_path / "00000.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        layout.write_json(tmp_path / "00000.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["00000.json"]
