"""Pseudo-labels from files to a training, and what may never stand on its training side."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

import birdtpu
from birdtpu.data import plan as planning
from birdtpu.data.annotations import STRETCH
from birdtpu.data.folds import groups
from birdtpu.data.pseudo import PseudoLabels
from birdtpu.data.tables import ANNOTATIONS, RECORDINGS, SPECIES, Tables, load_tables
from birdtpu.errors import UserError
from birdtpu.inference.teaching import soft_labels
from birdtpu.models.build import SoundEventModel
from birdtpu.recipe import load_recipe
from birdtpu.run import Run, open_run
from birdtpu.species import ClassList
from birdtpu.training.log import Log
from birdtpu.workflows.prepared import Prepared, data_info, with_folds
from birdtpu.workflows.pseudo import Pseudo
from birdtpu.workflows.pseudo_label import clip_starts, pseudo_label
from birdtpu.workflows.samples import make_plan
from tests.commands import command

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "audio.clip_seconds=1.0", "audio.margin_seconds=0.25", "audio.record_seconds=2.5", "predict.hop_seconds=0.5",
    "predict.batch_size=8", "frontend.n_mels=32", "frontend.hop_length=1024", "model.features=8", "folds.count=2",
    "train.batch_size=8", "train.epochs=1", "train.steps_per_epoch=2", "balance.up_to=0", "evaluate.bootstrap=20",
]  # fmt: skip
SET = [part for setting in TINY for part in ("--set", setting)]
CODES = ("crow", "owl", "wren")


def tone(path: Path, hz: float, seconds: float, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.3 * np.sin(2 * np.pi * hz * np.arange(int(seconds * 32000)) / 32000)
    soundfile.write(path, wave + np.random.default_rng(seed).normal(0, 0.02, len(wave)), 32000)


def make_run(folder: Path, seed: int, data: Path, fold: str, held: list[str], heard: list[str]) -> Path:
    """A run that nobody trained, whose weights are large enough to have opinions."""
    run = Run(str(folder), load_recipe("quickstart", TINY), ClassList(CODES), {"fold": fold, **data_info([str(data)])})
    run.save()
    network = SoundEventModel(run.recipe, len(CODES), weights="none").network
    rng = np.random.default_rng(seed)
    network.set_weights([w + rng.normal(0, 0.1, w.shape) * (w.ndim > 1) for w in network.get_weights()])
    rows = [(name, "test") for name in held] + [(name, "train") for name in heard]
    plan = pd.DataFrame({"record": [f"{name}/00000" for name, _ in rows], "role": [role for _, role in rows]})
    columns = {name: kind() for name, kind in planning.COLUMNS.items() if name not in plan}
    plan = plan.assign(**columns | {"source": "labelled"})
    planning.save_plan(plan[list(planning.COLUMNS)], run.path("plan.csv"))
    run.save_weights(network)
    Path(run.path("log.csv")).write_text("epoch,seconds\n1,2.0\n")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """`labelled/` (24 recordings), `quiet/` (four unlabelled ones) and `runs/a`, `runs/b`, which hold out one half."""
    home = tmp_path_factory.mktemp("pseudo")
    for i in range(24):
        tone(home / "focal" / CODES[i % 3] / f"XC{i + 1}.wav", 1000 * (1 + i % 3), 2.0, i)
    for i, seconds in enumerate((0.6, 2.2, 5.0, 7.4)):
        tone(home / "field" / f"site{i}.wav", 1000 * (1 + i % 3), seconds, 100 + i)
    birdtpu.prepare("quickstart", home / "focal", home / "labelled", settings=TINY, workers=1)
    birdtpu.prepare("quickstart", home / "field", home / "quiet", settings=TINY, workers=1, unlabelled=True)
    table = with_folds(load_recipe("quickstart", TINY), load_tables(str(home / "labelled")).recordings)
    fold = table["fold"]
    parts = [sorted(table["recording"][fold == name]) for name in "01"]
    for number, name in enumerate("ab"):
        make_run(home / "runs" / name, number, home / "labelled", str(number), parts[number], parts[1 - number])
    return home


def scores_by_hand(home, run, head="clipwise"):
    """Each clip of the unlabelled recordings by `predict`'s own way, from a file cut at the clip."""
    recordings = pd.read_csv(home / "quiet" / "recordings.csv").set_index("recording")
    predictor = birdtpu.load(run, head=head)
    found = {}
    for name, path in recordings["path"].items():
        audio, _ = soundfile.read(home / "field" / path, dtype="float32")
        for row in pd.read_csv(home / "quiet" / "records.csv").query("recording == @name").itertuples():
            for start in clip_starts(round(row.seconds * 32000), 32000, 32000):
                first = round(row.start_seconds * 32000) + start
                clip = audio[first : min(first + 32000, round((row.start_seconds + row.seconds) * 32000))]
                clip = np.pad(clip, (0, 32000 - len(clip)))
                out = predictor._predict(np.repeat(clip[None], 8, 0))[0]
                found[(name, round(first / 32000, 6))] = out
    return found


