"""The weighted kNN vote: reference, closed forms, ties, bad input."""

from typing import Any

import jax
import numpy as np
import pytest

from sfrik_jax.errors import ConfigError
from sfrik_jax.evaluators import knn

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


def test_chunks_change_nothing(sets, monkeypatch):
    whole = knn.nearest(sets[0], sets[2], k=5)
    monkeypatch.setattr(knn, "CHUNK_ELEMENTS", 4 * len(sets[0]))
    parts = knn.nearest(sets[0], sets[2], k=5)
    np.testing.assert_array_equal(parts[1], whole[1])
    np.testing.assert_allclose(parts[0], whole[0], rtol=1e-6)


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


def replaced(sets, position, value):
    return tuple(value if i == position else s for i, s in enumerate(sets))


@pytest.mark.parametrize(
    ("change", "settings", "says"),
    [
        (None, {"k": 31}, "k=31 neighbours of 30"),
        (None, {"k": 0}, "k=0"),
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
