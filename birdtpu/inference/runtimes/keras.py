"""Scores by Keras itself, on TensorFlow or JAX."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np


def compiled(function: Callable[..., Any], *, jit: bool | None = None) -> Callable[..., Any]:
    """Compile a function of arrays for the engine that Keras runs on.

    Args:
        function: Of tensors, with static shapes.
        jit: XLA on TensorFlow; None: only where there is a GPU. JAX always compiles.

    Returns: a function from arrays to tensors.
    """
    if keras.backend.backend() == "jax":
        import jax

        def traced(*args: Any) -> Any:
            with jax.default_matmul_precision("highest"):
                return function(*args)

        return jax.jit(traced)
    import tensorflow as tf

    if jit is None:
        jit = bool(tf.config.list_logical_devices("GPU"))
    return tf.function(function, jit_compile=jit, autograph=False, reduce_retracing=False)


def keras_predict(model: Any, head: str) -> Callable[[np.ndarray], np.ndarray]:
    """`(batch, clip samples)` float32 -> `(batch, classes)` scores of a head.

    Args:
        model: A `SoundEventModel` with its weights.
        head: See `models.build.clip_scores`.
    """
    return keras_predict_all([model], head, lambda scores: scores[0])


def keras_predict_all(
    models: Sequence[Any], head: str, combine: Callable[[list], Any]
) -> Callable[[np.ndarray], np.ndarray]:
    """Several models as one compiled function: `(batch, clip samples)` float32 -> `(batch, classes)` scores.

    Args:
        models: `SoundEventModel`s with their weights, for clips of one length; those with the same log-mel share one.
        head: See `models.build.clip_scores`.
        combine: From the tensors that the models score, one a model, to `(batch, classes)`.
    """
    from birdtpu.models.build import clip_scores, outputs_of_all

    def scores(audio: Any) -> Any:
        return combine([clip_scores(outputs, head) for outputs in outputs_of_all(models, audio)])

    function = compiled(scores)
    return lambda audio: keras.ops.convert_to_numpy(function(audio))


def keras_predict_frames(model: Any) -> Callable[[np.ndarray], np.ndarray]:
    """`(batch, clip samples)` float32 -> `(batch, frames * classes)` scores, the classes of each frame side by side.

    Args:
        model: A `SoundEventModel` with its weights.
    """

    def scores(audio: Any) -> Any:
        framewise = model(audio)["framewise"]
        return keras.ops.reshape(framewise, (-1, framewise.shape[1] * framewise.shape[2]))

    function = compiled(scores)
    return lambda audio: keras.ops.convert_to_numpy(function(audio))
