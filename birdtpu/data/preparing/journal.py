"""The memory of `prepare`: its input, what became of each file, and what a killed run need not repeat."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from birdtpu import storage
from birdtpu.data import shards
from birdtpu.data.preparing.decoding import Outcome
from birdtpu.errors import UserError

CRASH = "crash"  # the reason of a file whose process died, or met an error that nobody foresaw
WORK = ".prepare"  # in the output folder while a run is on, or was killed


@dataclass(frozen=True)
class Input:
    """One file to prepare: its data set, its path there, its recording's id (`""` if unknown) and where it is."""

    data_set: str
    path: str
    recording: str
    file: str

    @property
    def key(self) -> str:
        return f"{self.data_set}/{self.path}"


@dataclass
class Entry(Outcome):
    """What became of one input file, and where its records lie.

    Attributes:
        original: The input whose recording this one repeats; it then has no pieces.
        pieces: Its framed records in order, each as (file relative to the output folder, offset, length).
        placed: Whether the pieces lie in the shards that are being built.
    """

    original: str = ""
    pieces: list[Any] = field(default_factory=list)
    placed: bool = False

    @property
    def outcome(self) -> str:
        """`ok`, `duplicate` or `failed`."""
        return "failed" if self.reason else "duplicate" if self.original else "ok"


class Journal:
    """The run's memory: a line for every step that a killed run need not repeat.

    Args:
        output: The output folder.
        header: `settings`, `count` (of shards) and `folder` (where they are being built, relative to `output`).
        entries: What is known at the start, by input.

    What stood in the journal before is replaced.
    """

    def __init__(self, output: Path, header: dict[str, Any], entries: Mapping[str, Entry]) -> None:
        self._path = output / WORK / "journal.jsonl"
        lines = [json.dumps(header), *(_line(key, entry) for key, entry in entries.items())]
        storage.write_text(self._path, "".join(line + "\n" for line in lines))

    def note(self, key: str, entry: Entry) -> None:
        """Remember an input's entry; it replaces what was noted of it before."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(key, entry) + "\n")


def _line(key: str, entry: Entry) -> str:
    return json.dumps([key, vars(entry)])


def resume(output: Path, settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Entry]]:
    """What a killed run left: its header, and its entries in the order in which they were last noted.

    Returns: ({}, {}) where there is nothing.

    Raises: UserError where that run had other settings.
    """
    path = output / WORK / "journal.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    if len(lines) < 2:
        return {}, {}
    header, entries = json.loads(lines[0]), {}
    check_settings(output, header["settings"], settings)
    # The last part is empty, or a line whose writing was cut off.
    for line in lines[1:-1]:
        key, values = json.loads(line)
        entries.pop(key, None)
        entries[key] = Entry(**values)
    building, final = output / header["folder"], output / shards.FOLDER
    if not building.exists() and final.exists() and not (output / shards.MANIFEST).exists():
        # Killed between the shards' move to their place and the manifest.
        final.rename(building)
    return header, with_pieces(output, entries)


def with_pieces(output: Path, entries: dict[str, Entry]) -> dict[str, Entry]:
    """The entries whose pieces can all be there; a crash is no lasting verdict on a file either."""
    sizes = {name: file_size(output / name) for entry in entries.values() for name, _, _ in entry.pieces}
    return {
        key: entry
        for key, entry in entries.items()
        if entry.reason != CRASH and all(offset + length <= sizes[name] for name, offset, length in entry.pieces)
    }


def file_size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def check_settings(output: Path, had: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name, value in wanted.items():
        if had[name] != value:
            raise UserError(
                f"{output}: its records were made with {name} {had[name]}, not {value}; "
                "choose another output folder, or remove this one"
            )
