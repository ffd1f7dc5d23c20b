"""Levels of waveforms."""

import numpy as np
import pytest
from keras import ops

from birdtpu.ops import loudness

RNG = np.random.default_rng(0)


def numpy(x):
    return ops.convert_to_numpy(x)


def test_levels_are_each_examples_own():
    audio = (RNG.standard_normal((3, 500)) * [[1], [1e-3], [0]] + [[0.5], [0], [0]]).astype(np.float32)
    np.testing.assert_allclose(numpy(loudness.rms(audio)), np.sqrt((audio.astype(np.float64) ** 2).mean(1)), rtol=1e-5)
    out = numpy(loudness.unit(audio))
    np.testing.assert_allclose((out**2).mean(axis=1), [1, 1, 0], rtol=1e-5)
    for i in range(3):
        np.testing.assert_allclose(numpy(loudness.unit(audio[i : i + 1]))[0], out[i], rtol=1e-6)


def test_a_standardised_clip_is_independent_of_its_recorder():
    audio = RNG.standard_normal((3, 4000)) * [[0.2], [2e-4], [0]]
    gain = numpy(loudness.standard_gain(audio.astype(np.float32)))
    np.testing.assert_allclose(gain[:2], 1 / audio[:2].std(axis=1), rtol=1e-5)
    assert gain[2] == 0
    pcm = np.round(audio / 0.2 * 3000).astype(np.int16)
    np.testing.assert_allclose(numpy(loudness.standard_gain(pcm))[0], 1 / pcm[0].std(), rtol=1e-5)


@pytest.mark.parametrize("snr_db", [-6.0, 0.0, 40.0])
def test_noise_is_added_at_its_ratio(snr_db):
    audio = (RNG.standard_normal((2, 6000)) * [[0.5], [5e-4]]).astype(np.float32)
    noise = RNG.standard_normal((2, 6000)).astype(np.float32) * np.float32(7)
    out = numpy(loudness.add_at_snr(audio, noise, np.full(2, snr_db, np.float32), np.ones(2, np.float32)))
    added = out.astype(np.float64) - audio
    got = 10 * np.log10((audio.astype(np.float64) ** 2).mean(axis=1) / (added**2).mean(axis=1))
    np.testing.assert_allclose(got, snr_db, atol=0.01)
    np.testing.assert_allclose(np.corrcoef(added[1], noise[1])[0, 1], 1, atol=1e-4)


def test_silence_stays_silent_and_silent_noise_adds_none():
    audio, noise = np.zeros((3, 50), np.float32), RNG.standard_normal((3, 50)).astype(np.float32)
    audio[1:], noise[1] = 0.3, 0
    out = numpy(loudness.add_at_snr(audio, noise, np.zeros(3, np.float32), np.float32([1, 1, 0])))
    np.testing.assert_array_equal(out, audio)


def test_integers_become_float_by_their_gain():
    pcm, gain = np.array([[-32768, 100], [5, 0]], np.int16), np.array([2.0**-15, 0.5], np.float32)
    np.testing.assert_allclose(numpy(loudness.to_float(pcm, gain)), [[-1, 100 / 32768], [2.5, 0]])
    assert loudness.to_float(gain, None) is gain
