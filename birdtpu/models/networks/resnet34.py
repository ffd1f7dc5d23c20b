"""ResNet34 (He et al. 2015, arXiv:1512.03385) as timm's `resnet34`."""

from typing import Any

import keras
from keras import layers, ops

from birdtpu.models.networks.blocks import Blocks, drop_branch, rising

# Blocks and channels of each stage.
STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))


def resnet34(
    input_shape: tuple,
    synchronized: bool = False,
    for_tpu: bool = False,
    stem_pool: bool = True,
    drop_path: float = 0.0,
) -> keras.Model:
    """Sixteen blocks of two convolutions.

    Args:
        input_shape: `(height, width, channels)`.
        synchronized: See `BatchNorm`.
        for_tpu: Changes nothing here.
        stem_pool: Whether the stem ends in a maximum of 3 x 3 at stride 2; without it the map is twice as fine.
        drop_path: Rate of the last block; it rises linearly from 0.

    Returns: a model to `(batch, height / 32, width / 32, 512)`, or `/ 16`, rounded up at each halving.
    """
    blocks = Blocks(synchronized)
    image = keras.Input(input_shape)
    x = ops.relu(blocks.norm(blocks.conv(image, 64, 7, 2, name="conv1"), "bn1"))
    if stem_pool:
        # After a ReLU zeros are as good as minus infinity around the map.
        x = layers.MaxPooling2D(3, 2, name="maxpool")(layers.ZeroPadding2D(1, name="maxpool.pad")(x))
    rates = iter(rising(drop_path, sum(depth for depth, _ in STAGES)))
    for stage, (depth, channels) in enumerate(STAGES, 1):
        for number in range(depth):
            stride = 2 if stage > 1 and number == 0 else 1
            x = _block(x, blocks, channels, stride, next(rates), f"layer{stage}.{number}")
    return keras.Model(image, x, name="resnet34")


def _block(x: Any, blocks: Blocks, channels: int, stride: int, rate: float, name: str) -> Any:
    shortcut = x
    x = ops.relu(blocks.norm(blocks.conv(x, channels, 3, stride, name=f"{name}.conv1"), f"{name}.bn1"))
    x = blocks.norm(blocks.conv(x, channels, 3, name=f"{name}.conv2"), f"{name}.bn2", gamma="zeros")
    if stride == 2:
        shortcut = blocks.conv(shortcut, channels, 1, 2, name=f"{name}.downsample.0")
        shortcut = blocks.norm(shortcut, f"{name}.downsample.1")
    return ops.relu(drop_branch(x, rate, name) + shortcut)
