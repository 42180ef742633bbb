"""A plan in lines of at most 80 columns."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sfrik_jax.planning.hardware import SHEETS
from sfrik_jax.planning.programs import PARTS

STATE = {
    "params": "parameters",
    "opt_state": "optimiser state",
    "batch_stats": "batch statistics",
    "batch": "batch, as it comes from the host",
}
WIDTH = 38


def lines(record: Mapping[str, Any], xla_peak: int | None = None) -> Iterator[str]:
    """The record of `plan.make`.

    Args:
      xla_peak: what XLA plans for the compiled step, where it was compiled.
    """
    mesh = ", ".join(f"{axis} {size}" for axis, size in record["mesh"].items())
    millions = {part: n / 1e6 for part, n in record["parameters"].items()}
    yield f"{record['devices']} devices ({mesh}), {record['dtype']}"
    yield (
        f"{record['batch_size']:,} images of {record['views']} views a step; "
        f"parameters: backbone {millions['backbone']:,.1f} M, "
        f"projector {millions['projector']:,.1f} M"
    )
    if record["uncounted"]:
        yield f"not counted: {record['uncounted']}"
    yield from _memory(record, xla_peak)
    yield from _work(record)
    yield from _received(record)
    yield from _estimates(record)


def _memory(record: Mapping[str, Any], xla_peak: int | None) -> Iterator[str]:
    parts = dict(record["peak_parts"])
    yield ""
    yield f"{'memory of a device, at the peak of a step':<{WIDTH + 6}}{'GB':>8}"
    for key, words in STATE.items():
        yield _row(words, parts.pop(key, 0) / 1e9)
    for part in PARTS:
        yield _row(f"arrays of the {part}", parts.pop(part, 0) / 1e9)
    other = sum(parts.values())
    if other > 5e6:
        yield _row("other", other / 1e9)
    yield _row("peak, counted", record["peak_bytes"] / 1e9)
    if xla_peak is not None:
        yield _row("peak by XLA's plan of the compiled step", xla_peak / 1e9)


def _row(words: str, value: float) -> str:
    return f"  {words:<{WIDTH + 4}}{value:>8,.2f}"


def _work(record: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield f"{'arithmetic of a device and step':<{WIDTH + 6}}{'TFLOP':>8}"
    for part, flop in record["flop"].items():
        if flop:
            yield _row(part, flop / 1e12)
    yield _row("in all", sum(record["flop"].values()) / 1e12)
    yield _row("to and from memory, GB", record["traffic_bytes"] / 1e9)


def _received(record: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield f"{'received by a device in a step':<{WIDTH}}{'count':>6}{'MB':>12}"
    for row in record["collectives"]:
        words = f"{row['part']}: {row['kind']}, {row['dtype']}"
        yield f"  {words:<{WIDTH - 2}}{row['count']:>6}{row['bytes'] / 1e6:>12,.1f}"
    total = record["received_bytes"] / 1e6
    yield f"  {'in all':<{WIDTH - 2}}{'':>6}{total:>12,.1f}"


def _estimates(record: Mapping[str, Any]) -> Iterator[str]:
    """The longer of arithmetic and memory, and the network after it."""
    heads = ("arithmetic", "memory", "network", "step", "views/s", "hours", "fits")
    yield ""
    yield (
        "at the rates of the makers' data sheets, ms a step; hours of "
        f"{record['epochs']} epochs"
    )
    yield f"{'':<12}" + "".join(f"{head:>{max(9, len(head) + 1)}}" for head in heads)
    for name, took in record["estimates"].items():
        ms = [1e3 * took[key] for key in ("arithmetic", "traffic", "network", "step")]
        rate = record["batch_size"] * record["views"] / took["step"]
        hours = "–" if took["hours"] is None else f"{took['hours']:,.1f}"
        numbers = [*(f"{each:,.1f}" for each in ms), f"{rate:,.0f}", hours]
        cells = [*numbers, "yes" if took["fits"] else "no"]
        yield f"  {name:<10}" + "".join(
            f" {cell:>{max(8, len(head))}}"
            for cell, head in zip(cells, heads, strict=True)
        )
    yield "a step = the longer of arithmetic and memory, then the network; no card"
    yield "reaches its sheet. Input from the host is not in it."
    if record["dtype"] != "bfloat16":
        yield f"The sheets' rates are of bfloat16; {record['dtype']} takes longer."


def warning(
    name: str, peak: int, remedy: tuple[Sequence[str], int] | None
) -> Iterator[str]:
    """That a step does not fit, and what would make it fit."""
    memory = SHEETS[name].memory
    yield (
        f"warning: a step needs {peak / 1e9:,.1f} GB; {name} has {memory / 1e9:.0f}, a "
        "tenth of it for the compiler"
    )
    if remedy is None:
        yield "  no setting makes it fit: take more devices or a smaller batch"
        return
    settings, less = remedy
    words = " ".join(f"--config.{each}" for each in settings)
    yield f"  {less / 1e9:,.1f} GB with {words}"
    if "micro_batches" in words:
        yield "  (batch norm then sees a part of the batch)"
