"""When a bird sings: the sliding-window recipe beside an energy threshold, by event-based F1 with a collar of 200 ms.

python benchmarks/strong.py AUDIO --annotations CSV --work DIR --json FILE [--seeds 0 1 2] [--set table.key=value]

The CSV has `filename, onset_s, offset_s, label, low_hz, high_hz, species`; every event of a file is in it. Recordings
of one folder are held out in turn; of a folder's only recording the first half trains and the second half tests. What
is tuned is tuned on the training part. What is finished in DIR is not done again.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pandas as pd
import soundfile
from scipy.signal import stft

import birdtpu
from birdtpu.data import audio as reading
from birdtpu.data.sources.layouts import slug
from birdtpu.evaluation.events import COLUMNS, EventCounts, events_of_frames, match_events
from birdtpu.recipe import Recipe, load_recipe
from birdtpu.run import is_finished
from birdtpu.species import ClassList
from birdtpu.workflows.predict import Predictor

RECIPE = "rfcx2021_sliding-quick"
# A training part has 2 to 17 s of sound. An epoch of the plan is one batch, so the steps are given; a batch of 32 clips
# would hold each second several times. A time mask of a second would hide whole calls of 0.15 s and leave their labels.
SETTINGS = [
    "audio.clip_seconds=10", "augment.time_masks=0", "train.batch_size=8", "train.epochs=4", "train.steps_per_epoch=25",
    "predict.hop_seconds=5", "predict.batch_size=4",
]  # fmt: skip
GAPS_SECONDS = (0.0, 0.1, 0.2, 0.4)
LOGITS = np.linspace(-6, 6, 49)
DECIBELS = np.linspace(-5, 30, 71)
SMOOTHING_SECONDS = (0.05, 0.1, 0.2)
ENERGY_RATE, ENERGY_WINDOW, ENERGY_HOP = 22050, 1024, 256


@dataclass(frozen=True)
class Stretch:
    """A piece of a file: seconds from `start` to `end`, its events (from the piece's start), where it was cut to."""

    name: str
    events: pd.DataFrame
    path: str

    @property
    def known(self) -> pd.DataFrame:
        return self.events[~self.events["unknown"]]


@dataclass(frozen=True)
class Part:
    """What is trained on, and what is tested."""

    name: str
    train: list[Stretch]
    test: list[Stretch]


@dataclass(frozen=True)
class Choice:
    """What the training part says is best of a class: post-processing, and the F1 that it has there."""

    threshold: float
    gap_seconds: float
    smoothing_seconds: float
    f1: float


def read_events(path: str) -> pd.DataFrame:
    """`file, start_seconds, end_seconds, species, low_hz, high_hz, unknown`; unknown: nobody knows what it is."""
    table = pd.read_csv(path)
    events = table.rename(columns={"filename": "file", "onset_s": "start_seconds", "offset_s": "end_seconds"})
    return events.assign(species=table["label"].map(slug), unknown=table["species"].str.startswith("unknown"))


def parts_of(audio: str, events: pd.DataFrame, folder: Path) -> dict[str, list[Part]]:
    """The parts of each set (a folder of the audio); their pieces are cut into `folder`."""
    by_set = defaultdict(list)
    for file in sorted(events["file"].unique()):
        by_set[PurePosixPath(file).parent.name].append(file)
    parts = {}
    for name, files in by_set.items():
        if len(files) > 1:
            whole = [cut(audio, events, file, 0, 1, folder) for file in files]
            parts[name] = [Part(f"{name}-{held.name}", [w for w in whole if w is not held], [held]) for held in whole]
        else:
            halves = [cut(audio, events, files[0], begin, begin + 0.5, folder) for begin in (0, 0.5)]
            name = PurePosixPath(files[0]).stem
            parts[name] = [Part(name, halves[:1], halves[1:])]
    return parts


def cut(audio: str, events: pd.DataFrame, file: str, begin: float, end: float, folder: Path) -> Stretch:
    """The stretch between two shares of a file's length; an event on a cut is an error."""
    path = find(audio, file)
    samples, rate = soundfile.read(path, dtype="int16")
    first, last = round(begin * len(samples)), round(end * len(samples))
    name = PurePosixPath(file).stem + (f"-{first / rate:.1f}s" if end - begin < 1 else "")
    target = folder / f"{name}.wav"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(target, samples[first:last], rate)
    of_file = events[events["file"] == file]
    times = of_file[COLUMNS[:2]] - first / rate
    inside = (times["end_seconds"] > 0) & (times["start_seconds"] < (last - first) / rate)
    kept = of_file.assign(**times)[inside]
    assert (kept["start_seconds"] >= 0).all() and (kept["end_seconds"] <= (last - first) / rate).all(), file
    return Stretch(name, kept.reset_index(drop=True), str(target))


def find(audio: str, file: str) -> Path:
    """A file of the annotations, whose names begin at the audio folder's parent."""
    return next(path for path in (Path(audio, file), Path(audio).parent / file) if path.exists())


def label_rows(stretch: Stretch, classes: Sequence[str]) -> list[dict]:
    """The table's rows of a stretch: between two edges of events, all that is there, and that nothing else is."""
    duration = soundfile.info(stretch.path).duration
    edges = np.unique([0.0, duration, *stretch.events["start_seconds"], *stretch.events["end_seconds"]])
    rows = []
    for start, end in pairwise(edges):
        over = stretch.events[(stretch.events["start_seconds"] <= start) & (stretch.events["end_seconds"] >= end)]
        said = {"nocall": "positive"}
        if over["unknown"].any():
            said |= dict.fromkeys(classes, "unknown")
        said |= dict.fromkeys(over.loc[~over["unknown"], "species"], "positive")
        span = {"filename": Path(stretch.path).name, "start_seconds": start, "end_seconds": end}
        rows += [{**span, "label": label, "state": state} for label, state in said.items()]
    return rows


def classes_of(part: Part) -> ClassList:
    return ClassList.from_rows(
        [{"code": code} for code in sorted(pd.concat([s.known for s in part.train]).species.unique())]
    )


def recipe_for(part: Part, seed: int, settings: Sequence[str]) -> Recipe:
    """As the write-up does: the classifier that slides is as wide as the mean annotation."""
    known = pd.concat([stretch.known for stretch in part.train])
    width = (known["end_seconds"] - known["start_seconds"]).mean()
    return load_recipe(RECIPE, [*SETTINGS, f"model.window_seconds={width:.3f}", f"train.seed={seed}", *settings])


def train(part: Part, recipe: Recipe, folder: Path) -> Predictor:
    """A run on the part's training stretches."""
    run, audio = folder / recipe.hash, folder / "audio"
    audio.mkdir(parents=True, exist_ok=True)
    for stretch in part.train:
        shutil.copy(stretch.path, audio)
    rows = [row for stretch in part.train for row in label_rows(stretch, classes_of(part).codes)]
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)
    birdtpu.prepare(recipe, audio, folder / "prepared", table=folder / "labels.csv", workers=1)
    if not is_finished(str(run)):
        birdtpu.train(recipe, folder / "prepared", run)
    return birdtpu.load(run)


