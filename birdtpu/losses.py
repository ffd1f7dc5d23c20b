"""Losses an example; the step sums and divides by the global batch."""

from typing import Any

from keras import ops


def binary_cross_entropy(logits: Any, targets: Any, mask: Any, smoothing: float = 0.0) -> Any:
    """Binary cross-entropy, the mean over each example's known classes.

    From logits, so that a network that is wrong and sure of it still has a gradient.

    Args:
        logits, targets, mask: `(batch, classes)`; mask 0 is unknown and costs nothing.
        smoothing: Targets become `t * (1 - smoothing) + smoothing / 2`.

    Returns: `(batch,)` nats; 0 where nothing is known.
    Reference: `keras.losses.BinaryCrossentropy(from_logits=True)`, where all is known.
    """
    t = targets * (1 - smoothing) + smoothing / 2
    cost = ops.softplus(logits) - t * logits
    return ops.sum(cost * mask, axis=-1) / ops.maximum(ops.sum(mask, axis=-1), 1e-7)
