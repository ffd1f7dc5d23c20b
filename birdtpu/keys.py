"""The keys of a recipe: a frozen model a table, with every key's kind, bounds, default and meaning."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=1 << 32)]
Head = Literal["clipwise", "segmentwise", "attention"]

_THRESHOLDS: dict[Head, float] = {"clipwise": 0.5, "segmentwise": 0.9, "attention": 0.15}


class Table(BaseModel):
    """A table of a recipe: unknown keys and wrong types are errors, values do not change.

    Only the outside of a tuple is not `strict`, because TOML has lists alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class Audio(Table):
    """What stands in the shards, and how long a clip is."""

    sample_rate: Annotated[int, Field(ge=1000)] = Field(
        default=32000, description="Hz; every recording is resampled to it"
    )
    channel: Literal["mix", "left", "right"] = Field(default="mix", description="which channel of a stereo recording")
    record_seconds: Positive = Field(
        default=12.0, description="longest stretch of a recording in one record of a shard"
    )
    min_seconds: NotNegative = Field(default=0.5, description="shorter recordings are named as failures")
    clip_seconds: Positive = Field(default=5.0, description="what the model sees at once")
    margin_seconds: NotNegative = Field(
        default=1.0, description="more than a clip that training reads, for tempo and crop"
    )


class Labels(Table):
    """Which labels count."""

    classes: str = Field(
        default="", description="path of a class list (CSV with the column code); empty: the primary labels"
    )
    synonyms: str = Field(
        default="",
        description="path of a CSV with the columns scientific_name and synonym, for --init-from across years",
    )
    filter_to_classes: bool = Field(
        default=False, description="leave out recordings whose primary label is not in the list"
    )
    secondary: Literal["positive", "unknown", "negative"] = Field(
        default="positive", description="what a usable secondary label says of its class"
    )
    secondary_below_seconds: NotNegative = Field(
        default=40.0, description="secondary labels are used only from recordings shorter than this"
    )
    timed: Literal["sections", "ignore"] = Field(
        default="sections",
        description="recordings with timed labels: train on each labelled stretch, or ignore the times",
    )
    nocall: str = Field(
        default="",
        description="a prepared folder (or kaggle:owner/slug) of recordings without any of the species, whatever "
        "their labels say, to be trained on and never held out; where labels.classes has the code nocall, that is "
        "present in them",
    )
    min_rating: NotNegative = Field(default=0.0, description="leave out recordings rated lower (unrated ones stay)")
    weight_by_rating: bool = Field(default=False, description="weigh an example's loss by its recording's rating")


class Folds(Table):
    """How recordings are split."""

    count: Annotated[int, Field(ge=2)] = Field(default=5, description="folds, where the table or a CSV gives none")
    rare_at_most: Annotated[int, Field(ge=0)] = Field(
        default=0, description="species with at most so many recordings stand in every training set and in no other"
    )
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="share of the training recordings, cut by group, for the best epoch and early stopping"
    )
    split: dict[Literal["train", "validation", "test"], Positive] = Field(
        default={}, description="one split by these shares instead of folds; they add up to 1"
    )
    seed: Seed = 0


class Balance(Table):
    """How many samples a species has in an epoch; 0 turns a bound off."""

    down_to: Annotated[int, Field(ge=0)] = Field(default=80, description="drop a species' recordings above this")
    keep: Literal["shortest", "recent"] = Field(
        default="shortest",
        description="which stay: the shortest; or those of the first data set, then of the second, each the most "
        "recent first",
    )
    first_seconds: NotNegative = Field(
        default=0.0, description="train on the first so many seconds of each recording; 0: on all of it"
    )
    last_seconds: NotNegative = Field(default=0.0, description="and, or instead, on the last so many")
    up_to: Annotated[int, Field(ge=0)] = Field(default=60, description="cut a species' longest sections below this")
    min_section_seconds: NotNegative = Field(default=0.0, description="sections are not cut shorter; 0: one clip")
    repeat: bool = Field(default=False, description="repeat samples of a species that cutting leaves short")
    sample_power: Probability = Field(
        default=0.0,
        description="repeat the samples of rarer species: each counts by count ^ -power; 0: all alike, 1: all species "
        "as often",
    )


