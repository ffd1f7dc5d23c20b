"""The tables beside the shards: how `prepare` fills them, and what it reads of them the next time."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from birdtpu.data import shards
from birdtpu.data.preparing.decoding import record_id, stretch_samples
from birdtpu.data.preparing.journal import Entry, Input, check_settings, file_size, with_pieces
from birdtpu.data.tables import Tables, unite_labels, write_tables

_WARNING_MARK = " | "


def render(
    tables: Tables,
    entries: Mapping[Input, Entry],
    settings: Mapping[str, Any],
    shard_paths: Sequence[str],
    scratch: Path,
) -> tuple[dict[str, bytes], int]:
    """The bytes of every table beside the manifest, by file name, and how many annotations found no recording.

    Args:
        tables: As they were given to `prepare`.
        entries: What became of each input, in the canonical order.
        settings: `sample_rate` and `record_seconds`.
        shard_paths: The shards in order, as the entries' pieces name them.
        scratch: A folder to write in.
    """
    rate = settings["sample_rate"]
    filled, lost = fill(tables, entries, rate)
    write_tables(str(scratch), filled)
    csvs = {path.name: path.read_bytes() for path in sorted(scratch.iterdir())}
    files = files_table(entries, rate)
    failures = files.loc[files["outcome"] == "failed", ["data_set", "path", "reason", "detail"]]
    records = records_table(list(entries.values()), shard_paths, rate, most_samples(settings))
    for name, table in (("files", files), ("failures", failures), ("records", records)):
        csvs[f"{name}.csv"] = table.to_csv(index=False, lineterminator="\n").encode()
    return csvs, lost


def most_samples(settings: Mapping[str, Any]) -> int:
    """The most samples a record holds."""
    return max(1, round(settings["record_seconds"] * settings["sample_rate"]))


def fill(tables: Tables, entries: Mapping[Input, Entry], sample_rate: int) -> tuple[Tables, int]:
    """The tables of the recordings that are there, ids and durations filled in; and the number of lost annotations.

    A duplicate's labels become secondary ones of its original, and its annotations the original's.
    """
    by_key = {item.key: (item, entry) for item, entry in entries.items()}
    by_path, by_id = {}, {}
    for item, entry in entries.items():
        if not entry.reason:
            by_path[item.path] = by_id[item.recording] = by_key[entry.original or item.key]
    rows = tables.recordings.sort_values(["data_set", "path"])
    keys = [f"{data_set}/{path}" for data_set, path in zip(rows["data_set"], rows["path"], strict=True)]
    found = [by_key[key][1] for key in keys]
    rows = rows.assign(
        recording=[entry.recording for entry in found],
        duration_seconds=[entry.samples / sample_rate for entry in found],
    )
    originals = [entry.original or key for key, entry in zip(keys, found, strict=True)]
    rows = unite_labels(rows, originals, [entry.outcome == "ok" for entry in found])
    boxes = tables.annotations
    owners = [by_id.get(row.recording) if row.recording else by_path.get(row.path) for row in boxes.itertuples()]
    boxes = boxes.assign(
        recording=[owner[1].recording if owner else "" for owner in owners],
        path=[owner[0].path if owner else "" for owner in owners],
    ).loc[np.array([owner is not None for owner in owners], bool)]
    filled = Tables(rows, boxes.drop_duplicates(ignore_index=True), tables.species)
    return filled, owners.count(None)


def files_table(entries: Mapping[Input, Entry], sample_rate: int) -> pd.DataFrame:
    """What became of each input file: a row a file."""
    return pd.DataFrame(
        [
            {
                "data_set": item.data_set,
                "path": item.path,
                "outcome": entry.outcome,
                "reason": entry.reason,
                "detail": entry.detail,
                "warnings": _WARNING_MARK.join(entry.warnings),
                "same_as": entry.original,
                "recording": entry.recording,
                "seconds": entry.samples / sample_rate,
                "records": len(entry.pieces),
                "bytes": entry.size,
                "crc32c": entry.crc32c,
                "audio_hash": entry.audio_hash,
                "samples": entry.samples,
            }
            for item, entry in entries.items()
        ]
    )


def records_table(entries: Sequence[Entry], shard_paths: Sequence[str], sample_rate: int, most: int) -> pd.DataFrame:
    """Where every record lies: a row a record, in the order of the shards."""
    index = {path: i for i, path in enumerate(shard_paths)}
    rows = []
    for entry in entries:
        stretch = stretch_samples(entry.samples, most) if entry.pieces else 0
        for i, (path, offset, length) in enumerate(entry.pieces):
            start_seconds = i * stretch / sample_rate
            seconds = min(stretch, entry.samples - i * stretch) / sample_rate
            record = record_id(entry.recording, i)
            rows.append((record, entry.recording, index[path], offset, length, start_seconds, seconds))
    rows.sort(key=lambda row: (row[2], row[3]))
    return pd.DataFrame(rows, columns=list(shards.RECORD_COLUMNS))


def finished(output: Path, settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Entry]]:
    """What a finished folder tells: its manifest, and an entry for every input whose records are still there.

    Returns: ({}, {}) where there is no manifest.

    Raises: UserError where it was made with other settings, or its manifest or tables are damaged.
    """
    if not (output / shards.MANIFEST).exists():
        return {}, {}
    manifest = shards.load_manifest(output)
    check_settings(output, manifest, settings)
    paths = [f"{shards.FOLDER}/{shard['name']}" for shard in manifest["shards"]]
    whole = [file_size(output / path) == shard["bytes"] for path, shard in zip(paths, manifest["shards"], strict=True)]
    pieces: dict[str, list] = {}
    for row in shards.load_records(output).sort_values(["recording", "start_seconds"]).itertuples():
        # A shard of another length is no longer the one that was written.
        place = (paths[row.shard], row.offset, row.length) if whole[row.shard] else ("", 0, 1)
        pieces.setdefault(row.recording, []).append(place)
    files = shards.load_table(output, manifest, "files.csv")
    entries = {}
    for row in pd.read_csv(io.BytesIO(files), dtype=str, keep_default_na=False).to_dict("records"):
        entry = Entry(
            size=int(row["bytes"]),
            crc32c=row["crc32c"],
            reason=row["reason"],
            detail=row["detail"],
            warnings=[text for text in row["warnings"].split(_WARNING_MARK) if text],
            recording=row["recording"],
            audio_hash=row["audio_hash"],
            samples=int(row["samples"]),
            original=row["same_as"],
        )
        entry.pieces = pieces[entry.recording] if entry.outcome == "ok" else []
        entries[f"{row['data_set']}/{row['path']}"] = entry
    return manifest, with_pieces(output, entries)
