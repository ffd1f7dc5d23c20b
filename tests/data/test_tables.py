"""Every layout's small fixture has the true columns of its competition; the rows are ours."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from birdtpu.data import tables as module
from birdtpu.data.tables import (
    Tables,
    class_list,
    filter_recordings,
    load_tables,
    merge_tables,
    rating_weights,
    read_tables,
    unlabelled_tables,
    write_tables,
)
from birdtpu.errors import UserError
from birdtpu.species import ClassList

FIXTURES = Path(__file__).parents[1] / "fixtures" / "tables"
FRAMES = ("recordings", "annotations", "species")


def competition(folder: Path, name: str, *files: str) -> str:
    """A copy of a fixture's tables with empty files where its recordings would lie."""
    root = folder / name
    shutil.copytree(FIXTURES / name, root)
    return touch(root, *files)


def touch(root: Path, *files: str) -> str:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return str(root)


def tree(folder: Path, text: str, *files: str, name: str = "labels.csv") -> tuple[str, str]:
    """A folder of files, and a table beside it."""
    table = folder / name
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    return touch(folder / "audio", *files), str(table)


def rows(frame: pd.DataFrame, *columns: str) -> list[tuple]:
    return list(frame[list(columns)].itertuples(index=False, name=None))


def assert_same(one: Tables, other: Tables) -> None:
    for name in FRAMES:
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name), check_exact=True)


def codes(tables: Tables) -> tuple[str, ...]:
    return class_list(tables).codes


# --- layouts


def test_2020_maps_secondary_names_to_codes_and_counts_the_unknown(tmp_path):
    root = competition(
        tmp_path,
        "birdclef2020",
        *(f"train_audio/{name}.mp3" for name in ("aldfly/XC900001", "amecro/XC900002", "aldfly/XC900003")),
    )
    tables = read_tables(root)
    assert tables.report["layouts"] == ["birdclef2020"]
    assert rows(tables.recordings, "recording", "path", "primary_label", "secondary_labels", "duration_seconds") == [
        ("XC900001", "train_audio/aldfly/XC900001.mp3", "aldfly", "", 25.0),
        ("XC900003", "train_audio/aldfly/XC900003.mp3", "aldfly", "amecro", 8.0),
        ("XC900002", "train_audio/amecro/XC900002.mp3", "amecro", "aldfly", 61.0),
    ]
    assert tables.report["dropped"]["secondary_labels"] == {"Turdus nusquam_Nowhere Thrush": 1}
    assert rows(tables.species, "code", "scientific_name", "common_name") == [
        ("aldfly", "Empidonax alnorum", "Alder Flycatcher"),
        ("amecro", "Corvus brachyrhynchos", "American Crow"),
    ]
    crow = tables.recordings.iloc[2]
    assert (crow["author"], crow["date"], crow["data_set"]) == ("A. Nobody", "2014-06", "birdclef2020")
    assert math.isnan(crow["latitude"]) and math.isnan(crow["rating"])
    assert tables.recordings["latitude"][0] == 44.793 and tables.recordings["rating"][0] == 3.5
    assert len(tables.annotations) == 0


def test_extended_xeno_canto_set_reads_like_2020(tmp_path):
    root = competition(tmp_path, "xeno-canto-extended", "A-M/amecro/XC900010.mp3", "A-M/amecro/XC900002.mp3")
    tables = read_tables(root)
    assert rows(tables.recordings, "recording", "path") == [
        ("XC900002", "A-M/amecro/XC900002.mp3"),
        ("XC900010", "A-M/amecro/XC900010.mp3"),
    ]


def test_2020_rows_are_stretches_and_site_3_is_whole_files(tmp_path):
    root = competition(tmp_path, "soundscapes2020", "test_audio/0a997dff.mp3", "test_audio/9cc5d9646f344f1b.mp3")
    tables = read_tables(root, f"{root}/test.csv")
    assert tables.report["layouts"] == ["soundscapes2021"]
    assert rows(tables.annotations.fillna(-1.0), "path", "start_seconds", "end_seconds", "species", "state") == [
        ("test_audio/0a997dff.mp3", 0.0, 5.0, "*", "negative"),
        ("test_audio/0a997dff.mp3", 0.0, 5.0, "aldfly", "positive"),
        ("test_audio/0a997dff.mp3", 0.0, 5.0, "amecro", "positive"),
        ("test_audio/0a997dff.mp3", 5.0, 10.0, "*", "negative"),
        ("test_audio/9cc5d9646f344f1b.mp3", 0.0, -1.0, "*", "negative"),
        ("test_audio/9cc5d9646f344f1b.mp3", 0.0, -1.0, "amecro", "positive"),
    ]
    assert rows(tables.recordings, "recording", "primary_label") == [("", ""), ("", "")]


def test_2020_example_summary_finds_its_longer_file_names(tmp_path):
    file = "example_test_audio/MILL-10-POND_20190611_093000.pt540.mp3"
    root = competition(tmp_path, "soundscapes2020-example", file)
    tables = read_tables(f"{root}/example_test_audio", f"{root}/example_test_audio_summary.csv")
    assert rows(tables.annotations, "path", "end_seconds", "species") == [
        (Path(file).name, 5.0, "*"),
        (Path(file).name, 10.0, "*"),
        (Path(file).name, 10.0, "aldfly"),
    ]


