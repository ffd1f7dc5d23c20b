"""What a training takes from prepared folders, and what it may not hear: the plan."""

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd

from birdtpu.data import balance as balancing
from birdtpu.data import folds as folding
from birdtpu.data import plan as planning
from birdtpu.data import shards, tables
from birdtpu.errors import UserError
from birdtpu.publish.places import data_folders
from birdtpu.recipe import Recipe
from birdtpu.species import NOCALL, ClassList
from birdtpu.workflows.prepared import Prepared, any_species, open_prepared, recordings_of_folder, with_folds
from birdtpu.workflows.pseudo import Pseudo, with_pseudo


def with_nocall(recipe: Recipe, prepared: Prepared) -> Prepared:
    """The same with the recordings of `labels.nocall`, to be trained on in any fold.

    Raises: UserError where all of them are in the data too.
    """
    if not recipe.labels.nocall:
        return prepared
    folders = data_folders(recipe.labels.nocall)
    found = open_prepared(any_species(recipe), folders).tables.recordings
    # What is labelled is no silence, whether or not the recipe uses its label, and whatever its name.
    known = pd.concat([recordings_of_folder(folder) for folder in prepared.folders])
    hashes = set(known["audio_hash"]) - {""}
    silent = found[~found["recording"].isin(known["recording"]) & ~found["audio_hash"].isin(hashes)]
    if silent.empty:
        raise UserError(f"labels.nocall: every recording of {folders[0]} is in the --data too; name another folder")
    nocall = silent.assign(primary_label=NOCALL, secondary_labels="", fold="train")
    every = [*prepared.folders, *folders]
    return replace(prepared, folders=every, records=shards.load_all_records(every), nocall=nocall)


def make_plan(
    recipe: Recipe, prepared: Prepared, fold: str | int | None, pseudo: Pseudo | None = None
) -> tuple[ClassList, pd.DataFrame, pd.DataFrame]:
    """Classes, plan and the balance's report, for one fold."""
    recordings = prepared.tables.recordings
    # A training on everything needs no folds, and a handful of recordings has none; rare species are pinned by them.
    if fold is not None or recipe.folds.split or recipe.folds.rare_at_most:
        recordings = with_folds(recipe, recordings)
    timed = prepared.tables.annotations.iloc[: None if recipe.labels.timed == "sections" else 0]
    if recipe.labels.classes:
        classes = ClassList.from_csv(recipe.labels.classes)
    else:
        classes = tables.class_list(replace(prepared.tables, annotations=timed))
    cut = {"validation_fraction": recipe.folds.validation_fraction, "seed": recipe.folds.seed}
    roles = folding.roles(recordings, fold=fold, **cut)
    silent = 0 if prepared.nocall is None else len(prepared.nocall)
    if silent:
        recordings = pd.concat([recordings, prepared.nocall], ignore_index=True)
        roles = pd.Series([*roles, *["train"] * silent])
    known, known_roles = recordings, roles
    recordings, roles = _apart(recordings, roles, silent)
    sections, report = balancing.balance(
        recordings[roles == "train"],
        down_to=recipe.balance.down_to,
        up_to=recipe.balance.up_to,
        min_section_seconds=recipe.balance.min_section_seconds or recipe.audio.clip_seconds,
        **{
            key: getattr(recipe.balance, key)
            for key in ("repeat", "keep", "first_seconds", "last_seconds", "sample_power")
        },
    )
    weights = tables.rating_weights(recordings) if recipe.labels.weight_by_rating else None
    plan = planning.make_plan(
        recordings,
        timed,
        prepared.records,
        sections=sections,
        roles=roles,
        classes=classes,
        clip_seconds=recipe.audio.clip_seconds,
        secondary=recipe.labels.secondary,
        whole_clips=recipe.train.whole_clips,
        weights=weights,
    )
    if not recipe.train.whole_clips:
        taught = plan[(plan["role"] == "train") & (plan["source"] == "labelled") & (plan["targets"] != "")]
        if len(taught):
            warnings.warn(
                f"{planning.recordings_of(taught).nunique()} recordings have no times and teach nothing: the recipe "
                "learns labels of frames alone (train.frame_loss); give train.segment_loss a weight, or leave them out",
                stacklevel=2,
            )
    if pseudo is not None:
        plan = with_pseudo(plan, pseudo, recipe, prepared.tables, known, known_roles)
    return classes, plan, report


def _apart(recordings: pd.DataFrame, roles: pd.Series, silent: int) -> tuple[pd.DataFrame, pd.Series]:
    """The recordings without what would be heard in training too although it is held out; warns of it.

    That is a copy under another name, where folds were given, and of the last `silent` recordings, which have no fold,
    also one of a recordist and place that are held out.
    """
    held = (roles != "train").to_numpy()
    copied = recordings["audio_hash"].isin(set(recordings.loc[held, "audio_hash"]) - {""})
    group = folding.groups(recordings)
    near = group.isin(group[held]) & (np.arange(len(recordings)) >= len(recordings) - silent)
    heard = ~held & (copied | near).to_numpy()
    if heard.any():
        warnings.warn(
            f"{heard.sum()} recordings ({recordings.loc[heard, 'path'].iloc[0]}, ...) are left out of the training: "
            "they are copies of held-out ones, or without birds and of a recordist and place that are held out",
            stacklevel=3,
        )
    return recordings[~heard].reset_index(drop=True), roles[~heard].reset_index(drop=True)