def test_clips_stay_in_their_record_and_reach_its_end():
    assert clip_starts(12, 5, 5) == [0, 5, 7]
    assert clip_starts(11, 5, 5) == [0, 5]
    assert clip_starts(10, 5, 5) == [0, 5] and clip_starts(3, 5, 5) == [0] and clip_starts(12, 5, 2) == [0, 2, 4, 6]


def test_unlabelled_recordings_are_prepared_and_scored(capsys, home, tmp_path):
    table = pd.read_csv(home / "quiet" / "recordings.csv", keep_default_na=False)
    assert len(table) == 4 and set(table["primary_label"]) == {""}
    out = tmp_path / "p.npz"
    code, text, err = command(capsys, "pseudo-label", home / "runs/a", home / "runs/b", "--data", home / "quiet",
                              "--output", out, "--weights", "3,1", "--power", "2")  # fmt: skip
    assert (code, err) == (0, "") and f"{out}: 18 clips of 4 recordings" in text
    labels = PseudoLabels.load(out)
    a, b = scores_by_hand(home, home / "runs/a"), scores_by_hand(home, home / "runs/b")
    keys = [(name, round(s, 6)) for name, s in labels.clips[["recording", "start_seconds"]].itertuples(index=False)]
    assert set(keys) == set(a) and len(keys) == len(a)
    expected = np.array([(0.75 * a[key] + 0.25 * b[key]) ** 2 for key in keys])
    # PCM16 of 16-bit files is the same audio; float16 has three digits.
    np.testing.assert_allclose(labels.scores.astype(float), expected, atol=2e-3)
    assert labels.codes == CODES and labels.notes["strategy"] == "mean" and labels.notes["untold"] == []
    assert len(labels.notes["teachers"]) == 2 and len(labels.seen) == 24
    length = labels.clips["end_seconds"] - labels.clips["start_seconds"]
    assert np.isclose(length, 1.0).sum() == 17 and np.isclose(length.min(), 0.6)


def test_each_teacher_has_its_own_file(home, tmp_path):
    out = tmp_path / "own-{fold}.npz"
    made = pseudo_label([home / "runs/a", home / "runs/b"], home / "quiet", out)
    assert [Path(path).name for path in made] == ["own-0.npz", "own-1.npz"]
    matched = pseudo_label([home / "runs/a", home / "runs/b"], home / "quiet", tmp_path / "m-{fold}.npz",
                           strategy="fold_matched")  # fmt: skip
    for number, name in enumerate("ab"):
        own, both = list(made.values())[number], list(matched.values())[number]
        alone = pseudo_label(home / "runs" / name, home / "quiet", tmp_path / "alone.npz")
        np.testing.assert_array_equal(own.scores, next(iter(alone.values())).scores)
        plan = planning.load_plan(home / "runs" / name / "plan.csv")
        assert own.seen == set(planning.recordings_of(plan[plan["role"] == "train"])) and len(both.seen) == 24
        assert len(both.notes["teachers"]) == 2
        each = np.stack([one.scores for one in made.values()])
        options = {"strategy": "fold_matched", "shares": np.array([0.5, 0.5]), "own": number}
        expected = soft_labels(each, own.clips["recording"].to_numpy(), **options)
        np.testing.assert_allclose(both.scores, expected, atol=5e-3)


