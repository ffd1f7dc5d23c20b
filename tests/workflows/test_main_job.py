"""The main job through the command line: synthesise, prepare, train, evaluate, predict, cross-validate."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

import birdtpu
from birdtpu.data.plan import load_plan, recordings_of
from birdtpu.data.synthesis import synthesize
from birdtpu.errors import UserError
from birdtpu.evaluation.compare import LABELS, paired_bootstrap, read_out_of_fold
from birdtpu.recipe import load_recipe
from birdtpu.run import open_run
from birdtpu.workflows.cross_validate import mean_of_folds
from birdtpu.workflows.predict import audio_files
from birdtpu.workflows.prepared import open_prepared
from birdtpu.workflows.quickstart import quickstart
from tests.commands import command

TINY = [
    "audio.clip_seconds=2.0", "audio.margin_seconds=0.5", "audio.record_seconds=6.0", "predict.hop_seconds=1.0",
    "frontend.hop_length=1024", "frontend.n_mels=32", "model.features=16", "train.batch_size=8", "train.epochs=2",
    "train.steps_per_epoch=2", "balance.up_to=0", "folds.count=2", "evaluate.bootstrap=50",
]  # fmt: skip
SET = [part for setting in TINY for part in ("--set", setting)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    synthesize(folder / "w", species=3, recordings=6, soundscapes=1, seed=3)
    return folder / "w"


@pytest.fixture(scope="module")
def prepared(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "p"
    birdtpu.prepare("quickstart", world / "train_audio", out, settings=TINY)
    return out


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "r"
    birdtpu.train("quickstart", prepared, folder, fold=0, settings=TINY)
    return folder


def some_of(world, audio, count):
    """A folder of the first recordings of each species."""
    for species in sorted((world / "train_audio").iterdir()):
        (audio / species.name).mkdir(parents=True)
        for path in sorted(species.glob("*.ogg"))[:count]:
            shutil.copy(path, audio / species.name)
    return audio


def test_prepare_says_what_it_did_and_verify_that_it_is_whole(capsys, world, tmp_path):
    audio = tmp_path / "audio"
    shutil.copytree(world / "train_audio", audio)
    broken = next(audio.rglob("*.ogg"))
    broken.write_bytes(b"<html>404</html>")
    out = tmp_path / "p"
    args = ["prepare", "quickstart", "--audio", audio, "--output", out, *SET]
    code, text, err = command(capsys, *args)
    assert code == 0 and "records in" in text
    assert err.startswith("warning: 1 files could not be used") and "failures.csv" in err
    assert broken.name in (out / "failures.csv").read_text()
    assert command(capsys, *args, "--strict")[0] == 1
    assert command(capsys, "verify", out)[0] == 0
    shard = next((out / "shards").iterdir())
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    code, _, err = command(capsys, "verify", out)
    assert code == 1 and shard.name in err


def test_prepare_says_what_became_of_the_tables(capsys, world, tmp_path):
    audio = some_of(world, tmp_path / "audio", 2)
    first, second, *rest = sorted(path.relative_to(audio).as_posix() for path in audio.rglob("*.ogg"))
    damaged = (audio / second).read_bytes()
    (audio / second).write_bytes(damaged[: len(damaged) * 3 // 4])
    os.close(os.open(os.fsencode(audio) + b"/caf\xe9.wav", os.O_CREAT))
    table = tmp_path / "labels.csv"
    table.write_text(f"filename,label\n{first},wren\n{first},owl\n{second},owl\ngone/1.ogg,owl\n")
    args = ["prepare", "quickstart", "--audio", audio, "--table", table, "--output", tmp_path / "p", *SET]
    code, text, err = command(capsys, *args)
    assert code == 0
    for line in (
        f"1 damaged files gave audio all the same (audio/{second}); files.csv names them",
        f"{len(rest)} audio files are not used: no table names them, or they copy one that is ({rest[0]}, ...); "
        "tables_report.json names them",
        "1 rows name a recording once more: their labels were joined",
    ):
        assert line in text.splitlines()
    missing, unreadable = err.splitlines()
    assert missing.startswith("warning: 1 files could not be used (gone/1.ogg: a table names it, but it is not there)")
    assert unreadable.startswith("warning: 1 files could not be used (caf\\xe9.wav: its name is not UTF-8")
    written = (tmp_path / "p" / "tables_report.json").read_text()
    assert json.loads(written)["missing"] == ["gone/1.ogg"] and json.loads(written)["unused"] == rest
    assert command(capsys, "verify", tmp_path / "p")[0] == 0
    assert command(capsys, *args, "--strict")[0] == 1
    assert (tmp_path / "p" / "tables_report.json").read_text() == written


def test_a_recording_that_two_folders_cut_unlike_is_the_firsts(prepared, world, tmp_path):
    from birdtpu.data.shelf import open_shelf

    other = tmp_path / "other"
    birdtpu.prepare("quickstart", some_of(world, tmp_path / "w", 2), other, settings=[*TINY, "audio.record_seconds=4"])
    recipe = load_recipe("quickstart", TINY)
    one, both = (open_prepared(recipe, folders) for folders in ([prepared], [prepared, other]))
    pd.testing.assert_frame_equal(both.records, one.records)
    pd.testing.assert_frame_equal(open_shelf([prepared, other]).table, open_shelf(prepared).table)
    seconds = open_prepared(recipe, [other, prepared]).records.groupby("recording")["seconds"].sum()
    durations = one.tables.recordings.set_index("recording")["duration_seconds"]
    assert seconds.to_dict() == pytest.approx(durations.to_dict())


def test_a_run_remembers_all_it_needs(run, prepared):
    kept = open_run(run)
    assert kept.finished and kept.info["fold"] == "0" and kept.info["data"] == [str(prepared.resolve())]
    assert kept.info["recipe_hash"] == kept.recipe.hash and len(kept.classes) == 3
    names = {path.name for path in run.iterdir()}
    assert {"recipe.toml", "classes.csv", "plan.csv", "balance.csv", "log.csv", "curves.png"} <= names
    plan = pd.read_csv(run / "plan.csv")
    by_role = plan.assign(recording=plan["record"].str.split("/").str[0]).groupby("role")["recording"].agg(set)
    assert not by_role["train"] & by_role["test"]


def test_evaluate_scores_the_held_out_fold(capsys, run, tmp_path):
    code, text, _ = command(capsys, "evaluate", run, "--json", tmp_path / "m.json", "--output", tmp_path / "e")
    assert code == 0 and "macro_average_precision" in text
    result = json.loads((tmp_path / "m.json").read_text())
    for key in ("macro_average_precision", "macro_roc_auc", "micro_f1", "lwlrap", "padded_cmap", "recording_accuracy"):
        assert set(result[key]) == {"value", "low", "high"}
    tested = pd.read_csv(run / "plan.csv").query("role == 'test'")["record"].str.split("/").str[0].nunique()
    assert result["n_recordings"] == tested
    assert {p.name for p in (tmp_path / "e").iterdir()} >= {"metrics.json", "confusion.png", "precision_recall.png"}


def test_evaluate_takes_any_labelled_folder(capsys, run, world):
    assert command(capsys, "evaluate", run, "--audio", f"{world / 'train_audio'}/")[0] == 0
    by_file = json.loads((run / "evaluation-train_audio" / "metrics.json").read_text())
    assert by_file["n_recordings"] == len(list((world / "train_audio").rglob("*.ogg")))
    table = world / "train_soundscape_labels.csv"
    rows = birdtpu.evaluate(run, audio=world / "train_soundscapes", table=table, by="row")[0].result
    labels = pd.read_csv(table)
    assert rows["by"] == "row" and rows["n_rows"] == len(labels)


def test_options_that_contradict_each_other_are_refused(capsys, run, prepared, world):
    code, _, err = command(capsys, "evaluate", run, "--table", world / "train_soundscape_labels.csv")
    assert code == 2 and "train_soundscape_labels.csv: it labels a folder of audio" in err
    code, _, err = command(capsys, "evaluate", run, "--audio", world / "train_audio", "--data", prepared)
    assert code == 2 and "give --audio to score a labelled folder, or --data" in err


def test_evaluate_takes_the_classes_that_the_run_kept(run, tmp_path, monkeypatch):
    copy = Path(shutil.copytree(run, tmp_path / "r"))
    kept = open_run(copy)
    recipe = load_recipe(str(copy / "recipe.toml"), ["labels.classes=mine.csv"])
    replace(kept, recipe=recipe).save()
    monkeypatch.chdir(tmp_path)
    assert birdtpu.evaluate("r")[0].result == birdtpu.evaluate(run)[0].result
    (tmp_path / "mine.csv").write_text("code\nanother\n")
    assert birdtpu.evaluate("r")[0].result["n_classes"] == 3


def test_held_out_scores_from_shards_equal_those_from_files(run, world):
    """The shards hold PCM16 of decoded OGG: scores differ by rounding alone."""
    from birdtpu.workflows.evaluate import held_out

    predictor = birdtpu.load(str(run))
    _, scored, _ = held_out(predictor, None)
    name, mine = next(iter(scored.items()))
    path = next((world / "train_audio").rglob(f"{name}.ogg"))
    theirs = next(iter(predictor.score_files([str(path)])))
    np.testing.assert_allclose(mine.scores, theirs.scores, atol=2e-3)
    np.testing.assert_allclose(mine.starts_seconds, theirs.starts_seconds)


def test_predict_writes_a_table_and_a_picture_a_file(capsys, run, world, tmp_path):
    field = world / "train_soundscapes"
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"")
    out = tmp_path / "out"
    args = ["predict", run, field, broken, "--output", out, "--threshold", "0.0", "--plot"]
    code, text, err = command(capsys, *args)
    assert code == 0 and "1 files scored" in text and "1 files could not be used" in err
    name = next(field.glob("*.ogg")).name
    table = pd.read_csv(out / f"{name}.csv")
    assert list(table.columns) == [
        "start_seconds", "end_seconds", "species", "common_name", "scientific_name", "score"
    ]  # fmt: skip
    assert table.groupby("start_seconds").size().eq(3).all()
    assert np.allclose(np.diff(sorted(table["start_seconds"].unique())), 1.0)
    assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert "broken.wav" in (out / "failures.csv").read_text()
    assert command(capsys, *args, "--strict")[0] == 1
    code, text, err = command(capsys, "predict", run, broken, "--output", out)
    assert code == 1 and "0 files scored" in text and "broken.wav" in err


def test_thresholds_are_chosen_saved_and_used(capsys, run, world, tmp_path):
    copy = tmp_path / "r"
    shutil.copytree(run, copy)
    before = birdtpu.load(copy)
    code, text, _ = command(capsys, "thresholds", copy, "--target-fpr", "0.4")
    assert code == 0 and "3 of 3 species with a threshold of their own for a false positive rate of 0.4" in text
    table = pd.read_csv(copy / "thresholds" / "per_class.csv")
    tested = birdtpu.evaluate(copy)[0].result["n_recordings"]
    assert (table["fpr"] <= 0.4).all() and (table["positives"] + table["negatives"] <= tested).all()
    common = table["threshold"].median()
    head = before.head
    assert json.loads((copy / "thresholds.json").read_text()) == {head: dict.fromkeys(table["code"], common)}
    assert f"{common:.3f}, their median; saved for all" in text
    # A recording without the species is a false positive where predict names it in any clip.
    species, rows = before.classes.codes[0], pd.read_csv(run / "plan.csv").query("role == 'test'")
    without = [path for path in (world / "train_audio").rglob("*.ogg") if path.parent.name != species]
    without = [path for path in without if path.stem in set(rows["record"].str.split("/").str[0])]
    options = ["--output", tmp_path / "o"]
    assert command(capsys, "predict", copy, *without, *options)[0] == 0
    named = [species in set(pd.read_csv(tmp_path / "o" / f"{path.name}.csv")["species"]) for path in without]
    assert np.mean(named) == pytest.approx(table["fpr_at_global"][0])

    call = {"target_fpr": 0.2, "head": "clipwise", "per_class": True}
    found, failures = birdtpu.thresholds(copy, **call)
    saved = json.loads((copy / "thresholds.json").read_text())
    assert saved["clipwise"] == found.values(True) and len(set(saved["clipwise"].values())) == 3 and not failures
    assert saved[head] == dict.fromkeys(table["code"], common)
    assert list(birdtpu.load(copy, head="clipwise").thresholds) == list(found.own)
    per_class = birdtpu.evaluate(copy, head="clipwise")[0].result["per_class"]
    assert [row["threshold"] for row in per_class] == list(found.own)


def test_thresholds_come_from_recordings_that_the_run_has_not_seen(capsys, run, world, tmp_path):
    copy = tmp_path / "r"
    shutil.copytree(run, copy)
    held = birdtpu.thresholds(copy, target_fpr=0.3)[0]
    with pytest.warns(UserWarning, match=r"of 1. recordings are left out: the run was trained on them"):
        found, _ = birdtpu.thresholds(copy, target_fpr=0.3, audio=world / "train_audio")
    assert found.result["n_recordings"] == held.result["n_recordings"]
    # The shards hold PCM16 of decoded OGG.
    assert found.common == pytest.approx(held.common, abs=2e-3)
    seen = set(pd.read_csv(run / "plan.csv").query("role == 'train'")["record"].str.split("/").str[0])
    for path in (world / "train_audio").rglob("*.ogg"):
        if path.stem in seen:
            (tmp_path / "seen" / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "seen" / path.parent.name)
    saved = (copy / "thresholds.json").read_bytes()
    for args, message in (
        (["--audio", tmp_path / "seen"], "the run was trained on every recording of it"),
        (
            ["--audio", world / "train_soundscapes", "--table", world / "train_soundscape_labels.csv"],
            "no recording has a primary label",
        ),
        (["--target-fpr", "1"], "a share from 0 to below 1"),
        (["--head", "loudest"], "head 'loudest': one of"),
    ):
        code, _, err = command(capsys, "thresholds", copy, *args)
        assert code == 2 and message in err and err.count("\n") == 1
    code, _, err = command(capsys, "thresholds", "kaggle:owner/slug")
    assert code == 2 and "what is published stays as it is" in err
    assert (copy / "thresholds.json").read_bytes() == saved


def test_the_api_gives_a_data_frame(run, world):
    file = next((world / "train_soundscapes").glob("*.ogg"))
    predictor = birdtpu.load(run, head="clipwise")
    table = predictor.predict(file, threshold=0.0)
    assert table["species"].nunique() == 3 and (table["file"] == str(file)).all()
    assert "3 species" in repr(predictor)
    with pytest.raises(UserError, match="no such file"):
        predictor.predict("absent.wav")


def test_a_submission_is_filled(capsys, run, world, tmp_path):
    classes = open_run(str(run)).classes.codes
    stem = next((world / "train_soundscapes").glob("*.ogg")).stem
    sample = pd.DataFrame({"row_id": [f"{stem}_{end}" for end in (5, 10, 60)], **dict.fromkeys(classes, 0.1)})
    sample.to_csv(tmp_path / "sample.csv", index=False)
    options = ["--output", tmp_path / "o", "--submission", tmp_path / "sample.csv"]
    assert command(capsys, "predict", run, world / "train_soundscapes", *options)[0] == 0
    filled = pd.read_csv(tmp_path / "o" / "submission.csv")
    assert list(filled.columns) == list(sample.columns) and list(filled["row_id"]) == list(sample["row_id"])
    assert not filled.isna().any().any() and not np.allclose(filled[list(classes)], 0.1)


def test_a_sample_that_does_not_fit_ends_it_before_anything_is_scored(capsys, run, world, tmp_path):
    (tmp_path / "sample.csv").write_text("row_id,unicorn\nx_5,0\n")
    for sample, reason in (("sample.csv", "knows none of its species"), ("none.csv", "no such file")):
        options = ["--output", tmp_path / "o", "--submission", tmp_path / sample]
        code, _, err = command(capsys, "predict", run, world / "train_soundscapes", *options)
        assert code == 2 and reason in err and not (tmp_path / "o").exists()
    (tmp_path / "o").write_text("in the way")
    code, _, err = command(capsys, "predict", run, world / "train_soundscapes", "--output", tmp_path / "o")
    assert code == 2 and str(tmp_path / "o") in err


def test_a_log_mel_in_blocks_is_that_of_the_whole_file(run, world, monkeypatch):
    from birdtpu.data import audio
    from birdtpu.workflows import predict as module

    predictor = birdtpu.load(run)
    file = next((world / "train_soundscapes").glob("*.ogg"))
    samples = audio.read(file, sample_rate=32000)
    power = np.asarray(predictor.model.mel(samples[None]))[0]
    for seconds in (60, 7, 1):
        monkeypatch.setattr(module, "MEL_BLOCK_SECONDS", seconds)
        got = predictor.log_mel_db(file)
        np.testing.assert_allclose(10 ** (got / 10), np.maximum(power, 1e-10), rtol=1e-4)


def test_cross_validation_resumes(capsys, prepared, world, tmp_path):
    args = ["cross-validate", "quickstart", "--data", prepared, "--run", tmp_path / "cv", *SET]
    code, text, _ = command(capsys, *args)
    assert code == 0 and "pooled" in text
    table = pd.read_csv(tmp_path / "cv" / "cross_validation.csv")
    assert list(table["fold"]) == ["0", "1", "mean", "pooled"]
    mean = table.set_index("fold")["macro_average_precision"]
    assert mean["mean"] == pytest.approx((mean["0"] + mean["1"]) / 2)
    out_of_fold = tmp_path / "cv" / "oof.csv"
    scores, written = read_out_of_fold(str(out_of_fold)), out_of_fold.read_bytes()
    assert list(scores.columns) == [*LABELS, *open_run(tmp_path / "cv" / "fold-0").classes.codes]
    for fold, part in scores.groupby("fold"):
        plan = pd.read_csv(tmp_path / "cv" / f"fold-{fold}" / "plan.csv").query("role == 'test'")
        assert set(part["recording"]) == set(plan["record"].str.split("/").str[0])
    assert scores["recording"].is_unique and paired_bootstrap(scores, scores).a == pytest.approx(mean["mean"])
    out_of_fold.unlink()
    weights = tmp_path / "cv" / "fold-0" / "model.weights.h5"
    stamp = weights.stat().st_mtime_ns
    code, again, _ = command(capsys, *args)
    assert code == 0 and weights.stat().st_mtime_ns == stamp and "fold 0 of" not in again
    assert out_of_fold.read_bytes() == written
    code, _, err = command(capsys, *args, "--set", "train.learning_rate=0.5")
    assert code == 2 and "another recipe" in err
    args[3] = shutil.copytree(prepared, tmp_path / "moved")
    assert command(capsys, *args)[0] == 0 and weights.stat().st_mtime_ns == stamp
    birdtpu.prepare("quickstart", some_of(world, tmp_path / "w", 4), tmp_path / "fewer", settings=TINY)
    args[3] = tmp_path / "fewer"
    code, _, err = command(capsys, *args)
    assert code == 2 and f"is of other data ({prepared}" in err and "another --run folder" in err
    plan = tmp_path / "cv" / "fold-0" / "plan.csv"
    plan.write_text(plan.read_text().replace(",test,", ",train,"))
    args[3] = prepared
    code, _, err = command(capsys, *args)
    assert code == 2 and "plan.csv was changed after training" in err
    noted = plan.with_name("run.json")
    info = json.loads(noted.read_text())
    info["files_sha256"]["plan.csv"] = hashlib.sha256(plan.read_bytes()).hexdigest()
    noted.write_text(json.dumps(info))
    code, _, err = command(capsys, *args)
    assert code == 2 and "is of other folds" in err


def test_a_file_where_a_folder_is_wanted_is_one_line(prepared, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    for run in (tmp_path / "notes.txt", tmp_path / "notes.txt" / "run"):
        code, out, err = command(capsys, "train", "quickstart", "--data", prepared, "--run", run)
        assert (code, out, err.count("\n")) == (2, "", 1) and str(run) in err
        assert err.endswith("a file stands where a folder is wanted: give another place\n")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_cross_validation_needs_something_to_test(prepared, tmp_path):
    split = "folds.split={train=0.6, validation=0.4}"
    with pytest.raises(UserError, match=r"no recording is ever tested; give folds\.split a test part"):
        birdtpu.cross_validate("quickstart", prepared, tmp_path / "cv", settings=[*TINY, split])
    assert not (tmp_path / "cv").exists()


def test_a_fold_of_one_recording_leaves_the_mean_without_interval():
    rows = pd.DataFrame({"fold": ["0", "1"], "macro_average_precision": [0.4, 0.8]})
    draws = np.linspace(0.3, 0.9, 50)
    assert mean_of_folds(rows, [draws, draws])["macro_average_precision_low"] == pytest.approx(0.315)
    mean = mean_of_folds(rows, [draws, np.empty(0)])
    assert mean["macro_average_precision"] == pytest.approx(0.6) and np.isnan(mean["macro_average_precision_low"])


def test_a_validation_part_chooses_the_epoch(capsys, prepared, tmp_path):
    settings = [*TINY, "folds.validation_fraction=0.3", "train.patience=5", "balance.down_to=2"]
    birdtpu.train("quickstart", prepared, tmp_path / "v", fold=1, settings=settings)
    head, *lines = capsys.readouterr().out.splitlines()
    dropped = pd.read_csv(tmp_path / "v" / "balance.csv").set_index("species")["dropped"]
    assert dropped.sum() and head.endswith("  dropped")
    shown = {line.split()[0]: int(line.split()[-1]) for line in lines[:3]}
    assert {species: shown[species] for species in dropped.index} == dropped.to_dict()
    log = pd.read_csv(tmp_path / "v" / "log.csv")
    assert log["validation_loss"].notna().all()
    roles = pd.read_csv(tmp_path / "v" / "plan.csv")
    recording = roles["record"].str.split("/").str[0]
    assert roles.groupby(recording)["role"].nunique().eq(1).all()
    assert set(roles["role"]) == {"train", "validation", "test"}


def test_a_split_takes_the_place_of_folds(prepared, tmp_path):
    split = "folds.split={train=0.6, validation=0.2, test=0.2}"
    birdtpu.train("quickstart", str(prepared), str(tmp_path / "s"), settings=[*TINY, split])
    assert set(pd.read_csv(tmp_path / "s" / "plan.csv")["role"]) == {"train", "validation", "test"}
    assert birdtpu.evaluate(str(tmp_path / "s"))[0].result["n_recordings"] >= 2


def test_a_handful_of_recordings_trains_without_folds(world, tmp_path):
    audio = some_of(world, tmp_path / "audio", 1)
    settings = [*TINY, "folds.count=5", "train.epochs=1"]
    birdtpu.prepare("quickstart", str(audio), str(tmp_path / "p"), settings=settings)
    assert birdtpu.train(
        "quickstart", str(tmp_path / "p"), str(tmp_path / "r"), settings=[*settings, "balance.up_to=4"]
    ).finished
    with pytest.raises(UserError, match=r"lower folds\.count"):
        birdtpu.train("quickstart", str(tmp_path / "p"), str(tmp_path / "r1"), fold=0, settings=settings)
    with pytest.raises(UserError, match="less than a clip and its margin"):
        birdtpu.train(
            "quickstart",
            str(tmp_path / "p"),
            str(tmp_path / "r2"),
            settings=[*settings, "audio.clip_seconds=6", "audio.record_seconds=12"],
        )


def test_a_long_recording_gets_no_picture(run, world, tmp_path, monkeypatch):
    from birdtpu.workflows import predict as module

    monkeypatch.setattr(module, "MOST_PLOTTED_SECONDS", 10)
    with pytest.warns(UserWarning, match="no picture"):
        module.predict(str(run), str(world / "train_soundscapes"), str(tmp_path / "o"), plots=True)
    assert list((tmp_path / "o").glob("*.csv")) and not list((tmp_path / "o").glob("*.png"))


def test_a_run_on_everything_holds_nothing_out(prepared, tmp_path):
    birdtpu.train("quickstart", str(prepared), str(tmp_path / "all"), settings=TINY)
    for call in (birdtpu.evaluate, birdtpu.thresholds):
        with pytest.raises(UserError, match="trained on everything"):
            call(str(tmp_path / "all"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "quickstart", "--data", "nowhere", "--run", "r"], "nowhere/manifest.json: not there"),
        (["train", "quickstrt", "--data", "d", "--run", "r"], "did you mean 'quickstart'"),
        (["train", "quickstart", "--data", "d", "--run", "r", "--set", "train.epoch=3"], "did you mean train.epochs"),
        (["predict", "nowhere", "a.wav", "--output", "o"], "run nowhere: no such folder"),
        (["evaluate", "nowhere"], "run nowhere: no such folder"),
        (["prepare", "quickstart", "--audio", "nowhere", "--output", "o"], "nowhere"),
        (["show", "nothing"], "no recipe of that name"),
        (["train", "quickstart", "--data", "d", "--run", "r", "--backend", "torch"], "tensorflow or jax"),
        (["verify", "nowhere"], "nowhere/manifest.json"),
    ],
)
def test_mistakes_are_one_line(capsys, monkeypatch, tmp_path, args, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(capsys, *args)
    assert code != 0
    assert message in err and err.count("\n") == 1 and "Traceback" not in err + out


def test_data_that_does_not_fit_the_recipe_is_refused(capsys, prepared, run, tmp_path):
    code, _, err = command(
        capsys, "train", "quickstart", "--data", prepared, "--run", tmp_path / "r", "--set", "audio.sample_rate=24000"
    )
    assert code == 2 and "prepared at 32000 Hz" in err
    code, _, err = command(capsys, "train", "quickstart", "--data", prepared, "--run", run, *SET)
    assert code == 2 and "holds a finished run" in err
    code, _, err = command(
        capsys, "train", "quickstart", "--data", prepared, "--run", tmp_path / "f", "--fold", "9", *SET
    )
    assert code == 2 and "9" in err


def test_damaged_runs_are_named(run, tmp_path):
    for name in ("model.weights.h5", "recipe.toml", "run.json"):
        copy = tmp_path / name
        shutil.copytree(run, copy)
        data = (copy / name).read_bytes()
        if name == "recipe.toml":
            (copy / name).write_bytes(data.replace(b"epochs = 2", b"epochs = 3"))
        else:
            (copy / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            birdtpu.load(str(copy))


def test_audio_files_are_found_once_and_named_apart(tmp_path):
    for name in ("a/x.wav", "b/x.wav", "b/notes.txt", "b/._x.wav", ".trash/y.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [name for name, _ in audio_files(tmp_path)] == ["a/x.wav", "b/x.wav"]
    with pytest.raises(UserError, match=r"both are named x\.wav"):
        audio_files([tmp_path / "a", str(tmp_path / "b")])
    with pytest.raises(UserError, match="no audio file"):
        (tmp_path / "empty").mkdir()
        audio_files(str(tmp_path / "empty"))


def test_linked_folders_and_names_that_are_no_text_are_predicted(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "caf\udce9.wav").write_bytes(b"")
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "link").symlink_to(tmp_path / "far", target_is_directory=True)
    (tmp_path / "near" / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    found = audio_files(tmp_path / "near")
    # What cannot be opened is named among the failures.
    assert found == [(name, str(tmp_path / "near" / name)) for name in ("gone.wav", "link/caf\udce9.wav")]


def test_quickstart_does_not_report_a_run_with_other_settings(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    with pytest.raises(UserError, match="was trained with other settings; give another folder"):
        quickstart(tmp_path, ["train.epochs=1"])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_show_prints_a_recipe_that_loads_again(capsys, tmp_path):
    code, text, _ = command(capsys, "show", "birdcall2020", "--set", "train.epochs=3")
    assert code == 0
    (tmp_path / "again.toml").write_text(text)
    assert load_recipe(str(tmp_path / "again.toml")).train.epochs == 3


def test_recordings_without_birds_are_trained_on_in_any_fold_and_needed_no_longer(world, prepared, tmp_path):
    audio = tmp_path / "rain"
    audio.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        sf.write(audio / f"{name}.wav", rng.standard_normal(32000 * 7) / 10, 32000)
    some = sorted((world / "train_audio").rglob("*.ogg"))[0]
    # One that is labelled, and held out in one of the folds, lies among them too.
    shutil.copy(some, audio / some.name)
    birdtpu.prepare("quickstart", audio, tmp_path / "quiet", settings=TINY, unlabelled=True, workers=1)
    settings = [*TINY, f"labels.nocall={tmp_path / 'quiet'}", "balance.down_to=0", "balance.up_to=4"]
    for fold in (0, 1):
        home = tmp_path / f"fold-{fold}"
        birdtpu.train("quickstart", prepared, home, fold=fold, settings=settings)
        plan = load_plan(home / "plan.csv")
        silent = plan[(plan["targets"] == "") & (plan["unknown"] == "")]
        assert set(silent["role"]) == {"train"} and recordings_of(silent).nunique() == 2
        assert silent["section"].nunique() == 4
        assert not set(recordings_of(plan[plan["role"] == "test"])) & set(recordings_of(plan[plan["role"] == "train"]))
        assert "nocall" not in open_run(home).classes.codes
    shutil.rmtree(tmp_path / "quiet")
    assert birdtpu.evaluate(home, data=prepared)
    codes = ["nocall", *open_run(home).classes.codes]
    (tmp_path / "classes.csv").write_text("code\n" + "".join(f"{code}\n" for code in codes))
    birdtpu.prepare("quickstart", audio, tmp_path / "quiet", settings=TINY, unlabelled=True, workers=1)
    birdtpu.train(
        "quickstart", prepared, tmp_path / "own", fold=0, settings=[*settings, f"labels.classes={tmp_path}/classes.csv"]
    )
    plan = load_plan(tmp_path / "own" / "plan.csv")
    assert (plan["targets"] == "nocall").sum() == 4
