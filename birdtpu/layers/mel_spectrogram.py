"""Waveform to mel power."""

from typing import Any

import keras
import numpy as np
from keras import ops

from birdtpu.ops import spectral, stretching


class MelSpectrogram(keras.layers.Layer):
    """Mel power spectrogram on the device, each example at its own pitch.

    Always float32: the dB of quiet bands does not survive less.

    Args:
        sample_rate: Hz.
        n_fft, win_length, hop_length: The STFT's, in samples. Several `win_length` are a channel each: long windows
            tell frequencies apart, short ones times.
        n_mels: Bands.
        f_min, f_max: Edges of the bands, Hz.
        htk: HTK's mel scale instead of Slaney's.
        norm: `slaney` or `none`: bands of equal area or of equal height.
        pitch_range: Lowest and highest pitch ratio that `call` will get; more bins are then computed.
        fft: Whether the STFT is an FFT instead of a convolution: the same power, faster on a CPU (see `ops.spectral`).

    Input shape: `(batch, samples)`, float32 in [-1, 1] or int16; each example's `pitch_ratio` `(batch,)`, or None for
        its own pitch; and its `gain` `(batch,)` where samples are to be multiplied by one.
    Output shape: `(batch, 1 + samples // hop_length, n_mels)`, power; and a last axis of channels where there are
        several windows.

    Reference: `librosa.feature.melspectrogram(pad_mode="constant")`.
    """

    def __init__(
        self,
        sample_rate: int,
        n_fft: int,
        win_length: int | tuple[int, ...],
        hop_length: int,
        n_mels: int,
        f_min: float,
        f_max: float,
        htk: bool = False,
        norm: str = "slaney",
        pitch_range: tuple[float, float] = (1.0, 1.0),
        fft: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"dtype": "float32", "trainable": False} | kwargs)
        self.sample_rate = sample_rate
        self.n_fft = n_fft
        self.win_length = win_length if isinstance(win_length, int) else tuple(win_length)
        self.hop_length = hop_length
        self.n_mels = n_mels
        self.f_min = f_min
        self.f_max = f_max
        self.htk = htk
        self.norm = norm
        self.pitch_range = tuple(pitch_range)
        self.fft = fft
        self._bands = spectral.MelBands(n_mels, f_min, f_max, htk, norm)
        self._bins = spectral.bins_between(sample_rate, n_fft, f_min / self.pitch_range[1], f_max / self.pitch_range[0])
        self._hz_per_bin = sample_rate / n_fft
        self._windows = (win_length,) if isinstance(win_length, int) else self.win_length
        self._kernels = [
            None if fft else spectral.stft_kernel(n_fft, each, hop_length, self._bins) for each in self._windows
        ]

    def call(self, audio: Any, pitch_ratio: Any | None = None, gain: Any | None = None) -> Any:
        pictures = [
            self._mel(audio, window, kernel, pitch_ratio, gain)
            for window, kernel in zip(self._windows, self._kernels, strict=True)
        ]
        return pictures[0] if isinstance(self.win_length, int) else ops.stack(pictures, axis=-1)

    def _mel(self, audio: Any, win_length: int, kernel: np.ndarray | None, pitch_ratio: Any, gain: Any) -> Any:
        if kernel is None:
            powers = [spectral.power_by_fft(audio, self.n_fft, win_length, self.hop_length, self._bins)]
            bins = [self._bins]
        else:
            start = spectral.window_start(self.n_fft, win_length)
            powers = spectral.power_by_convolution(audio, kernel, self.n_fft, start)
            bins = spectral.convolved_bins(self.n_fft, self.hop_length, self._bins)
        # A sum of products: to lay the parts side by side would write them once more.
        mel = sum(
            stretching.mel_of_power(power, self._bands, each * self._hz_per_bin, pitch_ratio)
            for power, each in zip(powers, bins, strict=True)
        )
        # Of the mels, for they are fewer than the samples, which stay integers for as long.
        return mel if gain is None else mel * ops.square(gain)[:, None, None]

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        channels = () if isinstance(self.win_length, int) else (len(self.win_length),)
        return (input_shape[0], 1 + input_shape[1] // self.hop_length, self.n_mels, *channels)

    def get_config(self) -> dict:
        names = "sample_rate n_fft win_length hop_length n_mels f_min f_max htk norm pitch_range fft".split()
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

    @property
    def centres_hz(self) -> np.ndarray:
        """The frequency at which each band peaks: `(n_mels,)` Hz."""
        return self._bands.edges[1:-1]

    def empty_bands(self) -> np.ndarray:
        """Indices of bands that no bin falls into: too many bands for this `n_fft`."""
        return np.flatnonzero(self._bands.filters(self._bins * self._hz_per_bin).sum(axis=0) == 0)
