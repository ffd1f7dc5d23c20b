"""Batch normalization that moves few bytes."""

from typing import Any

import keras
from keras import ops

# What an average keeps of its past at each step: PyTorch's. Keras' 0.99 is made for thousands of steps an epoch.
MOMENTUM = 0.9


class BatchNorm(keras.layers.BatchNormalization):
    """Batch normalization with float32 statistics, applied as one scale and shift in the compute dtype.

    Keras' own layer turns a bfloat16 feature map into float32 and back. Here only the sums are float32, and the
    variance is the mean of squares less the squared mean.

    Args: those of `keras.layers.BatchNormalization`, over the last axis and without `renorm`. `synchronized`:
        statistics over all replicas (TensorFlow; on JAX a batch is one batch however it lies on the devices, and Keras
        raises there). `phases`: how many times the last axis holds the channels, one after the other: positions of a
        map that lie side by side, such as columns in pairs.

    Input shape: `(batch, ..., phases * channels)`; output the same, in the compute dtype.
    Reference: `keras.layers.BatchNormalization`. Differs: masks are not known.
    """

    def __init__(self, *args: Any, phases: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.phases = phases

    def build(self, input_shape: tuple) -> None:
        super().build((*input_shape[:-1], input_shape[-1] // self.phases))
        self.input_spec = None

    def call(self, inputs: Any, training: bool = False, mask: None = None) -> Any:
        scale, shift = self.scale_and_shift(inputs, training)
        scale, shift = (ops.tile(ops.cast(each, inputs.dtype), self.phases) for each in (scale, shift))
        return inputs * scale + shift

    def scale_and_shift(self, inputs: Any, training: bool, signs: Any = 1.0) -> tuple[Any, Any]:
        """What makes the output of the input, `(channels,)` float32 each; in training the averages move.

        Args:
            inputs: The map.
            training: Whether by the batch's statistics.
            signs: 1 or -1 for each channel of the map, where it stands for the map times these.
        """
        if training and self.trainable:
            mean, variance = self._statistics(ops.cast(inputs, "float32"))
            mean = mean * signs
            for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
                average.assign(average * self.momentum + value * (1 - self.momentum))
        else:
            mean, variance = ops.convert_to_tensor(self.moving_mean), ops.convert_to_tensor(self.moving_variance)
        scale = ops.rsqrt(variance + self.epsilon)
        if self.gamma is not None:
            scale = scale * self.gamma
        shift = -mean * scale
        if self.beta is not None:
            shift = shift + self.beta
        return scale * signs, shift

    def _statistics(self, x: Any) -> tuple[Any, Any]:
        axes = list(range(len(x.shape) - 1))
        if self.synchronized:
            mean, variance = ops.moments(x, axes, synchronized=True)
            squares = variance + ops.square(mean)
        else:
            mean, squares = ops.mean(x, axes), ops.mean(ops.square(x), axes)
        if self.phases > 1:
            mean, squares = (ops.mean(ops.reshape(each, (self.phases, -1)), 0) for each in (mean, squares))
        return mean, ops.relu(squares - ops.square(mean))

    def get_config(self) -> dict:
        return {**super().get_config(), "phases": self.phases}
