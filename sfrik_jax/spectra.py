"""How a run uses the directions of its spaces at its end: `spectrum.json`."""

from typing import Any

import jax
import numpy as np

from sfrik_jax import augment
from sfrik_jax.data.views import View
from sfrik_jax.evaluators import gauges
from sfrik_jax.models import SSLModel
from sfrik_jax.train_state import TrainState, variables

FILE = "spectrum.json"
# Pictures that are looked at, and how many pass the network at a time. The matrix whose
# eigenvalues are taken has at most so many rows: a few seconds on a CPU.
PICTURES, BATCH_SIZE = 2_048, 256


def of_state(
    model: SSLModel, state: TrainState, images: np.ndarray, view: View
) -> dict[str, Any]:
    """Spectra of embeddings z and features h of plain pictures, in eval mode.

    Args:
      state: its tensors are whole on a device of this process.
      images: uint8 [N, S, S, 3], N >= 2.
      view: whose normalisation is used.

    Returns: the number of pictures, and `embeddings` and `features`, eigenvalues of
      `gauges.spectrum` in six digits; nothing of what is not finite.
    """
    own = jax.tree.map(lambda leaf: leaf.addressable_data(0), variables(state))

    @jax.jit
    def embed(own, images):
        pixels = augment.normalize(
            images, dtype=model.backbone.dtype, mean=view.mean, std=view.std
        )
        return model.apply(own, pixels[:, None], train=False)

    starts = range(0, len(images), BATCH_SIZE)
    passed = [embed(own, images[start:][:BATCH_SIZE]) for start in starts]
    found: dict[str, Any] = {"images": len(images)}
    for name, parts in zip(
        ("features", "embeddings"), zip(*passed, strict=True), strict=True
    ):
        rows = np.concatenate([np.asarray(part[:, 0], np.float32) for part in parts])
        if np.isfinite(rows).all():
            found[name] = [float(f"{value:.6g}") for value in gauges.spectrum(rows)]
    return found
