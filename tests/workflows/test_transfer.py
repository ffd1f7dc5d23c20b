"""A training that begins with another run's weights."""

import json
import warnings

import keras
import numpy as np
import pytest

import birdtpu
from birdtpu.data.synthesis import synthesize
from birdtpu.errors import UserError
from birdtpu.models.build import SoundEventModel
from birdtpu.recipe import load_recipe
from birdtpu.run import Run, open_run
from birdtpu.species import ClassList
from birdtpu.workflows.transfer import read_synonyms, shared_classes, take_over

TINY = [
    "audio.clip_seconds=2.0", "audio.margin_seconds=0.5", "audio.record_seconds=6.0", "predict.hop_seconds=1.0",
    "frontend.hop_length=1024", "frontend.n_mels=32", "model.features=16", "train.batch_size=8", "train.epochs=1",
    "train.steps_per_epoch=1", "train.warmup_fraction=0.0", "train.learning_rate=1e-9", "train.ema_decay=0.0",
    "balance.up_to=0", "folds.count=2", "evaluate.bootstrap=50",
]  # fmt: skip
OLD = ClassList(("crow", "owl", "jay", "robin"), ("Corvus corone", "Strix aluco", "Garrulus glandarius", ""))
NEW = ClassList(("owl1", "robin", "crow", "jay", "yak"), ("strix  ALUCO", "Turdus", "Corvus cornix", "Garrulus g.", ""))


def test_species_are_the_same_by_name_and_only_else_by_code():
    # The owl has another code, the robin has a name in one list alone; crow and jay are other species by now.
    assert shared_classes(OLD, NEW, {}) == [(1, 0), (3, 1)]
    same = shared_classes(OLD, OLD, {})
    assert same == [(i, i) for i in range(4)]


def test_synonyms_join_names(tmp_path):
    path = tmp_path / "synonyms.csv"
    path.write_text("scientific_name,synonym\nGarrulus glandarius,Garrulus g.\nCorvus corone,C. corone\n"
                    "C. corone,Corvus Cornix\n")  # fmt: skip
    assert sorted(shared_classes(OLD, NEW, read_synonyms(str(path)))) == [(0, 2), (1, 0), (2, 3), (3, 1)]
    path.write_text("name,other\na,b\n")
    with pytest.raises(UserError, match=r"synonyms\.csv: needs a header with the columns scientific_name and synonym"):
        read_synonyms(str(path))
    with pytest.raises(UserError, match="nowhere: no such file"):
        read_synonyms("nowhere")


@pytest.mark.parametrize("head", ["attention", "mean", "sliding"])
def test_the_trunk_and_shared_rows_are_taken_over(tmp_path, head):
    recipe = load_recipe("quickstart", [*TINY, f"model.head={head}", "predict.head=clipwise"])
    keras.utils.set_random_seed(1)
    old = SoundEventModel(recipe, len(OLD)).network
    run = Run(str(tmp_path), recipe, OLD, {"data": []})
    run.save()
    run = run.save_weights(old)
    keras.utils.set_random_seed(2)
    new = SoundEventModel(recipe, len(NEW)).network
    fresh = new.get_weights()
    assert take_over(run, new, NEW, {}) == 2
    head_weights = {id(v) for v in new.get_layer("head").variables}
    assert len(head_weights) == (4 if head == "attention" else 2)
    for variable, before, now, first in zip(new.variables, old.get_weights(), new.get_weights(), fresh, strict=True):
        if id(variable) in head_weights:
            np.testing.assert_array_equal(now[..., [0, 1]], before[..., [1, 3]])
            np.testing.assert_array_equal(now[..., 2:], first[..., 2:])
        else:
            np.testing.assert_array_equal(now, before)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    home = tmp_path_factory.mktemp("transfer")
    synthesize(home / "w", species=3, recordings=6, soundscapes=0, seed=3)
    birdtpu.prepare("quickstart", home / "w" / "train_audio", home / "p", settings=TINY)
    birdtpu.train("quickstart", home / "p", home / "cv" / "fold-0", fold=0, settings=TINY)
    return home


def test_a_training_begins_where_another_ended(prepared, tmp_path, capsys):
    first = open_run(prepared / "cv" / "fold-0")
    run = birdtpu.train("quickstart", prepared / "p", tmp_path / "b", fold=0, init_from=first.folder, settings=TINY)
    assert f"begun from {first.folder}: 3 of 3 species are known to it" in capsys.readouterr().out
    networks = [SoundEventModel(each.recipe, 3, weights="none").network for each in (first, run)]
    for each, network in zip((first, run), networks, strict=True):
        each.load_weights(network)
    # One step at a learning rate of almost nothing.
    for a, b in zip(*(network.trainable_variables for network in networks), strict=True):
        np.testing.assert_allclose(np.asarray(a.value), np.asarray(b.value), atol=1e-6)
    info = json.loads((tmp_path / "b" / "run.json").read_text())
    assert info["init_sha256"] == first.info["weights_sha256"] and info["optimistic"] == 0


