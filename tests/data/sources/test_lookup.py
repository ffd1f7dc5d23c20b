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


def find(files: AudioFolder, *wanted: str, prefix: bool = False) -> str | None:
    """What a table of one row finds."""
    return files.find([wanted], prefix=prefix)[wanted]


def find_all(files: AudioFolder, *names: str) -> list[str | None]:
    """What a table of bare rows finds."""
    return list(files.find([(name,) for name in names]).values())


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("XC1.ogg", "train_audio/a/XC1.ogg"),
        ("a/XC1.ogg", "train_audio/a/XC1.ogg"),
        ("a/XC1.mp3", "train_audio/a/XC1.ogg"),
        ("a/XC1", "train_audio/a/XC1.ogg"),
        ("./train_audio/a/XC1.ogg", "train_audio/a/XC1.ogg"),
        ("D:\\birds\\a\\XC1.ogg", "train_audio/a/XC1.ogg"),
        ("XC1-blackbird.mp3", None),
        ("c/XC 001.mp3", "train_audio/a/XC1.ogg"),
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
    assert find(files, wanted) == found
    assert find(files, wanted, prefix=True) == found


def test_another_sites_recording_of_that_name_is_not_found(tmp_path):
    names = [f"site{site}/Data/20230601_05{minute}000.WAV" for site in "AB" for minute in "01"]
    files = folder(tmp_path / "rec", *names[2:])
    assert find_all(files, *names) == [None, None, *names[2:]]
    assert find_all(files, *names[:2]) == [None, None]
    assert find_all(files, *(f"D:\\card\\{name}" for name in names)) == [None, None, *names[2:]]
    card = AudioFolder(str(tmp_path / "rec" / "siteB"))
    assert find_all(card, *names) == [None, None, *(name.removeprefix("siteB/") for name in names[2:])]
    assert find_all(AudioFolder(str(tmp_path / "rec" / "siteB" / "Data")), names[0], names[2]) == [
        None,
        Path(names[2]).name,
    ]


def test_a_table_from_another_machine_starts_its_paths_in_one_place(tmp_path):
    files = folder(tmp_path / "mine", "a/1.wav", "b/2.wav")
    assert find_all(files, "/mnt/disk/birds/a/1.wav", "/mnt/disk/birds/b/2.wav") == ["a/1.wav", "b/2.wav"]
    assert find_all(files, "/mnt/disk/mine/a/1.wav", "/mnt/disk/other/b/2.wav") == ["a/1.wav", None]
    assert find_all(files, "old/a/1.wav", "new/b/2.wav", "1.wav") == [None, None, "a/1.wav"]


def test_a_file_that_one_row_names_in_full_is_no_others(tmp_path):
    files = folder(tmp_path, "a/1.wav", "a/2.part.wav")
    assert find_all(files, "1.wav", "a/1.wav", "a/1") == [None, "a/1.wav", "a/1.wav"]
    assert find_all(files, "2", "a/2.part.wav") == [None, "a/2.part.wav"]


def test_a_recorder_named_like_a_number_is_no_recording_of_that_number(tmp_path):
    files = folder(tmp_path, "XC1_20230501.wav", "XC123-part1.wav")
    assert find_all(files, "XC1_20230502.wav", "XC123-part2.wav", "a/XC123-part1.wav") == [None, None, None]
    assert find(files, "XC123-part1.mp3") == find(files, "", "XC123") == "XC123-part1.wav"


def test_what_lies_beside_a_recording_is_none(tmp_path):
    files = folder(tmp_path, "rec1.json", "rec2.wav", "rec2.wav.txt", "XC1 notes.txt", "odd.wave")
    assert find_all(files, "rec1", "rec2", "XC1", "odd", "odd.wave") == [None, "rec2.wav", None, None, "odd.wave"]


def test_odd_spaces_are_spaces(tmp_path):
    assert find(folder(tmp_path, "wren\u00a01.wav"), "wren 1.wav") == "wren\u00a01.wav"


def test_systems_own_folders_are_left_out(tmp_path):
    files = folder(tmp_path, "$RECYCLE.BIN/1.wav", "System Volume Information/2.wav", "a/__MACOSX/3.wav", "b/4.wav")
    assert files.files == ["b/4.wav"]


def test_a_mac_writes_accents_apart(tmp_path):
    name = "nämé (Ω).wav"
    files = folder(tmp_path, unicodedata.normalize("NFD", name))
    assert find(files, unicodedata.normalize("NFC", name)) == unicodedata.normalize("NFD", name)


def test_a_name_that_fits_two_files_is_an_error(tmp_path):
    files = folder(tmp_path, "a/1.wav", "b/1.wav", "1.flac")
    with pytest.raises(UserError, match=r"'1\.wav' may be a/1\.wav or b/1\.wav"):
        find(files, "1.wav")
    assert find(files, "b/1.wav", "1.wav") == "b/1.wav"


def test_a_competitions_own_folder_goes_before_a_copy(tmp_path):
    files = folder(tmp_path, "resampled/a/XC1.wav", "train_audio/a/XC1.ogg", "copy/a/n.wav", "train_audio/a/n.wav")
    assert find(files, "a/XC1") == "train_audio/a/XC1.ogg"
    assert find(files, "a/n.wav") == "train_audio/a/n.wav"


def test_prefix_finds_the_one_that_goes_on(tmp_path):
    files = folder(tmp_path, "57610_COR_20190904.ogg", "7019_COR_20190904.ogg")
    assert find(files, "57610_COR", prefix=True) == "57610_COR_20190904.ogg"
    assert find(files, "57610_COR") is None


def test_links_in_a_circle_end(tmp_path):
    folder(tmp_path, "a/1.wav")
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert AudioFolder(str(tmp_path)).files == ["a/1.wav"]


def test_names_that_are_no_text_are_left_out_and_listed(tmp_path):
    try:
        Path(tmp_path, "caf\udce9.wav").touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    Path(tmp_path, "caf\udce9.txt").touch()
    files = folder(tmp_path, "1.wav")
    assert (files.files, files.not_utf8) == (["1.wav"], ["caf\\xe9.wav"])


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=12), min_size=1, max_size=2), st.booleans())
def test_any_name_is_found_or_not(tmp_path, names, prefix):
    files = folder(tmp_path, "a/1.wav", "b/XC2.ogg", "_.wav")
    assert find(files, *names, prefix=prefix) in (None, *files.files)


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
