"""Thresholds for a false positive rate."""

import json

import numpy as np
import pytest
from matplotlib.image import imread
from sklearn import metrics as sklearn

from birdtpu.errors import UserError
from birdtpu.evaluation.threshold_report import histogram_figure, roc_figure, write_report
from birdtpu.evaluation.thresholds import choose_thresholds, class_threshold, rates, roc_curve, summary_lines
from birdtpu.species import ClassList

FILES = ["histogram.png", "per_class.csv", "roc.png", "summary.json", "thresholds.json"]


def numbered(size):
    return ClassList(tuple(f"bird{i}" for i in range(size)))


def drawn(rows, classes, seed=0, levels=20):
    """Truth, scores below 1 with many ties, and a mask."""
    generator = np.random.default_rng(seed)
    truth = generator.random((rows, classes)) < 0.2
    scores = 0.7 * generator.random(truth.shape) + 0.3 * truth
    return truth, 0.99 * np.round(scores * levels) / levels, generator.random(truth.shape) < 0.9


def one(truth, scores, target_fpr):
    return class_threshold(np.array(truth, bool), np.array(scores, float), target_fpr=target_fpr)


def test_by_hand():
    truth = [1, 1, 0, 1, 0, 0, 0]
    scores = [0.9, 0.8, 0.7, 0.6, 0.5, 0.5, 0.1]
    # Of four negatives the curve allows none down to 0.8, one down to 0.6 (0.7 is called), and the two at 0.5 at once.
    assert [one(truth, scores, target) for target in (0, 0.24)] == [0.8, 0.8]
    assert [one(truth, scores, target) for target in (0.25, 0.74)] == [0.6, 0.6]
    assert one(truth, scores, 0.75) == 0.5
    found = choose_thresholds(np.array([truth]).T, np.array([scores]).T, numbered(1), target_fpr=0.25)
    (row,) = found.result["per_class"]
    assert (row["threshold"], row["tpr"], row["fpr"], row["positives"], row["negatives"]) == (0.6, 1, 0.25, 3, 4)
    assert (found.common, row["tpr_at_global"], row["fpr_at_global"]) == (0.6, 1, 0.25)


def test_a_tie_with_a_negative_is_called_with_it():
    assert one([1, 0, 1, 0], [0.7, 0.7, 0.6, 0.1], 0.5) == 0.6
    above = one([1, 0, 1, 0], [0.7, 0.7, 0.6, 0.1], 0.4)
    assert above > 0.7 and above == pytest.approx(0.7)


@pytest.mark.parametrize("target", [0.0, 0.01, 0.1, 0.5])
@pytest.mark.parametrize(("rows", "levels"), [(12, 5), (300, 20), (300, 10**6)])
def test_matches_sklearn(rows, levels, target):
    truth, scores, _ = drawn(rows, 6, seed=rows, levels=levels)
    for i in range(6):
        fpr, tpr, values = sklearn.roc_curve(truth[:, i], scores[:, i], drop_intermediate=False)
        thresholds, false, true = roc_curve(truth[:, i], scores[:, i])
        np.testing.assert_array_equal(thresholds, values[1:])
        np.testing.assert_array_equal([false / false[-1], true / true[-1]], [fpr[1:], tpr[1:]])
        last = np.flatnonzero(fpr <= target)[-1]
        got = one(truth[:, i], scores[:, i], target)
        called = scores[:, i] >= got
        assert np.mean(called[~truth[:, i]]) == pytest.approx(fpr[last])
        assert np.mean(called[truth[:, i]]) == pytest.approx(tpr[last]) == tpr[fpr <= target].max()
        assert got == values[last] or np.isinf(values[last])


@pytest.mark.parametrize("seed", range(5))
def test_no_class_is_above_the_target_at_its_own_threshold(seed):
    truth, scores, mask = drawn(80, 12, seed=seed, levels=15)
    for target in (0.0, 0.01, 0.05, 0.3):
        found = choose_thresholds(truth, scores, numbered(12), mask=mask, target_fpr=target)
        assert (rates(truth, scores, mask, found.own)[1] <= target).all()
        assert found.result["n_classes_saturated"] == 0


def test_what_is_unknown_counts_nowhere():
    truth, scores, mask = drawn(60, 4)
    kept = choose_thresholds(truth, scores, numbered(4), mask=mask, target_fpr=0.1).result
    other = choose_thresholds(
        np.where(mask, truth, True), np.where(mask, scores, 0.97), numbered(4), mask=mask, target_fpr=0.1
    ).result
    assert kept == other
    known = [(truth[mask[:, i], i], scores[mask[:, i], i]) for i in range(4)]
    assert [row["threshold"] for row in kept["per_class"]] == [one(*pair, 0.1) for pair in known]


