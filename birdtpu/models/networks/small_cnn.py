"""A network for tests and small machines."""

import keras
from keras import layers

from birdtpu.layers.batch_norm import MOMENTUM, BatchNorm


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
