"""SpecAugment's masks (Park et al. 2019, arXiv:1904.08779), drawn an example at a time."""

import math
from typing import Any

import numpy as np
from keras import ops


def band_mask(size: int, start: Any, width: Any) -> Any:
    """1 outside the bands, 0 inside: float32 `(batch, size)`.

    Args:
        size: Length of the masked axis.
        start, width: `(batch, bands)`, in steps of the axis; a band is [start, start + width).
    """
    place = np.arange(size, dtype=np.float32)[None, None, :]
    inside = ops.logical_and(place >= start[..., None], place < (start + width)[..., None])
    return 1 - ops.cast(ops.any(inside, axis=1), "float32")


def random_bands(units: Any, size: int, max_width: float) -> tuple[Any, Any]:
    """Starts and widths from uniform draws.

    Args:
        units: `(batch, bands, 2)` in [0, 1).
        size: Length of the axis.
        max_width: Widths are the whole numbers from 0 to this, equally likely; a band lies wholly on the axis.

    Returns: starts and widths, `(batch, bands)` each, whole numbers as float32.
    """
    # A share of an axis carries rounding: 0.29 * 100 is less than 29.
    widest = math.floor(min(max_width, size) + 1e-6)
    width = ops.floor(units[..., 0] * (widest + 1))
    start = ops.floor(units[..., 1] * (size - width + 1))
    return start, width


def apply_masks(image: Any, time_mask: Any, frequency_mask: Any) -> Any:
    """Put each example's own mean where a mask is 0.

    Args:
        image: `(batch, frames, mels)`, or `(batch, frames, mels, channels)`: each channel has a mean of its own.
        time_mask: `(batch, frames)`, or `(1, frames)` for all.
        frequency_mask: `(batch, mels)`, or `(1, mels)`.

    Returns: the same shape.
    """
    keep = time_mask[:, :, None] * frequency_mask[:, None, :]
    if len(image.shape) == 4:
        keep = keep[..., None]
    return image * keep + ops.mean(image, axis=(1, 2), keepdims=True) * (1 - keep)


def span(said: Any) -> Any:
    """`(batch, frames)` int32 of 0 and 1 to 1 from each row's first 1 to its last; a row of zeros stays so."""
    before = ops.cumsum(said, axis=1) > 0
    behind = ops.flip(ops.cumsum(ops.flip(said, axis=1), axis=1), axis=1) > 0
    return ops.cast(ops.logical_and(before, behind), "int32")


def raise_floor(image: Any, floor: Any) -> Any:
    """Cut away what lies below a floor and spread the rest over [0, 1] again: `(max(x, t) - t) / (1 - t)`.

    On scaled decibels it is a smaller dynamic range: below the peak, `(1 - t) * top_db`.

    Args:
        image: `(batch, ...)` in [0, 1].
        floor: `(batch,)` in [0, 1); 0 changes nothing.
    """
    floor = ops.reshape(floor, (-1, *(1 for _ in image.shape[1:])))
    return (ops.maximum(image, floor) - floor) / (1 - floor)
