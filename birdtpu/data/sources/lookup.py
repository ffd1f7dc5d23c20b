"""From the names in a table to the files in a folder."""

import bisect
import itertools
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from birdtpu import storage
from birdtpu.data.sources.cells import plain_spaces
from birdtpu.errors import UserError

# fmt: off
AUDIO_SUFFIXES = frozenset((
    ".aac", ".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".m4a", ".mp2", ".mp3", ".mp4", ".oga", ".ogg", ".opus",
    ".rf64", ".w64", ".wav", ".webm", ".wma",
))
# Where the competitions keep the recordings that their training tables name.
FOCAL_FOLDERS = ("train_audio", "train_short_audio")
# What systems and servers leave beside the recordings: deleted files, thumbnails, halves of Mac files.
_SYSTEM_FOLDERS = frozenset((
    "$recycle.bin", "recycler", "#recycle", "@eadir", "__macosx", "lost+found", "system volume information",
))
# fmt: on

_XENO_CANTO = re.compile(r"XC ?([0-9]{1,12})(?![0-9])", re.IGNORECASE)


def xeno_canto_number(name: str) -> str:
    """`XC123` where a file name starts with a xeno-canto number, else `""`."""
    match = _XENO_CANTO.match(name.rpartition("/")[2])
    return f"XC{int(match[1])}" if match else ""


def stem(path: str) -> str:
    """A path without its audio suffix; one without such a suffix stays."""
    # By hand: pathlib takes most of the time on a competition's 60,000 files.
    rest, _, suffix = path.rpartition(".")
    return rest if f".{suffix.lower()}" in AUDIO_SUFFIXES and rest and not rest.endswith("/") else path


def is_audio(file: str) -> bool:
    """Whether a file's name says that it is audio."""
    return stem(file) != file


def normal(path: str) -> str:
    """A path in the one spelling in which tables and file systems are compared."""
    # A Mac writes é as two characters, Windows writes backslashes, and a table's odd spaces are plain by now.
    return plain_spaces(unicodedata.normalize("NFC", path)).replace("\\", "/").removeprefix("./").strip("/")


