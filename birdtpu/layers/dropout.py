"""Dropout whose mask depends on each example's seed alone."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from birdtpu import random


class _Scope(threading.local):
    """A stack a thread: mirrored replicas are threads that take turns in the middle of a network."""

    def __init__(self) -> None:
        self.seeds: list[Any] = []


_scope = _Scope()


@contextlib.contextmanager
def seed_scope(seed: Any) -> Iterator[None]:
    """The seeds `(batch,)` that the layers inside read: the house's one hidden argument.

    Models from keras.applications have no way to pass a tensor to their inner layers.
    """
    _scope.seeds.append(seed)
    try:
        yield
    finally:
        _scope.seeds.pop()


class SeededDropout(keras.layers.Layer):
    """Set units to zero at training, the others scaled up; the same mask on every engine and number of replicas.

    Args:
        rate: Share of units set to zero, [0, 1).
        noise_shape: As Keras' own: `(None, 1, 1, 1)` drops whole examples (drop-connect). The batch axis is always
            drawn example by example.
        name: Names the layer's stream of draws: two layers of one model need two names.

    Input shape: `(batch, ...)`; output the same.

    Raises: ValueError where the rate is not in [0, 1); RuntimeError at training outside a `seed_scope`.
    """

    def __init__(self, rate: float, noise_shape: tuple | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"dropout rate {rate} is not in [0, 1)")
        self.rate = rate
        self.noise_shape = None if noise_shape is None else tuple(noise_shape)

    def call(self, inputs: Any, training: bool = False) -> Any:
        if not training or self.rate == 0:
            return inputs
        if not _scope.seeds:
            raise RuntimeError(f"{self.name}: training needs `with seed_scope(batch['seed'])` around the call")
        shape = tuple(inputs.shape[1:])
        if self.noise_shape is not None:
            shape = tuple(a if n is None else n for a, n in zip(shape, self.noise_shape[1:], strict=True))
        unit = random.uniform(_scope.seeds[-1], random.stream(f"dropout/{self.name}"), shape)
        keep = ops.cast(unit >= self.rate, inputs.dtype)
        return inputs * keep * ops.cast(1 / (1 - self.rate), inputs.dtype)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict:
        return {**super().get_config(), "rate": self.rate, "noise_shape": self.noise_shape}
