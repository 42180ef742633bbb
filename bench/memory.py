"""Peak memory of a training step on each device against q, counted without running it.

    python bench/memory.py [--config configs/imagenet_resnet50.py] [--devices 8]
    python bench/memory.py --q 32768 --projector data --remat none,convolutions,blocks

The figures are those of `python -m sfrik_jax plan`: the arrays that live at the same
time in the traced step, in its own dtypes (`sfrik_jax/planning/memory.py`). On
accelerators of that number each step is also compiled and run once, in a process of its
own: "XLA" is the compiler's plan, "measured" the allocator's peak.
"""

import json
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere
from bench import command, timing
from sfrik_jax import config as configs
from sfrik_jax.errors import ConfigError
from sfrik_jax.planning import counted, memory
from sfrik_jax.settings import CHOICES

CONFIG = str(timing.ROOT / "configs" / "imagenet_resnet50.py")
Q = "1024,4096,8192,16384,32768,65536"


def _gb(key: str) -> timing.Column:
    return (lambda row: None if row.get(key) is None else row[key] / 1e9, ".2f")


COLUMNS: dict[str, timing.Column] = {
    "q": (lambda row: row["shapes"]["q"], "d"),
    "projector": "",
    "remat": "",
    "state GB": _gb("state_bytes"),
    "peak GB": _gb("peak_bytes"),
    "XLA GB": _gb("xla_peak_bytes"),
    "measured GB": _gb("measured_peak_bytes"),
}


def choices(text: str, key: str) -> list[str]:
    """Values of a setting, with commas. Errors: ConfigError for another one."""
    values = text.split(",")
    for value in values:
        if value not in CHOICES[key]:
            raise ConfigError(f"{value!r}: {key} is one of {', '.join(CHOICES[key])}")
    return values


def steps(args: Namespace) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """What each row is about, and the overrides of its configuration."""
    for q in args.q:
        for projector in args.projector:
            for remat in args.remat:
                about = {"projector": projector, "remat": remat, "shapes": {"q": q}}
                changed = {
                    "model.embed_dim": q,
                    "mesh.projector": projector,
                    "step.remat": remat,
                }
                settings = [f"{key}={value}" for key, value in changed.items()]
                yield about, [*args.set, *settings]


def row(args: Namespace, overrides: list[str]) -> dict[str, Any]:
    """What is counted of one step, and what was measured where that can be."""
    config = configs.load_for("pretrain", args.config, overrides)
    step = counted.trace(config, args.devices)
    peak, state = step.peak(), step.held()
    found: dict[str, Any] = {
        "peak_bytes": peak.bytes,
        "peak_parts": peak.parts,
        "state_bytes": sum(state.values()) - state["batch"],
    }
    if jax.default_backend() != "cpu" and jax.device_count() == args.devices:
        found |= in_own_process(args.config, overrides)
    return found


def in_own_process(config: str, overrides: list[str]) -> dict[str, Any]:
    """`measured` of a fresh process: an allocator tells its whole process's peak."""
    words = [word for each in overrides for word in ("--set", each)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "peak.json")
        command_line = [sys.executable, __file__, "--config", config, *words]
        done = subprocess.run(
            [*command_line, "--measure", "--json", path], capture_output=True, text=True
        )
        if done.returncode:
            print(f"not measured: {done.stderr.strip().splitlines()[-1:]}")
            return {}
        return json.loads(path.read_text())[0]


def measured(config: Any) -> dict[str, Any]:
    """Compiles a step for the devices here, runs it once, and asks the allocator."""
    program, parts, batch = counted.compiled(config)
    places = jax.tree.map(lambda leaf: leaf.sharding, (parts.state, batch))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), batch)
    state = jax.jit(parts.create, out_shardings=places[0])()
    jax.block_until_ready(program(state, jax.device_put(zeros, places[1])))
    stats = jax.local_devices()[0].memory_stats() or {}
    return {
        "xla_peak_bytes": memory.of_compiled(program),
        "measured_peak_bytes": stats.get("peak_bytes_in_use"),
    }


def arguments() -> Namespace:
    parser = command.parser(__doc__)
    parser.add_argument("--config", default=CONFIG, metavar="SPEC")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--devices", type=command.integer, default=8)
    parser.add_argument("--q", type=command.integers, default=Q)
    parser.add_argument("--projector", default="replicated,data", metavar="NAMES")
    parser.add_argument("--remat", default="none,convolutions,blocks", metavar="NAMES")
    parser.add_argument(
        "--measure", action="store_true", help="run one step of the configuration here"
    )
    args = parser.parse_args()
    args.projector = choices(args.projector, "mesh.projector")
    args.remat = choices(args.remat, "step.remat")
    return args


def main() -> None:
    command.share_the_card()
    args = arguments()
    if args.measure:
        config = configs.load_for("pretrain", args.config, args.set)
        return command.write_json(args.json, [measured(config)])
    where = timing.environment(("jax", "jaxlib", "flax"))
    print(where)
    rows = []
    for about, overrides in steps(args):
        common = {"name": "memory", "arm": f"{about['projector']}, {about['remat']}"}
        rows.append(common | about | row(args, overrides) | where)
    print(f"{args.config} on {args.devices} devices, a device's peak in a step")
    print(timing.table(rows, COLUMNS))
    return command.write_json(args.json, rows)


if __name__ == "__main__":
    command.run(main)
