"""Compile a recipe's true training step for a TPU that is not here, and read what the compiler says of it."""

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from birdtpu.errors import UserError
from birdtpu.keys import Train
from birdtpu.models.build import SoundEventModel
from birdtpu.recipe import Recipe
from birdtpu.training.step import make_optimizer, resolved
from birdtpu.training.strategy import exact_products
from birdtpu.training.topology import Topology, compile_stablehlo, open_topology

Shapes = dict[str, tuple[tuple[int, ...], str]]
# The schedule's length is a number in the program and changes nothing else.
_STEPS = 1000
_SIZES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8,
          "u64": 8, "f64": 8}  # fmt: skip
_SHAPE = re.compile(r"\b(" + "|".join(_SIZES) + r")\[([\d,]*)\]")
# These two move nothing: they join what was fetched in slices, and promise that indices are in range.
_NO_BYTES = ("ConcatBitcast", "AssumeGatherIndicesInBound")


@dataclass(frozen=True)
class Cost:
    """What the compiler says of one device's program.

    Args:
        flops: Floating point operations, a product and a sum counting as two.
        bytes_accessed: Bytes that instructions read and write, those of custom calls added.
        peak_bytes: Of HBM, state and batch among them.
        roofline_seconds: Sum over instructions of the longer of computing and moving, at the chip's peaks.
        compile_seconds: How long the compiler took.
    """

    flops: float
    bytes_accessed: float
    peak_bytes: int
    roofline_seconds: float
    compile_seconds: float


@dataclass(frozen=True)
class Program:
    """A model, its optimiser and the shapes of one device's batch.

    Args:
        recipe: The recipe; its batch is that of all devices.
        train: The recipe's, `resolved` for the devices.
        model, optimizer: Untrained.
        classes: Number of classes.
        devices: How many share the batch.
    """

    recipe: Recipe
    train: Train
    model: SoundEventModel
    optimizer: Any
    classes: int
    devices: int

    @property
    def batch(self) -> Shapes:
        """A micro-batch over all devices: name -> shape and kind, int16 audio as training feeds it."""
        rows, classes, clips = self.train.batch_size // self.train.accumulate, self.classes, self.train.instances
        vectors = {"audio_gain": "float32", "weight": "float32", "row": "int32", "seed": "int32"}
        tables = {"targets": "float32", "target_mask": "float32"}
        frames = ("frame_targets", "frame_mask") if self.train.frame_loss else ()
        sound, augment = ((rows, self.recipe.source_samples), "int16"), self.recipe.augment
        asked = {"partner_audio": augment.partner_probability, "background_audio": augment.background_probability}
        out = {
            "audio": ((rows, clips, self.recipe.source_samples), "int16") if clips > 1 else sound,
            **{name: sound for name, probability in asked.items() if probability},
            **{name: ((rows,), kind) for name, kind in vectors.items()},
            **{name: ((rows, classes), kind) for name, kind in tables.items()},
            **dict.fromkeys(frames, ((rows, self.model.frames, classes), "float32")),
        }
        if features := self.recipe.model.teacher_features:
            out["teacher"] = ((rows, features), "float32")
        return {**out, "clip_mask": ((rows, clips), "float32")} if clips > 1 else out


def make_program(recipe: Recipe, *, classes: int, batch: int, devices: int) -> Program:
    """A recipe's program as a TPU would run it: mixed_bfloat16 unless the recipe says otherwise, no FFT.

    Args:
        recipe: The recipe; its backbone starts untrained, which changes no program.
        classes: Number of classes.
        batch: Rows a device.
        devices: How many.

    Raises: UserError as `resolved` and `SoundEventModel`.
    """
    changes: dict[str, Any] = {"batch_size_per_replica": batch}
    if keras.backend.backend() == "jax":
        # There batch statistics are global in any case, and the key is refused.
        changes["synchronized_batch_norm"] = False
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=changes)})
    train = resolved(recipe.train, devices)
    precision = "mixed_bfloat16" if train.precision == "auto" else train.precision
    model = SoundEventModel(recipe, classes, weights="none", precision=precision, platform="tpu")
    return Program(recipe, train, model, make_optimizer(model.network, train, _STEPS), classes, devices)


