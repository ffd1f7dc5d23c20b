"""Metrics of the competitions, in NumPy, with unknown labels left out and intervals by bootstrap.

Every metric takes `truth (rows, classes)` of 0 and 1 and `scores (rows, classes)`, and by keyword

- `mask (rows, classes)`: 1 where the label is known; an unknown entry is neither positive nor negative. None: all are.
- `weights (rows,)` or `(rows, draws)`: how often each row counts. With `draws` the metric comes back once a draw,
  `(draws,)`, all draws at the price of one sort: this is what makes `bootstrap` fast. None: each row once, a float.

An undefined value (no class with a positive, no row with a label, ...) is NaN. Higher is better in all of them.
Raises: UserError where shapes differ, there is no row, truth is not 0 or 1, or a score is NaN.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from birdtpu.errors import UserError

PADDING_ROWS = 5
"""All-ones rows of BirdCLEF 2023's padded cmAP."""

_BLOCK = 2**22
"""Most elements of a temporary array, about, where work is cut into blocks."""


class Interval(NamedTuple):
    """A value and the bounds of its 95 % interval; NaN where undefined."""

    value: float
    low: float
    high: float


def average_precision(
    truth: ArrayLike, scores: ArrayLike, *, mask: ArrayLike | None = None, weights: ArrayLike | None = None
) -> np.ndarray:
    """Average precision of each class: the sum over thresholds of (recall gained) * precision.

    Equal scores share one threshold.

    Returns: `(classes,)` or `(classes, draws)`; NaN where a class has no positive.
    Reference: `sklearn.metrics.average_precision_score`, which gives 0 there.
    """
    return _by_class(_average_precision, truth, scores, mask, weights)


def roc_auc(
    truth: ArrayLike, scores: ArrayLike, *, mask: ArrayLike | None = None, weights: ArrayLike | None = None
) -> np.ndarray:
    """Area under the ROC curve of each class: the share of (positive, negative) pairs in order, a tie counting half.

    Returns: `(classes,)` or `(classes, draws)`; NaN where a class has no positive or no negative.
    Reference: `sklearn.metrics.roc_auc_score`.
    """
    return _by_class(_roc_auc, truth, scores, mask, weights)


def macro_average_precision(
    truth: ArrayLike, scores: ArrayLike, *, mask: ArrayLike | None = None, weights: ArrayLike | None = None
) -> float | np.ndarray:
    """Mean of `average_precision` over the classes with at least one positive; NaN without any."""
    return _mean_defined(average_precision(truth, scores, mask=mask, weights=weights))


def macro_roc_auc(
    truth: ArrayLike, scores: ArrayLike, *, mask: ArrayLike | None = None, weights: ArrayLike | None = None
) -> float | np.ndarray:
    """Mean of `roc_auc` over the classes with at least one positive and one negative (2024-2026); NaN without any."""
    return _mean_defined(roc_auc(truth, scores, mask=mask, weights=weights))


def padded_cmap(
    truth: ArrayLike, scores: ArrayLike, *, mask: ArrayLike | None = None, weights: ArrayLike | None = None
) -> float | np.ndarray:
    """Padded class-mean average precision (2023): five all-ones rows join truth and scores, then macro AP.

    Every class counts, those without a positive too; the padding counts once whatever the weights are.

    Raises: UserError also where a score is outside 0..1, where the padding would not rank first.
    """
    truth, scores, mask, table = _checked(truth, scores, mask, weights)
    if scores.min(initial=0) < 0 or scores.max(initial=0) > 1:
        raise UserError("padded cmAP: scores outside 0..1; give probabilities, not logits")
    truth, scores, mask, table = (
        np.concatenate([array, np.ones((PADDING_ROWS, array.shape[1]), array.dtype)])
        for array in (truth, scores, mask, table)
    )
    value = _mean_defined(average_precision(truth, scores, mask=mask, weights=table))
    return _unwrap(np.asarray(value), weights)


