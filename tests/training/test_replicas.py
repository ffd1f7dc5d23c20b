"""Virtual devices: as many CPUs as there are replicas train to the same losses as one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import json, os, sys
replicas, settings = int(sys.argv[1]), sys.argv[2:]
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
if os.environ["KERAS_BACKEND"] == "jax":
    # Most of what JAX does here is to compile.
    os.environ.update(JAX_PLATFORMS="cpu", JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    os.environ.update(XLA_FLAGS=f"--xla_force_host_platform_device_count={replicas}")
else:
    import tensorflow as tf
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)
import keras
import numpy as np
from birdtpu.layers.batch_norm import BatchNorm
from birdtpu.models.backbones import BACKBONES, Backbone
from birdtpu.models.build import SoundEventModel
from birdtpu.recipe import load_recipe
from birdtpu.training.step import digest, make_optimizer, resolved
from birdtpu.training.strategy import find_accelerator
def tiny(shape, synchronized, _):
    layers = keras.layers
    return keras.Sequential([keras.Input(shape), layers.Conv2D(8, 5, 4), BatchNorm(synchronized=synchronized),
                             layers.ReLU(), layers.Conv2D(16, 3, 2), BatchNorm(synchronized=synchronized)])

BACKBONES["tiny"] = Backbone(tiny, channels=1)
recipe = load_recipe("quickstart", ["model.backbone=tiny", *settings])
accelerator = find_accelerator()
assert accelerator.replicas == replicas and accelerator.kind == "cpu"
train = resolved(recipe.train, replicas)

def batch(number, rows):
    rng = np.random.default_rng(number)
    targets = np.eye(3, dtype="float32")[rng.integers(0, 3, rows)]
    # A tone a class under noise: something to learn.
    time = np.arange(recipe.source_samples) / recipe.audio.sample_rate
    tones = np.sin(2 * np.pi * np.array([1000, 2500, 5000])[:, None] * time)
    audio = (3000 * targets @ tones + 300 * rng.standard_normal((rows, recipe.source_samples))).astype("int16")
    return dict(audio=audio, audio_gain=np.full(rows, 2.0**-15, "float32"), targets=targets,
                target_mask=np.ones_like(targets), weight=np.ones(rows, "float32"), row=np.arange(rows, dtype="int32"),
                seed=(1000 * number + np.arange(rows)).astype("int32"))

def made():
    keras.utils.set_random_seed(0)
    with accelerator.scope():
        model = SoundEventModel(recipe, 3, precision=accelerator.precision(train))
        optimizer = make_optimizer(model.network, train, 10)
    return accelerator.step(model, optimizer, train)

parts = [batch(number, train.batch_size // train.accumulate) for number in range(6 * train.accumulate)]
def feed(step, first=0):
    left = parts[first * train.accumulate:]
    if os.environ["KERAS_BACKEND"] == "jax":
        return step.feed(left)
    return step.feed(tf.data.Dataset.from_tensor_slices({k: np.stack([p[k] for p in left]) for k in left[0]}))

def trained(step, source, calls):
    return [loss for _ in range(calls) for loss in np.asarray(step.run(source, 1)).tolist()]

step = made()
source = feed(step)
losses = trained(step, source, 4)
middle = step.state()
losses += trained(step, source, 2)
found = {}
if replicas == 2:
    # Another object of the same shapes, restored, must not differ by a bit.
    again = made()
    again.restore(middle)
    found["restored"] = digest(again.state()) == digest(middle)
    found["resumed"] = trained(again, feed(again, 4), 2)
    state, other = step.state(), again.state()
    found["off"] = max(float(np.abs(state[name] - other[name]).max()) for name in state)
try:
    step.run(source, 1)
    ended = False
except StopIteration:
    ended = True
print(json.dumps({**found, "losses": losses, "ended": ended, "batch": train.batch_size, "rate": train.learning_rate,
                  "ema": [float(np.abs(v).mean()) for v in step.averaged()]}))
"""
RATE = 3e-4
SMALL = ("audio.clip_seconds=1.0", "audio.margin_seconds=0.25", "audio.record_seconds=2.0", "predict.hop_seconds=0.5",
         "model.features=16", "train.batch_size=32", f"train.learning_rate={RATE}", "train.warmup_fraction=0.0",
         "train.clip_norm=0.5", "augment.pitch_probability=0.8", "augment.tempo_probability=0.8")  # fmt: skip
SYNCHRONIZED = "train.synchronized_batch_norm=true"


def trained(backend: str, replicas: int, *settings: str) -> dict:
    # oneDNN's kernels are not always the same to the last bit: docs/experiments.md.
    env = {**os.environ, "KERAS_BACKEND": backend, "TF_ENABLE_ONEDNN_OPTS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(replicas), *SMALL, *settings],
        env=env, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ended"]
    if replicas == 2:
        assert found["restored"] and found["resumed"] == found["losses"][4:] and found["off"] == 0
    return found


def assert_same_training(one: dict, more: dict) -> None:
    # Sums in another order differ by 1e-5, and Adam's first steps turn small gradients into whole ones.
    np.testing.assert_allclose(more["losses"][0], one["losses"][0], rtol=1e-5)
    np.testing.assert_allclose(more["losses"], one["losses"], rtol=2e-3)
    np.testing.assert_allclose(more["ema"], one["ema"], rtol=1e-3, atol=1e-4)
    assert len(set(one["losses"])) == len(one["losses"])


@pytest.mark.timeout(900)
def test_tensorflow_replicas_train_as_one_device():
    one = trained("tensorflow", 1, SYNCHRONIZED)
    assert_same_training(one, trained("tensorflow", 4, SYNCHRONIZED))
    # Each with its own statistics; what is restored must hold their mean.
    alone = trained("tensorflow", 2)
    assert np.abs(np.array(one["losses"]) - alone["losses"]).max() > 0.01


@pytest.mark.timeout(900)
def test_jax_replicas_train_as_one_device():
    assert_same_training(trained("jax", 1), trained("jax", 4))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_gradients_add_up_over_parts_on_any_number_of_replicas(backend):
    # The batch is of 2 replicas with 16 rows each, at a rate for 16 rows.
    grown = ("train.batch_size=16", "train.batch_size_per_replica=16", "train.learning_rate_scaling='sqrt'")
    settings = ("train.accumulate=2", *([SYNCHRONIZED] if backend == "tensorflow" else []))
    two = trained(backend, 2, *settings, *grown)
    assert two["batch"] == 32 and two["rate"] == pytest.approx(RATE * 2**0.5)
    assert_same_training(trained(backend, 1, *settings, f"train.learning_rate={RATE * 2**0.5}"), two)
