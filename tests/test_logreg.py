"""Logistic regression on stored features: scikit-learn, files, devices, choice."""

from typing import Any

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from sfrik_jax import mesh as mesh_lib
from sfrik_jax.errors import ConfigError, NonFiniteError
from sfrik_jax.evaluators import choosing, heads, logreg, scores
from sfrik_jax.evaluators.choosing import Labelled

C, D = 4, 12
SHORT: dict[str, Any] = {"num_classes": C, "epochs": 5, "batch_size": 64}
L2 = (1e-1, 1e-2, 1e-3)


class Stored:
    """Features in a file: nothing but slices and rows, and how many were read."""

    def __init__(self, array):
        self._array, self.shape, self.rows_read = array, array.shape, 0

    def __getitem__(self, rows):
        found = self._array[rows]
        self.rows_read += len(found)
        return found


def blobs(seed, n, spread=1.2):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).standard_normal((C, D))
    labels = rng.integers(0, C, n)
    noise = rng.standard_normal((n, D))
    # Features of other scales and means.
    x = (centres[labels] + spread * noise) * np.linspace(0.5, 2, D) + 1
    return Labelled(x.astype(np.float32), labels)


@pytest.fixture(scope="module")
def sets():
    return blobs(0, 500), blobs(1, 200), blobs(2, 300)


def test_lbfgs_reaches_the_optimum_of_scikit_learn(sets):
    (x, y), _, (x_test, _) = sets
    x = x.astype(np.float64)
    mean, std = x.mean(axis=0), x.std(axis=0)
    got = logreg.lbfgs(*sets, num_classes=C, l2=L2)
    for row in got.rows:
        peer = LogisticRegression(
            C=1 / (len(x) * row["l2"]), tol=1e-10, max_iter=10_000
        ).fit((x - mean) / std, y)
        chance = peer.predict_proba((x - mean) / std)[np.arange(len(y)), y]
        penalty = row["l2"] / 2 * np.square(peer.coef_).sum()
        want = -np.log(chance).mean() + penalty
        assert row["objective"] == pytest.approx(want, rel=1e-6)
        assert row["converged"] and row["gradient_norm"] <= 1e-5
        if row is got.rows[got.chosen]:
            ours = jax.nn.softmax(heads.logits(got.heads, x_test)[:, 0])
            theirs = peer.predict_proba((x_test - mean) / std)
            np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_features_as_they_are_have_their_own_optimum(sets):
    (x, y), _, test = sets
    got = logreg.lbfgs(sets[0], None, test, num_classes=C, l2=[1e-2], standardise=False)
    # In float32 scikit-learn ends up to 1.5e-3 away on some processors, ours 9e-5.
    peer = LogisticRegression(C=100 / len(x), tol=1e-10, max_iter=10_000)
    peer.fit(x.astype(np.float64), y)
    np.testing.assert_allclose(got.heads.kernel[:, 0], peer.coef_.T, atol=1e-3)


def test_a_descent_that_was_cut_off_says_so(sets):
    said: list[str] = []
    settings: dict[str, Any] = {"l2": [1e-6], "max_iterations": 3, "say": said.append}
    [row] = logreg.lbfgs(sets[0], None, sets[2], num_classes=C, **settings).rows
    assert len(said) == 1 and "after 3 iterations, not converged" in said[0]
    assert row["iterations"] == 3 and not row["converged"]
    assert row["gradient_norm"] > 1e-5


def test_a_tolerance_beyond_float32_ends_all_the_same(sets):
    [row] = logreg.lbfgs(
        sets[0], None, sets[2], num_classes=C, l2=[1e-2], tolerance=1e-12
    ).rows
    assert not row["converged"] and row["gradient_norm"] < 1e-5


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_devices_share_the_examples(sets, devices, monkeypatch):
    settings: dict[str, Any] = {"num_classes": C, "l2": [1e-2], "tolerance": 1e-4}
    want = logreg.lbfgs(sets[0], None, sets[2], **settings)
    monkeypatch.setattr(choosing, "CHUNK_ELEMENTS", 40 * D)  # several, the last ragged
    mesh = mesh_lib.make_mesh(devices, devices=jax.devices()[:devices])
    got = logreg.lbfgs(sets[0], None, sets[2], **settings, mesh=mesh)
    objectives = [result.rows[0]["objective"] for result in (got, want)]
    assert objectives[0] == pytest.approx(objectives[1], rel=1e-6)
    np.testing.assert_allclose(got.heads.kernel, want.heads.kernel, atol=1e-3)


