"""Events out of the scores of frames, and how many of them are right."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from birdtpu.errors import UserError
from birdtpu.species import ClassList

COLUMNS = ["start_seconds", "end_seconds", "species"]
# Sums and differences of times carry rounding: what is a collar apart is within it.
ROUNDING = 1e-9


def events_of_frames(
    scores: np.ndarray,
    classes: ClassList,
    *,
    frame_seconds: float,
    threshold: float | np.ndarray,
    gap_seconds: float = 0.0,
    min_seconds: float = 0.0,
    duration_seconds: float = math.inf,
) -> pd.DataFrame:
    """Stretches of frames that reach their class's threshold.

    Frame i stands at `i * frame_seconds` and speaks for half a frame on either side.

    Args:
        scores: `(frames, classes)`.
        classes: The columns of `scores`.
        frame_seconds: From one frame to the next.
        threshold: One for all, or `(classes,)`; a score that equals it is in.
        gap_seconds: Pauses shorter than this are bridged.
        min_seconds: What is then shorter than this is left out.
        duration_seconds: The recording's end.

    Returns: `start_seconds, end_seconds, species`, by class and time.

    Raises: UserError where the shapes do not fit.
    """
    if scores.ndim != 2 or scores.shape[1] != len(classes):
        raise UserError(f"events: scores of shape {scores.shape} for {len(classes)} classes")
    active = np.pad(scores >= np.broadcast_to(threshold, scores.shape), ((1, 1), (0, 0))).astype(np.int8)
    column, first = np.nonzero(np.diff(active, axis=0).T == 1)
    last = np.nonzero(np.diff(active, axis=0).T == -1)[1]
    start, end = (np.clip((edge - 0.5) * frame_seconds, 0, duration_seconds) for edge in (first, last))
    # A pause lies between two runs of one class; each run behind a long one begins an event.
    apart = np.ones(len(start), bool)
    apart[1:] = (column[1:] != column[:-1]) | (start[1:] - end[:-1] >= gap_seconds - ROUNDING)
    begins = np.flatnonzero(apart)
    ends = np.append(begins[1:], len(start))[: len(begins)] - 1
    species = np.array(classes.codes, dtype=object)[column[begins]]
    table = pd.DataFrame(dict(zip(COLUMNS, (start[begins], end[ends], species), strict=True)))
    length = table["end_seconds"] - table["start_seconds"]
    return table[(length > 0) & (length >= min_seconds - ROUNDING)].reset_index(drop=True)


@dataclass(frozen=True)
class EventCounts:
    """How many events there are, and how many of them are right; counts of recordings or classes add up.

    Args:
        correct: Estimated events that match a reference event.
        estimated: Events found.
        reference: Events that there are.
    """

    correct: int = 0
    estimated: int = 0
    reference: int = 0

    def __add__(self, other: "EventCounts") -> "EventCounts":
        return EventCounts(
            self.correct + other.correct, self.estimated + other.estimated, self.reference + other.reference
        )

    @property
    def precision(self) -> float:
        """Share of the estimated events that are right; NaN where there is none."""
        return self.correct / self.estimated if self.estimated else math.nan

    @property
    def recall(self) -> float:
        """Share of the reference events that are found; NaN where there is none."""
        return self.correct / self.reference if self.reference else math.nan

    @property
    def f1(self) -> float:
        """`2 * correct / (estimated + reference)`; NaN where there is neither."""
        both = self.estimated + self.reference
        return 2 * self.correct / both if both else math.nan


def match_events(
    estimated: pd.DataFrame,
    reference: pd.DataFrame,
    *,
    collar_seconds: float = 0.2,
    length_share: float = 0.2,
) -> EventCounts:
    """Count the estimated events of one recording that are right.

    One matches a reference event of its species where their starts lie within the collar, and their ends within the
    collar or within a share of the reference event's length, whichever is longer. Each event is matched at most once,
    and as many are matched as can be.

    Args:
        estimated: `start_seconds, end_seconds, species`.
        reference: The same columns.
        collar_seconds: How far a start, or an end, may be off.
        length_share: How far an end may be off, as a share of the reference event's length.

    Reference: Mesaros, Heittola and Virtanen 2016, "Metrics for Polyphonic Sound Event Detection", section 3.3;
        `sed_eval.sound_event.EventBasedMetrics` with `percentage_of_length=0.2`.
    """
    start, end, species = (estimated[column].to_numpy()[:, None] for column in COLUMNS)
    begin, finish, of = (reference[column].to_numpy()[None] for column in COLUMNS)
    late = np.maximum(collar_seconds, length_share * (finish - begin))
    fits = (species == of) & (np.abs(start - begin) <= collar_seconds + ROUNDING)
    fits &= np.abs(end - finish) <= late + ROUNDING
    pairs = maximum_bipartite_matching(csr_matrix(fits), perm_type="column") if fits.size else np.zeros(0)
    return EventCounts(int((pairs >= 0).sum()), len(estimated), len(reference))
