"""From audio files and their tables to a prepared folder: decoded once, cut into records, ready for training.

Results are placed into the shards in the order of the input, whatever the order in which the workers end. So the bytes
do not depend on the workers, and a killed run is taken up where its shards end.
"""

import contextlib
import fcntl
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from birdtpu import storage
from birdtpu.data import shards
from birdtpu.data.audio import Channel
from birdtpu.data.preparing import decoding, prepared
from birdtpu.data.preparing.building import Build
from birdtpu.data.preparing.journal import WORK, Entry, Input, file_size
from birdtpu.data.preparing.pool import Pool
from birdtpu.data.tables import Tables
from birdtpu.errors import UserError

# So many files of each kind are opened to guess how much audio there is, and thus how many shards.
_PROBED_FILES = 20
# PCM16 is at most so many times larger than an honest file; beyond it a header lies.
_MOST_COMPRESSED = 100


@dataclass(frozen=True)
class Report:
    """What `prepare` did.

    Attributes:
        recordings, records, shards: How many the folder holds.
        seconds: Of audio in it.
        reused: Inputs that an earlier run had finished already.
        failures: (input, reason) of each file without usable audio.
        duplicates: (input, the input that it repeats).
        warnings: (input, text) of each damaged file that still gave audio.
        lost_annotations: Annotations of recordings that failed.
    """

    recordings: int
    records: int
    shards: int
    seconds: float
    reused: int
    failures: list[tuple[str, str]] = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    lost_annotations: int = 0


def prepare(
    tables: Tables,
    audio_folders: Mapping[str, str | os.PathLike],
    output: str | os.PathLike,
    *,
    sample_rate: int,
    record_seconds: float,
    workers: int,
    shard_bytes: int = 100_000_000,
    channel: Channel = "mix",
    min_seconds: float = 0.01,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Decode every recording of the tables into shards, and write the tables and a manifest beside them.

    The same input gives the same bytes, whatever the workers and however often the run was killed and repeated. A
    second run decodes only what is new or changed (by length and crc32c), and does nothing where nothing is.

    Args:
        tables: Their recordings' ids and durations are filled in; rows of files that fail are left out.
        audio_folders: The folder of each data set in the tables.
        output: A local folder, new or of an earlier run.
        sample_rate: Of the records, in Hz.
        record_seconds: The most a record holds. A recording of n samples becomes ceil(n / most) records of one length.
        workers: Processes that decode.
        shard_bytes: About how large a shard becomes.
        channel: `mix`, `left` or `right`.
        min_seconds: A shorter file is a failure.
        progress: Called with (files done, files in all).

    Raises: UserError where a folder is missing, the output holds something else or other settings, another run is at
        work in it, the disk is full, or no file gives audio.
    """
    inputs = _inputs(tables, audio_folders)
    settings = {
        "sample_rate": sample_rate,
        "record_seconds": float(record_seconds),
        "channel": channel,
        "min_seconds": float(min_seconds),
    }
    with _at_work(output) as folder:
        build = Build(folder, inputs, settings)
        with Pool(max(1, min(workers, len(inputs)))) as pool:
            build.recall(pool)
            count = _shard_count(pool, inputs, sample_rate, shard_bytes)
            if not build.stands(count):
                build.take_up(count)
                build.decode(pool, progress or (lambda done, total: None))
        entries = {item: build.entries[item.key] for item in inputs}
        _check_some_audio(folder, entries)
        csvs, lost = prepared.render(tables, entries, settings, build.shard_paths, folder / WORK / "tables")
        build.put(csvs)
    kept = [entry for entry in entries.values() if entry.outcome == "ok"]
    return Report(
        recordings=len(kept),
        records=sum(len(entry.pieces) for entry in kept),
        shards=len(build.described),
        seconds=sum(entry.samples for entry in kept) / sample_rate,
        reused=build.reused,
        failures=[(item.key, entry.reason) for item, entry in entries.items() if entry.reason],
        duplicates=[(item.key, entry.original) for item, entry in entries.items() if entry.original],
        warnings=[(item.key, text) for item, entry in entries.items() for text in entry.warnings],
        lost_annotations=lost,
    )


def _check_some_audio(folder: Path, entries: Mapping[Input, Entry]) -> None:
    failures = [(item, entry) for item, entry in entries.items() if entry.reason]
    if len(failures) == len(entries):
        item, entry = failures[0]
        raise UserError(
            f"{folder}: no recording is left, all {len(failures)} files failed; the first is {item.file}: "
            f"{entry.reason} ({entry.detail})"
        )


def _inputs(tables: Tables, audio_folders: Mapping[str, str | os.PathLike]) -> list[Input]:
    """The files of the tables in their canonical order."""
    inputs = []
    for row in tables.recordings.sort_values(["data_set", "path"]).itertuples():
        if row.data_set not in audio_folders:
            raise UserError(f"data set {row.data_set!r}: no audio folder is given for it")
        inputs.append(Input(row.data_set, row.path, row.recording, str(Path(audio_folders[row.data_set], row.path))))
    if not inputs:
        raise UserError("no recording in the tables; nothing to prepare")
    for data_set in sorted({item.data_set for item in inputs}):
        folder = audio_folders[data_set]
        if not any(Path(item.file).exists() for item in inputs if item.data_set == data_set):
            raise UserError(
                f"{folder}: no recording of data set {data_set!r} is in it; give the folder that its table's paths "
                "start from"
            )
    keys = [item.key for item in inputs]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UserError(f"{twice} stands twice in the tables; leave one row of it")
    return inputs


@contextlib.contextmanager
def _at_work(output: str | os.PathLike) -> Iterator[Path]:
    """The output folder, checked and held against a second run."""
    if storage.is_remote(output):
        raise UserError(f"{output}: prepare writes to a local folder; copy the finished one to gs://")
    folder = Path(output)
    with decoding.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not ((folder / shards.MANIFEST).exists() or (folder / WORK).exists()):
            raise UserError(f"{folder}: holds something else than prepared recordings; choose an empty folder")
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: another run is preparing it; wait for its end") from error
        try:
            yield folder
        finally:
            os.close(descriptor)


def _shard_count(pool: Pool, inputs: Sequence[Input], sample_rate: int, shard_bytes: int) -> int:
    """How many shards of about `shard_bytes` the input will fill, from the headers of some files of each kind.

    A guess, but always the same one: it must be known before the first record has its place.
    """
    sizes = {item: file_size(Path(item.file)) for item in inputs}
    kinds: dict[str, list[Input]] = {}
    for item in inputs:
        kinds.setdefault(PurePosixPath(item.path).suffix.lower(), []).append(item)
    total = 0.0
    for items in kinds.values():
        probed = items[:: -(-len(items) // _PROBED_FILES)]
        promised = dict(pool.run(decoding.promised_seconds, [item.file for item in probed]))
        pcm = 0.0
        for i, item in enumerate(probed):
            seconds = promised[i] if isinstance(promised[i], float) else 0.0
            pcm += min(2 * sample_rate * seconds, _MOST_COMPRESSED * sizes[item])
        total += pcm * sum(sizes[item] for item in items) / max(1, sum(sizes[item] for item in probed))
    return max(1, math.ceil(total / shard_bytes))
