"""Where the records of prepared folders lie, and how one is read by its offset."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import tensorflow as tf

from birdtpu import storage
from birdtpu.data import records, shards
from birdtpu.errors import UserError

if os.environ.get("KERAS_BACKEND") == "jax":
    # TensorFlow reads here, and would take the memory of JAX's GPUs.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")

# More samples than any record has.
WHOLE = 1 << 40

Reader = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


class Shelf(NamedTuple):
    """Where the records of prepared folders lie: a row of `table` a record, `shard` an index into `paths`."""

    paths: list[str]
    table: pd.DataFrame
    sample_rate: int


def open_shelf(data: str | Sequence[str]) -> Shelf:
    """The records of prepared folders (`shards.load_all_records`). Raises UserError where their sample rates differ."""
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


def from_shards(shelf: Shelf) -> Reader:
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


def from_memory(shelf: Shelf, used: np.ndarray, parallel: int) -> Reader:
    """As `from_shards`, from one array of all the samples of the records `used`."""
    read, start, to_the_end = from_shards(shelf), tf.constant(0, tf.int64), tf.constant(-1, tf.int64)
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


def cut(
    read: Reader, record: tf.Tensor, start: tf.Tensor, copies: tf.Tensor, shift: tf.Tensor, samples: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """`(samples,)` int16 of a record, `copies` of it one behind the other, from `shift` on; and its gain."""
    pcm, gain = read(record, start, tf.where(copies > 1, WHOLE, samples))
    # Both are free where they change nothing: TensorFlow then passes the tensor on.
    pcm = tf.slice(tf.tile(pcm, [copies]), [shift], tf.constant([samples], tf.int64))
    return tf.ensure_shape(pcm, [samples]), gain


@contextlib.contextmanager
def named_errors(data: str | Sequence[str]) -> Iterator[None]:
    """Turn what TensorFlow says of a damaged, short or missing shard into one line that names shard and offset.

    Args:
        data: The folders given to `pipeline.batches`.

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
