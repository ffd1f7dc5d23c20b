"""What one training step is, on either engine: optimiser, loss, averages, and the face that both steps keep."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import keras
import numpy as np
from keras import ops

from birdtpu import losses
from birdtpu.errors import UserError
from birdtpu.keys import Train
from birdtpu.training.schedules import warmup_cosine

Batch = dict[str, Any]
Arrays = dict[str, np.ndarray]


class PlateauAdamW(keras.optimizers.AdamW):
    """AdamW whose schedule is multiplied by `rate_scale`, a variable among its others."""

    def build(self, variables: Sequence[Any]) -> None:
        if self.built:
            return
        super().build(variables)
        # As `iterations`: equal on every replica.
        self.rate_scale = self.add_variable((), "ones", aggregation="only_first_replica", name="rate_scale")

    def _get_current_learning_rate(self) -> Any:
        return super()._get_current_learning_rate() * self.rate_scale


class Step(Protocol):
    """A network, its optimiser and their moving average (EMA) on some devices.

    A batch comes as `train.accumulate` micro-batches in a row, so that a row's part in an update depends on its place
    in the stream and not on the number of replicas.
    """

    def feed(self, batches: Iterable[Batch]) -> Iterator[Any]:
        """Micro-batches as `run` takes them, from a `tf.data.Dataset` or, on JAX, any iterable."""
        ...

    def run(self, feed: Iterator[Any], count: int) -> Any:
        """Take `count` steps in one call: their losses `(count,)`. Raises StopIteration where the batches end."""
        ...

    def scale_rate(self, factor: float) -> None:
        """Multiply the learning rate of all later steps. Of an optimiser with `train.plateau_epochs`."""
        ...

    def averaged(self) -> list[np.ndarray]:
        """The EMA of the network's weights, in the order of `network.variables`."""
        ...

    def current(self) -> list[np.ndarray]:
        """The network's weights as they are."""
        ...

    def state(self) -> Arrays:
        """All that a later step depends on, in names and an order that both engines share."""
        ...

    def restore(self, state: Arrays) -> None:
        """Take up a `state`. Raises ValueError where it is of another model."""
        ...


def resolved(train: Train, replicas: int) -> Train:
    """The batch and the learning rates for a number of replicas.

    Returns: the same with `batch_size` of all replicas, learning rates scaled to it, and no `batch_size_per_replica`.
    Raises: UserError where the batch does not split into equal parts of whole groups of eight.
    """
    batch_size = train.batch_size_per_replica * replicas or train.batch_size
    growth = batch_size / train.batch_size
    factor = {"none": 1.0, "linear": growth, "sqrt": growth**0.5}[train.learning_rate_scaling]
    parts = replicas * train.accumulate
    least = 8 * parts
    # The recipe has looked at its own batch.
    if batch_size % least and (parts > 1 or train.batch_size_per_replica):
        near = max(1, round(batch_size / least)) * least
        name = "train.batch_size_per_replica" if train.batch_size_per_replica else "train.batch_size"
        raise UserError(
            f"{name}: {batch_size} is no multiple of {least}: of 8 rows for each of {replicas} replicas"
            + (f" and {train.accumulate} parts (train.accumulate)" if train.accumulate > 1 else "")
            + f"; give a multiple, such as train.batch_size={near}, "
            + f"or train.batch_size_per_replica={8 * train.accumulate}"
        )
    rates = {key: getattr(train, key) * factor for key in ("learning_rate", "min_learning_rate")}
    return train.model_copy(update={"batch_size": batch_size, "batch_size_per_replica": 0, **rates})


def make_optimizer(network: keras.Model, train: Train, steps: int) -> keras.optimizers.Optimizer:
    """AdamW with warm-up and cosine; vectors (biases, norms) do not decay. Built, so that its state can be restored."""
    schedule = warmup_cosine(train.learning_rate, train.min_learning_rate, steps, train.warmup_fraction)
    kind = PlateauAdamW if train.plateau_epochs else keras.optimizers.AdamW
    optimizer = kind(schedule, weight_decay=train.weight_decay)
    vectors = [variable for variable in network.trainable_variables if len(variable.shape) < 2]
    if vectors:
        optimizer.exclude_from_weight_decay(var_list=vectors)
    optimizer.build(network.trainable_variables)
    return optimizer