def test_2021_has_bare_names_and_labelled_soundscapes(tmp_path):
    root = competition(
        tmp_path,
        "birdclef2021",
        "train_short_audio/acafly/XC900101.ogg",
        "train_short_audio/amegfi/XC900102.ogg",
        "train_soundscapes/57610_COR_20190904.ogg",
        "train_soundscapes/7019_COR_20190904.ogg",
    )
    tables = read_tables(root)
    assert tables.report["layouts"] == ["birdclef2021", "soundscapes2021"]
    assert rows(tables.recordings, "recording", "path", "primary_label", "secondary_labels", "date") == [
        ("XC900101", "train_short_audio/acafly/XC900101.ogg", "acafly", "amegfi", "2012-08-12"),
        ("XC900102", "train_short_audio/amegfi/XC900102.ogg", "amegfi", "", "2013-02-16"),
        ("", "train_soundscapes/57610_COR_20190904.ogg", "", "", ""),
        ("", "train_soundscapes/7019_COR_20190904.ogg", "", "", ""),
    ]
    assert rows(tables.annotations, "path", "start_seconds", "end_seconds", "species", "state") == [
        ("train_soundscapes/57610_COR_20190904.ogg", 0.0, 5.0, "*", "negative"),
        ("train_soundscapes/57610_COR_20190904.ogg", 5.0, 10.0, "*", "negative"),
        ("train_soundscapes/57610_COR_20190904.ogg", 5.0, 10.0, "acafly", "positive"),
        ("train_soundscapes/57610_COR_20190904.ogg", 5.0, 10.0, "rucwar", "positive"),
        ("train_soundscapes/7019_COR_20190904.ogg", 0.0, 5.0, "*", "negative"),
        ("train_soundscapes/7019_COR_20190904.ogg", 0.0, 5.0, "acafly", "positive"),
    ]
    assert codes(tables) == ("acafly", "amegfi", "rucwar")
    for folder, layout in (("train_short_audio", "birdclef2021"), ("train_soundscapes", "soundscapes2021")):
        part = read_tables(f"{root}/{folder}")
        assert part.report["layouts"] == [layout] and len(part.recordings) == 2
        assert len(part.report["skipped"]) == 1


@pytest.mark.parametrize(
    ("year", "files", "secondary"),
    [
        (2022, ("afrsil1/XC900201.ogg", "houspa/XC900202.ogg"), ["houspa;comwax", ""]),
        (2023, ("asbfly/XC900301.ogg", "comtai1/XC900302.ogg"), ["", "asbfly"]),
        (2024, ("asbfly/XC900401.ogg", "comtai1/XC900402.ogg"), ["", "asbfly"]),
    ],
)
def test_2022_to_2024_name_species_and_file(tmp_path, year, files, secondary):
    root = competition(tmp_path, f"birdclef{year}", *(f"train_audio/{file}" for file in files))
    at_root = read_tables(root)
    at_audio = read_tables(f"{root}/train_audio")
    assert list(at_root.recordings["path"]) == [f"train_audio/{file}" for file in files]
    assert list(at_audio.recordings["path"]) == list(files)
    for tables in (at_root, at_audio):
        assert list(tables.recordings["secondary_labels"]) == secondary
        assert list(tables.recordings["recording"]) == [Path(file).stem for file in files]
        assert set(tables.recordings["data_set"]) == {f"birdclef{year}"}
        assert tables.report["missing"] == []


def test_2025_labels_that_look_like_numbers_stay_text(tmp_path):
    files = ("1139490/CSA36385.ogg", "22973/iNat65519.ogg", "bobfly1/XC900501.ogg")
    tables = read_tables(competition(tmp_path, "birdclef2025", *(f"train_audio/{file}" for file in files)))
    assert rows(tables.recordings, "recording", "primary_label", "secondary_labels") == [
        ("", "1139490", ""),
        ("", "22973", "1139490;bobfly1"),
        ("XC900501", "bobfly1", ""),
    ]
    assert codes(tables) == ("1139490", "22973", "bobfly1")
    assert tables.recordings["rating"].isna().tolist() == [True, True, False]


def test_2026_doubled_rows_count_once_and_taxonomy_names_soundscape_species(tmp_path):
    soundscape = "train_soundscapes/BC2026_Train_0001_S08_20250606_030007.ogg"
    files = ("train_audio/ashgre1/XC900601.ogg", "train_audio/22961/iNat777.ogg", soundscape)
    tables = read_tables(competition(tmp_path, "birdclef2026", *files))
    assert rows(tables.annotations, "path", "start_seconds", "end_seconds", "species") == [
        (soundscape, 0.0, 5.0, "*"),
        (soundscape, 0.0, 5.0, "22961"),
        (soundscape, 0.0, 5.0, "ashgre1"),
        (soundscape, 5.0, 10.0, "*"),
        (soundscape, 5.0, 10.0, "ashgre1"),
        (soundscape, 55.0, 60.0, "*"),
        (soundscape, 55.0, 60.0, "517063"),
    ]
    assert rows(tables.species, "code", "common_name")[1] == ("517063", "Little Frog")
    assert codes(tables) == ("22961", "517063", "ashgre1")


