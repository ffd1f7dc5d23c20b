"""birdcall2020 without augmentation and dropout learns eight real clips by heart, and its step runs under XLA.

python benchmarks/overfit.py PREPARED --json FILE       (PREPARED: what `birdtpu prepare birdcall2020` wrote)
"""

import argparse
import json
import os
import time
from collections.abc import Callable

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

from birdtpu.data import shards, tables
from birdtpu.inference.runtimes.keras import keras_predict
from birdtpu.models.build import SoundEventModel
from birdtpu.recipe import Recipe, load_recipe
from birdtpu.training.step import make_optimizer
from birdtpu.training.strategy import find_accelerator

PLAIN = ["augment.mixup_probability=0", "augment.pitch_probability=0", "augment.tempo_probability=0",
         "augment.time_masks=0", "augment.frequency_masks=0", "audio.margin_seconds=0", "model.dropout=0",
         "model.weights=none", "train.batch_size=8"]  # fmt: skip


def eight_clips(folder: str, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """The first clip of eight recordings, the species in turn: `(8, samples)` and `(8, classes)`."""
    found = tables.load_tables(folder)
    classes = tables.class_list(found)
    records = shards.load_records(folder)
    recordings = found.recordings.assign(turn=found.recordings.groupby("primary_label").cumcount())
    chosen = recordings.sort_values(["turn", "primary_label"]).head(8)
    audio = []
    for name in chosen["recording"]:
        whole = np.concatenate(list(shards.read_recording(folder, records[records["recording"] == name])))
        audio.append(np.resize(whole, samples))
    return np.stack(audio), np.stack([classes.multi_hot([label]) for label in chosen["primary_label"]])


def batch_of(audio: np.ndarray, targets: np.ndarray) -> dict:
    ones = np.ones(len(audio), np.float32)
    return {"audio": audio, "targets": targets, "target_mask": np.ones_like(targets), "weight": ones,
            "seed": np.arange(len(audio), dtype=np.int32)}  # fmt: skip


def stepping(model: SoundEventModel, recipe: Recipe, steps: int) -> Callable[[dict], float]:
    """One step on one batch, to its loss."""
    step = find_accelerator().step(model, make_optimizer(model.network, recipe.train, steps), recipe.train)

    def one(batch: dict) -> float:
        return float(step.run(step.feed(tf.data.Dataset.from_tensors(batch)), 1)[0])

    return one


def overfit(folder: str, most_steps: int) -> dict:
    recipe = load_recipe("birdcall2020", PLAIN)
    audio, targets = eight_clips(folder, recipe.clip_samples)
    keras.utils.set_random_seed(0)
    model = SoundEventModel(recipe, targets.shape[1])
    step = stepping(model, recipe, most_steps)
    clipwise, began = keras_predict(model, "clipwise"), time.perf_counter()
    for number in range(1, most_steps + 1):
        loss = float(step(batch_of(audio, targets)))
        if number % 20 and number < most_steps:
            continue
        scores = clipwise(audio)
        least, most = float(scores[targets == 1].min()), float(scores[targets == 0].max())
        print(f"step {number}  loss {loss:.4f}  least true {least:.3f}  most false {most:.3f}", flush=True)
        if least >= 0.9 and most <= 0.1:
            break
    return {"steps": number, "least_true": least, "most_false": most, "seconds": time.perf_counter() - began}


def step_seconds(folder: str, jit: str, repetitions: int = 3) -> dict:
    """The full training step, augmentation on: seconds of the first call and the median of the next ones."""
    recipe = load_recipe("birdcall2020", ["model.weights=none", "train.batch_size=8", f"train.jit={jit}"])
    audio, targets = eight_clips(folder, recipe.source_samples)
    model = SoundEventModel(recipe, targets.shape[1])
    step = stepping(model, recipe, 100)
    times = []
    for _ in range(repetitions + 1):
        began = time.perf_counter()
        loss = float(step(batch_of(audio, targets)))
        times.append(time.perf_counter() - began)
    assert np.isfinite(loss)
    return {"first_seconds": times[0], "median_seconds": float(np.median(times[1:])), "batch": 8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", required=True)
    args = parser.parse_args()
    result = {f"step_jit_{jit}": step_seconds(args.folder, jit) for jit in ("off", "on")}
    print(json.dumps(result, indent=1), flush=True)
    result["overfit"] = overfit(args.folder, args.steps)
    with open(args.json, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
