import json
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from birdtpu.data import records, shards
from birdtpu.errors import UserError

COUNT = 3
TABLES = {"records.csv": b"record,recording\na/00000,a\n", "species.csv": b"code\nbird\n"}
SETTINGS = {"sample_rate": 8000, "record_seconds": 0.5, "channel": "mix", "min_seconds": 0.01}


def framed(name, samples=200):
    audio = np.random.default_rng(len(name)).uniform(-1, 1, samples).astype(np.float32)
    return records.frame(records.serialize(f"{name}/00000", name, 0.0, audio))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small prepared folder."""
    folder = tmp_path_factory.mktemp("shards") / "whole"
    writer = shards.ShardWriter(folder / shards.FOLDER, COUNT)
    for i in range(9):
        writer.append(i % COUNT, framed("x" * (i + 1)))
    writer.sync()
    for name, data in TABLES.items():
        (folder / name).write_bytes(data)
    (folder / shards.MANIFEST).write_bytes(shards.make_manifest(SETTINGS, writer.describe(), TABLES))
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy to damage."""
    return shutil.copytree(whole, tmp_path / "copy")


def listed(folder, cuts):
    """A prepared folder of no more than its list of records: how many seconds the records of each recording hold."""
    rows = [f"{name}/{i:05d},{name},0,0,9,{i * seconds},{seconds}" for name, seconds, n in cuts for i in range(n)]
    data = "\n".join([",".join(shards.RECORD_COLUMNS), *rows, ""]).encode()
    folder.mkdir()
    (folder / "records.csv").write_bytes(data)
    (folder / shards.MANIFEST).write_bytes(shards.make_manifest(SETTINGS, [], {"records.csv": data}))
    return folder


def shard(folder, index):
    return folder / shards.FOLDER / shards.shard_name(index, COUNT)


def test_a_whole_folder_has_no_problem(whole):
    assert shards.verify(whole) == []
    assert shards.load_manifest(whole)["sample_rate"] == 8000


def test_tensorflow_reads_the_shards(whole):
    import tensorflow as tf

    for i, entry in enumerate(shards.load_manifest(whole)["shards"]):
        parsed = [records.parse(item) for item in tf.data.TFRecordDataset(str(shard(whole, i)))]
        assert len(parsed) == entry["records"] == 3
        assert all(len(item["audio"].numpy()) == 400 for item in parsed)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_every_flipped_bit_is_found(whole, data):
    files = sorted(path for path in whole.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files))
    good = path.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(good) - 1))
    bad = bytearray(good)
    bad[bit // 8] ^= 1 << bit % 8
    try:
        path.write_bytes(bad)
        (problem,) = shards.verify(whole)
        assert path.name in problem
    finally:
        path.write_bytes(good)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_every_truncation_is_found(whole, data):
    files = sorted(path for path in whole.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files))
    good = path.read_bytes()
    try:
        path.write_bytes(good[: data.draw(st.integers(0, len(good) - 1))])
        (problem,) = shards.verify(whole)
        assert path.name in problem
    finally:
        path.write_bytes(good)


