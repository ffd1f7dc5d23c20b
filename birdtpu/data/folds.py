"""Which recordings are held out: folds, splits and the roles of one run.

A *group* is what must stay on one side: the recordings of one recordist at one place, and every copy of a recording.
A fold is text. `train`, `validation` and `test` as folds say the role outright, in every run; any other text (`0`, `1`,
...) is a fold that a run may hold out; `""` is none yet.
"""

import os
import warnings
from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from birdtpu import storage
from birdtpu.data.sources.cells import parse_csv
from birdtpu.data.sources.lookup import normal
from birdtpu.errors import UserError

ROLES = ("train", "validation", "test")
# One recordist's recordings of one walk differ in the third decimal: 0.01 degrees are about 1 km.
PLACE_DEGREES = 0.01
# The finest unequal split is in twentieths: the search is linear in them.
MOST_UNITS = 20


def groups(recordings: pd.DataFrame) -> pd.Series:
    """The group of each recording, as text: the first of its members' names.

    Same author and same latitude and longitude, rounded to 0.01 degrees: one group. Where author or place is unknown,
    the recording is its own group. Rows with the same `recording`, or with the same `audio_hash` where the table has
    that column, are one group, and with them all that either belongs to. A row without `recording` goes by data set and
    path.

    Returns: a row a row, with the table's index; the same whatever the order of the rows.
    """
    unit = _units(recordings)
    author = recordings["author"].str.strip().str.casefold()
    place = recordings[["latitude", "longitude"]].astype(float).div(PLACE_DEGREES).round()
    place += 0.0  # -0.0 reads unlike 0.0
    known = (author != "") & place.notna().all(axis=1)
    keys = [(author + "|" + place["latitude"].astype(str) + "|" + place["longitude"].astype(str)).where(known, "")]
    if "audio_hash" in recordings:
        keys.append(recordings["audio_hash"])
    unit_of_row, units = pd.factorize(unit.to_numpy(), sort=True)
    starts, ends, nodes = [], [], len(units)
    for key in keys:
        code, values = pd.factorize(key.to_numpy())
        has = (key != "").to_numpy()
        starts.append(unit_of_row[has])
        ends.append(nodes + code[has])
        nodes += len(values)
    edges = (np.concatenate(starts), np.concatenate(ends))
    graph = coo_array((np.ones(len(edges[0])), edges), shape=(nodes, nodes))
    component = connected_components(graph, directed=False)[1][: len(units)]
    first = pd.Series(np.arange(len(units))).groupby(component).transform("min").to_numpy()
    return pd.Series(units[first[unit_of_row]], index=recordings.index, name="group")


def assign_folds(recordings: pd.DataFrame, *, folds: int, seed: int, rare_at_most: int = 0) -> pd.Series:
    """Folds `"0"` ... stratified on the primary label, never splitting a group.

    Args:
        recordings: The table of recordings. Those without a primary label are stratified as a class of their own.
        folds: How many, at least 2.
        seed: Of the shuffle among equal groups.
        rare_at_most: A class with at most this many recordings is in every training set and in no held-out part: its
            recordings get the fold `"train"`. So does all the rest of their groups, which may not stand on both sides.

    Returns: text a row, with the table's index; the same whatever the order of the rows.

    Raises: UserError where there are too few recordings or groups for so many folds.
    """
    if folds < 2:
        raise UserError(f"folds = {folds}: give at least 2")
    group, label = groups(recordings), recordings["primary_label"]
    copies = pd.DataFrame({"unit": _units(recordings), "label": label}).duplicated()
    counts = label[~copies].value_counts()
    rare = label.isin(counts.index[counts <= rare_at_most]) & (label != "")
    free = ~group.isin(group[rare])
    out = pd.Series("train", index=recordings.index, name="fold", dtype=object)
    out[free] = _stratified(group[free], label[free], folds, seed).astype(str)
    return out.astype(str)


