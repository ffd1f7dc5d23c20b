"""A training that learns a teacher's embeddings, from its file to a run that needs it no more."""

import json
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest

import birdtpu
from birdtpu.data.synthesis import synthesize
from birdtpu.data.tables import load_tables
from birdtpu.data.teacher import Teacher
from birdtpu.errors import UserError
from birdtpu.models.build import SoundEventModel
from birdtpu.publish.release import stage
from birdtpu.recipe import load_recipe
from birdtpu.run import Run
from birdtpu.species import ClassList
from birdtpu.workflows.teacher import of_trained
from birdtpu.workflows.transfer import take_over
from tests.commands import command

TINY = [
    "audio.clip_seconds=1.0", "audio.margin_seconds=0.25", "audio.record_seconds=4.0", "predict.hop_seconds=0.5",
    "frontend.hop_length=1024", "frontend.n_mels=32", "model.features=8", "train.batch_size=8", "train.epochs=1",
    "train.steps_per_epoch=2", "folds.count=2", "folds.validation_fraction=0.3", "evaluate.bootstrap=20",
]  # fmt: skip
TAUGHT = [*TINY, "model.teacher_features=6"]
SET = [part for setting in TAUGHT for part in ("--set", setting)]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """`p`, prepared, and `teacher.npz`: six numbers of each second of each recording, by its path."""
    home = tmp_path_factory.mktemp("world")
    synthesize(home / "w", species=3, recordings=6, soundscapes=0, seed=3)
    birdtpu.prepare("quickstart", home / "w" / "train_audio", home / "p", settings=TINY)
    table = pd.read_csv(home / "p" / "recordings.csv")
    names, seconds = zip(
        *((row.path, second) for row in table.itertuples() for second in range(round(row.duration_seconds))),
        strict=True,
    )
    write(home / "teacher.npz", names, seconds)
    return home


def write(path, names, seconds, features=6, seed=0):
    embedding = np.random.default_rng(seed).normal(0, 1, (len(names), features)).astype(np.float16)
    np.savez(path, recording=np.array(names), start_seconds=np.array(seconds), embedding=embedding)
    return path


@pytest.fixture(scope="module")
def taught(home) -> Run:
    """Fold 0 of a cross-validation, by a copy of the teacher's file that is gone by now."""
    with np.load(home / "teacher.npz") as file:
        path = write(home / "once-0.npz", file["recording"], file["start_seconds"])
    options = {"fold": 0, "settings": TAUGHT, "teacher": path}
    run = birdtpu.train("quickstart", home / "p", home / "cv" / "fold-0", **options)
    path.unlink()
    assert run.info["teacher"] == str(path) and len(run.info["teacher_sha256"]) == 64
    return run


def test_a_taught_run_needs_its_teacher_no_more(home, taught, tmp_path):
    audio = next((home / "w" / "train_audio").rglob("*.*"))
    count, failures = birdtpu.predict(taught.folder, audio, tmp_path / "out")
    assert count == 1 and not failures
    assert birdtpu.evaluate(taught.folder, output=tmp_path / "evaluation")[0].result["n_recordings"] > 0
    (tmp_path / "sent").mkdir()
    stage(taught, tmp_path / "sent", address="kaggle:owner/slug", licence="CC-BY-NC-SA-4.0")
    # Where it lay is nobody's business.
    assert json.loads((tmp_path / "sent" / "run.json").read_text())["teacher"] == "once-0.npz"


def test_a_finished_fold_stays_with_the_same_teacher_alone(home, taught, monkeypatch):
    def stop(*_, **options):
        begun.append((options["fold"], options["teacher"]))
        raise KeyboardInterrupt

    begun: list[tuple[str, str]] = []
    monkeypatch.setattr("birdtpu.workflows.cross_validate.train", stop)
    call = partial(birdtpu.cross_validate, "quickstart", home / "p", home / "cv", settings=TAUGHT)
    with np.load(home / "teacher.npz") as file:
        for fold in "01":
            write(home / f"once-{fold}.npz", file["recording"], file["start_seconds"], seed=int(fold))
    with pytest.raises(UserError, match=r"fold-0: is of another --teacher; give another --run folder"):
        call(teacher=home / "once-1.npz")
    with pytest.raises(UserError, match=r"give --teacher FILE"):
        call()
    with pytest.raises(KeyboardInterrupt):
        call(teacher=home / "once-{fold}.npz")
    assert begun == [("1", str(home / "once-1.npz"))]


