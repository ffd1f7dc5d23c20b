"""Train and test every fold, resumably, into one table."""

import os
from collections import ChainMap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from birdtpu import metrics, storage
from birdtpu.data import plan as planning
from birdtpu.data.pseudo import PseudoLabels
from birdtpu.data.tables import Tables
from birdtpu.errors import UserError
from birdtpu.evaluation.compare import write_out_of_fold
from birdtpu.evaluation.evaluate import Evaluation, evaluate_recordings, evaluate_rows
from birdtpu.evaluation.report import write_report
from birdtpu.publish.places import data_folders, resolve
from birdtpu.recipe import Recipe, recipe_of
from birdtpu.run import WEIGHTS, Run, is_finished, open_run
from birdtpu.storage import PathLike
from birdtpu.workflows.evaluate import annotated_rows, clip_scores, held_out, of_known_species
from birdtpu.workflows.members import CROSS_VALIDATION
from birdtpu.workflows.predict import load
from birdtpu.workflows.prepared import data_info, open_prepared, with_folds
from birdtpu.workflows.teacher import open_teacher
from birdtpu.workflows.train import train

OUT_OF_FOLD = "oof.csv"
METRICS = ("macro_average_precision", "macro_roc_auc", "micro_f1", "lwlrap", "padded_cmap", "recording_accuracy")


def cross_validate(
    recipe: Recipe | PathLike,
    data: PathLike | Sequence[PathLike],
    run: PathLike,
    *,
    init_from: PathLike | None = None,
    pseudo: PathLike | None = None,
    unlabelled: PathLike | Sequence[PathLike] | None = None,
    teacher: PathLike | None = None,
    settings: Sequence[str] = (),
    tpu: bool = False,
) -> pd.DataFrame:
    """Train on all folds but one and test on that one, for each; what is done stays, a fold begun goes on.

    Args:
        recipe: A recipe, its name or its path.
        data: Prepared folder or folders.
        run: A folder: `fold-K/` holds each run and its `evaluation/`, `cross_validation.csv` the table, `oof.csv`
            each recording's scores by the run that held it out, and `pooled/` the metrics over them. Where no recording
            has a primary label, as RFCx' do not, folds are tested by row, and there is no `oof.csv`.
        init_from: As for `train`: one run for all folds, or the folder of a cross-validation, whose `fold-K` a fold K
            begins with: then nothing is tested that was trained on.
        pseudo, unlabelled: As for `train`; `{fold}` in the file's name stands for the fold, whose own teacher shall
            have made it: then nothing is tested that a teacher was trained on.
        teacher: As for `train`, with `{fold}` as in `pseudo`.
        settings: Changes to the recipe.
        tpu: Train on a TPU, and on nothing else.

    Returns: a row a fold, then `mean` (over the folds) and `pooled` (all recordings at once): `fold`, the metrics and
    training seconds; in `*_low` and `*_high` the pooled metrics' intervals, and for the mean macro average precision
    that of the mean, from a bootstrap of the recordings inside each fold (none where a fold tests a single one).
    Raises: UserError, before anything is trained, where there is no fold to test, or a fold's run is of another recipe,
        of other data or of other folds.
    """
    recipe, folders, run = recipe_of(recipe, settings), data_folders(data), os.fspath(run)
    tables = open_prepared(recipe, folders).tables
    tables = replace(tables, recordings=with_folds(recipe, tables.recordings))
    recordings, by_row = tables.recordings, has_times_alone(tables)
    starts = {fold: _of_fold(init_from, fold) for fold in tested_folds(tables)}
    homes = {fold: storage.join(run, f"fold-{fold}") for fold in starts}
    files, teachers = ({fold: _file_of_fold(path, fold) for fold in homes} for path in (pseudo, teacher))
    hashes = {fold: path and PseudoLabels.load(path).sha256 for fold, path in files.items()}
    # One of them after the other, for they are large, and each file once.
    taught = {path: getattr(open_teacher(recipe, path), "sha256", None) for path in dict.fromkeys(teachers.values())}
    finished = [
        fold
        for fold, home in homes.items()
        if _is_finished(home, fold, recipe, folders, recordings, hashes[fold], taught[teachers[fold]], starts[fold])
    ]
    rows, parts, draws = [], [], []
    for fold, home in homes.items():
        if fold not in finished:
            print(f"fold {fold} of {', '.join(homes)}", flush=True)
            begin = {"init_from": starts[fold], "pseudo": files[fold], "unlabelled": unlabelled}
            train(recipe, folders, home, fold=fold, tpu=tpu, teacher=teachers[fold], **begin)
        predictor = load(home)
        truth, scored, _ = held_out(predictor, folders)
        common = {"classes": predictor.classes, "thresholds": predictor.thresholds, "draws": recipe.evaluate.bootstrap}
        if by_row:
            part = annotated_rows(predictor, truth, scored)
            found, groups = evaluate_rows(*part, **common), pd.factorize(part[1]["recording"])[0]
        else:
            common["top_clips"] = recipe.evaluate.top_clips
            known = of_known_species(truth.recordings, predictor.classes).assign(fold=fold)
            part = clip_scores(known["recording"], scored), known
            found = evaluate_recordings(*part, **common)
            groups = np.arange(len(found.truth))
        write_report(found, storage.join(home, "evaluation"))
        draws.append(_average_precision_draws(found, groups, recipe.evaluate.bootstrap, seed=len(draws)))
        seconds = pd.read_csv(storage.join(home, "log.csv"))["seconds"].sum()
        rows.append(
            {"fold": fold, **{m: found.result[m]["value"] for m in METRICS}, "train_seconds": round(seconds, 1)}
        )
        parts.append(part)
    # A metric that a fold leaves undefined is None.
    table = pd.DataFrame(rows).astype(dict.fromkeys(METRICS, float))
    if by_row:
        scores, stretches, truth, mask = zip(*parts, strict=True)
        joined = np.concatenate(scores), pd.concat(stretches), np.concatenate(truth), np.concatenate(mask)
        pooled = evaluate_rows(*joined, **common)
    else:
        clips, everything = dict(ChainMap(*(each for each, _ in parts))), pd.concat([known for _, known in parts])
        pooled = evaluate_recordings(clips, everything, **common)
        scored_rows = everything[everything["recording"].isin(list(clips))]
        write_out_of_fold(storage.join(run, OUT_OF_FOLD), scored_rows, pooled.scores, predictor.classes)
    write_report(pooled, storage.join(run, "pooled"))
    last = {"fold": "pooled", **{m: pooled.result[m]["value"] for m in METRICS}}
    last |= {f"{m}_{end}": pooled.result[m][end] for m in METRICS for end in ("low", "high")}
    table = pd.concat([table, pd.DataFrame([mean_of_folds(table, draws), last])], ignore_index=True)
    storage.write_text(storage.join(run, CROSS_VALIDATION), table.to_csv(index=False, lineterminator="\n"))
    return table


