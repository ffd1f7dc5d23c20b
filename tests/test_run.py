"""A run folder: what it keeps, and what is said of a damaged one."""

import hashlib
import json

import pytest

from birdtpu.errors import UserError
from birdtpu.recipe import load_recipe
from birdtpu.run import Run, open_run
from birdtpu.species import ClassList

CLASSES = ClassList(("crow", "owl"))


@pytest.fixture
def folder(tmp_path):
    Run(str(tmp_path / "r"), load_recipe("quickstart"), CLASSES, {"data": ["p"], "fold": "0"}).save()
    return tmp_path / "r"


def test_a_run_reads_back(folder):
    run = open_run(folder)
    assert (run.recipe, run.classes, run.info["data"], run.finished) == (
        load_recipe("quickstart"),
        CLASSES,
        ["p"],
        False,
    )
    assert open_run(str(folder)) == run


def test_a_run_of_an_earlier_version_lacks_keys_of_later_ones_and_has_another_hash(folder):
    path, info = folder / "recipe.toml", json.loads((folder / "run.json").read_text())
    assert "repeat = false\n" in path.read_text()
    path.write_text(path.read_text().replace("repeat = false\n", ""))
    written = {"recipe_hash": "of other defaults", "recipe_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (folder / "run.json").write_text(json.dumps({**info, **written}))
    assert open_run(folder).recipe == load_recipe("quickstart")


def test_a_changed_recipe_is_found(folder):
    path = folder / "recipe.toml"
    path.write_text(path.read_text().replace("epochs = 80", "epochs = 81"))
    with pytest.raises(UserError, match=r"recipe\.toml was changed after training"):
        open_run(folder)


def test_what_the_outputs_mean_and_were_learnt_from_cannot_be_changed_after_training(folder):
    (folder / "plan.csv").write_text("row,section\n0,0\n")
    Run(str(folder), load_recipe("quickstart"), CLASSES, {"data": ["p"], "weights_sha256": "0" * 64}).save()
    assert open_run(folder).checked("plan.csv") == str(folder / "plan.csv")
    (folder / "plan.csv").write_text("row,section\n")
    with pytest.raises(UserError, match=r"plan\.csv was changed after training; copy the run again"):
        open_run(folder).checked("plan.csv")
    lines = (folder / "classes.csv").read_text().splitlines()
    (folder / "classes.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    with pytest.raises(UserError, match=r"classes\.csv was changed after training; copy the run again"):
        open_run(folder)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "should be an object"),
        ("{", "Invalid JSON"),
        ("\0", "Invalid JSON"),
        ('{"recipe_sha256": "x"}', "data: Field required"),
        ('{"recipe_sha256": "x", "data": "p"}', "data: Input should be a valid array"),
        ('{"recipe_sha256": "x", "data": [], "weights_sha256": 3}', "weights_sha256: Input should be a valid string"),
    ],
)
def test_a_damaged_run_json_is_named(folder, text, reason):
    (folder / "run.json").write_text(text)
    with pytest.raises(UserError, match=rf"run\.json: damaged .*{reason}") as error:
        open_run(folder)
    assert "\n" not in str(error.value)


def test_saved_thresholds_go_before_the_recipes(folder):
    run = open_run(folder)
    assert run.thresholds("clipwise") == {"crow": 0.5, "owl": 0.5}
    (folder / "thresholds.json").write_text(json.dumps({"clipwise": {"owl": 1, "gull": 0.1}}))
    assert run.thresholds("clipwise") == {"crow": 0.5, "owl": 1.0}
    assert run.thresholds("segmentwise") == {"crow": 0.9, "owl": 0.9}


def test_thresholds_are_saved_head_by_head(folder):
    run = open_run(folder)
    run.save_thresholds("clipwise", {"crow": 0.1, "owl": 1 / 3})
    run.save_thresholds("attention", {"crow": 0.4, "owl": 0.4})
    run.save_thresholds("clipwise", {"crow": 0.2, "owl": 1 / 3})
    assert open_run(folder).thresholds("clipwise") == {"crow": 0.2, "owl": 1 / 3}
    assert open_run(folder).thresholds("attention") == {"crow": 0.4, "owl": 0.4}
    (folder / "thresholds.json").write_text("{")
    with pytest.raises(UserError, match=r"thresholds\.json: damaged"):
        run.save_thresholds("clipwise", {"crow": 0.3})
    assert (folder / "thresholds.json").read_text() == "{"


@pytest.mark.parametrize("text", ["{", "[]", '{"clipwise": "high"}', '{"clipwise": {"owl": "high"}}',
                                  '{"clipwise": {"owl": 2}}', '{"clipwise": {"owl": NaN}}'])  # fmt: skip
def test_damaged_thresholds_are_named(folder, text):
    (folder / "thresholds.json").write_text(text)
    with pytest.raises(UserError, match=r"thresholds\.json: damaged .*mend it, or remove it"):
        open_run(folder).thresholds("clipwise")