@pytest.mark.parametrize("table", [None, "train_tp.csv", "train_fp.csv"])
def test_rfcx_boxes_say_yes_or_no_and_nothing_else(tmp_path, table):
    files = (f"train/{name}.flac" for name in ("003bec244", "006ab765f", "00204008d"))
    root = competition(tmp_path, "rfcx", *files)
    tables = read_tables(root, table and f"{root}/{table}")
    columns = ("path", "start_seconds", "end_seconds", "f_min", "f_max", "species", "state")
    assert rows(tables.annotations, *columns) == [
        ("train/00204008d.flac", 7.8507, 8.4853, 3406.25, 5531.25, "s13", "negative"),
        ("train/003bec244.flac", 4.2453, 5.0, 3281.25, 4406.25, "s8", "negative"),
        ("train/003bec244.flac", 44.544, 45.1307, 2531.25, 5531.25, "s14", "positive"),
        ("train/006ab765f.flac", 39.9615, 46.0452, 7235.16, 11283.4, "s23", "positive"),
    ]
    assert codes(tables) == ("s14", "s23")
    assert len(tables.recordings) == 3


def test_an_rfcx_species_is_a_whole_number(tmp_path):
    text = "recording_id,species_id,songtype_id,t_min,f_min,t_max,f_max\n1,{},1,0,100,2,900\n"
    assert codes(read_tables(*tree(tmp_path, text.format("3.0"), "1.flac"))) == ("s3",)
    for wrong in ("", "3.5", "wren"):
        with pytest.raises(UserError, match=f"labels.csv: row 1: the species_id '{wrong}' is no whole number"):
            read_tables(*tree(tmp_path, text.format(wrong), "1.flac"))


def test_a_soundscapes_row_is_of_its_own_site(tmp_path):
    text = "row_id,site,audio_id,seconds,birds\n7_COR_5,COR,7,5,a\n7_SSW_5,SSW,7,5,b\n"
    tables = read_tables(*tree(tmp_path, text, "7_COR_20190904.ogg"))
    assert codes(tables) == ("a",) and tables.report["missing"] == ["7_SSW"]


def test_xeno_canto_pages_take_codes_from_a_taxonomy(tmp_path):
    files = ("UK/XC900701-pond 1, early.mp3", "elsewhere/XC900702.ogg", "XC900703.mp3")
    root = competition(tmp_path, "xeno-canto", *files)
    tables = read_tables(root, taxonomy=f"{root}/taxonomy_2021.csv")
    assert set(tables.report["layouts"]) == {"xeno-canto"} and len(tables.report["tables"]) == 2
    columns = ("recording", "path", "primary_label", "secondary_labels", "author", "latitude", "longitude", "date")
    assert rows(tables.recordings, *columns) == [
        ("XC900701", files[0], "eurbla", "houspa", "A. Nobody", 51.5, -0.1, "2015-06-23"),
        ("XC900702", files[1], "houspa", "eurbla", "A. Nobody", 51.5, -0.1, "2016-04"),
    ]
    assert tables.recordings["duration_seconds"].tolist() == [253.0, 9.0]
    assert tables.recordings["rating"].fillna(0).tolist() == [5.0, 0.0]
    assert tables.report["dropped"] == {"secondary_labels": {"Gavia ignota": 1}, "recordings": {"Mystery mystery": 1}}
    assert rows(tables.species, "code", "common_name") == [("eurbla", "Common Blackbird"), ("houspa", "House Sparrow")]


def test_xeno_canto_without_a_taxonomy_uses_the_scientific_name(tmp_path):
    root = competition(tmp_path, "xeno-canto", "XC900701.mp3", "XC900702.mp3")
    for table in (f"{root}/page_1.json", None, root):
        tables = read_tables(root, table)
        assert tables.recordings["primary_label"][0] == "turdus_merula"
        assert tables.recordings["secondary_labels"][0] == "passer_domesticus;gavia_ignota"
    assert rows(tables.species, *module.SPECIES)[2] == ("turdus_merula", "Turdus merula", "Common Blackbird")


def test_xeno_canto_drops_and_counts_what_has_no_name(tmp_path):
    root = competition(tmp_path, "xeno-canto", "XC900701.mp3", "XC900702.mp3", "XC5.mp3")
    page = Path(root, "page_2.json")
    found = json.loads(page.read_text())["recordings"]
    found += [{"id": "5", "gen": "Turdus", "sp": ""}, {"id": "6", "sp": "merula"}, {"gen": "Turdus", "sp": "merula"}]
    page.write_text(json.dumps({"recordings": found}))
    Path(root, "page_3.json").write_text('{"recordings": []}')
    Path(root, "page_4.json").write_text('{"recordings": [{"id": "7"}]}')
    for table in (None, root):
        tables = read_tables(root, table)
        assert list(tables.recordings["recording"]) == ["XC900701", "XC900702"]
        assert tables.report["dropped"]["recordings"] == {
            "Mystery mystery": 1,
            "XC5 without a species": 1,
            "XC6 without a species": 1,
            "XC7 without a species": 1,
            "a recording without an id": 1,
        }


def test_xeno_canto_as_csv_reads_like_its_json(tmp_path):
    root = competition(tmp_path, "xeno-canto", "XC900701.mp3", "XC900702.mp3")
    pages = [json.loads(Path(root, f"page_{i}.json").read_text())["recordings"] for i in (1, 2)]
    pd.DataFrame(pages[0] + pages[1]).to_csv(tmp_path / "xc.csv", index=False)
    assert_same(read_tables(root, str(tmp_path / "xc.csv")), read_tables(root))


