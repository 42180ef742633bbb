"""The plan of a run: what a step costs, how long a run takes, and whether it fits."""

from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from sfrik_jax import config as configs
from sfrik_jax.errors import ConfigError
from sfrik_jax.planning import counted
from sfrik_jax.planning.hardware import SHEETS

# A tenth of a device's memory stays for the compiler's own room and for pieces that
# fit nowhere.
USABLE = 0.9
SPLIT = "mesh.projector=data"
CONVOLUTIONS, BLOCKS = "step.remat=convolutions", "step.remat=blocks"
# What makes a step smaller, the cheapest first; those of one line are tried together.
SMALLER: tuple[tuple[str, ...], ...] = (
    (SPLIT,),
    (CONVOLUTIONS,),
    (SPLIT, CONVOLUTIONS),
    (BLOCKS,),
    (SPLIT, BLOCKS),
    (BLOCKS, "step.micro_batches=4"),
    (SPLIT, BLOCKS, "step.micro_batches=4"),
    (BLOCKS, "step.micro_batches=16"),
    (SPLIT, BLOCKS, "step.micro_batches=16"),
)


def make(
    config: ConfigDict, devices: int, hardware: Sequence[str], images: int | None
) -> dict[str, Any]:
    """The record of `counted.count`, with a plan for each data sheet.

    Args:
      hardware: names of `SHEETS`.
      images: of the training set; None where nobody knows.

    Returns:
      Beside what is counted: `images`, `batch_size`, `dtype`, `total_steps`, and by
      hardware `estimates` (see `counted.seconds`; `hours` of the run; `fits`).
    """
    record = counted.count(config, devices)
    steps = None if images is None else configs.derive(config, images).total_steps
    record |= {
        "images": images,
        "batch_size": config.data.batch_size,
        "dtype": config.model.dtype,
        "epochs": config.optim.epochs,
        "total_steps": steps,
        "estimates": {},
    }
    for name in hardware:
        sheet = SHEETS[name]
        took = counted.seconds(record, sheet)
        record["estimates"][name] = took | {
            "hours": None if steps is None else steps * took["step"] / 3600,
            "fits": record["peak_bytes"] <= USABLE * sheet.memory,
        }
    return record


class Remedies:
    """Which settings make a step fit; what was counted once is kept."""

    def __init__(self, config: ConfigDict, devices: int) -> None:
        self._config, self._devices = config, devices
        self._peaks: dict[tuple[str, ...], int | None] = {}

    def for_memory(self, memory: float) -> tuple[tuple[str, ...], int] | None:
        """The first settings of SMALLER that fit into the memory, and their peak."""
        for settings in self._smaller():
            peak = self._peak(settings)
            if peak is not None and peak <= USABLE * memory:
                return settings, peak
        return None

    def _smaller(self) -> Iterator[tuple[str, ...]]:
        """Those that change something, without what is so already."""
        flat = configs.flatten(self._config)
        told = set()
        alone = self._devices == flat["mesh.model"] or flat["mesh.data"] == 1
        for settings in SMALLER:
            if alone and SPLIT in settings:
                continue
            changes = tuple(
                text
                for text in settings
                for key, _, value in [text.partition("=")]
                if str(flat[key]) != value
            )
            if changes and changes not in told:
                told.add(changes)
                yield changes

    def _peak(self, settings: tuple[str, ...]) -> int | None:
        """Of the step with these settings; None where they do not suit."""
        if settings not in self._peaks:
            try:
                changed = configs.apply_overrides(self._config, settings)
                peak = counted.trace(changed, self._devices).peak().bytes
            except ConfigError:
                peak = None
            self._peaks[settings] = peak
        return self._peaks[settings]