def of_model(predictor: Predictor) -> Callable[[Stretch, float], np.ndarray]:
    """Frame scores `(frames, classes)` as logits; nothing is smoothed."""
    kept: dict[str, np.ndarray] = {}

    def scores(stretch: Stretch, smoothing_seconds: float) -> np.ndarray:
        if stretch.path not in kept:
            found = np.clip(predictor.score_frames(stretch.path).astype(np.float64), 1e-7, 1 - 1e-7)
            kept[stretch.path] = np.log(found / (1 - found))
        return kept[stretch.path]

    return scores


def of_energy(part: Part) -> Callable[[Stretch, float], np.ndarray]:
    """Frame scores `(frames, classes)`: dB above the stretch's median in the band of the class's training boxes."""
    known = pd.concat([stretch.known for stretch in part.train])
    bands = known.groupby("species")[["low_hz", "high_hz"]].median()

    def scores(stretch: Stretch, smoothing_seconds: float) -> np.ndarray:
        samples = reading.read(stretch.path, sample_rate=ENERGY_RATE)
        hz, _, spectrum = stft(samples, ENERGY_RATE, nperseg=ENERGY_WINDOW, noverlap=ENERGY_WINDOW - ENERGY_HOP)
        power, columns = np.abs(spectrum) ** 2, []
        width = max(1, round(smoothing_seconds * ENERGY_RATE / ENERGY_HOP))
        for band in bands.loc[list(classes_of(part).codes)].itertuples():
            level = 10 * np.log10(power[(hz >= band.low_hz) & (hz <= band.high_hz)].sum(axis=0) + 1e-12)
            columns.append(np.convolve(np.pad(level, width, "edge"), np.ones(width) / width, "same")[width:-width])
        found = np.stack(columns, axis=1)
        return found - np.median(found, axis=0)

    return scores


