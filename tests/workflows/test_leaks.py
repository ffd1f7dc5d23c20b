"""What is held out is heard in no other way either: as a copy, as silence, as a background."""

import warnings

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

import birdtpu
from birdtpu.data.plan import load_plan, recordings_of
from birdtpu.data.pseudo import PseudoLabels
from birdtpu.data.tables import ANNOTATIONS, RECORDINGS, SPECIES, Tables
from birdtpu.errors import UserError
from birdtpu.recipe import load_recipe
from birdtpu.workflows.prepared import Prepared, open_prepared
from birdtpu.workflows.pseudo import Pseudo
from birdtpu.workflows.samples import make_plan, with_nocall
from birdtpu.workflows.train import _beside

SETTINGS = ["audio.clip_seconds=2.0", "audio.margin_seconds=0", "audio.record_seconds=4.0", "predict.hop_seconds=1.0"]


def tones(folder, names, seed):
    """A recording of 3 s a name, of noise that the name and the seed make."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        rng = np.random.default_rng([seed, *name.encode()])
        sf.write(folder / f"{name}.wav", 0.1 * rng.standard_normal(32000 * 3), 32000)


def copied(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two labelled folders and two without labels; copies under other names in three of them."""
    home = tmp_path_factory.mktemp("leaks")
    for species in "ab":
        tones(home / "one" / species, [f"{species}{i}" for i in range(4)], 0)
        tones(home / "two" / species, [f"more-{species}{i}" for i in range(2)], 1)
        copied(home / "one" / species / f"{species}0.wav", home / "two" / species / f"XC7{ord(species)}.wav")
    tones(home / "quiet", ["rain", "wind"], 2)
    for name in ("a1", "b1"):
        copied(home / "one" / name[0] / f"{name}.wav", home / "quiet" / f"take {name}.wav")
    rows = [f"{name[0]}/{name}.wav,{fold}" for name in ("a0", "a1", "b0", "b1") for fold in "0"]
    rows += [f"{name[0]}/{name}.wav,1" for name in ("a2", "a3", "b2", "b3")]
    (home / "one.csv").write_text("filename,fold\n" + "\n".join(rows) + "\n")
    rows = [f"{path.parent.name}/{path.name},train" for path in (home / "two").rglob("*.wav")]
    (home / "two.csv").write_text("filename,fold\n" + "\n".join(rows) + "\n")
    common = {"settings": SETTINGS, "workers": 1}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*groups .recordist.*")
        for name in ("one", "two"):
            birdtpu.prepare("quickstart", home / name, home / f"{name}-given", folds=home / f"{name}.csv", **common)
            birdtpu.prepare("quickstart", home / name, home / f"{name}-bare", **common)
    birdtpu.prepare("quickstart", home / "quiet", home / "quiet-bare", unlabelled=True, **common)
    return home


def sounds(prepared, plan, role):
    """Hashes of the audio of one role's recordings."""
    tables = [prepared.tables.recordings, *([] if prepared.nocall is None else [prepared.nocall])]
    hashes = pd.concat(tables).drop_duplicates("recording").set_index("recording")["audio_hash"]
    return set(hashes[recordings_of(plan[plan["role"] == role]).unique()])


@pytest.mark.parametrize("kind", ["given", "bare"])
def test_a_copy_under_another_name_is_on_one_side(home, kind):
    recipe = load_recipe("quickstart", [*SETTINGS, "folds.count=2"])
    prepared = open_prepared(recipe, [str(home / f"{name}-{kind}") for name in ("one", "two")])
    assert prepared.tables.recordings["audio_hash"].nunique() == len(prepared.tables.recordings) - 2
    for fold in (0, 1):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            _, plan, _ = make_plan(recipe, prepared, fold)
        assert not sounds(prepared, plan, "train") & sounds(prepared, plan, "test")
        told = [str(warning.message) for warning in said if "left out of the training" in str(warning.message)]
        # Folds that were given know nothing of the copies of fold 0; our own keep them together.
        assert len(told) == (kind == "given" and fold == 0)
        assert all("2 recordings (a/XC797.wav, ...)" in text for text in told)


def test_what_is_labelled_is_no_silence_whatever_its_name(home):
    settings = [*SETTINGS, f"labels.nocall={home / 'quiet-bare'}"]
    recipe = load_recipe("quickstart", settings)
    prepared = with_nocall(recipe, open_prepared(recipe, [str(home / "one-given")]))
    assert sorted(prepared.nocall["path"]) == ["rain.wav", "wind.wav"]
    with pytest.raises(UserError, match=r"labels\.nocall: every recording of .*quiet-bare is in the --data too"):
        with_nocall(recipe, open_prepared(recipe, [str(home / "quiet-bare")]))


