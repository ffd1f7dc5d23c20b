"""The plan: the table of samples that one training run takes from the shards.

Everything about a run's samples is decided here: what is trained on and what is held out, which stretch a clip is drawn
from, how often, and what is known about it. A *section* is one sample an epoch. It has one row, or, where it is longer
than a record, one row a record, of which each epoch takes one in turn.

What is known of a row stands in two columns of codes joined by `;`. `targets`: the species that are present. `unknown`:
the species of which nothing is known; where it begins with `*`, nothing is known of any species but the targets and the
codes after the `*`, which are absent (`*;b`: all unknown but b, which is absent). `within` are those of the targets
that sing somewhere in the row, and not all through it. `source` is `labelled` where that is said of the whole
recording, `timed` where an annotation says it of this stretch. Where it is `pseudo`, `targets` is the number of a clip
in a file of pseudo-labels (see `data.pseudo`).
"""

import io
import os
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from birdtpu import storage
from birdtpu.data.annotations import STRETCH, annotated_sections
from birdtpu.data.folds import ROLES
from birdtpu.errors import UserError
from birdtpu.species import NOCALL, ClassList

COLUMNS = {
    "row": int,
    "section": int,
    "record": str,
    "start_seconds": float,
    "end_seconds": float,
    "repeats": int,
    "role": str,
    "source": str,
    "weight": float,
    "targets": str,
    "unknown": str,
    "within": str,
}
PSEUDO = "pseudo"


def make_plan(
    recordings: pd.DataFrame,
    annotations: pd.DataFrame,
    records: pd.DataFrame,
    *,
    sections: pd.DataFrame,
    roles: Sequence[str] | pd.Series,
    classes: ClassList,
    clip_seconds: float,
    secondary: str = "positive",
    whole_clips: bool = True,
    weights: Sequence[float] | pd.Series | None = None,
) -> pd.DataFrame:
    """The plan, sorted by recording and time; rows and sections are numbered from 0.

    A training recording gives the sections of the balance, a held-out one a single section over all its records. Its
    primary label is present; all else is absent but for the secondary labels. Where the primary label is `nocall`, all
    is absent. Without a primary label, all else is unknown. A recording that has annotations gives, whatever its role,
    one section for each annotated stretch in place of the above (see `annotated_sections`). A section of which nothing
    is known has no row.

    A section no longer than a record has one row, in the record that holds most of it (of equals, the first), cut at
    that record's ends. A longer one has a row in each record that holds at least half a clip of it.

    Args:
        recordings: The table beside the shards; rows of the same `recording` count once, as the first of them.
        annotations: The table beside the shards, or no row of it.
        records: `record, recording, start_seconds, seconds` of every record in the shards, once
            (`shards.load_all_records`).
        sections: What `balance` made of the training part. A training recording that is not in it is left out.
        roles: `train`, `validation` or `test` a row of `recordings`, in its order.
        classes: Species outside it are left out of targets, but a primary label must be in it.
        clip_seconds: Length of a clip.
        secondary: Secondary labels, where the table has kept them, count as `"positive"`, `"unknown"` or `"negative"`.
        whole_clips: What is said of a stretch shorter than a clip has to hold for the whole clip around it. False: it
            is said of the stretch alone, as where nothing but labels of frames is learnt.
        weights: Loss weight a row of `recordings`, in its order; None: 1.

    Returns: The columns of `COLUMNS`; `start_seconds` and `end_seconds` count from the record's start.

    Raises: UserError where an option has another value, a primary label is not in `classes`, a recording has no record,
        or no training row is left.
    """
    if secondary not in ("positive", "unknown", "negative"):
        raise UserError(f"labels.secondary = {secondary!r}: give positive, unknown or negative")
    table = recordings.assign(role=np.asarray(roles), weight=1.0 if weights is None else np.asarray(weights, float))
    table = table.drop_duplicates("recording").set_index("recording", drop=False)
    records = records.sort_values(["recording", "start_seconds"], ignore_index=True)
    ends = (records["start_seconds"] + records["seconds"]).groupby(records["recording"]).max()
    lost = table.index.difference(ends.index)
    if len(lost):
        raise UserError(f"plan: the shards lack {len(lost)} of the recordings ({lost[0]}, ...): run prepare again")

    reach = clip_seconds if whole_clips else 0.0
    boxes = annotated_sections(annotations, ends[table.index], classes, clip_seconds=reach)
    weak = table[~table.index.isin(boxes["recording"])]
    train = sections[sections["recording"].isin(weak.index[weak["role"] == "train"])]
    held = weak.index[weak["role"] != "train"]
    held = pd.DataFrame({"recording": held, "start_seconds": 0.0, "end_seconds": ends[held].to_numpy(), "repeats": 1})
    labels = _weak_labels(weak, classes, secondary)
    parts = [part.join(labels, on="recording").assign(source="labelled", within="") for part in (train, held)]
    parts.append(boxes.assign(repeats=1, source="timed"))
    joined = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    joined = joined.join(table[["role", "weight"]], on="recording").sort_values(STRETCH)
    joined = joined[(joined["targets"] != "") | (joined["unknown"] != "*")].reset_index(drop=True)
    if not (joined["role"] == "train").any():
        raise UserError(
            "plan: no labelled recording is left to train on: look at the filters, the fold, labels.timed, failures.csv"
        )

    owner, inside = over_records(joined, records, clip_seconds)
    plan = joined.drop(columns=["start_seconds", "end_seconds"]).iloc[owner].reset_index(drop=True).join(inside)
    plan = plan.assign(row=np.arange(len(plan)), section=owner)
    return plan[list(COLUMNS)].astype(COLUMNS)


