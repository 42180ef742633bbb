"""What the jobs on stored features compute, once the features are there."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from sfrik_jax.errors import ConfigError
from sfrik_jax.evaluators import knn, logreg, multi_labels, scores, voc_svm
from sfrik_jax.evaluators.choosing import Labelled, Result
from sfrik_jax.feature_set import FeatureSet
from sfrik_jax.jobs import parts as parts_of
from sfrik_jax.jobs.features import Opened
from sfrik_jax.jobs.results import class_details

Sets = Mapping[str, FeatureSet]
Say = Callable[[str], None]  # tells how far a job is, and stops it where that is asked


class Answer(NamedTuple):
    """What a job found: figures by name, and details for the record."""

    figures: dict[str, Any]
    details: dict[str, Any]


def features(job: Opened, sets: Sets, say: Say) -> Answer:
    """No figure: where the features are, and what they are of."""
    figures = {f"features/{part}_images": len(each) for part, each in sets.items()}
    places = {part: str(each.path) for part, each in sets.items()}
    dim = next(iter(sets.values())).shape[1]
    return Answer(figures | {"features/dimension": dim}, {"places": places})


def nearest_neighbours(job: Opened, sets: Sets, say: Say) -> Answer:
    """Weighted kNN for every k, on "val" and on "test"."""
    settings = job.config.knn
    train = sets["train"]
    figures: dict[str, Any] = {}
    table: dict[int, dict[str, Any]] = {k: {"k": k} for k in settings.k}
    for part in ("val", "test"):
        if part not in sets:
            continue
        prefix = "val_" if part == "val" else ""
        found = knn.classify(
            train,
            train.labels,
            sets[part],
            sets[part].labels,
            k=tuple(settings.k),
            temperature=settings.temperature,
            num_classes=parts_of.classes(job.parts),
            mesh=job.mesh,
        )
        images = len(sets[part])
        figures[f"knn/{prefix}images"] = images
        for k, values in found.items():
            hits = round(values["top1"] * images / 100)
            low, high = (100 * end for end in scores.wilson(hits, images))
            row = values | {"top1_low": low, "top1_high": high}
            table[k] |= {f"{prefix}{name}": value for name, value in row.items()}
            figures |= {f"knn/{prefix}{n}_k{k}": value for n, value in row.items()}
    return Answer(figures, {"table": list(table.values())})


def logistic_regression(job: Opened, sets: Sets, say: Say) -> Answer:
    """Logistic regression by the solver of the settings."""
    settings = job.config.logreg
    labelled = {part: Labelled(each, each.labels) for part, each in sets.items()}
    train, val, test = labelled["train"], labelled.get("val"), labelled.get("test")
    common: dict[str, Any] = {
        "num_classes": parts_of.classes(job.parts),
        "say": say,
    }
    if settings.solver == "sgd":
        found = logreg.sgd(
            train,
            val,
            test,
            learning_rates=tuple(settings.learning_rates),
            weight_decays=tuple(settings.weight_decays),
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            momentum=settings.momentum,
            seed=job.config.seed,
            **common,
        )
    else:
        found = logreg.lbfgs(
            train,
            val,
            test,
            l2=tuple(settings.l2),
            standardise=settings.standardize,
            tolerance=settings.tolerance,
            max_iterations=settings.max_iterations,
            mesh=job.mesh,
            **common,
        )
    return _answer_of(found, job)


def _answer_of(found: Result, job: Opened) -> Answer:
    figures: dict[str, Any] = {}
    details: dict[str, Any] = {"compared": found.rows}
    chosen = found.rows[found.chosen]
    details["chosen"] = chosen
    if "val_top1" in chosen:
        figures["logreg/val_top1"] = chosen["val_top1"]
    if found.counts is not None:
        figures |= {f"logreg/{k}": v for k, v in scores.figures(found.counts).items()}
        details |= class_details(found.counts, job.parts["train"].class_names)
    return Answer(figures, details)


def vector_machines(job: Opened, sets: Sets, say: Say) -> Answer:
    """A machine for each class, and of few images of each."""
    settings = job.config.svm
    train, test = sets["train"], sets["test"]
    given = (train, _present(train), test, _present(test))
    # Too few pictures for the most shots would come out after all the other work.
    multi_labels.check(given[1], given[3], max(voc_svm.FOLDS, *settings.low_shot, 1))
    whole = voc_svm.evaluate(
        *given, costs=tuple(settings.costs), seed=job.config.seed, say=say
    )
    names = job.parts["train"].class_names or list(
        map(str, range(len(whole["classes"])))
    )
    figures = {f"voc_svm/{key}": whole[key] for key in ("map_voc07", "map_area")}
    details: dict[str, Any] = {
        "per_class": dict(zip(names, whole["classes"], strict=True)),
    }
    if settings.low_shot:
        details["table"] = voc_svm.low_shot(
            *given,
            shots=tuple(settings.low_shot),
            samples=settings.low_shot_samples,
            cost=settings.low_shot_cost,
            seed=job.config.seed,
            say=say,
        )
        figures |= {
            f"voc_svm/map_voc07_{row['shots']}_shots": row["map_voc07"]
            for row in details["table"]
        }
    return Answer(figures, details)


def any_labels(job: Opened) -> None:
    """Features are made of pictures without labels too."""


def one_label(job: Opened) -> None:
    """Every part has labels, one of the same classes for each picture."""
    parts_of.classes(job.parts)
    several = [name for name, part in job.parts.items() if part.multi_label]
    if several:
        raise ConfigError(
            f"the part {several[0]} has several classes in a picture; the command "
            "voc-svm is for such sets"
        )


def enough_neighbours(job: Opened) -> None:
    """`one_label`, and no more neighbours asked for than there are pictures."""
    one_label(job)
    most, count = max(job.config.knn.k), len(job.parts["train"])
    if most > count:
        raise ConfigError(
            f"knn.k has {most}, more than the {count} pictures of data.train_split; "
            f"use at most {count}"
        )


def one_process(job: Opened) -> None:
    """The gauges see whole batches, which several processes would share out."""
    if jax.process_count() > 1:
        raise ConfigError(
            f"gauges runs in one process; start it once, not in {jax.process_count()}"
        )


def tested(job: Opened) -> None:
    """There are labels and pictures to test on; the cost needs none to choose on."""
    parts_of.classes(job.parts)
    if "test" not in job.parts:
        raise ConfigError(
            "data.test_split=''; voc-svm needs one, and none to choose on: costs are "
            "chosen by cross-validation within the train split"
        )


def _present(features: FeatureSet) -> np.ndarray:
    """int8 [N, C], 1 for the classes in a picture; of one label a picture, that one."""
    labels, count = features.labels, features.num_classes
    assert labels is not None and count is not None  # `tested` has looked
    return labels if features.multi_label else np.eye(count, dtype=np.int8)[labels]
