"""Backbones by name: builders of image -> feature map models, and the pixels each expects."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from birdtpu import storage
from birdtpu.errors import UserError
from birdtpu.layers.batch_norm import MOMENTUM, BatchNorm
from birdtpu.layers.dropout import SeededDropout
from birdtpu.layers.pairs import PairedConv, Stem, fits_pairs
from birdtpu.models.networks import timm_weights
from birdtpu.models.networks.eca_nfnet import eca_nfnet_l0
from birdtpu.models.networks.efficientvit_microsoft import efficientvit_m3
from birdtpu.models.networks.efficientvit_mit import efficientvit_b0
from birdtpu.models.networks.mnasnet import mnasnet100
from birdtpu.models.networks.resnet34 import resnet34
from birdtpu.models.networks.small_cnn import small_cnn
from birdtpu.run import load_weights


@dataclass(frozen=True)
class Backbone:
    """A builder and its input.

    Args:
        build: Shape of an image, whether batch statistics are taken over all replicas, whether it is for a TPU (see
            `layers.pairs`), and those of `options` that a recipe sets -> an untrained Keras model from
            `(batch, height, width, channels)` to a feature map.
        channels: Channels of the image; 0: as many as it has.
        scale, offset: Pixels are `scale * x + offset` for x in [0, 1].
        pretrained: Whether `weights = "imagenet"` is known.
        options: Which of `stem_pool` and `drop_path` the builder takes.
        timm: Where timm's weights of this network are, on Hugging Face; empty for a network that is not timm's.
        classifier: How the names of their classifier begin.
    """

    build: Callable[..., keras.Model]
    channels: int = 3
    scale: float | tuple[float, ...] = 1.0
    offset: float | tuple[float, ...] = 0.0
    pretrained: bool = True
    options: tuple[str, ...] = ()
    timm: str = ""
    classifier: str = ""


# Of ResNet50 and ResNet101: what our Stem does beside `conv1_conv`, and the convolutions of one map that are joined.
# On a TPU that saves reading the map and writing its gradient; in the first stage, of stride 1, it cost more than that.
_STEM = ("conv1_pad", "conv1_bn", "conv1_relu", "pool1_pad", "pool1_pool")
_SHORTCUTS = {f"conv{stage}_block1_0_conv": f"conv{stage}_block1_1_conv" for stage in (3, 4, 5)}
_BRANCHES = {branch: shortcut for shortcut, branch in _SHORTCUTS.items()}
# Of its EfficientNets, whose only Dropout without the top this is.
_KERAS_DROP_PATH = 0.2


def _application(name: str, input_shape: tuple, weights: str | None = None) -> keras.Model:
    return getattr(keras.applications, name)(include_top=False, weights=weights, input_shape=input_shape)


def _untrained(name: str) -> Callable[..., keras.Model]:
    return lambda input_shape, *how, **options: _with_our_layers(_application(name, input_shape), *how, **options)


def _with_our_layers(
    model: keras.Model, synchronized: bool, for_tpu: bool, drop_path: float | None = None
) -> keras.Model:
    """The same layers, untrained, with our Dropout and BatchNorm, and no bias where a BatchNorm takes it away again.

    `drop_path` is the rate that an EfficientNet's blocks rise to, if not Keras'.

    Of a ResNet with BatchNorm in its stem, some layers are those of `layers.pairs`, in their form for a TPU or the
    plain one: the weights of the one load into the other.

    Keras' own Dropout draws one mask for every mirrored replica. An idle bias costs a gradient, which is a sum over the
    whole feature map.
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
            rate = layer.rate if drop_path is None else layer.rate * drop_path / _KERAS_DROP_PATH
            return SeededDropout(rate, layer.noise_shape, name=layer.name, dtype=policy)
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


# The means of ImageNet's channels in the order blue, green, red, as the "caffe" weights of ResNet were trained with.
_CAFFE = {"scale": 255.0, "offset": (-103.939, -116.779, -123.68)}
_SIGNED = {"scale": 2.0, "offset": -1.0}
_RAW = {"scale": 255.0}
# By ImageNet's means and deviations, red, green, blue.
_MEANS, _DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_NORMALIZED = {
    "scale": tuple(1 / d for d in _DEVIATIONS),
    "offset": tuple(-m / d for m, d in zip(_MEANS, _DEVIATIONS, strict=True)),
}
_RESIDUAL = ("drop_path",)

