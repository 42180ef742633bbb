"""The evaluation commands: linear, finetune, features, knn, logreg, voc-svm, gauges."""

import argparse
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sfrik_jax import config as configs
from sfrik_jax.commands import running
from sfrik_jax.commands.parsing import (
    Groups,
    Parser,
    add_config_option,
    checked_name,
    checked_output,
    command,
)
from sfrik_jax.errors import ConfigError, OutputError
from sfrik_jax.settings import DEFAULTS

# Command, what its help says, and the arguments of the example.
COMMANDS = {
    "linear": (
        "linear probe: heads of several settings on a frozen backbone",
        "--config configs/linear_imagenet.py --weights runs/r50",
    ),
    "finetune": (
        "semi-supervised: backbone and head trained on few labels",
        "--config configs/finetune_imagenet.py:1 --weights runs/r50",
    ),
    "features": (
        "store the features of a data set, to be used by other commands",
        "--config configs/features_imagenet.py --weights resnet50.pth",
    ),
    "knn": (
        "weighted k-nearest-neighbour classification of stored features",
        "--config configs/knn_imagenet.py --weights runs/r50",
    ),
    "logreg": (
        "logistic regression on stored features",
        "--config configs/logreg_stl10.py --weights runs/stl10",
    ),
    "voc-svm": (
        "linear SVMs of the 20 classes of VOC07, and of few images of each",
        "--config configs/voc07_svm.py --weights runs/r50",
    ),
    "gauges": (
        "rank, alignment, uniformity and distance to uniform, without labels",
        "--config configs/gauges_imagenet.py --weights runs/r50",
    ),
}


def add(groups: Groups) -> None:
    """Adds the evaluation commands."""
    for name, (words, example) in COMMANDS.items():
        parser = command(groups, name, words, example, run)
        parser.set_defaults(job=name.replace("-", "_"))
        add_config_option(parser)
        parser.add_argument(
            "--weights",
            metavar="PATH",
            help="run directory, checkpoint (RUN/checkpoints/STEP), .safetensors or "
            "PyTorch's .pth; the same as --config.weights=PATH",
        )
        parser.add_argument(
            "--workdir",
            metavar="DIR",
            help="where eval/NAME.json goes (default: the run directory of the "
            "weights; of a file, runs/ and its name)",
        )
        parser.add_argument(
            "--name", help=f"of the figures in the working directory (default {name})"
        )
        if name == "linear":
            _add_follow(parser)


def _add_follow(parser: Parser) -> None:
    parser.add_argument(
        "--every-checkpoint",
        action="store_true",
        help="judge each checkpoint of a run on data.val_split, waiting for those to "
        "come, then test the best one on data.test_split",
    )
    parser.add_argument(
        "--no-wait",
        action="store_true",
        help="with --every-checkpoint: the best of those that are there",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the job of the command and prints its figures."""
    config = _config(args)
    workdir = _workdir(args, config)
    default = args.job.replace("_", "-")
    name = checked_name(default if args.name is None else args.name, "--name")
    all_of_it = getattr(args, "every_checkpoint", False)
    if getattr(args, "no_wait", False) and not all_of_it:
        raise ConfigError("--no-wait: needs --every-checkpoint")
    with running.job(DEFAULTS["processes"], workdir):
        from sfrik_jax.jobs import follow, runner

        if all_of_it:
            follow.every_checkpoint(config, workdir, name, wait=not args.no_wait)
        else:
            runner.run(config, workdir, name)
    return 0


def _config(args: argparse.Namespace) -> ConfigDict:
    overrides: list[Any] = list(args.overrides)
    if args.weights is not None:
        overrides.append(f"weights={args.weights}")
    config = configs.load_for(args.job, args.config, overrides)
    configs.validate(config)
    return config


def _workdir(args: argparse.Namespace, config: ConfigDict) -> Path:
    workdir = args.workdir
    if workdir is None:
        workdir = str(_beside(Path(config.weights)))
    place = checked_output(workdir, "--workdir")
    if place.exists() and not place.is_dir():
        raise OutputError(f"--workdir {place} is a file; name a directory")
    return place


def _beside(weights: Path) -> Path:
    """The run directory that weights belong to, or runs/NAME for a file."""
    inside = weights.parent.name == "checkpoints" and weights.name.isdecimal()
    run = weights.parent.parent if inside else weights
    if weights.name == "backbone.safetensors":
        run = weights.parent
    return run if (run / "config.json").is_file() else Path("runs", weights.stem)
