import numpy as np
import pandas as pd
import pytest

from birdtpu.errors import UserError
from birdtpu.inference import timeline
from birdtpu.species import ClassList

CLASSES = ClassList(("amerob", "123", "NA"), ("Turdus migratorius", "", "Nanus $x_"), ("American Robin", "", "日本 ü"))
STARTS = np.array([0.0, 2.5, 5.0, 7.5])
SCORES = np.array([[0.9, 0.1, 0.5], [0.8, 0.2, 0.95], [0.1, 0.6, 0.2], [0.7, 0.1, 0.2]])


def segments(**changed):
    keys = {"threshold": 0.5} | changed
    return timeline.segments(STARTS, 5.0, SCORES, CLASSES, **keys)


def test_segments_are_sorted_by_start_then_falling_score():
    table = segments()
    assert list(table.columns) == [
        "start_seconds", "end_seconds", "species", "common_name", "scientific_name", "score",
    ]  # fmt: skip
    assert list(table.species) == ["amerob", "NA", "NA", "amerob", "123", "amerob"]
    assert list(table.start_seconds) == [0, 0, 2.5, 2.5, 5, 7.5]
    assert table.score[1] == 0.5  # a score at the threshold is in
    assert list(table.common_name)[:3] == ["American Robin", "日本 ü", "日本 ü"]


def test_thresholds_may_differ_by_species_and_ends_stop_at_the_recording():
    table = segments(threshold=np.array([0.95, 0.55, 0.9]), duration_seconds=9.0)
    assert list(table.species) == ["NA", "123"]
    assert list(table.end_seconds) == [7.5, 9.0]


def test_no_detection_keeps_the_columns():
    table = segments(threshold=2.0)
    assert table.empty and list(table.columns) == timeline.COLUMNS
    assert list(timeline.merge_events(table).columns) == timeline.COLUMNS


def test_wrong_shapes_and_nan_are_errors():
    with pytest.raises(UserError, match="class list"):
        timeline.segments(STARTS, 5.0, SCORES[:, :2], CLASSES, threshold=0.5)
    with pytest.raises(UserError, match="not finite"):
        timeline.segments(STARTS, 5.0, SCORES * np.nan, CLASSES, threshold=0.5)


def test_events_join_what_touches():
    events = timeline.merge_events(segments())
    robin = events[events.species == "amerob"]
    # Clips at 0 and 2.5 end at 7.5, where the last one starts.
    assert robin[["start_seconds", "end_seconds", "score"]].to_numpy().tolist() == [[0, 12.5, 0.9]]
    assert len(events) == 3


@pytest.mark.parametrize(("gap", "count"), [(0.0, 2), (2.9, 2), (3.0, 1)])
def test_events_bridge_gaps_up_to_the_length_asked(gap, count):
    table = segments().iloc[[0, 0]].assign(start_seconds=[0.0, 8.0], end_seconds=[5.0, 13.0])
    assert len(timeline.merge_events(table, gap_seconds=gap)) == count


def test_events_match_a_slow_twin(seed=3):
    rng = np.random.default_rng(seed)
    starts, scores = np.arange(0, 60, 2.5), rng.random((24, 3))
    table = timeline.segments(starts, 5.0, scores, CLASSES, threshold=0.7)
    events = timeline.merge_events(table)
    for code in CLASSES.codes:
        ticks = np.zeros(700, bool)  # tenths of a second
        for row in table[table.species == code].itertuples():
            ticks[round(row.start_seconds * 10) : round(row.end_seconds * 10)] = True
        edges = np.flatnonzero(np.diff(np.r_[False, ticks, False])).reshape(-1, 2) / 10
        got = events.loc[events.species == code, ["start_seconds", "end_seconds"]].to_numpy()
        assert np.allclose(got, edges)


def test_rows_weight_clips_by_what_they_share():
    values = timeline.row_scores(STARTS, 5.0, SCORES, 5.0, 10.0)
    assert np.allclose(values, 0.25 * SCORES[1] + 0.5 * SCORES[2] + 0.25 * SCORES[3])
    assert np.allclose(timeline.row_scores(STARTS[::2], 5.0, SCORES[::2], 5.0, 10.0), SCORES[2])


def test_rows_by_max_take_centres_on_either_end():
    assert np.allclose(timeline.row_scores(STARTS, 5.0, SCORES, 5.0, 10.0, aggregate="max"), SCORES[1:].max(0))
    # No centre within half a second: the clip that shares most.
    assert np.allclose(timeline.row_scores(STARTS[::2], 5.0, SCORES[::2], 5.1, 5.6, aggregate="max"), SCORES[2])


def test_a_row_past_the_clips_has_no_scores():
    assert timeline.row_scores(STARTS, 5.0, SCORES, 12.5, 17.5) is None
    assert timeline.row_scores(STARTS[:0], 5.0, SCORES[:0], 0, 5) is None


@pytest.mark.parametrize("threshold", [0.5, 0.99])
def test_plot_takes_any_name(tmp_path, threshold):
    log_mel = np.random.default_rng(0).normal(size=(4000, 16))
    path = tmp_path / "dawn 日本.png"
    timeline.plot(
        path, log_mel, STARTS, 5.0, SCORES, CLASSES,
        duration_seconds=11.0, mel_hz=np.geomspace(100, 9000, 16), threshold=threshold, title="$a_ \udcff \n 한국.wav",
    )  # fmt: skip
    assert path.read_bytes().startswith(b"\x89PNG")
    assert pd.Series(path.read_bytes()[16:24]).any()


def test_plot_of_silence_and_of_one_clip(tmp_path):
    timeline.plot(tmp_path / "a.png", np.zeros((10, 4)), STARTS[:1], 5.0, SCORES[:1], CLASSES, duration_seconds=5.0)
    assert (tmp_path / "a.png").stat().st_size > 1000
    with pytest.raises(UserError, match="no clip"):
        timeline.plot(tmp_path / "b.png", np.zeros((10, 4)), STARTS[:0], 5.0, SCORES[:0], CLASSES, duration_seconds=5.0)
