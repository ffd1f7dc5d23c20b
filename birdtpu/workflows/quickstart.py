"""The main job on a newcomer's machine: synthesise, prepare, train, evaluate, predict."""

from collections.abc import Sequence
from pathlib import Path

from birdtpu.data.synthesis import synthesize
from birdtpu.errors import UserError
from birdtpu.recipe import load_recipe
from birdtpu.run import is_finished, open_run
from birdtpu.storage import PathLike
from birdtpu.workflows.evaluate import evaluate
from birdtpu.workflows.predict import predict
from birdtpu.workflows.prepare import prepare
from birdtpu.workflows.train import train

# The synthesised world is learnt sooner than real recordings.
SHORTER = ("train.epochs=30",)


def quickstart(folder: PathLike, settings: Sequence[str] = ()) -> dict:
    """Run the main job on synthesised recordings; what stands in the folder is not done again.

    Args:
        folder: Holds `recordings/`, `prepared/`, `run/` and `timelines/` after.
        settings: Changes to the recipe `quickstart`, beyond `SHORTER`.

    Returns: the evaluation on the recordings of the fold that was held out.
    Raises: UserError where the folder holds a run with other settings.
    """
    home = Path(folder)
    recipe = load_recipe("quickstart", [*SHORTER, *settings])
    paths = {name: str(home / name) for name in ("recordings", "prepared", "run", "timelines")}
    finished = is_finished(paths["run"])
    if finished and open_run(paths["run"]).recipe.hash != recipe.hash:
        raise UserError(f"{paths['run']}: was trained with other settings; give another folder, or remove this one")
    print(f"1/5 synthesising recordings in {paths['recordings']}", flush=True)
    synthesize(paths["recordings"])
    print(f"2/5 preparing shards in {paths['prepared']}", flush=True)
    focal, soundscapes = (str(home / "recordings" / name) for name in ("train_audio", "train_soundscapes"))
    prepare(recipe, focal, paths["prepared"])
    print(f"3/5 training in {paths['run']}", flush=True)
    if not finished:
        train(recipe, paths["prepared"], paths["run"], fold=0)
    print("4/5 scoring the recordings that were held out", flush=True)
    found, _ = evaluate(paths["run"], output=str(home / "run" / "evaluation"))
    print(f"5/5 timelines of the soundscapes in {paths['timelines']}", flush=True)
    predict(paths["run"], soundscapes, paths["timelines"], plots=True)
    return found.result
