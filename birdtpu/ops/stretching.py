"""Pitch and tempo on the spectrogram's grid.

A tempo reads the frames at another pace, a pitch reads the bins at another scale: both are interpolations of the
power spectrogram, one along time and one along frequency. No phase is needed, for the model sees none.
"""

import math
from typing import Any

import numpy as np
from keras import ops

from birdtpu.ops.spectral import MelBands

# Measured: the triangle at which a stretched power spectrogram is nearest to librosa's vocoder (docs/experiments.md).
VOCODER_SMEAR_SECONDS = 0.03


def mel_of_power(power: Any, bands: MelBands, frequencies: np.ndarray, pitch_ratio: Any | None = None) -> Any:
    """Mel bands of a power spectrogram, each example at its own pitch.

    A tone at f sounds at `f * pitch_ratio`, so it is weighed by the band that lies there.

    Args:
        power: `(batch, frames, bins)`.
        bands: The filter bank.
        frequencies: `(bins,)` Hz.
        pitch_ratio: `(batch,)`, 2 ** (semitones / 12); None leaves the pitch.

    Returns: `(batch, frames, mels)`.
    Reference: `librosa.effects.pitch_shift`, to within a phase vocoder's smear.
    """
    if pitch_ratio is None:
        return ops.matmul(power, ops.convert_to_tensor(bands.filters(frequencies)))
    shifted = pitch_ratio[:, None] * frequencies.astype(np.float32)[None, :]
    return ops.matmul(power, bands.filters(shifted))


def read_frames(spectrogram: Any, start: Any, rate: Any, frames: int, width: Any = 1.0) -> Any:
    """Read frames at `start + i * rate`, as weighted means of their neighbours.

    Args:
        spectrogram: `(batch, source frames, mels)` or `(batch, source frames, mels, channels)`, power.
        start: `(batch,)` frames, not negative.
        rate: `(batch,)` source frames a frame; above 1 is faster.
        frames: How many to read; `start + rate * (frames - 1)` lies within the source.
        width: `(batch,)` or a number: half the base of the triangle over the neighbours, in source frames. 1 is linear
            interpolation; a phase vocoder, which overlaps frames whose phases it has made up, smears by about
            `VOCODER_SMEAR_SECONDS`.

    Returns: the same with `frames` frames.
    Reference: `librosa.effects.time_stretch`. Differs: no phases, so noise keeps its own speckle.
    """
    source = spectrogram.shape[1]
    width = ops.reshape(ops.convert_to_tensor(width, dtype="float32"), (-1, 1, 1))
    position = start[:, None] + rate[:, None] * np.arange(frames, dtype=np.float32)[None, :]
    distance = position[:, :, None] - np.arange(source, dtype=np.float32)[None, None, :]
    # A product with hat functions: dense, but on matrix units far cheaper than a gather.
    hats = ops.relu(width - ops.abs(distance))
    rest = spectrogram.shape[2:]
    rows = ops.reshape(spectrogram, (-1, source, math.prod(rest)))
    return ops.reshape(ops.matmul(hats / ops.sum(hats, axis=-1, keepdims=True), rows), (-1, frames, *rest))