class AudioFolder:
    """The files below a folder, and how the names in a table find them.

    Args:
        root: The folder. Hidden files, systems' own folders and names that are no UTF-8 are left out.

    Attributes:
        files: Every file's POSIX path relative to `root`, sorted.
        not_utf8: The audio files whose names are no UTF-8, with `\\xe9` for a byte that is no text.

    Raises: UserError where `root` is no local folder.
    """

    def __init__(self, root: str) -> None:
        if storage.is_remote(root):
            raise UserError(f"{root}: recordings are read from a local folder; copy them to this machine first")
        if not Path(root).is_dir():
            raise UserError(f"{root}: {'is no folder' if Path(root).exists() else 'no such folder'}; --audio wants one")
        self.root = root
        walked = walk(root)
        self.files = sorted(file for file in walked if _is_utf8(file))
        odd = (file for file in walked if is_audio(file) and not _is_utf8(file))
        self.not_utf8 = sorted(os.fsencode(file).decode("utf-8", "backslashreplace") for file in odd)
        self._home = [normal(part) for part in Path(root).resolve().parts[1:]]
        self._tails: dict[str, list[str]] = defaultdict(list)
        self._stems: dict[str, list[str]] = defaultdict(list)
        self._numbers: dict[str, list[str]] = defaultdict(list)
        for file in self.files:
            parts = normal(file).split("/")
            for i in range(len(parts)):
                tail = "/".join(parts[i:])
                self._tails[tail].append(file)
                self._stems[stem(tail)].append(file)
            # What lies beside a recording may have its number and the beginning of its name.
            if is_audio(file) and (number := xeno_canto_number(file)):
                self._numbers[number].append(file)
        self._names = sorted((normal(file).rsplit("/")[-1], file) for file in self.files if is_audio(file))

    def find(self, rows: Iterable[tuple[str, ...]], *, prefix: bool = False) -> dict[tuple[str, ...], str | None]:
        """The file that each row of a table means, or None.

        A name is the end of a file's path, also with another audio suffix or none; it may begin with the root's own
        name and the folders above it. A table from another machine may have folders before that: of those that all its
        paths begin with, the fewest are taken off after which one of them is a file's whole path. This is one choice
        for the table, so that `siteA/Data/1.wav` is never `siteB/Data/1.wav`.

        Then a name without folders finds the audio files whose names go on with `.`. A file that one row names in full
        is no other's. At last, a name that is no more than a xeno-canto number finds the recording of that number.

        Args:
            rows: Each the names for one file, the surest first and the table's own last.
            prefix: Also take a file whose name goes on after the wanted one with `_`.

        Raises: UserError where several files fit.
        """
        rows = list(dict.fromkeys(rows))
        above, found = "", {}
        for above in _folders_of_all(row[-1] for row in rows):
            found = {row: self._by_path(row, above) for row in rows}
            if any(found[row] for row in rows if "/" in normal(row[0])):
                break
        found = {row: file or self._by_beginning(row, prefix) for row, file in found.items()}
        full = {row for row, file in found.items() if file and self._in_full(row[-1], above, file)}
        taken = {found[row] for row in full}
        free = {row: file if row in full or file not in taken else None for row, file in found.items()}
        return {row: file or self._by_number(row) for row, file in free.items()}

    def _by_path(self, row: tuple[str, ...], above: str) -> str | None:
        for name in map(normal, row):
            rest = name.removeprefix(above)
            # With all its folders taken off, a name would be any folder's.
            found = self._ending(name) if rest == name else self._whole(rest) if "/" in rest else []
            if not found:
                rest = self._below(rest)
                found = self._whole(rest)
            if found:
                return self._one(rest, found)
        return None

    def _by_beginning(self, row: tuple[str, ...], prefix: bool) -> str | None:
        for name in map(normal, row):
            for mark in (".", "_") if prefix else (".",):
                if name and "/" not in name and (found := self._starting(name + mark)):
                    return self._one(name, found)
        return None

    def _by_number(self, row: tuple[str, ...]) -> str | None:
        # XC1_20230501.wav may be one of many that a recorder of that name made.
        for name in map(normal, row):
            number = xeno_canto_number(name) if _XENO_CANTO.fullmatch(stem(name).rpartition("/")[2]) else ""
            if found := self._numbers.get(number):
                return self._one(name, found)
        return None

    def _ending(self, name: str) -> list[str]:
        return self._tails.get(name) or self._stems.get(stem(name), [])

    def _whole(self, name: str) -> list[str]:
        """The files whose path from the root, or from a competition's folder in it, is this."""
        depth = name.count("/")
        return [
            file
            for file in self._ending(name)
            if depth in ((below := file.count("/")), below - (file.split("/")[0] in FOCAL_FOLDERS))
        ]

    def _below(self, name: str) -> str:
        """The rest of a path that begins with the root's name, or with that and folders above it; else `""`."""
        parts = name.split("/")
        depths = (i for i in range(len(parts) - 1, 0, -1) if self._home[-i:] == parts[:i])
        return "/".join(parts[next(depths, len(parts)) :])

    def _in_full(self, name: str, above: str, file: str) -> bool:
        wanted, there = stem(normal(name).removeprefix(above)), stem(normal(file))
        return len(wanted) >= len(there) and "/".join(["", *self._home, there]).endswith(f"/{wanted}")

    def _starting(self, text: str) -> list[str]:
        found = []
        for i in range(bisect.bisect_left(self._names, (text, "")), len(self._names)):
            if not self._names[i][0].startswith(text):
                break
            found.append(self._names[i][1])
        return found

    def _one(self, name: str, found: Sequence[str]) -> str:
        if len(found) == 1:
            return found[0]
        # A competition's root may hold a resampled copy or the like beside its own recordings.
        focal = [file for file in found if PurePosixPath(file).parts[0] in FOCAL_FOLDERS]
        exact = [file for file in found if normal(file) == name]
        for choice in (exact, focal):
            if len(choice) == 1:
                return choice[0]
        if len({xeno_canto_number(file) or file for file in found}) == 1:
            return (focal or found)[0]
        raise UserError(f"{self.root}: the table's {name!r} may be {found[0]} or {found[1]}; write its path from there")


def _folders_of_all(names: Iterable[str]) -> list[str]:
    """The beginnings that all paths among a table's names share, from `""` to the longest, each with its `/`."""
    folders = [name.split("/")[:-1] for name in map(normal, names) if "/" in name]
    shared = [
        level[0] for level in itertools.takewhile(lambda level: len(set(level)) == 1, zip(*folders, strict=False))
    ]
    return ["".join(f"{folder}/" for folder in shared[:count]) for count in range(len(shared) + 1)]


def walk(root: str) -> list[str]:
    """Every file below a folder, relative to it; links are followed, hidden files and a system's own folders are not
    looked at. A name may be no UTF-8."""
    files: list[str] = []
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        # A link may lead back to a folder above it.
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name.lower() not in _SYSTEM_FOLDERS
        )
        below = Path(folder).relative_to(root).as_posix()
        files += [name if below == "." else f"{below}/{name}" for name in names if not name.startswith(".")]
    return files


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
