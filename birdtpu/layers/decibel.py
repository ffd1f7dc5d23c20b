"""Mel power to an image, in decibels."""

from typing import Any

import keras

from birdtpu.ops import spectral


class Decibel(keras.layers.Layer):
    """Decibels below each example's own peak, scaled to [0, 1].

    Args:
        top_db: Dynamic range in dB; 0 stands for peak - top_db and below, 1 for the peak.

    Input shape: `(batch, frames, mels)` or `(batch, frames, mels, channels)`, power; each channel has its own peak.
    Output shape: the same, [0, 1].

    Reference: `librosa.power_to_db(ref=np.max, amin=1e-30, top_db=top_db) / top_db + 1` of one example. Differs:
    digital silence is 0.
    """

    def __init__(self, top_db: float = 80.0, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32"} | kwargs)
        self.top_db = top_db

    def call(self, power: Any) -> Any:
        peak = keras.ops.max(power, axis=(1, 2), keepdims=True)
        # Of the peak and not of full scale: a quiet recording keeps its whole range. Silence is all 0.
        db = spectral.power_to_db(power / keras.ops.maximum(peak, 1e-30), self.top_db, 10 ** (-self.top_db / 10))
        return db / self.top_db + 1

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict:
        return {**super().get_config(), "top_db": self.top_db}


class FixedDecibel(keras.layers.Layer):
    """Decibels on a fixed scale: `(dB - offset_db) / range_db`, whatever the example's peak. Nothing is cut off.

    Args:
        offset_db: What becomes 0, dB.
        range_db: What is one unit, dB.

    Input shape: `(batch, frames, mels)` or `(batch, frames, mels, channels)`, power.
    Output shape: the same; digital silence is `(-100 - offset_db) / range_db`.

    Reference: `librosa.power_to_db(power, amin=1e-10, top_db=None)`.
    """

    def __init__(self, offset_db: float = 40.0, range_db: float = 80.0, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32"} | kwargs)
        self.offset_db = offset_db
        self.range_db = range_db

    def call(self, power: Any) -> Any:
        return (spectral.power_to_db(power, None) - self.offset_db) / self.range_db

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict:
        return {**super().get_config(), "offset_db": self.offset_db, "range_db": self.range_db}
