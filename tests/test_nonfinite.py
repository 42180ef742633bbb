"""N1, N2: numbers that are not finite end a run, or are skipped and counted."""

import contextlib
import itertools
import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_many_processes import Job
from test_pretrain import SMALL, command, job_of
from test_sharded_step import LAYOUTS, Run

from sfrik_jax import config as configs
from sfrik_jax import finite, metrics, pretrain, train_state, weights
from sfrik_jax.__main__ import main
from sfrik_jax.checkpoint import Checkpoints
from sfrik_jax.data.crops import Order
from sfrik_jax.errors import DiskFullError, NonFiniteError
from sfrik_jax.mesh import replicated
from sfrik_jax.passes import Result
from sfrik_jax.run_log import RunLog
from sfrik_jax.rundir import RunDirectory
from sfrik_jax.step import make_train_step
from sfrik_jax.train_state import Skipped, TrainState

LOST = "views:2=nan:11 loss:4=nan gradient:5=inf"
# Of a run of eight steps: three in a row, then one.
ROW = "views:3=nan:{sample} loss:4=nan gradient:5=inf gradient:7=nan"
SHORT = [
    *SMALL,
    "optim.epochs=2",
    "eval.probe_epochs=1",
    "mesh.data=1",
    "step.nonfinite=skip",
]


@pytest.fixture
def small(data_dir):
    """Overrides of a run of eight steps on one device, which skips."""
    return [*SHORT, f"data.path={data_dir}"]


@pytest.fixture(scope="module")
def job(data_dir):
    return job_of([*SHORT, f"data.path={data_dir}"])


def indices_of(step: int) -> list[int]:
    """The samples of a step of that run (1 for the first)."""
    return Order(64, 16, 0).indices(step - 1).tolist()


def sample_of(step: int) -> int:
    """One of them."""
    return indices_of(step)[5]


def listed(run: Path) -> list[int]:
    """The steps whose batches were listed."""
    found = [json.loads(path.read_text()) for path in run.glob("nonfinite_*.json")]
    for about in found:
        assert about == {**about, "seed": 0, "index": indices_of(about["step"])}
    return sorted(about["step"] for about in found)


def steps_of(run: Path) -> list[int]:
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.steps()


def state_of(run: Path, step: int, job: pretrain.Job) -> TrainState:
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        return jax.device_get(checkpoints.restore(job.state, step))


def column(run: Path, name: str) -> list[float]:
    return [row[name] for row in metrics.read_rows(run) if name in row]


# --- The step -------------------------------------------------------------------------

slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("layout", "settings"),
    [
        ("rows", {}),
        pytest.param("columns over data", {}, marks=slow),
        pytest.param("columns over model", {}, marks=slow),
        pytest.param("four devices", {"micro_batches": 2}, marks=slow),
        pytest.param("four devices", {"deterministic_reduce": 4}, marks=slow),
    ],
)
def test_n1_a_step_that_is_not_finite_changes_counts_alone(arm, layout, settings):
    """NaN in one picture, which one device has; a NaN loss; an infinite gradient."""
    arm(LOST)
    run = Run(
        *LAYOUTS.get(layout, (4, 1, None)),
        dtype="float32",
        skip_nonfinite=True,
        **settings,
    )
    state, batch = run.first(), run.batch()
    states, rows = [jax.device_get(state)], []
    for _ in range(6):
        state, scalars = run.step(state, batch)
        states.append(jax.device_get(state))
        rows.append(jax.device_get(scalars))
    # What several devices hold is the same on all of them.
    for leaf in jax.tree.leaves(state):
        shards = leaf.addressable_shards
        parts = {(str(each.index), np.asarray(each.data).tobytes()) for each in shards}
        assert len(parts) == len({index for index, _ in parts})
    assert [int(each.skipped.total) for each in states] == [0, 0, 1, 1, 2, 3, 3]
    assert [int(each.skipped.in_row) for each in states] == [0, 0, 1, 0, 1, 2, 0]
    assert [row["train/skipped"] for row in rows] == [0, 1, 1, 2, 3, 3]
    assert [bool(np.isfinite(row["train/loss"])) for row in rows] == [1, 0, 1, 0, 1, 1]
    norms = [bool(np.isfinite(row["train/gradient_norm"])) for row in rows]
    assert norms == [1, 0, 1, 1, 0, 1]
    for number, (old, new) in enumerate(itertools.pairwise(states), 1):
        assert int(new.step) == number
        parts = [each._replace(step=0, skipped=0) for each in (old, new)]
        if number in (2, 4, 5):
            chex.assert_trees_all_equal(*parts)
        else:
            assert finite.not_finite(new) == []
            moved = jax.tree.map(np.array_equal, old.params, new.params)
            assert not any(jax.tree.leaves(moved["projector"]))
    # The rate is that of the update, not of the step.
    rates = [row["train/learning_rate"] for row in rows]
    assert rates[2] == rates[1] and rates[5] == rates[4] == rates[3] < rates[2]
    assert run.step._cache_size() == 1