def test_labelled_recordings_are_never_pseudo_labelled(capsys, home, tmp_path):
    both = pseudo_label(home / "runs/a", [home / "quiet", home / "labelled"], tmp_path / "p.npz")
    alone = pseudo_label(home / "runs/a", home / "quiet", tmp_path / "q.npz")
    pd.testing.assert_frame_equal(*(next(iter(each.values())).clips for each in (both, alone)))
    # Nor one that a teacher holds out or has learnt from, though it has no label here.
    birdtpu.prepare("quickstart", home / "focal" / "owl", tmp_path / "bare", settings=TINY, workers=1, unlabelled=True)
    args = ["pseudo-label", home / "runs/a", "--data", tmp_path / "bare", "--output", tmp_path / "r.npz"]
    code, _, err = command(capsys, *args)
    assert code == 2 and "recordings without labels stand in the teachers' plans" in err and err.count("\n") == 1
    args[3] = home / "labelled"
    code, _, err = command(capsys, *args)
    assert code == 2 and "labelled: no unlabelled recording; birdtpu prepare --unlabelled" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--strategy", "vote"], "--strategy vote: one of mean, fold_matched, file_max, top1"),
        (["--strategy", "fold_matched"], "--strategy fold_matched: a file for each teacher"),
        (["--strategy", "top1", "--threshold", "1"], "no clip's best species reaches the threshold 1; lower it"),
        (["--power", "0"], "a power above 0"),
        (["--hop", "0"], "--hop 0.0: more than 0"),
        (["--hop", "nan"], "--hop nan: more than 0"),
        (["--hop", "inf"], "--hop inf: more than 0"),
        (["--head", "loudest"], "head 'loudest': one of"),
        (["--weights", "1,2,3"], "weights 1,2,3: 3 for 1 runs"),
    ],
)
def test_mistakes_are_one_line(capsys, home, tmp_path, options, message):
    args = ["pseudo-label", home / "runs/a", "--data", home / "quiet", "--output", tmp_path / "p.npz", *options]
    code, out, err = command(capsys, *args)
    assert code == 2 and message in err and err.count("\n") == 1 and not out
    assert not (tmp_path / "p.npz").exists()


def frame(rows, columns):
    numbers = ("latitude", "longitude", "rating", "duration_seconds", "start_seconds", "end_seconds", "f_min", "f_max")
    filled = [{name: row.get(name, np.nan if name in numbers else "") for name in columns} for row in rows]
    return pd.DataFrame(filled, columns=list(columns)).astype({name: float for name in columns if name in numbers})


# primary label, secondary label, annotated, recordist, in the unlabelled folder too
recording = st.tuples(
    st.sampled_from(["a", "b", "a", ""]), st.sampled_from(["", "b"]), st.booleans(), st.integers(0, 6), st.booleans()
)


