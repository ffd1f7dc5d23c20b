"""Several runs as one: whether they fit together, and what follows from all of them."""

import math
from collections.abc import Sequence

import numpy as np

from birdtpu.errors import UserError
from birdtpu.run import Run

COMBINE = ("probabilities", "logits")
# Members see the same clips, of which a file is cut once.
AGREED = ("audio.sample_rate", "audio.channel", "audio.clip_seconds", "predict.hop_seconds")


def check_members(runs: Sequence[Run]) -> None:
    """Raises UserError where runs cannot be members of one ensemble; it names the key or the species, and two runs."""
    if not runs:
        raise UserError("no run given; name at least one run folder")
    first, *others = runs
    seen = set()
    for run in runs:
        if run.folder in seen:
            raise UserError(f"run {run.folder}: given twice; to count it double, give weights")
        seen.add(run.folder)
    for other in others:
        for key in AGREED:
            _same(key, first, other, "the members of an ensemble score the same clips")
        only = [(a, sorted(set(a.classes.codes) - set(b.classes.codes))) for a, b in ((first, other), (other, first))]
        differences = ", ".join(f"only {run.folder} knows {_few(codes)}" for run, codes in only if codes)
        if differences:
            raise UserError(
                f"runs {first.folder} and {other.folder}: not the same species: {differences}; the members of an "
                "ensemble know the same ones, in any order"
            )


def common_head(runs: Sequence[Run], head: str | None) -> str:
    """The head that all members score with: the one given, else their recipes'.

    Raises: UserError where it is unknown, or the recipes differ and none is given.
    """
    for other in runs[1:] if head is None else ():
        _same("predict.head", runs[0], other, "give a head for all")
    predict = runs[0].recipe.predict
    found = head or predict.head
    if found not in predict.thresholds:
        raise UserError(f"head {found!r}: one of {', '.join(predict.thresholds)}")
    return found


def shares_of(runs: Sequence[Run], weights: Sequence[float] | None) -> np.ndarray:
    """`(members,)` weights that add up to 1; equal ones where none are given.

    Raises: UserError where there is not one above 0 a member.
    """
    given = [1.0] * len(runs) if weights is None else [float(weight) for weight in weights]
    text = ",".join(f"{weight:g}" for weight in given)
    if len(given) != len(runs):
        raise UserError(f"weights {text}: {len(given)} for {len(runs)} runs ({_few([r.folder for r in runs])})")
    if not all(weight > 0 and math.isfinite(weight) for weight in given):
        raise UserError(f"weights {text}: each must be above 0; leave a run out instead of weighing it 0")
    return np.array(given) / sum(given)


def columns_of(runs: Sequence[Run]) -> list[np.ndarray]:
    """For each member `(classes,)` int: where the first one's classes stand among its own."""
    return [np.array([run.classes.index(code) for code in runs[0].classes.codes]) for run in runs]


def mean_thresholds(runs: Sequence[Run], head: str, shares: np.ndarray) -> np.ndarray:
    """`(classes,)`: each class's mean of the members' thresholds, weighted as their scores are."""
    codes = runs[0].classes.codes
    table = [[saved[code] for code in codes] for saved in (run.thresholds(head) for run in runs)]
    # Without the rounding of a sum where all are equal: a score on the threshold is in.
    return np.where(np.ptp(table, axis=0) == 0, table[0], shares @ np.array(table))


def _same(key: str, first: Run, other: Run, why: str) -> None:
    section, name = key.split(".")
    mine, theirs = (getattr(getattr(run.recipe, section), name) for run in (first, other))
    if mine != theirs:
        raise UserError(f"{key}: {mine} in run {first.folder}, but {theirs} in run {other.folder}; {why}")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
