"""Jobs on stored features: kNN, logistic regression, and the SVMs of VOC07."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from sfrik_jax import config as configs
from sfrik_jax import mesh as mesh_lib
from sfrik_jax.evaluators import knn, logreg, scores
from sfrik_jax.evaluators.choosing import Labelled, Result
from sfrik_jax.feature_set import FeatureSet
from sfrik_jax.interrupts import Stop
from sfrik_jax.jobs import features as feature_job
from sfrik_jax.jobs import parts as parts_of
from sfrik_jax.jobs import results
from sfrik_jax.jobs.features import Opened
from sfrik_jax.locks import Lock

Sets = Mapping[str, FeatureSet]


class Answer(NamedTuple):
    """What a job found: figures by name, and details for the record."""

    figures: dict[str, Any]
    details: dict[str, Any]


Compute = Callable[[Opened, Sets], Answer]


def run(config: ConfigDict, workdir: Path, name: str) -> dict[str, Any]:
    """Makes the features that are missing, computes, and returns the record.

    A record that is there for the same weights, pictures and protocol is returned as
    it is.
    """
    place = results.directory(workdir, name)
    with Stop() as stop:
        place.mkdir(parents=True, exist_ok=True)
        with Lock(place / "lock", f"the job {place}", "wait for it, or give a --name"):
            job = feature_job.open_job(config)
            identity = _identity(job)
            earlier = results.read(workdir, name)
            if {key: earlier.get(key) for key in identity} == identity:
                return earlier
            compute, check = COMPUTE[config.job]
            check(job)
            sets = feature_job.make(job, workdir, stop)
            answer = compute(job, sets)
            stop.check("after its figures were made, before they were stored")
            results.write(
                workdir,
                name,
                job=config.job,
                figures=answer.figures,
                details=answer.details,
                **identity,
            )
    return results.read(workdir, name)


def _identity(job: Opened) -> dict[str, Any]:
    """Protocol, weights and data of the figures, as JSON gives them back."""
    settings = configs.flatten(job.config)
    free = (*configs.RESUME_FREE, "weights", "data.path", "features.shard_rows")
    kept = {k: v for k, v in settings.items() if not k.startswith(free)}
    kept |= {"data.image_size": job.size.image_size, "data.resize": job.size.resize}
    kept |= {f"data.{k}": job.subject.preprocessing[k] for k in ("mean", "std")}
    whole = {
        "protocol": kept,
        "weights": job.subject.about,
        "data": parts_of.describe(job.parts),
    }
    return json.loads(json.dumps(whole))


def compute_features(job: Opened, sets: Sets) -> Answer:
    """No figure: where the features are, and what they are of."""
    figures = {f"features/{part}_images": len(each) for part, each in sets.items()}
    places = {part: str(each.path) for part, each in sets.items()}
    dim = next(iter(sets.values())).shape[1]
    return Answer(figures | {"features/dimension": dim}, {"places": places})


def compute_knn(job: Opened, sets: Sets) -> Answer:
    """Weighted kNN for every k, on "val" and on "test"."""
    settings = job.config.knn
    train = sets["train"]
    figures: dict[str, Any] = {}
    for part in ("val", "test"):
        if part not in sets:
            continue
        prefix = "knn/val_" if part == "val" else "knn/"
        found = knn.classify(
            train,
            train.labels,
            sets[part],
            sets[part].labels,
            k=tuple(settings.k),
            temperature=settings.temperature,
            num_classes=parts_of.classes(job.parts),
            mesh=mesh_lib.make_mesh(job.config.mesh.data, job.config.mesh.model),
        )
        for k, values in found.items():
            figures |= {f"{prefix}{name}_k{k}": v for name, v in values.items()}
            images = len(sets[part])
            hits = round(values["top1"] * images / 100)
            low, high = scores.wilson(hits, images)
            figures |= {
                f"{prefix}top1_low_k{k}": 100 * low,
                f"{prefix}top1_high_k{k}": 100 * high,
            }
        figures[f"{prefix}images"] = len(sets[part])
    return Answer(figures, {})


def compute_logreg(job: Opened, sets: Sets) -> Answer:
    """Logistic regression by the solver of the settings."""
    settings = job.config.logreg
    labelled = {part: Labelled(each, each.labels) for part, each in sets.items()}
    train, val, test = (labelled.get(part) for part in parts_of.NAMES)
    common = {"num_classes": parts_of.classes(job.parts)}
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
    raise NotImplementedError


def compute_voc_svm(job: Opened, sets: Sets) -> Answer:
    raise NotImplementedError
