import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdtpu.data.sources.cells import date, duration, labels, number, parse_csv, rating, seconds
from birdtpu.errors import UserError


@given(st.binary(max_size=200))
def test_any_bytes_are_rows_or_a_user_error(data):
    try:
        columns, rows = parse_csv(data, "t.csv")
    except UserError as error:
        assert str(error).startswith("t.csv: ") and "\n" not in str(error)
    else:
        assert all(set(row) == set(columns) for row in rows)


@given(st.text())
def test_any_cell_is_labels_or_a_value_error(text):
    try:
        found = labels(text.strip())
    except ValueError:
        assert text.strip().startswith("[")
    else:
        assert all(label and label == label.strip() for label in found) and len(set(found)) == len(found)


@given(st.text())
def test_no_cell_crashes(text):
    assert isinstance(number(text), float) and isinstance(date(text), str) and isinstance(duration(text), float)
    assert math.isnan(rating(text)) or rating(text) > 0


@given(st.lists(st.text("abc1 ._'-\"", min_size=1).map(str.strip).filter(bool), unique=True))
def test_a_python_list_of_labels_reads_back(found):
    assert labels(repr(found)) == tuple(found)


@given(st.floats(0, 1e6))
def test_seconds_read_back(value):
    assert seconds(repr(value)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("12.5", 12.5), ("0:13", 13), ("1:02:03", 3723), ("00:00:05", 5), ("01:02,5", 62.5), ("90:00", 5400)],
)  # fmt: skip
def test_seconds(text, value):
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["later", "1:2:3:4", "1:", "inf", "nan", "1_0", "5 s"])
def test_no_seconds(text):
    with pytest.raises(ValueError, match="no time"):
        seconds(text)
    assert math.isnan(duration(text))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ()),
        ("[]", ()),
        ("['']", ()),
        ("a", ("a",)),
        ("a; b;;a", ("a", "b")),
        ("['22961', 'a']", ("22961", "a")),
        ("[22961]", ("22961",)),
        ('["Setophaga townsendi_Townsend\'s Warbler"]', ("Setophaga townsendi_Townsend's Warbler",)),
        ("NA", ("NA",)),
        ("['sp2' 'sp3']", ("sp2", "sp3")),
        ("['a b'\n \"Townsend's  'x'\"]", ("a b", "Townsend's  'x'")),
        ("['a', '', 'b' 'c']", ("a", "b", "c")),
    ],
)
def test_labels(text, found):
    assert labels(text) == found


@pytest.mark.parametrize("text", ["['a'", "[a]", "[['a']]", "[1.5]", "[None]", "[open('x')]", "[" * 5000])
def test_a_broken_list_is_named(text):
    with pytest.raises(ValueError, match="is no list of labels"):
        labels(text)


def test_numbers_are_lenient():
    assert number("4,39") == 4.39 and number("-1e-3") == -0.001
    assert all(math.isnan(number(text)) for text in ("Not specified", "", "?", "nan", "1e999", "30 m"))


@pytest.mark.parametrize(
    ("text", "iso"),
    [
        ("2015-06-23", "2015-06-23"),
        ("2015-06-00", "2015-06"),
        ("2015-00-00", "2015"),
        ("0000-00-00", ""),
        ("2015/6/3", "2015-06-03"),
        ("Not specified", ""),
        ("2015-13-01", "2015"),
    ],
)
def test_dates_as_far_as_they_are_known(text, iso):
    assert date(text) == iso


def test_ratings():
    assert rating("A") == 5 and rating("e") == 1 and rating("3.5") == 3.5
    assert all(math.isnan(rating(text)) for text in ("0.0", "no score", ""))


def test_delimiter_is_the_headers_and_cells_stay_text():
    columns, rows = parse_csv(b"a;b\n1,5;007\n", "t.csv")
    assert columns == ["a", "b"] and rows == [{"a": "1,5", "b": "007"}]


def test_spaces_that_hold_a_line_together_are_spaces():
    assert parse_csv("a,b\nTurdus\u00a0merula,\u202f1\u00a0\n".encode(), "t.csv")[1] == [
        {"a": "Turdus merula", "b": "1"}
    ]


def test_line_ends_inside_a_quoted_cell_stay_in_it():
    assert parse_csv(b'a,b\r\n"one\r\ntwo",3\r\n\r\n', "t.csv")[1] == [{"a": "one\r\ntwo", "b": "3"}]


def test_a_short_row_is_filled():
    assert parse_csv(b"a,b,c\n1\n", "t.csv")[1] == [{"a": "1", "b": "", "c": ""}]
