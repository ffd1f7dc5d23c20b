"""When a bird sings: the sliding-window recipe beside an energy threshold, by event-based F1 with a collar of 200 ms.

python benchmarks/strong.py AUDIO --annotations CSV --work DIR --json FILE [--seeds 0 1 2] [--set table.key=value]

The CSV has `filename, onset_s, offset_s, label, low_hz, high_hz, species`; every event of a file is in it. Recordings
of one folder are held out in turn; of a folder's only recording the first half trains and the second half tests. What
is tuned is tuned on the training part. What is finished in DIR is not done again.
"""

import argparse
import itertools
import json
import os
import platform
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pandas as pd
import soundfile
from scipy.signal import stft

import birdtpu
from birdtpu import storage
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
# The recipe's, and the energy's.
SAMPLE_RATE, WINDOW_SAMPLES, HOP_SAMPLES = 22050, 1024, 256
NONE = EventCounts()


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
    """How frames become events of a class, and the F1 that this has on the training part."""

    threshold: float
    gap_seconds: float
    min_seconds: float
    smoothing_seconds: float
    training_f1: float = 0.0


# (stretch, smoothing in seconds) -> (frames, classes).
Scores = Callable[[Stretch, float], np.ndarray]


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
    for start, end in itertools.pairwise(edges):
        over = stretch.events[(stretch.events["start_seconds"] <= start) & (stretch.events["end_seconds"] >= end)]
        said = {"nocall": "positive"}
        if over["unknown"].any():
            said |= dict.fromkeys(classes, "unknown")
        said |= dict.fromkeys(over.loc[~over["unknown"], "species"], "positive")
        span = {"filename": Path(stretch.path).name, "start_seconds": start, "end_seconds": end}
        rows += [{**span, "label": label, "state": state} for label, state in said.items()]
    return rows


def known_of(part: Part) -> pd.DataFrame:
    return pd.concat([stretch.known for stretch in part.train])


def classes_of(part: Part) -> ClassList:
    return ClassList.from_rows([{"code": code} for code in sorted(known_of(part)["species"].unique())])


def recipe_for(part: Part, seed: int, settings: Sequence[str]) -> Recipe:
    """As the write-up does: the classifier that slides is as wide as the mean annotation."""
    known = known_of(part)
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


def of_model(predictor: Predictor) -> Scores:
    """Frame scores `(frames, classes)` as logits; nothing is smoothed."""
    kept: dict[str, np.ndarray] = {}

    def scores(stretch: Stretch, smoothing_seconds: float) -> np.ndarray:
        if stretch.path not in kept:
            found = np.clip(predictor.score_frames(stretch.path).astype(np.float64), 1e-7, 1 - 1e-7)
            kept[stretch.path] = np.log(found / (1 - found))
        return kept[stretch.path]

    return scores


def of_energy(part: Part) -> Scores:
    """Frame scores `(frames, classes)`: dB above the stretch's median in the band of the class's training boxes."""
    known = known_of(part)
    bands = known.groupby("species")[["low_hz", "high_hz"]].median()

    def scores(stretch: Stretch, smoothing_seconds: float) -> np.ndarray:
        samples = reading.read(stretch.path, sample_rate=SAMPLE_RATE)
        hz, _, spectrum = stft(samples, SAMPLE_RATE, nperseg=WINDOW_SAMPLES, noverlap=WINDOW_SAMPLES - HOP_SAMPLES)
        power, columns = np.abs(spectrum) ** 2, []
        width = max(1, round(smoothing_seconds * SAMPLE_RATE / HOP_SAMPLES))
        for band in bands.loc[list(classes_of(part).codes)].itertuples():
            level = 10 * np.log10(power[(hz >= band.low_hz) & (hz <= band.high_hz)].sum(axis=0) + 1e-12)
            columns.append(np.convolve(np.pad(level, width, "edge"), np.ones(width) / width, "same")[width:-width])
        found = np.stack(columns, axis=1)
        return found - np.median(found, axis=0)

    return scores


def events(scores: np.ndarray, stretch: Stretch, code: str, choice: Choice) -> pd.DataFrame:
    return events_of_frames(
        scores,
        ClassList((code,)),
        frame_seconds=HOP_SAMPLES / SAMPLE_RATE,
        threshold=choice.threshold,
        gap_seconds=choice.gap_seconds,
        min_seconds=choice.min_seconds,
        duration_seconds=soundfile.info(stretch.path).duration,
    )


