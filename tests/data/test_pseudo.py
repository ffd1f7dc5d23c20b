"""The file of pseudo-labels, and a plan's rows of it."""

import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from birdtpu.data import order
from birdtpu.data.annotations import STRETCH
from birdtpu.data.plan import load_plan, make_plan, plan_report, save_plan
from birdtpu.data.pseudo import PseudoLabels, add_rows, soft_targets
from birdtpu.errors import UserError
from birdtpu.species import ClassList

CLASSES = ClassList(("a", "b", "c"))


def make_clips(count, recordings=4, seconds=5.0):
    """Clips dealt to recordings S0, S1, ..., one behind the other in each."""
    number = np.arange(count)
    start = number // recordings * seconds
    rows = {"recording": [f"S{i % recordings}" for i in number], "start_seconds": start}
    return pd.DataFrame(rows | {"end_seconds": start + seconds})


def make_records(clips, seconds=10.0):
    length = clips.groupby("recording")["end_seconds"].max()
    rows = [
        (f"{name}/{i:05d}", name, i * seconds, min(seconds, last - i * seconds))
        for name, last in length.items()
        for i in range(-int(-last // seconds))
    ]
    return pd.DataFrame(rows, columns=["record", "recording", "start_seconds", "seconds"])


def labelled_plan(count=20):
    names = [f"XC{i}" for i in range(count)]
    recordings = pd.DataFrame({"recording": names, "primary_label": "a", "secondary_labels": ""})
    records = pd.DataFrame({"record": [f"{n}/00000" for n in names], "recording": names, "start_seconds": 0.0})
    sections = pd.DataFrame({"recording": names, "start_seconds": 0.0, "end_seconds": 8.0, "repeats": 1})
    none = pd.DataFrame({name: [] for name in [*STRETCH, "species", "state"]})
    roles = ["test"] * 2 + ["train"] * (count - 2)
    options = {"sections": sections[2:], "roles": roles, "classes": CLASSES, "clip_seconds": 5.0}
    return make_plan(recordings, none, records.assign(seconds=8.0), **options)


def with_rows(plan, clips, allowed=None, ratio=1.0, seed=0):
    allowed = np.ones(len(clips), bool) if allowed is None else allowed
    options = {"ratio": ratio, "weight": 0.5, "clip_seconds": 5.0, "seed": seed}
    return add_rows(plan, clips, allowed, make_records(clips), **options)


@pytest.fixture
def labels():
    scores = np.array([[0.25, 1, 0], [0.5, np.nan, 0.125]], np.float16)
    notes = {"strategy": "mean", "data": ["p"], "untold": [], "clip_seconds": 5.0}
    return PseudoLabels(make_clips(2), scores, ("a", "007", "é"), frozenset({"XC2", "XC1"}), notes)


def test_a_file_comes_back_as_it_was(labels, tmp_path):
    path = tmp_path / "new" / "p.npz"
    labels.save(path)
    again = PseudoLabels.load(path)
    pd.testing.assert_frame_equal(again.clips, labels.clips)
    np.testing.assert_array_equal(again.scores, labels.scores)
    assert (again.codes, again.seen, again.notes) == (labels.codes, labels.seen, labels.notes)
    first = path.read_bytes()
    again.save(path)
    assert path.read_bytes() == first and len(again.sha256) == 64
    assert [child.name for child in path.parent.iterdir()] == ["p.npz"]


def test_broken_files_are_one_line(labels, tmp_path):
    path = tmp_path / "p.npz"
    with pytest.raises(UserError, match=r"p\.npz: no such file; birdtpu pseudo-label writes it"):
        PseudoLabels.load(path)
    labels.save(path)
    whole = path.read_bytes()
    pickled = io.BytesIO()
    np.savez(pickled, recording=np.array([{}], object))
    other = io.BytesIO()
    np.savez(other, scores=np.zeros(3))
    for data in (b"", b"text", whole[:200], whole[:-30], pickled.getvalue(), other.getvalue()):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"p\.npz: damaged") as caught:
            PseudoLabels.load(path)
        assert "\n" not in str(caught.value)
    for name in ("data", "untold", "clip_seconds"):
        PseudoLabels(labels.clips, labels.scores, labels.codes, notes={**labels.notes, name: None}).save(path)
        with pytest.raises(UserError, match=r"p\.npz: damaged"):
            PseudoLabels.load(path)
    arrays = dict(np.load(io.BytesIO(whole)))
    for changes, message in (
        ({"start_seconds": np.array([0.0, np.nan])}, "hold no time"),
        ({"start_seconds": np.array([-5.0, 0.0])}, "hold no time"),
        ({"start_seconds": np.array(["0", "x"])}, "damaged"),
        ({"codes": np.array(["a", "a", "b"])}, "a species has two columns"),
        ({"scores": np.full((2, 3), np.nan, np.float16)}, "says nothing: no clip has a score"),
    ):
        np.savez(path, **(arrays | changes))
        with pytest.raises(UserError, match=rf"p\.npz: .*{message}"):
            PseudoLabels.load(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UserError, match=r"p\.npz: damaged"):
        PseudoLabels.load(path)
    for scores in (labels.scores[:1], labels.scores * 2, labels.scores.astype(np.float32)):
        arrays = dict(np.load(io.BytesIO(whole)))
        np.savez(path, **(arrays | {"scores": scores}))
        with pytest.raises(UserError, match="no shares of 3 species"):
            PseudoLabels.load(path)


def test_columns_are_the_trainings(labels):
    out = soft_targets(labels, ClassList(("b", "007", "a")))
    np.testing.assert_array_equal(out, np.array([[np.nan, 1, 0.25], [np.nan, np.nan, 0.5]], np.float16))
    with pytest.raises(UserError, match="of other species"):
        soft_targets(labels, ClassList(("x",)))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 150), st.sampled_from([0.25, 0.5, 1.0, 2.0]), st.integers(0, 99))
