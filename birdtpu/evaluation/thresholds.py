"""Decision thresholds for a target false positive rate: scores and labels in, thresholds and rates out.

A row is a recording. A class's false positive rate is the share of the rows known to be without it whose score reaches
the threshold, its true positive rate that share of the rows known to hold it. Unknown labels count in neither.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from birdtpu import metrics
from birdtpu.errors import UserError
from birdtpu.species import ClassList


@dataclass(frozen=True)
class Thresholds:
    """What was chosen, and what the pictures are drawn from.

    Args:
        result: Ready for JSON (None where undefined): `target_fpr`, `global_threshold`, `n_recordings`, `n_classes`,
            `n_classes_own` (with a threshold of their own), `n_classes_below_step` (with so few negatives that the
            target is below one of them), `n_classes_saturated` (above the target even at 1), `mean_tpr`, `mean_fpr`
            (means over classes, each at its own), `mean_tpr_at_global`, `mean_fpr_at_global`, and `per_class`, a list
            of dicts in the order of the classes.
        classes: The classes, in the order of the columns.
        truth, scores, mask: `(rows, classes)`.
        own: `(classes,)`: each class's own threshold, NaN where nothing is known to be without it.
        common: The global threshold, their median.
    """

    result: dict
    classes: ClassList
    truth: np.ndarray
    scores: np.ndarray
    mask: np.ndarray
    own: np.ndarray
    common: float

    def values(self, per_class: bool) -> dict[str, float]:
        """A threshold a code: the global one, or each class's own where it has one."""
        limits = np.where(np.isnan(self.own) | (not per_class), self.common, self.own)
        return dict(zip(self.classes.codes, limits.tolist(), strict=True))


def choose_thresholds(
    truth: ArrayLike,
    scores: ArrayLike,
    classes: ClassList,
    *,
    mask: ArrayLike | None = None,
    target_fpr: float = 0.01,
) -> Thresholds:
    """Each class's threshold for a false positive rate, and the one for all classes: their median (write-up 000).

    A class's own is `class_threshold`'s. The median is over the classes that have one; those without positives, whose
    curve is the negatives' alone, are among them.

    Args:
        truth: `(rows, classes)` of 0 and 1.
        scores: `(rows, classes)` probabilities.
        mask: `(rows, classes)`, 1 where known; None: all are.
        target_fpr: From 0 to below 1.

    Raises: UserError where the target is outside, shapes do not fit, a score is NaN or outside 0..1, or no class is
        known to be absent anywhere.
    """
    if not 0 <= target_fpr < 1:
        raise UserError(f"target false positive rate {target_fpr:g}: a share from 0 to below 1, such as 0.01")
    truth, scores = np.asarray(truth), np.asarray(scores, np.float64)
    if scores.ndim != 2 or scores.shape[1] != len(classes):
        raise UserError(f"thresholds: scores {scores.shape}; needs (rows, {len(classes)}) for these classes")
    area = metrics.roc_auc(truth, scores, mask=mask)
    if scores.min() < 0 or scores.max() > 1:
        raise UserError("thresholds: scores outside 0..1; give probabilities, not logits")
    known = np.ones(truth.shape, bool) if mask is None else np.asarray(mask).astype(bool)
    truth = truth.astype(bool) & known
    own = np.array(
        [
            class_threshold(truth[known[:, i], i], scores[known[:, i], i], target_fpr=target_fpr)
            for i in range(len(classes))
        ]
    )
    if np.isnan(own).all():
        raise UserError("thresholds: no species is known to be absent from a recording; give more recordings")
    common = float(np.nanmedian(own))
    result = _result(truth, scores, known, classes, own, common, area, target_fpr)
    return Thresholds(result, classes, truth, scores, known, own, common)


