"""From shards and a plan to batches. The host reads, parses, crops, joins and batches; signal work is the device's."""

import contextlib
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import tensorflow as tf

from birdtpu import random, storage
from birdtpu.data import order, records, shards
from birdtpu.data.plan import PSEUDO, dense_targets, recordings_of
from birdtpu.errors import UserError
from birdtpu.species import ClassList

if os.environ.get("KERAS_BACKEND") == "jax":
    # TensorFlow reads here, and would take the memory of JAX's GPUs.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")

GROUP = 8
# A remote read is mostly waiting: more of them at once than there are cores.
REMOTE_READS = 64
# More samples than any record has.
WHOLE = 1 << 40
_PARTNER, _PARTNER_CROP, _BACKGROUND, _BACKGROUND_CROP = (
    random.stream(f"pipeline/{name}") for name in ("partner", "partner crop", "background", "background crop")
)
STRETCH = ["start_seconds", "end_seconds"]


class Shelf(NamedTuple):
    """Where the records of prepared folders lie: a row of `table` a record, `shard` an index into `paths`."""

    paths: list[str]
    table: pd.DataFrame
    sample_rate: int


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
    soft: np.ndarray | None = None,
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
        soft: `(clips, classes)` float16, the targets of the plan's pseudo-labelled rows; NaN where nothing is known.
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
    asked for, `partner_audio` and `background_audio` `(batch_size, clip_samples)` float32.

    Raises: UserError where the plan is empty, a record of it lies in no folder, a species of it is not in `classes`, or
    the folders' sample rates differ. While it is read: see `named_errors`.
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
        read = _from_memory(shelf, np.unique(place), parallel) if cache else _from_shards(shelf)
    beside = _beside(plan, shelf, place, read, partner, background, clip_samples)

    def clip(job: tf.Tensor) -> dict[str, tf.Tensor]:
        position, seed, real, record, start, copies, shift, whole = tf.unstack(job)
        pcm, gain = _cut(read, record, start, copies, shift, clips * clip_samples)
        pcm = tf.reshape(pcm, [clips, clip_samples]) if clips > 1 else pcm
        sound = {"audio": pcm, "audio_gain": gain} if pcm16 else {"audio": tf.cast(pcm, tf.float32) * gain}
        if clips > 1:
            sound["clip_mask"] = tf.sequence_mask(whole, clips, tf.float32)
        if frame_hop:
            sound["start"] = start + shift
        sound |= beside(position, seed)
        return {**sound, "position": position, "real": real, "seed": tf.cast(seed, tf.int32)}

    dataset = tf.data.Dataset.range(start_step, 2**62 if steps is None else steps)
    dataset = dataset.map(lambda step: tf.ensure_shape(tf.numpy_function(jobs, [step], tf.int64), [batch_size, 8]))
    dataset = dataset.unbatch().map(clip, num_parallel_calls=parallel, deterministic=True)
    dataset = dataset.batch(batch_size, drop_remainder=True)
    if frame_hop:
        dataset = dataset.map(_join_frames(plan, shelf, place, classes, clip_samples, frame_hop))
    dataset = dataset.map(_join(plan, classes, soft)).prefetch(2)
    options = tf.data.Options()
    options.deterministic = True
    if threads or remote:
        options.threading.private_threadpool_size = parallel
    return dataset.with_options(options)


def open_shelf(data: str | Sequence[str]) -> Shelf:
    """The records of prepared folders (`shards.load_all_records`). Raises UserError as `batches`."""
    paths, before, rates = [], [], {}
    folders = storage.paths_of(data)
    for folder in folders:
        manifest = shards.load_manifest(folder)
        rates[manifest["sample_rate"]] = folder
        before.append(len(paths))
        paths += [storage.join(folder, shards.FOLDER, shard["name"]) for shard in manifest["shards"]]
    if len(rates) > 1:
        (rate, folder), (other, beside), *_ = rates.items()
        raise UserError(f"{folder} is prepared at {rate} Hz, but {beside} at {other} Hz: prepare both at one rate")
    table = shards.load_all_records(folders)
    table = table.assign(shard=table["shard"] + np.array(before)[table["folder"]])
    return Shelf(paths, table.set_index("record"), next(iter(rates)))


