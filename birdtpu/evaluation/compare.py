"""Out-of-fold scores as a table, and two recipes compared by them, recording by recording."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from birdtpu import metrics, storage
from birdtpu.errors import UserError
from birdtpu.evaluation.truth import recording_truth
from birdtpu.species import ClassList

LABELS = ["recording", "fold", "primary_label", "secondary_labels"]


@dataclass(frozen=True)
class Comparison:
    """Two recipes on the same recordings.

    Args:
        a, b: Macro average precision of each, mean over its folds and then over its tables.
        difference: `a - b` with its 95 % interval.
    """

    a: float
    b: float
    difference: metrics.Interval


def write_out_of_fold(path: str, recordings: pd.DataFrame, scores: np.ndarray, classes: ClassList) -> None:
    """Write each recording's scores by the model that did not train on it, as CSV, atomically.

    Args:
        path: The file.
        recordings: A row a recording, with the columns `LABELS`.
        scores: `(recordings, classes)`; nine digits keep a float32 as it is.
        classes: A column each, after `LABELS`.
    """
    if clash := [code for code in classes.codes if code in LABELS]:
        raise UserError(f"{path}: the species code {clash[0]} is the name of a column; give that class another code")
    columns = pd.DataFrame(scores, columns=list(classes.codes), index=recordings.index)
    table = pd.concat([recordings[LABELS], columns], axis=1)
    storage.write_text(path, table.to_csv(index=False, lineterminator="\n", float_format="%.9g"))


def read_out_of_fold(path: str) -> pd.DataFrame:
    """What `write_out_of_fold` wrote: `LABELS` as text, then a float column a class.

    Raises: UserError where the file is missing or is no such table.
    """
    if not storage.exists(path):
        raise UserError(f"{path}: no such file; birdtpu cross-validate writes it")
    text = dict.fromkeys(LABELS, str)
    try:
        table = pd.read_csv(io.StringIO(storage.read_text(path)), dtype=text, keep_default_na=False)
        return table.astype(dict.fromkeys(_codes(table), float))
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{path}: no table of out-of-fold scores ({error}); let cross-validate write it again"
        ) from error


def paired_bootstrap(
    a: pd.DataFrame | Sequence[pd.DataFrame],
    b: pd.DataFrame | Sequence[pd.DataFrame],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Comparison:
    """How much one recipe is better than another, and how sure that is.

    A table's figure is the mean over its folds of the macro average precision by recording, as in the row `mean` of a
    cross-validation; a recipe's is the mean over its tables (seeds). The interval comes from recordings drawn with
    replacement inside each fold. Every draw is of the same recordings for all tables, so what makes a recording hard
    for both recipes cancels. It says how the difference would spread over other recordings, not over other seeds: of
    those it knows only the ones given.

    Args:
        a, b: Out-of-fold tables (`read_out_of_fold`), one a seed.
        draws: Number of resampled sets.
        seed: Of the draws.

    Returns: both figures and their difference, whose bounds are NaN where a fold has a single recording.
    Raises: UserError where the tables are not of the same recordings, folds, labels and classes.
    Reference: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    sides = [[each] if isinstance(each, pd.DataFrame) else list(each) for each in (a, b)]
    if not all(sides):
        raise UserError("comparison: give at least one out-of-fold table of each recipe")
    # In one order, so that a draw means the same recordings in each.
    tables = [[table.sort_values("recording", ignore_index=True) for table in side] for side in sides]
    first = tables[0][0]
    classes = ClassList(tuple(_codes(first)))
    for other in (*tables[0][1:], *tables[1]):
        _check_pair(first, other, classes)
    found = [[_mean_of_folds(table, classes, draws, seed) for table in side] for side in tables]
    ours, theirs = (float(np.mean([value for value, _ in side])) for side in found)
    drawn = [np.mean([part for _, part in side], axis=0) for side in found]
    return Comparison(ours, theirs, metrics.interval(ours - theirs, drawn[0] - drawn[1]))


def _mean_of_folds(table: pd.DataFrame, classes: ClassList, draws: int, seed: int) -> tuple[float, np.ndarray]:
    """Macro average precision, mean over the folds, and `(draws,)` of it; none where a fold has a single recording."""
    values, drawn = [], []
    for number, (_, fold) in enumerate(table.groupby("fold")):
        truth, mask = recording_truth(fold, classes)
        scores = fold[list(classes.codes)].to_numpy(float)
        known = {"groups": np.arange(len(fold)), "mask": mask}
        value, part = metrics.bootstrap_draws(
            metrics.macro_average_precision, truth, scores, **known, draws=draws, seed=[seed, number]
        )
        values.append(value)
        drawn.append(part)
    return float(np.mean(values)), np.mean(drawn, axis=0) if all(map(len, drawn)) else np.empty(0)


def _codes(table: pd.DataFrame) -> list[str]:
    """The class columns. Raises KeyError where one of `LABELS` is missing."""
    table[LABELS]
    return [column for column in table.columns if column not in LABELS]


def _check_pair(first: pd.DataFrame, other: pd.DataFrame, classes: ClassList) -> None:
    if set(_codes(other)) != set(classes.codes):
        strange = sorted(set(_codes(other)) ^ set(classes.codes))
        raise UserError(f"comparison: the tables are not of the same classes ({strange[0]} is in one alone)")
    if list(first["recording"]) != list(other["recording"]):
        strange = sorted(set(first["recording"]) ^ set(other["recording"])) or ["one twice"]
        raise UserError(f"comparison: the tables are not of the same recordings ({strange[0]} is in one alone)")
    for column in LABELS[1:]:
        differs = np.flatnonzero(first[column] != other[column])
        if len(differs):
            name, mine, theirs = (table[key][differs[0]] for table, key in
                                  ((first, "recording"), (first, column), (other, column)))  # fmt: skip
            raise UserError(f"comparison: recording {name} has {column} {mine!r} in one table, {theirs!r} in another")
