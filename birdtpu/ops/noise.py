"""Noise from integers: the same samples on every engine, each of a mean square of one. Draws are passed in."""

from typing import Any

import numpy as np
from keras import ops

# Octaves of pink noise: down to 1 / 2048 of the sample rate, which at 32 kHz is 16 Hz.
_OCTAVES = 10


def gaussian(bits: Any) -> Any:
    """Nearly normal noise: the sum of each draw's four bytes, which are uniform integers.

    Args:
        bits: uint32, any shape.

    Returns: float32 of that shape, within 3.5; its kurtosis is 2.7 where a normal's is 3, and a spectrum's bin, which
        sums over hundreds of samples, is normal.
    """
    total = sum(
        ops.bitwise_and(ops.bitwise_right_shift(bits, ops.cast(shift, "uint32")), ops.cast(255, "uint32"))
        for shift in (0, 8, 16, 24)
    )
    return (ops.cast(total, "float32") - 510.0) * np.float32(1 / np.sqrt(4 * (256**2 - 1) / 12))


def uniform(units: Any) -> Any:
    """White noise of uniform samples from draws in [0, 1)."""
    return (2 * units - 1) * np.float32(np.sqrt(3))


def pink_draws(samples: int) -> int:
    """How many draws `pink` needs for so many samples: about twice as many."""
    return sum(_held(samples, octave) for octave in range(_OCTAVES))


def pink(units: Any, samples: int) -> Any:
    """Noise whose spectrum falls by 3 dB an octave: white noises, each held twice as long as the one before, summed.

    Args:
        units: `(batch, pink_draws(samples))` in [0, 1).
        samples: How many.

    Returns: `(batch, samples)`.
    Source: Voss and Clarke 1978, "1/f noise in music", J. Acoust. Soc. Am. 63; the staggered starts, so that no two
        of them step at once, are McCartney's. No FFT, which compiles for minutes on a TPU.
    """
    white, out, first = uniform(units), 0.0, 0
    for octave in range(_OCTAVES):
        length, count = 2**octave, _held(samples, octave)
        steps = ops.repeat(white[:, first : first + count], length, axis=1)
        out = out + steps[:, length // 2 : length // 2 + samples]
        first += count
    return out * np.float32(_OCTAVES**-0.5)


def _held(samples: int, octave: int) -> int:
    return -(-(samples + 2**octave // 2) // 2**octave)
