"""Pseudo-labels as a training takes them: their file, the recordings that it is about, and the plan with their rows."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from birdtpu import storage
from birdtpu.data import plan as planning
from birdtpu.data.pseudo import PseudoLabels, add_rows, usable
from birdtpu.data.tables import Tables
from birdtpu.errors import UserError
from birdtpu.publish.places import data_folders
from birdtpu.recipe import Recipe
from birdtpu.storage import PathLike
from birdtpu.workflows.prepared import any_species, open_prepared


@dataclass(frozen=True, eq=False)
class Pseudo:
    """Pseudo-labels and their recordings.

    Args:
        path: The file.
        labels: What it holds.
        folders: Prepared folders with its recordings.
        tables: Of these folders.
        records: Of these folders (`shards.load_all_records`).
    """

    path: str
    labels: PseudoLabels
    folders: list[str]
    tables: Tables
    records: pd.DataFrame

    def info(self) -> dict[str, Any]:
        """What a run notes of them."""
        return {"pseudo": self.path, "pseudo_sha256": self.labels.sha256, "unlabelled": self.folders}


def open_pseudo(
    recipe: Recipe,
    path: PathLike,
    unlabelled: PathLike | Sequence[PathLike] | None,
) -> Pseudo:
    """The pseudo-labels of a file.

    Args:
        recipe: The training's.
        path: The file.
        unlabelled: Prepared folder or folders with its recordings; None: where they were when it was written.

    Raises: UserError where the file, the folders and the recipe do not fit each other.
    """
    path = os.fspath(path)
    labels = PseudoLabels.load(path)
    seconds = labels.notes["clip_seconds"]
    if seconds != recipe.audio.clip_seconds:
        raise UserError(
            f"pseudo-labels {path}: of clips of {seconds:g} s, and audio.clip_seconds is "
            f"{recipe.audio.clip_seconds:g}: make them with a teacher of the same"
        )
    check_learns_from_pseudo(recipe)
    given = labels.notes["data"] if unlabelled is None else unlabelled
    folders = data_folders(given)
    gone = next((folder for folder in folders if not storage.exists(folder)), None)
    if gone:
        raise UserError(f"pseudo-labels {path}: no folder {gone} with their recordings; give --unlabelled")
    prepared = open_prepared(any_species(recipe), folders)
    return Pseudo(path, labels, folders, prepared.tables, prepared.records)


def check_learns_from_pseudo(recipe: Recipe) -> None:
    """Raises UserError where a recipe cannot learn from pseudo-labels."""
    if not recipe.train.whole_clips:
        raise UserError(
            f"recipe {recipe.name}: learns labels of frames alone, and pseudo-labels are of whole clips; give "
            "train.segment_loss (or train.clip_loss) a weight, such as --set train.segment_loss=0.5"
        )
    if recipe.train.instances > 1:
        raise UserError(
            f"train.instances = {recipe.train.instances}: pseudo-labels are of single clips; set it to 1, or train "
            "without them"
        )


def with_pseudo(
    plan: pd.DataFrame, pseudo: Pseudo, recipe: Recipe, tables: Tables, recordings: pd.DataFrame, roles: pd.Series
) -> pd.DataFrame:
    """The plan with the rows of the pseudo-labels; warns of clips that are left out.

    Args:
        plan: Of the labelled data.
        pseudo: The pseudo-labels.
        recipe: Its `[pseudo]` says how many rows, and their weight.
        tables: Of the labelled data.
        recordings, roles: All that the training has labels of, or holds out, and on which side it stands.
    """
    clips = pseudo.labels.clips
    annotations = pd.concat([tables.annotations, pseudo.tables.annotations], ignore_index=True)
    allowed = usable(clips, recordings, roles, annotations, pseudo.tables.recordings)
    if not allowed.all():
        out = clips.loc[~allowed, "recording"].unique()
        warnings.warn(
            f"pseudo-labels: {(~allowed).sum()} clips of {len(out)} recordings ({out[0]}, ...) are left out: they are "
            "labelled, held out, or of one recordist and place with what is held out",
            stacklevel=2,
        )
    return add_rows(
        plan,
        clips,
        allowed,
        pseudo.records,
        ratio=recipe.pseudo.ratio,
        weight=recipe.pseudo.weight,
        clip_seconds=recipe.audio.clip_seconds,
        seed=recipe.train.seed,
    )


def check_teachers(pseudo: Pseudo, plan: pd.DataFrame) -> int:
    """How many tested recordings the teachers have learnt from; warns where there are some.

    Raises: UserError where recordings are tested and nobody can tell.
    """
    tested = set(planning.recordings_of(plan[plan["role"] == "test"]))
    untold = pseudo.labels.notes["untold"]
    if tested and untold:
        raise UserError(
            f"pseudo-labels {pseudo.path}: the teacher {untold[0]} was published without its plan, so nobody can tell "
            "whether it learnt from what the fold holds out; take teachers of your own, or train without one"
        )
    again = sorted(tested & pseudo.labels.seen)
    if again:
        warnings.warn(
            f"{pseudo.path}: its teachers were trained on {len(again)} of the held-out recordings ({again[0]}, ...): "
            "the score will be optimistic; learn from a teacher that holds out the same fold",
            stacklevel=2,
        )
    return len(again)
