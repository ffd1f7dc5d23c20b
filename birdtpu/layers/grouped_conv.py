"""Convolutions in groups of channels, and their form with standardized weights."""

from typing import Any

import keras
from keras import layers, ops


def grouped_conv(x: Any, kernel: Any, groups: int, strides: int | tuple[int, int] = 1, padding: str = "same") -> Any:
    """A convolution of each group of channels on its own.

    Keras' own asks TensorFlow's CPU kernels, which have no gradient for groups, and so compiles each call with XLA.

    Args:
        x: `(batch, height, width, channels)`.
        kernel: `(height, width, channels / groups, filters)`.
        groups: So many.
        strides, padding: As Keras'; windows of 1 x 1 have stride 1.

    Returns: `(batch, height, width, filters)`.
    """
    if groups == 1:
        return ops.conv(x, kernel, strides, padding)
    if tuple(kernel.shape[:2]) == (1, 1):
        _, height, width, channels = x.shape
        kernel = ops.reshape(kernel, (channels // groups, groups, -1))
        parts = ops.reshape(x, (-1, height, width, groups, channels // groups))
        return ops.reshape(ops.einsum("bhwgi,igo->bhwgo", parts, kernel), (-1, height, width, groups * kernel.shape[2]))
    parts = zip(ops.split(x, groups, axis=-1), ops.split(kernel, groups, axis=-1), strict=True)
    return ops.concatenate([ops.conv(part, weights, strides, padding) for part, weights in parts], axis=-1)


class GroupedConv2D(layers.Conv2D):
    """`keras.layers.Conv2D` by `grouped_conv`: the same arguments, weights and function."""

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        return grouped_conv(inputs, kernel, self.groups, self.strides, self.padding)


class StandardizedConv2D(layers.Layer):
    """A convolution whose kernel is standardized over each filter's inputs at every call, for networks without norms.

    `kernel = gain * gamma / sqrt(inputs) * (kernel - mean) / sqrt(variance + epsilon)`, in float32.

    Args:
        filters, kernel_size, strides, padding, groups: As `keras.layers.Conv2D`, one number for both axes.
        gamma: What makes up for the variance that the activation before it takes.
        epsilon: Of the variance.
        gain_initializer: Of the gain, one a filter.

    Input shape: `(batch, height, width, channels)`; output `(batch, height, width, filters)`.
    Source: Brock et al. 2021, arXiv:2101.08692. Reference: timm's `ScaledStdConv2d`.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        strides: int = 1,
        padding: str = "same",
        groups: int = 1,
        gamma: float = 1.0,
        epsilon: float = 1e-5,
        gain_initializer: str = "ones",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.padding = padding
        self.groups = groups
        self.gamma = gamma
        self.epsilon = epsilon
        self.gain_initializer = gain_initializer

    def build(self, input_shape: tuple) -> None:
        shape = (self.kernel_size, self.kernel_size, input_shape[-1] // self.groups, self.filters)
        normal = keras.initializers.VarianceScaling(1.0, "fan_in", "untruncated_normal")
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer=normal, autocast=False)
        self.gain = self.add_weight(
            name="gain", shape=(self.filters,), initializer=self.gain_initializer, autocast=False
        )
        self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="zeros")

    def call(self, inputs: Any) -> Any:
        kernel = ops.convert_to_tensor(self.kernel)
        mean, variance = ops.moments(kernel, [0, 1, 2])
        height, width, channels, _ = kernel.shape
        scale = self.gain * (self.gamma * (height * width * channels) ** -0.5) * ops.rsqrt(variance + self.epsilon)
        kernel = ops.cast((kernel - mean) * scale, inputs.dtype)
        return grouped_conv(inputs, kernel, self.groups, self.strides, self.padding) + self.bias

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        lost = 0 if self.padding == "same" else self.kernel_size - 1
        sides = (-(-(size - lost) // self.strides) for size in input_shape[1:3])
        return (input_shape[0], *sides, self.filters)

    def get_config(self) -> dict:
        names = ("filters", "kernel_size", "strides", "padding", "groups", "gamma", "epsilon", "gain_initializer")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