@contextlib.contextmanager
def named_errors(data: str | Sequence[str]) -> Iterator[None]:
    """Turn what TensorFlow says of a damaged, short or missing shard into one line that names shard and offset.

    Args:
        data: The folders given to `batches`.

    Raises: UserError in place of an error that reading from these folders raised in the body.
    """
    try:
        yield
    except tf.errors.OpError as error:
        named = _named(error, open_shelf(data))
        if named is None:
            raise
        raise named from error


def _named(error: tf.errors.OpError, shelf: Shelf) -> UserError | None:
    """The damage in the shards that may have raised an error, or None where there is none to be seen."""
    files = tf.io.gfile
    sizes = np.array([files.stat(path).length if files.exists(path) else 0 for path in shelf.paths])
    table = shelf.table[["shard", "offset", "length"]]
    short = table[table["offset"] + table["length"] > sizes[table["shard"]]]
    for shard, offset, _ in short.sort_values(["shard", "offset"]).itertuples(index=False):
        what = "ends before" if sizes[shard] else "is missing, with"
        return UserError(f"{shelf.paths[shard]}: {what} the record at byte {offset}; `birdtpu verify` lists all damage")
    # TensorFlow says at which byte, of the length or of the data behind it, but not in which shard.
    said = np.array([int(word) for word in re.findall(r"record at (\d+)", str(error))])
    near = table[table["offset"].isin(said) | table["offset"].isin(said - 12)]
    for shard, offset, length in near.itertuples(index=False):
        with files.GFile(shelf.paths[shard], "rb") as file:
            file.seek(offset)
            framed = file.read(length)
        try:
            records.unframe(framed)
        except UserError as damage:
            return UserError(f"{shelf.paths[shard]}: {damage}, at byte {offset}; `birdtpu verify` lists all damage")
    return None


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
    begin, end = (np.rint(plan[column].to_numpy() * shelf.sample_rate).astype(np.int64) for column in STRETCH)
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


