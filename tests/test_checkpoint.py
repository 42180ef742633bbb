"""Checkpoints: bitwise, verified, with a way back, and never a silent fresh start."""

import gc
import random
import shutil
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sfrik_jax.checkpoint import Checkpoints, digests
from sfrik_jax.errors import CorruptInputError
from sfrik_jax.mesh import batch_sharding, make_mesh, replicated

# A collection may come before the fixture's own.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore:coroutine .* was never awaited:RuntimeWarning",
)


class State(NamedTuple):
    step: jax.Array
    params: dict
    moments: list


def state_of(step, seed=0):
    """Leaves of every kind, with NaN, infinities, -0 and denormals among them."""
    rng = np.random.default_rng(100 * seed + step)
    odd = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-42, 0.0, 1.0, -1.0], np.float32)
    wide = rng.standard_normal((16, 24))
    return State(
        step=jnp.asarray(step, jnp.int32),
        params={
            "kernel": jnp.asarray(wide, jnp.float32),
            "half": jnp.asarray(wide[:8], jnp.bfloat16),
            "odd": jnp.asarray(odd),
            "mask": jnp.asarray(wide[:, 0] > 0),
        },
        moments=[jnp.asarray(rng.integers(-(2**31), 2**31, (256, 3)), jnp.int32)],
    )


def placed(state, devices):
    """The state on a mesh: leaves split over it where their first axis allows."""
    mesh = make_mesh(devices, devices=jax.devices()[:devices])

    def place(x):
        split = x.ndim > 0 and x.shape[0] % devices == 0
        return jax.device_put(x, batch_sharding(mesh) if split else replicated(mesh))

    return jax.tree.map(place, state)


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def bits(state):
    return [(x.dtype, x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(state)]


def opened(path, *, keep=3, keep_period=None):
    return Checkpoints(path, keep=keep, keep_period=keep_period)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A directory with steps 10 and 20, to be copied."""
    path = tmp_path_factory.mktemp("stored") / "checkpoints"
    with opened(path) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, state_of(step), wait=True)
    return path


@pytest.fixture
def copied(stored, tmp_path):
    yield shutil.copytree(stored, tmp_path / "checkpoints")
    # Orbax leaves coroutines behind when a read fails; they warn when collected.
    with warnings.catch_warnings(action="ignore"):
        gc.collect()


@pytest.mark.parametrize(("saved_on", "restored_on"), [(1, 1), (8, 8), (8, 1), (1, 8)])
def test_a_state_comes_back_bit_for_bit(tmp_path, saved_on, restored_on):
    state = placed(state_of(7), saved_on)
    target = abstract(placed(state_of(7), restored_on))
    with opened(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(7, state, wait=True)
        assert checkpoints.steps() == [7]
    with opened(tmp_path / "checkpoints") as checkpoints:
        found = checkpoints.restore(target)
    assert isinstance(found, State)
    assert bits(found) == bits(state)
    for leaf, like in zip(jax.tree.leaves(found), jax.tree.leaves(target), strict=True):
        assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)


def test_a_background_save_is_complete_after_closing(tmp_path):
    with opened(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(7, state_of(7))
    with opened(tmp_path / "checkpoints") as checkpoints:
        assert bits(checkpoints.restore(abstract(state_of(7)))) == bits(state_of(7))


def test_the_newest_of_several_comes_back(copied):
    with opened(copied) as checkpoints:
        assert checkpoints.steps() == [10, 20]
        assert bits(checkpoints.restore(abstract(state_of(0)))) == bits(state_of(20))


def test_nothing_saved_is_no_state(tmp_path):
    with opened(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.restore(abstract(state_of(0))) is None


def test_saving_a_stored_step_again_changes_nothing(copied):
    with opened(copied) as checkpoints:
        checkpoints.save(20, state_of(20, seed=1), wait=True)
        assert checkpoints.steps() == [10, 20]
        assert bits(checkpoints.restore(abstract(state_of(0)))) == bits(state_of(20))


def test_the_newest_stay_and_milestones_stay_for_good(tmp_path):
    with opened(tmp_path / "checkpoints", keep=2, keep_period=20) as checkpoints:
        for step in range(10, 71, 10):
            checkpoints.save(step, state_of(step), wait=True)
    with opened(tmp_path / "checkpoints", keep=2, keep_period=20) as checkpoints:
        assert checkpoints.steps() == [20, 40, 60, 70]
        found = checkpoints.restore(abstract(state_of(0)))
        assert bits(found) == bits(state_of(70))


def test_without_milestones_only_the_newest_stay(tmp_path):
    with opened(tmp_path / "checkpoints", keep=2) as checkpoints:
        for step in (10, 20, 30, 40):
            checkpoints.save(step, state_of(step), wait=True)
        assert checkpoints.steps() == [30, 40]


# --- Digests ------------------------------------------------------------------------


def hexes(tree):
    return {k: np.asarray(v).tolist() for k, v in digests(tree).items()}


@pytest.mark.parametrize("devices", [2, 8])
def test_digests_are_the_same_for_every_sharding(devices):
    want = hexes(state_of(3))
    assert hexes(placed(state_of(3), devices)) == want
    assert len(want) == 6


def flip(x, index, bit):
    """x with one bit of one element flipped."""
    raw = np.array(x).reshape(-1)
    words = raw.view(f"uint{8 * raw.itemsize}")
    words[index] ^= words.dtype.type(1 << bit)
    return jnp.asarray(raw.reshape(x.shape))


@pytest.mark.parametrize("leaf", ["kernel", "half", "odd"])
def test_every_flipped_bit_changes_its_leafs_digest_alone(leaf):
    state = state_of(3)
    want, rng = hexes(state), random.Random(leaf)
    x = state.params[leaf]
    for _ in range(20):
        index, bit = rng.randrange(x.size), rng.randrange(8 * x.dtype.itemsize)
        params = {**state.params, leaf: flip(x, index, bit)}
        found = hexes(state._replace(params=params))
        changed = [name for name in want if want[name] != found[name]]
        assert changed == [f".params['{leaf}']"]


def test_exchanged_elements_change_the_digest():
    x = jnp.arange(12.0)
    y = x.at[jnp.array([2, 9])].set(x[jnp.array([9, 2])])
    assert hexes({"x": x}) != hexes({"x": y})


# --- Damage -------------------------------------------------------------------------


def files_of(step_directory):
    files = sorted(p for p in step_directory.rglob("*") if p.is_file())
    assert files
    return files


def largest_file(step_directory):
    """The file of the arrays' values: Orbax keeps no checksum of them."""
    return max(files_of(step_directory), key=lambda p: p.stat().st_size)


def flip_bit_of(path, offset, bit):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(bytes(content))


def check_noticed_or_harmless(directory, damaged_file):
    """Restores; returns whether the damage was noticed."""
    damaged = damaged_file.read_bytes()
    with opened(directory) as checkpoints:
        found = bits(checkpoints.restore(abstract(state_of(0))))
        steps = checkpoints.steps()
    if found == bits(state_of(20)):
        assert steps == [10, 20]
        return False
    assert found == bits(state_of(10))
    assert steps == [10]
    kept = directory / "20.corrupt" / damaged_file.relative_to(directory / "20")
    assert kept.read_bytes() == damaged
    return True


@pytest.mark.parametrize("seed", range(12))
def test_a_flipped_bit_among_the_values_is_noticed_or_harmless(copied, seed):
    rng = random.Random(seed)
    path = largest_file(copied / "20")
    flip_bit_of(path, rng.randrange(path.stat().st_size), rng.randrange(8))
    check_noticed_or_harmless(copied, path)


@pytest.mark.parametrize("seed", range(12))
def test_a_flipped_bit_in_any_file_is_noticed_or_harmless(copied, seed):
    rng = random.Random(seed)
    path = rng.choice(files_of(copied / "20"))
    flip_bit_of(path, rng.randrange(path.stat().st_size), rng.randrange(8))
    check_noticed_or_harmless(copied, path)


def test_a_flipped_bit_that_reads_well_is_found_by_the_digest(copied, caplog):
    path = largest_file(copied / "20")
    # The values do not compress: they lie in the file as they are.
    value = np.asarray(state_of(20).moments[0]).tobytes()
    flip_bit_of(path, path.read_bytes().index(value) + 17, 3)
    assert check_noticed_or_harmless(copied, path)
    assert "SFRIK-CKPT-CORRUPT step 20: leaf .moments[0] digest mismatch" in caplog.text


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("meta/metadata", b'"digest"', b'"digesu"'),
        ("state/array_metadatas/process_0", b'"array_metadata"', b'"array_metadatb"'),
    ],
)
def test_a_misspelt_key_is_damage_like_any_other(copied, name, before, after):
    path = copied / "20" / name
    content = path.read_bytes()
    assert before in content
    path.write_bytes(content.replace(before, after))
    assert check_noticed_or_harmless(copied, path)


