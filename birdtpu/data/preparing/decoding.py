"""What a worker of `prepare` does with a file: decode, resample, cut, frame.

Every worker imports this module, so it needs neither pandas nor TensorFlow.
"""

import contextlib
import hashlib
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c
import numpy as np

from birdtpu.data import audio, records
from birdtpu.errors import UserError
from birdtpu.storage import FULL

# Recordings up to this length are decoded once and held; longer ones are decoded twice and never held.
HELD_SAMPLES = 15 * 60 * 32000
# One place for all recordings of a process, of which only what is used takes memory. Freed and taken anew for each
# recording, its pages cost a third of the time of decoding.
_held = np.empty(HELD_SAMPLES, np.float32)


@contextlib.contextmanager
def disk_errors(folder: str | os.PathLike) -> Iterator[None]:
    """Turn an error of the file system, a full disk above all, into one line that says what to do."""
    try:
        yield
    except OSError as error:
        where, what = error.filename or folder, error.strerror or str(error)
        if error.errno in FULL:
            where, what = folder, f"{what}; make room and run the same command again, what is done is kept"
        raise UserError(f"{where}: {what}") from error


def fingerprint(path: str | os.PathLike) -> tuple[int, str]:
    """A file's length in bytes and its crc32c in hex."""
    crc, size = 0, 0
    with Path(path).open("rb") as file:
        while data := file.read(1 << 22):
            crc, size = google_crc32c.extend(crc, data), size + len(data)
    return size, f"{crc:08x}"


def promised_seconds(path: str) -> float:
    """The length that a file's header promises; 0 where there is no audio in it."""
    try:
        return audio.probe(path).duration_seconds
    except audio.AudioError:
        return 0.0


@dataclass(frozen=True)
class Decode:
    """Turn a file into framed records.

    Args:
        path: The audio file.
        recording: Its recording's id; empty: made of the decoded audio.
        spool: Where the framed records go, one after the other; a file that is there is overwritten in place and
            keeps its length, because new pages cost more than the audio that is written on them.
        sample_rate: Of the records, in Hz.
        record_samples: The most samples a record holds.
        channel: `mix`, `left` or `right`.
        min_seconds: A shorter recording is a failure.
    """

    path: str
    recording: str
    spool: str
    sample_rate: int
    record_samples: int
    channel: audio.Channel
    min_seconds: float


@dataclass
class Outcome:
    """What became of a file.

    Attributes:
        size, crc32c: The file's fingerprint.
        reason, detail: Why it failed; `reason` is empty where it did not. Of a failed file nothing more is known.
        warnings: What was wrong with it although it gave audio.
        recording, audio_hash, samples: Of the decoded audio.
    """

    size: int = 0
    crc32c: str = ""
    reason: str = ""
    detail: str = ""
    warnings: list[str] = field(default_factory=list)
    recording: str = ""
    audio_hash: str = ""
    samples: int = 0


@dataclass
class Decoded(Outcome):
    """The outcome, and the lengths of the framed records that were spooled, in bytes."""

    lengths: list[int] = field(default_factory=list)


def decode(job: Decode) -> Decoded:
    """Decode, resample, cut and spool one file.

    Raises: UserError where the spool cannot be written. Everything that is wrong with the file is in the result.
    """
    out = Decoded()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            out.size, out.crc32c = fingerprint(job.path)
            _decode(job, out)
        except audio.AudioError as error:
            out = Decoded(out.size, out.crc32c, error.reason, error.detail)
        except OSError as error:
            out = Decoded(out.size, out.crc32c, "unreadable", error.strerror or str(error))
    if not out.reason:
        # Without the folder, so that the outputs do not depend on where the input lies.
        texts = [str(w.message).removeprefix(f"{job.path}: ") for w in caught if w.category is audio.AudioWarning]
        out.warnings = list(dict.fromkeys(texts))
    return out


def _decode(job: Decode, out: Decoded) -> None:
    def stream() -> Iterator[np.ndarray]:
        return audio.stream(job.path, sample_rate=job.sample_rate, channel=job.channel, min_seconds=job.min_seconds)

    digest = _AudioHash()
    for block in stream():
        digest.update(block)
        at = out.samples
        out.samples += block.size
        if out.samples <= HELD_SAMPLES:
            _held[at : out.samples] = block
    if not out.samples:
        raise audio.AudioError(job.path, "too short", f"no sample is left of it at {job.sample_rate} Hz")
    out.audio_hash = digest.hexdigest()
    out.recording = job.recording or f"pcm-{out.audio_hash}"
    blocks = [_held[: out.samples]] if out.samples <= HELD_SAMPLES else stream()
    stretch = stretch_samples(out.samples, job.record_samples)
    mode = "r+b" if Path(job.spool).exists() else "wb"
    with disk_errors(job.spool), Path(job.spool).open(mode) as spool:
        for i, samples in enumerate(recut(blocks, stretch)):
            start_seconds = i * stretch / job.sample_rate
            record = records.serialize(record_id(out.recording, i), out.recording, start_seconds, samples)
            framed = records.frame(record)
            spool.write(framed)
            out.lengths.append(len(framed))


def stretch_samples(samples: int, most: int) -> int:
    """The length of the fewest equal stretches, none above `most`, that a recording is cut into (the last is shorter
    by rounding)."""
    stretches = -(-samples // most)
    return -(-samples // stretches)


def record_id(recording: str, index: int) -> str:
    """The id of a recording's stretch."""
    return f"{recording}/{index:05d}"


class _AudioHash:
    """A hash of samples, however they come in blocks: of the crc32c of every 4096 of them.

    Of the samples and not of the records, so that an id does not depend on how long the records are. A cryptographic
    hash of it all would take a tenth of the time of decoding.
    """

    def __init__(self) -> None:
        self._sums, self._rest = hashlib.sha256(), b""

    def update(self, samples: np.ndarray) -> None:
        data, step = self._rest + samples.astype("<f4", copy=False).tobytes(), 4 * 4096
        whole = len(data) - len(data) % step
        for at in range(0, whole, step):
            self._sums.update(google_crc32c.value(data[at : at + step]).to_bytes(4, "little"))
        self._rest = data[whole:]

    def hexdigest(self) -> str:
        """80 bits, in hex."""
        last = self._sums.copy()
        last.update(self._rest)
        return last.hexdigest()[:20]


def recut(blocks: Iterable[np.ndarray], length: int) -> Iterator[np.ndarray]:
    """The same samples in arrays of `length`, the last one shorter."""
    held: list[np.ndarray] = []
    size = 0
    for block in blocks:
        at = 0
        while size + block.size - at >= length:
            end = at + length - size
            yield np.concatenate([*held, block[at:end]]) if held else block[at:end]
            held, size, at = [], 0, end
        if at < block.size:
            held.append(block[at:])
            size += block.size - at
    if held:
        yield np.concatenate(held)
