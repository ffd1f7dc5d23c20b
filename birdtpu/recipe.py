"""Recipes: every choice of a run, as frozen models read from TOML.

A recipe is a delta: it `extends` another and names only what differs. `configs/base.toml` holds no values of its own
but what the defaults below already say.
"""

import difflib
import hashlib
import json
import os
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from birdtpu import storage
from birdtpu.errors import UserError

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=1 << 32)]
Head = Literal["clipwise", "segmentwise", "attention"]

_THRESHOLDS: dict[Head, float] = {"clipwise": 0.5, "segmentwise": 0.9, "attention": 0.15}
# The smallest backbone halves the frames three times.
_FEWEST_FRAMES = 8


class Section(BaseModel):
    """A table of a recipe: unknown keys and wrong types are errors, values do not change.

    Only the outside of a tuple is not `strict`, because TOML has lists alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class Audio(Section):
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


class Labels(Section):
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
    min_rating: NotNegative = Field(default=0.0, description="leave out recordings rated lower (unrated ones stay)")
    weight_by_rating: bool = Field(default=False, description="weigh an example's loss by its recording's rating")


class Folds(Section):
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


class Balance(Section):
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


class Pseudo(Section):
    """Pseudo-labelled clips beside the labelled samples (`train --pseudo`)."""

    ratio: Positive = Field(default=1.0, description="pseudo-labelled samples for each labelled one, in every step")
    weight: Positive = Field(default=1.0, description="of their loss")


class Frontend(Section):
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


class Augment(Section):
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


class Model(Section):
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


class Train(Section):
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
    synchronized_batch_norm: bool = Field(
        default=False, description="batch statistics over all replicas (TensorFlow; on JAX they always are)"
    )
    precision: Literal["auto", "float32", "mixed_bfloat16"] = Field(
        default="auto", description="of the network; auto: mixed_bfloat16 on a TPU, else float32"
    )
    jit: Literal["auto", "on", "off"] = Field(default="auto", description="XLA; auto: everywhere but TensorFlow on CPU")
    seed: Seed = 0


class Predict(Section):
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


class Evaluate(Section):
    """How a run is scored."""

    top_clips: Count = Field(default=3, description="a recording's score is the mean of so many of its best clips")
    bootstrap: Count = Field(default=1000, description="draws of the interval")


class Recipe(Section):
    """A resolved recipe. `hash` names its content."""

    name: str
    audio: Audio = Audio()
    labels: Labels = Labels()
    folds: Folds = Folds()
    balance: Balance = Balance()
    pseudo: Pseudo = Pseudo()
    frontend: Frontend = Frontend()
    augment: Augment = Augment()
    model: Model = Model()
    train: Train = Train()
    predict: Predict = Predict()
    evaluate: Evaluate = Evaluate()

    @property
    def clip_samples(self) -> int:
        """Samples of a clip."""
        return round(self.audio.clip_seconds * self.audio.sample_rate)

    @property
    def source_samples(self) -> int:
        """Samples that training reads for a clip: the clip and its margin."""
        return round((self.audio.clip_seconds + self.audio.margin_seconds) * self.audio.sample_rate)

    @property
    def hash(self) -> str:
        """12 hex digits of the SHA-256 of what differs from the defaults (but `name`), in a canonical form.

        So a key that a later version adds leaves the hash of an earlier recipe as it was.
        """
        text = json.dumps(self.model_dump(exclude={"name"}, exclude_defaults=True), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_toml(self) -> str:
        """The recipe as TOML that `load_recipe` reads back to an equal recipe."""
        import tomli_w

        tables = {key: value for key, value in self.model_dump().items() if isinstance(value, dict)}
        for table in tables.values():
            for key in [key for key, value in table.items() if value is None]:
                table[key] = []
        return tomli_w.dumps({"name": self.name, **tables})


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in _configs().iterdir() if path.name.endswith(".toml"))


def load_recipe(name: str, settings: list[str] | tuple[str, ...] = ()) -> Recipe:
    """A recipe by name or path, resolved.

    Args:
        name: The name of a shipped recipe, or the path of a TOML file.
        settings: Changes as `table.key=value`; the value is TOML, and a bare word is text.

    Raises: UserError that names the file, the key and the nearest valid key.
    """
    tree, origin = _resolve(name, ())
    for setting in settings:
        tree = _merge(tree, _parse(tree, setting))
        origin = f"{origin} with --set {setting}"
    return _validate(tree, origin)


def recipe_of(recipe: Recipe | storage.PathLike, settings: Sequence[str]) -> Recipe:
    """A recipe, or the one of this name or path with the settings.

    Raises: UserError as `load_recipe` does, and where settings come with a finished recipe.
    """
    if not isinstance(recipe, Recipe):
        return load_recipe(os.fspath(recipe), list(settings))
    if settings:
        raise UserError(
            f"settings {', '.join(settings)}: a Recipe takes no more of them; give them to load_recipe, which made it"
        )
    return recipe


def _configs() -> Any:
    """Where the shipped recipes lie: inside the wheel, or at the top of a source tree."""
    inside = resources.files("birdtpu") / "configs"
    return inside if inside.is_dir() else Path(__file__).resolve().parents[1] / "configs"


def _resolve(name: str, seen: tuple[str, ...], base: str | None = None) -> tuple[dict, str]:
    if name in seen:
        raise UserError(f"recipe {name}: extends itself ({' -> '.join((*seen, name))})")
    path = storage.join(base, name) if base and name.endswith(".toml") and not Path(name).is_absolute() else name
    if name.endswith(".toml"):
        if not storage.exists(path):
            raise UserError(f"recipe {path}: no such file")
        text, folder = _read(path), str(Path(path).parent)
    elif name in recipe_names():
        path = f"{name}.toml"
        text, folder = (_configs() / path).read_text("utf-8"), None
    else:
        near = difflib.get_close_matches(name, recipe_names(), 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(recipe_names())}"
        raise UserError(f"recipe {name!r}: no recipe of that name ({hint}) and no path to a .toml file")
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"recipe {path}: not TOML: {error}") from error
    tree.setdefault("name", Path(path).stem)
    parent = tree.pop("extends", None)
    if parent is None:
        return tree, str(path)
    if not isinstance(parent, str):
        raise UserError(f"recipe {path}: extends must be the name or path of one recipe")
    lower, _ = _resolve(parent, (*seen, name), folder)
    return _merge(lower, tree), str(path)


def _merge(lower: dict, upper: dict) -> dict:
    out = dict(lower)
    for key, value in upper.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _merge(out[key], value) if both else value
    return out


def _read(path: str) -> str:
    try:
        return storage.read_text(path).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(f"recipe {path}: not UTF-8 (byte {error.start}): save it as UTF-8") from error


def _parse(tree: dict, setting: str) -> dict:
    """A setting as a tree of its own, to be merged into `tree`."""
    key, equals, text = setting.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"--set {setting}: write it as table.key=value, for example train.learning_rate=1e-3")
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for part in parts[:-1]:
        tree = tree.get(part, {})
        if not isinstance(tree, dict):
            raise UserError(f"--set {setting}: {part} is a value, not a table")
    for part in reversed(parts):
        value = {part: value}
    return value


def _validate(tree: dict, origin: str) -> Recipe:
    for table, key in (("frontend", "image_size"), ("model", "drop_path")):
        section = tree.get(table)
        if isinstance(section, dict) and section.get(key) == []:
            # TOML has no null.
            tree = {**tree, table: {**section, key: None}}
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"recipe {origin}: {_explain(error.errors()[0])}") from None
    _check(recipe, origin)
    return recipe


def _explain(problem: Any) -> str:
    """One line on the first problem: the key, what is wrong, the nearest valid key."""
    # pydantic calls a wrong key of a dict so.
    where = [str(part) for part in problem["loc"] if part != "[key]"]
    key = ".".join(where)
    if problem["type"] != "extra_forbidden":
        return f"{key}: {problem['msg'][0].lower()}{problem['msg'][1:]}, not {problem['input']!r}"
    model: Any = Recipe
    for part in where[:-1]:
        model = model.model_fields[part].annotation
    sections: dict[str, Any] = {name: field.annotation for name, field in Recipe.model_fields.items() if name != "name"}
    tables = {name: section.model_fields for name, section in sections.items()}
    elsewhere = [f"{table}.{where[-1]}" for table, keys in tables.items() if where[-1] in keys]
    near = difflib.get_close_matches(where[-1], model.model_fields, 1, cutoff=0.5)
    hints = elsewhere[:1] or [".".join([*where[:-1], word]) for word in near]
    if hints:
        return f"unknown key {key}; did you mean {hints[0]}?"
    return f"unknown key {key}; known: {', '.join(model.model_fields)}"


def _check(recipe: Recipe, origin: str) -> None:
    """What no single key can say."""
    audio, frontend, augment = recipe.audio, recipe.frontend, recipe.augment
    labels, balance = recipe.labels, recipe.balance
    faults = (
        (frontend.f_min >= frontend.f_max, "frontend.f_min: must lie below frontend.f_max"),
        (
            frontend.f_max > audio.sample_rate / 2,
            f"frontend.f_max: above half of audio.sample_rate ({audio.sample_rate / 2:g} Hz)",
        ),
        (
            recipe.clip_samples < (_FEWEST_FRAMES - 1) * frontend.hop_length,
            f"frontend.hop_length: so long that a clip has fewer than {_FEWEST_FRAMES} frames",
        ),
        (
            not frontend.win_lengths and frontend.win_length > frontend.n_fft,
            "frontend.win_length: longer than frontend.n_fft",
        ),
        (max(frontend.win_lengths, default=0) > frontend.n_fft, "frontend.win_lengths: longer than frontend.n_fft"),
        (
            augment.floor_probability > 0 and frontend.scale == "fixed_decibel",
            "augment.floor_probability: needs an image between 0 and 1, and frontend.scale = 'fixed_decibel' is not",
        ),
        (
            augment.loudness_probability > 0 and (frontend.scale == "decibel" or frontend.standardize),
            "augment.loudness_probability: changes nothing where frontend.scale = 'decibel' or frontend.standardize "
            "take the level away; set it to 0",
        ),
        (
            frontend.standardize and frontend.scale == "decibel",
            "frontend.standardize: changes nothing with frontend.scale = 'decibel', which is relative to the peak",
        ),
        (
            audio.record_seconds < audio.clip_seconds * recipe.train.instances + audio.margin_seconds,
            "audio.record_seconds: shorter than a clip and its margin, or than train.instances clips",
        ),
        *(
            (getattr(augment, key)[0] > getattr(augment, key)[1], f"augment.{key}: low end above the high end")
            for key in (
                *("pitch_semitones", "tempo_rates", "mixup_weights", "partner_weights", "background_snr_db"),
                *("noise_snr_db", "loudness_db"),
            )
        ),
        (
            augment.mixup_probability > 0 and recipe.train.batch_size % (8 * recipe.train.accumulate) != 0,
            "train.batch_size: must be a multiple of 8 (and train.accumulate times 8) with augment.mixup_probability",
        ),
        (recipe.train.batch_size % recipe.train.accumulate != 0, "train.accumulate: must divide train.batch_size"),
        (
            recipe.train.clip_loss == recipe.train.segment_loss == recipe.train.frame_loss == 0,
            "train.clip_loss: all losses are 0; give one of train.clip_loss, segment_loss and frame_loss a weight",
        ),
        (
            recipe.train.frame_loss > 0 and (audio.margin_seconds > 0 or augment.tempo_probability > 0),
            "train.frame_loss: annotations' times need audio.margin_seconds = 0 and augment.tempo_probability = 0",
        ),
        (
            recipe.train.frame_loss > 0 and labels.timed != "sections",
            "train.frame_loss: needs labels.timed = 'sections'",
        ),
        (
            recipe.train.instances > 1 and (audio.margin_seconds > 0 or recipe.train.frame_loss > 0),
            "train.instances: several clips of a recording need audio.margin_seconds = 0 and train.frame_loss = 0",
        ),
        (
            recipe.predict.head == "attention" and recipe.model.head != "attention",
            f"predict.head: attention is no score of model.head {recipe.model.head}; take clipwise or segmentwise",
        ),
        (
            recipe.model.head == "sliding" and recipe.model.window_seconds > audio.clip_seconds,
            "model.window_seconds: longer than audio.clip_seconds",
        ),
        (
            any(0 < seconds < audio.clip_seconds for seconds in (balance.first_seconds, balance.last_seconds)),
            "balance.first_seconds, balance.last_seconds: shorter than audio.clip_seconds",
        ),
        (recipe.predict.hop_seconds > audio.clip_seconds, "predict.hop_seconds: longer than a clip leaves gaps"),
        (
            recipe.train.patience > 0
            and recipe.folds.validation_fraction == 0
            and "validation" not in recipe.folds.split,
            "train.patience: needs folds.validation_fraction above 0, or a validation part in folds.split",
        ),
    )
    for wrong, message in faults:
        if wrong:
            raise UserError(f"recipe {origin}: {message}")
