"""Pseudo-labels: what teachers say of clips of unlabelled recordings, as a file, and a plan's rows of it."""

import hashlib
import io
import json
import zipfile
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from birdtpu import random, storage
from birdtpu.data import folds as folding
from birdtpu.data import order
from birdtpu.data.annotations import STRETCH
from birdtpu.data.plan import COLUMNS, PSEUDO, over_records
from birdtpu.errors import UserError
from birdtpu.species import ClassList

_DEAL = random.stream("pseudo/deal")
_BROKEN = (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """Soft targets of clips of recordings.

    Args:
        clips: A row a clip: `recording`, `start_seconds`, `end_seconds` in the recording. No two are the same.
        scores: `(clips, classes)` float16 in [0, 1]; NaN where nothing is known.
        codes: The species of the columns.
        seen: Recordings whose labels have gone into the scores: those that the teachers learnt from.
        notes: How they were made, as JSON can hold it; a file has at least `clip_seconds`, `data`, the folders that
            hold the recordings, and `untold`, the teachers that cannot tell what they learnt from.
        sha256: Of the file, once there is one.
    """

    clips: pd.DataFrame
    scores: np.ndarray
    codes: tuple[str, ...]
    seen: frozenset[str] = frozenset()
    notes: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""

    def save(self, path: storage.PathLike) -> None:
        """Write them, atomically: an `.npz` of arrays without pickles. The same labels give the same bytes."""
        arrays = {column: self.clips[column].to_numpy(float) for column in STRETCH[1:]}
        texts = {"recording": list(self.clips["recording"]), "codes": list(self.codes), "seen": sorted(self.seen)}
        arrays |= {name: np.array(values, dtype=str) for name, values in texts.items()}
        arrays["notes"] = np.array(json.dumps(self.notes, sort_keys=True))
        buffer = io.BytesIO()
        np.savez_compressed(buffer, scores=self.scores.astype(np.float16), **arrays)
        storage.write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: storage.PathLike) -> "PseudoLabels":
        """Read what `save` wrote. Raises UserError where the file is missing, damaged or of another kind."""
        if not storage.exists(path):
            raise UserError(f"pseudo-labels {path}: no such file; birdtpu pseudo-label writes it")
        data = storage.read_bytes(path)
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                clips = pd.DataFrame({name: file[name] for name in STRETCH}).astype({"recording": str})
                codes, seen = (tuple(map(str, file[name])) for name in ("codes", "seen"))
                scores, notes = file["scores"], json.loads(str(file["notes"]))
                clips = clips.astype(dict.fromkeys(STRETCH[1:], float))
                float(notes["clip_seconds"]), list(notes["data"]), list(notes["untold"])
        except _BROKEN as error:
            raise UserError(f"pseudo-labels {path}: damaged, or no file of birdtpu pseudo-label ({error})") from error
        known = scores[~np.isnan(scores)] if scores.dtype == np.float16 else np.array([-1.0])
        if scores.shape != (len(clips), len(codes)) or ((known < 0) | (known > 1)).any():
            raise UserError(f"pseudo-labels {path}: damaged: its scores are no shares of {len(codes)} species")
        if len(set(codes)) < len(codes):
            raise UserError(f"pseudo-labels {path}: damaged: a species has two columns")
        start, end = (clips[column].to_numpy() for column in STRETCH[1:])
        if not (np.isfinite(end) & (start >= 0) & (end > start)).all():
            raise UserError(f"pseudo-labels {path}: damaged: some clips' start_seconds and end_seconds hold no time")
        if not len(known):
            raise UserError(f"pseudo-labels {path}: says nothing: no clip has a score")
        return cls(clips, scores, codes, frozenset(seen), notes, hashlib.sha256(data).hexdigest())


def soft_targets(labels: PseudoLabels, classes: ClassList) -> np.ndarray:
    """The scores with one column a class: `(clips, classes)` float16, NaN for classes that the teachers do not know.

    Raises: UserError where they know none of them.
    """
    own = {code: i for i, code in enumerate(labels.codes)}
    shared = [(i, own[code]) for i, code in enumerate(classes.codes) if code in own]
    if not shared:
        raise UserError(f"pseudo-labels: of other species ({', '.join(labels.codes[:3])}, ...) than the training's")
    out = np.full((len(labels.clips), len(classes)), np.nan, np.float16)
    out[:, [i for i, _ in shared]] = labels.scores[:, [j for _, j in shared]]
    return out


