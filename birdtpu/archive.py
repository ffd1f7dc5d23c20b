"""Unpack archives from elsewhere: what an archive holds is read before anything is written, and refused as a whole."""

import contextlib
import gzip
import lzma
import os
import re
import shutil
import stat
import tarfile
import uuid
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from birdtpu import storage
from birdtpu.errors import UserError

MOST_MEMBERS = 1_000_000
# Deflate reaches 1032 to 1; real data stay far below this, though a file of silence in between may not.
MOST_RATIO = 400
HARMLESS_BYTES, HARMLESS_MEMBER_BYTES = 1_000_000, 100_000_000
_LONGEST_NAME = 255
_LONGEST_HEADER = 1 << 20
_BLOCK = 512
_DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, UnicodeDecodeError,
    NotImplementedError,
)  # fmt: skip
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


class Damaged(UserError):
    """The archive did not arrive as it was sent."""


class NoRoom(UserError):
    """The disk cannot hold what is in the archive."""


@dataclass(frozen=True)
class _Member:
    """A file of an archive; a .tar knows neither its bytes in the archive nor its checksum."""

    name: str
    size: int
    packed: int | None
    crc32: int | None
    key: Any


def unpack(
    archive: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    ours: Collection[str] = (),
    say: Callable[[Iterable, int], Iterable] | None = None,
) -> list[str]:
    """Unpack a .zip, .tar or .tar.gz into a folder.

    A member appears under its name when it is whole. A file that stands there already with a zip member's size and
    checksum is not written again, so that an interrupted call goes on.

    Args:
        archive: Recognised by its bytes.
        folder: Made if need be; files in it that have other names are left alone.
        ours: Names at the top of the folder that no member may have, for what its caller notes there.
        say: Wraps the members in a progress bar, given their number.

    Returns: the names of the files, relative to the folder.
    Raises: Damaged; NoRoom; UserError where the archive would write outside of the folder or over its caller's notes,
        holds links or devices, or would grow beyond reason. Nothing is written then, but where damage only shows in the
        middle of a file.
    """
    path, target = Path(archive), Path(folder)
    with _opened(path) as (members, read):
        listed = _checked(path, members, {name.casefold() for name in ours})
        target.mkdir(parents=True, exist_ok=True)
        storage.sweep(target)
        free = shutil.disk_usage(target).free
        missing = [m for m in listed if not (target / m.name).is_file() or (target / m.name).stat().st_size != m.size]
        if sum(m.size for m in missing) > free:
            need = sum(m.size for m in missing) / 1e6
            raise NoRoom(f"{path}: its files need {need:.0f} MB, but {target} has {free / 1e6:.0f} MB free")
        for member in say(listed, len(listed)) if say else listed:
            if not _stands(target / member.name, member):
                _write(path, target, member, read)
    return [member.name for member in listed]


def _checked(path: Path, members: Iterable[_Member], ours: Collection[str]) -> list[_Member]:
    """The members, if all of them may be written; `ours` are names in small letters."""
    most = path.stat().st_size
    found: list[_Member] = []
    total = packed = 0
    files: set[str] = set()
    folders: set[str] = set()
    for member in members:
        total, packed = total + member.size, packed + (member.packed or 0)
        if reason := _wrong_name(member.name):
            raise _refused(path, member.name, reason)
        # A disk may not tell small letters from capitals.
        if member.name.partition("/")[0].casefold() in ours:
            raise _refused(path, member.name, "a name under which birdtpu keeps its own notes; unpack it by hand")
        if len(found) == MOST_MEMBERS:
            raise _refused(path, member.name, f"more than {MOST_MEMBERS} files")
        if member.name in files:
            raise _refused(path, member.name, "the name stands there twice")
        files.add(member.name)
        folders.update(str(parent) for parent in Path(member.name).parents)
        inside = most if member.packed is None else member.packed
        if member.size > HARMLESS_MEMBER_BYTES and member.size > MOST_RATIO * inside:
            raise _refused(path, member.name, f"{member.size} bytes out of {inside}, as in a zip bomb")
        # Files that share their bytes hold more than the archive does.
        if packed > most or (total > HARMLESS_BYTES and total > MOST_RATIO * most):
            raise _refused(path, member.name, f"{total} bytes up to there out of {most}, as in a zip bomb")
        found.append(member)
    if not found:
        raise Damaged(f"{path}: no file in it; fetch it again")
    if both := sorted(files & folders):
        raise _refused(path, both[0], "a file and a folder have this name")
    return found


def _wrong_name(name: str) -> str:
    """Why a file may not have this name; empty where it may."""
    parts = name.split("/")
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "an absolute name"
    if ".." in parts:
        return "a name that leads out of the folder"
    if not all(parts) or "." in parts or re.search(r"[\x00-\x1f\x7f-\x9f]", name):
        return "not a name that a file should have"
    try:
        longest = max(len(part.encode()) for part in parts)
    except UnicodeEncodeError:
        return "a name that is no Unicode"
    return "a name that is too long" if longest > _LONGEST_NAME or len(name.encode()) > 4000 else ""


