"""The command `plan`."""

import argparse
import json
from typing import Any

from sfrik_jax import config as configs
from sfrik_jax import files
from sfrik_jax.commands.parsing import (
    Groups,
    add_config_option,
    checked_output,
    command,
    count,
)
from sfrik_jax.errors import ConfigError, OutputError
from sfrik_jax.planning.hardware import SHEETS

HARDWARE = "h200,h100,a100,tpu-v4,tpu-v5e"


def add(groups: Groups) -> None:
    """Adds `plan`."""
    parser = command(
        groups,
        "plan",
        "print what a run needs, without running it: parameters, memory, arithmetic, "
        "traffic, time",
        "--config configs/imagenet_resnet50.py --devices 8 "
        "--config.mesh.projector=data",
        plan,
    )
    add_config_option(parser)
    parser.add_argument(
        "--devices", type=count, metavar="N", help="of all hosts (default: those here)"
    )
    parser.add_argument(
        "--hardware",
        default=HARDWARE,
        metavar="NAMES",
        help=f"with commas, of {', '.join(SHEETS)} (default {HARDWARE})",
    )
    parser.add_argument(
        "--images",
        type=count,
        metavar="N",
        help="of the training set (default: those of the configuration's)",
    )
    parser.add_argument("--json", metavar="PATH", help="where the figures go as well")


def plan(args: argparse.Namespace) -> int:
    """Counts the step of a configuration and prints what follows from it."""
    out = checked_output(args.json, "--json") if args.json else None
    if out and out.is_dir():
        raise OutputError(f"--json {out} is a folder; name a file")
    hardware = _hardware(args.hardware)
    config = configs.load_for("pretrain", args.config, args.overrides)
    images = args.images
    if images is None:
        images = configs.validate_here(config, devices=False)
    devices = configs.device_count() if args.devices is None else args.devices
    if devices < 1:
        raise ConfigError("--devices 0: a run takes one device at least")
    configs.validate(config, num_examples=images, num_devices=devices)

    from sfrik_jax.planning import plan as plans
    from sfrik_jax.planning import told

    record = plans.make(config, devices, hardware, images)
    record["xla_peak_bytes"] = _peak_by_xla(config, devices)
    for line in told.lines(record, record["xla_peak_bytes"]):
        print(line)
    if images is None:
        print("No hours: the training set is not here; --images N tells its size.")
    remedies = plans.Remedies(config, devices)
    for name, took in record["estimates"].items():
        if not took["fits"]:
            remedy = remedies.for_memory(SHEETS[name].memory)
            took["remedy"] = remedy
            for line in told.warning(name, record["peak_bytes"], remedy):
                print(line)
    if out:
        files.make_folder(out.parent)
        files.write_whole(out, f"{json.dumps(record, indent=1)}\n".encode())
    return 0


def _hardware(text: str) -> list[str]:
    """Names of data sheets. Errors: ConfigError for one that is not here."""
    names = text.split(",")
    for name in names:
        if name not in SHEETS:
            raise ConfigError(f"--hardware {name!r}: choose of {', '.join(SHEETS)}")
    return names


def _peak_by_xla(config: Any, devices: int) -> int | None:
    """On so many accelerators, the compiled step's; a CPU's says nothing of them."""
    import jax

    from sfrik_jax.planning import counted, memory

    if jax.default_backend() == "cpu" or jax.device_count() != devices:
        return None
    try:
        return memory.of_compiled(counted.compiled(config)[0])
    except jax.errors.JaxRuntimeError as error:
        first = str(error).splitlines()[0][:160]
        print(f"XLA does not compile the step for the devices here: {first}")
        return None
