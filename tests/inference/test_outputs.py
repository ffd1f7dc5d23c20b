import os

import numpy as np
import pandas as pd
import pytest

from birdtpu.errors import UserError
from birdtpu.inference import timeline
from birdtpu.inference.outputs.csv import output_name, write_table
from birdtpu.inference.outputs.submission import SubmissionWarning, check_sample, fill_submission, write_submission
from birdtpu.species import ClassList

CLASSES = ClassList(("amerob", "123", "yehcar1"))
STARTS = np.array([0.0, 5.0, 10.0])
SCORES = np.array([[0.9, 0.6, 0.1], [0.1, 0.2, 0.3], [0.2, 0.7, 0.4]])


def fill(tmp_path, text, stems, *, classes=CLASSES, **keys):
    (tmp_path / "sample.csv").write_text(text, "utf-8")
    scores = dict.fromkeys(stems, (STARTS, SCORES))
    return fill_submission(tmp_path / "sample.csv", scores, classes=classes, clip_seconds=5.0, **keys)


def test_same_name_in_other_folders_does_not_collide():
    paths = ["a/dawn.wav", "b/dawn.wav", "a/dawn.mp3", "dawn.wav", "日本/ñ é.ogg"]
    names = [output_name(path) for path in paths]
    assert names == [path + ".csv" for path in paths]
    assert output_name("a/dawn.wav", ".png") == "a/dawn.wav.png"


def test_long_names_are_cut_and_stay_apart(tmp_path):
    names = [output_name("ä" * 120 + end + ".wav") for end in "xy"]
    assert len(set(names)) == 2
    for name in names:
        write_table(tmp_path / name, pd.DataFrame({"a": [1]}))
        assert (tmp_path / name).exists()


@pytest.mark.parametrize("path", ["/etc/dawn.wav", "../dawn.wav", "a/../../b.wav", ""])
def test_paths_out_of_the_folder_are_errors(path):
    with pytest.raises(UserError, match="relative"):
        output_name(path)


def test_segments_survive_the_csv(tmp_path):
    classes = ClassList(("NA", "0123"), common_names=('Wren, "Jenny"\n', "山椒喰"))
    table = timeline.segments([86400.125], 5.0, [[0.123456789, 0.5]], classes, threshold=0.0)
    path = tmp_path / "new" / output_name("x/y.wav")
    write_table(path, table)
    read = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert list(read.species) == ["0123", "NA"]
    assert list(read.common_name) == ["山椒喰", 'Wren, "Jenny"\n']
    assert list(read.start_seconds) == ["86400.125"] * 2
    assert list(read.score) == ["0.5", "0.123457"]


def test_names_that_are_no_unicode_are_written(tmp_path):
    write_table(tmp_path / "a.csv", pd.DataFrame({"path": pd.Series([os.fsdecode(b"\xff.wav")], dtype=object)}))
    assert (tmp_path / "a.csv").read_text("utf-8") == "path\n\\udcff.wav\n"


def test_2020_rows_and_whole_files(tmp_path):
    text = "row_id,birds\nsite_1_0a99_10,\nsite_1_0a99_5,aldfly\nsite_3_9cc5,\nsite_2_0a99_15,a\n"
    got = fill(tmp_path, text, ["0a99", "9cc5"])
    assert list(got.row_id) == ["site_1_0a99_10", "site_1_0a99_5", "site_3_9cc5", "site_2_0a99_15"]
    assert list(got.birds) == ["nocall", "amerob 123", "amerob 123", "123"]


def test_2021_rows_leave_the_date_out(tmp_path):
    text = "row_id,birds\n57610_COR_5,\n57610_COR_10,\n7019_COR_15,\n"
    got = fill(tmp_path, text, ["57610_COR_20190904", "7019_COR_20190904"], threshold=np.array([0.95, 0.1, 0.35]))
    assert list(got.birds) == ["123", "123", "123 yehcar1"]
    with pytest.raises(UserError, match="57610_COR could be any of"):
        fill(tmp_path, text, ["57610_COR_20190904", "57610_COR_20190905"])


def test_2022_rows_name_a_species(tmp_path):
    text = "row_id,target\nsoundscape_453_amerob_5,False\nsoundscape_453_123_10,True\nsoundscape_453_skylar_5,True\n"
    with pytest.warns(SubmissionWarning, match="skylar"):
        got = fill(tmp_path, text, ["soundscape_453"])
    write_submission(tmp_path / "out.csv", got)
    assert (tmp_path / "out.csv").read_text() == (
        "row_id,target\nsoundscape_453_amerob_5,True\nsoundscape_453_123_10,False\nsoundscape_453_skylar_5,False\n"
    )


@pytest.mark.parametrize("stem", ["soundscape_29201", "BC2026_Test_0001_S05_20250227_010002"])
def test_2023_to_2026_keep_rows_and_columns_in_order(tmp_path, stem):
    text = f"row_id,yehcar1,unknown,123\n{stem}_15,0.1,0.1,0.1\n{stem}_5,,,\nother_5,.5,.5,.5\n{stem}_500,1,1,1\n"
    with pytest.warns(SubmissionWarning) as record:
        got = fill(tmp_path, text, [stem])
    assert list(got.columns) == ["row_id", "yehcar1", "unknown", "123"]
    assert got.iloc[:, 1:].to_numpy().tolist() == [[0.4, 0, 0.7], [0.1, 0, 0.6], [0, 0, 0], [0, 0, 0]]
    assert list(got.row_id) == [f"{stem}_15", f"{stem}_5", "other_5", f"{stem}_500"]
    messages = " ".join(str(one.message) for one in record)
    assert "2 of 4 rows" in messages and "other" in messages and "unknown" in messages


