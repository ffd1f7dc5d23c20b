"""The house's tables, recordings and annotations, out of what data sets come with."""

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from birdtpu import storage
from birdtpu.data.sources.layouts import EVERY_OTHER, Parsed
from birdtpu.data.sources.lookup import FOCAL_FOLDERS, AudioFolder, is_audio
from birdtpu.data.sources.read import Source, fill, join, read_sources
from birdtpu.errors import UserError
from birdtpu.species import NOCALL, ClassList

# fmt: off
RECORDINGS = (
    "recording", "data_set", "path", "primary_label", "secondary_labels", "author", "latitude", "longitude", "date",
    "rating", "licence", "duration_seconds", "fold",
)
ANNOTATIONS = ("recording", "path", "start_seconds", "end_seconds", "f_min", "f_max", "species", "state")
SPECIES: tuple[str, ...] = ("code", "scientific_name", "common_name")

_NUMBERS = frozenset((
    "latitude", "longitude", "rating", "duration_seconds", "start_seconds", "end_seconds", "f_min", "f_max",
))
# fmt: on


@dataclass(frozen=True, eq=False)
class Tables:
    """Recordings, annotations and species of one data set or several.

    Args:
        recordings: A row a file: `recording` (`XC123`, else `""` until its audio has been read), `data_set`, `path`
            (POSIX, relative to the data set's audio folder), `primary_label`, `secondary_labels` (`;`-joined),
            `author`, `latitude`, `longitude`, `date` (ISO), `rating` (0 to 5), `licence`, `duration_seconds`, `fold`.
            Text that is not known is `""`, a number NaN. No primary label: a soundscape, or a recording of no bird.
        annotations: `recording`, `path`, `start_seconds`, `end_seconds` (NaN: the file's end), `f_min`, `f_max` (Hz),
            `species`, `state` (positive, negative, unknown). A stretch whose labels are complete has a row with
            species `*` and state negative: every class that no other row names there is absent.
        species: `code`, `scientific_name`, `common_name`, sorted by code.
        report: What became of the input, as JSON can hold it: `tables` and `layouts` that were read, `skipped` tables
            (they name no file here), `missing` files (named and not there), `unlabelled` files (in no folder of a
            species), `repeated` (how many rows named a recording once more), `pieces` (files that share a xeno-canto
            number under different names), `dropped` (`secondary_labels` and `recordings` without a code, by name),
            `not_utf8` (audio files left out for their names, with `\\xe9` for a byte that is no text), `unused` (audio
            files that no table names, or that copy a recording of another file).
    """

    recordings: pd.DataFrame
    annotations: pd.DataFrame
    species: pd.DataFrame
    report: dict[str, Any] = field(default_factory=dict)


def read_tables(
    audio: str,
    table: str | None = None,
    *,
    data_set: str | None = None,
    layout: str | None = None,
    taxonomy: str | None = None,
) -> Tables:
    """The tables of a folder of recordings.

    Args:
        audio: The folder of recordings, or a competition's root. Paths come out relative to it.
        table: A CSV, a JSON page of xeno-canto's API, or a folder of such pages. None: the competition's own tables
            (labelled soundscapes too) in the folder, else in its parent, as far as they name files in it; else each
            file's species is the folder it lies in. RFCx' train_tp.csv and train_fp.csv bring each other along.
        data_set: The name to note. None: the folder's own, or its parent's for a competition's audio folder.
        layout: A key of `birdtpu.data.sources.layouts.LAYOUTS`. None: what the columns say.
        taxonomy: A CSV of species codes with scientific names. None: taxonomy.csv beside the table.

    Raises: UserError on a wrong path, a table that cannot be read or lacks a column, a name that fits several files,
        a code that cannot be one, or where no named file is there.
    """
    folder = AudioFolder(audio)
    sources, skipped = read_sources(folder, table, layout, taxonomy)
    return _of_sources(folder, sources, skipped, data_set)


def unlabelled_tables(audio: str, *, data_set: str | None = None) -> Tables:
    """The tables of a folder of recordings of which nothing is known; no table in it and no folder's name is read.

    Args: as `read_tables`.
    Raises: UserError where the folder is none or holds no recording.
    """
    folder = AudioFolder(audio)
    rows = [
        {"path": file, "primary_label": "", "secondary_labels": (), "number": ""}
        for file in folder.files
        if is_audio(file)
    ]
    if not rows:
        raise UserError(f"{audio}: no recordings in it or below it")
    return _of_sources(folder, [Source(audio, "unlabelled", Parsed(recordings=rows))], [], data_set)


