"""Recipes: defaults, deltas, settings, and errors that name the key."""

import pytest

from birdtpu.errors import UserError
from birdtpu.recipe import Recipe, load_recipe, recipe_names, recipe_of


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_load_and_survive_toml(name, tmp_path):
    recipe = load_recipe(name)
    path = tmp_path / "again.toml"
    path.write_text(recipe.to_toml(), "utf-8")
    again = load_recipe(str(path))
    assert again == recipe and again.hash == recipe.hash


def test_a_delta_changes_only_what_it_names(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('extends = "birdcall2020"\n[train]\nepochs = 3\n', "utf-8")
    mine, base = load_recipe(str(path)), load_recipe("birdcall2020")
    assert mine.train.epochs == 3 and mine.name == "mine"
    assert mine.train.batch_size == base.train.batch_size and mine.frontend == base.frontend
    assert mine.hash != base.hash


def test_a_relative_parent_lies_beside_its_child(tmp_path):
    (tmp_path / "parent.toml").write_text("[train]\nepochs = 7\n", "utf-8")
    child = tmp_path / "child.toml"
    child.write_text('extends = "parent.toml"\n', "utf-8")
    assert load_recipe(str(child)).train.epochs == 7


def test_settings_are_toml_and_bare_words_are_text():
    recipe = load_recipe(
        "quickstart", ["train.learning_rate=1e-3", "model.backbone=ResNet50", "frontend.image_size=[64, 32]"]
    )
    assert recipe.train.learning_rate == 1e-3
    assert recipe.model.backbone == "ResNet50"
    assert recipe.frontend.image_size == (64, 32)
    assert load_recipe("birdcall2020", ["frontend.image_size=[]"]).frontend.image_size is None
    assert load_recipe("birdcall2020", ["model.drop_path=0"]).model.drop_path == 0
    unset = load_recipe("birdcall2020", ["model.drop_path=[]", "model.stem_pool=true"])
    assert unset.model.drop_path is None and unset.hash == load_recipe("birdcall2020").hash


def test_a_whole_number_is_a_number_where_one_with_a_point_is_wanted():
    recipe = load_recipe("quickstart", ["train.weight_decay=1", "augment.tempo_rates=[1, 2]"])
    assert recipe.hash == load_recipe("quickstart", ["train.weight_decay=1.0", "augment.tempo_rates=[1.0, 2.0]"]).hash


def test_one_threshold_changes_alone(tmp_path):
    default = load_recipe("base").predict.thresholds
    assert load_recipe("base", ["predict.thresholds.clipwise=0.3"]).predict.thresholds == {**default, "clipwise": 0.3}
    path = tmp_path / "mine.toml"
    path.write_text("[predict.thresholds]\nattention = 0.4\n", "utf-8")
    mine = load_recipe(str(path), ["predict.thresholds={segmentwise=0.6}"])
    assert mine.predict.thresholds == {**default, "attention": 0.4, "segmentwise": 0.6}


def test_a_partner_whose_times_nobody_knows_is_refused():
    with pytest.raises(UserError, match="nobody knows when the other recording's species sings"):
        load_recipe("rfcx2021_sliding", ["augment.partner_probability=0.5"])


def test_a_table_in_a_setting_changes_only_what_it_names():
    plain, changed = load_recipe("birdcall2020"), load_recipe("birdcall2020", ["frontend={n_mels=32}"])
    assert changed.frontend == plain.frontend.model_copy(update={"n_mels": 32})
    assert plain.frontend != load_recipe("base").frontend


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.learning_rat=1", "unknown key train.learning_rat; did you mean train.learning_rate"),
        ("train.epochs=many", "train.epochs: input should be a valid integer"),
        ("n_mels=3", "did you mean frontend.n_mels"),
        ("frontnd.n_mels=3", "did you mean frontend"),
        ("train.zzz=3", "unknown key train.zzz; known: epochs"),
        ("train.epochs", "table.key=value"),
        ("=3", "table.key=value"),
        ("train.epochs.more=3", "train.epochs"),
        ("name.x=3", "name is a value"),
        ("train.batch_size=20", "multiple of 8"),
        ("augment.paste_probability=0.5", "needs train.frame_loss alone"),
        ("train.plateau_epochs=2", "plateau_epochs, watch: need folds.validation_fraction above 0"),
        ("train.watch=balanced", "plateau_epochs, watch: need folds.validation_fraction above 0"),
        ("frontend.f_max=20000", "half of audio.sample_rate"),
        ("audio.record_seconds=3", "shorter than a clip"),
        ("train.patience=3", "validation_fraction"),
        ("augment.mixup_probability=1.5", "less than or equal to 1"),
        ("train.learning_rate=nan", "finite"),
        ("predict.hop_seconds=6", "gaps"),
        ("predict.hop_seconds=1e-5", "predict.hop_seconds: input should be greater than or equal to 0.01"),
        ("augment.noise_snr_db=[9, 3]", "augment.noise_snr_db: low end above the high end"),
        ("augment.pitch_semitones=[3, -2]", "augment.pitch_semitones: low end above the high end"),
        ("augment.floor_max=1.0", "augment.floor_max: input should be less than 1"),
        ("augment.loudness_probability=0.5", "augment.loudness_probability: changes nothing where frontend.scale"),
        ("frontend.standardize=true", "frontend.standardize: changes nothing with frontend.scale = 'decibel'"),
        ("frontend.win_lengths=[512, 4096]", "frontend.win_lengths: longer than frontend.n_fft"),
        ("frontend.scale=log", "frontend.scale: input should be 'decibel', 'fixed_decibel' or 'pcen'"),
        ("frontend.pcen_gian=1", "did you mean frontend.pcen_gain"),
        ("folds.seed=-5", "folds.seed: input should be greater than or equal to 0"),
        ("train.seed=4294967296", "train.seed: input should be less than 4294967296"),
        ("frontend.hop_length=1000000", "frontend.hop_length: so long that a clip has fewer than 8 frames"),
        ("audio.clip_seconds=1e-9", "fewer than 8 frames"),
        ("train.epochs=true", "train.epochs: input should be a valid integer, not True"),
        ('train.epochs="7"', "train.epochs: input should be a valid integer, not '7'"),
        ("train.epochs=7.5", "train.epochs: input should be a valid integer"),
        ("train.learning_rate=true", "train.learning_rate: input should be a valid number"),
        ("balance.repeat=1", "balance.repeat: input should be a valid boolean"),
        ("labels.classes=5", "labels.classes: input should be a valid string"),
        ("frontend.image_size=[true, 32]", "frontend.image_size.0: input should be a valid integer"),
        ("frontend.image_size=[64]", "frontend.image_size.1"),
        (
            "predict.thresholds.foo=0.5",
            "predict.thresholds.foo: input should be 'clipwise', 'segmentwise' or 'attention'",
        ),
        ("predict.thresholds=0.5", "predict.thresholds"),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(setting, message):
    with pytest.raises(UserError) as caught:
        load_recipe("quickstart", [setting])
    text = str(caught.value)
    assert message in text and "\n" not in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends = 'nothing'", "no recipe of that name"),
        ("extends = 3", "one recipe"),
        ("[train\n", "not TOML"),
        ("extends = 'me.toml'", "extends itself"),
    ],
)
def test_broken_files_are_named(tmp_path, text, message):
    path = tmp_path / "me.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(UserError, match=message):
        load_recipe(str(path))


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path):
    path = tmp_path / "notepad.toml"
    path.write_text('extends = "quickstart"\n', "utf-8-sig")
    assert load_recipe(str(path)).hash == load_recipe("quickstart").hash


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_a_recipe_in_another_encoding_is_named(tmp_path, encoding):
    path = tmp_path / "me.toml"
    path.write_text('name = "Gérard"\n', encoding)
    with pytest.raises(UserError, match=r"me\.toml: not UTF-8 .*save it as UTF-8"):
        load_recipe(str(path))


