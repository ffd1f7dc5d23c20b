"""From folders of recordings to a prepared folder."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd

from birdtpu import storage
from birdtpu.data import folds as folding
from birdtpu.data import prepare as preparing
from birdtpu.data import tables as tabling
from birdtpu.errors import UserError
from birdtpu.recipe import Recipe, recipe_of
from birdtpu.storage import PathLike, paths_of

TABLES_REPORT = "tables_report.json"


@dataclass(frozen=True)
class Report(preparing.Report):
    """What `prepare` did, from the tables on.

    Args:
        tables: What became of the tables, as `data.tables.Tables.report` has it.
    """

    tables: dict[str, Any] = field(default_factory=dict)


def prepare(
    recipe: Recipe | PathLike,
    audio: PathLike | Sequence[PathLike],
    output: PathLike,
    *,
    table: PathLike | Sequence[PathLike | None] | None = None,
    folds: PathLike | None = None,
    taxonomy: PathLike | None = None,
    workers: int | None = None,
    unlabelled: bool = False,
    settings: Sequence[str] = (),
) -> Report:
    """Decode recordings once, for any number of trainings.

    Args:
        recipe: Gives the sample rate and the length of the records.
        audio: Folder or folders of recordings, in any layout that `data.tables.read_tables` knows.
        output: The prepared folder; an interrupted or earlier run in it is taken up.
        table: The table of each folder, in their order; None where the folder has its own or is a tree of species.
        folds: A CSV of `filename,fold` to store with the tables.
        taxonomy: A CSV of species codes with scientific names, for tables that have only the latter.
        workers: Processes that decode; None: one a core.
        unlabelled: Nothing is known of any recording: no table and no folder's name is a label. For `pseudo_label`.
        settings: Changes to the recipe, as `table.key=value`.

    Returns: what was done; its `tables` are written beside the shards too (`TABLES_REPORT`).
    Raises: UserError on a wrong path or table, or where no recording is left.
    """
    recipe, folders = recipe_of(recipe, settings), paths_of(audio)
    given = [table] if table is None or isinstance(table, str | os.PathLike) else list(table)
    taxonomy = None if taxonomy is None else os.fspath(taxonomy)
    if len(given) > len(folders):
        raise UserError(f"{len(given)} tables for {len(folders)} audio folders: give --table after its --audio")
    if unlabelled and (table is not None or folds):
        raise UserError("--unlabelled: the recordings have no labels and no folds; leave --table and --folds away")
    names = _data_set_names(folders)
    parts, homes = [], {}
    for folder, csv, name in zip_longest(folders, given[: len(folders)], names):
        csv = None if csv is None else os.fspath(csv)
        if unlabelled:
            part = tabling.unlabelled_tables(folder, data_set=name)
        else:
            part = tabling.read_tables(folder, csv, data_set=name, taxonomy=taxonomy)
        homes[name] = folder
        parts.append(part)
    merged = tabling.merge_tables(parts) if len(parts) > 1 else parts[0]
    if folds:
        fold = folding.folds_from_csv(folds, merged.recordings)
        merged = replace(merged, recordings=merged.recordings.assign(fold=fold))
    from tqdm.auto import tqdm

    bar = tqdm(total=len(merged.recordings), unit=" files", disable=None)

    def progress(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    with bar:
        done = preparing.prepare(
            merged,
            homes,
            output,
            sample_rate=recipe.audio.sample_rate,
            record_seconds=recipe.audio.record_seconds,
            workers=workers or os.cpu_count() or 1,
            channel=recipe.audio.channel,
            min_seconds=recipe.audio.min_seconds,
            progress=progress,
        )
    # It tells of the tables' own paths, so it is none of the files that are the same wherever the input lies.
    storage.write_text(storage.join(output, TABLES_REPORT), json.dumps(merged.report, indent=1) + "\n")
    return Report(**vars(done), tables=merged.report)


def report_lines(report: Report) -> list[str]:
    """A line for each kind of thing that was left out, passed over or joined, beside failures and files not found."""
    tables = report.tables
    named = {
        "files.csv": {
            "damaged files gave audio all the same": list(dict(report.warnings)),
            "files repeat a recording and were left out": list(dict(report.duplicates)),
        },
        TABLES_REPORT: {
            "audio files are not used: no table names them, or they copy one that is": tables["unused"],
            "audio files lie in no folder of a species and are not used": tables["unlabelled"],
            "tables name no file here and were passed over": tables["skipped"],
            "recordings of no known species were left out": tables["dropped"]["recordings"],
            "secondary labels without a code were dropped": tables["dropped"]["secondary_labels"],
        },
    }
    counted = {
        "rows name a recording once more: their labels were joined": tables["repeated"],
        "files share a xeno-canto number under different names: each is a recording": tables["pieces"],
        "recordings stand in two data sets: their labels were joined": tables.get("in_two_data_sets", 0),
        "annotations are of files that failed": report.lost_annotations,
    }
    lines = []
    for where, kinds in named.items():
        for what, names in kinds.items():
            if names:
                count = sum(names.values()) if isinstance(names, dict) else len(names)
                example = next(iter(names)) + (", ..." if len(names) > 1 else "")
                lines.append(f"{count} {what} ({example}); {where} names them")
    return lines + [f"{count} {what}" for what, count in counted.items() if count]


def _data_set_names(folders: Sequence[str]) -> list[str | None]:
    """The folders' own names, with a number where two would have the same."""
    names = pd.Series([Path(folder).resolve().name or "audio" for folder in folders])
    count = names.groupby(names).cumcount()
    return [name if number == 0 else f"{name}-{number + 1}" for name, number in zip(names, count, strict=True)]
