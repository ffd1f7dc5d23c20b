"""Recipes: every choice of a run, read from TOML.

A recipe is a delta: it `extends` another and names only what differs. `configs/base.toml` holds no values of its own
but what the defaults in `keys` already say.
"""

import difflib
import hashlib
import json
import os
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from birdtpu import storage
from birdtpu.errors import UserError
from birdtpu.keys import (
    Audio,
    Augment,
    Balance,
    Evaluate,
    Folds,
    Frontend,
    Labels,
    Model,
    Predict,
    Pseudo,
    Table,
    Train,
)

# The smallest backbone halves the frames three times.
_FEWEST_FRAMES = 8


class Recipe(Table):
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
            bool(augment.mixup_probability or augment.paste_probability or recipe.train.rank_loss)
            and recipe.train.batch_size % (8 * recipe.train.accumulate) != 0,
            "train.batch_size: must be a multiple of 8 (and train.accumulate times 8) with augment.mixup_probability, "
            "augment.paste_probability or train.rank_loss",
        ),
        (
            augment.paste_probability > 0 and (recipe.train.whole_clips or not recipe.train.frame_loss),
            "augment.paste_probability: cuts into what a whole clip's labels say; needs train.frame_loss alone",
        ),
        (
            recipe.train.rank_loss > 0 and not recipe.train.whole_clips,
            "train.rank_loss: ranks by the clips' scores, and so goes with train.clip_loss or train.segment_loss",
        ),
        (recipe.train.batch_size % recipe.train.accumulate != 0, "train.accumulate: must divide train.batch_size"),
        (
            not recipe.train.whole_clips and not recipe.train.frame_loss,
            "train.clip_loss: all losses are 0; give one of train.clip_loss, segment_loss and frame_loss a weight",
        ),
        (
            recipe.train.frame_loss > 0 and (audio.margin_seconds > 0 or augment.tempo_probability > 0),
            "train.frame_loss: annotations' times need audio.margin_seconds = 0 and augment.tempo_probability = 0",
        ),
        (
            recipe.train.frame_loss > 0 and augment.partner_probability > 0,
            "augment.partner_probability: nobody knows when the other recording's species sings; set it to 0 with "
            "train.frame_loss",
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
            recipe.train.instances > 1 and recipe.model.teacher_features > 0,
            "model.teacher_features: a teacher's embeddings are of single clips, and need train.instances = 1",
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
            (recipe.train.patience > 0 or recipe.train.plateau_epochs > 0 or recipe.train.watch != "loss")
            and recipe.folds.validation_fraction == 0
            and "validation" not in recipe.folds.split,
            "train.patience, plateau_epochs, watch: need folds.validation_fraction above 0, or a validation part in "
            "folds.split",
        ),
    )
    for wrong, message in faults:
        if wrong:
            raise UserError(f"recipe {origin}: {message}")
