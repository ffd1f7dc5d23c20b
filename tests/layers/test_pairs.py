"""Paired maps against the plain layers."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from birdtpu.layers.pairs import PairedConv, Stem, fits_pairs

RNG = np.random.default_rng(0)


def numpy(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


def stems(shape: tuple) -> tuple[Stem, Stem]:
    """A plain and a paired stem of the same weights; some gammas are negative."""
    plain, paired = Stem(8), Stem(8, paired=True)
    weights = [RNG.normal(0, 1, s) for s in ((7, 7, shape[-1], 8), 8, 8, 8)] + [RNG.uniform(0.5, 2, 8)]
    for stem in (plain, paired):
        stem.build(shape)
        stem.set_weights(weights)
    return plain, paired


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (3, 1), (5, 1), (1, 2)])
def test_a_paired_convolution_matches_the_plain_one(window, stride):
    x = RNG.normal(0, 1, (2, 7, 10, 3)).astype(np.float32)
    arguments = (4, window, stride, "same" if window > 1 else "valid")
    plain, paired = PairedConv(*arguments), PairedConv(*arguments, paired=True)
    truth = numpy(plain(x))
    pairs = x.reshape(2, 7, 5, 6)
    paired.build(pairs.shape)
    paired.set_weights(plain.get_weights())
    out = numpy(paired(pairs))
    assert out.shape == paired.compute_output_shape(pairs.shape)
    np.testing.assert_allclose(out.reshape(truth.shape), truth, atol=1e-5)


def test_the_plain_stem_is_that_of_keras():
    x = RNG.normal(0, 1, (2, 43, 30, 3)).astype(np.float32)
    plain, _ = stems(x.shape)
    kernel, *norm = plain.get_weights()
    convolution, batch_norm = layers.Conv2D(8, 7, 2, use_bias=False), layers.BatchNormalization()
    theirs = keras.Sequential(
        [
            layers.ZeroPadding2D(3),
            convolution,
            batch_norm,
            layers.ReLU(),
            layers.ZeroPadding2D(1),
            layers.MaxPooling2D(3, 2),
        ]
    )
    theirs.build(x.shape)
    convolution.set_weights([kernel])
    batch_norm.set_weights(norm)
    assert plain.compute_output_spec(keras.KerasTensor(x.shape)).shape == (2, 11, 8, 8)
    for training in (False, True):
        np.testing.assert_allclose(numpy(plain(x, training=training)), numpy(theirs(x, training=training)), atol=1e-4)


@pytest.mark.parametrize("size", [(16, 8), (64, 32), (43, 39), (12, 40)])
@pytest.mark.parametrize("training", [False, True])
def test_the_paired_stem_matches_the_plain_one(size, training):
    assert fits_pairs(*size)
    x = RNG.normal(0.3, 1, (2, *size, 3)).astype(np.float32)
    plain, paired = stems(x.shape)
    out, truth = numpy(paired(x, training=training)), numpy(plain(x, training=training))
    assert out.shape == (*truth.shape[:2], truth.shape[2] // 2, 16)
    np.testing.assert_allclose(out.reshape(truth.shape), truth, atol=1e-5 * truth.max())
    for mine, other in zip(paired.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(18, 16), (16, 12), (107, 75), (14, 14)])
def test_sizes_that_do_not_pair_are_known(size):
    assert not fits_pairs(*size)


def test_the_paired_stem_learns_as_the_plain_one_does():
    x = RNG.normal(0.3, 1, (4, 16, 16, 3)).astype(np.float32)
    target = RNG.normal(0, 1, (4, 4, 4, 8)).astype(np.float32)
    learned = []
    for stem in stems(x.shape):
        image = keras.Input(x.shape[1:])
        model = keras.Model(image, layers.Reshape((4, 4, 8))(stem(image)))
        model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
        before = stem.get_weights()
        model.train_on_batch(x, target)
        learned.append([after - b for after, b in zip(stem.get_weights(), before, strict=True)])
    for mine, other in zip(*learned, strict=True):
        assert np.abs(other).max() > 0
        np.testing.assert_allclose(mine, other, atol=1e-4 * np.abs(other).max())


def test_examples_are_independent_at_inference():
    x = RNG.normal(0, 1, (2, 16, 16, 3)).astype(np.float32)
    x[1] *= 1000
    for stem in stems(x.shape):
        np.testing.assert_allclose(numpy(stem(x))[0], numpy(stem(x[:1]))[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("paired", [False, True])
def test_survives_serialization(paired):
    x = RNG.normal(0, 1, (2, 16, 16, 3)).astype(np.float32)
    for layer, shape in ((Stem(4, paired, {"epsilon": 0.1}), x.shape), (PairedConv(4, 1, paired=paired), (2, 4, 4, 6))):
        values = RNG.normal(0, 1, shape).astype(np.float32)
        before = numpy(layer(values))
        twin = layer.__class__.from_config(layer.get_config())
        twin.build(shape)
        twin.set_weights(layer.get_weights())
        np.testing.assert_array_equal(numpy(twin(values)), before)
