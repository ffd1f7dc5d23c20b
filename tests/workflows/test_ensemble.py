"""Several runs as one: their scores by hand, one decode, one log-mel, and how a command tells runs from audio."""

import shutil
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
import soundfile

import birdtpu
from birdtpu.data import audio as reading
from birdtpu.errors import UserError
from birdtpu.inference.engine import Source
from birdtpu.models.build import SoundEventModel, outputs_of_all
from birdtpu.recipe import load_recipe
from birdtpu.run import Run, open_run
from birdtpu.species import ClassList
from birdtpu.workflows.members import open_members, split_arguments
from tests.commands import command

TINY = [
    "audio.clip_seconds=1.0", "audio.margin_seconds=0.25", "audio.record_seconds=4.0", "predict.hop_seconds=0.5",
    "predict.batch_size=8", "frontend.n_mels=32", "frontend.hop_length=1024", "model.features=8",
    "evaluate.bootstrap=20",
]  # fmt: skip
CODES = ("crow", "owl", "wren")


def make_run(folder: Path, seed: int, codes: tuple[str, ...] = CODES, *settings: str) -> Path:
    """A run that nobody trained, whose weights are large enough to have opinions."""
    recipe = load_recipe("quickstart", [*TINY, *settings])
    run = Run(str(folder), recipe, ClassList(codes), {"data": ["nowhere"], "fold": str(seed)})
    run.save()
    network = SoundEventModel(recipe, len(codes), weights="none").network
    rng = np.random.default_rng(seed)
    network.set_weights([w + rng.normal(0, 0.1, w.shape) * (w.ndim > 1) for w in network.get_weights()])
    run.save_weights(network)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Runs `a`, `b` (species in another order), `c` (another log-mel), a cross-validation of two, and recordings."""
    home = tmp_path_factory.mktemp("ensemble")
    make_run(home / "a", 1)
    make_run(home / "b", 2, CODES[::-1])
    make_run(home / "c", 3, CODES, "frontend.n_mels=24", "model.features=4")
    make_run(home / "rest", 4, (*CODES, "yak"))
    make_run(home / "wide", 5, CODES, "predict.hop_seconds=1.0")
    for number in (0, 1):
        shutil.copytree(home / "ab"[number], home / "cv" / f"fold-{number}")
    (home / "cv" / "cross_validation.csv").write_text("fold\n0\n1\n")
    rng = np.random.default_rng(0)
    for number, seconds in enumerate((0.7, 3.2, 2.0)):
        folder = home / "field" / CODES[number]
        folder.mkdir(parents=True)
        time = np.arange(int(seconds * 32000)) / 32000
        tone = 0.3 * np.sin(2 * np.pi * 1000 * (1 + number) * time) + rng.normal(0, 0.01, len(time))
        soundfile.write(folder / f"{number}.wav", tone, 32000)
    return home


@pytest.fixture(scope="module")
def single(home):
    """Clip scores of each file by each run alone, the species in the order of `CODES`."""
    files = sorted(map(str, (home / "field").rglob("*.wav")))
    found = {}
    for name in "abc":
        predictor = birdtpu.load(home / name, head="clipwise")
        order = [predictor.classes.index(code) for code in CODES]
        found[name] = np.concatenate([scores.scores[:, order] for scores in predictor.score_files(files)])
    found["files"] = files
    return found


def scores_of(predictor, files):
    return np.concatenate([scores.scores for scores in predictor.score_files(files)])


def logit(p):
    return np.log(p) - np.log1p(-p)


def test_the_members_say_different_things(single):
    """Else the means below would be right by themselves."""
    for one, other in ("ab", "ac", "bc"):
        assert np.abs(single[one] - single[other]).mean() > 0.02
    assert np.std(single["b"], axis=1).mean() > 0.02


@pytest.mark.parametrize("weights", [None, [2, 1]])
def test_an_ensemble_is_the_mean_of_its_members(home, single, weights):
    predictor = birdtpu.load([home / "a", home / "b"], head="clipwise", weights=weights)
    assert predictor.classes.codes == CODES and "x 2: 3 species" in repr(predictor)
    expected = np.average([single["a"], single["b"]], axis=0, weights=weights)
    np.testing.assert_allclose(scores_of(predictor, single["files"]), expected, atol=1e-6)


def test_an_ensemble_of_unlike_log_mels_by_logits(home, single):
    predictor = birdtpu.load([home / name for name in "abc"], head="clipwise", combine="logits", weights=(1, 2, 1))
    logits = np.average([logit(single[name].astype(float)) for name in "abc"], axis=0, weights=[1, 2, 1])
    np.testing.assert_allclose(scores_of(predictor, single["files"]), 1 / (1 + np.exp(-logits)), atol=1e-5)


def test_an_ensemble_of_one_is_the_run(home, single):
    np.testing.assert_array_equal(
        scores_of(birdtpu.load([home / "a"], head="clipwise", combine="logits"), single["files"]), single["a"]
    )


def test_every_file_is_decoded_once(home, single):
    opened = []

    def counted(file):
        opened.append(file)
        return reading.stream(file, sample_rate=32000)

    predictor = birdtpu.load([home / name for name in "abc"], head="clipwise")
    got = list(predictor.score(Source(file, partial(counted, file)) for file in single["files"]))
    assert opened == single["files"]
    expected = np.mean([single[name] for name in "abc"], axis=0)
    np.testing.assert_allclose(np.concatenate([scores.scores for scores in got]), expected, atol=1e-6)


def test_frames_of_a_file_are_those_of_its_clips(home, single):
    predictor = birdtpu.load(home / "a")
    short, long = single["files"][0], single["files"][1]
    samples = [reading.read(file, sample_rate=32000) for file in (short, long)]
    clips = np.stack([np.pad(samples[0], (0, 32000 - len(samples[0]))), samples[1][:32000], samples[1][16000:48000]])
    one, first, second = np.asarray(predictor.model(clips)["framewise"])
    found = predictor.score_frames(short)
    assert found.shape == (1 + len(samples[0]) // 1024, 3)
    np.testing.assert_allclose(found, one[: len(found)], atol=1e-6)
    found = predictor.score_frames(long)
    assert found.shape == (1 + len(samples[1]) // 1024, 3)
    # The middles of the first two clips lie at samples 15,872 and 31,872.
    np.testing.assert_allclose(found[:24], first[:24], atol=1e-6)
    at = np.rint((np.arange(24, 38) * 1024 - 16000) / 1024).astype(int)
    np.testing.assert_allclose(found[24:38], second[at], atol=1e-6)


def test_frames_are_of_one_run(home, single):
    with pytest.raises(UserError, match="takes one run"):
        birdtpu.load([home / "a", home / "b"]).score_frames(single["files"][0])
    with pytest.raises(reading.AudioError):
        birdtpu.load(home / "a").score_frames(home / "nowhere.wav")


def test_equal_frontends_share_one_log_mel(monkeypatch):
    # The pitch that training drew has no part in inference's log-mel.
    settings = ([], ["augment.pitch_probability=0"], ["model.features=4"], ["frontend.top_db=60.0"])
    models = [SoundEventModel(load_recipe("quickstart", [*TINY, *each]), 3, weights="none") for each in settings]
    audio = np.random.default_rng(0).normal(0, 0.1, (2, 32000)).astype(np.float32)
    alone = [keras.ops.convert_to_numpy(model(audio)["clipwise"]) for model in models]
    computed, log_mel = [], SoundEventModel.log_mel

    def counted(self, audio, gain=None):
        computed.append(self)
        return log_mel(self, audio, gain)

    monkeypatch.setattr(SoundEventModel, "log_mel", counted)
    outputs = outputs_of_all(models, audio)
    assert computed == [models[0], models[3]]
    for one, expected in zip(outputs, alone, strict=True):
        np.testing.assert_allclose(keras.ops.convert_to_numpy(one["clipwise"]), expected, atol=1e-5)


def test_a_cross_validation_stands_for_its_folds(home):
    assert [run.folder for run in open_members(home / "cv")] == [str(home / "cv" / f"fold-{i}") for i in (0, 1)]
    assert len(open_members([home / "cv", open_run(home / "c")])) == 3
    with pytest.raises(UserError, match="fold-0: given twice"):
        open_members([home / "cv", home / "cv" / "fold-0"])


def test_a_cross_validation_that_has_not_ended_is_named(home, tmp_path):
    shutil.copytree(home / "cv" / "fold-0", tmp_path / "cv" / "fold-0")
    with pytest.raises(UserError, match=r"cv: its cross-validation has not ended.*or name single folds"):
        birdtpu.load(tmp_path / "cv")
    with pytest.raises(UserError, match=r"run\.json is missing"):
        birdtpu.load(tmp_path)


def test_arguments_are_runs_up_to_the_first_that_is_none(home, tmp_path, monkeypatch):
    monkeypatch.chdir(home)
    assert split_arguments(["a", "field"]) == (["a"], ["field"])
    assert split_arguments(["a", "cv", "kaggle:o/s", "field", "x.wav"]) == (
        ["a", "cv", "kaggle:o/s"],
        ["field", "x.wav"],
    )
    # The first is a run whatever it is, and a run that was only begun is one.
    assert split_arguments(["nowhere", "field"]) == (["nowhere"], ["field"])
    (tmp_path / "recipe.toml").write_text("")
    assert split_arguments(["a", str(tmp_path), "field"])[0] == ["a", str(tmp_path)]
    with pytest.raises(UserError, match="no recordings given: name files or folders of audio after b"):
        split_arguments(["a", "b"])
    with pytest.raises(UserError, match=r"b: a run stands after recordings \(field\)"):
        split_arguments(["a", "field", "b"])


def test_predict_and_evaluate_take_several_runs(capsys, home, single, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--head", "clipwise", "--weights", "3,1"]
    args = [
        "predict",
        home / "a",
        home / "b",
        home / "field",
        "--output",
        "out",
        "--threshold",
        "0",
        "--plot",
        *options,
    ]
    code, text, err = command(capsys, *args)
    assert (code, err) == (0, "") and "3 files scored" in text
    table = pd.concat([pd.read_csv(path) for path in sorted(Path("out").rglob("*.csv")) if path.parent.name != "out"])
    assert len(list(Path("out").rglob("*.png"))) == 3
    got = table.groupby("species")["score"].mean()[list(CODES)]
    expected = np.average([single["a"], single["b"]], axis=0, weights=[3, 1]).mean(axis=0)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    code, text, _ = command(capsys, "evaluate", home / "a", home / "b", "--audio", home / "field", *options)
    assert code == 0 and "3 recordings" in text and Path("evaluation-field", "metrics.json").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["predict", "a", "b", "--output", "o"], "no recordings given: name files or folders of audio after b"),
        (
            ["predict", "a", "rest", "field", "--output", "o"],
            "runs a and rest: not the same species: only rest knows yak",
        ),
        (["predict", "a", "wide", "field", "--output", "o"], "predict.hop_seconds: 0.5 in run a, but 1.0 in run wide"),
        (["predict", "a", "b", "field", "--output", "o", "--weights", "2,x"], "--weights 2,x: numbers with commas"),
        (["predict", "a", "b", "field", "--output", "o", "--weights", "2"], "weights 2: 1 for 2 runs (a, b)"),
        (["predict", "a", "b", "field", "--output", "o", "--combine", "max"], "combine 'max': one of probabilities"),
        (["predict", "a", "bb", "field", "--output", "o"], "bb: no such file or folder"),
        (["evaluate", "a", "b"], "2 runs: each held out other recordings"),
        (["evaluate", "cv"], "give --audio a labelled folder that none of them saw"),
    ],
)
def test_mistakes_are_one_line(capsys, home, monkeypatch, args, message):
    monkeypatch.chdir(home)
    code, out, err = command(capsys, *args)
    assert code == 2 and message in err and err.count("\n") == 1 and not out
    assert not (home / "o").exists()
