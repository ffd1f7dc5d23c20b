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

from birdtpu import losses
from birdtpu.errors import UserError
from birdtpu.models.build import SoundEventModel, seeded
from birdtpu.recipe import load_recipe, recipe_names
from birdtpu.training.schedules import warmup_cosine
from birdtpu.training.step import clipped, digest, ema_decay_at, from_state, loss_of, make_optimizer, resolved
from birdtpu.training.strategy import find_accelerator

# Most of what JAX does in a test is to compile.
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
ROOT = Path(__file__).resolve().parents[2]
SHRUNK = ["audio.clip_seconds=1.0", "audio.margin_seconds=0.25", "audio.record_seconds=2.0", "predict.hop_seconds=0.5",
          "model.weights=none", "model.features=16", "train.batch_size=8"]  # fmt: skip


TAUGHT = ["model.teacher_features=12", "train.teacher_loss=0.5"]


def batch(recipe, classes: int = 3, seed: int = 0) -> dict:
    rows, clips = recipe.train.batch_size, recipe.train.instances
    rng = np.random.default_rng(seed)

    def sound(*shape):
        return rng.standard_normal((rows, *shape, recipe.source_samples)).astype(np.float32) * 0.1

    beside = {}
    if clips > 1:
        beside["clip_mask"] = np.ones((rows, clips), np.float32)
    for name in ("partner", "background"):
        if getattr(recipe.augment, f"{name}_probability"):
            beside[f"{name}_audio"] = sound()
    if recipe.model.teacher_features:
        beside["teacher"] = rng.standard_normal((rows, recipe.model.teacher_features)).astype(np.float32)
    if recipe.train.frame_loss:
        shape = (rows, 1 + recipe.clip_samples // recipe.frontend.hop_length, classes)
        beside |= {"frame_targets": rng.integers(0, 2, shape), "frame_mask": rng.integers(0, 2, shape)}
        beside = {name: value.astype(np.float32) for name, value in beside.items()}
    return {
        **beside,
        "audio": sound(clips) if clips > 1 else sound(),
        "targets": np.eye(classes, dtype=np.float32)[np.arange(rows) % classes],
        "target_mask": np.ones((rows, classes), np.float32),
        "weight": np.ones(rows, np.float32),
        "seed": np.arange(rows, dtype=np.int32) + 1000 * seed,
    }


class Stepping:
    """A step that takes batches one by one."""

    def __init__(self, step):
        self.step, self.current, self.averaged = step, step.current, step.averaged

    def __call__(self, *batches):
        return float(np.sum(self.step.run(self.step.feed(dataset(batches)), 1)))


def dataset(batches):
    return tf.data.Dataset.from_tensor_slices({key: np.stack([part[key] for part in batches]) for key in batches[0]})


def made(recipe, classes: int = 3, steps: int = 10):
    keras.utils.set_random_seed(0)
    accelerator = find_accelerator()
    train = resolved(recipe.train, accelerator.replicas)
    model = SoundEventModel(recipe, classes, precision=accelerator.precision(train))
    optimizer = make_optimizer(model.network, train, steps)
    return model, Stepping(accelerator.step(model, optimizer, train))


def assert_trains_two_steps(recipe):
    model, step = made(recipe)
    before = [w.copy() for w in step.current()]
    losses = [float(step(batch(recipe, seed=i))) for i in range(2)]
    assert np.isfinite(losses).all()
    changed = [not np.array_equal(a, b) for a, b in zip(before, step.current(), strict=True)]
    # Of ResNet34 some do not yet: its branches begin at zero.
    assert np.mean(changed) > 0.8
    assert all(np.isfinite(w).all() for w in step.averaged())
    # The average goes into the network as it is: whole numbers stay whole.
    assert [w.dtype for w in step.averaged()] == [v.dtype for v in model.network.variables]


@pytest.fixture
def eager():
    """Steps run as they are written: to compile a large network takes ten times as long."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.parametrize("name", [name for name in recipe_names() if name != "base"])
def test_every_recipe_trains_two_steps_when_shrunk(name, eager):
    whole = load_recipe(name)
    settings = [*SHRUNK, "model.window_seconds=0.3", "balance.first_seconds=0"]
    if not whole.audio.margin_seconds:
        settings.append("audio.margin_seconds=0")
    if whole.train.instances > 1:
        settings.append("train.instances=2")
    if whole.frontend.image_size or not name.endswith(("-quick", "quickstart")):
        settings.append("frontend.image_size=[80, 80]")
    assert_trains_two_steps(load_recipe(name, settings))


# Of timm's networks tests/models/test_networks.py has the gradients.
FAMILIES = ["ResNet50V2", "InceptionV3", "EfficientNetB0", "MobileNetV3Small", "ConvNeXtTiny"]


@pytest.mark.parametrize("backbone", FAMILIES)
def test_every_family_of_backbones_trains_two_steps(backbone, eager):
    # The least that leaves two segments for the attention.
    size = "[107, 75]" if backbone == "InceptionV3" else "[64, 32]"
    small = [*SHRUNK, f"model.backbone={backbone}", f"frontend.image_size={size}"]
    assert_trains_two_steps(load_recipe("quickstart", small))


COUNTING = """
import sys
import jax
import keras
import numpy as np
from birdtpu.models.backbones import BACKBONES, Backbone
from birdtpu.models.build import SoundEventModel
from birdtpu.recipe import load_recipe
from birdtpu.training.jax_step import make_update, state_of
from birdtpu.training.step import make_optimizer
from birdtpu.training.strategy import find_accelerator
layers = keras.layers
BACKBONES["counting"] = Backbone(
    lambda shape, *_: keras.Sequential([keras.Input(shape), layers.Normalization(), layers.Conv2D(4, 3, 8)]), channels=1
)
recipe = load_recipe("quickstart", [*sys.argv[1:], "model.backbone=counting"])
model = SoundEventModel(recipe, 3)
optimizer = make_optimizer(model.network, recipe.train, 4)
step = find_accelerator().step(model, optimizer, recipe.train)
targets = np.eye(3, dtype="float32")[np.arange(8) % 3]
batch = dict(audio=np.random.default_rng(0).standard_normal((8, recipe.source_samples)).astype("float32"),
             targets=targets, target_mask=np.ones_like(targets), weight=np.ones(8, "float32"),
             seed=np.arange(8, dtype="int32"))
losses = np.asarray(step.run(step.feed([batch, batch]), 2))
assert losses.shape == (2,) and np.isfinite(losses).all()
# A TPU's loop over the steps of a call, beside a CPU's, which has none.
two = {name: np.stack([value, value])[:, None] for name, value in batch.items()}
state, scanned = jax.jit(make_update(model, optimizer, recipe.train))(state_of(model, optimizer), two)
np.testing.assert_allclose(scanned, losses, rtol=1e-5)
assert state["step"] == step.state()["step"] == 2
kinds = [str(w.dtype) for w in step.averaged()]
assert kinds == [v.dtype for v in model.network.variables] and "int32" in kinds, kinds
"""


def test_whole_numbers_stay_whole_on_jax_too_and_a_scan_is_the_same():
    env = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", **QUICK}
    done = subprocess.run([sys.executable, "-c", COUNTING, *SHRUNK], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.timeout(900)
def test_birdcall2020_compiles_to_the_same_step_with_all_its_augmentation():
    always = [f"augment.{name}_probability=1" for name in ("pitch", "tempo", "mixup")]
    images, losses = [], []
    for jit in (True, False):
        small = [*SHRUNK, *always, "model.backbone=small_cnn", f"train.jit={'on' if jit else 'off'}"]
        recipe = load_recipe("birdcall2020", small)
        tf.config.run_functions_eagerly(not jit)
        model, step = made(recipe)
        images.append(tf.function(model.augmented, jit_compile=jit, autograph=False)(batch(recipe))[0].numpy())
        losses.append(float(step(batch(recipe))))
        tf.config.run_functions_eagerly(False)
    np.testing.assert_allclose(images[0], images[1], atol=1e-4)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


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
    assert float(step({**data, "weight": np.zeros(8, np.float32)})) == 0


@pytest.mark.parametrize("settings", [[], ["train.segment_loss=0.5", "train.clip_loss=0.5", "train.rank_loss=1"]])
def test_what_rows_of_weight_zero_say_does_not_count(settings):
    train, rng = knobs(*settings), np.random.default_rng(0)
    outputs = {name: rng.normal(size=(8, *n, 3)).astype(np.float32) for name, n in
               (("clipwise_logits", ()), ("segmentwise_logits", (4,)))}  # fmt: skip
    labels = {"targets": np.eye(3, dtype=np.float32)[np.arange(8) % 3], "target_mask": np.ones((8, 3), np.float32)}
    labels["weight"] = np.array([1] * 6 + [0] * 2, np.float32)
    before = float(loss_of(outputs, labels, train))
    for value in (*outputs.values(), labels["targets"], labels["target_mask"]):
        value[6:] = 1 - value[6:]
    assert before > 0 and float(loss_of(outputs, labels, train)) == pytest.approx(before)
    labels["targets"][5] = 1 - labels["targets"][5]
    assert float(loss_of(outputs, labels, train)) != pytest.approx(before)


def test_rows_of_weight_zero_are_in_no_pair():
    train = knobs("train.rank_loss=1", "train.clip_loss=0", "train.segment_loss=1e-9")
    rng = np.random.default_rng(0)
    outputs = {name: rng.normal(size=(8, *n, 3)).astype(np.float32) for name, n in
               (("clipwise_logits", ()), ("segmentwise_logits", (4,)))}  # fmt: skip
    labels = {"targets": np.eye(3, dtype=np.float32)[np.arange(8) % 3], "target_mask": np.ones((8, 3), np.float32)}
    labels["weight"] = np.array([1] * 6 + [0] * 2, np.float32)
    before = float(loss_of(outputs, labels, train))
    outputs["clipwise_logits"][6:] += 50
    assert before > 0 and float(loss_of(outputs, labels, train)) == pytest.approx(before)
    outputs["clipwise_logits"][5] += 50
    assert float(loss_of(outputs, labels, train)) > 2 * before


def test_the_loss_falls_on_a_batch_seen_again_and_again():
    recipe = load_recipe("quickstart", [*SHRUNK, "augment.mixup_probability=0", "train.learning_rate=0.01"])
    _, step = made(recipe, steps=40)
    losses = [float(step(batch(recipe))) for _ in range(40)]
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


def test_a_teachers_embeddings_are_learnt_from_where_there_are_some():
    still = ["augment.mixup_probability=0", "model.dropout=0", "train.learning_rate=0.01"]
    recipe = load_recipe("quickstart", [*SHRUNK, *TAUGHT, *still])
    data = batch(recipe)
    data["teacher"][5] = 0
    model, step = made(recipe, steps=30)
    image, labels = model.augmented(data)

    def outputs_and_cosine():
        outputs = seeded(model.network, data["seed"], image, training=True)
        own = ops.convert_to_numpy(outputs["teacher"]).astype(float)
        known = np.arange(8) != 5
        lengths = np.linalg.norm(own, axis=1) * np.linalg.norm(data["teacher"], axis=1)
        return outputs, (np.sum(own * data["teacher"], axis=1)[known] / lengths[known])

    _, before = outputs_and_cosine()
    for _ in range(30):
        step(data)
    model.network.set_weights(step.current())
    outputs, after = outputs_and_cosine()
    assert before.shape == (7,) and (1 - after).mean() < 0.7 * (1 - before).mean()
    # Its part of the loss is the mean over the batch, the row without a teacher among it; validation knows of none.
    both = float(loss_of(outputs, labels, recipe.train))
    one = float(loss_of(outputs, {name: labels[name] for name in labels if name != "teacher"}, recipe.train))
    assert both - one == pytest.approx(0.5 * np.sum(1 - after) / 8, rel=1e-3)


def test_a_projection_of_nothing_has_no_gradient():
    own = tf.constant([[0.0, 0.0], [1e-9, 0.0], [3.0, 4.0]])
    with tf.GradientTape() as tape:
        tape.watch(own)
        cost = losses.embedding_distance(own, tf.constant([[1.0, 0.0]] * 3))
    found = tape.gradient(cost, own).numpy()
    assert (found[:2] == 0).all()
    # Across the own direction alone, and by the inverse of its length: -(e - cos * own / 5) / 5.
    np.testing.assert_allclose(found[2], [-0.128, 0.096], atol=1e-6)


def test_a_teacher_leaves_the_other_first_weights_as_they_are():
    (plain, _), (taught, _) = (made(load_recipe("quickstart", [*SHRUNK, *more])) for more in ([], TAUGHT))
    kernel, bias = taught.network.get_layer("teacher").get_weights()
    assert kernel.shape == (16, 12) and bias.shape == (12,)
    weights = taught.network.get_weights()
    apart = [value for value in weights if value.shape not in (kernel.shape, bias.shape)]
    assert len(apart) == len(plain.network.get_weights()) == len(weights) - 2
    for ours, theirs in zip(apart, plain.network.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


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


def knobs(*settings):
    return load_recipe("quickstart", list(settings)).train


def test_the_batch_over_all_replicas_is_the_recipes_or_grows():
    given = knobs("train.batch_size=32", "train.learning_rate=0.1", "train.min_learning_rate=0.01")
    assert resolved(given, 4) == given
    grown = [
        given.model_copy(update={"batch_size_per_replica": 32, "learning_rate_scaling": s})
        for s in ("none", "linear", "sqrt")
    ]
    rates = [(r.batch_size, r.learning_rate, r.min_learning_rate) for r in (resolved(g, 4) for g in grown)]
    assert rates == [(128, 0.1, 0.01), (128, pytest.approx(0.4), pytest.approx(0.04)), (128, 0.2, 0.02)]
    assert resolved(grown[1], 1).learning_rate == 0.1


@pytest.mark.parametrize(("settings", "replicas", "named"), [
    (["train.batch_size=24"], 2, "24 is no multiple of 16: .* 2 replicas; give a multiple, such as .*=32,"),
    (["train.batch_size=8"], 2, "8 is no multiple of 16: .* such as train.batch_size=16"),
    (["train.batch_size_per_replica=12"], 1, r"12 is no multiple of 8: .* such as train\.batch_size=16"),
    (["train.batch_size=16", "train.accumulate=2"], 2, r"16 is no multiple of 32: .* 2 parts \(train\.accumulate\)"),
])  # fmt: skip
def test_a_batch_that_does_not_split_is_named(settings, replicas, named):
    with pytest.raises(UserError, match=rf"train\.batch_size(_per_replica)?: {named}"):
        resolved(knobs(*settings), replicas)


def test_gradients_are_clipped_together():
    gradients = [np.array([3.0, 0.0], np.float32), np.array([[4.0]], np.float32)]
    for ours, theirs in zip(clipped(gradients, 1.0), gradients, strict=True):
        np.testing.assert_allclose(ours, theirs / 5, rtol=1e-6)
    for norm in (0.0, 5.0, 100.0):
        for ours, theirs in zip(clipped(gradients, norm), gradients, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert all(np.isfinite(np.asarray(g)).all() for g in clipped([np.zeros(2, np.float32)], 1.0))


def test_gradients_are_cut_to_a_value_before_their_norm():
    gradients = [np.array([3.0, -0.5], np.float32), np.array([[-4.0]], np.float32)]
    cut = [np.array([2.0, -0.5], np.float32), np.array([[-2.0]], np.float32)]
    for ours, theirs in zip(clipped(gradients, 0.0, 2.0), cut, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(clipped(gradients, 1.0, 2.0), clipped(cut, 1.0), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_learning_rate_is_scaled_from_the_next_step_on_and_kept_in_the_state():
    recipe = load_recipe("quickstart", [*SHRUNK, "train.plateau_epochs=1", "folds.validation_fraction=0.2"])
    data = batch(recipe, seed=1)
    (model, scaled), (_, plain) = made(recipe), made(recipe)
    for each in (scaled, plain):
        each(data)
    before = scaled.step.current()
    scaled.step.scale_rate(0.0)
    state = scaled.step.state()
    for each in (scaled, plain):
        each(data)
    still = [np.array_equal(a, b) for a, b in zip(before, scaled.step.current(), strict=True)]
    assert all(same for same, variable in zip(still, model.network.variables, strict=True) if variable.trainable)
    moved = [not np.array_equal(a, b) for a, b in zip(before, plain.step.current(), strict=True)]
    assert sum(moved) > len(moved) / 2
    plain.step.restore(state)
    assert digest(plain.step.state()) == digest(state)


def test_a_state_is_restored_to_the_bit_and_another_models_is_refused():
    recipe = load_recipe("quickstart", SHRUNK)
    _, step = made(recipe)
    step(batch(recipe, seed=1))
    state = step.step.state()
    assert {name.partition("/")[0] for name in state} == {"step", "weights", "ema", "optimizer"} and state["step"] == 1
    _, other = made(recipe)
    assert digest(other.step.state()) != digest(state)
    other.step.restore(state)
    assert digest(other.step.state()) == digest(state)
    _, wider = made(load_recipe("quickstart", [*SHRUNK, "model.features=32"]))
    with pytest.raises(ValueError, match="of another model: weights differ"):
        wider.step.restore(state)
    with pytest.raises(ValueError, match="of another model"):
        from_state({}, {"weights": [np.zeros(1)]})


def test_a_digest_sees_every_bit_and_every_name():
    state = {"a": np.arange(3, dtype=np.float32), "b": np.int64(1)}
    others = [{**state, "b": np.int64(2)}, {**state, "b": np.int32(1)}, {"a": state["a"], "c": state["b"]},
              {**state, "a": state["a"].reshape(3, 1)}, {**state, "a": -state["a"]}]  # fmt: skip
    assert len({digest(each) for each in (state, *others)}) == 6
    assert digest(dict(reversed(state.items()))) == digest(state)


def test_mixed_precision_keeps_weights_averages_and_loss_in_float32():
    recipe = load_recipe("quickstart", [*SHRUNK, "train.precision=mixed_bfloat16"])
    model, step = made(recipe)
    plain = made(load_recipe("quickstart", SHRUNK))[1]
    assert {v.dtype for v in model.network.variables} == {"float32"}
    convolution = next(layer for layer in model.network._flatten_layers() if isinstance(layer, keras.layers.Conv2D))
    assert convolution.compute_dtype == "bfloat16"
    assert model.network.output["clipwise_logits"].dtype == "float32"
    # Three digits of each product.
    assert step(batch(recipe)) == pytest.approx(plain(batch(recipe)), rel=0.05)
