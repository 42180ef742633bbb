"""Which module does a job, and how its figures are shown."""

from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from sfrik_jax.jobs import finetune, linear, results, stored

JOBS = {
    "linear": linear.linear,
    "finetune": finetune.finetune,
    "features": stored.run,
    "knn": stored.run,
    "logreg": stored.run,
    "voc_svm": stored.run,
    "gauges": stored.run,
}


def run(config: ConfigDict, workdir: Path, name: str) -> dict[str, Any]:
    """Runs the job of a configuration, shows its figures, and returns the record.

    Of several processes the first one shows them.
    """
    record = JOBS[config.job](config, workdir, name)
    if jax.process_index() == 0:
        results.show(record, results.path_of(workdir, name))
    return record