def test_truncation_at_a_records_boundary_is_found(folder):
    data = shard(folder, 1).read_bytes()
    shard(folder, 1).write_bytes(data[: 2 * len(data) // 3])
    (problem,) = shards.verify(folder)
    assert "00001" in problem
    assert "bytes instead of" in problem


def test_records_of_several_folders_are_the_firsts_that_has_their_recording(tmp_path):
    one = listed(tmp_path / "one", [("a", 6, 2)])
    other = listed(tmp_path / "other", [("a", 4, 3), ("b", 4, 1)])
    table = shards.load_all_records([one, other, other])
    assert list(zip(table["record"], table["seconds"], table["folder"], strict=True)) == [
        ("a/00000", 6, 0),
        ("a/00001", 6, 0),
        ("b/00000", 4, 1),
    ]
    assert list(shards.load_all_records([other, one])["seconds"]) == [4, 4, 4, 4]


def test_a_missing_shard_is_found(folder):
    shard(folder, 2).unlink()
    assert [problem.split(": ")[1] for problem in shards.verify(folder)] == ["missing"]


def test_an_empty_shard_is_found(folder):
    shard(folder, 0).write_bytes(b"")
    (problem,) = shards.verify(folder)
    assert ": 0 bytes instead of" in problem


def test_swapped_shards_are_found(folder):
    a, b = shard(folder, 0).read_bytes(), shard(folder, 1).read_bytes()
    shard(folder, 0).write_bytes(b)
    shard(folder, 1).write_bytes(a)
    assert len(shards.verify(folder)) == 2


def test_swapped_records_are_found(folder):
    data = shard(folder, 0).read_bytes()
    third = len(data) // 3
    shard(folder, 0).write_bytes(data[-third:] + data[third:-third] + data[:third])
    assert len(shards.verify(folder)) == 1


def test_a_foreign_shard_is_found(folder):
    (folder / shards.FOLDER / "shard-00003-of-00004.tfrecord").write_bytes(framed("foreign"))
    (problem,) = shards.verify(folder)
    assert "does not belong here" in problem


def test_a_missing_folder_of_shards_is_found(folder):
    shutil.rmtree(folder / shards.FOLDER)
    assert len(shards.verify(folder)) == COUNT


def test_a_missing_table_is_found(folder):
    (folder / "species.csv").unlink()
    assert [problem.split(": ")[1] for problem in shards.verify(folder)] == ["missing"]


def test_a_missing_manifest_is_one_problem(tmp_path):
    (problem,) = shards.verify(tmp_path)
    assert "birdtpu prepare" in problem


@pytest.mark.parametrize("text", ["", "[]", "null", "1", "{}", '{"crc32c": "00000000"}', "\xff"])
def test_a_manifest_that_is_none_is_refused(tmp_path, text):
    (tmp_path / shards.MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="damaged"):
        shards.load_manifest(tmp_path)


def test_an_edited_manifest_is_refused(folder):
    path = folder / shards.MANIFEST
    content = json.loads(path.read_text())
    content["sample_rate"] = 16000
    path.write_text(json.dumps(content, indent=1) + "\n")
    with pytest.raises(UserError, match="damaged"):
        shards.load_manifest(folder)


def test_a_later_format_asks_for_an_update(folder, monkeypatch):
    monkeypatch.setattr(shards, "VERSION", shards.VERSION + 1)
    (folder / shards.MANIFEST).write_bytes(shards.make_manifest(SETTINGS, [], TABLES))
    monkeypatch.undo()
    with pytest.raises(UserError, match="update"):
        shards.load_manifest(folder)


def test_a_damaged_table_is_not_loaded(folder):
    (folder / "records.csv").write_bytes(b"record\n")
    with pytest.raises(UserError, match=r"records\.csv"):
        shards.load_records(folder)


def test_a_writer_goes_on_where_it_was_cut(tmp_path):
    names = ["a", "bb", "ccc", "dddd"]
    straight = shards.ShardWriter(tmp_path / "straight", 2)
    for i, name in enumerate(names):
        straight.append(i % 2, framed(name))
    first = shards.ShardWriter(tmp_path / "cut", 2)
    for i, name in enumerate(names[:2]):
        first.append(i % 2, framed(name))
    sizes = list(first.sizes)
    # A record that was written in part when the power went.
    with (tmp_path / "cut" / shards.shard_name(0, 2)).open("ab") as file:
        file.write(framed("ccc")[:100])
    second = shards.ShardWriter(tmp_path / "cut", 2, sizes)
    for i, name in enumerate(names[2:]):
        second.append(i % 2, framed(name))
    assert second.describe() == straight.describe()
    for name in ("shard-00000-of-00002.tfrecord", "shard-00001-of-00002.tfrecord"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


@pytest.mark.parametrize("at", [3, 9, 50, -1])
def test_a_damaged_shard_is_not_described(tmp_path, at):
    writer = shards.ShardWriter(tmp_path, 1)
    writer.append(0, framed("a"))
    path = tmp_path / shards.shard_name(0, 1)
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(UserError, match="delete this file and prepare again"):
        writer.describe()


def test_a_recording_is_read_back_in_order(folder):
    audio = [np.random.default_rng(i).uniform(-1, 1, 50).astype(np.float32) for i in range(3)]
    path, rows = shard(folder, 0), []
    for i in (2, 0, 1):
        record = records.frame(records.serialize(f"z/{i:05d}", "z", i * 0.5, audio[i]))
        rows.append((f"z/{i:05d}", "z", 0, path.stat().st_size, len(record), i * 0.5, 0.5))
        path.write_bytes(path.read_bytes() + record)
    table = pd.DataFrame(rows, columns=list(shards.RECORD_COLUMNS))
    back = np.concatenate(list(shards.read_recording(folder, table)))
    np.testing.assert_allclose(back, np.concatenate(audio), atol=0.51 / 32768)


def test_records_spread_over_the_shards():
    counts = np.bincount([shards.shard_of(f"XC{i}/00000", 8) for i in range(8000)], minlength=8)
    # Binomial with mean 1000 and standard deviation 30.
    assert counts.min() > 850
    assert counts.max() < 1150


def test_the_shard_of_a_record_is_for_ever():
    assert [shards.shard_of(f"XC{i}/00000", 1000) for i in range(4)] == [748, 976, 408, 483]
