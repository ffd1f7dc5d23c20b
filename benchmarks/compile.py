"""Compile recipes' training steps for TPUs that are not here, on both engines, one process each.

python benchmarks/compile.py --json FILE [--recipe birdcall2020 ...] [--topology v5e:1x1 ...] [--backend jax ...]
    [--lower]

Needs `pip install 'birdtpu[cpu,compile]'`. Minutes and some GB each; what stands in FILE is not done again. With
`--lower` the step is only lowered for a TPU, at its full size and with static shapes: a minute each, and no libtpu.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
LOWER = """
import json, sys, time
from birdtpu.recipe import load_recipe
from birdtpu.training.compile import lower, make_program
program = make_program(load_recipe(sys.argv[1]), classes=264, batch=int(sys.argv[2]), devices=1)
began = time.perf_counter()
found = lower(program, "step")
text = found if isinstance(found, bytes) else found.as_text()
print(json.dumps({"lowered_bytes": len(text), "seconds": round(time.perf_counter() - began, 1)}))
"""
TOPOLOGIES = ["v5e:1x1", "v5e:2x4", "v6e:2x4", "v4:2x2x1", "v3:2x2"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", required=True, type=Path)
    parser.add_argument("--recipe", nargs="+", default=["birdcall2020"])
    parser.add_argument("--batch", default="64")
    parser.add_argument("--topology", nargs="+", default=TOPOLOGIES)
    parser.add_argument("--backend", nargs="+", default=["jax", "tensorflow"])
    parser.add_argument("--lower", action="store_true")
    args = parser.parse_args()
    found = json.loads(args.json.read_text()) if args.json.exists() else {}
    targets = ["lowered"] if args.lower else args.topology
    for recipe, target, backend in itertools.product(args.recipe, targets, args.backend):
        name = f"{recipe} {target} {backend} {args.batch}"
        if name in found:
            continue
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "out.json")
            command = [sys.executable, "-m", "birdtpu", "compile", recipe, "--topology", target,
                       "--batch", args.batch, "--backend", backend, "--json", str(out)]  # fmt: skip
            if args.lower:
                command = [sys.executable, "-c", LOWER, recipe, args.batch]
            env = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(PROJECT)}
            done = subprocess.run(command, capture_output=True, text=True, env=env)
            if done.returncode < 0:
                raise SystemExit(f"{name}: ended by signal {-done.returncode}; run it again")
            if args.lower and not done.returncode:
                out.write_text(done.stdout.splitlines()[-1])
            lines = (done.stdout + done.stderr).splitlines()
            found[name] = json.loads(out.read_text()) if out.exists() else {"refused": lines[-1] if lines else ""}
        print(f"{name}\n{done.stdout}{done.stderr[-500:]}", flush=True)
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
