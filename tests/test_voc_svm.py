"""SVMs on several labels: average precision by hand, sets of known answer, folds."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve

from sfrik_jax.errors import ConfigError
from sfrik_jax.evaluators import voc_svm

COSTS = (0.1, 1.0, 10.0)


def separable(seed, n, classes=4):
    """Class c is present where feature c is positive, with a margin of 0.5."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0.5, 1, (n, classes)) * rng.choice([-1, 1], (n, classes))
    return x.astype(np.float32), (x > 0).astype(np.int8)


def noisy(seed, n):
    """As `separable`, hidden in noise of twice as many dimensions."""
    x, labels = separable(seed, n)
    rng = np.random.default_rng(seed + 100)
    return np.hstack([x, np.zeros((n, 8))]) + rng.normal(0, 1, (n, 12)), labels


def test_average_precision_by_hand():
    scores = np.array([9.0, 8, 7, 6, 5])
    labels = np.array([1, 0, 1, 0, 0])
    # Recall 1/2 at precision 1, recall 1 at precision 2/3: six points, then five.
    want = (6 * 1 + 5 * 2 / 3) / 11
    assert voc_svm.average_precision(scores, labels, "voc07") == pytest.approx(want)
    want = 0.5 * 1 + 0.5 * 2 / 3
    assert voc_svm.average_precision(scores, labels, "area") == pytest.approx(want)


def test_a_late_hit_lifts_the_precision_before_it():
    scores, labels = np.array([4.0, 3, 2, 1]), np.array([0, 1, 1, 0])
    # Precision 1/2 then 2/3; the maximum to the right is 2/3 everywhere.
    for kind in voc_svm.KINDS:
        got = voc_svm.average_precision(scores, labels, kind)
        assert got == pytest.approx(2 / 3)


def test_ten_hits_meet_the_eleven_points_exactly():
    labels = np.array([1, 1, 1] + [0] * 20 + [1] * 7)
    got = voc_svm.average_precision(-np.arange(30.0), labels, "voc07")
    # Recall 0.3 at precision 1; from 0.4 on the best is 10 / 30 at the end.
    assert got == pytest.approx((4 * 1 + 7 / 3) / 11)


def test_difficult_images_are_left_out():
    scores, labels = np.arange(6.0), np.array([0, 0, 1, 0, 1, 1])
    at = [1, 3, 3, 6]
    with_difficult = np.insert(labels, at, -1), np.insert(scores, at, [9.0, 0, 4, 2])
    for kind in voc_svm.KINDS:
        got = voc_svm.average_precision(with_difficult[1], with_difficult[0], kind)
        assert got == voc_svm.average_precision(scores, labels, kind) != 1


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_the_envelope_of_scikit_learns_curve(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 50)
    scores = np.round(rng.normal(0, 1, 50) + 0.5 * labels, 1)  # with ties
    precision, recall, _ = precision_recall_curve(labels, scores)
    grid = np.linspace(0, 1, 200_001)[1:]
    # scikit-learn's last point is recall 0, precision 1; it is no answer of ours.
    best = np.maximum.accumulate(precision[:-1])  # recall falls along the curve
    area = best[len(best) - 1 - np.searchsorted(recall[:-1][::-1], grid)].mean()
    got = voc_svm.average_precision(scores, labels, "area")
    assert got == pytest.approx(area, abs=1e-4)
    assert got >= average_precision_score(labels, scores)  # it does not interpolate
    points = [precision[:-1][recall[:-1] >= t - 1e-9].max() for t in np.arange(11) / 10]
    got = voc_svm.average_precision(scores, labels, "voc07")
    assert got == pytest.approx(np.mean(points))


def test_separable_classes_are_all_found():
    got = voc_svm.evaluate(*separable(0, 120), *separable(1, 80), costs=COSTS)
    assert got["map_voc07"] == got["map_area"] == 100.0
    assert [found["cross_validated_ap"] for found in got["classes"]] == [100.0] * 4
    assert all(found["cost"] == 0.1 for found in got["classes"])  # the lowest of equals


def test_labels_of_another_class_are_found_under_its_name():
    x, labels = separable(0, 120)
    x_test, test_labels = separable(1, 80)
    order = np.array([2, 0, 3, 1])
    got = voc_svm.evaluate(x, labels, x_test, test_labels[:, order], costs=(1.0,))
    assert got["map_area"] < 70
    got = voc_svm.evaluate(x, labels[:, order], x_test, test_labels[:, order])
    assert got["map_area"] == 100.0


def test_features_that_know_nothing_give_the_prevalence():
    rng = np.random.default_rng(0)
    labels = (rng.random((900, 3)) < [0.1, 0.3, 0.6]).astype(np.int8)
    x = rng.standard_normal((900, 6))
    got = voc_svm.evaluate(x[:300], labels[:300], x[300:], labels[300:], costs=(1.0,))
    for found, share in zip(got["classes"], (10, 30, 60), strict=True):
        assert found["ap_area"] == pytest.approx(share, abs=8)


