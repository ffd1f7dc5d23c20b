"""A teacher's embeddings as a training takes them: their file beside the recipe, and the recordings it is about."""

import os
import warnings
from collections.abc import Sequence

import pandas as pd

from birdtpu.data import plan as planning
from birdtpu.data.tables import Tables
from birdtpu.data.teacher import Teacher
from birdtpu.errors import UserError
from birdtpu.recipe import Recipe
from birdtpu.storage import PathLike


def open_teacher(recipe: Recipe, path: PathLike | None) -> Teacher | None:
    """The embeddings that a recipe learns from; None for a recipe without a teacher.

    Raises: UserError where one of recipe and file is there without the other, or their numbers of features differ.
    """
    wanted = recipe.model.teacher_features
    if path is None:
        if not wanted:
            return None
        raise UserError(
            f"recipe {recipe.name}: model.teacher_features is {wanted}, but there are no embeddings to learn from: "
            "give --teacher FILE to train or cross-validate, or set it to 0"
        )
    teacher = Teacher.load(os.fspath(path), recipe.audio.clip_seconds)
    if teacher.features != wanted:
        what = f"and model.teacher_features is {wanted}" if wanted else "but the recipe has no layer for them"
        raise UserError(
            f"teacher {path}: its embeddings have {teacher.features} features, {what}: "
            f"set model.teacher_features={teacher.features}, or take another file or none"
        )
    return teacher


def of_trained(
    teacher: Teacher, plan: pd.DataFrame, tables: Sequence[Tables], nocall: pd.DataFrame | None = None
) -> Teacher:
    """The embeddings under the ids of the recordings; warns where some that are trained on have none.

    Args:
        teacher: From `open_teacher`.
        plan: The training's.
        tables, nocall: Of all recordings that it may train on.

    Raises: UserError where none that is trained on has one.
    """
    recordings = [part.recordings for part in tables] + ([] if nocall is None else [nocall])
    known = teacher.of(pd.concat(recordings, ignore_index=True))
    trained = set(planning.recordings_of(plan[plan["role"] == "train"]))
    without = sorted(trained - set(known.recording))
    if len(without) == len(trained):
        raise UserError(
            f"teacher {teacher.path}: recording: none that is trained on is among them ({teacher.recording[0]}, ...): "
            "give ids or paths as in recordings.csv of the prepared folder"
        )
    if without:
        warnings.warn(
            f"teacher {teacher.path}: says nothing of {len(without)} of {len(trained)} recordings that are trained on "
            f"({without[0]}, ...)",
            stacklevel=2,
        )
    return known
