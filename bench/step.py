"""A whole training step: views, network, loss, optimiser; here and in PyTorch.

    python bench/step.py [--backbone resnet50] [--size 224] [--batch 512] [--q 8192]

Ours starts at uint8 crops on the device and includes all photometric operations; with
--fed, arms start at JPEGs of 500x375 px in memory instead, decoded and cropped by the
workers of the loader. The torch arms start at finished float views on the device
(channels last, autocast, torchvision's network, the original's two passes and loss, SGD
with momentum in place of LARS), which is less work.
"""

import argparse
import importlib
import itertools
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere
from bench import input as host
from bench import loss, peers, timing
from sfrik_jax import mesh as mesh_lib
from sfrik_jax import models, optim, train_state
from sfrik_jax.data import views
from sfrik_jax.data.loader import WORKER_TYPES, TrainLoader
from sfrik_jax.settings import LOSS_DEFAULTS
from sfrik_jax.step import Step, make_train_step

COLUMNS = {"arm": "", "ms": ".1f", "views/s": ".0f", "torch / arm": ".2f"}
_LIBRARIES = ("jax", "flax", "optax", "grain", "pillow", "simplejpeg", "torch")
_STEPS_PER_EPOCH = 100
_MEAN_STEPS = 20  # of a fed arm, after five of warm-up


class Ours:
    """The step of `pretrain`, its state, and batches of random crops."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.mesh = mesh_lib.make_mesh()
        self.views = views.build(args.size, recipe="vicreg")
        self._state, self.step = self._build(args)

    def _build(self, args: argparse.Namespace) -> tuple[Any, Step]:
        model = models.build(
            backbone=args.backbone,
            width=64,
            stem=args.stem,
            hidden_dims=(args.hidden, args.hidden),
            embed_dim=args.q,
            dtype=args.dtype,
        )
        schedule = optim.warmup_cosine(
            base_lr=1.2,
            batch_size=args.batch,
            epochs=100,
            steps_per_epoch=_STEPS_PER_EPOCH,
        )
        optimizer = optim.lars(schedule, weight_decay=1e-6)
        step = make_train_step(
            model,
            optimizer,
            self.mesh,
            views=self.views,
            schedule=schedule,
            method=args.method,
            loss_settings=LOSS_DEFAULTS[args.method],
            seed=0,
            log_every=50,
            last_step=100 * _STEPS_PER_EPOCH,
        )
        create = jax.jit(
            lambda: train_state.create(0, model, optimizer, args.size),
            out_shardings=mesh_lib.replicated(self.mesh),
        )
        return create(), step

    def synthetic(self) -> dict[str, Any]:
        """A batch of noise, uint8, on the device."""
        n, side = self.args.batch, self.args.size
        rng = np.random.default_rng(0)
        crops = rng.integers(0, 256, (n, 2, side, side, 3), np.uint8)
        batch = {"views": (crops,), "index": np.arange(n, dtype=np.int32)}
        return mesh_lib.shard_batch(batch, self.mesh) | {"epoch": jnp.int32(0)}

    def take(self, batches: Any, count: int) -> None:
        """Steps on the next `count` batches, to the end of the last."""
        for batch in itertools.islice(batches, count):
            self._state, _ = self.step(self._state, batch)
        jax.block_until_ready(self._state)

    def arm(self) -> timing.Arm:
        batches = itertools.repeat(self.synthetic())
        return timing.Arm(loss.OURS, lambda count: self.take(batches, count))

    def loader(self, resample: str) -> TrainLoader:
        """Batches of two random crops of the shipped photographs' JPEGs."""
        items = host.make_jpegs(min(256, self.args.batch))
        return TrainLoader(
            host.Jpegs([items[i % len(items)] for i in range(4 * self.args.batch)]),
            self.views,
            batch_size=self.args.batch,
            seed=0,
            residence="host",
            workers=self.args.workers,
            worker_type=self.args.worker_type,
            resample=resample,
            mesh=self.mesh,
        )

    def fed_seconds(self, resample: str) -> float:
        """Wall seconds of a step that waits for its pictures."""
        batches = self.loader(resample).iterate()
        self.take(batches, 5)
        start = time.perf_counter()
        self.take(batches, _MEAN_STEPS)
        spent = time.perf_counter() - start
        batches.close()
        return spent / _MEAN_STEPS


