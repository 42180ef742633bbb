"""The commands `data prepare`, `data check` and `data preview`."""

import argparse
from pathlib import Path

from sfrik_jax import config as configs
from sfrik_jax.commands.parsing import (
    Groups,
    add_config_option,
    checked_output,
    command,
    count,
    group,
    print_table,
)
from sfrik_jax.errors import (
    ConfigError,
    CorruptInputError,
    MissingInputError,
    OutputError,
)


def add(groups: Groups) -> None:
    """Adds `data`."""
    actions = group(groups, "data", "prepare data sets and look at their views")
    parser = command(
        actions,
        "prepare",
        "write a data set as ArrayRecord, where pretraining reads it",
        "fashion_mini --data-dir data",
        prepare,
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        help="of an image set of TFDS, such as imagenet2012, stl10 or voc/2007, or "
        "fashion_mini or photo_patches",
    )
    parser.add_argument(
        "--data-dir", default="", metavar="DIR", help="where to (default: that of TFDS)"
    )
    parser.add_argument(
        "--from", dest="source", metavar="DIR", help="folder with the downloaded files"
    )
    parser.add_argument(
        "--allow-counts",
        action="store_true",
        help="take other numbers of pictures than the published ones",
    )
    _add_check(actions)
    parser = command(
        actions,
        "preview",
        "draw the augmented views of one step as a PNG",
        "--config configs/quickstart.py --out views.png --step 3",
        preview,
    )
    add_config_option(parser)
    parser.add_argument("--out", required=True, metavar="PNG", help="file to write")
    parser.add_argument(
        "--step", type=count, default=0, metavar="S", help="training step (default 0)"
    )


def _add_check(actions: Groups) -> None:
    parser = command(
        actions,
        "check",
        "read and decode every picture of a set, and name the bad ones",
        "fashion_mini --data-dir data --hashes data/fashion_mini.sha256",
        check,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="of a prepared set")
    parser.add_argument(
        "--data-dir", default="", metavar="DIR", help="where it lies (default: of TFDS)"
    )
    parser.add_argument("--folder", metavar="DIR", help="check a folder of pictures")
    add_config_option(parser, required=False)
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="SPLIT",
        help="only this one; may be repeated (default: all that there are)",
    )
    parser.add_argument(
        "--hashes", metavar="FILE", help="write the SHA-256 sum of each picture"
    )
    parser.add_argument(
        "--against", metavar="FILE", help="compare with such a list of earlier"
    )
    parser.add_argument(
        "--workers", type=count, default=0, metavar="N", help="threads (default: all)"
    )


def prepare(args: argparse.Namespace) -> int:
    """Writes a data set as ArrayRecord and prints where."""
    checked_output(args.data_dir or ".", "--data-dir")
    if args.source is not None and not Path(args.source).is_dir():
        raise MissingInputError(f"--from {args.source}: no such directory")
    from sfrik_jax.data import builders

    place = builders.prepare(
        args.name, args.data_dir, args.source, allow_counts=args.allow_counts
    )
    print(place)
    return 0


def check(args: argparse.Namespace) -> int:
    """Reads every picture of a set and prints what was found in each split."""
    source, name, path = _set_to_check(args)
    write = None if args.hashes is None else checked_output(args.hashes, "--hashes")
    if write is not None:
        if write.is_dir():
            raise OutputError(f"--hashes {write} is a directory; name a file")
        if args.against is not None and write.resolve() == Path(args.against).resolve():
            raise ConfigError(
                f"--hashes {write} and --against are one file; name another one"
            )
        write.parent.mkdir(parents=True, exist_ok=True)
    from sfrik_jax.data import checking

    if source == "folder":
        parts = checking.folder_parts(path, args.split)
    else:
        parts = checking.prepared_parts(name, path, args.split)
    found = checking.check(
        parts,
        workers=args.workers,
        write=write,
        against=None if args.against is None else Path(args.against),
        complete=not args.split,
    )
    print_table(checking.rows(found))
    for line in checking.notes(None if source == "folder" else name, found):
        print(line)
    total = sum(each.pictures for each in found)
    if bad := sum(each.bad for each in found):
        raise CorruptInputError(
            f"{bad} bad of {total} pictures, told above by their id"
        )
    return 0


def _set_to_check(args: argparse.Namespace) -> tuple[str, str, str]:
    """`data.source`, `data.name` and `data.path` of what the command line names."""
    given = [args.name, args.folder, args.config]
    if sum(each is not None for each in given) != 1:
        raise ConfigError("name one set to check: NAME, --folder DIR or --config SPEC")
    if args.config is None:
        if args.overrides:
            raise ConfigError(f"--config.{args.overrides[0]}: needs --config SPEC")
        if args.folder is not None:
            return "folder", "", args.folder
        return "tfds", args.name, args.data_dir
    config = configs.load(args.config, args.overrides)
    configs.validate_here(config, devices=False)
    return config.data.source, config.data.name, config.data.path


def preview(args: argparse.Namespace) -> int:
    """Draws augmented views as a PNG and prints where."""
    path = checked_output(args.out, "--out")
    if path.suffix.lower() != ".png":
        raise ConfigError(f"--out {path}: the name must end in .png")
    if path.is_dir():
        raise OutputError(f"--out {path} is a directory; name a file")
    config = configs.load_for("pretrain", args.config, args.overrides)
    configs.validate_here(config, devices=False)
    from sfrik_jax import pretrain as trainer

    path.parent.mkdir(parents=True, exist_ok=True)
    trainer.preview(config, path, args.step)
    print(path)
    return 0
