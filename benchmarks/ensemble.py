"""What an ensemble of equal networks costs beside its members one after the other, from files to scores.

    python benchmarks/ensemble.py --json ensemble.json [--recipe quickstart] [--minutes 30] [--members 5]

The members have weights that nobody trained: what they cost is the same. `shared` is an ensemble whose members have one
log-mel, `unlike` one in which each has its own (`frontend.f_min` 1 Hz apart). The ways take turns, and a ratio is the
median of the turns' ratios to all members alone in the same turn, so that a busy neighbour falls on all alike.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import soundfile

import birdtpu
from birdtpu.models.build import SoundEventModel
from birdtpu.recipe import load_recipe
from birdtpu.run import Run
from birdtpu.species import ClassList
from birdtpu.workflows.predict import Predictor

RATE = 32000
FILES = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--minutes", type=float, default=30.0, help="of audio")
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--classes", type=int, default=264)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        files = write_audio(Path(work, "audio"), args.minutes)
        like = [make_run(Path(work, f"like-{i}"), i, args, 0) for i in range(args.members)]
        unlike = [make_run(Path(work, f"unlike-{i}"), i, args, i) for i in range(args.members)]
        alone = [birdtpu.load(run) for run in like]
        ensembles = {"shared": birdtpu.load(like), "unlike": birdtpu.load(unlike)}
        difference = check(alone, ensembles["shared"], files[0])
        for predictor in ensembles.values():
            score([predictor], files[:1])
        turns = [{"alone": score(alone, files)} | {n: score([p], files) for n, p in ensembles.items()}
                 for _ in range(args.turns)]  # fmt: skip
    found = json.loads(args.json.read_text()) if args.json.exists() else {}
    found[args.recipe] = summary(turns) | {
        "members": args.members, "classes": args.classes, "minutes": args.minutes, "turns": args.turns,
        "largest_difference": difference, "backend": keras.backend.backend(), "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2), "commit": commit(),
    }  # fmt: skip
    args.json.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found[args.recipe], indent=1))


def write_audio(folder: Path, minutes: float) -> list[str]:
    """OGG files of noise and chirps at the recipes' rate."""
    folder.mkdir()
    rng, paths = np.random.default_rng(0), []
    seconds = np.arange(round(minutes * 60 / FILES * RATE)) / RATE
    for number in range(FILES):
        chirp = 0.2 * np.sin(2 * np.pi * (3000 * seconds + 200 * np.sin(2 * np.pi * seconds)))
        paths.append(str(folder / f"{number}.ogg"))
        with soundfile.SoundFile(paths[-1], "w", RATE, 1) as file:
            # libsndfile's Vorbis encoder overflows its stack on one large block.
            for start in range(0, len(seconds), RATE):
                block = chirp[start : start + RATE]
                file.write(block + rng.normal(0, 0.02, len(block)))
    return paths


def make_run(folder: Path, seed: int, args: argparse.Namespace, higher_hz: int) -> str:
    """A run with weights that nobody trained."""
    settings = ["model.weights=none", f"frontend.f_min={load_recipe(args.recipe).frontend.f_min + higher_hz}"]
    run = Run(str(folder), load_recipe(args.recipe, settings), ClassList(tuple(f"c{i}" for i in range(args.classes))),
              {"data": ["none"]})  # fmt: skip
    run.save()
    keras.utils.set_random_seed(seed)
    run.save_weights(SoundEventModel(run.recipe, args.classes).network)
    return run.folder


def check(alone: Sequence[Predictor], ensemble: Predictor, file: str) -> float:
    """The largest difference of the ensemble from the mean of its members; it warms them all up, too."""
    scores = [next(iter(predictor.score_files([file]))).scores for predictor in (ensemble, *alone)]
    return float(np.abs(scores[0] - np.mean(scores[1:], axis=0)).max())


def score(predictors: Sequence[Predictor], files: Sequence[str]) -> dict[str, float]:
    """Seconds and core seconds of all of them, one after the other."""
    began, cores = time.perf_counter(), time.process_time()
    for predictor in predictors:
        for scores in predictor.score_files(files):
            assert scores.error is None
    return {"seconds": time.perf_counter() - began, "core_seconds": time.process_time() - cores}


def summary(turns: list[dict[str, dict[str, float]]]) -> dict:
    """Median times of each way, and its median ratio to `alone`."""
    out: dict = {}
    for way in turns[0]:
        out[way] = {key: round(statistics.median(turn[way][key] for turn in turns), 2) for key in turns[0][way]}
        for key in turns[0][way] if way != "alone" else ():
            ratios = [turn[way][key] / turn["alone"][key] for turn in turns]
            out[way][f"{key}_of_alone"] = round(statistics.median(ratios), 3)
            out[way][f"{key}_of_alone_range"] = [round(min(ratios), 3), round(max(ratios), 3)]
    return out


def commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()


if __name__ == "__main__":
    main()
