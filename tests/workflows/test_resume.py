"""A training through the command line that is killed, stopped and taken up again ends in the same bits."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

import birdtpu
from birdtpu.data.synthesis import synthesize
from birdtpu.errors import Stopped, UserError
from birdtpu.run import open_run
from birdtpu.training.checkpoint import Checkpoints
from birdtpu.training.log import Log
from birdtpu.training.step import digest
from birdtpu.workflows.train import _named_memory

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "audio.clip_seconds=1.0", "audio.margin_seconds=0.25", "audio.record_seconds=4.0", "predict.hop_seconds=0.5",
    "frontend.n_mels=32", "model.features=8", "train.batch_size=8", "train.epochs=3", "train.steps_per_epoch=4",
    "folds.validation_fraction=0.3",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    synthesize(folder / "w", species=3, recordings=5, soundscapes=0, seed=3)
    birdtpu.prepare("quickstart", folder / "w" / "train_audio", folder / "p", settings=TINY)
    return folder / "p"


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory) -> Path:
    """The run that nothing interrupts."""
    run = tmp_path_factory.mktemp("alone") / "run"
    code, out, err = ended(started(data, run))
    assert code == 0, err
    # Without a terminal there is one line an epoch and no bar.
    assert "\r" not in out + err and [line.split()[:2] for line in out.splitlines() if "clips/s" in line] == [
        ["epoch", "1/3"], ["epoch", "2/3"], ["epoch", "3/3"]
    ]  # fmt: skip
    return run


def started(data, run, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "birdtpu", "train", "quickstart", "--data", str(data), "--run", str(run), *options]
    for setting in TINY:
        command += ["--set", setting]
    # oneDNN's kernels are not always the same to the last bit: docs/experiments.md.
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "TF_ENABLE_ONEDNN_OPTS": "0"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=env, **pipes)


def ended(process) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def stopped_after(data, run, number: int, steps: int) -> tuple[int, str, str]:
    """Start a training that saves every step, and send it a signal when `steps` are saved."""
    process = started(data, run, "--save-steps", "1")
    deadline = time.monotonic() + 200
    while newest(run) < steps:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    return ended(process)


def newest(run) -> int:
    return max((int(path.name[5:13]) for path in (run / "checkpoints").glob("step-*.safetensors")), default=0)


def tensors(run) -> dict:
    found = {}
    with h5py.File(run / "model.weights.h5") as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


@pytest.mark.timeout(900)
def test_a_training_that_was_killed_and_stopped_ends_in_the_same_bits(data, alone, tmp_path):
    run = tmp_path / "run"
    assert stopped_after(data, run, signal.SIGKILL, 2)[0] == -signal.SIGKILL
    code, _, err = stopped_after(data, run, signal.SIGTERM, 6)
    done = newest(run)
    assert code == 143 and err.splitlines()[-1] == (
        f"birdtpu: stopped by SIGTERM after step {done}; the same command goes on from there"
    )
    with pytest.raises(UserError, match=r"interrupted training of another recipe .* or remove this one to begin"):
        birdtpu.train("quickstart", data, run, settings=[*TINY, "train.seed=1"])
    with pytest.raises(UserError, match=r"holds an interrupted training of another fold \(None, not 1\)"):
        birdtpu.train("quickstart", data, run, settings=TINY, fold=1)
    # What cannot begin costs nothing.
    with pytest.raises(UserError, match="fold"):
        birdtpu.train("quickstart", data, run, settings=TINY, fold="nine", resume=False)
    # A start that was killed between its first files does not keep the next one out.
    (run / "recipe.toml").write_text("half")
    (run / ".run.json.0123abcd.tmp").write_text("half")
    code, out, err = ended(started(data, run))
    assert code == 0 and f"going on after step {done}" in out.splitlines(), err

    first, second = open_run(alone), open_run(run)
    assert first.info["state_sha256"] == second.info["state_sha256"]
    ours, theirs = tensors(run), tensors(alone)
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    rows = [[line.split(",")[:4] for line in (r / "log.csv").read_text().splitlines()] for r in (alone, run)]
    assert rows[0] == rows[1] and len(rows[0]) == 4
    assert newest(run) == 0 and not list(run.glob(".*"))


@pytest.mark.timeout(900)
def test_a_training_goes_on_on_the_other_engine(data, alone, tmp_path):
    run = tmp_path / "run"
    assert stopped_after(data, run, signal.SIGINT, 5)[0] == 130
    copy = json.loads((run / "run.json").read_text())
    assert copy["batch_size"] == 8 and "weights_sha256" not in copy
    code, out, err = ended(started(data, run, "--backend", "jax"))
    assert code == 0 and "going on after step" in out, err
    assert open_run(run).info["backend"] == "jax"
    ours, theirs = tensors(run), tensors(alone)
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, atol=0.02, err_msg=name)


def test_a_training_stopped_when_all_was_done_but_the_weights_ends_where_it_was(data, tmp_path):
    add = Log.add

    def signalled(self, row):
        add(self, row)
        if row.epoch == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped, match="after step 12"):
        patch.setattr(Log, "add", signalled)
        birdtpu.train("quickstart", data, tmp_path / "run", settings=TINY)
    saved = Checkpoints(tmp_path / "run").newest()
    run = birdtpu.train("quickstart", data, tmp_path / "run", settings=TINY)
    state = {name: value for name, value in saved.arrays.items() if not name.startswith("best/")}
    assert saved.step == 12 and run.info["state_sha256"] == digest(state)
    assert pd.read_csv(tmp_path / "run" / "log.csv")["epoch"].tolist() == [1, 2, 3]


def test_a_file_of_classes_that_changed_meanwhile_is_seen(data, tmp_path):
    names = sorted(pd.read_csv(data / "recordings.csv")["primary_label"].unique())
    classes = tmp_path / "classes.csv"

    def begun(codes):
        classes.write_text("code\n" + "".join(f"{code}\n" for code in codes))
        birdtpu.train(
            "quickstart", data, tmp_path / "run", settings=[*TINY, f"labels.classes={str(classes)!r}"], save_steps=1
        )

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("birdtpu.training.log.Log.add", stop)
        begun(names)
    assert newest(tmp_path / "run") == 3
    with pytest.raises(UserError, match="interrupted training of other classes"):
        begun(names[::-1])
    assert pd.read_csv(tmp_path / "run" / "classes.csv")["code"].tolist() == names


def test_a_tpu_that_is_not_there_is_one_line(data, tmp_path):
    code, out, err = ended(started(data, tmp_path / "run", "--tpu"))
    assert code == 2 and out == "" and not (tmp_path / "run").exists()
    assert err.startswith("birdtpu: no TPU to train on: no TPU chip on this machine; ") and err.count("\n") == 1


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_a_device_without_memory_is_one_line(backend):
    if backend == "jax":
        from jax import numpy as jnp

        allocate = jnp.zeros
    else:
        import tensorflow as tf

        allocate = tf.zeros
    with pytest.raises(UserError, match=r"no memory for a step: raise train\.accumulate"), _named_memory():
        np.asarray(allocate((1 << 44,)))
    with pytest.raises(RuntimeError, match="another"), _named_memory():
        raise RuntimeError("another")
