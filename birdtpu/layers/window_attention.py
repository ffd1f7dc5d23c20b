"""Attention between the pixels of a window."""

from typing import Any

import numpy as np
from keras import layers, ops


class WindowAttention(layers.Layer):
    """Softmax attention between all pixels of a window, each head called on its own.

    To a pair's logit comes a learned bias of its distance `(|rows|, |columns|)`; softmax in float32.

    Args:
        heads: So many.
        side: Pixels of a square window's side.

    Input: queries and keys `(windows, side ** 2, keys)` and values `(windows, side ** 2, values)` of head `head`.
    Output shape: that of the values.
    Source: Liu et al. 2023, arXiv:2305.07027. Reference: timm's `CascadedGroupAttention`.
    """

    def __init__(self, heads: int, side: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.heads = heads
        self.side = side
        row, column = (np.abs(x[:, None] - x[None, :]) for x in np.divmod(np.arange(side**2), side))
        self._distance = row * side + column

    def build(self, queries_shape: tuple, keys_shape: tuple, values_shape: tuple) -> None:
        # A vector, because weight decay is not for biases.
        shape = (self.heads * self.side**2,)
        self.attention_biases = self.add_weight(
            name="attention_biases", shape=shape, initializer="zeros", autocast=False
        )

    def call(self, queries: Any, keys: Any, values: Any, head: int = 0) -> Any:
        logits = ops.matmul(queries * queries.shape[-1] ** -0.5, ops.transpose(keys, (0, 2, 1)))
        bias = ops.take(ops.convert_to_tensor(self.attention_biases), self._distance + head * self.side**2)
        logits = ops.cast(logits, "float32") + bias
        # Keras' softmax warns of windows of one pixel.
        share = ops.exp(logits - ops.stop_gradient(ops.max(logits, axis=-1, keepdims=True)))
        share = share / ops.sum(share, axis=-1, keepdims=True)
        return ops.matmul(ops.cast(share, values.dtype), values)

    def compute_output_shape(self, queries_shape: tuple, keys_shape: tuple, values_shape: tuple) -> tuple:
        return values_shape

    def get_config(self) -> dict:
        return {**super().get_config(), "heads": self.heads, "side": self.side}
