"""What is known, while a program is traced, of the machine that it will run on."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_portable = ContextVar("portable", default=False)


@contextmanager
def portable() -> Iterator[None]:
    """Within it the plain operations are traced, for programs that run elsewhere."""
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def is_cpu() -> bool:
    """Whether what is traced will run on this machine's CPU, as far as is known."""
    return jax.default_backend() == "cpu" and not _portable.get()


def is_one_cpu_device() -> bool:
    """Whether the arrays that are traced lie whole on the CPU device of a process.

    So they do where there is one device, and inside `jax.shard_map` where each process
    has one. Several devices of one process are for trying things out, and plain
    operations compile faster.
    """
    if not is_cpu() or jax.local_device_count() > 1:
        return False
    mesh = jax.sharding.get_abstract_mesh()
    inside = bool(mesh.axis_names) and set(mesh.manual_axes) == set(mesh.axis_names)
    return inside or jax.device_count() == 1
