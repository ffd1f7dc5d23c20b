"""The training step and the loop."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from birdtpu.errors import UserError
from birdtpu.models.build import SoundEventModel
from birdtpu.recipe import load_recipe, recipe_names
from birdtpu.training.log import Log
from birdtpu.training.loop import fit
from birdtpu.training.schedules import warmup_cosine
from birdtpu.training.step import ema_decay_at, make_optimizer, make_step

ROOT = Path(__file__).resolve().parents[2]
SHRUNK = ["audio.clip_seconds=1.0", "audio.margin_seconds=0.25", "audio.record_seconds=2.0", "predict.hop_seconds=0.5",
          "model.weights=none", "model.features=16", "train.batch_size=8"]  # fmt: skip


def batch(recipe, classes: int = 3, seed: int = 0) -> dict:
    rows = recipe.train.batch_size
    rng = np.random.default_rng(seed)
    return {
        "audio": rng.standard_normal((rows, recipe.source_samples)).astype(np.float32) * 0.1,
        "targets": np.eye(classes, dtype=np.float32)[np.arange(rows) % classes],
        "target_mask": np.ones((rows, classes), np.float32),
        "weight": np.ones(rows, np.float32),
        "seed": np.arange(rows, dtype=np.int32) + 1000 * seed,
    }


def made(recipe, classes: int = 3, steps: int = 10):
    keras.utils.set_random_seed(0)
    model = SoundEventModel(recipe, classes)
    optimizer = make_optimizer(model.network, recipe.train, steps)
    return model, make_step(model, optimizer, recipe.train)


def assert_trains_two_steps(recipe):
    model, step = made(recipe)
    before = [w.copy() for w in step.current()]
    losses = [float(step(batch(recipe, seed=i))) for i in range(2)]
    assert np.isfinite(losses).all()
    changed = [not np.array_equal(a, b) for a, b in zip(before, step.current(), strict=True)]
    assert np.mean(changed) > 0.9
    assert all(np.isfinite(w).all() for w in step.averaged())
    # The average goes into the network as it is: whole numbers stay whole.
    assert [w.dtype for w in step.averaged()] == [v.dtype for v in model.network.variables]


@pytest.mark.parametrize("name", [name for name in recipe_names() if name != "base"])
def test_every_recipe_trains_two_steps_when_shrunk(name):
    assert_trains_two_steps(load_recipe(name, [*SHRUNK, "frontend.image_size=[64, 64]"]))


FAMILIES = ["ResNet50V2", "InceptionV3", "EfficientNetB0", "EfficientNetV2B0", "MobileNetV3Small", "ConvNeXtTiny"]


@pytest.fixture
def eager():
    """Steps run as they are written: to compile a large network takes ten times as long."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.parametrize("backbone", FAMILIES)
def test_every_family_of_backbones_trains_two_steps(backbone, eager):
    # The least that leaves two segments for the attention.
    size = "[107, 75]" if backbone == "InceptionV3" else "[64, 32]"
    small = [*SHRUNK, f"model.backbone={backbone}", f"frontend.image_size={size}"]
    assert_trains_two_steps(load_recipe("quickstart", small))


COUNTING = """
import sys
import keras
import numpy as np
from birdtpu.models.backbones import BACKBONES, Backbone
from birdtpu.models.build import SoundEventModel
from birdtpu.recipe import load_recipe
from birdtpu.training.step import make_optimizer, make_step
layers = keras.layers
BACKBONES["counting"] = Backbone(
    lambda shape: keras.Sequential([keras.Input(shape), layers.Normalization(), layers.Conv2D(4, 3, 8)]), channels=1
)
recipe = load_recipe("quickstart", [*sys.argv[1:], "model.backbone=counting"])
model = SoundEventModel(recipe, 3)
step = make_step(model, make_optimizer(model.network, recipe.train, 4), recipe.train)
targets = np.eye(3, dtype="float32")[np.arange(8) % 3]
batch = dict(audio=np.random.default_rng(0).standard_normal((8, recipe.source_samples)).astype("float32"),
             targets=targets, target_mask=np.ones_like(targets), weight=np.ones(8, "float32"),
             seed=np.arange(8, dtype="int32"))
assert np.isfinite([float(step(batch)) for _ in range(2)]).all()
kinds = [str(w.dtype) for w in step.averaged()]
assert kinds == [v.dtype for v in model.network.variables] and "int32" in kinds, kinds
"""