def dense_targets(plan: pd.DataFrame, classes: ClassList) -> tuple[np.ndarray, np.ndarray]:
    """`targets` and `target_mask`, both `(rows, classes)` float32: 1 present, and 1 known.

    Raises: UserError where the plan names a species that is not in `classes`.
    """
    target_texts, target_of_row = np.unique(plan["targets"].to_numpy(object), return_inverse=True)
    unknown_texts, unknown_of_row = np.unique(plan["unknown"].to_numpy(object), return_inverse=True)
    targets = np.stack([_hot(_codes(text), classes) for text in target_texts])[target_of_row]
    masks = []
    for text in unknown_texts:
        star, *rest = _codes(text) or [""]
        masks.append(_hot(rest, classes) if star == "*" else 1 - _hot(_codes(text), classes))
    return targets, np.maximum(np.stack(masks)[unknown_of_row], targets)


def recordings_of(plan: pd.DataFrame) -> pd.Series:
    """The recording of each row."""
    return plan["record"].str.rsplit("/", n=1).str[0]


def save_plan(plan: pd.DataFrame, path: str | os.PathLike) -> None:
    """Write the plan as CSV, atomically; `load_plan` gives the same table, to the last bit."""
    storage.write_text(path, plan_text(plan))


def plan_text(plan: pd.DataFrame) -> str:
    """The plan as CSV."""
    return plan.to_csv(index=False, lineterminator="\n")


def load_plan(path: str | os.PathLike) -> pd.DataFrame:
    """Read what `save_plan` wrote.

    Raises: UserError where the file is missing or is no plan.
    """
    if not storage.exists(path):
        raise UserError(f"plan {path}: no such file")
    try:
        plan = pd.read_csv(io.StringIO(storage.read_text(path)), dtype=str, keep_default_na=False)
        return plan[list(COLUMNS)].astype(COLUMNS)
    except (ValueError, KeyError) as error:
        raise UserError(f"plan {path}: not a plan ({error}): train again") from error


def plan_report(plan: pd.DataFrame, classes: ClassList) -> str:
    """A text table: recordings, sections and seconds of each species in each role.

    A row counts for every species that is present in it; the line `(none)` has the rows where none is, `(pseudo)` those
    with pseudo-labels. The last line counts each row once.
    """
    species = plan["targets"].where(plan["targets"] != "", "(none)").where(plan["source"] != PSEUDO, "(pseudo)")
    table = plan.assign(
        recording=recordings_of(plan),
        seconds=plan["end_seconds"] - plan["start_seconds"],
        species=species.str.split(";"),
    )
    one_each = table.explode("species", ignore_index=True)
    used = [role for role in ROLES if (plan["role"] == role).any()]
    names = [*classes.codes, *(name for name in ("(none)", "(pseudo)") if (species == name).any())]
    lines = {name: [name] for name in [*names, "all"]}
    for role in used:
        for rows, keys in ((one_each, names), (table.assign(species="all"), ["all"])):
            part = rows[rows["role"] == role].groupby("species")
            count = part[["recording", "section"]].nunique().join(part["seconds"].sum()).reindex(keys, fill_value=0)
            for name, values in zip(keys, count.itertuples(index=False), strict=True):
                lines[name] += [str(values.recording), str(values.section), f"{values.seconds:.0f}"]
    head = ["species", *(f"{role} {what}" for role in used for what in ("recordings", "sections", "seconds"))]
    cells = [head, *lines.values()]
    width = [max(len(line[i]) for line in cells) for i in range(len(head))]
    text = ["  ".join([line[0].ljust(width[0]), *map(str.rjust, line[1:], width[1:])]) for line in cells]
    return "\n".join(text) + "\n"


