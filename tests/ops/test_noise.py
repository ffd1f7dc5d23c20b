"""Noise against NumPy twins and its spectrum."""

import numpy as np
import pytest
from keras import ops

from birdtpu import random
from birdtpu.inference.runtimes.keras import compiled
from birdtpu.ops import noise

SEEDS = np.arange(40, dtype=np.int32)
STREAM = random.stream("test")


def numpy(x):
    return ops.convert_to_numpy(x)


def pink(units: np.ndarray, samples: int) -> np.ndarray:
    return numpy(compiled(lambda units: noise.pink(units, samples))(units))


def octave_levels(x: np.ndarray) -> np.ndarray:
    """Mean power density of each octave below the Nyquist frequency, dB, highest octave first."""
    density = (np.abs(np.fft.rfft(x * np.hanning(x.shape[1]))) ** 2).mean(axis=0)
    top = x.shape[1] // 2
    return 10 * np.log10([density[top >> i + 1 : top >> i].mean() for i in range(8)])


def test_gaussian_noise_is_the_sum_of_integers_on_every_engine():
    seeds, count = SEEDS[:3], 1000
    words = random.hash32(seeds[:, None], STREAM, np.arange(count))
    total = sum(((words >> shift) & 255).astype(np.int64) for shift in (0, 8, 16, 24))
    twin = (total - 510).astype(np.float32) * np.float32(1 / np.sqrt(4 * (256**2 - 1) / 12))
    np.testing.assert_array_equal(numpy(noise.gaussian(random.bits(seeds, STREAM, (count,)))), twin)


def test_gaussian_noise_is_nearly_normal():
    x = numpy(noise.gaussian(random.bits(SEEDS, STREAM, (10000,)))).astype(np.float64)
    assert abs(x.mean()) < 0.01 and x.var() == pytest.approx(1, abs=0.01)
    # Of a sum of four uniforms: 3 - 1.2 / 4.
    assert (x**4).mean() == pytest.approx(2.7, abs=0.03)
    assert np.abs(x).max() < 3.5
    # White: no sample tells the next.
    assert abs((x[:, 1:] * x[:, :-1]).mean()) < 0.01


def test_uniform_noise_is_flat():
    x = numpy(noise.uniform(random.uniform(SEEDS, STREAM, (10000,)))).astype(np.float64)
    assert np.abs(x).max() <= np.sqrt(3) + 1e-6 and x.var() == pytest.approx(1, abs=0.01)
    counts = np.histogram(x, 10, (-np.sqrt(3), np.sqrt(3)))[0]
    assert counts / x.size == pytest.approx(0.1, abs=0.003)


def test_pink_noise_falls_by_three_db_an_octave():
    samples = 32000
    x = pink(numpy(random.uniform(SEEDS, STREAM, (noise.pink_draws(samples),))), samples).astype(np.float64)
    assert x.shape == (40, samples) and x.var() == pytest.approx(1, abs=0.03)
    # From 62 to 8000 Hz at this rate: towards half the rate the quickest noise, which is white, flattens it.
    levels = octave_levels(x)[1:]
    slope, offset = np.polyfit(np.arange(len(levels)), levels, 1)
    assert slope == pytest.approx(10 * np.log10(2), abs=0.15)
    assert np.abs(levels - slope * np.arange(len(levels)) - offset).max() < 0.6
    white = octave_levels(numpy(noise.uniform(random.uniform(SEEDS, STREAM, (samples,)))))
    assert np.abs(white - white.mean()).max() < 0.5


@pytest.mark.parametrize("samples", [1, 511, 513])
def test_pink_noise_takes_as_many_draws_as_it_says(samples):
    draws = noise.pink_draws(samples)
    units = np.random.default_rng(0).random((1, draws)).astype(np.float32)
    out = pink(units, samples)
    assert out.shape == (1, samples)
    np.testing.assert_allclose(out, pink(np.pad(units, ((0, 0), (0, 9))), samples), atol=1e-6)


def test_pink_noise_holds_each_draw_for_its_octave():
    # Each white noise by itself, the others at rest: it steps only where it should.
    samples = 3000
    draws, first = noise.pink_draws(samples), 0
    hold = compiled(lambda units: noise.pink(units, samples))
    for octave in range(10):
        count = -(-(samples + 2**octave // 2) // 2**octave)
        units = np.full((1, draws), 0.5, np.float32)
        units[0, first : first + count] = np.random.default_rng(octave).random(count)
        steps = np.flatnonzero(np.diff(numpy(hold(units))[0]))
        assert len(steps) and ((steps + 1 + 2**octave // 2) % 2**octave == 0).all()
        first += count
    assert first == draws
