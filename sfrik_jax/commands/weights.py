"""The commands `import` and `export`."""

import argparse
from pathlib import Path
from typing import Any

from sfrik_jax.commands.parsing import Groups, checked_output, command, print_table
from sfrik_jax.errors import ConfigError, MissingInputError, OutputError

SUFFIX = ".safetensors"


def add(groups: Groups) -> None:
    """Adds `import` and `export`."""
    parser = command(
        groups,
        "import",
        "take over a backbone of PyTorch, torchvision or timm",
        "resnet50.pth --out backbone.safetensors",
        import_weights,
    )
    parser.add_argument("file", metavar="FILE", help=".pth, .pt or .safetensors")
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="weights file to write"
    )
    parser.add_argument(
        "--sha256", metavar="HEX", help="refuse a FILE that has another SHA-256 sum"
    )
    parser = command(
        groups,
        "export",
        "write a backbone for others: weights, program and model card",
        "runs/quickstart --out exported",
        export_weights,
    )
    parser.add_argument(
        "weights",
        metavar="WEIGHTS",
        help="run directory, checkpoint (RUN/checkpoints/STEP) or weights file",
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="directory, made if missing"
    )
    parser.add_argument(
        "--input",
        choices=("uint8", "float32"),
        default="uint8",
        help="type of the program's pixels, in 0 … 255 (default uint8)",
    )
    parser.add_argument(
        "--no-stablehlo", action="store_true", help="leave the program out"
    )


def import_weights(args: argparse.Namespace) -> int:
    """Reads a weights file of any maker, writes ours, and prints what it holds."""
    source, out = Path(args.file), checked_output(args.out, "--out")
    if out.suffix != SUFFIX:
        raise ConfigError(f"--out {out}: the name must end in {SUFFIX}")
    if out.is_dir():
        raise OutputError(f"--out {out} is a directory; name a file")
    if not source.is_file():
        raise MissingInputError(f"there is no weights file {source}")
    if out.resolve() == source.resolve():
        raise ConfigError(f"--out {out} is the file to import; name another one")
    import jax

    from sfrik_jax import files, weights

    found, digest = weights.open_with_sum(source, args.sha256)
    about = {
        "arch": found.arch,
        "width": found.width,
        "stem": found.stem,
        "preprocessing": found.preprocessing,
        **found.about,
        "imported_from": {"file": source.name, "sha256": digest},
    }
    files.make_folder(out.parent)
    weights.save(out, found.variables, about)
    count = sum(leaf.size for leaf in jax.tree.leaves(found.variables["params"]))
    rows = [
        ("architecture", f"{found.arch}, width {found.width}, stem {found.stem}"),
        ("parameters", f"{count:,}"),
        ("features", f"{found.backbone.features:,}"),
        ("sha256 of the file", digest),
        ("sha256 of the weights", weights.fingerprint(found.variables, found.arch)),
        ("written", str(out)),
    ]
    print_table(rows)
    return 0


def export_weights(args: argparse.Namespace) -> int:
    """Writes weights, program and model card of a backbone, and prints where."""
    out, path = checked_output(args.out, "--out"), Path(args.weights)
    if out.exists() and not out.is_dir():
        raise OutputError(f"--out {out} is a file; name a directory")
    if not path.exists():
        raise MissingInputError(f"there are no weights {path}")
    from sfrik_jax.subject import open_subject
    from sfrik_jax.weights import exported

    subject = open_subject(path)
    beside = path.parent if (path.parent / "config.json").is_file() else None
    run = subject.run or beside
    if out.resolve() in {place.resolve() for place in (path.parent, run) if place}:
        raise ConfigError(f"--out {out} holds what is exported; name another directory")
    exported.check_place(out)
    _write_export(out, subject, run, "" if args.no_stablehlo else args.input)
    return 0


def _write_export(out: Path, subject: Any, run: Path | None, program: str) -> None:
    """Args: program: the type of its pixels; "" for none."""
    from sfrik_jax import files, weights
    from sfrik_jax.weights import card, export, exported

    model = {k: v for k, v in subject.about.items() if k not in ("path", "sha256")}
    parts = (subject.variables, subject.preprocessing)
    restored = subject.state is not None
    text = card.model_card(model, *parts, run=run, restored=restored, program=program)
    files.make_folder(out)
    about, path = (
        model | {"preprocessing": subject.preprocessing},
        out / exported.WEIGHTS,
    )
    digests = {exported.WEIGHTS: weights.save(path, subject.variables, about)}
    print(path)
    path = out / exported.PROGRAM
    if program:
        digests[exported.PROGRAM] = export.export_stablehlo(
            path, subject.backbone, *parts, input_dtype=program
        )
        print(path)
    else:
        path.unlink(missing_ok=True)  # an earlier export's
    files.write_whole(out / exported.CARD, exported.sealed(text, digests).encode())
    print(out / exported.CARD)
