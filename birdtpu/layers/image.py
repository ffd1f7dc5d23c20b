"""A scaled spectrogram as the picture that an image network expects."""

from typing import Any

import keras
import numpy as np
from keras import ops


def resize_matrix(source: int, target: int) -> np.ndarray:
    """Antialiased linear resizing of one axis as a product: float32 `(target, source)`, rows sum to one.

    Reference: `tf.image.resize(method="bilinear", antialias=True)`, `jax.image.resize(method="linear")`.
    """
    scale = source / target
    centre = (np.arange(target) + 0.5) * scale - 0.5
    distance = np.abs(np.arange(source)[None, :] - centre[:, None]) / max(scale, 1.0)
    weights = np.maximum(0, 1 - distance)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


class Image(keras.layers.Layer):
    """Resize a log-mel and repeat it over channels; or resize one that has channels of its own.

    Args:
        size: `(height, width)`: time and frequency in pixels; None leaves the log-mel's own.
        channels: Of the picture.
        ramp: Whether the last channel is each pixel's place in frequency, from 0 for the lowest to 1 for the highest:
            a convolution, which treats all frequencies alike, can then tell them apart.
        scale, offset: Pixels are `scale * x + offset`; either may be one a channel.

    Input shape: `(batch, frames, mels)`, [0, 1]; or with as many channels as the picture has beside the ramp.
    Output shape: `(batch, height, width, channels)`.
    """

    def __init__(
        self,
        size: tuple[int, int] | None = None,
        channels: int = 3,
        scale: float | tuple[float, ...] = 1.0,
        offset: float | tuple[float, ...] = 0.0,
        ramp: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size = None if size is None else tuple(size)
        self.channels = channels
        self.scale = scale
        self.offset = offset
        self.ramp = ramp

    def call(self, log_mel: Any) -> Any:
        x, several = log_mel, len(log_mel.shape) == 4
        if self.size is not None:
            frames, mels = x.shape[1:3]
            x = ops.moveaxis(x, -1, 1) if several else x
            # Two small products: the resize kernels of the engines differ and some do not lower for a TPU.
            x = ops.matmul(ops.convert_to_tensor(resize_matrix(frames, self.size[0])), x)
            x = ops.matmul(x, ops.convert_to_tensor(resize_matrix(mels, self.size[1]).T))
            x = ops.moveaxis(x, 1, -1) if several else x
        if not several:
            pictures = self.channels - self.ramp
            x = ops.repeat(x[..., None], pictures, axis=-1) if pictures > 1 else x[..., None]
        if self.ramp:
            ramp = np.linspace(0, 1, x.shape[2], dtype=np.float32)[:, None]
            x = ops.concatenate([x, ops.zeros_like(x[..., :1]) + ops.cast(ramp, x.dtype)], axis=-1)
        scale, offset = (np.asarray(each, np.float32) for each in (self.scale, self.offset))
        return ops.cast(x * scale + offset, self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (input_shape[0], *(self.size or input_shape[1:3]), self.channels)

    def get_config(self) -> dict:
        names = ("size", "channels", "scale", "offset", "ramp")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