def test_a_mesh_of_one_of_two_processes_counts_every_example(sets, monkeypatch):
    settings: dict[str, Any] = {"num_classes": C, "l2": [1e-2], "tolerance": 1e-4}
    mesh = mesh_lib.make_mesh(2, devices=jax.devices()[:2])
    want = logreg.lbfgs(sets[0], None, sets[2], **settings, mesh=mesh)
    monkeypatch.setattr(jax, "process_count", lambda *_: 2)
    monkeypatch.setattr(jax, "process_index", lambda *_: 1)
    got = logreg.lbfgs(sets[0], None, sets[2], **settings, mesh=mesh)
    assert got.rows == want.rows
    np.testing.assert_array_equal(got.heads.kernel, want.heads.kernel)


def test_a_set_too_large_for_the_device_is_read_in_pieces(sets, monkeypatch):
    want = logreg.lbfgs(*sets, num_classes=C, l2=[1e-2])
    monkeypatch.setattr(logreg, "FITS_BYTES", 100)
    monkeypatch.setattr(choosing, "CHUNK_ELEMENTS", 128 * D)
    files = [Labelled(Stored(x), y) for x, y in sets]
    got = logreg.lbfgs(*files, num_classes=C, l2=[1e-2])
    assert got.rows[0]["objective"] == pytest.approx(
        want.rows[0]["objective"], rel=1e-6
    )
    assert got.rows[0]["val_loss"] == pytest.approx(want.rows[0]["val_loss"], rel=1e-4)
    # Checked and scored; the train set once for every evaluation too.
    assert [one.features.rows_read for one in files[1:]] == [2 * 200, 2 * 300]
    assert files[0].features.rows_read > 500 * got.rows[0]["iterations"]


def test_sgd_is_the_recipe_step_by_step(sets):
    """One epoch of two whole-set batches, in float64."""
    x, y = sets[0][0][:100].astype(np.float64), sets[0][1][:100]
    got = logreg.sgd(
        Labelled(x.astype(np.float32), y),
        None,
        sets[2],
        num_classes=C,
        learning_rates=[0.2],
        weight_decays=[0.01],
        epochs=2,
        batch_size=100,
    )
    w = np.asarray(heads.init(jax.random.key(0), D, 1, C).kernel[:, 0], np.float64)
    b, v_w, v_b = np.zeros(C), np.zeros((D, C)), np.zeros(C)
    for rate in (0.2, 0.1):  # a cosine over two epochs: 1, then a half
        z = x @ w + b
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p = p / p.sum(axis=1, keepdims=True) - np.eye(C)[y]
        v_w = 0.9 * v_w + x.T @ p / 100 + 0.01 * w
        v_b = 0.9 * v_b + p.mean(axis=0) + 0.01 * b
        w, b = w - rate * v_w, b - rate * v_b
    np.testing.assert_allclose(got.heads.kernel[:, 0], w, atol=1e-5)
    np.testing.assert_allclose(got.heads.bias[0], b, atol=1e-5)


def counted(result: logreg.Result) -> scores.Counts:
    assert result.counts is not None
    return result.counts


def test_sgd_chooses_on_validation_and_tests_once(sets):
    train, validation, test = sets
    grid = {"learning_rates": [1e-4, 0.1], "weight_decays": [1e-6, 1.0]}
    got = logreg.sgd(train, validation, test, **grid, **SHORT)
    losses = [row["val_loss"] for row in got.rows]
    assert got.chosen == 2 == int(np.argmin(losses))
    assert got.rows[2]["learning_rate"] == 0.1
    assert scores.figures(counted(got))["top1"] > 75 and counted(got).top5.sum() == 300
    # The test labels have no part in it.
    other = Labelled(test.features, (test.labels + 1) % C)
    again = logreg.sgd(train, validation, other, **grid, **SHORT)
    assert again.rows == got.rows and scores.figures(counted(again))["top1"] < 20
    # The chosen one alone, without a validation set, is the same head.
    alone = logreg.sgd(train, None, test, learning_rates=[0.1], **SHORT)
    np.testing.assert_allclose(alone.heads.kernel, got.heads.kernel, atol=1e-5)
    assert alone.rows == [{"learning_rate": 0.1, "weight_decay": 1e-6}]


