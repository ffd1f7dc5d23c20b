"""A run as the files that are published: a folder that is a run again, a model card, and a manifest over all of it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from birdtpu import storage
from birdtpu.errors import UserError
from birdtpu.run import THRESHOLDS, WEIGHTS, Run

MANIFEST = "birdtpu-manifest.json"
_METRICS = "evaluation/metrics.json"
# Kaggle's names of licences, for data sets and for models.
LICENCES = {
    "CC-BY-NC-SA-4.0": "CC BY-NC-SA 4.0",
    "CC-BY-SA-4.0": "CC BY-SA 4.0",
    "CC-BY-4.0": "Attribution 4.0 International (CC BY 4.0)",
    "CC0-1.0": "CC0: Public Domain",
    "other": "Other (specified in description)",
}


class _File(BaseModel):
    bytes: int
    sha256: str


class _Manifest(BaseModel):
    files: dict[str, _File]


def stage(run: Run, folder: Path, *, address: str, licence: str) -> bytes:
    """Write what is published of a run, and the manifest; the same run gives the same bytes.

    Args:
        run: A finished run.
        folder: An empty folder.
        address: Where it will be found, for the card.
        licence: One of `LICENCES`, for the card.

    Returns: the manifest's bytes.
    Raises: UserError where the run has no weights, or they are damaged.
    """
    weights = run.weights()
    metrics = scores_of(run)
    heads = {head: run.thresholds(head) for head in sorted(run.recipe.predict.thresholds)}
    # Where the recordings lay is nobody's business.
    info = json.loads(storage.read_bytes(run.path("run.json")))
    info |= {key: [_name(path) for path in info[key]] for key in ("data", "unlabelled") if key in info}
    info |= {key: _name(info[key]) for key in ("init_from", "pseudo", "teacher") if key in info}
    files = {
        WEIGHTS: weights,
        "recipe.toml": storage.read_bytes(run.path("recipe.toml")),
        "classes.csv": storage.read_bytes(run.path("classes.csv")),
        "run.json": _json(info),
        THRESHOLDS: _json(heads),
        "README.md": card(run, metrics, address, licence).encode(),
    }
    if metrics:
        files["metrics.json"] = _json(metrics)
    manifest = _json({"files": {name: _entry(data) for name, data in sorted(files.items())}})
    for name, data in {**files, MANIFEST: manifest}.items():
        (folder / name).write_bytes(data)
    return manifest


def check(folder: Path) -> list[str]:
    """What is wrong with the files of a release; empty where it is whole."""
    try:
        manifest = _Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return [f"{MANIFEST}: not there"]
    except ValidationError:
        return [f"{MANIFEST}: damaged"]
    wrong = []
    for name, wanted in manifest.files.items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name}: not there")
        elif _entry(path.read_bytes()) != wanted.model_dump():
            wrong.append(f"{name}: not the bytes that were published")
    return wrong


def scores_of(run: Run) -> dict[str, Any]:
    """The run's evaluation on its held-out fold; empty where there is none."""
    path = run.path(*_METRICS.split("/"))
    if not storage.exists(path):
        return {}
    try:
        return json.loads(storage.read_bytes(path))
    except ValueError as error:
        raise UserError(f"{path}: damaged; run birdtpu evaluate again") from error


def notes(run: Run, metrics: dict[str, Any]) -> str:
    """One line of a version's notes: recipe, its hash and the score."""
    return f"{run.recipe.name} {run.recipe.hash}: {_score(metrics, 'macro_average_precision') or 'not evaluated'}"


def card(run: Run, metrics: dict[str, Any], address: str, licence: str) -> str:
    """The model card, in Markdown: what it knows, how good it is, how to use it, what it must not be used for."""
    recipe, classes = run.recipe, run.classes
    held_out = "everything was trained on" if run.info.get("fold") is None else f"fold {run.info['fold']} was held out"
    named = [
        f"| {code} | {scientific} | {common} |"
        for code, scientific, common in zip(classes.codes, classes.scientific_names, classes.common_names, strict=True)
    ]
    scored = [
        f"- {text}"
        for name in ("macro_average_precision", "macro_roc_auc", "micro_f1", "lwlrap", "recording_accuracy")
        if (text := _score(metrics, name))
    ]
    lines = [
        f"# {recipe.name}: {len(classes)} species",
        "",
        "Finds which of these species sing in recordings, and when. Made by birdtpu "
        f"{run.info.get('version', '')} (recipe `{recipe.name}`, hash `{recipe.hash}`, {run.info.get('backend', '')}).",
        "",
        "## Use",
        "",
        "```sh",
        f"birdtpu predict {address} recordings/ --output timelines/",
        "```",
        "",
        "```python",
        "import birdtpu",
        "",
        f'birdtpu.load("{address}").predict("dawn.wav")',
        "```",
        "",
        f"It hears mono audio at {recipe.audio.sample_rate} Hz in clips of {recipe.audio.clip_seconds:g} s; "
        "other files are converted.",
        "",
        "## Scores",
        "",
        f"In training {held_out}.",
        *(["", *scored] if scored else ["It was not evaluated."]),
        "",
        "A score says how sure the model is, not how probable the species is. It depends on how the recordings were "
        "made, and a species that is not in the list is scored as the nearest that is. Choose thresholds on recordings "
        "of your own site, and have records that matter checked by somebody who knows the birds.",
        "",
        "## Licence",
        "",
        f"{licence}. Whoever trained it answers for this being compatible with the licences of the recordings.",
        "",
        "## Species",
        "",
        "| code | scientific name | common name |",
        "|---|---|---|",
        *named,
    ]
    return "\n".join(lines) + "\n"


def _score(metrics: dict[str, Any], name: str) -> str:
    found = metrics.get(name) or {}
    if found.get("value") is None:
        return ""
    between = "" if found.get("low") is None else f" (95 % {found['low']:.3f} to {found['high']:.3f})"
    return f"{name.replace('_', ' ')} {found['value']:.3f}{between} on {metrics['n_recordings']} recordings"


def _entry(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _name(path: str) -> str:
    return str(path).rstrip("/").rpartition("/")[2]
