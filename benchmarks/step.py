"""How fast the training step is beside the same network in PyTorch, on this machine's CPU or GPU.

    python benchmarks/step.py --json step.json [--networks quickstart EfficientNetB0 ResNet50] [--repetitions 5]

A step is: forward with batch statistics, binary cross-entropy, backward, AdamW and the moving average of all weights.
`network` starts from a log-mel that lies ready; `whole` (ours alone) from int16 audio, with frontend and augmentation.
float32 on a CPU, bfloat16 on a GPU. Each way has a process of its own. The ways take turns, and a ratio is the median
of the turns' ratios, so that a busy neighbour falls on all alike; core time feels one less.

PyTorch is none of our dependencies: --torch-python names a Python that has it; else this one if it does; else an
environment is made in --work. What is not installed is left out, and a network that stands in FILE is not done again.
"""

import argparse
import importlib.util
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CLASSES = 264
# Small, so that thousands of steps on one batch leave every number ordinary.
LEARNING_RATE = 1e-6
EMA_DECAY = 0.999
# Seconds: a turn that lasts longer is not repeated, and a process that is silent for longer is given up.
LONGEST_TURN, LONGEST_ANSWER = 15, 240
Runs = dict[str, Callable[[int], None]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--networks", nargs="+", default=["quickstart", "EfficientNetB0"], metavar="NAME",
                        choices=["quickstart", "EfficientNetB0", "ResNet50"])  # fmt: skip
    parser.add_argument("--ways", nargs="+", metavar="WAY", help="tensorflow tensorflow-jit jax torch torch-compile")
    parser.add_argument("--batch", type=int, help="default: 32 and 16 on a CPU, 256 on a GPU")
    parser.add_argument("--repetitions", type=int, default=5, help="turns of each way")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn, at least one step")
    parser.add_argument("--device", choices=["cpu", "gpu"], help="default: a GPU where nvidia-smi is")
    parser.add_argument("--threads", type=int, help="cores of every way; default: all")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="the GPU's, bfloat16 (H200: 989)")
    parser.add_argument("--torch-python", help="a Python that has torch")
    parser.add_argument("--work", type=Path, help="folder of the environment made for torch; kept")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--spec", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.device = args.device or ("gpu" if shutil.which("nvidia-smi") else "cpu")
    return args


def main() -> None:
    args = arguments()
    if args.way:
        serve(args.way, json.loads(args.spec))
        return
    if args.threads:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    found = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        pythons = pythons_of(args, args.work or Path(temporary))
        for name in args.networks:
            key = f"{name} {args.device}"
            if key not in found:
                found[key] = measure(name, pythons, args)
                report(key, found[key])
            if args.json:
                args.json.write_text(json.dumps(found, indent=1) + "\n")


def pythons_of(args: argparse.Namespace, work: Path) -> dict[str, str]:
    """Each way -> the Python that runs it."""
    gpu = ["torch-compile"] if args.device == "gpu" else []
    ways = args.ways or ["tensorflow", "tensorflow-jit", "jax", "torch", *gpu]
    here = {way: sys.executable for way in ways if importlib.util.find_spec(way.split("-")[0])}
    peers = [way for way in ways if way.startswith("torch")]
    if args.torch_python:
        return here | dict.fromkeys(peers, args.torch_python)
    if any(way not in here for way in peers):
        return here | dict.fromkeys(peers, make_environment(work))
    return here


def make_environment(folder: Path) -> str:
    """A Python with torch; the build for CPUs where its index can be reached."""
    python, finished = folder / "bin" / "python", folder / "installed"
    if not finished.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--retries", "1", "torch"]
        if subprocess.run([*install, "--index-url", CPU_INDEX], check=False).returncode:
            subprocess.run(install, check=True)
        finished.touch()
    return str(python)


# The process that counts.


