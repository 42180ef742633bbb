"""The command `sweep`."""

import argparse
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from sfrik_jax import grids, sweeps
from sfrik_jax.commands.parsing import (
    RUN,
    Groups,
    add_config_option,
    checked_output,
    command,
    count,
    default_workdir,
    print_table,
)
from sfrik_jax.errors import (
    ConfigError,
    NonFiniteError,
    OutputError,
    Preempted,
    SfrikError,
)
from sfrik_jax.files import make_folder, write_whole
from sfrik_jax.sweeps import board, plans, tuning

COMMANDS = "commands.txt"
DIVERGED = f"failed (code {NonFiniteError.code})"


def add(groups: Groups) -> None:
    """Adds `sweep`."""
    parser = command(
        groups,
        "sweep",
        "pretrain once for each choice of settings; what is done is kept",
        "--config configs/ablation_L_q.py:small --workdir runs/L_q\n"
        f"  {RUN} sweep --config configs/quickstart.py --workdir runs/sweep "
        '--grid loss.weights="(1,),(1,40)" --grid seed=0,1',
        sweep,
    )
    add_config_option(parser)
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="gets a directory for each run (default: runs/ and the name of the "
        "configuration file)",
    )
    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="KEY=VALUE,…",
        help="values of a setting; repeated, each is combined with each, and with "
        "the runs that the configuration file yields",
    )
    parser.add_argument(
        "--jobs", type=count, default=1, metavar="N", help="at a time (default 1)"
    )
    parser.add_argument(
        "--metric",
        default="linear_top1",
        metavar="NAME",
        help="of summary.json, by which a tuning chooses (default linear_top1)",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--write",
        choices=("commands", "slurm"),
        help="run nothing: write what is left as a list of commands, and for SLURM "
        "say how to submit it as an array",
    )
    instead.add_argument(
        "--status", action="store_true", help="run nothing: print the states"
    )


def sweep(args: argparse.Namespace) -> int:
    """Carries out what is left of a sweep and prints the state of each run."""
    if args.jobs < 1:
        raise ConfigError(f"--jobs {args.jobs}: it must be at least 1")
    place = args.workdir or default_workdir(args.config)
    directory = checked_output(place, "--workdir")
    sweeps.refuse_file(directory)
    plan = plans.read(args.config, args.grid)
    final = plan.final
    if plan.candidates:
        common = [*args.overrides, *plan.validation]
        named = grids.named(plan.candidates)
        candidates = sweeps.Sweep(args.config, common, named)
        # Before hours of tuning: the settings of the final runs are right as well.
        sweeps.Sweep(args.config, args.overrides, grids.named(final)).settings()
        choices = tuning.kept(directory, args.metric, final, named)
        if choices is None:
            if not _stage(candidates, directory / tuning.FOLDER, args, DIVERGED):
                return 0
            values = tuning.figures(directory / tuning.FOLDER, named, args.metric)
            choices = tuning.choose(final, named, values)
            tuning.keep(directory, args.metric, choices)
        _print_choices(choices, args.metric)
        final = tuning.applied(final, choices)
    _stage(
        sweeps.Sweep(args.config, args.overrides, grids.named(final)), directory, args
    )
    return 0


def _stage(
    stage: sweeps.Sweep,
    directory: Path,
    args: argparse.Namespace,
    tolerated: str | None = None,
) -> bool:
    """Carries out, lists or shows one stage; whether the next one may begin.

    Args:
      tolerated: a state that does not stand in the next stage's way.

    Raises: SfrikError where runs have failed, stopped, or run elsewhere.
    """
    if args.write:
        left = sweeps.left(stage, directory)
        if left:
            _write(stage, left, directory, args)
        else:
            print(f"all {len(stage.runs)} runs of {directory} are done")
        return not left
    if args.status:
        found = sweeps.states(stage, directory, stage.settings())
    else:
        found = sweeps.carry_out(
            stage, directory, display=_display(directory), jobs=args.jobs
        )
    print_table([("run", "state"), *found.items()])
    if args.status:
        return all(state == board.DONE for state in found.values())
    _raise_unless_done(
        {name: s for name, s in found.items() if s != tolerated}, len(found), directory
    )
    return True


def _display(directory: Path) -> board.Display:
    if sys.stdout.isatty():
        return board.LiveTable(f"sweep {directory}")
    return board.Lines()


def _raise_unless_done(states: Mapping[str, str], total: int, directory: Path) -> None:
    failed = sweeps.failures(states)
    if failed:
        listed = "; ".join(f"{name} {state}" for name, state in failed.items())
        raise SfrikError(
            f"{len(failed)} of {total} runs: {listed}; see log.txt in "
            f"{directory}/NAME; the same command tries them again"
        )
    held = [name for name, state in states.items() if state == board.ELSEWHERE]
    if held:
        raise OutputError(
            f"{', '.join(held)} in {directory}: another process is at work there; wait "
            "for its end and run the same command again"
        )
    stopped = [n for n, state in states.items() if state.startswith(board.STOPPED)]
    if stopped:
        raise Preempted(
            f"{', '.join(stopped)} stopped before the end; the same command goes on"
        )


def _write(
    stage: sweeps.Sweep,
    left: list[grids.Run],
    directory: Path,
    args: argparse.Namespace,
) -> None:
    """Writes the commands of the runs that are left, and says what to do with them."""
    lines = [f"{RUN} {shlex.join(stage.command(run, directory))}\n" for run in left]
    make_folder(directory)
    path = directory / COMMANDS
    write_whole(path, "".join(lines).encode())
    print(f"{path}: {len(lines)} of {len(stage.runs)} runs, one a line")
    if args.write == "slurm":
        limit = f"%{args.jobs}" if args.jobs > 1 else ""
        print(
            f"sbatch --array=1-{len(lines)}{limit} launch/slurm.sbatch "
            f"--commands {shlex.quote(str(path))}"
        )
    print("then the same sweep without --write tells what is done")


def _print_choices(choices: list[tuning.Choice], metric: str) -> None:
    rows = [
        (
            ", ".join(f"{k}={v}" for k, v in choice.group.items()) or "all runs",
            ", ".join(f"{k}={v}" for k, v in choice.chosen.items()) or "as they are",
            f"{choice.value:.2f}",
        )
        for choice in choices
    ]
    print_table([("runs", "chosen on the validation split", metric), *rows])
