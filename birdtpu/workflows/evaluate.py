"""Score a run on the fold it held out, or a run or an ensemble on any labelled folder."""

import os
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from birdtpu import storage
from birdtpu.data import plan as planning
from birdtpu.data import shards, tables
from birdtpu.errors import UserError
from birdtpu.evaluation import report
from birdtpu.evaluation.evaluate import Evaluation, evaluate_recordings, evaluate_rows
from birdtpu.evaluation.truth import files_of, rows_from_annotations
from birdtpu.inference import engine
from birdtpu.inference.outputs.csv import write_failures
from birdtpu.inference.timeline import row_scores
from birdtpu.publish.places import data_folders
from birdtpu.species import ClassList
from birdtpu.storage import PathLike
from birdtpu.workflows.members import Runs, open_members
from birdtpu.workflows.predict import Predictor, reason_of
from birdtpu.workflows.prepared import Prepared, open_prepared


def evaluate(
    run: Runs,
    *,
    audio: PathLike | None = None,
    table: PathLike | None = None,
    data: PathLike | Sequence[PathLike] | None = None,
    by: str = "recording",
    head: str | None = None,
    combine: str = "probabilities",
    weights: Sequence[float] | None = None,
    output: PathLike | None = None,
) -> tuple[Evaluation, list[tuple[str, str]]]:
    """Score a run, or on a labelled folder an ensemble, by the first one's recipe (`[evaluate]`).

    Args:
        run, head, combine, weights: As for `workflows.predict.load`.
        audio: A labelled folder; None: the fold that the run held out, from its prepared recordings.
        table: The folder's table, where it has none of its own.
        data: Prepared folders instead of those that the run remembers, for the fold that it held out.
        by: `recording`, or `row`: 5-s rows against annotations, nocall included.
        output: Folder for metrics.json, per_class.csv, failures.csv, confusion.png and precision_recall.png.

    Returns: the evaluation, whose `result` is what metrics.json holds; and (file, reason) of broken files.
    Raises: UserError where there is nothing to score on, or arguments contradict each other.
    """
    if by not in ("recording", "row"):
        raise UserError(f"by {by!r}: recording or row")
    members = open_members(run)
    if audio is None and len(members) > 1:
        raise UserError(
            f"{len(members)} runs: each held out other recordings and trained on the rest; give --audio a labelled "
            "folder that none of them saw, or evaluate one run"
        )
    predictor = Predictor(members, head, combine, weights)
    truth, scored, failures = labelled(predictor, audio, table, data)
    recipe = predictor.recipe
    settings = {"thresholds": predictor.thresholds, "draws": recipe.evaluate.bootstrap}
    if by == "recording":
        known = of_known_species(truth.recordings, predictor.classes)
        clips = clip_scores(known["recording"], scored)
        top = recipe.evaluate.top_clips
        found = evaluate_recordings(clips, known, predictor.classes, top_clips=top, **settings)
    else:
        found = evaluate_rows(*annotated_rows(predictor, truth, scored), predictor.classes, **settings)
    if output:
        report.write_report(found, output)
        write_failures(storage.join(output, "failures.csv"), failures)
    return found, failures


def labelled(
    predictor: Predictor,
    audio: PathLike | None,
    table: PathLike | None,
    data: PathLike | Sequence[PathLike] | None,
    *,
    only: Callable[[pd.DataFrame], pd.DataFrame] = lambda recordings: recordings,
) -> tuple[tables.Tables, dict[str, engine.Scores], list[tuple[str, str]]]:
    """The tables, scores and broken files of a labelled folder, or of the fold that the run held out.

    Args:
        predictor: The run.
        audio, table, data: As for `evaluate`.
        only: The table of recordings to the rows that are wanted; called before a folder's audio is scored.

    Raises: UserError where nothing can be scored, or arguments contradict each other.
    """
    if audio is None and table is not None:
        raise UserError(f"table {table}: it labels a folder of audio; give that too (--audio)")
    if audio is not None and data:
        raise UserError("audio and data: give --audio to score a labelled folder, or --data for the held-out fold")
    if audio is None:
        truth, scored, failures = held_out(predictor, data)
        truth = replace(truth, recordings=only(truth.recordings))
    else:
        truth, scored, failures = _folder(
            predictor, os.fspath(audio), None if table is None else os.fspath(table), only
        )
    if not scored:
        raise UserError("evaluation: no recording could be scored" + (f" ({failures[0][1]})" if failures else ""))
    return truth, scored, failures


def clip_scores(recordings: Collection[str], scored: dict[str, engine.Scores]) -> dict[str, np.ndarray]:
    """The scores of these recordings' clips; those that could not be scored are left out."""
    return {name: scored[name].scores for name in recordings if name in scored}