def lower(program: Program, part: str, mesh: Any = None) -> Any:
    """A part of a program, lowered for a TPU without one: what CI can check in seconds.

    Args:
        program: From `make_program`.
        part: `step`; `frontend`: int16 audio to the network's image; `augmented`: the same with augmentation;
            `predict`: audio to probabilities.
        mesh: JAX's, of the devices; None: this machine's CPU.

    Returns: JAX's `Lowered`, or TensorFlow's StableHLO as bytes.
    Raises: UserError that names an operation which does not lower, and the layer it came from.
    """
    return (_lower_jax if keras.backend.backend() == "jax" else _lower_tensorflow)(program, part, mesh)


def compile_recipe(
    recipe: Recipe,
    topology: str,
    *,
    classes: int = 264,
    batch: int = 64,
    parts: tuple[str, ...] = ("step", "frontend", "augmented", "predict"),
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Compile a recipe's step, its frontend, its augmentation and its inference for a topology.

    Args:
        recipe: The recipe.
        topology: Such as `v5e:2x4`.
        classes: Number of classes.
        batch: Rows a device.
        parts: What to compile; the step is minutes, the rest seconds to a minute each.
        say: Told what is compiled.

    Returns: a dict for JSON: of one device's step `bytes_accessed`, `peak_bytes`, `flops`, `roofline_seconds`,
        `clips_per_second`; shares of the frontend and of augmentation; `largest_batch`, by proportion; every part's
        `Cost`.
    Raises: UserError where the topology is unknown, an operation is refused, or the memory does not suffice.
    """
    target = open_topology(topology)
    program = make_program(recipe, classes=classes, batch=batch, devices=len(target.devices))
    costs = {}
    for part in parts:
        say(f"compiling {part} of {recipe.name} for {len(target.devices)} x {topology.split(':')[0]} ...")
        costs[part] = _cost(program, part, target)
    return {
        "recipe": recipe.name,
        "recipe_hash": recipe.hash,
        "backend": keras.backend.backend(),
        "topology": topology,
        "devices": len(target.devices),
        "batch_per_device": batch,
        "classes": classes,
        **_summary(program, costs, target, batch),
        "parts": {part: vars(cost) for part, cost in costs.items()},
    }


def report_lines(found: dict[str, Any]) -> list[str]:
    """What `compile_recipe` returns, for people."""
    batch, parts = found["batch_per_device"], found["parts"]
    lines = [
        f"{found['recipe']} ({found['recipe_hash']}), {found['backend']}, {found['topology']}: "
        f"{found['devices']} devices, {batch} clips each",
        f"{'a device':24}{'GFLOP':>10}{'GB':>10}{'peak GiB':>10}{'least ms':>10}{'clips/s':>10}{'compiled':>10}",
    ]
    for name, cost in parts.items():
        cells = (cost["flops"] / 1e9, cost["bytes_accessed"] / 1e9, cost["peak_bytes"] / 2**30)
        row = "".join(f"{cell:10.2f}" for cell in (*cells, cost["roofline_seconds"] * 1e3))
        lines.append(f"{name:24}{row}{batch / cost['roofline_seconds']:10.0f}{cost['compile_seconds']:8.0f} s")
    if "step" in parts:
        for part in ("frontend", "frontend_and_augmentation"):
            if f"{part}_share_of_bytes" in found:
                shares = (found[f"{part}_share_of_{what}"] for what in ("bytes", "seconds"))
                lines.append("{} of the step: {:.1%} of bytes, {:.1%} of time".format(part.replace("_", " "), *shares))
        memory = found["share_of_memory"]
        lines.append(f"memory {memory:.0%} full; largest batch, by proportion: {found['largest_batch']}")
    lines.append("least ms: each instruction at the chip's peaks; no TPU has run it")
    return lines


def _summary(program: Program, costs: dict[str, Cost], target: Topology, batch: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if "step" in costs:
        step = costs["step"]
        state = _state_bytes(program)
        room = (target.memory - state) / max(1.0, (step.peak_bytes - state) / batch)
        out = {
            "bytes_accessed": step.bytes_accessed,
            "peak_bytes": step.peak_bytes,
            "flops": step.flops,
            "roofline_seconds": step.roofline_seconds,
            "clips_per_second": batch / step.roofline_seconds,
            "bytes_per_clip": step.bytes_accessed / batch,
            "share_of_memory": step.peak_bytes / target.memory,
            "largest_batch": int(room) // 8 * 8,
        }
        for name, cost in (("frontend", costs.get("frontend")), ("frontend_and_augmentation", costs.get("augmented"))):
            if cost is not None:
                out[f"{name}_share_of_bytes"] = cost.bytes_accessed / step.bytes_accessed
                out[f"{name}_share_of_seconds"] = cost.roofline_seconds / step.roofline_seconds
    if "predict" in costs:
        out["predict_clips_per_second"] = batch / costs["predict"].roofline_seconds
    return out


def _state_bytes(program: Program) -> int:
    """Of weights, their average and the optimiser's variables."""
    network = program.model.network
    return 4 * sum(math.prod(v.shape) for v in (*network.variables, *network.variables, *program.optimizer.variables))


def _cost(program: Program, part: str, target: Topology) -> Cost:
    began = time.perf_counter()
    try:
        if keras.backend.backend() == "jax":
            import jax

            mesh = jax.sharding.Mesh(np.array(target.devices), ("batch",))
            compiled = lower(program, part, mesh).compile()
            analysis, memory, text = compiled.cost_analysis(), compiled.memory_analysis(), compiled.as_text()
        else:
            compiled = compile_stablehlo(lower(program, part), target)
            analysis, memory = compiled.cost_analysis(), compiled.get_compiled_memory_stats()
            text = "\n".join(module.to_string() for module in compiled.hlo_modules())
    except RuntimeError as error:
        raise _refused(error, target) from error
    if isinstance(analysis, list):
        analysis = analysis[0]
    seconds = time.perf_counter() - began
    optimal = analysis["optimal_seconds"]
    # Every custom call counts as -1.
    return Cost(
        analysis["flops"],
        analysis["bytes accessed"] + custom_call_bytes(text),
        memory.peak_memory_in_bytes,
        optimal - math.floor(optimal),
        seconds,
    )


def custom_call_bytes(hlo: str) -> int:
    """Operand and result bytes of the custom calls in an HLO module's text: the compiler counts none for them."""
    sizes: dict[str, int] = {}
    total = 0
    for line in hlo.splitlines():
        found = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)", line)
        if not found:
            continue
        name, shape, operation, rest = found.groups()
        sizes[name] = sum(
            _SIZES[kind] * math.prod(int(n) for n in dims.split(",") if n) for kind, dims in _SHAPE.findall(shape)
        )
        if operation == "custom-call" and not any(f'"{target}"' in rest for target in _NO_BYTES):
            operands = re.findall(r"%([\w.\-]+)", rest.split(")")[0])
            total += sizes[name] + sum(sizes.get(operand, 0) for operand in operands)
    return total


