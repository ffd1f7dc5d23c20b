"""Waveform to log-mel: the STFT, mel filter banks, decibels.

The STFT comes in two equal forms. By convolution it gives only the bins that the filter bank reads and needs no FFT,
which compiles for minutes on a TPU and which some exported formats lack. By FFT it is several times faster on a CPU.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops


def hz_to_mel(hz: np.ndarray, htk: bool = False) -> np.ndarray:
    """Hertz to mel: Slaney's Auditory Toolbox (linear to 1 kHz, then logarithmic) or HTK's `2595 log10(1 + f/700)`."""
    hz = np.asarray(hz, np.float64)
    if htk:
        return 2595 * np.log10(1 + hz / 700)
    return np.where(hz < 1000, hz * 3 / 200, 15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / np.log(6.4))


def mel_to_hz(mel: np.ndarray, htk: bool = False) -> np.ndarray:
    """The inverse of `hz_to_mel`."""
    mel = np.asarray(mel, np.float64)
    if htk:
        return 700 * (10 ** (mel / 2595) - 1)
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))


@dataclass(frozen=True)
class MelBands:
    """Triangular bands of equal width in mel, each of area one in hertz (Slaney's norm).

    Args:
        n_mels: Number of bands.
        f_min, f_max: Edges of the first and the last band, Hz.
        htk: HTK's mel scale instead of Slaney's.
    """

    n_mels: int
    f_min: float
    f_max: float
    htk: bool = False

    @property
    def edges(self) -> np.ndarray:
        """float64 `(n_mels + 2,)` Hz: band m rises from edge m to m + 1 and falls to m + 2."""
        low, high = hz_to_mel([self.f_min, self.f_max], self.htk)
        return mel_to_hz(np.linspace(low, high, self.n_mels + 2), self.htk)

    def filters(self, frequencies: Any) -> Any:
        """The weight of each frequency in each band.

        Args:
            frequencies: `(..., bins)` Hz, a NumPy array or a tensor.

        Returns: float32 `(..., bins, n_mels)`.
        Reference: `librosa.filters.mel(norm="slaney")`, transposed.
        """
        edges = self.edges
        lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
        norm = 2 / (upper - lower)
        # Two slopes and a clip: as few operations as may be, for this runs once an example where pitch is drawn.
        up, down = norm / (centre - lower), norm / (upper - centre)
        if isinstance(frequencies, np.ndarray):
            f = frequencies[..., None].astype(np.float64)
            return np.maximum(0, np.minimum((f - lower) * up, (upper - f) * down)).astype(np.float32)
        f = ops.expand_dims(frequencies, -1)
        rising = f * up.astype(np.float32) - (lower * up).astype(np.float32)
        falling = (upper * down).astype(np.float32) - f * down.astype(np.float32)
        return ops.relu(ops.minimum(rising, falling))


def bins_between(sample_rate: int, n_fft: int, low_hz: float, high_hz: float) -> np.ndarray:
    """The bins of an STFT whose frequency lies in [low_hz, high_hz]: int64 indices."""
    frequencies = np.arange(1 + n_fft // 2) * sample_rate / n_fft
    return np.flatnonzero((frequencies >= low_hz) & (frequencies <= high_hz))


def hann_window(n_fft: int, win_length: int) -> np.ndarray:
    """A periodic Hann window of `win_length` samples, centred in `n_fft`: float64 `(n_fft,)`."""
    window = np.zeros(n_fft)
    left = (n_fft - win_length) // 2
    window[left : left + win_length] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(win_length) / win_length)
    return window


def stft_kernel(n_fft: int, win_length: int, hop_length: int, bins: np.ndarray) -> np.ndarray:
    """Windowed cosines and sines as a convolution over blocks of one hop: float32 `(blocks, hop_length, 2 * bins)`.

    The window is `hann_window`'s.
    """
    window = hann_window(n_fft, win_length)
    blocks = -(-n_fft // hop_length)
    # The angle's turns are counted in integers, so that float64 loses nothing for late samples of high bins.
    turns = (np.arange(n_fft)[:, None] * bins[None, :]) % n_fft / n_fft
    waves = np.concatenate([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)], axis=1) * window[:, None]
    padded = np.zeros((blocks * hop_length, 2 * len(bins)))
    padded[:n_fft] = waves
    return padded.reshape(blocks, hop_length, -1).astype(np.float32)


def power_by_convolution(audio: Any, kernel: np.ndarray, n_fft: int) -> Any:
    """Centred power spectrogram; zeros stand before the start and after the end.

    Args:
        audio: `(batch, samples)` float32, [-1, 1].
        kernel: From `stft_kernel`.

    Returns: `(batch, 1 + samples // hop_length, bins)`.
    Reference: `abs(librosa.stft(..., center=True, pad_mode="constant")) ** 2`.
    """
    blocks, hop_length, doubled = kernel.shape
    frames = 1 + audio.shape[1] // hop_length
    rows = ops.reshape(
        _centred(audio, n_fft, (frames - 1 + blocks) * hop_length), (-1, frames - 1 + blocks, hop_length)
    )
    waves = ops.conv(rows, ops.convert_to_tensor(kernel), strides=1, padding="valid")
    real, imaginary = waves[..., : doubled // 2], waves[..., doubled // 2 :]
    return real * real + imaginary * imaginary


def power_by_fft(audio: Any, n_fft: int, win_length: int, hop_length: int, bins: np.ndarray) -> Any:
    """The same by FFT.

    Args:
        audio: `(batch, samples)` float32, [-1, 1].
        n_fft, win_length, hop_length: In samples.
        bins: Consecutive bins, from `bins_between`.

    Returns and reference: as `power_by_convolution`.
    """
    frames = 1 + audio.shape[1] // hop_length
    audio = _centred(audio, n_fft, (frames - 1) * hop_length + n_fft)
    frames = ops.extract_sequences(audio, n_fft, hop_length)
    real, imaginary = ops.rfft(frames * hann_window(n_fft, win_length).astype(np.float32))
    real, imaginary = real[..., bins[0] : bins[-1] + 1], imaginary[..., bins[0] : bins[-1] + 1]
    return real * real + imaginary * imaginary


def _centred(audio: Any, n_fft: int, length: int) -> Any:
    """`(batch, length)`: n_fft // 2 zeros, the audio, and zeros or a cut."""
    left = n_fft // 2
    audio = audio[:, : max(0, length - left)]
    return ops.pad(audio, ((0, 0), (left, max(0, length - left - audio.shape[1]))))


def power_to_db(power: Any, top_db: float, amin: float = 1e-10) -> Any:
    """Decibels with a bounded range below each example's own peak.

    Args:
        power: `(batch, frames, mels)`.
        top_db: Range, dB.
        amin: The least power that counts.

    Returns: `(batch, frames, mels)` dB.
    Reference: `librosa.power_to_db(power, amin=amin, top_db=top_db)`, example by example.
    """
    db = (10 / np.log(10)) * ops.log(ops.maximum(power, amin))
    return ops.maximum(db, ops.max(db, axis=(1, 2), keepdims=True) - top_db)
