"""Checkpoints: what a training that was killed goes on from.

One file holds the whole state, under a name that carries its step and its checksum. So it is there or it is not, and
nothing has to be kept in step with it.
"""

import hashlib
import json
import re
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from birdtpu import storage
from birdtpu.errors import UserError

FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d{8,})-([0-9a-f]{32})\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A training's state after `step` steps.

    Args:
        step: Steps done; also the place in the data, which is a function of it.
        arrays: Name -> array: weights, their average, the optimiser's variables.
        notes: What JSON can hold: the log's rows, the best epoch.
    """

    step: int
    arrays: dict[str, np.ndarray]
    notes: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run, local or on `gs://`; the last two are kept.

    Args:
        run: The run's folder.
    """

    def __init__(self, run: str) -> None:
        self.folder = storage.join(run, FOLDER)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, atomically and durably, and remove those before the last two."""
        from safetensors.numpy import save

        data = save(
            {name: np.asarray(array, order="C") for name, array in checkpoint.arrays.items()},
            {"notes": json.dumps(checkpoint.notes, sort_keys=True)},
        )
        # What a kill in the middle of a write left takes the room that this one needs.
        self._sweep()
        name = f"step-{checkpoint.step:08d}-{_checksum(checkpoint.step, data)}.safetensors"
        storage.write_bytes(storage.join(self.folder, name), data)
        # Others of this step or later ones were not whole: the training was taken up before them.
        names = self._names()
        before = [other for other in names if _parts(other)[0] < checkpoint.step]
        for old in set(names) - {name, *before[:1]}:
            storage.remove(storage.join(self.folder, old))

    def newest(self) -> Checkpoint | None:
        """The last checkpoint that is whole; None where there is none at all.

        Warns of each that is damaged. Where one before them is whole they are removed: the next two that are kept shall
        be whole ones.

        Raises: UserError where there are some and none is whole.
        """
        damaged = []
        for name in self._names():
            path = storage.join(self.folder, name)
            data = storage.read_bytes(path)
            step, checksum = _parts(name)
            if _checksum(step, data) == checksum:
                for other in damaged:
                    storage.remove(other)
                return _read(step, data)
            warnings.warn(f"{path}: damaged, and passed over", stacklevel=2)
            damaged.append(path)
        if damaged:
            raise UserError(f"{self.folder}: no checkpoint is whole; remove the folder to begin again")
        return None

    def clear(self) -> None:
        """Remove all of them."""
        self._sweep()
        for name in self._names():
            storage.remove(storage.join(self.folder, name))

    def _sweep(self) -> None:
        if storage.exists(self.folder):
            storage.sweep(self.folder)

    def _names(self) -> list[str]:
        """Newest first."""
        found = storage.listdir(self.folder) if storage.exists(self.folder) else []
        return sorted((name for name in found if _NAME.fullmatch(name)), key=_parts, reverse=True)


def _parts(name: str) -> tuple[int, str]:
    found = _NAME.fullmatch(name)
    assert found is not None
    return int(found[1]), found[2]


def _checksum(step: int, data: bytes) -> str:
    """Half a SHA-256 of a state and its step, in hex."""
    found = hashlib.sha256(b"%d\n" % step)
    found.update(data)
    return found.hexdigest()[:32]


def _read(step: int, data: bytes) -> Checkpoint:
    from safetensors.numpy import load

    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return Checkpoint(step, load(data), json.loads(header["__metadata__"]["notes"]))
