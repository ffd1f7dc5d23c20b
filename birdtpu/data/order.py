"""The order in which a run sees its plan's rows: NumPy only, a function of (plan, shards, seed, epoch).

An epoch is computed whole and at once, so any step of it can be the first. The shards are permuted and taken in
blocks of a few, the rows of a block are dealt to groups as cards are dealt to players, and the groups are permuted.
Epochs follow each other without a gap: position `p` of the endless stream is position `p % n` of epoch `p // n`.
"""

import numpy as np
import pandas as pd

from birdtpu import random
from birdtpu.data.plan import PSEUDO, recordings_of

_TURN, _SHARD, _RECORDING, _ROW, _GROUP, _CROP = (
    random.stream(f"order/{name}") for name in ("turn", "shard", "recording", "row", "group", "crop")
)


def samples_per_epoch(plan: pd.DataFrame) -> int:
    """Rows that one epoch takes from a plan: each section as often as its `repeats` says."""
    return int(plan.groupby("section")["repeats"].first().sum())


def epoch_rows(
    plan: pd.DataFrame, shard_of_row: np.ndarray, *, seed: int, epoch: int, group: int = 8, block_shards: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """One epoch of a plan, in order.

    Each section comes `repeats` times; a section of several rows gives one at a time, in turn over the epochs. In a
    group of `group` rows that follow each other, counted from the first row of epoch 0, no two are of one recording
    as long as the block has other groups for them, and each source has its even share. (A recording with rows of
    two sources may fail the first rule where no swap inside a source mends it; so may the group that two epochs
    share.) Pseudo-labelled rows mostly lie in shards of their own: each block gets its even share of them.

    Args:
        plan: Columns `section, record, repeats, source`; `repeats` is one number a section.
        shard_of_row: `(rows,)` integers: the shard that holds each row's record.
        seed: The run's.
        epoch: From 0.
        group: Rows that may be mixed with each other.
        block_shards: Most shards that are read side by side (beside those of pseudo-labelled rows). More mix better,
            fewer lie closer together.

    Returns: `(samples_per_epoch,)` positions in `plan`, and `(samples_per_epoch,)` which of its section's repeats
        each is. Both int64.
    """
    index, occurrence = _choose(plan, seed, epoch)
    recording = pd.factorize(recordings_of(plan))[0][index]
    source = pd.factorize(plan["source"], sort=True)[0][index]
    key = random.hash32(seed, _ROW, epoch, index, occurrence)
    recording_key = random.hash32(seed, _RECORDING, epoch, recording)
    shards, shard = np.unique(np.asarray(shard_of_row)[index], return_inverse=True)
    place = np.argsort(np.argsort(random.hash32(seed, _SHARD, epoch, shards), kind="stable"))
    pseudo = plan["source"].to_numpy()[index] == PSEUDO
    block = _blocks(place[shard], key, pseudo, block_shards)
    by_block = np.lexsort((key, block))
    blocks = np.split(by_block, np.flatnonzero(np.diff(block[by_block])) + 1)

    # Groups are counted over the whole stream: an epoch begins with what the one before left of its last group.
    lead = -epoch * len(index) % group
    out, rows = [], np.empty(0, np.int64)
    for number, more in enumerate(blocks):
        rows = _evenly(np.concatenate([rows, more]), pseudo)
        # What fills no group waits for the next block.
        whole = len(rows) if number == len(blocks) - 1 else max(0, len(rows) - (len(rows) - lead) % group)
        if not whole:
            continue
        rows, rest = rows[:whole], rows[whole:]
        dealt = rows[np.lexsort((key[rows], recording[rows], recording_key[rows], source[rows]))]
        group_of = _deal(recording[dealt], source[dealt], lead, group, shared=bool(pseudo.any()))
        # Neighbours in the deal share recordings, so the whole groups are permuted too.
        middle = np.arange((whole - lead) // group) + (lead > 0)
        rank = np.arange(group_of.max() + 1)
        rank[middle] = middle[np.argsort(random.hash32(seed, _GROUP, epoch, number, middle), kind="stable")]
        out.append(dealt[np.lexsort((key[dealt], rank[group_of]))])
        lead, rows = 0, rest
    order = np.concatenate(out) if out else rows
    return index[order], occurrence[order]


def example_seeds(row: np.ndarray, occurrence: np.ndarray, *, seed: int, epoch: int | np.ndarray) -> np.ndarray:
    """`(rows,)` int32: the key of every draw of an example, from (run seed, epoch, plan row, occurrence)."""
    return random.hash32(seed, epoch, row, occurrence).view(np.int32)


def clip_starts(
    start: np.ndarray, end: np.ndarray, length: np.ndarray, clip: int, seeds: np.ndarray | None = None
) -> np.ndarray:
    """Where each clip begins in its record, in samples.

    A clip lies inside its section; where the section is the shorter one, it lies inside the clip; and the clip lies
    inside the record. Only a record that is shorter than the clip is repeated, end to start, and the clip begins at
    any of its samples.

    Args:
        start: `(rows,)` the section's first sample, within the record.
        end: `(rows,)` the sample behind its last.
        length: `(rows,)` the record's samples.
        clip: Samples of a clip.
        seeds: `(rows,)` int32 keys; each clip is drawn evenly from all that are allowed. None: the first of them.

    Returns: `(rows,)` int64.
    """
    last = np.maximum(length - clip, 0)
    if seeds is None:
        return np.clip(start, 0, last)
    low = np.clip(np.minimum(start, end - clip), 0, last)
    high = np.where(length < clip, length - 1, np.clip(np.maximum(start, end - clip), 0, last))
    bits = random.hash32(seeds, _CROP).astype(np.uint64)
    return low + (bits * (high - low + 1).astype(np.uint64) >> np.uint64(32)).astype(np.int64)


def _choose(plan: pd.DataFrame, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The positions an epoch takes, and the occurrence of each, by section."""
    sections, section = np.unique(plan["section"].to_numpy(), return_inverse=True)
    by_section = np.argsort(section, kind="stable")
    rows = np.bincount(section, minlength=len(sections))
    first = np.cumsum(rows) - rows
    repeats = plan["repeats"].to_numpy(np.int64)[by_section[first]]
    of = np.repeat(np.arange(len(sections)), repeats)
    occurrence = np.arange(len(of)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    # Each section begins its round elsewhere: else the first epoch would hear only the starts of recordings.
    turn = epoch * repeats[of] + occurrence + random.hash32(seed, _TURN, sections)[of]
    return by_section[first[of] + turn % rows[of]], occurrence


def _blocks(place: np.ndarray, key: np.ndarray, pseudo: np.ndarray, block_shards: int) -> np.ndarray:
    """The block of each row, from its shard's place in the epoch.

    The labelled rows' shards make the blocks; each takes as large a part of the pseudo-labelled rows as it has of the
    labelled ones.
    """
    labelled = ~pseudo if not pseudo.all() else pseudo
    shards, shard = np.unique(place[labelled], return_inverse=True)
    block = np.zeros(len(place), int)
    block[labelled] = shard * -(-len(shards) // block_shards) // max(1, len(shards))
    others = np.flatnonzero(~labelled)
    if len(others):
        ends = np.cumsum(np.bincount(block[labelled])) / labelled.sum()
        others = others[np.lexsort((key[others], place[others]))]
        block[others] = np.searchsorted(ends[:-1], (np.arange(len(others)) + 0.5) / len(others), side="right")
    return block


def _evenly(rows: np.ndarray, pseudo: np.ndarray) -> np.ndarray:
    """The rows with the pseudo-labelled ones spread evenly among the others; each kind keeps its order."""
    when = np.empty(len(rows))
    for kind in (pseudo[rows], ~pseudo[rows]):
        when[kind] = (np.arange(kind.sum()) + 0.5) / max(1, kind.sum())
    return rows[np.argsort(when, kind="stable")]


def _deal(recording: np.ndarray, source: np.ndarray, lead: int, group: int, shared: bool) -> np.ndarray:
    """The group of each row: rows in turn to groups of `lead` (if any), then `group` each, then what is left.

    Rows of a recording (within a source) stand together, so they go to groups that follow each other, and come back
    to the first only where they outnumber the groups. Where pseudo-labelled rows have a `shared` part in the epoch, a
    short group takes its rows as evenly from all of them as a whole one.
    """
    sizes = np.diff([0, *range(lead or group, len(recording), group), len(recording)])
    group_of = np.repeat(np.arange(len(sizes)), sizes)
    seat = np.arange(len(group_of)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    if shared:
        seat = (seat + 0.5) / np.repeat(sizes, sizes)
    out = group_of[np.lexsort((group_of, seat))]
    _part(out, np.unique(recording, return_inverse=True)[1], source)
    return out


def _part(group_of: np.ndarray, recording: np.ndarray, source: np.ndarray) -> None:
    """Swap rows of one source between groups, in place, where a recording has two rows in a group."""
    order = np.lexsort((recording, group_of))
    twice = (np.diff(group_of[order]) == 0) & (np.diff(recording[order]) == 0)
    counts = np.bincount(recording)
    for row in order[1:][twice]:
        if counts[recording[row]] > group_of.max() + 1:
            continue  # more rows than groups: some group must hold two
        here = np.zeros(len(counts), bool)
        here[recording[group_of == group_of[row]]] = True
        there = np.zeros(group_of.max() + 1, bool)
        there[group_of[recording == recording[row]]] = True
        fits = np.flatnonzero((source == source[row]) & ~there[group_of] & ~here[recording])
        if len(fits):
            group_of[row], group_of[fits[0]] = group_of[fits[0]], group_of[row]
