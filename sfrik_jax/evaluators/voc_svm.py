"""Linear SVMs on frozen features of images with several labels each, as for VOC07.

Protocol: Goyal et al., Scaling and Benchmarking Self-Supervised Visual Representation
Learning (ICCV 2019): features of unit norm, one LIBLINEAR machine per class with the
squared hinge loss, positives weighted twice, the cost by three-fold cross-validation.
Their published code differs in two points that are not followed here: it trains on
difficult images as negatives, and chooses the low-shot cost on the test set.

It also solves the dual problem in at most 2000 iterations. This solves the primal: the
optimum is the same (objectives to 1e-6, 3,340 x 2,048), high costs converge in a third
of the time, and no random numbers are drawn. (LIBLINEAR draws them from one generator
of the process: dual machines fitted in several threads differ from run to run.)
"""

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import numpy as np

from sfrik_jax.errors import ConfigError
from sfrik_jax.evaluators import checks, multi_labels
from sfrik_jax.evaluators.checks import Array

COSTS = (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0)
SHOTS = (1, 2, 4, 8, 16, 32, 64, 96)
FOLDS = 3
MAX_ITERATIONS = 2000
KINDS: tuple[Literal["voc07", "area"], ...] = ("voc07", "area")
Say = Callable[[str], None]


def average_precision(
    scores: np.ndarray, labels: np.ndarray, kind: Literal["voc07", "area"] = "voc07"
) -> float:
    """Average precision of one class, 0 … 1.

        voc07: mean over t = 0, 0.1, …, 1 of max {precision(r): recall r >= t}
        area:  integral over t in 0 … 1 of the same maximum (VOC from 2010 on)

    Images of equal score enter together, so that their order does not matter.

    Args:
      scores: [N], higher means more likely present.
      labels: [N], 1 present, 0 absent, -1 difficult: left out.
    Raises: ConfigError when no image is positive.
    """
    counted = labels >= 0
    scores, positive = scores[counted], labels[counted] == 1
    if not positive.any():
        raise ConfigError("no image shows the class; its average precision is not set")
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    hits = np.cumsum(positive[order])[last]
    total = int(hits[-1])
    precision = hits / (last + 1)
    # The best precision at this recall or a higher one.
    reachable = np.maximum.accumulate(precision[::-1])[::-1]
    if kind == "area":
        return float(np.sum(np.diff(hits, prepend=0) / total * reachable))
    # Recall >= t / 10 in whole numbers: 3 of 10 is a recall of 0.3, not less.
    first = np.searchsorted(10 * hits, np.arange(11) * total)
    return float(np.mean(reachable[first]))