def test_a_floor_needs_an_image_of_known_range():
    settings = ["frontend.scale=fixed_decibel", "augment.floor_probability=0.5"]
    with pytest.raises(UserError, match=r"augment\.floor_probability: needs an image between 0 and 1"):
        load_recipe("quickstart", settings)
    assert load_recipe("quickstart", ["frontend.scale=pcen", settings[1]]).frontend.scale == "pcen"


def test_loudness_is_taken_where_the_scale_sees_it():
    settings = ["augment.loudness_probability=0.5", "frontend.scale=fixed_decibel"]
    assert load_recipe("quickstart", settings).augment.loudness_db == (-20, 0)
    with pytest.raises(UserError, match=r"augment\.loudness_probability: changes nothing"):
        load_recipe("quickstart", [*settings, "frontend.standardize=true"])


def test_several_windows_stand_for_the_one():
    windows = load_recipe("quickstart", ["frontend.win_lengths=[512, 64]", "frontend.n_fft=512"]).frontend.win_lengths
    assert windows == (512, 64)


def test_a_key_more_leaves_the_hash():
    class Later(Recipe):
        added: int = 3

    recipe = load_recipe("birdcall2020", ["predict.thresholds.clipwise=0.3"])
    assert Later.model_validate(recipe.model_dump()).hash == recipe.hash
    assert Later.model_validate({**recipe.model_dump(), "added": 4}).hash != recipe.hash
    assert len({load_recipe(name).hash for name in recipe_names()}) == len(recipe_names())


