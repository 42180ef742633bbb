"""Evaluators answer questions about frozen features; they neither log nor save.

`evaluate_features` serves during training and at the end. Each name carries its
protocol: `knn20_top1` is the weighted vote of 20 neighbours, `linear_top1` the linear
probe.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sfrik_jax.evaluators import knn, linear


@dataclass(frozen=True)
class Settings:
    """What an evaluation depends on besides the features and the labels."""

    num_classes: int
    knn_k: int = 20
    knn_temperature: float = 0.07
    probe_epochs: int = 100
    probe_batch_size: int = 256
    probe_learning_rates: tuple[float, ...] = linear.LEARNING_RATES
    probe_weight_decay: float = 1e-6
    seed: int = 0


def evaluate_features(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    settings: Settings,
) -> Iterator[tuple[str, float]]:
    """Yields (name, value) of kNN and linear probe on features [N, d] and [M, d].

    Names: knn{k}_top1, knn{k}_top5, linear_top1, linear_top5, linear_held_out_top1 (all
    in percent) and linear_learning_rate (the one that the held-out tenth chose).
    Raises: ConfigError for an impossible setting or for features that are not finite.
    """
    sets = (train_features, train_labels, test_features, test_labels)
    votes = knn.classify(
        *sets,
        k=settings.knn_k,
        temperature=settings.knn_temperature,
        num_classes=settings.num_classes,
    )
    for name, value in votes.items():
        yield f"knn{settings.knn_k}_{name}", value
    probe = linear.probe(
        *sets,
        num_classes=settings.num_classes,
        epochs=settings.probe_epochs,
        batch_size=settings.probe_batch_size,
        learning_rates=settings.probe_learning_rates,
        weight_decay=settings.probe_weight_decay,
        seed=settings.seed,
    )
    for name, value in probe.items():
        yield f"linear_{name}", value
