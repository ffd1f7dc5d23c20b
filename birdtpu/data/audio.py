"""Recordings as float32 mono at the rate that is asked for: probe, read a part, stream the whole.

Decoding and resampling go block by block, so a file's length costs time and no memory, and what a header claims is
never allocated. `read` and `stream` share one path and give the same samples, whatever the block.
"""

import contextlib
import math
import os
import stat
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, Self

import numpy as np
import soundfile
import soxr

from birdtpu.data.containers import AudioError, Container, View, identify, ogg_damage

__all__ = ["AudioError", "AudioInfo", "AudioWarning", "Channel", "probe", "read", "stream"]

Channel = Literal["mix", "left", "right"]

# Samples (all channels together) that are decoded at once: little enough for the processor's cache.
_BLOCK_SAMPLES = 1 << 16
_SEEK_BLOCK_SAMPLES = 1 << 14
# A resampler's filter is forgotten after this many samples of the slower rate.
_MARGIN_SAMPLES = 1024
_SAMPLE_RATES_HZ = (100, 1_000_000)
# Below this a decoder's padding explains that fewer samples came than a header counts.
_SHORTFALL_SECONDS = 0.1
# Float files in units of int32 pass; above this a resampler's sums would overflow.
_LOUDEST = 1e12
# Nine minutes at 32 kHz.
_MAX_EXPECTED_SAMPLES = 1 << 24
# Bytes that a decoder may leave unread behind its last frame: read-ahead and tags.
_UNREAD_BYTES = 1 << 16


class AudioWarning(UserWarning):
    """A damaged file that still gave audio; the message names the file and what is wrong."""


@dataclass(frozen=True)
class AudioInfo:
    """What a file says of itself.

    Attributes:
        sample_rate: Hz.
        channels: How many.
        frames: Samples per channel, as the header claims (a lying header lies here too); where it claims nothing,
            as counted by decoding.
        duration_seconds: `frames / sample_rate`.
        container: `WAV`, `RIFX`, `RF64`, `W64`, `AIFF`, `CAF`, `AU`, `FLAC`, `OGG`, `MP3`, `MP4` or `AAC`.
    """

    sample_rate: int
    channels: int
    frames: int
    duration_seconds: float
    container: str


class Source(Protocol):
    """An open file; `frames` is None where the header does not tell, `damage` is set when decoding broke off."""

    sample_rate: int
    channels: int
    frames: int | None
    damage: str

    def seek(self, frame: int) -> bool: ...

    def blocks(self, block_samples: int) -> Iterator[np.ndarray]: ...

    def remarks(self) -> list[str]: ...


class _Sequential(soundfile.SoundFile):
    # soundfile seeks to where it stands after every read, which costs a FLAC half its speed and changes MP3 samples.
    def seekable(self) -> bool:
        return False


