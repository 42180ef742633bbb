"""Jobs on features: kNN, logistic regression, the SVMs of VOC07, and gauges."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from sfrik_jax.interrupts import Stop
from sfrik_jax.jobs import answers, gauges, results
from sfrik_jax.jobs import features as feature_job
from sfrik_jax.jobs import parts as parts_of
from sfrik_jax.jobs.answers import Answer, Say, Sets
from sfrik_jax.jobs.features import Opened
from sfrik_jax.locks import Lock


class Kind(NamedTuple):
    """A job on features.

    Attributes:
      check: refuses parts that do not suit it, before anything is computed.
      compute: from stored features of all parts.
      look: from the pictures themselves, for a job that stores no features.
    """

    check: Callable[[Opened], None]
    compute: Callable[[Opened, Sets, Say], Answer] | None = None
    look: Callable[[Opened, Stop], Answer] | None = None


KINDS = {
    "features": Kind(answers.any_labels, answers.features),
    "knn": Kind(answers.enough_neighbours, answers.nearest_neighbours),
    "logreg": Kind(answers.one_label, answers.logistic_regression),
    "voc_svm": Kind(answers.tested, answers.vector_machines),
    "gauges": Kind(answers.one_process, look=gauges.measure),
}


def run(config: ConfigDict, workdir: Path, name: str) -> dict[str, Any]:
    """Makes the features that are missing, computes, and returns the record.

    A record that is there for the same weights, pictures and protocol is returned as
    it is. Of several processes the first one computes; the others make their share of
    the features and return an empty record.

    Raises:
      MismatchError: there is a record of this name of other weights, data or settings.
      Preempted: a signal asked to stop; whole shards of features are kept.
    """
    job, kind = feature_job.open_job(config), KINDS[config.job]
    identity = parts_of.identity(config, job.subject, job.parts, job.size)
    kind.check(job)
    place = results.directory(workdir, name)
    with Stop() as stop:
        place.mkdir(parents=True, exist_ok=True)
        # Processes of one job work side by side, each under a lock of its own.
        lock = place / f"lock-{jax.process_index()}"
        with Lock(lock, f"the job {place}", "wait for it, or give a --name"):
            replace = config.job == "features"
            earlier = results.done(workdir, name, identity, replace=replace)
            if earlier:
                return earlier
            answer = _answer(job, kind, workdir, stop)
            if answer is None:
                return {}
            return results.write(
                workdir,
                name,
                job=config.job,
                figures=answer.figures,
                details=answer.details,
                identity=identity,
            )


def _answer(job: Opened, kind: Kind, workdir: Path, stop: Stop) -> Answer | None:
    """What the job finds; None in all processes but the first."""
    if kind.look is not None:
        return kind.look(job, stop)
    sets = feature_job.make(job, workdir, stop)
    if jax.process_index() > 0:
        return None

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)
        stop.check("between two parts of the work; the features are kept")

    assert kind.compute is not None
    answer = kind.compute(job, sets, say)
    used = {part: len(each) for part, each in sets.items()}
    return Answer(answer.figures, {"used_images": used, **answer.details})
