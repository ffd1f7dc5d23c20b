"""Train a recipe on prepared recordings."""

import contextlib
import hashlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from birdtpu import __version__, storage
from birdtpu.data import folds as folding
from birdtpu.data import plan as planning
from birdtpu.data.pseudo import soft_targets
from birdtpu.data.teacher import Teacher
from birdtpu.errors import UserError
from birdtpu.keys import Train
from birdtpu.publish.places import data_folders
from birdtpu.recipe import Recipe, recipe_of
from birdtpu.run import Run, is_finished
from birdtpu.species import ClassList
from birdtpu.storage import PathLike
from birdtpu.training.machine import prepare_for_tpu
from birdtpu.workflows import transfer
from birdtpu.workflows.members import open_one
from birdtpu.workflows.prepared import Prepared, data_info, open_prepared, recordings_of_folder
from birdtpu.workflows.pseudo import Pseudo, check_teachers, open_pseudo
from birdtpu.workflows.samples import make_plan, with_nocall
from birdtpu.workflows.teacher import of_trained, open_teacher

_NO_MEMORY = "the device has no memory for a step: raise train.accumulate, or lower train.batch_size"

if TYPE_CHECKING:
    from birdtpu.training.log import Log
    from birdtpu.training.loop import Progress, Saving
    from birdtpu.training.step import Step
    from birdtpu.training.strategy import Accelerator


def train(
    recipe: Recipe | PathLike,
    data: PathLike | Sequence[PathLike],
    run: PathLike,
    *,
    fold: str | int | None = None,
    init_from: PathLike | None = None,
    pseudo: PathLike | None = None,
    unlabelled: PathLike | Sequence[PathLike] | None = None,
    teacher: PathLike | None = None,
    settings: Sequence[str] = (),
    tpu: bool = False,
    resume: bool = True,
    save_minutes: float = 10.0,
    save_steps: int = 0,
) -> Run:
    """Train a recipe and write a run folder; an interrupted training goes on where it was.

    Args:
        recipe: A recipe, its name or its path.
        data: Folder or folders that `prepare` wrote: local, `gs://`, or `kaggle:owner/slug`.
        run: The run folder, local or `gs://`; one that holds a finished run is an error.
        fold: The fold that is held out; None trains on everything.
        init_from: A finished run, its folder or `kaggle:owner/slug`, whose weights this one begins with. Its species
            may be others: those that both know (by scientific name, else by code) keep their rows of the head.
        pseudo: A file of `pseudo_label`, whose clips are trained on beside the labelled samples.
        unlabelled: Prepared folders of these clips, where they have moved since.
        teacher: An `.npz` of a teacher's embeddings (`data.teacher`), for a recipe with `model.teacher_features`.
        settings: Changes to the recipe, as `table.key=value`.
        tpu: Train on a TPU, and on nothing else.
        resume: Go on from the folder's last checkpoint. False: begin again.
        save_minutes, save_steps: Time and steps between two checkpoints; 0 steps counts only the time.

    Returns: the finished run.
    Raises: UserError where recipe, data, fold and the folder's checkpoint do not fit each other, or a TPU is wanted
        and cannot be had; `training.loop.Stopped` at SIGTERM or Ctrl-C, when all is saved.
    """
    recipe, folders, run = recipe_of(recipe, settings), data_folders(data), os.fspath(run)
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError("training reads its shards by TensorFlow, on either backend: pip install 'birdtpu[cpu]'")
    if tpu:
        prepare_for_tpu()
    with storage.locked(run):
        return _train(
            recipe, folders, run, fold, init_from, pseudo, unlabelled, teacher, tpu, resume, save_minutes, save_steps
        )