class Worker:
    """A way in a process of its own: built and warm once made, it waits between turns."""

    def __init__(self, python: str, way: str, spec: dict[str, Any]) -> None:
        environment = {
            "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0") if spec["device"] == "gpu" else "",
            "JAX_PLATFORMS": "cuda" if spec["device"] == "gpu" else "cpu",
            # Threads that spin while they wait slow the other ways' turns, and PyTorch itself beside a busy neighbour.
            "OMP_WAIT_POLICY": "PASSIVE",
            "KERAS_BACKEND": way.split("-")[0],
            "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(PROJECT)])),
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "TF_FORCE_GPU_ALLOW_GROWTH": "true",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [python, __file__, "--way", way, "--spec", json.dumps(spec)],
            env=os.environ | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
        )  # fmt: skip
        self.facts = self._answer()

    def turn(self, kind: str) -> dict[str, float]:
        """Time some steps of a kind."""
        print(kind, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        watch = threading.Timer(LONGEST_ANSWER, self.process.kill)
        watch.start()
        try:
            for line in self.process.stdout:
                if line.startswith("{"):
                    return json.loads(line)
        finally:
            watch.cancel()
        self.errors.seek(0)
        raise ChildProcessError((self.errors.read().strip().splitlines() or ["ended without a word"])[-1])

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.errors.close()


def measure(name: str, pythons: dict[str, str], args: argparse.Namespace) -> dict[str, Any]:
    """Every way in turn, `repetitions` times."""
    spec = spec_of(name, args)
    cores = len(os.sched_getaffinity(0))
    result = {**spec, "cores": cores, "load": [os.getloadavg()[0]], "turns": args.repetitions, "ways": {}}
    workers: dict[str, Worker] = {}
    turns: dict[tuple[str, str], list[dict[str, float]]] = {}
    try:
        for way, python in pythons.items():
            print(f"{name}: building {way}", flush=True)
            try:
                workers[way] = Worker(python, way, spec)
                print(f"  {workers[way].facts['warm_seconds']} s", flush=True)
            except ChildProcessError as error:
                result["ways"][way] = {"refused": str(error)}
        counts = {json.dumps(worker.facts["weights"]) for worker in workers.values()}
        if len(counts) > 1:
            raise SystemExit(f"{name}: not the same network: { ({w: v.facts['weights'] for w, v in workers.items()}) }")
        for _ in range(args.repetitions):
            for way, worker in workers.items():
                for kind, steps in worker.facts["steps"].items():
                    taken = turns.setdefault((way, kind), [])
                    if not taken or taken[0]["seconds"] * steps < LONGEST_TURN:
                        taken.append(worker.turn(kind))
    finally:
        for worker in workers.values():
            worker.close()
    result["load"].append(os.getloadavg()[0])
    for way, worker in workers.items():
        result["ways"][way] = worker.facts
    return summary(result, turns, args.peak_tflops)


def spec_of(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """What both sides have to know of a network."""
    sys.path.insert(0, str(PROJECT))
    from birdtpu.ops.framing import frame_count

    recipe = recipe_for(name)
    batch = args.batch or (256 if args.device == "gpu" else 32 if name == "quickstart" else 16)
    frontend = recipe.frontend
    return {
        "network": name,
        "device": args.device,
        "batch": batch,
        "seconds": args.seconds,
        "log_mel": [frame_count(recipe.clip_samples, frontend.hop_length), frontend.n_mels],
        "image_size": frontend.image_size and list(frontend.image_size),
        "features": recipe.model.features,
        "dropout": recipe.model.dropout,
        "weight_decay": recipe.train.weight_decay,
    }


def recipe_for(name: str, settings: tuple[str, ...] = ()) -> Any:
    """quickstart, or birdcall2020 with another backbone."""
    from birdtpu.recipe import load_recipe

    if name == "quickstart":
        return load_recipe("quickstart", settings)
    return load_recipe("birdcall2020", (f"model.backbone={name}", "model.weights=none", *settings))


def summary(result: dict[str, Any], turns: dict[tuple[str, str], list[dict[str, float]]], peak: float) -> dict:
    """Rates, core time, and ratios to the faster of PyTorch's ways, turn by turn."""
    batch = result["batch"]
    peers = [way for way, kind in turns if way.startswith("torch")]
    medians = {key: statistics.median(turn["seconds"] for turn in taken) for key, taken in turns.items()}
    peer = min(peers, key=lambda way: medians[way, "network"], default=None)
    gflop = result["ways"][peer]["gflop_per_clip"] if peer else None
    for (way, kind), taken in turns.items():
        rates = [batch / turn["seconds"] for turn in taken]
        cores = statistics.median(turn["core_seconds"] for turn in taken)
        figures = {
            "clips_per_second": round(statistics.median(rates), 2),
            "each": [round(rate, 2) for rate in rates],
            "core_ms_per_clip": round(cores / batch * 1e3, 3),
        }
        if peer and kind == "network":
            theirs = turns[peer, kind]
            pairs = [(a["seconds"], b["seconds"]) for a, b in zip(theirs, taken, strict=False)]
            figures["of_torch"] = round(statistics.median(a / b for a, b in pairs), 3)
            figures["of_torch_by_core_time"] = round(
                statistics.median(turn["core_seconds"] for turn in theirs) / cores, 3
            )
            if result["device"] == "gpu":
                figures["share_of_peak"] = round(figures["clips_per_second"] * gflop / peak / 1e3, 4)
        result["ways"][way][kind] = figures
    return result


def report(key: str, result: dict[str, Any]) -> None:
    print(f"{key}: batch {result['batch']}, {result['cores']} cores, load {result['load'][0]:.1f}")
    print(f"  {'':24}{'clips/s':>10}{'core ms':>10}{'of torch':>10}{'by core':>10}{'of peak':>10}")
    for way, facts in result["ways"].items():
        if "refused" in facts:
            print(f"  {way:24}refused: {facts['refused']}")
        for kind in facts.get("steps", {}):
            figures = facts[kind]
            names = ("clips_per_second", "core_ms_per_clip", "of_torch", "of_torch_by_core_time", "share_of_peak")
            cells = "".join(f"{figures[name]:10.4g}" if name in figures else f"{'':10}" for name in names)
            print(f"  {way + ' ' + kind:24}{cells}", flush=True)


# The process that works.


def serve(way: str, spec: dict[str, Any]) -> None:
    """Build and warm up a way, say what it is, then time a turn for each line that comes."""
    began = time.perf_counter()
    make = {"tensorflow": on_tensorflow, "jax": on_jax, "torch": on_torch}[way.split("-")[0]]
    facts, runs = make(spec, way.endswith(("-jit", "-compile")))
    steps = {}
    for kind, run in runs.items():
        run(1)
        steps[kind] = max(1, round(spec["seconds"] / timed(run, 1)["seconds"]))
    print(json.dumps({**facts, "steps": steps, "warm_seconds": round(time.perf_counter() - began, 1)}), flush=True)
    for line in sys.stdin:
        kind = line.strip()
        print(json.dumps(timed(runs[kind], steps[kind])), flush=True)


def timed(run: Callable[[int], None], steps: int) -> dict[str, float]:
    """Seconds of a step, on the wall and on all cores."""
    wall, cores = time.perf_counter(), time.process_time()
    run(steps)
    return {
        "seconds": (time.perf_counter() - wall) / steps,
        "core_seconds": (time.process_time() - cores) / steps,
    }


# Ours.


class FromLogMel:
    """A model whose batches hold log-mels: the network alone, in the true step."""

    def __init__(self, network: Any) -> None:
        self.network, self.instances = network, 1

    def augmented(self, batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return batch["log_mel"], batch


def ours(spec: dict[str, Any], jit: str) -> tuple[Any, Any, Any]:
    """`(accelerator, train, model)` as a training makes them."""
    from birdtpu.models.build import SoundEventModel
    from birdtpu.training.step import resolved
    from birdtpu.training.strategy import find_accelerator

    precision = "mixed_bfloat16" if spec["device"] == "gpu" else "float32"
    settings = {"batch_size": spec["batch"], "precision": precision, "jit": jit, "learning_rate": LEARNING_RATE}
    recipe = recipe_for(spec["network"], tuple(f"train.{key}={value}" for key, value in settings.items()))
    accelerator = find_accelerator()
    train = resolved(recipe.train, accelerator.replicas)
    return accelerator, train, SoundEventModel(recipe, CLASSES, precision=accelerator.precision(train))


def our_batches(spec: dict[str, Any], model: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Each kind -> the model that takes it, and its batch."""
    import numpy as np

    rng, rows = np.random.default_rng(0), spec["batch"]
    samples = recipe_for(spec["network"]).source_samples
    common = {
        "targets": (rng.random((rows, CLASSES)) < 0.01).astype(np.float32),
        "target_mask": np.ones((rows, CLASSES), np.float32),
        "weight": np.ones(rows, np.float32),
        "row": np.arange(rows, dtype=np.int32),
        "seed": rng.integers(1 << 31, size=rows, dtype=np.int32),
    }
    log_mel = rng.random((rows, *spec["log_mel"]), np.float32)
    audio = rng.integers(-(1 << 15), 1 << 15, (rows, samples), dtype=np.int16)
    return {
        "network": (FromLogMel(model.network), {**common, "log_mel": log_mel}),
        "whole": (model, {**common, "audio": audio, "audio_gain": np.full(rows, 2.0**-15, np.float32)}),
    }


def our_facts(version: str, network: Any) -> dict[str, Any]:
    statistics = [v for v in network.non_trainable_variables if v.path.endswith(("moving_mean", "moving_variance"))]
    parts = {"trainable": network.trainable_variables, "statistics": statistics}
    return {
        "version": version,
        "weights": {name: sum(math.prod(v.shape) for v in values) for name, values in parts.items()},
    }


def on_tensorflow(spec: dict[str, Any], jit: bool) -> tuple[dict[str, Any], Runs]:
    import tensorflow as tf

    from birdtpu.training.step import make_optimizer

    accelerator, train, model = ours(spec, "on" if jit else "off")

    def run_of(taker: Any, batch: dict[str, Any]) -> Callable[[int], None]:
        step = accelerator.step(taker, make_optimizer(model.network, train, 1 << 20), train)
        batches = tf.data.Dataset.from_tensors(batch).repeat()
        if accelerator.kind == "gpu":
            batches = batches.apply(tf.data.experimental.prefetch_to_device("/GPU:0"))
        feed = step.feed(batches)

        def run(steps: int) -> None:
            losses = [step.run(feed, 1) for _ in range(steps)]
            losses[-1].numpy()

        return run

    runs = {kind: run_of(*each) for kind, each in our_batches(spec, model).items()}
    return our_facts(tf.__version__, model.network), runs


def on_jax(spec: dict[str, Any], jit: bool) -> tuple[dict[str, Any], Runs]:
    import jax

    from birdtpu.training.jax_step import make_update, state_of, unrolled
    from birdtpu.training.step import make_optimizer

    _, train, model = ours(spec, "on")
    optimizer = make_optimizer(model.network, train, 1 << 20)

    def run_of(taker: Any, batch: dict[str, Any]) -> Callable[[int], None]:
        # As JaxStep does, but that the batch lies on the device.
        scan = unrolled if spec["device"] == "cpu" else jax.lax.scan
        update = jax.jit(make_update(taker, optimizer, train, scan), donate_argnums=0)
        held = {"state": jax.device_put(state_of(taker, optimizer))}
        placed = jax.device_put({key: value[None, None] for key, value in batch.items()})

        def run(steps: int) -> None:
            for _ in range(steps):
                held["state"], loss = update(held["state"], placed)
            jax.block_until_ready((held["state"], loss))

        return run

    runs = {kind: run_of(*each) for kind, each in our_batches(spec, model).items()}
    return our_facts(jax.__version__, model.network), runs


# PyTorch's: the same networks, written as PyTorch is. Where Keras pads one side by a copy, a convolution here pads both
# sides itself: the shapes are the same, the work a little less.


def on_torch(spec: dict[str, Any], compiled: bool) -> tuple[dict[str, Any], Runs]:
    import torch
    from torch.nn import functional as F

    device = "cuda" if spec["device"] == "gpu" else "cpu"
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.backends.cudnn.benchmark = True
    network = peer_network(spec).to(device, memory_format=torch.channels_last).train()
    parameters, buffers = list(network.parameters()), [b for b in network.buffers() if b.is_floating_point()]
    kernels = {"params": [p for p in parameters if p.ndim > 1], "weight_decay": spec["weight_decay"]}
    vectors = {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([kernels, vectors], lr=LEARNING_RATE, eps=1e-7, fused=True)
    values = [v.detach() for v in (*parameters, *buffers)]
    averages = [v.clone() for v in values]
    rows = spec["batch"]
    log_mel = torch.rand(rows, *spec["log_mel"], device=device)
    targets = (torch.rand(rows, CLASSES, device=device) < 0.01).float()
    mask, weight = torch.ones_like(targets), torch.ones(rows, device=device)
    gflop = gflop_of(network, log_mel[:2])
    forward = torch.compile(network) if compiled else network

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = forward(log_mel)
        cost = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        loss = ((cost * mask).sum(1) / mask.sum(1) * weight).sum() / rows
        loss.backward()
        optimizer.step()
        torch._foreach_lerp_(averages, values, 1 - EMA_DECAY)
        return loss.detach()

    def run(steps: int) -> None:
        losses = [step() for _ in range(steps)]
        losses[-1].item()

    statistics = [b for name, b in network.named_buffers() if name.endswith(("running_mean", "running_var"))]
    parts = {"trainable": parameters, "statistics": statistics}
    weights = {name: sum(v.numel() for v in values) for name, values in parts.items()}
    return {"version": torch.__version__, "weights": weights, "gflop_per_clip": gflop}, {"network": run}


def gflop_of(network: Any, log_mel: Any) -> float:
    """A training step's a clip, products and sums of convolutions and dense layers alone: three times the forward's."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(log_mel)
    network.train()
    return round(3 * counter.get_total_flops() / len(log_mel) / 1e9, 4)


def peer_network(spec: dict[str, Any]) -> Any:
    """Log-mel `(batch, frames, mels)` to the clip's logits."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    build = {"quickstart": small_cnn, "EfficientNetB0": efficientnet_b0, "ResNet50": resnet50}[spec["network"]]

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, channels, scale, offset = build()
            self.register_buffer("scale", torch.tensor(scale).view(1, -1, 1, 1))
            self.register_buffer("offset", torch.tensor(offset).view(1, -1, 1, 1))
            self.dropout_before, self.dropout_after = nn.Dropout(spec["dropout"]), nn.Dropout(spec["dropout"])
            self.features = nn.Linear(channels, spec["features"])
            self.attention = nn.Linear(spec["features"], CLASSES)
            self.classify = nn.Linear(spec["features"], CLASSES)

        def forward(self, log_mel: Any) -> Any:
            x = log_mel[:, None]
            if spec["image_size"]:
                x = F.interpolate(x, spec["image_size"], mode="bilinear", antialias=True)
            x = (x * self.scale + self.offset).contiguous(memory_format=torch.channels_last)
            x = self.backbone(x).mean(3)
            x = F.max_pool1d(x, 3, 1, 1) + F.avg_pool1d(x, 3, 1, 1, count_include_pad=False)
            x = self.dropout_before(x.transpose(1, 2))
            x = self.dropout_after(F.relu(self.features(x)))
            with torch.autocast(x.device.type, enabled=False):
                x = x.float()
                log_att = F.log_softmax(torch.tanh(self.attention(x)), 1)
                logits = self.classify(x)
                present = torch.logsumexp(log_att + F.logsigmoid(logits), 1)
                return present - torch.logsumexp(log_att + F.logsigmoid(-logits), 1)

    return Network()


def conv_norm(
    channels: int, filters: int, kernel: int, stride: int = 1, groups: int = 1, epsilon: float = 1e-3, act: str = ""
) -> Any:
    """Convolution without bias, batch norm, activation."""
    from torch import nn

    conv = nn.Conv2d(channels, filters, kernel, stride, kernel // 2, groups=groups, bias=False)
    acts = [getattr(nn, act)(inplace=True)] if act else []
    return nn.Sequential(conv, nn.BatchNorm2d(filters, eps=epsilon), *acts)


def small_cnn() -> tuple[Any, int, list[float], list[float]]:
    """The backbone, its last channels, and the scale and offset of its pixels."""
    from torch import nn

    layers, channels = [], 1
    for filters, repeats, pool in ((16, 1, (2, 2)), (32, 2, (2, 2)), (64, 2, (2, 2)), (96, 2, (1, 2))):
        for _ in range(repeats):
            layers.append(conv_norm(channels, filters, 3, act="ReLU"))
            channels = filters
        layers.append(nn.AvgPool2d(pool))
    return nn.Sequential(*layers), channels, [2.0], [-1.0]


def efficientnet_b0() -> tuple[Any, int, list[float], list[float]]:
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, channels: int, filters: int, kernel: int, stride: int, expand: int, drop: float) -> None:
            super().__init__()
            inner, squeezed = channels * expand, max(1, channels // 4)
            self.expand = conv_norm(channels, inner, 1, act="SiLU") if expand > 1 else nn.Identity()
            self.depthwise = conv_norm(inner, inner, kernel, stride, inner, act="SiLU")
            self.excite = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(inner, squeezed, 1), nn.SiLU(inplace=True),
                nn.Conv2d(squeezed, inner, 1), nn.Sigmoid(),
            )  # fmt: skip
            self.project = conv_norm(inner, filters, 1)
            self.residual, self.keep = stride == 1 and channels == filters, 1 - drop

        def forward(self, inputs: Any) -> Any:
            x = self.depthwise(self.expand(inputs))
            x = self.project(x * self.excite(x))
            if not self.residual:
                return x
            kept = torch.empty(len(x), 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(self.keep)
            return inputs + x * (kept / self.keep)

    blocks, channels = [conv_norm(3, 32, 3, 2, act="SiLU")], 32
    stages = ((3, 1, 16, 1, 1), (3, 2, 24, 6, 2), (5, 2, 40, 6, 2), (3, 3, 80, 6, 2), (5, 3, 112, 6, 1),
              (5, 4, 192, 6, 2), (3, 1, 320, 6, 1))  # fmt: skip
    for kernel, repeats, filters, expand, stride in stages:
        for i in range(repeats):
            drop = 0.2 * (len(blocks) - 1) / 16
            blocks.append(Block(channels, filters, kernel, 1 if i else stride, expand, drop))
            channels = filters
    backbone = nn.Sequential(*blocks, conv_norm(channels, 1280, 1, act="SiLU"))
    means, deviations = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return backbone, 1280, [1 / d for d in deviations], [-m / d for m, d in zip(means, deviations, strict=True)]


def resnet50() -> tuple[Any, int, list[float], list[float]]:
    """The first version, as Keras has it: a stage's stride stands in its first convolution."""
    from torch import nn
    from torch.nn import functional as F

    epsilon = 1.001e-5

    class Block(nn.Module):
        def __init__(self, channels: int, width: int, stride: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                conv_norm(channels, width, 1, stride, epsilon=epsilon, act="ReLU"),
                conv_norm(width, width, 3, epsilon=epsilon, act="ReLU"),
                conv_norm(width, 4 * width, 1, epsilon=epsilon),
            )
            same = channels == 4 * width
            self.shortcut = nn.Identity() if same else conv_norm(channels, 4 * width, 1, stride, epsilon=epsilon)

        def forward(self, x: Any) -> Any:
            return F.relu(self.body(x) + self.shortcut(x), inplace=True)

    blocks, channels = [conv_norm(3, 64, 7, 2, epsilon=epsilon, act="ReLU"), nn.MaxPool2d(3, 2, 1)], 64
    for width, repeats, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(repeats):
            blocks.append(Block(channels, width, 1 if i else stride))
            channels = 4 * width
    return nn.Sequential(*blocks), channels, [255.0], [-103.939, -116.779, -123.68]


if __name__ == "__main__":
    main()
