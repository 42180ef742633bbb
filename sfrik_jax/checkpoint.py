"""The one door to Orbax: save, verify, restore, fall back.

Each checkpoint carries a digest of every leaf, because Orbax does not notice a
flipped bit. A checkpoint that fails its digest is renamed and kept, the one before
it is taken, and a run whose checkpoints are all bad stops: it never starts afresh
in silence.
"""

import contextlib
import functools
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sfrik_jax import faults, processes
from sfrik_jax.errors import CorruptInputError, Preempted

log = logging.getLogger("sfrik")


class Checkpoints:
    """The checkpoints of one run directory.

    All processes of a job save and restore, each what its devices hold.

    Args:
      directory: created when missing.
      keep: the newest ones that stay, at least 2.
      keep_period: steps divisible by it stay for good (milestones); None for none.
      read_only: another process may be writing here: nothing is changed.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int | None = None,
        keep_period: int | None = None,
        read_only: bool = False,
    ) -> None:
        self.directory = Path(directory).absolute()
        self._read_only = read_only
        self._remedy = "they are kept as *.corrupt. Start in another --workdir"
        if read_only:
            self._remedy = "evaluate another checkpoint"
            options = ocp.CheckpointManagerOptions(
                read_only=True, create=False, save_interval_steps=0
            )
        else:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                keep_period=keep_period,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
            )
        with _quiet() if read_only else contextlib.nullcontext():
            self._manager = ocp.CheckpointManager(self.directory, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, *_) -> None:
        # A save that other processes have left would wait for them.
        together = error is None or (isinstance(error, Preempted) and error.of_all)
        if together or processes.count() == 1:
            self._manager.close()

    def steps(self) -> list[int]:
        """The steps that are stored, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, *, wait: bool = False) -> None:
        """Stores `state` under `step` in the background, or waits for the disk.

        A step that is already stored is left as it is.
        """
        if step in self._manager.all_steps():
            return
        self._manager.check_for_errors()
        digest = _listed(state)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            meta=ocp.args.JsonSave({"digest": digest}),
        )
        if not self._manager.save(step, args=items):
            raise RuntimeError(f"Orbax did not save step {step}")
        if wait:
            self._manager.wait_until_finished()

    def restore(self, abstract: Any, only: int | None = None) -> Any | None:
        """The newest state that is whole, or None where nothing was ever saved.

        Args:
          abstract: the tree of ShapeDtypeStructs with shardings to restore into.
          only: the step of one checkpoint; no other will do.

        Raises:
          CorruptInputError: checkpoints are there and none is whole.
        """
        bad = []
        stored = processes.from_first(self.steps) if only is None else [only]
        for step in reversed(stored):
            faults.at("restore", step)
            state, problem = self._restore_step(step, abstract)
            if problem is None:
                return state
            bad.append(f"step {step}: {problem}")
            log.warning("SFRIK-CKPT-CORRUPT step %d: %s", step, problem)
            self._set_aside(step)
        # Also those that an earlier start set aside: a second try is no fresh start.
        bad = bad or processes.from_first(
            lambda: sorted(path.name for path in self.directory.glob("*.corrupt*"))
        )
        if bad:
            raise processes.of_all(
                CorruptInputError(
                    f"no checkpoint in {self.directory} is whole ({'; '.join(bad)}); "
                    + self._remedy
                )
            )
        return None

    def _restore_step(self, step: int, abstract: Any) -> tuple[Any, str | None]:
        restored, problem = self._read_step(step, abstract)
        # What one process cannot read no process takes.
        problem = next(filter(None, processes.gather(problem)), "")
        if problem:
            return None, problem
        stored, found = dict(restored["meta"]["digest"]), _listed(restored["state"])
        for leaf in sorted(stored.keys() | found.keys()):
            if stored.get(leaf) != found.get(leaf):
                return None, f"leaf {leaf} digest mismatch"
        return restored["state"], None

    def _read_step(self, step: int, abstract: Any) -> tuple[Any, str]:
        """The items of a checkpoint, or why this process cannot read them.

        The manager's own restore waits at its end for all processes, for ever where
        one of them has failed: the handlers read without waiting.
        """
        path = self._manager.directory / str(step)
        read_state = ocp.StandardCheckpointHandler().restore
        read_json = ocp.JsonCheckpointHandler().restore
        try:
            restored = {
                "state": read_state(
                    path / "state", args=ocp.args.StandardRestore(abstract)
                ),
                "meta": read_json(path / "meta", args=ocp.args.JsonRestore()),
            }
            dict(restored["meta"]["digest"])
        except (MemoryError, PermissionError, jax.errors.JaxRuntimeError):
            raise  # of the machine, not of the checkpoint
        # Single flipped bits made Orbax raise AttributeError and Exception itself.
        except Exception as error:
            return None, f"cannot be read ({repr(error)[:200]})"
        return restored, ""

    def _set_aside(self, step: int) -> None:
        if self._read_only:
            return
        path = self.directory / str(step)
        target, number = path.with_name(f"{step}.corrupt"), 1
        while target.exists():
            number += 1
            target = path.with_name(f"{step}.corrupt{number}")
        if processes.first():
            path.rename(target)
        processes.barrier()
        self._manager.reload()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Orbax's warning that a directory which is only read is only read."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def digests(tree: Any) -> dict[str, jax.Array]:
    """A 64-bit digest of each leaf, by path: uint32 [2].

    The sum over elements of a hash of bits and position. Integer sums do not depend
    on the order, so every sharding gives the same digest. It is made for accidents,
    not for adversaries.
    """
    shardings = {getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(tree)}
    meshes = {s.mesh for s in shardings if isinstance(s, NamedSharding)}
    return _digest_on(next(iter(meshes), None))(tree)


def _listed(tree: Any) -> dict[str, list[int]]:
    """`digests` as JSON has them."""
    return {k: v.tolist() for k, v in jax.device_get(digests(tree)).items()}


@functools.cache
def _digest_on(mesh: jax.sharding.Mesh | None):
    """Digests whole on each device: a process sees its own devices alone."""
    whole = None if mesh is None else NamedSharding(mesh, P())
    return jax.jit(_digest_tree, out_shardings=whole)


def _digest_tree(tree: Any) -> dict[str, jax.Array]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): _leaf_digest(leaf) for path, leaf in leaves}


def _leaf_digest(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    width = min(x.dtype.itemsize, 4) * 8  # 8-byte types become pairs of words
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{width}"))
    words = bits.astype(jnp.uint32)
    # Not flattened, which would bring a sharded leaf together on each device.
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        stride = np.uint32(math.prod(words.shape[axis + 1 :]) % 2**32)
        place += stride * jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    seeds = (jnp.uint32(1), jnp.uint32(0x9E3779B9))
    return jnp.stack(
        [jnp.sum(_mix(words ^ _mix(place + s)), dtype=jnp.uint32) for s in seeds]
    )


def _mix(h: jax.Array) -> jax.Array:
    """A bijection of 32-bit words in which every input bit moves every output bit."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * jnp.uint32(0x846CA68B)
    return h ^ (h >> 16)