def test_n1_a_row_of_skips_ends_with_a_step_that_may_not_be_skipped(job):
    """So that a session that skips again does not go on counting; the total stays."""
    params, optimizer = {"w": jnp.ones(2)}, optax.sgd(0.1)
    first = TrainState(
        step=jnp.int32(7),
        params=params,
        batch_stats={},
        opt_state=optimizer.init(params),
        skipped=Skipped(jnp.int32(3), jnp.int32(2)),
    )
    first = jax.device_put(first, replicated(job.mesh))

    def learnt(params, batch_stats, batch) -> Result:
        z = [jnp.eye(4)] * 2
        return Result(jnp.float32(1), {}, z, batch_stats, params)

    step = make_train_step(
        job.learner._replace(run=learnt),
        optimizer,
        first,
        schedule=lambda update: update / 10,
        log_every=1,
        last_step=9,
    )
    state, _ = step(first, {})
    assert jax.device_get(state.skipped) == (3, 0)
    np.testing.assert_allclose(state.params["w"], 0.9)


def test_n1_the_first_tensor_is_named_and_whole_numbers_are_passed_over():
    tree = {"a": np.arange(3), "b": [np.zeros(2), np.array([1.0, np.inf])]}
    tree["c"] = np.full((2, 2), np.nan, np.float32)
    assert finite.not_finite(tree) == ["['b'][1]", "['c']"]
    assert finite.first_not_finite(tree) == "['b'][1]"
    assert finite.first_not_finite(tree["a"]) is None


# --- The run --------------------------------------------------------------------------


def test_n1_skipped_steps_are_counted_across_a_stop(tmp_path, small, job, arm, capsys):
    """A stop in the middle of a row of skips: the same bits, counts and lines."""
    row = ROW.format(sample=sample_of(3))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    arm(f"{row} step:7=term")
    assert main(command(whole, small)) == 75
    said = capsys.readouterr().err
    counts = "(3 in a row of at most 5, 3 in all)"
    words = f"SFRIK-STEP-SKIPPED train/gradient_norm is inf at step 5 {counts}; "
    assert words in said
    assert said.count("SFRIK-STEP-SKIPPED") == 4
    assert listed(whole) == [3, 4, 5, 7]
    assert column(whole, "train/skipped") == [0, 0, 1, 2, 3, 3, 4]
    for stop in (4, 7):
        arm(f"{row} step:{stop}=term")
        assert main(command(cut, small)) == 75
        assert steps_of(cut)[-1] == stop
    chex.assert_trees_all_equal(state_of(cut, 7, job), state_of(whole, 7, job))
    for name in ("train/loss", "train/skipped", "train/skipped_in_row", "z/std"):
        assert column(cut, name) == column(whole, name)
    assert listed(cut) == listed(whole)


def test_n1_more_than_the_budget_in_a_row_ends_the_run(tmp_path, small, arm, capsys):
    """And does so again when it goes on, as the count was saved."""
    arm(ROW.format(sample=sample_of(3)))
    run = tmp_path / "run"
    few = [*small, "step.max_skipped=2", "checkpoint.every_steps=1"]
    for _ in range(2):
        assert main(command(run, few)) == 70
        said = capsys.readouterr().err
        assert "at step 5, 3 steps in a row with step.max_skipped=2" in said
        assert steps_of(run)[-1] == 4
        assert column(run, "train/skipped") == [0, 0, 1, 2]
        assert listed(run) == [3, 4, 5]


@pytest.mark.parametrize("in_row", [0, 1])
def test_n1_a_full_disk_changes_no_decision(tmp_path, monkeypatch, job, in_row):
    """The batch is not listed; the step is skipped, or ends the run with 70."""
    said: list[str] = []

    def refuse(*_) -> None:
        raise DiskFullError("the disk is full")

    monkeypatch.setattr(RunDirectory, "write_json", refuse)
    monkeypatch.setattr(metrics.Unseen, "say", lambda _, line: said.append(line))
    counts = {"train/skipped": 1, "train/skipped_in_row": in_row}
    values = {"train/loss": np.nan, "train/gradient_norm": 1.0, **counts}
    end: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    listed = "the batch could not be listed: the disk is full"
    if not in_row:
        end = pytest.raises(NonFiniteError, match=f"at step 2; .*, {listed}. Look.")
    with RunDirectory(tmp_path, job.config) as run:
        log = RunLog(
            run,
            metrics.Unseen(),
            metrics.Unseen(),
            first=0,
            total=9,
            steps_per_epoch=3,
            views_per_step=2,
            every=5,
            indices=lambda step: np.arange(3),
            seed=0,
            remedy="Look.",
            max_skipped=1,
        )
        log.add(2, {name: jnp.asarray(value) for name, value in values.items()}, 0.0)
        with end:
            log.drain()
    counted = "SFRIK-STEP-SKIPPED train/loss is nan at step 2 (1 in a row of at most 1"
    assert said == ([f"{counted}, 1 in all); {listed}"] if in_row else [])


def ends_with_70(run: Path, own: list[str], capsys: pytest.CaptureFixture) -> str:
    """The run ends at step 6 and keeps what was saved before; what it says."""
    own = [*own, "step.nonfinite=raise", "checkpoint.every_steps=1"]
    assert main(command(run, own)) == 70
    assert listed(run) == [6]
    assert steps_of(run) == [3, 4, 5]
    assert "train/skipped" not in metrics.read_rows(run)[0]
    return capsys.readouterr().err


