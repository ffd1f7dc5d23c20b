import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from birdtpu.data.annotations import annotated_sections
from birdtpu.data.balance import balance
from birdtpu.data.plan import (
    COLUMNS,
    dense_targets,
    load_plan,
    make_plan,
    plan_report,
    save_plan,
)
from birdtpu.errors import UserError
from birdtpu.species import ClassList

NAN = float("nan")
CLASSES = ClassList(("a", "b", "c"))
ROLES = ["train", "validation", "test"]
quick = settings(max_examples=80, deadline=None, database=None)


def make_recordings(rows):
    """From tuples `(primary_label, secondary_labels, duration_seconds)`."""
    table = pd.DataFrame(rows, columns=["primary_label", "secondary_labels", "duration_seconds"])
    return table.assign(recording=[f"XC{i}" for i in range(len(table))])


def make_records(recordings, record_seconds=20.0, sample_rate=100):
    """Equal stretches of whole samples, the last shorter by rounding, as `prepare` cuts them."""
    rows = []
    for name, seconds in zip(recordings["recording"], recordings["duration_seconds"], strict=True):
        samples = round(seconds * sample_rate)
        count = math.ceil(samples / (record_seconds * sample_rate))
        length = math.ceil(samples / count)
        for i in range(count):
            start, end = i * length, min((i + 1) * length, samples)
            rows.append((f"{name}/{i:05d}", name, start / sample_rate, (end - start) / sample_rate))
    return pd.DataFrame(rows, columns=["record", "recording", "start_seconds", "seconds"])


def make_annotations(rows):
    """From tuples `(recording, start_seconds, end_seconds, species, state)`."""
    return pd.DataFrame(rows, columns=["recording", "start_seconds", "end_seconds", "species", "state"])


NO_ANNOTATIONS = make_annotations([]).astype({"start_seconds": float, "end_seconds": float})


def plan_of(recordings, *, annotations=NO_ANNOTATIONS, sections=None, roles=None, **options):
    roles = ["train"] * len(recordings) if roles is None else roles
    if sections is None:
        part = recordings[np.asarray(roles) == "train"]
        sections, _ = balance(part, down_to=0, up_to=0, min_section_seconds=5)
    records = make_records(recordings.drop_duplicates("recording"), options.pop("record_seconds", 20.0))
    fixed = {"classes": CLASSES, "clip_seconds": 5.0, "sections": sections, "roles": roles}
    return make_plan(recordings, annotations, records, **{**fixed, **options})


def one_section(start, end):
    return pd.DataFrame({"recording": ["XC0"], "start_seconds": [start], "end_seconds": [end], "repeats": [1]})


labelled = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(["", "a", "b;c", "c;c;out"]),
        st.integers(20, 12000).map(lambda hundredths: hundredths / 100),
        st.sampled_from(ROLES),
    ),
    min_size=1,
    max_size=12,
).filter(lambda rows: any(row[3] == "train" for row in rows))


@quick
@given(labelled, st.sampled_from([0, 2, 5]), st.sampled_from([0.01, 5.0]), st.sampled_from([7.0, 20.0, 60.0]))
def test_rows_lie_in_their_records_and_nothing_is_double(rows, up_to, clip_seconds, record_seconds):
    recordings, roles = make_recordings([row[:3] for row in rows]), pd.Series([row[3] for row in rows])
    sections, _ = balance(recordings[roles == "train"], down_to=5, up_to=up_to, min_section_seconds=3)
    plan = plan_of(recordings, sections=sections, roles=roles, clip_seconds=clip_seconds, record_seconds=record_seconds)
    records = make_records(recordings, record_seconds).set_index("record").loc[plan["record"]].reset_index()
    assert plan["row"].tolist() == list(range(len(plan)))
    assert sorted(set(plan["section"])) == list(range(plan["section"].nunique()))
    assert (plan["start_seconds"] >= 0).all() and (plan["end_seconds"] <= records["seconds"]).all()
    assert (plan["start_seconds"] < plan["end_seconds"]).all()
    assert not plan.duplicated(["section", "record"]).any()
    # No recording has two roles, and its rows follow each other without sharing time.
    where = plan.assign(recording=records["recording"], begin=plan["start_seconds"] + records["start_seconds"])
    where["finish"] = plan["end_seconds"] + records["start_seconds"]
    assert (where.groupby("recording")["role"].nunique() == 1).all()
    for name, part in where.groupby("recording"):
        assert part["role"].iloc[0] == roles[int(name[2:])]
        assert (part["begin"].to_numpy()[1:] >= part["finish"].to_numpy()[:-1] - 1e-9).all()
    # Whole recordings lose nothing; sections may, where one record must hold them alone.
    got = where.groupby("recording").apply(lambda part: (part["finish"] - part["begin"]).sum(), include_groups=False)
    whole = recordings.set_index("recording")["duration_seconds"]
    held = [f"XC{i}" for i, role in enumerate(roles) if role != "train"]
    assert np.allclose(got[held], whole[held], atol=1e-6)
    assert (got <= whole[got.index] + 1e-6).all()
    if not up_to:
        assert np.allclose(got, whole[got.index], atol=1e-6)


