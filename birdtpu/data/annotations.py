"""What annotations say of the stretches of time that they name."""

import warnings

import numpy as np
import pandas as pd

from birdtpu.species import NOCALL, ClassList

STRETCH = ["recording", "start_seconds", "end_seconds"]
# Pairs of annotations compared at once: bounds the memory of a day-long recording with a row every 5 s.
PAIRS_AT_ONCE = 10**7
# Times are rounded to about a millisecond: what reaches less far beyond a stretch does not.
_ROUNDING_SECONDS = 1e-3


def annotated_sections(
    annotations: pd.DataFrame, ends: pd.Series, classes: ClassList, *, clip_seconds: float = 0.0
) -> pd.DataFrame:
    """One section for each stretch of time that annotations name, with all that is known of it.

    A clip that is longer than a stretch reaches beyond it, on either side. Of one species, in this order: present where
    a positive annotation covers the stretch or lies within it; unknown where a positive or an unknown one touches what
    a clip can reach; absent where a negative one covers the stretch. Any other species is absent where negative `*`
    cover all that a clip can reach, else unknown. Stretches of which nothing is known are left out.

    `nocall`, where it is a class, is present where negative `*` cover all that a clip can reach, and no species of the
    table sings there.

    Args:
        annotations: The table; an end of NaN is the recording's end.
        ends: Duration in seconds by recording; annotations of other recordings are left out.
        classes: Annotations of species outside it say that there is a stretch, and that it is not `nocall`.
        clip_seconds: Of the clip for which the labels shall hold; 0: of the stretch alone.

    Returns: `recording, start_seconds, end_seconds, targets, unknown, within`, sorted.

    Warns: where annotations hold no time, as those past the recording's end; where stretches are shorter than a clip
    and what lies beside them has no labels.
    """
    rows = annotations[annotations["recording"].isin(ends.index)]
    last = rows["recording"].map(ends).astype(float)
    rows = rows.assign(
        start_seconds=rows["start_seconds"].clip(lower=0), end_seconds=rows["end_seconds"].fillna(last).clip(upper=last)
    )
    void = rows["end_seconds"] <= rows["start_seconds"]
    if void.any():
        name = rows.loc[void, "recording"].iloc[0]
        warnings.warn(f"annotations: {void.sum()} rows hold no time of their recording, as in {name}", stacklevel=3)
    rows = rows[~void]
    stretches = rows[STRETCH].drop_duplicates().sort_values(STRETCH, ignore_index=True)
    complete_rows = (rows["species"] == "*") & (rows["state"] == "negative")
    reach = _reach(stretches, ends, clip_seconds)
    complete = _covered(reach, rows[complete_rows])
    if lonely := int((_covered(stretches, rows[complete_rows]) & ~complete).sum()):
        warnings.warn(
            f"annotations: {lonely} stretches are shorter than a clip, and what lies beside them is not labelled: only "
            "species that are named there are known",
            stacklevel=3,
        )
    said = [_said(stretches, reach, rows[rows["species"].isin(classes.codes)])]
    if NOCALL in classes:
        named = ~complete_rows & (rows["species"] != NOCALL) & (rows["state"] != "negative")
        said.append(_silence(stretches, reach, rows[named], complete))
    best = pd.concat(said).groupby(["stretch", "species"], as_index=False)["rank"].min()
    present, within, unsure, absent = (
        best[best["rank"].isin(ranks)]
        .groupby("stretch")["species"]
        .agg(";".join)
        .reindex(stretches.index, fill_value="")
        .astype(object)
        for ranks in ([0, 1], [1], [2], [3])
    )
    beyond = ("*;" + absent).str.rstrip(";")
    out = stretches.assign(targets=present, unknown=unsure.where(complete, beyond), within=within)
    return out[(out["targets"] != "") | (out["unknown"] != "*")].reset_index(drop=True)


