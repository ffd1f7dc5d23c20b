"""What callers may give, as the workflows take it: paths as text, recipes resolved."""

import os
from collections.abc import Sequence

from birdtpu.errors import UserError
from birdtpu.recipe import Recipe, load_recipe

PathLike = str | os.PathLike[str]


def paths_of(given: PathLike | Sequence[PathLike]) -> list[str]:
    """One path or several, as a list of text."""
    return [os.fspath(path) for path in ([given] if isinstance(given, str | os.PathLike) else given)]


def recipe_of(recipe: Recipe | PathLike, settings: Sequence[str]) -> Recipe:
    """A recipe, or the one of this name or path with the settings.

    Raises: UserError as `load_recipe` does, and where settings come with a finished recipe.
    """
    if not isinstance(recipe, Recipe):
        return load_recipe(os.fspath(recipe), list(settings))
    if settings:
        raise UserError(
            f"settings {', '.join(settings)}: a Recipe takes no more of them; give them to load_recipe, which made it"
        )
    return recipe
