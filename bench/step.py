"""A whole training step: views, network, loss, optimiser; here and in PyTorch.

    python bench/step.py [--backbone resnet50] [--size 224] [--batch 512] [--q 8192]

Ours starts at uint8 crops on the device and includes all photometric operations; with
--fed, arms start at JPEGs of 500x375 px in memory instead, decoded and cropped by the
workers of the loader. The torch arms start at finished float views on the device
(channels last, autocast, torchvision's network, the original's two passes and loss, SGD
with momentum in place of LARS), which is less work; --float-views adds an arm of ours
that starts there too.

Before anything is timed the loss and the gradient of both are compared, with the same
weights and views: the bench ends with an error where they do not agree.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere
from bench import command, counts, roofline, timing, torch_step, traces
from bench.our_step import SUFFIX, Ours
from bench.timing import COMPILED, OURS, TORCH
from sfrik_jax.commands.parsing import count
from sfrik_jax.data.loader import RESAMPLES, WORKER_TYPES

COLUMNS: dict[str, timing.Column] = {
    **timing.ARM,
    **timing.MEDIAN,
    "views/s": (lambda row: row["views_per_second"], ",.0f"),
    **timing.RATE,
    **timing.RATIO,
    **timing.SHARE,
    **timing.PEAK,
}
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "grain", "pillow")
_LIBRARIES += ("simplejpeg", "torch", "torchvision")
_TRACED = 3  # steps
_SHAPES = ("backbone", "stem", "size", "batch", "hidden", "q")


def resamplings(text: str) -> list[str]:
    """Those of --fed, from its words with commas."""
    found = [word for word in text.split(",") if word]
    for word in found:
        if word not in RESAMPLES:
            raise argparse.ArgumentTypeError(
                f"{word!r} is none of {', '.join(RESAMPLES)}"
            )
    return found


def open_peer(args: argparse.Namespace) -> torch_step.TorchStep | None:
    """The peer; None, and a line, where it is not installed or lacks the backbone."""
    try:
        return torch_step.TorchStep(args)
    except ImportError as reason:
        print(f"no arms of torch ({reason}); see requirements-bench.txt")
    except LookupError as reason:
        print(f"no arms of torch: {reason}; name another --backbone")
    return None


def compare(
    peer: torch_step.TorchStep, args: argparse.Namespace, method: str
) -> dict[str, dict[str, float]]:
    """The errors against the peer by dtype; ends the bench where one is too large."""
    errors = {}
    for dtype in ("float64", args.dtype):
        errors[dtype] = torch_step.agreement(peer, args, method, dtype)
        shown = ", ".join(
            f"{name} {error:.1e}" for name, error in errors[dtype].items()
        )
        print(f"{method}, {dtype}, relative errors against torch: {shown}")
        torch_step.check(errors[dtype], dtype)
    return errors


def peer_arms(
    peer: torch_step.TorchStep, args: argparse.Namespace, method: str
) -> list[timing.Arm]:
    """The peer's arms; of their work the loss alone differs from ours, by autodiff."""
    sides = {"sfrik": (args.batch, args.q), "vicreg": (args.q, args.batch)}
    loss = counts.autodiff_work(*sides[method], args.dtype)
    less = roofline.loss_work(args, method).times(-1)
    work = roofline.step_work(args, method) + loss + less
    names = {TORCH: False} | ({COMPILED: True} if args.compile else {})
    return [
        peer.arm(f"{name}{SUFFIX[method]}", method, compiled=compiled)._replace(
            flop=work.flop, bytes=work.bytes
        )
        for name, compiled in names.items()
    ]


def measure(
    args: argparse.Namespace, method: str, limits: roofline.Limits, where: dict
) -> list[timing.Record]:
    """One record for each arm of a method."""
    peer, name, theirs = open_peer(args), f"{OURS}{SUFFIX[method]}", []
    extras: dict[str, dict[str, Any]] = {name: {}}
    if peer:
        extras[name] = {"agreement": compare(peer, args, method)}
    ours = Ours(args, method)
    arms = ours.arms()
    if peer:
        theirs = peer_arms(peer, args, method)
    spent = timing.take_turns([*arms, *theirs], args.rounds, args.seconds)
    if peer:
        ran = [arm for arm in theirs if arm.name in spent]
        extras |= {arm.name: peer.memory(arm) for arm in ran}
    if args.profile:
        program, folder = ours.programs[name], args.profile / method
        print(traces.keep(folder, program, lambda: arms[0].run(1), _TRACED))
    for resample in args.fed:
        fed, of_fed = ours.fed(resample)
        arms.append(fed)
        spent[fed.name] = of_fed
    for arm, held in ours.peak_bytes.items():
        extras.setdefault(arm, {})["peak_bytes"] = held
    rows = timing.records(
        "step",
        [*arms, *theirs],
        spent,
        dtype=args.dtype,
        shapes={name: getattr(args, name) for name in _SHAPES},
        where=where,
        limit=limits.of(args.dtype),
        extras=extras,
    )
    for row in rows:
        row["views_per_second"] = 2 * args.batch / row["median_seconds"]
    return rows


def main() -> None:
    command.share_the_card()
    parser = command.parser(__doc__)
    roofline.add_step_arguments(parser)
    parser.add_argument(
        "--method", default="sfrik", choices=("sfrik", "vicreg", "both")
    )
    parser.add_argument("--float-views", action="store_true", help="an arm from those")
    help = "an arm with XLA's options: FLAG=VALUE;FLAG=VALUE; more than once for more"
    parser.add_argument("--xla", action="append", default=[], help=help)
    parser.add_argument(
        "--fed", type=resamplings, default="", help="exact, fast or both with a comma"
    )
    parser.add_argument(
        "--workers", type=count, default=0, help="of --fed; 0: all cores"
    )
    parser.add_argument("--worker-type", default="auto", choices=WORKER_TYPES)
    parser.add_argument("--rounds", type=command.integer, default=5)
    parser.add_argument(
        "--seconds", type=command.seconds, default=2.0, help="per arm and round"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile as well")
    parser.add_argument(
        "--profile", type=command.folder, help="folder for a trace and a picture"
    )
    args = parser.parse_args()
    where = timing.environment(_LIBRARIES)
    print(where)
    limits = roofline.measure([args.dtype])
    methods = ("sfrik", "vicreg") if args.method == "both" else (args.method,)
    rows = [row for each in methods for row in measure(args, each, limits, where)]
    print(timing.table(rows, COLUMNS))
    command.write_json(args.json, rows)


if __name__ == "__main__":
    command.run(main)
