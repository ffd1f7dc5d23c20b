"""A prepared folder: TFRecord shards, the tables beside them, and the manifest that vouches for every byte."""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pandas as pd

from birdtpu import storage
from birdtpu.data import records
from birdtpu.errors import UserError

VERSION = 1
MANIFEST = "manifest.json"
FOLDER = "shards"
RECORD_COLUMNS = ("record", "recording", "shard", "offset", "length", "start_seconds", "seconds")


def shard_name(index: int, count: int) -> str:
    """The file name of a shard."""
    return f"shard-{index:05d}-of-{count:05d}.tfrecord"


def shard_of(record: str, count: int) -> int:
    """The shard of a record: a hash of its id, the same everywhere and always."""
    return int.from_bytes(hashlib.blake2b(record.encode(), digest_size=8).digest(), "big") % count


def checksum(data: bytes) -> str:
    """The crc32c of some bytes, in hex."""
    return f"{google_crc32c.value(data):08x}"


class ShardWriter:
    """Shards that grow in a folder of their own: it hands out the places, `write_at` fills them.

    Args:
        folder: A local folder; made if it is not there.
        count: How many shards.
        sizes: How much of each shard stands already, in bytes; what lies behind is cut off. None: nothing stands.

    Attributes:
        paths: The shards' files.
        sizes: Their lengths, with what is reserved and not yet written.
    """

    def __init__(self, folder: str | os.PathLike, count: int, sizes: list[int] | None = None) -> None:
        self.paths = [Path(folder, shard_name(i, count)) for i in range(count)]
        self.sizes = list(sizes or [0] * count)
        Path(folder).mkdir(parents=True, exist_ok=True)
        for path, size in zip(self.paths, self.sizes, strict=True):
            with path.open("ab") as file:
                file.truncate(size)

    def reserve(self, shard: int, length: int) -> int:
        """Room for a framed record at the end of a shard. Returns its offset."""
        offset = self.sizes[shard]
        self.sizes[shard] += length
        return offset

    def append(self, shard: int, framed: bytes) -> int:
        """Add a framed record at the end of a shard. Returns its offset."""
        offset = self.reserve(shard, len(framed))
        write_at(self.paths[shard], offset, framed)
        return offset

    def sync(self) -> None:
        """Make all that was written durable."""
        for path in self.paths:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        storage.sync_folder(self.paths[0].parent)

    def describe(self) -> list[dict[str, Any]]:
        """The shards as the manifest lists them. Raises UserError where a record in one is damaged."""
        return [{"name": path.name, **records.measure(path)} for path in self.paths]


def write_at(path: str | os.PathLike, offset: int, framed: bytes) -> None:
    """Write a framed record where room was reserved for it."""
    with Path(path).open("r+b") as file:
        file.seek(offset)
        file.write(framed)


def flush(path: str | os.PathLike) -> None:
    """Bring a file to the disk and out of the page cache.

    Otherwise a large output takes page upon page of memory, which costs more than the writing and drives out what
    others need there.
    """
    with Path(path).open("rb") as file:
        os.fdatasync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def make_manifest(settings: dict[str, Any], described: list[dict[str, Any]], tables: Mapping[str, bytes]) -> bytes:
    """The bytes of a manifest.

    Args:
        settings: What the records were made with: `sample_rate`, `record_seconds` and the like.
        described: The shards, as `ShardWriter.describe` gives them.
        tables: The bytes of each CSV beside the manifest, by name.
    """
    sums = {name: {"bytes": len(data), "crc32c": checksum(data)} for name, data in tables.items()}
    return _sealed({"version": VERSION, **settings, "shards": described, "tables": sums})


def _sealed(content: dict[str, Any]) -> bytes:
    """JSON with its own checksum, in one spelling only, so that no bit of it can turn unnoticed."""
    body = json.dumps(content, indent=1, ensure_ascii=True)
    return (json.dumps({**content, "crc32c": checksum(body.encode())}, indent=1, ensure_ascii=True) + "\n").encode()


_UNFINISHED = "is {} the finished output of `birdtpu prepare`?"


def load_manifest(folder: str | os.PathLike) -> dict[str, Any]:
    """A prepared folder's manifest.

    Returns: `version`, `sample_rate`, `record_seconds`, `channel`, `min_seconds`, `shards` (a list of `name`, `bytes`,
    `crc32c`, `records`) and `tables` (by file name: `bytes`, `crc32c`).

    Raises: UserError where it is missing, damaged or of a later version.
    """
    path = storage.join(folder, MANIFEST)
    if not storage.exists(path):
        raise UserError(f"{path}: not there; {storage.gone(path) or _UNFINISHED.format(folder)}")
    data = storage.read_bytes(path)
    try:
        content = json.loads(data)
        del content["crc32c"]
    except (ValueError, TypeError, KeyError):
        content = None
    if content is None or _sealed(content) != data:
        raise UserError(f"{path}: damaged; copy the folder again, or prepare it again under another name")
    if content["version"] > VERSION:
        raise UserError(f"{path}: written by a later birdtpu (format {content['version']}); update this one")
    return content