def match(found: pd.DataFrame, stretch: Stretch, code: str) -> EventCounts:
    return match_events(found, stretch.known[stretch.known["species"] == code])


def choose(part: Part, column: int, scores_of: Scores, thresholds: np.ndarray, smoothing: Sequence[float]) -> Choice:
    """What has the highest F1 on the training part; of equal ones, the middle of the longest list of thresholds."""
    code = classes_of(part).codes[column]
    of_class = known_of(part)[lambda known: known["species"] == code]
    # What is shorter than half of the shortest event that is known is none.
    shortest = (of_class["end_seconds"] - of_class["start_seconds"]).min() / 2
    best: tuple[tuple[float, int], Choice] | None = None
    for seconds, gap in itertools.product(smoothing, GAPS_SECONDS):
        tried = [Choice(float(threshold), gap, shortest, seconds) for threshold in thresholds]
        heard = [(stretch, scores_of(stretch, seconds)[:, [column]]) for stretch in part.train]
        f1 = [
            sum((match(events(scores, stretch, code, choice), stretch, code) for stretch, scores in heard), NONE).f1
            for choice in tried
        ]
        tied = np.flatnonzero(np.isclose(f1, np.max(f1)))
        rank = float(np.max(f1)), len(tied)
        if best is None or rank > best[0]:
            best = rank, replace(tried[tied[len(tied) // 2]], training_f1=rank[0])
    assert best is not None
    return best[1]


def score(part: Part, scores_of: Scores, thresholds: np.ndarray, smoothing: Sequence[float]) -> dict:
    """Of the test part: `counts`, the estimated events that match nothing (`wrong`), and what was `chosen`."""
    total, chosen, wrong = NONE, {}, []
    for column, code in enumerate(classes_of(part).codes):
        choice = choose(part, column, scores_of, thresholds, smoothing)
        chosen[code] = asdict(choice)
        for stretch in part.test:
            found = events(scores_of(stretch, choice.smoothing_seconds)[:, [column]], stretch, code, choice)
            total += match(found, stretch, code)
            alone = [not match(found[i : i + 1], stretch, code).correct for i in range(len(found))]
            wrong += found[alone].round(2).to_numpy().tolist()
    return {"counts": asdict(total), "wrong": wrong, "chosen": chosen}


def kept(path: Path, make: Callable[[], dict]) -> dict:
    """What a file holds, made once."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_text(path, json.dumps(make()))
    return json.loads(path.read_text("utf-8"))


def pooled(parts: dict[str, dict]) -> dict:
    """The figures of all parts of a set together, and each part's."""
    counts = sum((EventCounts(**part["counts"]) for part in parts.values()), NONE)
    rates = {name: round(getattr(counts, name), 3) for name in ("f1", "precision", "recall")}
    return {**rates, **asdict(counts), "parts": parts}


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
    sets = parts_of(args.audio, read_events(args.annotations), work / "audio")

    def by_energy(part: Part) -> dict:
        return kept(work / part.name / "energy.json", lambda: score(part, of_energy(part), DECIBELS, SMOOTHING_SECONDS))

    def by_model(part: Part, seed: int) -> dict:
        recipe, folder = recipe_for(part, seed, args.settings), work / part.name
        return kept(
            folder / f"scored-{recipe.hash}.json",
            lambda: score(part, of_model(train(part, recipe, folder)), LOGITS, [0.0]),
        )

    result: dict[str, dict] = {
        name: {"energy": pooled({part.name: by_energy(part) for part in parts}), "model": {}}
        for name, parts in sets.items()
    }
    for seed in args.seeds:
        for name, parts in sets.items():
            result[name]["model"][str(seed)] = found = pooled({part.name: by_model(part, seed) for part in parts})
            print(name, "seed", seed, "F1", found["f1"], "energy", result[name]["energy"]["f1"], flush=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    recipe = load_recipe(RECIPE, [*SETTINGS, *args.settings])
    head = {"recipe": recipe.name, "settings": [*SETTINGS, *args.settings], "commit": commit.stdout.strip()}
    head |= {"python": platform.python_version(), "collar_seconds": 0.2, "length_share": 0.2}
    Path(args.json).write_text(json.dumps({**head, "sets": result}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
