"""Counter-based draws: the same bytes from NumPy on the host and from `keras.ops` on the device.

A draw is a function of (seed, stream, position) and of nothing else, so it does not change with the number of
replicas, the engine or a resume. The mixer is the 32-bit finaliser "lowbias32" of Chris Wellons
(https://nullprogram.com/blog/2018/07/31/), applied to the seed, then the stream, then the position.
"""

import zlib
from typing import Any

import numpy as np

_GOLDEN = 0x9E3779B9
_A, _B = 0x7FEB352D, 0x846CA68B


def stream(name: str) -> int:
    """The number of a named stream of draws, the same in every process."""
    return zlib.crc32(name.encode())


def _mix(x: np.ndarray) -> np.ndarray:
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(_A)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(_B)
    return x ^ (x >> np.uint32(16))


def hash32(*values: Any) -> np.ndarray:
    """Hash integers, element by element (host).

    Args:
        values: Integers or integer arrays that broadcast; taken modulo 2**32, in order.

    Returns: uint32 array of the broadcast shape.
    """
    out = np.uint32(_GOLDEN)
    with np.errstate(over="ignore"):
        for value in values:
            word = (np.asarray(value).astype(np.int64) & 0xFFFFFFFF).astype(np.uint32)
            out = _mix((out ^ word) + np.uint32(_GOLDEN))
    return np.asarray(out, np.uint32)


def _mix_device(x: Any) -> Any:
    from keras import ops

    def shift(value: Any, by: int) -> Any:
        return ops.bitwise_right_shift(value, ops.cast(by, "uint32"))

    x = ops.bitwise_xor(x, shift(x, 16))
    x = ops.multiply(x, ops.convert_to_tensor(np.uint32(_A)))
    x = ops.bitwise_xor(x, shift(x, 15))
    x = ops.multiply(x, ops.convert_to_tensor(np.uint32(_B)))
    return ops.bitwise_xor(x, shift(x, 16))


def bits(seed: Any, stream: int, shape: tuple[int, ...] = ()) -> Any:
    """Random bits for each example (device).

    Args:
        seed: `(batch,)` int32, the key of each example.
        stream: Number of the stream, so that two uses of one seed do not share draws (see `stream`).
        shape: Draws an example.

    Returns: uint32 `(batch, *shape)`, equal to `hash32(seed, stream, position)`.
    """
    from keras import ops

    golden = ops.convert_to_tensor(np.uint32(_GOLDEN))
    count = int(np.prod(shape, dtype=np.int64))
    key = _mix_device(ops.add(ops.bitwise_xor(ops.cast(seed, "uint32"), golden), golden))
    key = _mix_device(ops.add(ops.bitwise_xor(key, ops.convert_to_tensor(np.uint32(stream & 0xFFFFFFFF))), golden))
    # XLA lowers no unsigned iota for TensorFlow: count in int32.
    position = ops.cast(ops.arange(count, dtype="int32"), "uint32")
    out = _mix_device(ops.add(ops.bitwise_xor(key[:, None], position[None, :]), golden))
    return ops.reshape(out, (-1, *shape))


def uniform(seed: Any, stream: int, shape: tuple[int, ...] = (), low: float = 0.0, high: float = 1.0) -> Any:
    """Uniform draws for each example (device): float32 `(batch, *shape)` in [low, high).

    Rounding may reach `high` itself, but not where the range is [0, 1).
    """
    from keras import ops

    unit = ops.cast(ops.bitwise_right_shift(bits(seed, stream, shape), ops.cast(8, "uint32")), "float32")
    return unit * np.float32((high - low) * 2**-24) + np.float32(low)


def happens(seed: Any, stream: int, probability: float) -> Any:
    """For each example whether an event of this probability occurs (device): float32 `(batch,)`, 0 or 1."""
    from keras import ops

    return ops.cast(uniform(seed, stream) < probability, "float32")


def beta_table(alpha: float, size: int = 1024) -> np.ndarray:
    """Quantiles of Beta(alpha, alpha) at the midpoints of `size` equal steps: float32 `(size,)`.

    TPUs have no gamma draw, so a uniform draw reads this inverse CDF instead.
    """
    from scipy.stats import beta

    return beta.ppf((np.arange(size) + 0.5) / size, alpha, alpha).astype(np.float32)


def from_table(table: np.ndarray, seed: Any, stream: int) -> Any:
    """A draw a row from a table of quantiles (device): float32 `(batch,)`."""
    from keras import ops

    index = ops.cast(uniform(seed, stream) * len(table), "int32")
    return ops.take(ops.convert_to_tensor(table), index)
