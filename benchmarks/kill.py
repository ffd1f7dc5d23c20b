"""Trainings killed at any moment end in the same bits as one that was left alone.

python benchmarks/kill.py --work DIR --json FILE [--runs 20] [--kills 200] [--cold-kills 30] [--backend tensorflow]

A tiny model is trained in processes of a fork server: half of the SIGKILLs come at a random moment, half at a random
call of fsync, rename or unlink, just before or just after it: of these, three in four of the training itself, so that
they fall into save, rename and prune, the others of what is written before it. Then the quickstart's model is trained
by the command line in processes of their own and killed at random moments. After each run its state digest (weights,
averages, optimiser), its weights file and the order of its batches are compared with those of the run that was left
alone, and no checkpoint and no temporary file may be left. What is done stays in DIR: the same command goes on.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

TINY = ["audio.clip_seconds=1.0", "audio.margin_seconds=0.25", "audio.record_seconds=4.0", "predict.hop_seconds=0.5",
        "frontend.n_mels=16", "frontend.n_fft=512", "frontend.win_length=512", "model.backbone=tiny",
        "model.features=8", "train.batch_size=8", "train.epochs=4", "train.steps_per_epoch=10",
        "folds.validation_fraction=0.3", "augment.pitch_probability=0", "augment.tempo_probability=0"]  # fmt: skip
QUICKSTART = ["train.epochs=2", "train.steps_per_epoch=12", "train.batch_size=16"]


class Fault(NamedTuple):
    """Die at the `number`-th call of a function of `os`, before or after it; of those in the training, or of all."""

    call: str
    number: int
    after: bool
    in_training: bool


def train_tiny(data: str, run: str, fault: Fault | None) -> None:
    """One process: train, or take up, until it ends or kills itself at a fault point."""
    import keras

    from birdtpu.layers.batch_norm import BatchNorm
    from birdtpu.models.backbones import BACKBONES, Backbone
    from birdtpu.workflows.train import train

    def tiny(shape: tuple, *_: bool) -> keras.Model:
        layers = keras.layers
        stack = [layers.Conv2D(4, 5, 4, use_bias=False), BatchNorm(), layers.ReLU(), layers.Conv2D(8, 3, 2)]
        return keras.Sequential([keras.Input(shape), *stack])

    BACKBONES["tiny"] = Backbone(tiny, channels=1)
    if fault is None:
        log_batches(run)
    elif fault.in_training:
        log_batches(run, begin=lambda: die_at(run, fault))
    else:
        log_batches(run)
        die_at(run, fault)
    train("quickstart", data, run, settings=TINY, save_steps=1)


def train_cold(data: str, run: str) -> None:
    """One process of `birdtpu train`."""
    from birdtpu.cli import main

    log_batches(run)
    settings = [word for setting in QUICKSTART for word in ("--set", setting)]
    sys.argv = ["birdtpu", "train", "quickstart", "--data", data, "--run", run, "--save-steps", "3", *settings]
    main()


def die_at(run: str, fault: Fault) -> None:
    """SIGKILL this process at a call of `os.fsync`, `os.replace` or `os.unlink`; RUN.fault says where."""
    original, left = getattr(os, fault.call), [fault.number]

    def die(at: object) -> None:
        name = Path(f"/proc/self/fd/{at}").readlink() if isinstance(at, int) else os.fspath(at)
        Path(f"{run}.fault").write_text(os.path.relpath(name, run))
        os.kill(os.getpid(), signal.SIGKILL)

    def watched(*args: object, **kwargs: object) -> object:
        left[0] -= 1
        if left[0] == 0 and not fault.after:
            die(args[0])
        result = original(*args, **kwargs)
        if left[0] == 0:
            die(args[0])
        return result

    setattr(os, fault.call, watched)


def log_batches(run: str, begin: Callable[[], None] = lambda: None) -> None:
    """Append the rows and seeds of every batch to RUN/batches.txt when the step takes it; `begin` comes before them."""
    import keras
    import numpy as np

    log = Path(run, "batches.txt")

    def note(step: int, row: object, seed: object) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write(f"{step} {list(map(int, row))} {list(map(int, seed))}\n")

    from birdtpu.data import pipeline

    original = pipeline.batches

    def batches(*args: object, start_step: int = 0, training: bool = True, **kwargs: object) -> object:
        dataset = original(*args, start_step=start_step, training=training, **kwargs)
        if not training:
            return dataset
        begin()
        if keras.backend.backend() == "jax":
            return noted(dataset.as_numpy_iterator(), start_step)
        import tensorflow as tf

        def noting(step: object, batch: dict) -> dict:
            done = tf.numpy_function(lambda *x: note(*x) or np.int64(0), [step, batch["row"], batch["seed"]], tf.int64)
            with tf.control_dependencies([done]):
                return {key: tf.identity(value) for key, value in batch.items()}

        return dataset.enumerate(start_step).map(noting)

    def noted(source: object, start: int) -> object:
        for step, batch in enumerate(source, start):
            note(step, batch["row"], batch["seed"])
            yield batch

    pipeline.batches = batches


def ended(run: Path) -> dict | None:
    """What a finished run is compared by; None where it is not finished."""
    import hashlib

    info = json.loads((run / "run.json").read_text()) if (run / "run.json").exists() else {}
    if "weights_sha256" not in info:
        return None
    import h5py

    weights = hashlib.sha256()
    with h5py.File(run / "model.weights.h5") as file:
        file.visititems(
            lambda name, item: weights.update(name.encode() + item[()].tobytes()) if hasattr(item, "dtype") else None
        )
    return {"state": info["state_sha256"], "weights": weights.hexdigest()}


def left_behind(run: Path) -> list[str]:
    """Checkpoints and temporary files."""
    folder = run / "checkpoints"
    return [path.name for path in (*run.glob(".*"), *folder.glob("*"), *folder.glob(".*"))]


def batches_of(run: Path) -> dict[int, set[str]]:
    """Step -> what was seen there: one thing, however often it was seen."""
    found: dict[int, set[str]] = {}
    for line in (run / "batches.txt").read_text().splitlines():
        step, _, rest = line.partition(" ")
        if rest.count("]") == 2:
            found.setdefault(int(step), set()).add(rest)
    return found


class Runs:
    """Runs of one kind in a folder, with a note of every kill."""

    def __init__(self, work: Path, start: object, save: object) -> None:
        self.work, self.start, self.save = work, start, save

    def alone(self) -> dict:
        """The truth: two runs left alone, of which the second is timed, for the first starts the fork server."""
        for run in (self.work / "first", self.work / "alone"):
            if ended(run) is None:
                began = time.perf_counter()
                process = self.start(run, None)
                process.wait()
                assert process.returncode == 0, "a run that was left alone failed"
                (self.work / "seconds.json").write_text(json.dumps(time.perf_counter() - began))
        assert ended(self.work / "first") == ended(self.work / "alone"), "two runs left alone differ"
        return ended(self.work / "alone")

    def killed(self, run: Path, chance: random.Random, faults: bool, most: int) -> list[dict]:
        """Kill one run until it ends, at most `most` times; every kill."""
        seconds, kills = json.loads((self.work / "seconds.json").read_text()), []
        while ended(run) is None:
            fault = None
            if faults and len(kills) < most and len(kills) % 2 == 0:
                # A step's save is two fsyncs (file and folder), one rename and one unlink.
                call = chance.choice(["fsync", "replace", "unlink"])
                training = chance.random() < 0.75
                fault = Fault(call, chance.randint(1, 12), chance.random() < 0.5, training)
            process = self.start(run, fault)
            moment = None
            if fault is None and len(kills) < most:
                moment = chance.uniform(0, seconds)
                process.wait(moment)
                process.kill()
            process.wait()
            if process.returncode == -signal.SIGKILL:
                at = Path(f"{run}.fault")
                place = at.read_text() if fault and at.exists() else ""
                at.unlink(missing_ok=True)
                kills.append({"fault": fault, "at": place, "seconds": moment, "step": last_step(run)})
            else:
                assert process.returncode == 0, f"{run}: exit code {process.returncode}"
        if left_behind(run):
            # Killed when all was written and the checkpoints were being removed: the next start does that and no more.
            process = self.start(run, None)
            process.wait()
            assert process.returncode in (1, 2), f"{run}: a finished run was trained again"
        assert not left_behind(run), f"{run}: left behind: {left_behind(run)}"
        return kills


def last_step(run: Path) -> int:
    names = sorted((run / "checkpoints").glob("step-*.safetensors")) if (run / "checkpoints").exists() else []
    return int(names[-1].name[5:13]) if names else 0


class Forked:
    """A process of the fork server with the face of `subprocess.Popen`."""

    def __init__(self, context: object, *args: object) -> None:
        self.process = context.Process(target=train_quietly, args=args)
        self.process.start()

    def wait(self, seconds: float | None = None) -> None:
        self.process.join(seconds)

    def kill(self) -> None:
        self.process.kill()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode


class Cold:
    """`birdtpu train` in a process of its own."""

    def __init__(self, data: str, run: Path) -> None:
        here = str(Path(__file__).resolve().parent)
        code = "import sys, kill; kill.train_cold(*sys.argv[1:])"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, data, str(run)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def wait(self, seconds: float | None = None) -> None:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return

    def kill(self) -> None:
        self.process.kill()

    @property
    def returncode(self) -> int | None:
        return self.process.returncode


def train_quietly(data: str, run: str, fault: Fault | None) -> None:
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    train_tiny(data, run, fault)


def prepared(work: Path, name: str, settings: list[str]) -> str:
    """A synthesised world, prepared for a recipe."""
    data = work / f"{name}-data"
    if not (data / "manifest.json").exists():
        from birdtpu.data.synthesis import synthesize
        from birdtpu.workflows.prepare import prepare

        shutil.rmtree(work / f"{name}-world", ignore_errors=True)
        synthesize(str(work / f"{name}-world"), species=3, recordings=8, soundscapes=0)
        prepare("quickstart", work / f"{name}-world", data, settings=settings)
    return str(data)


def prove(kind: str, runs: Runs, count: int, kills: int, faults: bool, noted: dict, note: object) -> dict:
    """Kill at least `count` runs, `kills` times in all; what is in `noted` is not done again."""
    truth = runs.alone()
    order = batches_of(runs.work / "alone")
    for number in itertools.count():
        mine = [value for name, value in noted.items() if name.startswith(kind)]
        if len(mine) >= count and sum(len(value["kills"]) for value in mine) >= kills:
            break
        run, name = runs.work / f"run-{number:02d}", f"{kind}-{number:02d}"
        if name in noted:
            continue
        shutil.rmtree(run, ignore_errors=True)
        found = runs.killed(run, random.Random(f"{kind} {number}"), faults, -(-kills // count))
        same = ended(run) == truth
        same_batches = batches_of(run) == order
        noted[name] = {"kills": found, "same_bits": same, "same_batches": same_batches}
        note()
        print(f"{name}: {len(found)} kills, same bits {same}, same batches {same_batches}", flush=True)
        shutil.rmtree(run, ignore_errors=True)
    return {
        "runs": len(mine),
        "kills": sum(len(value["kills"]) for value in mine),
        "at_fault_points": sum(kill["fault"] is not None for value in mine for kill in value["kills"]),
        "in_save_or_prune": dict(
            Counter(
                kill["fault"][0] for value in mine for kill in value["kills"] if kill["at"].startswith("checkpoints")
            )
        ),
        "same_bits": sum(value["same_bits"] for value in mine),
        "same_batches": sum(value["same_batches"] for value in mine),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--json", required=True)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--cold-kills", type=int, default=30)
    parser.add_argument("--backend", default="tensorflow", choices=["tensorflow", "jax"])
    args = parser.parse_args()
    os.environ["KERAS_BACKEND"] = args.backend
    args.work.mkdir(parents=True, exist_ok=True)
    state = args.work / "noted.json"
    noted = json.loads(state.read_text()) if state.exists() else {}
    context = multiprocessing.get_context("forkserver")
    # Imported once and used by none: a child starts TensorFlow's and JAX's threads itself.
    context.set_forkserver_preload(["birdtpu.training.strategy", "birdtpu.workflows.train", "birdtpu.data.pipeline"])
    tiny = [setting for setting in TINY if setting.startswith(("audio", "predict"))]
    data, cold_data = prepared(args.work, "tiny", tiny), prepared(args.work, "cold", [])

    def note() -> None:
        state.with_suffix(".tmp").write_text(json.dumps(noted))
        state.with_suffix(".tmp").replace(state)

    result = {"backend": args.backend}
    for name in ("forked", "cold"):
        (args.work / name).mkdir(exist_ok=True)
    forked = Runs(args.work / "forked", lambda run, fault: Forked(context, data, str(run), fault), note)
    result["forked"] = prove("forked", forked, args.runs, args.kills, True, noted, note)
    cold = Runs(args.work / "cold", lambda run, fault: Cold(cold_data, run), note)
    result["cold"] = prove("cold", cold, max(1, args.cold_kills // 6), args.cold_kills, False, noted, note)
    Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    whole = all(
        part["same_bits"] == part["same_batches"] == part["runs"] for part in (result["forked"], result["cold"])
    )
    sys.exit(0 if whole else 1)


if __name__ == "__main__":
    main()
