"""Augmentation of the sound itself, before its spectrogram: drawn by the examples' seeds, on the device."""

from dataclasses import dataclass
from typing import Any

from keras import ops

from birdtpu import random
from birdtpu.errors import UserError
from birdtpu.keys import Augment
from birdtpu.layers.augmentation import Mixup
from birdtpu.ops import loudness, masking, mixing, noise


@dataclass(frozen=True)
class Waveform:
    """What a recipe does to waveforms, in this order: flip, paste, same species, mixup, background, noise, loudness.

    So noise is measured against the whole scene, and birds that were added lie in one background. What comes after
    (pitch, tempo, crop) then holds for all that was added, where mixup in mel power mixes sounds that each have their
    own.

    Args:
        augment: The recipe's table.
        mixup: Applied here where `augment.mixup_on` is `waveform`.
        hop_length: Samples from one frame of the labels to the next.
    """

    augment: Augment
    mixup: Mixup
    hop_length: int

    @property
    def active(self) -> bool:
        """Whether anything can change: if not, audio stays integers on its way to the spectrogram."""
        augment = self.augment
        return bool(
            augment.flip_absent_probability or augment.paste_probability
            or augment.partner_probability or augment.background_probability or self.mixes or any(self._noises.values())
            or augment.loudness_probability
        )  # fmt: skip

    @property
    def mixes(self) -> bool:
        """Whether mixup is done here."""
        return self.augment.mixup_on == "waveform" and self.augment.mixup_probability > 0

    @property
    def _noises(self) -> dict[str, float]:
        augment = self.augment
        return {
            "gaussian": augment.gaussian_noise_probability,
            "uniform": augment.uniform_noise_probability,
            "pink": augment.pink_noise_probability,
        }

    def __call__(self, batch: dict[str, Any], labels: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
        """Change a batch's sound.

        Args:
            batch: Of the batch contract; with `partner_audio` or `background_audio` `(batch, samples)`, floats or
                integers at any gain, where the recipe asks for them.
        labels: What is mixed with the sounds (see `Mixup`).

        Returns: audio `(batch, samples)`, its gain (None where it is float), and the labels.
        Raises: UserError where the batch lacks what the recipe asks for.
        """
        audio, gain, seed = batch["audio"], batch.get("audio_gain"), batch["seed"]
        if not self.active:
            return audio, gain, labels
        audio = loudness.to_float(audio, gain)
        if self.augment.flip_absent_probability:
            audio, labels = self._flipped(audio, labels, seed)
        if self.augment.paste_probability:
            audio, labels = self._pasted(audio, labels, seed)
        if self.augment.partner_probability:
            audio, labels = self._with_same_species(audio, self._asked(batch, "partner"), labels, seed)
        if self.mixes:
            audio, labels = self.mixup.of_waveforms(audio, labels, seed)
        if self.augment.background_probability:
            present = random.happens(seed, random.stream("background?"), self.augment.background_probability)
            snr_db = random.uniform(seed, random.stream("background"), (), *self.augment.background_snr_db)
            audio = loudness.add_at_snr(audio, self._asked(batch, "background"), snr_db, present)
        for kind, probability in self._noises.items():
            if probability:
                audio = self._with_noise(audio, kind, probability, seed)
        if self.augment.loudness_probability:
            changed = random.happens(seed, random.stream("loudness?"), self.augment.loudness_probability)
            gain_db = changed * random.uniform(seed, random.stream("loudness"), (), *self.augment.loudness_db)
            audio = audio * ops.power(10.0, gain_db / 20)[:, None]
        return audio, None, labels

    def _asked(self, batch: dict[str, Any], name: str) -> Any:
        if f"{name}_audio" not in batch:
            raise UserError(f"augment.{name}_probability: the batches hold no {name}_audio; set it to 0")
        return ops.cast(batch[f"{name}_audio"], "float32")

    def _flipped(self, audio: Any, labels: dict[str, Any], seed: Any) -> tuple[Any, dict[str, Any]]:
        """Backwards, where nothing is known to be present: a song that is turned round is no song of its species."""
        happens = random.happens(seed, random.stream("flip?"), self.augment.flip_absent_probability)
        happens = happens * (1 - ops.max(labels["targets"] * labels["target_mask"], axis=1))
        turned = {"audio": audio}
        if "frame_targets" in labels:
            turned |= {name: labels[name] for name in ("frame_targets", "frame_mask")}
            happens = happens * (1 - ops.max(labels["frame_targets"], axis=(1, 2)))
        for name, value in turned.items():
            now = ops.reshape(happens, (-1, *[1] * (len(value.shape) - 1)))
            turned[name] = ops.where(now >= 1, ops.flip(value, axis=1), value)
        return turned.pop("audio"), _unheard(labels | turned, happens >= 1)

    def _pasted(self, audio: Any, labels: dict[str, Any], seed: Any) -> tuple[Any, dict[str, Any]]:
        """The partner's sound and labels from its first to its last annotated frame, in place of the own ones."""
        partner = mixing.partners(random.uniform(seed, random.stream("paste partner")), audio.shape[0])
        happens = random.happens(seed, random.stream("paste?"), self.augment.paste_probability)
        said = ops.cast(ops.max(labels["frame_mask"], axis=2) > 0, "int32")
        frames = happens[:, None] * ops.cast(ops.take(masking.span(said), partner, axis=0), "float32")
        labels = _unheard(labels, ops.max(frames, axis=1) > 0)
        return mixing.paste(audio, labels, partner, frames, self.hop_length)

    def _with_same_species(
        self, audio: Any, partner: Any, labels: dict[str, Any], seed: Any
    ) -> tuple[Any, dict[str, Any]]:
        """`w * own + (1 - w) * partner` at one level, where the partner is no silence; the level stays."""
        happens = random.happens(seed, random.stream("partner?"), self.augment.partner_probability)
        weight = random.uniform(seed, random.stream("partner weight"), (), *self.augment.partner_weights)
        level, other = loudness.rms(audio), loudness.rms(partner)
        weight = 1 - happens * ops.cast(other > 0, "float32") * (1 - weight)
        mixed = weight[:, None] * loudness.unit(audio, level) + (1 - weight)[:, None] * loudness.unit(partner, other)
        return mixed * ops.where(level > 0, level, other)[:, None], _unheard(labels, weight < 1)

    def _with_noise(self, audio: Any, kind: str, probability: float, seed: Any) -> Any:
        samples, stream = audio.shape[1], random.stream(f"{kind} noise")
        if kind == "gaussian":
            sound = noise.gaussian(random.bits(seed, stream, (samples,)))
        elif kind == "uniform":
            sound = noise.uniform(random.uniform(seed, stream, (samples,)))
        else:
            sound = noise.pink(random.uniform(seed, stream, (noise.pink_draws(samples),)), samples)
        present = random.happens(seed, random.stream(f"{kind} noise?"), probability)
        snr_db = random.uniform(seed, random.stream(f"{kind} noise dB"), (), *self.augment.noise_snr_db)
        return loudness.add_at_snr(audio, sound, snr_db, present)


def _unheard(labels: dict[str, Any], changed: Any) -> dict[str, Any]:
    """The labels without a teacher's embeddings of rows whose sound it never heard; `changed` is `(batch,)` bool."""
    if "teacher" not in labels:
        return labels
    return {**labels, "teacher": ops.where(changed[:, None], 0.0, labels["teacher"])}
