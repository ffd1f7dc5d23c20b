"""Losses an example; the step sums and divides by the global batch."""

from typing import Any

import numpy as np
from keras import ops

from birdtpu.ops.framing import segment_of_frame


def binary_cross_entropy(
    logits: Any, targets: Any, mask: Any, smoothing: float = 0.0, pos_weight: float = 1.0, focal_gamma: float = 0.0
) -> Any:
    """Binary cross-entropy, the mean over each example's known classes.

    From logits, so that a network that is wrong and sure of it still has a gradient.

    Args:
        logits, targets, mask: `(batch, classes)`; mask 0 is unknown and costs nothing.
        smoothing: Targets become `t * (1 - smoothing) + smoothing / 2`.
        pos_weight: Factor of the cost of what is present.
        focal_gamma: Each class counts by `|t - p| ** focal_gamma`, less where it is nearly right; 0: all count alike.

    Returns: `(batch,)` nats; 0 where nothing is known.
    Reference: `keras.losses.BinaryCrossentropy(from_logits=True)` where all is known;
        `tf.nn.weighted_cross_entropy_with_logits`; Lin et al. 2017, arXiv:1708.02002.
    """
    t = targets * (1 - smoothing) + smoothing / 2
    cost = ops.softplus(logits) - t * logits
    if pos_weight != 1:
        cost += (pos_weight - 1) * t * ops.softplus(-logits)
    if focal_gamma:
        # A base of 0 has no gradient for exponents below 1.
        cost *= ops.maximum(ops.abs(t - ops.sigmoid(logits)), 1e-6) ** focal_gamma
    return ops.sum(cost * mask, axis=-1) / ops.maximum(ops.sum(mask, axis=-1), 1e-7)


def framewise_cross_entropy(logits: Any, targets: Any, mask: Any) -> Any:
    """Binary cross-entropy of segments against what is known of frames, the mean over known frames and classes.

    Frame i belongs to segment floor(i * segments / frames), so a segment counts by the known frames that it holds.

    Args:
        logits: `(batch, segments, classes)`.
        targets, mask: `(batch, frames, classes)`; mask 0 is unknown.

    Returns: `(batch,)` nats; 0 where nothing is known.
    """
    frames, segments = targets.shape[1], logits.shape[1]
    belongs = np.zeros((segments, frames), np.float32)
    belongs[segment_of_frame(frames, segments), np.arange(frames)] = 1
    known = ops.matmul(belongs, mask)
    present = ops.matmul(belongs, mask * targets)
    cost = known * ops.softplus(logits) - present * logits
    return ops.sum(cost, axis=(1, 2)) / ops.maximum(ops.sum(mask, axis=(1, 2)), 1e-7)
