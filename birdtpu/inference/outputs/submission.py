"""Fill a competition's sample file: its rows and columns in its order, and never a gap.

| sample's columns | competition | cell |
|---|---|---|
| `row_id,birds` | 2020, 2021 | species over their thresholds, space-joined, or `nocall` |
| `row_id,target` | 2022 | whether the species named in the row id is over its threshold |
| `row_id,<species>...` | 2023 to 2026 | score |
| `recording_id,<species>...` | RFCx | score, highest of the recording |

A row id is `<file>_<end>` for the `ROW_SECONDS` that end there (2022: `<file>_<species>_<end>`). 2020 puts `site_<n>_`
before the file, and `site_3_<file>` is the whole file. 2021 leaves the date out: `57610_COR_5` is of
`57610_COR_20190904.ogg`.
"""

import csv
import io
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from birdtpu import storage
from birdtpu.errors import UserError
from birdtpu.inference.timeline import row_scores
from birdtpu.species import NOCALL, ClassList

ROW_SECONDS = 5.0

Scores = Mapping[str, tuple[np.ndarray, np.ndarray]]


class SubmissionWarning(UserWarning):
    """Rows or species that no score was found for."""


@dataclass(frozen=True)
class _Row:
    """What a row id asks for: `end_seconds` None is the whole file."""

    file: str
    end_seconds: float | None = None
    species: str = ""


def fill_submission(
    sample_csv: str | os.PathLike,
    scores_by_file: Scores,
    *,
    classes: ClassList,
    clip_seconds: float,
    threshold: float | np.ndarray = 0.5,
    aggregate: str = "mean",
) -> pd.DataFrame:
    """The sample file with its cells filled from a model's scores.

    Clips become 5-s rows by `birdtpu.inference.timeline.row_scores`; a whole file's score is the highest of its clips.
    A row whose file has no scores, or none at its time, gets the neutral value: `nocall`, False or 0. So does a species
    that the model does not know. Both are named in a `SubmissionWarning`.

    Args:
        sample_csv: The competition's sample submission.
        scores_by_file: File stem -> `((clips,) start in seconds, (clips, classes) scores)`.
        classes: The columns of the scores. RFCx's `s7` is the class `s7`, else `7`.
        clip_seconds: Length of a clip.
        threshold: One for all, or `(classes,)`; used where the sample asks for names or truths.
        aggregate: `"mean"` or `"max"` (`row_scores`).

    Returns: the sample's rows and columns in its order; scores float64, targets bool, ids and birds text.

    Raises: UserError where the sample is missing, of no known layout, has a row with more or fewer cells than its
        header, names no species of the model or names a file that two recordings could be; and where scores have the
        wrong shape or are not finite.
    """
    sample = _read(sample_csv)
    layout = _layout(sample_csv, list(sample.columns))
    stems = _stems(scores_by_file, classes)
    rows = [_parse(row_id, layout, stems, sample_csv) for row_id in sample.iloc[:, 0]]
    values = _values(sample_csv, rows, scores_by_file, clip_seconds, aggregate)
    limits = np.broadcast_to(threshold, (len(classes),))
    if layout == "birds":
        sample["birds"] = [NOCALL if value is None else _birds(classes, value >= limits) for value in values]
        return sample
    species = _species(sample, rows, layout)
    columns = _columns(sample_csv, species, classes)
    if layout == "target":
        at = [columns[name] for name in species]
        sample["target"] = [
            value is not None and i is not None and bool(value[i] >= limits[i])
            for value, i in zip(values, at, strict=True)
        ]
        return sample
    # One column more, of the neutral value, for every species that the model does not know.
    neutral = np.zeros(len(classes) + 1)
    table = np.stack([neutral if value is None else np.append(value, 0.0) for value in values])
    at = np.array([len(classes) if (i := columns[name]) is None else i for name in species])
    return pd.concat([sample.iloc[:, :1], pd.DataFrame(table[:, at], columns=species)], axis=1)


def check_sample(sample_csv: str | os.PathLike, classes: ClassList) -> None:
    """Raise what `fill_submission` would raise of the sample alone, before anything is scored for it."""
    sample = _read(sample_csv)
    layout = _layout(sample_csv, list(sample.columns))
    if layout == "birds":
        return
    rows = [_parse(row_id, layout, {}, sample_csv) for row_id in sample.iloc[:, 0]]
    with warnings.catch_warnings():
        # What is unknown is named when the sample is filled.
        warnings.simplefilter("ignore", SubmissionWarning)
        _columns(sample_csv, _species(sample, rows, layout), classes)


def write_submission(path: str | os.PathLike, frame: pd.DataFrame) -> None:
    """Write a filled sample as CSV, atomically.

    Raises: UserError where a cell is empty.
    """
    if frame.isna().to_numpy().any():
        raise UserError(f"{path}: a submission must have no empty cell; nothing was written")
    storage.write_text(path, frame.to_csv(index=False, lineterminator="\n", float_format="%.9g"))


