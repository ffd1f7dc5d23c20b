"""A bundle's script in environments like Kaggle's images: only their packages, and no network.

    python benchmarks/bundle.py --json FILE [--pythons 3.11 3.12 3.13] [--backends tensorflow jax]

For each Python and backend an environment is made of numpy, pandas, soundfile, librosa, Keras and TensorFlow or JAX
(and what they need) by pip. The script then runs in a network namespace of its own that has no interface up (`unshare
-rn`), on recordings of a made competition; what it writes is checked against the sample's rows and columns and, to the
last digits, against `birdtpu predict` here.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))
IMAGE = ("numpy", "pandas", "soundfile", "librosa", "keras")
BACKENDS = {"tensorflow": "tensorflow-cpu==2.20.0", "jax": "jax"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", required=True, type=Path)
    parser.add_argument("--pythons", nargs="+", default=["3.11", "3.12", "3.13"])
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=list(BACKENDS))
    args = parser.parse_args()
    import numpy as np
    import pandas as pd

    from birdtpu.data.synthesis import synthesize
    from birdtpu.models.build import SoundEventModel
    from birdtpu.publish.bundle import bundle
    from birdtpu.publish.places import parse
    from birdtpu.recipe import load_recipe
    from birdtpu.run import Run
    from birdtpu.species import ClassList
    from birdtpu.workflows.predict import predict

    found = json.loads(args.json.read_text()) if args.json.exists() else {}
    with tempfile.TemporaryDirectory(prefix="birdtpu-bundle-") as folder:
        home = Path(folder)
        synthesize(home / "world", species=3, recordings=2, soundscapes=2)
        recipe, classes = load_recipe("quickstart"), ClassList(("one", "two", "three"))
        run = Run(str(home / "run"), recipe, classes, {"version": "0", "data": [], "data_crc32c": [], "fold": None})
        run = run.save_weights(SoundEventModel(recipe, len(classes), weights="none").network)
        root = home / "input" / "birdclef-2026"
        shutil.copytree(home / "world" / "train_soundscapes", root / "test_soundscapes")
        stems = sorted(path.stem for path in (root / "test_soundscapes").glob("*.ogg"))
        rows = [f"{stem}_{end}" for stem in stems for end in (5, 10, 15, 20)]
        pd.DataFrame({"row_id": rows, **dict.fromkeys(classes.codes, 0.0)}).to_csv(
            root / "sample_submission.csv", index=False
        )
        data, kernel = bundle(run, home / "bundle", parse("me/dawn-chorus"), competition="birdclef-2026")
        shutil.copytree(data, home / "input" / "dawn-chorus")
        predict(run, root / "test_soundscapes", home / "here", submission=root / "sample_submission.csv")
        truth = pd.read_csv(home / "here" / "submission.csv")
        for python in args.pythons:
            for backend in args.backends:
                name = f"{python} {backend}"
                if name in found:
                    continue
                environment, work = home / f"env-{python}-{backend}", home / f"work-{python}-{backend}"
                subprocess.run([f"python{python}", "-m", "venv", environment], check=True)
                inside = environment / "bin" / "python"
                install = [inside, "-m", "pip", "install", "-q", *IMAGE, BACKENDS[backend]]
                subprocess.run(install, check=True)
                work.mkdir()
                settings = {"BIRDTPU_INPUT": str(home / "input"), "BIRDTPU_SITE": str(work / "site")}
                bare = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "TMPDIR", "LANG")}
                began = time.perf_counter()
                done = subprocess.run(
                    ["unshare", "-rn", inside, kernel / "predict.py"],
                    cwd=work, env={**bare, **settings}, capture_output=True, text=True, check=False,
                )  # fmt: skip
                assert done.returncode == 0, done.stdout + done.stderr
                made = pd.read_csv(work / "submission.csv")
                assert list(made.columns) == list(truth.columns) and list(made["row_id"]) == rows
                codes = list(classes.codes)
                apart = float(np.abs(made[codes].to_numpy() - truth[codes].to_numpy()).max())
                packages = subprocess.run(
                    [inside, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True
                )
                found[name] = {
                    "seconds": round(time.perf_counter() - began, 1),
                    "rows": len(made),
                    "largest_difference": apart,
                    "packages": packages.stdout.split(),
                }
                args.json.write_text(json.dumps(found, indent=1) + "\n")
                print(f"{name}: {found[name]['seconds']} s, {len(made)} rows, apart by {apart:.2g}", flush=True)
                shutil.rmtree(environment)


if __name__ == "__main__":
    main()