@pytest.mark.parametrize("codes", [("2", "0", "1"), ("s2", "s0", "s1")])
def test_rfcx_takes_the_highest_of_the_recording(tmp_path, codes):
    got = fill(tmp_path, "recording_id,s0,s1,s2\n00204008d,0,0,0\n", ["00204008d"], classes=ClassList(codes))
    assert got.iloc[0, 1:].tolist() == [0.7, 0.4, 0.9]


def test_half_overlapped_clips_share_a_row(tmp_path):
    (tmp_path / "sample.csv").write_text("row_id,a\nx_10,0\n")
    scores = {"x": (np.arange(4) * 2.5, np.array([[0.0], [0.4], [0.8], [0.0]]))}
    keys = {"classes": ClassList(("a",)), "clip_seconds": 5.0}
    assert fill_submission(tmp_path / "sample.csv", scores, **keys).a[0] == pytest.approx(0.5)
    assert fill_submission(tmp_path / "sample.csv", scores, aggregate="max", **keys).a[0] == 0.8


def test_numbers_survive_as_text_and_scores_as_float32(tmp_path):
    score = np.float32(0.123456789)
    (tmp_path / "sample.csv").write_text("row_id,0012\n007_5,0\n")
    got = fill_submission(
        tmp_path / "sample.csv", {"007": ([0.0], np.array([[score]]))}, classes=ClassList(("0012",)), clip_seconds=5.0
    )
    write_submission(tmp_path / "out.csv", got)
    read = pd.read_csv(tmp_path / "out.csv", dtype=str)
    assert list(read.columns) == ["row_id", "0012"] and read.row_id[0] == "007_5"
    assert np.float32(read["0012"][0]) == score


def test_a_stem_with_a_number_at_its_end_is_not_cut(tmp_path):
    got = fill(tmp_path, "row_id,birds\nsite_3_night_12,\nsite_1_night_12_10,\n", ["night_12", "night"])
    assert list(got.birds) == ["amerob 123", "nocall"]


def test_commas_at_the_ends_of_rows_shift_nothing(tmp_path):
    got = fill(tmp_path, "row_id,birds\nx_5,nocall,\n\nx_10,nocall,\n", ["x"])
    assert got.to_dict("list") == {"row_id": ["x_5", "x_10"], "birds": ["amerob 123", "nocall"]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("row_id,birds\nx_5,a\nx_10,a,b\n", r"sample\.csv: row 2 \(x_10\) has 3 cells, the header 2"),
        ("row_id,birds\nx_5\n", r"row 1 \(x_5\) has 1 cells"),
        ('row_id,birds\nx_5,"a\n', "not a CSV"),
        ("id,birds\na,b\n", "its columns must be"),
        ("", "no row"),
        ("row_id,birds\n", "no row"),
        ("row_id,x,y\na_5,0,0\n", "knows none of its species"),
    ],
)
def test_samples_that_do_not_fit_are_errors(tmp_path, text, reason):
    with pytest.raises(UserError, match=reason):
        fill(tmp_path, text, ["a"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("id,birds\na,b\n", "its columns must be"),
        ("row_id,x,y\na_5,0,0\n", "knows none of its species"),
        ("row_id,target\nsoundscape_1_skylar_5,False\n", r"knows none of its species \(skylar\)"),
    ],
)
def test_a_sample_is_checked_without_scores(tmp_path, text, reason):
    path = tmp_path / "sample.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=reason):
        check_sample(path, CLASSES)
    with pytest.raises(UserError, match="no such file"):
        check_sample(tmp_path / "none.csv", CLASSES)
    for fits in ("row_id,birds\nx_5,\n", "row_id,amerob,unknown\nx_5,0,0\n", "row_id,target\nx_amerob_5,False\n"):
        path.write_text(fits)
        check_sample(path, CLASSES)


def test_broken_scores_are_errors(tmp_path):
    (tmp_path / "sample.csv").write_text("row_id,birds\na_5,\n")
    for scores, reason in [(SCORES[:, :2], "shape"), (SCORES * np.nan, "not finite")]:
        with pytest.raises(UserError, match=reason):
            fill_submission(tmp_path / "sample.csv", {"a": (STARTS, scores)}, classes=CLASSES, clip_seconds=5.0)
    with pytest.raises(UserError, match="no such file"):
        fill_submission(tmp_path / "none.csv", {}, classes=CLASSES, clip_seconds=5.0)


def test_an_empty_cell_is_never_written(tmp_path):
    with pytest.raises(UserError, match="empty cell"):
        write_submission(tmp_path / "out.csv", pd.DataFrame({"row_id": ["a"], "x": [np.nan]}))
    assert not (tmp_path / "out.csv").exists()
