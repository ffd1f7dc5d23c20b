"""From the names in a table to the files in a folder."""

import bisect
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from birdtpu import storage
from birdtpu.errors import UserError

# fmt: off
AUDIO_SUFFIXES = frozenset((
    ".aac", ".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".m4a", ".mp2", ".mp3", ".mp4", ".oga", ".ogg", ".opus",
    ".rf64", ".w64", ".wav", ".webm", ".wma",
))
# fmt: on
# Where the competitions keep the recordings that their training tables name.
FOCAL_FOLDERS = ("train_audio", "train_short_audio")

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


def _normal(path: str) -> str:
    # A Mac writes é as two characters, and Windows writes backslashes.
    return unicodedata.normalize("NFC", path).replace("\\", "/").removeprefix("./").strip("/")


class AudioFolder:
    """The files below a folder, and how the names in a table find them.

    Args:
        root: The folder. Hidden files, and names that are no UTF-8, are left out.

    Attributes:
        files: Every file's POSIX path relative to `root`, sorted.

    Raises: UserError where `root` is no local folder.
    """

    def __init__(self, root: str) -> None:
        if storage.is_remote(root):
            raise UserError(f"{root}: recordings are read from a local folder; copy them to this machine first")
        if not Path(root).is_dir():
            raise UserError(f"{root}: {'is no folder' if Path(root).exists() else 'no such folder'}; --audio wants one")
        self.root = root
        self.name = Path(root).resolve().name
        self.files = sorted(_walk(root))
        self._tails: dict[str, list[str]] = defaultdict(list)
        self._stems: dict[str, list[str]] = defaultdict(list)
        self._numbers: dict[str, list[str]] = defaultdict(list)
        for file in self.files:
            parts = _normal(file).split("/")
            for i in range(len(parts)):
                tail = "/".join(parts[i:])
                self._tails[tail].append(file)
                self._stems[stem(tail)].append(file)
            if number := xeno_canto_number(file):
                self._numbers[number].append(file)
        self._names = sorted((_normal(file).rsplit("/")[-1], file) for file in self.files)

    def find(self, wanted: Sequence[str], *, prefix: bool = False) -> str | None:
        """The file that a table means, or None.

        Tried in turn for each name: the name as the end of a file's path, also with another audio suffix or none;
        the ends of the name with at least one folder (the table's paths may start above the root), and what stands
        below the root's own name. Then the xeno-canto number, and files whose name goes on with `.`. A path in the
        table never finds a file of that name in another folder: `b/1.wav` is not `a/1.wav`.

        Args:
            wanted: Names for one file, the surest first.
            prefix: Also take a file whose name goes on after the wanted one with `_`.

        Raises: UserError where several files fit.
        """
        names = [name for name in map(_normal, wanted) if name]
        for name in names:
            parts = name.split("/")
            for tail in ["/".join(parts[i:]) for i in range(max(1, len(parts) - 1))]:
                if found := self._tails.get(tail) or self._stems.get(stem(tail)):
                    return self._one(name, found)
            if self.name in parts[:-1]:
                inside = "/".join(parts[parts.index(self.name) + 1 :])
                if inside in self._tails and inside in map(_normal, self._tails[inside]):
                    return next(file for file in self._tails[inside] if _normal(file) == inside)
        for name in names:
            if found := self._numbers.get(xeno_canto_number(name)):
                return self._one(name, found)
        for name in names:
            for mark in (".", "_") if prefix else (".",):
                if "/" not in name and (found := self._starting(name + mark)):
                    return self._one(name, found)
        return None

    def _starting(self, text: str) -> list[str]:
        found = []
        for i in range(bisect.bisect_left(self._names, (text, "")), len(self._names)):
            if not self._names[i][0].startswith(text):
                break
            found.append(self._names[i][1])
        return found

    def _one(self, name: str, found: list[str]) -> str:
        if len(found) == 1:
            return found[0]
        # A competition's root may hold a resampled copy or the like beside its own recordings.
        focal = [file for file in found if PurePosixPath(file).parts[0] in FOCAL_FOLDERS]
        exact = [file for file in found if _normal(file) == name]
        for choice in (exact, focal):
            if len(choice) == 1:
                return choice[0]
        if len({xeno_canto_number(file) or file for file in found}) == 1:
            return (focal or found)[0]
        raise UserError(f"{self.root}: the table's {name!r} may be {found[0]} or {found[1]}; write its path from there")


def _walk(root: str) -> list[str]:
    files, seen = [], set()
    for folder, folders, names in os.walk(root, followlinks=True):
        # A link may lead back to a folder above it.
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(folder).relative_to(root).as_posix()
        files += [name if below == "." else f"{below}/{name}" for name in names if not name.startswith(".")]
    return [file for file in files if _is_utf8(file)]


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
