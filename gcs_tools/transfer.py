"""Folders to Cloud Storage and back. A prefix with a manifest is whole: it goes first and comes last."""

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePosixPath
from tempfile import NamedTemporaryFile
from typing import TypeVar

from tqdm.auto import tqdm

from gcs_tools import manifest
from gcs_tools.bucket import Entry, Prefix, TransferError, file_entry

WORKERS = 8
DEADLINE_SECONDS = 120.0
# A reader of a prepared folder takes this file for the sign that the rest is there.
_SEAL = "manifest.json"
# The names that an object is fetched under.
_GROWING = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Report:
    """What a push or a pull did.

    Args:
        files: How many there are now.
        moved: How many of them were sent or fetched.
        moved_bytes: Their bytes.
        others: Objects below the prefix that the manifest does not list.
    """

    files: int
    moved: int
    moved_bytes: int
    others: int


def push(
    folder: str | PathLike[str], url: str, *, workers: int = WORKERS, deadline_seconds: float = DEADLINE_SECONDS
) -> Report:
    """Send a folder below `gs://bucket/prefix`: what is missing there or differs, then the manifest.

    Names that begin with a dot are left out, and what else lies below the prefix is left alone. After an interruption
    or an error the same call goes on.

    Raises: TransferError.
    """
    home = Path(folder)
    names = manifest.files_of(home)
    local = dict(zip(names, _each(workers, lambda name: file_entry(home / name), names, "reading", None), strict=True))
    with Prefix(url, deadline_seconds) as remote:
        held = remote.list()
        others = len(held.keys() - local.keys() - {manifest.NAME, manifest.REMOVING})
        wanted = manifest.to_bytes(local)
        differing = [name for name in names if not local[name].same_bytes(held.get(name))]
        if not differing and manifest.NAME in held and remote.read(manifest.NAME) == wanted:
            return Report(len(names), 0, 0, others)
        # From here on the prefix is not whole, and nobody shall take it for that.
        for name in (manifest.NAME, *(name for name in held if _is_seal(name) and differing), manifest.REMOVING):
            if name in held:
                remote.delete(name, held.pop(name).generation)
        differing = [name for name in names if not local[name].same_bytes(held.get(name))]

        def send(name: str) -> None:
            remote.put(name, home / name, local[name], held.get(name))

        for part in ([n for n in differing if not _is_seal(n)], [n for n in differing if _is_seal(n)]):
            _each(workers, send, part, "sending", local)
        _put_bytes(remote, manifest.NAME, wanted, None)
        return Report(len(names), len(differing), sum(local[name].size for name in differing), others)


def pull(
    url: str, folder: str | PathLike[str], *, workers: int = WORKERS, deadline_seconds: float = DEADLINE_SECONDS
) -> Report:
    """Fetch what the manifest of a prefix lists into a folder: what is missing there or differs.

    Each file appears when it is whole and has the manifest's crc32c; a file named `manifest.json` comes last. After an
    interruption or an error the same call goes on.

    Raises: TransferError, also where the prefix has no manifest.
    """
    home = Path(folder)
    with Prefix(url, deadline_seconds) as remote:
        entries = _entries(remote)
        with _alone(home, {str(PurePosixPath(name).parent) for name in entries}):
            return _pull(remote, home, entries, workers)


def _pull(remote: Prefix, home: Path, entries: dict[str, Entry], workers: int) -> Report:
    """Fetch the entries that are missing in a folder or differ."""

    def differs(name: str) -> bool:
        path = home / name
        return not (path.is_file() and path.stat().st_size == entries[name].size) or not (
            entries[name].same_bytes(file_entry(path))
        )

    found = _each(workers, differs, list(entries), "comparing", None)
    missing = [name for name, gone in zip(entries, found, strict=True) if gone]

    def fetch(name: str) -> None:
        remote.get(name, entries[name], home / name)

    seals = [name for name in missing if _is_seal(name)]
    for name in seals:
        (home / name).unlink(missing_ok=True)
    for part in ([name for name in missing if name not in seals], seals):
        _each(workers, fetch, part, "fetching", entries)
    return Report(len(entries), len(missing), sum(entries[name].size for name in missing), 0)


