"""Weights under timm's names and in PyTorch's layout, to and from the networks here. Never a pickle.

A layer's name is timm's name of the module that holds the same weights.
"""

import io
import math
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import layers

from birdtpu import storage
from birdtpu.errors import UserError
from birdtpu.layers.window_attention import WindowAttention

SUFFIXES = (".safetensors", ".npz")

_NAMES = {
    "kernel": "weight", "gamma": "weight", "beta": "bias", "moving_mean": "running_mean",
    "moving_variance": "running_var",
}  # fmt: skip
# What PyTorch counts or can compute anew.
_NOT_WEIGHTS = (".num_batches_tracked", ".attention_bias_idxs")


def load(model: keras.Model, path: str, classifier: str, what: str) -> None:
    """Load a file of timm's weights into a network, all of it or nothing.

    Biases of attention windows of another size are resized, as timm does.

    Args:
        model: A network of this folder.
        path: A `.safetensors` or `.npz`, local or `gs://`.
        classifier: How the names of the classifier's weights begin, which are left out.
        what: What the network is, for the message.

    Raises: UserError that names the file and the first weight that is missing, unknown or of another shape.
    """
    arrays = _read(path)
    values = []
    for key, layer, variable in _weights(model):
        if key not in arrays:
            raise UserError(f"{path}: does not fit {what} (it lacks {key})")
        array, shape = arrays.pop(key), _timm_shape(layer, variable)
        if isinstance(layer, WindowAttention) and array.ndim == 2 and array.shape[0] == layer.heads:
            array = _resized(array, layer.side)
        if array.shape != shape:
            raise UserError(f"{path}: does not fit {what} ({key} has the shape {array.shape}, not {shape})")
        if array.dtype.kind != "f" or not np.isfinite(array := array.astype(np.float32)).all():
            raise UserError(f"{path}: does not fit {what} ({key} does not hold finite floats)")
        values.append((variable, _to_ours(layer, variable, array)))
    unknown = [key for key in arrays if not key.startswith(classifier) and not key.endswith(_NOT_WEIGHTS)]
    if unknown:
        raise UserError(f"{path}: does not fit {what} (the network has no {unknown[0]})")
    for variable, value in values:
        variable.assign(value)


def save(model: keras.Model, path: str) -> None:
    """Write a network's weights as a `.safetensors` that timm's model without a classifier loads."""
    import safetensors.numpy

    storage.write_bytes(path, safetensors.numpy.save(state(model)))


def state(model: keras.Model) -> dict[str, np.ndarray]:
    """A network's weights under timm's names, in PyTorch's layout."""
    return {
        key: np.ascontiguousarray(_to_timm(layer, variable, keras.ops.convert_to_numpy(variable.value)))
        for key, layer, variable in _weights(model)
    }


def _weights(model: keras.Model) -> Iterator[tuple[str, keras.layers.Layer, Any]]:
    for layer in model.layers:
        for variable in layer.weights:
            yield f"{layer.name}.{_NAMES.get(variable.name, variable.name)}", layer, variable


def _axes(layer: keras.layers.Layer, variable: Any) -> tuple[int, ...] | None:
    """Where the axes of PyTorch's kernel stand in ours; None where the order of the numbers is the same."""
    if len(variable.shape) != 4:
        return None
    return (2, 3, 0, 1) if isinstance(layer, layers.DepthwiseConv2D) else (3, 2, 0, 1)


def _timm_shape(layer: keras.layers.Layer, variable: Any) -> tuple[int, ...]:
    shape = tuple(variable.shape)
    if axes := _axes(layer, variable):
        return tuple(shape[axis] for axis in axes)
    if isinstance(layer, WindowAttention):
        return (layer.heads, layer.side**2)
    if variable.name == "gain":
        return (*shape, 1, 1, 1)
    return (1, 1, *shape) if variable.name == "kernel" else shape


def _to_timm(layer: keras.layers.Layer, variable: Any, value: np.ndarray) -> np.ndarray:
    axes = _axes(layer, variable)
    return value.transpose(axes) if axes else value.reshape(_timm_shape(layer, variable))


def _to_ours(layer: keras.layers.Layer, variable: Any, array: np.ndarray) -> np.ndarray:
    axes = _axes(layer, variable)
    return array.transpose(np.argsort(axes)) if axes else array.reshape(variable.shape)


def _resized(biases: np.ndarray, side: int) -> np.ndarray:
    """Biases `(heads, distances)` of square windows for windows of another side.

    Cubic with a = -0.5, antialiased. Reference: `torch.nn.functional.interpolate(mode="bicubic", antialias=True)`.
    """
    source = math.isqrt(biases.shape[1])
    if source**2 != biases.shape[1] or source == side:
        return biases
    scale = source / side
    centre = (np.arange(side) + 0.5) * scale - 0.5
    t = np.abs(np.arange(source)[None, :] - centre[:, None]) / max(scale, 1.0)
    weights = np.where(t < 1, (1.5 * t - 2.5) * t**2 + 1, np.where(t < 2, ((-0.5 * t + 2.5) * t - 4) * t + 2, 0))
    weights /= weights.sum(axis=1, keepdims=True)
    square = biases.astype(np.float64).reshape(-1, source, source)
    return (weights @ square @ weights.T).reshape(len(biases), -1).astype(np.float32)


def _read(path: str) -> dict[str, np.ndarray]:
    import safetensors
    import safetensors.numpy

    try:
        data = storage.read_bytes(path)
        if not path.endswith(".npz"):
            return safetensors.numpy.load(data)
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        reason = error
    except safetensors.SafetensorError as error:
        reason = error
    first = (str(reason).strip().splitlines() or ["no reason given"])[0]
    raise UserError(f"{path}: no file of weights ({first}); give a {' or '.join(SUFFIXES)}") from reason
