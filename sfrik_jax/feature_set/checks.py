"""What a block of rows has to be, before any of it is written."""

from collections.abc import Sequence

import numpy as np

from sfrik_jax.errors import ConfigError, CorruptInputError, NonFiniteError

# Features [b, d]; labels, int [b], or int8 [b, C] of 1, 0 and -1, or None; names, [b].
Block = tuple[np.ndarray, np.ndarray | None, Sequence[str]]


def features(
    values: np.ndarray, dtype: np.dtype, names: Sequence[str], *, first_row: int
) -> np.ndarray:
    """Features [b, d] in the type that is stored.

    Args:
      first_row: number of the first one in the set, for the message.

    Raises:
      ConfigError: they are not [b, d].
      NonFiniteError: one is NaN or infinite, or too large for `dtype`.
    """
    if values.ndim != 2 or len(names) != len(values):
        raise ConfigError(
            f"a block has features {list(values.shape)} and {len(names)} names; "
            "give [b, d] and b"
        )
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(values, dtype)
    bad = ~np.isfinite(stored).all(axis=1)
    if not bad.any():
        return stored
    i = int(bad.argmax())
    remedy = "the weights have diverged or are damaged"
    if np.isfinite(values[i]).all():
        remedy = f"{dtype} ends at {np.finfo(dtype).max}: store float32"
    raise NonFiniteError(
        f"row {first_row + i} ({names[i]}) has NaN or infinite features; {remedy}"
    )


def labels(
    values: np.ndarray, names: Sequence[str], classes: Sequence[str] | None
) -> np.ndarray:
    """Labels as stored: int32 [b], or int8 [b, C] of pictures of several classes.

    Raises:
      ConfigError: they are no integers [b] or [b, C].
      CorruptInputError: one is outside 0 … C - 1, or -1 … 1 for several classes.
    """
    integers = np.issubdtype(values.dtype, np.integer)
    if not integers or values.ndim not in (1, 2) or len(values) != len(names):
        raise ConfigError(
            f"a block of {len(names)} rows has labels {values.dtype} "
            f"{list(values.shape)}; give integers [b] or [b, C]"
        )
    multi = values.ndim == 2
    if multi and classes is not None and values.shape[1] != len(classes):
        raise ConfigError(f"labels are {list(values.shape)} for {len(classes)} classes")
    least = -1 if multi else 0
    most = 1 if multi else np.iinfo(np.int32).max
    if classes is not None and not multi:
        most = len(classes) - 1
    wrong = (values < least) | (values > most)
    if wrong.any():
        i = int(wrong.reshape(len(values), -1).any(axis=1).argmax())
        raise CorruptInputError(
            f"{names[i]} has label {values[i].tolist()}, outside {least} … {most}; "
            "prepare the set again"
        )
    return np.ascontiguousarray(values, np.int8 if multi else np.int32)