def _codes(text: str) -> list[str]:
    return text.split(";") if text else []


def _hot(codes: Iterable[str], classes: ClassList) -> np.ndarray:
    try:
        return classes.multi_hot(codes)
    except KeyError as error:
        raise UserError(f"plan: species {error} is not in the class list: take the list it was made with") from error


def _weak_labels(table: pd.DataFrame, classes: ClassList, secondary: str) -> pd.DataFrame:
    """`targets` and `unknown` of whole recordings, with the table's index."""
    primary = table["primary_label"]
    # A class list may have a class of that name.
    silent = (primary == NOCALL) & ~primary.isin(classes.codes)
    primary = primary.mask(silent, "")
    outside = table.index[(primary != "") & ~primary.isin(classes.codes)]
    if len(outside):
        raise UserError(
            f"primary label {primary[outside[0]]!r} of {outside[0]} is not in the class list: add it or filter by it"
        )
    also = [
        [code for code in dict.fromkeys(_codes(text)) if code in classes and code != first]
        for first, text in zip(primary, table["secondary_labels"], strict=True)
    ]
    added = also if secondary == "positive" else [[]] * len(also)
    targets = [";".join(filter(None, [first, *more])) for first, more in zip(primary, added, strict=True)]
    masked = [";".join(codes) if secondary == "unknown" else "" for codes in also]
    unknown = np.where((primary == "") & ~silent, "*", np.array(masked, object))
    return pd.DataFrame({"targets": targets, "unknown": unknown}, index=table.index)


def over_records(sections: pd.DataFrame, records: pd.DataFrame, clip_seconds: float) -> tuple[np.ndarray, pd.DataFrame]:
    """Cut stretches of recordings at their records' ends, as `make_plan` says.

    Args:
        sections: `recording, start_seconds, end_seconds`.
        records: Every record of their recordings, sorted by recording and time.
        clip_seconds: Length of a clip.

    Returns: the section of each row, as a position, and its `record, start_seconds, end_seconds`.
    """
    record_start, record_seconds = records["start_seconds"].to_numpy(), records["seconds"].to_numpy()
    names, count_of = np.unique(records["recording"].to_numpy(object), return_counts=True)
    recording = np.searchsorted(names, sections["recording"].to_numpy(object))
    count, origin = count_of[recording], (np.cumsum(count_of) - count_of)[recording]
    start, end = sections["start_seconds"].to_numpy(), sections["end_seconds"].to_numpy()
    # Records of a recording are equal but for rounding: one more on either side holds every record that is met.
    last = origin + count - 1
    length = (record_start[last] + record_seconds[last]) / count
    low = np.clip(start // length - 1, 0, count - 1).astype(int)
    high = np.clip(end // length + 1, 0, count - 1).astype(int)
    met = high - low + 1
    owner = np.repeat(np.arange(len(sections)), met)
    record = (origin + low)[owner] + np.arange(len(owner)) - np.repeat(np.cumsum(met) - met, met)
    begin = np.maximum(start[owner] - record_start[record], 0)
    finish = np.minimum(end[owner] - record_start[record], record_seconds[record])
    held = finish - begin
    most_first = np.lexsort((record, -held, owner))
    most = np.zeros(len(owner), bool)
    most[most_first[np.unique(owner[most_first], return_index=True)[1]]] = True
    keep = most | (((end - start) > length)[owner] & (held >= clip_seconds / 2))
    inside = pd.DataFrame({"record": records["record"].to_numpy()[record[keep]]})
    return owner[keep], inside.assign(start_seconds=begin[keep], end_seconds=finish[keep])