def test_classes_that_lack_something():
    """By column: all there, no positive, no known negative, all unknown."""
    truth = np.array([[1, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 1, 0]])
    scores = np.array([[0.9, 0.2, 0.8, 0.3], [0.8, 0.1, 0.2, 0.3], [0.2, 0.7, 0.9, 0.9], [0.1, 0.6, 0.4, 0.9]])
    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0]])
    found = choose_thresholds(truth, scores, numbered(4), mask=mask, target_fpr=0.3)
    full, negatives, positives, unknown = found.result["per_class"]
    assert (full["threshold"], full["tpr"], full["fpr"]) == (0.9, 1, 0)
    # The negatives' curve alone: of four one may be called.
    assert (negatives["threshold"], negatives["tpr"], negatives["fpr"]) == (0.7, None, 0.25)
    assert (positives["threshold"], positives["tpr"], positives["fpr"], positives["fpr_at_global"]) == (None,) * 4
    assert positives["tpr_at_global"] == pytest.approx(1 / 3)
    assert (unknown["threshold"], unknown["tpr_at_global"], unknown["fpr_at_global"]) == (None,) * 3
    assert found.common == pytest.approx(0.8) and found.result["n_classes_own"] == 2
    assert list(found.values(True).values()) == pytest.approx([0.9, 0.7, 0.8, 0.8])
    assert list(found.values(False).values()) == pytest.approx([0.8] * 4)
    text = json.dumps(found.result, allow_nan=False)
    assert json.loads(text) == found.result
    with pytest.raises(UserError, match="no species is known to be absent"):
        choose_thresholds(truth[:, 2:], scores[:, 2:], numbered(2), mask=mask[:, 2:])


def test_the_global_threshold_is_the_median_of_the_classes():
    truth = np.zeros((2, 3), bool)
    scores = np.array([[0.9, 0.2, 0.5], [0.1, 0.1, 0.1]])
    found = choose_thresholds(truth, scores, numbered(3), target_fpr=0.5)
    assert found.common == 0.5
    assert [row["fpr_at_global"] for row in found.result["per_class"]] == [0.5, 0, 0.5]
    assert found.result["mean_fpr_at_global"] == pytest.approx(1 / 3) and found.result["mean_tpr_at_global"] is None


def test_a_score_of_one_has_no_threshold_above_it():
    scores = np.array([[1.0], [1.0], [0.2]])
    found = choose_thresholds(np.zeros((3, 1)), scores, numbered(1), target_fpr=0.5)
    assert found.own[0] == 1 and found.result["per_class"][0]["fpr"] == pytest.approx(2 / 3)
    assert found.result["n_classes_saturated"] == 1
    assert summary_lines(found.result, True)[-1].startswith("1 species score 1 where they are not")


def test_the_summary_says_where_the_target_is_below_one_recording():
    truth, scores, _ = drawn(99, 2)
    truth[:, 0] = False
    lines = summary_lines(choose_thresholds(truth, scores, numbered(2)).result, False)
    assert lines[-1].startswith("2 species have too few recordings without them for that rate (at most 99; 100 are")
    truth, scores, _ = drawn(100, 1, levels=10**6)
    truth[:] = False
    found = choose_thresholds(truth, scores, numbered(1))
    # One of a hundred is 1 %.
    assert found.result["per_class"][0]["fpr"] == 0.01 and found.result["n_classes_below_step"] == 0
    assert "worst at the global one  0.010 false positive rate (bird0, 1 of 100 recordings)" in summary_lines(
        found.result, True
    )


@pytest.mark.parametrize(
    ("scores", "target", "words"),
    [
        (np.full((2, 3), 0.5), 1.0, "target false positive rate 1: a share from 0 to below 1"),
        (np.full((2, 3), 0.5), np.nan, "target false positive rate nan"),
        (np.full((2, 2), 0.5), 0.1, r"needs \(rows, 3\)"),
        (np.full((2, 3), 1.5), 0.1, "outside 0..1; give probabilities"),
        (np.full((2, 3), np.nan), 0.1, "is NaN"),
    ],
)
def test_bad_input_is_one_line(scores, target, words):
    with pytest.raises(UserError, match=words) as error:
        choose_thresholds(np.zeros((2, 3)), scores, numbered(3), target_fpr=target)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [3, 40])
def test_writes_five_files(tmp_path, size):
    truth, scores, mask = drawn(50, size)
    found = choose_thresholds(truth, scores, numbered(size), mask=mask, target_fpr=0.05)
    write_report(found, str(tmp_path / "t"), head="clipwise", per_class=True)
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == FILES
    assert json.loads((tmp_path / "t" / "thresholds.json").read_text()) == {"clipwise": found.values(True)}
    summary = json.loads((tmp_path / "t" / "summary.json").read_text())
    assert summary == {"head": "clipwise", "saved": "per class", **found.result}
    for name in ("roc.png", "histogram.png"):
        assert imread(tmp_path / "t" / name)[..., :3].std() > 0.01


def test_pictures_show_the_rates_and_thresholds():
    truth, scores, mask = drawn(50, 3)
    truth[:, 2], mask[:, 1] = False, truth[:, 1]
    classes = ClassList(("a$b", "_c", "鳥"), common_names=("$\\undefined{", "_hidden", "ウグイス"))
    found = choose_thresholds(truth, scores, classes, mask=mask, target_fpr=0.1)

    def texts(figure):
        figure.canvas.draw()
        return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]

    row = found.result["per_class"][0]
    entry = f"{row['fpr_at_global']:.2f}  {row['tpr_at_global']:.2f}  $\\undefined{{ ({row['negatives']})"
    curves = texts(roc_figure(found))
    assert entry in curves and any("1 of 3 classes have positives and negatives" in text for text in curves)
    shown = texts(histogram_figure(found))
    assert f"global threshold {found.common:.3f}" in shown
    assert f"$\\undefined{{: its own {found.own[0]:.3f}" in shown and "_hidden: none of its own" in shown


def test_negatives_alone_still_give_pictures(tmp_path):
    scores = drawn(30, 2)[1]
    found = choose_thresholds(np.zeros((30, 2)), scores, numbered(2), target_fpr=0.1)
    write_report(found, tmp_path, head="clipwise", per_class=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
