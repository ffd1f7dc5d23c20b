"""Channels weighted by what stands in their neighbours."""

import math
from typing import Any

from keras import layers, ops


class ChannelAttention(layers.Layer):
    """Each channel times a sigmoid of a short convolution over the channels' means (ECA).

    The window grows with the channels: `(log2(channels) + 1) / 2`, made odd, at least 3.

    Input shape: `(batch, height, width, channels)`; output the same.
    Source: Wang et al. 2020, arXiv:1910.03151. Reference: timm's `EcaModule`.
    """

    def build(self, input_shape: tuple) -> None:
        half = int((math.log2(input_shape[-1]) + 1) / 2)
        self.kernel = self.add_weight(name="kernel", shape=(max(half + 1 - half % 2, 3),), initializer="glorot_uniform")

    def call(self, inputs: Any) -> Any:
        channels, window = inputs.shape[-1], self.kernel.shape[0]
        means = ops.pad(ops.mean(inputs, axis=(1, 2)), ((0, 0), (window // 2, window // 2)))
        kernel = ops.convert_to_tensor(self.kernel)
        near = sum(kernel[i] * means[:, i : i + channels] for i in range(window))
        return inputs * ops.sigmoid(near)[:, None, None, :]

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape
