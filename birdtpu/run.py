"""A run folder as paths and files: it builds nothing."""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from birdtpu import storage
from birdtpu.errors import UserError
from birdtpu.keys import Head, Probability
from birdtpu.recipe import Recipe, load_recipe
from birdtpu.species import ClassList

WEIGHTS = "model.weights.h5"
THRESHOLDS = "thresholds.json"
# Nobody shall change them after the training: the order of the outputs, and what was learnt from.
_FIXED = ("classes.csv", "plan.csv", "seen_before.txt")


class _Info(BaseModel):
    """What `run.json` holds, among other things."""

    recipe_sha256: str
    data: list[str]
    fold: str | None = None
    weights_sha256: str = ""
    files_sha256: dict[str, str] = {}


_INFO = TypeAdapter(_Info)
_THRESHOLDS = TypeAdapter(dict[str, dict[str, Probability]])


@dataclass(frozen=True)
class Run:
    """What one training left behind.

    Args:
        folder: Where it lies.
        recipe: Resolved (`recipe.toml`).
        classes: In the order of the model's outputs (`classes.csv`).
        info: `run.json`: version, recipe hash, data folders and the checksums of their manifests, fold, backend; the
            weights' sha256 once there are any.
    """

    folder: str
    recipe: Recipe
    classes: ClassList
    info: dict[str, Any] = field(default_factory=dict)

    def path(self, *names: str) -> str:
        """A file of the run."""
        return storage.join(self.folder, *names)

    @property
    def finished(self) -> bool:
        """Whether its weights are there."""
        return "weights_sha256" in self.info

    def save(self) -> None:
        """Write recipe, classes and `run.json`, the last one last."""
        text = self.recipe.to_toml()
        storage.write_text(self.path("recipe.toml"), text)
        self.classes.to_csv(self.path("classes.csv"))
        info = {**self.info, "recipe": self.recipe.name, "recipe_hash": self.recipe.hash}
        # Of the bytes: a later version may have other defaults, from which the hash would be another.
        info["recipe_sha256"] = _sha256(text.encode())
        there = [name for name in _FIXED if storage.exists(self.path(name))]
        info["files_sha256"] = {name: _sha256(storage.read_bytes(self.path(name))) for name in there}
        storage.write_text(self.path("run.json"), json.dumps(info, indent=2, sort_keys=True) + "\n")

    def save_weights(self, network: Any) -> "Run":
        """Write a network's weights and their sha256; returns the finished run."""
        with tempfile.TemporaryDirectory() as folder:
            network.save_weights(Path(folder, WEIGHTS))
            data = Path(folder, WEIGHTS).read_bytes()
        storage.write_bytes(self.path(WEIGHTS), data)
        run = Run(self.folder, self.recipe, self.classes, {**self.info, "weights_sha256": _sha256(data)})
        run.save()
        return run

    def checked(self, name: str) -> str:
        """The path of a file of the run. Raises UserError where it was changed since the training ended."""
        path, noted = self.path(name), self.info.get("files_sha256", {}).get(name)
        if self.finished and noted and noted != _sha256(storage.read_bytes(path)):
            raise UserError(f"run {self.folder}: {name} was changed after training; copy the run again")
        return path

    def weights(self) -> bytes:
        """The bytes of the weights. Raises UserError where they are missing, or are not those that were saved."""
        path = self.path(WEIGHTS)
        if not self.finished or not storage.exists(path):
            raise UserError(f"run {self.folder}: no weights ({WEIGHTS}); train it again with birdtpu train")
        data = storage.read_bytes(path)
        if _sha256(data) != self.info["weights_sha256"]:
            raise UserError(f"{path}: not the weights that were saved (sha256 differs); copy or train the run again")
        return data

    def load_weights(self, network: Any) -> None:
        """Load the weights into a network built from the recipe.

        Raises: UserError where they are missing, are not the bytes that were saved, or do not fit.
        """
        self.weights()
        load_weights(network, self.path(WEIGHTS), f"the run's recipe {self.recipe.name}")

    def thresholds(self, head: Head) -> dict[str, float]:
        """A threshold a class: the run's saved ones (`thresholds.json`), else the recipe's for this head.

        Raises: UserError where the saved ones are damaged.
        """
        fallback = self.recipe.predict.thresholds[head]
        saved = self._saved_thresholds().get(head, {})
        return {code: float(saved.get(code, fallback)) for code in self.classes.codes}

    def save_thresholds(self, head: Head, thresholds: Mapping[str, float]) -> None:
        """Save a head's thresholds, in place of its earlier ones; other heads keep theirs.

        Args:
            head: Whose scores they are for.
            thresholds: One a code, in 0..1.

        Raises: UserError where the saved ones are damaged.
        """
        every = {**self._saved_thresholds(), head: dict(thresholds)}
        _THRESHOLDS.validate_python(every, strict=True)
        text = json.dumps(every, indent=2, sort_keys=True, ensure_ascii=False)
        storage.write_text(self.path(THRESHOLDS), text + "\n")

    def _saved_thresholds(self) -> dict[str, dict[str, float]]:
        path = self.path(THRESHOLDS)
        return _checked(_THRESHOLDS, path, "mend it, or remove it for the recipe's") if storage.exists(path) else {}