def evaluate(
    train_features: Array,
    train_labels: Array,
    test_features: Array,
    test_labels: Array,
    *,
    costs: Sequence[float] = COSTS,
    seed: int = 0,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Mean average precision of one machine per class, trained on the whole train set.

    Each class takes the cost of the highest mean average precision (area) in three
    stratified folds of the train set, the lowest of equal ones.

    Args:
      train_features, test_features: [N, d] and [M, d]; normalised here.
      train_labels, test_labels: [N, C] and [M, C]: 1 present, 0 absent, -1 difficult,
        neither trained on nor counted for this class.
      seed: of the folds.
      say: gets a line for each class.
    Returns: {"map_voc07", "map_area"} in %, and "classes": for each {"ap_voc07",
      "ap_area", "cross_validated_ap"} in %, "cost", "positives" (train images) and
      "converged".
    Raises: ConfigError for impossible costs, shapes, labels, non-finite features, and a
      class with too few positive or negative images.
    """
    if not len(costs) or not all(0 < cost < np.inf for cost in costs):
        raise ConfigError(
            f"svm costs={tuple(costs)}; give one or more positive numbers"
        )
    sets = _checked(train_features, train_labels, test_features, test_labels, FOLDS)
    job = partial(_one_class, *sets, tuple(costs), seed)
    classes = []
    with _threads() as workers:
        for number, found in enumerate(workers.map(job, range(sets[1].shape[1]))):
            classes.append(found)
            say(
                f"class {number + 1} of {sets[1].shape[1]}: cost {found['cost']:g}, "
                f"AP {found['ap_voc07']:.1f} % (11 points)"
            )
    return _means(classes) | {"classes": classes}


def low_shot(
    train_features: Array,
    train_labels: Array,
    test_features: Array,
    test_labels: Array,
    *,
    shots: Sequence[int] = SHOTS,
    samples: int = 5,
    cost: float = 1.0,
    seed: int = 0,
    say: Say = lambda line: None,
) -> list[dict[str, Any]]:
    """Mean average precision after few positive images, over random samples of them.

    k shots are k positive and (C - 1) k negative images per class, all of them where
    there are fewer negatives. A sample's images at k shots are among those at more. The
    cost is given: a few images cannot choose it, and the test set must not.

    Args: as `evaluate`, but
      shots: the numbers k of positive images.
      samples: random draws of them, by the seed.
    Returns: for each k {"shots", "map_voc07", "map_area"} in % and "map_voc07_std",
      "map_area_std", mean and standard deviation (of the samples, over n) of the mean
      average precision.
    Raises: as `evaluate`.
    """
    if not len(shots) or min(shots) < 1 or samples < 1 or not 0 < cost < np.inf:
        raise ConfigError(
            f"svm shots={tuple(shots)}, samples={samples}, cost={cost}; "
            "all must be above 0"
        )
    least = max(shots)
    sets = _checked(train_features, train_labels, test_features, test_labels, least)
    num_classes = sets[1].shape[1]
    draws = [(sample, c) for sample in range(samples) for c in range(num_classes)]
    job = partial(_few_of_one_class, *sets, tuple(shots), cost, seed)
    precisions = []
    with _threads() as workers:
        for (sample, c), found in zip(draws, workers.map(job, draws), strict=True):
            precisions.append(found)
            if c == num_classes - 1:
                say(f"low-shot sample {sample + 1} of {samples}")
    # [samples, C, shots, kinds], then the mean over the classes.
    table = np.reshape(precisions, (samples, num_classes, len(shots), -1)).mean(axis=1)
    return [
        {"shots": k} | _over_samples(found)
        for k, found in zip(shots, table.swapaxes(0, 1), strict=True)
    ]


def _one_class(x, labels, x_test, test_labels, costs, seed, c: int) -> dict[str, Any]:
    from sklearn.model_selection import StratifiedKFold

    rows = np.flatnonzero(labels[:, c] >= 0)
    x, y = x[rows], labels[rows, c]
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(x, y)
    validated = np.zeros(len(costs))
    for fitted, held_out in folds:
        for i, cost in enumerate(costs):
            machine = _fit(x[fitted], y[fitted], cost)
            margins = machine.decision_function(x[held_out])
            validated[i] += average_precision(margins, y[held_out], "area") / FOLDS
    best = int(np.argmax(validated))
    machine = _fit(x, y, costs[best])
    return _precisions(machine, x_test, test_labels[:, c]) | {
        "cross_validated_ap": 100 * float(validated[best]),
        "cost": costs[best],
        "positives": int((y == 1).sum()),
        "converged": bool(np.max(machine.n_iter_) < MAX_ITERATIONS),
    }


def _few_of_one_class(
    x, labels, x_test, test_labels, shots, cost, seed, draw: tuple[int, int]
) -> list[list[float]]:
    sample, c = draw
    rng = np.random.default_rng([seed, sample, c])
    present = rng.permutation(np.flatnonzero(labels[:, c] == 1))
    absent = rng.permutation(np.flatnonzero(labels[:, c] == 0))
    # Of one class alone there would be no negatives to (C - 1) k.
    others = max(1, labels.shape[1] - 1)
    found = []
    for k in shots:
        rows = np.concatenate([present[:k], absent[: others * k]])
        machine = _fit(x[rows], labels[rows, c], cost)
        precisions = _precisions(machine, x_test, test_labels[:, c])
        found.append([precisions[f"ap_{kind}"] for kind in KINDS])
    return found


def _precisions(machine, x_test, test_labels) -> dict[str, Any]:
    margins = machine.decision_function(x_test)
    return {
        f"ap_{kind}": 100 * average_precision(margins, test_labels, kind)
        for kind in KINDS
    }


def _fit(x: np.ndarray, labels: np.ndarray, cost: float):
    from sklearn.svm import LinearSVC

    settings: dict[str, Any] = dict(
        C=cost,
        loss="squared_hinge",
        dual=False,
        tol=1e-4,
        max_iter=MAX_ITERATIONS,
        class_weight={1: 2, 0: 1},
    )
    return LinearSVC(**settings).fit(x, labels)


@contextmanager
def _threads():
    """Threads, as LIBLINEAR computes without Python's lock."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as workers:
        # "converged" says it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield workers


def _means(classes: list[dict[str, Any]]) -> dict[str, float]:
    return {
        f"map_{kind}": float(np.mean([found[f"ap_{kind}"] for found in classes]))
        for kind in KINDS
    }


def _over_samples(found: np.ndarray) -> dict[str, float]:
    """Mean and deviation of [samples, kinds]."""
    row = {}
    for i, kind in enumerate(KINDS):
        row[f"map_{kind}"] = float(found[:, i].mean())
        row[f"map_{kind}_std"] = float(found[:, i].std())
    return row


def _checked(train_features, train_labels, test_features, test_labels, least: int):
    """Features of unit norm, float64, and labels int8; these are looked at first."""
    labels, test = multi_labels.check(train_labels, test_labels, least)
    for name, rows, features in (
        ("train", len(labels), train_features),
        ("test", len(test), test_features),
    ):
        if rows != len(features):
            raise ConfigError(
                f"{name}_labels have {rows} rows, {name}_features {len(features)}; "
                "give both of the same images"
            )
    checks.feature_pair(train_features, test_features)
    return _unit_rows(train_features), labels, _unit_rows(test_features), test


def _unit_rows(features: Array) -> np.ndarray:
    x = np.asarray(features[:], np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