def _of_sources(folder: AudioFolder, sources: list[Source], skipped: list[str], data_set: str | None) -> Tables:
    home = Path(folder.root).resolve()
    name = data_set or (home.parent.name if home.name in FOCAL_FOLDERS else home.name)
    rows, boxes, names, report = join(sources)
    known = {row["path"] for row in rows} | set(report["unlabelled"])
    unused = [file for file in folder.files if is_audio(file) and file not in known]
    report = {**report, "skipped": skipped, "not_utf8": folder.not_utf8, "unused": unused}
    for row in rows:
        row["data_set"] = name
    return _tables(rows, boxes, names, report)


def _tables(rows: list[dict], boxes: list[dict], names: dict[str, tuple[str, str]], report: dict) -> Tables:
    table = report["tables"][0]
    codes = {row["primary_label"] for row in rows} | {code for row in rows for code in row["secondary_labels"]}
    for row in boxes:
        if row["species"] != EVERY_OTHER or row["state"] != "negative":
            codes.add(row["species"])
    codes.discard("")
    for code in sorted(codes):
        if code == EVERY_OTHER or ";" in code or not code.isprintable():
            raise UserError(
                f"{table}: {code!r} is no species code; it may not be '*' nor hold ';', a line end or the like"
            )
    recordings = [{**row, "secondary_labels": ";".join(row["secondary_labels"])} for row in rows]
    annotations = _frame(boxes, ANNOTATIONS).drop_duplicates()
    order = ["path", "start_seconds", "end_seconds", "species", "state", "f_min"]
    annotations = annotations.sort_values(order, kind="stable", ignore_index=True)
    return Tables(_frame(recordings, RECORDINGS), annotations, _species(codes, names), report)