def lwlrap(
    truth: ArrayLike, scores: ArrayLike, *, mask: ArrayLike | None = None, weights: ArrayLike | None = None
) -> float | np.ndarray:
    """Label-weighted label-ranking average precision (RFCx): each label counts the same.

    For a label, the share of positives among the row's known classes that score at least as high. Rows without a
    positive do not count; NaN where no row has one.

    Reference: `sklearn.metrics.label_ranking_average_precision_score` with the rows' numbers of labels as weights.
    """
    truth, scores, mask, table = _checked(truth, scores, mask, weights)
    row, column = np.nonzero(truth)
    precision = np.empty(len(row))
    step = max(1, _BLOCK // truth.shape[1])
    for start in range(0, len(row), step):
        label = slice(start, start + step)
        above = (scores[row[label]] >= scores[row[label], column[label], None]) & mask[row[label]]
        precision[label] = (above & truth[row[label]]).sum(axis=1) / above.sum(axis=1)
    total = np.bincount(row, precision, minlength=len(truth))
    return _unwrap(_row_mean(total, truth.sum(axis=1), table), weights)


def micro_f1(
    truth: ArrayLike,
    scores: ArrayLike,
    *,
    thresholds: ArrayLike,
    mask: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> float | np.ndarray:
    """Row-wise micro F1 (2020, 2021): the mean over rows of 2 TP / (2 TP + FP + FN), nocall a label of its own.

    A class is predicted where its score reaches its threshold; nocall is true, or predicted, where nothing else is.
    Rows without a positive that hold an unknown class do not count: whether they are nocall is unknown.

    Args:
        thresholds: One for all classes or one a class.

    Reference: `sklearn.metrics.f1_score(average="samples")` with a nocall column appended to both.
    """
    truth, scores, mask, table = _checked(truth, scores, mask, weights)
    predicted = (scores >= checked_thresholds(thresholds, truth.shape[1])) & mask
    positives, calls = truth.sum(axis=1), predicted.sum(axis=1)
    nocall = (positives == 0) & (calls == 0)
    hits = (truth & predicted).sum(axis=1) + nocall
    f1 = 2 * hits / (np.maximum(positives, 1) + np.maximum(calls, 1))
    counts = (positives > 0) | mask.all(axis=1)
    return _unwrap(_row_mean(f1 * counts, counts, table), weights)


def accuracy_any_label(
    truth: ArrayLike, scores: ArrayLike, *, mask: ArrayLike | None = None, weights: ArrayLike | None = None
) -> float | np.ndarray:
    """Share of rows whose top-scoring class is right: for recordings, primary or secondary label.

    Of several classes that share the top score each counts its part. Classes that are unknown do not compete; rows
    without a positive do not count.

    Args:
        truth: 1 at every label that counts as right.
    """
    truth, scores, mask, table = _checked(truth, scores, mask, weights)
    best = np.max(scores, axis=1, keepdims=True, where=mask, initial=-np.inf)
    top = (scores == best) & mask
    counts = truth.sum(axis=1) > 0
    share = (top & truth).sum(axis=1) / np.maximum(top.sum(axis=1), 1)
    return _unwrap(_row_mean(share * counts, counts, table), weights)


def precision_recall(truth: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of one class at each threshold that a positive sets, from the highest down.

    Args:
        truth: `(rows,)`, known rows alone.
        scores: `(rows,)`.

    Returns: `(precision, recall)`, each `(thresholds,)`; empty without a positive. Their step sum is the average
        precision.
    """
    truth, scores, _, table = _checked(np.reshape(truth, (-1, 1)), np.reshape(scores, (-1, 1)), None, None)
    positive, everything = _tallies(truth[:, 0], scores[:, 0], np.arange(len(truth)), table)
    hit = positive[:, 0] > 0
    found = np.cumsum(positive)
    return (found / np.cumsum(everything))[hit], (found / max(found[-1], 1))[hit]


def bootstrap(
    metric: Callable[..., float | np.ndarray],
    truth: ArrayLike,
    scores: ArrayLike,
    *,
    groups: ArrayLike,
    mask: ArrayLike | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """A metric with its 95 % percentile interval; whole groups are drawn with replacement.

    The same seed and groups give the same draws for every metric. Draws in which the metric is undefined are left
    out. Average precision of a class with few positives rises under resampling (a repeated positive stands above its
    twin), so a bound that would leave the value itself outside is moved to it.

    Args:
        metric: One of this module's, other arguments bound (`functools.partial`).
        groups: `(rows,)`, what belongs together: the recording of each row.
        draws: Number of resampled sets; 0 gives no interval.

    Returns: `Interval`; its bounds are NaN for a single group, which says nothing about spread.
    Reference: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    return interval(*bootstrap_draws(metric, truth, scores, groups=groups, mask=mask, draws=draws, seed=seed))


def bootstrap_draws(
    metric: Callable[..., float | np.ndarray],
    truth: ArrayLike,
    scores: ArrayLike,
    *,
    groups: ArrayLike,
    mask: ArrayLike | None = None,
    draws: int = 1000,
    seed: int | Sequence[int] = 0,
) -> tuple[float, np.ndarray]:
    """A metric and its values over resampled groups: see `bootstrap`.

    Returns: the value, and `(draws,)` values, NaN where undefined; none for a single group.
    """
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    if member.shape != np.shape(truth)[:1]:
        raise UserError(f"bootstrap: {member.size} groups for {len(np.asarray(truth))} rows")
    value = float(metric(truth, scores, mask=mask))
    number = int(member.max()) + 1
    if number < 2 or draws < 1:
        return value, np.empty(0)
    generator = np.random.default_rng(seed)
    values = []
    step = max(1, _BLOCK // len(member))
    for start in range(0, draws, step):
        counts = generator.multinomial(number, np.full(number, 1 / number), size=min(step, draws - start))
        values.append(metric(truth, scores, mask=mask, weights=counts.T[member]))
    return value, np.concatenate(values)


def interval(value: float, drawn: np.ndarray) -> Interval:
    """The 95 % percentile interval of drawn values (see `bootstrap`); NaN bounds where there are none."""
    drawn = drawn[np.isfinite(drawn)]
    if not np.isfinite(value) or not drawn.size:
        return Interval(value, np.nan, np.nan)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value, min(float(low), value), max(float(high), value))


def checked_thresholds(thresholds: ArrayLike, classes: int) -> np.ndarray:
    """`(classes,)` float64. Raises UserError where they are neither one nor one a class, or NaN."""
    values = np.asarray(thresholds, np.float64)
    if values.shape not in ((), (classes,)):
        raise UserError(f"thresholds: shape {values.shape}; give one, or one for each of the {classes} classes")
    if np.isnan(values).any():
        raise UserError("thresholds: NaN among them; give a number for every class")
    return np.broadcast_to(values, (classes,))


def _checked(truth, scores, mask, weights) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Truth (known positives alone), scores, mask and weights `(rows, draws)` in their types, or a UserError."""
    truth, scores = np.asarray(truth), np.asarray(scores)
    if not np.issubdtype(scores.dtype, np.floating):
        scores = scores.astype(np.float64)
    if truth.ndim != 2 or truth.shape != scores.shape:
        raise UserError(f"metrics: truth {truth.shape} and scores {scores.shape} must both be (rows, classes)")
    if not truth.size:
        raise UserError(f"metrics: nothing to score in {truth.shape[0]} rows of {truth.shape[1]} classes")
    if np.isnan(scores).any():
        row, column = np.argwhere(np.isnan(scores))[0]
        raise UserError(f"metrics: score of row {row}, class {column} is NaN; look at the model that made it")
    if not np.isin(truth, (0, 1)).all():
        raise UserError("metrics: truth holds other values than 0 and 1")
    known = np.ones(truth.shape, bool) if mask is None else np.asarray(mask).astype(bool)
    if known.shape != truth.shape:
        raise UserError(f"metrics: mask {known.shape} must have the shape of truth {truth.shape}")
    table = np.ones(len(truth)) if weights is None else np.asarray(weights)
    if table.ndim not in (1, 2) or len(table) != len(truth):
        raise UserError(f"metrics: weights {table.shape} must be (rows,) or (rows, draws) of {len(truth)} rows")
    return truth.astype(bool) & known, scores, known, table.reshape(len(truth), -1).astype(np.float64)


def _unwrap(values: np.ndarray, weights: ArrayLike | None) -> float | np.ndarray:
    """`(draws,)` where the caller gave draws, else the float of its one draw."""
    return values if weights is not None and np.ndim(weights) == 2 else float(values[0])


def _mean_defined(values: np.ndarray) -> float | np.ndarray:
    """Mean over the first axis of what is not NaN, NaN where nothing is left."""
    defined = ~np.isnan(values)
    mean = _divide(np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0))
    return mean if mean.ndim else float(mean)


def _row_mean(totals: np.ndarray, counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`(draws,)`: the sum of `totals` over that of `counts`, both `(rows,)`, rows weighted."""
    return _divide(totals @ weights, counts.astype(np.float64) @ weights)


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """The quotient, NaN where `below` is 0."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)


def _by_class(metric, truth, scores, mask, weights) -> np.ndarray:
    truth, scores, mask, table = _checked(truth, scores, mask, weights)
    values = np.empty((truth.shape[1], table.shape[1]))
    for i in range(truth.shape[1]):
        values[i] = metric(*_tallies(truth[:, i], scores[:, i], np.flatnonzero(mask[:, i]), table))
    return values if np.ndim(weights) == 2 else values[:, 0]


def _tallies(
    truth: np.ndarray, scores: np.ndarray, known: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weight of the positives and of all rows at each score, highest first: two `(scores, draws)`.

    Neighbouring scores without a positive are put together: no metric here looks between them, and there are many.
    """
    order = known[np.argsort(-scores[known], kind="stable")]
    hit = truth[order]
    if not hit.any():
        return np.zeros((1, weights.shape[1])), weights[order].sum(axis=0, keepdims=True)
    ranked = scores[order]
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
    has_positive = np.logical_or.reduceat(hit, starts)
    starts = starts[has_positive | np.append(True, has_positive[:-1])]
    everything = np.add.reduceat(weights[order], starts, axis=0)
    positives = np.flatnonzero(hit)
    place = np.searchsorted(starts, positives, side="right") - 1
    first = np.flatnonzero(np.append(True, place[1:] != place[:-1]))
    positive = np.zeros_like(everything)
    positive[place[first]] = np.add.reduceat(weights[order[positives]], first, axis=0)
    return positive, everything


def _average_precision(positive: np.ndarray, everything: np.ndarray) -> np.ndarray:
    precision = np.nan_to_num(_divide(np.cumsum(positive, axis=0), np.cumsum(everything, axis=0)))
    return _divide((positive * precision).sum(axis=0), positive.sum(axis=0))


def _roc_auc(positive: np.ndarray, everything: np.ndarray) -> np.ndarray:
    negative = everything - positive
    below = negative.sum(axis=0) - np.cumsum(negative, axis=0)
    pairs = positive.sum(axis=0) * negative.sum(axis=0)
    return _divide((positive * (below + negative / 2)).sum(axis=0), pairs)
