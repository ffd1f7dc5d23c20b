"""One face for what a training runs on: a CPU, GPUs, a TPU; on TensorFlow or on JAX."""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from birdtpu.errors import UserError
from birdtpu.keys import Train
from birdtpu.models.build import SoundEventModel
from birdtpu.training.machine import machine, no_tpu
from birdtpu.training.step import Step


@dataclass(frozen=True)
class Accelerator:
    """What was found.

    Args:
        kind: `cpu`, `gpu` or `tpu`.
        replicas: Devices that share a batch.
        scope: Opens the scope in which model and optimiser are built.
        make_step: Model, optimiser, `resolved` recipe and whether XLA compiles -> the step.
    """

    kind: str
    replicas: int
    scope: Callable[[], contextlib.AbstractContextManager]
    make_step: Callable[[SoundEventModel, Any, Train, bool], Step]

    @property
    def steps_per_call(self) -> int:
        """Steps in one call: on a TPU a call's overhead is longer than a small network's step."""
        return 8 if self.kind == "tpu" else 1

    def precision(self, train: Train) -> str:
        """The dtype policy of the network."""
        if train.precision == "auto":
            return "mixed_bfloat16" if self.kind == "tpu" else "float32"
        return train.precision

    def step(self, model: SoundEventModel, optimizer: Any, train: Train) -> Step:
        """The training step; `train.jit = "auto"` compiles it everywhere but on TensorFlow's CPU, where XLA is slow."""
        on_jax = keras.backend.backend() == "jax"
        jit = train.jit == "on" or (train.jit == "auto" and (on_jax or self.kind == "gpu"))
        return self.make_step(model, optimizer, train, jit)


@functools.cache
def find_accelerator(tpu: bool = False) -> Accelerator:
    """The devices of this machine, for the backend that Keras runs on.

    Args:
        tpu: Only a TPU will do; else what is there: GPUs, else the CPU (on JAX also a TPU that it sees).

    Raises: UserError where a TPU is wanted and cannot be had, with the cause and the command that mends it.
    """
    return _jax(tpu) if keras.backend.backend() == "jax" else _tensorflow(tpu)


def _tensorflow(tpu: bool) -> Accelerator:
    import tensorflow as tf

    from birdtpu.training.tensorflow_step import TensorFlowStep

    if tpu:
        strategy, kind = _tpu_strategy(), "tpu"
        exact_products()
    else:
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        kind = devices[0].device_type.lower()
        names = [device.name for device in devices]
        strategy = tf.distribute.MirroredStrategy(names) if len(names) > 1 else tf.distribute.get_strategy()
    replicas = strategy.num_replicas_in_sync

    def make_step(model: SoundEventModel, optimizer: Any, train: Train, jit: bool) -> Step:
        # XLA refuses a mirrored replica's variables; a TPU's program is XLA's in any case.
        return TensorFlowStep(model, optimizer, train, strategy, jit and replicas == 1 and not tpu)

    return Accelerator(kind, replicas, strategy.scope, make_step)


def exact_products() -> None:
    """Let TensorFlow multiply float32 as float32: a TPU's own way is one bfloat16 pass, 17 dB off in a log-mel.

    It holds for the whole process; a network in bfloat16 does not change.
    """
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(False)


def _tpu_strategy() -> Any:
    import tensorflow as tf

    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu="local")
        # The resolver finds a "local" TPU on any machine: only this call knows.
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        raise no_tpu(machine(), "tensorflow", str(error)) from error


def _jax(tpu: bool) -> Accelerator:
    import jax

    from birdtpu.training.jax_step import JaxStep

    try:
        devices = jax.devices("tpu") if tpu else jax.devices()
    except RuntimeError as error:
        here = machine()
        if tpu or here.chips:
            raise no_tpu(here, "jax", str(error)) from error
        first = (str(error).strip() or repr(error)).splitlines()[0]
        raise UserError(f"JAX finds no device ({first}); JAX_PLATFORMS=cpu trains on the CPU") from error
    mesh = jax.sharding.Mesh(devices, ("batch",))

    def make_step(model: SoundEventModel, optimizer: Any, train: Train, jit: bool) -> Step:
        if train.synchronized_batch_norm:
            raise UserError(
                "train.synchronized_batch_norm: on JAX batch statistics are global as they are; set it to false"
            )
        return JaxStep(model, optimizer, train, mesh, jit)

    kind = devices[0].platform
    return Accelerator(
        "gpu" if kind in ("gpu", "cuda", "rocm") else kind, len(devices), contextlib.nullcontext, make_step
    )