def _refused(error: Exception, target: Topology) -> UserError:
    text = str(error)
    needed = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm", text)
    if "RESOURCE_EXHAUSTED" in text or needed:
        used = f"needs {needed[1]} of {needed[2]}" if needed else "does not fit its memory"
        return UserError(f"{target.name}: a device {used}; lower --batch, or raise train.accumulate")
    where = re.search(r'op_name="([^"]+)"', text)
    return UserError(
        f"{target.name}: the compiler refuses {where[1] if where else 'the program'} ({text.strip().splitlines()[0]})"
    )


def _lower_jax(program: Program, part: str, mesh: Any) -> Any:
    import jax

    from birdtpu.training.jax_step import make_update, state_of

    if mesh is None:
        mesh = jax.sharding.Mesh(np.array(jax.devices("cpu")[:1]), ("batch",))
    spec = jax.sharding.PartitionSpec
    everywhere, split = jax.sharding.NamedSharding(mesh, spec()), jax.sharding.NamedSharding(mesh, spec("batch"))
    model = program.model

    def shapes(*before: int) -> dict[str, Any]:
        return {name: jax.ShapeDtypeStruct((*before, *shape), kind) for name, (shape, kind) in program.batch.items()}

    if part == "step":
        steps = jax.sharding.NamedSharding(mesh, spec(None, None, "batch"))
        state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state_of(model, program.optimizer))
        update = make_update(model, program.optimizer, program.train)
        traced = (
            jax.jit(update, in_shardings=(everywhere, steps), out_shardings=(everywhere, everywhere), donate_argnums=0),
            (state, shapes(1, program.train.accumulate)),
        )
    elif part == "predict":
        weights = [[v.value for v in vs] for vs in _variables(model)]
        given = [[jax.ShapeDtypeStruct(v.shape, v.dtype) for v in values] for values in weights]
        audio = jax.ShapeDtypeStruct((program.batch["audio"][0][0], program.recipe.clip_samples), "float32")

        def predict(weights: Any, audio: Any) -> Any:
            variables = [v for vs in _variables(model) for v in vs]
            values = [value for part in weights for value in part]
            with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
                return model(audio)["clipwise"]

        traced = jax.jit(predict, in_shardings=(everywhere, split), out_shardings=everywhere), (given, audio)
    else:
        function = jax.default_matmul_precision("highest")(_images(program, part))
        traced = jax.jit(function, in_shardings=(split,)), (shapes(),)
    jitted, arguments = traced
    jaxpr = None
    try:
        trace = jitted.trace(*arguments)
        jaxpr = trace.jaxpr
        return trace.lower(lowering_platforms=("tpu",))
    except NotImplementedError as error:
        name = re.search(r"primitive '?([\w\-]+)'?", str(error))
        raise _no_lowering(
            name[1] if name else str(error), _scopes(jaxpr, name[1]) if name and jaxpr else []
        ) from error


