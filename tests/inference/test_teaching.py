"""What students are told, by hand."""

import numpy as np
import pytest

from birdtpu.inference.teaching import STRATEGIES, soft_labels

HALF = np.array([0.5, 0.5])
# Two teachers, three clips (two of file a, one of b), two classes.
SCORES = np.array([[[0.2, 0.5], [0.8, 0.5], [0.1, 0.9]], [[0.4, 0.5], [0.4, 0.7], [0.3, 0.3]]], np.float32)
FILE = np.array(["a", "a", "b"], object)


def told(strategy, scores=SCORES, shares=HALF, **options):
    return soft_labels(scores, FILE, strategy=strategy, shares=shares, **options)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def test_mean_is_the_mean():
    out = told("mean")
    assert out.dtype == np.float16
    np.testing.assert_allclose(out, [[0.3, 0.5], [0.6, 0.6], [0.2, 0.6]], atol=1e-3)
    np.testing.assert_allclose(told("mean", shares=np.array([0.75, 0.25]))[0], [0.25, 0.5], atol=1e-3)


def test_the_highest_of_the_file_is_said_of_each_of_its_clips():
    np.testing.assert_allclose(told("file_max"), [[0.6, 0.6], [0.6, 0.6], [0.2, 0.6]], atol=1e-3)


def test_power_makes_what_is_unsure_count_less():
    np.testing.assert_allclose(told("mean", power=2.0), [[0.09, 0.25], [0.36, 0.36], [0.04, 0.36]], atol=1e-3)


def test_top1_knows_the_best_class_and_nothing_else():
    nan = np.nan
    np.testing.assert_array_equal(told("top1", threshold=0.5), [[nan, 1], [1, nan], [nan, 1]])
    np.testing.assert_array_equal(told("top1", threshold=0.55), [[nan, nan], [1, nan], [nan, 1]])


def test_fold_matched_by_hand():
    """Logits of whole numbers: z = (2, -4), (0, -2) of the own teacher; the other's are (0, 0), (2, -6)."""
    z, other = np.array([[2.0, -4.0], [0.0, -2.0]]), np.array([[0.0, 0.0], [2.0, -6.0]])
    # The highest: (2, 0), (2, -2), of mean 0.5; z's mean is -1: the shift is -1.5.
    expected = sigmoid(np.array([[(2 + 2 - 1.5) / 2, (-4 + 0 - 1.5) / 2], [(0 + 2 - 1.5) / 2, (-2 - 2 - 1.5) / 2]]))
    scores = sigmoid(np.stack([other, z]))
    out = soft_labels(scores, np.array(["a", "a"]), strategy="fold_matched", shares=HALF, own=1)
    np.testing.assert_allclose(out, expected, atol=1e-3)


def test_fold_matched_of_one_teacher_is_that_teacher():
    np.testing.assert_allclose(told("fold_matched", SCORES[:1], np.ones(1)), SCORES[0], atol=1e-3)


def test_fold_matched_keeps_the_own_mean_logit_in_each_file():
    rng = np.random.default_rng(0)
    logits, file = rng.normal(-3, 2, (3, 40, 5)), np.repeat(["a", "b"], [30, 10])
    for own in range(3):
        out = STRATEGIES["fold_matched"](sigmoid(logits), file=file, own=own)
        back = np.log(out) - np.log1p(-out)
        for name in "ab":
            assert back[file == name].mean() == pytest.approx(logits[own, file == name].mean(), abs=1e-6)
        assert np.isfinite(back).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_files_are_independent(strategy):
    """One file's clips among others: the same as alone; certainties stay finite."""
    scores = np.random.default_rng(1).random((2, 6, 4)).astype(np.float32)
    scores[:, 4:] = [0.0, 1.0, 0.0, 1.0]
    file = np.array(list("aabbcc"))
    options = {"strategy": strategy, "shares": HALF, "own": 1}
    together = soft_labels(scores, file, **options)
    for name in "abc":
        here = file == name
        np.testing.assert_array_equal(together[here], soft_labels(scores[:, here], file[here], **options))
    known = together[~np.isnan(together)]
    assert len(known) and ((known >= 0) & (known <= 1)).all()