def _stands(file: Path, member: _Member) -> bool:
    if member.crc32 is None or not file.is_file() or file.is_symlink() or file.stat().st_size != member.size:
        return False
    crc = 0
    with open(file, "rb") as held:
        while block := held.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc == member.crc32


def _write(path: Path, target: Path, member: _Member, read: Callable[[_Member], IO[bytes]]) -> None:
    temporary = target / f".unpacking.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with read(member) as source, open(temporary, "wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        if temporary.stat().st_size != member.size:
            raise Damaged(f"{path}: {member.name} ends too early; the archive is damaged, fetch it again")
        (target / member.name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, target / member.name)
    except _DAMAGED as error:
        raise Damaged(f"{path}: {member.name} is damaged ({error}); fetch the archive again") from error
    except OSError as error:
        if error.errno in storage.FULL:
            raise NoRoom(f"{target}: {error.strerror}; free space, and the same call goes on") from error
        if error.filename is None:
            # bzip2 tells damage so, and a wrong place in the archive is none that can be sought.
            raise Damaged(f"{path}: {member.name} is damaged ({error}); fetch the archive again") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Iterator[_Member], Callable[[_Member], IO[bytes]]]]:
    """The members of an archive, and what opens one of them."""
    with open(path, "rb") as file:
        head = file.read(2)
    with contextlib.ExitStack() as stack:
        with _legible(path):
            if head == b"PK":
                archive = stack.enter_context(zipfile.ZipFile(path))
                found = _zip_members(path, archive), partial(_open_zipped, archive)
            else:
                opener: Any = gzip.open if head == b"\x1f\x8b" else open
                measured: Any = _Measured(stack.enter_context(opener(path, "rb")))
                tar = stack.enter_context(tarfile.open(fileobj=measured, mode="r:"))
                found = _tar_members(path, tar, measured), partial(_open_tarred, tar)
        yield found


@contextlib.contextmanager
def _legible(path: Path) -> Iterator[None]:
    """What the libraries raise where they cannot read an archive, as Damaged."""
    try:
        yield
    except UserError:
        raise
    except (*_DAMAGED, ValueError, OverflowError) as error:
        # The last two: a header may send the reader to a place that no file has.
        raise Damaged(
            f"{path}: no archive, or a damaged one ({str(error) or type(error).__name__}); fetch it again"
        ) from error


def _zip_members(path: Path, archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():
        # The library cuts a name at its first NUL, and would write a link as a file that holds its target. Windows has
        # written backslashes, and folders without a slash at their end.
        name, kind = _plain(info.orig_filename.replace("\\", "/")), stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refused(path, name, "a link or a device")
        if info.flag_bits & 0x1:
            raise _refused(path, name, "it is encrypted")
        if name.endswith("/") or (info.external_attr & 0x10 and not info.file_size):
            if (name := name.rstrip("/")) and (reason := _wrong_name(name)):
                raise _refused(path, name, reason)
        elif info.compress_type not in _METHODS:
            raise _refused(path, name, f"packed by method {info.compress_type}, which Python does not know")
        else:
            yield _Member(name, info.file_size, info.compress_size, info.CRC, info)


def _plain(name: str) -> str:
    """An archive of a whole folder names its files, and the folder itself, by a leading `./`."""
    return "" if name in (".", "./") else name.removeprefix("./")


def _open_zipped(archive: zipfile.ZipFile, member: _Member) -> IO[bytes]:
    return archive.open(member.key)


def _tar_members(path: Path, archive: tarfile.TarFile, file: "_Measured") -> Iterator[_Member]:
    with _legible(path):
        for entry in archive:
            name = _plain(entry.name)
            if entry.isreg():
                yield _Member(name, entry.size, None, None, entry)
            elif not entry.isdir():
                raise _refused(path, name, "a link or a device")
            elif name and (reason := _wrong_name(name)):
                raise _refused(path, name, reason)
        # The library takes any end for the end, and a damaged header for one too.
        if file.last != bytes(_BLOCK):
            raise tarfile.ReadError("its end is missing")
        # What is packed has its checksum behind all that is of use.
        while file.read(_LONGEST_HEADER):
            if file.tell() > archive.offset + HARMLESS_MEMBER_BYTES:
                raise tarfile.ReadError("too much follows its end")


def _open_tarred(archive: tarfile.TarFile, member: _Member) -> IO[bytes]:
    source = archive.extractfile(member.key)
    assert source is not None
    return source


class _Measured:
    """A file whose reader asks for little at a time: a tar's extended headers are read at once, however long."""

    def __init__(self, file: Any) -> None:
        self._file, self.last = file, b""
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        self.last = self._file.read(size)
        return self.last


def _refused(path: Path, name: str, reason: str) -> UserError:
    return UserError(f"{path}: not unpacked, for {name[:200]!r}: {reason}")