def _read(sample_csv: str | os.PathLike) -> pd.DataFrame:
    if not storage.exists(sample_csv):
        raise UserError(f"sample submission {sample_csv}: no such file")
    try:
        text = storage.read_text(sample_csv).lstrip("\ufeff")
        lines = [cells for cells in csv.reader(io.StringIO(text, newline=""), strict=True) if any(cells)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"sample submission {sample_csv}: not a CSV file in UTF-8") from error
    if len(lines) < 2:
        raise UserError(f"sample submission {sample_csv}: no row in it")
    columns, *rows = lines
    for number, cells in enumerate(rows, start=1):
        # A comma at a row's end is an empty cell more.
        if len(cells) < len(columns) or any(cells[len(columns) :]):
            raise UserError(
                f"sample submission {sample_csv}: row {number} ({cells[0]}) has {len(cells)} cells, the header "
                f"{len(columns)}"
            )
    return pd.DataFrame([cells[: len(columns)] for cells in rows], columns=columns, dtype=str)


def _stems(scores_by_file: Scores, classes: ClassList) -> dict[str, list[str]]:
    """The stems that each name in a row id may mean."""
    stems: dict[str, list[str]] = {}
    for stem, (starts, scores) in scores_by_file.items():
        if np.shape(scores) != (len(starts), len(classes)):
            raise UserError(
                f"{stem}: scores of shape {np.shape(scores)} for {len(starts)} clips and {len(classes)} classes"
            )
        if not np.isfinite(scores).all():
            raise UserError(f"{stem}: a score is not finite: the weights or the audio are broken")
        dated = re.fullmatch(r"(.+)_\d{8}", stem)
        if dated:
            stems.setdefault(dated[1], []).append(stem)
    # A file's own name goes before another's without its date.
    return stems | {stem: [stem] for stem in scores_by_file}


def _layout(sample_csv: str | os.PathLike, columns: list[str]) -> str:
    if columns == ["row_id", "birds"]:
        return "birds"
    if columns == ["row_id", "target"]:
        return "target"
    if columns[0] in ("row_id", "recording_id") and len(columns) > 1:
        return "scores" if columns[0] == "row_id" else "files"
    raise UserError(
        f"sample submission {sample_csv}: its columns must be row_id,birds or row_id,target or row_id,<species>... or "
        f"recording_id,<species>..., not {','.join(columns[:4])}"
    )


def _parse(row_id: str, layout: str, stems: dict[str, list[str]], sample_csv: str | os.PathLike) -> _Row:
    if layout == "files":
        return _Row(_file(row_id, stems, sample_csv))
    bare = re.sub(r"^site_\d+_", "", row_id) if layout == "birds" else row_id
    head, _, end = bare.rpartition("_")
    if bare in stems or not re.fullmatch(r"\d+(\.\d+)?", end):
        return _Row(_file(bare, stems, sample_csv))
    species = ""
    if layout == "target":
        head, _, species = head.rpartition("_")
    return _Row(_file(head, stems, sample_csv), float(end), species)


def _file(name: str, stems: dict[str, list[str]], sample_csv: str | os.PathLike) -> str:
    meant = stems.get(name, [name])
    if len(meant) > 1:
        raise UserError(f"sample submission {sample_csv}: {name} could be any of {_few(meant)}; keep one of them")
    return meant[0]


def _species(sample: pd.DataFrame, rows: list[_Row], layout: str) -> list[str]:
    return [row.species for row in rows] if layout == "target" else list(sample.columns[1:])


def _values(
    sample_csv: str | os.PathLike, rows: list[_Row], scores_by_file: Scores, clip_seconds: float, aggregate: str
) -> list[np.ndarray | None]:
    """`(classes,)` a row, None where there are no scores; rows of one stretch (2022: a species each) share theirs."""
    found: dict[tuple[str, float | None], np.ndarray | None] = {}
    for row in rows:
        if (row.file, row.end_seconds) not in found:
            found[row.file, row.end_seconds] = _value(row, scores_by_file, clip_seconds, aggregate)
    values = [found[row.file, row.end_seconds] for row in rows]
    missing = [row.file for row, value in zip(rows, values, strict=True) if value is None]
    if missing:
        warnings.warn(
            f"{sample_csv}: {len(missing)} of {len(rows)} rows have no scores, filled with the neutral value; files: "
            f"{_few(list(dict.fromkeys(missing)))}",
            SubmissionWarning,
            stacklevel=3,
        )
    return values


def _value(row: _Row, scores_by_file: Scores, clip_seconds: float, aggregate: str) -> np.ndarray | None:
    if row.file not in scores_by_file:
        return None
    starts, scores = scores_by_file[row.file]
    if row.end_seconds is None:
        return np.asarray(scores, np.float64).max(axis=0) if len(scores) else None
    begin = row.end_seconds - ROW_SECONDS
    return row_scores(starts, clip_seconds, scores, begin, row.end_seconds, aggregate=aggregate)


def _columns(sample_csv: str | os.PathLike, names: list[str], classes: ClassList) -> dict[str, int | None]:
    columns: dict[str, int | None] = {}
    for name in names:
        bare = re.fullmatch(r"s(\d+)", name)
        code = name if name in classes or bare is None else bare[1]
        columns[name] = classes.index(code) if code in classes else None
    unknown = [name for name, column in columns.items() if column is None]
    if names and len(unknown) == len(columns):
        raise UserError(f"sample submission {sample_csv}: the model knows none of its species ({_few(unknown)})")
    if unknown:
        warnings.warn(
            f"{sample_csv}: the model does not know {len(unknown)} species, filled with the neutral value: "
            f"{_few(unknown)}",
            SubmissionWarning,
            stacklevel=3,
        )
    return columns


def _birds(classes: ClassList, over: np.ndarray) -> str:
    return " ".join(code for code, one in zip(classes.codes, over, strict=True) if one and code != NOCALL) or NOCALL


def _few(names: list[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
