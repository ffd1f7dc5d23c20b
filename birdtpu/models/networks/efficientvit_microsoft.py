"""EfficientViT-M3 of Microsoft (Liu et al. 2023, arXiv:2305.07027) as timm's `efficientvit_m3`.

Attention in windows, whose heads are a cascade: each reads its share of the channels and what the head before it made.
"""

from typing import Any

import keras
from keras import ops

from birdtpu.layers.window_attention import WindowAttention
from birdtpu.models.networks.blocks import PYTORCH, Blocks, drop_branch, rising, squeeze_excite

# Blocks, channels and heads of each stage.
STAGES = ((1, 128, 4), (2, 240, 3), (3, 320, 4))
# Channels of a head's queries and of its keys.
KEYS = 16
# Pixels of a window's side, or of the whole map's shorter side where that is less.
WINDOW = 7
PATCH = 16


def efficientvit_m3(
    input_shape: tuple, synchronized: bool = False, for_tpu: bool = False, drop_path: float = 0.0
) -> keras.Model:
    """Depthwise convolutions and two layers of each pixel around attention.

    Args:
        input_shape: `(height, width, channels)`.
        synchronized: See `BatchNorm`.
        for_tpu: Changes nothing here.
        drop_path: Rate of the last block's branches; it rises linearly from 0. timm has none in this network.

    Returns: a model to `(batch, height / 64, width / 64, 320)`, rounded up at each halving.
    Raises: ValueError where a side has fewer than 16 pixels.
    """
    side = min(input_shape[:2]) // PATCH
    if side == 0:
        raise ValueError(f"an image of {input_shape} has no window")
    blocks = Blocks(synchronized, PYTORCH)
    x = image = keras.Input(input_shape)
    for number, share in enumerate((8, 4, 2, 1), 1):
        x = x if number == 1 else ops.relu(x)
        x = _conv_norm(x, blocks, STAGES[0][1] // share, 3, 2, name=f"patch_embed.conv{number}")
    rates = iter(rising(drop_path, sum(depth for depth, _, _ in STAGES)))
    for stage, (depth, channels, heads) in enumerate(STAGES):
        name = f"stages.{stage}"
        for number in range(depth):
            rate = next(rates)
            if stage > 0 and number == 0:
                x = _downsample(x, blocks, channels, rate, f"{name}.downsample")
                side = -(-side // 2)
            x = _block(x, blocks, heads, min(WINDOW, side), rate, f"{name}.blocks.{number}")
    return keras.Model(image, x, name="efficientvit_m3")


def _block(x: Any, blocks: Blocks, heads: int, side: int, rate: float, name: str) -> Any:
    x = _pixelwise(x, blocks, rate, "zeros", f"{name}.dw0", f"{name}.ffn0")
    branch = _in_windows(x, blocks, heads, side, f"{name}.mixer.m.attn")
    x = x + drop_branch(branch, rate, f"{name}.mixer")
    return _pixelwise(x, blocks, rate, "zeros", f"{name}.dw1", f"{name}.ffn1")


def _downsample(x: Any, blocks: Blocks, channels: int, rate: float, name: str) -> Any:
    """Half the map, between two pairs of residual branches."""
    x = _pixelwise(x, blocks, rate, "ones", f"{name}.res1.0", f"{name}.res1.1")
    wide = 4 * x.shape[-1]
    x = ops.relu(_conv_norm(x, blocks, wide, name=f"{name}.patchmerge.conv1"))
    x = ops.relu(_conv_norm(x, blocks, None, 3, 2, name=f"{name}.patchmerge.conv2"))
    x = squeeze_excite(x, blocks, wide // 4, f"{name}.patchmerge.se")
    x = _conv_norm(x, blocks, channels, name=f"{name}.patchmerge.conv3")
    return _pixelwise(x, blocks, rate, "ones", f"{name}.res2.0", f"{name}.res2.1")


def _pixelwise(x: Any, blocks: Blocks, rate: float, gamma: str, near: str, each: str) -> Any:
    """Two residual branches: a depthwise convolution, and two layers of each pixel. `gamma`: the first one's start."""
    x = x + drop_branch(_conv_norm(x, blocks, None, 3, gamma=gamma, name=f"{near}.m"), rate, near)
    branch = ops.relu(_conv_norm(x, blocks, 2 * x.shape[-1], name=f"{each}.m.pw1"))
    branch = _conv_norm(branch, blocks, x.shape[-1], gamma="zeros", name=f"{each}.m.pw2")
    return x + drop_branch(branch, rate, each)


def _in_windows(x: Any, blocks: Blocks, heads: int, side: int, name: str) -> Any:
    """Attention in windows of `side` x `side`, with zeros behind a map that they do not divide."""
    _, height, width, channels = x.shape
    down, across = -(-height // side), -(-width // side)
    x = ops.pad(x, ((0, 0), (0, down * side - height), (0, across * side - width), (0, 0)))
    x = ops.transpose(ops.reshape(x, (-1, down, side, across, side, channels)), (0, 1, 3, 2, 4, 5))
    x = _cascade(ops.reshape(x, (-1, side, side, channels)), blocks, heads, name)
    x = ops.transpose(ops.reshape(x, (-1, down, across, side, side, channels)), (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (-1, down * side, across * side, channels))[:, :height, :width]


def _cascade(x: Any, blocks: Blocks, heads: int, name: str) -> Any:
    _, side, _, channels = x.shape
    values = channels // heads
    attend = WindowAttention(heads, side, name=name)
    out: list[Any] = []
    for head, part in enumerate(ops.split(x, heads, axis=-1)):
        part = part if head == 0 else out[-1] + part
        qkv = _conv_norm(part, blocks, 2 * KEYS + values, name=f"{name}.qkvs.{head}")
        q, k, v = ops.split(qkv, (KEYS, 2 * KEYS), axis=-1)
        q = _conv_norm(q, blocks, None, 5, name=f"{name}.dws.{head}")
        q, k, v = (ops.reshape(each, (-1, side**2, each.shape[-1])) for each in (q, k, v))
        out.append(ops.reshape(attend(q, k, v, head=head), (-1, side, side, values)))
    return _conv_norm(ops.relu(ops.concatenate(out, -1)), blocks, channels, gamma="zeros", name=f"{name}.proj.1")


def _conv_norm(
    x: Any, blocks: Blocks, filters: int | None, window: int = 1, stride: int = 1, *, name: str, gamma: str = "ones"
) -> Any:
    """A convolution, depthwise where `filters` is None, and its norm."""
    if filters is None:
        x = blocks.depthwise(x, window, stride, name=f"{name}.conv")
    else:
        x = blocks.conv(x, filters, window, stride, name=f"{name}.conv")
    return blocks.norm(x, f"{name}.bn", gamma)