def split(recordings: pd.DataFrame, *, parts: Mapping[str, float], seed: int) -> pd.Series:
    """One split in `train`, `validation` and `test`, stratified on the primary label, never splitting a group.

    Args:
        recordings: The table of recordings.
        parts: Share of each part, e.g. `{"train": 0.9, "validation": 0.05, "test": 0.05}`; they add up to 1. Shares are
            met to about 0.025 at best (in twentieths) and as far as whole groups allow.
        seed: Of the shuffle among equal groups.

    Returns: text a row, with the table's index, to stand as `fold`; the same whatever the order of the rows.

    Raises: UserError where the shares are none or there are too few recordings or groups.
    """
    named = [part for part in ROLES if part in parts]
    shares = np.array([parts[part] for part in named], float)
    if set(parts) - set(ROLES) or len(named) < 2 or not (shares > 0).all() or abs(shares.sum() - 1) > 1e-6:
        raise UserError(f"split {dict(parts)}: give positive shares of train, validation and test that add up to 1")
    group, label = groups(recordings), recordings["primary_label"]
    most = min(MOST_UNITS, group.nunique(), label.value_counts().max() if len(label) else 0)
    if most < len(named):
        raise UserError(f"split: too few recordings or groups for {' / '.join(named)}: give more, or fewer parts")
    counts = _share_out(shares, most)
    unit = _stratified(group, label, counts.sum(), seed)
    # One recordist may fill a unit many times over: the small parts take the units of the fairest size.
    fairest = np.argsort(np.abs(np.bincount(unit) - len(unit) / counts.sum()), kind="stable")
    small_first = np.argsort(shares, kind="stable")
    part_of_unit = np.empty(len(fairest), object)
    part_of_unit[fairest] = np.repeat(np.array(named, object)[small_first], counts[small_first])
    return pd.Series(part_of_unit[unit], index=recordings.index, name="fold").astype(str)


def folds_from_csv(path: str | os.PathLike, recordings: pd.DataFrame) -> pd.Series:
    """Folds from a CSV (as `sources.cells.parse_csv` reads it) with the columns `filename` and `fold`.

    A file is found by its whole relative path, else by its bare name where that is unique in the CSV and in the table.
    Rows of files that are not in the table are ignored. A group in more than one fold is a warning: folds given are the
    user's choice.

    Returns: text a row, with the table's index.

    Raises: UserError where the CSV cannot be read, lacks a column, gives a file two folds, or misses a recording.
    """
    table = _read_folds(path)
    paths = recordings["path"].map(normal)
    bare = paths.str.rsplit("/", n=1).str[-1]
    named = table.assign(bare=table["filename"].str.rsplit("/", n=1).str[-1])
    unique = named[~named["bare"].duplicated(keep=False)].set_index("bare")["fold"]
    once = _units(recordings).groupby(bare).transform("nunique") == 1
    out = paths.map(table.set_index("filename")["fold"]).astype(object)
    out = out.where(out.notna(), bare.where(once).map(unique))
    if out.isna().any():
        missing = recordings.loc[out.isna(), "path"].tolist()
        few = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise UserError(f"folds {path}: none for {len(missing)} of {len(recordings)} recordings ({few}): add them")
    group = groups(recordings)
    torn = out.groupby(group).nunique()
    torn = torn.index[torn > 1]
    if len(torn):
        example = recordings.loc[group == torn[0], "path"].tolist()[:2]
        warnings.warn(
            f"{path}: {len(torn)} of {group.nunique()} groups (recordist + place) stand in more than one fold,"
            f" e.g. {' and '.join(example)} are one: scores on held-out folds may flatter",
            stacklevel=2,
        )
    return out.rename("fold").astype(str)


def roles(
    recordings: pd.DataFrame, *, fold: str | int | None, validation_fraction: float = 0.0, seed: int = 0
) -> pd.Series:
    """`train`, `validation` or `test` for each recording, in one run.

    The named fold is tested and the rest trained on; without one all is trained on. Recordings whose fold is `train`,
    `validation` or `test` have that role in any case. A validation part is cut from the training folds by group: never
    from the fold `train`, nor from a group that reaches out of the training folds. Where the folds name a validation
    part themselves, it is that one and none is cut.

    Args:
        recordings: The table of recordings with its column `fold`.
        fold: The fold tested, or None.
        validation_fraction: Share of the training recordings, 0 for no validation part.
        seed: Of the validation cut.

    Returns: text a row, with the table's index; the same whatever the order of the rows.

    Raises: UserError where no recording has that fold, some have none, one recording stands on two sides, or too few
        groups are left for a validation part.
    """
    if not 0 <= validation_fraction < 1:
        raise UserError(f"validation_fraction = {validation_fraction}: give 0 (none) or a share below 1")
    named = recordings["fold"].astype(str)
    out = named.where(named.isin(["validation", "test"]), "train")
    if fold is not None:
        _check_fold(recordings, named, str(fold))
        out = out.mask(named == str(fold), "test")
    unit = _units(recordings)
    sides = out.groupby(unit).nunique()
    if (sides > 1).any():
        one = sides.index[sides > 1][0]
        raise UserError(f"recording {one} is in the folds {' and '.join(sorted(set(named[unit == one])))}: choose one")
    if validation_fraction and not (out == "validation").any():
        group = groups(recordings)
        free = (out == "train") & (named != "train")
        free &= ~group.isin(group[~free])
        cut = {"train": 1 - validation_fraction, "validation": validation_fraction}
        out = out.mask(free, split(recordings[free], parts=cut, seed=seed).reindex(out.index))
    return out.rename("role").astype(str)


