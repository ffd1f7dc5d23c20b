"""Audio to clips to scores. The model is an argument: a function from a batch of clips to scores."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from birdtpu.ops.framing import frame_count

Predict = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Source:
    """Something to score.

    Args:
        key: Its name.
        open: Starts its mono audio at the model's sample rate, in blocks `(samples,)` float32.
    """

    key: str
    open: Callable[[], Iterator[np.ndarray]]


@dataclass(frozen=True)
class Scores:
    """What a source scored.

    Args:
        key: The source's.
        starts_seconds: `(clips,)`.
        scores: `(clips, classes)` float32.
        duration_seconds: Of the audio.
        error: Why there are no scores, else None.
    """

    key: str
    starts_seconds: np.ndarray
    scores: np.ndarray
    duration_seconds: float
    error: Exception | None = None


def clips_of(blocks: Iterable[np.ndarray], clip_samples: int, hop_samples: int) -> Iterator[tuple[np.ndarray, int]]:
    """Overlapping clips of streamed audio; memory holds a clip and a block, however long the audio is.

    Args:
        blocks: `(samples,)` float32 each.
        clip_samples, hop_samples: Length of a clip, and from start to start (no longer than a clip).

    Yields: `(clip_samples,)` float32 and the samples read so far. Starts are those of `ops.framing.clip_starts`: the
    last clip reaches the end and is filled with silence.
    """
    held, read, given = np.empty(0, np.float32), 0, False
    for block in blocks:
        read += len(block)
        held = np.concatenate([held, block])
        while len(held) >= clip_samples:
            yield held[:clip_samples], read
            given = True
            held = held[hop_samples:]
    # What the last full clip has not covered: all that is held, but for its overlap.
    if len(held) > (clip_samples - hop_samples if given else 0):
        yield np.pad(held, (0, clip_samples - len(held))), read


def score(
    sources: Iterable[Source],
    predict: Predict,
    *,
    classes: int,
    sample_rate: int,
    clip_samples: int,
    hop_samples: int,
    batch_size: int,
    errors: tuple[type[Exception], ...],
) -> Iterator[Scores]:
    """Score sources in order; a source that fails is reported and the rest goes on.

    Clips of several sources share a batch, and audio is decoded in a thread beside the model.

    Args:
        predict: `(batch, clip_samples)` float32 -> `(batch, classes)`; always called with `batch_size` rows.
        errors: What a source may raise; anything else ends the run.
    """
    pending: dict[int, _Pending] = {}
    finished = 0
    for item in _in_background(_batches(sources, clip_samples, hop_samples, batch_size, errors)):
        owners, audio, ended = item
        if len(owners):
            rows = np.asarray(predict(audio))[: len(owners)]
            for number in np.unique(owners):
                pending.setdefault(int(number), _Pending()).rows.append(rows[owners == number])
        for number, key, samples, error in ended:
            entry = pending.setdefault(number, _Pending())
            entry.end = (key, samples, error)
        while finished in pending and pending[finished].end is not None:
            entry = pending.pop(finished)
            finished += 1
            yield entry.result(classes, sample_rate, hop_samples)


def frames_of_clips(clips: np.ndarray, *, hop_samples: int, hop_length: int, samples: int) -> np.ndarray:
    """The frames of a recording out of those of its overlapping clips.

    Each frame is taken from the clip whose middle is nearest to it (of equals, the first): a clip knows least at its
    ends. Where clips start between two frames, the nearest frame of the clip is taken.

    Args:
        clips: `(clips, frames, classes)` scores of the frames of clips that start every `hop_samples`.
        hop_samples: From one clip's start to the next.
        hop_length: Samples from one frame to the next.
        samples: Of the recording.

    Returns: `(1 + samples // hop_length, classes)`: frame i stands at sample `i * hop_length`; none of no clip.
    """
    if not len(clips):
        return np.zeros((0, clips.shape[2]), clips.dtype)
    at = np.arange(frame_count(samples, hop_length)) * hop_length
    middle = (clips.shape[1] - 1) * hop_length / 2
    clip = np.clip(np.ceil((at - middle) / hop_samples - 0.5), 0, len(clips) - 1).astype(int)
    frame = np.clip(np.rint((at - clip * hop_samples) / hop_length), 0, clips.shape[1] - 1).astype(int)
    return clips[clip, frame]


class _Pending:
    """The scores of one source so far."""

    def __init__(self) -> None:
        self.rows: list[np.ndarray] = []
        self.end: Any = None

    def result(self, classes: int, sample_rate: int, hop_samples: int) -> Scores:
        key, samples, error = self.end
        rows = [] if error else self.rows
        scores = np.concatenate([np.zeros((0, classes), np.float32), *rows]).astype(np.float32)
        return Scores(key, np.arange(len(scores)) * hop_samples / sample_rate, scores, samples / sample_rate, error)


def _batches(
    sources: Iterable[Source],
    clip_samples: int,
    hop_samples: int,
    batch_size: int,
    errors: tuple[type[Exception], ...],
) -> Iterator[tuple[np.ndarray, np.ndarray, list]]:
    """(number of each row's source, clips, sources that ended with or before this batch)."""
    audio, owners, ended = np.zeros((batch_size, clip_samples), np.float32), [], []
    for number, source in enumerate(sources):
        samples, error = 0, None
        try:
            for clip, samples in clips_of(source.open(), clip_samples, hop_samples):  # noqa: B007
                audio[len(owners)] = clip
                owners.append(number)
                if len(owners) == batch_size:
                    yield np.array(owners), audio, ended
                    audio, owners, ended = np.zeros_like(audio), [], []
        except errors as caught:
            error = caught
        ended.append((number, source.key, samples, error))
    yield np.array(owners, int), audio, ended


def _in_background(items: Iterator, ahead: int = 2) -> Iterator:
    """Run an iterator in a thread, a few items ahead; what it raises is raised here."""
    waiting: queue.Queue = queue.Queue(ahead)
    stop = threading.Event()
    end = object()

    def put(item: Any) -> None:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put((item, None))
                if stop.is_set():
                    return
            put((end, None))
        except BaseException as error:
            put((end, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        stop.set()
        thread.join()