def test_sections_longer_than_a_record_have_a_row_in_each():
    recordings = make_recordings([("a", "", 60.0)])
    sections, _ = balance(recordings, up_to=2, min_section_seconds=5)
    plan = plan_of(recordings, sections=sections)
    assert plan[["section", "record", "start_seconds", "end_seconds"]].values.tolist() == [
        [0, "XC0/00000", 0, 20],
        [0, "XC0/00001", 0, 10],
        [1, "XC0/00001", 10, 20],
        [1, "XC0/00002", 0, 20],
    ]


@pytest.mark.parametrize(
    ("start", "end", "rows"),
    [
        (15, 24, [["XC0/00000", 15, 20]]),
        (16, 26, [["XC0/00001", 0, 6]]),
        (15, 25, [["XC0/00000", 15, 20]]),
        (10, 30, [["XC0/00000", 10, 20]]),
        (17, 41, [["XC0/00000", 17, 20], ["XC0/00001", 0, 20]]),
        (17.6, 42.4, [["XC0/00001", 0, 20]]),
    ],
)
def test_section_across_records_belongs_to_those_that_hold_enough(start, end, rows):
    plan = plan_of(make_recordings([("a", "", 60.0)]), sections=one_section(start, end))
    assert plan[["record", "start_seconds", "end_seconds"]].values.tolist() == rows


def test_repeats_weights_and_roles_reach_the_rows():
    recordings = make_recordings([("a", "", 4.0), ("b", "", 30.0)])
    sections = one_section(0.0, 4.0).assign(repeats=3)
    plan = plan_of(recordings, sections=sections, roles=["train", "test"], weights=[0.5, 2.0])
    assert plan["repeats"].tolist() == [3, 1, 1] and plan["weight"].tolist() == [0.5, 2, 2]
    assert plan["role"].tolist() == ["train", "test", "test"] and plan["section"].tolist() == [0, 1, 1]
    assert set(plan["source"]) == {"labelled"}


def test_training_recordings_outside_the_balance_are_left_out():
    recordings = make_recordings([("a", "", 4.0), ("b", "", 4.0)])
    assert plan_of(recordings, sections=one_section(0.0, 4.0))["targets"].tolist() == ["a"]


@pytest.mark.parametrize(
    ("secondary", "targets", "unknown"),
    [("positive", "a;c", ""), ("unknown", "a", "c"), ("negative", "a", "")],
)
def test_secondary_labels_count_as_the_recipe_says(secondary, targets, unknown):
    plan = plan_of(make_recordings([("a", "c;a;out;c", 4.0)]), secondary=secondary)
    assert (plan["targets"][0], plan["unknown"][0]) == (targets, unknown)


def test_nothing_known_gives_no_row():
    recordings = make_recordings([("a", "", 4.0), ("", "b", 4.0), ("", "", 600.0)])
    plan = plan_of(recordings)
    assert plan["targets"].tolist() == ["a", "b"] and plan["unknown"].tolist() == ["", "*"]
    assert plan_of(recordings, secondary="unknown")["targets"].tolist() == ["a"]


