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


def logit(p):
    return np.log(p) - np.log1p(-p)


SHARES = np.array([0.5, 0.3, 0.2])
ORDERS = [np.array([0, 1, 2]), np.array([2, 0, 1]), np.array([0, 1, 2])]


@pytest.mark.parametrize("combine", ["probabilities", "logits"])
def test_the_mean_over_models_matches_a_numpy_twin(combine):
    scores = np.random.default_rng(3).uniform(0.01, 0.99, (3, 4, 3))
    aligned = [each[:, order] for each, order in zip(scores, ORDERS, strict=True)]
    if combine == "probabilities":
        expected = np.average(aligned, axis=0, weights=SHARES)
    else:
        expected = 1 / (1 + np.exp(-np.average(logit(np.array(aligned)), axis=0, weights=SHARES)))
    got = pooling.mean_over_models(list(scores.astype(np.float32)), ORDERS, SHARES, combine)
    np.testing.assert_allclose(numpy(got), expected, atol=1e-6)


def test_a_certain_model_does_not_outvote_the_others_without_end():
    """The mean of logits is finite at 0 and 1: they count as CLAMP and 1 - CLAMP."""
    sure, other = np.array([[1.0, 0.0, 1.0]], np.float32), np.array([[0.0, 0.0, 0.5]], np.float32)
    same, halves = [np.arange(3)] * 2, np.array([0.5, 0.5])
    got = numpy(pooling.mean_over_models([sure, other], same, halves, "logits"))[0]
    # 1 - CLAMP is rounded to float32, by 3 % of CLAMP at most: 0.008 of a fourth of its logit's half.
    np.testing.assert_allclose(got, [0.5, pooling.CLAMP, 1 / (1 + np.sqrt(pooling.CLAMP))], atol=0.01)
    got = numpy(pooling.mean_over_models([sure, other], same, halves, "probabilities"))[0]
    np.testing.assert_array_equal(got, [0.5, 0, 0.75])


@pytest.mark.parametrize("combine", ["probabilities", "logits"])
def test_means_over_models_are_independent_of_other_examples(combine):
    scores = np.random.default_rng(4).random((3, 2, 3)).astype(np.float32)
    scores[:, 1] *= 1e-6
    both = numpy(pooling.mean_over_models(list(scores), ORDERS, SHARES, combine))
    for i in range(2):
        alone = numpy(pooling.mean_over_models(list(scores[:, i : i + 1]), ORDERS, SHARES, combine))
        np.testing.assert_allclose(both[i], alone[0], rtol=1e-6)


def test_an_unknown_way_to_combine_is_named():
    with pytest.raises(ValueError, match="probabilities, logits"):
        pooling.mean_over_models([np.zeros((1, 1))], [np.arange(1)], np.ones(1), "median")


def test_models_stand_side_by_side_in_one_order_of_classes():
    a, b = (np.random.default_rng(seed).random((4, 3)).astype(np.float32) for seed in (1, 2))
    columns = [np.arange(3), np.array([2, 0, 1])]
    out = ops.convert_to_numpy(pooling.side_by_side([a, b], columns))
    np.testing.assert_array_equal(out, np.concatenate([a, b[:, [2, 0, 1]]], axis=1))
    # An example alone is what it is among others.
    np.testing.assert_array_equal(ops.convert_to_numpy(pooling.side_by_side([a[:1], b[:1]], columns)), out[:1])
