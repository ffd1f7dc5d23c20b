"""One face for local paths and `gs://`: open, list, exists, atomic write.

TensorFlow is imported only when a `gs://` path is met.
"""

import contextlib
import errno
import os
import re
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from birdtpu.errors import UserError

PathLike = str | os.PathLike[str]

# By itself TensorFlow fetches 64 MiB of a gs:// file for whatever is read of it. It looks here when it is imported:
# what is larger than this is fetched as it is asked for.
_READ_AHEAD = "GCS_READAHEAD_BUFFER_SIZE_BYTES"
TENSORFLOW_CAME_FIRST = "tensorflow" in sys.modules and _READ_AHEAD not in os.environ
os.environ.setdefault(_READ_AHEAD, str(1 << 20))

# The names that `atomic_write` writes under.
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def paths_of(given: PathLike | Sequence[PathLike]) -> list[str]:
    """One path or several, as a list of text."""
    return [os.fspath(path) for path in ([given] if isinstance(given, str | os.PathLike) else given)]


def is_remote(path: str | os.PathLike) -> bool:
    """Whether `path` lies on Google Cloud Storage."""
    return str(path).startswith("gs://")


def gone(path: str | os.PathLike) -> str:
    """Why a bucket that Kaggle lends is not there any more, and how to get today's; empty for other paths."""
    if not str(path).startswith("gs://kds-"):
        return ""
    return (
        "Kaggle moves a data set's bucket about once a week; in a Kaggle notebook "
        "`from kaggle_datasets import KaggleDatasets; KaggleDatasets().get_gcs_path('NAME')` tells today's"
    )


def join(base: str | os.PathLike, *parts: str) -> str:
    """`base/part/...`, for local and `gs://` paths alike."""
    if is_remote(base):
        return "/".join([str(base).rstrip("/"), *parts])
    return str(Path(base, *parts))


@contextlib.contextmanager
def _gfile(path: str | os.PathLike) -> Iterator[Any]:
    """TensorFlow's file functions, whose errors come out as Python's own or as one line that names the path."""
    try:
        from tensorflow import errors, io  # pyright: ignore
    except ImportError as error:
        raise UserError("gs:// paths are read by TensorFlow: pip install 'birdtpu[cpu]'") from error
    try:
        yield io.gfile
    except errors.NotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
    except errors.OpError as error:
        reason = (error.message.strip().splitlines() or ["no reason given"])[0]
        hint = gone(path) if isinstance(error, errors.PermissionDeniedError) else ""
        raise UserError(f"{path}: {'; '.join(filter(None, [reason, hint]))}") from error


def exists(path: str | os.PathLike) -> bool:
    """Whether a file or folder is there."""
    if is_remote(path):
        with _gfile(path) as gfile:
            return gfile.exists(str(path))
    return Path(path).exists()


def listdir(path: str | os.PathLike) -> list[str]:
    """The sorted names in a folder."""
    if is_remote(path):
        with _gfile(path) as gfile:
            return sorted(name.rstrip("/") for name in gfile.listdir(str(path)))
    return sorted(os.listdir(path))


def makedirs(path: str | os.PathLike) -> None:
    """Make a folder and its parents; one that stands is left alone."""
    if is_remote(path):
        with _gfile(path) as gfile:
            gfile.makedirs(str(path))
    else:
        Path(path).mkdir(parents=True, exist_ok=True)


def remove(path: str | os.PathLike) -> None:
    """Remove a file; one that is not there is no error."""
    if is_remote(path):
        with contextlib.suppress(FileNotFoundError), _gfile(path) as gfile:
            gfile.remove(str(path))
    else:
        Path(path).unlink(missing_ok=True)


def read_bytes(path: str | os.PathLike, offset: int = 0, length: int = -1) -> bytes:
    """A file's bytes: `length` of them from `offset`, or all that follow."""
    if is_remote(path):
        with _gfile(path) as gfile:
            if not offset and length < 0:
                # One request, however large it is.
                from tensorflow import io  # pyright: ignore

                return io.read_file(str(path)).numpy()
            with gfile.GFile(str(path), "rb") as file:
                file.seek(offset)
                return file.read(length)
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)


def read_text(path: str | os.PathLike) -> str:
    """A whole file as UTF-8 text."""
    return read_bytes(path).decode("utf-8")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file that appears under its name only when it is whole.

    Locally: a temporary name in the same folder, fsync, rename, fsync of the folder. On `gs://` an object appears
    only when its upload ends. After an exception nothing is left behind.

    Args:
        path: Where the file shall stand. Its folder is made.
        mode: `"wb"`, or `"w"` for UTF-8 text with `\\n` line ends.

    Raises: UserError on a full disk, else whatever the body or the file system raises; `path` is then as it was.
    """
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    if is_remote(path):
        # An object is created when its upload is closed, so the body must end before the writer exists.
        import io

        buffer = io.BytesIO() if "b" in mode else io.StringIO()
        yield buffer
        with _gfile(path) as gfile, gfile.GFile(str(path), mode) as file:
            file.write(buffer.getvalue())
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise UserError(f"{path}: {error.strerror}; free space, or give another folder") from error
        raise
    sync_folder(target.parent)


def check_can_write(path: str | os.PathLike) -> None:
    """Raises UserError where a local file cannot be written, before hours are spent on what shall stand in it."""
    if is_remote(path):
        return
    target = Path(path)
    if target.is_dir():
        raise UserError(f"{path}: is a folder; give a file")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        raise UserError(f"{path}: cannot be written there ({error.strerror}); give another place") from error


def sweep(folder: str | os.PathLike) -> None:
    """Remove what a kill in the middle of an `atomic_write` left in a folder; nobody else may be writing there."""
    if not is_remote(folder):
        for left in Path(folder).iterdir():
            if _TEMPORARY.fullmatch(left.name):
                left.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Keep a local folder to this process for as long as the body runs.

    It is made where there is none, and then removed again if it was left empty.

    Raises: UserError where another process has it.
    """
    if is_remote(folder):
        yield
        return
    import fcntl

    made = not Path(folder).exists()
    makedirs(folder)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another process is writing here; wait for it or end it") from None
        except OSError:
            # Some network file systems know no locks.
            pass
        try:
            yield
        finally:
            if made:
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()
    finally:
        os.close(descriptor)


def sync_folder(path: str | os.PathLike) -> None:
    """Make renames in a local folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_write(path) as file:
        file.write(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a whole UTF-8 file atomically."""
    with atomic_write(path, "w") as file:
        file.write(text)
