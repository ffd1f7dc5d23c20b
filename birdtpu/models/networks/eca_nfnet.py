"""ECA-NFNet-L0 as timm's `eca_nfnet_l0`: a residual network without normalization of its maps.

Source: Brock et al. 2021, arXiv:2102.06171; the channel attention is that of arXiv:1910.03151.
"""

from typing import Any

import keras
from keras import layers, ops

from birdtpu.layers.channel_attention import ChannelAttention
from birdtpu.layers.grouped_conv import StandardizedConv2D
from birdtpu.models.networks.blocks import drop_branch, rising

# Blocks and channels of each stage; the middle of a block has a quarter of the channels, in groups of 64.
STAGES = ((1, 256), (2, 512), (6, 1536), (3, 1536))
FEATURES = 2304
# A block adds ALPHA times its branch, so the variance of its map grows by ALPHA ** 2.
ALPHA = 0.2
ATTENTION_GAIN = 2.0
# Restores the variance of a normal variable after a SiLU.
SILU_GAMMA = 1.7881293296813965


def eca_nfnet_l0(
    input_shape: tuple, synchronized: bool = False, for_tpu: bool = False, drop_path: float = 0.0
) -> keras.Model:
    """Twelve blocks of four convolutions; each branch starts at zero.

    Args:
        input_shape: `(height, width, channels)`.
        synchronized: Changes nothing: there is no BatchNorm.
        for_tpu: Changes nothing here.
        drop_path: Rate of the last block; it rises linearly from 0.

    Returns: a model to `(batch, height / 32, width / 32, 2304)`, rounded up at each halving.
    """
    x = image = keras.Input(input_shape)
    for number, (channels, stride) in enumerate(((16, 2), (32, 1), (64, 1), (128, 2)), 1):
        x = _conv(x if number == 1 else ops.silu(x), channels, 3, stride, name=f"stem.conv{number}")
    rates = iter(rising(drop_path, sum(depth for depth, _ in STAGES)))
    variance = 1.0
    for stage, (depth, channels) in enumerate(STAGES):
        for number in range(depth):
            stride = 2 if stage > 0 and number == 0 else 1
            x = _block(x, channels, stride, variance**-0.5, next(rates), f"stages.{stage}.{number}")
            # A stage's first block has a shortcut that is scaled anew.
            variance = (1.0 if number == 0 else variance) + ALPHA**2
    x = ops.silu(_conv(x, FEATURES, name="final_conv"))
    return keras.Model(image, x, name="eca_nfnet_l0")


def _block(x: Any, channels: int, stride: int, beta: float, rate: float, name: str) -> Any:
    middle = channels // 4
    shortcut, x = x, ops.silu(x) * beta
    if shortcut.shape[-1] != channels or stride == 2:
        # At a side of odd length, the last mean is of what there is.
        shortcut = layers.AveragePooling2D(2, 2, "same", name=f"{name}.downsample.pool")(x) if stride == 2 else x
        shortcut = _conv(shortcut, channels, name=f"{name}.downsample.conv")
    x = _conv(x, middle, name=f"{name}.conv1")
    x = _conv(ops.silu(x), middle, 3, stride, name=f"{name}.conv2", groups=middle // 64)
    x = _conv(ops.silu(x), middle, 3, name=f"{name}.conv2b", groups=middle // 64)
    x = _conv(ops.silu(x), channels, name=f"{name}.conv3", gain_initializer="zeros")
    x = ATTENTION_GAIN * ChannelAttention(name=f"{name}.attn_last.conv")(x)
    return drop_branch(x, rate, name) * ALPHA + shortcut


def _conv(x: Any, filters: int, window: int = 1, stride: int = 1, *, name: str, **options: Any) -> Any:
    padding = "same"
    if stride == 2:
        # PyTorch's zeros stand on all sides.
        x, padding = layers.ZeroPadding2D(window // 2, name=f"{name}.pad")(x), "valid"
    options |= {"gamma": SILU_GAMMA, "epsilon": 1e-5, "name": name}
    return StandardizedConv2D(filters, window, stride, padding, **options)(x)
