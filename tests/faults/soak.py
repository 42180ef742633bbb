"""Random faults on real runs, for as long as asked, against what must hold of them.

    python tests/faults/soak.py --minutes 60 [--seed S] [--log FILE]

A run of 120 steps is started again and again, and each time one fault of `FAULTS`
befalls it; when it is done, the next one begins. The same seed draws
the same faults; a kill at a moment meets the program where the machine has got to.

After each session:
- its exit code is one that the fault may lead to, and nothing ended in a traceback;
- it went on from the newest checkpoint that was whole, and that one or a newer one is
  there after it; one that was damaged is set aside;
- every whole checkpoint has the bits that an undisturbed run has at that step, and so
  has every row of metrics, each step once;
- what is on the disk is not more than the checkpoints that are kept and one more;
and at the end of each run the weights and all rows are those of the undisturbed one.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import fault_runs as runs

from sfrik_jax import faults
from sfrik_jax.checkpoint import manifest
from sfrik_jax.data import builders

POINTS = [point for point in faults.POINTS if point != "metrics"]


class Soak:
    """The sessions, one after the other, and the count of what came of them."""

    def __init__(self, root: Path, seed: int, log: Path | None) -> None:
        self.root, self.rng, self.log = root, random.Random(seed), log
        data_dir = runs.CACHE / "data"
        builders.prepare("fashion_mini", str(data_dir))
        self.wanted = runs.reference(root / "undisturbed", data_dir)
        # Kills and signals are spread over a session's whole life, from the first
        # import to the last evaluation; its programs are compiled by now.
        start = time.monotonic()
        again = runs.end(runs.start(root / "again", self.wanted.settings))
        assert again.code == 0, again.said
        runs.check_finished(root / "again", self.wanted)
        self.length = time.monotonic() - start
        self.counts: Counter[tuple[str, str]] = Counter()
        self.finished = self.sessions = self.begun = 0
        self.begin()

    def begin(self) -> None:
        """The next run, in a new directory."""
        self.begun += 1
        self.workdir = self.root / f"run{self.begun}"

    def session(self) -> None:
        """One start of the run, with one fault."""
        self.sessions += 1
        [fault] = self.rng.choices(list(FAULTS), list(FAULTS.values()))
        name = fault.__name__
        before = runs.whole_steps(self.workdir)
        sessions = len(runs.sessions_of(self.workdir))
        outcome, allowed = fault(self)
        after = runs.whole_steps(self.workdir)
        self.note(name, outcome, before, after)
        assert outcome.code in allowed, (name, outcome.code, outcome.said)
        if outcome.code != runs.KILLED:
            assert "Traceback" not in outcome.said, outcome.said
        if outcome.code == 65:  # all checkpoints were damaged on purpose
            assert not self.undamaged(before)
            self.begin()
            return
        kept = self.undamaged(before)
        assert not kept or max(after, default=0) >= max(kept), (before, after)
        if len(runs.sessions_of(self.workdir)) > sessions:
            assert runs.resumed_at(self.workdir) == max(kept, default=0)
        if before and self.damaged == {before[-1]}:
            assert (self.workdir / "checkpoints" / f"{before[-1]}.corrupt").is_dir()
        runs.check(self.workdir, self.wanted)
        self.check_litter()
        if outcome.code == 0:
            runs.check_finished(self.workdir, self.wanted)
            self.finished += 1
            shutil.rmtree(self.workdir)
            self.begin()

    def undamaged(self, steps: list[int]) -> list[int]:
        """Of steps that were whole before a session, those that were not damaged."""
        return [step for step in steps if step not in self.damaged]

    def check_litter(self) -> None:
        """What a session leaves that is neither kept nor set aside: one at most."""
        folder = self.workdir / "checkpoints"
        names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        own = [name for name in names if ".corrupt" not in name]
        assert len(own) <= runs.KEPT + 1, own

    def run(self, points: str = "") -> "runs.Outcome":
        """A session that ends by itself."""
        return runs.end(self.start(points))

    def start(self, points: str = ""):
        """A session."""
        self.damaged: set[int] = set()
        return runs.start(self.workdir, self.wanted.settings, faults=points)

    def note(self, name, outcome, before, after) -> None:
        """A line for each session."""
        self.counts[name, str(outcome.code)] += 1
        about = {
            "session": self.sessions,
            "run": self.begun,
            "fault": name,
            "code": outcome.code,
            "newest": [max(before, default=0), max(after, default=0)],
        }
        line = json.dumps(about)
        print(line, flush=True)
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(line + "\n")


def undisturbed(soak: Soak):
    """Nothing happens."""
    return soak.run(), {0}


def killed(soak: Soak):
    """SIGKILL at any moment."""
    process = soak.start()
    time.sleep(soak.rng.uniform(0, soak.length))
    process.kill()
    return runs.end(process), {runs.KILLED, 0}


def killed_at_a_point(soak: Soak):
    """SIGKILL at a place in the program that is worse than others."""
    point = soak.rng.choice(POINTS)
    step = runs.SAVED_EVERY * soak.rng.randrange(1, runs.STEPS // runs.SAVED_EVERY + 1)
    if point == "eval":
        step = 40 * soak.rng.randrange(1, 4)
    return soak.run(f"{point}:{step}=kill"), {runs.KILLED, 0}


def signalled(soak: Soak):
    """SIGTERM, SIGINT or SIGUSR1 at any moment."""
    process = soak.start()
    number = soak.rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
    # A Python that has not begun yet knows no handlers.
    time.sleep(soak.rng.uniform(0.5, soak.length))
    process.send_signal(number)
    return runs.end(process), {75, 0}


def signalled_twice(soak: Soak):
    """SIGTERM, and once more before all is saved."""
    process = soak.start()
    time.sleep(soak.rng.uniform(0.5, soak.length))
    process.send_signal(signal.SIGTERM)
    time.sleep(soak.rng.uniform(0.0, 0.5))
    process.send_signal(signal.SIGTERM)
    return runs.end(process), {75, 0}


def full_once(soak: Soak):
    """The disk is full at one save, and has room again."""
    return soak.run(f"{_place(soak)}=enospc:1"), {0}


def full(soak: Soak):
    """The disk is full and stays so."""
    point = soak.rng.choice(["before_save", "in_save"])
    return soak.run(f"{point}=enospc:99"), {74, 0}


def metrics_refused(soak: Soak):
    """The disk refuses rows of metrics for a while."""
    return soak.run(f"metrics=eio:{soak.rng.randrange(1, 60)}"), {0}


def damaged(soak: Soak):
    """Damage to a file of a checkpoint while nothing runs."""
    steps = runs.whole_steps(soak.workdir)
    if not steps:
        return undisturbed(soak)
    step = soak.rng.choice(steps)
    folder = soak.workdir / "checkpoints" / str(step)
    names = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size]
    path = soak.rng.choice([p for p in names if p.name not in manifest.HARMLESS])
    DAMAGE[soak.rng.choice(list(DAMAGE))](soak.rng, path)
    process = soak.start()
    soak.damaged = {step}
    return runs.end(process), {0, 65}


def littered(soak: Soak):
    """What a save that never ended may leave."""
    steps = runs.whole_steps(soak.workdir)
    if steps:
        folder = soak.workdir / "checkpoints"
        litter = folder / f"{steps[-1] + 1}.orbax-checkpoint-tmp"
        shutil.copytree(folder / str(steps[-1]), litter)
        (litter / manifest.NAME).unlink()
    return soak.run(), {0}


def _place(soak: Soak) -> str:
    step = runs.SAVED_EVERY * soak.rng.randrange(1, runs.STEPS // runs.SAVED_EVERY + 1)
    return f"{soak.rng.choice(['before_save', 'in_save'])}:{step}"


def _flip(rng: random.Random, path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content))


def _cut(rng: random.Random, path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


DAMAGE: dict[str, Callable[[random.Random, Path], None]] = {
    "flip": _flip,
    "cut": _cut,
    "delete": lambda rng, path: path.unlink(),
}
# How often each is drawn, against the others.
FAULTS = {
    undisturbed: 1,
    killed: 4,
    killed_at_a_point: 4,
    signalled: 4,
    signalled_twice: 2,
    full_once: 2,
    full: 2,
    metrics_refused: 1,
    damaged: 3,
    littered: 1,
}


def main() -> int:
    """Soaks, and prints the table of faults and exit codes."""
    parser = argparse.ArgumentParser(description="Random faults on real runs.")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--log", type=Path, help="a line of JSON for each session")
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    root = Path(tempfile.mkdtemp(prefix="soak"))
    print(f"in {root}, which stays where something is wrong", flush=True)
    soak = Soak(root, args.seed, args.log)
    start = time.monotonic()
    while time.monotonic() < start + 60 * args.minutes:
        soak.session()
    shutil.rmtree(root)
    print(f"\n{soak.sessions} sessions, {soak.finished} runs to their end")
    print("| fault | exit codes |\n|---|---|")
    for fault in FAULTS:
        counts = sorted(soak.counts.items())
        codes = [f"{code}: {n}" for (name, code), n in counts if name == fault.__name__]
        print(f"| {fault.__doc__} | {', '.join(codes)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
