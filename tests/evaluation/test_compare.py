"""Two recipes by their out-of-fold tables: by hand, at the limits, and against a slow twin."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from birdtpu.errors import UserError
from birdtpu.evaluation.compare import LABELS, paired_bootstrap, read_out_of_fold, write_out_of_fold
from birdtpu.species import ClassList

CODES = ["crow", "7", "owl"]


def table(seed: int, skill: float, count: int = 24) -> pd.DataFrame:
    """Two folds of unlike size; the same labels for every seed and skill."""
    labels = np.random.default_rng(99)
    primary = labels.permutation(np.resize(CODES, count))
    secondary = np.where(labels.random(count) < 0.3, labels.choice(CODES, count), "")
    scores = np.random.default_rng(seed).random((count, 3)).astype(np.float32)
    scores[np.arange(count), [CODES.index(code) for code in primary]] += skill
    rows = {"recording": [f"XC{i}" for i in range(count)], "fold": np.where(np.arange(count) < count // 3, "0", "1")}
    made = pd.DataFrame({**rows, "primary_label": primary, "secondary_labels": secondary})
    return pd.concat([made, pd.DataFrame(scores, columns=CODES)], axis=1)


def slow_figure(one: pd.DataFrame) -> float:
    """Mean over folds of macro average precision, by scikit-learn, row by row and class by class."""
    figures = []
    for fold in ("0", "1"):
        part = one[one["fold"] == fold]
        found = []
        for code in CODES:
            known = part[(part["primary_label"] == code) | (part["secondary_labels"] != code)]
            truth = known["primary_label"] == code
            if truth.any():
                found.append(average_precision_score(truth, known[code]))
        figures.append(np.mean(found))
    return float(np.mean(figures))


def test_by_hand():
    rows = {"recording": ["a", "b", "c", "d"], "fold": ["0", "0", "1", "1"], "secondary_labels": ""}
    rows["primary_label"] = ["x", "y", "x", "y"]
    right = pd.DataFrame({**rows, "x": [0.9, 0.1, 0.9, 0.1], "y": [0.1, 0.9, 0.1, 0.9]})
    # In fold 1 every order is wrong: each class finds its positive second, average precision 1/2.
    half = right.assign(x=[0.9, 0.1, 0.1, 0.9], y=[0.1, 0.9, 0.9, 0.1])
    found = paired_bootstrap(right, half, draws=400)
    assert (found.a, found.b, found.difference.value) == (1, 0.75, 0.25)
    # A draw of fold 1 holds both of its recordings, where half has (1/2 + 1/2) / 2 and right 1, or one of them
    # twice, where both have 1: the difference is 0.25 or 0.
    assert (found.difference.low, found.difference.high) == (0, 0.25)


def test_a_recipe_beside_itself_is_zero_without_width():
    one = table(1, 0.2)
    found = paired_bootstrap(one, one.sample(frac=1, random_state=0), draws=100)
    assert found.difference == (0, 0, 0) and found.a == found.b
    assert paired_bootstrap([one, one], one, draws=100).difference == pytest.approx((0, 0, 0), abs=1e-12)


def test_the_figures_and_the_interval_match_a_slow_twin():
    a, b = [table(1, 0.5), table(2, 0.5)], [table(3, 0.2)]
    found = paired_bootstrap(a, b, draws=20, seed=5)
    rngs, drawn = [np.random.default_rng([5, fold]) for fold in (0, 1)], []
    for _ in range(20):
        rows = []
        for fold, rng in enumerate(rngs):
            names = sorted(a[0].loc[a[0]["fold"] == str(fold), "recording"])
            times = rng.multinomial(len(names), [1 / len(names)] * len(names))
            rows += [int(name[2:]) for name, count in zip(names, times, strict=True) for _ in range(count)]
        drawn.append(np.mean([slow_figure(one.iloc[rows]) for one in a]) - slow_figure(b[0].iloc[rows]))
    value = np.mean([slow_figure(one) for one in a]) - slow_figure(b[0])
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert low < value < high
    assert found.difference == pytest.approx((value, low, high), abs=1e-12)
    assert found.a == pytest.approx(np.mean([slow_figure(one) for one in a]), abs=1e-12)


def test_pairing_narrows_the_interval():
    """Recipes that fail on the same recordings differ by less than their own spread tells."""
    a = table(1, 0.3)
    b = a.assign(**{code: a[code] + np.random.default_rng(2).normal(0, 0.02, len(a)) for code in CODES})
    alone = paired_bootstrap(a, table(3, 0.3), draws=300).difference
    paired = paired_bootstrap(a, b, draws=300).difference
    assert paired.high - paired.low < (alone.high - alone.low) / 3


def test_sides_swap_and_classes_may_stand_in_another_order():
    a, b = table(1, 0.5), table(2, 0.1)
    one, other = paired_bootstrap(a, b, draws=50), paired_bootstrap(b[[*LABELS, *CODES[::-1]]], a, draws=50)
    assert one.difference == pytest.approx((-other.difference.value, -other.difference.high, -other.difference.low))


def test_a_fold_of_one_recording_leaves_no_interval():
    one = table(1, 0.5).assign(fold=["0"] + ["1"] * 23)
    found = paired_bootstrap(one, table(2, 0.5).assign(fold=one["fold"]), draws=20)
    assert np.isfinite(found.difference.value) and np.isnan(found.difference.low)


def test_tables_that_are_no_pair_are_named():
    one = table(1, 0.5)
    for other, message in (
        (one[one["recording"] != "XC3"], r"same recordings \(XC3 is in one alone\)"),
        (one.rename(columns={"owl": "wren"}), r"same classes \(owl is in one alone\)"),
        (one.assign(fold="0"), "recording XC1.* has fold '1' in one table, '0' in another"),
    ):
        with pytest.raises(UserError, match=message):
            paired_bootstrap(one, other)
    with pytest.raises(UserError, match="at least one"):
        paired_bootstrap([], one)


def test_tables_are_read_back_to_the_bit(tmp_path):
    one, path = table(1, 0.5), str(tmp_path / "oof.csv")
    write_out_of_fold(path, one, one[CODES].to_numpy(), ClassList(tuple(CODES)))
    back = read_out_of_fold(path)
    pd.testing.assert_frame_equal(back[LABELS], one[LABELS])
    np.testing.assert_array_equal(back[CODES].to_numpy(np.float32), one[CODES])


def test_what_is_no_table_is_named(tmp_path):
    path = tmp_path / "oof.csv"
    with pytest.raises(UserError, match=r"oof\.csv: no such file"):
        read_out_of_fold(str(path))
    for text in (
        "",
        "recording,fold,owl\na,0,0.5\n",
        "recording,fold,primary_label,secondary_labels,owl\na,0,owl,,x\n",
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=r"oof\.csv: no table of out-of-fold scores"):
            read_out_of_fold(str(path))
    with pytest.raises(UserError, match="code fold is the name of a column"):
        write_out_of_fold(str(path), table(1, 0), np.zeros((24, 1)), ClassList(("fold",)))
