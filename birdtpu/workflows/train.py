"""Train a recipe on prepared recordings."""

import contextlib
import hashlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from birdtpu import __version__, storage
from birdtpu.data import balance as balancing
from birdtpu.data import folds as folding
from birdtpu.data import plan as planning
from birdtpu.data import shards, tables
from birdtpu.data.pseudo import soft_targets
from birdtpu.data.teacher import Teacher
from birdtpu.errors import UserError
from birdtpu.keys import Train
from birdtpu.publish.places import data_folders
from birdtpu.recipe import Recipe, recipe_of
from birdtpu.run import Run, is_finished
from birdtpu.species import NOCALL, ClassList
from birdtpu.storage import PathLike
from birdtpu.training.machine import prepare_for_tpu
from birdtpu.workflows import transfer
from birdtpu.workflows.members import open_one
from birdtpu.workflows.pseudo import Pseudo, any_species, check_teachers, open_pseudo, with_pseudo
from birdtpu.workflows.teacher import of_trained, open_teacher

_NO_MEMORY = "the device has no memory for a step: raise train.accumulate, or lower train.batch_size"

if TYPE_CHECKING:
    from birdtpu.training.log import Log
    from birdtpu.training.loop import Progress, Saving
    from birdtpu.training.step import Step
    from birdtpu.training.strategy import Accelerator


@dataclass(frozen=True)
class Prepared:
    """Prepared folders as one: what the recipe leaves of their tables, and all their records (`load_all_records`).

    Recordings have a column `audio_hash` too. `with_nocall` adds folders, records and a table of recordings without any
    species.
    """

    folders: list[str]
    tables: tables.Tables
    records: pd.DataFrame
    nocall: pd.DataFrame | None = None


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
    pseudo = None if pseudo_file is None else open_pseudo(recipe, pseudo_file, unlabelled, open_prepared)
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


def data_info(folders: Sequence[str]) -> dict[str, list[str]]:
    """What a run notes of its data: where it lies, and the checksum of each manifest, which vouches for the rest."""
    manifests = [storage.read_bytes(storage.join(folder, shards.MANIFEST)) for folder in folders]
    return {"data": [_absolute(folder) for folder in folders], "data_crc32c": [*map(shards.checksum, manifests)]}


def open_prepared(recipe: Recipe, folders: Sequence[str], classes: ClassList | None = None) -> Prepared:
    """The tables and records of prepared folders, with the recipe's filters applied.

    Args:
        recipe: The recipe.
        folders: What `prepare` wrote.
        classes: What a run kept of `labels.classes`, whose path may mean another file by now. None: the path is read.

    Raises: UserError where a folder is none, or its sample rate or record length does not fit the recipe, or a primary
        label is not among the recipe's classes.
    """
    if not folders:
        raise UserError("no data: give --data the folder that birdtpu prepare wrote")
    parts = []
    for folder in folders:
        manifest = shards.load_manifest(folder)
        rate, longest = manifest["sample_rate"], manifest["record_seconds"]
        if rate != recipe.audio.sample_rate:
            raise UserError(
                f"{folder}: prepared at {rate} Hz, but the recipe {recipe.name} is for {recipe.audio.sample_rate} Hz: "
                "prepare it again with this recipe, or set audio.sample_rate"
            )
        if longest < recipe.audio.clip_seconds + recipe.audio.margin_seconds:
            raise UserError(
                f"{folder}: its records hold {longest:g} s, less than a clip and its margin of {recipe.name}: "
                "prepare it again with this recipe"
            )
        parts.append(replace(tables.load_tables(folder), recordings=_recordings(folder)))
    merged = tables.merge_tables(parts) if len(parts) > 1 else parts[0]
    if classes is None and recipe.labels.classes:
        classes = ClassList.from_csv(recipe.labels.classes)
    kept, report = tables.filter_recordings(
        merged,
        classes=classes,
        filter_to_classes=recipe.labels.filter_to_classes,
        secondary_below_seconds=recipe.labels.secondary_below_seconds,
        min_rating=recipe.labels.min_rating,
    )
    if report["below_min_rating"]:
        warnings.warn(f"{report['below_min_rating']} recordings below labels.min_rating are left out", stacklevel=2)
    dropped = sum(report["secondary_outside_classes"].values())
    if dropped:
        warnings.warn(f"{dropped} secondary labels of species outside the classes are dropped", stacklevel=2)
    return Prepared(list(folders), kept, shards.load_all_records(folders))


def _recordings(folder: str) -> pd.DataFrame:
    """The table of recordings of a prepared folder, with the hash of their audio."""
    table, hashes = tables.load_tables(folder).recordings, shards.load_audio_hashes(folder)
    return table.assign(audio_hash=[hashes.get(name, "") for name in table["recording"]])