def test_held_out_recordings_that_were_trained_on_are_told_through_every_run(prepared, tmp_path):
    first = prepared / "cv" / "fold-0"
    with pytest.warns(UserWarning, match=r"trained on \d+ of the held-out recordings .* will be optimistic"):
        middle = birdtpu.train("quickstart", prepared / "p", tmp_path / "m", fold=1, init_from=first, settings=TINY)
    assert middle.info["optimistic"] > 0
    # The middle one was not trained on fold 1, but what it began with was: a run from it knows.
    with pytest.warns(UserWarning, match="held-out recordings"):
        last = birdtpu.train(
            "quickstart", prepared / "p", tmp_path / "l", fold=1, init_from=tmp_path / "m", settings=TINY
        )
    assert last.info["optimistic"] == middle.info["optimistic"]


def test_a_fold_begins_with_its_own(prepared, tmp_path):
    shared = prepared / "cv"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from birdtpu.workflows.cross_validate import _of_fold

        assert _of_fold(shared, "0") == str(shared / "fold-0")
    assert _of_fold(None, "0") is None and _of_fold(shared / "fold-0", "1") == str(shared / "fold-0")
    # Before the first fold is trained.
    with pytest.raises(
        UserError, match=r"--init-from .*cv: neither a run nor a cross-validation with a finished fold-1"
    ):
        birdtpu.cross_validate("quickstart", prepared / "p", tmp_path / "x", init_from=shared, settings=TINY)
    assert not (tmp_path / "x").exists()


def test_what_does_not_fit_is_named(prepared, tmp_path):
    first = prepared / "cv" / "fold-0"
    other = [*TINY, "model.features=8"]
    with pytest.raises(
        UserError, match=r"--init-from .*fold-0: its model\.features is 16, the recipe's 8; they must be"
    ):
        birdtpu.train("quickstart", prepared / "p", tmp_path / "x", fold=0, init_from=first, settings=other)
    assert not (tmp_path / "x" / "run.json").exists()
    with pytest.raises(UserError, match=r"cv: a cross-validation of 1 folds, but --init-from takes one run: .*fold-0"):
        birdtpu.train("quickstart", prepared / "p", tmp_path / "x", init_from=prepared / "cv", settings=TINY)
    with pytest.raises(UserError, match=r"no run|no such"):
        birdtpu.train("quickstart", prepared / "p", tmp_path / "x", init_from=tmp_path / "nowhere", settings=TINY)


def test_another_beginning_is_another_training(prepared, tmp_path):
    from birdtpu.workflows.train import _check_same

    same = dict.fromkeys(("recipe", "fold", "data", "batch_size", "classes", "plan"), "a")
    with pytest.raises(UserError, match=r"an interrupted training of another --init-from \(x, not y\)"):
        _check_same("f", {**same, "init": "x"}, {**same, "init": "y"})


def test_a_validation_part_is_no_test(prepared, tmp_path):
    cut = [*TINY, "folds.validation_fraction=0.3"]
    first = birdtpu.train("quickstart", prepared / "p", tmp_path / "a", fold=0, settings=cut)
    again = birdtpu.train("quickstart", prepared / "p", tmp_path / "b", fold=0, init_from=first.folder, settings=cut)
    assert again.info["optimistic"] == 0


def test_a_fold_that_began_otherwise_is_refused_and_a_seen_one_is_told_again(prepared, tmp_path):
    from birdtpu.workflows.cross_validate import cross_validate

    first, cv = prepared / "cv" / "fold-0", tmp_path / "cv"
    birdtpu.train("quickstart", prepared / "p", cv / "fold-0", fold=0, init_from=first, settings=TINY)
    with pytest.raises(UserError, match=r"fold-0: is of another --init-from; give another --run"):
        cross_validate("quickstart", prepared / "p", cv, settings=TINY)
    with pytest.warns(UserWarning, match="held-out recordings"):
        birdtpu.train("quickstart", prepared / "p", tmp_path / "s", fold=1, init_from=first, settings=TINY)
    with pytest.warns(UserWarning, match=r"held out were trained on before it: its score is optimistic"):
        birdtpu.evaluate(tmp_path / "s")
