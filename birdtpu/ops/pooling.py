"""Attention pooling over segments, segments laid out over frames, and several models as one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from birdtpu.ops.framing import segment_of_frame

CLAMP = 1e-6
"""How near to 0 and 1 a probability may come before its logit is taken: float32 still tells 1 - CLAMP from 1."""


def squash(attention: Any, kind: str) -> Any:
    """Bound the attention's logits before their softmax.

    `tanh`: tanh(z) (PANNs). `soft`: 10 tanh(z / 10). `clamp`: z within [-10, 10].
    """
    if kind == "tanh":
        return ops.tanh(attention)
    if kind == "soft":
        return 10 * ops.tanh(attention / 10)
    if kind == "clamp":
        return ops.clip(attention, -10, 10)
    raise ValueError(f"unknown attention bound {kind!r}: one of tanh, soft, clamp")


def attend(attention: Any, logits: Any) -> dict[str, Any]:
    """Pool segments by a softmax over time.

    Args:
        attention: `(batch, segments, classes)` bounded logits.
        logits: `(batch, segments, classes)` of the classes in each segment.

    Returns: `segmentwise` and `segmentwise_logits`, `norm_att` (which sums to 1 over segments), all
        `(batch, segments, classes)`; `clipwise` and `clipwise_logits`, `(batch, classes)`. The clip's logits come from
        the logarithms of its probability and of one less it, each summed by itself: they are exact where the
        probability has long been rounded to 0 or 1.
    Source: Kong et al. 2020, "PANNs", arXiv:1912.10211, and its attention block.
    """
    log_att = ops.log_softmax(attention, axis=1)
    norm_att, segmentwise = ops.exp(log_att), ops.sigmoid(logits)
    present = ops.logsumexp(log_att + ops.log_sigmoid(logits), axis=1)
    absent = ops.logsumexp(log_att + ops.log_sigmoid(-logits), axis=1)
    return {
        "clipwise": ops.sum(norm_att * segmentwise, axis=1),
        "clipwise_logits": present - absent,
        "segmentwise": segmentwise,
        "segmentwise_logits": logits,
        "norm_att": norm_att,
    }


def over_frames(segments: Any, frames: int) -> Any:
    """Repeat `(batch, segments, classes)` to `(batch, frames, classes)`: frame i takes floor(i * segments / frames)."""
    index = segment_of_frame(frames, segments.shape[1])
    return ops.take(segments, np.asarray(index), axis=1)


def side_by_side(scores: Sequence[Any], columns: Sequence[np.ndarray]) -> Any:
    """The scores of several models, `(batch, models * classes)`; arguments as `mean_over_models`."""
    return ops.concatenate([ops.take(each, order, axis=1) for each, order in zip(scores, columns, strict=True)], axis=1)


def mean_over_models(scores: Sequence[Any], columns: Sequence[np.ndarray], shares: np.ndarray, combine: str) -> Any:
    """One score from those of several models.

    Args:
        scores: `(batch, classes)` probabilities of each model.
        columns: `(classes,)` int for each model: where the result's classes stand among its own.
        shares: `(models,)`, their sum is 1.
        combine: `probabilities`: the mean of them; `logits`: the sigmoid of the mean of log(p / (1 - p)), with p kept
            in [CLAMP, 1 - CLAMP].

    Returns: `(batch, classes)`.
    """
    aligned = [ops.take(each, order, axis=1) for each, order in zip(scores, columns, strict=True)]
    weights = np.asarray(shares, np.float32)
    if combine == "probabilities":
        return sum(share * each for share, each in zip(weights, aligned, strict=True))
    if combine != "logits":
        raise ValueError(f"unknown way to combine {combine!r}: one of probabilities, logits")
    kept = [ops.clip(each, CLAMP, 1 - CLAMP) for each in aligned]
    logits = [ops.log(each) - ops.log1p(-each) for each in kept]
    return ops.sigmoid(sum(share * each for share, each in zip(weights, logits, strict=True)))
