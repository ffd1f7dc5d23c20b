"""A process of virtual devices that trains recipes around a tiny network for six steps, and prints JSON of each.

python tests/training/replica.py REPLICAS RECIPE ... [KEY=VALUE ...]
"""

import json
import os
import sys
from typing import Any

RATE = 3e-4
SMALL = ("audio.clip_seconds=1.0", "predict.hop_seconds=0.5", "model.features=16", "train.batch_size=32",
         f"train.learning_rate={RATE}", "train.warmup_fraction=0.0", "model.backbone=tiny", "model.weights=none",
         "model.window_seconds=0.3", "model.stem_pool=true", "balance.first_seconds=0",
         "train.precision=float32")  # fmt: skip
STEPS = 6


def main(replicas: int, *words: str) -> None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if on_jax():
        # Most of what JAX does here is to compile.
        os.environ.update(JAX_PLATFORMS="cpu", JAX_DISABLE_MOST_OPTIMIZATIONS="1")
        os.environ.update(XLA_FLAGS=f"--xla_force_host_platform_device_count={replicas}")
    else:
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)
    from birdtpu.models.backbones import BACKBONES, Backbone

    BACKBONES["tiny"] = Backbone(tiny, channels=0)
    settings = [word for word in words if "=" in word]
    print(json.dumps({name: trained(name, settings, replicas) for name in words if "=" not in name}))


def on_jax() -> bool:
    return os.environ["KERAS_BACKEND"] == "jax"


def tiny(shape: tuple, synchronized: bool, _: Any) -> Any:
    from keras import Input, Sequential, layers

    from birdtpu.layers.batch_norm import BatchNorm

    return Sequential([
        Input(shape), layers.Conv2D(8, 5, 4), BatchNorm(synchronized=synchronized), layers.ReLU(),
        layers.Conv2D(16, 3, 2), BatchNorm(synchronized=synchronized),
    ])  # fmt: skip


def shrunk(name: str, settings: list[str]) -> Any:
    """The recipe with all its parts, at a second a clip."""
    from birdtpu.recipe import load_recipe

    whole = load_recipe(name)
    margin = min(0.25, whole.audio.margin_seconds)
    instances = min(2, whole.train.instances)
    sizes = [
        f"audio.margin_seconds={margin}",
        f"train.instances={instances}",
        f"audio.record_seconds={2.0 * instances}",
    ]
    return load_recipe(name, [*SMALL, *sizes, *settings])


def batch(recipe: Any, number: int, rows: int) -> dict[str, Any]:
    """A batch with all that the recipe asks for: a tone a class under noise, which is something to learn."""
    import numpy as np

    rng = np.random.default_rng(number)
    targets = np.eye(3, dtype="float32")[rng.integers(0, 3, rows)]
    time = np.arange(recipe.source_samples) / recipe.audio.sample_rate
    tones = np.sin(2 * np.pi * np.array([1000, 2500, 5000])[:, None] * time)

    def noise(*shape: int) -> Any:
        return 300 * rng.standard_normal((rows, *shape, recipe.source_samples))

    out = {"audio": 3000 * targets @ tones + noise()}
    clips = recipe.train.instances
    if clips > 1:
        out["audio"] = out["audio"][:, None] * rng.random((rows, clips, 1)) + noise(clips)
    for name in ("partner", "background"):
        if getattr(recipe.augment, f"{name}_probability"):
            out[f"{name}_audio"] = (noise() / 3000).astype("float32")
    out["audio"] = out["audio"].astype("int16")
    if clips > 1:
        out["clip_mask"] = np.ones((rows, clips), "float32")
    if recipe.train.frame_loss:
        frames = 1 + recipe.clip_samples // recipe.frontend.hop_length
        known = np.zeros((rows, frames, 3), "float32")
        known[:, frames // 4 : frames // 2] = 1
        out |= {"frame_targets": known * targets[:, None], "frame_mask": known}
    return out | {
        "audio_gain": np.full(rows, 2.0**-15, "float32"),
        "targets": targets,
        "target_mask": np.ones_like(targets),
        "weight": np.ones(rows, "float32"),
        "row": np.arange(rows, dtype="int32"),
        "seed": (1000 * number + np.arange(rows)).astype("int32"),
    }


def trained(name: str, settings: list[str], replicas: int) -> dict[str, Any]:
    import keras
    import numpy as np

    from birdtpu.models.build import SoundEventModel
    from birdtpu.training.step import digest, make_optimizer, resolved
    from birdtpu.training.strategy import find_accelerator

    recipe, accelerator = shrunk(name, settings), find_accelerator()
    assert accelerator.replicas == replicas and accelerator.kind == "cpu"
    train = resolved(recipe.train, replicas)
    count = train.accumulate * STEPS
    parts = [batch(recipe, number, train.batch_size // train.accumulate) for number in range(count)]

    def made() -> Any:
        keras.utils.set_random_seed(0)
        with accelerator.scope():
            model = SoundEventModel(recipe, 3, precision=accelerator.precision(train))
            optimizer = make_optimizer(model.network, train, 10)
        return accelerator.step(model, optimizer, train)

    def feed(step: Any, first: int = 0) -> Any:
        left = parts[first * train.accumulate :]
        if on_jax():
            return step.feed(left)
        import tensorflow as tf

        return step.feed(tf.data.Dataset.from_tensor_slices({k: np.stack([p[k] for p in left]) for k in left[0]}))

    def losses_of(step: Any, source: Any, calls: int) -> list[float]:
        return [loss for _ in range(calls) for loss in np.asarray(step.run(source, 1)).tolist()]

    step = made()
    source = feed(step)
    losses = losses_of(step, source, 4)
    middle = step.state()
    losses += losses_of(step, source, STEPS - 4)
    found: dict[str, Any] = {}
    if replicas == 2 and name == "quickstart":
        # Another object of the same shapes, restored, must not differ by a bit.
        again = made()
        again.restore(middle)
        found["restored"] = digest(again.state()) == digest(middle)
        found["resumed"] = losses_of(again, feed(again, 4), STEPS - 4)
        state, other = step.state(), again.state()
        found["off"] = max(float(np.abs(state[name] - other[name]).max()) for name in state)
    try:
        step.run(source, 1)
        ended = False
    except StopIteration:
        ended = True
    averages = [float(np.abs(v).mean()) for v in step.averaged()]
    rates = {"batch": train.batch_size, "rate": train.learning_rate}
    return {**found, "losses": losses, "ended": ended, "ema": averages, **rates}


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