BACKBONES: dict[str, Backbone] = {
    "small_cnn": Backbone(small_cnn, channels=0, scale=2.0, offset=-1.0, pretrained=False),
    **{name: Backbone(_untrained(name), **_CAFFE) for name in ("ResNet50", "ResNet101")},
    **{name: Backbone(_untrained(name), **_SIGNED) for name in ("InceptionV3", "ResNet50V2")},
    **{
        name: Backbone(_untrained(name), **_RAW, options=_RESIDUAL)
        for name in (*(f"EfficientNetB{i}" for i in range(4)), "EfficientNetV2B0", "EfficientNetV2S")
    },
    **{name: Backbone(_untrained(name), **_RAW) for name in ("MobileNetV3Small", "MobileNetV3Large", "ConvNeXtTiny")},
    **{
        name: Backbone(
            build, **_NORMALIZED, pretrained=False, options=options, timm=f"timm/{timm}", classifier=classifier
        )
        for name, build, options, timm, classifier in (
            ("ResNet34", resnet34, ("stem_pool", *_RESIDUAL), "resnet34.a1_in1k", "fc."),
            ("MNASNet100", mnasnet100, _RESIDUAL, "mnasnet_100.rmsp_in1k", "classifier."),
            ("EfficientViTB0", efficientvit_b0, _RESIDUAL, "efficientvit_b0.r224_in1k", "head."),
            ("EfficientViTM3", efficientvit_m3, _RESIDUAL, "efficientvit_m3.r224_in1k", "head."),
            ("ECANFNetL0", eca_nfnet_l0, _RESIDUAL, "eca_nfnet_l0.ra2_in1k", "head."),
        )
    },
}


def build_backbone(
    name: str,
    image_shape: tuple[int, ...],
    weights: str = "none",
    synchronized: bool = False,
    for_tpu: bool = False,
    stem_pool: bool = True,
    drop_path: float | None = None,
) -> keras.Model:
    """A backbone for images of `(height, width)`, in Keras' dtype policy of the moment.

    Args:
        name: A key of `BACKBONES`.
        image_shape: Pixels of time and of frequency, and channels where the backbone takes any number (else 1 or 3).
        weights: `none`, `imagenet` (downloaded by Keras), or a path: a `*.weights.h5` of the same backbone without its
            top, in the layout of `keras.applications` (of EfficientNetB's: that of its models with `weights=None`), or
            ours where it has none; for timm's networks also a `.safetensors` or `.npz` under timm's names.
        synchronized: See `BatchNorm`.
        for_tpu: Whether layers take their form for a TPU (see `layers.pairs`): the same function and weights.
        stem_pool: False leaves out the pooling of a stem that may go without.
        drop_path: Rate of stochastic depth; None for the backbone's own: 0.2 in the EfficientNets of Keras, else 0.

    Raises: UserError where the name, the weights or an option are unknown, the image is too small, or the file does
        not fit.
    """
    if name not in BACKBONES:
        raise UserError(f"model.backbone: no backbone {name!r}; one of {', '.join(BACKBONES)}")
    entry = BACKBONES[name]
    shape = (*image_shape[:2], entry.channels or (*image_shape, 1)[2])
    options = _options(name, stem_pool, drop_path)
    if weights == "imagenet" and entry.timm:
        raise UserError(
            f"model.weights: ImageNet's weights of {name} do not come by themselves; save model.safetensors of "
            f"https://huggingface.co/{entry.timm} and set model.weights to its path"
        )
    if weights == "imagenet" and not entry.pretrained:
        raise UserError(f"model.weights: {name} has no ImageNet weights; set model.weights = 'none'")
    if weights not in ("none", "imagenet") and not storage.exists(weights):
        raise UserError(f"model.weights: {weights}: no such file; give none, imagenet or the path of a weights file")
    of_timm = weights.endswith(timm_weights.SUFFIXES)
    if of_timm and not entry.timm:
        known = ", ".join(key for key, each in BACKBONES.items() if each.timm)
        raise UserError(f"model.weights: {weights}: {name} takes a *.weights.h5; timm's files are for {known}")
    try:
        model = entry.build(shape, synchronized, for_tpu, **options)
    except ValueError as error:
        raise UserError(
            f"model.backbone: an image of {shape[0]} x {shape[1]} pixels is too small for {name}: set a larger "
            "frontend.image_size, such as [224, 224]"
        ) from error
    if of_timm:
        timm_weights.load(model, weights, entry.classifier, f"the backbone {name}")
    elif weights != "none":
        _fill(model, name, shape, weights)
    return model


def _fill(model: keras.Model, name: str, shape: tuple, weights: str) -> None:
    """Take what Keras publishes, or a `*.weights.h5`."""
    published = model
    if weights == "imagenet":
        try:
            published = _application(name, shape, "imagenet")
        except Exception as error:  # Keras raises a bare Exception where a download fails
            raise UserError(f"model.weights: ImageNet weights of {name} could not be had ({error})") from error
    else:
        if BACKBONES[name].pretrained:
            published = _application(name, shape)
        load_weights(published, weights, f"the backbone {name}")
    if published is not model:
        _take_weights(model, published)


def _options(name: str, stem_pool: bool, drop_path: float | None) -> dict[str, Any]:
    """What a recipe says otherwise than the builder. Raises UserError where this builder cannot do it."""
    asked = ({} if stem_pool else {"stem_pool": False}) | ({} if drop_path is None else {"drop_path": drop_path})
    able = {"stem_pool": "go without the pooling of their stem", "drop_path": "drop residual branches"}
    for key in asked:
        if key not in BACKBONES[name].options:
            known = ", ".join(other for other, entry in BACKBONES.items() if key in entry.options)
            raise UserError(f"model.{key}: not for {name}; those that can {able[key]}: {known}")
    return asked
