"""Features without learning: what pixels and colours alone give.

A trained encoder has to beat these. They are evaluated like any encoder's features.
"""

import numpy as np

from sfrik_jax.errors import ConfigError


def pixels(images: np.ndarray) -> np.ndarray:
    """Pixel values in 0 … 1: uint8 [N, H, W, C] -> float32 [N, H W C]."""
    _check(images)
    return images.reshape(len(images), -1).astype(np.float32) / 255


def color_histogram(images: np.ndarray, bins: int = 8) -> np.ndarray:
    """Square root of the joint colour histogram of each image.

        feature[r, g, b] = sqrt(share of the pixels in bin (r, g, b))

    The square root makes the cosine of two histograms their Bhattacharyya coefficient.

    Args: images uint8 [N, H, W, 3], or [N, H, W, 1] for grey ones (r = g = b);
      bins: per colour, equally wide, 1 … 256.
    Returns: float32 [N, bins ** 3], rows of unit norm.
    Raises: ConfigError.
    """
    _check(images)
    if not 1 <= bins <= 256:
        raise ConfigError(f"color_histogram bins={bins}; choose 1 … 256")
    features = np.empty((len(images), bins**3), np.float32)
    for row, image in zip(features, images, strict=True):
        rgb = np.broadcast_to(image, (*image.shape[:2], 3)).reshape(-1, 3)
        level = rgb.astype(np.int64) * bins // 256
        code = (level[:, 0] * bins + level[:, 1]) * bins + level[:, 2]
        row[:] = np.sqrt(np.bincount(code, minlength=bins**3) / len(code))
    return features


def _check(images: np.ndarray) -> None:
    shape = np.shape(images)
    if len(shape) != 4 or 0 in shape or shape[3] not in (1, 3):
        raise ConfigError(
            f"images have shape {shape}; give [N, H, W, 3] or [N, H, W, 1]"
        )
    if images.dtype != np.uint8:
        raise ConfigError(f"images have dtype {images.dtype}; give uint8")
