"""The weighted kNN vote: reference, closed forms, ties, bad input."""

import importlib
import json
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from test_bench_training import run as run_bench

from sfrik_jax.errors import ConfigError
from sfrik_jax.evaluators import checks, knn
from sfrik_jax.mesh import make_mesh

SETTINGS: dict[str, Any] = {"k": 3, "temperature": 0.07, "num_classes": 3}


@pytest.fixture
def sets():
    rng = np.random.default_rng(0)
    train = rng.standard_normal((30, 8)).astype(np.float32)
    test = rng.standard_normal((11, 8)).astype(np.float32)
    return train, np.arange(30) % 3, test, np.arange(11) % 3


def vote_by_hand(train, train_labels, row, *, k, temperature, num_classes):
    """Classes by votes, from the definition, one test example at a time."""
    cosines = (train @ row) / np.linalg.norm(train, axis=1) / np.linalg.norm(row)
    votes = np.zeros(num_classes)
    for i in np.argsort(-cosines, kind="stable")[:k]:
        votes[train_labels[i]] += np.exp(cosines[i] / temperature)
    return np.argsort(-votes, kind="stable")


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_accuracies_are_those_of_the_reference(dtype, reference):
    with reference("knn") as file:
        arrays = dict(file)
    for i, k in enumerate(arrays["k"]):
        got = knn.classify(
            arrays["train_features"].astype(dtype),
            arrays["train_labels"],
            arrays["test_features"].astype(dtype),
            arrays["test_labels"],
            k=int(k),
            temperature=float(arrays["temperature"]),
            num_classes=int(arrays["train_labels"].max()) + 1,
        )
        assert got == {"top1": arrays["top1"][i], "top5": arrays["top5"][i]}


def test_votes_agree_with_their_definition(sets):
    train, train_labels, test, test_labels = sets
    settings = {"k": 7, "temperature": 0.2, "num_classes": 3}
    first = [vote_by_hand(train, train_labels, row, **settings)[0] for row in test]
    got = knn.classify(*sets, **settings)
    assert got["top1"] == pytest.approx(100 * np.mean(first == test_labels))
    assert got["top5"] == 100.0  # three classes, all of them named


class OnDisk:
    """Features that can only be sliced, and that remember the longest slice."""

    def __init__(self, array):
        self._array, self.shape, self.dtype = array, array.shape, array.dtype
        self.longest = 0

    def __len__(self):
        return len(self._array)

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        found = self._array[rows]
        self.longest = max(self.longest, len(found))
        return found


@pytest.fixture
def small(monkeypatch):
    """Chunks so small that little sets take several, and several groups of queries."""
    monkeypatch.setattr(knn, "QUERY_ROWS", 4)
    monkeypatch.setattr(knn, "TRAIN_ROWS", 64)
    monkeypatch.setattr(knn, "QUERY_BYTES", 4 * 600)
    monkeypatch.setattr(checks, "CHUNK_BYTES", 4 * 100)


def signs(rows, seed):
    """Rows of ±1 in 16 dimensions: their cosines are multiples of 1/8, without error.

    So there are 17 cosines at most, and each has many columns that tie.
    """
    return np.random.default_rng(seed).choice([-1.0, 1.0], (rows, 16)).astype("f4")


@pytest.mark.parametrize("k", [1, 7, 40, 150])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_ties_go_to_the_lower_index_through_blocks_and_chunks(small, k, dtype):
    train, test = signs(150, 0).astype(dtype), signs(11, 1).astype(dtype)
    exact = test.astype(np.float64) @ train.T / 16
    order = np.argsort(-exact, axis=1, kind="stable")[:, :k]
    stored = OnDisk(train)
    cosines, indices = knn.nearest(stored, OnDisk(test), k=k)
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(cosines, np.take_along_axis(exact, order, axis=1))
    assert cosines.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert indices.dtype == np.int32
    assert stored.longest <= 64


