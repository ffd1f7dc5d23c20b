"""The whole model on one screen: frontend -> augment -> backbone -> head."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from birdtpu.errors import UserError
from birdtpu.keys import Frontend
from birdtpu.layers.augmentation import Mixup, PitchTempo, RandomFloor, SpecAugment, crop
from birdtpu.layers.decibel import Decibel, FixedDecibel
from birdtpu.layers.dropout import seed_scope
from birdtpu.layers.image import Image
from birdtpu.layers.mel_spectrogram import MelSpectrogram
from birdtpu.layers.pcen import PCEN
from birdtpu.layers.waveform import Waveform
from birdtpu.models.backbones import BACKBONES, build_backbone
from birdtpu.models.heads import head
from birdtpu.ops import framing, instances, loudness, pooling
from birdtpu.ops.pcen import smoothing_coef_of
from birdtpu.ops.stretching import VOCODER_SMEAR_SECONDS
from birdtpu.recipe import Recipe

LABELS = ("targets", "target_mask", "weight", "frame_targets", "frame_mask", "teacher")


class SoundEventModel:
    """A recipe's model. All weights are in `network`; the rest is functions of the recipe.

    Args:
        recipe: The recipe.
        classes: Number of classes.
        weights: Initial weights of the backbone instead of the recipe's; `none` before a run's weights are loaded.
        precision: Keras' dtype policy of the network: `float32` or `mixed_bfloat16`. The log-mel, the head and all
            weights are float32 in both.
        platform: `cpu`, `gpu` or `tpu`, where it will run: the weights and the function are the same, but on a TPU
            the STFT is no FFT and some layers of a ResNet have another form (see `layers.pairs`). None: what
            Keras sees.

    Raises: UserError where a mel band would be empty, where the image's channels are not the backbone's, or as
        `build_backbone`.
    """

    def __init__(
        self,
        recipe: Recipe,
        classes: int,
        weights: str | None = None,
        precision: str = "float32",
        platform: str | None = None,
    ) -> None:
        audio, front, augment = recipe.audio, recipe.frontend, recipe.augment
        self.frames, self._front = framing.frame_count(recipe.clip_samples, front.hop_length), front
        self.instances, self.silence_db = recipe.train.instances, recipe.train.silence_db
        self.pitch_tempo = PitchTempo(
            augment.pitch_probability, augment.pitch_semitones, augment.tempo_probability, augment.tempo_rates
        )
        stft = {key: getattr(front, key) for key in ("n_fft", "hop_length", "n_mels", "f_min", "f_max", "htk")}
        stft |= {"win_length": front.win_lengths or front.win_length, "norm": front.mel_norm}
        if platform is None:
            seen = {device.partition(":")[0] for device in keras.distribution.list_devices()}
            platform = next((kind for kind in ("tpu", "gpu") if kind in seen), "cpu")
        self.mel = MelSpectrogram(
            audio.sample_rate, **stft, pitch_range=self.pitch_tempo.pitch_range, fft=platform != "tpu"
        )
        if len(self.mel.empty_bands()):
            raise UserError(
                f"frontend.n_mels: {front.n_mels} bands are too many for frontend.n_fft {front.n_fft}: "
                f"{len(self.mel.empty_bands())} would be empty; take fewer, or a higher frontend.f_min"
            )
        self.smear_frames = VOCODER_SMEAR_SECONDS * audio.sample_rate / front.hop_length
        self.standardize, self.scale = front.standardize, scale_of(front, audio.sample_rate)
        self.mixup = Mixup(
            augment.mixup_probability,
            augment.mixup_alpha,
            augment.mixup_targets == "union",
            augment.mixup_weights if augment.mixup_shares == "weights" else None,
            level=front.scale != "decibel",
        )
        self.waveform = Waveform(augment, self.mixup, front.hop_length)
        self.floor = RandomFloor(augment.floor_probability, augment.floor_max)
        self.spec_augment = SpecAugment(
            augment.time_masks, augment.time_mask_width, augment.frequency_masks, augment.frequency_mask_width
        )
        policy = keras.config.dtype_policy()
        keras.config.set_dtype_policy(precision)
        try:
            self.network = self._network(
                recipe, classes, recipe.model.weights if weights is None else weights, platform
            )
        finally:
            keras.config.set_dtype_policy(policy)

    def _network(self, recipe: Recipe, classes: int, weights: str, platform: str) -> keras.Model:
        """Scaled log-mel `(batch, frames, mels)`, or with a channel a window, to the named outputs."""
        model, front = recipe.model, recipe.frontend
        windows = len(front.win_lengths)
        log_mel = keras.Input(
            (self.frames, front.n_mels, windows) if windows else (self.frames, front.n_mels), name="log_mel"
        )
        entry = BACKBONES.get(model.backbone)
        count, *pixels = (entry.channels, entry.scale, entry.offset) if entry else (3, 1.0, 0.0)
        count = count or max(windows, 1) + front.frequency_ramp
        channels = count - front.frequency_ramp
        if channels < 1 or windows not in (0, channels):
            raise UserError(
                f"frontend.{'win_lengths' if windows else 'frequency_ramp'}: the image has {count} channels with "
                f"model.backbone {model.backbone}; give {channels} windows, or another backbone"
            )
        picture = Image(front.image_size, count, *pixels, ramp=front.frequency_ramp)(log_mel)
        synchronized = recipe.train.synchronized_batch_norm
        options = {"for_tpu": platform == "tpu", "stem_pool": model.stem_pool, "drop_path": model.drop_path}
        backbone = build_backbone(model.backbone, picture.shape[1:], weights, synchronized, **options)
        outputs = head(backbone(picture), model, classes=classes, clip_seconds=recipe.audio.clip_seconds)
        if model.teacher_features:
            # The last to be made: it leaves the other layers' first weights as they are without it.
            projection = keras.layers.Dense(model.teacher_features, dtype="float32", name="teacher")
            outputs["teacher"] = projection(outputs["embedding"])
        return keras.Model(log_mel, outputs, name="sound_event_model")

    def log_mel(self, audio: Any, gain: Any | None = None) -> Any:
        """`(batch, clip samples)` in [-1, 1], or int16 and gains `(batch,)`, to what the network takes."""
        return self.scale(self._power(audio, None, gain))

    def _power(self, audio: Any, pitch_ratio: Any | None, gain: Any | None) -> Any:
        gain = loudness.standard_gain(audio) if self.standardize else gain
        return self.mel(audio, pitch_ratio, gain)

    def log_mels(self, batch: dict[str, Any]) -> Any:
        """`(batch * clips, frames, mels)` in [0, 1] of a multiple-instance batch."""
        audio, gain = batch["audio"], batch.get("audio_gain")
        gain = gain if gain is None else ops.repeat(gain, self.instances)
        return self.log_mel(ops.reshape(audio, (-1, audio.shape[-1])), gain)

    def choose(self, batch: dict[str, Any], logits: Any) -> dict[str, Any]:
        """A multiple-instance batch to one with the best clip of each recording.

        Args:
            batch: `audio` `(batch, clips, samples)`, and `clip_mask`.
            logits: `(batch * clips, classes)` of the network on `log_mels`.
        """
        allowed = batch["clip_mask"] * instances.audible(batch["audio"], batch["clip_mask"], self.silence_db)
        logits = ops.reshape(logits, (-1, self.instances, logits.shape[-1]))
        best = instances.best(logits, batch["targets"] * batch["target_mask"], allowed)
        return {**batch, "audio": instances.take(batch["audio"], best)}

    def augmented(self, batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """A training batch to scaled log-mels and labels.

        Args:
            batch: Of the batch contract; `audio` holds the clip and its margin.

        Returns: `(batch, frames, mels)`, or with a channel a window; and the batch's labels, mixed as the sounds are.
        """
        seed = batch["seed"]
        audio, gain, labels = self.waveform(batch, {name: batch[name] for name in LABELS if name in batch})
        source_frames = framing.frame_count(audio.shape[1], self.mel.hop_length)
        pitch_ratio, start, rate = self.pitch_tempo(seed, source_frames, self.frames)
        drawn = pitch_ratio if self.pitch_tempo.pitch_probability else None
        place = {"frames": self.frames, "smear_frames": self.smear_frames}
        power = crop(self._power(audio, drawn, gain), pitch_ratio, start, rate, **place)
        if self.mixup.probability and not self.waveform.mixes:
            power, labels = self.mixup(power, labels, seed)
        image = self.scale(power)
        if self.floor.probability:
            image = self.floor(image, seed)
        return self.spec_augment(image, seed), labels

    def __call__(self, audio: Any) -> dict[str, Any]:
        """Outputs at inference.

        Args:
            audio: `(batch, clip samples)` in [-1, 1].

        Returns: probabilities `clipwise` `(batch, classes)`, `segmentwise` and, of an attention head, `norm_att`
        `(batch, segments, classes)`, `framewise` `(batch, frames, classes)`: the segments' laid out over the log-mel's
        frames; `clipwise_logits` and `segmentwise_logits`; `embedding` `(batch, features)`; and with
        `model.teacher_features`, `teacher` of that length: in the direction that its teacher's embedding would have.
        """
        return self.outputs(self.log_mel(audio))

    def outputs(self, log_mel: Any) -> dict[str, Any]:
        """Outputs at inference of a scaled log-mel `(batch, frames, mels)`."""
        outputs = self.network(log_mel, training=False)
        return {**outputs, "framewise": pooling.over_frames(outputs["segmentwise"], self.frames)}

    @property
    def log_mel_settings(self) -> tuple:
        """What `log_mel` is a function of, beside the audio: models with equal ones have the same log-mel."""
        return self.mel.sample_rate, self.mel.fft, self._front.model_copy(update=_OF_THE_IMAGE)


# What the network does with a log-mel is its own.
_OF_THE_IMAGE = {"image_size": None, "frequency_ramp": False}


def outputs_of_all(models: Sequence[SoundEventModel], audio: Any) -> list[dict[str, Any]]:
    """Outputs at inference of several models for the same clips; those with the same log-mel share one."""
    log_mels: dict[tuple, Any] = {}
    found = []
    for model in models:
        settings = model.log_mel_settings
        if settings not in log_mels:
            log_mels[settings] = model.log_mel(audio)
        found.append(model.outputs(log_mels[settings]))
    return found


def scale_of(front: Frontend, sample_rate: int) -> keras.layers.Layer:
    """The layer from mel power to an image, by `frontend.scale`."""
    if front.scale == "decibel":
        return Decibel(front.top_db)
    if front.scale == "fixed_decibel":
        return FixedDecibel(front.db_offset, front.db_range)
    names = ("gain", "bias", "power", "eps", "amplitude_scale", "magnitude", "start", "half")
    slow = smoothing_coef_of(front.pcen_time_constant_seconds, sample_rate / front.hop_length)
    return PCEN(front.pcen_smoothing_coef or slow, **{name: getattr(front, f"pcen_{name}") for name in names})


def pcm_to_float(batch: dict[str, Any]) -> Any:
    """The batch's audio as float32: int16 is scaled by `audio_gain` on the device."""
    return loudness.to_float(batch["audio"], batch.get("audio_gain"))


def clip_scores(outputs: dict[str, Any], head: str) -> Any:
    """One score a class from a clip's outputs: `(batch, classes)`.

    Args:
        outputs: Of a `SoundEventModel`.
        head: `clipwise`; `segmentwise`: the highest segment; `attention`: the highest norm_att * segmentwise.

    Raises: UserError where the head is unknown.
    """
    if head == "clipwise":
        return outputs["clipwise"]
    if head == "segmentwise":
        return ops.max(outputs["segmentwise"], axis=1)
    if head == "attention":
        if "norm_att" not in outputs:
            raise UserError("head 'attention': a model of another head has none; take clipwise or segmentwise")
        return ops.max(outputs["segmentwise"] * outputs["norm_att"], axis=1)
    raise UserError(f"head {head!r}: one of clipwise, segmentwise, attention")


def seeded(network: keras.Model, seed: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a network, or a function of it, where its dropout reads the examples' seeds."""
    with seed_scope(seed):
        return network(*args, **kwargs)
