"""EfficientViT-B0 of MIT (Cai et al. 2022, arXiv:2205.14756) as timm's `efficientvit_b0`.

Stages of inverted residuals, then of linear attention: its cost grows with the pixels, not with their square.
"""

from typing import Any

import keras
from keras import ops

from birdtpu.layers.grouped_conv import GroupedConv2D
from birdtpu.models.networks.blocks import PYTORCH, Blocks, drop_branch, rising

# Of each stage: blocks after the one that halves the map, channels, whether the blocks attend.
STAGES = ((1, 16, False), (1, 32, False), (2, 64, True), (2, 128, True))
STEM = 8
EXPANSION = 4
# Channels of a head's queries, keys and values each.
HEAD = 16


def efficientvit_b0(
    input_shape: tuple, synchronized: bool = False, for_tpu: bool = False, drop_path: float = 0.0
) -> keras.Model:
    """Convolutions at a high resolution, attention at a low one.

    Args:
        input_shape: `(height, width, channels)`.
        synchronized: See `BatchNorm`.
        for_tpu: Changes nothing here.
        drop_path: Rate of the last block's branches; it rises linearly from 0. timm has none in this network.

    Returns: a model to `(batch, height / 32, width / 32, 128)`, rounded up at each halving.
    """
    blocks = Blocks(synchronized, PYTORCH)
    image = keras.Input(input_shape)
    x = ops.hard_silu(_conv_norm(image, blocks, STEM, 3, 2, name="stem.in_conv"))
    rates = iter(rising(drop_path, 1 + sum(1 + depth for depth, _, _ in STAGES)))
    branch = ops.hard_silu(_conv_norm(x, blocks, None, 3, name="stem.res0.main.depth_conv"))
    branch = _conv_norm(branch, blocks, STEM, name="stem.res0.main.point_conv")
    x = drop_branch(branch, next(rates), "stem.res0") + x
    for stage, (depth, channels, attends) in enumerate(STAGES):
        # This block has no branch to drop.
        next(rates)
        x = _inverted(x, blocks, channels, 2, norms=not attends, name=f"stages.{stage}.blocks.0.main")
        for number in range(1, depth + 1):
            rate, name = next(rates), f"stages.{stage}.blocks.{number}"
            if attends:
                x = _block(x, blocks, rate, name)
            else:
                x = drop_branch(_inverted(x, blocks, channels, 1, norms=True, name=f"{name}.main"), rate, name) + x
    return keras.Model(image, x, name="efficientvit_b0")


def linear_attention(qkv: Any, epsilon: float = 1e-5) -> Any:
    """Attention by the product of rectified queries and keys, all of it float32.

    Args:
        qkv: `(batch, pixels, heads, 3 * channels)`: a head's queries, keys and values.
        epsilon: Added to the sum of a query's shares.

    Returns: `(batch, pixels, heads, channels)` float32.
    """
    queries, keys, values = ops.split(ops.cast(qkv, "float32"), 3, axis=-1)
    queries, keys = ops.relu(queries), ops.relu(keys)
    both = ops.einsum("bnhk,bnhv->bhkv", keys, values)
    total = ops.einsum("bnhk,bhk->bnh", queries, ops.sum(keys, axis=1))
    return ops.einsum("bnhk,bhkv->bnhv", queries, both) / (total[..., None] + epsilon)


def _block(x: Any, blocks: Blocks, rate: float, name: str) -> Any:
    branch = _attention(x, blocks, f"{name}.context_module.main")
    x = drop_branch(branch, rate, f"{name}.context_module") + x
    branch = _inverted(x, blocks, x.shape[-1], 1, norms=False, name=f"{name}.local_module.main")
    return drop_branch(branch, rate, f"{name}.local_module") + x


def _attention(x: Any, blocks: Blocks, name: str) -> Any:
    """Heads on the map as it is, and as many on the map after windows of 5 x 5."""
    _, height, width, channels = x.shape
    qkv = blocks.conv(x, 3 * channels, name=f"{name}.qkv.conv")
    near = blocks.depthwise(qkv, 5, name=f"{name}.aggreg.0.0")
    start = keras.initializers.VarianceScaling(*PYTORCH)
    options = {"use_bias": False, "kernel_initializer": start, "name": f"{name}.aggreg.0.1"}
    near = GroupedConv2D(3 * channels, 1, groups=3 * channels // HEAD, **options)(near)
    heads = ops.reshape(ops.concatenate([qkv, near], -1), (-1, height * width, 2 * channels // HEAD, 3 * HEAD))
    out = ops.reshape(ops.cast(linear_attention(heads), x.dtype), (-1, height, width, 2 * channels))
    return _conv_norm(out, blocks, channels, name=f"{name}.proj")


def _inverted(x: Any, blocks: Blocks, channels: int, stride: int, norms: bool, name: str) -> Any:
    """Wide, depthwise, narrow; without norms the first two have biases instead."""
    x = ops.hard_silu(_conv_norm(x, blocks, EXPANSION * x.shape[-1], norm=norms, name=f"{name}.inverted_conv"))
    x = ops.hard_silu(_conv_norm(x, blocks, None, 3, stride, norm=norms, name=f"{name}.depth_conv"))
    return _conv_norm(x, blocks, channels, name=f"{name}.point_conv")


def _conv_norm(
    x: Any, blocks: Blocks, filters: int | None, window: int = 1, stride: int = 1, *, name: str, norm: bool = True
) -> Any:
    """A convolution, depthwise where `filters` is None, and its norm, or a bias in its place."""
    options = {"name": f"{name}.conv", "bias": not norm}
    if filters is None:
        x = blocks.depthwise(x, window, stride, **options)
    else:
        x = blocks.conv(x, filters, window, stride, **options)
    return blocks.norm(x, f"{name}.norm") if norm else x
