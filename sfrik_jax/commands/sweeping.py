"""The command `sweep`."""

import argparse
import hashlib
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from sfrik_jax import config as configs
from sfrik_jax import config_files, grids, sweeps
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
from sfrik_jax.errors import ConfigError, OutputError, Preempted, SfrikError
from sfrik_jax.files import write_whole
from sfrik_jax.sweeps import board, plans, tuning

METRIC = "linear_top1"


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
        "configuration file, with its argument)",
    )
    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="KEY=VALUE,…",
        help="values of a setting; repeated, each is combined with each, and with "
        "the runs that the configuration file yields",
    )
    parser.add_argument("--jobs", type=count, metavar="N", help="at a time (default 1)")
    parser.add_argument(
        "--metric",
        default=METRIC,
        metavar="NAME",
        help=f"of summary.json, by which a tuning chooses (default {METRIC})",
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
    if args.jobs == 0:
        raise ConfigError(f"--jobs {args.jobs}: it must be at least 1")
    arg = config_files.split_spec(args.config)[1]
    place = default_workdir(args.config) + (f"_{arg}" if arg else "")
    directory = checked_output(args.workdir or place, "--workdir")
    sweeps.refuse_taken(directory)
    configs.load_for("pretrain", args.config, args.overrides)  # that it is one
    plan = plans.read(args.config, args.grid)
    final, again = plan.final, _again(args, directory)
    if plan.candidates:
        common = [*args.overrides, *plan.validation]
        named = grids.named(plan.candidates)
        candidates = sweeps.Sweep(args.config, common, named, again)
        # Before hours of tuning: the settings of the final runs are right as well.
        sweeps.Sweep(args.config, args.overrides, grids.named(final)).settings()
        tuning.groups(final, named)
        choices = tuning.kept(directory, args.metric, common, final, named)
        if choices is None:
            if not _stage(candidates, directory / tuning.FOLDER, args, sweeps.DIVERGED):
                return 0
            values = tuning.figures(directory / tuning.FOLDER, named, args.metric)
            choices = tuning.choose(final, named, values)
            tuning.keep(directory, args.metric, common, choices)
        _print_choices(choices, args.metric)
        final = tuning.applied(final, choices)
    named = grids.named(final)
    _stage(sweeps.Sweep(args.config, args.overrides, named, again), directory, args)
    return 0


def _again(args: argparse.Namespace, directory: Path) -> tuple[str, ...]:
    """The words of this command, but for how many runs there are at a time."""
    words = ["sweep", "--config", args.config, "--workdir", str(directory)]
    words += [word for text in args.grid for word in ("--grid", text)]
    words += ["--metric", args.metric] if args.metric != METRIC else []
    return (*words, *(f"--config.{text}" for text in args.overrides))


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
    if args.write or args.status:
        found = sweeps.note(stage, directory)
        ended = (board.DONE, tolerated)
        left = [run for run in stage.runs if found[run.name] not in ended]
        if args.status:
            print_table([("run", "state"), *found.items()])
        elif left:
            _write(stage, left, directory, args)
        else:
            print(f"all {len(stage.runs)} runs of {directory} have ended")
        return not left
    display, jobs = _display(directory), args.jobs or 1
    found = sweeps.carry_out(stage, directory, display=display, jobs=jobs)
    print_table([("run", "state"), *found.items()])
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
    content = "".join(lines).encode()
    # An array reads its lines as its elements start: a list is never overwritten.
    digest = hashlib.sha256(content).hexdigest()[:8]
    path = directory / f"commands_{digest}.txt"
    write_whole(path, content)
    print(f"{path}: {len(lines)} of {len(stage.runs)} runs, one a line")
    if args.write == "slurm":
        limit = f"%{args.jobs}" if args.jobs else ""
        print(
            f"sbatch --array=1-{len(lines)}{limit} launch/slurm.sbatch "
            f"--commands {shlex.quote(str(path))}"
        )
    print("the same sweep with --status tells what is done")


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
