"""From shards and a plan to batches. The host reads, parses, crops, joins and batches; signal work is the device's."""

import os
import warnings
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

from birdtpu import storage
from birdtpu.data import order
from birdtpu.data.companions import companions
from birdtpu.data.labels import join_frames, join_labels, join_teacher
from birdtpu.data.plan import PSEUDO
from birdtpu.data.shelf import Shelf, cut, from_memory, from_shards, named_errors, open_shelf
from birdtpu.data.teacher import Teacher
from birdtpu.errors import UserError
from birdtpu.species import ClassList

GROUP = 8
# A remote read is mostly waiting: more of them at once than there are cores.
REMOTE_READS = 64


def batches(
    data: str | Sequence[str],
    plan: pd.DataFrame,
    classes: ClassList,
    *,
    clip_samples: int,
    batch_size: int,
    clips: int = 1,
    frame_hop: int = 0,
    partner: bool = False,
    background: str | Sequence[str] = (),
    held_out: Collection[str] = (),
    soft: np.ndarray | None = None,
    teacher: Teacher | None = None,
    seed: int = 0,
    start_step: int = 0,
    steps: int | None = None,
    training: bool = True,
    cache: bool = False,
    pcm16: bool = False,
    threads: int | None = None,
) -> tf.data.Dataset:
    """Batches of a plan's rows, each a function of (plan, shards, seed, step) and of nothing else.

    Training: the endless stream of `order.epoch_rows`, so every row of an epoch is used and a batch may hold the end
    of one epoch and the start of the next; a clip is drawn from its section. Else: each row once, in the plan's order,
    its clip at the start of its section; the last batch is filled up with rows of weight 0.

    A clip longer than its section reaches beyond it within the record. A record shorter than a clip is repeated; its
    frames count once. Of several clips, the first is drawn so, and the others follow it; what lies behind the record's
    end is repeated too, but masked.

    Args:
        data: Folder or folders that `prepare` wrote, local or `gs://`.
        plan: The rows to take (of one role), with the plan's columns.
        classes: The columns of the targets.
        clip_samples: Samples a clip, with what the device's augmentation needs.
        batch_size: Rows a batch, over all replicas.
        clips: Clips a row, one behind the other, of a multiple-instance recipe.
        frame_hop: Samples from one frame to the next, of a recipe with a loss on frames; 0: none.
        partner: Give each row a clip of another recording with the same targets too, of the same one where no other is.
        background: Prepared folders; each row gets a clip of any record in them too.
        held_out: Recordings that are no background.
        soft: `(clips, classes)` float16, the targets of the plan's pseudo-labelled rows; NaN where nothing is known.
        teacher: A teacher's embeddings, under the recordings' ids; each row gets that of the nearest stretch.
        seed: The run's.
        start_step: The first step; those before it are not replayed.
        steps: Step to end before, counted from 0. None: no end in training, else the end of the plan.
        training: See above.
        cache: Hold the PCM16 of every record of the plan in memory, read once before the first batch.
        pcm16: Give `audio` as int16 beside `audio_gain`, for half the bytes to the device.
        threads: Clips that are made at once. None: two a core, so that none waits
            while a batch is joined, or 64 where the data is remote.

    Returns: a dataset of dicts: `audio` `(batch_size, clip_samples)` float32 (or int16, with `audio_gain`
    `(batch_size,)` float32: audio is their product), `targets` and `target_mask` `(batch_size, classes)` float32,
    `weight` `(batch_size,)` float32, `row` and `seed` `(batch_size,)` int32. With several clips `audio` is
    `(batch_size, clips, clip_samples)`, and `clip_mask` `(batch_size, clips)` float32. With a `frame_hop`,
    `frame_targets` and `frame_mask` `(batch_size, 1 + clip_samples // frame_hop, classes)` float32. Where they are
    asked for, `partner_audio` and `background_audio` `(batch_size, clip_samples)` float32, and `teacher`
    `(batch_size, features)` float32 of a length of one, or zeros.

    Raises: UserError where the plan is empty, a record of it lies in no folder, a species of it is not in `classes`, or
    the folders' sample rates differ. While it is read: see `shelf.named_errors`.
    """
    if plan.empty or (training and not order.samples_per_epoch(plan)):
        raise UserError("plan: no row to read")
    if soft is None and (plan["source"] == PSEUDO).any():
        raise UserError("plan: some rows have pseudo-labels: give the file that the plan was made with")
    shelf = open_shelf(data)
    place = shelf.table.index.get_indexer(pd.Index(plan["record"]))
    if (place < 0).any():
        name, places = plan["record"].iloc[int(np.argmin(place))], ", ".join(storage.paths_of(data))
        raise UserError(f"plan: record {name} is in none of {places}: give the --data that the plan was made from")
    if not training:
        steps = min(-(-len(plan) // batch_size), steps if steps is not None else len(plan))
    remote = any(storage.is_remote(path) for path in shelf.paths)
    if remote and storage.TENSORFLOW_CAME_FIRST:
        warnings.warn(
            "TensorFlow was imported before birdtpu, and so fetches 64 MiB for every record: import birdtpu first",
            stacklevel=2,
        )
    parallel = threads or (REMOTE_READS if remote else 2 * (os.cpu_count() or 1))
    jobs = _jobs(plan, shelf, place, clip_samples, clips, batch_size, seed, training)
    with named_errors(data):
        read = from_memory(shelf, np.unique(place), parallel) if cache else from_shards(shelf)
    beside = companions(plan, shelf, place, read, partner, background, held_out, clip_samples)

    def clip(job: tf.Tensor) -> dict[str, tf.Tensor]:
        position, seed, real, record, start, copies, shift, whole = tf.unstack(job)
        pcm, gain = cut(read, record, start, copies, shift, clips * clip_samples)
        pcm = tf.reshape(pcm, [clips, clip_samples]) if clips > 1 else pcm
        sound = {"audio": pcm, "audio_gain": gain} if pcm16 else {"audio": tf.cast(pcm, tf.float32) * gain}
        if clips > 1:
            sound["clip_mask"] = tf.sequence_mask(whole, clips, tf.float32)
        if frame_hop or teacher is not None:
            sound["start"] = start + shift
        sound |= beside(position, seed)
        return {**sound, "position": position, "real": real, "seed": tf.cast(seed, tf.int32)}

    dataset = tf.data.Dataset.range(start_step, 2**62 if steps is None else steps)
    dataset = dataset.map(lambda step: tf.ensure_shape(tf.numpy_function(jobs, [step], tf.int64), [batch_size, 8]))
    dataset = dataset.unbatch().map(clip, num_parallel_calls=parallel, deterministic=True)
    dataset = dataset.batch(batch_size, drop_remainder=True)
    if frame_hop:
        dataset = dataset.map(join_frames(plan, shelf, place, classes, clip_samples, frame_hop))
    if teacher is not None:
        dataset = dataset.map(join_teacher(teacher, shelf, place, clip_samples))
    dataset = dataset.map(join_labels(plan, classes, soft)).prefetch(2)
    options = tf.data.Options()
    options.deterministic = True
    if threads or remote:
        options.threading.private_threadpool_size = parallel
    return dataset.with_options(options)


def _jobs(
    plan: pd.DataFrame,
    shelf: Shelf,
    place: np.ndarray,
    clip: int,
    clips: int,
    batch_size: int,
    seed: int,
    training: bool,
) -> Callable[[Any], np.ndarray]:
    """The function from a step to its rows: `(batch_size, 8)` int64, what `clip` in `batches` unpacks."""
    table = shelf.table.iloc[place]
    shard = table["shard"].to_numpy()
    length = np.rint(table["seconds"].to_numpy() * shelf.sample_rate).astype(np.int64)
    begin, end = (
        np.rint(plan[column].to_numpy() * shelf.sample_rate).astype(np.int64)
        for column in ("start_seconds", "end_seconds")
    )
    row = plan["row"].to_numpy()
    count = order.samples_per_epoch(plan) if training else len(plan)

    @lru_cache(maxsize=2)
    def epoch_rows(epoch: int) -> tuple[np.ndarray, np.ndarray]:
        return order.epoch_rows(plan, shard, seed=seed, epoch=epoch, group=GROUP)

    def jobs(step: Any) -> np.ndarray:
        stream = int(step) * batch_size + np.arange(batch_size)
        if training:
            epoch, within = stream // count, stream % count
            position, occurrence = np.empty_like(stream), np.empty_like(stream)
            for number in np.unique(epoch):
                here = epoch == number
                position[here], occurrence[here] = (part[within[here]] for part in epoch_rows(int(number)))
        else:
            epoch, occurrence, position = 0, np.zeros_like(stream), np.minimum(stream, count - 1)
        seeds = order.example_seeds(row[position], occurrence, seed=seed, epoch=epoch)
        samples = length[position]
        start = order.clip_starts(begin[position], end[position], samples, clip, seeds if training else None)
        # A record that ends before the last clip does is read whole, and repeated.
        short = samples < start + clips * clip
        copies, shift = np.where(short, -(-(start + clips * clip) // samples), 1), np.where(short, start, 0)
        real = stream < count if not training else np.ones(batch_size)
        whole = np.maximum(-(-(samples - start) // clip), 1)
        columns = (position, seeds, real, place[position], np.where(short, 0, start), copies, shift, whole)
        return np.stack(columns, axis=1).astype(np.int64)

    return jobs
