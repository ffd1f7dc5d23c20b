"""From a backbone's feature map to probabilities."""

from typing import Any

from keras import layers, ops

from birdtpu.layers.attention import AttentionHead
from birdtpu.layers.dropout import SeededDropout


def attention(feature_map: Any, *, classes: int, features: int, dropout: float, bound: str) -> dict[str, Any]:
    """The head of write-up 003: mean over frequency, smoothing over time, a dense layer, attention.

    Args:
        feature_map: `(batch, segments, frequencies, channels)`.
        classes: Number of classes.
        features: Units of the dense layer.
        dropout: Rate before and after it.
        bound: See `AttentionHead`.

    Returns: the dict of `AttentionHead`, and `embedding` `(batch, features)`.
    """
    x = ops.mean(feature_map, axis=2)
    x = layers.MaxPooling1D(3, 1, "same", name="highest_nearby")(x) + layers.AveragePooling1D(
        3, 1, "same", name="mean_nearby"
    )(x)
    x = SeededDropout(dropout, name="dropout_before")(x)
    # A convolution of width one: a Dense of rank three is refused by some runtimes.
    x = layers.Conv1D(features, 1, activation="relu", name="features")(x)
    embedding = ops.mean(x, axis=1)
    x = SeededDropout(dropout, name="dropout_after")(x)
    return {**AttentionHead(classes, bound, name="head")(x), "embedding": embedding}
