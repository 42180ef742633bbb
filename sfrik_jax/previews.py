"""A picture of what a step sees."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from sfrik_jax import processes
from sfrik_jax.data.loader import TrainLoader
from sfrik_jax.evaluators import pictures
from sfrik_jax.mesh import replicated
from sfrik_jax.passes import Network

ROWS = 8


def draw(
    network: Network,
    loader: TrainLoader,
    path: Path,
    step: int,
    rows: Sequence[int] = range(ROWS),
) -> None:
    """Draws source images and their views, of a step (0-based), as a PNG.

    Of several processes the first one draws what all have made.

    Args: rows: of the global batch; those that it has.
    """
    index = loader.indices(step)
    chosen = np.array([row for row in rows if row < len(index)])
    make = jax.jit(
        lambda batch: [group[chosen] for group in network.make_views(batch)],
        out_shardings=replicated(network.mesh),
    )
    groups = [np.asarray(group) for group in make(loader.batch(step))]
    if not processes.first():
        return
    views = [group[:, v] for group in groups for v in range(group.shape[1])]
    sources = [loader.rgb(int(i)) for i in index[chosen]]
    first = network.views[0]
    pictures.views(sources, views, path, mean=first.mean, std=first.std)
