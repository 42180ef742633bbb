"""Labelled features that need not fit into memory, and the choice among linear heads.

The head is chosen on a validation set; the test set is counted for that one alone.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from sfrik_jax.errors import ConfigError
from sfrik_jax.evaluators import checks, heads, scores
from sfrik_jax.evaluators.checks import Array
from sfrik_jax.evaluators.heads import Heads
from sfrik_jax.evaluators.scores import Counts

CHUNK_ELEMENTS = 1 << 24  # features or logits at once: 64 MiB in float32


class Labelled(NamedTuple):
    """Features [N, d] and their labels, integers [N].

    Features are anything with `shape` that gives NumPy arrays for x[a:b] and x[rows].
    """

    features: Array
    labels: Array


class Result(NamedTuple):
    """What was tried, what was chosen, and the chosen one's answers on the test set.

    rows: for each setting its values, "val_top1" (%) and "val_loss" (nats) where there
      is a validation set, and for L-BFGS how it converged.
    chosen: index into rows, by `heads.best`.
    counts: of the test set, that the chosen head alone has seen; None without one.
    heads: the chosen one, for features as they are: kernel [d, 1, C], bias [1, C].
    """

    rows: list[dict[str, Any]]
    chosen: int
    counts: Counts | None
    heads: Heads


class Scored(NamedTuple):
    """How R heads did: counts of each, and mean cross-entropy, float64 [R]."""

    counts: list[Counts]
    loss: np.ndarray

    def top1(self) -> list[float]:
        """Top-1 of each head in %."""
        return [scores.figures(each)["top1"] for each in self.counts]


def checked(
    train: Labelled,
    validation: Labelled | None,
    test: Labelled | None,
    *,
    num_classes: int,
    settings: int,
) -> tuple[Labelled, Labelled | None, Labelled | None]:
    """The three sets with int32 labels, read once in chunks.

    Raises: ConfigError for features that are not finite or do not match, bad labels,
      and for several settings without a validation set.
    """
    if settings > 1 and validation is None:
        raise ConfigError(
            f"{settings} settings and no validation set; give one: choosing "
            "on the final split is refused"
        )
    d = train[0].shape[1:]
    return (
        _checked_one("train", train, d, num_classes),
        validation and _checked_one("validation", validation, d, num_classes),
        test and _checked_one("test", test, d, num_classes),
    )


def _checked_one(name: str, one: Labelled, d: tuple, num_classes: int) -> Labelled:
    features, labels = one
    count, *width = features.shape
    if len(width) == 1 and width != list(d):
        raise ConfigError(
            f"{name} features have dimension {width[0]}, train features {d[0]}; "
            "extract both with the same encoder"
        )
    rows = chunk_rows(*width)
    for start in range(0, max(1, count), rows):
        where = f"{name} features from row {start}"
        checks.features(where, features[start : start + rows])
    labels = checks.labels(
        f"{name} labels", labels, rows=count, num_classes=num_classes
    )
    return Labelled(features, labels)


def chunk_rows(*widths: int) -> int:
    """Rows of a chunk whose arrays are no wider than `widths`."""
    return max(1, CHUNK_ELEMENTS // max(1, *widths, 1))


def chunks(one: Labelled, rows: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Features, labels and weights, `rows` at a time; the last filled up, weight 0."""
    for start in range(0, len(one.labels), rows):
        labels = one.labels[start : start + rows]
        missing = (0, rows - len(labels))
        yield (
            np.pad(one.features[start : start + rows], (missing, (0, 0))),
            np.pad(labels, missing),
            np.pad(np.ones(len(labels), np.float32), missing),
        )


def answer(
    fitted: Heads,
    rows: list[dict[str, Any]],
    validation: Labelled | None,
    test: Labelled | None,
) -> Result:
    """Chooses among the heads `fitted`, and counts the chosen one's test answers.

    Args: rows: one of each head; its figures on the validation set are added.
    Raises: NonFiniteError when all heads have diverged.
    """
    chosen = 0
    if validation is not None:
        found = _evaluate(fitted, validation)
        top1 = found.top1()
        for row, share, loss in zip(rows, top1, found.loss.tolist(), strict=True):
            row |= {"val_top1": share, "val_loss": loss}
        chosen = heads.best(top1, found.loss, len(validation.labels))
    one = Heads(fitted.kernel[:, chosen : chosen + 1], fitted.bias[chosen : chosen + 1])
    if test is None:
        return Result(rows, chosen, None, one)
    [count], losses = _evaluate(one, test)
    heads.best([0.0], losses, 1)  # one setting alone may have diverged
    return Result(rows, chosen, count, one)


def _evaluate(fitted: Heads, one: Labelled) -> Scored:
    rows = chunk_rows(one.features.shape[1], fitted.bias.size)
    starts = range(0, len(one.labels), rows)
    blocks = (
        (one.features[start : start + rows], one.labels[start : start + rows])
        for start in starts
    )
    return score(fitted, blocks)


def score(fitted: Heads, blocks: Iterable[tuple[np.ndarray, np.ndarray]]) -> Scored:
    """How each head does on features [b, d] with labels [b], block by block.

    Blocks are filled up to the length of the first, so that nothing compiles twice.
    """
    num_heads, num_classes = fitted.bias.shape
    counts, total = [Counts.zero(num_classes)] * num_heads, np.zeros(num_heads)
    images, rows = 0, 0
    for x, labels in blocks:
        real, rows = len(labels), max(rows, len(labels))
        missing = (0, rows - real)
        x, padded = np.pad(x, (missing, (0, 0))), np.pad(labels, missing)
        ranked, losses = map(np.asarray, _ranked_and_losses(fitted, x, padded))
        total += losses[:real].sum(axis=0, dtype=np.float64)
        counts = [
            count + scores.count(ranked[:real, r], labels, num_classes)
            for r, count in enumerate(counts)
        ]
        images += real
    return Scored(counts, total / max(images, 1))


@jax.jit
def _ranked_and_losses(fitted, x, labels):
    return heads.rank(fitted, x), heads.cross_entropy(fitted, x, labels)
