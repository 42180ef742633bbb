"""The command `replay`."""

import argparse
from pathlib import Path

from sfrik_jax import config as configs
from sfrik_jax import processes
from sfrik_jax.commands.parsing import Groups, checked_output, command, count
from sfrik_jax.errors import ConfigError, MissingInputError, OutputError
from sfrik_jax.interrupts import Stop

# Keys, or sections ending in a dot, that may be others than those of the run.
OF_THE_MACHINE = ("mesh.", "data.workers", "data.worker_type", "processes.", "log.")


def add(groups: Groups) -> None:
    """Adds `replay`."""
    parser = command(
        groups,
        "replay",
        "take a step again whose loss or gradient was not finite, and tell what is not",
        "--workdir runs/quickstart --step 120",
        replay,
    )
    parser.set_defaults(config=None)  # settings of the machine may be others
    parser.add_argument("--workdir", required=True, metavar="DIR", help="run directory")
    parser.add_argument(
        "--step",
        type=count,
        metavar="K",
        help="one with a nonfinite_K.json in the run directory (default: the last)",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="where views.png and report.json go (default: replay_K in the run "
        "directory); nothing else is written",
    )


def replay(args: argparse.Namespace) -> int:
    """Takes the step again and prints what in it is not finite."""
    workdir = Path(args.workdir)
    if not (workdir / "config.json").is_file():
        raise MissingInputError(f"--workdir {workdir} is no run: it has no config.json")
    config = configs.load_for("pretrain", workdir, args.overrides)
    changes = [key for key, *_ in configs.diff(configs.load(workdir), config)]
    refused = [key for key in changes if not key.startswith(OF_THE_MACHINE)]
    if refused:
        raise ConfigError(
            f"{', '.join(refused)}: the step of {workdir} would be another one; leave "
            f"out all settings but {', '.join(OF_THE_MACHINE)}"
        )
    configs.validate(config)
    settings = config.processes
    join, heartbeat = settings.join_seconds, settings.heartbeat_seconds
    with Stop() as stop, processes.joined(join, heartbeat, stop):
        configs.validate_here(config)
        from sfrik_jax import replay as replaying

        step = args.step
        if step is None:
            step = replaying.listed_steps(workdir)[-1]
        out = checked_output(args.out or str(workdir / f"replay_{step}"), "--out")
        if out.exists() and not out.is_dir():
            raise OutputError(f"--out {out} is a file; name a directory")
        lines = replaying.replay(config, workdir, step, out, stop.check_here)
        if processes.first():
            print("\n".join([*lines, f"written: {out}/views.png, {out}/report.json"]))
    return 0
