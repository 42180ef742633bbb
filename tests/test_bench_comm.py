"""What devices send each other is counted as by hand, and compiled to no more."""

import jax
import numpy as np
import pytest
from test_plan import QUICKSTART, SMALL

from bench import comm
from sfrik_jax import config as configs
from sfrik_jax.mesh import make_mesh
from sfrik_jax.planning import counted, received

WIDE = comm.Sizes(2048, 8192, 32768)


def total(found):
    return sum(each.times * each.received for each in found)


@pytest.mark.parametrize(
    ("arm", "gigabytes", "goal"),
    [
        (comm.ROWS, 0.235 + 1.879, 2.2),
        (comm.HALF_SUMS, 0.235 + 0.940, 1.2),
        (comm.COLUMNS_SPLIT, 0.235, 0.3),
        (comm.PEER, 0.470 + 0.940 + 1.879, None),
    ],
)
def test_last_layer_and_loss_receive_what_a_hand_counts(arm, gigabytes, goal):
    found = total(comm.of_last_layer(arm, 8, WIDE)) / 1e9
    assert found == pytest.approx(gigabytes, rel=0.002)
    assert goal is None or found <= goal


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_the_loss_takes_one_gather_and_scalars(devices):
    found = comm.of_last_layer(comm.ROWS, devices, WIDE)
    (gather,) = (each for each in found if each.kind == received.ALL_GATHER)
    assert gather.whole == 2 * 2048 * 32768 * 2  # two views in bfloat16
    others = [each.whole for each in found if each is not gather]
    weights = 8192 * 32768 * 4
    assert max(others) == weights  # the last layer's gradient
    assert all(size <= 16 for size in others if size != weights)


@pytest.mark.parametrize("devices", [2, 8])
def test_the_compiled_programs_exchange_what_was_counted(devices):
    rows = comm.check(devices)
    assert {row["arm"] for row in rows} == {*comm.ARMS, comm.PEER}
    for row in rows:
        # Equal sums are taken once: of the columns' row norms 2 n values fewer.
        assert 0.97 * row["traced"] <= row["compiled"] <= row["traced"], row


def test_the_arms_agree():
    sizes, rng = comm.Sizes(64, 48, 96), np.random.default_rng(0)
    shapes = comm.operands(sizes, "float32")
    operands = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes
    )
    mesh = make_mesh(8, 1)
    found = {
        arm: jax.jit(comm.last_layer_and_loss(arm, mesh, sizes, "float32"))(*operands)
        for arm in (comm.ROWS, comm.COLUMNS_SPLIT, comm.PEER)
    }
    value, grads = found[comm.PEER]
    for arm in (comm.ROWS, comm.COLUMNS_SPLIT):
        np.testing.assert_allclose(found[arm][0], value, rtol=1e-5)
        for got, want in zip(
            jax.tree.leaves(found[arm][1]), jax.tree.leaves(grads), strict=True
        ):
            gap = np.linalg.norm(got - want) / np.linalg.norm(want)
            assert gap < 1e-4, arm


def test_the_partitioner_adds_nothing_large_to_a_step():
    settings = [*SMALL, "mesh.data=8", "data.image_size=16", "data.batch_size=32"]
    config = configs.load(QUICKSTART, settings)
    program, _, _ = counted.compiled(config)
    compiled = comm.in_compiled(program.as_text())
    traced = comm.in_traced(received.collectives(counted.trace(config, 8).program))
    # The gauges see the first rows of two views on every device.
    gauges = 2 * 32 * 32
    assert compiled["all-gather"] <= traced["all-gather"] + gauges
    scalars = 1000
    assert compiled["all-reduce"] <= traced["all-reduce"] + gauges + scalars
    assert not compiled.keys() - traced.keys()


def test_a_step_is_counted_by_arm():
    found = {arm: total(comm.of_step(QUICKSTART, SMALL, arm, 2)) for arm in comm.ARMS}
    assert found[comm.HALF_SUMS] < found[comm.ROWS]
    rows = comm.rows_of(
        "comm", comm.ROWS, 2, {}, comm.of_last_layer(comm.ROWS, 2, WIDE)
    )
    assert rows[-1]["part"] == "in all"
    assert rows[-1]["bytes"] == pytest.approx(sum(row["bytes"] for row in rows[:-1]))


def test_collectives_are_read_from_compiled_text():
    text = """
      %a = f32[4,2]{1,0} all-gather(%x), dimensions={0}
      %b = (f32[3]{0}, f32[]) all-reduce-start(%y, %z), to_apply=%add
      %c = f32[5]{0} add(%b, %b)
    """
    assert comm.in_compiled(text) == {"all-gather": 8, "all-reduce": 4}
