"""The training step in PyTorch, and how near ours comes to it with the same weights."""

import argparse
import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench import peers, roofline, timing
from bench.torch_losses import TorchLosses
from sfrik_jax import models, weights
from sfrik_jax.data import views
from sfrik_jax.passes import forward
from sfrik_jax.settings import LOSS_DEFAULTS
from sfrik_jax.step import make_loss

LAST = "7.weight"  # the layer behind which no ReLU lies
LEAVES = ("0.conv1.weight", "0.layer4.0.conv1.weight", LAST)
# Largest relative errors of the loss, of the gradient's norm, of gradients, and of that
# of the last layer. With a network in float64 (the peer's loss stays in float32) both
# are the same function. Of float32 the rounding turns some ReLUs on or off; of bfloat16
# many. Measured at 32 and 96 px: see docs/performance.md.
BOUNDS = {
    "float64": (1e-5, 1e-5, 1e-5, 1e-5),
    "float32": (1e-4, 1e-3, 3e-2, 1e-4),
    "bfloat16": (1e-2, 1e-1, 6e-1, 6e-1),
}
PICTURES = 16


class TorchStep:
    """torchvision's network, two passes, the original's loss, SGD with momentum.

    It starts from float views that are on the device, channels last.

    Raises:
      ImportError: torch or torchvision is not installed.
      LookupError: torchvision lacks the backbone.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._torch, _ = peers.import_torchvision()
        self._args = args
        self.device = "cuda" if self._torch.cuda.is_available() else "cpu"
        # On a GPU XLA tries a convolution's algorithms as well, and keeps the fastest.
        self._torch.backends.cudnn.benchmark = True
        self._model = self._network().to(
            self.device, memory_format=self._torch.channels_last
        )
        self._optimizer = self._torch.optim.SGD(
            self._model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-6
        )

    def _network(self) -> Any:
        nn, args = self._torch.nn, self._args
        known = importlib.import_module("torchvision.models")
        if not hasattr(known, args.backbone):
            raise LookupError(f"torchvision has no {args.backbone}")
        backbone = getattr(known, args.backbone)()
        features = backbone.fc.in_features
        backbone.fc = nn.Identity()
        if args.stem == "small":
            backbone.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            backbone.maxpool = nn.Identity()
        layers = []
        for width in (args.hidden, args.hidden):
            layers += [nn.Linear(features, width), nn.BatchNorm1d(width), nn.ReLU()]
            features = width
        return nn.Sequential(backbone, *layers, nn.Linear(features, args.q, bias=False))

    def arm(self, name: str, method: str, *, compiled: bool) -> timing.Arm:
        """Steps on two views of noise; network and loss are compiled as one."""
        args = self._args
        shape = (args.batch, 3, args.size, args.size)
        pair = [
            self._torch.randn(shape, device=self.device).to(
                memory_format=self._torch.channels_last
            )
            for _ in range(2)
        ]
        loss = self._loss(method, args.dtype)
        if compiled:
            loss = self._torch.compile(loss)

        def run(count: int) -> None:
            for _ in range(count):
                self._backward(loss, pair)
                self._optimizer.step()
            if self.device == "cuda":
                self._torch.cuda.synchronize()

        return timing.Arm(name, run)

    def _loss(self, method: str, dtype: str) -> Callable:
        """Of two views: the network's two passes, and the loss."""
        torch, model = self._torch, self._model
        function = getattr(TorchLosses(torch, getattr(torch, dtype)), method)
        half = dtype == "bfloat16"

        def loss(first: Any, second: Any) -> Any:
            with torch.autocast(self.device, torch.bfloat16, enabled=half):
                return function(model(first), model(second))

        return loss

    def _backward(self, loss: Callable, pair: list[Any]) -> Any:
        """The loss; gradients are in the parameters."""
        self._optimizer.zero_grad(set_to_none=True)
        value = loss(*pair)
        value.backward()
        return value

    def memory(self, arm: timing.Arm) -> dict[str, int]:
        """`peak_bytes` of a step on the device; nothing on a CPU, where none tells."""
        if self.device != "cuda":
            return {}
        arm.run(2)  # what compiling takes is not counted
        self._torch.cuda.reset_peak_memory_stats()
        arm.run(1)
        return {"peak_bytes": self._torch.cuda.max_memory_allocated()}

    def gradients(
        self,
        state: Mapping[str, np.ndarray],
        images: np.ndarray,
        method: str,
        dtype: str,
    ) -> tuple[float, dict[str, np.ndarray]]:
        """The loss and its gradients by name, of views [n, 2, s, s, 3] with weights."""
        torch = self._torch
        kind = torch.float64 if dtype == "float64" else torch.float32
        self._model.to(kind).load_state_dict(
            {name: torch.tensor(value) for name, value in state.items()}
        )
        pair = [
            torch.tensor(images[:, view].transpose(0, 3, 1, 2).copy()).to(
                self.device, kind, memory_format=torch.channels_last
            )
            for view in range(2)
        ]
        # On a GPU float32 would else mean TensorFloat-32, with 10 bits.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            value = self._backward(self._loss(method, dtype), pair)
        named = self._model.named_parameters()
        found = {name: p.grad.double().cpu().numpy() for name, p in named}
        self._model.to(torch.float32)
        return value.item(), found


