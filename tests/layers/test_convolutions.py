"""Grouped and standardized convolutions, attention over channels and inside windows: beside slow twins."""

import keras
import numpy as np
import pytest
from keras import ops

from birdtpu.layers.channel_attention import ChannelAttention
from birdtpu.layers.grouped_conv import GroupedConv2D, StandardizedConv2D
from birdtpu.layers.window_attention import WindowAttention

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def numpy(x):
    return keras.tree.map_structure(ops.convert_to_numpy, x)


def convolved(x: np.ndarray, kernel: np.ndarray, groups: int, stride: int) -> np.ndarray:
    """A `valid` convolution, a pixel and a filter at a time."""
    side, channels, filters = kernel.shape[0], x.shape[-1] // groups, kernel.shape[-1]
    rows, columns = ((size - side) // stride + 1 for size in x.shape[1:3])
    out = np.zeros((len(x), rows, columns, filters))
    for row, column, filter_ in np.ndindex(rows, columns, filters):
        first = filter_ // (filters // groups) * channels
        here = x[:, row * stride :, column * stride :, first : first + channels][:, :side, :side]
        out[:, row, column, filter_] = (here * kernel[..., filter_]).sum(axis=(1, 2, 3))
    return out


@pytest.mark.parametrize(("window", "groups", "stride"), [(3, 2, 2), (1, 3, 1)])
def test_a_grouped_convolution_matches_a_slow_twin(window, groups, stride):
    layer = GroupedConv2D(12, window, stride, "valid", groups=groups)
    x = normal(2, 7, 6, 6)
    x[1] *= 1e-3
    got, (kernel, bias) = numpy(layer(x)), layer.get_weights()
    assert kernel.shape == (window, window, 6 // groups, 12) and (bias == 0).all()
    np.testing.assert_allclose(got, convolved(x, kernel, groups, stride), atol=1e-5)
    np.testing.assert_allclose(got[1], numpy(layer(x[1:]))[0], atol=1e-8)


def test_a_standardized_convolution_matches_a_slow_twin():
    layer = StandardizedConv2D(4, 3, 2, "valid", groups=2, gamma=1.7, epsilon=1e-3)
    x = normal(2, 7, 6, 6)
    layer.build(x.shape)
    kernel, gain, bias = 2 + 0.1 * normal(3, 3, 3, 4), normal(4), normal(4)
    layer.set_weights([kernel, gain, bias])
    deviation = np.sqrt(kernel.var(axis=(0, 1, 2)) + 1e-3)
    standardized = (kernel - kernel.mean(axis=(0, 1, 2))) / deviation * gain * 1.7 / np.sqrt(27)
    np.testing.assert_allclose(numpy(layer(x)), convolved(x, standardized, 2, 2) + bias, atol=1e-5)


def test_a_standardized_convolution_of_one_input_is_its_bias():
    # A single number has no deviation.
    layer = StandardizedConv2D(3, 1)
    x = normal(2, 4, 4, 1)
    np.testing.assert_allclose(numpy(layer(x)), np.zeros((2, 4, 4, 3)), atol=1e-6)


@pytest.mark.parametrize(("channels", "window"), [(16, 3), (256, 5)])
def test_attention_over_channels_matches_a_slow_twin(channels, window):
    layer = ChannelAttention()
    x = normal(2, 3, 2, channels)
    x[1] *= 1e-3
    got, (kernel,) = numpy(layer(x)), layer.get_weights()
    assert kernel.shape == (window,)
    near = [np.correlate(means, kernel, "same") for means in x.mean(axis=(1, 2))]
    np.testing.assert_allclose(got, x / (1 + np.exp(-np.stack(near)[:, None, None, :])), atol=1e-6)


def test_attention_in_windows_matches_a_slow_twin():
    side, heads, head = 3, 2, 1
    layer = WindowAttention(heads, side)
    queries, keys, values = normal(2, 9, 4), normal(2, 9, 4), normal(2, 9, 5)
    keys[1] *= 100
    layer.build(queries.shape, keys.shape, values.shape)
    biases = normal(heads * side**2)
    layer.set_weights([biases])
    got = numpy(layer(queries, keys, values, head=head))
    for window in range(2):
        for pixel in range(9):
            logits = keys[window] @ queries[window, pixel] / 2
            for other in range(9):
                rows, columns = abs(pixel // 3 - other // 3), abs(pixel % 3 - other % 3)
                logits[other] += biases[head * 9 + rows * 3 + columns]
            share = np.exp(logits - logits.max())
            np.testing.assert_allclose(got[window, pixel], share / share.sum() @ values[window], atol=1e-5)
    twin = WindowAttention.from_config(layer.get_config())
    twin.build(queries.shape, keys.shape, values.shape)
    twin.set_weights(layer.get_weights())
    np.testing.assert_array_equal(numpy(twin(queries, keys, values, head=head)), got)


def test_a_pixel_alone_attends_to_itself():
    values = normal(3, 1, 5)
    np.testing.assert_array_equal(numpy(WindowAttention(1, 1)(normal(3, 1, 4), normal(3, 1, 4), values)), values)