def test_species_folders_need_no_table(tmp_path):
    root = touch(
        tmp_path / "mine",
        *("Turdus_merula/a.WAV", "Turdus_merula/2021/b.flac", "123/c.mp3", "NA/d.ogg", "nocall/e.wav"),
        *("stray.wav", "123/notes.txt", "123/._c.mp3", ".Trash/f/g.wav"),
    )
    tables = read_tables(root)
    assert rows(tables.recordings, "path", "primary_label") == [
        ("123/c.mp3", "123"),
        ("NA/d.ogg", "NA"),
        ("Turdus_merula/2021/b.flac", "Turdus_merula"),
        ("Turdus_merula/a.WAV", "Turdus_merula"),
        ("nocall/e.wav", ""),
    ]
    assert rows(tables.annotations, "path", "species", "state") == [("nocall/e.wav", "*", "negative")]
    assert tables.report["unlabelled"] == ["stray.wav"]
    taxonomy = tmp_path / "taxonomy.csv"
    taxonomy.write_text("code,scientific_name\neurbla,Turdus merula\n")
    assert codes(read_tables(root, taxonomy=str(taxonomy))) == ("123", "NA", "eurbla")


def test_species_folders_that_lie_deeper_are_remarked(tmp_path):
    root = touch(tmp_path / "mine", "2023/siteA/robin/1.wav", "2023/siteB/wren/2.wav")
    with pytest.warns(UserWarning, match="the folder '2023' is taken for the only species"):
        assert codes(read_tables(root)) == ("2023",)
    assert codes(read_tables(f"{root}/2023")) == ("siteA", "siteB")
    assert codes(read_tables(touch(tmp_path / "one", "wren/1.wav", "wren/2023/2.wav"))) == ("wren",)


def test_files_whose_names_are_no_text_are_reported(tmp_path):
    try:
        touch(tmp_path / "mine", "wren/1.wav", "wren/caf\udce9.wav")
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    tables = read_tables(str(tmp_path / "mine"))
    assert tables.report["not_utf8"] == ["wren/caf\\xe9.wav"] and len(tables.recordings) == 1
    assert json.loads(json.dumps(tables.report)) == tables.report


@pytest.mark.parametrize(
    "text",
    [
        "filename,label\na/1.wav,x\n2.wav,\"y;z\"\n",
        "\ufeffFile Name;Label\r\na\\1.wav;x\r\n2.wav;\"y;z\"\r\n",
        "path\tspecies\n./a/1.wav\tx\n2\t['y', 'z']\n",
        ",file,primary_label,secondary_labels\n0,audio/a/1.wav,x,[]\n1,2.wav,y,['z']\n",
        "filename,label\r1.mp3,x\r2.wav,y\r2.wav,z\r",
        "filename,label\na/1.wav,x\n2.wav,y;z\n".encode("utf-16"),
    ],
)  # fmt: skip
def test_plain_csv_is_forgiven_its_form(tmp_path, text):
    audio, table = tree(tmp_path, text, "a/1.wav", "2.wav")
    tables = read_tables(audio, table)
    assert rows(tables.recordings, "path", "primary_label", "secondary_labels") == [
        ("2.wav", "y", "z"),
        ("a/1.wav", "x", ""),
    ]


def test_timed_rows_of_a_plain_csv_are_boxes(tmp_path):
    text = "file,onset_s,offset_s,label,low_hz,high_hz\n1.wav,1.5,2,wren,2000,8000.5\n1.wav,1:00,0:01:02.5,robin,,\n"
    tables = read_tables(*tree(tmp_path, text, "1.wav"))
    columns = ("start_seconds", "end_seconds", "f_min", "f_max", "species", "state")
    assert rows(tables.annotations.fillna(-1.0), *columns) == [
        (1.5, 2.0, 2000.0, 8000.5, "wren", "positive"),
        (60.0, 62.5, -1.0, -1.0, "robin", "positive"),
    ]
    assert rows(tables.recordings, "path", "primary_label") == [("1.wav", "")]


@pytest.mark.parametrize(("none", "layout"), [("nocall", None), ("nocall", "soundscapes2026"), ("", "soundscapes2026")])
def test_a_timed_csv_that_says_nocall_is_complete(tmp_path, none, layout):
    text = f"filename,start,end,label\n1.wav,0,5,wren;robin\n1.wav,5,10,{none}\n"
    tables = read_tables(*tree(tmp_path, text, "1.wav"), layout=layout)
    assert rows(tables.annotations, "start_seconds", "species", "state") == [
        (0.0, "*", "negative"),
        (0.0, "robin", "positive"),
        (0.0, "wren", "positive"),
        (5.0, "*", "negative"),
    ]


def test_a_complete_stretch_keeps_the_bands_and_names_of_its_boxes(tmp_path):
    text = "filename,start,end,label,low_hz,scientific_name\n1.wav,0,5,wren,2000,Nannus\n1.wav,5,10,nocall,,\n"
    tables = read_tables(*tree(tmp_path, text, "1.wav"))
    assert rows(tables.annotations.fillna(-1.0), "start_seconds", "species", "f_min") == [
        (0.0, "*", -1.0),
        (0.0, "wren", 2000.0),
        (5.0, "*", -1.0),
    ]
    assert rows(tables.species, *module.SPECIES) == [("wren", "Nannus", "")]


