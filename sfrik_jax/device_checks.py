"""Whether the settings suit the number of devices. Nothing here needs jax."""

from collections.abc import Iterator, Mapping
from typing import Any


def device_problems(at: Mapping[str, Any], num_devices: int) -> Iterator[str]:
    """Findings about the settings and the number of devices."""
    data, model = at["mesh.data"], at["mesh.model"]
    if num_devices % model:
        yield (
            f"mesh.model={model} does not divide the {num_devices} devices; "
            f"use {_listed(_divisors(num_devices))}"
        )
    elif data * model > num_devices:
        yield (
            f"mesh.data={data} times mesh.model={model} is more than the "
            f"{num_devices} devices; use at most {num_devices}, or mesh.data=-1"
        )
    else:
        yield from _batch_problem(
            at["data.batch_size"], num_devices // model if data == -1 else data
        )


def _batch_problem(batch: int, shards: int) -> Iterator[str]:
    rows, left = divmod(batch, shards)
    if not left:
        return
    near = [n * shards for n in (rows, rows + 1) if n]
    counts = [n for n in _divisors(batch) if n < shards]
    yield (
        f"data.batch_size={batch} leaves {left} images over on {shards} devices; "
        f"use {_listed(near)}, or set mesh.data to {_listed(counts)}"
    )


def _divisors(number: int) -> list[int]:
    """The divisors of `number` up to 4096, more than any axis of a mesh here."""
    return [n for n in range(1, min(number, 4096) + 1) if number % n == 0]


def _listed(numbers: list[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last