def _train(
    recipe: Recipe,
    folders: list[str],
    run: str,
    fold: str | int | None,
    init_from: PathLike | None,
    pseudo_file: PathLike | None,
    unlabelled: PathLike | Sequence[PathLike] | None,
    teacher_file: PathLike | None,
    tpu: bool,
    resume: bool,
    save_minutes: float,
    save_steps: int,
) -> Run:
    """`train` in a folder that is its own."""
    from birdtpu.training.checkpoint import Checkpoints

    checkpoints = Checkpoints(run)
    if is_finished(run):
        # A process killed while it removed them leaves some, and nothing else would.
        checkpoints.clear()
        raise UserError(f"run {run}: holds a finished run; give another folder or remove it")
    teacher = open_teacher(recipe, teacher_file)
    prepared = with_nocall(recipe, open_prepared(recipe, folders))
    pseudo = None if pseudo_file is None else open_pseudo(recipe, pseudo_file, unlabelled)
    # Keras stands behind them, and its backend is chosen by now.
    from birdtpu.training.loop import Saving
    from birdtpu.training.step import resolved
    from birdtpu.training.strategy import find_accelerator

    accelerator = find_accelerator(tpu)
    knobs = resolved(recipe.train, accelerator.replicas)
    classes, plan, balance_report = make_plan(recipe, prepared, fold, pseudo)
    info = {"version": __version__, **data_info(folders), "fold": _text(fold), "batch_size": knobs.batch_size}
    start = None if init_from is None else open_one([os.fspath(init_from)], "--init-from")
    seen: set[str] = set()
    if start is not None:
        info |= _begun_from(start, recipe, plan)
        seen |= transfer.trained_on(start)
    if pseudo is not None:
        info |= pseudo.info()
        info["optimistic"] = max(check_teachers(pseudo, plan), info.get("optimistic", 0))
        seen |= pseudo.labels.seen
    if teacher is not None:
        info |= {"teacher": teacher.path, "teacher_sha256": teacher.sha256}
        teacher = of_trained(teacher, plan, [prepared.tables, *([pseudo.tables] if pseudo else [])], prepared.nocall)
    draft = Run(run, recipe, classes, info)
    saving = Saving(checkpoints, save_minutes * 60, save_steps, _identity(draft, plan))

    def begin() -> None:
        if not resume:
            checkpoints.clear()
        storage.sweep(run)
        draft.save()
        planning.save_plan(plan, draft.path("plan.csv"))
        if seen:
            storage.write_text(draft.path(transfer.SEEN), "".join(f"{name}\n" for name in sorted(seen)))
        storage.write_text(draft.path("balance.csv"), balance_report.to_csv(index=False, lineterminator="\n"))
        print(_plan_and_balance(plan, classes, balance_report), flush=True)

    return _fit(draft, start, pseudo, teacher, knobs, plan, prepared, accelerator, saving, resume, begin)


def _begun_from(start: Run, recipe: Recipe, plan: pd.DataFrame) -> dict[str, Any]:
    """What a run notes of the one that it is begun from; warns where that has seen what is held out."""
    transfer.check_fits(start, recipe)
    start.weights()
    again = transfer.held_out_before(start, plan)
    if again:
        warnings.warn(
            f"{start.folder}: was trained on {len(again)} of the held-out recordings ({again[0]}, ...): the score will "
            "be optimistic; hold the same fold out there",
            stacklevel=2,
        )
    return {"init_from": start.folder, "init_sha256": start.info["weights_sha256"], "optimistic": len(again)}


