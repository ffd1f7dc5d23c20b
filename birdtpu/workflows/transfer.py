"""Start a training from a run of other species: the trunk is kept, and of the head the rows of shared species."""

import csv
import io
from typing import Any

import numpy as np
import pandas as pd

from birdtpu import storage
from birdtpu.data import plan as planning
from birdtpu.errors import UserError
from birdtpu.recipe import Recipe
from birdtpu.run import Run
from birdtpu.species import ClassList

# A recording a line: what the run was begun from, or its teachers, have learnt from them.
SEEN = "seen_before.txt"
# What the network's weights depend on, but for the classes.
_SHAPES = ("model.backbone", "model.head", "model.features", "frontend.image_size", "frontend.n_mels")


def read_synonyms(path: str) -> dict[str, str]:
    """Scientific names that mean one species: a CSV with the columns `scientific_name` and `synonym`.

    Returns: each name -> the one that stands for all of them, small letters.
    Raises: UserError where the file is missing or lacks a column.
    """
    if not storage.exists(path):
        raise UserError(f"synonyms {path}: no such file")
    rows = list(csv.DictReader(io.StringIO(storage.read_text(path).lstrip("\ufeff"))))
    if not rows or not {"scientific_name", "synonym"} <= rows[0].keys():
        raise UserError(f"synonyms {path}: needs a header with the columns scientific_name and synonym")
    out: dict[str, str] = {}
    for row in rows:
        one, other = (_plain(row[key] or "") for key in ("scientific_name", "synonym"))
        one, other = out.get(one, one), out.get(other, other)
        out = {name: one if stands == other else stands for name, stands in out.items()} | {other: one, one: one}
    return out


def shared_classes(old: ClassList, new: ClassList, synonyms: dict[str, str]) -> list[tuple[int, int]]:
    """Pairs of (column in `old`, column in `new`) of the same species.

    By scientific name, or by one of its synonyms, where both lists have one; else by code. A code that names another
    species in the other list is none.
    """

    def name_of(classes: ClassList, i: int) -> str:
        name = _plain(classes.scientific_names[i])
        return synonyms.get(name, name)

    by_name = {name_of(old, i): i for i in reversed(range(len(old))) if name_of(old, i)}
    pairs = []
    for i, code in enumerate(new.codes):
        name = name_of(new, i)
        if name in by_name:
            pairs.append((by_name[name], i))
        elif code in old and not (name and name_of(old, old.index(code))):
            pairs.append((old.index(code), i))
    return pairs


def check_fits(old: Run, recipe: Recipe) -> None:
    """Raises UserError where a recipe's network is another than the run's."""
    for key in _SHAPES:
        table, name = key.split(".")
        before, now = (getattr(getattr(each, table), name) for each in (old.recipe, recipe))
        if before != now:
            raise UserError(f"--init-from {old.folder}: its {key} is {before}, the recipe's {now}; they must be equal")


def take_over(run: Run, network: Any, classes: ClassList, synonyms: dict[str, str]) -> int:
    """Give an untrained network what a run has learnt: all but the rows of species that the run does not know.

    Args:
        run: The run; see `check_fits`.
        network: Of the new classes; changed in place.
        classes: The new ones.
        synonyms: From `read_synonyms`.

    Returns: how many species the two share.
    Raises: UserError where the run's weights are damaged, or the networks differ in more than their classes.
    """
    from birdtpu.models.build import SoundEventModel

    known = SoundEventModel(run.recipe, len(run.classes), weights="none").network
    run.load_weights(known)
    pairs = shared_classes(run.classes, classes, synonyms)
    source, target = ([pair[side] for pair in pairs] for side in (0, 1))
    # In every head the layer of this name holds what belongs to the classes, on its last axis.
    own = {id(variable) for variable in network.get_layer("head").variables}
    weights: list[tuple[Any, np.ndarray]] = []
    for before, now in zip(_shared(known), _shared(network), strict=True):
        value, learnt = np.array(now.value), np.asarray(before.value)
        if id(now) in own:
            value[..., target] = learnt[..., source]
        elif value.shape == learnt.shape:
            value = learnt
        else:
            raise UserError(
                f"--init-from {run.folder}: {now.path} has the shape {learnt.shape}, in this recipe {value.shape}"
            )
        weights.append((now, value))
    for variable, value in weights:
        variable.assign(value)
    return len(pairs)


def _shared(network: Any) -> list[Any]:
    """A network's variables but those of its layer for a teacher: each training has its own."""
    apart = {id(variable) for layer in network.layers if layer.name == "teacher" for variable in layer.variables}
    return [variable for variable in network.variables if id(variable) not in apart]


def trained_on(run: Run, pseudo: bool = True) -> set[str]:
    """The recordings that a run has learnt from, or chosen its epoch by, itself or through what it was begun from.

    Empty where it was published without its plan.

    Args:
        run: The run.
        pseudo: Whether those count of which it only had pseudo-labels.
    """
    if not storage.exists(run.path("plan.csv")):
        return set()
    plan = planning.load_plan(run.checked("plan.csv"))
    earlier = storage.read_text(run.checked(SEEN)).split("\n") if storage.exists(run.path(SEEN)) else []
    counts = (plan["role"] != "test") & (pseudo | (plan["source"] != planning.PSEUDO))
    return {*planning.recordings_of(plan[counts]), *filter(None, earlier)}


def held_out_before(run: Run, plan: pd.DataFrame) -> list[str]:
    """The recordings that a plan tests although the run was trained on them.

    Raises: UserError where the run has no plan to tell.
    """
    held = set(planning.recordings_of(plan[plan["role"] == "test"]))
    if held and not storage.exists(run.path("plan.csv")):
        raise UserError(
            f"--init-from {run.folder}: was published without its plan, so nobody can tell whether it was trained on "
            "the recordings that are held out; begin from a run of your own, or train without --fold"
        )
    return sorted(held & trained_on(run))


def _plain(name: str) -> str:
    return " ".join(name.lower().split())
