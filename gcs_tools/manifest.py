"""What a prefix holds when it is whole: each file's size and crc32c, in one JSON object beside them."""

import json
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
    return entries


def check_name(name: str, place: str) -> None:
    """Raises TransferError where a name would lead out of a folder, or Cloud Storage would not take it."""
    parts = name.split("/")
    bad = {"", ".", ".."} & set(parts) or PurePosixPath(name).is_absolute()
    if bad or "\\" in name or any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in name) or len(name.encode()) > 900:
        raise TransferError(f"{place}: {name!r} cannot be a file's name; rename it")


def files_of(folder: Path) -> list[str]:
    """The names of a folder's files, sorted, without those that begin with a dot.

    Raises: TransferError where there is none, or a name cannot be an object's.
    """
    if not folder.is_dir():
        raise TransferError(f"{folder}: no such folder")
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))
    names = [name for name in names if name not in (NAME, REMOVING)]
    if not names:
        raise TransferError(f"{folder}: holds no files")
    for name in names:
        check_name(name, str(folder))
    return names
