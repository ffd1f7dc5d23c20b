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
    """Triangular bands of equal width in mel.

    Args:
        n_mels: Number of bands.
        f_min, f_max: Edges of the first and the last band, Hz.
        htk: HTK's mel scale instead of Slaney's.
        norm: `slaney`: each of area one in hertz; `none`: each of height one, so that high bands, which are wide, are
            louder.
    """

    n_mels: int
    f_min: float
    f_max: float
    htk: bool = False
    norm: str = "slaney"

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
        Reference: `librosa.filters.mel(norm="slaney")` or `norm=None`, transposed.
        """
        edges = self.edges
        lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
        norm = 2 / (upper - lower) if self.norm == "slaney" else np.ones(self.n_mels)
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


def convolved_bins(n_fft: int, hop_length: int, bins: np.ndarray) -> list[np.ndarray]:
    """The bins of each part that `power_by_convolution` gives: int64 `(columns,)`; 0 where a bin is there already.

    One part, or two where `n_fft` and `hop_length` are even: the spectrum at bin k is that of the even samples plus
    that of the odd ones, and their difference is the conjugate of bin n_fft / 2 - k, at half the multiplications.
    """
    if n_fft % 2 or hop_length % 2:
        return [bins]
    half = n_fft // 2
    low = np.unique(np.minimum(bins, half - bins))
    return [low, np.where(2 * low == half, 0, half - low)]


def window_start(n_fft: int, win_length: int) -> int:
    """The first sample of `n_fft` that `stft_kernel` reads: before the window, on an even place."""
    return (n_fft - win_length) // 4 * 2


def stft_kernel(n_fft: int, win_length: int, hop_length: int, bins: np.ndarray) -> np.ndarray:
    """Windowed waves as convolutions over blocks of one hop: float32 `(parts, 2, blocks, hop_length / parts, columns)`.

    Of every part-th sample from `window_start`, cosines and sines of the first `convolved_bins`. The window is
    `hann_window`'s: one much shorter than `n_fft` needs few blocks.
    """
    parts = convolved_bins(n_fft, hop_length, bins)
    first, end = window_start(n_fft, win_length), (n_fft - win_length) // 2 + win_length
    blocks = -(-(end - first) // hop_length)
    # The angle's turns are counted in integers, so that float64 loses nothing for late samples of high bins.
    angle = 2 * np.pi / n_fft * (np.arange(n_fft)[:, None] * parts[0] % n_fft)
    waves = np.zeros((2, blocks * hop_length, len(parts[0])))
    windowed = np.stack([np.cos(angle), np.sin(angle)]) * hann_window(n_fft, win_length)[:, None]
    waves[:, : end - first] = windowed[:, first:end]
    waves = waves.reshape(2, blocks, hop_length // len(parts), len(parts), -1)
    return np.moveaxis(waves, 3, 0).astype(np.float32)


def power_by_convolution(audio: Any, kernel: np.ndarray, n_fft: int, start: int = 0) -> list[Any]:
    """Centred power spectrogram; zeros stand before the start and after the end.

    Args:
        audio: `(batch, samples)` float32 in [-1, 1], or int16.
        kernel: From `stft_kernel`.
        n_fft: In samples.
        start: `window_start`.

    Returns: for each of `convolved_bins`, `(batch, 1 + samples // hop_length, columns)`.
    Reference: `abs(librosa.stft(..., center=True, pad_mode="constant")) ** 2`.
    """
    parts, _, blocks, step, _ = kernel.shape
    hop_length = parts * step
    frames = 1 + audio.shape[1] // hop_length
    # Integers are padded and laid out as they are, at half the bytes.
    rows = _led(audio, n_fft // 2 - start, (frames - 1 + blocks) * hop_length)
    rows = ops.cast(ops.reshape(rows, (-1, frames - 1 + blocks, hop_length)), "float32")
    spectra = []
    for i, waves in enumerate(kernel):
        # A strided slice of the last axis is several copies on a TPU, a product with zeros and ones is none.
        every = np.eye(hop_length, dtype=np.float32)[None, :, i::parts]
        samples = ops.conv(rows, ops.convert_to_tensor(every)) if parts > 1 else rows
        # The real and the imaginary part each by a convolution of its own, so that XLA squares as it writes.
        spectra.append([ops.conv(samples, ops.convert_to_tensor(each), strides=1, padding="valid") for each in waves])
    if parts == 2:
        even, odd = spectra
        spectra = [[a + b for a, b in zip(even, odd, strict=True)], [a - b for a, b in zip(even, odd, strict=True)]]
    return [real * real + imaginary * imaginary for real, imaginary in spectra]


def power_by_fft(audio: Any, n_fft: int, win_length: int, hop_length: int, bins: np.ndarray) -> Any:
    """The same by FFT.

    Args:
        audio: `(batch, samples)` float32 in [-1, 1], or int16.
        n_fft, win_length, hop_length: In samples.
        bins: Consecutive bins, from `bins_between`.

    Returns and reference: as `power_by_convolution`.
    """
    frames = 1 + audio.shape[1] // hop_length
    audio = ops.cast(_led(audio, n_fft // 2, (frames - 1) * hop_length + n_fft), "float32")
    frames = ops.extract_sequences(audio, n_fft, hop_length)
    real, imaginary = ops.rfft(frames * hann_window(n_fft, win_length).astype(np.float32))
    real, imaginary = real[..., bins[0] : bins[-1] + 1], imaginary[..., bins[0] : bins[-1] + 1]
    return real * real + imaginary * imaginary


def _led(audio: Any, left: int, length: int) -> Any:
    """`(batch, length)`: `left` zeros, the audio, and zeros or a cut."""
    audio = audio[:, : max(0, length - left)]
    return ops.pad(audio, ((0, 0), (left, max(0, length - left - audio.shape[1]))))


def power_to_db(power: Any, top_db: float | None, amin: float = 1e-10) -> Any:
    """Decibels with a bounded range below each example's own peak.

    Args:
        power: `(batch, frames, mels)`, or `(batch, frames, mels, channels)`: each channel by itself.
        top_db: Range, dB; None: unbounded.
        amin: The least power that counts.

    Returns: the same shape, dB.
    Reference: `librosa.power_to_db(power, amin=amin, top_db=top_db)`, example by example.
    """
    db = (10 / np.log(10)) * ops.log(ops.maximum(power, amin))
    return db if top_db is None else ops.maximum(db, ops.max(db, axis=(1, 2), keepdims=True) - top_db)
