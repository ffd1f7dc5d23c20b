"""Runs as they are given to a command: folders, addresses, whole cross-validations, several for an ensemble."""

import os
from collections.abc import Sequence

from birdtpu import storage
from birdtpu.errors import UserError
from birdtpu.inference.ensemble import check_members
from birdtpu.publish.places import PREFIX, resolve
from birdtpu.run import Run, open_run
from birdtpu.storage import PathLike

Runs = PathLike | Run | Sequence[PathLike | Run]

CROSS_VALIDATION = "cross_validation.csv"


def open_members(runs: Runs) -> list[Run]:
    """The runs that are meant, opened; of a cross-validation its folds.

    Raises: UserError where one is no run, or they cannot be members of one ensemble.
    """
    given = [runs] if isinstance(runs, Run | str | os.PathLike) else list(runs)
    found: list[Run] = []
    for each in given:
        found += [each] if isinstance(each, Run) else map(open_run, _run_folders(resolve(os.fspath(each))))
    check_members(found)
    return found


def open_one(paths: Sequence[str], command: str) -> Run:
    """The one run that a command takes, opened.

    Raises: UserError where several are given, or a cross-validation, or none.
    """
    if len(paths) > 1:
        raise UserError(f"{command} takes one run, not {len(paths)} ({', '.join(paths)}); give each its own --to")
    path = resolve(paths[0])
    folds = [] if storage.exists(storage.join(path, "run.json")) else _folds(path)
    if folds:
        raise UserError(
            f"{path}: a cross-validation of {len(folds)} folds, but {command} takes one run: {folds[0]}, or one that "
            "birdtpu train made without --fold"
        )
    return open_run(path)


def split_arguments(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """The runs and the audio of `RUN... AUDIO...`.

    The first is a run; so is what follows it, up to the first path that is none.

    Raises: UserError where no audio is left, or a run stands after it.
    """
    count = next((i for i, path in enumerate(paths) if i and not _is_run(path)), len(paths))
    runs, audio = list(paths[:count]), list(paths[count:])
    if not audio:
        raise UserError(f"no recordings given: name files or folders of audio after {runs[-1]}")
    late = next(filter(_is_run, audio), None)
    if late:
        raise UserError(f"{late}: a run stands after recordings ({audio[0]}); give the runs first")
    return runs, audio


def _is_run(path: str) -> bool:
    """Whether a path is of a run, one begun too, or of a cross-validation; an address on Kaggle always is."""
    if path.startswith(PREFIX):
        return True
    return any(storage.exists(storage.join(path, name)) for name in ("run.json", "recipe.toml")) or bool(_folds(path))


def _run_folders(path: str) -> list[str]:
    """A run's own folder, or those of a cross-validation's folds. What is neither, `open_run` says more of."""
    folds = [] if storage.exists(storage.join(path, "run.json")) else _folds(path)
    if folds and not storage.exists(storage.join(path, CROSS_VALIDATION)):
        raise UserError(
            f"{path}: its cross-validation has not ended ({CROSS_VALIDATION} is missing); end it with birdtpu "
            "cross-validate, or name single folds"
        )
    return folds or [path]


def _folds(path: str) -> list[str]:
    """The folders of a cross-validation's folds, in the order of its table; none where it is no such folder."""
    try:
        names = [name for name in storage.listdir(path) if name.startswith("fold-")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    folders = [storage.join(path, name) for name in sorted(names, key=lambda name: (len(name), name))]
    return [folder for folder in folders if storage.exists(storage.join(folder, "run.json"))]
