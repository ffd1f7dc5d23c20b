"""Every recipe with all its parts, around a tiny network, on one virtual device and on two: the losses of six steps.

python benchmarks/replicas.py --json FILE [--recipe NAME ...] [--backend tensorflow jax]

What stands in FILE is not done again.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
RECIPES = (
    "quickstart", "birdcall2020", "birdclef2021_inception", "birdclef2023_sed", "birdclef2024_pseudo",
    "rfcx2021_sliding",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", required=True, type=Path)
    parser.add_argument("--recipe", nargs="+", default=RECIPES)
    parser.add_argument("--backend", nargs="+", default=["tensorflow", "jax"])
    args = parser.parse_args()
    found = json.loads(args.json.read_text()) if args.json.exists() else {}
    for backend in args.backend:
        for name in args.recipe:
            key = f"{name} {backend}"
            if key not in found:
                one, two = (losses(backend, replicas, name) for replicas in (1, 2))
                apart = max(abs(a / b - 1) for a, b in zip(one, two, strict=True))
                found[key] = {"one": one, "two": two, "largest_relative_difference": apart}
                args.json.write_text(json.dumps(found, indent=1) + "\n")
            print(f"{key:36s} {found[key]['largest_relative_difference']:.1e}", flush=True)


def losses(backend: str, replicas: int, name: str) -> list[float]:
    # oneDNN's kernels are not always the same to the last bit.
    env = {**os.environ, "KERAS_BACKEND": backend, "TF_ENABLE_ONEDNN_OPTS": "0", "PYTHONPATH": str(PROJECT)}
    # Of several devices JAX always takes the statistics over all.
    settings = ["train.synchronized_batch_norm=true"] if backend == "tensorflow" else []
    command = [sys.executable, "tests/training/replica.py", str(replicas), name, *settings]
    done = subprocess.run(command, env=env, cwd=PROJECT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} on {backend}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])[name]["losses"]


if __name__ == "__main__":
    main()
