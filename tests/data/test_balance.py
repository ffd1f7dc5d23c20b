import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from birdtpu.data.balance import balance
from birdtpu.errors import UserError

quick = settings(max_examples=100, deadline=None, database=None)


def make_table(rows):
    """Recordings from tuples `(primary_label, duration_seconds)`."""
    table = pd.DataFrame(rows, columns=["primary_label", "duration_seconds"])
    return table.assign(recording=[f"XC{i}" for i in range(len(table))])


# Durations in quarters, so that equal lengths and exact thirds come up.
tables = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c", ""]), st.integers(1, 240).map(lambda quarters: quarters / 4)),
    min_size=1,
    max_size=25,
).map(make_table)


def balance_slowly(table, down_to, up_to, shortest, repeat):
    """The definition, word for word: `{recording: sections}` and samples a species."""
    sections, samples = {}, {}
    for species in set(table["primary_label"]):
        durations = {row.recording: row.duration_seconds for row in table.itertuples() if row.primary_label == species}
        if species and down_to:
            while len(durations) > down_to:
                del durations[min(durations, key=lambda name: (-durations[name], name))]
        counts = dict.fromkeys(durations, 1)
        while species and up_to and sum(counts.values()) < up_to:
            able = [name for name in counts if durations[name] / (counts[name] + 1) >= shortest - 1e-9]
            if not able:
                break
            counts[min(able, key=lambda name: (-durations[name] / counts[name], name))] += 1
        sections |= counts
        short = species and repeat and up_to and sum(counts.values()) < up_to
        samples[species] = up_to if short else sum(counts.values())
    return sections, samples


@quick
@given(
    tables,
    st.sampled_from([None, 0, 4, 8]),
    st.sampled_from([None, 0, 3, 4]),
    st.sampled_from([0.5, 5.0, 7.0]),
    st.booleans(),
)
def test_matches_slow_twin(table, down_to, up_to, shortest, repeat):
    sections, report = balance(table, down_to=down_to, up_to=up_to, min_section_seconds=shortest, repeat=repeat)
    want, samples = balance_slowly(table, down_to, up_to, shortest, repeat)
    assert sections["recording"].value_counts().to_dict() == want
    label = sections["recording"].map(table.set_index("recording")["primary_label"])
    assert sections["repeats"].groupby(label).sum().to_dict() == samples
    assert sections["repeats"].min() >= 1
    assert (sections["repeats"].groupby(label).agg(np.ptp) <= 1).all()
    assert report["species"].tolist() == sorted(set(table["primary_label"]))
    assert (report["kept"] + report["dropped"] == report["recordings"]).all()
    assert report["recordings"].sum() == len(table)
    assert dict(zip(report["species"], report["sections"] + report["repeats"], strict=True)) == samples
    aim = np.where(report["species"] == "", 0, up_to or 0)
    assert (report["short_by"] == np.maximum(0, aim - report["sections"] - report["repeats"])).all()


@quick
@given(tables, st.sampled_from([2, 6]))
def test_sections_of_a_recording_are_equal_and_joined_are_the_recording(table, up_to):
    sections, _ = balance(table, down_to=None, up_to=up_to, min_section_seconds=5)
    for name, part in sections.groupby("recording"):
        seconds = table.set_index("recording")["duration_seconds"][name]
        length = part["end_seconds"] - part["start_seconds"]
        assert part["start_seconds"].iloc[0] == 0 and part["end_seconds"].iloc[-1] == pytest.approx(seconds, abs=1e-9)
        assert part["start_seconds"].tolist()[1:] == part["end_seconds"].tolist()[:-1]
        assert np.ptp(length) < 1e-9
        assert len(part) == 1 or length.min() >= 5 - 1e-9


@quick
@given(tables, st.randoms(use_true_random=False))
def test_row_order_does_not_matter(table, random):
    mixed = table.iloc[random.sample(range(len(table)), len(table))]
    options = {"down_to": 5, "up_to": 4, "min_section_seconds": 5, "repeat": True}
    for straight, other in zip(balance(table, **options), balance(mixed, **options), strict=True):
        pd.testing.assert_frame_equal(straight, other)


def test_longest_are_dropped_and_short_ones_kept_whole():
    sections, report = balance(make_table([("a", float(i)) for i in range(1, 101)]), min_section_seconds=5)
    assert sorted(sections["end_seconds"]) == list(range(1, 81))
    assert report.iloc[0].tolist() == ["a", 100, 80, 20, 80, 0, 0]


def test_between_the_counts_nothing_changes():
    table = make_table([("a", 60.0)] * 70)
    sections, _ = balance(table, min_section_seconds=5)
    assert len(sections) == 70 and set(sections["end_seconds"]) == {60.0}


def test_species_do_not_share_a_counter():
    both = make_table([("a", 30.0)] * 90 + [("b", 30.0)] * 90)
    assert balance(both, min_section_seconds=5)[1]["kept"].tolist() == [80, 80]


def test_cutting_goes_on_where_the_longest_section_is_uncuttable():
    # Sections of 19 s may not be halved, while those of 18 s (of 36 s) may become three of 12 s.
    sections, _ = balance(make_table([("a", 19.0), ("a", 36.0)]), up_to=4, min_section_seconds=10)
    assert sections["end_seconds"].tolist() == [19, 12, 24, 36]


def test_cut_to_exactly_the_shortest_section_is_allowed():
    assert len(balance(make_table([("a", 30.0)]), up_to=9, min_section_seconds=10)[0]) == 3
    assert len(balance(make_table([("a", 0.3)]), up_to=9, min_section_seconds=0.1)[0]) == 3