def test_boxes_know_only_what_they_say():
    recordings = make_recordings([("", "", 60.0), ("b", "", 9.0)])
    boxes = make_annotations(
        [
            ("XC0", 1.0, 3.0, "a", "positive"),
            ("XC0", 5.0, 8.0, "b", "negative"),
            ("XC0", 30.0, 31.0, "out", "positive"),
            ("XC9", 1.0, 2.0, "a", "positive"),
        ]
    )
    plan = plan_of(recordings, annotations=boxes)
    assert plan[["start_seconds", "end_seconds", "targets", "unknown"]].values.tolist() == [
        [1, 3, "a", "*"],
        [5, 8, "", "*;b"],
        [0, 9, "b", ""],
    ]


def test_complete_rows_know_everything_and_nocall_is_a_section():
    rows = [("XC0", 0.0, 5.0, "*", "negative"), ("XC0", 5.0, 10.0, "*", "negative")]
    rows += [("XC0", 5.0, 10.0, species, "positive") for species in ("c", "a", "out")]
    rows += [("XC0", 5.0, 10.0, "b", "unknown"), ("XC0", 10.0, NAN, "*", "negative")]
    recordings = make_recordings([("", "", 12.0)])
    plan = plan_of(recordings, annotations=make_annotations(rows), weights=[0.25])
    assert plan[["start_seconds", "end_seconds", "targets", "unknown"]].values.tolist() == [
        [0, 5, "", ""],
        [5, 10, "a;c", "b"],
        # A clip of 5 s holds the end of the stretch before, and perhaps its birds.
        [10, 12, "", "a;b;c"],
    ]
    assert set(plan["weight"]) == {0.25}
    alone = plan_of(recordings, annotations=make_annotations(rows), whole_clips=False)
    assert alone["targets"].tolist() == ["", "a;c", ""] and alone["unknown"].tolist() == ["", "b", ""]


def test_a_short_stretch_knows_only_what_holds_for_its_clip():
    rows = [("XC0", 0.0, 0.5, "*", "negative"), ("XC0", 0.5, 3.0, "a", "positive"), ("XC0", 0.5, 3.0, "*", "negative")]
    rows += [("XC0", 20.0, 21.0, "*", "negative"), ("XC0", 30.0, 31.0, "b", "negative")]
    recordings = make_recordings([("", "", 60.0)])
    with pytest.warns(UserWarning, match="3 stretches are shorter than a clip, and what lies beside them"):
        plan = plan_of(recordings, annotations=make_annotations(rows))
    columns = ["start_seconds", "end_seconds", "targets", "unknown"]
    # Of the first and the fourth, nothing would hold for a clip.
    assert plan[columns].values.tolist() == [[0.5, 3.0, "a", "*"], [10.0, 11.0, "", "*;b"]]
    rows += [("XC0", 3.0, 9.0, "*", "negative")]
    with pytest.warns(UserWarning, match="1 stretches are shorter"):
        plan = plan_of(recordings, annotations=make_annotations(rows))
    assert plan[columns].values.tolist()[:3] == [[0.0, 0.5, "", "a"], [0.5, 3.0, "a", ""], [3.0, 9.0, "", ""]]


@pytest.mark.filterwarnings("ignore:annotations. 1 stretches are shorter than a clip")
def test_nocall_as_a_class_is_where_nothing_of_the_table_sings():
    rows = [("XC0", start, start + 5.0, "*", "negative") for start in (0.0, 5.0, 10.0, 15.0)]
    rows += [("XC0", 5.0, 10.0, "a", "positive"), ("XC0", 11.0, 12.0, "out", "positive")]
    rows += [("XC0", 16.0, 17.0, "b", "unknown"), ("XC0", 30.0, 35.0, "a", "positive")]
    classes = ClassList(("a", "b", "nocall"))
    plan = plan_of(make_recordings([("", "", 60.0)]), annotations=make_annotations(rows), classes=classes)
    whole = plan[plan["end_seconds"] - plan["start_seconds"] == 5]
    assert whole[["targets", "unknown"]].values.tolist() == [
        ["nocall", ""], ["a", ""], ["", ""], ["", "b;nocall"], ["a", "*"],
    ]  # fmt: skip