def test_states_say_what_they_say_beside_a_nocall(tmp_path):
    text = (
        "filename,start,end,primary_label,state\n1.wav,0,5,wren,negative\n1.wav,5,9,robin,unknown\n"
        "1.wav,9,12,owl,Positive\n2.wav,0,5,nocall,positive\n2.wav,5,9,nocall,negative\n"
    )
    tables = read_tables(*tree(tmp_path, text, "1.wav", "2.wav"))
    assert rows(tables.annotations, "path", "start_seconds", "species", "state") == [
        ("1.wav", 0.0, "wren", "negative"),
        ("1.wav", 5.0, "robin", "unknown"),
        ("1.wav", 9.0, "owl", "positive"),
        ("2.wav", 0.0, "*", "negative"),
    ]


@pytest.mark.parametrize("label", ["label", "primary_label"])
def test_a_state_without_times_is_about_the_whole_file(tmp_path, label):
    tables = read_tables(
        *tree(tmp_path, f"filename,{label},state\n1.wav,wren,negative\n2.wav,owl,\n", "1.wav", "2.wav")
    )
    assert rows(tables.annotations.fillna(-1.0), "path", "start_seconds", "end_seconds", "species", "state") == [
        ("1.wav", 0.0, -1.0, "wren", "negative"),
        ("2.wav", 0.0, -1.0, "owl", "positive"),
    ]
    assert set(tables.recordings["primary_label"]) == {""}


def test_columns_of_states_and_ends_that_are_empty_say_nothing(tmp_path):
    tables = read_tables(*tree(tmp_path, "filename,label,state,offset\n1.wav,wren,,\n", "1.wav"))
    assert list(tables.recordings["primary_label"]) == ["wren"] and len(tables.annotations) == 0


def test_a_layout_by_name_makes_timed_rows_complete(tmp_path):
    audio, table = tree(tmp_path, "filename,start,end,label\n1.wav,0,5,wren\n", "1.wav")
    assert list(read_tables(audio, table).annotations["species"]) == ["wren"]
    assert list(read_tables(audio, table, layout="soundscapes2026").annotations["species"]) == ["*", "wren"]


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("rfcx", [f"train/{name}.flac" for name in ("003bec244", "006ab765f", "00204008d")]),
        ("birdclef2026", ["train_soundscapes/BC2026_Train_0001_S08_20250606_030007.ogg"]),
    ],
)
def test_our_own_annotations_read_back_as_a_table(tmp_path, name, files):
    root = competition(tmp_path, name, *files)
    tables = read_tables(root)
    write_tables(str(tmp_path / "out"), tables)
    again = read_tables(root, str(tmp_path / "out" / "annotations.csv"))
    pd.testing.assert_frame_equal(again.annotations, tables.annotations)


def test_real_recordings(shared_audio):
    root = shared_audio / "birdclef-mini"
    tables = read_tables(str(root))
    table = pd.read_csv(root / "train_metadata.csv")
    assert len(tables.recordings) == len(table) == 120
    assert codes(tables) == tuple(sorted(set(table["primary_label"])))
    assert all((root / path).is_file() for path in tables.recordings["path"])
    assert tables.recordings["recording"].is_unique and tables.recordings["recording"].str.match(r"XC\d+$").all()
    folds = {Path(name).stem for name in pd.read_csv(root / "folds.csv")["filename"]}
    assert set(tables.recordings["recording"]) == folds
    tree_only = read_tables(str(root / "train_audio"), str(root / "train_metadata.csv"), data_set="mini")
    assert set(tree_only.recordings["data_set"]) == {"mini"}
    _, report = filter_recordings(tables)
    assert report["secondary_outside_classes"]["grbcam1"] == 2


def test_real_boxes(shared_audio):
    tables = read_tables(str(shared_audio / "strong"), str(shared_audio / "annotations_strong.csv"))
    assert len(tables.annotations) == 55 and tables.report["missing"] == []
    assert (tables.annotations["end_seconds"] > tables.annotations["start_seconds"]).all()


# --- what is not as it should be


def test_files_that_are_not_there_are_named(tmp_path):
    tables = read_tables(*tree(tmp_path, "filename,label\n1.wav,x\nb/2.wav,y\n", "1.wav", "a/2.wav"))
    assert tables.report["missing"] == ["b/2.wav"]
    assert codes(tables) == ("x",)