def test_silence_is_not_of_a_place_that_is_held_out():
    place = {"author": "A", "latitude": 1.0, "longitude": 2.0}
    rows = [{"recording": f"R{i}", "path": f"{i}", "primary_label": "ab"[i % 2], "fold": str(i // 2)} for i in range(4)]
    rows[0] |= place
    silent = [{"recording": "S0", "path": "s0", **place}, {"recording": "S1", "path": "s1"}]

    def frame(part, columns):
        table = pd.DataFrame([{"data_set": "d", "duration_seconds": 8.0, "audio_hash": "", **row} for row in part])
        numbers = {"latitude", "longitude", "rating", "duration_seconds"}
        return table.reindex(columns=columns).astype(object).fillna(dict.fromkeys(set(columns) - numbers, ""))

    columns = [*RECORDINGS, "audio_hash"]
    recordings = frame(rows, columns)
    nocall = frame(silent, columns).assign(primary_label="nocall", fold="train")
    names = pd.concat([recordings, nocall])["recording"].to_numpy()
    records = pd.DataFrame({"record": names + "/00000", "recording": names, "start_seconds": 0.0, "seconds": 8.0})
    species = pd.DataFrame({"code": ["a", "b"], "scientific_name": "", "common_name": ""})[list(SPECIES)]
    boxes = pd.DataFrame({name: [] for name in ANNOTATIONS})
    prepared = Prepared(["d"], Tables(recordings, boxes, species), records, nocall)
    for fold, taught in (("0", {"S1"}), ("1", {"S0", "S1"})):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="1 recordings .* are left out of the training")
            _, plan, _ = make_plan(load_recipe("quickstart"), prepared, fold)
        assert set(recordings_of(plan)) & {"S0", "S1"} == taught
    # What is silence by its folder gets no pseudo-label.
    clips = pd.DataFrame({"recording": ["S1", "U0"], "start_seconds": 0.0, "end_seconds": 5.0})
    labels = PseudoLabels(clips, np.full((2, 2), 0.5, np.float16), ("a", "b"))
    bare = frame([{"recording": name, "path": name} for name in ("S1", "U0")], columns)
    more = records.iloc[:2].assign(record=["S1/00000", "U0/00000"], recording=["S1", "U0"])
    pseudo = Pseudo("p.npz", labels, ["u"], Tables(bare, boxes, species), more)
    with pytest.warns(UserWarning, match=r"pseudo-labels: 1 clips of 1 recordings \(S1, ...\) are left out"):
        _, plan, _ = make_plan(load_recipe("quickstart"), prepared, "1", pseudo)
    assert set(recordings_of(plan[plan["source"] == "pseudo"])) == {"U0"}


def test_backgrounds_are_none_of_what_is_held_out(home, tmp_path):
    folders = [str(home / "one-given")]
    settings = [*SETTINGS, "augment.background_probability=1", f"augment.background={home / 'quiet-bare'}"]
    recipe = load_recipe("quickstart", settings)
    prepared = open_prepared(recipe, folders)
    _, plan, _ = make_plan(recipe, prepared, 0)
    beside = _beside(recipe, plan, prepared)
    paths = open_prepared(recipe, beside["background"]).tables.recordings.set_index("recording")["path"]
    held = set(recordings_of(plan[plan["role"] == "test"]))
    # Those of the fold, and their copies.
    assert {paths[name] for name in beside["held_out"] if name in paths} == {"take a1.wav", "take b1.wav"}
    assert held <= beside["held_out"] and not beside["held_out"] & set(recordings_of(plan[plan["role"] == "train"]))
    # Backgrounds of the data itself: a training hears those of its own part.
    own = load_recipe("quickstart", [*settings[:-1], f"augment.background={folders[0]}"])
    assert _beside(own, plan, prepared)["held_out"] == held


def test_recordings_with_times_alone_are_cross_validated_by_row(tmp_path, monkeypatch):
    """RFCx has no primary labels: boxes that hold a species, or surely do not."""
    names = [f"{i:02d}" for i in range(6)]
    tones(tmp_path / "in" / "train", names, 3)
    head = "recording_id,species_id,songtype_id,t_min,f_min,t_max,f_max\n"
    for kind, species in (("tp", "01"), ("fp", "10")):
        rows = [f"{name},{species[int(name) % 2]},1,0.5,1000,1.5,4000" for name in names]
        (tmp_path / "in" / f"train_{kind}.csv").write_text(head + "\n".join(rows) + "\n")
    settings = ["audio.sample_rate=32000", *SETTINGS, "folds.count=2", "train.epochs=1", "train.batch_size=8",
                "train.steps_per_epoch=1", "model.features=8", "evaluate.bootstrap=20"]  # fmt: skip
    recipe = "rfcx2021_sliding-quick"
    birdtpu.prepare(recipe, tmp_path / "in", tmp_path / "prepared", settings=settings, workers=1)
    table = birdtpu.cross_validate(recipe, tmp_path / "prepared", tmp_path / "cv", settings=settings)
    assert table["fold"].tolist() == ["0", "1", "mean", "pooled"]
    assert table["macro_average_precision"].between(0, 1).all() and not (tmp_path / "cv" / "oof.csv").exists()
    pooled = pd.read_json(tmp_path / "cv" / "pooled" / "metrics.json", typ="series")
    assert pooled["by"] == "row" and pooled["n_rows"] == 6 and pooled["n_recordings"] == 6
    assert pooled["macro_average_precision"]["value"] == pytest.approx(table["macro_average_precision"].iloc[-1])
    plans = [load_plan(tmp_path / "cv" / f"fold-{fold}" / "plan.csv") for fold in (0, 1)]
    assert {*recordings_of(plans[0][plans[0]["role"] == "test"])} == {
        *recordings_of(plans[1][plans[1]["role"] == "train"])
    }