def test_whole_numbers_stay_whole_on_jax_too():
    env = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", COUNTING, *SHRUNK], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_birdcall2020_compiles_to_the_same_step_with_all_its_augmentation():
    always = [f"augment.{name}_probability=1" for name in ("pitch", "tempo", "mixup")]
    images, losses = [], []
    for jit in (True, False):
        small = [*SHRUNK, *always, "frontend.image_size=[64, 32]", f"train.jit={'on' if jit else 'off'}"]
        recipe = load_recipe("birdcall2020", small)
        tf.config.run_functions_eagerly(not jit)
        model, step = made(recipe)
        images.append(tf.function(model.augmented, jit_compile=jit, autograph=False)(batch(recipe))[0].numpy())
        losses.append(float(step(batch(recipe))))
        tf.config.run_functions_eagerly(False)
    np.testing.assert_allclose(images[0], images[1], atol=1e-4)
    # Batches of noise look alike: fifty normalizations by their small differences amplify rounding.
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_the_same_seeds_give_the_same_steps():
    recipe = load_recipe("quickstart", SHRUNK)
    runs = []
    for _ in range(2):
        _, step = made(recipe)
        runs.append([float(step(batch(recipe, seed=i))) for i in range(3)])
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-5)


def test_rows_of_weight_zero_do_not_teach():
    off = ["augment.mixup_probability=0", "model.dropout=0", "train.weight_decay=0"]
    recipe = load_recipe("quickstart", [*SHRUNK, *off])
    data = batch(recipe)
    _, step = made(recipe)
    loss = float(step({**data, "weight": np.zeros(8, np.float32)}))
    assert loss == 0


def test_the_loss_falls_on_a_batch_seen_again_and_again():
    recipe = load_recipe("quickstart", [*SHRUNK, "augment.mixup_probability=0", "train.learning_rate=0.01"])
    _, step = made(recipe, steps=40)
    losses = [float(step(batch(recipe))) for _ in range(40)]
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


def test_the_average_follows_its_formula():
    recipe = load_recipe("quickstart", [*SHRUNK, "train.ema_decay=0.5"])
    _, step = made(recipe)
    twin = [w.copy() for w in step.current()]
    for i in range(4):
        step(batch(recipe, seed=i))
        decay = min(0.5, (1 + i) / (10 + i))
        twin = [decay * a + (1 - decay) * w for a, w in zip(twin, step.current(), strict=True)]
    for ours, theirs in zip(step.averaged(), twin, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    assert float(ops.convert_to_numpy(ema_decay_at(0.0, 0.999))) == pytest.approx(0.1)


def test_warm_up_rises_and_cosine_falls():
    schedule = warmup_cosine(1e-3, 1e-8, 100, 0.1)
    rates = np.array([float(ops.convert_to_numpy(schedule(i))) for i in range(101)])
    assert rates[0] == 0 and rates.argmax() == 10 and rates[10] == pytest.approx(1e-3)
    assert (np.diff(rates[:11]) > 0).all() and (np.diff(rates[10:]) < 0).all()
    assert rates[100] == pytest.approx(1e-8, rel=1e-2)
    assert rates[55] == pytest.approx(5e-4, rel=1e-3)
    assert float(ops.convert_to_numpy(warmup_cosine(1e-3, 0.0, 1, 0.1)(0))) == pytest.approx(1e-3)


def test_vectors_do_not_decay():
    recipe = load_recipe("quickstart", SHRUNK)
    model = SoundEventModel(recipe, 3)
    optimizer = make_optimizer(model.network, recipe.train, 10)
    decays = [optimizer._use_weight_decay(v) for v in model.network.trainable_variables]
    assert decays == [len(v.shape) >= 2 for v in model.network.trainable_variables]


class FakeStep:
    """Counts, and returns a loss a step."""

    def __init__(self, losses):
        self.losses, self.done = losses, 0

    def __call__(self, _):
        self.done += 1
        return self.losses[self.done - 1]

    def averaged(self):
        return [np.full(1, self.done)]


def run(step, tmp_path, **changes):
    options = {"steps": 6, "steps_per_epoch": 2, "batch_size": 8, "learning_rate": lambda i: 0.1}
    options["log"] = Log(str(tmp_path))
    return fit(step, iter([{}] * 10), **(options | changes)), options["log"]


def test_the_loop_takes_any_iterator_and_logs_every_epoch(tmp_path):
    weights, log = run(FakeStep([6.0, 5, 4, 3, 2, 1]), tmp_path)
    assert weights[0] == 6
    assert [row.loss for row in log.rows] == [5.5, 3.5, 1.5]
    assert [row.step for row in log.rows] == [2, 4, 6]
    log.close()
    assert (tmp_path / "log.csv").read_text().startswith("epoch,step,loss,validation_loss")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert list((tmp_path / "tensorboard").iterdir())


def test_the_best_epoch_is_kept_and_patience_ends_training(tmp_path):
    held_out = iter([3.0, 1.0, 2.0, 2.5, 9.0])
    step = FakeStep([1.0] * 10)
    weights, log = run(step, tmp_path, steps=10, validate=lambda w: next(held_out), patience=2)
    assert weights[0] == 4 and step.done == 8 and len(log.rows) == 4


def test_a_loss_that_is_no_number_ends_training(tmp_path):
    with pytest.raises(UserError, match=r"lower train\.learning_rate"):
        run(FakeStep([1.0, float("nan")]), tmp_path)


def test_batches_that_end_early_are_an_error(tmp_path):
    with pytest.raises(UserError, match="ended after 10 of 20"):
        run(FakeStep([1.0] * 20), tmp_path, steps=20)
