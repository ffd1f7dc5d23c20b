"""Rounds of teachers and students: train on labels, pseudo-label, train on both, and again."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from birdtpu import storage
from birdtpu.errors import UserError
from birdtpu.publish.places import data_folders
from birdtpu.recipe import Recipe, recipe_of
from birdtpu.run import is_finished
from birdtpu.storage import PathLike
from birdtpu.workflows.cross_validate import cross_validate, has_times_alone, tested_folds
from birdtpu.workflows.evaluate import evaluate
from birdtpu.workflows.members import CROSS_VALIDATION
from birdtpu.workflows.prepared import any_species, data_info, open_prepared, with_folds
from birdtpu.workflows.pseudo import check_learns_from_pseudo
from birdtpu.workflows.pseudo_label import FOLD, check_strategy, pseudo_label, unlabelled_of
from birdtpu.workflows.train import train

ROUNDS = "rounds.csv"
_SETTINGS = "noisy_student.json"
_PSEUDO = "pseudo"


def noisy_student(
    recipe: Recipe | PathLike,
    data: PathLike | Sequence[PathLike],
    unlabelled: PathLike | Sequence[PathLike],
    run: PathLike,
    *,
    rounds: int = 1,
    fold: str | int | None = None,
    student: Recipe | PathLike | None = None,
    strategy: str = "mean",
    powers: Sequence[float] = (1.0,),
    threshold: float = 0.5,
    settings: Sequence[str] = (),
    tpu: bool = False,
) -> pd.DataFrame:
    """Train each fold on labels, then round by round on labels and what the round before says of other recordings.

    The student of a fold learns from the teacher of the same fold, which never heard what that fold holds out; so do
    its teacher's teachers. Only `fold_matched` also asks the teachers of the other folds, who have; its scores are
    optimistic, and each run says so.

    Args:
        recipe: A recipe, its name or its path.
        data: Prepared folder or folders with labels.
        unlabelled: Prepared folder or folders to pseudo-label.
        run: A folder: `round-R/fold-K/` holds each run, `pseudo/` what it learnt from, `rounds.csv` the table. What
            stands there is kept; a training begun goes on; `rounds` may grow.
        rounds: Of students. Round 0 are the first teachers, on labels alone.
        fold: Only this one; None: all, each round a cross-validation.
        student: The recipe of all rounds but the first; None: the same.
        strategy, threshold: As for `pseudo_label`.
        powers: Of the targets of rounds 1, 2, ...; the last one stays.
        settings: Changes to both recipes.
        tpu: Train on a TPU, and on nothing else.

    Returns: `round, fold, macro_average_precision, train_seconds`, a row a fold, and of all folds a row `mean`.
    Raises: UserError where the folder is of other recipes, data or options, or as `train` and `pseudo_label`.
    """
    first = recipe_of(recipe, settings)
    recipes = [first, *[first if student is None else recipe_of(student, settings)] * rounds]
    folders, sounds, run = data_folders(data), data_folders(unlabelled), os.fspath(run)
    for table in ("folds", "labels"):
        if any(getattr(each, table) != getattr(first, table) for each in recipes):
            raise UserError(f"--student: its [{table}] is another than the teachers', and so would be its folds")
    if strategy == "fold_matched" and fold is not None:
        raise UserError("--strategy fold_matched: asks the teachers of all folds; leave --fold away")
    tables = open_prepared(first, folders).tables
    tables = replace(tables, recordings=with_folds(first, tables.recordings))
    folds = tested_folds(tables) if fold is None else [str(fold)]
    if folds[0] not in set(tables.recordings["fold"]):
        known = sorted(set(tables.recordings["fold"]) - {"", "train", "validation"})
        raise UserError(f"--fold {fold}: no recording has it (folds: {', '.join(known)})")
    by = "row" if has_times_alone(tables) else "recording"
    options = {"strategy": strategy, "threshold": threshold}
    if rounds:
        _check_rounds(recipes, folders, sounds, powers, options)
    with storage.locked(run):
        _same_settings(
            run, first, recipes[-1] if rounds else None, folders, sounds, fold, {**options, "powers": list(powers)}
        )
        parts = []
        for number, each in enumerate(recipes):
            home, pseudo = _round(run, number), None
            if number:
                print(f"round {number} of {rounds}", flush=True)
                power = powers[min(number, len(powers)) - 1]
                pseudo = _taught(run, number, folds, sounds, {**options, "power": power})
            learnt = {"pseudo": pseudo, "unlabelled": sounds if number else None, "tpu": tpu}
            if fold is None:
                table = _cross_validated(each, folders, home, learnt)
            else:
                table = _one_fold(each, folders, home, folds[0], by, learnt)
            parts.append(table.assign(round=number))
            done = pd.concat(parts, ignore_index=True)[["round", "fold", "macro_average_precision", "train_seconds"]]
            storage.write_text(storage.join(run, ROUNDS), done.to_csv(index=False, lineterminator="\n"))
    return done


def _check_rounds(
    recipes: Sequence[Recipe], folders: list[str], sounds: list[str], powers: Sequence[float], options: dict[str, Any]
) -> None:
    """Raises UserError for what a round would stumble over only when its teachers are trained."""
    if not powers:
        raise UserError("--power: give one or more numbers above 0")
    for power in powers:
        check_strategy(power=power, **options)
    first, student = recipes[0], recipes[-1]
    if student.audio.clip_seconds != first.audio.clip_seconds:
        raise UserError(
            f"--student: its audio.clip_seconds is {student.audio.clip_seconds:g}, the teachers' "
            f"{first.audio.clip_seconds:g}; pseudo-labels are of the teachers' clips, so make them equal"
        )
    check_learns_from_pseudo(student)
    open_prepared(student, folders)
    for recipe in (first, student):
        unlabelled_of(open_prepared(any_species(recipe), sounds), [])


def _round(run: str, number: int) -> str:
    return storage.join(run, f"round-{number}")


def _same_settings(
    run: str,
    first: Recipe,
    student: Recipe | None,
    folders: list[str],
    sounds: list[str],
    fold: str | int | None,
    options: dict[str, Any],
) -> None:
    """Note what the rounds are of; raises UserError where the folder's are of something else."""
    now = {
        "recipe": first.hash,
        "student": student and student.hash,
        "data": data_info(folders)["data_crc32c"],
        "unlabelled": data_info(sounds)["data_crc32c"],
        "fold": None if fold is None else str(fold),
        **options,
    }
    path = storage.join(run, _SETTINGS)
    if storage.exists(path):
        try:
            before = json.loads(storage.read_text(path))
        except ValueError as error:
            raise UserError(f"{path}: damaged; give another --run folder") from error
        # Rounds may be added to teachers that stand alone; what nobody has learnt from yet may change.
        free = {"student"} if None in (before.get("student"), now["student"]) else set()
        if not storage.exists(storage.join(run, _PSEUDO)):
            free |= {"student", "unlabelled", "strategy", "threshold", "powers"}
        if not storage.exists(_round(run, 0)):
            free |= now.keys()
        other = [key for key in now if key not in free and before.get(key) != now[key]]
        if other:
            key = other[0]
            raise UserError(
                f"{path}: the rounds here are of another {key} ({before.get(key)}, not {now[key]}); give another --run"
            )
        now["student"] = now["student"] or before["student"]
    storage.write_text(path, json.dumps(now, indent=1, sort_keys=True) + "\n")


