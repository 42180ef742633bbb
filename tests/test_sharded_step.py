"""A training step is the same however its batch and its projector are split."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sfrik_jax import augment, losses, models, optim, passes, train_state
from sfrik_jax import mesh as mesh_lib
from sfrik_jax.collectives import embeddings_split
from sfrik_jax.data import views as view_recipes
from sfrik_jax.settings import LOSS_DEFAULTS
from sfrik_jax.step import make_learner, make_loss, make_train_step

SIZE, BATCH, STEPS = 16, 16, 5
# data, model, mesh.projector
LAYOUTS = {
    "rows": (8, 1, None),
    "columns over data": (8, 1, "data"),
    "columns over model": (2, 4, "model"),
    "columns over data, two copies": (4, 2, "data"),
}
RECIPE = view_recipes.build(SIZE, recipe="small")


class Run:
    """Steps of a tiny network on one batch of noise."""

    def __init__(
        self,
        data=1,
        model=1,
        columns=None,
        dtype="float64",
        skip_nonfinite=False,
        method="sfrik",
        loss_settings=None,
        **settings,
    ):
        self.mesh, self.columns = mesh_lib.make_mesh(data, model), columns
        self.model = models.build(
            backbone="resnet14",
            width=2,
            stem="small",
            hidden_dims=(16, 8),
            embed_dim=24,
            dtype=dtype,
        )
        self.schedule = optim.warmup_cosine(
            base_lr=9.0, batch_size=BATCH, epochs=2, steps_per_epoch=10, warmup_epochs=0
        )
        self.optimizer = optim.lars(self.schedule, weight_decay=1e-2)
        self.state = mesh_lib.abstract(self.create, self.mesh, columns)
        self.learner = make_learner(
            self.model,
            self.mesh,
            views=RECIPE,
            method=method,
            loss_settings=loss_settings or LOSS_DEFAULTS[method],
            seed=0,
            columns=columns,
            **settings,
        )
        self.step = make_train_step(
            self.learner,
            self.optimizer,
            self.state,
            schedule=self.schedule,
            log_every=1,
            last_step=STEPS,
            skip_nonfinite=skip_nonfinite,
        )

    def create(self):
        return train_state.create(0, self.model, self.optimizer, SIZE)

    def batch(self):
        rng = np.random.default_rng(0)
        crops = rng.integers(0, 256, (BATCH, 2, SIZE, SIZE, 3), np.uint8)
        rows = {"views": (crops,), "index": np.arange(BATCH, dtype=np.int32)}
        epoch = mesh_lib.replicate(np.int32(0), self.mesh)
        return mesh_lib.shard_batch(rows, self.mesh) | {"epoch": epoch}

    def first(self):
        out = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        return jax.jit(self.create, out_shardings=out)()

    def run(self):
        """The state after five steps, and the scalars of the steps."""
        state, rows = self.first(), []
        for _ in range(STEPS):
            state, scalars = self.step(state, self.batch())
            rows.append(jax.device_get(scalars))
        return state, rows


@pytest.fixture(scope="module")
def alone():
    with jax.enable_x64(True):
        state, rows = Run().run()
        return jax.device_get(state), rows


@pytest.mark.parametrize("layout", LAYOUTS)
def test_five_steps_are_the_same_in_every_layout(x64, alone, layout):
    run = Run(*LAYOUTS[layout])
    state, rows = run.run()
    assert run.step._cache_size() == 1
    want_state, want_rows = alone
    for got, want in zip(rows, want_rows, strict=True):
        assert got.keys() == want.keys()
        for name, value in want.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-7, err_msg=name)
    for (path, want), got in zip(
        jax.tree.leaves_with_path(want_state), jax.tree.leaves(state), strict=True
    ):
        # Biases before a batch norm have no gradient but for rounding.
        np.testing.assert_allclose(
            jax.device_get(got), want, rtol=1e-6, atol=1e-9, err_msg=str(path)
        )


@pytest.mark.parametrize("layout", ["columns over data", "columns over model"])
def test_wide_layers_lie_on_a_device_in_part_momentum_included(x64, layout):
    data, model, columns = LAYOUTS[layout]
    run = Run(data, model, columns)
    state, _ = run.step(run.first(), run.batch())
    parts = run.mesh.shape[columns]
    for path, leaf in jax.tree.leaves_with_path(state):
        whole = leaf.size // leaf.addressable_shards[0].data.size
        wide = "projector" in jax.tree_util.keystr(path)
        assert whole == (parts if wide else 1), path
    momentum = jax.tree.leaves(state.opt_state)
    kernels = jax.tree.leaves(state.params["projector"])
    assert {leaf.shape for leaf in kernels} <= {leaf.shape for leaf in momentum}


@pytest.mark.parametrize("method", LOSS_DEFAULTS)
@pytest.mark.parametrize(
    ("data", "model", "columns"), [(4, 2, "data"), (2, 4, "model")]
)
def test_every_method_takes_embeddings_of_split_columns(
    x64, method, data, model, columns
):
    mesh = mesh_lib.make_mesh(data, model)
    rng = np.random.default_rng(1)
    z = [jnp.asarray(rng.standard_normal((16, 24))) for _ in range(2)]
    settings = {"method": method, "settings": LOSS_DEFAULTS[method]}

    def value_and_grad(z, **where):
        loss = make_loss(RECIPE, **settings, **where)
        step = (jnp.int32(1),) if method in losses.DRAWING else ()
        return jax.jit(jax.value_and_grad(loss, has_aux=True))(z, *step)

    (want, terms), gradient = value_and_grad(z, mesh=None)
    place = NamedSharding(mesh, embeddings_split(columns).spec)
    (value, found), got = value_and_grad(
        jax.device_put(z, place), mesh=mesh, columns=columns
    )
    np.testing.assert_allclose(value, want, rtol=1e-10)
    for name, term in terms.items():
        np.testing.assert_allclose(found[name], term, rtol=1e-9, err_msg=name)
    for a, b in zip(got, gradient, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-12)


def test_gradients_are_added_up_in_the_dtype_that_is_asked_for():
    """In float32 as on one device; in bfloat16 to its eight bits."""
    single, wide, narrow = (
        Run(devices, dtype="float32", reduce_dtype=dtype).run()[1][0]
        for devices, dtype in ((1, "float32"), (8, "float32"), (8, "bfloat16"))
    )
    norm = "train/gradient_norm"
    assert abs(wide[norm] / single[norm] - 1) < 1e-5
    assert 1e-5 < abs(narrow[norm] / single[norm] - 1) < 1e-2


@pytest.mark.parametrize(
    "layout",
    [
        (2, 1, None),
        pytest.param((1, 1, None), marks=pytest.mark.slow),
        pytest.param((4, 1, "data"), marks=pytest.mark.slow),
        (2, 2, "model"),
    ],
)
def test_parts_of_a_batch_have_the_gradient_of_the_whole_loss(x64, layout):
    """That of the concatenated embeddings; row r is of part r mod 4."""
    parts, run = 4, Run(*layout, micro_batches=4)
    first, batch = run.first(), run.batch()
    params, stats = jax.device_get((first.params, first.batch_stats))
    (images,) = augment.make_views(jax.device_get(batch), RECIPE, 0, jnp.float64)

    def loss_of(params, stats):
        z = [jnp.zeros((BATCH, 24))] * 2
        for part in range(parts):
            some = [images[part::parts]]
            found, stats = passes.forward(run.model, params, stats, some, [False])
            z = [a.at[part::parts].set(b) for a, b in zip(z, found, strict=True)]
        return losses.sfrik(z, **LOSS_DEFAULTS["sfrik"])[0], stats

    (value, stats), grads = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(
        params, stats
    )
    updates, _ = run.optimizer.update(grads, run.optimizer.init(params), params)
    state, scalars = run.step(first, batch)
    np.testing.assert_allclose(scalars["train/loss"], value, rtol=1e-9)
    wanted = optax.apply_updates(params, updates), stats
    for want, got in zip(
        jax.tree.leaves(wanted),
        jax.tree.leaves((state.params, state.batch_stats)),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-11)


def test_a_fixed_order_gives_the_same_bits_on_any_number_of_devices(x64, alone):
    """And in float64 the plain step's numbers."""
    found = []
    for devices in (1, 2, 4):
        run = Run(devices, dtype="float32", deterministic_reduce=4)
        state, _ = run.step(run.first(), run.batch())
        state, scalars = run.step(state, run.batch())
        found.append(jax.device_get((state, scalars)))
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, found[0])
    state, rows = Run(2, deterministic_reduce=4).run()
    for name, value in alone[1][0].items():
        np.testing.assert_allclose(rows[0][name], value, rtol=1e-9, err_msg=name)
    for got, want in zip(
        jax.tree.leaves(state), jax.tree.leaves(alone[0]), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9)


def test_a_checkpoint_goes_from_one_layout_to_another(tmp_path, x64):
    from sfrik_jax.checkpoint import Checkpoints

    before = Run(8, 1, "data")
    state, _ = before.step(before.first(), before.batch())
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(1, state, wait=True)
    after = Run(2, 1, None)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        restored = checkpoints.restore(after.state)
    assert restored is not None
    for got, want in zip(
        jax.tree.leaves(restored), jax.tree.leaves(state), strict=True
    ):
        np.testing.assert_array_equal(jax.device_get(got), jax.device_get(want))
    assert all(leaf.sharding.spec == P() for leaf in jax.tree.leaves(restored))