@contextlib.contextmanager
def _alone(home: Path, folders: Iterable[str]) -> Iterator[None]:
    """Keep a folder to this call, without what an interrupted one left in its `folders`: before, and after another
    interruption.

    Raises: TransferError where another call has it.
    """
    home.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(home, os.O_RDONLY)

    def sweep() -> None:
        for folder in folders:
            for left in (home / folder).glob(".*.tmp"):
                if _GROWING.fullmatch(left.name):
                    left.unlink(missing_ok=True)

    try:
        # Some network file systems know no locks.
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TransferError(f"{home}: another process is writing here; wait for it or end it") from None
            sweep()
        try:
            yield
        except KeyboardInterrupt:
            sweep()
            raise
    finally:
        os.close(descriptor)


def verify(url: str, *, deadline_seconds: float = DEADLINE_SECONDS) -> list[str]:
    """What is wrong with a prefix, a line each: its objects' size and crc32c, as Cloud Storage has them, against its
    manifest. An empty list: it is whole.

    Raises: TransferError where there is no manifest.
    """
    with Prefix(url, deadline_seconds) as remote:
        entries, held = _entries(remote), remote.list()
    problems = []
    for name, entry in entries.items():
        if name not in held:
            problems.append(f"{remote.url}/{name}: missing")
        elif not entry.same_bytes(held[name]):
            there = held[name]
            problems.append(
                f"{remote.url}/{name}: {there.size} bytes with crc32c {there.crc32c}, "
                f"not {entry.size} with {entry.crc32c}"
            )
    return problems


def ls(url: str, *, deadline_seconds: float = DEADLINE_SECONDS) -> dict[str, Entry]:
    """The objects below a prefix, by their names behind it."""
    with Prefix(url, deadline_seconds) as remote:
        return remote.list()


def rm(url: str, *, workers: int = WORKERS, deadline_seconds: float = DEADLINE_SECONDS) -> Report:
    """Remove what the manifest of a prefix lists, and the manifest; nothing else. After an interruption it goes on.

    Raises: TransferError where there is no manifest.
    """
    with Prefix(url, deadline_seconds) as remote:
        held = remote.list()
        if manifest.REMOVING in held and manifest.NAME not in held:
            entries = manifest.from_bytes(remote.read(manifest.REMOVING) or b"", f"{remote.url}/{manifest.REMOVING}")
        else:
            if manifest.NAME not in held:
                raise _no_manifest(remote)
            entries = _entries(remote)
            _put_bytes(remote, manifest.REMOVING, manifest.to_bytes(entries), held.get(manifest.REMOVING))
            remote.delete(manifest.NAME, held[manifest.NAME].generation)
        names = [name for name in entries if name in held]
        _each(workers, lambda name: remote.delete(name, held[name].generation), names, "removing", None)
        left = remote.list()
        if manifest.REMOVING in left:
            remote.delete(manifest.REMOVING, left[manifest.REMOVING].generation)
        size = sum(held[name].size for name in names)
        return Report(0, len(names), size, len(left.keys() - {manifest.REMOVING}))


def _entries(remote: Prefix) -> dict[str, Entry]:
    data = remote.read(manifest.NAME)
    if data is None:
        raise _no_manifest(remote)
    return manifest.from_bytes(data, f"{remote.url}/{manifest.NAME}")


def _no_manifest(remote: Prefix) -> TransferError:
    return TransferError(
        f"{remote.url}: no {manifest.NAME}: nothing was pushed here, or not all of it (push it again), "
        "or its removal was interrupted (rm it again)"
    )


def _put_bytes(remote: Prefix, name: str, data: bytes, held: Entry | None) -> None:
    with NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        path = Path(file.name)
        remote.put(name, path, file_entry(path), held)


def _is_seal(name: str) -> bool:
    return PurePosixPath(name).name == _SEAL


def _each(
    workers: int, work: Callable[[str], R], names: Iterable[str], label: str, entries: dict[str, Entry] | None
) -> list[R]:
    """`work` for every name, several at a time, with a bar; the first error ends it when what is under way is done, an
    interruption at once."""
    names = list(names)
    if not names:
        return []
    total = sum(entries[name].size for name in names) if entries else len(names)
    unit = {"unit": "B", "unit_scale": True, "unit_divisor": 1024} if entries else {"unit": " files"}
    pool = ThreadPoolExecutor(workers)
    with tqdm(total=total, desc=label, disable=None, **unit) as bar:  # pyright: ignore

        def one(name: str) -> R:
            result = work(name)
            bar.update(entries[name].size if entries else 1)
            return result

        futures = [pool.submit(one, name) for name in names]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            pool.shutdown(wait=True, cancel_futures=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        # A future that was cancelled stands behind one that failed.
        failed = [f.exception() for f in futures if f.done() and not f.cancelled() and f.exception()]
        if failed and failed[0] is not None:
            raise failed[0]
        return [future.result() for future in futures]
