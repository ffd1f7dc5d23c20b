"""One run of `prepare` in its output folder: what is recalled, decoded, placed, and put under its final name."""

import itertools
import shutil
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from birdtpu import storage
from birdtpu.data import records, shards
from birdtpu.data.preparing import decoding, journal, prepared
from birdtpu.data.preparing.journal import WORK, Entry, Input, Journal
from birdtpu.data.preparing.pool import Crash, Pool

# Records are copied into the shards beside the main thread, which hands out the places and the work.
_COPIERS = 4
_MOST_COPYING = 16
_FLUSH_BYTES = 8_000_000  # of a shard, between one flush and the next
# A spool file is used again unless a long recording has made it larger than this.
_LARGEST_SPOOL = 100_000_000


class Build:
    """The folder that a run builds.

    Its steps in order: `recall`; then, unless the folder `stands` already, `take_up` and `decode`; then `put`.

    Args:
        output: The output folder.
        inputs: In the canonical order, in which their records are placed.
        settings: What the records are made with; the manifest begins with it.

    Attributes:
        entries: What is known of each input, by its key.
        reused: How many inputs an earlier run had settled.
        described: The shards as the manifest lists them, once they are whole.

    Raises: UserError where the folder was made with other settings, or is damaged.
    """

    def __init__(self, output: Path, inputs: list[Input], settings: dict[str, Any]) -> None:
        self.output, self.inputs, self.settings = output, inputs, settings
        self.entries: dict[str, Entry] = {}
        self.reused = 0
        self.described: list[dict[str, Any]] = []
        self._manifest, self._finished = prepared.finished(output, settings)
        self._header, self._noted = journal.resume(output, settings)
        self._folder = shards.FOLDER  # where the shards lie, relative to the output
        self._turn = 0  # of the input that is placed next
        self._seen: dict[str, str] = {}
        self._copying: deque[tuple[Input, Entry, Future]] = deque()

    @property
    def shard_paths(self) -> list[str]:
        """Where the shards lie now, relative to the output folder."""
        return [f"{self._folder}/{shard['name']}" for shard in self.described]

    def recall(self, pool: Pool) -> None:
        """Find the inputs that an earlier run settled and that have not changed since."""
        asked = [item for item in self.inputs if item.key in self._finished or item.key in self._noted]
        answers = pool.run(decoding.fingerprint, [item.file for item in asked])
        self._fingerprints = {asked[i].key: found for i, found in answers}
        for item in asked:
            # What was noted is newer than the finished folder.
            for entry in (self._noted.get(item.key), self._finished.get(item.key)):
                # A duplicate has no records of its own: it stays settled only while its original does.
                if entry and self._fits(item, entry) and (not entry.original or entry.original in self.entries):
                    self.entries.setdefault(item.key, entry)
        self.reused = len(self.entries)

    def _fits(self, item: Input, entry: Entry) -> bool:
        if self._fingerprints[item.key] != (entry.size, entry.crc32c):
            return False
        return bool(entry.reason) or item.recording in ("", entry.recording)

    def stands(self, count: int) -> bool:
        """Whether the finished folder holds just this input, in so many shards."""
        stands = (
            count == len(self._manifest.get("shards", ()))
            and self._finished.keys() == {item.key for item in self.inputs}
            and all(self._fits(item, self._finished[item.key]) for item in self.inputs)
        )
        if stands:
            self.entries, self.described = self._finished, self._manifest["shards"]
        return stands

    def take_up(self, count: int) -> None:
        """Go on with a killed run's shards where they are the start of what this input gives, else begin anew."""
        placed = {key: entry for key, entry in self._noted.items() if entry.placed}
        sizes = None
        if self._is_our_start(placed, count):
            self._folder = self._header["folder"]
            ends = {path: offset + length for entry in placed.values() for path, offset, length in entry.pieces}
            sizes = [ends.get(f"{self._folder}/{shards.shard_name(i, count)}", 0) for i in range(count)]
        else:
            names = (f"{WORK}/shards-{i}" for i in itertools.count(1))
            self._folder = next(name for name in names if not (self.output / name).exists())
            placed = {}
            self.entries = {key: replace(entry, placed=False) for key, entry in self.entries.items()}
        spools = self.output / WORK / "spool"
        spools.mkdir(parents=True, exist_ok=True)
        first = {key: self.output / entry.pieces[0][0] for key, entry in self.entries.items() if entry.pieces}
        self._spools = {key: path for key, path in first.items() if path.parent == spools}
        self._free = sorted(set(spools.iterdir()) - set(self._spools.values()))
        self._spool_numbers = itertools.count(1 + max((int(path.name) for path in spools.iterdir()), default=0))
        self._writer = shards.ShardWriter(self.output / self._folder, count, sizes)
        self._journal = self._new_journal(count, {**placed, **self.entries})

    def _is_our_start(self, placed: dict[str, Entry], count: int) -> bool:
        if self._header.get("count") != count:
            return False
        # A finished folder's own shards are never appended to.
        if self._header["folder"] == shards.FOLDER and self._manifest:
            return False
        start = [item.key for item in self.inputs[: len(placed)]]
        return list(placed) == start and all(self.entries.get(key) is entry for key, entry in placed.items())

    def _new_journal(self, count: int, entries: Mapping[str, Entry]) -> Journal:
        return Journal(self.output, {"settings": self.settings, "count": count, "folder": self._folder}, entries)

    def decode(self, pool: Pool, progress: Callable[[int, int], None]) -> None:
        """Decode what is not known yet, and place all of it.

        Raises: UserError on a full disk, or where a record that is to be reused is damaged.
        """
        todo = [item for item in self.inputs if item.key not in self.entries]
        known = len(self.inputs) - len(todo)
        progress(known, len(self.inputs))
        with ThreadPoolExecutor(_COPIERS) as copiers:
            self._place_all_that_can(copiers)
            for done, (i, result) in enumerate(pool.run(decoding.decode, map(self._job, todo)), known + 1):
                self.entries[todo[i].key] = entry = self._entry(todo[i], result)
                self._journal.note(todo[i].key, entry)
                self._place_all_that_can(copiers)
                progress(done, len(self.inputs))
            self._note_placed(0)
        self._writer.sync()
        measured = dict(pool.run(records.measure, self._writer.paths))
        self.described = [{"name": path.name, **measured[i]} for i, path in enumerate(self._writer.paths)]

    def _job(self, item: Input) -> decoding.Decode:
        spool = self._free.pop() if self._free else self.output / WORK / "spool" / str(next(self._spool_numbers))
        self._spools[item.key] = spool
        options = {name: self.settings[name] for name in ("sample_rate", "channel", "min_seconds")}
        most = prepared.most_samples(self.settings)
        return decoding.Decode(item.file, item.recording, str(spool), record_samples=most, **options)

    def _entry(self, item: Input, result: decoding.Decoded | Crash) -> Entry:
        if isinstance(result, Crash):
            return Entry(0, "", journal.CRASH, result.detail)
        values = {name: value for name, value in vars(result).items() if name != "lengths"}
        spool = str(self._spools[item.key].relative_to(self.output))
        offsets = itertools.accumulate(result.lengths, initial=0)
        return Entry(**values, pieces=[(spool, *at) for at in zip(offsets, result.lengths, strict=False)])

    def _place_all_that_can(self, copiers: Executor) -> None:
        """Give every input whose turn has come its place in the shards, and have its records copied there."""
        while self._turn < len(self.inputs) and (item := self.inputs[self._turn]).key in self.entries:
            self._turn += 1
            entry = self.entries[item.key]
            if not entry.placed:
                placed = self._placed(entry)
                self._copying.append((item, placed, copiers.submit(self._copy, entry.pieces, placed.pieces)))
                entry = placed
            if entry.outcome == "ok":
                self._seen[entry.recording] = self._seen[entry.audio_hash] = item.key
        self._note_placed(_MOST_COPYING)

    def _placed(self, entry: Entry) -> Entry:
        if entry.reason:
            return replace(entry, placed=True)
        if original := self._seen.get(entry.recording) or self._seen.get(entry.audio_hash):
            return replace(entry, placed=True, original=original, pieces=[])
        count = len(self._writer.sizes)
        pieces = []
        for i, (_, _, length) in enumerate(entry.pieces):
            shard = shards.shard_of(decoding.record_id(entry.recording, i), count)
            path = f"{self._folder}/{shards.shard_name(shard, count)}"
            pieces.append((path, self._writer.reserve(shard, length), length))
        return replace(entry, placed=True, original="", pieces=pieces)

    def _copy(self, pieces: list[Any], places: list[Any]) -> None:
        # A duplicate has pieces, from its decoding, and no places.
        for (path, offset, length), (target, at, _) in zip(pieces, places, strict=False):
            framed = storage.read_bytes(self.output / path, offset, length)
            records.check_frame(framed, self.output / path)
            shards.write_at(self.output / target, at, framed)
            if at // _FLUSH_BYTES != (at + length) // _FLUSH_BYTES:
                shards.flush(self.output / target)

    def _note_placed(self, most: int) -> None:
        """Note, in the order of the input, what has been copied; wait where more than `most` inputs have not."""
        while self._copying and (len(self._copying) > most or self._copying[0][2].done()):
            item, entry, copy = self._copying.popleft()
            copy.result()
            self.entries[item.key] = entry
            self._journal.note(item.key, entry)
            if spool := self._spools.pop(item.key, None):
                self._recycle(spool)

    def _recycle(self, spool: Path) -> None:
        if journal.file_size(spool) > _LARGEST_SPOOL:
            spool.unlink()
        else:
            self._free.append(spool)

    def put(self, csvs: Mapping[str, bytes]) -> None:
        """Put shards and tables in their place and, last, the manifest; a folder that has all of it is left alone.

        Killed in the middle there is no manifest, and the next run goes on from the journal.
        """
        manifest = shards.make_manifest(self.settings, self.described, csvs)
        final, building = self.output / shards.FOLDER, self.output / self._folder
        stands = building == final and self._manifest
        if not stands or storage.read_bytes(self.output / shards.MANIFEST) != manifest:
            if building == final:
                self._new_journal(len(self.described), {k: replace(e, placed=True) for k, e in self.entries.items()})
            storage.remove(self.output / shards.MANIFEST)
            storage.sync_folder(self.output)
            if building != final:
                shutil.rmtree(final, ignore_errors=True)
                building.rename(final)
            for name, data in csvs.items():
                storage.write_bytes(self.output / name, data)
            storage.write_bytes(self.output / shards.MANIFEST, manifest)
        for path in self.output.glob(".*.tmp"):
            path.unlink()  # what a kill left of an atomic write
        shutil.rmtree(self.output / WORK, ignore_errors=True)
