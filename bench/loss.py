"""The loss alone, forward and backward: SFRIK and VICReg, here and in PyTorch.

    python bench/loss.py [--n 2048] [--q 1024,8192,32768] [--dtype bfloat16] [--order 3]
    python bench/loss.py --gradient-error

Two views of random embeddings. "ours" is the form that the library chooses; its other
forms are arms of their own, the chunked one where the batch has more than one chunk.
Every arm's value and gradient are compared with its peer's in the same run; above
`BOUNDS` the bench ends with an error. FLOP and bytes are those of the matrix products,
of ours counted from the program, of others by hand. The torch arms are left out, with a
line, where torch is missing; our dense form and our covariance are the peers then.
With `--gradient-error`: a table of our gradient's error against float64.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere
from bench import command, counts, gradient_error, roofline, timing
from bench.timing import COMPILED, DENSE, OURS, TORCH
from bench.torch_losses import SFRIK, VICREG, TorchLosses, TorchViews
from sfrik_jax import covariance, losses, mmd_forms
from sfrik_jax.kernels import TruncatedKernel
from sfrik_jax.planning import arithmetic, memory

OUR_VICREG, TORCH_VICREG = "ours, VICReg", "torch, VICReg"
TORCH_GRAM = "torch, VICReg by Gram"
# Relative errors of value and gradient between two arms. Both round: in bfloat16 each
# product's operands to 0.4 %, and torch's dense form rounds its diagonal as well.
BOUNDS = {"float32": 1e-4, "bfloat16": 2e-2}
COLUMNS: dict[str, timing.Column] = {
    "q": (lambda row: row["shapes"]["q"], "d"),
    **timing.ARM,
    "form": "",
    **timing.MEDIAN,
    **timing.RATE,
    **timing.SHARE,
    **timing.RATIO,
    "VICReg / arm": (lambda row: row.get("ratios", {}).get(TORCH_VICREG), ".2f"),
    **timing.PEAK,
    "value error": (lambda row: row.get("agreement", {}).get("value"), ".1e"),
    "gradient error": (lambda row: row.get("agreement", {}).get("gradient"), ".1e"),
}
_LIBRARIES = ("jax", "jaxlib", "numpy", "torch")


class Entry(NamedTuple):
    """An arm with what is known of it without a clock.

    Attributes:
      answer: value, and the gradient [2, n, q].
      judge: the arms to compare the answer with; the first that is there counts.
    """

    arm: timing.Arm
    answer: Callable[[], tuple[float, np.ndarray]]
    judge: tuple[str, ...]
    known: dict[str, Any]


def dense(views: list[jax.Array], weights: tuple = SFRIK["weights"]) -> jax.Array:
    """SFRIK by autodiff of the whole Gram matrix, as the formula reads."""
    unit = [losses.normalize(z) for z in views]
    kernel = TruncatedKernel(weights)
    operands = [z.astype(views[0].dtype) for z in unit]
    mmd = [
        jnp.mean(kernel(mmd_forms.product("nq,mq->nm", z, z), z.shape[1]))
        for z in operands
    ]
    align = jnp.mean((unit[0] - unit[1]) ** 2)
    return SFRIK["alignment_coeff"] * align + SFRIK["mmd_coeff"] * sum(mmd) / 2


def our_entries(z: np.ndarray, dtype: str, weights: tuple) -> list[Entry]:
    """SFRIK and VICReg of ours as chosen and in their other forms, and by autodiff."""
    _, n, q = z.shape
    backend, size = jax.default_backend(), jnp.dtype(dtype).itemsize
    chosen = mmd_forms.choose(n, q, len(weights), 1, size, backend)
    fits = {"chunked": n > mmd_forms.CHUNK, "feature": len(weights) <= 2}
    forms = [form for form in mmd_forms.FORMS if fits.get(form, True)]
    sfrik = partial(losses.sfrik, **SFRIK | {"weights": weights})
    arms: dict[str, tuple[str, Callable]] = {
        OURS if form == chosen else f"{OURS}, {form}": (form, partial(sfrik, form=form))
        for form in sorted(forms, key=lambda form: form != chosen)
    }
    arms[DENSE] = ("dense", lambda views: (dense(views, weights), None))
    best = covariance.choose(n, q)
    for form in sorted(("gram", "covariance"), key=lambda form: form != best):
        name = OUR_VICREG if form == best else f"{OUR_VICREG} by {form}"
        arms[name] = (form, partial(losses.vicreg, **VICREG, form=form))
    return [_ours(z, dtype, name, *arm) for name, arm in arms.items()]


def _ours(z: np.ndarray, dtype: str, name: str, form: str, loss: Callable) -> Entry:
    views = [jnp.asarray(each, dtype) for each in z]
    step = jax.value_and_grad(lambda views: loss(views)[0])
    work, compiled = arithmetic.work(step, views), jax.jit(step).lower(views).compile()
    vicreg = name.startswith(OUR_VICREG)
    peers = (TORCH, COMPILED, TORCH_VICREG, DENSE)
    if vicreg:
        peers = (TORCH_VICREG, TORCH_GRAM, f"{OUR_VICREG} by covariance")

    def answer() -> tuple[float, np.ndarray]:
        value, grads = compiled(views)
        return float(value), np.stack([np.asarray(g, np.float32) for g in grads])

    return Entry(
        timing.of_jax(
            name,
            compiled,
            views,
            **work._asdict(),
            peers=tuple(peer for peer in peers if peer != name),
        ),
        answer,
        (TORCH_VICREG, OUR_VICREG) if vicreg else (TORCH, DENSE),
        {"form": form, "peak_bytes": memory.of_compiled(compiled)},
    )


def torch_entries(
    z: np.ndarray, dtype: str, weights: tuple, compiled: bool
) -> list[Entry]:
    """SFRIK and VICReg in PyTorch; none, and a line, where it is not installed."""
    try:
        views = TorchViews(z, dtype)
    except ImportError as reason:
        line = str(reason).partition("\n")[0]
        print(f"no arms of torch ({line}); see requirements-bench.txt")
        return []
    theirs, (_, n, q) = TorchLosses(views.torch, views.dtype, weights), z.shape
    by_rows, by_columns = (
        counts.autodiff_work(*shape, dtype) for shape in ((n, q), (q, n))
    )
    by_gram = partial(theirs.vicreg, gram=True)
    arms = {
        TORCH: (theirs.sfrik, by_rows, TORCH, "dense"),
        TORCH_VICREG: (theirs.vicreg, by_columns, TORCH_VICREG, "covariance"),
        TORCH_GRAM: (by_gram, by_rows, TORCH_VICREG, "gram"),
    }
    if compiled:
        fast = views.torch.compile(theirs.sfrik, dynamic=False)
        arms[COMPILED] = (fast, by_rows, TORCH, "dense")
    entries = []
    for name, arm in arms.items():
        try:
            entries.append(_theirs(views, name, *arm))
        except RuntimeError as error:
            timing.leave_out(name, error)
    return entries


def _theirs(
    views: TorchViews,
    name: str,
    loss: Callable,
    work: arithmetic.Work,
    peer: str,
    form: str,
) -> Entry:
    peers = () if peer == name else (peer,)
    arm = timing.Arm(name, views.run(loss), *work, peers=peers)
    peak = views.peak_bytes(loss)
    known = {"form": form} | ({"peak_bytes": peak} if peak else {})
    return Entry(arm, partial(views.answer, loss), (peer,), known)


def agreements(entries: list[Entry], dtype: str) -> dict[str, dict[str, Any]]:
    """What is known of each arm, with its distance from its judge's answer.

    Raises: SystemExit: a distance is above `BOUNDS`.
    """
    answers = {entry.arm.name: entry.answer() for entry in entries}
    extras = {}
    for entry in entries:
        judge = next((name for name in entry.judge if name in answers), entry.arm.name)
        if judge == entry.arm.name:
            extras[judge] = entry.known
            continue
        (value, grads), (want, gradient) = answers[entry.arm.name], answers[judge]
        gap = np.linalg.norm(grads - gradient) / np.linalg.norm(gradient)
        found = {"value": abs(value - want) / abs(want), "gradient": float(gap)}
        if not max(found.values()) <= BOUNDS[dtype]:
            sys.exit(
                f"{entry.arm.name} and {judge} disagree: relative errors {found}, more "
                f"than {BOUNDS[dtype]} in {dtype}. One of the two is wrong"
            )
        extras[entry.arm.name] = entry.known | {"agreement": {"with": judge} | found}
    return extras


def measure(q: int, args: argparse.Namespace, **context: Any) -> list[timing.Record]:
    """One record for each arm at this dimension."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((args.n, q), np.float32)
    z = shared + 0.3 * rng.standard_normal((2, args.n, q), np.float32)
    weights = SFRIK["weights"][: args.order]
    entries = our_entries(z, args.dtype, weights)
    entries += torch_entries(z, args.dtype, weights, args.compile)
    extras = agreements(entries, args.dtype)
    arms = [entry.arm for entry in entries]
    spent = timing.take_turns(arms, args.rounds, args.seconds)
    shapes = {"n": args.n, "q": q, "views": 2, "order": args.order}
    return timing.records(
        "loss", arms, spent, dtype=args.dtype, shapes=shapes, extras=extras, **context
    )


