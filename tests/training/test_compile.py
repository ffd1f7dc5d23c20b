"""The training step lowers for a TPU on both engines, and what does not is named. No libtpu is needed here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from birdtpu.errors import UserError
from birdtpu.recipe import recipe_names
from birdtpu.training.compile import _refused, custom_call_bytes, report_lines
from birdtpu.training.topology import DEVICES, Topology, open_topology

ROOT = Path(__file__).resolve().parents[2]
LOWERED = """
import json, sys
from birdtpu.recipe import load_recipe
from birdtpu.training.compile import lower, make_program
out = {}
for name in sys.argv[1:]:
    program = make_program(load_recipe(name), classes=5, batch=8, devices=2)
    for part in ("frontend", "augmented", "predict", "step"):
        found = lower(program, part)
        out[f"{name} {part}"] = len(found if isinstance(found, bytes) else found.as_text())
print(json.dumps(out))
"""
REFUSED = """
import keras, sys
from birdtpu.models.backbones import BACKBONES, Backbone
from birdtpu.recipe import load_recipe
from birdtpu.training.compile import lower, make_program

class Hostile(keras.layers.Layer):
    def call(self, x):
        flat = x[:, :4, :4, 0]
        if keras.backend.backend() == "jax":
            import jax
            return x * jax.numpy.abs(jax.numpy.linalg.eigvals(flat)).sum()
        import tensorflow as tf
        return tf.ensure_shape(tf.numpy_function(lambda x: x, [x], tf.float32), x.shape)

def build(shape, *_):
    return keras.Sequential([keras.Input(shape), keras.layers.Conv2D(4, 3, 8), Hostile(name="hostile_layer")])

BACKBONES["hostile"] = Backbone(build, channels=1)
recipe = load_recipe("quickstart", ["model.backbone=hostile", "train.precision=float32"])
program = make_program(recipe, classes=3, batch=8, devices=1)
try:
    lower(program, "predict")
except ValueError as error:
    print("REFUSED", error)
"""


def run(code: str, backend: str, *args: str) -> str:
    env = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code, *args], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_recipes_lower_for_a_tpu(backend):
    # The parts of every recipe around small networks; the large ones are compiled by benchmarks/compile.py.
    names = ["birdcall2020", *(name for name in recipe_names() if name.endswith(("-quick", "quickstart")))]
    found = json.loads(run(LOWERED, backend, *names))
    assert len(found) == 4 * len(names) and all(size > 1000 for size in found.values())


@pytest.mark.parametrize(("backend", "operation"), [("tensorflow", "PyFunc"), ("jax", "eig")])
def test_an_operation_that_is_refused_is_named_with_its_layer(backend, operation):
    line = run(REFUSED, backend)
    assert line.startswith(f"REFUSED {operation} in ") and "hostile_layer" in line
    assert line.endswith("cannot be compiled for a TPU; take another operation or layer there")


def test_bytes_of_custom_calls_are_operands_and_results():
    hlo = """
ENTRY %main (a: f32[8,128], b: bf16[4]) -> f32[8] {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0)
  %b = bf16[4]{0} parameter(1)
  %call.1 = (f32[8]{0}, s32[2]{0}) custom-call(%a, %b), custom_call_target="TopK"
  %free = f32[8,128]{1,0} custom-call(%a), custom_call_target="ConcatBitcast", backend_config={}
  ROOT %out = f32[8]{0} get-tuple-element(%call.1), index=0
}
"""
    assert custom_call_bytes(hlo) == 8 * 128 * 4 + 4 * 2 + 8 * 4 + 2 * 4


@pytest.mark.parametrize("name", ["v5e", "v9:2x2", "2x4", "v5e:2x", "v5e:axb"])
def test_a_topology_that_is_none_is_named(name):
    with pytest.raises(UserError, match=f"--topology {name}: write it as v5e:2x4; the generations are v2, v3"):
        open_topology(name)


def test_what_the_compiler_refuses_is_one_line():
    target = Topology("v5e:1x1", [], *DEVICES["v5e"])
    full = RuntimeError(
        "RESOURCE_EXHAUSTED: XLA:TPU compile: Ran out of memory in memory space hbm. Used 20.21G of 15.75G hbm.\nMore"
    )
    assert str(_refused(full, target)) == (
        "v5e:1x1: a device needs 20.21G of 15.75G; lower --batch, or raise train.accumulate"
    )
    other = RuntimeError('INTERNAL: no.\n metadata={op_name="jit(f)/resnet50/conv1" x}')
    assert str(_refused(other, target)) == "v5e:1x1: the compiler refuses jit(f)/resnet50/conv1 (INTERNAL: no.)"


def test_the_report_says_what_was_compiled():
    cost = {"flops": 2e9, "bytes_accessed": 1e9, "peak_bytes": 2**30, "roofline_seconds": 0.01, "compile_seconds": 3.0}
    found = {"recipe": "r", "recipe_hash": "0", "backend": "jax", "topology": "v5e:1x1", "devices": 1,
             "batch_per_device": 8, "parts": {"step": cost}, "share_of_memory": 0.25, "largest_batch": 32}  # fmt: skip
    lines = report_lines(found)
    assert lines[2].split() == ["step", "2.00", "1.00", "1.00", "10.00", "800", "3", "s"]
    assert lines[3] == "memory 25% full; largest batch, by proportion: 32"
