"""What work costs, counted from the traced program: arithmetic, activations, traffic.

A program is traced, not compiled, and its convolutions and matrix products are counted
as they read (1 MAC = 2 FLOP; a product with a padding's zero counts, one with the zeros
that a stride's gradient puts between pixels does not). Elementwise arithmetic is left
out: it costs traffic, not time.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from sfrik_jax.planning.programs import equations, nbytes, trace

PRODUCTS = ("dot_general", "conv_general_dilated")
POOL = "reduce_window_max"
# Of functions with a derivative of their own, ReLU alone takes one array.
OWN_DERIVATIVE = ("custom_jvp_call", "custom_vjp_call")
# Of each parameter in a step, float32: read forward and backward, its gradient written;
# the update reads parameter, gradient and momentum, and writes two of them.
WEIGHT_BYTES = 8 * 4


class Work(NamedTuple):
    """FLOP, and bytes to and from memory."""

    flop: float
    bytes: float

    def __add__(self, other: tuple) -> "Work":
        return Work(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, factor: float) -> "Work":
        return Work(factor * self.flop, factor * self.bytes)


class NetworkCost(NamedTuple):
    """What one view costs, forward and backward.

    Attributes:
      parameters: of the network, however many views there are.
      flop: of convolutions and matrix products.
      activations: bytes that the backward pass needs: what convolutions, the pooling
        and ReLUs give.
      products: bytes of those that convolutions and the pooling give.
      unfused, fused: bytes to and from memory, see `_traffic`.
    """

    parameters: int
    flop: float
    activations: float
    products: float
    unfused: float
    fused: float


def work(function: Callable, *args: Any) -> Work:
    """FLOP of a function's products; bytes of their operands and results, each once.

    Whatever lies between two products is then taken to be fused into one of them.
    Args: arrays, or `jax.ShapeDtypeStruct`s in trees.
    """
    total = Work(0, 0)
    for ran in equations(trace(function, *args)):
        if ran.equation.primitive.name in PRODUCTS:
            total += product_work(ran.equation).times(ran.times)
    return total


def product_work(equation: Any) -> Work:
    """Of one product: its FLOP, and its operands and result once each."""
    # An array times itself is read once.
    distinct = {id(each): each for each in equation.invars}.values()
    moved = sum(map(nbytes, [*distinct, *equation.outvars]))
    return Work(product_flop(equation), moved)


def product_flop(equation: Any) -> float:
    """FLOP of a matrix product or a convolution."""
    left, right = (each.aval.shape for each in equation.invars)
    out = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2 * out * math.prod(left[axis] for axis in contracted)
    features = right[equation.params["dimension_numbers"].rhs_spec[0]]
    each = math.prod(right) / features
    # Between the pixels of a dilated image lie zeros, which nobody has to multiply.
    return 2 * out * each / math.prod(equation.params["lhs_dilation"])


def network(
    model: Any, inputs: jax.ShapeDtypeStruct, *, views: int, inner: bool = False
) -> NetworkCost:
    """The cost of a flax module in training, by view.

    Args:
      inputs: the shape of what it takes.
      views: how many those are; batch norm needs two at least.
      inner: whether the gradient by the inputs is needed as well.
    """
    start = jax.random.key(0)
    variables = jax.eval_shape(lambda x: model.init(start, x, train=False), inputs)
    params, stats = variables["params"], variables["batch_stats"]

    def forward(params, inputs, stats):
        out, _ = model.apply(
            {"params": params, "batch_stats": stats},
            inputs,
            train=True,
            mutable=["batch_stats"],
        )
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(out))

    gradient = jax.grad(forward, argnums=(0, 1) if inner else 0)
    flop = work(gradient, params, inputs, stats).flop
    sizes = _sizes(trace(forward, params, inputs, stats))
    products = sizes["given"] + sizes["pooled"]
    unfused, fused = _traffic(sizes)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return NetworkCost(
        count,
        flop / views,
        (products + sizes["relu"]) / views,
        products / views,
        unfused / views,
        fused / views,
    )


def training_step(
    model: Any, images: jax.ShapeDtypeStruct, loss: Callable[[list], jax.Array]
) -> Work:
    """The least work of a step: network, loss, and the weights' own traffic.

    Args:
      images: [n, V, size, size, 3], the views.
      loss: of V embeddings [n, q].
    """
    n, num_views = images.shape[:2]
    cost = network(model, images, views=n * num_views)
    z = jax.ShapeDtypeStruct((n, model.projector.embed_dim), model.projector.dtype)
    per_view = Work(cost.flop, cost.fused)
    total = per_view.times(n * num_views) + work(jax.grad(loss), [z] * num_views)
    return total + Work(0, WEIGHT_BYTES * cost.parameters)


def _sizes(jaxpr: core.Jaxpr) -> dict[str, float]:
    """Bytes of what products take and give, of ReLUs, poolings and residual sums."""
    names = ("taken", "given", "relu", "pool", "pooled", "sums")
    sizes: dict[str, float] = dict.fromkeys(names, 0.0)
    for equation, times, *_ in equations(jaxpr):
        name, out = equation.primitive.name, times * nbytes(equation.outvars[0])
        if name in PRODUCTS:
            sizes["taken"] += times * nbytes(equation.invars[0])
            sizes["given"] += out
        elif name == POOL:
            sizes["pool"] += times * nbytes(equation.invars[0])
            sizes["pooled"] += out
        elif name in OWN_DERIVATIVE and len(equation.invars) == 1:
            sizes["relu"] += out
        elif name == "add" and _is_residual(equation):
            sizes["sums"] += out
    return sizes


def _is_residual(equation: Any) -> bool:
    """Two activations [n, H, W, C]; batch norm adds with an axis for the views."""
    return all(len(each.aval.shape) == 4 for each in equation.invars)


def _traffic(sizes: dict[str, float]) -> tuple[float, float]:
    """Bytes to and from memory, batch norm in passes of its own and fused.

    In passes of their own, forward: a convolution reads x and writes y, the statistics
    read y, the normalisation with ReLU reads y and writes its result, a residual sum
    reads its other term. Backward: the two sums of batch norm read y and the cotangent,
    so does its application, which writes y's cotangent; the gradients by x and by the
    kernel each read that, the one writes x's, the other reads x; a residual adds two
    cotangents into a third. Pooling reads and writes, and backward reads both sides and
    the cotangent and writes.

    Fused: statistics and backward sums come with the convolution that makes their
    operand, normalisation and application with the one that reads their result; what a
    residual sum gives is written all the same, and its cotangents are added by a
    convolution.
    """
    x, y, sums = sizes["taken"], sizes["given"], sizes["sums"]
    pool = 3 * (sizes["pool"] + sizes["pooled"])
    unfused = 11 * y + 3 * x + 4 * sums + pool
    return unfused, unfused - 5 * y - sums
