"""AAC and what else lies in an MP4, which libsndfile does not read, by PyAV (extra `aac`)."""

import os
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO, Self

import numpy as np

from birdtpu.data.containers import AudioError, Container

_FORMATS = {"MP4": "mov", "AAC": "aac"}


class AacSource:
    """An open file, with the face of `birdtpu.data.audio.Source`.

    Raises:
        AudioError: `needs PyAV`, `malformed`, or `no samples` where there is no audio track.
    """

    def __init__(self, file: BinaryIO, path: str | os.PathLike, container: Container):
        try:
            import av
            import av.error
        except ImportError as error:
            raise AudioError(path, "needs PyAV", "pip install 'birdtpu[aac]'") from error
        self._av: Any = av
        self._opened: Any
        file.seek(0)
        try:
            # A file object and a fixed format: no name, playlist or reference in the file is followed.
            # Before version 19 PyAV stopped at a tag in no known encoding unless it was told not to.
            lenient = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
            self._opened = av.open(file, format=_FORMATS[container.name], **lenient)
        except (av.error.FFmpegError, OSError) as error:
            raise AudioError(path, "malformed", _first_line(error)) from error
        if not self._opened.streams.audio:
            self._opened.close()
            raise AudioError(path, "no samples", "no audio track")
        self._track = self._opened.streams.audio[0]
        context = self._track.codec_context
        self.sample_rate, self.channels = context.sample_rate or 0, context.channels or 0
        if not self.channels:
            self._opened.close()
            raise AudioError(path, "malformed", "no channels")
        duration = self._track.duration if container.counted else None
        self.frames = round(duration * self._track.time_base * self.sample_rate) if duration else None
        self.damage = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def seek(self, frame: int) -> bool:
        return False

    def blocks(self, block_samples: int) -> Iterator[np.ndarray]:
        # The last AAC frame is padded; the header tells where the audio ends.
        left = self.frames or sys.maxsize
        waiting, count = [], 0
        for samples in self._frames():
            waiting.append(samples[:left])
            left -= len(waiting[-1])
            count += len(waiting[-1])
            if count * self.channels >= block_samples:
                yield np.concatenate(waiting)
                waiting, count = [], 0
            if not left:
                break
        if count:
            yield np.concatenate(waiting)

    def _frames(self) -> Iterator[np.ndarray]:
        convert = self._av.AudioResampler(format="fltp", layout=self._track.layout, rate=self.sample_rate)
        try:
            for frame in self._opened.decode(self._track):
                for part in convert.resample(frame):
                    yield part.to_ndarray().T
        except self._av.error.FFmpegError as error:
            self.damage = _first_line(error)

    def remarks(self) -> list[str]:
        return []


def _first_line(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
