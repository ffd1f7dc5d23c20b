"""One CSV a recording, in a tree like that of the recordings."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import PurePath, PurePosixPath

import pandas as pd

from birdtpu import storage
from birdtpu.errors import UserError

# Bytes; file systems take 255, and the name grows by a suffix and while it is written.
MAX_NAME = 200


def output_name(recording: str | os.PathLike, suffix: str = ".csv") -> str:
    """Where a recording's output goes, relative to the output folder: its own relative path with a suffix added.

    Folders and the old suffix stay, so `a/dawn.wav`, `b/dawn.wav` and `a/dawn.mp3` do not meet. A name too long for a
    file system is cut and ends in a hash of itself.

    Args:
        recording: Path relative to the folder of recordings.
        suffix: Added to the name, such as `".csv"` or `".png"`.

    Raises: UserError where the path is absolute, empty or leads out of the folder.
    """
    path = PurePath(recording)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise UserError(f"{recording}: outputs are named by a path relative to the folder of recordings, without '..'")
    name = os.fsencode(path.name)
    if len(name) > MAX_NAME:
        digest = hashlib.sha256(name).hexdigest()[:12]
        path = path.with_name(name[:MAX_NAME].decode("utf-8", "ignore") + "~" + digest)
    return str(PurePosixPath(*path.parts)) + suffix


def write_table(path: str | os.PathLike, frame: pd.DataFrame) -> None:
    """Write a table as UTF-8 CSV, atomically; seconds and scores to six decimals.

    Letters that are no Unicode (file names in another encoding) are written as `\\udcXX`.
    """
    floats = frame.select_dtypes("floating").columns
    rounded = frame.astype(dict.fromkeys(floats, "float64")).round(6)
    text = rounded.to_csv(index=False, lineterminator="\n")
    storage.write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_failures(path: str | os.PathLike, failures: Sequence[tuple[str, str]]) -> None:
    """Write which files could not be used, and why: `path, reason`, empty where all could."""
    write_table(path, pd.DataFrame(failures, columns=["path", "reason"]))
