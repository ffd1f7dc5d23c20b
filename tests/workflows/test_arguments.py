"""What callers may give."""

from pathlib import Path

import pytest

from birdtpu.errors import UserError
from birdtpu.recipe import load_recipe
from birdtpu.workflows.arguments import paths_of, recipe_of


def test_one_path_or_several_are_a_list_of_text():
    assert paths_of("a") == paths_of(Path("a")) == ["a"]
    assert paths_of(["gs://b/c", Path("d")]) == paths_of(("gs://b/c", "d")) == ["gs://b/c", "d"]


def test_a_recipe_is_taken_by_name_by_path_and_as_it_is(tmp_path):
    (tmp_path / "mine.toml").write_text('extends = "quickstart"\n')
    mine = recipe_of(tmp_path / "mine.toml", ["train.epochs=3"])
    assert mine.hash == recipe_of("quickstart", ("train.epochs=3",)).hash != load_recipe("quickstart").hash
    assert recipe_of(mine, ()) is mine
    with pytest.raises(UserError, match=r"settings train\.epochs=4: .*load_recipe"):
        recipe_of(mine, ["train.epochs=4"])
