"""Backbones by name: builders of image -> feature map models, and the pixels each expects."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from birdtpu.errors import UserError
from birdtpu.layers.batch_norm import BatchNorm
from birdtpu.layers.dropout import SeededDropout
from birdtpu.layers.pairs import PairedConv, Stem, fits_pairs
from birdtpu.run import load_weights

MOMENTUM = 0.9


@dataclass(frozen=True)
class Backbone:
    """A builder and its input.

    Args:
        build: Shape of an image, whether batch statistics are taken over all replicas, whether it is for a TPU (see
            `layers.pairs`) -> an untrained Keras model from `(batch, height, width, channels)` to a feature map.
        channels: Channels of the image; 0: as many as it has.
        scale, offset: Pixels are `scale * x + offset` for x in [0, 1].
        pretrained: Whether `weights = "imagenet"` is known.
    """

    build: Callable[[tuple, bool, bool], keras.Model]
    channels: int = 3
    scale: float = 1.0
    offset: float | tuple[float, ...] = 0.0
    pretrained: bool = True


# Of ResNet50 and ResNet101: what our Stem does beside `conv1_conv`, and the convolutions of one map that are joined.
# On a TPU that saves reading the map and writing its gradient; in the first stage, of stride 1, it cost more than that.
_STEM = ("conv1_pad", "conv1_bn", "conv1_relu", "pool1_pad", "pool1_pool")
_SHORTCUTS = {f"conv{stage}_block1_0_conv": f"conv{stage}_block1_1_conv" for stage in (3, 4, 5)}
_BRANCHES = {branch: shortcut for shortcut, branch in _SHORTCUTS.items()}


def _application(name: str, input_shape: tuple, weights: str | None = None) -> keras.Model:
    return getattr(keras.applications, name)(include_top=False, weights=weights, input_shape=input_shape)


def _untrained(name: str) -> Callable[[tuple, bool, bool], keras.Model]:
    return lambda input_shape, *how: _with_our_layers(_application(name, input_shape), *how)


def _with_our_layers(model: keras.Model, synchronized: bool, for_tpu: bool) -> keras.Model:
    """The same layers, untrained, with our Dropout and BatchNorm, and no bias where a BatchNorm takes it away again.

    Of a ResNet with BatchNorm in its stem, some layers are those of `layers.pairs`, in their form for a TPU or the
    plain one: the weights of the one load into the other.

    Keras' own Dropout draws one mask for every mirrored replica; its BatchNormalization keeps 99 % of the past a step,
    which is made for thousands of steps an epoch. 0.9 is PyTorch's. An idle bias costs a gradient, which is a sum over
    the whole feature map.
    """
    idle, policy = _idle_biases(model), keras.config.dtype_policy()
    resnet = "conv1_bn" in {layer.name for layer in model.layers}
    paired = resnet and for_tpu and fits_pairs(*model.input.shape[1:3])
    ours = {"momentum": MOMENTUM, "synchronized": synchronized}
    shortcuts: dict[str, Any] = {}

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        if "dtype" in config:
            config["dtype"] = policy
        if isinstance(layer, layers.Dropout):
            return SeededDropout(layer.rate, layer.noise_shape, name=layer.name, dtype=policy)
        if isinstance(layer, layers.BatchNormalization):
            phases = 2 if paired and layer.name.startswith("conv2_") else 1
            return BatchNorm.from_config({**config, **ours, "phases": phases})
        if resnet and layer.name == "conv1_conv":
            norm = {"epsilon": model.get_layer("conv1_bn").epsilon, **ours}
            return Stem(layer.filters, paired, norm, name=layer.name, dtype=policy)
        if layer.name in idle:
            config["use_bias"] = False
        if resnet and layer.name in _BRANCHES:
            config["filters"] += model.get_layer(_BRANCHES[layer.name]).filters
        if resnet and isinstance(layer, layers.Conv2D) and layer.name.startswith(("conv2_", "conv3_block1_1")):
            return PairedConv.from_config({**config, "paired": paired})
        return layer.__class__.from_config(config)

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        if resnet and layer.name in _STEM:
            return args[0]
        if resnet and layer.name in _SHORTCUTS:
            # Its branch is longer, so it came first.
            return shortcuts[layer.name]
        output = layer(*args, **kwargs)
        if resnet and layer.name in _BRANCHES:
            filters = model.get_layer(layer.name).filters
            output, shortcuts[_BRANCHES[layer.name]] = ops.split(output, [filters], axis=-1)
        return output

    return keras.models.clone_model(model, clone_function=clone, call_function=call)


def _idle_biases(model: keras.Model) -> dict[str, str]:
    """Convolution -> the BatchNormalization that alone reads it, where the convolution has a bias."""
    readers: dict[str, list[keras.layers.Layer]] = {}
    for layer in model.layers:
        for source in keras.tree.flatten(layer.input):
            readers.setdefault(source._keras_history.operation.name, []).append(layer)
    return {
        layer.name: readers[layer.name][0].name
        for layer in model.layers
        if getattr(layer, "use_bias", False)
        and [type(reader) for reader in readers.get(layer.name, ())] == [layers.BatchNormalization]
    }


def _take_weights(model: keras.Model, published: keras.Model) -> None:
    """Make an untrained model the same function as the model of `keras.applications` that it was cloned from.

    A bias that the clone lacks goes into the moving mean behind it. For ImageNet's weights alone, Keras rescales
    EfficientNetB's normalized pixels once more, by a layer that the untrained model lacks: the variance takes it in,
    for a run's weights are loaded into an untrained model.
    """
    weights = {layer.name: layer.get_weights() for layer in published.layers}
    for convolution, norm in _idle_biases(published).items():
        bias = weights[convolution].pop()
        mean = [v.name for v in published.get_layer(norm).variables].index("moving_mean")
        weights[norm][mean] = weights[norm][mean] - bias
    rescaled_again = [layer for layer in published.layers if isinstance(layer, layers.Rescaling)][1:]
    if "conv1_bn" in weights:
        weights["conv1_conv"] += weights.pop("conv1_bn")
        for shortcut, branch in _SHORTCUTS.items():
            weights[branch] = [np.concatenate([*weights[branch], *weights.pop(shortcut)], -1)]
    # By order: Keras numbers the names of some layers anew in every model.
    filled = [layer for layer in model.layers if layer.weights]
    for layer, values in zip(filled, filter(None, weights.values()), strict=True):
        layer.set_weights(values)
        if isinstance(layer, layers.Normalization) and layer.input_mean is None:
            for rescaling in rescaled_again:
                layer.adapt_variance.assign(layer.adapt_variance / np.square(rescaling.scale))
            # The layer reads its variables only here.
            layer.finalize_state()


def small_cnn(input_shape: tuple, synchronized: bool = False, for_tpu: bool = False) -> keras.Model:
    """Seven convolutions, for training on two cores in minutes.

    Args:
        input_shape: `(frames, mels, channels)`.
        synchronized: See `BatchNorm`.
        for_tpu: Changes nothing here.

    Returns: a model to `(batch, frames // 8, mels // 16, 96)`.
    """
    x = inputs = keras.Input(input_shape)
    stages = ((16, 1, (2, 2)), (32, 2, (2, 2)), (64, 2, (2, 2)), (96, 2, (1, 2)))
    number = 0
    for filters, repeats, pool in stages:
        for _ in range(repeats):
            number += 1
            x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv{number}")(x)
            x = BatchNorm(momentum=MOMENTUM, synchronized=synchronized, name=f"norm{number}")(x)
            x = layers.Activation("relu", name=f"relu{number}")(x)
        x = layers.AveragePooling2D(pool, name=f"pool{number}")(x)
    return keras.Model(inputs, x, name="small_cnn")


# The means of ImageNet's channels in the order blue, green, red, as the "caffe" weights of ResNet were trained with.
_CAFFE = {"scale": 255.0, "offset": (-103.939, -116.779, -123.68)}
_SIGNED = {"scale": 2.0, "offset": -1.0}
_RAW = {"scale": 255.0}

BACKBONES: dict[str, Backbone] = {
    "small_cnn": Backbone(small_cnn, channels=0, scale=2.0, offset=-1.0, pretrained=False),
    **{name: Backbone(_untrained(name), **_CAFFE) for name in ("ResNet50", "ResNet101")},
    **{name: Backbone(_untrained(name), **_SIGNED) for name in ("InceptionV3", "ResNet50V2")},
    **{
        name: Backbone(_untrained(name), **_RAW)
        for name in (
            *(f"EfficientNetB{i}" for i in range(4)),
            *("EfficientNetV2B0", "EfficientNetV2S", "MobileNetV3Small", "MobileNetV3Large", "ConvNeXtTiny"),
        )
    },
}


def build_backbone(
    name: str, image_shape: tuple[int, ...], weights: str = "none", synchronized: bool = False, for_tpu: bool = False
) -> keras.Model:
    """A backbone for images of `(height, width)`, in Keras' dtype policy of the moment.

    Args:
        name: A key of `BACKBONES`.
        image_shape: Pixels of time and of frequency, and channels where the backbone takes any number (else 1 or 3).
        weights: `none`, `imagenet` (downloaded by Keras), or the path of a `*.weights.h5` of the same backbone without
            its top, in the layout of `keras.applications` (of EfficientNetB's: that of its models with `weights=None`).
        synchronized: See `BatchNorm`.
        for_tpu: Whether layers take their form for a TPU (see `layers.pairs`): the same function and weights.

    Raises: UserError where the name or the weights are unknown, the image is too small, or the file does not fit.
    """
    if name not in BACKBONES:
        raise UserError(f"model.backbone: no backbone {name!r}; one of {', '.join(BACKBONES)}")
    entry = BACKBONES[name]
    shape = (*image_shape[:2], entry.channels or (*image_shape, 1)[2])
    if weights == "imagenet" and not entry.pretrained:
        raise UserError(f"model.weights: {name} has no ImageNet weights; set model.weights = 'none'")
    try:
        model = entry.build(shape, synchronized, for_tpu)
    except ValueError as error:
        raise UserError(
            f"model.backbone: an image of {shape[0]} x {shape[1]} pixels is too small for {name}: set a larger "
            "frontend.image_size, such as [224, 224]"
        ) from error
    if weights == "imagenet":
        try:
            published = _application(name, shape, "imagenet")
        except Exception as error:  # Keras raises a bare Exception where a download fails
            raise UserError(f"model.weights: ImageNet weights of {name} could not be had ({error})") from error
        _take_weights(model, published)
    elif weights != "none":
        published = _application(name, shape) if entry.pretrained else model
        load_weights(published, weights, f"the backbone {name}")
        if entry.pretrained:
            _take_weights(model, published)
    return model
