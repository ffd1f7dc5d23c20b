"""Mel power to an image between 0 and 1, by per-channel energy normalization."""

import math
from typing import Any

import keras
from keras import ops

from birdtpu.ops import pcen


class PCEN(keras.layers.Layer):
    """Each band over its own slow average, compressed: steady noise fades, onsets stay.

    Args:
        smoothing_coef: The average's share of a new frame.
        gain, bias, power, eps: See `ops.pcen.pcen`.
        amplitude_scale: Samples are taken to have been multiplied by this: `eps` and the average's start have a level,
            and librosa's were made for integers of 32 bits.
        magnitude: Of the square roots of mel power, as librosa advises, instead of mel power, as in the paper.
        start: What the average is before the first frame: `one`, as in librosa, so that a clip begins with a flash
            until the average has risen; or `frame`, the first frame itself.
        half: The value that becomes 0.5.

    Input shape: `(batch, frames, mels)` or `(batch, frames, mels, channels)`, power.
    Output shape: the same, [0, 1): `pcen / (pcen + half)`. A fixed curve and no statistic, so it is the same for a
        clip of any content; and bounded, for a click may be tens of times what a song is.

    Reference: `librosa.pcen(amplitude_scale * numpy.sqrt(power), b=smoothing_coef, ...)` before that curve.
    """

    def __init__(
        self,
        smoothing_coef: float,
        gain: float = 0.98,
        bias: float = 2.0,
        power: float = 0.5,
        eps: float = 1e-6,
        amplitude_scale: float = 2.0**31,
        magnitude: bool = True,
        start: str = "one",
        half: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"dtype": "float32"} | kwargs)
        self.smoothing_coef = smoothing_coef
        self.gain = gain
        self.bias = bias
        self.power = power
        self.eps = eps
        self.amplitude_scale = amplitude_scale
        self.magnitude = magnitude
        self.start = start
        self.half = half

    def call(self, power: Any) -> Any:
        # Channels are bands more.
        energy = ops.reshape(power, (-1, power.shape[1], math.prod(power.shape[2:])))
        energy = ops.sqrt(energy) * self.amplitude_scale if self.magnitude else energy * self.amplitude_scale**2
        average = pcen.smooth(energy, self.smoothing_coef, 1.0 if self.start == "one" else energy[:, :1])
        out = pcen.pcen(energy, average, self.gain, self.bias, self.power, self.eps)
        return ops.reshape(out / (out + self.half), (-1, *power.shape[1:]))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict:
        names = "smoothing_coef gain bias power eps amplitude_scale magnitude start half".split()
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
