"""One training step on either engine over shared `keras.ops` code.

TensorFlow runs a `tf.function` over the model's variables; JAX a jitted pure function with donated state. Both keep
an exponential moving average (EMA) of every weight, batch statistics included.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from birdtpu import losses
from birdtpu.models.build import SoundEventModel, seeded
from birdtpu.recipe import Train
from birdtpu.training.schedules import warmup_cosine

Batch = dict[str, Any]


def make_optimizer(network: keras.Model, train: Train, steps: int) -> keras.optimizers.Optimizer:
    """AdamW with warm-up and cosine; vectors (biases, norms) do not decay. Built, so that its state can be restored."""
    schedule = warmup_cosine(train.learning_rate, train.min_learning_rate, steps, train.warmup_fraction)
    optimizer = keras.optimizers.AdamW(
        schedule, weight_decay=train.weight_decay, global_clipnorm=train.clip_norm or None
    )
    vectors = [variable for variable in network.trainable_variables if len(variable.shape) < 2]
    if vectors:
        optimizer.exclude_from_weight_decay(var_list=vectors)
    optimizer.build(network.trainable_variables)
    return optimizer


def loss_of(outputs: dict[str, Any], targets: Any, mask: Any, weight: Any, train: Train) -> Any:
    """Sum over examples of their loss, divided by the global batch: a scalar.

    Args:
        outputs: Of the network. targets, mask: `(batch, classes)`. weight: `(batch,)`.
    """
    cost = losses.binary_cross_entropy(outputs["clipwise_logits"], targets, mask, train.label_smoothing)
    if train.segment_loss:
        highest = ops.max(outputs["segmentwise_logits"], axis=1)
        cost += train.segment_loss * losses.binary_cross_entropy(highest, targets, mask, train.label_smoothing)
    return ops.sum(cost * weight) / train.batch_size


def ema_decay_at(step: Any, decay: float) -> Any:
    """The average's decay, small in the first steps: `min(decay, (1 + step) / (10 + step))`."""
    return ops.minimum(decay, (1 + step) / (10 + step))


def follow(average: Any, value: Any, decay: Any) -> Any:
    """The next value of a weight's average; a whole number, such as a layer's counter, is taken as it is."""
    if "float" not in keras.backend.standardize_dtype(value.dtype):
        return value
    return average - (1 - decay) * (average - value)


class TensorFlowStep:
    """`step(batch) -> loss`, on the model's own variables.

    Args:
        model, optimizer: Built; both are changed in place.
        train: The recipe's.
        jit: Whether XLA compiles the step.
    """

    def __init__(self, model: SoundEventModel, optimizer: Any, train: Train, jit: bool) -> None:
        import tensorflow as tf

        self.model = model
        network = model.network
        self.ema = [tf.Variable(variable.value, trainable=False) for variable in network.variables]
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)

        @tf.function(jit_compile=jit, autograph=False)
        def run(batch: Batch) -> Any:
            image, targets, mask = model.augmented(batch)
            with tf.GradientTape() as tape:
                outputs = seeded(network, batch["seed"], image, training=True)
                loss = loss_of(outputs, targets, mask, batch["weight"], train)
            variables = network.trainable_variables
            optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
            decay = tf.cast(ema_decay_at(tf.cast(self.step, tf.float32), train.ema_decay), tf.float32)
            for average, variable in zip(self.ema, network.variables, strict=True):
                average.assign(follow(average, variable.value, decay))
            self.step.assign_add(1)
            return loss

        self._run = run

    def __call__(self, batch: Batch) -> Any:
        return self._run(batch)

    def averaged(self) -> list[Any]:
        """The EMA of the network's weights, NumPy, in the order of `network.variables`."""
        return [average.numpy() for average in self.ema]

    def current(self) -> list[Any]:
        """The network's weights as they are, NumPy."""
        return [variable.numpy() for variable in self.model.network.variables]


class JaxStep:
    """`step(batch) -> loss`, on a state of its own; `current()` and `averaged()` read it back.

    Args: as `TensorFlowStep`.
    """

    def __init__(self, model: SoundEventModel, optimizer: Any, train: Train, jit: bool) -> None:
        import jax

        self.model = model
        network = model.network
        trainable, fixed = network.trainable_variables, network.non_trainable_variables
        # Copies: the step donates its state, and the variables keep theirs.
        state = {
            "trainable": [v.value.copy() for v in trainable],
            "fixed": [v.value.copy() for v in fixed],
            "optimizer": [v.value.copy() for v in optimizer.variables],
            "ema": [v.value.copy() for v in (*trainable, *fixed)],
            "step": jax.numpy.zeros((), "int32"),
        }
        order = {id(v): i for i, v in enumerate((*trainable, *fixed))}
        self._order = [order[id(v)] for v in network.variables]

        def loss_fn(weights: Any, fixed: Any, batch: Batch, prepared: Any) -> Any:
            image, targets, mask = prepared
            outputs, fixed = seeded(network.stateless_call, batch["seed"], weights, fixed, image, training=True)
            return loss_of(outputs, targets, mask, batch["weight"], train), fixed

        def run(state: Any, batch: Batch) -> Any:
            with jax.default_matmul_precision("highest"):
                prepared = model.augmented(batch)
            (loss, fixed), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
                state["trainable"], state["fixed"], batch, prepared
            )
            weights, slots = optimizer.stateless_apply(state["optimizer"], gradients, state["trainable"])
            decay = ema_decay_at(ops.cast(state["step"], "float32"), train.ema_decay)
            ema = [follow(a, v, decay) for a, v in zip(state["ema"], (*weights, *fixed), strict=True)]
            step = state["step"] + 1
            return {"trainable": weights, "fixed": fixed, "optimizer": slots, "ema": ema, "step": step}, loss

        self.state = state
        self._run = jax.jit(run, donate_argnums=0) if jit else run

    def __call__(self, batch: Batch) -> Any:
        self.state, loss = self._run(self.state, batch)
        return loss

    def averaged(self) -> list[Any]:
        return [ops.convert_to_numpy(self.state["ema"][i]) for i in self._order]

    def current(self) -> list[Any]:
        values = [*self.state["trainable"], *self.state["fixed"]]
        return [ops.convert_to_numpy(values[i]) for i in self._order]


def make_step(model: SoundEventModel, optimizer: Any, train: Train) -> Callable[[Batch], Any]:
    """The step of the engine that Keras runs on.

    `train.jit = "auto"` compiles by XLA everywhere but on TensorFlow's CPU, where XLA trains more slowly.
    """
    if keras.backend.backend() == "jax":
        return JaxStep(model, optimizer, train, train.jit != "off")
    import tensorflow as tf

    jit = train.jit == "on" or (train.jit == "auto" and bool(tf.config.list_logical_devices("GPU")))
    return TensorFlowStep(model, optimizer, train, jit)
