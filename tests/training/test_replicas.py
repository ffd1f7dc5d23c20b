"""Virtual devices: as many CPUs as there are replicas train to the same losses as one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.training.replica import RATE

ROOT = Path(__file__).resolve().parents[2]
CLIPPED = "train.clip_norm=0.5"
STRETCHED = ("augment.pitch_probability=0.8", "augment.tempo_probability=0.8")
SYNCHRONIZED = "train.synchronized_batch_norm=true"
SIBLINGS = ("birdclef2021_inception", "birdclef2023_sed", "birdclef2024_pseudo", "rfcx2021_sliding")


def trained(backend: str, replicas: int, *words: str) -> dict:
    # oneDNN's kernels are not always the same to the last bit: docs/experiments.md.
    env = {**os.environ, "KERAS_BACKEND": backend, "TF_ENABLE_ONEDNN_OPTS": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "tests/training/replica.py", str(replicas), *words],
        env=env, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    out = json.loads(done.stdout.splitlines()[-1])
    for name, found in out.items():
        assert found["ended"]
        if replicas == 2 and name == "quickstart":
            assert found["restored"] and found["resumed"] == found["losses"][4:] and found["off"] == 0
    return out


def quickstart(backend: str, replicas: int, *settings: str) -> dict:
    return trained(backend, replicas, "quickstart", CLIPPED, *STRETCHED, *settings)["quickstart"]


def assert_same_training(one: dict, more: dict) -> None:
    # Sums in another order differ by 1e-5, and Adam's first steps turn small gradients into whole ones.
    np.testing.assert_allclose(more["losses"][0], one["losses"][0], rtol=5e-5)
    np.testing.assert_allclose(more["losses"], one["losses"], rtol=2e-3)
    np.testing.assert_allclose(more["ema"], one["ema"], rtol=1e-3, atol=3e-4)
    assert len(set(one["losses"])) == len(one["losses"])


@pytest.mark.timeout(900)
def test_tensorflow_replicas_train_as_one_device():
    one = quickstart("tensorflow", 1, SYNCHRONIZED)
    assert_same_training(one, quickstart("tensorflow", 4, SYNCHRONIZED))
    # Each with its own statistics; what is restored must hold their mean.
    alone = quickstart("tensorflow", 2)
    assert np.abs(np.array(one["losses"]) - alone["losses"]).max() > 0.01


@pytest.mark.timeout(900)
def test_jax_replicas_train_as_one_device():
    assert_same_training(quickstart("jax", 1), quickstart("jax", 4))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_gradients_add_up_over_parts_on_any_number_of_replicas(backend):
    # The batch is of 2 replicas with 16 rows each, at a rate for 16 rows.
    grown = ("train.batch_size=16", "train.batch_size_per_replica=16", "train.learning_rate_scaling='sqrt'")
    settings = ("train.accumulate=2", *([SYNCHRONIZED] if backend == "tensorflow" else []))
    two = quickstart(backend, 2, *settings, *grown)
    assert two["batch"] == 32 and two["rate"] == pytest.approx(RATE * 2**0.5)
    assert_same_training(quickstart(backend, 1, *settings, f"train.learning_rate={RATE * 2**0.5}"), two)


@pytest.mark.timeout(900)
def test_every_sibling_recipe_trains_on_two_replicas_as_on_one():
    # On JAX, which compiles each for minutes: benchmarks/replicas.py.
    settings = (SYNCHRONIZED, "train.batch_size=16")
    one, two = (trained("tensorflow", replicas, *SIBLINGS, *settings) for replicas in (1, 2))
    for name in SIBLINGS:
        assert_same_training(one[name], two[name])