def test_annotations_give_held_out_sections_too():
    rows = [(name, 0.0, 5.0, "a", "positive") for name in ("XC0", "XC1")]
    plan = plan_of(
        make_recordings([("", "", 60.0)] * 2),
        annotations=make_annotations(rows),
        roles=["train", "validation"],
    )
    assert plan["role"].tolist() == ["train", "validation"] and plan["end_seconds"].tolist() == [5, 5]


def test_annotation_without_time_is_a_warning():
    rows = [
        ("XC0", 0.0, 5.0, "a", "positive"),
        ("XC0", 70.0, 75.0, "a", "positive"),
        ("XC0", 3.0, 3.0, "a", "positive"),
    ]
    with pytest.warns(UserWarning, match="2 rows hold no time of their recording, as in XC0"):
        plan = plan_of(make_recordings([("", "", 60.0)]), annotations=make_annotations(rows))
    assert len(plan) == 1


def truth_slowly(rows, start, end, code, clip):
    """The rules of `annotated_sections` for one species, row by row. All times are whole seconds."""
    mine = [row for row in rows if row[3] == code]
    if any(
        row[4] == "positive" and ((row[1] <= start and row[2] >= end) or (row[1] >= start and row[2] <= end))
        for row in mine
    ):
        return 1
    beyond = max(0, clip - (end - start))
    first, last = max(0, start - beyond), min(30, end + beyond)
    if any(row[4] in ("positive", "unknown") and row[1] < last and row[2] > first for row in mine):
        return None
    if any(row[4] == "negative" and row[1] <= start and row[2] >= end for row in mine):
        return 0
    complete = [row for row in rows if row[3] == "*"]
    if all(any(row[1] <= second < row[2] for row in complete) for second in range(int(first), int(last))):
        return 0
    return None


annotation_rows = st.lists(
    st.tuples(
        st.just("XC0"),
        st.integers(0, 12),
        st.integers(1, 8),
        st.sampled_from(["a", "b", "*", "out"]),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=14,
).map(
    lambda rows: [
        (name, float(start), float(start + length), code, "negative" if code == "*" else STATES[state])
        for name, start, length, code, state in rows
    ]
)
STATES = ["positive", "negative", "unknown"]


@quick
@given(annotation_rows, st.sampled_from([0.0, 5.0]))
@pytest.mark.filterwarnings("ignore:annotations. .* stretches are shorter than a clip")
def test_annotated_sections_match_slow_twin(rows, clip):
    sections = annotated_sections(make_annotations(rows), pd.Series({"XC0": 30.0}), CLASSES, clip_seconds=clip)
    want = {}
    for start, end in {row[1:3] for row in rows}:
        truth = [truth_slowly(rows, start, end, code, clip) for code in CLASSES.codes]
        if set(truth) != {None}:
            want[start, end] = truth
    keys = list(zip(sections["start_seconds"], sections["end_seconds"], strict=True))
    assert keys == sorted(want)
    if keys:
        targets, mask = dense_targets(sections, CLASSES)
        assert [
            [int(t) if m else None for t, m in zip(*row, strict=True)] for row in zip(targets, mask, strict=True)
        ] == [want[key] for key in keys]
    for row in sections.itertuples():
        through = {r[3] for r in rows if r[4] == "positive" and r[1] <= row.start_seconds and r[2] >= row.end_seconds}
        assert set(row.within.split(";")) - {""} == set(row.targets.split(";")) - through - {""}


def test_dense_targets_and_mask():
    plan = pd.DataFrame({"targets": ["a;c", "b", "", "a"], "unknown": ["", "*", "*;b", "b;c"]})
    targets, mask = dense_targets(plan, CLASSES)
    assert targets.dtype == mask.dtype == np.float32
    assert targets.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [0, 1, 0], [0, 1, 0], [1, 0, 0]]
    with pytest.raises(UserError, match="species 'c' is not in the class list"):
        dense_targets(plan, ClassList(("a", "b")))


