"""Does colab_bootstrap.py make bare images like Colab's and Kaggle's ready, and leave alone what must stay?

    python benchmarks/bootstrap.py --folder images --json bootstrap.json [--uv uv] [--python312 P] [--python313 P]

Each case is an environment with the image's packages that birdtpu meets (no chip): the script runs in it, then
birdtpu does. Killed or repeated, it goes on with the cases that the JSON does not have. Needs uv and the package
index; a case takes minutes and up to 5 GB, which go when it ends.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "colab_bootstrap.py"
# Colab has libtpu 0.0.21, of which the index has no wheel for its Python.
COLAB = [
    "jax==0.7.2", "jaxlib==0.7.2", "keras==3.13.2", "libtpu==0.0.21.1", "numpy<2.4", "pandas==2.2.3",
    "protobuf==5.29.5", "soundfile", "soxr",
]  # fmt: skip
KAGGLE = ["tensorflow-cpu==2.20.0", "jax[tpu]", "keras>3", "numpy", "pandas"]
VERSIONS = (
    "import json\nfrom importlib import metadata\n"
    "print(json.dumps({each.name.lower().replace('_', '-'): each.version for each in metadata.distributions()}))"
)
# The smallest training of every part: two steps an epoch, shards to score.
QUICKSTART = [
    "audio.clip_seconds=2.0", "audio.margin_seconds=0.5", "audio.record_seconds=6.0", "frontend.hop_length=1024",
    "frontend.n_mels=32", "model.features=16", "train.batch_size=8", "train.epochs=1", "train.steps_per_epoch=2",
    "predict.hop_seconds=1.0", "evaluate.bootstrap=50",
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """An image: its Python, its packages, and the engine asked for there."""

    python: str
    packages: list[str]
    engine: str


CASES = {
    "colab": Case("3.13", COLAB, "jax"),
    "kaggle": Case("3.12", KAGGLE, "jax"),
    "kaggle, --engine tensorflow": Case("3.12", KAGGLE, "tensorflow"),
}


def call(command: list[str | Path], env: dict[str, str]) -> dict:
    """Run a command; returns its exit code, seconds and last lines."""
    began = time.monotonic()
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    return {"code": done.returncode, "seconds": round(time.monotonic() - began, 1), "last_lines": lines[-30:]}


def installed(python: Path) -> dict[str, str]:
    done = subprocess.run([python, "-c", VERSIONS], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def run(case: Case, folder: Path, uv: str, base_python: str) -> dict:
    python = folder / "image" / "bin" / "python"
    quiet = {name: value for name, value in os.environ.items() if not name.startswith(("KAGGLE", "PYTHON", "VIRTUAL"))}
    # Without a chip JAX has to be told that there is a CPU, and libtpu not to wait for Google's metadata server. The
    # backend is what the notebook's cell would have set.
    env = quiet | {"HOME": str(folder), "KERAS_BACKEND": case.engine, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    subprocess.run([uv, "--no-config", "venv", "-q", "--seed", "--python", base_python, folder / "image"], check=True)
    subprocess.run([uv, "--no-config", "pip", "install", "-q", "--python", python, *case.packages], check=True)
    before = installed(python)
    bootstrap = call([python, SCRIPT, "--engine", case.engine], env)
    after = installed(python)
    birdtpu = folder / ("image" if case.engine == "jax" else "birdtpu-tensorflow") / "bin" / "birdtpu"
    if not birdtpu.exists():
        raise SystemExit("no birdtpu was installed:\n" + "\n".join(bootstrap["last_lines"]))
    settings = [part for setting in QUICKSTART for part in ("--set", setting)]
    return {
        "python": case.python,
        "engine": case.engine,
        "bootstrap": bootstrap,
        "before": before,
        "changed": {name: [old, after.get(name)] for name, old in before.items() if after.get(name) != old},
        "added": {name: version for name, version in after.items() if name not in before},
        "environment": {} if case.engine == "jax" else installed(birdtpu.with_name("python")),
        "import": call(
            [birdtpu.with_name("python"), "-c", "import birdtpu, keras; print(keras.config.backend())"], env
        ),
        "doctor": call([birdtpu, "doctor"], env),
        "show": call([birdtpu, "show", "quickstart"], env),
        "quickstart": call([birdtpu, "quickstart", folder / "quickstart", *settings], env),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the environments; its cases are removed")
    parser.add_argument("--json", type=Path, default=Path("bootstrap.json"))
    parser.add_argument("--uv", default="uv")
    parser.add_argument("--python312", default="3.12")
    parser.add_argument("--python313", default="3.13")
    arguments = parser.parse_args()
    pythons = {"3.12": arguments.python312, "3.13": arguments.python313}
    report = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    for i, (name, case) in enumerate(CASES.items()):
        if name not in report:
            folder = arguments.folder.resolve() / f"case-{i}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            report[name] = run(case, folder, arguments.uv, pythons[case.python])
            shutil.rmtree(folder)
            arguments.json.write_text(json.dumps(report, indent=1) + "\n")
        found = report[name]
        codes = {step: found[step]["code"] for step in ("bootstrap", "import", "doctor", "show", "quickstart")}
        print(f"{name}: {found['bootstrap']['seconds']} s, changed {found['changed']}, exit codes {codes}", flush=True)
    # Without a chip the doctor finds one thing wrong, and ends with 1.
    steps = ("import", "show", "quickstart")
    sys.exit(any(found["changed"] or any(found[step]["code"] for step in steps) for found in report.values()))


if __name__ == "__main__":
    main()
