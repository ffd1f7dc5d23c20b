"""Choose a run's thresholds for a target false positive rate, and save them with it."""

import os
import warnings
from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from birdtpu import storage
from birdtpu.errors import UserError
from birdtpu.evaluation.evaluate import recording_score
from birdtpu.evaluation.threshold_report import write_report
from birdtpu.evaluation.thresholds import Thresholds, choose_thresholds
from birdtpu.evaluation.truth import recording_truth
from birdtpu.inference.outputs.csv import write_failures
from birdtpu.publish.places import PREFIX
from birdtpu.run import Run
from birdtpu.storage import PathLike
from birdtpu.workflows.evaluate import labelled, of_known_species
from birdtpu.workflows.predict import load
from birdtpu.workflows.transfer import trained_on


def thresholds(
    run: PathLike | Run,
    *,
    target_fpr: float = 0.01,
    audio: PathLike | None = None,
    table: PathLike | None = None,
    data: PathLike | Sequence[PathLike] | None = None,
    head: str | None = None,
    per_class: bool = False,
    output: PathLike | None = None,
) -> tuple[Thresholds, list[tuple[str, str]]]:
    """Choose a head's thresholds for a target false positive rate; `predict` and `evaluate` use them from then on.

    A recording scores what its best clip scores, class by class. So a class's false positive rate is the share of the
    recordings known to be without it in which `predict` would report it at least once. Secondary labels are unknown.

    Args:
        run: A finished run; its thresholds of this head are replaced.
        target_fpr: From 0 to below 1.
        audio: A labelled folder, of which what the run was trained on (or chose its epoch by) is left out, as far as
            xeno-canto numbers tell; None: the fold that the run held out, from its prepared recordings.
        table: The folder's table, where it has none of its own.
        data: Prepared folders instead of those that the run remembers, for the fold that it held out.
        head: Instead of the recipe's.
        per_class: Save each class's own threshold; a class without one gets the global one. False: the global one.
        output: Folder for summary.json, thresholds.json, per_class.csv, failures.csv, roc.png and histogram.png.

    Returns: what was chosen, and (file, reason) of broken files.
    Raises: UserError where there is nothing to choose from, arguments contradict each other, or the run is Kaggle's.
    """
    if not 0 <= target_fpr < 1:
        raise UserError(f"--target-fpr {target_fpr:g}: a share from 0 to below 1, such as 0.01")
    if not isinstance(run, Run) and os.fspath(run).startswith(PREFIX):
        raise UserError(f"{run}: what is published stays as it is; birdtpu fetch it to a folder, and give that")
    predictor = load(run, head)
    if len(predictor.runs) > 1:
        raise UserError(f"{run}: {len(predictor.runs)} runs; thresholds are a run's own, an ensemble takes their mean")
    usable = partial(_usable, predictor.run, audio)
    truth, scored, failures = labelled(predictor, audio, table, data, only=usable)
    known = truth.recordings[truth.recordings["recording"].isin(list(scored))]
    count = len(predictor.classes)
    scores = [recording_score(scored[name].scores, count, 1, name) for name in known["recording"]]
    labels, mask = recording_truth(known, predictor.classes)
    found = choose_thresholds(labels, np.stack(scores), predictor.classes, mask=mask, target_fpr=target_fpr)
    predictor.run.save_thresholds(predictor.head, found.values(per_class))
    if output:
        write_report(found, output, head=predictor.head, per_class=per_class)
        write_failures(storage.join(output, "failures.csv"), failures)
    return found, failures


def _usable(run: Run, audio: PathLike | None, recordings: pd.DataFrame) -> pd.DataFrame:
    """The recordings of the model's species that the run has not seen; warns of the others.

    Raises: UserError where there is none.
    """
    if not (recordings["primary_label"] != "").any():
        raise UserError(
            "thresholds: no recording has a primary label, and rates are shares of recordings; give --audio a folder "
            "whose recordings have one"
        )
    seen, place = recordings["recording"].isin(trained_on(run)), audio or "the held-out fold"
    if seen.all():
        raise UserError(f"{place}: the run was trained on every recording of it; give --audio a folder of others")
    if seen.any():
        named = f"{seen.sum()} of {len(seen)} recordings are left out: the run was trained on them"
        warnings.warn(f"{place}: {named}, or chose its epoch by them", stacklevel=4)
    return of_known_species(recordings[~seen], run.classes)
