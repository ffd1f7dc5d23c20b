"""Mixing of examples within groups of eight consecutive rows, which no replica splits."""

import math
from typing import Any

import numpy as np
from keras import ops

from birdtpu.ops import loudness

GROUP = 8


def partners(units: Any, rows: int) -> Any:
    """Another row of the same group for each row.

    Args:
        units: `(rows,)` uniform in [0, 1).
        rows: Rows of the batch, a multiple of `GROUP`.

    Returns: int32 `(rows,)` indices, never a row's own.
    Raises: ValueError where a group is broken.
    """
    if rows % GROUP:
        raise ValueError(f"mixing needs batches of whole groups of {GROUP} rows, not {rows}")
    row = np.arange(rows, dtype=np.int32)
    step = 1 + ops.cast(units * (GROUP - 1), "int32")
    return row // GROUP * GROUP + (row % GROUP + step) % GROUP


def unit_energy(power: Any) -> Any:
    """Scale each example's power spectrogram `(batch, frames, mels)`, or each of its channels, to a mean of one.

    Silence stays silence.

    A mixture's shares then say how loud the two are, whatever the recorder's gain was.
    """
    return power / ops.maximum(ops.mean(power, axis=(1, 2), keepdims=True), 1e-20)


def level_kept(level: Any, partner: Any) -> Any:
    """The level `(batch, ...)` that a mixture gets: the example's own, or the partner's where that is silence."""
    return ops.where(level > 0, level, ops.take(level, partner, axis=0))


def blend(power: Any, partner: Any, share: Any, rest: Any | None = None) -> Any:
    """`share * power + rest * power[partner]`; sounds without a common phase add in power.

    Args:
        power: `(batch, ...)`, finite, of whole groups.
        partner: `(batch,)` int32, from `partners`.
        share: `(batch,)` in [0, 1]; 1 leaves the example as it is.
        rest: `(batch,)`; None: `1 - share`.
    """
    # A product within each group: a gather over the batch would fetch rows from every device.
    place = np.arange(GROUP, dtype=np.int32)
    own = (place[:, None] == place[None, :]).astype(np.float32)
    others = ops.cast(ops.reshape(partner, (-1, GROUP, 1)) % GROUP == place, "float32")
    share = ops.reshape(share, (-1, GROUP, 1))
    rest = 1 - share if rest is None else ops.reshape(rest, (-1, GROUP, 1))
    mixed = ops.matmul(share * own + rest * others, ops.reshape(power, (-1, GROUP, math.prod(power.shape[1:]))))
    return ops.reshape(mixed, power.shape)


def blend_waveforms(audio: Any, partner: Any, share: Any) -> Any:
    """Add a partner's waveform so that its share of the power is `1 - share`; the level stays the example's own.

    Beside `blend` on power spectrograms the partners interfere: where both sound at one frequency and time, their
    phases decide whether it is louder or fainter than the sum of powers, as it is where two birds sing.

    Args:
        audio: `(batch, samples)`, finite, of whole groups.
        partner: `(batch,)` int32, from `partners`.
        share: `(batch,)` in [0, 1]; 1 leaves the example as it is.

    Returns: `(batch, samples)`.
    """
    level = loudness.rms(audio)
    mixed = blend(loudness.unit(audio, level), partner, ops.sqrt(share), ops.sqrt(1 - share))
    return mixed * level_kept(level, partner)[:, None]


def paste(audio: Any, labels: dict[str, Any], partner: Any, frames: Any, hop_length: int) -> tuple[Any, dict[str, Any]]:
    """Put stretches of the partners over the examples, sound and frames' labels, at the same time of the clip.

    Args:
        audio: `(batch, samples)`, finite, of whole groups.
        labels: `frame_targets` and `frame_mask` `(batch, frames, classes)`; others stay as they are.
        partner: `(batch,)` int32, from `partners`.
        frames: `(batch, frames)`, 1 where the partner is to be heard. Frame i stands on sample `i * hop_length`, and
            brings the samples that are nearest to it.
        hop_length: Samples from frame to frame.

    Returns: audio and labels.
    """
    samples, none = audio.shape[1], ops.zeros_like(frames[:, 0])
    over = ops.repeat(frames, hop_length, axis=1)[:, hop_length // 2 :][:, :samples]
    over = ops.pad(over, ((0, 0), (0, samples - over.shape[1])))
    audio = ops.where(over > 0, blend(audio, partner, none, none + 1), audio)
    there = frames[:, :, None] > 0
    for name in ("frame_targets", "frame_mask"):
        labels = {**labels, name: ops.where(there, ops.take(labels[name], partner, axis=0), labels[name])}
    return audio, labels


def mix_targets(targets: Any, mask: Any, partner: Any, share: Any, union: bool) -> tuple[Any, Any]:
    """Targets of mixed examples.

    A class is known where it is positive in either example or known in both. A soft target beside an unknown one makes
    it known by as much as it is positive, for of the rest the other example may have any part.

    Args:
        targets, mask: `(batch, ..., classes)` in [0, 1]; mask 0 is unknown.
        partner: `(batch,)` int32.
        share: `(batch,)`; 1 is an example that was not mixed and keeps its own targets and mask.
        union: True: the larger of the two targets ("who sings"); False: their mean by share (Zhang et al. 2018,
            arXiv:1710.09412), where what is unknown counts as 0.

    Returns: targets and mask, of the same shape.
    """
    share = ops.reshape(share, (-1, *[1] * (len(targets.shape) - 1)))
    other, other_mask = ops.take(targets, partner, axis=0), ops.take(mask, partner, axis=0)
    positive = ops.maximum(targets * mask, other * other_mask)
    mixed = positive if union else share * targets * mask + (1 - share) * other * other_mask
    known = ops.maximum(mask * other_mask, positive)
    alone = ops.cast(share >= 1, "float32")
    return alone * targets + (1 - alone) * mixed, alone * mask + (1 - alone) * known


def mix_teacher(teacher: Any, partner: Any, share: Any) -> Any:
    """A teacher's embeddings of mixed examples: their mean by share.

    Args:
        teacher: `(batch, features)`, of whole groups; zeros say nothing.
        partner: `(batch,)` int32, from `partners`.
        share: `(batch,)`; 1 is an example that was not mixed and keeps its own.

    Returns: the same shape; zeros where the teacher says nothing of one of the two, for it never heard the mixture.
    """
    says = ops.cast(ops.any(teacher != 0, axis=1), "float32")
    both = says * ops.take(says, partner, axis=0)
    return blend(teacher, partner, share) * ops.maximum(both, ops.cast(share >= 1, "float32"))[:, None]