def test_length_of_a_feature_vector_does_not_matter():
    (x, labels), test = noisy(0, 90), noisy(1, 90)
    scale = np.random.default_rng(5).uniform(0.1, 50, (90, 1))
    want = voc_svm.evaluate(x, labels, *test, costs=COSTS)
    got = voc_svm.evaluate(scale * x, labels, *test, costs=COSTS)
    assert got["map_area"] == pytest.approx(want["map_area"], abs=1e-6)
    assert 60 < want["map_area"] < 98


def test_difficult_images_are_not_trained_on():
    (x, labels), test = noisy(0, 90), noisy(1, 90)
    want = voc_svm.evaluate(x, labels, *test, costs=(1.0,))
    wrong = np.vstack([x, -x]), np.vstack([labels, np.full_like(labels, -1)])
    # Were they negatives, half of the images would contradict the other half.
    got = voc_svm.evaluate(*wrong, *test, costs=(1.0,))
    for one, other in zip(got["classes"], want["classes"], strict=True):
        assert one["ap_area"] == pytest.approx(other["ap_area"], abs=1e-6)
        assert one["positives"] == other["positives"]


def test_the_cost_is_chosen_without_the_test_set():
    (x, labels), (x_test, test_labels) = noisy(0, 90), noisy(1, 90)
    costs = (0.003, 0.03, 0.3, 3.0)
    want = voc_svm.evaluate(x, labels, x_test, test_labels, costs=costs)
    wrong = voc_svm.evaluate(x, labels, x_test, 1 - test_labels, costs=costs)
    for name in ("cost", "cross_validated_ap"):
        assert [c[name] for c in want["classes"]] == [c[name] for c in wrong["classes"]]
    assert len({c["cost"] for c in want["classes"]}) > 1  # each class has its own


def test_machines_side_by_side_are_machines_alone():
    (x, labels), (x_test, test_labels) = noisy(0, 90), noisy(1, 90)
    want = voc_svm.evaluate(x, labels, x_test, test_labels, costs=COSTS)["classes"]
    for c in range(4):
        one = slice(c, c + 1)
        sets = x, labels[:, one], x_test, test_labels[:, one]
        assert voc_svm.evaluate(*sets, costs=COSTS)["classes"] == want[one]


def test_more_shots_are_better_and_vary_less():
    said: list[str] = []
    sets = (*noisy(0, 300), *noisy(1, 200))
    few = voc_svm.low_shot(*sets, shots=(1, 8, 64), samples=5, say=said.append)
    assert [row["shots"] for row in few] == [1, 8, 64]
    precisions = [row["map_area"] for row in few]
    assert precisions == sorted(precisions) and precisions[2] > precisions[0] + 10
    assert few[0]["map_area_std"] > few[2]["map_area_std"] > 0
    assert len(said) == 5
    # A sample does not depend on which numbers of shots are asked for.
    assert voc_svm.low_shot(*sets, shots=(8,), samples=5) == [few[1]]
    assert voc_svm.low_shot(*sets, shots=(8,), samples=5, seed=1) != [few[1]]


class Unread:
    """Features in a file that nobody may read."""

    dtype = np.dtype(np.float32)

    def __init__(self, rows):
        self.shape = (rows, 8)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        raise AssertionError("features were read")


@pytest.mark.parametrize("compute", [voc_svm.evaluate, voc_svm.low_shot])
def test_labels_are_refused_before_a_feature_is_read(compute):
    _, labels = separable(0, 400)
    x = Unread(400)
    few, absent = labels.copy(), labels.copy()
    few[2:, 3], absent[:, 3] = 0, 0
    with pytest.raises(ConfigError, match=r"class 3 has [0-2] positive and"):
        compute(x, few, x, labels)
    with pytest.raises(ConfigError, match="no test image shows class 3"):
        compute(x, labels, x, absent)
    with pytest.raises(ConfigError, match="test_labels have 399 rows"):
        compute(x, labels, x, labels[:399])


def test_bad_settings_and_labels_are_named():
    x, labels = separable(0, 40)
    sets = {"train_features": x, "test_features": x, "test_labels": labels}
    bad: Any
    for bad, says in (
        (labels[:, 0], "train_labels has shape"),
        (2 * labels, "train_labels holds 0 … 2"),
        (labels[:, :3], "train_labels have 3 classes, test_labels 4"),
        (labels * (np.arange(40) < 3)[:, None], "class 0 has 1 positive and 39"),
    ):
        with pytest.raises(ConfigError, match=says):
            voc_svm.evaluate(train_labels=bad, **sets)
    with pytest.raises(ConfigError, match="no test image shows class 1"):
        voc_svm.evaluate(x, labels, x, labels * np.array([1, 0, 1, 1]))
    with pytest.raises(ConfigError, match=r"svm costs=\(0,\)"):
        voc_svm.evaluate(x, labels, x, labels, costs=(0,))
    with pytest.raises(ConfigError, match=r"class 0 has .* 96 of each"):
        voc_svm.low_shot(x, labels, x, labels)
    with pytest.raises(ConfigError, match="samples=0"):
        voc_svm.low_shot(x, labels, x, labels, samples=0)
    with pytest.raises(ConfigError, match="no image shows the class"):
        voc_svm.average_precision(np.zeros(2), np.array([0, -1]))