def load_weights(network: Any, path: str, what: str) -> None:
    """Load a `*.weights.h5` into a network, all of it or nothing.

    Args:
        network: A built Keras model.
        path: The file; for `gs://`, its bytes go through a temporary file.
        what: What the network is, for the message.

    Raises: UserError where the file is no weights file or does not fit.
    """
    try:
        # Keras only warns of layers that the file lacks, and leaves them as they were.
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.filterwarnings("error", category=UserWarning)
            if storage.is_remote(path):
                local = Path(folder, WEIGHTS)
                local.write_bytes(storage.read_bytes(path))
                path = str(local)
            network.load_weights(path)
    except (OSError, ValueError, UserWarning) as error:
        first = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise UserError(f"{path}: does not fit {what} ({first})") from error


def open_run(folder: str | os.PathLike) -> Run:
    """Read a run folder.

    Raises: UserError where it is none, or damaged.
    """
    folder = os.fspath(folder)
    if not storage.exists(folder):
        raise UserError(f"run {folder}: no such folder")
    if not storage.exists(storage.join(folder, "run.json")):
        raise UserError(f"run {folder}: no run (run.json is missing); give the folder that birdtpu train --run wrote")
    info = _checked(_INFO, storage.join(folder, "run.json"), "copy the run again")
    path = storage.join(folder, "recipe.toml")
    recipe = load_recipe(path)
    classes = ClassList.from_csv(storage.join(folder, "classes.csv"))
    if info["recipe_sha256"] != _sha256(storage.read_bytes(path)):
        raise UserError(f"run {folder}: recipe.toml was changed after training; copy the run again")
    run = Run(folder, recipe, classes, info)
    run.checked("classes.csv")
    return run


def is_finished(folder: str | os.PathLike) -> bool:
    """Whether a training has ended in a folder; one that was killed while it began is no error.

    Raises: UserError where there are weights and `run.json` is damaged.
    """
    path = storage.join(folder, "run.json")
    if not storage.exists(path):
        return False
    try:
        return bool(_checked(_INFO, path, "copy the run again").get("weights_sha256"))
    except UserError:
        if storage.exists(storage.join(folder, WEIGHTS)):
            raise
        return False


def _checked(kind: TypeAdapter, path: str, way_out: str) -> dict[str, Any]:
    """What a JSON file holds. Raises UserError where it is damaged or of another kind."""
    data = storage.read_bytes(path)
    try:
        kind.validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: damaged ({where + ': ' if where else ''}{first['msg']}); {way_out}") from error
    return json.loads(data)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
