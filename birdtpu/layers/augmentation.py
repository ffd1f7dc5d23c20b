"""Augmentation inside the training step: random wrappers around `ops`, drawn by the examples' seeds.

They hold no weights, so they are plain callables and no Keras layers. Never called at inference.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from keras import ops

from birdtpu import random
from birdtpu.ops import masking, mixing, stretching


@dataclass(frozen=True)
class PitchTempo:
    """Draw a pitch, a tempo and a place in the margin for each example.

    Args:
        pitch_probability, tempo_probability: Share of examples that get one.
        pitch_semitones: Lowest and highest shift.
        tempo_rates: Lowest and highest rate; above 1 is faster.
    """

    pitch_probability: float
    pitch_semitones: tuple[float, float]
    tempo_probability: float
    tempo_rates: tuple[float, float]

    @property
    def pitch_range(self) -> tuple[float, float]:
        """Lowest and highest pitch ratio that can be drawn, 1 among them."""
        if not self.pitch_probability:
            return (1.0, 1.0)
        low, high = self.pitch_semitones
        return (min(1.0, 2 ** (low / 12)), max(1.0, 2 ** (high / 12)))

    def __call__(self, seed: Any, source_frames: int, frames: int) -> tuple[Any, Any, Any]:
        """Draw.

        Args:
            seed: `(batch,)` int32.
            source_frames: Frames that were read, the margin among them.
            frames: Frames of a clip.

        Returns: pitch ratio, start (source frames) and rate, each `(batch,)` float32, such that a clip's frames lie
        within the source: a short margin bounds the rate, rather than letting the clip run into silence.
        """
        semitones = random.uniform(seed, random.stream("pitch"), (), *self.pitch_semitones)
        semitones = semitones * random.happens(seed, random.stream("pitch?"), self.pitch_probability)
        rate = random.uniform(seed, random.stream("tempo"), (), *self.tempo_rates)
        changed = random.happens(seed, random.stream("tempo?"), self.tempo_probability)
        fastest = np.float32((source_frames - 1) / max(1, frames - 1))
        rate = ops.minimum(1 + changed * (rate - 1), fastest)
        slack = ops.relu(source_frames - 1 - rate * (frames - 1))
        start = random.uniform(seed, random.stream("crop")) * slack
        # At its own pace a clip starts on a frame: between two it would be blurred, as no clip is at inference.
        start = ops.where(rate == 1, ops.floor(start), start)
        return ops.exp(semitones * np.float32(np.log(2) / 12)), start, rate


def crop(power: Any, pitch_ratio: Any, start: Any, rate: Any, *, frames: int, smear_frames: float) -> Any:
    """Read a clip's frames out of a longer mel spectrogram, at each example's place and pace.

    Args:
        power: `(batch, source_frames, mels)`, or with channels behind.
        pitch_ratio, start, rate: From `PitchTempo`.
        frames: Frames of a clip.
        smear_frames: Half the base of the triangle over neighbours where pitch or tempo is changed.

    Returns: the same with `frames` frames.
    """
    changed = ops.cast(ops.logical_or(pitch_ratio != 1, rate != 1), "float32")
    width = 1 + changed * max(0.0, smear_frames - 1)
    return stretching.read_frames(power, start, rate, frames, width)


@dataclass(frozen=True)
class Mixup:
    """Mix examples within groups of eight, in mel power or as waveforms: the same partners at the same shares.

    Args:
        probability: Share of examples that are mixed.
        alpha: The shares are Beta(alpha, alpha).
        union: Targets are the larger of the two, instead of their mean by share.
        weights: Instead of Beta's shares: the lowest and highest amplitude of the partner beside the example's 1.
        level: Whether mel power keeps the example's own level, mixed or not; else its mean becomes one.
    """

    probability: float
    alpha: float
    union: bool
    weights: tuple[float, float] | None = None
    level: bool = False

    @cached_property
    def _table(self) -> np.ndarray:
        return random.beta_table(self.alpha)

    def __call__(self, power: Any, labels: dict[str, Any], seed: Any) -> tuple[Any, dict[str, Any]]:
        """Mix power `(batch, frames, mels)` and labels by the draws of `seed` `(batch,)`.

        Labels: see `mixing.mix_targets`; `mixing.mix_teacher` for `teacher`, by share with `union` too.
        """
        partner, share = self._draw(seed, power.shape[0])
        mixed = mixing.blend(mixing.unit_energy(power), partner, share)
        if self.level:
            mixed = mixed * mixing.level_kept(ops.mean(power, axis=(1, 2), keepdims=True), partner)
        return mixed, self._mixed(labels, partner, share)

    def of_waveforms(self, audio: Any, labels: dict[str, Any], seed: Any) -> tuple[Any, dict[str, Any]]:
        """The same with `(batch, samples)`; the level stays each example's own."""
        partner, share = self._draw(seed, audio.shape[0])
        return mixing.blend_waveforms(audio, partner, share), self._mixed(labels, partner, share)

    def _mixed(self, labels: dict[str, Any], partner: Any, share: Any) -> dict[str, Any]:
        for name, known in (("targets", "target_mask"), ("frame_targets", "frame_mask")):
            if name in labels:
                mixed = mixing.mix_targets(labels[name], labels[known], partner, share, self.union)
                labels = {**labels, **dict(zip((name, known), mixed, strict=True))}
        if "teacher" in labels:
            labels = {**labels, "teacher": mixing.mix_teacher(labels["teacher"], partner, share)}
        return labels

    def _draw(self, seed: Any, rows: int) -> tuple[Any, Any]:
        """Each example's partner and its own share of the power, 1 where it is not mixed."""
        mixed = random.happens(seed, random.stream("mixup?"), self.probability)
        if self.weights is None:
            share = random.from_table(self._table, seed, random.stream("mixup"))
            # The example itself stays the louder one: its row's weight is its own.
            share = ops.maximum(share, 1 - share)
        else:
            share = 1 / (1 + ops.square(random.uniform(seed, random.stream("mixup weight"), (), *self.weights)))
        share = 1 - mixed * (1 - share)
        return mixing.partners(random.uniform(seed, random.stream("mixup partner")), rows), share


