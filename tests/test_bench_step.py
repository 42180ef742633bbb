"""Ours and the peer are compared by the peer's names; a trace says what took time."""

import math
from argparse import Namespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import our_step, roofline, step, timing, torch_step, traces
from sfrik_jax import models
from sfrik_jax.planning import arithmetic, memory


def test_our_parameters_get_the_peers_names_and_layouts():
    model = models.build(
        backbone="resnet18",
        width=64,
        stem="small",
        hidden_dims=(5, 6),
        embed_dim=7,
        dtype="float32",
    )
    images = jax.ShapeDtypeStruct((2, 2, 16, 16, 3), jnp.float32)
    shapes = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), images
    )
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    linear = np.arange(512 * 5, dtype=np.float32).reshape(512, 5)
    zeros["params"]["projector"]["linear1"]["kernel"] = linear
    state = torch_step.torch_names(zeros["params"], zeros["batch_stats"], "resnet18")
    # As nn.Sequential(backbone, Linear, BatchNorm1d, ReLU, Linear, …, Linear) has them.
    np.testing.assert_array_equal(state["1.weight"], linear.T)
    found = {name: value.shape for name, value in state.items()}
    assert (
        found.items()
        >= {
            "0.conv1.weight": (64, 3, 3, 3),
            "0.layer4.0.downsample.0.weight": (512, 256, 1, 1),
            "1.bias": (5,),
            "2.running_var": (5,),
            "4.weight": (6, 5),
            "5.weight": (6,),
            "7.weight": (7, 6),
        }.items()
    )
    assert not found.keys() & {"3.weight", "6.weight", "7.bias", "8.weight"}
    assert set(torch_step.LEAVES) <= found.keys()


def test_errors_are_relative_to_the_peers():
    names = torch_step.LEAVES
    theirs = {name: np.array([3.0, 4.0]) for name in names}
    ours = theirs | {names[0]: np.array([3.0, 4.5])}
    errors = torch_step._errors(1.01, ours, 1.0, theirs)
    assert errors["loss"] == pytest.approx(0.01)
    assert errors["gradient"] == pytest.approx(0.5 / math.sqrt(75))
    assert errors["gradient norm"] == pytest.approx(math.sqrt(79.25 / 75) - 1)
    assert errors[f"gradient of {names[0]}"] == pytest.approx(0.1)
    assert errors[f"gradient of {names[1]}"] == 0


@pytest.mark.parametrize("dtype", torch_step.BOUNDS)
def test_the_bench_ends_where_they_disagree(dtype):
    bounds = torch_step.BOUNDS[dtype]
    names = ["loss", "gradient norm", "gradient", "gradient of 7.weight"]
    near: dict[str, float] = dict(zip(names, bounds, strict=True))
    torch_step.check(near, dtype)
    for name, bound in near.items():
        for far in (1.01 * bound, math.nan):
            with pytest.raises(SystemExit, match=f"disagree in {dtype}: {name} "):
                torch_step.check(near | {name: far}, dtype)


def test_the_peers_work_is_counted_with_its_own_derivative(monkeypatch):
    class Peer:
        def arm(self, name, method, *, compiled):
            return timing.Arm(name, print)

    def no_steps(args, method):
        return arithmetic.Work(0, 0) + roofline.loss_work(args, method)

    monkeypatch.setattr(roofline, "step_work", no_steps)
    peer: Any = Peer()
    n, q = 16, 48
    args = Namespace(batch=n, q=q, dtype="float32", compile=True)
    for method, flop in {"sfrik": 12 * n * n * q, "vicreg": 12 * n * q * q}.items():
        arms = step.peer_arms(peer, args, method)
        assert [arm.flop for arm in arms] == [flop, flop]


def test_a_backbone_that_the_peer_lacks_is_said_with_its_remedy(monkeypatch, capsys):
    def lack(args):
        raise LookupError("torchvision has no resnet14")

    monkeypatch.setattr(torch_step, "TorchStep", lack)
    assert step.open_peer(Namespace()) is None
    out = capsys.readouterr().out
    assert out == (
        "no arms of torch: torchvision has no resnet14; name another --backbone\n"
    )


def test_views_of_the_comparison_are_pictures_with_noise():
    views = torch_step.patterns(np.random.default_rng(0), 3, 8)
    assert (views.shape, views.dtype) == ((3, 2, 8, 8, 3), np.float32)
    same = np.corrcoef(views[:, 0].ravel(), views[:, 1].ravel())[0, 1]
    assert same > 0.8
    other = np.corrcoef(views[0, 0].ravel(), views[1, 1].ravel())[0, 1]
    assert abs(other) < 0.6


def product(a):
    return a @ a


def test_a_flag_that_xla_does_not_take_is_named():
    lowered = jax.jit(product).lower(jnp.ones((4, 4)))
    fast = our_step._compiled(lowered, "xla_cpu_enable_fast_min_max=true")
    assert fast(jnp.ones((4, 4)))[0, 0] == 4
    assert memory.of_compiled(fast) >= 2 * 4 * 16
    with pytest.raises(SystemExit, match=r"^--xla=no_such_flag=true: .*no_such_flag"):
        our_step._compiled(lowered, "no_such_flag=true")


def test_a_trace_leaves_a_table_and_a_picture(tmp_path):
    a = jnp.ones((256, 256))
    compiled = jax.jit(product).lower(a).compile()
    kinds = traces.keep(
        tmp_path, compiled, lambda: jax.block_until_ready(compiled(a)), steps=2
    )
    assert "| dot_general |" in kinds
    assert "product)/dot_general" in (tmp_path / "operations.md").read_text()
    assert (tmp_path / "operations.png").read_bytes().startswith(b"\x89PNG")