def _taught(run: str, number: int, folds: Sequence[str], sounds: list[str], options: dict[str, Any]) -> str:
    """The pseudo-labels of a round, with `{fold}` for the fold; those that are not there yet are made."""
    pattern = storage.join(run, _PSEUDO, f"round-{number}-fold-{FOLD}.npz")
    teachers = {fold: storage.join(_round(run, number - 1), f"fold-{fold}") for fold in folds}
    missing = [fold for fold in folds if not storage.exists(pattern.replace(FOLD, fold))]
    if options["strategy"] == "fold_matched":
        # They are made together, before anybody learns from one of them.
        if missing:
            pseudo_label(list(teachers.values()), sounds, pattern, **options)
    else:
        for fold in missing:
            pseudo_label(teachers[fold], sounds, pattern, **options)
    return pattern


def _cross_validated(recipe: Recipe, folders: list[str], home: str, learnt: dict[str, Any]) -> pd.DataFrame:
    path = storage.join(home, CROSS_VALIDATION)
    table = pd.read_csv(path, dtype={"fold": str}) if storage.exists(path) else None
    if table is None:
        table = cross_validate(recipe, folders, home, **learnt)
    return table[table["fold"] != "pooled"]


def _one_fold(
    recipe: Recipe, folders: list[str], home: str, fold: str, by: str, learnt: dict[str, Any]
) -> pd.DataFrame:
    home = storage.join(home, f"fold-{fold}")
    if not is_finished(home):
        pseudo = learnt["pseudo"] and learnt["pseudo"].replace(FOLD, fold)
        train(recipe, folders, home, fold=fold, **{**learnt, "pseudo": pseudo})
    metrics = storage.join(home, "evaluation", "metrics.json")
    if not storage.exists(metrics):
        evaluate(home, data=folders, by=by, output=storage.join(home, "evaluation"))
    found = json.loads(storage.read_text(metrics))["macro_average_precision"]["value"]
    seconds = round(pd.read_csv(storage.join(home, "log.csv"))["seconds"].sum(), 1)
    row = {"fold": fold, "macro_average_precision": found, "train_seconds": seconds}
    return pd.DataFrame([row]).astype({"macro_average_precision": float})
