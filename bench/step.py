"""A whole training step: views, network, loss, optimiser; here and in PyTorch.

    python bench/step.py [--backbone resnet50] [--size 224] [--batch 512] [--q 8192]

Ours starts at uint8 crops on the device and includes all photometric operations; with
--fed, arms start at JPEGs of 500x375 px in memory instead, decoded and cropped by the
workers of the loader. The torch arms start at finished float views on the device
(channels last, autocast, torchvision's network, the original's two passes and loss, SGD
with momentum in place of LARS), which is less work; --float-views adds an arm of ours
that starts there too.

Before anything is timed the loss and the gradient of both are compared, with the same
weights and views: the bench ends with an error where they do not agree.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere
from bench import input as host
from bench import loss, roofline, timing, torch_step, traces
from sfrik_jax import mesh as mesh_lib
from sfrik_jax import models, optim, train_state
from sfrik_jax.data import views
from sfrik_jax.data.loader import WORKER_TYPES, TrainLoader
from sfrik_jax.settings import LOSS_DEFAULTS
from sfrik_jax.step import make_train_step
from sfrik_jax.train_state import TrainState

COLUMNS: dict[str, timing.Column] = {
    **timing.ARM,
    **timing.MEDIAN,
    "views/s": (lambda row: row["views_per_second"], ",.0f"),
    **timing.RATE,
    **timing.RATIO,
    **timing.SHARE,
    **timing.PEAK,
}
OURS, COMPILED = loss.OURS, "torch.compile"
SUFFIX = {"sfrik": "", "vicreg": ", VICReg"}
_LIBRARIES = ("jax", "flax", "optax", "grain", "pillow", "simplejpeg", "torch")
_STEPS_PER_EPOCH = 100
_TRACED = 3  # steps


class Ours:
    """The step of `pretrain`, its state, and batches of random crops."""

    def __init__(self, args: argparse.Namespace, method: str) -> None:
        self.args, self.method = args, method
        self.mesh = mesh_lib.make_mesh()
        self.views = views.build(args.size, recipe="vicreg")
        self.model = models.build(
            backbone=args.backbone,
            width=64,
            stem=args.stem,
            hidden_dims=(args.hidden, args.hidden),
            embed_dim=args.q,
            dtype=args.dtype,
        )
        self.schedule = optim.warmup_cosine(
            base_lr=1.2,
            batch_size=args.batch,
            epochs=100,
            steps_per_epoch=_STEPS_PER_EPOCH,
        )
        self.optimizer = optim.lars(self.schedule, weight_decay=1e-6)
        self.peak_bytes: dict[str, int] = {}
        self.programs: dict[str, Any] = {}

    def fresh(self) -> TrainState:
        create = jax.jit(
            lambda: train_state.create(0, self.model, self.optimizer, self.args.size),
            out_shardings=mesh_lib.replicated(self.mesh),
        )
        return create()

    def crops(self) -> dict[str, Any]:
        """A batch of noise, uint8, on the device."""
        n, side = self.args.batch, self.args.size
        rng = np.random.default_rng(0)
        crops = rng.integers(0, 256, (n, 2, side, side, 3), np.uint8)
        batch = {"views": (crops,), "index": np.arange(n, dtype=np.int32)}
        epoch = jax.device_put(np.int32(0), mesh_lib.replicated(self.mesh))
        return mesh_lib.shard_batch(batch, self.mesh) | {"epoch": epoch}

    def floats(self) -> jax.Array:
        """Two views of noise, in the network's dtype, on the device."""
        n, side = self.args.batch, self.args.size
        noise = np.random.default_rng(0).standard_normal((n, 2, side, side, 3))
        return mesh_lib.shard_batch(
            jnp.asarray(noise, self.model.backbone.dtype), self.mesh
        )

    def step(self) -> Callable:
        return make_train_step(
            self.model,
            self.optimizer,
            self.mesh,
            views=self.views,
            schedule=self.schedule,
            method=self.method,
            loss_settings=LOSS_DEFAULTS[self.method],
            seed=0,
            log_every=50,
            last_step=100 * _STEPS_PER_EPOCH,
        )

    def step_from_floats(self) -> Callable:
        """The same from finished views, without metrics."""
        gradients = torch_step.gradients_of(self.model, self.args.size, self.method)

        def step(state: TrainState, images: jax.Array) -> tuple[TrainState, jax.Array]:
            (value, stats), grads = gradients(state.params, state.batch_stats, images)
            updates, kept = self.optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            return TrainState(state.step + 1, params, stats, kept), value

        return jax.jit(step, donate_argnums=0)

    def arm(
        self,
        name: str,
        step: Callable,
        batch: Any,
        batches: Iterable[Any] | None = None,
        xla: str = "",
    ) -> timing.Arm:
        """Steps from a fresh state, on one batch or on `batches` that are like it."""
        state = self.fresh()
        program = _compiled(step.lower(state, batch), xla)
        self.programs[name] = program
        self.peak_bytes[name] = _peak_bytes(program)
        batches = itertools.repeat(batch) if batches is None else batches

        def run(count: int) -> None:
            nonlocal state
            for each in itertools.islice(batches, count):
                state, _ = program(state, each)
            jax.block_until_ready(state)

        suffix = SUFFIX[self.method]
        peers = tuple(f"{peer}{suffix}" for peer in (loss.TORCH, COMPILED, OURS))
        work = roofline.step_work(self.args, self.method)
        others = tuple(peer for peer in peers if peer != name)
        return timing.Arm(name, run, *work, peers=others)

    def arms(self) -> list[timing.Arm]:
        """From crops; with each set of XLA's options; from float views."""
        args, name = self.args, f"{OURS}{SUFFIX[self.method]}"
        batch = self.crops()
        arms = [self.arm(name, self.step(), batch)]
        for text in args.xla:
            arms.append(self.arm(f"{name}, {text}", self.step(), batch, xla=text))
        if args.float_views:
            floats = self.step_from_floats()
            arms.append(self.arm(f"{name}, from float views", floats, self.floats()))
        return arms

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

    def fed(self, resample: str) -> tuple[timing.Arm, list[timing.Spent]]:
        """Steps that wait for their pictures: alone, since workers read ahead."""
        name = f"{OURS}{SUFFIX[self.method]}, fed ({resample})"
        batches = self.loader(resample).iterate()
        arm = self.arm(name, self.step(), self.crops(), batches)
        arm.run(5)
        spent = timing.take_turns([arm], self.args.rounds, self.args.seconds)[name]
        batches.close()
        return arm, spent


