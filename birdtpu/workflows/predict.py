"""A trained run, or an ensemble of several, on audio files."""

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from birdtpu.data import audio as reading
from birdtpu.data.sources import lookup
from birdtpu.errors import UserError
from birdtpu.inference import engine, ensemble, timeline
from birdtpu.ops.framing import frame_count
from birdtpu.run import Run
from birdtpu.storage import PathLike, paths_of
from birdtpu.workflows.members import Runs, open_members

# A picture holds its recording in memory, and a longer one shows no song.
MOST_PLOTTED_SECONDS = 1800
# Frames overlap: those of a whole recording at once would take many times its own memory.
MEL_BLOCK_SECONDS = 60


class Predictor:
    """One run with its weights, or several as an ensemble, ready to score.

    Args:
        runs: Finished runs that fit together (see `inference.ensemble.check_members`).
        head: `clipwise`, `segmentwise` or `attention`; None: the recipes'.
        combine: What is averaged over the members: `probabilities` or `logits` (see `ops.pooling.mean_over_models`).
        weights: One a member; None: they count alike.

    Attributes: `runs`; `run`, the first one, and of it `recipe`, `classes` and `model`; `head`; `thresholds
    (classes,)`: the run's saved ones, else the head's, and of several runs the weighted mean.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        head: str | None = None,
        combine: str = "probabilities",
        weights: Sequence[float] | None = None,
    ) -> None:
        from birdtpu.inference.runtimes.keras import keras_predict_all
        from birdtpu.ops.pooling import mean_over_models

        ensemble.check_members(runs)
        if combine not in ensemble.COMBINE:
            raise UserError(f"combine {combine!r}: one of {', '.join(ensemble.COMBINE)}")
        self.runs, self.run = list(runs), runs[0]
        self.recipe, self.classes = self.run.recipe, self.run.classes
        self.head = ensemble.common_head(runs, head)
        shares, columns = ensemble.shares_of(runs, weights), ensemble.columns_of(runs)
        self.thresholds = ensemble.mean_thresholds(runs, self.head, shares)
        models = [model_of(run) for run in runs]
        self.model = models[0]
        # A single run's scores stay what they are, to the bit.
        mean = partial(mean_over_models, columns=columns, shares=shares, combine=combine)
        self._predict = keras_predict_all(models, self.head, mean if len(models) > 1 else lambda scores: scores[0])
        self._predict_frames: engine.Predict | None = None

    def __repr__(self) -> str:
        several = f" x {len(self.runs)}" if len(self.runs) > 1 else ""
        folders = ", ".join(run.folder for run in self.runs)
        return f"<birdtpu {self.recipe.name}{several}: {len(self.classes)} species, {folders}>"

    def score(self, sources: Iterable[engine.Source]) -> Iterator[engine.Scores]:
        """Scores of any sources of audio at the recipe's sample rate (see `inference.engine`)."""
        return self._score(sources, self._predict, len(self.classes))

    def _score(
        self, sources: Iterable[engine.Source], predict: engine.Predict, columns: int
    ) -> Iterator[engine.Scores]:
        recipe = self.recipe
        return engine.score(
            sources,
            predict,
            classes=columns,
            sample_rate=recipe.audio.sample_rate,
            clip_samples=recipe.clip_samples,
            hop_samples=self._hop_samples,
            batch_size=recipe.predict.batch_size,
            errors=(reading.AudioError,),
        )

    @property
    def _hop_samples(self) -> int:
        return round(self.recipe.predict.hop_seconds * self.recipe.audio.sample_rate)

    def score_files(self, files: Iterable[str], channel: str | None = None) -> Iterator[engine.Scores]:
        """Scores of audio files, streamed; a broken file comes with its `error`."""
        return self.score(self._sources(files, channel))

    def _sources(self, files: Iterable[PathLike], channel: str | None) -> Iterator[engine.Source]:
        channel = channel or self.recipe.audio.channel
        blocks = partial(reading.stream, sample_rate=self.recipe.audio.sample_rate, channel=channel)
        return (engine.Source(str(file), partial(blocks, file)) for file in files)

    def score_frames(self, file: PathLike, channel: str | None = None) -> np.ndarray:
        """When each species sings in a file, as finely as the model tells it.

        Args:
            file: The audio file; the scores of all of its clips are held in memory.
            channel: `mix`, `left` or `right`; None: the recipe's.

        Returns: `(frames, classes)` float32; frame i stands at `i * frontend.hop_length` samples of the recipe's rate
        (see `inference.engine.frames_of_clips`, and `evaluation.events.events_of_frames` for what to make of it).

        Raises: AudioError where the file cannot be read; UserError of an ensemble, whose members' frames may differ.
        """
        from birdtpu.inference.runtimes.keras import keras_predict_frames

        if len(self.runs) > 1:
            raise UserError("score_frames: takes one run, not an ensemble")
        if self._predict_frames is None:
            self._predict_frames = keras_predict_frames(self.model)
        frames, classes = self.model.frames, len(self.classes)
        scores = next(self._score(self._sources([file], channel), self._predict_frames, frames * classes))
        if scores.error is not None:
            raise scores.error
        return engine.frames_of_clips(
            scores.scores.reshape(-1, frames, classes),
            hop_samples=self._hop_samples,
            hop_length=self.recipe.frontend.hop_length,
            samples=round(scores.duration_seconds * self.recipe.audio.sample_rate),
        )

    def predict(self, audio: PathLike | Sequence[PathLike], *, threshold: float | None = None) -> pd.DataFrame:
        """What sings, and when.

        Args:
            audio: A file, a folder, or several of them.
            threshold: One for all species, 0 for every score; None: the run's.

        Returns: a row a clip and species at or above its threshold: `file, start_seconds, end_seconds, species,
        common_name, scientific_name, score`.

        Raises: UserError where a path is wrong; AudioError where a single file cannot be read. Of several, a broken
        one is left out with a warning.
        """
        files = [file for _, file in audio_files(audio)]
        parts = []
        for scores in self.score_files(files):
            if scores.error is not None:
                if len(files) == 1:
                    raise scores.error
                warnings.warn(f"left out: {scores.error}", stacklevel=2)
                continue
            part = self.segments(scores, threshold)
            part.insert(0, "file", scores.key)
            parts.append(part)
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["file", *timeline.COLUMNS])

    def segments(self, scores: engine.Scores, threshold: float | None = None) -> pd.DataFrame:
        """The rows of one source (see `inference.timeline.segments`)."""
        return timeline.segments(
            scores.starts_seconds,
            self.recipe.audio.clip_seconds,
            scores.scores,
            self.classes,
            threshold=self.thresholds if threshold is None else threshold,
            duration_seconds=scores.duration_seconds,
        )

    def log_mel_db(self, file: PathLike, channel: str | None = None) -> np.ndarray:
        """A file's log-mel for a picture: `(frames, mels)` in dB, of the first window where the recipe has several.

        The whole file is read into memory.
        """
        import keras

        rate, frontend = self.recipe.audio.sample_rate, self.recipe.frontend
        samples = reading.read(file, sample_rate=rate, channel=channel or self.recipe.audio.channel)
        hop = frontend.hop_length
        frames = frame_count(len(samples), hop)
        step = min(max(1, MEL_BLOCK_SECONDS * rate // hop), frames)
        # Frames at either end of a block that reach beyond it; at the recording's own ends is silence.
        edge = -(-frontend.n_fft // (2 * hop))
        samples = np.pad(samples, (edge * hop, (edge + step) * hop))
        power = []
        for first in range(0, frames, step):
            block = samples[first * hop : (first + step + 2 * edge) * hop]
            mel = keras.ops.convert_to_numpy(self.model.mel(block[None]))[0, edge : edge + step]
            power.append(mel if mel.ndim == 2 else mel[..., 0])
        return 10 * np.log10(np.maximum(np.concatenate(power)[:frames], 1e-10))


def load(
    run: Runs,
    head: str | None = None,
    *,
    combine: str = "probabilities",
    weights: Sequence[float] | None = None,
) -> Predictor:
    """A finished run, or several as an ensemble, ready to predict.

    Args:
        run: A run, its folder, or where it is published: `kaggle:owner/slug`; or a list of them. The folder of a
            cross-validation stands for the runs of its folds.
        head: `clipwise`, `segmentwise` or `attention`; None: the recipes'.
        combine: Whether an ensemble's score is the mean of its members' `probabilities`, or of their `logits`.
        weights: One a member, above 0; None: they count alike.

    Raises: UserError where a folder is no finished run, its weights are damaged, or the runs do not fit together.
    """
    return Predictor(open_members(run), head, combine, weights)


def model_of(run: Run) -> Any:
    """A run's `SoundEventModel` with its weights."""
    from birdtpu.models.build import SoundEventModel

    model = SoundEventModel(run.recipe, len(run.classes), weights="none")
    run.load_weights(model.network)
    return model


def audio_files(audio: PathLike | Sequence[PathLike]) -> list[tuple[str, str]]:
    """(name relative to what was asked for, path) of files, and of the audio files in folders, sorted.

    Folders are walked as `prepare` walks them; a name that is no UTF-8 is kept as the system gives it.

    Raises: UserError where a path is not there, a folder holds no audio, or two files have one name.
    """
    found: dict[str, str] = {}
    for item in paths_of(audio):
        path = Path(item)
        if not path.exists():
            raise UserError(f"{item}: no such file or folder")
        files = {path.name: path}
        if path.is_dir():
            files = {name: path / name for name in sorted(lookup.walk(item)) if lookup.is_audio(name)}
        if not files:
            raise UserError(f"{item}: no audio file in this folder")
        for name, file in files.items():
            if found.setdefault(name, str(file)) != str(file):
                raise UserError(f"{file} and {found[name]}: both are named {name}; predict them into two folders")
    return list(found.items())


def predict(
    run: Runs,
    audio: PathLike | Sequence[PathLike],
    output: PathLike,
    *,
    head: str | None = None,
    combine: str = "probabilities",
    weights: Sequence[float] | None = None,
    threshold: float | None = None,
    channel: str | None = None,
    submission: PathLike | None = None,
    plots: bool = False,
) -> tuple[int, list[tuple[str, str]]]:
    """Score files and write what they hold: a CSV of segments a file, and `failures.csv`.

    Args:
        run, head, combine, weights: As for `load`.
        audio: Files and folders.
        output: Folder for the results.
        threshold: One for all species, instead of the run's.
        channel: `mix`, `left` or `right`.
        submission: A competition's sample file; then `submission.csv` is written too.
        plots: Also a picture a file of up to `MOST_PLOTTED_SECONDS`.

    Returns: how many files were scored, and (file, reason) of those that were not.
    Raises: UserError where a path or the sample is wrong, before anything is scored; broken audio is no error.
    """
    from tqdm.auto import tqdm

    from birdtpu import storage
    from birdtpu.inference.outputs import csv as sheets
    from birdtpu.inference.outputs import submission as filling

    members, output = open_members(run), os.fspath(output)
    names = {path: name for name, path in audio_files(audio)}
    if submission:
        _one_file_a_stem(names)
        filling.check_sample(submission, members[0].classes)
    predictor = Predictor(members, head, combine, weights)
    storage.makedirs(output)
    failures: list[tuple[str, str]] = []
    stems: dict[str, Any] = {}
    limit = predictor.thresholds if threshold is None else threshold
    for scores in tqdm(predictor.score_files(names, channel), total=len(names), unit=" files", disable=None):
        name = names[scores.key]
        if scores.error is not None:
            failures.append((name, reason_of(scores.error)))
            continue
        table = predictor.segments(scores, threshold)
        sheets.write_table(storage.join(output, sheets.output_name(name)), table)
        if plots:
            _plot(predictor, scores, storage.join(output, sheets.output_name(name, ".png")), name, limit, channel)
        if submission:
            stems[Path(name).stem] = (scores.starts_seconds, scores.scores)
    sheets.write_failures(storage.join(output, "failures.csv"), failures)
    if submission:
        clip_seconds = predictor.recipe.audio.clip_seconds
        filled = filling.fill_submission(
            submission, stems, classes=predictor.classes, clip_seconds=clip_seconds, threshold=limit
        )
        filling.write_submission(storage.join(output, "submission.csv"), filled)
    return len(names) - len(failures), failures


def reason_of(error: BaseException) -> str:
    """Why a file could not be scored, in one line without its path."""
    parts = [getattr(error, "reason", ""), getattr(error, "detail", "")]
    return ": ".join(part for part in parts if part) or str(error)


def _one_file_a_stem(names: Mapping[str, str]) -> None:
    """A row id names a file by its stem: raises UserError where two files have one."""
    seen: dict[str, str] = {}
    for path, name in names.items():
        other = seen.setdefault(Path(name).stem, path)
        if other != path:
            raise UserError(f"--submission: its rows could mean {other} or {path}; predict one of the folders")


def _plot(
    predictor: Predictor, scores: engine.Scores, path: str, title: str, threshold: Any, channel: str | None
) -> None:
    if scores.duration_seconds > MOST_PLOTTED_SECONDS:
        warnings.warn(f"{scores.key}: no picture, it is longer than {MOST_PLOTTED_SECONDS // 60} min", stacklevel=2)
        return
    timeline.plot(
        path,
        predictor.log_mel_db(scores.key, channel),
        scores.starts_seconds,
        predictor.recipe.audio.clip_seconds,
        scores.scores,
        predictor.classes,
        duration_seconds=scores.duration_seconds,
        mel_hz=predictor.model.mel.centres_hz,
        threshold=threshold,
        title=title,
    )
