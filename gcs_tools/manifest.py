"""What a prefix holds when it is whole: each file's size and crc32c, in one JSON object beside them."""

import json
import os
from pathlib import Path, PurePosixPath

import google_crc32c

from gcs_tools.bucket import Entry, TransferError

NAME = "gcs-manifest.json"
# Stands in the manifest's place while its objects are removed.
REMOVING = "gcs-manifest.removing.json"
_VERSION = 1


def to_bytes(entries: dict[str, Entry]) -> bytes:
    """The manifest of these files; the same for the same files."""
    files = {name: {"bytes": e.size, "crc32c": e.crc32c} for name, e in sorted(entries.items())}
    body = json.dumps({"version": _VERSION, "files": files}, indent=1)
    sealed = {"version": _VERSION, "files": files, "crc32c": f"{google_crc32c.value(body.encode()):08x}"}
    return (json.dumps(sealed, indent=1) + "\n").encode()


def from_bytes(data: bytes, place: str) -> dict[str, Entry]:
    """The files of a manifest.

    Raises: TransferError where it is damaged, or names a file outside its folder.
    """
    try:
        content = json.loads(data)
        entries = {name: Entry(int(e["bytes"]), str(e["crc32c"])) for name, e in content["files"].items()}
        whole = content["version"] == _VERSION and to_bytes(entries) == data
    except (ValueError, KeyError, TypeError, AttributeError):
        whole, entries = False, {}
    if not whole:
        raise TransferError(f"{place}: damaged, or of another version; push the folder again")
    for name in entries:
        check_name(name, place)
    folders = {str(parent) for name in entries for parent in PurePosixPath(name).parents}
    if both := sorted(folders & entries.keys()):
        raise TransferError(f"{place}: {both[0]!r} is a file and a folder there; rename one and push again")
    return entries


def check_name(name: str, place: str) -> None:
    """Raises TransferError where a name would lead out of a folder, or Cloud Storage would not take it."""
    parts = name.split("/")
    # What begins with a dot is never sent, and would be a setting where it is fetched to.
    bad = any(part[:1] in ("", ".") for part in parts)
    if bad or "\\" in name or any(_control(ord(c)) for c in name) or len(name.encode()) > 900:
        raise TransferError(f"{place}: {name!r} cannot be a file's name; rename it")


def _control(code: int) -> bool:
    """Whether a character moves a cursor, or is half a one."""
    return code < 32 or 127 <= code < 160 or 0xD800 <= code < 0xE000


def files_of(folder: Path) -> list[str]:
    """The names of a folder's files, sorted, without those that begin with a dot; links are followed.

    Raises: TransferError where there is none, one cannot be read, or a name cannot be an object's.
    """
    if not folder.is_dir():
        raise TransferError(f"{folder}: no such folder")
    found = _below(folder, "", {os.path.realpath(folder)})
    names = sorted(name for name in found if name not in (NAME, REMOVING))
    if not names:
        raise TransferError(f"{folder}: holds no files")
    for name in names:
        check_name(name, str(folder))
    return names


def _below(folder: Path, above: str, opened: set[str]) -> list[str]:
    """The names of what lies in a folder; `opened` are those on the way to it."""
    names = []
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise TransferError(f"{folder}: {error.strerror}") from error
    for entry in entries:
        if entry.is_dir():
            real = os.path.realpath(entry)
            if real in opened:
                raise TransferError(f"{entry.path}: a link to a folder that it lies in; remove it")
            names += _below(Path(entry), f"{above}{entry.name}/", {*opened, real})
        elif entry.is_file():
            names.append(above + entry.name)
        else:
            raise TransferError(f"{entry.path}: no file, or a link that leads to none; remove it")
    return names
