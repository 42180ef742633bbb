"""The search of kNN: 200 neighbours of 10,000 queries among 100,000 features.

    python bench/knn.py [--train 100000] [--test 10000] [--dim 512] [--k 10,20,100,200]

Normal features in float32. `ours` is the whole of `knn.classify`, votes included;
`plain` takes all cosines of 256 queries and `lax.top_k` of each row; scikit-learn
searches by brute force; `sgemm` is NumPy's product alone, the limit. All find max(k)
neighbours. Each runs once in a process of its own: that gives the time of a first call,
its CPU seconds, and the peak of memory above what the process held with its input. Then
they alternate, after a round of warm-up.
"""

import importlib.util
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere
from bench import command, timing
from sfrik_jax.evaluators import knn

OURS, PLAIN, PEER, LIMIT = "ours", "plain", "scikit-learn", "sgemm"
NUM_CLASSES = 1000
COLUMNS: dict[str, timing.Column] = {
    **timing.ARM,
    "s": (lambda row: row["median_seconds"], ".2f"),
    "spread": ".0%",
    "first call, s": (lambda row: row["first_seconds"], ".2f"),
    "its CPU s": (lambda row: row["first_cpu_seconds"], ".1f"),
    "extra MB": (lambda row: row["extra_bytes"] / 1e6, ".0f"),
    **timing.RATE,
    **timing.RATIO,
    "share of sgemm": (lambda row: row["share_of_limit"], ".0%"),
    "same neighbours": (lambda row: row.get("same_neighbours"), ".4%"),
}


class Search:
    """The arms on one problem; the peers return the indices [M, max(k)]."""

    def __init__(self, train: int, test: int, dim: int, ks: tuple[int, ...]) -> None:
        rng = np.random.default_rng(0)
        self.train = rng.standard_normal((train, dim), np.float32)
        self.test = rng.standard_normal((test, dim), np.float32)
        self.labels = np.arange(train) % NUM_CLASSES, np.arange(test) % NUM_CLASSES
        self.ks, self.k = ks, max(ks)
        self.arms: dict[str, Callable[[], np.ndarray | None]] = {
            OURS: self.ours,
            PLAIN: self.plain,
            PEER: self.scikit_learn,
            LIMIT: self.sgemm,
        }

    def ours(self) -> None:
        knn.classify(
            self.train,
            self.labels[0],
            self.test,
            self.labels[1],
            k=self.ks,
            temperature=0.07,
            num_classes=NUM_CLASSES,
        )

    def plain(self) -> np.ndarray:
        train = jnp.asarray(_unit(self.train))
        parts = [
            np.asarray(_plain(jnp.asarray(_unit(rows)), train, k=self.k))
            for rows in np.array_split(self.test, -(-len(self.test) // 256))
        ]
        return np.concatenate(parts)

    def scikit_learn(self) -> np.ndarray:
        neighbors = importlib.import_module("sklearn.neighbors")
        search = neighbors.NearestNeighbors(
            n_neighbors=self.k, algorithm="brute", metric="cosine"
        )
        return search.fit(self.train).kneighbors(self.test, return_distance=False)

    def sgemm(self) -> None:
        out = np.empty((512, 8192), np.float32)
        for i in range(0, len(self.test), len(out)):
            rows = self.test[i : i + len(out)]
            for j in range(0, len(self.train), out.shape[1]):
                columns = self.train[j : j + out.shape[1]]
                np.matmul(rows, columns.T, out=out[: len(rows), : len(columns)])


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@partial(jax.jit, static_argnames="k")
def _plain(rows: jax.Array, train: jax.Array, *, k: int) -> jax.Array:
    return jax.lax.top_k(jnp.matmul(rows, train.T, precision="highest"), k)[1]


def first_call(problem: tuple, name: str) -> dict[str, float]:
    """Seconds, CPU seconds and extra memory of an arm's first call, in this process."""
    search = Search(*problem)
    jax.devices()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    held = pages * resource.getpagesize()
    start, cpu = time.perf_counter(), time.process_time()
    search.arms[name]()
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "first_seconds": time.perf_counter() - start,
        "first_cpu_seconds": time.process_time() - cpu,
        # The kernel counts the peak in batches of pages: it can be a little too low.
        "extra_bytes": max(0, peak - held),
    }


def measure(
    problem: tuple, names: list[str], rounds: int, where: dict[str, Any]
) -> list[timing.Record]:
    """One record for each arm."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        extras = {name: pool.apply(first_call, (problem, name)) for name in names}
    search, answers = Search(*problem), {}
    flop = 2 * search.train.shape[0] * search.test.size

    def arm(name: str) -> timing.Arm:
        def run(count: int) -> None:
            for _ in range(count):
                answers[name] = search.arms[name]()

        peers = (PEER, PLAIN, LIMIT) if name == OURS else ()
        return timing.Arm(name, run, flop, peers=peers)

    arms = [arm(name) for name in names]
    spent = timing.take_turns(arms, rounds)
    _, found = knn.nearest(search.train, search.test, k=search.k)
    for name, theirs in answers.items():
        if theirs is not None:
            extras[name]["same_neighbours"] = float(np.mean(theirs == found))
    least = statistics.median(each.wall for each in spent[LIMIT])
    shapes = {"train": len(search.train), "test": len(search.test)}
    return timing.records(
        "knn",
        arms,
        spent,
        dtype="float32",
        shapes=shapes | {"dim": search.train.shape[1], "k": search.k},
        where=where,
        limit=lambda _: least,
        extras=extras,
    )


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--train", type=command.integer, default=100_000)
    parser.add_argument("--test", type=command.integer, default=10_000)
    parser.add_argument("--dim", type=command.integer, default=512)
    parser.add_argument(
        "--k", type=command.integers, default="10,20,100,200", help="with commas"
    )
    parser.add_argument("--rounds", type=command.integer, default=3)
    args = parser.parse_args()
    names = [OURS, PLAIN, PEER, LIMIT]
    if importlib.util.find_spec("sklearn") is None:
        print("no arm of scikit-learn: it is not installed")
        names.remove(PEER)
    where = timing.environment(("jax", "numpy", "scikit-learn"))
    print(where)
    problem = (args.train, args.test, args.dim, tuple(args.k))
    rows = measure(problem, names, args.rounds, where)
    print(f"{args.test} x {args.train} x {args.dim}, {args.rounds} alternated rounds")
    print(timing.table(rows, COLUMNS))
    command.write_json(args.json, rows)


if __name__ == "__main__":
    command.run(main)
