"""Multiple-instance training: of a recording's clips, the one that is trained on."""

from typing import Any

from keras import ops

_NEVER = -1e30


def audible(audio: Any, clip_mask: Any, silence_db: float) -> Any:
    """Which clips are not silent beside the recording's loudest, by their mean square.

    Args:
        audio: `(batch, clips, samples)`, of any scale and kind.
        clip_mask: `(batch, clips)`; 0 where a clip is padding and counts for nothing.
        silence_db: A clip so far below the loudest is silent. The loudest never is, even where all is silence.

    Returns: `(batch, clips)` of 0 and 1.
    """
    audio = ops.cast(audio, "float32")
    # A constant offset is no sound.
    power = ops.var(audio, axis=-1) * clip_mask
    loudest = ops.max(power, axis=1, keepdims=True)
    return ops.cast(power >= loudest * 10 ** (-silence_db / 10), "float32")


def best(logits: Any, present: Any, allowed: Any) -> Any:
    """The clip on which a species that is present scores highest; the first of equals.

    Args:
        logits: `(batch, clips, classes)`.
        present: `(batch, classes)`; above 0 where a species is known to be there. Where none is, all classes count.
        allowed: `(batch, clips)`; the others are taken only where no clip is allowed.

    Returns: `(batch,)` int32.
    """
    counts = ops.logical_or(present > 0, ops.max(present, axis=-1, keepdims=True) <= 0)
    score = ops.max(ops.where(counts[:, None], logits, _NEVER), axis=-1)
    return ops.cast(ops.argmax(ops.where(allowed > 0, score, _NEVER), axis=1), "int32")


def take(audio: Any, index: Any) -> Any:
    """`(batch, clips, samples)` and `(batch,)` to the chosen `(batch, samples)`."""
    index = ops.broadcast_to(index[:, None, None], (audio.shape[0], 1, audio.shape[2]))
    return ops.take_along_axis(audio, index, axis=1)[:, 0]