def test_n1_raise_keeps_what_was_saved_before(tmp_path, small, arm, capsys):
    arm("gradient:6=inf")
    said = ends_with_70(tmp_path / "run", small, capsys)
    assert "error: train/gradient_norm is inf at step 6; checkpoints before" in said


@slow
@pytest.mark.parametrize("fault", ["loss:6=nan", "views:6=nan:{sample}"])
def test_n1_raise_for_a_loss_and_a_picture(tmp_path, small, arm, capsys, fault):
    arm(fault.format(sample=sample_of(6)))
    said = ends_with_70(tmp_path / "run", small, capsys)
    assert "error: train/loss is nan at step 6; checkpoints before" in said


@slow
def test_n1_an_update_that_overflows_is_not_saved(tmp_path, small, capsys):
    own = [*small, "optim.name=sgd", "optim.base_lr=3e38", "optim.warmup_epochs=0"]
    run = tmp_path / "run"
    assert main(command(run, [*own, "checkpoint.every_steps=1"])) == 70
    assert "is not finite after step 1, whose gradient was" in capsys.readouterr().err
    assert steps_of(run) == []


@slow
def test_n1_a_picture_of_one_process_is_skipped_by_all(tmp_path, small, arm):
    """Row 12 of 16 belongs to process 1 of two; then the same run in one process."""
    sample = indices_of(3)[12]
    arm(f"views:3=nan:{sample} loss:5=nan")
    # Rounding grows fast at a rate that trains.
    own = [*small, "optim.name=sgd", "optim.base_lr=3e-5", "mesh.data=4"]
    run, alone = tmp_path / "run", tmp_path / "alone"
    codes, said = Job([command(run, own)] * 2, devices=2).end()
    assert codes == [0, 0], said
    assert said[0].count("SFRIK-STEP-SKIPPED") == 2
    assert "SFRIK-STEP-SKIPPED" not in said[1]
    assert main(command(alone, own)) == 0
    assert column(run, "train/skipped") == [0, 0, 1, 1, 2, 2, 2, 2]
    found, wanted = (
        np.array(column(each, "train/loss"), float) for each in (run, alone)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert np.flatnonzero(np.isnan(found)).tolist() == [2, 4]
    # More than the budget: the same code from both.
    over = [*own, "step.max_skipped=1"]
    arm("loss:3=nan loss:4=nan")
    codes, said = Job([command(tmp_path / "over", over)] * 2, devices=2).end()
    assert codes == [70, 70], said
    assert "2 steps in a row with step.max_skipped=1" in said[0]
    # None at all: the picture of process 1 ends both, and is listed.
    arm(f"views:3=nan:{sample}")
    run, none = tmp_path / "none", [*own, "step.nonfinite=raise"]
    codes, said = Job([command(run, none)] * 2, devices=2).end()
    assert codes == [70, 70], said
    assert "is nan at step 3; checkpoints before" in said[0]
    assert listed(run) == [3]


# --- What is stored -------------------------------------------------------------------


@pytest.fixture(scope="module")
def bad_state(job):
    """A first state with one NaN in a kernel of the backbone."""
    state = job.random_state()
    kernel = state.params["backbone"]["conv1"]["kernel"]
    state.params["backbone"]["conv1"]["kernel"] = kernel.at[0, 0, 0, 0].set(np.nan)
    return state


def test_n2_a_checkpoint_with_nan_is_refused_by_its_leaf(
    tmp_path, small, job, bad_state, capsys
):
    run, out = tmp_path / "run", tmp_path / "out"
    with Checkpoints(run / "checkpoints", keep=2) as checkpoints:
        checkpoints.save(4, bad_state._replace(step=jnp.int32(4)), wait=True)
    (run / "config.json").write_text(configs.to_json(job.config))
    for words in (command(run, small), ["export", str(run), "--out", str(out)]):
        assert main(words) == 65
        [line] = capsys.readouterr().err.splitlines()
        assert "the checkpoint of step 4 in" in line
        assert "['backbone']['conv1']['kernel']" in line
    assert steps_of(run) == [4]
    assert not out.exists() and not (run / "run.json").exists()


def test_n2_a_state_with_nan_is_not_saved(bad_state):
    with pytest.raises(NonFiniteError, match=r"conv1.* not finite after step 3"):
        finite.refuse_to_store(3, bad_state)


def test_n2_weights_with_nan_start_no_run(tmp_path, small, job, bad_state, capsys):
    path = tmp_path / "bad.safetensors"
    about = weights.describe(
        job.config.model, job.config.eval, {"mean": [0.5] * 3, "std": [0.5] * 3}
    )
    weights.save(path, train_state.backbone_variables(bad_state), about)
    assert main(command(tmp_path / "run", [*small, f"init_from={path}"])) == 65
    [line] = capsys.readouterr().err.splitlines()
    assert "conv1.weight holds values that are not finite" in line
    assert not (tmp_path / "run" / "config.json").exists()
