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


def test_positive_weight_matches_tensorflows_definition():
    z, t = RNG.normal(0, 4, (4, 6)).astype(np.float32), RNG.random((4, 6)).astype(np.float32)
    p = 1 / (1 + np.exp(-z.astype(np.float64)))
    twin = -(3 * t * np.log(p) + (1 - t) * np.log(1 - p)).mean(axis=1)
    np.testing.assert_allclose(
        numpy(losses.binary_cross_entropy(z, t, np.ones_like(t), pos_weight=3.0)), twin, rtol=1e-5
    )


def test_focal_loss_matches_keras():
    z, t = RNG.normal(0, 4, (4, 6)).astype(np.float32), RNG.integers(0, 2, (4, 6)).astype(np.float32)
    ours = numpy(losses.binary_cross_entropy(z, t, np.ones_like(t), focal_gamma=2.0))
    focal = keras.losses.BinaryFocalCrossentropy(gamma=2.0, from_logits=True, reduction=None)
    np.testing.assert_allclose(ours, numpy(focal(t, z)), rtol=1e-4)
    plain = numpy(losses.binary_cross_entropy(z, t, np.ones_like(t)))
    assert (ours <= plain).all() and (ours < plain).any()


def test_frames_match_a_loop():
    z = RNG.normal(0, 3, (2, 3, 4)).astype(np.float32)
    t = RNG.integers(0, 2, (2, 10, 4)).astype(np.float32)
    mask = RNG.integers(0, 2, (2, 10, 4)).astype(np.float32)
    p = 1 / (1 + np.exp(-z.astype(np.float64)))
    twin = []
    for i in range(2):
        cost = [
            -np.log(p[i, f * 3 // 10, c] if t[i, f, c] else 1 - p[i, f * 3 // 10, c])
            for f in range(10)
            for c in range(4)
            if mask[i, f, c]
        ]
        twin.append(np.mean(cost))
    np.testing.assert_allclose(numpy(losses.framewise_cross_entropy(z, t, mask)), twin, rtol=1e-5)
    assert numpy(losses.framewise_cross_entropy(z, t, np.zeros_like(mask))).tolist() == [0, 0]


def test_rank_loss_matches_pair_by_pair():
    z = RNG.normal(0, 3, (16, 4)).astype(np.float32)
    t, m = RNG.random((16, 4)).round(1).astype(np.float32), RNG.integers(0, 2, (16, 4)).astype(np.float32)
    t[3] = 0
    twin = np.zeros(16)
    for i in range(16):
        cost = total = 0.0
        for j in range(i // 8 * 8, i // 8 * 8 + 8):
            for c in range(4):
                weight = float(t[i, c] * m[i, c] * (1 - t[j, c]) * m[j, c])
                cost, total = cost + weight * np.logaddexp(0, float(z[j, c] - z[i, c])), total + weight
        twin[i] = cost / total if total else 0
    np.testing.assert_allclose(numpy(losses.rank_loss(z, t, m)), twin, rtol=1e-5, atol=1e-7)
    assert twin[3] == 0


def test_rank_loss_falls_as_the_auc_rises():
    t = np.array([[1], [1], [0], [0], [0], [0], [0], [0]], np.float32)
    right = numpy(losses.rank_loss(20 * t, t, np.ones_like(t)))
    wrong = numpy(losses.rank_loss(-20 * t, t, np.ones_like(t)))
    np.testing.assert_allclose(right, 0, atol=1e-6)
    np.testing.assert_allclose(wrong, 20 * t[:, 0], rtol=1e-6)


def test_present_and_absent_are_told_apart():
    z, t = RNG.normal(0, 4, (4, 5, 3)).astype(np.float32), RNG.integers(0, 2, (4, 5, 3)).astype(np.float32)
    m = RNG.integers(0, 2, (4, 5, 3)).astype(np.float32)
    sums, counts = (numpy(part) for part in losses.apart(z, t, m))
    plain = numpy(keras.losses.binary_crossentropy(t[..., None], z[..., None], from_logits=True))
    for side, kind in enumerate((1, 0)):
        chosen = (m == 1) & (t == kind)
        np.testing.assert_allclose(sums[side], plain[chosen].sum(), rtol=1e-5)
        assert counts[side] == chosen.sum()


def test_embedding_distance_is_one_less_the_cosine_whatever_the_lengths():
    own, teacher = (RNG.standard_normal((6, 7)).astype(np.float32) for _ in range(2))
    own[4], teacher[5] = teacher[4], -own[5]
    got = numpy(losses.embedding_distance(own, teacher))
    for row, a, b in zip(got, own.astype(float), teacher.astype(float), strict=True):
        np.testing.assert_allclose(row, 1 - a @ b / np.sqrt((a @ a) * (b @ b)), atol=1e-6)
    np.testing.assert_allclose(got[4:], [0, 2], atol=1e-6)
    scales = np.float32([1e-3, 1e-1, 1, 10, 1e3, 1e4])[:, None]
    np.testing.assert_allclose(numpy(losses.embedding_distance(own * scales, teacher / scales)), got, atol=1e-6)


def test_a_teacher_that_says_nothing_costs_nothing_and_a_projection_of_nothing_is_finite():
    own, teacher = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)
    teacher[0], own[1] = 0, 0
    assert numpy(losses.embedding_distance(own, teacher)).tolist() == [0, 1, 0]