class Pseudo(Table):
    """Pseudo-labelled clips beside the labelled samples (`train --pseudo`)."""

    ratio: Positive = Field(default=1.0, description="pseudo-labelled samples for each labelled one, in every step")
    weight: Positive = Field(default=1.0, description="of their loss")


class Frontend(Table):
    """Waveform to image."""

    n_fft: Count = 2048
    win_length: Count = 2048
    win_lengths: tuple[Count, ...] = Field(
        default=(),
        strict=False,
        description="instead of win_length: several windows, a channel of the image each (long ones tell frequencies "
        "apart, short ones times); with frequency_ramp as many as the backbone's channels less one",
    )
    hop_length: Count = 320
    n_mels: Count = 128
    f_min: NotNegative = Field(default=50.0, description="Hz")
    f_max: Positive = Field(default=14000.0, description="Hz")
    htk: bool = Field(default=False, description="HTK's mel scale instead of Slaney's")
    mel_norm: Literal["slaney", "none"] = Field(
        default="slaney", description="bands of equal area in hertz, or of equal height (torchaudio's default)"
    )
    standardize: bool = Field(
        default=False,
        description="divide each clip's samples by their standard deviation (in training: by that of all that was "
        "read, margin and all that was added)",
    )
    scale: Literal["decibel", "fixed_decibel", "pcen"] = Field(
        default="decibel",
        description="mel power to an image: dB below the clip's peak; dB on a fixed scale (best with standardize); or "
        "per-channel energy normalization, p / (p + pcen_half)",
    )
    top_db: Positive = Field(default=80.0, description="decibel: dynamic range below each clip's peak, dB")
    db_offset: float = Field(default=40.0, description="fixed_decibel: the image is (dB - db_offset) / db_range")
    db_range: Positive = Field(default=80.0, description="fixed_decibel: see db_offset")
    pcen_gain: Probability = Field(default=0.98, description="how much of a band's own level is taken away")
    pcen_bias: Positive = Field(default=2.0, description="of the compression (e + bias) ** power")
    pcen_power: Positive = Field(default=0.5, description="of the compression; a root of 2 is 0.5")
    pcen_time_constant_seconds: Positive = Field(default=0.4, description="how fast the level's average follows")
    pcen_smoothing_coef: Probability = Field(
        default=0.0, description="instead of the time constant: the average's share of a new frame; 0: time constant"
    )
    pcen_eps: Positive = Field(default=1e-6, description="added to the average")
    pcen_amplitude_scale: Positive = Field(
        default=2.0**31, description="samples in [-1, 1] are taken times this; librosa advises 2 ** 31"
    )
    pcen_magnitude: bool = Field(
        default=True, description="of the square roots of mel power, as librosa advises, or of mel power"
    )
    pcen_start: Literal["one", "frame"] = Field(
        default="one",
        description="the average before the first frame: 1, as in librosa, by which a clip begins with a flash of the "
        "time constant's length; or the first frame",
    )
    pcen_half: Positive = Field(
        default=1.0, description="the value that becomes 0.5 of the image; far smaller for a small amplitude_scale"
    )
    frequency_ramp: bool = Field(
        default=False, description="the image's last channel is each pixel's place in frequency, from 0 to 1"
    )
    image_size: tuple[Count, Count] | None = Field(
        default=None,
        strict=False,
        description="pixels of time and frequency; none: the log-mel's own (write [] to unset)",
    )