def _variables(model: SoundEventModel) -> tuple[list[Any], list[Any]]:
    return model.network.trainable_variables, model.network.non_trainable_variables


def _images(program: Program, part: str) -> Callable[[Any], Any]:
    """A batch to the network's image, its targets and mask: audio in and image out."""
    from birdtpu.layers.image import Image

    model = program.model
    image = next(layer for layer in model.network.layers if isinstance(layer, Image))

    def images(batch: Any) -> Any:
        if model.instances > 1:
            batch = {**batch, "audio": batch["audio"][:, 0]}
        if part == "frontend":
            return image(model.log_mel(batch["audio"][:, : program.recipe.clip_samples], batch["audio_gain"]))
        log_mel, labels = model.augmented(batch)
        return image(log_mel), labels

    return images


def _lower_tensorflow(program: Program, part: str, mesh: Any) -> bytes:
    import tensorflow as tf
    from tensorflow.compiler.tf2xla.ops import gen_xla_ops

    from birdtpu.training.tensorflow_step import TensorFlowStep

    model = program.model
    # A replica's program: the batch of one device.
    rows = program.batch["audio"][0][0] // program.devices
    given = {name: tf.TensorSpec((rows, *shape[1:]), kind) for name, (shape, kind) in program.batch.items()}
    if part == "step":
        step = TensorFlowStep(model, program.optimizer, program.train, tf.distribute.get_strategy(), jit=True)
        everyone = [[*range(program.devices)]]

        def sums(values: list[Any]) -> list[Any]:
            group = {"group_assignment": everyone, "reduce_op": "Add", "mode": "CrossReplica"}
            return [gen_xla_ops.xla_all_reduce(value, **group) for value in values]

        function = step.update_of(program.train, program.devices, sums, summed_by_keras=False)
        arguments: tuple = (tuple([given] * program.train.accumulate),)
    elif part == "predict":
        function, arguments = (
            (lambda audio: model(audio)["clipwise"]),
            (tf.TensorSpec((rows, program.recipe.clip_samples), tf.float32),),
        )
    else:
        function, arguments = _images(program, part), (given,)

    # The compiler's entry takes plain tensors only.
    def flat(*tensors: Any) -> Any:
        return function(*tf.nest.pack_sequence_as(arguments, tensors))

    compiled, specs = tf.function(flat, jit_compile=True, autograph=False), tf.nest.flatten(arguments)
    fast = tf.config.experimental.tensor_float_32_execution_enabled()
    exact_products()
    try:
        return compiled.experimental_get_compiler_ir(*specs)(stage="stablehlo_serialized", platform_name="CPU")
    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, ValueError) as error:
        text = str(error)
        refused = re.search(r"unsupported operations.*?: ?(\w+)|No registered '(\w+)'", text, re.DOTALL)
        place = re.search(r"\{\{node ([^}]+)\}\}", text)
        name = next((word for word in refused.groups() if word), "") if refused else text.strip().splitlines()[0]
        raise _no_lowering(name, [place[1]] if place else []) from error
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(fast)


def _no_lowering(operation: str, places: list[str]) -> UserError:
    where = f" in {places[0]}" if places else ""
    return UserError(f"{operation}{where} cannot be compiled for a TPU; take another operation or layer there")


def _scopes(jaxpr: Any, primitive: str) -> list[str]:
    """Where a primitive stands in a trace: names of layers."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == primitive:
            found.append(str(equation.source_info.name_stack))
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    outer = str(equation.source_info.name_stack)
                    found += [f"{outer}/{name}" if outer else name for name in _scopes(inner, primitive)]
    return found