def _compiled(lowered: Any, xla: str) -> Any:
    """The program, by options written as FLAG=VALUE;FLAG=VALUE.

    Raises:
      SystemExit: XLA does not take them.
    """
    words = {"true": True, "false": False}
    pairs = [pair.partition("=")[::2] for pair in xla.split(";") if pair]
    options = {name: words.get(value, value) for name, value in pairs}
    try:
        return lowered.compile(compiler_options=options or None)
    except jax.errors.JaxRuntimeError as error:
        if not options:
            raise
        raise SystemExit(f"--xla={xla}: {str(error).splitlines()[0]}") from error


def _peak_bytes(program: Any) -> int:
    """What a compiled program holds at most, its arguments and results among it."""
    plan = program.memory_analysis()
    held = plan.argument_size_in_bytes + plan.output_size_in_bytes
    return held + plan.temp_size_in_bytes - plan.alias_size_in_bytes


def open_peer(args: argparse.Namespace) -> torch_step.TorchStep | None:
    """The peer; None, and a line that says so, where it is not installed."""
    try:
        return torch_step.TorchStep(args)
    except ImportError as reason:
        print(f"no arms of torch ({reason}); see requirements-bench.txt")
        return None


def compare(
    peer: torch_step.TorchStep, args: argparse.Namespace, method: str
) -> dict[str, dict[str, float]]:
    """The errors against the peer by dtype; ends the bench where one is too large."""
    errors = {}
    for dtype in ("float64", args.dtype):
        errors[dtype] = torch_step.agreement(peer, args, method, dtype)
        shown = ", ".join(
            f"{name} {error:.1e}" for name, error in errors[dtype].items()
        )
        print(f"{method}, {dtype}, relative errors against torch: {shown}")
        torch_step.check(errors[dtype], dtype)
    return errors


def measure(
    args: argparse.Namespace, method: str, limits: roofline.Limits, where: dict
) -> list[timing.Record]:
    """One record for each arm of a method."""
    peer, extras = open_peer(args), {}
    ours = Ours(args, method)
    suffix = SUFFIX[method]
    if peer:
        extras[f"{OURS}{suffix}"] = {"agreement": compare(peer, args, method)}
    arms = ours.arms()
    if peer:
        work = roofline.step_work(args, method)
        kinds = (False, True) if args.compile else (False,)
        for compiled in kinds:
            name = f"{COMPILED if compiled else loss.TORCH}{suffix}"
            arm = peer.arm(name, method, compiled=compiled)
            arms.append(arm._replace(flop=work.flop, bytes=work.bytes))
            extras[name] = {"peak_bytes": peer.peak_bytes(arm)}
    spent = timing.take_turns(arms, args.rounds, args.seconds)
    for resample in filter(None, args.fed.split(",")):
        arm, of_arm = ours.fed(resample)
        arms.append(arm)
        spent[arm.name] = of_arm
    for name, held in ours.peak_bytes.items():
        extras[name] = extras.get(name, {}) | {"peak_bytes": held}
    if args.profile:
        program = ours.programs[f"{OURS}{suffix}"]
        folder = args.profile / method
        print(traces.keep(folder, program, lambda: arms[0].run(1), _TRACED))
    names = ("backbone", "stem", "size", "batch", "hidden", "q")
    rows = timing.records(
        "step",
        arms,
        spent,
        dtype=args.dtype,
        shapes={name: getattr(args, name) for name in names},
        where=where,
        limit=limits.of(args.dtype),
        extras=extras,
    )
    for row in rows:
        row["views_per_second"] = 2 * args.batch / row["median_seconds"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    roofline.add_step_arguments(parser)
    parser.add_argument(
        "--method", default="sfrik", choices=("sfrik", "vicreg", "both")
    )
    parser.add_argument("--float-views", action="store_true", help="an arm from those")
    help = "an arm with XLA's options: FLAG=VALUE;FLAG=VALUE; more than once for more"
    parser.add_argument("--xla", action="append", default=[], help=help)
    parser.add_argument("--fed", default="", help="exact, fast or both with a comma")
    parser.add_argument("--workers", type=int, default=0, help="of --fed; 0: all cores")
    parser.add_argument("--worker-type", default="auto", choices=WORKER_TYPES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="per arm and round")
    parser.add_argument("--compile", action="store_true", help="torch.compile as well")
    parser.add_argument("--profile", type=Path, help="folder for a trace and a picture")
    parser.add_argument("--json", type=Path, help="where the figures go")
    args = parser.parse_args()
    where = timing.environment(_LIBRARIES)
    print(where)
    limits = roofline.measure([args.dtype])
    methods = ("sfrik", "vicreg") if args.method == "both" else (args.method,)
    rows = [row for each in methods for row in measure(args, each, limits, where)]
    print(timing.table(rows, COLUMNS))
    timing.write_json(args.json, rows)


if __name__ == "__main__":
    main()
