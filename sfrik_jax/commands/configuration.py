"""The commands `config show` and `config diff`."""

import argparse

from sfrik_jax import config as configs
from sfrik_jax.commands.parsing import (
    Groups,
    add_config_option,
    command,
    group,
    print_table,
)


def add(groups: Groups) -> None:
    """Adds `config`."""
    actions = group(groups, "config", "show and compare configurations")
    parser = command(
        actions,
        "show",
        "print all settings after overrides",
        "--config configs/quickstart.py --config.loss.method=vicreg",
        show,
    )
    add_config_option(parser)
    parser.add_argument("--json", action="store_true", help="as stored with a run")
    parser = command(
        actions,
        "diff",
        "print the settings that differ",
        "configs/quickstart.py runs/quickstart",
        diff,
    )
    parser.add_argument(
        "a", metavar="A", help="config file, config.json or run directory"
    )
    parser.add_argument("b", metavar="B", help="the same, to compare with")


def show(args: argparse.Namespace) -> int:
    """Prints all settings, aligned or as JSON, and the steps they make."""
    config = configs.load(args.config, args.overrides)
    num_examples = configs.validate_here(config, devices=False)
    if args.json:
        print(configs.to_json(config))
        return 0
    rows = [(key, repr(value)) for key, value in configs.flatten(config).items()]
    print_table(rows)
    if num_examples is not None:
        schedule = configs.derive(config, num_examples)
        print(
            f"# {num_examples} images: {schedule.steps_per_epoch} steps per epoch, "
            f"{schedule.total_steps} in all, {schedule.warmup_steps:g} of warm-up, "
            f"peak rate {schedule.peak_lr:g}"
        )
    return 0


def diff(args: argparse.Namespace) -> int:
    """Prints key, value in A, value in B of each setting that differs."""
    changes = configs.diff(configs.load(args.a), configs.load(args.b))
    print_table(
        [
            (key, *("-" if value is None else repr(value) for value in values))
            for key, *values in changes
        ]
    )
    return 0
