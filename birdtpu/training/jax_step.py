"""The training step on JAX: one jitted call for several steps over the devices of a mesh, its state donated."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import jax
import numpy as np
from keras import ops

from birdtpu.keys import Train
from birdtpu.models.build import SoundEventModel, seeded
from birdtpu.training.step import Arrays, Batch, clipped, ema_decay_at, follow, from_state, loss_of, to_state

State = dict[str, Any]


def state_of(model: SoundEventModel, optimizer: Any) -> State:
    """The variables' values as the state of `make_update`: NumPy arrays."""
    network = model.network
    values = {
        "trainable": [np.array(v.value) for v in network.trainable_variables],
        "fixed": [np.array(v.value) for v in network.non_trainable_variables],
        "optimizer": [np.array(v.value) for v in optimizer.variables],
    }
    return {**values, "ema": [*values["trainable"], *values["fixed"]], "step": np.int32(0)}


def unrolled(body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> tuple[Any, Any]:
    """What `jax.lax.scan` returns, without a loop in the program."""
    count = len(jax.tree.leaves(xs)[0])
    outputs = []
    for i in range(count):
        carry, output = body(carry, jax.tree.map(lambda x, i=i: x[i], xs))
        outputs.append(output)
    return carry, jax.tree.map(lambda *each: ops.stack(each), *outputs)


def make_update(
    model: SoundEventModel, optimizer: Any, train: Train, scan: Callable[..., tuple[Any, Any]] = jax.lax.scan
) -> Callable[[State, Batch], tuple[State, Any]]:
    """`(state, batches) -> (state, losses)`, a pure function.

    Args:
        model, optimizer: Built.
        train: The recipe's, `resolved`.
        scan: `jax.lax.scan`, or on a CPU `unrolled`: XLA compiles a convolution in a loop there to plain code, which
            takes twenty times as long.

    The leaves of `batches` are `(steps, train.accumulate, rows, ...)`; the losses are `(steps,)`.
    """
    network = model.network

    def loss_fn(weights: Any, fixed: Any, batch: Batch, prepared: Any) -> Any:
        image, labels = prepared
        outputs, fixed = seeded(network.stateless_call, batch["seed"], weights, fixed, image, training=True)
        return loss_of(outputs, labels, train), fixed

    def gradients_of(weights: Any, fixed: Any, batch: Batch) -> Any:
        exactly = jax.default_matmul_precision("highest")
        if model.instances > 1:
            with exactly:
                images = model.log_mels(batch)
            outputs, _ = network.stateless_call(weights, fixed, images, training=False)
            batch = model.choose(batch, outputs["clipwise_logits"])
        with exactly:
            prepared = model.augmented(batch)
        return jax.value_and_grad(loss_fn, has_aux=True)(weights, fixed, batch, prepared)

    def one(state: State, batches: Batch) -> tuple[State, Any]:
        def further(carry: Any, batch: Batch) -> Any:
            loss, fixed, gradients = carry
            (more, fixed), others = gradients_of(state["trainable"], fixed, batch)
            return (loss + more, fixed, [a + b for a, b in zip(gradients, others, strict=True)]), None

        first, rest = (
            {key: part(value) for key, value in batches.items()} for part in (lambda x: x[0], lambda x: x[1:])
        )
        (loss, fixed), gradients = gradients_of(state["trainable"], state["fixed"], first)
        if train.accumulate > 1:
            (loss, fixed, gradients), _ = scan(further, (loss, fixed, gradients), rest)
        gradients = clipped(gradients, train.clip_norm, train.clip_value)
        weights, slots = optimizer.stateless_apply(state["optimizer"], gradients, state["trainable"])
        decay = ema_decay_at(ops.cast(state["step"], "float32"), train.ema_decay)
        ema = [follow(a, v, decay) for a, v in zip(state["ema"], (*weights, *fixed), strict=True)]
        step = state["step"] + 1
        return {"trainable": weights, "fixed": fixed, "optimizer": slots, "ema": ema, "step": step}, loss

    def update(state: State, batches: Batch) -> tuple[State, Any]:
        return scan(one, state, batches)

    return update


class JaxStep:
    """A `training.step.Step` on a state of its own, over all devices of a mesh.

    Args:
        model, optimizer: Built; they keep their first values.
        train: The recipe's, `resolved`.
        mesh: One axis, `batch`.
        jit: Whether XLA compiles the step.
    """

    def __init__(
        self, model: SoundEventModel, optimizer: Any, train: Train, mesh: jax.sharding.Mesh, jit: bool
    ) -> None:
        self.model, self.optimizer, self._accumulate = model, optimizer, train.accumulate
        spec = jax.sharding.PartitionSpec
        self._everywhere = jax.sharding.NamedSharding(mesh, spec())
        self._split = jax.sharding.NamedSharding(mesh, spec(None, None, "batch"))
        self._state = jax.device_put(state_of(model, optimizer), self._everywhere)
        network = model.network
        order = {id(v): i for i, v in enumerate((*network.trainable_variables, *network.non_trainable_variables))}
        self._order = [order[id(v)] for v in network.variables]
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        update = make_update(model, optimizer, train, unrolled if on_cpu else jax.lax.scan)
        placed = (self._everywhere, self._split)
        whole = (self._everywhere, self._everywhere)
        self._run = jax.jit(update, in_shardings=placed, out_shardings=whole, donate_argnums=0) if jit else update

    def feed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        return iter(batches.as_numpy_iterator() if hasattr(batches, "as_numpy_iterator") else batches)

    def run(self, feed: Iterator[Batch], count: int) -> Any:
        parts = list(islice(feed, count * self._accumulate))
        if len(parts) < count * self._accumulate:
            raise StopIteration
        stacked = {
            key: np.stack([part[key] for part in parts]).reshape(count, self._accumulate, *parts[0][key].shape)
            for key in parts[0]
        }
        self._state, losses = self._run(self._state, jax.device_put(stacked, self._split))
        return losses

    def scale_rate(self, factor: float) -> None:
        slots = self._state["optimizer"]
        place = next(i for i, v in enumerate(self.optimizer.variables) if v is self.optimizer.rate_scale)
        slots[place] = jax.device_put(np.asarray(slots[place]) * np.float32(factor), self._everywhere)

    def _ordered(self, values: list[Any]) -> list[np.ndarray]:
        return [np.asarray(values[i]) for i in self._order]

    def averaged(self) -> list[np.ndarray]:
        return self._ordered(self._state["ema"])

    def current(self) -> list[np.ndarray]:
        return self._ordered([*self._state["trainable"], *self._state["fixed"]])

    def state(self) -> Arrays:
        return to_state(self._state["step"], self.current(), self.averaged(), self._state["optimizer"])

    def restore(self, state: Arrays) -> None:
        variables = self.model.network.variables
        like = {"weights": variables, "ema": variables, "optimizer": self._state["optimizer"]}
        parts = from_state(state, like)
        count = len(self._state["trainable"])
        place = {position: i for i, position in enumerate(self._order)}
        weights, ema = ([parts[name][place[i]] for i in range(len(place))] for name in ("weights", "ema"))
        restored = {
            "trainable": weights[:count],
            "fixed": weights[count:],
            "optimizer": parts["optimizer"],
            "ema": ema,
            "step": np.int32(state["step"]),
        }
        self._state = jax.device_put(restored, self._everywhere)