@pytest.mark.parametrize(("before", "now"), [(6, 0), (0, 6), (6, 6), (6, 3)])
def test_a_run_begins_with_one_of_another_teacher_or_none(tmp_path, before, now):
    classes = ClassList(("crow", "owl"))
    recipes = [load_recipe("quickstart", [*TINY, f"model.teacher_features={count}"]) for count in (before, now)]
    keras.utils.set_random_seed(1)
    old = SoundEventModel(recipes[0], 2).network
    run = Run(str(tmp_path), recipes[0], classes, {"data": []})
    run.save()
    run = run.save_weights(old)
    keras.utils.set_random_seed(2)
    new = SoundEventModel(recipes[1], 2).network
    fresh = {variable.path: np.array(variable.value) for variable in new.variables}
    assert take_over(run, new, classes, {}) == 2
    learnt = [np.asarray(variable.value) for variable in old.variables if "teacher/" not in variable.path]
    for variable in new.variables:
        expected = fresh[variable.path] if "teacher/" in variable.path else learnt.pop(0)
        np.testing.assert_array_equal(variable.value, expected)
    assert not learnt and any("teacher/" in path for path in fresh) == bool(now)


def test_an_interrupted_training_goes_on_with_the_same_teacher_alone(home, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    def begun(teacher):
        birdtpu.train("quickstart", home / "p", tmp_path / "run", settings=TAUGHT, save_steps=1, teacher=teacher)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("birdtpu.training.log.Log.add", stop)
        begun(home / "teacher.npz")
    with np.load(home / "teacher.npz") as file:
        write(tmp_path / "other.npz", file["recording"], file["start_seconds"], seed=1)
    with pytest.raises(UserError, match=r"interrupted training of another --teacher \(\w{64}, not \w{64}\)"):
        begun(tmp_path / "other.npz")
    begun(home / "teacher.npz")


def test_what_does_not_fit_is_one_line(capsys, home, tmp_path):
    names, file = ["XC1"], home / "teacher.npz"
    narrow, strange = write(tmp_path / "narrow.npz", names, [0.0], 5), write(tmp_path / "strange.npz", names, [0.0])
    mistakes = {
        (): "model.teacher_features is 6, but there are no embeddings to learn from: give --teacher FILE",
        ("--teacher", narrow): "features, and model.teacher_features is 6: set model.teacher_features=5, or",
        ("--teacher", file, "--set", "model.teacher_features=0"): "no layer for them: set model.teacher_features=6",
        ("--teacher", strange): "recording: none that is trained on is among them (XC1, ...): give ids or paths",
        ("--teacher", file, "--set", "train.instances=2", "--set", "audio.margin_seconds=0"): "train.instances = 1",
    }
    for options, message in mistakes.items():
        command_line = ["train", "quickstart", "--data", home / "p", "--run", tmp_path / "run", *SET, *options]
        code, out, err = command(capsys, *command_line)
        assert code == 2 and message in err and err.count("\n") == 1 and not out, err
        assert not (tmp_path / "run" / "run.json").exists()
    command_line = ["cross-validate", "quickstart", "--data", home / "p", "--run", tmp_path / "cv", *SET]
    code, _, err = command(capsys, *command_line)
    assert code == 2 and "give --teacher FILE" in err


def test_recordings_without_an_embedding_are_told(home):
    tables = load_tables(str(home / "p"))
    names = tables.recordings["recording"]
    plan = pd.DataFrame({"record": names + "/00000", "role": ["test"] + ["train"] * (len(names) - 1)})
    teacher = Teacher(names[:4].to_numpy(str), np.zeros(4), np.ones((4, 6)), 1.0, "t.npz")
    with pytest.warns(UserWarning, match=rf"t\.npz: says nothing of {len(names) - 4} of {len(names) - 1} recordings"):
        assert of_trained(teacher, plan, [tables]).recording.tolist() == names[:4].tolist()
    with pytest.raises(UserError, match="none that is trained on"):
        of_trained(teacher.of(tables.recordings[:1]), plan, [tables])
