"""Pseudo-label unlabelled recordings by a run or several, for other runs to learn from."""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from birdtpu import __version__, storage
from birdtpu.data import plan as planning
from birdtpu.data import shards, tables
from birdtpu.data.annotations import STRETCH
from birdtpu.data.pseudo import PseudoLabels, is_labelled
from birdtpu.errors import UserError
from birdtpu.inference import engine, ensemble, teaching
from birdtpu.publish.places import data_folders
from birdtpu.run import Run
from birdtpu.storage import PathLike
from birdtpu.workflows.members import Runs, open_members
from birdtpu.workflows.predict import model_of
from birdtpu.workflows.prepared import Prepared, any_species, data_info, open_prepared
from birdtpu.workflows.transfer import trained_on

FOLD = "{fold}"


def pseudo_label(
    run: Runs,
    data: PathLike | Sequence[PathLike],
    output: PathLike,
    *,
    strategy: str = "mean",
    power: float = 1.0,
    threshold: float = 0.5,
    head: str = "clipwise",
    weights: Sequence[float] | None = None,
    hop_seconds: float | None = None,
) -> dict[str, PseudoLabels]:
    """Score the unlabelled recordings of prepared folders, clip by clip, and write what a student shall learn.

    A recording that has a label or an annotation, or stands in a teacher's plan with labels or held out, is left out.

    Args:
        run: The teachers: a run, several, or a cross-validation's folder.
        data: Prepared folder or folders.
        output: A file (`.npz`) of what all teachers say; or, with `{fold}` in its name, a file for each teacher, named
            by its fold: of what it says alone, but for `fold_matched`, which asks all of them for each.
        strategy: `mean`, `fold_matched`, `file_max` or `top1` (see `inference.teaching`).
        power: The targets are raised to it.
        threshold: For `top1`: a clip whose best species scores less is left out.
        head: Whose scores; `clipwise` is what training compares with its targets.
        weights: One a teacher, for the mean.
        hop_seconds: From one clip's start to the next; None: a clip's length.

    Returns: what was written, by path.
    Raises: UserError where the runs do not fit together, arguments contradict each other, or no recording is left.
    """
    members, folders, output = open_members(run), data_folders(data), os.fspath(output)
    _check(members, output, strategy, power, threshold, weights)
    outputs = _outputs(members, output)
    for path in outputs:
        storage.check_can_write(path)
    recipe = members[0].recipe
    shares = ensemble.shares_of(members, weights)
    prepared = open_prepared(any_species(recipe), folders)
    names = unlabelled_of(prepared, members)
    rate, clip = recipe.audio.sample_rate, recipe.clip_samples
    seconds = recipe.audio.clip_seconds if hop_seconds is None else hop_seconds
    if not 1 / rate <= seconds < np.inf:
        raise UserError(f"--hop {hop_seconds}: more than 0 seconds")
    hop = round(seconds * rate)
    records = prepared.records[prepared.records["recording"].isin(names)]
    clips = pd.DataFrame(list(_clips(records, rate, clip, hop)), columns=STRETCH)
    scores = _scores(members, prepared, records, head, hop)
    common = {"strategy": strategy, "power": power, "threshold": threshold}
    notes = {**common, "version": __version__, "head": head, "hop_seconds": hop / rate, **data_info(folders)}
    notes |= {"clip_seconds": recipe.audio.clip_seconds, "weights": weights and list(weights)}
    done = {}
    for path, own in outputs.items():
        asked = list(range(len(members))) if own is None or strategy == "fold_matched" else [own]
        part = shares[asked] / shares[asked].sum()
        file = clips["recording"].to_numpy()
        soft = teaching.soft_labels(scores[asked], file, shares=part, own=own or 0, **common)
        done[path] = _written(path, clips, soft, [members[i] for i in asked], notes)
    return done


def check_strategy(strategy: str, power: float, threshold: float) -> None:
    """Raises UserError where `soft_labels` cannot take them."""
    if strategy not in teaching.STRATEGIES:
        raise UserError(f"--strategy {strategy}: one of {', '.join(teaching.STRATEGIES)}")
    if not 0 < power < np.inf or not 0 <= threshold <= 1:
        raise UserError(f"--power {power:g}, --threshold {threshold:g}: a power above 0, a threshold from 0 to 1")


def _check(
    members: Sequence[Run],
    output: str,
    strategy: str,
    power: float,
    threshold: float,
    weights: Sequence[float] | None,
) -> None:
    check_strategy(strategy, power, threshold)
    if strategy == "fold_matched" and FOLD not in output:
        raise UserError(f"--strategy fold_matched: a file for each teacher; give --output a name with {FOLD} in it")
    if weights is not None and (FOLD in output or strategy == "fold_matched"):
        raise UserError("--weights: are of a mean of all runs, and each file is of one teacher here; leave them away")


def _outputs(members: Sequence[Run], output: str) -> dict[str, int | None]:
    """The files to write, and the teacher that each is of; None: all.

    Raises: UserError where two would be the same, or a run is of no fold.
    """
    if FOLD not in output:
        return {output: None}
    whole = [run.folder for run in members if run.info.get("fold") is None]
    if whole:
        raise UserError(f"{output}: {whole[0]} held no fold out; give --output a name without {FOLD}")
    out = {output.replace(FOLD, run.info["fold"]): i for i, run in enumerate(members)}
    if len(out) < len(members):
        raise UserError(f"{output}: two of the runs held out the same fold; give runs of different folds")
    return out


