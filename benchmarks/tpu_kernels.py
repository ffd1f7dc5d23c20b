"""Whether all operations of a recipe's TensorFlow step have TPU kernels, by TensorFlow's build for TPUs, without one.

python benchmarks/tpu_kernels.py --json FILE [--recipe birdcall2020 quickstart] [--replicas 1 8]

Needs an environment of its own: Python 3.11 or 3.12, `pip install tensorflow-tpu==2.20.0 libtpu==0.0.20 birdtpu`.
`birdtpu compile` lowers by any TensorFlow and compiles by libtpu; here TensorFlow looks for its TPU kernels itself, as
`TPUStrategy` would. It takes no variables without a chip: weights come in as tensors; gradients, summed over replicas
and clipped, and batch statistics go out; the optimiser's sums, products and roots are left out.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

# Without a chip, libtpu would ask for one over the network for minutes.
os.environ.update(KERAS_BACKEND="tensorflow", TPU_SKIP_MDS_QUERY="1", TF_CPP_MIN_LOG_LEVEL="3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", required=True, type=Path)
    parser.add_argument("--recipe", nargs="+", default=["birdcall2020", "quickstart"])
    parser.add_argument("--replicas", nargs="+", type=int, default=[1, 8])
    args = parser.parse_args()
    import tensorflow as tf

    found: dict[str, Any] = {"tensorflow": tf.__version__}
    for recipe in args.recipe:
        for replicas in args.replicas:
            for part in ("step", "predict"):
                began = time.perf_counter()
                text = lowered(recipe, replicas, part)
                found[f"{recipe} {part} {replicas}"] = {
                    "bytes": len(text),
                    "all_reduces": text.count(b" all-reduce("),
                    "seconds": round(time.perf_counter() - began, 1),
                }
                print(recipe, part, replicas, found[f"{recipe} {part} {replicas}"], flush=True)
    args.json.write_text(json.dumps(found, indent=1) + "\n")


def lowered(name: str, replicas: int, part: str) -> bytes:
    """HLO of a replica's step or inference. Raises what TensorFlow raises where an operation has no kernel."""
    import keras
    import tensorflow as tf

    from birdtpu.models.build import seeded
    from birdtpu.recipe import load_recipe
    from birdtpu.training.compile import make_program
    from birdtpu.training.step import clipped, loss_of

    program = make_program(load_recipe(name, ["model.weights=none"]), classes=264, batch=8, devices=replicas)
    model, train = program.model, program.train
    network = model.network
    variables = [*network.trainable_variables, *network.non_trainable_variables]
    count = len(network.trainable_variables)

    def step(batch: dict, values: list) -> tuple:
        image, labels = model.augmented(batch)
        with tf.GradientTape() as tape, keras.StatelessScope(zip(variables, values, strict=True)) as scope:
            tape.watch(values[:count])
            outputs = seeded(network, batch["seed"], image, training=True)
            loss = loss_of(outputs, labels, train)
        gradients = tape.gradient(loss, values[:count])
        if replicas > 1:
            group = tf.constant([[*range(replicas)]])
            gradients = [tf.raw_ops.CrossReplicaSum(input=g, group_assignment=group) for g in gradients]
        return loss, clipped(gradients, train.clip_norm), [scope.get_current_value(v) for v in variables[count:]]

    def predict(audio: tf.Tensor, values: list) -> tf.Tensor:
        with keras.StatelessScope(zip(variables, values, strict=True)):
            return model(audio)["clipwise"]

    def spec(variable: Any) -> tf.TensorSpec:
        return tf.TensorSpec(variable.shape, variable.dtype)

    batch = {
        key: tf.TensorSpec((shape[0] // replicas, *shape[1:]), kind) for key, (shape, kind) in program.batch.items()
    }
    state = [*map(spec, variables)]
    if part == "step":
        function, arguments = step, (batch, state)
    else:
        function, arguments = predict, (tf.TensorSpec((8, program.recipe.clip_samples), tf.float32), state)

    def flat(*tensors: tf.Tensor) -> Any:
        return function(*tf.nest.pack_sequence_as(arguments, tensors))

    compiled = tf.function(flat, jit_compile=True, autograph=False)
    tf.config.experimental.enable_tensor_float_32_execution(False)
    return compiled.experimental_get_compiler_ir(*tf.nest.flatten(arguments))(stage="hlo", platform_name="TPU").encode()


if __name__ == "__main__":
    main()
