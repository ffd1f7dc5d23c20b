"""A bundle predicts where there is no network and nothing but what Kaggle's images have."""

import importlib.metadata
import json
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

import birdtpu
from birdtpu.errors import UserError
from birdtpu.publish import release
from birdtpu.publish.bundle import CARRIED, PYTHONS, bundle, own_wheel
from birdtpu.publish.places import parse
from birdtpu.run import open_run

# With JAX alone, which is imported sooner; benchmarks/bundle.py has TensorFlow's images too.
IMAGE = ("numpy", "pandas", "jax", "keras", "soundfile", "librosa", "pip")
# One of them is always said to sing, the other never.
CHOSEN = {"eurbla": 0.0, "eurrob1": 1.0}
ROWS = [f"{file}_{end}" for file in ("BC_1", "BC_2") for end in (5, 10)]

# Finds nothing but what the image has, the standard library and what lies in the script's own folder; no network.
GUARD = """
import importlib.machinery, importlib.util, os, socket, sys
ALLOWED = set(os.environ["GUARD_ALLOWED"].split(","))
class Guard:
    @staticmethod
    def find_spec(name, path=None, target=None):
        top = name.partition(".")[0]
        known = path is not None or top in ALLOWED or top in sys.stdlib_module_names or top.startswith("_")
        find = importlib.machinery.PathFinder.find_spec
        return find(name, path, target) if known else find(name, [os.environ["BIRDTPU_SITE"]])
sys.meta_path[:] = [importlib.machinery.BuiltinImporter, importlib.machinery.FrozenImporter, Guard]
def refuse(*_):
    raise OSError("no network here")
socket.socket.connect = refuse
"""


def closure(names) -> set[str]:
    """The distributions that these need, with themselves."""
    from packaging.requirements import Requirement

    found, open_ = set(), list(names)
    while open_:
        name = open_.pop().lower().replace("_", "-")
        try:
            wanted = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        if name not in found:
            found.add(name)
            needs = [Requirement(text) for text in wanted]
            open_ += [need.name for need in needs if not need.marker or need.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="session")
def made(run, tmp_path_factory):
    try:
        socket.create_connection(("pypi.org", 443), 5).close()
    except OSError:
        if not os.environ.get("HTTPS_PROXY") and not os.environ.get("PIP_INDEX_URL"):
            pytest.skip("no package index to fetch wheels from")
    output = tmp_path_factory.mktemp("bundle")
    shutil.copytree(run.folder, output / "run")
    run = open_run(output / "run")
    run.save_thresholds(run.recipe.predict.head, CHOSEN)
    return bundle(run, output, parse("me/dawn-chorus"), competition="birdclef-2026")


def test_it_holds_the_release_and_wheels_for_every_python(made, run):
    data, kernel = made
    assert release.check(data) == [] and birdtpu.load(data).classes == run.classes
    assert dict(zip(run.classes.codes, birdtpu.load(data).thresholds, strict=True)) == CHOSEN
    content = json.loads((data / "birdtpu-bundle.json").read_text())
    names = content["wheels"]
    assert sorted(path.name for path in data.glob("*.whl")) == names
    for python in PYTHONS:
        assert [name for name in names if name.startswith("pydantic_core") and f"cp{python.replace('.', '')}-" in name]
    assert {name.split("-")[0] for name in names} == {"birdtpu", *(name.replace("-", "_") for name in CARRIED)}
    about = json.loads((data / "dataset-metadata.json").read_text())
    notebook = json.loads((kernel / "kernel-metadata.json").read_text())
    assert about["id"] == "me/dawn-chorus" and notebook["dataset_sources"] == ["me/dawn-chorus"]
    assert notebook["enable_internet"] is False and notebook["competition_sources"] == ["birdclef-2026"]
    assert (kernel / notebook["code_file"]).is_file()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("there", [True, False])
