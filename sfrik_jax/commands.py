"""What each command of the command line does: check, call the library, print.

Modules that load jax are imported inside the functions, after the configuration is
checked, so that a wrong setting is reported at once.
"""

import argparse
import os
from pathlib import Path

from sfrik_jax import config as configs
from sfrik_jax.errors import (
    ConfigError,
    CorruptInputError,
    MissingInputError,
    OutputError,
)

NAME_BYTES = 255  # the longest file name that common file systems take


def pretrain(args: argparse.Namespace) -> int:
    """Trains in the run directory, or goes on with what it holds."""
    workdir = args.workdir
    if workdir is None:
        workdir = default_workdir(args.config)
    workdir = checked_output(workdir, "--workdir")
    if workdir.exists() and not workdir.is_dir():
        raise OutputError(f"--workdir {workdir} is a file; name a directory")
    config = configs.load(args.config, args.overrides)
    configs.validate_here(config)
    from sfrik_jax import pretrain as trainer

    return trainer.pretrain(config, workdir)


def default_workdir(spec: str) -> str:
    """Where a run goes that is not told: a run's own directory, or runs/NAME."""
    path = Path(spec.partition(".py:")[0])
    if path.is_dir():
        return str(path)
    if path.suffix == ".json":
        return str(path.parent)
    return str(Path("runs", path.stem))


def config_show(args: argparse.Namespace) -> int:
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


def config_diff(args: argparse.Namespace) -> int:
    """Prints key, value in A, value in B of each setting that differs."""
    changes = configs.diff(configs.load(args.a), configs.load(args.b))
    print_table(
        [
            (key, *("-" if value is None else repr(value) for value in values))
            for key, *values in changes
        ]
    )
    return 0


def data_prepare(args: argparse.Namespace) -> int:
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


def data_check(args: argparse.Namespace) -> int:
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


def data_preview(args: argparse.Namespace) -> int:
    """Draws augmented views as a PNG and prints where."""
    path = checked_output(args.out, "--out")
    if path.suffix.lower() != ".png":
        raise ConfigError(f"--out {path}: the name must end in .png")
    if path.is_dir():
        raise OutputError(f"--out {path} is a directory; name a file")
    config = configs.load(args.config, args.overrides)
    configs.validate_here(config, devices=False)
    from sfrik_jax import pretrain as trainer

    path.parent.mkdir(parents=True, exist_ok=True)
    trainer.preview(config, path, args.step)
    print(path)
    return 0


def report(args: argparse.Namespace) -> int:
    """Writes report.html of each run and prints where."""
    for workdir in args.workdirs:
        if not Path(workdir).is_dir():
            raise MissingInputError(f"{workdir}: no such run directory")
    from sfrik_jax import report as reports

    for workdir in args.workdirs:
        print(reports.write_report(Path(workdir)))
    return 0


def checked_output(path: str, option: str) -> Path:
    """`path`, if it can be created and written; nothing is created yet.

    Errors: ConfigError for a name that no file can have; OutputError where a file is
        in the way or permission is missing.
    """
    names = Path(path).parts
    if not path.strip() or not path.isprintable():
        raise ConfigError(f"{option} {path!r}: give a name without control characters")
    if any(len(os.fsencode(name)) > NAME_BYTES for name in names):
        shown = f"{path[:40]}..."
        raise ConfigError(f"{option} {shown}: a name is longer than {NAME_BYTES} bytes")
    place = Path(path)
    nearest = next(p for p in (place, *place.absolute().parents) if os.path.lexists(p))
    if not nearest.exists():
        raise OutputError(f"{option} {path}: {nearest} is a link to nowhere")
    if nearest != place and not nearest.is_dir():
        raise OutputError(f"{option} {path}: {nearest} is a file; name another place")
    if not os.access(nearest, os.W_OK | (os.X_OK if nearest.is_dir() else 0)):
        raise OutputError(f"{option} {path}: no permission to write {nearest}")
    return place


def print_table(rows: list[tuple[str, ...]]) -> None:
    """Prints rows of texts with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