class _LibsndfileSource:
    """What libsndfile decodes: everything but AAC."""

    def __init__(self, file: BinaryIO, container: Container):
        self._file, self._container = file, container
        self._sound = self._begin()
        self.sample_rate, self.channels = self._sound.samplerate, self._sound.channels
        self.frames = self._sound.frames if container.counted and self._sound.frames < 1 << 62 else None
        self.damage = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sound.close()

    def _begin(self) -> soundfile.SoundFile:
        self._file.seek(0)
        mended = self._container.skip or self._container.prefix
        handle: Any = View(self._file, self._container.skip, self._container.prefix) if mended else self._file.fileno()
        return _Sequential(handle, closefd=False)

    def seek(self, frame: int) -> bool:
        if self.frames is None or frame >= self.frames:
            return False
        with contextlib.suppress(soundfile.LibsndfileError):
            if self._sound.seek(frame) == frame:
                return True
        # Where a failed seek leaves a decoder is anyone's guess.
        self._sound.close()
        self._sound = self._begin()
        return False

    def blocks(self, block_samples: int) -> Iterator[np.ndarray]:
        frames = max(1, block_samples // self.channels)
        position = self._sound.tell()
        while not self.damage:
            block = np.empty((frames, self.channels), np.float32)
            try:
                block = self._sound.read(out=block)
            except soundfile.LibsndfileError as error:
                self.damage = error.error_string.rstrip(".") or f"libsndfile error {error.code}"
                # What was decoded before the fault is in the buffer.
                block = block[: max(0, self._sound.tell() - position)]
            if not len(block):
                break
            position += len(block)
            yield block

    def remarks(self) -> list[str]:
        """Asked after the last block: what the file itself did not tell."""
        if self._container.name == "OGG":
            damage = ogg_damage(self._file)
            return [damage] if damage else []
        if self._container.name in ("FLAC", "MP3") and not (self._container.skip or self._container.remarks):
            descriptor = self._file.fileno()
            unread = os.fstat(descriptor).st_size - os.lseek(descriptor, 0, os.SEEK_CUR)
            if unread > _UNREAD_BYTES:
                return [f"the header claims an end with {unread} bytes still to come; they were left out"]
        return []


@contextlib.contextmanager
def _open(path: str | os.PathLike) -> Iterator[tuple[Source, Container]]:
    with contextlib.ExitStack() as stack:
        try:
            # Opening a pipe would wait for its writer.
            if not stat.S_ISREG(Path(path).stat().st_mode):
                raise AudioError(path, "unreadable", "not a file")
            file = stack.enter_context(Path(path).open("rb", buffering=0))
            container = identify(file, path)
        except OSError as error:
            raise AudioError(path, "unreadable", error.strerror or str(error)) from error
        try:
            if container.name in ("MP4", "AAC"):
                from birdtpu.data.aac import AacSource

                source = stack.enter_context(AacSource(file, path, container))
            else:
                source = stack.enter_context(_LibsndfileSource(file, container))
        except soundfile.LibsndfileError as error:
            raise AudioError(path, "malformed", error.error_string.rstrip(".")) from error
        low, high = _SAMPLE_RATES_HZ
        if not low <= source.sample_rate <= high:
            raise AudioError(path, "malformed", f"a sample rate of {source.sample_rate} Hz")
        yield source, container


def probe(path: str | os.PathLike) -> AudioInfo:
    """Rate, channels and length of a file, from its header where that tells.

    Raises:
        AudioError: see `stream`.
    """
    with _open(path) as (source, container):
        frames = source.frames
        if frames is None:
            frames = sum(len(block) for block in source.blocks(_BLOCK_SAMPLES))
        if not frames:
            raise AudioError(path, "no samples")
        rate = source.sample_rate
        return AudioInfo(rate, source.channels, frames, frames / rate, container.name)


def stream(
    path: str | os.PathLike,
    *,
    sample_rate: int,
    channel: Channel = "mix",
    min_seconds: float = 0.01,
    max_seconds: float = 25 * 3600.0,
) -> Iterator[np.ndarray]:
    """A whole file in blocks of a second or two, in constant memory.

    A file of n frames gives `floor(n * sample_rate / rate + 0.5)` samples. What can be known only at the end (constant,
    too short) is raised there, so blocks that were given count only when the iterator has ended.

    Args:
        path: A local file of any name.
        sample_rate: Hz of the output (soxr, HQ).
        channel: `mix` is the mean of all channels (one dead of two costs 6 dB), `left` the first, `right` the second;
            a mono file has one channel for all three.
        min_seconds: Below it a file is too short.
        max_seconds: Above it a file is too long.

    Yields: `(samples,)` float32, [-1, 1] where the file is.

    Warns:
        AudioWarning: the file is damaged, and this is what could be saved (once, with all remarks, at the end).

    Raises:
        AudioError: `unreadable` (missing, not a file, no permission), `empty file`, `not audio`, `malformed`,
            `unsupported container`, `unsupported codec`, `no samples`, `constant` (silence too; denormal numbers are
            silence), `not finite`, `too short`, `too long`, `needs PyAV`.
    """
    with _open(path) as (source, container):
        mono = _checked(path, source, container, channel, min_seconds, max_seconds)
        yield from _resampled(mono, source.sample_rate, sample_rate)


def read(
    path: str | os.PathLike,
    *,
    sample_rate: int,
    start_seconds: float = 0.0,
    duration_seconds: float | None = None,
    channel: Channel = "mix",
    min_seconds: float = 0.01,
    max_seconds: float = 25 * 3600.0,
) -> np.ndarray:
    """A file, or a part of it, at once.

    A part is `round(duration_seconds * sample_rate)` of the whole's samples from `round(start_seconds * sample_rate)`
    on (to float32 rounding where it was resampled), fewer where the file ends. It is found by seeking where the file
    allows. A part is not judged as a file is: it may be silent, and damage elsewhere is not warned of.

    Returns: `(samples,)` float32.

    Warns, raises: as `stream` does; `too short` also where the part begins behind the end.
    """
    start = max(0, round(start_seconds * sample_rate))
    wanted = None if duration_seconds is None else round(duration_seconds * sample_rate)
    with _open(path) as (source, container):
        rate = source.sample_rate
        if not start and wanted is None:
            mono = _checked(path, source, container, channel, min_seconds, max_seconds)
            return _joined(_resampled(mono, rate, sample_rate), math.ceil((source.frames or 0) * sample_rate / rate))
        first, drop = _seek(source, start, sample_rate)
        mono = _checked(path, source, container, channel, 0.0, max_seconds, origin=first)
        part = _cut(_resampled(mono, rate, sample_rate), drop, wanted)
        samples = _joined(part, wanted or 0)
    if not len(samples) and wanted != 0:
        raise AudioError(path, "too short", f"it ends before {start_seconds:g} s")
    return samples


def _seek(source: Source, start: int, sample_rate: int) -> tuple[int, int]:
    """Go near sample `start` of the output: the frame reached, and how many output samples too early that is."""
    rate = source.sample_rate
    divisor = math.gcd(rate, sample_rate)
    period_in, period_out = rate // divisor, sample_rate // divisor
    margin = 0 if rate == sample_rate else math.ceil(_MARGIN_SAMPLES * sample_rate / min(rate, sample_rate))
    # Whole periods of both rates, so that the resampler meets the samples in the phase of the whole file.
    periods = max(0, start - margin) // period_out
    if not (periods and source.seek(periods * period_in)):
        periods = 0
    return periods * period_in, start - periods * period_out


def _cut(blocks: Iterator[np.ndarray], drop: int, wanted: int | None) -> Iterator[np.ndarray]:
    left = sys.maxsize if wanted is None else wanted
    for block in blocks:
        kept = block[drop : drop + left]
        drop = max(0, drop - len(block))
        left -= len(kept)
        yield kept
        if not left:
            return


def _joined(blocks: Iterator[np.ndarray], expected: int) -> np.ndarray:
    # Memory that is never written to costs nothing, but a header may claim any number.
    samples, have = np.empty(min(expected, _MAX_EXPECTED_SAMPLES), np.float32), 0
    for block in blocks:
        if have + len(block) > len(samples):
            samples = np.concatenate([samples[:have], np.empty(max(have, len(block)), np.float32)])
        samples[have : have + len(block)] = block
        have += len(block)
    return samples[:have]


def _checked(
    path: str | os.PathLike,
    source: Source,
    container: Container,
    channel: Channel,
    min_seconds: float,
    max_seconds: float,
    origin: int | None = None,
) -> Iterator[np.ndarray]:
    """Mono blocks at the file's own rate; every fault that samples can show is raised or warned of here.

    `origin` is the frame a part begins at; a part is not judged as a file.
    """
    rate, frames = source.sample_rate, 0
    low, high = math.inf, -math.inf
    for block in source.blocks(_BLOCK_SAMPLES if origin is None else _SEEK_BLOCK_SAMPLES):
        mono = _one_channel(block, channel)
        block_low, block_high = float(mono.min()), float(mono.max())
        if not (block_low > -_LOUDEST and block_high < _LOUDEST):  # NaN compares as false
            at = int(np.argmin(np.abs(mono) < _LOUDEST))
            reason = "malformed" if math.isfinite(mono[at]) else "not finite"
            raise AudioError(path, reason, f"a sample of {mono[at]:g} at {((origin or 0) + frames + at) / rate:.3f} s")
        low, high = min(low, block_low), max(high, block_high)
        frames += len(mono)
        if frames > max_seconds * rate:
            raise AudioError(path, "too long", f"more than {max_seconds / 3600:g} h")
        yield mono
    if origin is not None:
        return
    remarks = [*container.remarks, *source.remarks()]
    if not frames and (source.damage or source.frames or remarks):
        raise AudioError(path, "malformed", "; ".join([source.damage or "no frame decodes", *remarks]))
    if not frames:
        raise AudioError(path, "no samples")
    if frames < min_seconds * rate:
        raise AudioError(path, "too short", f"{frames / rate:.4f} s")
    if high - low < np.finfo(np.float32).tiny:
        other = "; try another channel" if source.channels > 1 and channel != "mix" else ""
        raise AudioError(path, "constant", f"every sample is {low:.3g}{other}")
    _warn(path, source, remarks, frames)


def _one_channel(block: np.ndarray, channel: Channel) -> np.ndarray:
    channels = block.shape[1]
    if channels == 1 or channel == "left":
        return np.ascontiguousarray(block[:, 0])
    if channel == "right":
        return np.ascontiguousarray(block[:, 1])
    if channel != "mix":
        raise ValueError(f"channel is mix, left or right, not {channel!r}")
    # Column by column: NumPy's mean over a short last axis is twenty times slower.
    mono = block[:, 0] + block[:, 1]
    for index in range(2, channels):
        mono += block[:, index]
    mono *= np.float32(1 / channels)
    return mono


def _resampled(blocks: Iterator[np.ndarray], rate: int, sample_rate: int) -> Iterator[np.ndarray]:
    if rate == sample_rate:
        yield from blocks
        return
    resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality="HQ")
    for block in blocks:
        if len(samples := resampler.resample_chunk(block)):
            yield samples
    if len(samples := resampler.resample_chunk(np.zeros(0, np.float32), last=True)):
        yield samples


def _warn(path: str | os.PathLike, source: Source, remarks: list[str], frames: int) -> None:
    rate, claimed = source.sample_rate, source.frames or 0
    if source.damage:
        remarks.append(f"broken off at {frames / rate:.2f} s: {source.damage}")
    elif claimed - frames > _SHORTFALL_SECONDS * rate:
        remarks.append(f"{frames / rate:.2f} s decoded of {claimed / rate:.2f} s that the header claims")
    if remarks:
        warnings.warn(f"{path}: {'; '.join(remarks)}", AudioWarning, stacklevel=2)
