import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from birdtpu.data.sources.lookup import AudioFolder, stem, xeno_canto_number
from birdtpu.errors import UserError


def folder(root: Path, *files: str) -> AudioFolder:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return AudioFolder(str(root))


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("XC1.ogg", "train_audio/a/XC1.ogg"),
        ("a/XC1.ogg", "train_audio/a/XC1.ogg"),
        ("a/XC1.mp3", "train_audio/a/XC1.ogg"),
        ("a/XC1", "train_audio/a/XC1.ogg"),
        ("./train_audio/a/XC1.ogg", "train_audio/a/XC1.ogg"),
        ("D:\\birds\\a\\XC1.ogg", "train_audio/a/XC1.ogg"),
        ("XC1-blackbird.mp3", "train_audio/a/XC1.ogg"),
        ("/home/else/mine/top.wav", "top.wav"),
        ("mine/top.wav", "top.wav"),
        ("rec", "b/rec.part.wav"),
        ("b/top.wav", None),
        ("c/2.wav", None),
        ("2", "b/2.WAV"),
        ("../../etc/passwd", None),
        ("/", None),
    ],
)
def test_what_a_name_in_a_table_means(tmp_path, wanted, found):
    files = folder(tmp_path / "mine", "train_audio/a/XC1.ogg", "b/2.WAV", "top.wav", "b/rec.part.wav", "_x.wav")
    assert files.find((wanted,)) == found
    assert files.find((wanted,), prefix=True) == found


def test_a_mac_writes_accents_apart(tmp_path):
    name = "nämé (Ω).wav"
    files = folder(tmp_path, unicodedata.normalize("NFD", name))
    assert files.find((unicodedata.normalize("NFC", name),)) == unicodedata.normalize("NFD", name)


def test_a_name_that_fits_two_files_is_an_error(tmp_path):
    files = folder(tmp_path, "a/1.wav", "b/1.wav", "1.flac")
    with pytest.raises(UserError, match=r"'1\.wav' may be a/1\.wav or b/1\.wav"):
        files.find(("1.wav",))
    assert files.find(("b/1.wav", "1.wav")) == "b/1.wav"


def test_a_competitions_own_folder_goes_before_a_copy(tmp_path):
    files = folder(tmp_path, "resampled/a/XC1.wav", "train_audio/a/XC1.ogg", "copy/a/n.wav", "train_audio/a/n.wav")
    assert files.find(("a/XC1",)) == "train_audio/a/XC1.ogg"
    assert files.find(("a/n.wav",)) == "train_audio/a/n.wav"


def test_prefix_finds_the_one_that_goes_on(tmp_path):
    files = folder(tmp_path, "57610_COR_20190904.ogg", "7019_COR_20190904.ogg")
    assert files.find(("57610_COR",), prefix=True) == "57610_COR_20190904.ogg"
    assert files.find(("57610_COR",)) is None


def test_links_in_a_circle_end(tmp_path):
    folder(tmp_path, "a/1.wav")
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert AudioFolder(str(tmp_path)).files == ["a/1.wav"]


def test_names_that_are_no_text_are_left_out(tmp_path):
    try:
        Path(tmp_path, "\udcff.wav").touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    assert folder(tmp_path, "1.wav").files == ["1.wav"]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=12), max_size=2), st.booleans())
def test_any_name_is_found_or_not(tmp_path, names, prefix):
    files = folder(tmp_path, "a/1.wav", "b/XC2.ogg", "_.wav")
    assert files.find(names, prefix=prefix) in (None, *files.files)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("a/XC123.ogg", "XC123"),
        ("XC123 - Blackbird.mp3", "XC123"),
        ("xc00123-x.mp3", "XC123"),
        ("iNat123.ogg", ""),
        ("123.ogg", ""),
        ("myXC1.ogg", ""),
        ("XC" + "9" * 5000, ""),
    ],
)
def test_xeno_canto_number(name, number):
    assert xeno_canto_number(name) == number


def test_stem_goes_only_with_an_audio_suffix():
    assert stem("a.b/c.pt540.mp3") == "a.b/c.pt540" and stem("c.pt540") == "c.pt540" and stem("x.WAV") == "x"
