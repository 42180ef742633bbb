"""SFRIK and VICReg in PyTorch, written from the papers' formulas, for the benches."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sfrik_jax.settings import LOSS_DEFAULTS

SFRIK = LOSS_DEFAULTS["sfrik"]
VICREG = LOSS_DEFAULTS["vicreg"]


class TorchLosses:
    """SFRIK and VICReg of two views in PyTorch, as their authors' formulas read.

    Args:
      dtype: of the matrix products' operands; everything else is float32.
      weights: of the kernel.
    """

    def __init__(
        self, torch: Any, dtype: Any, weights: Sequence[float] = SFRIK["weights"]
    ) -> None:
        self._torch, self._dtype, self._weights = torch, dtype, weights

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
        for order, weight in enumerate(self._weights, 1):
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


class TorchViews:
    """Two views as leaves that ask for a gradient, on the GPU where there is one."""

    def __init__(self, z: np.ndarray, dtype: str) -> None:
        self.torch: Any = importlib.import_module("torch")
        self.cuda = self.torch.cuda.is_available()
        self.dtype = getattr(self.torch, dtype)
        device = "cuda" if self.cuda else "cpu"
        self._views = [
            self.torch.tensor(each, device=device, dtype=self.dtype).requires_grad_()
            for each in z
        ]

    def run(self, loss: Callable) -> Callable[[int], Any]:
        """Forward and backward so many times, and the last value."""

        def run(count: int) -> Any:
            value = None
            for _ in range(count):
                for view in self._views:
                    view.grad = None
                value = loss(*self._views)
                value.backward()
            if self.cuda:
                self.torch.cuda.synchronize()
            return value

        return run

    def answer(self, loss: Callable) -> tuple[float, np.ndarray]:
        """Value and gradient [2, n, q]."""
        value = float(self.run(loss)(1).detach())
        grads = [view.grad.float().cpu().numpy() for view in self._views]
        return value, np.stack(grads)

    def peak_bytes(self, loss: Callable) -> int | None:
        """What the device held at most in one call; the host keeps no count."""
        if not self.cuda:
            return None
        self.torch.cuda.reset_peak_memory_stats()
        self.run(loss)(1)
        return self.torch.cuda.max_memory_allocated()
