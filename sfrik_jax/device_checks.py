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
        data = num_devices // model if data == -1 else data
        batch = list(_batch_problem(at["data.batch_size"], data))
        yield from batch
        if not batch and at["job"] == "pretrain":
            yield from _parts_problems(at, data)
            yield from _projector_problem(at, {"data": data, "model": model})


def _parts_problems(at: Mapping[str, Any], data: int) -> Iterator[str]:
    batch, micro = at["data.batch_size"], at["step.micro_batches"]
    # Batch norm needs two images in a part.
    fit = [n for n in _divisors(batch // data) if batch >= 2 * n]
    if micro not in fit:
        yield (
            f"step.micro_batches={micro} does not divide the {batch // data} images of "
            f"each of {data} devices into parts of two or more; use {_listed(fit)}"
        )
    parts = at["step.deterministic_reduce"]
    if parts and (batch % parts or parts % data):
        fit = [n for n in _divisors(batch) if n % data == 0]
        yield (
            f"step.deterministic_reduce={parts} must divide data.batch_size={batch} "
            f"and be a multiple of the {data} devices; use {_listed(fit)}"
        )


def _projector_problem(
    at: Mapping[str, Any], sizes: Mapping[str, int]
) -> Iterator[str]:
    axis = at["mesh.projector"]
    parts = sizes.get(axis, 1)
    widths = (*at["model.hidden_dims"], at["model.embed_dim"])
    if any(width % parts for width in widths):
        yield (
            f"mesh.projector={axis!r} splits columns over {parts} devices, which does "
            f"not divide model.hidden_dims and model.embed_dim ({_listed(list(widths))}"
            "); use mesh.projector=replicated or other widths"
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