def unlabelled_of(prepared: Prepared, members: Sequence[Run]) -> list[str]:
    """The recordings that nobody has labelled, and no teacher has learnt from or holds out.

    Raises: UserError where there is none.
    """
    # Not as the recipe filters them: it forgets labels that it does not use.
    every = tables.merge_tables([tables.load_tables(folder) for folder in prepared.folders])
    bare = free = every.recordings.loc[~is_labelled(every.recordings, every.annotations), "recording"]
    for run in members:
        if storage.exists(run.path("plan.csv")):
            plan = planning.load_plan(run.checked("plan.csv"))
            free = free[~free.isin(set(planning.recordings_of(plan[plan["source"] != planning.PSEUDO])))]
    if free.empty and len(bare):
        raise UserError(
            f"{', '.join(prepared.folders)}: all {len(bare)} recordings without labels stand in the teachers' plans, "
            "which learnt from them or hold them out; give others"
        )
    if free.empty:
        raise UserError(
            f"{', '.join(prepared.folders)}: no unlabelled recording; birdtpu prepare --unlabelled makes such a folder"
        )
    return sorted(set(free))


def clip_starts(samples: int, clip: int, hop: int) -> list[int]:
    """Where the clips of a record begin: every `hop`, and one that ends with it where a quarter of a clip is left.

    None crosses a record's end, since a training reads each clip from one record.
    """
    starts = list(range(0, max(samples - clip, 0) + 1, hop))
    return starts + [samples - clip] * (samples - clip - starts[-1] > clip / 4)


def _clips(records: pd.DataFrame, rate: int, clip: int, hop: int) -> Iterator[tuple[str, float, float]]:
    """`recording, start_seconds, end_seconds`, in the order in which they are scored."""
    for row in records.sort_values(["recording", "start_seconds"]).itertuples():
        samples = round(row.seconds * rate)
        for start in clip_starts(samples, clip, hop):
            end = min(start + clip, samples)
            yield row.recording, row.start_seconds + start / rate, row.start_seconds + end / rate


def _scores(members: Sequence[Run], prepared: Prepared, records: pd.DataFrame, head: str, hop: int) -> np.ndarray:
    """`(teachers, clips, classes)` float32 of every clip; each is read once."""
    from tqdm.auto import tqdm

    from birdtpu.data.audio import AudioError
    from birdtpu.inference.runtimes.keras import keras_predict_all
    from birdtpu.ops.pooling import side_by_side

    recipe, columns = members[0].recipe, ensemble.columns_of(members)
    head = ensemble.common_head(members, head)
    predict = keras_predict_all([model_of(run) for run in members], head, partial(side_by_side, columns=columns))
    clip, many = recipe.clip_samples, len(members) * len(members[0].classes)

    def cut(rows: pd.DataFrame) -> Iterator[np.ndarray]:
        # As blocks of one clip, and from one to the next: so the engine sees these clips and no others.
        for audio in shards.read_recording(prepared.folders[rows["folder"].iloc[0]], rows):
            for start in clip_starts(len(audio), clip, hop):
                piece = audio[start : start + clip]
                yield np.pad(piece, (0, clip - len(piece)))

    grouped = records.groupby("recording")
    sources = (engine.Source(str(name), partial(cut, rows)) for name, rows in grouped)
    scored = engine.score(
        sources,
        predict,
        classes=many,
        sample_rate=recipe.audio.sample_rate,
        clip_samples=clip,
        hop_samples=clip,
        batch_size=recipe.predict.batch_size,
        errors=(AudioError,),
    )
    bar = tqdm(scored, total=grouped.ngroups, unit=" recordings", disable=None)
    found = np.concatenate([each.scores for each in bar])
    return found.reshape(len(found), len(members), -1).swapaxes(0, 1)


def _written(
    path: str, clips: pd.DataFrame, soft: np.ndarray, teachers: Sequence[Run], notes: dict[str, Any]
) -> PseudoLabels:
    """One file of pseudo-labels, as it is read back."""
    known = ~np.isnan(soft).all(axis=1)
    if not known.any():
        raise UserError(f"{path}: no clip's best species reaches the threshold {notes['threshold']:g}; lower it")
    told = [
        {"run": run.folder, "fold": run.info.get("fold"), "recipe": run.recipe.hash}
        | {"weights_sha256": run.info["weights_sha256"]}
        for run in teachers
    ]
    untold = [run.folder for run in teachers if not storage.exists(run.path("plan.csv"))]
    # What they heard with pseudo-labels of earlier rounds has no label that could leak; what stood behind those has.
    seen = {name for run in teachers for name in trained_on(run, pseudo=False)}
    labels = PseudoLabels(
        clips[known].reset_index(drop=True),
        soft[known],
        teachers[0].classes.codes,
        frozenset(seen),
        {**notes, "teachers": told, "untold": untold},
    )
    labels.save(path)
    return PseudoLabels.load(path)
