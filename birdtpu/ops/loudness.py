"""Levels of waveforms, an example at a time."""

from typing import Any

from keras import ops

# Below any sound: a 24-bit recording's last bit is 1e-7 of full scale.
_SILENT = 1e-9


def to_float(audio: Any, gain: Any | None) -> Any:
    """`(batch, samples)` as float32: integers are multiplied by their `gain` `(batch,)`, where there is one."""
    return audio if gain is None else ops.cast(audio, "float32") * gain[:, None]


def rms(audio: Any) -> Any:
    """The root of each example's mean square: `(batch, samples)` to `(batch,)`; 0 for silence."""
    return ops.sqrt(ops.mean(ops.square(audio), axis=1))


def unit(audio: Any, level: Any | None = None) -> Any:
    """`(batch, samples)` brought to an RMS of one; silence stays silence.

    Args:
        audio: `(batch, samples)`.
        level: Its `rms`, where it is known.
    """
    level = rms(audio) if level is None else level
    return audio / ops.maximum(level, _SILENT)[:, None]


def standard_gain(audio: Any) -> Any:
    """One over each example's standard deviation: `(batch, samples)`, integers or floats, to `(batch,)`.

    Times it an example is standardised, whatever the recorder's gain was. 0 for silence.
    """
    deviation = ops.std(ops.cast(audio, "float32"), axis=1)
    return ops.where(deviation > _SILENT, 1 / ops.maximum(deviation, _SILENT), 0.0)


def add_at_snr(audio: Any, noise: Any, snr_db: Any, present: Any) -> Any:
    """Add noise so many dB below each example's own RMS.

    Args:
        audio, noise: `(batch, samples)`. Silence stays silent, and noise that is silence adds none.
        snr_db: `(batch,)`, the ratio of their powers.
        present: `(batch,)`, 0 or 1: whether there is noise at all.

    Returns: `(batch, samples)`.
    """
    level = present * rms(audio) * ops.power(10.0, -snr_db / 20)
    return audio + unit(noise) * level[:, None]
