"""Prepared folders as a recipe takes them: their tables, filtered, and all their records."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from birdtpu import storage
from birdtpu.data import folds as folding
from birdtpu.data import shards, tables
from birdtpu.errors import UserError
from birdtpu.recipe import Recipe
from birdtpu.species import ClassList


@dataclass(frozen=True)
class Prepared:
    """Prepared folders as one: what the recipe leaves of their tables, and all their records (`load_all_records`).

    Recordings have a column `audio_hash` too. `samples.with_nocall` adds folders, records and a table of recordings
    without any species.
    """

    folders: list[str]
    tables: tables.Tables
    records: pd.DataFrame
    nocall: pd.DataFrame | None = None


def open_prepared(recipe: Recipe, folders: Sequence[str], classes: ClassList | None = None) -> Prepared:
    """The tables and records of prepared folders, with the recipe's filters applied.

    Args:
        recipe: The recipe.
        folders: What `prepare` wrote.
        classes: What a run kept of `labels.classes`, whose path may mean another file by now. None: the path is read.

    Raises: UserError where a folder is none, or its sample rate or record length does not fit the recipe, or a primary
        label is not among the recipe's classes.
    """
    if not folders:
        raise UserError("no data: give --data the folder that birdtpu prepare wrote")
    parts = []
    for folder in folders:
        manifest = shards.load_manifest(folder)
        rate, longest = manifest["sample_rate"], manifest["record_seconds"]
        if rate != recipe.audio.sample_rate:
            raise UserError(
                f"{folder}: prepared at {rate} Hz, but the recipe {recipe.name} is for {recipe.audio.sample_rate} Hz: "
                "prepare it again with this recipe, or set audio.sample_rate"
            )
        if longest < recipe.audio.clip_seconds + recipe.audio.margin_seconds:
            raise UserError(
                f"{folder}: its records hold {longest:g} s, less than a clip and its margin of {recipe.name}: "
                "prepare it again with this recipe"
            )
        parts.append(replace(tables.load_tables(folder), recordings=recordings_of_folder(folder)))
    merged = tables.merge_tables(parts) if len(parts) > 1 else parts[0]
    if classes is None and recipe.labels.classes:
        classes = ClassList.from_csv(recipe.labels.classes)
    kept, report = tables.filter_recordings(
        merged,
        classes=classes,
        filter_to_classes=recipe.labels.filter_to_classes,
        secondary_below_seconds=recipe.labels.secondary_below_seconds,
        min_rating=recipe.labels.min_rating,
    )
    if report["below_min_rating"]:
        warnings.warn(f"{report['below_min_rating']} recordings below labels.min_rating are left out", stacklevel=2)
    dropped = sum(report["secondary_outside_classes"].values())
    if dropped:
        warnings.warn(f"{dropped} secondary labels of species outside the classes are dropped", stacklevel=2)
    return Prepared(list(folders), kept, shards.load_all_records(folders))


def recordings_of_folder(folder: str) -> pd.DataFrame:
    """The table of recordings of a prepared folder, with the hash of their audio."""
    table, hashes = tables.load_tables(folder).recordings, shards.load_audio_hashes(folder)
    return table.assign(audio_hash=[hashes.get(name, "") for name in table["recording"]])


def any_species(recipe: Recipe) -> Recipe:
    """The recipe for folders whose labels do not count: those of other species are no error there."""
    labels = recipe.labels.model_copy(update={"classes": "", "filter_to_classes": True, "nocall": ""})
    return recipe.model_copy(update={"labels": labels})


def with_folds(recipe: Recipe, recordings: pd.DataFrame) -> pd.DataFrame:
    """The recordings with the folds that were given, else with the recipe's split or folds."""
    if (recordings["fold"] != "").any():
        return recordings
    chosen = recipe.folds
    if chosen.split:
        return recordings.assign(fold=folding.split(recordings, parts=dict(chosen.split), seed=chosen.seed))
    folds = folding.assign_folds(recordings, folds=chosen.count, seed=chosen.seed, rare_at_most=chosen.rare_at_most)
    return recordings.assign(fold=folds)


def data_info(folders: Sequence[str]) -> dict[str, list[str]]:
    """What a run notes of its data: where it lies, and the checksum of each manifest, which vouches for the rest."""
    manifests = [storage.read_bytes(storage.join(folder, shards.MANIFEST)) for folder in folders]
    return {"data": [_absolute(folder) for folder in folders], "data_crc32c": [*map(shards.checksum, manifests)]}


def _absolute(path: str) -> str:
    return path if storage.is_remote(path) else str(Path(path).resolve())
