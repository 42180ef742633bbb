"""The command `pretrain`."""

import argparse
from pathlib import Path

from sfrik_jax import config as configs
from sfrik_jax import resuming
from sfrik_jax.commands import running
from sfrik_jax.commands.parsing import (
    Groups,
    add_config_option,
    checked_output,
    command,
    default_workdir,
)
from sfrik_jax.errors import OutputError


def add(groups: Groups) -> None:
    """Adds `pretrain`."""
    parser = command(
        groups,
        "pretrain",
        "pretrain a backbone and evaluate it; resumes what the run directory holds",
        "--config configs/quickstart.py --workdir runs/quickstart "
        "--config.optim.epochs=5",
        pretrain,
    )
    add_config_option(parser)
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="run directory, made if missing (default: runs/ and the name of the "
        "configuration file; of a config.json, its directory)",
    )
    parser.add_argument(
        "--allow-config-change",
        action="append",
        default=[],
        metavar="KEY",
        help="go on although this setting, or section, is another than that of the "
        "run; may be repeated",
    )


def pretrain(args: argparse.Namespace) -> int:
    """Trains in the run directory, or goes on with what it holds."""
    config = configs.load_for("pretrain", args.config, args.overrides)
    configs.validate(config)
    allowed = resuming.checked(args.allow_config_change, configs.flatten(config))
    place = args.workdir or default_workdir(args.config)
    with running.job(config.processes, Path(place)):
        workdir = checked_workdir(place)
        # Asks for devices, which are those of all processes from here on.
        configs.validate_here(config)
        from sfrik_jax import pretrain as trainer

        return trainer.pretrain(config, workdir, allowed)


def checked_workdir(path: str) -> Path:
    """The run directory, if it is one or can be made."""
    workdir = checked_output(path, "--workdir")
    if workdir.exists() and not workdir.is_dir():
        raise OutputError(f"--workdir {workdir} is a file; name a directory")
    return workdir
