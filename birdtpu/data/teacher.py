"""A teacher's saved embeddings of stretches of recordings: their file, and the one that is nearest to a clip."""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from birdtpu import storage
from birdtpu.errors import UserError

_BROKEN = (ValueError, OSError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, eq=False)
class Teacher:
    """What a teacher, such as Perch or BirdNET, said of stretches of recordings.

    Args:
        recording: `(n,)` text: ids or, in a file, paths of the prepared tables.
        start_seconds: `(n,)`, in the recording.
        embedding: `(n, features)` float16 or float32, finite; only the direction counts, and zeros say nothing.
        clip_seconds: How long each stretch is: a clip of the recipe.
        path: The file, for messages.
        sha256: Of the file.
    """

    recording: np.ndarray
    start_seconds: np.ndarray
    embedding: np.ndarray
    clip_seconds: float
    path: str = ""
    sha256: str = ""

    @classmethod
    def load(cls, path: storage.PathLike, clip_seconds: float) -> "Teacher":
        """Read an `.npz` of the first three arrays; the last argument is the recipe's.

        Raises: UserError that names the array where the file is missing, damaged, or holds something else.
        """
        if not storage.exists(path):
            raise UserError(f"teacher {path}: no such file; docs/pseudo-labels.md tells how to write one")
        data = storage.read_bytes(path)
        # A bare .npy would be an array by itself, without names.
        if not zipfile.is_zipfile(io.BytesIO(data)):
            raise UserError(f"teacher {path}: damaged, or no .npz; write it with np.savez")
        arrays = [_array(path, data, name) for name in ("recording", "start_seconds", "embedding")]
        _check(path, *arrays)
        recording, start, embedding = arrays
        sha256 = hashlib.sha256(data).hexdigest()
        return cls(recording, start.astype(float), embedding, clip_seconds, str(path), sha256)

    @property
    def features(self) -> int:
        """The length of an embedding."""
        return self.embedding.shape[1]

    def of(self, recordings: pd.DataFrame) -> "Teacher":
        """The part that is about some recordings, under their ids.

        Args:
            recordings: `recording` and `path`, as in the prepared tables.

        Raises: UserError where the file names a path that several recordings have.
        """
        table = recordings[["recording", "path"]].drop_duplicates()
        by_path = table[~table["path"].isin(table["recording"])]
        clash = by_path.loc[by_path["path"].duplicated() & by_path["path"].isin(self.recording), "path"]
        if len(clash):
            raise UserError(
                f"teacher {self.path}: recording: several recordings have the path {clash.iloc[0]}; give their ids, "
                "the column recording of recordings.csv"
            )
        ids = dict(zip(by_path["path"], by_path["recording"], strict=True)) | {
            name: name for name in table["recording"]
        }
        named = pd.Series(self.recording).map(ids)
        kept = named.notna().to_numpy()
        parts = {name: getattr(self, name)[kept] for name in ("start_seconds", "embedding")}
        return replace(self, recording=named[kept].to_numpy(str), **parts)

    def nearest(self) -> Callable[[str, float], np.ndarray]:
        """(recording, second) -> `(features,)` float32: the embedding of the stretch whose start is nearest.

        It has a length of one. It is zeros where the recording has none, or the nearest is more than half a clip away.
        """
        rows_of = pd.Series(np.arange(len(self.recording))).groupby(self.recording).indices
        nothing = np.zeros(self.features, np.float32)

        def say(recording: str, second: float) -> np.ndarray:
            rows = rows_of.get(recording)
            if rows is None:
                return nothing
            apart = np.abs(self.start_seconds[rows] - second)
            best = int(np.argmin(apart))
            if apart[best] > self.clip_seconds / 2:
                return nothing
            # The square of a large float32 is none.
            found = self.embedding[rows[best]].astype(float)
            length = np.sqrt(np.sum(found**2))
            return (found / length).astype(np.float32) if length else nothing

        return say


def _array(path: storage.PathLike, data: bytes, name: str) -> np.ndarray:
    """One array of an `.npz`. Raises UserError where it is missing or damaged."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            found = file.get(name)
    except _BROKEN as error:
        hint = "; save text with dtype=str" if "Object arrays" in str(error) else ""
        raise UserError(f"teacher {path}: {name}: cannot be read ({error}){hint}") from error
    if not isinstance(found, np.ndarray):
        raise UserError(f"teacher {path}: {name}: there is no such array")
    return found


def _check(path: storage.PathLike, recording: np.ndarray, start: np.ndarray, embedding: np.ndarray) -> None:
    """Raises UserError for the first array that is not what `Teacher` says."""
    count = len(recording) if recording.ndim else 0
    faults = (
        (
            recording.ndim != 1 or recording.dtype.kind != "U",
            f"recording: text of the shape (n,), not {_kind(recording)}",
        ),
        (not count, "recording: is empty"),
        (
            start.shape != (count,) or start.dtype.kind not in "fiu",
            f"start_seconds: numbers of the shape ({count},), one a recording's name, not {_kind(start)}",
        ),
        (
            embedding.ndim != 2
            or len(embedding) != count
            or not embedding.shape[-1]
            or embedding.dtype not in (np.float16, np.float32),
            f"embedding: float16 or float32 of the shape ({count}, features), not {_kind(embedding)}",
        ),
    )
    for wrong, message in faults:
        if wrong:
            raise UserError(f"teacher {path}: {message}")
    for name, array in (("start_seconds", start), ("embedding", embedding)):
        if not np.isfinite(array).all():
            row = int(np.argmin(np.isfinite(array).reshape(count, -1).all(axis=1)))
            raise UserError(f"teacher {path}: {name}: row {row} is no number (NaN or infinite)")


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype} of {array.shape}"
