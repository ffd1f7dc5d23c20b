"""MnasNet-B1 of width 1 (Tan et al. 2018, arXiv:1807.11626) as timm's `mnasnet_100`."""

from typing import Any

import keras
from keras import ops

from birdtpu.models.networks.blocks import Blocks, drop_branch

# Of each stage: blocks, window, stride of the first block, expansion, channels. Before them stands one block without
# expansion, to 16 channels; the last stage has no shortcut.
STAGES = ((3, 3, 2, 3, 24), (3, 5, 2, 3, 40), (3, 5, 2, 6, 80), (2, 3, 1, 6, 96), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))


def mnasnet100(
    input_shape: tuple, synchronized: bool = False, for_tpu: bool = False, drop_path: float = 0.0
) -> keras.Model:
    """Inverted residuals: a wide map between two narrow ones, read by a depthwise convolution.

    Args:
        input_shape: `(height, width, channels)`.
        synchronized: See `BatchNorm`.
        for_tpu: Changes nothing here.
        drop_path: Rate that the blocks' rates rise to linearly, and would reach with one block more.

    Returns: a model to `(batch, height / 32, width / 32, 1280)`, rounded up at each halving.
    """
    blocks = Blocks(synchronized)
    image = keras.Input(input_shape)
    x = ops.relu(blocks.norm(blocks.conv(image, 32, 3, 2, name="conv_stem"), "bn1"))
    x = ops.relu(blocks.norm(blocks.depthwise(x, 3, name="blocks.0.0.conv_dw"), "blocks.0.0.bn1"))
    x = blocks.norm(blocks.conv(x, 16, name="blocks.0.0.conv_pw"), "blocks.0.0.bn2")
    count, number = 1 + sum(stage[0] for stage in STAGES), 0
    for stage, (depth, window, stride, expansion, channels) in enumerate(STAGES, 1):
        for block in range(depth):
            number += 1
            shape = (window, stride if block == 0 else 1, expansion, channels)
            x = _inverted(x, blocks, shape, drop_path * number / count, f"blocks.{stage}.{block}")
    x = ops.relu(blocks.norm(blocks.conv(x, 1280, name="conv_head"), "bn2"))
    return keras.Model(image, x, name="mnasnet100")


def _inverted(x: Any, blocks: Blocks, shape: tuple[int, int, int, int], rate: float, name: str) -> Any:
    window, stride, expansion, channels = shape
    shortcut, narrow = x, x.shape[-1]
    x = ops.relu(blocks.norm(blocks.conv(x, narrow * expansion, name=f"{name}.conv_pw"), f"{name}.bn1"))
    x = ops.relu(blocks.norm(blocks.depthwise(x, window, stride, name=f"{name}.conv_dw"), f"{name}.bn2"))
    x = blocks.norm(blocks.conv(x, channels, name=f"{name}.conv_pwl"), f"{name}.bn3")
    return drop_branch(x, rate, name) + shortcut if narrow == channels else x
