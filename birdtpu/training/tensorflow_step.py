"""The training step on TensorFlow: one device, mirrored GPUs or a TPU by the same code."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import tensorflow as tf

from birdtpu.keys import Train
from birdtpu.models.build import SoundEventModel, seeded
from birdtpu.training.step import Arrays, Batch, clipped, ema_decay_at, follow, from_state, loss_of, to_state


class Sums(Protocol):
    """Sums over replicas, in a replica's code."""

    def __call__(self, values: list[tf.Tensor]) -> list[tf.Tensor]: ...


def sums_of_strategy(values: list[tf.Tensor]) -> list[tf.Tensor]:
    """Each value's sum over the replicas of the strategy that runs this code."""
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)


class TensorFlowStep:
    """A `training.step.Step` on the model's own variables.

    Args:
        model, optimizer: Built in the strategy's scope; both are changed in place.
        train: The recipe's, `resolved`.
        strategy: Where it runs; `tf.distribute.get_strategy()` is one device.
        jit: Whether XLA compiles the step. A TPU's always is.
    """

    def __init__(
        self, model: SoundEventModel, optimizer: Any, train: Train, strategy: tf.distribute.Strategy, jit: bool
    ) -> None:
        self.model, self.optimizer, self.strategy = model, optimizer, strategy
        with strategy.scope():
            self.ema = [tf.Variable(v.value.numpy(), trainable=False) for v in model.network.variables]
            self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
        replicas = strategy.num_replicas_in_sync
        # Keras sums gradients over replicas itself, but clips them before that.
        update = self.update_of(train, replicas, sums_of_strategy, summed_by_keras=True)
        replica = tf.function(update, jit_compile=jit or None, autograph=False)

        @tf.function(autograph=False)
        def run(feed: Iterator[Any], count: tf.Tensor) -> tf.Tensor:
            def one(i: tf.Tensor, losses: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
                batches = tuple(next(feed) for _ in range(train.accumulate))
                loss = strategy.reduce("SUM", strategy.run(replica, args=(batches,)), axis=None)
                return i + 1, losses.write(i, loss)

            losses = tf.TensorArray(tf.float32, count, element_shape=[])
            return tf.while_loop(lambda i, _: i < count, one, (0, losses), parallel_iterations=1)[1].stack()

        self._run = run

    def update_of(self, train: Train, replicas: int, sums: Sums, summed_by_keras: bool) -> Callable[..., tf.Tensor]:
        """What one replica does in a step: its micro-batches to its part of the loss.

        Args:
            train: The recipe's, `resolved`.
            replicas: How many do it.
            sums: Sums over them.
            summed_by_keras: Whether the optimiser sums gradients over the replicas, as it does in a strategy.
        """
        network, optimizer, model = self.model.network, self.optimizer, self.model
        trainable = network.trainable_variables
        statistics = [v.value for v in network.non_trainable_variables if "float" in v.dtype]

        def gradients_of(batch: Batch) -> tuple[tf.Tensor, list[tf.Tensor]]:
            if model.instances > 1:
                batch = model.choose(batch, network(model.log_mels(batch), training=False)["clipwise_logits"])
            image, labels = model.augmented(batch)
            with tf.GradientTape() as tape:
                outputs = seeded(network, batch["seed"], image, training=True)
                loss = loss_of(outputs, labels, train)
            return loss, tape.gradient(loss, [v.value for v in trainable])

        def update(batches: tuple[Batch, ...]) -> tf.Tensor:
            loss, gradients = gradients_of(batches[0])
            for batch in batches[1:]:
                # One after the other: side by side they would take the memory of the whole batch.
                with tf.control_dependencies([loss, *gradients]):
                    further, more = gradients_of(batch)
                loss, gradients = loss + further, [a + b for a, b in zip(gradients, more, strict=True)]
            if replicas > 1 and (train.clip_norm or train.clip_value or not summed_by_keras):
                gradients = clipped(sums(gradients), train.clip_norm, train.clip_value)
                gradients = [g / replicas for g in gradients] if summed_by_keras else gradients
            elif replicas == 1:
                gradients = clipped(gradients, train.clip_norm, train.clip_value)
            if replicas > 1 and statistics and not train.synchronized_batch_norm:
                # So that every replica holds the same state, and a checkpoint of one is a checkpoint of all.
                for variable, total in zip(statistics, sums([v.read_value() for v in statistics]), strict=True):
                    variable.assign(total / replicas)
            optimizer.apply(gradients, trainable)
            decay = ema_decay_at(tf.cast(self.step, tf.float32), train.ema_decay)
            for average, variable in zip(self.ema, network.variables, strict=True):
                average.assign(follow(average, variable.value, tf.cast(decay, tf.float32)))
            self.step.assign_add(1)
            return loss

        return update

    def feed(self, batches: tf.data.Dataset) -> Iterator[Any]:
        return iter(self.strategy.experimental_distribute_dataset(batches))

    def run(self, feed: Iterator[Any], count: int) -> Any:
        try:
            return self._run(feed, tf.constant(count))
        except tf.errors.OutOfRangeError:
            raise StopIteration from None

    def scale_rate(self, factor: float) -> None:
        scale = self.optimizer.rate_scale
        scale.assign(scale.numpy() * factor)

    def averaged(self) -> list[Any]:
        return [average.numpy() for average in self.ema]

    def current(self) -> list[Any]:
        return [variable.numpy() for variable in self.model.network.variables]

    def state(self) -> Arrays:
        slots = [variable.numpy() for variable in self.optimizer.variables]
        return to_state(self.step.numpy(), self.current(), self.averaged(), slots)

    def restore(self, state: Arrays) -> None:
        network, optimizer = self.model.network.variables, self.optimizer.variables
        parts = from_state(state, {"weights": network, "ema": self.ema, "optimizer": optimizer})
        pairs = ((network, "weights"), (self.ema, "ema"), (optimizer, "optimizer"))
        for variables, name in pairs:
            for variable, value in zip(variables, parts[name], strict=True):
                variable.assign(value)
        self.step.assign(int(state["step"]))
