"""What the plan says of the rows of a batch, and of their frames."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import tensorflow as tf

from birdtpu.data.plan import PSEUDO, dense_targets
from birdtpu.data.shelf import Shelf
from birdtpu.data.teacher import Teacher
from birdtpu.errors import UserError
from birdtpu.species import ClassList


def join_labels(
    plan: pd.DataFrame, classes: ClassList, soft: np.ndarray | None
) -> Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]]:
    """What the plan says of each row of a batch, in place of its `position`, `real` and `start`."""
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
        batch.pop("start", None)
        present, known = labels_of(position)
        return {
            **batch,
            "targets": present,
            "target_mask": known,
            "weight": tf.gather(weight, position) * tf.cast(real, tf.float32),
            "row": tf.gather(row, position),
        }

    return join


def join_frames(
    plan: pd.DataFrame, shelf: Shelf, place: np.ndarray, classes: ClassList, clip_samples: int, hop: int
) -> Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]]:
    """What rows of the same record say of each frame of a batch: `frame_targets` and `frame_mask`.

    Rows with times say it of their frames; rows of recordings in which nothing sings, of all frames. What sings only
    somewhere in a row is, in its other frames, like what the row does not name: unknown, or absent. A frame stands at
    its window's middle. Where one row says yes and another no, it is yes. Of a record that is shorter than the clip,
    the first pass over its samples counts; what is repeated behind it is padding, and unknown.
    """
    timed = plan["source"] == "timed"
    if not timed.any():
        raise UserError(
            "train.frame_loss: no recording of this part has annotations with times, which is all that it learns from"
        )
    silent = (plan["source"] == "labelled") & (plan["targets"] == "") & (plan["unknown"] == "")
    said = np.flatnonzero(timed | silent)
    rows = plan.iloc[said]
    rate = shelf.sample_rate
    begin, end = (rows[column].to_numpy() * rate for column in ("start_seconds", "end_seconds"))
    always = [
        ";".join(code for code in targets.split(";") if code not in within.split(";"))
        for targets, within in zip(rows["targets"], rows["within"], strict=True)
    ]
    targets, mask = dense_targets(rows.assign(targets=always), classes)
    of_record = pd.Series(np.arange(len(said))).groupby(place[said]).indices
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
        found = tf.numpy_function(frames, [batch["position"], batch["start"]], [tf.float32, tf.float32])
        shape = [batch["start"].shape[0], len(offsets), len(classes)]
        return {
            **batch,
            "frame_targets": tf.ensure_shape(found[0], shape),
            "frame_mask": tf.ensure_shape(found[1], shape),
        }

    return join


def join_teacher(
    teacher: Teacher, shelf: Shelf, place: np.ndarray, clip_samples: int
) -> Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]]:
    """What a teacher said of each clip of a batch: `teacher` `(batch, features)`, zeros where it said nothing.

    With a margin, what is read is longer than a clip, which the device cuts from its middle on average. A record that
    is shorter is read whole and repeated, wherever it begins: there its start counts.
    """
    rate, say = shelf.sample_rate, teacher.nearest()
    recording, begin = (shelf.table[column].to_numpy() for column in ("recording", "start_seconds"))
    repeated = np.rint(shelf.table["seconds"].to_numpy() * rate) < clip_samples
    aside = (clip_samples / rate - teacher.clip_seconds) / 2

    def said(position: np.ndarray, start: np.ndarray) -> np.ndarray:
        records = place[position]
        seconds = begin[records] + np.where(repeated[records], 0, start / rate + aside)
        return np.stack([say(recording[record], second) for record, second in zip(records, seconds, strict=True)])

    def join(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        found = tf.numpy_function(said, [batch["position"], batch["start"]], tf.float32)
        return {**batch, "teacher": tf.ensure_shape(found, [batch["start"].shape[0], teacher.features])}

    return join
