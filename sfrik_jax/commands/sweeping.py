"""The command `sweep`."""

import argparse

from sfrik_jax import grids, sweeps
from sfrik_jax.commands.parsing import (
    Groups,
    add_config_option,
    checked_output,
    command,
    count,
    print_table,
)
from sfrik_jax.errors import ConfigError, OutputError, Preempted, SfrikError


def add(groups: Groups) -> None:
    """Adds `sweep`."""
    parser = command(
        groups,
        "sweep",
        "pretrain once for each choice of settings; what is done is kept",
        "--config configs/quickstart.py --workdir runs/sweep "
        '--grid loss.weights="(1,),(1,40)" --grid model.embed_dim=64,128',
        sweep,
    )
    add_config_option(parser)
    parser.add_argument(
        "--workdir", required=True, metavar="DIR", help="gets a directory for each run"
    )
    parser.add_argument(
        "--grid",
        action="append",
        required=True,
        metavar="KEY=VALUE,…",
        help="values of a setting; repeated, each is combined with each",
    )
    parser.add_argument(
        "--jobs", type=count, default=1, metavar="N", help="at a time (default 1)"
    )


def sweep(args: argparse.Namespace) -> int:
    """Carries out what is left of a sweep and prints the state of each run."""
    if args.jobs < 1:
        raise ConfigError(f"--jobs {args.jobs}: it must be at least 1")
    directory = checked_output(args.workdir, "--workdir")
    if directory.exists() and not directory.is_dir():
        raise OutputError(f"--workdir {directory} is a file; name a directory")
    points = grids.product(map(grids.parse_grid, args.grid))
    plan = sweeps.Sweep(args.config, args.overrides, grids.named(points))
    states = sweeps.carry_out(plan, directory, jobs=args.jobs)
    print_table([("run", "state"), *states.items()])
    failed = {name: s for name, s in states.items() if s.startswith("failed")}
    if failed:
        listed = "; ".join(f"{name} {state}" for name, state in failed.items())
        raise SfrikError(
            f"{len(failed)} of {len(states)} runs: {listed}; see log.txt in "
            f"{directory}/NAME; the same command tries them again"
        )
    held = [name for name, state in states.items() if state == sweeps.ELSEWHERE]
    if held:
        raise OutputError(
            f"{', '.join(held)} in {directory}: another process is at work there; wait "
            "for its end and run the same command again"
        )
    stopped = [n for n, state in states.items() if state.startswith(sweeps.STOPPED)]
    if stopped:
        raise Preempted(
            f"{', '.join(stopped)} stopped before the end; the same command goes on"
        )
    return 0