def count(found: pd.DataFrame, stretch: Stretch, code: str) -> EventCounts:
    return match_events(found, stretch.known[stretch.known["species"] == code])


def events(scores: np.ndarray, stretch: Stretch, code: str, choice: Choice, min_seconds: float) -> pd.DataFrame:
    return events_of_frames(
        scores,
        ClassList((code,)),
        frame_seconds=ENERGY_HOP / ENERGY_RATE,
        threshold=choice.threshold,
        gap_seconds=choice.gap_seconds,
        min_seconds=min_seconds,
        duration_seconds=soundfile.info(stretch.path).duration,
    )


def score(
    part: Part,
    scores_of: Callable[[Stretch, float], np.ndarray],
    thresholds: np.ndarray,
    smoothing: Sequence[float],
) -> tuple[EventCounts, dict[str, dict]]:
    """Counts on the test part, with what the training part chose for each class."""
    total, chosen = EventCounts(), {}
    for column, code in enumerate(classes_of(part).codes):
        lengths = pd.concat([stretch.known for stretch in part.train]).query("species == @code")
        # Half of the shortest event that was trained on: what is shorter is none.
        shortest = (lengths["end_seconds"] - lengths["start_seconds"]).min() / 2
        best: tuple[tuple[float, int], Choice] | None = None
        for seconds in smoothing:
            heard = [(stretch, scores_of(stretch, seconds)[:, [column]]) for stretch in part.train]
            for gap in GAPS_SECONDS:
                f1 = []
                for threshold in thresholds:
                    choice = Choice(threshold, gap, seconds, 0)
                    counts = [count(events(s, stretch, code, choice, shortest), stretch, code) for stretch, s in heard]
                    f1.append(sum(counts, EventCounts()).f1)
                # Of equal ones the setting whose best thresholds are the most, and of these the middle one.
                tied = np.flatnonzero(np.isclose(f1, np.max(f1)))
                rank = (float(np.max(f1)), len(tied))
                if best is None or rank > best[0]:
                    best = rank, Choice(float(thresholds[tied[len(tied) // 2]]), gap, seconds, float(np.max(f1)))
        assert best is not None
        chosen[code] = asdict(best[1])
        for stretch in part.test:
            heard = scores_of(stretch, best[1].smoothing_seconds)[:, [column]]
            total += count(events(heard, stretch, code, best[1], shortest), stretch, code)
    return total, chosen


def figures(counts: EventCounts) -> dict[str, float]:
    rates = {name: round(getattr(counts, name), 3) for name in ("f1", "precision", "recall")}
    return {**rates, **asdict(counts)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("audio")
    parser.add_argument("--annotations", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--json", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", dest="settings", action="append", default=[])
    args = parser.parse_args()
    work = Path(args.work)
    parts = parts_of(args.audio, read_events(args.annotations), work / "audio")
    result = {}
    for name, of_set in parts.items():
        energy, chosen = EventCounts(), {}
        for part in of_set:
            counts, chosen[part.name] = score(part, of_energy(part), DECIBELS, SMOOTHING_SECONDS)
            energy += counts
        result[name] = {"energy": figures(energy), "energy_chosen": chosen, "model": {}, "model_chosen": {}}
    for seed in args.seeds:
        for name, of_set in parts.items():
            model, chosen = EventCounts(), {}
            for part in of_set:
                recipe, folder = recipe_for(part, seed, args.settings), work / part.name
                done = folder / f"{recipe.hash}.json"
                if not done.exists():
                    counts, choice = score(part, of_model(train(part, recipe, folder)), LOGITS, [0.0])
                    done.write_text(json.dumps({"counts": asdict(counts), "chosen": choice}))
                kept = json.loads(done.read_text())
                model += EventCounts(**kept["counts"])
                chosen[part.name] = kept["chosen"]
            result[name]["model"][str(seed)] = figures(model)
            result[name]["model_chosen"][str(seed)] = chosen
            print(name, "seed", seed, result[name]["model"][str(seed)], "energy", result[name]["energy"], flush=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    recipe = load_recipe(RECIPE, [*SETTINGS, *args.settings])
    head = {"recipe": recipe.name, "settings": [*SETTINGS, *args.settings], "commit": commit.stdout.strip()}
    head |= {"python": platform.python_version(), "collar_seconds": 0.2, "length_share": 0.2}
    Path(args.json).write_text(json.dumps({**head, "sets": result}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
