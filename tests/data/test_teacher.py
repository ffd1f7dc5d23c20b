"""A teacher's embeddings: their file, and which of them a clip gets."""

import io
import itertools

import numpy as np
import pandas as pd
import pytest

from birdtpu.data import pipeline, records, shards
from birdtpu.data.teacher import Teacher
from birdtpu.errors import UserError
from birdtpu.species import ClassList

RATE = 1000
# Two records of 2 s, one that is shorter than what is read, one of which the teacher knows little, and a stranger.
RECORDS = [("XC1", 0.0, 2.0), ("XC1", 2.0, 2.0), ("XC2", 0.0, 0.7), ("XC3", 0.0, 2.0), ("XC4", 0.0, 2.0)]
STARTS = {"XC1": [3.5, 0.0, 0.4, 0.9, 1.6, 2.1, 2.9], "XC2": [0.0, 0.5], "XC3": [1.3]}
RNG = np.random.default_rng(0)


def file(path, **changes):
    names = [name for name, starts in STARTS.items() for _ in starts]
    arrays = {"recording": np.array(names), "start_seconds": np.concatenate(list(STARTS.values()))}
    arrays["embedding"] = RNG.normal(0, 3, (len(names), 5)).astype(np.float16)
    np.savez(path, **{name: value for name, value in {**arrays, **changes}.items() if value is not None})
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A prepared folder; sample i of a recording is i, so that a clip tells where it lies."""
    path = tmp_path_factory.mktemp("prepared")
    writer, rows = shards.ShardWriter(path / shards.FOLDER, 1), []
    for name, start, seconds in RECORDS:
        record = f"{name}/{round(start):05d}"
        samples = (start * RATE + np.arange(round(seconds * RATE))).astype(np.float32) / 32768
        framed = records.frame(records.serialize(record, name, start, samples))
        rows.append((record, name, 0, writer.append(0, framed), len(framed), start, seconds))
    table = pd.DataFrame(rows, columns=shards.RECORD_COLUMNS).to_csv(index=False).encode()
    (path / "records.csv").write_bytes(table)
    manifest = shards.make_manifest({"sample_rate": RATE}, writer.describe(), {"records.csv": table})
    (path / shards.MANIFEST).write_bytes(manifest)
    return str(path)


@pytest.fixture
def plan():
    rows = [(i, f"{name}/{round(start):05d}", 0.0, seconds) for i, (name, start, seconds) in enumerate(RECORDS)]
    table = pd.DataFrame(rows, columns=["row", "record", "start_seconds", "end_seconds"])
    table = table.assign(section=table["row"], repeats=4, role="train", source="labelled", weight=1.0)
    return table.assign(targets="a", unknown="", within="")


def twin(teacher: Teacher, name: str, second: float) -> np.ndarray:
    """By looking at every row."""
    best, found = 0.5, np.zeros(5)
    for other, start, embedding in zip(teacher.recording, teacher.start_seconds, teacher.embedding, strict=True):
        if other == name and abs(start - second) <= best:
            best, found = abs(start - second), embedding.astype(float) / np.linalg.norm(embedding.astype(float))
    return found


@pytest.mark.parametrize(("read", "frame_hop"), [(1.0, 0), (1.3, 0), (1.0, 100)])
def test_a_clip_gets_the_embedding_of_the_nearest_stretch(folder, plan, tmp_path, read, frame_hop):
    teacher = Teacher.load(file(tmp_path / "t.npz"), 1.0)
    options = {"clip_samples": round(read * RATE), "batch_size": 8, "teacher": teacher, "seed": 1}
    timed = plan.assign(source="timed" if frame_hop else "labelled")
    dataset = pipeline.batches(folder, timed, ClassList(("a",)), frame_hop=frame_hop, **options)
    assert dataset.element_spec["teacher"].shape == (8, 5) and "start" not in dataset.element_spec
    silent, second_record, distinct = 0, 0, set()
    for batch in itertools.islice(dataset.as_numpy_iterator(), 16):
        for audio, row, said in zip(batch["audio"], batch["row"], batch["teacher"], strict=True):
            name, start, _ = RECORDS[row]
            # On average the device cuts a clip from the middle of what is read; what is repeated begins at its start.
            heard = start if name == "XC2" else round(float(audio[0]) * 32768) / RATE + (read - 1.0) / 2
            expected = twin(teacher, name, heard)
            np.testing.assert_allclose(said, expected, atol=1e-6)
            silent += not expected.any()
            second_record += row == 1 and bool(expected.any())
            distinct.add(expected.tobytes())
            assert name != "XC4" or not said.any()
    assert silent > 20 and second_record > 10 and len(distinct) > 7


def test_validation_batches_have_no_teacher(folder, plan):
    dataset = pipeline.batches(folder, plan, ClassList(("a",)), clip_samples=RATE, batch_size=8, training=False)
    assert "teacher" not in dataset.element_spec


def test_recordings_go_by_id_or_by_path(tmp_path):
    table = pd.DataFrame({"recording": ["XC1", "XC2", "a1b2"], "path": ["x/1.ogg", "x/2.ogg", "site.wav"]})
    names = np.array(["x/2.ogg", "XC1", "elsewhere.ogg", "site.wav", "a1b2"])
    path = file(
        tmp_path / "t.npz", recording=names, start_seconds=np.arange(5), embedding=np.eye(5, 3, dtype=np.float32)
    )
    found = Teacher.load(path, 1.0).of(pd.concat([table, table]))
    assert found.recording.tolist() == ["XC2", "XC1", "a1b2", "a1b2"]
    assert found.start_seconds.tolist() == [0, 1, 3, 4] and found.embedding.shape == (4, 3)
    both = pd.concat([table, pd.DataFrame({"recording": ["XC9"], "path": ["x/2.ogg"]})])
    with pytest.raises(
        UserError, match=r"t\.npz: recording: several recordings have the path x/2\.ogg; give their ids"
    ):
        Teacher.load(path, 1.0).of(both)


def test_zeros_and_huge_numbers_have_no_infinite_direction(tmp_path):
    embedding = np.zeros((10, 2), np.float32)
    embedding[1] = 3e38
    say = Teacher.load(file(tmp_path / "t.npz", embedding=embedding), 1.0).nearest()
    assert say("XC1", 3.5).tolist() == [0, 0]
    np.testing.assert_allclose(say("XC1", 0.0), [0.5**0.5] * 2, rtol=1e-6)


NAN = np.ones((10, 5), np.float32)
NAN[3, 2] = np.nan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recording": None}, "recording: there is no such array"),
        ({"start_seconds": None}, "start_seconds: there is no such array"),
        ({"embedding": None}, "embedding: there is no such array"),
        ({"recording": np.array(["a"] * 10, dtype=object)}, r"recording: cannot be read .*; save text with dtype=str"),
        ({"recording": np.arange(10)}, r"recording: text of the shape \(n,\), not int64 of \(10,\)"),
        ({"recording": np.array("XC1")}, r"recording: text of the shape \(n,\), not <U3 of \(\)"),
        ({"recording": np.empty(0, "U3")}, "recording: is empty"),
        ({"start_seconds": np.zeros(9)}, r"start_seconds: numbers of the shape \(10,\), .*, not float64 of \(9,\)"),
        ({"start_seconds": np.array(["0"] * 10)}, r"start_seconds: numbers of the shape \(10,\)"),
        ({"start_seconds": np.full(10, np.inf)}, r"start_seconds: row 0 is no number"),
        ({"embedding": NAN}, r"embedding: row 3 is no number"),
        (
            {"embedding": NAN[:9]},
            r"embedding: float16 or float32 of the shape \(10, features\), not float32 of \(9, 5\)",
        ),
        ({"embedding": NAN[:, :0]}, r"embedding: .* not float32 of \(10, 0\)"),
        ({"embedding": NAN.astype(float)}, r"embedding: .* not float64 of \(10, 5\)"),
        ({"embedding": NAN[:, 0]}, r"embedding: .* not float32 of \(10,\)"),
    ],
)
def test_a_file_of_something_else_is_one_line(tmp_path, changes, message):
    with pytest.raises(UserError, match=rf"teacher .*t\.npz: {message}") as told:
        Teacher.load(file(tmp_path / "t.npz", **changes), 1.0)
    assert "\n" not in str(told.value)


def test_a_damaged_file_is_one_line(tmp_path):
    whole = file(tmp_path / "t.npz").read_bytes()
    bare = io.BytesIO()
    np.save(bare, NAN)
    # The bytes of the first array change under their checksum.
    flipped = bytearray(whole)
    flipped[200] ^= 1
    for data in (b"", b"text", whole[: len(whole) // 2], bare.getvalue(), bytes(flipped)):
        (tmp_path / "t.npz").write_bytes(data)
        with pytest.raises(UserError, match=r"teacher .*t\.npz: ") as told:
            Teacher.load(tmp_path / "t.npz", 1.0)
        assert "\n" not in str(told.value)
    with pytest.raises(UserError, match=r"teacher .*none\.npz: no such file"):
        Teacher.load(tmp_path / "none.npz", 1.0)