def loss_of(outputs: dict[str, Any], labels: dict[str, Any], train: Train) -> Any:
    """Sum over examples of their loss, divided by the global batch: a scalar.

    Args:
        outputs: Of the network.
        labels: `targets` and `target_mask` `(batch, classes)`, `weight` `(batch,)`; with `train.frame_loss`
            `frame_targets` and `frame_mask` `(batch, frames, classes)`; `teacher` `(batch, features)` where there is
            one to learn from, as there is not in validation.
        train: The recipe's weights of each part.
    """
    targets, mask = labels["targets"], labels["target_mask"]
    how = {"smoothing": train.label_smoothing, "pos_weight": train.pos_weight, "focal_gamma": train.focal_gamma}
    cost = 0.0
    if train.clip_loss:
        cost += train.clip_loss * losses.binary_cross_entropy(outputs["clipwise_logits"], targets, mask, **how)
    if train.segment_loss:
        highest = ops.max(outputs["segmentwise_logits"], axis=1)
        cost += train.segment_loss * losses.binary_cross_entropy(highest, targets, mask, **how)
    if train.rank_loss:
        # What fills up a last batch is nobody's rival.
        real = ops.cast(labels["weight"] > 0, mask.dtype)[:, None]
        cost += train.rank_loss * losses.rank_loss(outputs["clipwise_logits"], targets, mask * real)
    if train.frame_loss:
        cost += train.frame_loss * losses.framewise_cross_entropy(
            outputs["segmentwise_logits"], labels["frame_targets"], labels["frame_mask"]
        )
    if "teacher" in labels:
        cost += train.teacher_loss * losses.embedding_distance(outputs["teacher"], labels["teacher"])
    return ops.sum(cost * labels["weight"]) / train.batch_size


def clipped(gradients: Sequence[Any], norm: float, value: float = 0.0) -> list[Any]:
    """Gradients scaled down together to a global norm of at most `norm`, each cut to `value`; 0 does not clip."""
    if value:
        gradients = [ops.clip(gradient, -value, value) for gradient in gradients]
    if not norm:
        return list(gradients)
    total = ops.sqrt(sum(ops.sum(ops.square(gradient)) for gradient in gradients))
    factor = norm / ops.maximum(total, norm)
    return [gradient * factor for gradient in gradients]


def ema_decay_at(step: Any, decay: float) -> Any:
    """The average's decay, small in the first steps: `min(decay, (1 + step) / (10 + step))`."""
    return ops.minimum(decay, (1 + step) / (10 + step))


def follow(average: Any, value: Any, decay: Any) -> Any:
    """The next value of a weight's average; a whole number, such as a layer's counter, is taken as it is."""
    if "float" not in keras.backend.standardize_dtype(value.dtype):
        return value
    return average - (1 - decay) * (average - value)


def to_state(step: int, weights: Sequence[Any], ema: Sequence[Any], optimizer: Sequence[Any]) -> Arrays:
    """Arrays under the names `step`, `weights/i`, `ema/i`, `optimizer/i`."""
    parts = {"weights": weights, "ema": ema, "optimizer": optimizer}
    arrays = {f"{name}/{i:04d}": np.asarray(value) for name, part in parts.items() for i, value in enumerate(part)}
    return {"step": np.int64(step), **arrays}


def digest(state: Arrays) -> str:
    """SHA-256, in hex, of a `to_state`: names, kinds, shapes and bytes."""
    found = hashlib.sha256()
    for name, array in sorted(state.items()):
        found.update(f"{name} {array.dtype} {array.shape}\n".encode())
        found.update(np.asarray(array, order="C").tobytes())
    return found.hexdigest()


def from_state(state: Arrays, like: dict[str, Sequence[Any]]) -> dict[str, list[np.ndarray]]:
    """The parts of a `to_state`, checked against variables of the same shapes.

    Raises: ValueError where there are others, more or fewer.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for name, variables in like.items():
        parts[name] = [state[key] for key in sorted(state) if key.startswith(f"{name}/")]
        shapes = [tuple(value.shape) for value in parts[name]]
        if shapes != [tuple(variable.shape) for variable in variables]:
            raise ValueError(f"a training state of another model: {name} differ")
    return parts
