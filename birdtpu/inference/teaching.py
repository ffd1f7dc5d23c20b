"""From teachers' scores of clips to the soft targets that a student learns from."""

from collections.abc import Callable

import numpy as np

# How near to 0 and 1 a score may come before its logit is taken; write-up 002's own bound.
CLAMP = 1e-7


def mean(scores: np.ndarray, shares: np.ndarray, **_) -> np.ndarray:
    """The teachers' mean probability."""
    return np.tensordot(shares, scores, 1)


def fold_matched(scores: np.ndarray, file: np.ndarray, own: int, **_) -> np.ndarray:
    """Write-up 002: the teacher of the student's own fold, raised towards the surest of all teachers.

    `sigmoid((z + m + shift) / 2)`: z are the logits of the teacher `own`, m is the highest of all teachers' logits,
    clip by clip and class by class, and `shift = mean(z) - mean(m)` over all clips and classes of the file, so that
    the highest of several is on the whole no higher than the one.

    Source: jfpuget/birdclef-2024, 237_replay.ipynb, where `cfg.max_pl` is used.
    """
    out = np.empty_like(scores[own])
    for name in np.unique(file):
        kept = np.clip(scores[:, file == name], CLAMP, 1 - CLAMP)
        logits = np.log(kept) - np.log1p(-kept)
        z, m = logits[own], logits.max(axis=0)
        out[file == name] = 1 / (1 + np.exp(-(z + m + z.mean() - m.mean()) / 2))
    return out


def file_max(scores: np.ndarray, shares: np.ndarray, file: np.ndarray, **_) -> np.ndarray:
    """The teachers' mean, and of each class the highest over all clips of the file, for each of them.

    A species that sings once in a file is then taught in all of its clips. Inferred: of the colleague's way in write-up
    002 it is only known that the models are averaged and the file's highest is taken.
    """
    out = mean(scores, shares)
    for name in np.unique(file):
        out[file == name] = out[file == name].max(axis=0)
    return out


def top1(scores: np.ndarray, shares: np.ndarray, threshold: float, **_) -> np.ndarray:
    """Write-up 004: the class with the highest mean score is present, where that reaches the threshold; NaN is unknown.

    Of equal classes it is the first.
    """
    found = mean(scores, shares)
    best = found.argmax(axis=1)[:, None]
    sure = np.take_along_axis(found, best, axis=1) >= threshold
    return np.where((np.arange(found.shape[1]) == best) & sure, 1.0, np.nan)


STRATEGIES: dict[str, Callable[..., np.ndarray]] = {
    "mean": mean,
    "fold_matched": fold_matched,
    "file_max": file_max,
    "top1": top1,
}


def soft_labels(
    scores: np.ndarray,
    file: np.ndarray,
    *,
    strategy: str,
    shares: np.ndarray,
    own: int = 0,
    power: float = 1.0,
    threshold: float = 0.5,
) -> np.ndarray:
    """What a student is told.

    Args:
        scores: `(teachers, clips, classes)` probabilities.
        file: `(clips,)` the recording of each clip.
        strategy: A key of `STRATEGIES`.
        shares: `(teachers,)` weights that add up to 1; `fold_matched` has no use for them.
        own: The teacher of the student's own fold, for `fold_matched`.
        power: The targets are raised to it: above 1, what is unsure counts for less, as the teachers of later rounds,
            who learnt from such targets, call ever more.
        threshold: For `top1`.

    Returns: `(clips, classes)` float16 in [0, 1]; NaN where nothing is known.
    """
    scores = np.asarray(scores, np.float64)
    found = STRATEGIES[strategy](scores, file=np.asarray(file), shares=shares, own=own, threshold=threshold)
    return (found**power).astype(np.float16)
