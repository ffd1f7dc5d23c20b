"""Batch normalization against Keras' own."""

import keras
import numpy as np
import pytest
from keras import ops

from birdtpu.layers.batch_norm import BatchNorm

RNG = np.random.default_rng(0)


def numpy(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


def filled(kind: type, shape: tuple, **arguments) -> keras.layers.Layer:
    """A built layer whose four weights are those of any other of as many channels; some gammas are negative."""
    layer = kind(momentum=0.9, epsilon=1e-3, **arguments)
    layer.build(shape)
    rng, channels = np.random.default_rng(1), layer.gamma.shape[0]
    layer.set_weights([rng.normal(0, 1, channels) for _ in range(3)] + [rng.uniform(0.5, 2, channels)])
    return layer


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(8, 5, 7, 6), (64, 6)])
def test_matches_keras(shape, training):
    x = RNG.normal(0.5, 2, shape).astype(np.float32)
    ours, theirs = filled(BatchNorm, shape), filled(keras.layers.BatchNormalization, shape)
    for _ in range(2):
        np.testing.assert_allclose(numpy(ours(x, training=training)), numpy(theirs(x, training=training)), atol=1e-5)
    for mine, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)


def test_a_frozen_layer_keeps_its_statistics():
    x, layer = RNG.normal(3, 1, (4, 3, 6)).astype(np.float32), filled(BatchNorm, (4, 3, 6))
    layer.trainable = False
    before = layer.get_weights()
    np.testing.assert_allclose(numpy(layer(x, training=True)), numpy(layer(x)), atol=1e-6)
    np.testing.assert_array_equal(layer.get_weights(), before)


def test_bfloat16_keeps_float32_statistics():
    # Sums of a bfloat16 would stop growing at 256 terms.
    x = ops.cast(RNG.normal(1, 1, (64, 16, 16, 4)), "bfloat16")
    layer = BatchNorm(momentum=0.0, dtype="mixed_bfloat16")
    out = layer(x, training=True)
    assert keras.backend.standardize_dtype(out.dtype) == "bfloat16"
    assert {str(keras.backend.standardize_dtype(v.dtype)) for v in layer.variables} == {"float32"}
    truth = numpy(x).astype(np.float64)
    np.testing.assert_allclose(layer.get_weights()[2], truth.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(layer.get_weights()[3], truth.var((0, 1, 2)), rtol=1e-4)
    # Three roundings to 8 bits.
    np.testing.assert_allclose(numpy(out), numpy(BatchNorm()(numpy(x), training=True)), atol=0.04)


def test_an_example_60_db_louder_is_normalized_as_keras_does():
    x = RNG.normal(0, 1, (4, 9, 9, 6)).astype(np.float32)
    x[1] *= 1000
    ours, theirs = filled(BatchNorm, x.shape), filled(keras.layers.BatchNormalization, x.shape)
    np.testing.assert_allclose(numpy(ours(x, training=True)), numpy(theirs(x, training=True)), atol=1e-4)
    # At inference none sees another.
    np.testing.assert_allclose(numpy(ours(x))[0], numpy(ours(x[:1]))[0], rtol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_phases_are_positions(training):
    x = RNG.normal(0.5, 2, (4, 6, 8, 3)).astype(np.float32)
    plain, paired = filled(BatchNorm, x.shape), filled(BatchNorm, (4, 6, 4, 6), phases=2)
    out = numpy(paired(x.reshape(4, 6, 4, 6), training=training))
    np.testing.assert_allclose(out.reshape(x.shape), numpy(plain(x, training=training)), atol=1e-5)
    for mine, other in zip(paired.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-6)


@pytest.mark.parametrize("phases", [1, 2])
def test_survives_serialization(phases):
    x = RNG.normal(0, 1, (2, 5, 6)).astype(np.float32)
    layer = filled(BatchNorm, x.shape, phases=phases)
    twin = BatchNorm.from_config(layer.get_config())
    twin.build(x.shape)
    twin.set_weights(layer.get_weights())
    np.testing.assert_array_equal(numpy(twin(x)), numpy(layer(x)))