def load_table(folder: str | os.PathLike, manifest: dict[str, Any], name: str) -> bytes:
    """The bytes of a CSV beside the manifest. Raises UserError where they are not the manifest's."""
    path = storage.join(folder, name)
    problem = _problem(path, manifest["tables"][name])
    if problem:
        raise UserError(f"{problem}; copy the folder again, or prepare it again under another name")
    return storage.read_bytes(path)


def load_records(folder: str | os.PathLike) -> pd.DataFrame:
    """Where every record lies.

    Returns: a row a record, in the order of the shards: `record`, `recording` (str), `shard` (int, in the manifest's
    order), `offset`, `length` (int, bytes in the shard, with the TFRecord frame), `start_seconds` (in the recording),
    `seconds` (float).

    Raises: UserError as `load_manifest` does, and where the table is damaged.
    """
    data = load_table(folder, load_manifest(folder), "records.csv")
    table = pd.read_csv(io.BytesIO(data), dtype=str, keep_default_na=False)
    kinds = {"shard": "int64", "offset": "int64", "length": "int64", "start_seconds": "float64", "seconds": "float64"}
    return table.astype(kinds)


def load_all_records(folders: Sequence[str | os.PathLike]) -> pd.DataFrame:
    """Where every record of several folders lies, each recording as the first folder that has it cut it.

    Records of one recording from two folders would overlap or leave gaps where those were prepared unlike.

    Returns: the rows of `load_records`, a folder after the other, and `folder` (int, in the order given).
    """
    parts = [load_records(folder).assign(folder=number) for number, folder in enumerate(folders)]
    joined = pd.concat(parts, ignore_index=True)
    first = joined.groupby("recording")["folder"].transform("min")
    return joined[joined["folder"] == first].reset_index(drop=True)


def load_audio_hashes(folder: str | os.PathLike) -> dict[str, str]:
    """Recording -> hash of its decoded audio, which a copy under another name has too."""
    files = load_table(folder, load_manifest(folder), "files.csv")
    table = pd.read_csv(io.BytesIO(files), dtype=str, keep_default_na=False)
    return dict(zip(table["recording"], table["audio_hash"], strict=True))


def read_recording(folder: str | os.PathLike, rows: pd.DataFrame) -> Iterator[np.ndarray]:
    """One recording's audio, a record at a time.

    Args:
        folder: The prepared folder.
        rows: The recording's rows of `load_records`.

    Yields: `(samples,)` float32, in order; joined they are the recording.
    Raises: UserError where a record is damaged.
    """
    names = [entry["name"] for entry in load_manifest(folder)["shards"]]
    for row in rows.sort_values("start_seconds").itertuples():
        path = storage.join(folder, FOLDER, names[row.shard])
        framed = storage.read_bytes(path, row.offset, row.length)
        records.check_frame(framed, path)
        record = records.parse_numpy(records.unframe(framed))
        yield record["audio"] * np.float32(record["gain"])


def verify(folder: str | os.PathLike) -> list[str]:
    """Everything that is wrong with a prepared folder, one line a problem; an empty list if nothing is.

    Every byte is read. Found are flipped bits, truncation (at a record's boundary too), shards and tables that are
    missing, empty, swapped or changed, and shards that do not belong here.
    """
    try:
        manifest = load_manifest(folder)
    except UserError as error:
        return [str(error)]
    home = storage.join(folder, FOLDER)
    expected = {storage.join(folder, name): entry for name, entry in manifest["tables"].items()}
    expected |= {storage.join(home, entry["name"]): entry for entry in manifest["shards"]}
    problems = [problem for path, entry in expected.items() if (problem := _problem(path, entry))]
    names = {entry["name"] for entry in manifest["shards"]}
    present = storage.listdir(home) if storage.exists(home) else []
    return problems + [f"{storage.join(home, name)}: does not belong here" for name in present if name not in names]


def _problem(path: str, entry: dict[str, Any]) -> str:
    if not storage.exists(path):
        return f"{path}: missing"
    data = storage.read_bytes(path)
    if len(data) != entry["bytes"]:
        return f"{path}: {len(data)} bytes instead of {entry['bytes']}"
    return "" if checksum(data) == entry["crc32c"] else f"{path}: damaged (its crc32c is not the manifest's)"
