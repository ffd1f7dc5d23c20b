"""Sounds that a row of the plan is mixed with: another recording of its species, a background."""

from collections.abc import Callable, Collection, Sequence
from functools import cache

import numpy as np
import pandas as pd
import tensorflow as tf

from birdtpu import random, storage
from birdtpu.data import order
from birdtpu.data.plan import PSEUDO, recordings_of
from birdtpu.data.shelf import Reader, Shelf, cut, from_shards, open_shelf
from birdtpu.errors import UserError

_PARTNER, _PARTNER_CROP, _BACKGROUND, _BACKGROUND_CROP = (
    random.stream(f"pipeline/{name}") for name in ("partner", "partner crop", "background", "background crop")
)


def companions(
    plan: pd.DataFrame,
    shelf: Shelf,
    place: np.ndarray,
    read: Reader,
    partner: bool,
    background: str | Sequence[str],
    held_out: Collection[str],
    samples: int,
) -> Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]:
    """(position, seed) -> what a row is to be mixed with, each `(samples,)` float32 and drawn by the row's seed."""
    draws: dict[str, tuple[Reader, Callable[..., np.ndarray]]] = {}
    if partner:
        draws["partner_audio"] = (read, _partners(plan, shelf, place, samples))
    if len(storage.paths_of(background)):
        sounds = open_shelf(background)
        if sounds.sample_rate != shelf.sample_rate:
            raise UserError(
                f"background: {storage.paths_of(background)[0]} is prepared at {sounds.sample_rate} Hz, "
                f"the data at {shelf.sample_rate} Hz: prepare both at one rate"
            )
        usable = ~sounds.table["recording"].isin(held_out).to_numpy()
        if not usable.any():
            raise UserError(
                f"background: all recordings of {storage.paths_of(background)[0]} are held out, or of a recordist and "
                "place that are: name another folder"
            )
        draws["background_audio"] = (from_shards(sounds), _backgrounds(sounds, usable, samples))

    def beside(position: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        out = {}
        for name, (reader, draw) in draws.items():
            job = tf.ensure_shape(tf.numpy_function(draw, [position, seed], tf.int64), [4])
            pcm, gain = cut(reader, *tf.unstack(job), samples)
            out[name] = tf.cast(pcm, tf.float32) * gain
        return out

    return beside


def _partners(
    plan: pd.DataFrame, shelf: Shelf, place: np.ndarray, clip: int
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """(position, seed) -> a job for a row with the same targets, of another recording where there is one.

    Of a partner at least as much is known to be absent: else a label of the row would not hold for both.
    """
    # A pseudo-labelled row's targets are the number of its clip, and no species.
    targets = plan["targets"].where(plan["source"] != PSEUDO, "/" + plan["targets"])
    kind, kinds = pd.factorize(pd.MultiIndex.from_arrays([targets, plan["unknown"]]))
    recording = pd.factorize(recordings_of(plan))[0]
    same = pd.Series(np.arange(len(kinds))).groupby(kinds.get_level_values(0)).indices
    rows_of = pd.Series(np.arange(len(plan))).groupby(kind).indices

    @cache
    def alike(number: int) -> np.ndarray:
        label, unknown = kinds[number]
        return np.concatenate([rows_of[i] for i in same[label] if _knows_as_much(kinds[i][1], unknown)])

    length = np.rint(shelf.table["seconds"].to_numpy()[place] * shelf.sample_rate).astype(np.int64)
    begin, end = (
        np.rint(plan[column].to_numpy() * shelf.sample_rate).astype(np.int64)
        for column in ("start_seconds", "end_seconds")
    )

    def draw(position: np.ndarray, seed: np.ndarray) -> np.ndarray:
        rows = alike(kind[position])
        others = rows[recording[rows] != recording[position]]
        rows = others if len(others) else rows
        key = random.hash32(np.int32(seed), _PARTNER)
        row = rows[int(key) % len(rows) : int(key) % len(rows) + 1]
        start = order.clip_starts(begin[row], end[row], length[row], clip, random.hash32(key, _PARTNER_CROP)[None])
        return _job(place[row[0]], int(start[0]), int(length[row[0]]), clip)

    return draw


def _knows_as_much(partner: str, own: str) -> bool:
    """Whether all that is absent by `own` is absent by `partner` too; both as a plan's `unknown`, of equal targets."""
    (star, *absent), (partner_star, *partner_absent) = own.split(";"), partner.split(";")
    if star == "*":
        return not {*absent} & {*partner.split(";")} if partner_star != "*" else {*absent} <= {*partner_absent}
    return partner_star != "*" and {*partner.split(";")} - {""} <= {*own.split(";")}


def _backgrounds(shelf: Shelf, usable: np.ndarray, clip: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """(position, seed) -> a job for any usable record, longer ones more often."""
    length = np.rint(shelf.table["seconds"].to_numpy() * shelf.sample_rate).astype(np.int64)
    ends = np.cumsum(length * usable)

    def draw(position: np.ndarray, seed: np.ndarray) -> np.ndarray:
        key = random.hash32(np.int32(seed), _BACKGROUND)
        record = int(np.searchsorted(ends, int(key) * int(ends[-1]) >> 32, side="right"))
        whole = np.array([0]), length[record : record + 1], length[record : record + 1]
        start = order.clip_starts(*whole, clip, random.hash32(key, _BACKGROUND_CROP)[None])
        return _job(record, int(start[0]), int(length[record]), clip)

    return draw


def _job(record: int, start: int, length: int, clip: int) -> np.ndarray:
    """`record, start, copies, shift` for `shelf.cut`."""
    short = length < start + clip
    copies = -(-(start + clip) // length) if short else 1
    return np.array([record, 0 if short else start, copies, start if short else 0], np.int64)