@pytest.mark.parametrize("times", [("", ""), (",start,end", ",0,5")])
def test_labels_of_another_site_go_to_no_file(tmp_path, times):
    text = f"filename,label{times[0]}\nsiteA/Data/1.WAV,owl{times[1]}\nsiteB/Data/1.WAV,wren{times[1]}\n"
    tables = read_tables(*tree(tmp_path, text, "siteB/Data/1.WAV"))
    assert codes(tables) == ("wren",) and list(tables.recordings["secondary_labels"]) == [""]
    assert tables.report["missing"] == ["siteA/Data/1.WAV"]
    text = "filename,label\nE:\\card\\siteA\\1.WAV,owl\nE:\\card\\siteB\\1.WAV,wren\n"
    tables = read_tables(*tree(tmp_path, text, "siteB/1.WAV"))
    assert codes(tables) == ("wren",) and tables.report["missing"] == ["E:\\card\\siteA\\1.WAV"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("filename,label\n3.wav,x\n", "none of the 1 files that it names is in .*audio"),
        (
            "filename,when\n1.wav,x\n",
            "has the columns filename, when; a plain table needs filename .* and primary_label",
        ),
        ("filename,label\n", "a header and no rows"),
        ("", "empty"),
        ("filename,label\n1.wav,x,y\n", "row 1 has 3 cells, the header 2"),
        ("filename,label,label\n1.wav,x,y\n", "'label' stands twice"),
        ('filename,label\n1.wav,"x\n', "line 2 is no CSV"),
        ("filename,label\n,x\n", "row 1: names no file"),
        ("filename,label\n1.wav,['x'\n", "row 1: .* is no list of labels"),
        ("filename,label\n1.wav,[__import__('os')]\n", "row 1: .* is no list of labels"),
        ("filename,label\n1.wav,*\n", "'\\*' is no species code"),
        ("filename,start,end,label\n1.wav,5,5,x\n", "row 1: start '5' and end '5' hold no stretch"),
        ("filename,start,end,label\n1.wav,5,,x\n", "row 1: start '5' and end 'none'"),
        ("filename,start,end,label\n1.wav,soon,later,x\n", "row 1: 'soon' is no time"),
        ("filename,start,end,label,state\n1.wav,0,5,x,maybe\n", "row 1: the state 'maybe' is none of positive"),
        ("filename,label,state\n1.wav,x,Texas\n", "row 1: the state 'Texas' is none of positive"),
        ("filename,start,end,label\n1.wav,0,5,x\n1.wav,5,9,\n", "row 2: has no label; write nocall"),
        ("filename,end,label\n1.wav,3,x\n", "has the column end and none for the start"),
        ("row_id,file_id,bird,end_time\n1_x_5,1,x,5\n", "a submission table .*, it holds no labels"),
        ("row_id,seconds,birds\n5,5,x\n", "row 1: names no file"),
        ("filename,label\n1.wav,x\u2028y\n", "is no species code"),
        ("row_id,seconds,birds\n1_5,3,x\n", "row 1: no 5 s end at 3 s"),
        ("filename,label\n1.wav,x\x00y\n", "no text table"),
        (b"PK\x03\x04\x14\x00\x06\x00", "saved as CSV"),
    ],
)
def test_a_bad_table_is_one_line_that_names_it(tmp_path, text, message):
    audio, table = tree(tmp_path, text, "1.wav")
    with pytest.raises(UserError, match=message) as caught:
        read_tables(audio, table)
    assert str(caught.value).count("\n") == 0
    assert "labels.csv" in str(caught.value)


def test_a_western_table_reads(tmp_path):
    audio, table = tree(tmp_path, "filename,label,author\n1.wav,x,José Ñandú\n".encode("cp1252"), "1.wav")
    assert read_tables(audio, table).recordings["author"][0] == "José Ñandú"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ('{"error": "key"}', "no list 'recordings'"),
        ('{"recordings": [{"id": "1"}]}', "no recording of a known species .XC1 without a species"),
        ('{"recordings": ["1"]}', "'1' is no recording"),
        ('{"recordings": []}', "no recordings"),
    ],
)
def test_a_bad_page_is_named(tmp_path, text, message):
    audio, table = tree(tmp_path, text, "1.wav", name="page.json")
    with pytest.raises(UserError, match=f"page.json: .*{message}"):
        read_tables(audio, table)


def test_own_pages_that_are_all_empty_are_named(tmp_path):
    root = touch(tmp_path / "mine", "XC1.wav")
    Path(root, "page.json").write_text('{"recordings": []}')
    with pytest.raises(UserError, match=r"page\.json: no recordings"):
        read_tables(root)


def test_wrong_paths_are_named(tmp_path):
    audio, table = tree(tmp_path, "filename,label\n1.wav,x\n", "1.wav")
    for arguments, message in [
        (("/nowhere/at/all",), "/nowhere/at/all: no such folder"),
        ((table,), "labels.csv: is no folder"),
        ((audio, "/nowhere.csv"), "/nowhere.csv: no such table"),
        ((audio,), "no table that names its recordings"),
        (("gs://bucket/audio", table), "local folder"),
    ]:
        with pytest.raises(UserError, match=message):
            read_tables(*arguments)
    with pytest.raises(UserError, match="'birdclef1999' is none of birdclef2020"):
        read_tables(audio, table, layout="birdclef1999")
    with pytest.raises(UserError, match="a rfcx table needs recording_id and species_id"):
        read_tables(audio, table, layout="rfcx")
    with pytest.raises(UserError, match="no such taxonomy"):
        read_tables(audio, table, taxonomy="/nowhere.csv")
    with pytest.raises(UserError, match="a taxonomy needs"):
        read_tables(audio, table, taxonomy=table)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no recordings"):
        read_tables(str(tmp_path / "empty"))


def test_its_own_table_that_fits_no_file_is_an_error(tmp_path):
    root = competition(tmp_path, "birdclef2023", "train_audio/asbfly/other.ogg")
    with pytest.raises(UserError, match=r"none of the 2 files .*\(e.g. asbfly/XC900301.ogg\)"):
        read_tables(root)


def test_a_strange_table_above_the_folder_is_passed_over(tmp_path):
    (tmp_path / "train.csv").write_text("PassengerId,Survived\n1,0\n")
    assert codes(read_tables(touch(tmp_path / "mine", "wren/1.wav"))) == ("wren",)


# --- one recording


def test_a_recording_that_two_species_folders_hold_is_one(tmp_path):
    text = "primary_label,filename\na,a/XC7.ogg\nb,b/XC7.ogg\n"
    tables = read_tables(*tree(tmp_path, text, "a/XC7.ogg", "b/XC7.ogg"))
    assert rows(tables.recordings, "path", "primary_label", "secondary_labels") == [("a/XC7.ogg", "a", "b")]
    assert tables.report["repeated"] == 1


