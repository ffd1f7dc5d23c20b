"""Backbones by name: builders of image -> feature map models, and the pixels each expects."""

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
from keras import layers

from birdtpu.errors import UserError
from birdtpu.layers.dropout import SeededDropout
from birdtpu.run import load_weights

MOMENTUM = 0.9


@dataclass(frozen=True)
class Backbone:
    """A builder and its input.

    Args:
        build: Shape of an image -> an untrained Keras model from `(batch, height, width, channels)` to a feature map.
        channels: Channels of the image.
        scale, offset: Pixels are `scale * x + offset` for x in [0, 1].
        pretrained: Whether `weights = "imagenet"` is known.
    """

    build: Callable[[tuple], keras.Model]
    channels: int = 3
    scale: float = 1.0
    offset: float | tuple[float, ...] = 0.0
    pretrained: bool = True


def _application(name: str, input_shape: tuple, weights: str | None = None) -> keras.Model:
    return getattr(keras.applications, name)(include_top=False, weights=weights, input_shape=input_shape)


def _untrained(name: str) -> Callable[[tuple], keras.Model]:
    return lambda input_shape: _with_our_layers(_application(name, input_shape))


def _with_our_layers(model: keras.Model) -> keras.Model:
    """The same layers, untrained, with our Dropout and batch statistics that follow within some ten steps.

    Keras' own Dropout draws one mask for every mirrored replica; its BatchNormalization keeps 99 % of the past a step,
    which is made for thousands of steps an epoch. 0.9 is PyTorch's.
    """

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, layers.Dropout):
            return SeededDropout(layer.rate, layer.noise_shape, name=layer.name)
        config = layer.get_config()
        if isinstance(layer, layers.BatchNormalization):
            config["momentum"] = MOMENTUM
        return layer.__class__.from_config(config)

    return keras.models.clone_model(model, clone_function=clone)


def _take_weights(model: keras.Model, published: keras.Model) -> None:
    """Make an untrained model the same function as its original with weights.

    For ImageNet's weights alone, Keras rescales EfficientNetB's normalized pixels once more, by a layer that the
    untrained model lacks: the variance takes it in, for a run's weights are loaded into an untrained model.
    """
    model.set_weights(published.get_weights())
    rescaled_again = [layer for layer in published.layers if isinstance(layer, layers.Rescaling)][1:]
    for layer in model.layers:
        if isinstance(layer, layers.Normalization) and layer.input_mean is None:
            for rescaling in rescaled_again:
                layer.adapt_variance.assign(layer.adapt_variance / np.square(rescaling.scale))
            # The layer reads its variables only here.
            layer.finalize_state()


def small_cnn(input_shape: tuple) -> keras.Model:
    """Seven convolutions, for training on two cores in minutes.

    Args:
        input_shape: `(frames, mels, 1)`.

    Returns: a model to `(batch, frames // 8, mels // 16, 96)`.
    """
    x = inputs = keras.Input(input_shape)
    stages = ((16, 1, (2, 2)), (32, 2, (2, 2)), (64, 2, (2, 2)), (96, 2, (1, 2)))
    number = 0
    for filters, repeats, pool in stages:
        for _ in range(repeats):
            number += 1
            x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv{number}")(x)
            x = layers.BatchNormalization(momentum=MOMENTUM, name=f"norm{number}")(x)
            x = layers.Activation("relu", name=f"relu{number}")(x)
        x = layers.AveragePooling2D(pool, name=f"pool{number}")(x)
    return keras.Model(inputs, x, name="small_cnn")


# The means of ImageNet's channels in the order blue, green, red, as the "caffe" weights of ResNet were trained with.
_CAFFE = {"scale": 255.0, "offset": (-103.939, -116.779, -123.68)}
_SIGNED = {"scale": 2.0, "offset": -1.0}
_RAW = {"scale": 255.0}

BACKBONES: dict[str, Backbone] = {
    "small_cnn": Backbone(small_cnn, channels=1, scale=2.0, offset=-1.0, pretrained=False),
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


def build_backbone(name: str, image_shape: tuple[int, int], weights: str = "none") -> keras.Model:
    """A backbone for images of `(height, width)`.

    Args:
        name: A key of `BACKBONES`.
        image_shape: Pixels of time and of frequency.
        weights: `none`, `imagenet` (downloaded by Keras), or the path of a `*.weights.h5` of the same backbone without
            its top, in the layout of `keras.applications` (of EfficientNetB's: that of its models with `weights=None`).

    Raises: UserError where the name or the weights are unknown, the image is too small, or the file does not fit.
    """
    if name not in BACKBONES:
        raise UserError(f"model.backbone: no backbone {name!r}; one of {', '.join(BACKBONES)}")
    entry = BACKBONES[name]
    shape = (*image_shape, entry.channels)
    if weights == "imagenet" and not entry.pretrained:
        raise UserError(f"model.weights: {name} has no ImageNet weights; set model.weights = 'none'")
    try:
        model = entry.build(shape)
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
        load_weights(model, weights, f"the backbone {name}")
    return model
