"""What the networks are made of: layers that compute as PyTorch's do, named as timm names their weights."""

from dataclasses import dataclass
from typing import Any

import keras
from keras import layers, ops

from birdtpu.layers.batch_norm import MOMENTUM, BatchNorm
from birdtpu.layers.dropout import SeededDropout

# How a kernel starts: He's normal, by the outputs; and PyTorch's own way where a network says nothing.
HE = (2.0, "fan_out", "untruncated_normal")
PYTORCH = (1 / 3, "fan_in", "uniform")


@dataclass(frozen=True)
class Blocks:
    """Layers of one network.

    Args:
        synchronized: See `BatchNorm`.
        kernel: Scale, mode and distribution of `keras.initializers.VarianceScaling`.
    """

    synchronized: bool
    kernel: tuple[float, str, str] = HE

    def conv(self, x: Any, filters: int, window: int = 1, stride: int = 1, *, name: str, bias: bool = False) -> Any:
        """A convolution: at stride 1 the map keeps its size, at stride 2 it is half of it, rounded up."""
        x, padding = self._padded(x, window, stride, name)
        start = keras.initializers.VarianceScaling(*self.kernel)
        options = {"use_bias": bias, "kernel_initializer": start, "name": name}
        return layers.Conv2D(filters, window, stride, padding, **options)(x)

    def depthwise(self, x: Any, window: int, stride: int = 1, *, name: str, bias: bool = False) -> Any:
        """A convolution of each channel by itself, sizes as of `conv`."""
        x, padding = self._padded(x, window, stride, name)
        # To Keras, all channels are the inputs of a depthwise kernel; each filter's outputs are what it truly reads.
        start = keras.initializers.VarianceScaling(self.kernel[0], "fan_out", self.kernel[2])
        options = {"use_bias": bias, "depthwise_initializer": start, "name": name}
        return layers.DepthwiseConv2D(window, stride, padding, **options)(x)

    def norm(self, x: Any, name: str, gamma: str = "ones") -> Any:
        """Batch normalization; `gamma` starts as `ones`, or as `zeros` at the end of a residual branch."""
        settings = {"momentum": MOMENTUM, "epsilon": 1e-5, "synchronized": self.synchronized}
        return BatchNorm(**settings, gamma_initializer=gamma, name=name)(x)

    @staticmethod
    def _padded(x: Any, window: int, stride: int, name: str) -> tuple[Any, str]:
        # PyTorch's zeros stand on all sides; Keras' `same` has more of them at the end where the stride is 2.
        if stride == 1 or window == 1:
            return x, "same"
        return layers.ZeroPadding2D(window // 2, name=f"{name}.pad")(x), "valid"


def drop_branch(x: Any, rate: float, name: str) -> Any:
    """A residual branch that training leaves out of some examples; at rate 0 too a layer, so that rates change none."""
    return SeededDropout(rate, (None, 1, 1, 1), name=f"{name}.drop_path")(x)


def rising(rate: float, count: int) -> list[float]:
    """Rates of so many blocks, from 0 to `rate`."""
    return [rate * i / (count - 1) for i in range(count)]


def squeeze_excite(x: Any, blocks: Blocks, squeezed: int, name: str) -> Any:
    """Each channel times a sigmoid of what two layers make of all channels' means."""
    means = ops.mean(x, axis=(1, 2), keepdims=True)
    means = ops.relu(blocks.conv(means, squeezed, name=f"{name}.fc1", bias=True))
    return x * ops.sigmoid(blocks.conv(means, x.shape[-1], name=f"{name}.fc2", bias=True))
