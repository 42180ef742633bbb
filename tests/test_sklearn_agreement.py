"""kNN, probe and logistic regression give features the ranking that scikit-learn does.

On real pictures: the first 5,000 training images of Fashion-MNIST, from Debian's
package dataset-fashion-mnist, and five sets of features of them, from poor to good.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from sfrik_jax.data import idx
from sfrik_jax.evaluators import baselines, knn, linear, logreg, scores
from sfrik_jax.evaluators.choosing import Labelled

FOLDER = Path("/usr/share/datasets/fashion-mnist")
TRAIN, TEST, C = 5_000, 1_000, 10
L2 = 1e-3
K, TEMPERATURE = 20, 0.07

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(),
    reason=f"there is no {FOLDER}; apt-get install dataset-fashion-mnist",
)


def pooled(images: np.ndarray, side: int) -> np.ndarray:
    """Means over squares of `side` pixels."""
    n, h, w = images.shape
    squares = images.reshape(n, h // side, side, w // side, side)
    return squares.mean(axis=(2, 4)).reshape(n, -1) / 255


def random_network(images: np.ndarray, filters: int = 8) -> np.ndarray:
    """Random 5 x 5 filters, ReLU, means over 4 x 4 fields."""
    weights = np.random.default_rng(0).standard_normal((25, filters))
    weights = (weights - weights.mean(axis=0)).astype(np.float32)
    answers = []
    for some in np.array_split(images.astype(np.float32) / 255, 10):
        patches = np.lib.stride_tricks.sliding_window_view(some, (5, 5), axis=(1, 2))
        answer = np.maximum(patches.reshape(-1, 25) @ weights, 0)
        fields = answer.reshape(len(some), 4, 6, 4, 6, filters)
        answers.append(fields.mean(axis=(2, 4)).reshape(len(some), -1))
    return np.concatenate(answers)


def histogram(images: np.ndarray) -> np.ndarray:
    """Of the grey levels; the colours that a grey picture has not are left out."""
    return baselines.color_histogram(images[..., None])[:, :: 64 + 8 + 1]


@pytest.fixture(scope="module")
def images():
    (x, y), (x_test, y_test) = (idx.read_split(FOLDER, s) for s in ("train", "test"))
    return (x[:TRAIN], y[:TRAIN].astype(int)), (
        x_test[:TEST],
        y_test[:TEST].astype(int),
    )


@pytest.fixture(scope="module")
def sets(images):
    """Name → features of the train and of the test images, float32."""
    both = np.concatenate([images[0][0], images[1][0]])
    quarter = pooled(both, 2)
    centred = quarter - quarter[:TRAIN].mean(axis=0)
    axes = np.linalg.eigh(centred[:TRAIN].T @ centred[:TRAIN])[1]  # rising variance
    features = {
        "histogram": histogram(both),
        "16 means": pooled(both, 7),
        "32 components": centred @ axes[:, -32:],
        "196 means": quarter,
        "random network": random_network(both),
    }
    # Zeros behind them change no answer, and everything is compiled for one width.
    width = max(x.shape[1] for x in features.values())
    wide = {
        name: np.pad(x, ((0, 0), (0, width - x.shape[1]))).astype(np.float32)
        for name, x in features.items()
    }
    return {name: (x[:TRAIN], x[TRAIN:]) for name, x in wide.items()}


@pytest.fixture(scope="module")
def regressions(sets, images):
    """Name → scikit-learn's optimum on standardised features, top-1 in percent."""
    found = {}
    for name, (x, x_test) in sets.items():
        mean, std = x.mean(axis=0), x.std(axis=0)
        std[std == 0] = 1
        peer = LogisticRegression(C=1 / (TRAIN * L2), max_iter=2000, tol=1e-3)
        # Threads of its small matrix products cost more than they give: 1 s against
        # 20 on two busy cores.
        with threadpool_limits(1):
            peer.fit((x - mean) / std, images[0][1])
        found[name] = 100 * peer.score((x_test - mean) / std, images[1][1])
    assert max(found.values()) - min(found.values()) > 30  # poor and good ones
    return found


def vote(distances: np.ndarray) -> np.ndarray:
    """The weight of neighbours at cosine distances 1 - t."""
    return np.exp((1 - distances) / TEMPERATURE)


def ranking(accuracies: dict[str, float]) -> list[str]:
    return sorted(accuracies, key=lambda name: accuracies[name])


def test_knn_is_that_of_scikit_learn(sets, images):
    y, y_test = images[0][1], images[1][1][:500]
    ours, theirs = {}, {}
    for name, (x, x_test) in sets.items():
        # In float64 both find the same neighbours, whatever the order of their sums.
        wide, wide_test = x.astype(np.float64), x_test[:500].astype(np.float64)
        ours[name] = knn.classify(
            wide, y, wide_test, y_test, k=K, temperature=TEMPERATURE, num_classes=C
        )["top1"]
        votes: Any = vote
        peer = KNeighborsClassifier(K, metric="cosine", weights=votes).fit(wide, y)
        theirs[name] = 100 * peer.score(wide_test, y_test)
    assert ours == pytest.approx(theirs, abs=1e-9)
    assert ranking(ours) == ranking(theirs)


def test_logistic_regression_ranks_as_scikit_learn_does(sets, images, regressions):
    ours = {}
    for name, (x, x_test) in sets.items():
        train, test = Labelled(x, images[0][1]), Labelled(x_test, images[1][1])
        got = logreg.lbfgs(train, None, test, num_classes=C, l2=[L2], tolerance=1e-3)
        assert got.rows[0]["converged"] and got.counts is not None
        ours[name] = scores.figures(got.counts)["top1"]
    assert ours == pytest.approx(regressions, abs=0.5)
    assert ranking(ours) == ranking(regressions)


def test_the_probe_ranks_as_scikit_learn_does(sets, images, regressions):
    """It is fitted by SGD with hardly any weight decay, so that it differs by more."""
    (_, y), (_, y_test) = images
    ours = {
        name: linear.probe(x, y, x_test, y_test, num_classes=C, epochs=10)["top1"]
        for name, (x, x_test) in sets.items()
    }
    assert ours == pytest.approx(regressions, abs=2)
    assert ranking(ours) == ranking(regressions)