def arguments() -> argparse.Namespace:
    gpu = jax.default_backend() != "cpu"
    parser = command.parser(__doc__)
    parser.add_argument("--n", type=command.integer, default=2048 if gpu else 512)
    default = "1024,8192,32768" if gpu else "1024,2048,4096"
    parser.add_argument(
        "--q", type=command.integers, default=default, help="dimensions, with commas"
    )
    parser.add_argument(
        "--dtype", default="bfloat16" if gpu else "float32", choices=BOUNDS
    )
    parser.add_argument("--order", type=int, default=3, choices=(1, 2, 3), help="L")
    parser.add_argument("--rounds", type=command.integer, default=7)
    parser.add_argument(
        "--seconds", type=command.seconds, default=0.3, help="per arm and round"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile as well")
    parser.add_argument("--short", action="store_true", help="rough limits, for a test")
    parser.add_argument(
        "--gradient-error", action="store_true", help="that table alone"
    )
    return parser.parse_args()


def main() -> None:
    command.share_the_card()
    args, where = arguments(), timing.environment(_LIBRARIES)
    print(where)
    if args.gradient_error:
        rows = gradient_error.measure(args.n, args.q, where)
        print(timing.table(rows, gradient_error.COLUMNS))
        return command.write_json(args.json, rows)
    limits = roofline.measure([args.dtype], short=args.short)
    rate, speed = limits.flop_per_second[args.dtype], limits.bytes_per_second
    print(f"measured: {rate / 1e12:.3f} TFLOP/s {args.dtype}, {speed / 1e9:.0f} GB/s")
    context = {"where": where, "limit": limits.of(args.dtype)}
    rows = [row for q in args.q for row in measure(q, args, **context)]
    print(f"n = {args.n}, {args.dtype}, medians of {args.rounds} alternated rounds")
    print(timing.table(rows, COLUMNS))
    return command.write_json(args.json, rows)


if __name__ == "__main__":
    command.run(main)
