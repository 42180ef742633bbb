"""The search of kNN: 200 neighbours of 10,000 queries among 100,000 features.

    python bench/knn.py [--train 100000] [--test 10000] [--dim 512] [--k 10,20,100,200]

Normal features in float32. `ours` is the whole of `knn.classify`, votes included;
`plain` takes all cosines of 256 queries and `lax.top_k` of each row; scikit-learn
searches by brute force; `sgemm` is NumPy's product alone, the limit. All find max(k)
neighbours. Each runs once in a process of its own: that gives the time of a first call,
its CPU seconds, and the peak of memory above what the process held with its input. Then
they alternate, after a round of warm-up.
"""

import argparse
import importlib.util
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere
from bench import timing
from sfrik_jax.evaluators import knn

OURS, PLAIN, PEER, LIMIT = "ours", "plain", "scikit-learn", "sgemm"
NUM_CLASSES = 1000
COLUMNS = {
    "arm": "",
    "median_seconds": ".2f",
    "first_seconds": ".2f",
    "first_cpu_seconds": ".1f",
    "extra_megabytes": ".0f",
    "tflop_per_second": ".3f",
    "share_of_sgemm": ".0%",
    "ratio_to_ours": ".2f",
    "same_neighbours": ".4%",
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
        "extra_megabytes": max(0, peak - held) / 1e6,
    }


def measure(problem: tuple, names: list[str], rounds: int) -> list[dict]:
    """One row for each arm."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        first = {name: pool.apply(first_call, (problem, name)) for name in names}
    search = Search(*problem)
    answers = {name: search.arms[name]() for name in names}
    _, found = knn.nearest(search.train, search.test, k=search.k)
    spent = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            start = time.perf_counter()
            search.arms[name]()
            spent[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(each)) for name, each in spent.items()}
    flop = 2 * search.train.shape[0] * search.test.size
    rows = []
    for name in names:
        theirs = answers[name]
        same = None if theirs is None else float(np.mean(theirs == found))
        rows.append(
            {
                "name": "knn",
                "arm": name,
                "median_seconds": medians[name],
                "tflop_per_second": flop / medians[name] / 1e12,
                "share_of_sgemm": medians[LIMIT] / medians[name],
                "ratio_to_ours": medians[name] / medians[OURS],
                "same_neighbours": same,
                **first[name],
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=int, default=100_000)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--k", default="10,20,100,200", help="with commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where the figures go")
    args = parser.parse_args()
    names = [OURS, PLAIN, PEER, LIMIT]
    if importlib.util.find_spec("sklearn") is None:
        print("no arm of scikit-learn: it is not installed")
        names.remove(PEER)
    where = timing.environment(("jax", "numpy", "scikit-learn"))
    print(where)
    ks = tuple(map(int, args.k.split(",")))
    problem = (args.train, args.test, args.dim, ks)
    rows = [row | where for row in measure(problem, names, args.rounds)]
    print(f"{args.test} x {args.train} x {args.dim}, {args.rounds} alternated rounds")
    print(timing.table(rows, COLUMNS))
    timing.write_json(args.json, rows)


if __name__ == "__main__":
    main()
