"""The first layers of a ResNet on maps whose columns lie in pairs side by side in the channels.

A TPU keeps channels in lanes of 128: maps of 64 channels take twice their bytes, and these are the network's largest.
Of two neighbouring columns, the channels of the first stand before those of the second.
"""

from typing import Any

from keras import layers, ops

from birdtpu.layers.batch_norm import BatchNorm


def fits_pairs(height: int, width: int) -> bool:
    """Whether an image's size suits a paired `Stem`: half of it, rounded up, has even rows, and columns by fours."""
    return -(-height // 2) % 2 == 0 and -(-width // 2) % 4 == 0


class PairedConv(layers.Conv2D):
    """A convolution between paired maps; of stride 2, from a paired map to a plain one.

    Args: those of `keras.layers.Conv2D`, and `paired`: False is that layer itself, of the same weights. It has no bias.

    Input shape: `(batch, height, width / 2, 2 * channels)`.
    Output shape: `(batch, height, width / 2, 2 * filters)`; of stride 2 `(batch, height / 2, width / 2, filters)`.
    Reference: `keras.layers.Conv2D` of odd windows, `same` where they are wider than one column.
    """

    def __init__(self, *args: Any, paired: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"use_bias": False})
        self.paired = paired

    def build(self, input_shape: tuple) -> None:
        super().build((*input_shape[:-1], input_shape[-1] // (1 + self.paired)))
        self.input_spec = None

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        if not self.paired:
            return super().convolution_op(inputs, kernel)
        height, width, channels, filters = kernel.shape
        pairs = 1 + 2 * -(-(width // 2) // 2)
        first = pairs - 1 - width // 2
        columns = (first,) if self.strides[1] == 2 else (first, first + 1)
        kernel = ops.concatenate(
            [ops.pad(kernel, ((0, 0), (i, 2 * pairs - width - i), (0, 0), (0, 0))) for i in columns], -1
        )
        kernel = ops.reshape(kernel, (height, pairs, 2 * channels, len(columns) * filters))
        return ops.conv(inputs, kernel, (self.strides[0], 1), self.padding)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        if not self.paired:
            return super().compute_output_shape(input_shape)
        batch, height, pairs, _ = input_shape
        return batch, -(-height // self.strides[0]), pairs, 2 * self.filters // self.strides[1]

    def get_config(self) -> dict:
        return {**super().get_config(), "paired": self.paired}


class Stem(layers.Layer):
    """Convolution 7x7 of stride 2, BatchNorm, ReLU and the largest of 3x3 at stride 2, zeros around both.

    Args:
        filters: Channels.
        paired: Whether the output is a paired map. The convolution's output is then dealt to 2 x 4 phases of rows and
            columns in its channels, and the pooling is a maximum of phases. The weights are the same.
        norm: Arguments of `BatchNorm`.

    Input shape: `(batch, height, width, channels)`; `fits_pairs` where paired.
    Output shape: `(batch, ceil(height / 4), ceil(width / 4), filters)`, or half as wide with twice the channels.
    Reference: `keras.applications.ResNet50` up to `pool1_pool`. Differs: the convolution has no bias; where several
        share the maximum, another one of them gets the gradient.
    """

    def __init__(self, filters: int = 64, paired: bool = False, norm: dict | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.paired = paired
        self.norm_arguments = norm or {}
        same = {"dtype": self.dtype_policy}
        self.conv = layers.Conv2D(filters, 7, 2, use_bias=False, name="conv", **same)
        self.norm = BatchNorm(phases=8 if paired else 1, name="norm", **self.norm_arguments, **same)

    def build(self, input_shape: tuple) -> None:
        self.conv.build(input_shape)
        self.norm.build((*input_shape[:-1], self.filters * self.norm.phases))

    def call(self, image: Any, training: bool = False) -> Any:
        image = ops.pad(image, ((0, 0), (3, 3), (3, 3), (0, 0)))
        if not self.paired:
            x = ops.relu(self.norm(self.conv(image), training=training))
            return ops.max_pool(ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 3, 2)
        # Where gamma is negative the convolution's output is negated, so that the largest stays the largest and
        # scale and shift are left for the pooled map.
        signs = ops.where(ops.convert_to_tensor(self.norm.gamma) < 0, -1.0, 1.0)
        kernel = self.conv.kernel * ops.cast(signs, self.compute_dtype)
        # Phases are (row % 2, column % 2, column % 4 // 2).
        offsets = [(2 * row, 2 * column + 4 * second) for row in (0, 1) for column in (0, 1) for second in (0, 1)]
        kernel = ops.concatenate([ops.pad(kernel, ((i, 2 - i), (j, 6 - j), (0, 0), (0, 0))) for i, j in offsets], -1)
        x = ops.conv(image, kernel, (4, 8))
        scale, shift = self.norm.scale_and_shift(x, training, signs)
        even_even, even_odd, odd_even, odd_odd = ops.split(x, 4, axis=-1)
        even, odd = (
            _larger(_larger(top, bottom), _after_nothing(bottom, axis=1))
            for top, bottom in ((even_even, odd_even), (even_odd, odd_odd))
        )
        first, second = ops.split(odd, 2, axis=-1)
        x = _larger(_larger(even, odd), ops.concatenate([_after_nothing(second, axis=2), first], -1))
        scale, shift = (ops.tile(ops.cast(each, x.dtype), 2) for each in (scale, shift))
        return ops.relu(x * scale + shift)

    def get_config(self) -> dict:
        return {
            **super().get_config(), "filters": self.filters, "paired": self.paired, "norm": self.norm_arguments
        }  # fmt: skip


def _after_nothing(x: Any, axis: int) -> Any:
    """Each row or column moved on by one, the least number before the first."""
    least = ops.full_like(x[:, :1] if axis == 1 else x[:, :, :1], float("-inf"))
    return ops.concatenate([least, x[:, :-1] if axis == 1 else x[:, :, :-1]], axis)


def _larger(a: Any, b: Any) -> Any:
    # `ops.maximum` shares the gradient of equals, at the cost of a division for each pixel.
    return ops.where(a > b, a, b)