def test_pieces_of_a_recording_do_not_share_its_number(tmp_path):
    tables = read_tables(touch(tmp_path / "mine", "a/XC7_1.wav", "a/XC7_2.wav", "a/XC8.wav"))
    assert list(tables.recordings["recording"]) == ["", "", "XC8"]
    assert tables.report["pieces"] == 2


def test_a_recording_in_two_data_sets_is_kept_once(tmp_path):
    files = ("aldfly/XC900001", "amecro/XC900002", "aldfly/XC900003")
    first = read_tables(competition(tmp_path, "birdclef2020", *(f"train_audio/{name}.mp3" for name in files)))
    root = competition(tmp_path, "xeno-canto-extended", "amecro/XC900010.mp3", "amecro/XC900002.mp3")
    second = read_tables(root)
    merged = merge_tables([first, second])
    assert merged.report["in_two_data_sets"] == 1
    assert list(merged.recordings["recording"]) == ["XC900001", "XC900003", "XC900002", "XC900010"]
    assert list(merged.recordings["data_set"]) == ["birdclef2020"] * 3 + ["xeno-canto-extended"]
    assert merged.report["tables"] == [*first.report["tables"], *second.report["tables"]]
    assert merged.report["dropped"]["secondary_labels"] == {"Turdus nusquam_Nowhere Thrush": 1}
    assert merged.species["code"].is_monotonic_increasing and merged.species["code"].is_unique
    assert_same(merge_tables([first]), first)


def test_a_recording_in_two_data_sets_has_the_labels_of_both(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    text = "filename,label\nXC1.wav,a;b\nXC2.wav,a\nXC3.wav,nocall\n"
    one = read_tables(*tree(tmp_path / "a", text, "XC1.wav", "XC2.wav", "XC3.wav"), data_set="one")
    text = "filename,label\nx/XC1.ogg,c;a\nx/XC2.ogg,a\nx/XC3.ogg,d;b\n"
    two = read_tables(*tree(tmp_path / "b", text, "x/XC1.ogg", "x/XC2.ogg", "x/XC3.ogg"), data_set="two")
    merged = merge_tables([one, two])
    assert rows(merged.recordings, "path", "primary_label", "secondary_labels") == [
        ("XC1.wav", "a", "b;c"),
        ("XC2.wav", "a", ""),
        ("XC3.wav", "d", "b"),
    ]
    assert merged.report["in_two_data_sets"] == 3 and codes(merged) == ("a", "d")


def test_merged_annotations_keep_their_recording(tmp_path):
    text = "filename,start,end,label\nXC1.wav,0,5,x\nown.wav,0,5,x\n"
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    one = read_tables(*tree(tmp_path / "a", text, "XC1.wav", "own.wav"), data_set="one")
    text = "filename,start,end,label\nXC1.wav,1,2,y\nfield.wav,0,5,x\n"
    two = read_tables(*tree(tmp_path / "b", text, "XC1.wav", "field.wav"), data_set="two")
    merged = merge_tables([one, two])
    assert rows(merged.annotations, "recording", "path", "species") == [
        ("XC1", "XC1.wav", "x"),
        ("", "own.wav", "x"),
        ("XC1", "XC1.wav", "y"),
        ("", "field.wav", "x"),
    ]
    with pytest.raises(UserError, match="two data sets are named 'one'"):
        merge_tables([one, dataclasses.replace(one, recordings=one.recordings.iloc[1:])])
    third = read_tables(str(tmp_path / "a" / "audio"), str(tmp_path / "a" / "labels.csv"), data_set="three")
    with pytest.raises(UserError, match=r"own.wav stands in two data sets"):
        merge_tables([one, third])


# --- what a recipe uses


def small(tmp_path: Path) -> Tables:
    text = (
        "filename,label,secondary_labels,rating,duration\n"
        "1.wav,a,\"['b', 'q']\",5,39.9\n2.wav,a,b;a,2,40\n3.wav,b,a,0,\n4.wav,c,,1,10\n"
    )
    focal = read_tables(*tree(tmp_path, text, *(f"{i}.wav" for i in range(1, 5))), data_set="focal")
    text = "filename,start,end,label\nfield.wav,0,5,a;d\nfield.wav,5,10,nocall\n"
    (tmp_path / "field").mkdir()
    return merge_tables([focal, read_tables(*tree(tmp_path / "field", text, "field.wav"), data_set="field")])


def test_secondary_labels_count_only_in_short_recordings(tmp_path):
    used, report = filter_recordings(small(tmp_path))
    assert list(used.recordings["secondary_labels"]) == ["b", "", "", "", ""]
    assert report["secondary_unused"] == 2 and report["secondary_outside_classes"] == {"q": 1}
    used, report = (
        filter_recordings(small(tmp_path / "again"), secondary_below_seconds=None) if False else (used, report)
    )


def test_every_secondary_label_counts_without_a_limit(tmp_path):
    used, report = filter_recordings(small(tmp_path), secondary_below_seconds=None)
    assert list(used.recordings["secondary_labels"]) == ["b", "b", "a", "", ""]
    assert report["secondary_unused"] == 0


def test_min_rating_keeps_the_unrated_and_names_lost_classes(tmp_path):
    tables = small(tmp_path)
    used, report = filter_recordings(tables, min_rating=2.5)
    assert list(used.recordings["path"]) == ["1.wav", "3.wav", "field.wav"]
    assert (report["below_min_rating"], report["unrated"], report["classes_lost"]) == (2, 2, ["c"])
    assert len(tables.recordings) == 5


def test_a_primary_label_outside_the_class_list_is_an_error_unless_filtered(tmp_path):
    tables, classes = small(tmp_path), ClassList(("a", "b"))
    with pytest.raises(UserError, match=r"4\.wav: its species 'c' is not in the class list"):
        filter_recordings(tables, classes=classes)
    used, report = filter_recordings(tables, classes=classes, filter_to_classes=True)
    assert list(used.recordings["path"]) == ["1.wav", "2.wav", "3.wav", "field.wav"]
    assert report["primary_outside_classes"] == {"c": 1} and report["annotations_outside_classes"] == {"d": 1}
    assert sorted(used.annotations["species"]) == ["*", "*", "a"]
    assert json.loads(json.dumps(report)) == report


def test_no_recording_left_is_an_error(tmp_path):
    tables = read_tables(*tree(tmp_path, "filename,label,rating\n1.wav,a,1\n", "1.wav"))
    with pytest.raises(UserError, match="no recording is left"):
        filter_recordings(tables, min_rating=3)
    with pytest.raises(UserError, match="no recording is left"):
        filter_recordings(tables, classes=ClassList(("z",)), filter_to_classes=True)


def test_recordings_that_go_take_their_annotations_along(tmp_path):
    text = "filename,label\n1.wav,nocall\n2.wav,a\n"
    tables = read_tables(*tree(tmp_path, text, "1.wav", "2.wav"))
    assert len(tables.annotations) == 1
    left = dataclasses.replace(tables, recordings=tables.recordings.assign(rating=[1.0, 5.0]))
    assert len(filter_recordings(left, min_rating=3)[0].annotations) == 0


def test_classes_are_primary_labels_and_positive_annotations(tmp_path):
    assert codes(small(tmp_path)) == ("a", "b", "c", "d")


def test_no_class_is_an_error(tmp_path):
    tables = read_tables(*tree(tmp_path, "filename,label\n1.wav,nocall\n", "1.wav"))
    with pytest.raises(UserError, match="no class"):
        class_list(tables)


def test_rating_weights():
    weights = rating_weights(pd.DataFrame({"rating": [5.0, 2.5, 0.25, np.nan, 0.0]}))
    np.testing.assert_allclose(weights, [1, 0.5, 0.1, 1.6 / 3, 1.6 / 3])
    assert rating_weights(pd.DataFrame({"rating": [np.nan, 0.0]})).tolist() == [1, 1]


# --- on disk


text = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
real = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.just(math.nan))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_round_trip_is_exact(tmp_path, data):
    def frame(columns):
        lines = data.draw(st.integers(0, 3))
        return pd.DataFrame(
            {
                name: pd.Series(data.draw(st.lists(kind, min_size=lines, max_size=lines)), dtype=dtype)
                for name in columns
                for kind, dtype in [(real, float) if name in module._NUMBERS else (text, str)]
            }
        )

    tables = Tables(*(frame(columns) for columns in (module.RECORDINGS, module.ANNOTATIONS, module.SPECIES)))
    write_tables(str(tmp_path), tables)
    assert_same(load_tables(str(tmp_path)), tables)