def test_a_misspelt_name_suggests_the_near_one():
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        load_recipe("quickstrt")
    with pytest.raises(UserError, match="no such file"):
        load_recipe("absent.toml")


def test_recipes_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        load_recipe("quickstart").train.epochs = 3


def test_the_hash_is_of_the_content_and_not_of_the_name(tmp_path):
    path = tmp_path / "other_name.toml"
    path.write_text('extends = "quickstart"\n', "utf-8")
    assert load_recipe(str(path)).hash == load_recipe("quickstart").hash


def test_the_recipe_reference_is_current():
    import importlib.util
    from pathlib import Path

    docs = Path(__file__).resolve().parents[1] / "docs"
    spec = importlib.util.spec_from_file_location("reference", docs / "make_recipe_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (docs / "recipes.md").read_text("utf-8") == module.reference()


def test_the_readme_and_the_checks_run_the_same_tests():
    from pathlib import Path

    root = Path(__file__).resolve().parents[1]
    command = "run --locked --extra cpu --group test pytest -n 2"
    assert command in (root / "README.md").read_text("utf-8")
    assert f"uv {command}" in (root / ".ci" / "run").read_text("utf-8")


def test_a_recipe_is_taken_by_name_by_path_and_as_it_is(tmp_path):
    (tmp_path / "mine.toml").write_text('extends = "quickstart"\n')
    mine = recipe_of(tmp_path / "mine.toml", ["train.epochs=3"])
    assert mine.hash == recipe_of("quickstart", ("train.epochs=3",)).hash != load_recipe("quickstart").hash
    assert recipe_of(mine, ()) is mine
    with pytest.raises(UserError, match=r"settings train\.epochs=4: .*load_recipe"):
        recipe_of(mine, ["train.epochs=4"])


def test_ranking_needs_whole_groups_and_clips_that_are_scored():
    off = ["augment.mixup_probability=0", "train.batch_size=12"]
    assert load_recipe("quickstart", off).train.batch_size == 12
    with pytest.raises(UserError, match=r"train\.batch_size: must be a multiple of 8 .*train\.rank_loss"):
        load_recipe("quickstart", [*off, "train.rank_loss=1"])
    with pytest.raises(UserError, match=r"train\.rank_loss: .*goes with train\.clip_loss"):
        load_recipe("rfcx2021_sliding", ["train.rank_loss=1"])
