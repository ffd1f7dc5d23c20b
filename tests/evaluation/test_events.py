import itertools
import math

import numpy as np
import pandas as pd
import pytest

from birdtpu.errors import UserError
from birdtpu.evaluation.events import COLUMNS, EventCounts, events_of_frames, match_events
from birdtpu.species import ClassList

CLASSES = ClassList(("amerob", "barswa"))


def table(*rows):
    return pd.DataFrame(rows, columns=COLUMNS)


def spans(scores, **options):
    options = {"frame_seconds": 0.1, "threshold": 0.5} | options
    found = events_of_frames(np.asarray(scores, float), CLASSES, **options)
    return [(round(start, 6), round(end, 6), species) for start, end, species in found.itertuples(index=False)]


def columns(first, second="0" * 10):
    return np.array([[int(a), int(b)] for a, b in zip(first, second, strict=True)])


def test_a_run_of_frames_is_an_event_of_its_class():
    found = spans(columns("0110000001", "1000011100"))
    assert found == [(0.05, 0.25, "amerob"), (0.85, 0.95, "amerob"), (0.0, 0.05, "barswa"), (0.45, 0.75, "barswa")]
    assert spans(columns("1111111111"), duration_seconds=0.93)[0] == (0.0, 0.93, "amerob")
    assert spans(columns("0000000000")) == []
    assert spans(np.zeros((0, 2))) == []


def test_only_pauses_shorter_than_the_gap_are_bridged():
    scores = columns("1101100111", "0000000001")
    assert len(spans(scores, gap_seconds=0.1)) == 4
    assert spans(scores, gap_seconds=0.2)[0] == (0.0, 0.45, "amerob")
    assert spans(scores, gap_seconds=0.21)[0] == (0.0, 0.95, "amerob")
    # The pause between two classes is none.
    assert len(spans(scores, gap_seconds=9)) == 2


def test_short_events_are_dropped_after_gaps_are_bridged():
    assert [end for _, end, _ in spans(columns("0110000100"), min_seconds=0.2)] == [0.25]
    assert len(spans(columns("0101000000"), gap_seconds=0.2, min_seconds=0.3)) == 1
    # A last frame that stands on the recording's end holds no time before it.
    assert spans(columns("0000000001"), duration_seconds=0.85) == []


def test_each_class_has_its_threshold_and_one_that_equals_it_is_in():
    scores = np.tile([[0.4, 0.6]], (3, 1))
    assert [species for *_, species in spans(scores, threshold=np.array([0.4, 0.7]))] == ["amerob"]
    with pytest.raises(UserError, match=r"scores of shape \(3, 1\) for 2 classes"):
        spans(scores[:, :1])


@pytest.mark.parametrize(
    ("estimated", "correct"),
    [
        ((1.2, 3.0, "amerob"), 1),  # the collar itself is within it
        ((1.21, 3.0, "amerob"), 0),
        ((0.79, 3.0, "amerob"), 0),
        ((1.0, 3.4, "amerob"), 1),  # a fifth of two seconds is more than the collar
        ((1.0, 3.41, "amerob"), 0),
        ((1.0, 2.6, "amerob"), 1),
        ((1.0, 3.0, "barswa"), 0),
    ],
)
def test_collars_by_hand(estimated, correct):
    assert match_events(table(estimated), table((1.0, 3.0, "amerob"))) == EventCounts(correct, 1, 1)


def test_short_events_have_the_collar_at_their_ends_too():
    reference = table((0.6, 0.7, "amerob"))
    assert match_events(table((0.6, 0.9, "amerob")), reference).correct == 1
    assert match_events(table((0.6, 0.91, "amerob")), reference).correct == 0


def test_an_event_is_matched_once_and_as_many_as_can_be():
    # Greedy in time, the first estimate takes the first reference, the only one that the second could have.
    reference = table((1.0, 1.5, "amerob"), (1.3, 1.8, "amerob"))
    estimated = table((1.15, 1.65, "amerob"), (0.85, 1.4, "amerob"))
    assert match_events(estimated, reference) == EventCounts(2, 2, 2)
    assert match_events(table(*[(1.0, 1.5, "amerob")] * 3), reference.iloc[:1]) == EventCounts(1, 3, 1)


def test_nothing_found_and_nothing_there():
    one = table((0.0, 1.0, "amerob"))
    assert match_events(table(), one) == EventCounts(0, 0, 1)
    assert match_events(one, table()) == EventCounts(0, 1, 0)
    assert math.isnan(match_events(table(), table()).f1)
    total = EventCounts(1, 2, 4) + EventCounts(2, 2, 1)
    assert (total.precision, total.recall, total.f1) == (0.75, 0.6, 6 / 9)


def random_events(seed, count):
    rng = np.random.default_rng(seed)
    start = np.round(rng.uniform(0, 2, count), 2)
    length = np.round(rng.choice([0.15, 0.5, 2.0], count), 2)
    species = rng.choice(CLASSES.codes, count)
    return pd.DataFrame(dict(zip(COLUMNS, (start, start + length, species), strict=True)))


def test_same_as_trying_every_assignment():
    for seed in range(150):
        rng = np.random.default_rng(1000 + seed)
        estimated, reference = (random_events(2 * seed + side, rng.integers(0, 6)) for side in (0, 1))
        rows, others = estimated.to_numpy(), reference.to_numpy()
        few, many = sorted((range(len(rows)), range(len(others))), key=len)
        swap = len(rows) > len(others)
        best = 0
        for picked in itertools.permutations(many, len(few)):
            pairs = [(j, i) if swap else (i, j) for i, j in zip(few, picked, strict=True)]
            best = max(best, sum(right(rows[i], others[j]) for i, j in pairs))
        assert match_events(estimated, reference).correct == best


def right(found, there):
    late = max(0.2, 0.2 * (there[1] - there[0])) + 1e-9
    return found[2] == there[2] and abs(found[0] - there[0]) <= 0.2 + 1e-9 and abs(found[1] - there[1]) <= late


def test_matches_sed_eval():
    # Of sed_eval 0.2.1, EventBasedMetrics(t_collar=0.2 + 1e-9, percentage_of_length=0.2), which has no rounding of its
    # own: both classes' true positives, estimated and reference events of these 40 files.
    golden = (64 + 53, 255 + 225, 174 + 186)
    counts = EventCounts()
    for seed in range(40):
        counts += match_events(random_events(500 + 2 * seed, 12), random_events(501 + 2 * seed, 9))
    assert (counts.correct, counts.estimated, counts.reference) == golden
