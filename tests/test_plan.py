"""What is counted of a traced step is what a hand counts, and the command tells it."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from sfrik_jax import config as configs
from sfrik_jax.__main__ import main
from sfrik_jax.collectives import DATA, MODEL
from sfrik_jax.errors import ConfigError
from sfrik_jax.planning import arithmetic, counted, hardware, memory, received, told
from sfrik_jax.planning import plan as plans
from sfrik_jax.planning.programs import trace

MESH = AbstractMesh((4, 2), (DATA, MODEL), axis_types=(AxisType.Auto,) * 2)
CONFIGS = Path(__file__).parents[1] / "configs"
R50, QUICKSTART = (
    str(CONFIGS / f"{n}.py") for n in ("imagenet_resnet50", "quickstart")
)
# A network whose steps are traced in a second.
SMALL = ["model.width=4", "model.hidden_dims=(16,16)", "model.embed_dim=32"]


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


# --- Collectives --------------------------------------------------------------------


def test_collectives_are_counted_by_ring_algorithms():
    def local(x):  # [2, 8] on each device
        total = jax.lax.psum(x, DATA)
        every = jax.lax.all_gather(x, (DATA, MODEL), axis=0, tiled=True)
        part = jax.lax.psum_scatter(x, MODEL, scatter_dimension=1, tiled=True)
        turned = jax.lax.ppermute(x, DATA, [(i, (i + 1) % 4) for i in range(4)])
        swapped = jax.lax.all_to_all(x, DATA, 1, 0, tiled=True)
        parts = (total, every, part, turned, swapped)
        return jnp.stack([jnp.sum(each) for each in parts]).sum()[None]

    def function(x):
        def many(carry, _):
            spread = jax.shard_map(
                local,
                mesh=MESH,
                in_specs=P((DATA, MODEL)),
                out_specs=P((DATA, MODEL)),
            )
            return carry + jnp.sum(spread(x)), None

        return jax.lax.scan(many, 0.0, None, length=3)[0]

    found = received.collectives(trace(function, floats(16, 8)))
    bytes_ = {each.kind: each.received for each in found}
    mine = 4 * 2 * 8
    assert bytes_ == {
        "all-reduce": 2 * 3 / 4 * mine,
        "all-gather": 7 / 8 * 8 * mine,
        "reduce-scatter": mine / 2,
        "permute": mine,
        "all-to-all": 3 / 4 * mine,
    }
    assert {each.times for each in found} == {3}


def test_an_axis_of_one_device_sends_nothing():
    alone = AbstractMesh((1,), (DATA,), axis_types=(AxisType.Auto,))
    island = jax.shard_map(
        lambda x: jax.lax.psum(x, DATA), mesh=alone, in_specs=P(DATA), out_specs=P()
    )
    assert received.collectives(trace(island, floats(4, 4))) == []


# --- Memory -------------------------------------------------------------------------


def peak(function, *shapes, donated=None, divisor=1):
    arrays = [
        memory.Array(4 * int(np.prod(s.shape)) // divisor, "given", divisor)
        for s in shapes
    ]
    return memory.peak(trace(function, *shapes), arrays, donated=donated).bytes


SQUARE = floats(10, 10)  # 400 bytes


def test_elementwise_arithmetic_within_its_one_reader_takes_no_room():
    assert peak(lambda x: jnp.sum(jnp.sin(x) * 2), SQUARE) == 400 + 4


def test_a_chain_of_products_holds_two_results_at_a_time():
    assert peak(lambda x: x @ x @ x @ x, SQUARE) == 3 * 400
    # The first product takes x last: with x given away it is still read there.
    assert peak(lambda x: (x @ x) @ jnp.ones((10, 10)), SQUARE, donated=[True]) == 800


def test_what_the_backward_pass_reads_lives_until_then():
    def layer(x, w):
        return jnp.sin(x @ w)

    def kept(layer):
        def loss(x, w):
            for _ in range(5):
                x = layer(x, w)
            return jnp.sum(x)

        return peak(jax.grad(loss, argnums=(0, 1)), SQUARE, SQUARE) / 400

    # x, w, five products and four sines; at most three more on the way back.
    assert 11 <= kept(layer) <= 14
    # x, w and four sines; a layer that is computed again has four at most.
    assert 6 <= kept(jax.checkpoint(layer)) <= 10


def test_arrays_outside_an_island_are_split_as_their_operands():
    assert peak(lambda x: x @ jnp.ones((10, 10)), SQUARE, divisor=2) == 2 * 200


def test_a_loop_needs_the_room_of_one_run():
    def loop(x):
        def body(carry, _):
            return (carry @ carry) @ carry, None

        return jax.lax.scan(body, x, None, length=7)[0]

    # Its operand, its result, and two products inside.
    assert peak(loop, SQUARE) == 4 * 400


# --- A step -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def r50():
    """ResNet-50 at 224 px, q = 32768, batch 2048 on eight devices, columns split."""
    return configs.load(R50, ["mesh.projector=data"])


def test_resnet50_on_eight_devices_meets_the_goals(r50):
    record = counted.count(r50, 8)
    views = 2 * 2048 / 8
    assert record["parameters"]["backbone"] == pytest.approx(23.5e6, rel=0.005)
    assert record["parameters"]["projector"] == pytest.approx(352e6, rel=0.002)
    assert record["flop"]["backbone"] == pytest.approx(24.29e9 * views, rel=0.001)
    assert record["flop"]["projector"] == pytest.approx(2.11e9 * views, rel=0.005)
    # Weights and momentum: the projector's share, and the whole backbone.
    state = (352.4e6 / 8 + 23.5e6) * 4
    assert record["held"]["params"] == pytest.approx(state, rel=0.005)
    assert record["held"]["opt_state"] == pytest.approx(state, rel=0.005)
    backbone = record["peak_parts"]["backbone"]
    assert backbone == pytest.approx(41.85e6 * views, rel=0.03)
    assert record["peak_bytes"] <= 25e9


@pytest.mark.parametrize(
    ("remat", "goal"),
    [("convolutions", 16e9), pytest.param("blocks", 9e9, marks=pytest.mark.slow)],
)
def test_resnet50_takes_less_where_it_computes_again(r50, remat, goal):
    config = configs.apply_overrides(r50, [f"step.remat={remat}"])
    assert counted.trace(config, 8).peak().bytes <= goal


@pytest.fixture(scope="module")
def small():
    return configs.load(QUICKSTART, SMALL)


def test_blocks_that_are_computed_again_cost_their_forward_pass(small):
    flop = {}
    for remat in ("none", "convolutions", "blocks"):
        config = configs.apply_overrides(small, [f"step.remat={remat}"])
        work = counted.work_by_part(counted.trace(config, 2))
        flop[remat] = work["backbone"].flop
    assert flop["convolutions"] == flop["none"]
    # The stem's gradient by the images is not needed, so that forward is over a third.
    assert 1.33 < flop["blocks"] / flop["none"] < 1.45


@pytest.mark.slow
def test_nothing_is_sent_twice_where_activations_are_computed_again(small):
    for columns in ("replicated", "data"):
        split = [f"mesh.projector={columns}"]
        sent = [
            received.summary(received.collectives(counted.trace(config, 2).program))
            for remat in ("none", "convolutions", "blocks")
            for config in [
                configs.apply_overrides(small, [*split, f"step.remat={remat}"])
            ]
        ]
        assert sent[0] and sent[0] == sent[1] == sent[2]


@pytest.mark.slow
def test_a_replicated_projector_fits_with_blocks_computed_again(r50):
    settings = ["mesh.projector=replicated", "step.remat=blocks"]
    config = configs.apply_overrides(r50, settings)
    assert counted.trace(config, 8).peak().bytes <= 16e9


def test_a_step_has_the_work_of_its_network(small):
    model = counted.trace(small, 1).parts.model.backbone
    pixels = jax.ShapeDtypeStruct((2, 48, 48, 3), model.dtype)
    view = arithmetic.network(model, pixels, views=2)
    for devices in (1, 4):
        work = counted.work_by_part(counted.trace(small, devices))
        assert work["backbone"].flop == pytest.approx(256 / devices * view.flop)


def test_the_batch_in_parts_takes_less_memory(small):
    parts = configs.apply_overrides(small, ["step.micro_batches=4"])
    whole = counted.trace(small, 2).peak().bytes
    assert counted.trace(parts, 2).peak().bytes < whole / 2


def test_the_time_is_the_longer_limit_and_the_network():
    sheet = hardware.Hardware("x", 10.0, 5.0, 1e9, 2.0, 8, 1.0, "")
    record = {
        "mesh": {"data": 4, "model": 2},
        "flop": {"a": 20.0, "b": 10.0},
        "traffic_bytes": 20.0,
        "received_bytes": 6.0,
    }
    took = counted.seconds(record, sheet)
    assert took == {"arithmetic": 3, "traffic": 4, "network": 3, "step": 7}
    assert counted.seconds(record | {"mesh": {"data": 16}}, sheet)["network"] == 6


@pytest.mark.slow
def test_settings_that_make_a_step_fit_are_found(small):
    peaks = {
        settings: counted.trace(configs.apply_overrides(small, settings), 2)
        .peak()
        .bytes
        for settings in [(), ("step.remat=convolutions",)]
    }
    enough = sum(peaks.values()) / 2 / plans.USABLE
    remedies = plans.Remedies(small, 2)
    found = remedies.for_memory(enough)
    assert found is not None
    settings, less = found
    assert less <= plans.USABLE * enough < peaks[()]
    assert "step.remat=convolutions" in settings
    assert remedies.for_memory(1.0) is None
    # On one device there is nothing to split.
    alone = plans.Remedies(small, 1)
    assert all("projector" not in " ".join(each) for each in alone._smaller())
    lines = list(told.warning("h100", peaks[()], found))
    assert "--config.step.remat=convolutions" in lines[1]
    assert "smaller batch" in list(told.warning("h100", 1, None))[1]


# --- The command --------------------------------------------------------------------


def run(*words):
    return main(
        ["plan", "--config", QUICKSTART, *(f"--config.{s}" for s in SMALL), *words]
    )


def test_the_command_prints_and_stores_what_is_counted(capsys, tmp_path, small):
    path = tmp_path / "new" / "plan.json"
    words = ["--devices", "2", "--images", "5000", "--hardware", "h100,tpu-v5e"]
    assert run(*words, "--json", str(path)) == 0
    out, record = capsys.readouterr().out, json.loads(path.read_text())
    assert max(map(len, out.splitlines())) <= 80
    want = counted.count(small, 2)
    assert {key: record[key] for key in want} == json.loads(json.dumps(want))
    took = record["estimates"]["tpu-v5e"]
    assert took["hours"] == pytest.approx(8 * 39 * took["step"] / 3600)
    assert took["fits"] and "warning" not in out
    assert f"{record['peak_bytes'] / 1e9:.2f}" in out
    assert record["xla_peak_bytes"] is None  # a CPU's says nothing of accelerators


def test_what_is_not_counted_is_said(capsys):
    words = ["--devices", "2", "--images", "5000", "--hardware", "h100"]
    assert run(*words, "--config.loss.method=simclr") == 0
    out = capsys.readouterr().out
    assert "not counted: what the loss of simclr sends, a data set that lives on" in out
    assert run(*words, "--config.data.residence=host") == 0
    assert "not counted" not in capsys.readouterr().out


def test_a_set_that_is_not_here_leaves_the_hours_out(capsys, tmp_path):
    words = ["--devices", "2", "--hardware", "h100"]
    assert run(*words, f"--config.data.path={tmp_path}") == 0
    assert "No hours: the training set is not here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--hardware", "h100,abacus"], "--hardware 'abacus': choose of h200"),
        (["--devices", "0"], "--devices 0: a run takes one device at least"),
        (["--devices", "3"], "data.batch_size=128 leaves 2 images over on 3 devices"),
        (["--images", "64"], "64"),
        (["--config.step.remat=some"], "step.remat"),
        (["--config.step.deterministic_reduce=8"], "is not planned"),
    ],
)
def test_what_cannot_be_is_one_line(capsys, words, says):
    assert run("--images", "5000", "--devices", "2", *words) == ConfigError.code
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and says in line


def test_every_sheet_is_found_by_its_device():
    for sheet in hardware.SHEETS.values():
        assert hardware.of_kind(sheet.kind) is sheet
    assert hardware.of_kind("cpu") is None
