"""Compile a recipe's training step for TPUs that are not here, on both engines, one process each.

python benchmarks/compile.py --json FILE [--recipe birdcall2020] [--topology v5e:1x1 ...] [--backend jax ...]

Needs `pip install 'birdtpu[cpu,compile]'`. Minutes and some GB each; what stands in FILE is not done again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TOPOLOGIES = ["v5e:1x1", "v5e:2x4", "v6e:2x4", "v4:2x2x1", "v3:2x2"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", required=True, type=Path)
    parser.add_argument("--recipe", default="birdcall2020")
    parser.add_argument("--batch", default="64")
    parser.add_argument("--topology", nargs="+", default=TOPOLOGIES)
    parser.add_argument("--backend", nargs="+", default=["jax", "tensorflow"])
    args = parser.parse_args()
    found = json.loads(args.json.read_text()) if args.json.exists() else {}
    for topology in args.topology:
        for backend in args.backend:
            name = f"{args.recipe} {topology} {backend} {args.batch}"
            if name in found:
                continue
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder, "out.json")
                command = [sys.executable, "-m", "birdtpu", "compile", args.recipe, "--topology", topology,
                           "--batch", args.batch, "--backend", backend, "--json", str(out)]  # fmt: skip
                done = subprocess.run(
                    command, capture_output=True, text=True, env={**os.environ, "KERAS_BACKEND": backend}
                )
                if done.returncode < 0:
                    raise SystemExit(f"{name}: ended by signal {-done.returncode}; run it again")
                lines = (done.stdout + done.stderr).splitlines()
                found[name] = json.loads(out.read_text()) if out.exists() else {"refused": lines[-1] if lines else ""}
            print(f"{name}\n{done.stdout}{done.stderr[-500:]}", flush=True)
            args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
