"""From a backbone's feature map to probabilities."""

from typing import Any

from keras import layers, ops

from birdtpu.keys import Model
from birdtpu.layers.attention import AttentionHead
from birdtpu.layers.dropout import SeededDropout


def head(feature_map: Any, model: Model, *, classes: int, clip_seconds: float) -> dict[str, Any]:
    """The head that a recipe names.

    Args:
        feature_map: `(batch, segments, frequencies, channels)`.
        model: The recipe's table.
        classes: Number of classes.
        clip_seconds: Length of a clip.

    Returns: `clipwise` and `clipwise_logits` `(batch, classes)`, `segmentwise` and `segmentwise_logits`
        `(batch, segments, classes)`, `embedding` `(batch, features)`; of attention `norm_att` too.
    """
    if model.head == "mean":
        return mean(feature_map, classes=classes, dropout=model.dropout)
    if model.head == "sliding":
        segments = feature_map.shape[1]
        width = max(1, round(model.window_seconds * segments / clip_seconds))
        return sliding(feature_map, classes=classes, features=model.features, dropout=model.dropout, width=width)
    return attention(
        feature_map, classes=classes, features=model.features, dropout=model.dropout, bound=model.attention
    )


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


def mean(feature_map: Any, *, classes: int, dropout: float) -> dict[str, Any]:
    """An image classifier's head: the mean over time and frequency, dropout, one dense layer.

    The mean over time is taken behind the dense layer, where it is the same and leaves a score a segment as well.

    Args: as `attention`.
    """
    x = ops.mean(feature_map, axis=2)
    embedding = ops.mean(x, axis=1)
    # One draw for all segments: as before the dense layer of a classifier.
    x = SeededDropout(dropout, (None, 1, None), name="dropout_before")(x)
    logits = layers.Conv1D(classes, 1, dtype="float32", name="head")(x)
    return {**_of_segments(logits, ops.mean(logits, axis=1)), "embedding": embedding}


def sliding(feature_map: Any, *, classes: int, features: int, dropout: float, width: int) -> dict[str, Any]:
    """The head of write-up 004: a classifier of some width that slides over time; the clip's score is its highest.

    Args:
        feature_map, classes, features, dropout: As `attention`.
        width: Segments that the classifier sees at once: the mean annotation's.
    """
    x = ops.mean(feature_map, axis=2)
    x = SeededDropout(dropout, name="dropout_before")(x)
    x = layers.Conv1D(features, width, padding="same", activation="relu", name="features")(x)
    embedding = ops.mean(x, axis=1)
    x = SeededDropout(dropout, name="dropout_after")(x)
    logits = layers.Conv1D(classes, 1, dtype="float32", name="head")(x)
    return {**_of_segments(logits, ops.max(logits, axis=1)), "embedding": embedding}


def _of_segments(segmentwise_logits: Any, clipwise_logits: Any) -> dict[str, Any]:
    return {
        "clipwise": ops.sigmoid(clipwise_logits),
        "clipwise_logits": clipwise_logits,
        "segmentwise": ops.sigmoid(segmentwise_logits),
        "segmentwise_logits": segmentwise_logits,
    }
