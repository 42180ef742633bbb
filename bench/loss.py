"""The loss alone, forward and backward: SFRIK and VICReg, here and in PyTorch.

    python bench/loss.py [--n 2048] [--q 1024,8192,32768] [--dtype bfloat16]

Two views of random embeddings. FLOP are counted by hand: 8 n² q for ours (one product
for the Gram matrix and one for its gradient, each of both views), 12 n² q by autodiff
of the Gram matrix, 12 n q² for the covariance. The arms alternate; the torch arms are
written from the papers' formulas and left out, with a line, where torch is missing.
"""

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere
from bench import timing
from sfrik_jax import losses
from sfrik_jax.kernels import TruncatedKernel
from sfrik_jax.settings import LOSS_DEFAULTS

OURS, TORCH = "ours", "torch"
SFRIK = LOSS_DEFAULTS["sfrik"]
VICREG = LOSS_DEFAULTS["vicreg"]
COLUMNS = {
    "q": "d",
    "arm": "",
    "ms": ".3f",
    "TFLOP/s": ".2f",
    "share of matmul": ".0%",
    "torch / arm": ".2f",
    "gradient error": ".1e",
}
_LIBRARIES = ("jax", "numpy", "torch")


def dense(views: list[jax.Array]) -> jax.Array:
    """SFRIK by autodiff of the whole Gram matrix, as the formula reads."""
    unit = [losses.normalize(z) for z in views]
    kernel = TruncatedKernel(SFRIK["weights"])
    operands = [z.astype(views[0].dtype) for z in unit]
    mmd = [
        jnp.mean(kernel(losses.product("nq,mq->nm", z, z), z.shape[1]))
        for z in operands
    ]
    align = jnp.mean((unit[0] - unit[1]) ** 2)
    return SFRIK["alignment_coeff"] * align + SFRIK["mmd_coeff"] * sum(mmd) / 2


def our_arms(z: np.ndarray, dtype: Any) -> list[timing.Arm]:
    _, n, q = z.shape
    views = [jnp.asarray(each, dtype) for each in z]
    functions = {
        OURS: (lambda v: losses.sfrik(v, **SFRIK)[0], 8 * n * n * q),
        "ours, dense autodiff": (dense, 12 * n * n * q),
        "ours, VICReg": (lambda v: losses.vicreg(v, **VICREG)[0], 12 * n * q * q),
    }
    return [
        timing.of_jax(name, jax.jit(jax.value_and_grad(f)), views, flop=flop)
        for name, (f, flop) in functions.items()
    ]


class TorchLosses:
    """SFRIK and VICReg of two views in PyTorch, as their authors' formulas read.

    Args: dtype: of the matrix products' operands; everything else is float32.
    """

    def __init__(self, torch: Any, dtype: Any) -> None:
        self._torch, self._dtype = torch, dtype

    def sfrik(self, first: Any, second: Any) -> Any:
        normalize = self._torch.nn.functional.normalize
        first, second = (normalize(z.float(), dim=1) for z in (first, second))
        align = (first - second).pow(2).mean()
        mmd = self._mmd(first) + self._mmd(second)
        return SFRIK["alignment_coeff"] * align + SFRIK["mmd_coeff"] * mmd / 2

    def _mmd(self, z: Any) -> Any:
        q, half = z.shape[1], z.to(self._dtype)
        t = (half @ half.T).float()
        before, now, total = self._torch.ones_like(t), t, self._torch.zeros_like(t)
        for order, weight in enumerate(SFRIK["weights"], 1):
            total = total + weight * now
            up = (2 * order + q - 2) * t * now - order * before
            before, now = now, up / (order + q - 2)
        return total.mean()

    def vicreg(self, first: Any, second: Any, *, gram: bool = False) -> Any:
        first, second = first.float(), second.float()
        loss = VICREG["invariance_coeff"] * (first - second).pow(2).mean()
        for z in (first, second):
            z = z - z.mean(0)
            n, q = z.shape
            spread = (1 - (z.var(0) + 1e-4).sqrt()).relu()
            loss = loss + VICREG["variance_coeff"] * spread.mean() / 2
            half = z.to(self._dtype)
            if gram:
                squares = (half @ half.T).float().pow(2).sum() / (n - 1) ** 2
                covariance = squares - z.var(0).pow(2).sum()
            else:
                matrix = (half.T @ half).float() / (n - 1)
                covariance = matrix.pow(2).sum() - matrix.diagonal().pow(2).sum()
            loss = loss + VICREG["covariance_coeff"] * covariance / q
        return loss


