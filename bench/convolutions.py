"""Each convolution of a network alone, with both its gradients: ours, XLA's, PyTorch's.

    python bench/convolutions.py [--backbone resnet18] [--size 96] [--images 128]

One call is the convolution, its gradient by the images (but for the first one, which
nobody needs) and its gradient by the kernel. `ours` is `models.layers.convolution`: on
one CPU device a form of its own, else XLA's. The results of all arms are compared
before they are timed: the bench ends with an error where they do not agree.
"""

import argparse
import importlib
import importlib.util
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere
from bench import command, roofline, timing
from bench.timing import OURS, TORCH
from sfrik_jax import models
from sfrik_jax.models import layers
from sfrik_jax.planning import arithmetic, programs
from sfrik_jax.target import portable

XLA = "xla"
COLUMNS: dict[str, timing.Column] = {
    "convolution": (lambda row: str(Shape(**row["shapes"])), ""),
    "form": "",
    **timing.ARM,
    **timing.MEDIAN,
    **timing.RATE,
    **timing.RATIO,
    **timing.SHARE,
}
_LAYOUT = ("NHWC", "HWIO", "NHWC")
# Largest relative error (of norms) of value or gradients against XLA's. The gradient by
# the stem's kernel is a sum over 300,000 places: PyTorch's and XLA's differ by 1.2e-5.
BOUNDS = {"float32": 1e-4, "bfloat16": 2e-2}
Arrays = tuple[Any, ...]


class Shape(NamedTuple):
    """A convolution, and how often the network has it."""

    images: int
    height: int
    width: int
    channels: int
    out: int
    kernel: int
    stride: int
    times: int = 1

    def __str__(self) -> str:
        size, maps = self.kernel, f"{self.height}x{self.width}x{self.channels}"
        return f"{size}x{size}/{self.stride}, {maps} to {self.out} (x{self.times})"

    @property
    def first(self) -> bool:
        """Whether it reads the pictures."""
        return self.channels == 3


def shapes(args: argparse.Namespace) -> list[Shape]:
    """The convolutions of the backbone, from its traced program."""
    model = models.BACKBONES[args.backbone](stem=args.stem)
    size = (args.images, args.size, args.size, 3)
    pixels = jax.ShapeDtypeStruct(size, jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), pixels)
    with portable():
        program = jax.make_jaxpr(model.apply)(variables, pixels)
    found = Counter(
        Shape(
            *equation.invars[0].aval.shape,
            out=equation.invars[1].aval.shape[-1],
            kernel=equation.invars[1].aval.shape[0],
            stride=equation.params["window_strides"][0],
        )
        for equation, *_ in programs.equations(program.jaxpr)
        if equation.primitive.name == "conv_general_dilated"
    )
    return [shape._replace(times=times) for shape, times in found.items()]


