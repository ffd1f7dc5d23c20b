"""Per-channel energy normalization (Wang et al. 2017, arXiv:1607.05666): each band over its own slow average."""

from typing import Any

import numpy as np
from keras import ops

# Frames of one block of the smoother. Measured in docs/experiments.md.
_BLOCK = 32


def smoothing_coef_of(time_constant_seconds: float, frames_per_second: float) -> float:
    """The smoother's share of a new frame, such that it follows within a time constant.

    Reference: `librosa.pcen`, which solves the filter's half-power width for it.
    """
    frames = time_constant_seconds * frames_per_second
    return (np.sqrt(1 + 4 * frames**2) - 1) / (2 * frames**2)


def smooth(energy: Any, smoothing_coef: float, initial: Any = 1.0) -> Any:
    """The running average `m[t] = (1 - c) m[t - 1] + c x[t]` of each band.

    As two products with lower-triangular matrices, within blocks of frames and from block to block: exact, of a fixed
    shape, without a loop over frames, and at a fraction of the operations of one product over all frames.

    Args:
        energy: `(batch, frames, bands)`, not negative.
        smoothing_coef: c, in (0, 1].
        initial: m before the first frame: a number, or `(batch, 1, bands)`.

    Returns: `(batch, frames, bands)`.
    Reference: `scipy.signal.lfilter([c], [1, c - 1], x, zi=(1 - c) * initial)`.
    """
    _, frames, bands = energy.shape
    blocks = -(-frames // _BLOCK)
    x = ops.pad(energy, ((0, 0), (0, blocks * _BLOCK - frames), (0, 0)))
    x = ops.reshape(x, (-1, blocks, _BLOCK, bands))
    keep = 1.0 - smoothing_coef
    within = ops.matmul(ops.convert_to_tensor(_decays(keep, _BLOCK, 0) * np.float32(smoothing_coef)), x)
    # What a block inherits: the ends of all blocks before it, and the initial state.
    whole = keep**_BLOCK
    inherited = ops.matmul(ops.convert_to_tensor(_decays(whole, blocks, 1)), within[:, :, -1])
    inherited = inherited + (whole ** np.arange(blocks)).astype(np.float32)[:, None] * initial
    fading = (keep ** np.arange(1, _BLOCK + 1)).astype(np.float32)[:, None]
    return ops.reshape(within + fading * inherited[:, :, None], (-1, blocks * _BLOCK, bands))[:, :frames]


def _decays(keep: float, size: int, lag: int) -> np.ndarray:
    """float32 `(size, size)`: `keep ** (row - column - lag)`, and 0 where that is a power below 0."""
    power = np.arange(size)[:, None] - np.arange(size)[None, :] - lag
    return np.where(power >= 0, keep ** np.maximum(power, 0), 0).astype(np.float32)


def pcen(energy: Any, average: Any, gain: float, bias: float, power: float, eps: float) -> Any:
    """`(energy / (eps + average) ** gain + bias) ** power - bias ** power`.

    Args:
        energy, average: `(batch, frames, bands)`, not negative; the average is `smooth`'s.
        gain: How much of a band's level is taken away: 0 to 1.
        bias, power: Of the compression; the bias is above 0.
        eps: Above 0.

    Returns: the same shape, not negative.
    Reference: `librosa.pcen`.
    """
    # By logarithms, so that neither a sum with eps nor a difference of near powers loses what is faint.
    level = ops.exp(-gain * (np.log(eps) + ops.log1p(average / eps)))
    return bias**power * ops.expm1(power * ops.log1p(energy * level / bias))
