"""Features of a whole set of images, from an encoder that takes one batch."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import jax
import numpy as np

from sfrik_jax.errors import ConfigError, NonFiniteError

T = TypeVar("T")
# uint8 [b, S, S, 3] -> float [b, d]; jitted, in eval mode, with normalisation inside.
Encode = Callable[[np.ndarray], jax.Array]


def extract(
    encode: Encode, batches: Iterable[np.ndarray], *, batch_size: int = 256
) -> np.ndarray:
    """Features of images, in batches of one size, so that `encode` compiles once.

    A short batch is filled up with zero images, whose features are dropped: in eval
    mode an image's features do not depend on the others of its batch.

    Args: see `stream`.
    Returns: float32 [N, d] on the host.
    Raises: ConfigError for an empty or wrongly shaped set, NonFiniteError when the
      encoder gives NaN or infinity.
    """
    parts = list(stream(encode, batches, batch_size=batch_size))
    if not parts:
        raise ConfigError("there are no images to extract features of")
    features = np.concatenate(parts)
    bad = ~np.isfinite(features).all(axis=1)
    if bad.any():
        raise NonFiniteError(
            f"the encoder gives NaN or infinity for {bad.sum()} of {len(features)} "
            f"images, the first is image {bad.argmax()}; its weights have diverged"
        )
    return features


def stream(
    encode: Encode, batches: Iterable[np.ndarray], *, batch_size: int = 256
) -> Iterator[np.ndarray]:
    """Features of images as they come: `extract` for sets that do not fit into memory.

    One batch is on its way to the device while the features of the one before are
    copied to the host; so `batches` is one or two pieces ahead of what is yielded.

    Args:
      batches: images uint8 [n, S, S, 3] in pieces of any length, or one array.
      batch_size: images that `encode` gets at once.
    Yields: float32 [b, d] on the host, of each piece in turn, b <= batch_size; not
      checked for NaN and infinity.
    Raises: ConfigError for a piece of another shape.
    """
    if batch_size < 1:
        raise ConfigError(f"feature batch_size={batch_size}; it must be at least 1")
    pieces = [batches] if isinstance(batches, np.ndarray) else batches
    pending = None
    for rows in _pieces(pieces, batch_size):
        missing = batch_size - len(rows)
        features = encode(np.pad(rows, ((0, missing), (0, 0), (0, 0), (0, 0))))
        if pending is not None:
            yield _fetch(*pending)
        pending = (features, len(rows))
    if pending is not None:
        yield _fetch(*pending)


def pairs(
    encode: Encode, pieces: Iterable[tuple[np.ndarray, T]], batch_size: int
) -> Iterator[tuple[np.ndarray, T]]:
    """`stream` of images that come with something else, such as their labels.

    Args: pieces: images uint8 [n, S, S, 3], n <= batch_size, and what goes with them.
    Yields: features float32 [n, d] of each piece, and what came with it.
    """
    waiting: deque[T] = deque()

    def images() -> Iterator[np.ndarray]:
        for each, other in pieces:
            waiting.append(other)
            yield each

    for features in stream(encode, images(), batch_size=batch_size):
        yield features, waiting.popleft()


def _pieces(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Cuts each batch to at most `size` images."""
    for images in batches:
        if np.ndim(images) != 4 or len(images) == 0:
            raise ConfigError(
                f"images have shape {np.shape(images)}; give [N, S, S, 3], N > 0"
            )
        for start in range(0, len(images), size):
            yield images[start : start + size]


def _fetch(features: jax.Array, rows: int) -> np.ndarray:
    return np.asarray(features, np.float32)[:rows]