def of_known_species(recordings: pd.DataFrame, classes: ClassList) -> pd.DataFrame:
    """The recordings whose primary label the model knows; warns of the others.

    Raises: UserError where there is none.
    """
    labels = recordings["primary_label"]
    known = labels.isin(classes.codes)
    others = sorted(set(labels[~known & (labels != "")]))
    named = f"{', '.join(others[:5])}{', ...' if len(others) > 5 else ''}"
    if not known.any() and not others:
        raise UserError("evaluation by recording: no recording has a primary label; --by row scores timed labels")
    if not known.any():
        raise UserError(f"evaluation: none of the species {named} is a class of the model (see its classes.csv)")
    if others:
        count = int((~known & (labels != "")).sum())
        warnings.warn(f"{count} recordings of species that the model does not know are left out: {named}", stacklevel=3)
    return recordings[known]


def held_out(
    predictor: Predictor, data: PathLike | Sequence[PathLike] | None
) -> tuple[tables.Tables, dict[str, engine.Scores], list[tuple[str, str]]]:
    """The tested fold's tables and scores, from the shards."""
    run = predictor.run
    if not storage.exists(run.path("plan.csv")):
        raise UserError(f"run {run.folder}: was published without its plan; give --audio a labelled folder")
    if run.info.get("optimistic"):
        warnings.warn(
            f"run {run.folder}: {run.info['optimistic']} of the recordings that it held out were trained on before it: "
            "its score is optimistic",
            stacklevel=3,
        )
    folders = data_folders(data or run.info["data"])
    plan = planning.load_plan(run.checked("plan.csv"))
    names = set(planning.recordings_of(plan[plan["role"] == "test"]))
    if not names:
        raise UserError(
            f"run {run.folder}: was trained on everything and held nothing out; give --audio a labelled folder"
        )
    prepared: Prepared = open_prepared(run.recipe, folders, run.classes if run.recipe.labels.classes else None)
    recordings = prepared.tables.recordings
    tested = recordings[recordings["recording"].isin(names)]
    if tested.empty:
        raise UserError(f"{folders[0]}: holds none of the {len(names)} recordings that the run held out; give --data")
    # Secondary labels of long recordings are not trusted in training, but a tested recording may well hold those birds.
    merged = tables.merge_tables([tables.load_tables(folder) for folder in folders]).recordings
    labels = merged.drop_duplicates("recording").set_index("recording")["secondary_labels"]
    tested = tested.assign(secondary_labels=tested["recording"].map(labels))
    sources = []
    for recording, rows in prepared.records[prepared.records["recording"].isin(tested["recording"])].groupby(
        "recording"
    ):
        folder = folders[rows["folder"].iloc[0]]
        sources.append(engine.Source(str(recording), partial(shards.read_recording, folder, rows)))
    scored = {scores.key: scores for scores in predictor.score(sources)}
    annotations = prepared.tables.annotations
    inside = annotations["recording"].isin(tested["recording"])
    return tables.Tables(tested, annotations[inside], prepared.tables.species), scored, []


def _folder(
    predictor: Predictor, audio: str, table: str | None, only: Callable[[pd.DataFrame], pd.DataFrame]
) -> tuple[tables.Tables, dict[str, engine.Scores], list[tuple[str, str]]]:
    """A labelled folder's tables and scores; recordings are named by their paths."""
    found = tables.read_tables(audio, table)
    recordings = only(found.recordings)
    recordings = recordings.assign(recording=recordings["path"])
    annotations = found.annotations.assign(recording=found.annotations["path"])
    paths = {str(Path(audio, path)): path for path in recordings["path"]}
    scored, failures = {}, []
    for scores in predictor.score_files(paths):
        if scores.error is not None:
            failures.append((paths[scores.key], reason_of(scores.error)))
        else:
            scored[paths[scores.key]] = scores
    return tables.Tables(recordings, annotations, found.species), scored, failures


def annotated_rows(
    predictor: Predictor, truth: tables.Tables, scored: dict[str, engine.Scores]
) -> tuple[np.ndarray, pd.DataFrame, np.ndarray, np.ndarray]:
    """Scores, rows, truth and mask of 5-s rows with annotations, as `evaluate_rows` takes them.

    Raises: UserError where there is none.
    """
    if truth.annotations.empty:
        raise UserError(
            "evaluation by row: the tables hold no annotation; give --table one with times, or --by recording"
        )
    durations = {name: scores.duration_seconds for name, scores in scored.items()}
    annotations = truth.annotations[truth.annotations["recording"].isin(list(scored))]
    rows, labels, mask = rows_from_annotations(annotations, predictor.classes, durations=durations)
    ends = rows["end_seconds"].fillna(files_of(rows).map(durations))
    values, kept = [], []
    for i, (name, start, end) in enumerate(zip(files_of(rows), rows["start_seconds"], ends, strict=True)):
        scores = scored[name]
        row = row_scores(scores.starts_seconds, predictor.recipe.audio.clip_seconds, scores.scores, start, end)
        if row is not None:
            values.append(row)
            kept.append(i)
    if not kept:
        raise UserError("evaluation by row: no annotated row lies inside its recording")
    return np.stack(values), rows.iloc[pd.Index(kept)].reset_index(drop=True), labels[kept], mask[kept]
