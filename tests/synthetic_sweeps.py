"""Sweep directories as a sweep of finished runs leaves them, with known numbers."""

import json
import math

import numpy as np

from sfrik_jax.evaluators import pictures

WEIGHTS = [1.0, 40.0, 40.0, 20.0, 10.0]


def config(*, seed=0, order=3, dim=64, loss=None, **more):
    """Settings as config.json has them; `more` goes to the section `optim`."""
    loss = loss or {"method": "sfrik", "weights": WEIGHTS[:order]}
    return {
        "seed": seed,
        "data": {"name": "fashion_mini"},
        "model": {"backbone": "resnet18", "embed_dim": dim, "hidden_dims": [dim, dim]},
        "loss": loss,
        "optim": {"base_lr": 1.2, **more},
    }


def write_run(workdir, settings, linear, *, knn=None, steps=12, summary=True, **more):
    """A run whose probe reaches `linear` %; unfinished without `summary`."""
    workdir.mkdir(parents=True)
    dim = settings["model"]["embed_dim"]
    rows = []
    for step in range(1, steps + 1):
        decay = math.exp(-step / 4)
        rows.append(
            {
                "step": step,
                "train/loss": 1 + decay,
                "z/effective_rank": dim / 2 * (1 - decay),
                "z/std": 1 - decay,
                "z/uniformity": -3.5 + decay,
            }
        )
        if step % 3 == 0 and linear is not None:
            rows[-1]["online/linear_top1"] = linear - 9 * decay
            rows[-1]["online/knn20_top1"] = (knn or linear - 2) - 9 * decay
    lines = [json.dumps(row) for row in rows]
    (workdir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    command = ["python -m sfrik_jax", "pretrain", "--workdir", str(workdir)]
    write(workdir / "config.json", settings)
    write(workdir / "run.json", {"sessions": [{"command": command}]})
    if summary:
        numbers = {"steps": steps, "train_seconds": 90.0, "views_per_second": 1000.0}
        if linear is not None:
            numbers |= {"linear_top1": linear, "knn20_top1": knn or linear - 2}
        write(workdir / "summary.json", numbers | more)
    return workdir


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_sweep(directory, runs, states=None):
    """sweep.json of the names; all of them done but for `states`."""
    entries = [
        {
            "name": name,
            "overrides": overrides,
            "state": (states or {}).get(name, "done"),
        }
        for name, overrides in runs.items()
    ]
    again = ["sweep", "--config", "a b.py:small", "--workdir", str(directory)]
    about = {"config": "a b.py:small", "common": [], "again": again}
    write(directory / "sweep.json", about | {"runs": entries})


def grid_sweep(directory, accuracy, *, orders=(1, 2, 3), dims=(16, 64), seeds=(0, 1)):
    """A sweep over L, q and seeds; `accuracy(order, dim, seed)` in %."""
    runs = {}
    for order in orders:
        for dim in dims:
            for seed in seeds:
                name = f"weights-{order}_embed_dim-{dim}_seed-{seed}"
                weights = "(" + ",".join(f"{w:g}" for w in WEIGHTS[:order]) + ",)"
                runs[name] = {
                    "loss.weights": weights,
                    "model.embed_dim": str(dim),
                    "seed": str(seed),
                }
                write_run(
                    directory / name,
                    config(seed=seed, order=order, dim=dim),
                    accuracy(order, dim, seed),
                    views_per_step=512,
                    views_per_second=51_200 / dim**0.5,
                    peak_memory_bytes=2**28 * order,
                    memory_of="process",
                )
                spectrum = [(rank + 1.0) ** -1 for rank in range(dim)]
                total = sum(spectrum)
                shares = [value / total for value in spectrum]
                write(
                    directory / name / "spectrum.json",
                    {"images": 100, "embeddings": shares, "features": shares},
                )
    write_sweep(directory, runs)
    return directory


def add_neighbours(workdir):
    """A picture of nearest neighbours."""
    (workdir / "pictures").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (6, 28, 28, 3)).astype(np.uint8)
    pictures.views(noise, [noise, noise], workdir / "pictures" / "neighbours.png")