def test_chunks_change_nothing(sets, request):
    whole = knn.nearest(sets[0], sets[2], k=5)
    request.getfixturevalue("small")
    parts = knn.nearest(sets[0], sets[2], k=5)
    np.testing.assert_array_equal(parts[1], whole[1])
    np.testing.assert_allclose(parts[0], whole[0], rtol=1e-6)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_devices_change_nothing(small, devices):
    rng = np.random.default_rng(3)
    train = rng.standard_normal((150, 16)).astype(np.float32)
    test = rng.standard_normal((50, 16)).astype(np.float32)
    cosines, indices = knn.nearest(train, test, k=7)
    found = knn.nearest(train, test, k=7, mesh=make_mesh(devices, 8 // devices))
    np.testing.assert_array_equal(found[1], indices)
    np.testing.assert_array_equal(found[0], cosines)


def test_several_k_share_a_search_and_answer_as_each_alone(sets, monkeypatch):
    settings = {"temperature": 0.2, "num_classes": 3}
    alone = {k: knn.classify(*sets, k=k, **settings) for k in (9, 2, 5)}
    searches = []
    search = knn._search
    monkeypatch.setattr(
        knn, "_search", lambda *a, **s: searches.append(s["k"]) or search(*a, **s)
    )
    assert knn.classify(*sets, k=(9, 2, 5), **settings) == alone
    assert knn.classify(*sets, k=[2], **settings) == {2: alone[2]}
    assert searches == [9, 2]


def test_votes_are_counted_in_parts(sets, monkeypatch):
    want = knn.classify(*sets, **SETTINGS)
    monkeypatch.setattr(knn, "VOTE_ROWS", 4)
    assert knn.classify(*sets, **SETTINGS) == want


def test_equal_votes_go_to_the_lower_class():
    train = np.eye(2, dtype=np.float32)
    test = np.ones((1, 2), np.float32)
    for labels in ([0, 1], [1, 0]):
        got = knn.classify(
            train,
            np.array(labels),
            test,
            np.array([0]),
            k=2,
            temperature=0.07,
            num_classes=2,
        )
        assert got["top1"] == 100.0


def test_top5_names_at_most_k_classes(sets):
    train, _, test, _ = sets
    labels = np.arange(30) % 6
    wanted = np.arange(11) % 6
    one = knn.classify(
        train, labels, test, wanted, k=1, temperature=0.07, num_classes=6
    )
    assert one["top5"] == one["top1"]


def test_scale_and_a_tiny_temperature_do_no_harm(sets):
    train, train_labels, test, test_labels = sets
    want = knn.classify(*sets, **SETTINGS)
    scaled = (train * 1e3, train_labels, test * 1e-3, test_labels)
    assert knn.classify(*scaled, **SETTINGS) == want
    cold = knn.classify(*sets, **{**SETTINGS, "temperature": 1e-4})
    assert cold["top1"] == knn.classify(*sets, **{**SETTINGS, "k": 1})["top1"]


def test_a_zero_feature_is_allowed(sets):
    train, train_labels, test, test_labels = sets
    test = test.copy()
    test[0] = 0
    got = knn.classify(train, train_labels, test, test_labels, **SETTINGS)
    assert 0 <= got["top1"] <= 100


def test_arrays_on_the_device_are_taken_too(sets):
    train, train_labels, test, test_labels = sets
    got = knn.classify(
        jax.numpy.asarray(train),
        jax.numpy.asarray(train_labels),
        jax.numpy.asarray(test),
        jax.numpy.asarray(test_labels),
        **SETTINGS,
    )
    assert got == knn.classify(*sets, **SETTINGS)


def test_finiteness_is_checked_in_parts(small):
    rows = np.ones((150, 16), np.float32)
    rows[[60, 149], 3] = np.nan
    with pytest.raises(ConfigError, match="2 of 150 rows, the first is row 60"):
        checks.features("stored", OnDisk(rows))


def replaced(sets, position, value):
    return tuple(value if i == position else s for i, s in enumerate(sets))


@pytest.mark.parametrize(
    ("change", "settings", "says"),
    [
        (None, {"k": 31}, "k=31 neighbours of 30"),
        (None, {"k": 0}, "k=0"),
        (None, {"k": (3, 31)}, "k=31 neighbours of 30"),
        (None, {"k": ()}, "give one or more"),
        (None, {"temperature": 0.0}, "temperature=0.0"),
        (None, {"num_classes": 2}, "num_classes=2"),
        ((1, np.zeros(29, int)), {}, "train_labels has shape"),
        ((1, np.zeros(30)), {}, "labels are integers"),
        ((3, np.full(11, -1)), {}, "test_labels holds -1"),
        ((2, np.ones((11, 7), np.float32)), {}, "dimension 8, test_features 7"),
        ((2, np.ones(11, np.float32)), {}, "test_features has shape"),
        ((2, np.full((11, 8), np.nan, np.float32)), {}, "NaN or infinity in 11 of 11"),
        ((0, np.ones((0, 8), np.float32)), {}, "train_features has shape"),
    ],
)
def test_bad_input_is_named(sets, change, settings, says):
    if change is not None:
        sets = replaced(sets, *change)
    with pytest.raises(ConfigError, match=says) as caught:
        knn.classify(*sets, **{**SETTINGS, **settings})
    assert isinstance(caught.value, ValueError)


BENCH = ["--train", "300", "--test", "40", "--dim", "16", "--k", "3,9", "--rounds", "1"]


def check_bench(out, rows):
    found = {row["arm"]: row for row in rows}
    assert found.keys() >= {"ours", "plain", "sgemm"}
    assert found["plain"]["same_neighbours"] > 0.99
    for name, row in found.items():
        assert row["median_seconds"] > 0
        assert row["extra_bytes"] >= 0
        assert f"| {name} |" in out
    # The peer is compared with where it is installed, and missed aloud where not.
    assert ("scikit-learn" in found) != ("no arm of scikit-learn" in out)


def test_the_bench_agrees_with_its_peers(tmp_path, monkeypatch, capsys):
    bench = importlib.import_module("bench.knn")
    # In this process: five new ones take 42 s, nearly all of it to import and compile.
    pool = nullcontext(SimpleNamespace(apply=lambda function, args: function(*args)))
    here = SimpleNamespace(Pool=lambda *_, **__: pool)
    monkeypatch.setattr(
        bench, "multiprocessing", SimpleNamespace(get_context=lambda _: here)
    )
    path = tmp_path / "knn.json"
    monkeypatch.setattr("sys.argv", ["knn.py", *BENCH, "--json", str(path)])
    bench.main()
    check_bench(capsys.readouterr().out, json.loads(path.read_text()))


@pytest.mark.slow
def test_the_bench_measures_each_arm_in_a_process_of_its_own(tmp_path):
    check_bench(*run_bench("knn.py", tmp_path / "knn.json", *BENCH))