def operands(shape: Shape) -> list[np.ndarray]:
    """Random images, kernel and cotangent."""
    rng = np.random.default_rng(0)
    n, height, width, channels, out, size, stride, _ = shape
    results = (n, -(-height // stride), -(-width // stride), out)
    kernel = (size, size, channels, out)
    return [
        rng.standard_normal(each, np.float32)
        for each in ((n, height, width, channels), kernel, results)
    ]


def of_jax(convolution: Callable, shape: Shape) -> Callable:
    """The value and the gradients that the network needs, compiled."""
    pad = [(shape.kernel // 2,) * 2] * 2
    strides = (shape.stride, shape.stride)

    def whole(x, kernel, bar):
        def of(*given):
            x_or_not = (x,) * shape.first
            return convolution(
                *x_or_not, *given, strides, pad, dimension_numbers=_LAYOUT
            )

        y, pullback = jax.vjp(of, *((kernel,) if shape.first else (x, kernel)))
        return y, *pullback(bar)

    return jax.jit(whole)


class TorchConvolution:
    """The same by PyTorch, channels last.

    Raises:
      ImportError: torch is not installed.
    """

    def __init__(self, shape: Shape, arrays: list[np.ndarray], dtype: str) -> None:
        self._torch = torch = importlib.import_module("torch")
        torch.backends.cudnn.benchmark = True  # as XLA, which tries algorithms too
        self._shape = shape
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        x, kernel, bar = arrays
        self._arrays = [
            torch.tensor(each).to(
                self.device,
                getattr(torch, dtype),
                memory_format=torch.channels_last,
            )
            for each in (
                x.transpose(0, 3, 1, 2),
                kernel.transpose(3, 2, 0, 1),
                bar.transpose(0, 3, 1, 2),
            )
        ]

    def __call__(self) -> Arrays:
        x, kernel, bar = self._arrays
        stride, pad = [self._shape.stride] * 2, [self._shape.kernel // 2] * 2
        with self._torch.no_grad():
            y = self._torch.nn.functional.conv2d(x, kernel, None, stride, pad)
            x_bar, kernel_bar, _ = self._torch.ops.aten.convolution_backward(
                *(bar, x, kernel, None, stride, pad, [1, 1], False, [0, 0], 1),
                [not self._shape.first, True, False],
            )
        return (y, kernel_bar) if self._shape.first else (y, x_bar, kernel_bar)

    def results(self) -> list[np.ndarray]:
        *images, kernel = (each.float().cpu().numpy() for each in self())
        return [
            *(v.transpose(0, 2, 3, 1) for v in images),
            kernel.transpose(2, 3, 1, 0),
        ]

    def run(self, count: int) -> None:
        for _ in range(count):
            self()
        if self.device == "cuda":
            self._torch.cuda.synchronize()


def disagreement(found: Any, want: Any) -> float:
    """The largest relative error of the value and the gradients."""
    pairs = [
        (np.asarray(one, np.float32), np.asarray(other, np.float32))
        for one, other in zip(found, want, strict=True)
    ]
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)


def measure(
    shape: Shape, args: argparse.Namespace, limits: roofline.Limits, where: dict
) -> list[timing.Record]:
    """One record for each arm."""
    arrays = operands(shape)
    ours = tuple(jnp.asarray(each, args.dtype) for each in arrays)
    programs = {
        OURS: of_jax(layers.convolution, shape),
        XLA: of_jax(jax.lax.conv_general_dilated, shape),
    }
    work = arithmetic.work(programs[XLA], *ours)
    others = {OURS: (TORCH, XLA), XLA: (TORCH,)}
    arms = [
        timing.of_jax(name, program, *ours, **work._asdict(), peers=others[name])
        for name, program in programs.items()
    ]
    want = programs[XLA](*ours)
    errors = {OURS: disagreement(programs[OURS](*ours), want)}
    try:
        peer = TorchConvolution(shape, arrays, args.dtype)
        errors[TORCH] = disagreement(peer.results(), want)
        arms.append(timing.Arm(TORCH, peer.run, *work))
    except ImportError:
        pass  # main says so once
    for name, error in errors.items():
        if not error < BOUNDS[args.dtype]:
            raise SystemExit(f"{shape}: {name} and {XLA} differ by {error:.1e}")
    spent = timing.take_turns(arms, args.rounds, args.seconds)
    extras: dict[str, dict[str, Any]] = {
        name: {"agreement": {XLA: error}} for name, error in errors.items()
    }
    if jax.default_backend() == "cpu" and jax.device_count() == 1:
        form = layers.form_on_cpu(ours[0].shape, ours[1].shape, shape.stride)
        extras[OURS]["form"] = form
    return timing.records(
        "convolutions",
        arms,
        spent,
        dtype=args.dtype,
        shapes=shape._asdict(),
        where=where,
        limit=limits.of(args.dtype),
        extras=extras,
    )


def totals(rows: list[timing.Record]) -> str:
    """Milliseconds of each arm for all convolutions of the network."""
    sums: Counter[str] = Counter()
    for row in rows:
        sums[row["arm"]] += 1e3 * row["median_seconds"] * row["shapes"]["times"]
    return "all: " + ", ".join(f"{arm} {spent:,.0f} ms" for arm, spent in sums.items())


def main() -> None:
    command.share_the_card()
    gpu = jax.default_backend() != "cpu"
    parser = command.parser(__doc__)
    parser.add_argument("--backbone", default="resnet18", choices=models.BACKBONES)
    parser.add_argument("--stem", default="imagenet", choices=("imagenet", "small"))
    parser.add_argument(
        "--size", type=command.integer, default=96, help="of a view, in px"
    )
    parser.add_argument("--images", type=command.integer, default=128)
    default = "bfloat16" if gpu else "float32"
    parser.add_argument("--dtype", default=default, choices=sorted(BOUNDS))
    parser.add_argument("--rounds", type=command.integer, default=5)
    parser.add_argument(
        "--seconds", type=command.seconds, default=0.2, help="per arm and round"
    )
    args = parser.parse_args()
    where = timing.environment(("jax", "numpy", "torch"))
    print(where)
    if importlib.util.find_spec("torch") is None:
        print("no arms of torch, which is not installed; see requirements-bench.txt")
    limits = roofline.measure([args.dtype])
    rows = [row for each in shapes(args) for row in measure(each, args, limits, where)]
    print(timing.table(rows, COLUMNS))
    print(totals(rows))
    command.write_json(args.json, rows)


if __name__ == "__main__":
    command.run(main)