def with_nocall(recipe: Recipe, prepared: Prepared) -> Prepared:
    """The same with the recordings of `labels.nocall`, to be trained on in any fold.

    Raises: UserError where all of them are in the data too.
    """
    if not recipe.labels.nocall:
        return prepared
    folders = data_folders(recipe.labels.nocall)
    found = open_prepared(any_species(recipe), folders).tables.recordings
    # What is labelled is no silence, whether or not the recipe uses its label, and whatever its name.
    known = pd.concat([_recordings(folder) for folder in prepared.folders])
    hashes = set(known["audio_hash"]) - {""}
    silent = found[~found["recording"].isin(known["recording"]) & ~found["audio_hash"].isin(hashes)]
    if silent.empty:
        raise UserError(f"labels.nocall: every recording of {folders[0]} is in the --data too; name another folder")
    nocall = silent.assign(primary_label=NOCALL, secondary_labels="", fold="train")
    every = [*prepared.folders, *folders]
    return replace(prepared, folders=every, records=shards.load_all_records(every), nocall=nocall)


def make_plan(
    recipe: Recipe, prepared: Prepared, fold: str | int | None, pseudo: Pseudo | None = None
) -> tuple[ClassList, pd.DataFrame, pd.DataFrame]:
    """Classes, plan and the balance's report, for one fold."""
    recordings = prepared.tables.recordings
    # A training on everything needs no folds, and a handful of recordings has none; rare species are pinned by them.
    if fold is not None or recipe.folds.split or recipe.folds.rare_at_most:
        recordings = with_folds(recipe, recordings)
    timed = prepared.tables.annotations.iloc[: None if recipe.labels.timed == "sections" else 0]
    if recipe.labels.classes:
        classes = ClassList.from_csv(recipe.labels.classes)
    else:
        classes = tables.class_list(replace(prepared.tables, annotations=timed))
    cut = {"validation_fraction": recipe.folds.validation_fraction, "seed": recipe.folds.seed}
    roles = folding.roles(recordings, fold=fold, **cut)
    silent = 0 if prepared.nocall is None else len(prepared.nocall)
    if silent:
        recordings = pd.concat([recordings, prepared.nocall], ignore_index=True)
        roles = pd.Series([*roles, *["train"] * silent])
    known, known_roles = recordings, roles
    recordings, roles = _apart(recordings, roles, silent)
    sections, report = balancing.balance(
        recordings[roles == "train"],
        down_to=recipe.balance.down_to,
        up_to=recipe.balance.up_to,
        min_section_seconds=recipe.balance.min_section_seconds or recipe.audio.clip_seconds,
        **{
            key: getattr(recipe.balance, key)
            for key in ("repeat", "keep", "first_seconds", "last_seconds", "sample_power")
        },
    )
    weights = tables.rating_weights(recordings) if recipe.labels.weight_by_rating else None
    plan = planning.make_plan(
        recordings,
        timed,
        prepared.records,
        sections=sections,
        roles=roles,
        classes=classes,
        clip_seconds=recipe.audio.clip_seconds,
        secondary=recipe.labels.secondary,
        whole_clips=recipe.train.whole_clips,
        weights=weights,
    )
    if not recipe.train.whole_clips:
        taught = plan[(plan["role"] == "train") & (plan["source"] == "labelled") & (plan["targets"] != "")]
        if len(taught):
            warnings.warn(
                f"{planning.recordings_of(taught).nunique()} recordings have no times and teach nothing: the recipe "
                "learns labels of frames alone (train.frame_loss); give train.segment_loss a weight, or leave them out",
                stacklevel=2,
            )
    if pseudo is not None:
        plan = with_pseudo(plan, pseudo, recipe, prepared.tables, known, known_roles)
    return classes, plan, report


def _apart(recordings: pd.DataFrame, roles: pd.Series, silent: int) -> tuple[pd.DataFrame, pd.Series]:
    """The recordings without what would be heard in training too although it is held out; warns of it.

    That is a copy under another name, where folds were given, and of the last `silent` recordings, which have no fold,
    also one of a recordist and place that are held out.
    """
    held = (roles != "train").to_numpy()
    copied = recordings["audio_hash"].isin(set(recordings.loc[held, "audio_hash"]) - {""})
    group = folding.groups(recordings)
    near = group.isin(group[held]) & (np.arange(len(recordings)) >= len(recordings) - silent)
    heard = ~held & (copied | near).to_numpy()
    if heard.any():
        warnings.warn(
            f"{heard.sum()} recordings ({recordings.loc[heard, 'path'].iloc[0]}, ...) are left out of the training: "
            "they are copies of held-out ones, or without birds and of a recordist and place that are held out",
            stacklevel=3,
        )
    return recordings[~heard].reset_index(drop=True), roles[~heard].reset_index(drop=True)


def with_folds(recipe: Recipe, recordings: pd.DataFrame) -> pd.DataFrame:
    """The recordings with the folds that were given, else with the recipe's split or folds."""
    if (recordings["fold"] != "").any():
        return recordings
    chosen = recipe.folds
    if chosen.split:
        return recordings.assign(fold=folding.split(recordings, parts=dict(chosen.split), seed=chosen.seed))
    folds = folding.assign_folds(recordings, folds=chosen.count, seed=chosen.seed, rare_at_most=chosen.rare_at_most)
    return recordings.assign(fold=folds)


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
        sounds = pd.concat([_recordings(folder) for folder in out["background"]])
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


def _absolute(path: str) -> str:
    return path if storage.is_remote(path) else str(Path(path).resolve())


def _text(fold: str | int | None) -> str | None:
    return None if fold is None else str(fold)