def _reach(stretches: pd.DataFrame, ends: pd.Series, clip_seconds: float) -> pd.DataFrame:
    """What the clips of each stretch can hold: on either side as much as a clip is longer."""
    start, end = (stretches[column] for column in STRETCH[1:])
    beyond = (clip_seconds - _ROUNDING_SECONDS - (end - start)).clip(lower=0)
    last = stretches["recording"].map(ends).astype(float)
    return stretches.assign(
        start_seconds=(start - beyond).clip(lower=0), end_seconds=np.minimum(end + beyond, np.maximum(last, end))
    )


def _covered(spans: pd.DataFrame, rows: pd.DataFrame) -> np.ndarray:
    """`(spans,)` bool: whether the rows, together, cover each span."""
    out = np.zeros(len(spans), bool)
    start, end = (spans[column].to_numpy() for column in STRETCH[1:])
    of_recording = spans.groupby("recording").indices
    for recording, part in rows.sort_values("start_seconds").groupby("recording"):
        begin, finish = part["start_seconds"].to_numpy(), np.maximum.accumulate(part["end_seconds"].to_numpy())
        # A row that begins behind all before it begins a new piece.
        first = np.flatnonzero(np.append(True, begin[1:] > finish[:-1] + _ROUNDING_SECONDS))
        begin, finish = begin[first], finish[np.append(first[1:], len(finish)) - 1]
        where = of_recording[recording]
        piece = np.searchsorted(begin, start[where] + _ROUNDING_SECONDS, side="right") - 1
        out[where] = (piece >= 0) & (finish[piece] >= end[where] - _ROUNDING_SECONDS)
    return out


def _said(stretches: pd.DataFrame, reach: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """`stretch, species, rank` of every annotation that says something of a stretch or of its reach: 0 present all
    through the stretch, 1 somewhere in it, 2 unknown, 3 absent."""
    rows = rows.reset_index(drop=True)
    stretch, row = _overlaps(reach, rows)
    start, end = (stretches[column].to_numpy()[stretch] for column in STRETCH[1:])
    begin, finish, state, species = (
        rows[column].to_numpy()[row] for column in ("start_seconds", "end_seconds", "state", "species")
    )
    covers, inside = (begin <= start) & (finish >= end), (begin >= start) & (finish <= end)
    positive = state == "positive"
    ranks = [positive & covers, positive & inside, positive | (state == "unknown"), covers]
    found = pd.DataFrame({"stretch": stretch, "species": species, "rank": np.select(ranks, range(4), 4)})
    return found[found["rank"] < 4]


def _silence(stretches: pd.DataFrame, reach: pd.DataFrame, named: pd.DataFrame, complete: np.ndarray) -> pd.DataFrame:
    """As `_said`, of `nocall` in completely labelled stretches; `named` are the annotations of what may sing."""
    named = named.reset_index(drop=True)
    stretch, row = _overlaps(reach, named)
    begin, finish = (named[column].to_numpy()[row] for column in STRETCH[1:])
    start, end = (stretches[column].to_numpy()[stretch] for column in STRETCH[1:])
    sure = (named["state"].to_numpy()[row] == "positive") & (begin < end) & (start < finish)
    rank = np.where(complete, 0, 4)
    rank[stretch] = 2
    rank[stretch[sure]] = 3
    found = pd.DataFrame({"stretch": np.arange(len(rank)), "species": NOCALL, "rank": rank})
    return found[complete & (rank < 4)]


def _overlaps(stretches: pd.DataFrame, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The positions of every stretch and row that share time. `rows` are numbered from 0."""
    start, end = (stretches[column].to_numpy()[:, None] for column in STRETCH[1:])
    begin, finish = (rows[column].to_numpy() for column in STRETCH[1:])
    of_recording = rows.groupby("recording").indices
    found = [(np.zeros(0, int), np.zeros(0, int))]
    for recording, where in stretches.groupby("recording").indices.items():
        near = of_recording.get(recording, np.zeros(0, int))
        for some in np.array_split(where, 1 + len(where) * len(near) // PAIRS_AT_ONCE):
            i, j = np.nonzero((begin[near] < end[some]) & (start[some] < finish[near]))
            found.append((some[i], near[j]))
    return np.concatenate([i for i, _ in found]), np.concatenate([j for _, j in found])
