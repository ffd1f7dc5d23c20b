"""The attention head of sound event detection."""

from typing import Any

import keras

from birdtpu.ops import pooling


class AttentionHead(keras.layers.Layer):
    """Features over segments to probabilities over classes, a segment at a time and for the clip.

    `norm_att = softmax over segments(bound(conv(x)))`, `segmentwise = sigmoid(conv(x))`,
    `clipwise = sum over segments(norm_att * segmentwise)`; both convolutions are one segment wide, start from Glorot
    uniform weights and zero biases, and compute in float32.

    Args:
        classes: Number of classes.
        bound: How the attention's logits are bounded: `tanh`, `soft` or `clamp` (see `ops.pooling.squash`).

    Input shape: `(batch, segments, features)`.
    Output: dict of `clipwise` and `clipwise_logits` `(batch, classes)`; `segmentwise`, `segmentwise_logits` and
        `norm_att` `(batch, segments, classes)`.

    Source: Kong et al. 2020, arXiv:1912.10211.
    """

    def __init__(self, classes: int, bound: str = "tanh", **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32"} | kwargs)
        self.classes = classes
        self.bound = bound
        self.attention = keras.layers.Conv1D(classes, 1, dtype="float32", name="attention")
        self.classify = keras.layers.Conv1D(classes, 1, dtype="float32", name="classify")

    def build(self, input_shape: tuple) -> None:
        self.attention.build(input_shape)
        self.classify.build(input_shape)
        self.built = True

    def call(self, features: Any) -> dict[str, Any]:
        logits = self.classify(features)
        return pooling.attend(pooling.squash(self.attention(features), self.bound), logits)

    def compute_output_shape(self, input_shape: tuple) -> dict[str, tuple]:
        segments = (input_shape[0], input_shape[1], self.classes)
        clip = (input_shape[0], self.classes)
        return {
            "clipwise": clip,
            "clipwise_logits": clip,
            "segmentwise": segments,
            "segmentwise_logits": segments,
            "norm_att": segments,
        }

    def get_config(self) -> dict:
        return {**super().get_config(), "classes": self.classes, "bound": self.bound}