def _units(recordings: pd.DataFrame) -> pd.Series:
    """What names a recording: its id, or before it has one its data set and path."""
    fallback = recordings["data_set"] + "/" + recordings["path"]
    return recordings["recording"].where(recordings["recording"] != "", fallback)


def _stratified(group: pd.Series, label: pd.Series, folds: int, seed: int) -> np.ndarray:
    """`(rows,)` fold numbers by scikit-learn."""
    if not len(label) or label.value_counts().max() < folds or group.nunique() < folds:
        raise UserError(
            f"{folds} folds: needs that many groups, and a species with that many recordings: lower folds.count"
        )
    from sklearn.model_selection import StratifiedGroupKFold

    out = np.zeros(len(label), int)
    group_code, label_code = (pd.factorize(values.to_numpy(), sort=True)[0] for values in (group, label))
    # Its own shuffle does not stratify before 1.8 (scikit-learn #32540); equal groups it takes by number.
    group_code = np.random.default_rng(seed).permutation(group.nunique())[group_code]
    with warnings.catch_warnings():
        # A species with fewer recordings than folds is usual here, and absent from some folds.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for number, (_, held) in enumerate(StratifiedGroupKFold(folds).split(label_code, label_code, group_code)):
            if not len(held):
                raise UserError(f"{folds} folds: recordists and places are too few to fill them: give fewer")
            out[held] = number
    return out


def _share_out(shares: np.ndarray, most: int) -> np.ndarray:
    """`(parts,)` counts of equal units, as few units as come near the shares."""
    best, least = np.ones(len(shares), int), np.inf
    for units in range(len(shares), most + 1):
        counts = np.maximum(1, np.rint(shares * units)).astype(int)
        counts[shares.argmax()] += units - counts.sum()
        error = np.abs(counts / units - shares).max()
        if counts.min() > 0 and error < least:
            best, least = counts, error
        if least <= 0.01:
            break
    return best


def _read_folds(path: str | os.PathLike) -> pd.DataFrame:
    if not storage.exists(path):
        raise UserError(f"folds {path}: no such file")
    columns, rows = parse_csv(storage.read_bytes(path), f"folds {path}")
    if not {"filename", "fold"} <= set(columns):
        raise UserError(f"folds {path}: needs the columns 'filename' and 'fold'")
    table = pd.DataFrame([(normal(row["filename"]), row["fold"]) for row in rows], columns=["filename", "fold"])
    table = table[table["fold"] != ""].drop_duplicates()
    twice = table.loc[table["filename"].duplicated(), "filename"]
    if len(twice):
        raise UserError(f"folds {path}: {twice.iloc[0]} has two folds: keep one")
    return table


def _check_fold(recordings: pd.DataFrame, named: pd.Series, fold: str) -> None:
    if fold in ("train", "validation"):
        raise UserError(f"fold {fold}: it is never tested; give another fold")
    if not (named == fold).any():
        known = sorted(set(named) - {"", "train", "validation"})
        raise UserError(f"fold {fold}: no recording has it (folds: {', '.join(known) or 'none'})")
    if (named == "").any():
        few = ", ".join(recordings.loc[named == "", "path"].tolist()[:3])
        raise UserError(
            f"fold {fold}: {(named == '').sum()} recordings have no fold ({few}, ...): give them one, or 'train'"
        )