def roc_curve(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """False and true positives of one class at every threshold there is, from the highest down.

    A threshold is a score, and what equals it is called.

    Args:
        truth: `(rows,)` bool, known rows alone.
        scores: `(rows,)`.

    Returns: `thresholds, false, true`, each `(distinct scores,)`, the last two counts.
    Reference: `sklearn.metrics.roc_curve` with `drop_intermediate=False`, whose first point, at infinity, is left out.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], len(ranked) > 0))
    true = np.cumsum(truth[order])[last]
    return ranked[last], last + 1 - true, true


def class_threshold(truth: np.ndarray, scores: np.ndarray, *, target_fpr: float) -> float:
    """The last point of a class's ROC curve whose false positive rate is at most the target.

    So no other threshold within the target finds more. Where even the highest score has too many negatives, nothing
    may be called, and the threshold is the next number above it. A score of 1 has none above: there the threshold is 1,
    and its rate is above the target.

    Args:
        truth: `(rows,)` bool, known rows alone.
        scores: `(rows,)` float64 in 0..1.
        target_fpr: A share.

    Returns: the threshold, NaN without a negative.
    """
    thresholds, false, _ = roc_curve(truth, scores)
    if not len(false) or not false[-1]:
        return np.nan
    within = np.flatnonzero(false / false[-1] <= target_fpr)
    if len(within):
        return float(thresholds[within[-1]])
    return min(float(np.nextafter(thresholds[0], np.inf)), 1.0)


def rates(
    truth: np.ndarray, scores: np.ndarray, mask: np.ndarray, thresholds: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """`tpr, fpr (classes,)` at one threshold or one a class; NaN without a known positive, or negative, or threshold.

    Args:
        truth, mask: `(rows, classes)` bool.
        scores: `(rows, classes)`.
    """
    called, limits = scores >= thresholds, np.broadcast_to(thresholds, scores.shape[1:])
    found = []
    for among in (truth & mask, ~truth & mask):
        hits, rows = (called & among).sum(axis=0), among.sum(axis=0)
        defined = (rows > 0) & ~np.isnan(limits)
        found.append(np.divide(hits, rows, out=np.full(len(rows), np.nan), where=defined))
    return found[0], found[1]


def summary_lines(result: dict, per_class: bool) -> list[str]:
    """What a person wants to know of a result.

    Args:
        result: Of `Thresholds`.
        per_class: Whether each class gets its own.
    """
    target, table = result["target_fpr"], result["per_class"]
    known = [row for row in table if row["fpr_at_global"] is not None]
    worst = max(known, key=lambda row: row["fpr_at_global"])
    lines = [
        f"{result['n_recordings']} recordings, {result['n_classes_own']} of {result['n_classes']} species with a "
        f"threshold of their own for a false positive rate of {target:g}",
        f"{'global threshold':24} {result['global_threshold']:.3f}, their median; "
        + ("saved for species without one of their own" if per_class else "saved for all"),
    ]
    means = {"at it, mean": "_at_global"} | ({"at their own, mean": ""} if per_class else {})
    for text, which in means.items():
        tpr = result[f"mean_tpr{which}"]
        positives = "no positives" if tpr is None else f"{tpr:.3f} true positive rate"
        lines.append(f"{text:24} {result[f'mean_fpr{which}']:.3f} false positive rate, {positives}")
    lines.append(f"{'worst at the global one':24} {worst['fpr_at_global']:.3f} false positive rate ({_called(worst)})")
    few = [row["negatives"] for row in known if 0 < target < 1 / row["negatives"]]
    if few:
        lines.append(
            f"{len(few)} species have too few recordings without them for that rate (at most {max(few)}; "
            f"{math.ceil(1 / target)} are needed): their own threshold stands above every false score"
        )
    if result["n_classes_saturated"]:
        lines.append(
            f"{result['n_classes_saturated']} species score 1 where they are not: no threshold holds the target"
        )
    return lines


def _called(row: dict) -> str:
    name = row["common_name"] or row["scientific_name"] or row["code"]
    return f"{name}, {round(row['fpr_at_global'] * row['negatives'])} of {row['negatives']} recordings"


def _result(
    truth: np.ndarray,
    scores: np.ndarray,
    mask: np.ndarray,
    classes: ClassList,
    own: np.ndarray,
    common: float,
    area: np.ndarray,
    target_fpr: float,
) -> dict:
    tpr, fpr = rates(truth, scores, mask, own)
    tpr_at_global, fpr_at_global = rates(truth, scores, mask, common)
    positives, negatives = truth.sum(axis=0), (~truth & mask).sum(axis=0)
    columns = {
        "threshold": own, "tpr": tpr, "fpr": fpr, "tpr_at_global": tpr_at_global, "fpr_at_global": fpr_at_global,
        "roc_auc": area,
    }  # fmt: skip
    return {
        "target_fpr": target_fpr,
        "global_threshold": common,
        "n_recordings": len(truth),
        "n_classes": len(classes),
        "n_classes_own": int((~np.isnan(own)).sum()),
        "n_classes_below_step": sum(0 < target_fpr < 1 / count for count in negatives[negatives > 0].tolist()),
        "n_classes_saturated": int((fpr > target_fpr).sum()),
        "mean_tpr": _mean(tpr),
        "mean_fpr": _mean(fpr),
        "mean_tpr_at_global": _mean(tpr_at_global),
        "mean_fpr_at_global": _mean(fpr_at_global),
        "per_class": [
            {
                "code": code,
                "scientific_name": classes.scientific_names[i],
                "common_name": classes.common_names[i],
                "positives": int(positives[i]),
                "negatives": int(negatives[i]),
                **{name: _plain(values[i]) for name, values in columns.items()},
            }
            for i, code in enumerate(classes.codes)
        ],
    }


def _mean(values: np.ndarray) -> float | None:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else None


def _plain(value: float) -> float | None:
    """A float for JSON, None where there is none."""
    return None if np.isnan(value) else float(value)