def gradients_of(model: models.SSLModel, size: int, method: str) -> Callable:
    """(params, batch_stats, images) -> ((loss, batch_stats), gradients), ours.

    images: [n, 2, s, s, 3], finished float views.
    """
    recipe = views.build(size, recipe="vicreg")
    settings = LOSS_DEFAULTS[method]
    loss_of_views = make_loss(recipe, method=method, settings=settings, mesh=None)

    def loss_of(params: Any, batch_stats: Any, images: jax.Array):
        z, batch_stats = forward(model, params, batch_stats, [images], [False])
        return loss_of_views(z)[0], batch_stats

    return jax.value_and_grad(loss_of, has_aux=True)


def agreement(
    peer: TorchStep, args: argparse.Namespace, method: str, dtype: str
) -> dict[str, float]:
    """Relative errors of our loss and gradients against the peer's, by name.

    The same random weights, batch norm's scales among them, and the same views.
    """
    model = roofline.step_model(argparse.Namespace(**vars(args) | {"dtype": dtype}))
    rng = np.random.default_rng(0)
    images = patterns(rng, min(args.batch, PICTURES), args.size)
    with (
        jax.enable_x64(dtype == "float64"),
        jax.default_matmul_precision("default" if dtype == "bfloat16" else "highest"),
    ):
        init = jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))
        variables = init(images)
        params = jax.tree_util.tree_map_with_path(
            partial(_with_scales, rng), variables["params"]
        )
        stats = variables["batch_stats"]
        function = jax.jit(gradients_of(model, args.size, method))
        (value, _), grads = function(params, stats, jnp.asarray(images))
        ours = torch_names(grads, stats, args.backbone)
    state = torch_names(params, stats, args.backbone)
    want, theirs = peer.gradients(state, images, method, dtype)
    return _errors(float(value), ours, want, theirs)


def _with_scales(rng: np.random.Generator, path: tuple, leaf: Any) -> np.ndarray:
    """Weights as they start, but for batch norm's scales.

    A residual block starts with scale 0, which hides the gradients within it.
    """
    if path[-1].key == "scale":
        return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
    return np.asarray(leaf)


def patterns(rng: np.random.Generator, n: int, size: int) -> np.ndarray:
    """Two views [n, 2, size, size, 3] of pictures of 4x4 patches, with noise.

    Features of mere noise are nearly the same for all pictures, and batch norm then
    magnifies rounding: gradients at 96 px differ by 1e-2 in float32.
    """
    coarse = rng.standard_normal((n, 1, 4, 4, 3), np.float32)
    place = np.arange(size) * 4 // size
    noise = rng.standard_normal((n, 2, size, size, 3), np.float32)
    return coarse[:, :, place[:, None], place] + 0.3 * noise


def _errors(
    value: float, ours: Mapping[str, Any], want: float, theirs: Mapping[str, Any]
) -> dict[str, float]:
    def norm(arrays: list[np.ndarray]) -> float:
        return float(np.sqrt(sum(np.sum(np.float64(a) ** 2) for a in arrays)))

    def gap(names: list[str]) -> float:
        difference = norm([ours[name] - theirs[name] for name in names])
        return difference / norm([theirs[name] for name in names])

    whole = norm([theirs[name] for name in theirs])
    errors = {
        "loss": abs(value - want) / abs(want),
        "gradient norm": abs(norm([ours[name] for name in theirs]) - whole) / whole,
        "gradient": gap(list(theirs)),
    }
    return errors | {f"gradient of {name}": gap([name]) for name in LEAVES}


def check(errors: Mapping[str, float], dtype: str) -> None:
    """Ends the bench where ours and the peer's are not the same.

    Raises:
      SystemExit: an error is not within `BOUNDS`; all of them are named.
    """
    loss, norm, gradient, last = BOUNDS[dtype]
    bounds = {"loss": loss, "gradient norm": norm, f"gradient of {LAST}": last}
    # Written so that NaN is too far as well.
    far = [
        f"{name} {error:.1e} (at most {bounds.get(name, gradient):.0e})"
        for name, error in errors.items()
        if not error <= bounds.get(name, gradient)
    ]
    if far:
        raise SystemExit(f"ours and torch disagree in {dtype}: {', '.join(far)}")


def torch_names(params: Any, stats: Any, backbone: str) -> dict[str, np.ndarray]:
    """Our parameters, or gradients, and statistics by the peer's names."""
    part = {"params": params["backbone"], "batch_stats": stats["backbone"]}
    state = {f"0.{key}": v for key, v in weights.to_torch(part, backbone).items()}
    ours, running = params["projector"], stats["projector"]
    for layer in (1, 2, 3):
        linear, place = ours[f"linear{layer}"], 3 * layer - 2
        state[f"{place}.weight"] = np.asarray(linear["kernel"]).T
        if f"bn{layer}" not in ours:
            continue
        norm, known = ours[f"bn{layer}"], running[f"bn{layer}"]
        state[f"{place}.bias"] = np.asarray(linear["bias"])
        state[f"{place + 1}.weight"] = np.asarray(norm["scale"])
        state[f"{place + 1}.bias"] = np.asarray(norm["bias"])
        state[f"{place + 1}.running_mean"] = np.asarray(known["mean"])
        state[f"{place + 1}.running_var"] = np.asarray(known["var"])
        state[f"{place + 1}.num_batches_tracked"] = np.zeros((), np.int64)
    return state
