"""Score a competition's recordings on Kaggle, without internet, and write submission.csv."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

COMPETITION = ""
INPUT = Path(os.environ.get("BIRDTPU_INPUT", "/kaggle/input"))
SITE = Path(os.environ.get("BIRDTPU_SITE", "/tmp/birdtpu-site"))
AUDIO = ("test_soundscapes", "test_audio", "test")


def first(name: str) -> Path:
    # Kaggle has moved its folders about; a competition's own are too many to walk through.
    for depth in range(5):
        if found := sorted(INPUT.glob("*/" * depth + name)):
            return found[0]
    sys.exit(f"{name}: not in {INPUT}; attach it to the notebook (Add input)")


def main() -> None:
    data, root = first("birdtpu-bundle.json").parent, first(COMPETITION)
    sample = root / "sample_submission.csv"
    folders = [root / name for name in AUDIO if (root / name).is_dir()]
    if not any(path.is_file() for folder in folders for path in folder.rglob("*")):
        # Before the competition is scored its recordings are not there: the sample shows that the notebook runs.
        print("no test recordings here; the sample is submitted as it is")
        shutil.copyfile(sample, "submission.csv")
        return
    packages = json.loads((data / "birdtpu-bundle.json").read_text("utf-8"))["packages"]
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--find-links", str(data)]
    subprocess.run([*install, "--target", str(SITE), *packages], check=True)
    # Before the image's own, which stay as they are.
    sys.path.insert(0, str(SITE))
    if "KERAS_BACKEND" not in os.environ and not importlib.util.find_spec("tensorflow"):
        os.environ["KERAS_BACKEND"] = "jax"
    import birdtpu

    output = Path(tempfile.mkdtemp())
    count, failures = birdtpu.predict(str(data), folders, output, submission=sample)
    for name, reason in failures:
        print(f"{name}: {reason}")
    shutil.copyfile(output / "submission.csv", "submission.csv")
    print(f"{count} files scored, {len(failures)} could not be")


if __name__ == "__main__":
    main()