def test_an_epoch_has_the_ratio_and_takes_every_clip_in_turn(count, ratio, seed):
    before = labelled_plan()
    plan = with_rows(before, make_clips(count), ratio=ratio, seed=seed)
    pd.testing.assert_frame_equal(plan[: len(before)], before)
    assert plan["row"].tolist() == list(range(len(plan))) and set(plan["role"][len(before) :]) == {"train"}
    training = plan[plan["role"] == "train"].reset_index(drop=True)
    labelled = (training["source"] == "labelled").sum()
    wanted = round(ratio * labelled)
    heard = []
    for epoch in range(-(-count // wanted) + 1):
        index, _ = order.epoch_rows(training, np.arange(len(training)) % 5, seed=seed, epoch=epoch)
        pseudo = training.iloc[index].query("source == 'pseudo'")["targets"].astype(int)
        assert len(pseudo) == wanted and len(index) == wanted + labelled
        times = np.bincount(pseudo, minlength=count)
        assert count > wanted or times.max() - times.min() <= 1
        heard += list(pseudo)
    assert set(heard) == set(range(count))
    assert (plan["weight"][plan["source"] == "pseudo"] == 0.5).all()


def test_rows_are_the_clips_and_survive_the_file(tmp_path):
    clips = make_clips(12)
    plan = with_rows(labelled_plan(), clips, allowed=np.arange(12) % 3 > 0)
    rows = plan[plan["source"] == "pseudo"]
    assert sorted(rows["targets"].astype(int)) == [1, 2, 4, 5, 7, 8, 10, 11]
    said = clips.iloc[rows["targets"].astype(int)].reset_index(drop=True)
    record = rows["record"].str.split("/").str
    assert record[0].tolist() == said["recording"].tolist()
    assert ((rows["start_seconds"] + 10 * record[1].astype(int)).to_numpy() == said["start_seconds"]).all()
    assert (rows["end_seconds"] - rows["start_seconds"] == 5).all()
    save_plan(plan, tmp_path / "plan.csv")
    pd.testing.assert_frame_equal(load_plan(tmp_path / "plan.csv"), plan, check_exact=True)
    line = next(line.split() for line in plan_report(plan, CLASSES).splitlines() if line.startswith("(pseudo)"))
    assert line[1:4] == ["4", "8", "40"]


def test_what_cannot_be_trained_on_is_one_line():
    clips = make_clips(4)
    with pytest.raises(UserError, match="no clip is left"):
        with_rows(labelled_plan(), clips, allowed=np.zeros(4, bool))
    lost = make_records(clips[clips["recording"] != "S2"])
    options = {"ratio": 1.0, "weight": 1.0, "clip_seconds": 5.0, "seed": 0}
    with pytest.raises(UserError, match=r"lack 1 of their recordings \(S2"):
        add_rows(labelled_plan(), clips, np.ones(4, bool), lost, **options)
    late = clips.assign(start_seconds=clips["start_seconds"] + 1000, end_seconds=clips["end_seconds"] + 1000)
    with pytest.raises(UserError, match="4 clips begin behind their recording's end"):
        add_rows(labelled_plan(), late, np.ones(4, bool), make_records(clips), **options)
