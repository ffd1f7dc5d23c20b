"""The loss against Keras' own."""

import keras
import numpy as np
from keras import ops

from birdtpu import losses

RNG = np.random.default_rng(0)


def numpy(x):
    return ops.convert_to_numpy(x)


def test_matches_keras_where_all_is_known():
    z, t = RNG.normal(0, 4, (4, 6)).astype(np.float32), RNG.integers(0, 2, (4, 6)).astype(np.float32)
    ours = numpy(losses.binary_cross_entropy(z, t, np.ones_like(t), 0.1))
    keras_loss = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.1, reduction=None)
    np.testing.assert_allclose(ours, numpy(keras_loss(t, z)), rtol=1e-5)


def test_unknown_classes_cost_nothing():
    z, t = RNG.normal(0, 4, (2, 5)).astype(np.float32), RNG.integers(0, 2, (2, 5)).astype(np.float32)
    mask = np.ones((2, 5), np.float32)
    mask[:, 2:] = 0
    known = numpy(losses.binary_cross_entropy(z[:, :2], t[:, :2], mask[:, :2]))
    np.testing.assert_allclose(numpy(losses.binary_cross_entropy(z, t, mask)), known, rtol=1e-6)
    assert numpy(losses.binary_cross_entropy(z, t, np.zeros_like(mask))).tolist() == [0, 0]


def test_a_sure_mistake_costs_its_logit():
    # 40 is a probability that rounds to 1: from probabilities, its slope would be lost.
    out = numpy(losses.binary_cross_entropy(np.array([[-40.0, 40.0]]), np.array([[1.0, 0.0]]), np.ones((1, 2))))
    np.testing.assert_allclose(out, 40, rtol=1e-6)
