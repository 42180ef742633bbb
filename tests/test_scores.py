"""Figures from counts: by hand, the confidence interval, sums, bad input."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from sfrik_jax.errors import ConfigError
from sfrik_jax.evaluators import scores
from sfrik_jax.evaluators.scores import Counts

C = 7


@pytest.fixture
def answers():
    """Classes of 200 images, best first, and labels that they know something of."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, C, 200)
    logits = rng.standard_normal((200, C)) + 1.2 * np.eye(C)[labels]
    return np.argsort(-logits, axis=1)[:, :5], labels


def test_figures_by_hand():
    ranked = np.array([[0, 1], [1, 0], [0, 1], [1, 0]])
    counts = scores.count(ranked, np.array([0, 0, 0, 1]), 3)
    assert counts.confusion.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert counts.top5.tolist() == [3, 1, 0]
    figures = scores.figures(counts)
    assert figures["top1"] == 75.0 and figures["top5"] == 100.0
    # Two of three and one of one; the third class has no image.
    assert figures["mean_per_class"] == pytest.approx((200 / 3 + 100) / 2)
    assert figures["images"] == 4
    np.testing.assert_allclose(scores.per_class(counts), [200 / 3, 100, np.nan])


def test_figures_are_those_of_scikit_learn(answers):
    ranked, labels = answers
    counts = scores.count(ranked, labels, C)
    want = metrics.confusion_matrix(labels, ranked[:, 0], labels=range(C))
    assert np.array_equal(counts.confusion, want)
    figures = scores.figures(counts)
    assert figures["top1"] == pytest.approx(100 * np.mean(ranked[:, 0] == labels))
    balanced = metrics.balanced_accuracy_score(labels, ranked[:, 0])
    assert figures["mean_per_class"] == pytest.approx(100 * balanced)
    in_five = np.mean([label in row for label, row in zip(labels, ranked, strict=True)])
    assert figures["top5"] == pytest.approx(100 * in_five) != figures["top1"]


def test_top5_looks_at_five_classes_and_no_more():
    ranked = np.array([[0, 1, 2, 3, 4, 5, 6]] * 2)
    assert scores.count(ranked, np.array([4, 5]), C).top5.sum() == 1


def test_counts_of_parts_add_up(answers):
    ranked, labels = answers
    pieces = [slice(0, 3), slice(3, 3), slice(3, 150), slice(150, 200)]
    parts = [scores.count(ranked[rows], labels[rows], C) for rows in pieces]
    total, whole = sum(parts, Counts.zero(C)), scores.count(ranked, labels, C)
    assert isinstance(total, Counts) and total.confusion.dtype == np.int64
    assert np.array_equal(total.confusion, whole.confusion)
    assert np.array_equal(total.top5, whole.top5)


@pytest.mark.parametrize("hits", [0, 1, 37, 99, 100])
def test_the_interval_is_wilsons(hits):
    want = stats.binomtest(hits, 100).proportion_ci(0.95, method="wilson")
    assert scores.wilson(hits, 100) == pytest.approx((want.low, want.high), abs=1e-7)


def test_the_interval_holds_the_truth_in_95_of_100_cases():
    hits = np.arange(501)
    for share in (0.1, 0.5, 0.95):
        inside = [low <= share <= high for low, high in map(_of_500, hits.tolist())]
        covered = stats.binom.pmf(hits, 500, share)[inside].sum()
        assert covered == pytest.approx(0.95, abs=0.015)


def _of_500(hits):
    return scores.wilson(hits, 500)


def test_the_commonest_mistakes_come_first():
    confusion = np.array([[90, 2, 0], [5, 50, 2], [0, 0, 70]])
    counts = Counts(confusion, np.array([92, 57, 70]))
    assert scores.most_confused(counts, 2) == [(1, 0, 5), (0, 1, 2)]
    assert scores.most_confused(counts, 9)[2:] == [(1, 2, 2)]
    assert scores.most_confused(Counts.zero(3), 4) == []


def test_bad_answers_are_named():
    ranked = np.array([[0, 1], [1, 0]])
    with pytest.raises(ConfigError, match=r"labels has shape \(3,\).* 2 rows"):
        scores.count(ranked, np.array([0, 1, 1]), 2)
    with pytest.raises(ConfigError, match="labels holds 0 … 2"):
        scores.count(ranked, np.array([0, 2]), 2)
    with pytest.raises(ConfigError, match="ranked classes holds"):
        scores.count(ranked + 1, np.array([0, 1]), 2)
    with pytest.raises(ConfigError, match="ranked classes have shape"):
        scores.count(ranked[0], np.array([0, 1]), 2)
    with pytest.raises(ConfigError, match="no images"):
        scores.figures(Counts.zero(4))