def test_an_emptied_file_is_damage_like_any_other(copied):
    path = largest_file(copied / "20")
    path.write_bytes(b"")
    assert check_noticed_or_harmless(copied, path)


@pytest.mark.parametrize("name", ["values", "meta/metadata", "state/manifest.ocdbt"])
def test_a_missing_file_is_damage_like_any_other(copied, name):
    newest = copied / "20"
    (largest_file(newest) if name == "values" else newest / name).unlink()
    with opened(copied) as checkpoints:
        assert bits(checkpoints.restore(abstract(state_of(0)))) == bits(state_of(10))


def test_damage_to_the_same_step_twice_keeps_both(copied):
    for _ in range(2):
        path = largest_file(copied / "20")
        path.write_bytes(b"")
        with opened(copied) as checkpoints:
            assert bits(checkpoints.restore(abstract(state_of(0)))) == bits(
                state_of(10)
            )
            checkpoints.save(20, state_of(20), wait=True)
            assert bits(checkpoints.restore(abstract(state_of(0)))) == bits(
                state_of(20)
            )
    names = {p.name for p in copied.iterdir() if p.is_dir()}
    assert names >= {"10", "20", "20.corrupt", "20.corrupt2"}


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_afresh(copied):
    for step in ("10", "20"):
        largest_file(copied / step).write_bytes(b"")
    with (
        opened(copied) as checkpoints,
        pytest.raises(CorruptInputError, match=r"step 20: .*step 10: .*kept") as caught,
    ):
        checkpoints.restore(abstract(state_of(0)))
    assert str(copied) in str(caught.value)
    assert {p.name for p in copied.glob("*.corrupt")} == {"10.corrupt", "20.corrupt"}


def test_it_does_not_start_afresh_the_next_time_either(copied):
    for step in ("10", "20"):
        largest_file(copied / step).write_bytes(b"")
    for _ in range(3):
        with (
            opened(copied) as checkpoints,
            pytest.raises(CorruptInputError, match="kept as"),
        ):
            checkpoints.restore(abstract(state_of(0)))
