"""Losses an example; the step sums and divides by the global batch."""

from typing import Any

import numpy as np
from keras import ops

from birdtpu.ops.framing import segment_of_frame
from birdtpu.ops.mixing import GROUP


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


def rank_loss(logits: Any, targets: Any, mask: Any) -> Any:
    """A smooth 1 - AUC: of each class, examples that have it against those of their group of eight that have not.

    Args:
        logits, targets, mask: `(batch, classes)`, of whole groups; a soft target counts for both sides, by its part;
            mask 0 is unknown and in no pair.

    Returns: `(batch,)` nats, the mean of `softplus(theirs - own)` over the pairs in which the example has the class; 0
        where it has none.
    Reference: Yan et al. 2003, "Optimizing classifier performance via an approximation to the Wilcoxon-Mann-Whitney
        statistic", with a logistic in place of their power.
    """

    def grouped(x: Any) -> Any:
        return ops.reshape(x, (-1, GROUP, x.shape[-1]))

    logits, has, has_not = grouped(logits), grouped(targets * mask), grouped((1 - targets) * mask)
    pairs = has[:, :, None] * has_not[:, None]
    cost = ops.sum(pairs * ops.softplus(logits[:, None] - logits[:, :, None]), axis=(2, 3))
    return ops.reshape(cost / ops.maximum(ops.sum(pairs, axis=(2, 3)), 1e-7), (-1,))


def apart(logits: Any, targets: Any, mask: Any) -> tuple[Any, Any]:
    """Binary cross-entropy of what is present and of what is absent, as sums and counts.

    Args:
        logits, targets, mask: `(batch, ..., classes)`; a target of at least 0.5 is present, mask 0 is neither.

    Returns: sums in nats and how many, both `(2,)`: present, absent.
    """
    cost = ops.softplus(logits) - targets * logits
    present = ops.cast(targets >= 0.5, "float32")
    sides = (mask * present, mask * (1 - present))
    return ops.stack([ops.sum(cost * side) for side in sides]), ops.stack([ops.sum(side) for side in sides])


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


def embedding_distance(projected: Any, teacher: Any) -> Any:
    """1 - cosine between what the network says of a teacher's embedding and the embedding.

    Args:
        projected, teacher: `(batch, features)`, of any length each: only directions count.

    Returns: `(batch,)` in [0, 2]; 0 where the teacher's are zeros, which say nothing; 1, without a gradient, where the
        network's are.
    Reference: `sklearn.metrics.pairwise.paired_cosine_distances`.
    """
    (own, _), (theirs, known) = _direction(projected), _direction(teacher)
    return known * (1 - ops.sum(own * theirs, axis=-1))


def _direction(x: Any) -> tuple[Any, Any]:
    """Rows at a length of one, or zeros where there is none to be seen; and which of the two, `(batch,)` 1 or 0."""
    squares = ops.sum(ops.square(x), axis=-1)
    seen = ops.cast(squares > 1e-12, "float32")
    # A root of zero has no gradient, and next to zero it has a huge one.
    return x * (seen * ops.rsqrt(ops.maximum(squares, 1e-12)))[:, None], seen