def has_times_alone(tables: Tables) -> bool:
    """Whether nothing is known of whole recordings, so that only rows with annotations can be tested."""
    return bool((tables.recordings["primary_label"] == "").all())


def tested_folds(tables: Tables) -> list[str]:
    """The folds that are tested in turn.

    Raises: UserError where there is none, or one that cannot be tested by itself.
    """
    recordings = tables.recordings
    folds = sorted(set(recordings["fold"]) - {"", "train", "validation"}, key=lambda fold: (len(fold), fold))
    if not folds:
        raise UserError("cross-validation: no recording is ever tested; give folds.split a test part, or leave it away")
    if "test" in folds and len(folds) > 1:
        raise UserError(f"cross-validation: the fold test would be tested with each of {', '.join(folds)}; number it")
    known, what = recordings["primary_label"] != "", "a primary label"
    if has_times_alone(tables):
        known, what = recordings["recording"].isin(tables.annotations["recording"]), "an annotation"
    labelled = set(recordings.loc[known, "fold"])
    for fold in folds:
        if fold not in labelled:
            raise UserError(f"cross-validation: no recording of fold {fold} has {what}; call that fold train")
    return folds


def _file_of_fold(path: PathLike | None, fold: str) -> str | None:
    """The file that a fold learns from."""
    return None if path is None else os.fspath(path).replace("{fold}", fold)


def _of_fold(init_from: PathLike | None, fold: str) -> str | None:
    """The run that a fold begins with. Raises UserError where there is none."""
    if init_from is None:
        return None
    start = resolve(os.fspath(init_from))
    if storage.exists(storage.join(start, "run.json")):
        return start
    own = storage.join(start, f"fold-{fold}")
    if not is_finished(own) or not storage.exists(storage.join(own, WEIGHTS)):
        raise UserError(f"--init-from {start}: neither a run nor a cross-validation with a finished fold-{fold}")
    return own


def _is_finished(
    home: str,
    fold: str,
    recipe: Recipe,
    folders: list[str],
    recordings: pd.DataFrame,
    pseudo: str | None,
    teacher: str | None,
    init_from: str | None,
) -> bool:
    """Whether a fold's run stands already. Raises UserError where it is the run of something else."""
    if not is_finished(home):
        return False
    done = open_run(home)
    other = ""
    if done.recipe.hash != recipe.hash:
        other = f"another recipe ({done.recipe.hash}, not {recipe.hash})"
    # Moved data is the same data.
    elif done.info.get("data_crc32c") != data_info(folders)["data_crc32c"]:
        other = f"other data ({', '.join(done.info['data'])}, or what lay there then)"
    elif done.info.get("pseudo_sha256") != pseudo:
        other = "other pseudo-labels"
    elif done.info.get("teacher_sha256") != teacher:
        other = "another --teacher"
    elif done.info.get("init_sha256") != (init_from and open_run(init_from).info.get("weights_sha256")):
        other = "another --init-from"
    elif _has_other_folds(done, set(recordings.loc[recordings["fold"] == fold, "recording"])):
        other = "other folds"
    if other:
        raise UserError(f"run {home}: is of {other}; give another --run folder")
    return True


def _has_other_folds(done: Run, fold: set[str]) -> bool:
    """Whether a run tested other recordings of its plan than those of this fold."""
    plan = planning.load_plan(done.checked("plan.csv"))
    recording = planning.recordings_of(plan)
    return set(recording[plan["role"] == "test"]) != fold & set(recording)


def mean_of_folds(rows: pd.DataFrame, draws: Sequence[np.ndarray]) -> dict[str, Any]:
    """The row `mean` of the table.

    Args:
        rows: A row a fold.
        draws: Each fold's macro average precision over resampled recordings: `(draws,)`, or none of a fold with a
            single recording, which says nothing of its spread; then the mean has no interval.
    """
    mean = {"fold": "mean", **rows.drop(columns="fold").mean().to_dict()}
    of_mean = np.mean(draws, axis=0) if all(map(len, draws)) else np.empty(0)
    spread = metrics.interval(mean["macro_average_precision"], of_mean)
    return mean | {"macro_average_precision_low": spread.low, "macro_average_precision_high": spread.high}


def _average_precision_draws(found: Evaluation, groups: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """`(draws,)` macro average precision over resampled recordings of one fold; `groups` is the recording of a row."""
    known = {"groups": groups, "mask": found.mask}
    return metrics.bootstrap_draws(
        metrics.macro_average_precision, found.truth, found.scores, **known, draws=draws, seed=seed
    )[1]
