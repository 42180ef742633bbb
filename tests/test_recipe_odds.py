"""The odds of each recipe's operations, counted on the pictures they change."""

import itertools
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sfrik_jax import augment
from sfrik_jax.data.views import View, build

COUNT = 10_000
# Every operation changes this picture: colour, unequal columns, values above 128.
PICTURE = np.array([[[250, 90, 30], [60, 120, 10]], [[10, 30, 200], [220, 80, 20]]])
# No operation at all, and pixels left in 0 … 1.
PLAIN = View(2, flip_prob=0.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
STRENGTHS = ("brightness", "contrast", "saturation", "hue")
OPERATIONS = ("flip", "jitter", "gray", "blur", "solarize")
# (recipe, number of the view) -> the probabilities of OPERATIONS in the protocol.
PROTOCOL = {
    ("vicreg", 0): (0.5, 0.8, 0.2, 1.0, 0.0),
    ("vicreg", 1): (0.5, 0.8, 0.2, 0.1, 0.2),
    ("simclr", 0): (0.5, 0.8, 0.2, 0.5, 0.0),
    ("simclr", 1): (0.5, 0.8, 0.2, 0.5, 0.0),
    ("auh", 0): (0.5, 1.0, 0.2, 0.0, 0.0),
    ("auh", 1): (0.5, 1.0, 0.2, 0.0, 0.0),
    ("small", 0): (0.5, 0.8, 0.2, 0.0, 0.0),
    ("small", 1): (0.5, 0.8, 0.2, 0.0, 0.0),
    ("obow", 0): (0.5, 0.0, 0.0, 0.0, 0.0),
    ("obow", 1): (0.5, 0.8, 0.2, 0.5, 0.0),
    ("obow", 2): (0.5, 0.8, 0.2, 0.5, 0.0),
    ("obow", 3): (0.5, 0.8, 0.2, 0.0, 0.0),
    ("swav", 0): (0.5, 0.8, 0.2, 0.5, 0.0),
    ("swav", 7): (0.5, 0.8, 0.2, 0.5, 0.0),
}
photometric = jax.jit(augment.photometric, static_argnames="view")


@jax.jit
def keys_of(view_id: jax.Array) -> jax.Array:
    return augment.view_keys(3, 1, jnp.arange(COUNT), view_id)  # pyright: ignore


def only(view: View, operation: str) -> View:
    """The view with this operation alone, as likely and as strong as it is there."""
    names = (f"{operation}_prob", *(STRENGTHS if operation == "jitter" else ()))
    return replace(PLAIN, **{name: getattr(view, name) for name in names})


@pytest.mark.parametrize(("recipe", "number"), PROTOCOL)
def test_each_operation_changes_its_share_of_the_pictures(recipe, number):
    view = build(224, recipe=recipe)[number]
    images = jnp.asarray(np.tile(PICTURE.astype(np.uint8), (COUNT, 1, 1, 1)))
    changed = []
    for operation, probability in zip(
        OPERATIONS, PROTOCOL[recipe, number], strict=True
    ):
        got = photometric(images, keys_of(number), only(view, operation))
        gap = np.abs(np.asarray(got) * 255 - PICTURE).max(axis=(1, 2, 3))
        changed.append(gap > 1e-2)
        margin = 5 * np.sqrt(probability * (1 - probability) / COUNT)
        # A blur of 0.1 px or a factor of nearly 1 may not show.
        share = changed[-1].mean()
        assert abs(share - probability) <= margin + 5e-4, operation
    # And each is drawn by itself: no two go together more often than by chance.
    drawn = [mask for mask in changed if 0 < mask.mean() < 0.99]
    assert drawn
    together = np.atleast_2d(np.corrcoef(drawn)) - np.eye(len(drawn))
    assert np.abs(together).max() < 5 / np.sqrt(COUNT)


@pytest.mark.parametrize(
    ("active", "jitter_prob"), [((0, 1, 2, 3), 1.0), ((0, 1, 2, 3), 0.8), ((0, 1), 1.0)]
)
def test_orders_of_the_jitter_are_equally_likely(active, jitter_prob):
    """Counted over 100,000 views; two operations alone have two orders."""
    count = 100_000
    uniform = partial(jax.random.uniform, shape=(augment.DRAWS,), dtype=jnp.float32)
    draws = jax.vmap(uniform)(augment.view_keys(3, 1, jnp.arange(count), 0))
    strengths = {STRENGTHS[op]: 0.2 for op in active}
    view = replace(PLAIN, jitter_prob=jitter_prob, **strengths)
    plan, _ = augment.jitter_plan(draws, view, list(active))
    orders = list(itertools.permutations(active))
    counts = [np.all(plan == np.array(o)[:, None], axis=0).sum() for o in orders]
    # A picture without jitter has no order: brightness by 1 in each slot.
    spread = np.sqrt(count * jitter_prob * (1 - jitter_prob))
    assert abs(sum(counts) - count * jitter_prob) <= 5 * spread
    want = sum(counts) / len(orders)
    margin = 5 * np.sqrt(want * (1 - 1 / len(orders)))
    assert np.abs(np.array(counts) - want).max() < margin