class Augment(Table):
    """Augmentation in the training step; a probability of 0 turns one off."""

    mixup_probability: Probability = 0.5
    mixup_alpha: Positive = Field(default=0.5, description="shares are Beta(alpha, alpha)")
    mixup_targets: Literal["blend", "union"] = Field(
        default="blend", description="mean by share, or the larger of the two"
    )
    mixup_on: Literal["power", "waveform"] = Field(
        default="power",
        description="mix mel power, each sound at its own pitch, tempo and place (a few products); or waveforms, "
        "which also interfere (converts every sample to float; pitch and tempo are then the mixture's)",
    )
    mixup_shares: Literal["beta", "weights"] = Field(
        default="beta", description="how loud the partner is: Beta shares of power, or an amplitude from mixup_weights"
    )
    mixup_weights: tuple[NotNegative, NotNegative] = Field(
        default=(0.2, 1.0),
        strict=False,
        description="the partner's amplitude beside the example's 1, both at one level",
    )
    partner_probability: Probability = Field(
        default=0.0, description="blend in a recording of the same species (partner_audio), both at one level"
    )
    partner_weights: tuple[Probability, Probability] = Field(
        default=(0.5, 1.0), strict=False, description="the example's own weight w; the partner's is 1 - w"
    )
    background_probability: Probability = Field(default=0.0, description="add a background (background_audio)")
    background: str = Field(
        default="", description="where backgrounds come from: a folder that prepare wrote, or kaggle:owner/slug"
    )
    background_snr_db: tuple[float, float] = Field(
        default=(0.0, 30.0), strict=False, description="of the example over the background, by their RMS"
    )
    gaussian_noise_probability: Probability = 0.0
    uniform_noise_probability: Probability = 0.0
    pink_noise_probability: Probability = 0.0
    noise_snr_db: tuple[float, float] = Field(
        default=(5.0, 40.0), strict=False, description="of the example over each noise, by their RMS"
    )
    flip_absent_probability: Probability = Field(
        default=0.0, description="play a clip in which nothing is present backwards"
    )
    paste_probability: Probability = Field(
        default=0.0,
        description="cut another example's annotated stretch out and paste it over this one, sound and labels",
    )
    loudness_probability: Probability = Field(
        default=0.0, description="scale the waveform; nothing to scales that do not see the level"
    )
    loudness_db: tuple[float, float] = Field(default=(-20.0, 0.0), strict=False, description="by so many dB")
    floor_probability: Probability = Field(default=0.0, description="cut away what is faint in the image")
    floor_max: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.46, description="the highest floor t; the image is then (max(x, t) - t) / (1 - t)"
    )
    pitch_probability: Probability = 0.5
    pitch_semitones: tuple[float, float] = Field(default=(-2.0, 3.0), strict=False)
    tempo_probability: Probability = 0.5
    tempo_rates: tuple[Positive, Positive] = Field(default=(0.9, 1.2), strict=False)
    time_masks: Annotated[int, Field(ge=0)] = 2
    time_mask_width: Probability = Field(default=0.1, description="the widest, as a share of the clip")
    frequency_masks: Annotated[int, Field(ge=0)] = 2
    frequency_mask_width: Probability = Field(default=0.1, description="the widest, as a share of the bands")


class Model(Table):
    """Backbone and head."""

    backbone: str = "ResNet50"
    weights: str = Field(
        default="none",
        description="none, imagenet, or the path of a backbone's *.weights.h5 or, of timm's networks, *.safetensors",
    )
    stem_pool: bool = Field(default=True, description="false: without the pooling of ResNet34's stem, twice as fine")
    drop_path: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None,
        description="share of examples that skip the last residual branch, rising to it from the first; none: the "
        "backbone's own, 0.2 for EfficientNet and else 0 (write [] to unset)",
    )
    head: Literal["attention", "mean", "sliding"] = Field(
        default="attention",
        description="attention over segments; mean over time and frequency; or a classifier that slides over time",
    )
    window_seconds: Positive = Field(default=2.0, description="what the sliding head sees at once")
    features: Count = Field(default=1024, description="units of the layer before the scores (not of the head mean)")
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    attention: Literal["tanh", "soft", "clamp"] = Field(
        default="tanh", description="how the attention's logits are bounded"
    )
    teacher_features: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="length of a teacher's saved embeddings (`train --teacher`), which a linear layer on the "
        "embedding learns to say; 0: no teacher",
    )


