import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from birdtpu.errors import UserError
from birdtpu.species import ClassList

text = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=10)


def test_order_is_kept():
    classes = ClassList(("b", "a", "c"))
    assert [classes.index(code) for code in ("b", "a", "c")] == [0, 1, 2]
    assert len(classes) == 3 and "a" in classes and "z" not in classes


def test_codes_stay_text():
    classes = ClassList((1139490, "007", "NA"))  # type: ignore[arg-type]
    assert classes.codes == ("1139490", "007", "NA")
    assert "1139490" in classes and 1139490 not in classes


def test_multi_hot():
    hot = ClassList(("b", "a", "c")).multi_hot(["a", "b", "a"])
    assert hot.dtype == np.float32 and hot.tolist() == [1, 1, 0]
    assert ClassList(("a",)).multi_hot([]).tolist() == [0]


def test_unknown_code_is_a_key_error():
    with pytest.raises(KeyError, match="z"):
        ClassList(("a",)).multi_hot(["z"])


def test_name_is_the_best_known():
    classes = ClassList(("a", "b", "c"), ("Aves a", "Aves b", ""), ("Bird", "", ""))
    assert [classes.name(code) for code in "abc"] == ["Bird", "Aves b", "c"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((),), "no class"),
        ((("a", "b", "a"),), "'a' stands twice"),
        ((("a", ""),), "empty species code"),
        ((("a", "b"), ("one",)), "1 scientific_names for 2 codes"),
        ((("a",), (), ("one", "two")), "2 common_names for 1 codes"),
    ],
)
def test_what_is_no_class_list(arguments, message):
    with pytest.raises(UserError, match=message):
        ClassList(*arguments)


def test_equal_lists_are_equal():
    assert ClassList(("a", "b")) == ClassList(("a", "b"), ("", ""))
    assert ClassList(("a", "b")) != ClassList(("b", "a"))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_csv_round_trip_is_exact(tmp_path, data):
    codes = data.draw(st.lists(text.map(str.strip).filter(bool), min_size=1, max_size=5, unique=True))
    names = st.lists(text, min_size=len(codes), max_size=len(codes))
    classes = ClassList(tuple(codes), tuple(data.draw(names)), tuple(data.draw(names)))
    path = str(tmp_path / "classes.csv")
    classes.to_csv(path)
    assert ClassList.from_csv(path) == classes


@pytest.mark.parametrize("content", ["code\nNA\n007\n", "\ufeffcode,common_name\r\nNA,\r\n007,x\r\n"])
def test_only_the_codes_are_needed(tmp_path, content):
    path = tmp_path / "classes.csv"
    path.write_bytes(content.encode())
    assert ClassList.from_csv(str(path)).codes == ("NA", "007")


def test_space_around_a_code_is_no_part_of_it(tmp_path):
    path = tmp_path / "classes.csv"
    path.write_text("code,common_name\n amerob\nx \u00a0,Wren\n")
    assert ClassList.from_csv(str(path)).codes == ("amerob", "x")


@pytest.mark.parametrize("content", ["scientific_name,code\nA b,x\nTurdus merula\n", "code,common_name\nx,\n ,Wren\n"])
def test_a_row_without_a_code_is_named(tmp_path, content):
    path = tmp_path / "classes.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=r"classes\.csv: row 2 has no code"):
        ClassList.from_csv(str(path))


@pytest.mark.parametrize("content", [b"", b"species\na\n", b"code\n", b"code\n\xff\n"])
def test_a_bad_file_is_named(tmp_path, content):
    path = tmp_path / "classes.csv"
    with pytest.raises(UserError, match=r"classes\.csv: no such file"):
        ClassList.from_csv(str(path))
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"classes\.csv"):
        ClassList.from_csv(str(path))