def test_labels_like_na_and_numbers_survive_the_disk(tmp_path):
    tables = read_tables(touch(tmp_path / "mine", "NA/1.wav", "007/2.wav", "1e5/3.wav", "None/4.wav", "true/5.wav"))
    write_tables(str(tmp_path / "out"), tables)
    assert_same(load_tables(str(tmp_path / "out")), tables)
    assert codes(load_tables(str(tmp_path / "out"))) == ("007", "1e5", "NA", "None", "true")


def test_further_columns_survive_as_text(tmp_path):
    tables = small(tmp_path)
    tables = dataclasses.replace(tables, recordings=tables.recordings.assign(audio_hash="00ff"))
    write_tables(str(tmp_path / "out"), tables)
    assert set(load_tables(str(tmp_path / "out")).recordings["audio_hash"]) == {"00ff"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "no such table"),
        (lambda path: path.write_text("recording,path\n"), "has no column 'data_set'"),
        (lambda path: path.write_text(path.read_text().replace("39.9", "long")), "could not convert"),
        (lambda path: path.write_text(path.read_text() + "x,y\n"), "row 6 has 2 cells, the header 13"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "no table of ours"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, change, message):
    write_tables(str(tmp_path / "out"), small(tmp_path))
    change(tmp_path / "out" / "recordings.csv")
    with pytest.raises(UserError, match=f"recordings.csv: .*{message}"):
        load_tables(str(tmp_path / "out"))


def test_a_folder_of_which_nothing_is_known(tmp_path):
    """No table in it and no folder's name says anything."""
    audio, _ = tree(tmp_path, "filename,label\n1.wav,wren\n", "1.wav", "owl/XC7 owl.ogg", "owl/notes.txt")
    (Path(audio) / "train_metadata.csv").write_text("primary_label,filename\nwren,1.wav\n")
    tables = unlabelled_tables(audio, data_set="quiet")
    assert rows(tables.recordings, "recording", "data_set", "path", "primary_label", "secondary_labels") == [
        ("", "quiet", "1.wav", "", ""),
        ("XC7", "quiet", "owl/XC7 owl.ogg", "", ""),
    ]
    assert tables.annotations.empty and tables.species.empty and tables.report["layouts"] == ["unlabelled"]
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none: no recordings in it or below it"):
        unlabelled_tables(str(tmp_path / "none"))