class Train(Table):
    """The training run."""

    epochs: Count = 30
    batch_size: Count = Field(default=32, description="over all replicas")
    batch_size_per_replica: Annotated[int, Field(ge=0)] = Field(
        default=0, description="instead of batch_size: the batch then grows with the replicas; 0: batch_size"
    )
    learning_rate_scaling: Literal["none", "linear", "sqrt"] = Field(
        default="none", description="how learning rates follow a batch that is not batch_size"
    )
    accumulate: Count = Field(default=1, description="parts of a batch whose gradients are added up, for less memory")
    steps_per_epoch: Annotated[int, Field(ge=0)] = Field(default=0, description="0: once through the plan's samples")
    learning_rate: Positive = 1e-3
    min_learning_rate: NotNegative = 1e-8
    warmup_fraction: Probability = Field(default=0.1, description="share of the steps in which the learning rate rises")
    weight_decay: NotNegative = Field(default=0.01, description="AdamW's, on kernels only")
    clip_norm: NotNegative = Field(default=0.0, description="largest norm of the gradient; 0: not clipped")
    clip_value: NotNegative = Field(default=0.0, description="largest value in the gradient; 0: not clipped")
    label_smoothing: Probability = 0.0
    pos_weight: Positive = Field(default=1.0, description="factor of the loss of what is present")
    focal_gamma: NotNegative = Field(
        default=0.0, description="focal loss: what is nearly right counts less; 0: plain cross-entropy"
    )
    clip_loss: NotNegative = Field(default=1.0, description="weight of the loss on the clip's score")
    segment_loss: NotNegative = Field(default=0.0, description="weight of the loss on the highest segment")
    frame_loss: NotNegative = Field(
        default=0.0, description="weight of the loss on the segments inside annotations' times"
    )
    rank_loss: NotNegative = Field(
        default=0.0,
        description="weight of a loss on pairs (SoftAUC): of a species, clips with it above those without it, within "
        "groups of eight",
    )
    teacher_loss: Positive = Field(
        default=1.0,
        description="with model.teacher_features: weight of the loss on the teacher's embedding, 1 - cosine",
    )
    instances: Count = Field(
        default=1,
        description="multiple-instance training: clips of a recording, of which the one where its species score "
        "highest is trained on; 1: off",
    )
    silence_db: Positive = Field(
        default=60.0, description="with instances: a clip so far below the recording's loudest is never chosen"
    )
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.999, description="of the weights that are kept; 0: none"
    )
    patience: Annotated[int, Field(ge=0)] = Field(
        default=0, description="epochs without a better validation loss before stopping; 0: never"
    )
    plateau_epochs: Annotated[int, Field(ge=0)] = Field(
        default=0, description="epochs without a better validation loss before the learning rate is lowered; 0: never"
    )
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5, description="by which it is lowered, on top of its schedule"
    )
    watch: Literal["loss", "balanced"] = Field(
        default="loss",
        description="what shall get better: the validation loss; or the mean of the cross-entropies of what is present "
        "and of what is absent",
    )
    synchronized_batch_norm: bool = Field(
        default=False, description="batch statistics over all replicas (TensorFlow; on JAX they always are)"
    )
    precision: Literal["auto", "float32", "mixed_bfloat16"] = Field(
        default="auto", description="of the network; auto: mixed_bfloat16 on a TPU, else float32"
    )
    jit: Literal["auto", "on", "off"] = Field(default="auto", description="XLA; auto: everywhere but TensorFlow on CPU")
    seed: Seed = 0

    @property
    def whole_clips(self) -> bool:
        """Whether labels of whole clips are learnt, and not of frames alone."""
        return self.clip_loss > 0 or self.segment_loss > 0


class Predict(Table):
    """From a model's outputs to species."""

    hop_seconds: Annotated[float, Field(ge=0.01)] = Field(default=2.5, description="from one clip's start to the next")
    batch_size: Count = 32
    head: Head = Field(
        default="segmentwise",
        description="a clip's score: clipwise; the highest segment; the highest norm_att * segmentwise",
    )
    thresholds: dict[Head, Probability] = Field(default=_THRESHOLDS, description="for each head")

    @field_validator("thresholds", mode="before")
    @classmethod
    def _over_the_defaults(cls, value: Any) -> Any:
        return {**_THRESHOLDS, **value} if isinstance(value, dict) else value


class Evaluate(Table):
    """How a run is scored."""

    top_clips: Count = Field(default=3, description="a recording's score is the mean of so many of its best clips")
    bootstrap: Count = Field(default=1000, description="draws of the interval")