class Torch:
    """Arms of `TorchLosses` on two views, in eager mode and compiled."""

    def __init__(self, z: np.ndarray, dtype: str) -> None:
        self.torch: Any = importlib.import_module("torch")
        self._device = "cuda" if self.torch.cuda.is_available() else "cpu"
        kind = getattr(self.torch, dtype)
        self._losses, self._shape = TorchLosses(self.torch, kind), z.shape[1:]
        self.views = [
            self.torch.tensor(each, device=self._device, dtype=kind).requires_grad_()
            for each in z
        ]

    def arms(self, compiled: bool) -> list[timing.Arm]:
        n, q = self._shape
        functions = {
            TORCH: (self._losses.sfrik, 12 * n * n * q),
            "torch, VICReg": (self._losses.vicreg, 12 * n * q * q),
            "torch, VICReg by Gram": (
                lambda a, b: self._losses.vicreg(a, b, gram=True),
                12 * n * n * q,
            ),
        }
        arms = [self._arm(*entry) for entry in functions.items()]
        if compiled:
            fast = self.torch.compile(self._losses.sfrik, dynamic=False)
            arms.insert(1, self._arm("torch.compile", (fast, 12 * n * n * q)))
        return arms

    def _arm(self, name: str, entry: tuple[Callable, float]) -> timing.Arm:
        function, flop = entry

        def run(count: int) -> None:
            for _ in range(count):
                for view in self.views:
                    view.grad = None
                function(*self.views).backward()
            if self._device == "cuda":
                self.torch.cuda.synchronize()

        return timing.Arm(name, run, flop)

    def gradient(self) -> np.ndarray:
        for view in self.views:
            view.grad = None
        self._losses.sfrik(*self.views).backward()
        return np.stack([view.grad.float().cpu().numpy() for view in self.views])


def gradient_error(z: np.ndarray, dtype: Any, peer: np.ndarray) -> float:
    """Norm of the difference of ours and the peer's gradient over the peer's."""
    views = [jnp.asarray(each, dtype) for each in z]
    ours = jax.grad(lambda v: losses.sfrik(v, **SFRIK)[0])(views)
    gap = np.stack([np.asarray(each, np.float32) for each in ours]) - peer
    return float(np.linalg.norm(gap) / np.linalg.norm(peer))


def measure(n: int, q: int, args: argparse.Namespace, rate: float) -> list[dict]:
    """One row for each arm at this shape."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((n, q), np.float32)
    z = shared + 0.3 * rng.standard_normal((2, n, q), np.float32)
    arms, error = our_arms(z, jnp.dtype(args.dtype)), None
    try:
        peer = Torch(z, args.dtype)
        arms += peer.arms(args.compile)
        error = gradient_error(z, jnp.dtype(args.dtype), peer.gradient())
    except ImportError as reason:
        print(f"no arms of torch ({reason}); see requirements-bench.txt")
    medians = timing.alternate(arms, args.rounds, args.seconds)
    rows = []
    for arm in arms:
        seconds = medians[arm.name]
        rows.append(
            {
                "n": n,
                "q": q,
                "dtype": args.dtype,
                "arm": arm.name,
                "ms": 1000 * seconds,
                "TFLOP/s": arm.flop / seconds / 1e12,
                "share of matmul": arm.flop / seconds / rate,
                "torch / arm": medians[TORCH] / seconds if TORCH in medians else None,
                "gradient error": error if arm.name == OURS else None,
            }
        )
    return rows


def main() -> None:
    gpu = jax.default_backend() != "cpu"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=2048 if gpu else 512)
    default = "1024,8192,32768" if gpu else "1024,2048,4096"
    parser.add_argument("--q", default=default, help="dimensions, with commas")
    parser.add_argument("--dtype", default="bfloat16" if gpu else "float32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.3, help="per arm and round")
    parser.add_argument("--compile", action="store_true", help="torch.compile as well")
    parser.add_argument("--json", type=Path, help="where the figures go")
    args = parser.parse_args()
    rate = timing.matmul_rate(jnp.dtype(args.dtype), 8192 if gpu else 2048)
    where = timing.environment(_LIBRARIES)
    print(f"{where}\nmatrix product: {rate / 1e12:.2f} TFLOP/s, {args.dtype}")
    rows = [
        row | where
        for q in map(int, args.q.split(","))
        for row in measure(args.n, q, args, rate)
    ]
    print(f"n = {args.n}, {args.dtype}, medians of {args.rounds} alternated rounds")
    print(timing.table(rows, COLUMNS))
    timing.write_json(args.json, rows)


if __name__ == "__main__":
    main()