def test_too_little_audio_stays_short_unless_repeated():
    table = make_table([("a", 12.0), ("a", 3.0)])
    sections, report = balance(table, min_section_seconds=5)
    assert sections["repeats"].tolist() == [1, 1, 1] and report["short_by"].tolist() == [57]
    sections, report = balance(table, up_to=7, min_section_seconds=5, repeat=True)
    assert sections["repeats"].tolist() == [3, 2, 2] and report["repeats"].tolist() == [4]
    assert report["short_by"].tolist() == [0]


def test_recordings_without_a_label_pass_through_and_are_counted():
    sections, report = balance(make_table([("", 600.0)] * 100 + [("a", 6.0)]), min_section_seconds=5, repeat=True)
    assert report.iloc[0].tolist() == ["", 100, 100, 0, 100, 0, 0]
    assert set(sections["end_seconds"][sections["repeats"] == 1]) == {600.0}


def test_copies_of_a_recording_count_once():
    table = pd.concat([make_table([("a", 9.0), ("a", 8.0)])] * 2)
    assert balance(table, up_to=0, min_section_seconds=5)[1]["recordings"].tolist() == [2]


@pytest.mark.parametrize(
    ("seconds", "options", "message"),
    [
        (float("nan"), {}, r"1 recordings without duration \(XC0"),
        (9.0, {"down_to": 10, "up_to": 20}, "up_to = 20 is above down_to = 10"),
        (9.0, {"min_section_seconds": 0}, "give more than 0"),
    ],
)
def test_what_cannot_be_balanced_is_a_user_error(seconds, options, message):
    with pytest.raises(UserError, match=message):
        balance(make_table([("a", seconds)]), **{"min_section_seconds": 5, **options})


def test_twenty_thousand_recordings_take_no_time():
    rng = np.random.default_rng(0)
    table = make_table(list(zip(rng.integers(0, 400, 20_000).astype(str), rng.uniform(1, 600, 20_000), strict=True)))
    start = time.perf_counter()
    balance(table, up_to=70, min_section_seconds=5)
    assert time.perf_counter() - start < 5


def test_the_most_recent_of_the_first_data_set_stay():
    table = make_table([("a", 9.0)] * 6 + [("b", 9.0)]).assign(
        data_set=["now", "old", "old", "now", "old", "now", "old"],
        date=["2023-01-05", "2024-01-01", "", "", "2019-01-01", "2024-05-01", "2020-01-01"],
    )
    names = table["recording"].tolist()
    # From the first to go to the last: of the older set the one without a date, then by date; then the newer set's.
    order = [names[i] for i in (2, 4, 1, 3, 0, 5)]
    for kept in range(1, 7):
        sections, report = balance(table, down_to=kept, up_to=0, min_section_seconds=5, keep="recent")
        assert set(sections["recording"]) == {*order[-kept:], names[6]}
        assert report.set_index("species").loc["a", "dropped"] == 6 - kept


def test_a_recordings_ends_are_its_sections():
    table = make_table([("a", 30.0), ("a", 11.0), ("a", 4.0), ("", 50.0)])
    options = {"down_to": 0, "up_to": 0, "min_section_seconds": 5}

    def ends(**more):
        sections = balance(table, **options, **more)[0]
        return [tuple(row) for row in sections[["recording", "start_seconds", "end_seconds"]].itertuples(index=False)]

    assert ends(first_seconds=6.0) == [("XC0", 0, 6), ("XC1", 0, 6), ("XC2", 0, 4), ("XC3", 0, 50)]
    assert ends(last_seconds=6.0) == [("XC0", 24, 30), ("XC1", 5, 11), ("XC2", 0, 4), ("XC3", 0, 50)]
    both = ends(first_seconds=6.0, last_seconds=6.0)
    assert both == [("XC0", 0, 6), ("XC0", 24, 30), ("XC1", 0, 11), ("XC2", 0, 4), ("XC3", 0, 50)]


def test_ends_are_repeated_to_the_aim():
    sections, report = balance(
        make_table([("a", 30.0), ("a", 60.0)]),
        down_to=9,
        up_to=5,
        min_section_seconds=5,
        repeat=True,
        first_seconds=6.0,
    )
    assert sections["repeats"].tolist() == [3, 2] and sections["end_seconds"].tolist() == [6, 6]
    assert report.loc[0, ["sections", "repeats", "short_by"]].tolist() == [2, 3, 0]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_rarer_species_are_sampled_by_a_power_of_their_count(power):
    table = make_table([("a", 10.0)] * 64 + [("b", 10.0)] * 16 + [("c", 10.0), ("", 10.0)])
    sections, report = balance(table, down_to=0, up_to=0, min_section_seconds=5, sample_power=power)
    named = sections.merge(table, on="recording")
    samples = named.groupby("primary_label")["repeats"].sum().to_dict()
    assert samples == {"a": 64, "b": {0.0: 16, 0.5: 32, 1.0: 64}[power], "c": {0.0: 1, 0.5: 8, 1.0: 64}[power], "": 1}
    # As a sampler that weighs each sample by n ^ -power: each species' share of the draws.
    weight = {name: count**-power * count for name, count in (("a", 64), ("b", 16), ("c", 1))}
    for name, each in weight.items():
        share = samples[name] / sum(samples[key] for key in weight)
        assert share == pytest.approx(each / sum(weight.values()), rel=0.01)
    assert report.set_index("species")["repeats"].to_dict() == {
        name: samples[name] - count for name, count in (("a", 64), ("b", 16), ("c", 1), ("", 1))
    }
    assert named[named["primary_label"] == "b"]["repeats"].nunique() == 1
