"""Attention pooling against a NumPy twin."""

import numpy as np
import pytest
from keras import ops

from birdtpu.ops import pooling


def numpy(x):
    return ops.convert_to_numpy(x)


def test_attend_matches_a_numpy_twin():
    rng = np.random.default_rng(0)
    attention, logits = rng.standard_normal((2, 2, 7, 3))
    weights = np.exp(attention) / np.exp(attention).sum(axis=1, keepdims=True)
    segmentwise = 1 / (1 + np.exp(-logits))
    clipwise = (weights * segmentwise).sum(axis=1)
    out = {k: numpy(v) for k, v in pooling.attend(attention.astype("float32"), logits.astype("float32")).items()}
    np.testing.assert_allclose(out["norm_att"], weights, atol=1e-6)
    np.testing.assert_allclose(out["segmentwise"], segmentwise, atol=1e-6)
    np.testing.assert_allclose(out["clipwise"], clipwise, atol=1e-6)
    np.testing.assert_allclose(out["clipwise_logits"], np.log(clipwise / (1 - clipwise)), atol=1e-5)


def test_equal_attention_is_the_mean():
    logits = np.random.default_rng(1).standard_normal((1, 5, 2)).astype(np.float32)
    out = pooling.attend(np.zeros((1, 5, 2), np.float32), logits)
    np.testing.assert_allclose(numpy(out["clipwise"]), (1 / (1 + np.exp(-logits))).mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("logit", [-60.0, 60.0])
def test_certainty_keeps_its_logits(logit):
    out = pooling.attend(np.zeros((1, 5, 2), np.float32), np.full((1, 5, 2), logit, np.float32))
    np.testing.assert_allclose(numpy(out["clipwise_logits"]), logit, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "twin"),
    [("tanh", np.tanh), ("soft", lambda z: 10 * np.tanh(z / 10)), ("clamp", lambda z: np.clip(z, -10, 10))],
)
def test_bounds_match_their_formulas(kind, twin):
    z = np.linspace(-30, 30, 41, dtype=np.float32)
    np.testing.assert_allclose(numpy(pooling.squash(z, kind)), twin(z), atol=1e-5)


def test_an_unknown_bound_is_named():
    with pytest.raises(ValueError, match="tanh, soft, clamp"):
        pooling.squash(np.zeros(1), "sigmoid")


def test_frames_take_their_segment():
    segments = np.arange(7, dtype=np.float32)[None, :, None]
    laid = numpy(pooling.over_frames(segments, 501))[0, :, 0]
    assert [laid[i] for i in (0, 71, 72, 500)] == [0, 0, 1, 6]
    np.testing.assert_array_equal(laid, [int(i * 7 / 501) for i in range(501)])


def test_examples_are_independent():
    rng = np.random.default_rng(2)
    loudness = np.array([1, 1e-6], np.float32)[:, None, None]
    attention, logits = (rng.normal(scale=30, size=(2, 7, 3)).astype(np.float32) * loudness for _ in range(2))

    def pooled(rows):
        out = pooling.attend(pooling.squash(attention[rows], "soft"), logits[rows])
        return {key: numpy(value) for key, value in {**out, "frames": pooling.over_frames(logits[rows], 20)}.items()}

    both = pooled(slice(None))
    for i in range(2):
        for key, alone in pooled(slice(i, i + 1)).items():
            np.testing.assert_allclose(both[key][i], alone[0], rtol=1e-5, atol=1e-6, err_msg=key)
