"""Our training step as the bench runs it: its state, its batches, its arms."""

import argparse
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bench import input as host
from bench import roofline, timing, torch_step
from bench.timing import COMPILED, OURS, TORCH
from sfrik_jax import mesh as mesh_lib
from sfrik_jax import optim, train_state
from sfrik_jax.data import views
from sfrik_jax.data.loader import TrainLoader
from sfrik_jax.planning import memory
from sfrik_jax.settings import LOSS_DEFAULTS
from sfrik_jax.step import make_learner, make_train_step
from sfrik_jax.train_state import TrainState

SUFFIX = {"sfrik": "", "vicreg": ", VICReg"}
_STEPS_PER_EPOCH = 100


class Ours:
    """The step of `pretrain`, its state, and batches of random crops."""

    def __init__(self, args: argparse.Namespace, method: str) -> None:
        self.args, self.method = args, method
        self.mesh = mesh_lib.make_mesh()
        self.views = views.build(args.size, recipe="vicreg")
        self.model = roofline.step_model(args)
        self.schedule = optim.warmup_cosine(
            base_lr=1.2,
            batch_size=args.batch,
            epochs=100,
            steps_per_epoch=_STEPS_PER_EPOCH,
        )
        self.optimizer = optim.lars(self.schedule, weight_decay=1e-6)
        self.peak_bytes: dict[str, int] = {}
        self.programs: dict[str, Any] = {}

    def create(self) -> TrainState:
        return train_state.create(0, self.model, self.optimizer, self.args.size)

    def fresh(self) -> TrainState:
        whole = mesh_lib.replicated(self.mesh)
        return jax.jit(self.create, out_shardings=whole)()

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
        learner = make_learner(
            self.model,
            self.mesh,
            views=self.views,
            method=self.method,
            loss_settings=LOSS_DEFAULTS[self.method],
            seed=0,
        )
        return make_train_step(
            learner,
            self.optimizer,
            mesh_lib.abstract(self.create, self.mesh),
            schedule=self.schedule,
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
            done = state.step + 1
            return TrainState(done, params, stats, kept, state.skipped), value

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
        self.peak_bytes[name] = memory.of_compiled(program)
        batches = itertools.repeat(batch) if batches is None else batches

        def run(count: int) -> None:
            nonlocal state
            for each in itertools.islice(batches, count):
                state, _ = program(state, each)
            jax.block_until_ready(state)

        suffix = SUFFIX[self.method]
        peers = tuple(f"{peer}{suffix}" for peer in (TORCH, COMPILED, OURS))
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
        """Steps that wait for their pictures: alone, since workers read ahead.

        As they took no turns with others they have no peers.
        """
        name = f"{OURS}{SUFFIX[self.method]}, fed ({resample})"
        batches = self.loader(resample).iterate()
        arm = self.arm(name, self.step(), self.crops(), batches)._replace(peers=())
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