def _identity(draft: Run, plan: pd.DataFrame) -> dict[str, Any]:
    """What two processes must have in common to be parts of one training; kept in its checkpoints."""
    return {
        "recipe": draft.recipe.hash,
        "fold": draft.info["fold"],
        "data": draft.info["data_crc32c"],
        "batch_size": draft.info["batch_size"],
        "classes": _short_hash("\n".join(draft.classes.codes)),
        "plan": _short_hash(planning.plan_text(plan)),
        "init": draft.info.get("init_sha256"),
        "pseudo": draft.info.get("pseudo_sha256"),
        "teacher": draft.info.get("teacher_sha256"),
    }


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _check_same(folder: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises UserError where an interrupted training is not the one that is asked for."""
    names = {
        "recipe": "another recipe",
        "fold": "another fold",
        "data": "other data",
        "batch_size": "another batch over all replicas",
        "classes": "other classes",
        "plan": "another plan, by another version of birdtpu",
        "init": "another --init-from",
        "pseudo": "another --pseudo",
        "teacher": "another --teacher",
    }
    for key, what in names.items():
        if before.get(key) != now[key]:
            raise UserError(
                f"{folder}: holds an interrupted training of {what} ({before.get(key)}, not {now[key]}); "
                "give another run folder, or remove this one to begin again"
            )


def _plan_and_balance(plan: pd.DataFrame, classes: ClassList, balanced: pd.DataFrame) -> str:
    """The plan's table, and beside each species what the balance dropped, repeated and left short, where it did."""
    table = balanced.set_index("species")[["dropped", "repeats", "short_by"]].reindex(classes.codes, fill_value=0)
    table = table.loc[:, table.any()]
    lines = planning.plan_report(plan, classes).splitlines()
    for name in table.columns:
        column = [name.replace("_", " "), *map(str, table[name])]
        for i, cell in enumerate(column):
            lines[i] += "  " + cell.rjust(max(map(len, column)))
    return "\n".join(lines) + "\n"


def _model(draft: Run, accelerator: "Accelerator") -> Any:
    """The untrained model: the same weights for the same seed."""
    import keras

    from birdtpu.models.build import SoundEventModel

    keras.utils.set_random_seed(draft.recipe.train.seed)
    precision = accelerator.precision(draft.recipe.train)
    return SoundEventModel(draft.recipe, len(draft.classes), precision=precision, platform=accelerator.kind)


def _fit(
    draft: Run,
    start: Run | None,
    pseudo: Pseudo | None,
    teacher: Teacher | None,
    knobs: Train,
    plan: pd.DataFrame,
    prepared: Prepared,
    accelerator: "Accelerator",
    saving: "Saving",
    resume: bool,
    begin: Callable[[], None],
) -> Run:
    """Model, step, data, loop, weights; `begin` is called when nothing but the training itself can fail any more."""
    import keras

    from birdtpu.data import order, pipeline
    from birdtpu.data.shelf import named_errors
    from birdtpu.training.log import Log
    from birdtpu.training.loop import Progress, fit
    from birdtpu.training.step import digest, make_optimizer

    recipe = draft.recipe
    training = plan[plan["role"] == "train"].reset_index(drop=True)
    per_epoch = knobs.steps_per_epoch or order.samples_per_epoch(training) // knobs.batch_size
    if per_epoch == 0:
        count = order.samples_per_epoch(training)
        raise UserError(f"{count} training samples fill no batch of train.batch_size {knobs.batch_size}: lower it")
    steps, beside = per_epoch * knobs.epochs, _beside(recipe, plan, prepared)
    with accelerator.scope():
        model = _model(draft, accelerator)
        if start is not None:
            synonyms = transfer.read_synonyms(recipe.labels.synonyms) if recipe.labels.synonyms else {}
            shared = transfer.take_over(start, model.network, draft.classes, synonyms)
            print(f"begun from {start.folder}: {shared} of {len(draft.classes)} species are known to it", flush=True)
        optimizer = make_optimizer(model.network, knobs, steps)
    schedule = optimizer._learning_rate
    step = accelerator.step(model, optimizer, knobs)
    log = Log(draft.folder)
    progress = _resumed(saving, step, log) if resume else Progress()
    begin()
    if progress.done:
        print(f"going on after step {progress.done}", flush=True)
    # As int16 a clip is half the bytes, in the shards' readers as on the way to the device.
    common = {"classes": draft.classes, "seed": knobs.seed, "pcm16": True, "clips": knobs.instances}
    common["frame_hop"] = recipe.frontend.hop_length if knobs.frame_loss else 0
    folders = list(dict.fromkeys([*prepared.folders, *(pseudo.folders if pseudo else ())]))
    batches = pipeline.batches(
        folders,
        training,
        soft=soft_targets(pseudo.labels, draft.classes) if pseudo else None,
        teacher=teacher,
        clip_samples=recipe.source_samples,
        batch_size=knobs.batch_size // knobs.accumulate,
        start_step=progress.done * knobs.accumulate,
        steps=steps * knobs.accumulate,
        training=True,
        **beside,
        **common,
    )
    try:
        with _named_memory(), named_errors(folders):
            weights = fit(
                step,
                batches,
                steps=steps,
                steps_per_epoch=per_epoch,
                batch_size=knobs.batch_size,
                learning_rate=lambda index: float(schedule(index)),
                log=log,
                validate=_validation(model, draft, plan, prepared, common),
                train=knobs,
                progress=progress,
                saving=saving,
                steps_per_call=accelerator.steps_per_call,
            )
    finally:
        log.close()
    # Two trainings with the same digest ended in the same bits, averages and optimiser among them.
    info = {**draft.info, "backend": keras.backend.backend(), "state_sha256": digest(step.state())}
    model.network.set_weights(weights)
    finished = Run(draft.folder, recipe, draft.classes, info).save_weights(model.network)
    saving.checkpoints.clear()
    return finished


def _beside(recipe: Recipe, plan: pd.DataFrame, prepared: Prepared) -> dict[str, Any]:
    """What the batches of a training hold beside clips and labels, as arguments of `pipeline.batches`."""
    augment = recipe.augment
    out: dict[str, Any] = {"partner": augment.partner_probability > 0}
    if augment.background_probability:
        if not augment.background:
            raise UserError(
                f"recipe {recipe.name}: backgrounds are added (augment.background_probability), but augment.background "
                "names no prepared folder of them; give one, or set the probability to 0"
            )
        out["background"] = data_folders(augment.background)
        sounds = pd.concat([recordings_of_folder(folder) for folder in out["background"]])
        both = pd.concat([prepared.tables.recordings, sounds], ignore_index=True)
        group = folding.groups(both)
        held = both["recording"].isin(planning.recordings_of(plan[plan["role"] != "train"]))
        out["held_out"] = frozenset(both.loc[group.isin(group[held]), "recording"])
    return out


def _resumed(saving: "Saving", step: "Step", log: "Log") -> "Progress":
    """Where the training stands: at its last checkpoint, or at the start.

    Raises: UserError where the checkpoint is of another training.
    """
    from birdtpu.training.loop import Progress

    checkpoint = saving.checkpoints.newest()
    if checkpoint is None:
        return Progress()
    folder = saving.checkpoints.folder
    _check_same(folder, checkpoint.notes.get("identity", {}), saving.identity)
    try:
        return Progress.of(checkpoint, step, log)
    except ValueError as error:
        raise UserError(f"{folder}: {error}; remove the folder to begin again") from error


@contextlib.contextmanager
def _named_memory() -> Iterator[None]:
    """A device without room for the step is one line."""
    try:
        yield
    except Exception as error:
        # JAX's message, and TensorFlow's class, which is imported late.
        if "RESOURCE_EXHAUSTED" in str(error) or type(error).__name__ == "ResourceExhaustedError":
            raise UserError(_NO_MEMORY) from error
        raise


def _validation(model: Any, draft: Run, plan: pd.DataFrame, prepared: Prepared, common: dict[str, Any]) -> Any:
    """Averaged weights -> losses on the validation part; None where there is none."""
    import keras
    from keras import ops

    from birdtpu.data import pipeline
    from birdtpu.inference.runtimes.keras import compiled
    from birdtpu.losses import apart
    from birdtpu.models.build import pcm_to_float
    from birdtpu.ops.pooling import over_frames
    from birdtpu.training.loop import Validation
    from birdtpu.training.step import loss_of

    held = plan[plan["role"] == "validation"].reset_index(drop=True)
    if held.empty:
        return None
    recipe, network = draft.recipe, model.network

    def losses(weights: list[Any], batch: dict[str, Any]) -> Any:
        # The step owns the network's variables: the averaged weights stand in for them here.
        with keras.StatelessScope(state_mapping=list(zip(network.variables, weights, strict=True))):
            if model.instances > 1:
                batch = model.choose(batch, network(model.log_mels(batch), training=False)["clipwise_logits"])
            outputs = model(pcm_to_float(batch))
        real = ops.cast(batch["weight"] > 0, "float32")
        if recipe.train.frame_loss:
            logits = over_frames(outputs["segmentwise_logits"], model.frames)
            sides = logits, batch["frame_targets"], batch["frame_mask"] * real[:, None, None]
        else:
            sides = outputs["clipwise_logits"], batch["targets"], batch["target_mask"] * real[:, None]
        return loss_of(outputs, batch, recipe.train), *apart(*sides)

    batches = pipeline.batches(
        prepared.folders,
        held,
        clip_samples=recipe.clip_samples,
        batch_size=recipe.train.batch_size,
        training=False,
        cache=True,
        **common,
    )
    compiled_losses = compiled(losses)

    def validate(weights: list[np.ndarray]) -> Validation:
        total = weight = 0.0
        sums, counts = np.zeros(2), np.zeros(2)
        for batch in batches.as_numpy_iterator():
            loss, *sides = compiled_losses(weights, batch)
            total += float(loss) * recipe.train.batch_size
            weight += float(batch["weight"].sum())
            sums, counts = sums + np.asarray(sides[0]), counts + np.asarray(sides[1])
        with np.errstate(invalid="ignore"):
            present, absent = sums / counts
        both = np.array([present, absent])[counts > 0]
        watched = total / weight if recipe.train.watch == "loss" else float(both.mean())
        return Validation(total / weight, present, absent, watched)

    return validate


def _text(fold: str | int | None) -> str | None:
    return None if fold is None else str(fold)