Reader = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def _cut(
    read: Reader, record: tf.Tensor, start: tf.Tensor, copies: tf.Tensor, shift: tf.Tensor, samples: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """`(samples,)` int16 of a record, `copies` of it one behind the other, from `shift` on; and its gain."""
    pcm, gain = read(record, start, tf.where(copies > 1, WHOLE, samples))
    # Both are free where they change nothing: TensorFlow then passes the tensor on.
    pcm = tf.slice(tf.tile(pcm, [copies]), [shift], tf.constant([samples], tf.int64))
    return tf.ensure_shape(pcm, [samples]), gain


def _beside(
    plan: pd.DataFrame,
    shelf: Shelf,
    place: np.ndarray,
    read: Reader,
    partner: bool,
    background: str | Sequence[str],
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
        draws["background_audio"] = (_from_shards(sounds), _backgrounds(sounds, samples))

    def beside(position: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        out = {}
        for name, (reader, draw) in draws.items():
            job = tf.ensure_shape(tf.numpy_function(draw, [position, seed], tf.int64), [4])
            pcm, gain = _cut(reader, *tf.unstack(job), samples)
            out[name] = tf.cast(pcm, tf.float32) * gain
        return out

    return beside


def _partners(
    plan: pd.DataFrame, shelf: Shelf, place: np.ndarray, clip: int
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """(position, seed) -> a job of `_cut` for a row with the same targets, of another recording where there is one."""
    # A pseudo-labelled row's targets are the number of its clip, and no species.
    kind = pd.factorize(plan["targets"].where(plan["source"] != PSEUDO, "/" + plan["targets"]))[0]
    recording = pd.factorize(recordings_of(plan))[0]
    alike = pd.Series(np.arange(len(plan))).groupby(kind).indices
    length = np.rint(shelf.table["seconds"].to_numpy()[place] * shelf.sample_rate).astype(np.int64)
    begin, end = (np.rint(plan[column].to_numpy() * shelf.sample_rate).astype(np.int64) for column in STRETCH)

    def draw(position: np.ndarray, seed: np.ndarray) -> np.ndarray:
        rows = alike[kind[position]]
        others = rows[recording[rows] != recording[position]]
        rows = others if len(others) else rows
        key = random.hash32(np.int32(seed), _PARTNER)
        row = rows[int(key) % len(rows) : int(key) % len(rows) + 1]
        start = order.clip_starts(begin[row], end[row], length[row], clip, random.hash32(key, _PARTNER_CROP)[None])
        return _job(place[row[0]], int(start[0]), int(length[row[0]]), clip)

    return draw


def _backgrounds(shelf: Shelf, clip: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """(position, seed) -> a job of `_cut` for any record, longer ones more often."""
    length = np.rint(shelf.table["seconds"].to_numpy() * shelf.sample_rate).astype(np.int64)
    ends = np.cumsum(length)

    def draw(position: np.ndarray, seed: np.ndarray) -> np.ndarray:
        key = random.hash32(np.int32(seed), _BACKGROUND)
        record = int(np.searchsorted(ends, int(key) * int(ends[-1]) >> 32, side="right"))
        whole = np.array([0]), length[record : record + 1], length[record : record + 1]
        start = order.clip_starts(*whole, clip, random.hash32(key, _BACKGROUND_CROP)[None])
        return _job(record, int(start[0]), int(length[record]), clip)

    return draw


def _job(record: int, start: int, length: int, clip: int) -> np.ndarray:
    """`record, start, copies, shift` for `_cut`."""
    short = length < start + clip
    copies = -(-(start + clip) // length) if short else 1
    return np.array([record, 0 if short else start, copies, start if short else 0], np.int64)


def _from_shards(shelf: Shelf) -> Reader:
    """(record, start, samples) -> (PCM16, gain), read by offset; TensorFlow checks both checksums."""
    paths = tf.constant(shelf.paths)
    table = tf.constant(shelf.table[["shard", "offset", "length"]].to_numpy())
    remote = any(storage.is_remote(path) for path in shelf.paths)

    def read(record: tf.Tensor, start: tf.Tensor, samples: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        shard, offset, length = tf.unstack(table[record])
        # Only the raw op takes offsets. A buffer of the record's length makes one remote request of it; a local read
        # needs no buffer.
        variant = tf.raw_ops.TFRecordDatasetV2(
            filenames=[paths[shard]],
            compression_type="",
            buffer_size=length if remote else tf.constant(0, tf.int64),
            byte_offsets=[offset],
        )
        found = tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string)).take(1)
        features = records.parse(found.get_single_element())
        return records.decode_pcm16(features["audio"], start, samples), features["gain"]

    return read


def _from_memory(shelf: Shelf, used: np.ndarray, parallel: int) -> Reader:
    """As `_from_shards`, from one array of all the samples of the records `used`."""
    read, start, to_the_end = _from_shards(shelf), tf.constant(0, tf.int64), tf.constant(-1, tf.int64)
    whole = tf.data.Dataset.from_tensor_slices(used.astype(np.int64))
    whole = whole.map(lambda record: read(record, start, to_the_end), num_parallel_calls=parallel, deterministic=True)
    lengths = np.zeros(len(shelf.table), np.int64)
    lengths[used] = np.rint(shelf.table["seconds"].to_numpy()[used] * shelf.sample_rate)
    ends = np.cumsum(lengths)
    held, gains = np.empty(ends[-1], np.int16), np.zeros(len(lengths), np.float32)
    for record, (pcm, gain) in zip(used, whole.as_numpy_iterator(), strict=True):
        held[ends[record] - lengths[record] : ends[record]], gains[record] = pcm, gain
    held, gains, ends, lengths = (tf.constant(part) for part in (held, gains, ends, lengths))

    def recall(record: tf.Tensor, start: tf.Tensor, samples: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        left = lengths[record] - start
        return tf.slice(held, [ends[record] - left], [tf.minimum(samples, left)]), gains[record]

    return recall


def _join(
    plan: pd.DataFrame, classes: ClassList, soft: np.ndarray | None
) -> Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]]:
    """What the plan says of each row of a batch, in place of its `position` and `real`."""
    pseudo = plan["source"] == PSEUDO
    # A few sets of labels serve many rows.
    labels = plan[["targets", "unknown"]].mask(pseudo, "")
    sets = labels.drop_duplicates()
    targets, mask = (tf.constant(part) for part in dense_targets(sets, classes))
    kind = pd.MultiIndex.from_frame(sets).get_indexer(pd.MultiIndex.from_frame(labels))
    kind, row = (tf.constant(part, tf.int32) for part in (kind, plan["row"].to_numpy()))
    weight = tf.constant(plan["weight"].to_numpy(), tf.float32)
    clip = tf.constant(plan["targets"].where(pseudo, "-1").to_numpy().astype(np.int64))
    # TensorFlow complains of half floats where the processor has none.
    scores = None if soft is None else tf.constant(soft.astype(np.float32))

    def labels_of(position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        label = tf.gather(kind, position)
        present, known = tf.gather(targets, label), tf.gather(mask, label)
        if scores is None:
            return present, known
        number = tf.gather(clip, position)
        said = tf.gather(scores, tf.maximum(number, 0))
        silent, own = tf.math.is_nan(said), (number >= 0)[:, None]
        return tf.where(own, tf.where(silent, 0.0, said), present), tf.where(
            own, 1 - tf.cast(silent, tf.float32), known
        )

    def join(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        position, real = batch.pop("position"), batch.pop("real")
        present, known = labels_of(position)
        return {
            **batch,
            "targets": present,
            "target_mask": known,
            "weight": tf.gather(weight, position) * tf.cast(real, tf.float32),
            "row": tf.gather(row, position),
        }

    return join


def _join_frames(
    plan: pd.DataFrame, shelf: Shelf, place: np.ndarray, classes: ClassList, clip_samples: int, hop: int
) -> Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]]:
    """What timed rows of the same record say of each frame of a batch: `frame_targets` and `frame_mask`.

    A frame stands at its window's middle. Where one row says yes and another no, it is yes. Of a record that is shorter
    than the clip, the first pass over its samples counts; what is repeated behind it is padding, and unknown.
    """
    timed = np.flatnonzero(plan["source"].to_numpy() == "timed")
    if not len(timed):
        raise UserError("train.frame_loss: no recording has timed annotations; set train.frame_loss = 0")
    rate = shelf.sample_rate
    begin, end = (plan[column].to_numpy()[timed] * rate for column in STRETCH)
    targets, mask = dense_targets(plan.iloc[timed], classes)
    of_record = pd.Series(np.arange(len(timed))).groupby(place[timed]).indices
    samples = np.rint(shelf.table["seconds"].to_numpy() * rate).astype(np.int64)
    offsets = np.arange(0, clip_samples + 1, hop)

    def frames(position: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        out = np.zeros((2, len(position), len(offsets), len(classes)), np.float32)
        for i, (record, first) in enumerate(zip(place[position], start, strict=True)):
            # A short record begins again at its end; the last frame of a long one stands on its end.
            time, once = first + offsets, offsets < samples[record]
            time = time % samples[record] if first + clip_samples > samples[record] else time
            for row in of_record.get(record, ()):
                inside = once & (begin[row] <= time) & (time < end[row])
                out[0, i, inside] = np.maximum(out[0, i, inside], targets[row])
                out[1, i, inside] = np.maximum(out[1, i, inside], mask[row])
        return out[0], out[1]

    def join(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        start = batch.pop("start")
        found = tf.numpy_function(frames, [batch["position"], start], [tf.float32, tf.float32])
        shape = [start.shape[0], len(offsets), len(classes)]
        return {
            **batch,
            "frame_targets": tf.ensure_shape(found[0], shape),
            "frame_mask": tf.ensure_shape(found[1], shape),
        }

    return join
