"""PCEN against librosa."""

import librosa
import numpy as np
import pytest
import scipy.signal
from keras import ops

from birdtpu.ops import pcen

RNG = np.random.default_rng(0)
COEF = pcen.smoothing_coef_of(0.4, 32000 / 320)


def numpy(x):
    return ops.convert_to_numpy(x)


def sounds() -> dict[str, np.ndarray]:
    """Mel magnitudes `(1001, 6)` as of 32-bit integers."""
    noise = RNG.gamma(2, 1, (1001, 6))
    place = np.arange(1001)[:, None]
    step = np.where(place < 500, 1e-3, 1e9) * np.ones(6)
    return {
        "a song in noise": noise * (1 + 300 * (place % 90 < 12) * np.linspace(0, 1, 6)) * 1e5,
        "silence": np.zeros((1001, 6)),
        "a loud step": step,
        "a step down": step[::-1],
        "silence, then noise": noise * (place > 33) * 1e4,
        "faint": noise * 1e-8,
    }


@pytest.mark.parametrize(("coef", "gain"), [(COEF, 0.98), (0.1, 0.5)], ids=["librosa's", "gentle"])
def test_matches_librosa(coef, gain):
    names, energy = zip(*sounds().items(), strict=True)
    energy = np.stack(energy).astype(np.float32)
    ours = numpy(pcen.pcen(energy, pcen.smooth(energy, coef), gain, 2.0, 0.5, 1e-6))
    assert np.isfinite(ours).all() and (ours[names.index("silence")] == 0).all()
    for name, out, one in zip(names, ours, energy.astype(np.float64), strict=True):
        theirs = librosa.pcen(one.T, b=coef, gain=gain, bias=2, power=0.5, eps=1e-6).T
        # Of a float32's 24 bits a power of a sum over a thousand frames keeps 14 or more.
        np.testing.assert_allclose(out, theirs, rtol=1e-4, atol=1e-6 * theirs.max(), err_msg=name)


@pytest.mark.parametrize(("seconds", "rate"), [(0.4, 100.0), (0.4, 93.75), (0.06, 50.0)])
def test_the_time_constant_is_librosas(seconds, rate):
    energy = RNG.random((4, 200))
    hop_length = 320
    theirs = librosa.pcen(energy, sr=round(rate * hop_length), hop_length=hop_length, time_constant=seconds)
    ours = librosa.pcen(energy, b=pcen.smoothing_coef_of(seconds, rate))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize(("frames", "coef"), [(1, 0.5), (32, COEF), (33, 1.0), (1000, 1e-4), (1000, 0.5)])
def test_the_average_is_the_filters(frames, coef):
    x, initial = RNG.random((2, frames, 3)).astype(np.float32), np.float32([[[2.0] * 3], [[5.0] * 3]])
    truth = scipy.signal.lfilter([coef], [1, coef - 1], x.astype(np.float64), axis=1, zi=(1 - coef) * initial)[0]
    np.testing.assert_allclose(numpy(pcen.smooth(x, coef, initial)), truth, rtol=3e-6)
    truth = scipy.signal.lfilter([coef], [1, coef - 1], x.astype(np.float64), axis=1, zi=(1 - coef) * initial**0)[0]
    np.testing.assert_allclose(numpy(pcen.smooth(x, coef)), truth, rtol=3e-6)


def test_examples_and_bands_are_independent():
    energy = (RNG.random((2, 80, 3)) * [[[1e9]], [[1e6]]]).astype(np.float32)
    energy[..., 1] *= 1e-3
    both = numpy(pcen.smooth(energy, COEF))
    for i in range(2):
        alone = numpy(pcen.smooth(energy[i : i + 1], COEF))[0]
        np.testing.assert_allclose(both[i], alone, rtol=1e-6)
    np.testing.assert_allclose(both[..., 1:2], numpy(pcen.smooth(energy[..., 1:2], COEF)), rtol=1e-6)
