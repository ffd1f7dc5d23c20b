"""Counts of frames, segments and clips against slow twins and librosa."""

import librosa
import numpy as np
import pytest

from birdtpu.ops import framing


@pytest.mark.parametrize("samples", [2, 319, 320, 321, 160000])
def test_frames_are_those_of_a_centred_stft(samples):
    audio = np.zeros(samples, np.float32)
    stft = librosa.stft(audio, n_fft=2, hop_length=320, center=True, pad_mode="constant")
    assert framing.frame_count(samples, 320) == stft.shape[1]


@pytest.mark.parametrize(("frames", "segments"), [(501, 7), (251, 31), (7, 7), (5, 8), (10, 1)])
def test_each_frame_takes_the_segment_it_lies_in(frames, segments):
    taken = framing.segment_of_frame(frames, segments)
    assert taken.dtype == np.int32
    assert taken.tolist() == [i * segments // frames for i in range(frames)]


def test_clip_starts_reach_the_end():
    assert framing.clip_starts(50, 50, 25).tolist() == [0]
    assert framing.clip_starts(1, 50, 25).tolist() == [0]
    assert framing.clip_starts(51, 50, 25).tolist() == [0, 25]
    assert framing.clip_starts(100, 50, 25).tolist() == [0, 25, 50]
    assert framing.clip_starts(101, 50, 25).tolist() == [0, 25, 50, 75]


@pytest.mark.parametrize("samples", range(1, 130, 7))
def test_clips_hold_every_sample_and_no_clip_is_silence_alone(samples):
    starts = framing.clip_starts(samples, 50, 20)
    held = np.zeros(samples, bool)
    for start in starts:
        assert start % 20 == 0 and start < samples
        held[start : start + 50] = True
    assert held.all()
    # One clip fewer would not reach the end.
    assert len(starts) == 1 or starts[-2] + 50 < samples