def usable(
    clips: pd.DataFrame,
    recordings: pd.DataFrame,
    roles: pd.Series,
    annotations: pd.DataFrame,
    unlabelled: pd.DataFrame,
) -> np.ndarray:
    """Which clips may be trained on: none of a recording that has a label, or whose group has a part that is held out.

    With a column `audio_hash` in the tables, recordings of the same audio are one, whatever their names.

    Args:
        clips: Of the pseudo-labels.
        recordings: All that the training has labels of, or holds out.
        roles: `train`, `validation` or `test` a row of `recordings`.
        annotations: Of both tables.
        unlabelled: The table of the recordings that were pseudo-labelled.

    Returns: `(clips,)` bool.
    """
    both = pd.concat([recordings.assign(role=np.asarray(roles)), unlabelled.assign(role="train")], ignore_index=True)
    group = folding.groups(both)
    held = group.isin(group[both["role"] != "train"])
    labelled = is_labelled(both, annotations)
    if "audio_hash" in both:
        labelled |= (both["audio_hash"] != "") & both["audio_hash"].isin(both.loc[labelled, "audio_hash"])
    return ~clips["recording"].isin(set(both.loc[held | labelled, "recording"])).to_numpy()


def is_labelled(recordings: pd.DataFrame, annotations: pd.DataFrame) -> pd.Series:
    """Whether a table says anything of what sings in each recording."""
    named = (recordings["primary_label"] != "") | (recordings["secondary_labels"] != "")
    return named | recordings["recording"].isin(set(annotations["recording"]))


def add_rows(
    plan: pd.DataFrame,
    clips: pd.DataFrame,
    allowed: np.ndarray,
    records: pd.DataFrame,
    *,
    ratio: float,
    weight: float,
    clip_seconds: float,
    seed: int,
) -> pd.DataFrame:
    """A plan with rows of the source `pseudo` beside its own; `targets` is the number of the clip, from 0.

    An epoch has `ratio` times as many of them as labelled samples. Where there are more clips, each section has several
    and an epoch takes one of them, in turn; where there are fewer, an epoch takes each several times.

    Args:
        plan: What `make_plan` made.
        clips: Of the pseudo-labels.
        allowed: `(clips,)` bool, from `usable`.
        records: `record, recording, start_seconds, seconds` of every record of their recordings.
        ratio: Pseudo-labelled samples for each labelled one.
        weight: Of each one's loss.
        clip_seconds: Length of a clip.
        seed: Of how the clips are dealt to the sections.

    Raises: UserError where no clip is allowed, or one has no record or lies outside its recording.
    """
    numbers = np.flatnonzero(allowed)
    if not len(numbers):
        raise UserError("pseudo-labels: no clip is left: all are of recordings that are labelled or held out")
    stretches = clips.iloc[numbers]
    lost = stretches.loc[~stretches["recording"].isin(set(records["recording"])), "recording"].unique()
    if len(lost):
        raise UserError(f"pseudo-labels: the shards lack {len(lost)} of their recordings ({lost[0]}, ...)")
    records = records.sort_values(["recording", "start_seconds"], ignore_index=True)
    ends = (records["start_seconds"] + records["seconds"]).groupby(records["recording"]).max()
    late = stretches["start_seconds"].to_numpy() >= ends[stretches["recording"]].to_numpy()
    if late.any():
        name = stretches["recording"][late].iloc[0]
        raise UserError(
            f"pseudo-labels: {late.sum()} clips begin behind their recording's end ({name}, ...): they are of other "
            "recordings of these names; make them again"
        )
    owner, inside = over_records(stretches, records, clip_seconds)
    number = numbers[owner]
    wanted = max(1, round(ratio * order.samples_per_epoch(plan[plan["role"] == "train"])))
    place = np.empty(len(number), int)
    place[np.argsort(random.hash32(seed, _DEAL, number), kind="stable")] = np.arange(len(number))
    each, more = divmod(wanted, min(wanted, len(number)))
    rows = inside.assign(
        row=int(plan["row"].max()) + 1 + np.arange(len(number)),
        section=int(plan["section"].max()) + 1 + place % wanted,
        repeats=each + (place % wanted < more),
        role="train",
        source=PSEUDO,
        weight=weight,
        targets=number.astype(str),
        unknown="",
        within="",
    )
    return pd.concat([plan, rows[list(COLUMNS)]], ignore_index=True).astype(COLUMNS)
