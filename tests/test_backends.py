"""Both Keras backends: the same outputs, the same draws, and a loop without TensorFlow."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

# Most of what JAX does in a test is to compile.
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
ROOT = Path(__file__).resolve().parents[1]

PROBE = """
import sys
import numpy as np
import keras
from birdtpu.inference.runtimes.keras import compiled
from birdtpu.models.build import SoundEventModel, seeded
from birdtpu.recipe import load_recipe
folder, backbone = sys.argv[1:]
small = ["audio.clip_seconds=2.0", "predict.hop_seconds=1.0", "audio.record_seconds=4.0", "model.backbone=" + backbone]
if backbone != "small_cnn":
    small += ["frontend.image_size=[64, 64]"]
model = SoundEventModel(load_recipe("quickstart", small), 5, weights="none")
path = f"{folder}/{backbone}.weights.h5"
if keras.backend.backend() == "tensorflow":
    model.network.save_weights(path)
model.network.load_weights(path)
rng = np.random.default_rng(0)
audio = rng.standard_normal((8, 96000)).astype("float32") * rng.uniform(0.001, 0.5, (8, 1)).astype("float32")
numpy = keras.ops.convert_to_numpy
out = {k: numpy(v) for k, v in compiled(model.__call__)(audio[:, :64000]).items()}
model.mel.fft = False
kernel = __import__("birdtpu.ops.spectral", fromlist=["x"]).stft_kernel(1024, 1024, 640, model.mel._bins)
model.mel._kernels = [kernel]
out["convolution"] = numpy(compiled(model.__call__)(audio[:, :64000])["clipwise"])
targets = np.eye(5, dtype="float32")[rng.integers(0, 5, 8)]
seed = np.arange(8, dtype="int32")
batch = dict(audio=audio, targets=targets, target_mask=np.ones_like(targets), weight=np.ones(8, "float32"), seed=seed)
image, labels = compiled(model.augmented)(batch)
out["image"], out["mixed"] = numpy(image), numpy(labels["targets"])
if backbone == "small_cnn":
    # Batch statistics make the training pass change variables: outside a compiled function.
    out["trained"] = numpy(seeded(model.network, seed, image, training=True)["clipwise"])
np.savez(f"{folder}/{backbone}-{keras.backend.backend()}.npz", **out)
"""


def run(code: str, *args: str, backend: str) -> str:
    env = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu", **QUICK}
    done = subprocess.run([sys.executable, "-c", code, *args], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("backbone", ["small_cnn", "ResNet50"])
def test_same_weights_same_outputs_same_draws(tmp_path, backbone):
    for backend in ("tensorflow", "jax"):
        run(PROBE, str(tmp_path), backbone, backend=backend)
    a, b = (np.load(tmp_path / f"{backbone}-{backend}.npz") for backend in ("tensorflow", "jax"))
    for key in ("clipwise", "segmentwise", "norm_att"):
        np.testing.assert_allclose(a[key], b[key], atol=1e-4, err_msg=key)
    for outputs in (a, b):
        np.testing.assert_allclose(outputs["convolution"], outputs["clipwise"], atol=1e-4)
    # The images are scaled decibels: 1e-3 is 0.08 dB.
    np.testing.assert_allclose(a["image"], b["image"], atol=1e-3)
    np.testing.assert_allclose(a["mixed"], b["mixed"], atol=1e-6)
    if "trained" in a:
        np.testing.assert_allclose(a["trained"], b["trained"], atol=1e-2)


@pytest.mark.timeout(900)
def test_ops_layers_and_draws_hold_on_jax():
    env = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", **QUICK}
    env.pop("PYTEST_XDIST_WORKER", None)
    suites = [f"tests/{name}" for name in ("ops", "layers", "test_random.py", "test_losses.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", *suites]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


def test_the_jax_loop_runs_without_tensorflow(tmp_path):
    code = """
import sys
sys.modules["tensorflow"] = None
import numpy as np
from birdtpu.models.build import SoundEventModel
from birdtpu.recipe import load_recipe
from birdtpu.training.log import Log
from birdtpu.training.loop import fit
from birdtpu.training.step import make_optimizer
from birdtpu.training.strategy import find_accelerator
recipe = load_recipe("quickstart", ["audio.clip_seconds=1.0", "audio.record_seconds=4.0", "predict.hop_seconds=0.5",
                                    "train.batch_size=8"])
model = SoundEventModel(recipe, 3)
step = find_accelerator().step(model, make_optimizer(model.network, recipe.train, 4), recipe.train)
rows = np.arange(8)
targets = np.eye(3, dtype="float32")[rows % 3]
def batches():
    for number in range(4):
        yield dict(audio=np.random.default_rng(number).standard_normal((8, recipe.source_samples)).astype("float32"),
                   targets=targets, target_mask=np.ones_like(targets), weight=np.ones(8, "float32"),
                   seed=(rows + 8 * number).astype("int32"))
log = Log(sys.argv[1])
weights = fit(step, batches(), steps=4, steps_per_epoch=2, batch_size=8, learning_rate=lambda i: 1e-3, log=log,
              train=recipe.train)
log.close()
model.network.set_weights(weights)
model.network.save_weights(sys.argv[1] + "/x.weights.h5")
print(len(log.rows), np.isfinite(log.rows[-1].loss))
"""
    assert run(code, str(tmp_path), backend="jax").split()[-2:] == ["2", "True"]