def _species(codes: Iterable[str], names: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    rows = [(code, *names.get(code, ("", ""))) for code in sorted(codes)]
    return _frame([dict(zip(SPECIES, row, strict=True)) for row in rows], SPECIES)


def _frame(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Rows as a table with exactly these columns; text that a row lacks is `""`, a number NaN."""
    return pd.DataFrame(
        {
            name: pd.Series([row.get(name, math.nan) for row in rows], dtype=float)
            if name in _NUMBERS
            else pd.Series([row.get(name, "") for row in rows], dtype=str)
            for name in columns
        }
    )


def merge_tables(tables: Sequence[Tables]) -> Tables:
    """Several data sets as one.

    A recording (by its `recording`, where that is known) that an earlier data set has goes; that one takes its labels
    and annotations. `report["in_two_data_sets"]` counts them, the rest of the report is joined.

    Raises: UserError where two data sets have one name and a path in common, or where annotations without `recording`
        name a path that stands in two data sets.
    """
    if not tables:
        raise UserError("no tables to merge")
    every = pd.concat([part.recordings for part in tables], ignore_index=True)
    again = (every["recording"] != "") & every.duplicated("recording")
    # A row without a recording is its own.
    merged = unite_labels(every, [name or i for i, name in enumerate(every["recording"])], (~again).tolist())
    boxes = pd.concat([part.annotations for part in tables], ignore_index=True)
    paths = dict(zip(merged["recording"], merged["path"], strict=True))
    moved = [
        paths.get(name, path) if name else path for name, path in zip(boxes["recording"], boxes["path"], strict=True)
    ]
    boxes = boxes.assign(path=pd.Series(moved, dtype=str)).drop_duplicates(ignore_index=True)
    _must_be_clear(merged, boxes)
    names: dict[str, tuple[str, str]] = {}
    for part in tables:
        for code, scientific, common in part.species[list(SPECIES)].itertuples(index=False, name=None):
            names[code] = fill(names.get(code, ("", "")), (scientific, common))
    report = _joined([part.report for part in tables])
    return Tables(merged, boxes, _species(names, names), {**report, "in_two_data_sets": int(again.sum())})


def unite_labels(recordings: pd.DataFrame, same: Sequence[Any], stays: Sequence[bool]) -> pd.DataFrame:
    """The rows that stay, each with the labels of the rows of the same recording as secondary ones.

    Else what one of several copies is labelled with would be absent in the one that stays. A row without a primary
    label takes the first of the others'.

    Args:
        recordings: The table.
        same: What recording each row is of.
        stays: Which rows stay: one a recording, or none.

    Returns: the rows that stay, in their order, numbered from 0.
    """
    rows = zip(same, stays, recordings["primary_label"], recordings["secondary_labels"], strict=True)
    primary: dict[Any, str] = {}
    labels: dict[Any, dict[str, None]] = {}
    for name, _, first, others in sorted(rows, key=lambda row: not row[1]):
        primary[name] = primary.get(name) or first
        labels.setdefault(name, {}).update(dict.fromkeys([first, *others.split(";")]))
    kept = [name for name, stay in zip(same, stays, strict=True) if stay]
    secondary = [";".join(code for code in labels[name] if code not in ("", primary[name])) for name in kept]
    return (
        recordings[np.asarray(stays, bool)]
        .reset_index(drop=True)
        .assign(
            primary_label=pd.Series([primary[name] for name in kept], dtype=str),
            secondary_labels=pd.Series(secondary, dtype=str),
        )
    )


def _must_be_clear(recordings: pd.DataFrame, annotations: pd.DataFrame) -> None:
    twice = recordings[recordings.duplicated(["data_set", "path"])]
    if len(twice):
        row = twice.iloc[0]
        raise UserError(f"two data sets are named {row['data_set']!r} and have {row['path']}; give one another name")
    paths = recordings.loc[recordings.duplicated("path"), "path"]
    unclear = annotations[(annotations["recording"] == "") & annotations["path"].isin(set(paths))]
    if len(unclear):
        raise UserError(
            f"{unclear.iloc[0]['path']} stands in two data sets and has annotations; rename one of the files"
        )


def _joined(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    for report in reports:
        for key, value in report.items():
            if isinstance(value, dict):
                joined[key] = _joined([joined.get(key, {}), value])
            else:
                joined[key] = joined[key] + value if key in joined else value
    return joined


def filter_recordings(
    tables: Tables,
    *,
    classes: ClassList | None = None,
    filter_to_classes: bool = False,
    secondary_below_seconds: float | None = 40.0,
    min_rating: float = 0.0,
) -> tuple[Tables, dict[str, Any]]:
    """What a recipe uses of the tables, and a report of what it does not.

    Rated recordings below `min_rating` go; unrated ones (in the competitions' tables every recording from other
    sources than xeno-canto) stay and are counted. Recordings that go take their annotations along. Secondary labels
    and annotations of species outside the classes are dropped and counted by species; these annotations stay where
    `nocall` is a class.

    Args:
        tables: They are left as they are.
        classes: The class list; None: the primary labels and annotated species of what the rating leaves.
        filter_to_classes: Drop recordings whose primary label is outside `classes`, instead of an error.
        secondary_below_seconds: Use secondary labels only of recordings shorter than this; a recording of unknown
            duration is not. None: of all.
        min_rating: In stars, 1 to 5; 0 keeps all.

    Returns: The tables; and counts: `recordings`, `below_min_rating`, `unrated`, `primary_outside_classes`,
        `secondary_outside_classes`, `annotations_outside_classes` (by species), `secondary_unused` (labels of
        recordings too long or of unknown length), `classes_lost` (species that the rating left without a recording).

    Raises: UserError where a primary label is outside `classes` and the recipe does not filter, or no recording is
        left.
    """
    rated = tables.recordings["rating"] > 0
    below = rated & (tables.recordings["rating"] < min_rating)
    recordings = tables.recordings[~below]
    present = _codes(recordings, _of(recordings, tables.annotations))
    codes = present if classes is None else set(classes.codes)
    outside = ~recordings["primary_label"].isin(codes | {""})
    if outside.any() and not filter_to_classes:
        row = recordings[outside].iloc[0]
        raise UserError(
            f"{row['path']}: its species {row['primary_label']!r} is not in the class list, and neither are "
            f"those of {int(outside.sum()) - 1} others; add them, or let the recipe filter by the list"
        )
    used = recordings[~outside]
    if used.empty:
        raise UserError("no recording is left: all are rated below min_rating or of species outside the class list")
    annotations = _of(used, tables.annotations)
    foreign = ~annotations["species"].isin(codes | {EVERY_OTHER})
    # Where silence is a class, what sings tells where there is none.
    unused = foreign & (NOCALL not in codes)
    used, counts = _secondary(used, codes, secondary_below_seconds)
    report = {
        "recordings": len(used),
        "below_min_rating": int(below.sum()),
        "unrated": int((~rated).sum()),
        "classes_lost": sorted(_codes(tables.recordings, tables.annotations) - present),
        "primary_outside_classes": _counts(recordings.loc[outside, "primary_label"]),
        "annotations_outside_classes": _counts(annotations.loc[foreign, "species"]),
        **counts,
    }
    left = used.reset_index(drop=True), annotations[~unused].reset_index(drop=True)
    return Tables(*left, tables.species, tables.report), report


def _secondary(recordings: pd.DataFrame, codes: set[str], below: float | None) -> tuple[pd.DataFrame, dict[str, Any]]:
    found = [text.split(";") if text else [] for text in recordings["secondary_labels"]]
    short = recordings["duration_seconds"] < below if below is not None else [True] * len(found)
    inside = [[code for code in labels if code in codes] for labels in found]
    used = [";".join(labels) if use else "" for labels, use in zip(inside, short, strict=True)]
    counts = {
        "secondary_outside_classes": _counts(code for labels in found for code in labels if code not in codes),
        "secondary_unused": sum(len(labels) for labels, use in zip(inside, short, strict=True) if not use),
    }
    return recordings.assign(secondary_labels=pd.Series(used, index=recordings.index, dtype=str)), counts


def _of(recordings: pd.DataFrame, annotations: pd.DataFrame) -> pd.DataFrame:
    """The annotations of these recordings: by `recording`, by path where that is not known."""
    unnamed = recordings["recording"] == ""
    by_path = (annotations["recording"] == "") & annotations["path"].isin(set(recordings.loc[unnamed, "path"]))
    return annotations[by_path | annotations["recording"].isin(set(recordings.loc[~unnamed, "recording"]))]


def _codes(recordings: pd.DataFrame, annotations: pd.DataFrame) -> set[str]:
    """The primary labels, and the species that an annotation says are there."""
    positive = annotations.loc[annotations["state"] == "positive", "species"]
    return (set(recordings["primary_label"]) | set(positive)) - {"", EVERY_OTHER}


def _counts(codes: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(codes).items()))


def class_list(tables: Tables) -> ClassList:
    """The classes that the tables have labels for: primary labels and positively annotated species, sorted.

    Raises: UserError where there is none.
    """
    codes = _codes(tables.recordings, tables.annotations)
    if not codes:
        raise UserError("no class: no recording has a primary label, and no annotation says that a species is there")
    names = {row["code"]: row for row in tables.species.to_dict("records")}
    return ClassList.from_rows([names.get(code, {"code": code}) for code in sorted(codes)])


def rating_weights(recordings: pd.DataFrame) -> np.ndarray:
    """`(recordings,)` float64 sample weights from the ratings: `clip(rating / 5, 0.1, 1)`.

    An unrated recording (NaN or 0) weighs what the rated ones weigh on average, 1 where none is rated.

    Reference: the clip is that of the 2nd place of BirdCLEF 2021 (ChristofHenkel/kaggle-birdclef2021-2nd-place,
    `data/ps_ds_2.py`), with 5 for the largest rating of the table. Differs: there an unrated recording is rated 0 and
    weighs 0.1.
    """
    rating = recordings["rating"].to_numpy(float)
    rated = rating > 0
    weights = np.clip(rating / 5, 0.1, 1.0)
    return np.where(rated, weights, weights[rated].mean() if rated.any() else 1.0)


def write_tables(folder: str, tables: Tables) -> None:
    """Write recordings.csv, annotations.csv and species.csv, each atomically. `report` is not written.

    UTF-8, `\n`, numbers in their shortest exact form, NaN empty. Columns beyond the house's are written too.
    """
    for name in ("recordings", "annotations", "species"):
        frame: pd.DataFrame = getattr(tables, name)
        rows = zip(*(map(_cell, frame[column]) for column in frame.columns), strict=True)
        lines = "".join(",".join(row) + "\n" for row in ((*frame.columns,), *rows))
        storage.write_text(storage.join(folder, f"{name}.csv"), lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(float(value))
    text = str(value)
    # Not by csv.writer, which before Python 3.13 leaves a lone carriage return unquoted.
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\r\n') else text


def load_tables(folder: str) -> Tables:
    """Read what `write_tables` wrote; columns beyond the house's come back as text.

    Raises: UserError where a file or one of its columns is missing, or a number is none.
    """
    recordings = _load(storage.join(folder, "recordings.csv"), RECORDINGS)
    annotations = _load(storage.join(folder, "annotations.csv"), ANNOTATIONS)
    return Tables(recordings, annotations, _load(storage.join(folder, "species.csv"), SPECIES))


def _load(path: str, columns: Sequence[str]) -> pd.DataFrame:
    if not storage.exists(path):
        raise UserError(f"{path}: no such table; birdtpu prepare writes it")
    try:
        lines = list(csv.reader(io.StringIO(storage.read_text(path), newline=""), strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no table of ours ({error})") from error
    header = lines[0] if lines else []
    missing = [name for name in columns if name not in header]
    if missing:
        raise UserError(f"{path}: has no column {missing[0]!r}")
    for number, line in enumerate(lines[1:], start=1):
        if len(line) != len(header):
            raise UserError(f"{path}: row {number} has {len(line)} cells, the header {len(header)}")
    try:
        return pd.DataFrame(
            {
                name: pd.Series([float(cell or "nan") for cell in values], dtype=float)
                if name in _NUMBERS
                else pd.Series(values, dtype=str)
                for name, values in zip(header, _columns(lines, len(header)), strict=True)
            }
        )
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _columns(lines: list[list[str]], count: int) -> list[list[str]]:
    return [[line[i] for line in lines[1:]] for i in range(count)]