@settings(max_examples=50, deadline=None, database=None)
@given(
    st.lists(recording, min_size=8, max_size=24),
    st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=8),
    st.sampled_from(["0", "1", None]),
    st.sampled_from([0.0, 0.4]),
    st.integers(0, 5),
    st.dictionaries(st.integers(0, 7), st.integers(0, 23), max_size=3),
)
def test_no_recording_that_is_held_out_or_labelled_gets_a_pseudo_label(labelled, bare, fold, validation, seed, copies):
    """Whatever the tables, the folds and the file say; nor does one of a recordist and place that are held out, nor a
    copy under another name."""
    rows, boxes, again = [], [], []
    for i, (primary, secondary, annotated, author, both) in enumerate(labelled):
        place = {"author": f"A{author}", "latitude": float(author), "longitude": 1.0} if author else {}
        row = {"recording": f"R{i}", "data_set": "l", "path": f"{i}", "primary_label": primary, **place}
        rows.append(row | {"secondary_labels": secondary if primary else "", "duration_seconds": 8.0})
        if both:
            again.append(rows[-1] | {"data_set": "u", "primary_label": "", "secondary_labels": ""})
        if annotated:
            boxes.append(
                {"recording": f"R{i}", "start_seconds": 0, "end_seconds": 4, "species": "b", "state": "positive"}
            )
    for i, (author, annotated) in enumerate(bare):
        place = {"author": f"A{author}", "latitude": float(author), "longitude": 1.0} if author else {}
        again.append({"recording": f"S{i}", "data_set": "u", "path": f"s{i}", "duration_seconds": 8.0, **place})
        if annotated:
            boxes.append(
                {"recording": f"S{i}", "start_seconds": 0, "end_seconds": 4, "species": "*", "state": "negative"}
            )
    sound_of = {
        f"{kind}{i}": f"h{copied}"
        for bare_one, copied in copies.items()
        for kind, i in (("S", bare_one), ("R", copied))
    }
    tables = [frame(part, RECORDINGS) for part in (rows, again)]
    tables = [each.assign(audio_hash=[sound_of.get(name, "") for name in each["recording"]]) for each in tables]
    boxes = frame(boxes, ANNOTATIONS)
    inside = [boxes[boxes["recording"].isin(table["recording"])] for table in tables]
    species = frame([{"code": code} for code in "ab"], SPECIES)

    def records(table):
        names = table["recording"]
        return pd.DataFrame({"record": names + "/00000", "recording": names, "start_seconds": 0.0, "seconds": 8.0})

    names = [*tables[0]["recording"], *tables[1]["recording"]]
    clips = pd.DataFrame([(n, s, s + 4.0) for n in dict.fromkeys(names) for s in (0.0, 4.0)], columns=STRETCH)
    labels = PseudoLabels(clips, np.full((len(clips), 2), 0.5, np.float16), ("a", "b"))
    every = pd.concat(tables, ignore_index=True).drop_duplicates("recording")
    pseudo = Pseudo("p.npz", labels, ["u"], Tables(tables[1], inside[1], species), records(every))
    changes = [f"folds.seed={seed}", f"folds.validation_fraction={validation}", "folds.count=2", "audio.clip_seconds=4"]
    recipe = load_recipe("quickstart", changes)
    prepared = Prepared(["l"], Tables(tables[0], inside[0], species), records(tables[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            make_plan(recipe, prepared, fold)
        except UserError:
            return  # no such fold, or nothing to train on
        try:
            _, plan, _ = make_plan(recipe, prepared, fold, pseudo)
        except UserError as error:
            assert "no clip is left" in str(error)
            return
        table = with_folds(recipe, tables[0]) if fold is not None else tables[0]
    rows = plan[plan["source"] == "pseudo"]
    taught = set(planning.recordings_of(rows))
    assert taught and set(rows["role"]) == {"train"}
    named = every[(every["primary_label"] != "") | (every["secondary_labels"] != "")]["recording"]
    assert not taught & {*named, *boxes["recording"]}
    sound = {sound_of.get(name, name) for name in taught}
    assert not sound & {sound_of.get(name, name) for name in {*named, *boxes["recording"]}}
    held = {*planning.recordings_of(plan[plan["role"] != "train"]), *table["recording"][table["fold"] == (fold or "-")]}
    everyone = pd.concat(tables, ignore_index=True)
    group = groups(everyone)
    assert not taught & held and not sound & {sound_of.get(name, name) for name in held}
    assert not set(group[everyone["recording"].isin(taught)]) & set(group[everyone["recording"].isin(held)])
    training = plan[plan["role"] == "train"]
    count = training.groupby("section").agg({"repeats": "first", "source": "first"}).groupby("source")["repeats"].sum()
    assert count["pseudo"] == max(1, count.drop("pseudo").sum())


def test_a_training_hears_both_and_knows_whose_labels_they_are(capsys, home, tmp_path):
    files = {name: tmp_path / f"{name}.npz" for name in "ab"}
    for name, path in files.items():
        pseudo_label(home / "runs" / name, home / "quiet", path)
    args = ["train", "quickstart", "--data", home / "labelled", "--fold", "0", *SET, "--set", "pseudo.weight=0.5"]
    code, out, err = command(capsys, *args, "--run", tmp_path / "run", "--pseudo", files["a"])
    assert (code, err.replace("\r", "").strip()) == (0, ""), err
    run = open_run(tmp_path / "run")
    plan = planning.load_plan(run.path("plan.csv"))
    rows = plan[plan["source"] == "pseudo"]
    assert len(rows) == 18 and rows["section"].nunique() == 12 and (rows["weight"] == 0.5).all()
    assert any(line.split()[:3] == ["(pseudo)", "4", "12"] for line in out.splitlines())
    labels = PseudoLabels.load(files["a"])
    assert run.info["pseudo_sha256"] == labels.sha256 and run.info["optimistic"] == 0
    seen = (tmp_path / "run" / "seen_before.txt").read_text().split()
    assert set(seen) == labels.seen
    # A student is a teacher: its own pseudo-labels do not count as labels, what stood behind them does.
    again = next(iter(pseudo_label(run, home / "quiet", tmp_path / "next.npz").values()))
    assert again.seen == labels.seen and len(again.clips) == 18
    with pytest.warns(UserWarning, match=r"b\.npz: its teachers were trained on 12 of the held-out recordings"):
        other = birdtpu.train("quickstart", home / "labelled", tmp_path / "other", fold=0, pseudo=files["b"],
                              settings=TINY)  # fmt: skip
    assert other.info["optimistic"] == 12


def test_an_interrupted_training_goes_on_with_the_same_pseudo_labels_alone(home, tmp_path):
    pseudo_label(home / "runs/a", home / "quiet", tmp_path / "p.npz")
    pseudo_label(home / "runs/a", home / "quiet", tmp_path / "q.npz", power=2.0)

    def begun(name):
        birdtpu.train("quickstart", home / "labelled", tmp_path / "run", fold=0, settings=TINY, save_steps=1,
                      pseudo=tmp_path / name)  # fmt: skip

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Log, "add", stop)
        begun("p.npz")
    with pytest.raises(UserError, match=r"holds an interrupted training of another --pseudo"):
        begun("q.npz")


def test_pseudo_labels_that_do_not_fit_are_one_line(home, tmp_path):
    pseudo_label(home / "runs/a", home / "quiet", tmp_path / "p.npz")
    labels = PseudoLabels.load(tmp_path / "p.npz")
    PseudoLabels(labels.clips, labels.scores, labels.codes, labels.seen, {**labels.notes, "data": ["gone"]}).save(
        tmp_path / "moved.npz"
    )
    PseudoLabels(labels.clips, labels.scores, labels.codes, labels.seen, {**labels.notes, "untold": ["far"]}).save(
        tmp_path / "untold.npz"
    )
    common = {"fold": 0, "settings": TINY}
    for name, changes, message in (
        ("absent.npz", [], "no such file; birdtpu pseudo-label"),
        ("moved.npz", [], "no folder gone with their recordings; give --unlabelled"),
        ("untold.npz", [], "the teacher far was published without its plan"),
        ("p.npz", ["audio.clip_seconds=0.9"], r"of clips of 1 s, and audio.clip_seconds is 0.9"),
        ("p.npz", ["train.instances=2", "audio.margin_seconds=0"], "pseudo-labels are of single clips"),
        (
            "p.npz",
            ["train.clip_loss=0", "train.frame_loss=1", "audio.margin_seconds=0", "augment.tempo_probability=0"],
            "learns labels of frames alone, and pseudo-labels are of whole clips",
        ),
    ):
        options = {**common, "settings": [*TINY, *changes], "pseudo": tmp_path / name}
        with pytest.raises(UserError, match=message) as caught:
            birdtpu.train("quickstart", home / "labelled", tmp_path / "run", **options)
        assert "\n" not in str(caught.value)
    moved = {"pseudo": tmp_path / "moved.npz", "unlabelled": home / "quiet"}
    assert birdtpu.train("quickstart", home / "labelled", tmp_path / "run", **common, **moved).finished


def test_a_file_that_cannot_be_written_is_told_before_hours_are_spent(home, tmp_path):
    def score(*_):
        raise AssertionError("began to score")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("birdtpu.workflows.pseudo_label._scores", score)
        for output, message in (
            (tmp_path, "is a folder; give a file"),
            ("/proc/none/p.npz", "cannot be written there"),
        ):
            with pytest.raises(UserError, match=message):
                pseudo_label(home / "runs/a", home / "quiet", output)
        shutil.copytree(home / "runs/a", tmp_path / "all")
        info = json.loads((tmp_path / "all" / "run.json").read_text())
        (tmp_path / "all" / "run.json").write_text(json.dumps({**info, "fold": None}))
        with pytest.raises(UserError, match=r"all held no fold out; give --output a name without \{fold\}"):
            pseudo_label(tmp_path / "all", home / "quiet", tmp_path / "f-{fold}.npz")


def test_rounds_that_cannot_end_do_not_begin(home, tmp_path):
    for name, seconds in (("short", 0.9), ("long", 1.0)):
        text = (
            f'extends = "quickstart"\n[audio]\nclip_seconds = {seconds}\nmargin_seconds = 0.25\nrecord_seconds = 2.5\n'
        )
        (tmp_path / f"{name}.toml").write_text(f"{text}[predict]\nhop_seconds = 0.5\n")
    (tmp_path / "many.toml").write_text('extends = "quickstart"\n[train]\ninstances = 2\n')
    rounds = {"recipe": "quickstart", "data": home / "labelled", "unlabelled": home / "quiet", "settings": TINY}
    short = {"recipe": tmp_path / "long.toml", "student": tmp_path / "short.toml"}
    short["settings"] = [setting for setting in TINY if not setting.startswith(("audio", "predict.hop"))]

    def train(*_, **__):
        raise AssertionError("began to train")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("birdtpu.workflows.noisy_student.train", train)
        patch.setattr("birdtpu.workflows.cross_validate.train", train)
        for changes, message in (
            ({"powers": (1.0, float("nan"))}, "--power nan, .* a power above 0"),
            ({"powers": ()}, "--power: give one or more"),
            ({"strategy": "top1", "threshold": 1.5}, "a threshold from 0 to 1"),
            ({"fold": 77}, r"--fold 77: no recording has it \(folds: 0, 1\)"),
            ({"unlabelled": home / "labelled"}, "no unlabelled recording"),
            ({"student": tmp_path / "many.toml", "settings": [*TINY, "audio.margin_seconds=0"]}, "of single clips"),
            (short, "audio.clip_seconds is 0.9, the teachers'"),
        ):
            with pytest.raises(UserError, match=message):
                birdtpu.noisy_student(**{**rounds, **changes}, run=tmp_path / "r")
            assert not (tmp_path / "r" / "noisy_student.json").exists(), changes
        # What nobody has learnt from yet may be corrected.
        for powers in ((1.0,), (2.0,)):
            with pytest.raises(AssertionError, match="began to train"):
                birdtpu.noisy_student(**rounds, run=tmp_path / "r", powers=powers)
        (tmp_path / "r" / "pseudo").mkdir()
        (tmp_path / "r" / "round-0").mkdir()
        with pytest.raises(UserError, match="of another powers"):
            birdtpu.noisy_student(**rounds, run=tmp_path / "r", powers=(1.0,))


@pytest.mark.timeout(900)
def test_rounds_go_on_where_they_were_killed(capsys, home, tmp_path):
    run = tmp_path / "rounds"
    args = ["noisy-student", "quickstart", "--data", home / "labelled", "--unlabelled", home / "quiet", "--run", run]
    args = [*map(str, args), "--fold", "0", "--power", "1,2", *SET]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen([sys.executable, "-m", "birdtpu", *args], cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    # The student has begun.
    while not (run / "round-1" / "fold-0").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = [*run.glob("round-0/fold-0/*.*"), *run.glob("round-0/fold-0/evaluation/*"), *run.glob("pseudo/*.npz")]
    stood = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in kept if path.is_file()}
    assert {"model.weights.h5", "metrics.json", "round-1-fold-0.npz"} <= {path.name for path in stood}

    code, out, err = command(capsys, *args)
    assert code == 0, err
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in stood} == stood
    table = pd.read_csv(run / "rounds.csv")
    assert list(table.columns) == ["round", "fold", "macro_average_precision", "train_seconds"]
    assert table["round"].tolist() == [0, 1] and table["macro_average_precision"].between(0, 1).all()
    assert "macro_average_precision" in out
    student = open_run(run / "round-1" / "fold-0")
    teacher = planning.load_plan(run / "round-0" / "fold-0" / "plan.csv")
    plan = planning.load_plan(student.path("plan.csv"))
    assert student.info["optimistic"] == 0 and "optimistic" not in err
    held = {name: set(planning.recordings_of(each[each["role"] == "test"])) for name, each in
            (("teacher", teacher), ("student", plan))}  # fmt: skip
    assert (
        held["teacher"] == held["student"]
        and not held["student"] & PseudoLabels.load(run / "pseudo" / "round-1-fold-0.npz").seen
    )
    code, _, err = command(capsys, *args, "--strategy", "file_max")
    assert code == 2 and "the rounds here are of another strategy (mean, not file_max)" in err


def test_rounds_of_all_folds_are_cross_validations(home, tmp_path):
    """Where round 0 stands already, the rounds begin with its runs."""
    for fold, name in enumerate("ab"):
        shutil.copytree(home / "runs" / name, tmp_path / "r" / "round-0" / f"fold-{fold}")
    table = birdtpu.noisy_student("quickstart", home / "labelled", home / "quiet", tmp_path / "r", settings=TINY)
    teachers = [(tmp_path / "r" / "round-0" / f"fold-{fold}" / "model.weights.h5").read_bytes() for fold in (0, 1)]
    assert teachers == [(home / "runs" / name / "model.weights.h5").read_bytes() for name in "ab"]
    assert table["fold"].tolist() == ["0", "1", "mean"] * 2 and table["round"].tolist() == [0] * 3 + [1] * 3
    for number in (0, 1):
        assert (tmp_path / "r" / f"round-{number}" / "oof.csv").exists()
    students = [open_run(tmp_path / "r" / "round-1" / f"fold-{fold}") for fold in "01"]
    assert [run.info["optimistic"] for run in students] == [0, 0]
    assert len({run.info["pseudo_sha256"] for run in students}) == 2
    with pytest.raises(UserError, match=r"fold-0: is of other pseudo-labels; give another --run"):
        birdtpu.cross_validate("quickstart", home / "labelled", tmp_path / "r" / "round-1", settings=TINY)
    with pytest.raises(UserError, match=r"fold_matched: asks the teachers of all folds"):
        birdtpu.noisy_student("quickstart", home / "labelled", home / "quiet", tmp_path / "s", fold=0,
                              strategy="fold_matched", settings=TINY)  # fmt: skip
    (tmp_path / "other.toml").write_text('extends = "quickstart"\n[folds]\nseed = 3\n')
    with pytest.raises(UserError, match=r"--student: its \[folds\] is another"):
        birdtpu.noisy_student("quickstart", home / "labelled", home / "quiet", tmp_path / "s",
                              student=tmp_path / "other.toml", settings=TINY)  # fmt: skip