@quick
@given(labelled.map(lambda rows: [row[:3] for row in rows]))
def test_saved_plan_is_the_same_to_the_last_bit(tmp_path_factory, rows):
    plan = plan_of(make_recordings(rows), sections=None, weights=np.random.default_rng(0).random(len(rows)))
    path = tmp_path_factory.mktemp("plan") / "plan.csv"
    save_plan(plan, path)
    pd.testing.assert_frame_equal(load_plan(path), plan, check_exact=True)


def test_codes_that_look_like_numbers_or_gaps_stay_text(tmp_path):
    classes = ClassList(("007", "NA"))
    plan = plan_of(make_recordings([("007", "NA", 4.0)]), classes=classes)
    save_plan(plan, tmp_path / "plan.csv")
    assert load_plan(tmp_path / "plan.csv")["targets"].tolist() == ["007;NA"]


@pytest.mark.parametrize("text", ["", "row,section\n0,0\n", ",".join(COLUMNS) + "\nx,0,r,0,1,1,train,labelled,1,a,\n"])
def test_file_that_is_no_plan_is_a_user_error(tmp_path, text):
    (tmp_path / "plan.csv").write_text(text)
    with pytest.raises(UserError, match=r"plan\.csv: not a plan"):
        load_plan(tmp_path / "plan.csv")
    with pytest.raises(UserError, match="no such file"):
        load_plan(tmp_path / "other.csv")


def test_copies_of_a_recording_are_one_by_the_first():
    table = make_recordings([("a", "", 4.0)])
    copies = pd.concat([table, table.assign(primary_label="b")], ignore_index=True)
    assert plan_of(copies, sections=one_section(0.0, 4.0))["targets"].tolist() == ["a"]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([("a", "", 4.0)], {"secondary": "soft"}, "labels.secondary = 'soft'"),
        ([("out", "", 4.0)], {}, "primary label 'out' of XC0 is not in the class list"),
        ([("", "", 4.0)], {}, "no labelled recording is left to train on"),
        ([("a", "", 4.0)], {"roles": ["test"]}, "no labelled recording is left to train on"),
    ],
)
def test_impossible_plan_is_a_user_error(rows, options, message):
    with pytest.raises(UserError, match=message):
        plan_of(make_recordings(rows), **{"sections": one_section(0.0, 4.0), **options})


def test_recording_without_records_is_a_user_error():
    recordings = make_recordings([("a", "", 4.0), ("a", "", 4.0)])
    with pytest.raises(UserError, match=r"the shards lack 1 of the recordings \(XC1"):
        make_plan(
            recordings,
            NO_ANNOTATIONS,
            make_records(recordings[:1]),
            sections=one_section(0.0, 4.0),
            roles=["train"] * 2,
            classes=CLASSES,
            clip_seconds=5.0,
        )


def test_report_counts_every_species_in_every_role():
    recordings = make_recordings([("a", "b", 30.0), ("a", "", 4.0), ("b", "", 8.0)])
    rows = [
        line.split()
        for line in plan_report(plan_of(recordings, roles=["train", "train", "test"]), CLASSES).splitlines()
    ]
    assert rows == [
        [
            "species",
            "train",
            "recordings",
            "train",
            "sections",
            "train",
            "seconds",
            "test",
            "recordings",
            "test",
            "sections",
            "test",
            "seconds",
        ],
        ["a", "2", "2", "34", "0", "0", "0"],
        ["b", "1", "1", "30", "1", "1", "8"],
        ["c", "0", "0", "0", "0", "0", "0"],
        ["all", "2", "2", "34", "1", "1", "8"],
    ]


def test_report_names_rows_without_a_species():
    rows = make_annotations([("XC0", 0.0, 5.0, "*", "negative"), ("XC0", 5.0, 9.0, "a", "positive")])
    plan = plan_of(make_recordings([("", "", 12.0)]), annotations=rows)
    lines = [line.split() for line in plan_report(plan, CLASSES).splitlines()]
    assert lines[-2:] == [["(none)", "1", "1", "5"], ["all", "1", "2", "9"]]