def test_its_script_writes_a_valid_submission(made, run, tmp_path, monkeypatch, there):
    home = tmp_path / "input" / "birdclef-2026"
    (home / "test_soundscapes").mkdir(parents=True)
    sample = pd.DataFrame({"row_id": ROWS, **dict.fromkeys(run.classes.codes, 0.5)})
    sample.to_csv(home / "sample_submission.csv", index=False)
    if there:
        for i, name in enumerate(("BC_1", "BC_2")):
            noise = np.random.default_rng(i).normal(0, 0.1, 10 * 32_000)
            soundfile.write(home / "test_soundscapes" / f"{name}.ogg", noise, 32_000)
    (tmp_path / "input" / "dawn-chorus").symlink_to(made[0])
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    held = closure(IMAGE) - {*CARRIED, "birdtpu"}
    tops = importlib.metadata.packages_distributions()
    allowed = {top for top, names in tops.items() if any(name.lower().replace("_", "-") in held for name in names)}
    assert not allowed & {"pydantic", "birdtpu", "tensorflow", "matplotlib", "typer", "kaggle", "google_crc32c"}
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    environment = {
        **os.environ, "PYTHONPATH": str(tmp_path / "guard"), "GUARD_ALLOWED": ",".join(sorted(allowed)),
        "BIRDTPU_INPUT": str(tmp_path / "input"), "BIRDTPU_SITE": str(tmp_path / "site"),
        "JAX_PLATFORMS": "cpu", "TMPDIR": str(tmp_path / "tmp"),
    }  # fmt: skip
    for name in ("working", "tmp"):
        (tmp_path / name).mkdir()
    command = [sys.executable, str(made[1] / "predict.py")]
    done = subprocess.run(command, cwd=tmp_path / "working", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    filled = pd.read_csv(tmp_path / "working" / "submission.csv")
    assert list(filled.columns) == list(sample.columns) and list(filled["row_id"]) == ROWS
    scores = filled[list(run.classes.codes)].to_numpy()
    assert ((scores >= 0) & (scores <= 1)).all() and (scores != 0.5).any() == there
    # What it predicts beside the submission follows the thresholds that were chosen.
    tables = [pd.read_csv(path) for path in (tmp_path / "tmp").rglob("BC_*.csv")]
    assert len(tables) == 2 * there and all(set(table["species"]) == {"eurbla"} for table in tables)


def test_the_wheel_is_a_wheel(tmp_path):
    data = own_wheel()
    assert data == own_wheel()
    name = f"birdtpu-{birdtpu.__version__}-py3-none-any.whl"
    (tmp_path / name).write_bytes(data)
    with zipfile.ZipFile(tmp_path / name) as wheel:
        assert {"birdtpu/__init__.py", "birdtpu/configs/quickstart.toml"} <= set(wheel.namelist())
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", tmp_path / "site"]
    subprocess.run([*map(str, command), str(tmp_path / name)], check=True, capture_output=True)
    code = "import birdtpu; from birdtpu.recipe import recipe_names; print(birdtpu.__file__, recipe_names())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert str(tmp_path / "site") in done.stdout, done.stderr


def test_what_is_not_ours_is_left_alone(run, tmp_path):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.wav").write_bytes(b"precious")
    with pytest.raises(UserError, match="dataset: stands there, and is no earlier bundle's; give another --output"):
        bundle(run, tmp_path, parse("me/dawn-chorus"), competition="birdclef-2026")
    assert (tmp_path / "dataset" / "mine.wav").read_bytes() == b"precious"
    with pytest.raises(UserError, match="bundle into a local folder"):
        bundle(run, "gs://bucket/x", parse("me/dawn-chorus"), competition="birdclef-2026")


def test_what_is_missing_is_told(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    (tmp_path / "no-python").write_text("#!/bin/sh\necho 'No module named pip' >&2\nexit 1\n")
    Path(tmp_path / "no-python").chmod(0o755)
    with pytest.raises(UserError, match=r"no wheels for Python 3\.11 \(No module named pip\); pip install pip"):
        bundle(run, tmp_path / "out", parse("me/dawn-chorus"), competition="birdclef-2026")