def test_buffers_of_a_large_set_hold_every_row_once(monkeypatch):
    monkeypatch.setattr(logreg, "FITS_BYTES", 0)
    monkeypatch.setattr(logreg, "BUFFER_BYTES", 40 * 4)
    monkeypatch.setattr(logreg, "BLOCK", 8)
    numbers = np.arange(101, dtype=np.float32)[:, None]
    file = Stored(numbers)
    epoch_of = logreg._shuffled(Labelled(file, np.arange(101)), 4)
    rng, epochs = np.random.default_rng(0), []
    for _ in range(2):
        rows = []
        for x, labels, order in epoch_of(rng):
            assert len(x) <= 40 and order.shape[1] == 4
            taken = np.asarray(x)[order.ravel(), 0]
            assert np.array_equal(taken, labels[order.ravel()])
            rows.extend(taken.tolist())
        assert len(set(rows)) == len(rows) == 100  # a last partial batch is dropped
        epochs.append(rows)
    assert epochs[0] != epochs[1] and epochs[0] != sorted(epochs[0])


def test_a_buffer_of_a_sorted_set_has_nearly_all_classes(monkeypatch):
    # As ImageNet by folders: 1,280 of a class, one after another; buffers of 5 %.
    classes = np.repeat(np.arange(200), 1280)
    monkeypatch.setattr(logreg, "FITS_BYTES", 0)
    monkeypatch.setattr(logreg, "BUFFER_BYTES", 4 * 12_800)
    train = Labelled(Stored(classes[:, None].astype(np.float32)), classes)
    epoch = logreg._shuffled(train, 256)(np.random.default_rng(0))
    for _, (_, labels, _) in zip(range(3), epoch, strict=False):
        assert len(np.unique(labels)) > 190


def test_sgd_from_a_file_learns_as_much(sets, monkeypatch):
    want = logreg.sgd(*sets, **SHORT)
    monkeypatch.setattr(logreg, "FITS_BYTES", 0)
    monkeypatch.setattr(logreg, "BUFFER_BYTES", 200 * 4 * D)
    monkeypatch.setattr(logreg, "BLOCK", 16)
    got = logreg.sgd(*(Labelled(Stored(x), y) for x, y in sets), **SHORT)
    accuracies = [scores.figures(counted(result))["top1"] for result in (got, want)]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=3)


def test_constant_features_give_the_commonest_class(sets):
    (x, y), _, (x_test, y_test) = sets
    train = Labelled(np.full_like(x, 0.1), y)
    test = Labelled(x_test, y_test)
    result = logreg.lbfgs(train, None, test, num_classes=C, l2=[1e-2])
    got = counted(result).confusion
    assert got.sum(axis=0)[np.bincount(y).argmax()] == 300


def test_choosing_on_the_final_split_is_refused(sets):
    train, _, test = sets
    with pytest.raises(ConfigError, match="choosing on the final split is refused"):
        logreg.lbfgs(train, None, test, num_classes=C, l2=L2)
    with pytest.raises(ConfigError, match="2 settings and no validation set"):
        logreg.sgd(train, None, test, learning_rates=[0.1, 1], **SHORT)


def test_bad_settings_and_sets_are_named(sets):
    train, validation, test = sets
    for settings, says in (
        ({"learning_rates": [0.0]}, r"learning_rates=\(0.0,\)"),
        ({"weight_decays": [-1.0]}, "weight_decays"),
        ({"epochs": 0}, "epochs=0"),
    ):
        with pytest.raises(ConfigError, match=says):
            logreg.sgd(*sets, **{**SHORT, **settings})
    for settings, says in (
        ({"l2": []}, r"l2=\(\)"),
        ({"tolerance": 0.0}, "tolerance=0.0"),
    ):
        with pytest.raises(ConfigError, match=says):
            logreg.lbfgs(*sets, num_classes=C, **settings)
    narrow = Labelled(test.features[:, :5], test.labels)
    with pytest.raises(
        ConfigError, match=r"test features have dimension 5, train.* 12"
    ):
        logreg.sgd(train, validation, narrow, **SHORT)
    broken = np.array(train.features)
    broken[17, 2] = np.nan
    with pytest.raises(ConfigError, match=r"train features from row 0 .* row 17"):
        logreg.sgd(Labelled(broken, train.labels), validation, test, **SHORT)


def test_a_head_that_diverges_is_not_an_answer(sets):
    train, _, test = sets
    with pytest.raises(NonFiniteError, match="diverged"):
        logreg.sgd(train, None, test, learning_rates=[1e38], **SHORT)