class TorchStep:
    """The same step in PyTorch from float views that are on the device."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._torch, _ = peers.import_torchvision()
        self._args = args
        self._device = "cuda" if self._torch.cuda.is_available() else "cpu"
        self._model = self._network().to(
            self._device, memory_format=self._torch.channels_last
        )
        self._optimizer = self._torch.optim.SGD(
            self._model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-6
        )
        shape = (args.batch, 3, args.size, args.size)
        self._views = [
            self._torch.randn(shape, device=self._device).to(
                memory_format=self._torch.channels_last
            )
            for _ in range(2)
        ]
        self._losses = loss.TorchLosses(self._torch, getattr(self._torch, args.dtype))

    def _network(self) -> Any:
        nn, args = self._torch.nn, self._args
        backbone = getattr(
            importlib.import_module("torchvision.models"), args.backbone
        )()
        features = backbone.fc.in_features
        backbone.fc = nn.Identity()
        if args.stem == "small":
            backbone.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            backbone.maxpool = nn.Identity()
        layers = []
        for width in (args.hidden, args.hidden):
            layers += [nn.Linear(features, width), nn.BatchNorm1d(width), nn.ReLU()]
            features = width
        return nn.Sequential(backbone, *layers, nn.Linear(features, args.q, bias=False))

    def arm(self, name: str, compiled: bool) -> timing.Arm:
        model = self._torch.compile(self._model) if compiled else self._model
        half = self._args.dtype == "bfloat16"
        function = getattr(self._losses, self._args.method)

        def run(count: int) -> None:
            for _ in range(count):
                self._optimizer.zero_grad(set_to_none=True)
                with self._torch.autocast(
                    self._device, self._torch.bfloat16, enabled=half
                ):
                    z = [model(view) for view in self._views]
                    value = function(*z)
                value.backward()
                self._optimizer.step()
            if self._device == "cuda":
                self._torch.cuda.synchronize()

        return timing.Arm(name, run)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each arm."""
    ours = Ours(args)
    arms = [ours.arm()]
    try:
        peer = TorchStep(args)
        arms.append(peer.arm(loss.TORCH, compiled=False))
        if args.compile:
            arms.append(peer.arm("torch.compile", compiled=True))
    except ImportError as reason:
        print(f"no arms of torch ({reason}); see requirements-bench.txt")
    seconds = timing.alternate(arms, args.rounds, args.seconds)
    for resample in filter(None, args.fed.split(",")):
        name = f"ours, fed ({resample})"
        seconds[name] = ours.fed_seconds(resample)
    return [
        {
            "arm": name,
            "ms": 1000 * each,
            "views/s": 2 * args.batch / each,
            "torch / arm": seconds[loss.TORCH] / each
            if loss.TORCH in seconds
            else None,
        }
        for name, each in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="resnet18", choices=models.BACKBONES)
    parser.add_argument("--stem", default="imagenet", choices=("imagenet", "small"))
    parser.add_argument("--size", type=int, default=96, help="of a view, in px")
    parser.add_argument("--batch", type=int, default=64, help="pictures")
    parser.add_argument("--q", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=1024, help="projector's widths")
    parser.add_argument("--method", default="sfrik", choices=("sfrik", "vicreg"))
    gpu = jax.default_backend() != "cpu"
    parser.add_argument("--dtype", default="bfloat16" if gpu else "float32")
    parser.add_argument("--fed", default="", help="exact, fast or both with a comma")
    parser.add_argument("--workers", type=int, default=0, help="of --fed; 0: all cores")
    parser.add_argument("--worker-type", default="auto", choices=WORKER_TYPES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="per arm and round")
    parser.add_argument("--compile", action="store_true", help="torch.compile as well")
    parser.add_argument("--json", type=Path, help="where the figures go")
    args = parser.parse_args()
    where = timing.environment(_LIBRARIES) | {"settings": vars(args) | {"json": None}}
    print(where)
    rows = [row | where for row in measure(args)]
    print(timing.table(rows, COLUMNS))
    timing.write_json(args.json, rows)


if __name__ == "__main__":
    main()
