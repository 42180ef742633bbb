"""The devices that jax sees: what they are, whether they compute, compile and talk."""

import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from sfrik_jax import config as configs
from sfrik_jax import mesh as mesh_lib
from sfrik_jax.checkpoint import room
from sfrik_jax.collectives import DATA
from sfrik_jax.doctor.findings import (
    Context,
    Finding,
    failed,
    ok,
    programs_folder,
    warning,
)
from sfrik_jax.errors import MachineError

SLOW_COMPILE = 20.0  # seconds for a program that takes half a second here
GPU = Path("/dev/nvidia0")


def devices(context: Context) -> Finding:
    """Kind, number and memory; a GPU that jax does not use is told."""
    count = configs.device_count()
    kinds = sorted({device.device_kind for device in jax.devices()})
    words = f"{count} x {', '.join(kinds)}, {room.words(memory())} of memory each"
    if jax.default_backend() != "cpu":
        return ok(f"jax {jax.__version__}: {words}")
    words = (
        f"jax {jax.__version__}: {count} x cpu, {room.words(memory())} of memory in all"
    )
    if GPU.exists() and "cpu" not in os.environ.get("JAX_PLATFORMS", ""):
        return warning(f"{words}, and not the GPU", "pip install 'jax[cuda12]'")
    return ok(words)


def memory() -> int:
    """Bytes of one device; of a CPU those that the system says are there."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if jax.default_backend() != "cpu" and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def compiles(context: Context) -> Finding:
    """A small program compiles, in a time that lets runs start, and computes right."""
    x = np.arange(64, dtype=np.float32).reshape(8, 8) / 64
    begin = time.perf_counter()
    # A constant of its own: no cache holds the program.
    shift = float(time.time_ns() % 10**9) / 1e9

    @jax.jit
    def program(x: jax.Array) -> jax.Array:
        return jnp.tanh(jnp.matmul(x, x.T, precision="highest") + shift)

    found = np.asarray(program(x))
    seconds = time.perf_counter() - begin
    if np.abs(found - np.tanh(x @ x.T + shift)).max() > 1e-5:
        return failed(
            "a product of matrices comes out wrong",
            "update the driver and jax, or leave this device out",
            MachineError.code,
        )
    words = f"a small program compiles in {seconds:.1f} s; cache of programs: "
    words += str(programs_folder() or "none")
    if seconds > SLOW_COMPILE:
        return warning(words, "the processor is busy, or its cores are few")
    return ok(words)


def collective(context: Context) -> Finding:
    """The devices add up a number of each: 1 + 2 + … + n = n (n + 1) / 2."""
    mesh = mesh_lib.make_mesh()
    count = mesh.size
    ones = mesh_lib.shard_batch(np.arange(1, count + 1, dtype=np.float32), mesh)
    add = jax.shard_map(
        lambda x: jax.lax.psum(x, DATA), mesh=mesh, in_specs=P(DATA), out_specs=P()
    )
    found, want = float(jax.jit(add)(ones)[0]), count * (count + 1) / 2
    if found != want:
        return failed(
            f"the sum over {count} devices is {found:g}, not {want:g}",
            "check the links between them (nvidia-smi topo -m; NCCL_DEBUG=INFO)",
            MachineError.code,
        )
    return ok(f"a sum over {count} device{'s' * (count > 1)} is right ({want:g})")
