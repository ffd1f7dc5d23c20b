"""Masks against a slow twin."""

import numpy as np
import pytest
from keras import ops

from birdtpu.ops import masking


def numpy(x):
    return ops.convert_to_numpy(x)


def test_band_mask_matches_a_slow_twin():
    start, width = np.array([[0.0, 5.0], [3.0, 3.0]], np.float32), np.array([[2.0, 3.0], [0.0, 1.0]], np.float32)
    twin = np.ones((2, 9))
    for row in range(2):
        for s, w in zip(start[row], width[row], strict=True):
            twin[row, int(s) : int(s + w)] = 0
    np.testing.assert_array_equal(numpy(masking.band_mask(9, start, width)), twin)


def test_bands_lie_on_the_axis_and_reach_their_widest():
    units = np.random.default_rng(0).random((4000, 1, 2)).astype(np.float32)
    start, width = (numpy(x) for x in masking.random_bands(units, 20, 6))
    assert width.min() == 0 and width.max() == 6
    assert start.min() == 0 and (start + width).max() == 20
    assert np.unique(start).size > 15


@pytest.mark.parametrize(("share", "size", "widest"), [(0.1, 64, 6), (0.65, 1, 0), (0.29, 100, 29), (1.0, 5, 5)])
def test_bands_are_as_wide_as_the_share_holds_and_no_wider(share, size, widest):
    highest = np.float32(1 - 2**-24)
    units = np.append(np.random.default_rng(0).random((4000, 1)), [[highest]], axis=0).astype(np.float32)
    start, width = (numpy(x) for x in masking.random_bands(np.stack([units, units], axis=-1), size, share * size))
    assert np.unique(width).tolist() == list(range(widest + 1))
    # Each width as often as another.
    assert np.bincount(width[:, 0].astype(int)) / 4001 == pytest.approx(1 / (widest + 1), abs=0.03)
    assert (start >= 0).all() and (start + width <= size).all()


def test_examples_are_independent():
    rng = np.random.default_rng(2)
    power = rng.random((2, 9, 7)).astype(np.float32) * np.array([1, 1e-6], np.float32)[:, None, None]
    time, frequency = rng.integers(0, 2, (2, 9)).astype(np.float32), rng.integers(0, 2, (2, 7)).astype(np.float32)
    both = numpy(masking.apply_masks(power, time, frequency))
    for i in range(2):
        alone = numpy(masking.apply_masks(power[i : i + 1], time[i : i + 1], frequency[i : i + 1]))
        np.testing.assert_allclose(both[i], alone[0], rtol=1e-5)
    units = rng.random((2, 3, 2)).astype(np.float32)
    masks = numpy(masking.band_mask(50, *masking.random_bands(units, 50, 9)))
    np.testing.assert_array_equal(masks[1:], numpy(masking.band_mask(50, *masking.random_bands(units[1:], 50, 9))))


def test_masked_cells_take_their_own_examples_mean():
    image = np.random.default_rng(1).random((2, 6, 4)).astype(np.float32) * np.array([1, 1000.0])[:, None, None]
    time, frequency = np.ones((2, 6), np.float32), np.ones((2, 4), np.float32)
    time[0, 2], frequency[1, 3] = 0, 0
    out = numpy(masking.apply_masks(image.astype(np.float32), time, frequency))
    np.testing.assert_allclose(out[0, 2], image[0].mean(), rtol=1e-5)
    np.testing.assert_allclose(out[1, :, 3], image[1].mean(), rtol=1e-5)
    np.testing.assert_allclose(out[0, 3:], image[0, 3:], rtol=1e-5)


def test_a_floor_is_a_smaller_dynamic_range():
    db = np.random.default_rng(3).uniform(-90, 0, (2, 6, 4)).astype(np.float32)
    image = np.maximum(db, -80) / 80 + 1
    floor = np.array([0.25, 0.0], np.float32)
    out = numpy(masking.raise_floor(image, floor))
    np.testing.assert_allclose(out[0], np.maximum(db[0], -60) / 60 + 1, atol=1e-5)
    np.testing.assert_array_equal(out[1], image[1])
    assert (numpy(masking.raise_floor(np.zeros((1, 2, 2, 3), np.float32), floor[:1])) == 0).all()


def test_channels_are_masked_alike_each_with_its_own_mean():
    image = np.random.default_rng(4).random((2, 6, 5, 3)).astype(np.float32) * np.float32([1, 10, 100])
    time, frequency = np.ones((2, 6), np.float32), np.ones((1, 5), np.float32)
    time[1, 2], frequency[0, 4] = 0, 0
    out = numpy(masking.apply_masks(image, time, frequency))
    for channel in range(3):
        alone = numpy(masking.apply_masks(image[..., channel], time, frequency))
        np.testing.assert_allclose(out[..., channel], alone, rtol=1e-5)
