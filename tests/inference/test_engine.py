"""Clips, batches and scores of streamed audio."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from birdtpu.inference.engine import Source, clips_of, frames_of_clips, score
from birdtpu.ops.framing import clip_starts


def blocks(audio: np.ndarray, size: int):
    for start in range(0, len(audio), size):
        yield audio[start : start + size]


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 12), st.integers(1, 70))
def test_streamed_clips_equal_slices(samples, clip, hop, block):
    hop = min(hop, clip)
    audio = np.arange(1, samples + 1, dtype=np.float32)
    got = [c.copy() for c, _ in clips_of(blocks(audio, block), clip, hop)]
    starts = clip_starts(samples, clip, hop)
    padded = np.pad(audio, (0, clip + starts[-1]))
    np.testing.assert_array_equal(got, [padded[s : s + clip] for s in starts])


def test_no_audio_gives_no_clip():
    assert list(clips_of(iter([]), 4, 2)) == []
    assert list(clips_of(iter([np.zeros(0, np.float32)]), 4, 2)) == []


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 90), st.integers(4, 20), st.integers(1, 20), st.integers(1, 4))
def test_each_frame_is_the_nearest_clips(samples, clip, hop, hop_length):
    hop = min(hop, clip)
    starts = clip_starts(samples, clip, hop)
    frames = 1 + clip // hop_length
    # Each frame's score tells its clip and its time.
    clips = np.stack(
        [np.stack([np.full(frames, c), s + hop_length * np.arange(frames)], 1) for c, s in enumerate(starts)]
    )
    found = frames_of_clips(clips, hop_samples=hop, hop_length=hop_length, samples=samples)
    time = hop_length * np.arange(1 + samples // hop_length)
    assert found.shape == (len(time), 2)
    # Half a frame, but at the end of a clip that is no whole number of them.
    assert np.abs(found[:, 1] - time).max() < hop_length
    away = np.abs(time[:, None] - starts - (frames - 1) * hop_length / 2)
    np.testing.assert_array_equal(found[:, 0], away.argmin(axis=1))


def test_no_clip_has_no_frames():
    assert frames_of_clips(np.zeros((0, 5, 2)), hop_samples=4, hop_length=2, samples=0).shape == (0, 2)


class Broken(Exception):
    pass


def failing(audio):
    yield audio
    raise Broken("no more")


def scores_of(sources, batch_size=4, predict=None):
    sizes = []

    def mean(clips):
        sizes.append(len(clips))
        return np.stack([clips.mean(axis=1), clips.max(axis=1)], axis=1)

    settings = dict(classes=2, sample_rate=10, clip_samples=4, hop_samples=2, batch_size=batch_size, errors=(Broken,))
    return list(score(sources, predict or mean, **settings)), sizes


def test_sources_share_batches_and_come_back_in_order():
    rng = np.random.default_rng(0)
    audio = [rng.random(n).astype(np.float32) for n in (9, 3, 20, 4)]
    got, sizes = scores_of([Source(str(i), lambda a=a: blocks(a, 5)) for i, a in enumerate(audio)])
    assert [g.key for g in got] == ["0", "1", "2", "3"]
    assert set(sizes) == {4}
    for result, a in zip(got, audio, strict=True):
        starts = clip_starts(len(a), 4, 2)
        padded = np.pad(a, (0, 4))
        clips = np.stack([padded[s : s + 4] for s in starts])
        np.testing.assert_allclose(result.scores, np.stack([clips.mean(axis=1), clips.max(axis=1)], axis=1), rtol=1e-6)
        np.testing.assert_allclose(result.starts_seconds, starts / 10)
        assert result.duration_seconds == len(a) / 10 and result.error is None


def test_a_broken_source_is_named_and_the_rest_goes_on():
    good = np.ones(10, np.float32)
    sources = [
        Source("a", lambda: blocks(good, 3)), Source("b", lambda: failing(good)), Source("c", lambda: blocks(good, 3))
    ]  # fmt: skip
    got, _ = scores_of(sources)
    assert [type(g.error) for g in got] == [type(None), Broken, type(None)]
    assert len(got[1].scores) == 0 and len(got[2].scores) == 4


def test_other_errors_end_the_run():
    def bug(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        scores_of([Source("a", lambda: blocks(np.ones(9, np.float32), 3))], predict=bug)

    def open_bug():
        raise KeyError("x")
        yield

    with pytest.raises(KeyError):
        scores_of([Source("a", open_bug)])


def test_memory_does_not_grow_with_the_audio():
    import tracemalloc

    def day():
        for _ in range(20000):
            yield np.zeros(1000, np.float32)

    tracemalloc.start()
    count = sum(1 for _ in clips_of(day(), 5000, 2500))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == len(clip_starts(20_000_000, 5000, 2500))
    assert peak < 1_000_000
