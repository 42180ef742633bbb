"""What work costs is counted as it is by hand; limits are measured."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import counts, roofline
from bench.timing import Arm
from sfrik_jax import losses, models
from sfrik_jax.models.projector import Projector
from sfrik_jax.planning import arithmetic
from sfrik_jax.settings import LOSS_DEFAULTS

ROOT = Path(__file__).parents[1]
HALF = jnp.dtype(jnp.bfloat16)


@pytest.mark.parametrize(
    ("name", "size", "parameters", "flop", "activations", "products", "traffic"),
    [
        ("resnet50", 224, 23.5, 24.3, 41.8, 22.6, (359, 236)),
        ("resnet18", 224, 11.2, 10.65, 10.0, 5.4, (80, 53)),
        ("resnet18", 96, 11.2, 1.96, 1.84, 1.0, (15, 10)),
        ("resnet18", 64, 11.2, 0.87, 0.82, 0.44, (6.5, 4.3)),
    ],
)
def test_a_view_costs_what_it_does_by_hand(
    name, size, parameters, flop, activations, products, traffic
):
    model = models.BACKBONES[name](dtype=HALF)
    pixels = jax.ShapeDtypeStruct((2, size, size, 3), HALF)
    cost = arithmetic.network(model, pixels, views=2)
    assert cost.parameters == pytest.approx(parameters * 1e6, rel=0.005)
    assert cost.flop == pytest.approx(flop * 1e9, rel=0.003)
    assert cost.activations == pytest.approx(activations * 1e6, rel=0.007)
    assert cost.products == pytest.approx(products * 1e6, rel=0.015)
    found = cost.unfused, cost.fused
    assert found == pytest.approx([mb * 1e6 for mb in traffic], rel=0.025)


@pytest.mark.parametrize(
    ("q", "flop", "millions"), [(8192, 0.91, 151), (32768, 2.11, 352)]
)
def test_the_projector_costs_what_it_does_by_hand(q, flop, millions):
    model = Projector((8192, 8192), q, dtype=HALF)
    h = jax.ShapeDtypeStruct((2, 2048), jnp.float32)
    cost = arithmetic.network(model, h, views=2, inner=True)
    assert cost.flop == pytest.approx(flop * 1e9, rel=0.005)
    assert cost.parameters == pytest.approx(millions * 1e6, rel=0.002)


@pytest.mark.parametrize("method", ["sfrik", "vicreg"])
def test_the_loss_has_the_arithmetic_of_its_form(method):
    n, q = 64, 96
    z = [jax.ShapeDtypeStruct((n, q), jnp.float32)] * 2
    loss = partial(losses.METHODS[method], **LOSS_DEFAULTS[method])
    found = arithmetic.work(jax.grad(lambda z: loss(z)[0]), z)
    want = counts.loss_flop({"sfrik": "rows", "vicreg": "covariance"}[method], n, q)
    # Beside the Gram products ours has one with the mean vector, 4 n q.
    assert want <= found.flop <= want + 4 * n * q


def test_forms_of_the_loss_at_the_papers_shape():
    tera = {
        form: counts.loss_flop(form, 2048, 8192) / 1e12 for form in counts.LOSS_FLOP
    }
    want = {"rows": 0.275, "dense": 0.41, "covariance": 1.10}
    assert tera == pytest.approx(want, rel=0.01)


def test_each_operand_and_result_of_a_product_is_moved_once():
    a = jax.ShapeDtypeStruct((8, 3), jnp.float32)
    assert arithmetic.work(lambda a: a @ a.T, a).flop == 2 * 8 * 3 * 8
    # The transpose is an array of its own; a contraction with itself is not.
    assert arithmetic.work(lambda a: a @ a.T, a).bytes == 4 * (8 * 3 + 3 * 8 + 8 * 8)
    itself = partial(jnp.einsum, "ij,kj->ik")
    assert arithmetic.work(lambda a: itself(a, a), a).bytes == 4 * (8 * 3 + 8 * 8)


def test_a_loop_counts_as_often_as_it_runs():
    def total(rows):
        return jax.lax.scan(lambda c, row: (c + row @ row, None), 0.0, rows)[0]

    rows = jax.ShapeDtypeStruct((5, 7), jnp.float32)
    assert arithmetic.work(total, rows).flop == 5 * 2 * 7


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_a_convolution_cost_what_it_costs(stride):
    x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 3, 5), jnp.float32)
    strides, padding = (stride, stride), ((1, 1), (1, 1))

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    forward = arithmetic.work(convolve, x, kernel).flop
    assert forward == 2 * 2 * (8 // stride) ** 2 * 5 * 3 * 3 * 3

    def value(x, kernel):
        return jnp.sum(convolve(x, kernel) ** 2)

    both = arithmetic.work(jax.grad(value, argnums=(0, 1)), x, kernel).flop
    assert both == 3 * forward


def test_a_step_is_its_views_its_loss_and_its_weights():
    model = models.build(
        backbone="resnet18",
        width=64,
        stem="small",
        hidden_dims=(32, 32),
        embed_dim=16,
        dtype="float32",
    )
    images = jax.ShapeDtypeStruct((4, 2, 16, 16, 3), jnp.float32)
    found = arithmetic.training_step(model, images, lambda z: jnp.sum(z[0] @ z[1].T))
    views = arithmetic.network(model, images, views=8)
    loss = arithmetic.work(
        jax.grad(lambda z: jnp.sum(z[0] @ z[1].T)), [jnp.zeros((4, 16))] * 2
    )
    assert loss.flop > 0
    assert found.flop == pytest.approx(8 * views.flop + loss.flop)
    want = 8 * views.fused + loss.bytes + 32 * views.parameters
    assert found.bytes == pytest.approx(want)


def test_the_limit_is_the_longer_of_arithmetic_and_bytes():
    limits = roofline.Limits({"float32": 10.0, "bfloat16": 40.0}, 5.0)
    assert limits.seconds(20, 5, "float32") == 2
    assert limits.seconds(20, 5, "bfloat16") == 1
    assert limits.of("float32")(Arm("a", print, flop=20, bytes=50)) == 10
    assert limits.of("float32")(Arm("a", print)) == 0


def test_the_command_measures_and_prints_the_table(tmp_path):
    path = tmp_path / "roofline.json"
    options = "--short --backbone resnet18 --size 32 --stem small --batch 8 --q 64"
    done = subprocess.run(
        [sys.executable, ROOT / "bench/roofline.py", *options.split(), "--json", path],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(path.read_text())
    assert "| resnet18 @32, small stem | 11.2 |" in done.stdout
    assert "loss, covariance, n = 8, q = 64: 0.00 GFLOP" in done.stdout
    rates, speed = row["limits"]["flop_per_second"], row["limits"]["bytes_per_second"]
    assert set(rates) == {"bfloat16", "float32"}
    want = max(row["flop"] / rates["float32"], row["fused_bytes"] / speed)
    assert row["limit_views_per_second"] == pytest.approx(1 / want)
    assert np.isfinite(row["unfused_views_per_second"])