@dataclass(frozen=True)
class RandomFloor:
    """Cut away what is faint: a dynamic range drawn for each example.

    Args:
        probability: Share of examples that get one.
        highest: The floor is uniform between 0 and this, on the image's scale of 0 to 1.
    """

    probability: float
    highest: float

    def __call__(self, image: Any, seed: Any) -> Any:
        """`(batch, frames, mels)` in [0, 1], or with channels, and `(batch,)` to the image above its floor."""
        happens = random.happens(seed, random.stream("floor?"), self.probability)
        return masking.raise_floor(image, happens * random.uniform(seed, random.stream("floor"), (), 0.0, self.highest))


@dataclass(frozen=True)
class SpecAugment:
    """Mask random stretches of time and of frequency with the example's own mean.

    Args:
        time_masks, frequency_masks: How many of each.
        time_width, frequency_width: The widest, as a share of the axis, rounded down to whole frames and bands.
    """

    time_masks: int
    time_width: float
    frequency_masks: int
    frequency_width: float

    def __call__(self, image: Any, seed: Any) -> Any:
        """`(batch, frames, mels)`, or with channels, and `(batch,)` to the masked image."""
        frames, mels = image.shape[1:3]
        time = self._mask(seed, "time masks", self.time_masks, self.time_width, frames)
        frequency = self._mask(seed, "frequency masks", self.frequency_masks, self.frequency_width, mels)
        return masking.apply_masks(image, time, frequency)

    def _mask(self, seed: Any, name: str, count: int, width: float, size: int) -> Any:
        if count == 0:
            return np.ones((1, size), np.float32)
        units = random.uniform(seed, random.stream(name), (count, 2))
        return masking.band_mask(size, *masking.random_bands(units, size, width * size))
