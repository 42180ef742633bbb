"""What a checkpoint costs a run: digests, save, and restore with all its checks.

    python bench/checkpoint.py [--config configs/quickstart.py] [--set KEY=VALUE]

The step, the digests, a save and a restore of one configuration take turns. "of the
run" is the share of the time between two checkpoints, which is
`checkpoint.every_steps` steps. The disk is that of the temporary files (TMPDIR).
"""

import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import jax

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere
from bench import command, timing
from sfrik_jax import config as configs
from sfrik_jax import pretrain
from sfrik_jax.checkpoint import Checkpoints, digest, manifest, room

COLUMNS: dict[str, timing.Column] = {
    "what": (lambda row: row["arm"], ""),
    **timing.MEDIAN,
    "of the run": (lambda row: row.get("share"), ".3%"),
}
STEPS_A_ROUND = 3


class Run:
    """A step, its state, and the checkpoints of it in a directory of their own."""

    def __init__(self, config: Any, folder: Path) -> None:
        self.job = pretrain.build(config)
        self.state = self.job.random_state()
        self.batches = self.job.loader.iterate()
        self.checkpoints = Checkpoints(folder, keep=2)
        self.saved = 0

    def step(self) -> None:
        for _ in range(STEPS_A_ROUND):
            self.state, scalars = self.job.step(self.state, next(self.batches))
        jax.block_until_ready(scalars["train/loss"])

    def digest(self) -> None:
        digest.digests(self.state)

    def save(self) -> None:
        """Up to where the run goes on."""
        self.saved += 1
        self.checkpoints.save(self.saved, self.state)

    def end_of_save(self) -> None:
        """What goes on in the background: writing, hashing, and the disk."""
        self.checkpoints.save(self.saved, self.state)  # is stored: it waits alone

    def hash(self) -> None:
        problem = manifest.problem(self.checkpoints.directory / str(self.saved))
        assert not problem, problem

    def restore(self) -> None:
        jax.block_until_ready(self.checkpoints.restore(self.job.state))


def arms(run: Run) -> Iterator[tuple[str, Callable[[], None], int]]:
    """Name, what is timed, and how many of it that is."""
    yield "step", run.step, STEPS_A_ROUND
    yield "digests of the state", run.digest, 1
    yield "save, until the run goes on", run.save, 1
    yield "save, the rest in the background", run.end_of_save, 1
    yield "hashes of the files", run.hash, 1
    yield "restore, verified", run.restore, 1


def measure(run: Run, rounds: int, every: int) -> list[dict[str, Any]]:
    """Medians over rounds, after one of warm-up, and shares of the time of a run."""
    spent: dict[str, list[float]] = {}
    for turn in range(rounds + 1):
        for name, work, count in arms(run):
            start = time.monotonic()
            work()
            if turn:
                spent.setdefault(name, []).append((time.monotonic() - start) / count)
    step = median(spent["step"])
    rows = []
    for name, seconds in spent.items():
        row: dict[str, Any] = {
            "name": "checkpoint",
            "arm": name,
            "median_seconds": median(seconds),
            "round_seconds": seconds,
            "spread": timing.spread(seconds),
        }
        if name in ("digests of the state", "save, until the run goes on"):
            row["share"] = row["median_seconds"] / (every * step)
        rows.append(row)
    return rows


def arguments() -> Namespace:
    parser = command.parser(__doc__)
    config = str(timing.ROOT / "configs" / "quickstart.py")
    parser.add_argument("--config", default=config, metavar="SPEC")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--rounds", type=command.integer, default=7)
    return parser.parse_args()


def main() -> None:
    command.share_the_card()
    args = arguments()
    config = configs.load_for("pretrain", args.config, args.set)
    where = timing.environment(("jax", "jaxlib", "orbax-checkpoint"))
    print(where)
    every = config.checkpoint.every_steps
    with tempfile.TemporaryDirectory() as folder:
        run = Run(config, Path(folder))
        rows = measure(run, args.rounds, every)
        size = room.words(room.bytes_of(run.job.state))
        run.checkpoints.__exit__(None, None)
    print(f"{args.config}, {size} a checkpoint, one every {every} steps")
    print(timing.table(rows, COLUMNS))
    command.write_json(args.json, [row | where for row in rows])


if __name__ == "__main__":
    command.run(main)
