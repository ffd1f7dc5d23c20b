"""What a Kaggle notebook without internet needs to predict: a data set of weights and wheels, and a script."""

import base64
import hashlib
import importlib.metadata
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

import birdtpu
from birdtpu import storage
from birdtpu.errors import UserError
from birdtpu.publish import release
from birdtpu.publish.places import Place
from birdtpu.run import Run

# What predicting imports beyond numpy, pandas, soundfile, librosa, Keras and a backend, which Kaggle's images have.
CARRIED = (
    "annotated-types", "pydantic", "pydantic-core", "soxr", "tqdm", "typing-extensions", "typing-inspection",
)  # fmt: skip
PYTHONS = ("3.11", "3.12", "3.13")
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
NAME = "birdtpu-bundle.json"
SCRIPT, METADATA = "predict.py", "kernel-metadata.json"


def bundle(
    run: Run, output: storage.PathLike, place: Place, *, competition: str, licence: str = "CC-BY-NC-SA-4.0"
) -> tuple[Path, Path]:
    """Write the folders of a data set and of a kernel, ready for `kaggle datasets create` and `kaggle kernels push`.

    Args:
        run: A finished run.
        output: A local folder; an earlier bundle's `dataset/` and `kernel/` in it are replaced.
        place: The data set that it shall be.
        competition: Whose recordings the kernel scores, as in its address.
        licence: One of `release.LICENCES`.

    Returns: the two folders.
    Raises: UserError where the run has no weights, pip is not here, a wheel cannot be had, or other things stand there.
    """
    if storage.is_remote(output):
        raise UserError(f"{output}: bundle into a local folder")
    output = Path(output)
    slug = f"{place.slug[:40].rstrip('-')}-predict"
    data, kernel = output / "dataset", output / "kernel"
    for folder, mark in ((data, NAME), (kernel, METADATA)):
        if folder.exists() and not (folder / mark).is_file():
            raise UserError(f"{folder}: stands there, and is no earlier bundle's; give another --output")
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".bundle-") as temporary:
        made = Path(temporary, "dataset"), Path(temporary, "kernel")
        for folder in made:
            folder.mkdir()
        _fill_dataset(run, made[0], place, licence)
        script = resources.files("birdtpu.publish").joinpath("kernel.py").read_text("utf-8")
        storage.write_text(made[1] / SCRIPT, script.replace('COMPETITION = ""', f"COMPETITION = {competition!r}"))
        notebook = {
            "id": f"{place.owner}/{slug}", "title": _title(slug), "code_file": SCRIPT, "language": "python",
            "kernel_type": "script", "is_private": True, "enable_gpu": False, "enable_internet": False,
            "dataset_sources": [f"{place.owner}/{place.slug}"], "competition_sources": [competition],
            "kernel_sources": [],
        }  # fmt: skip
        storage.write_text(made[1] / METADATA, json.dumps(notebook, indent=2) + "\n")
        for old, new in zip((data, kernel), made, strict=True):
            if old.exists():
                shutil.rmtree(old)
            os.replace(new, old)
    return data, kernel


def _fill_dataset(run: Run, folder: Path, place: Place, licence: str) -> None:
    release.stage(run, folder, address=f"kaggle:{place.owner}/{place.slug}", licence=licence)
    _fetch_wheels(folder)
    storage.write_bytes(folder / f"birdtpu-{_version()}-py3-none-any.whl", own_wheel())
    content = {"wheels": sorted(path.name for path in folder.glob("*.whl")), "packages": ["birdtpu", *CARRIED]}
    storage.write_text(folder / NAME, json.dumps(content, indent=2) + "\n")
    about = {"id": f"{place.owner}/{place.slug}", "title": _title(place.slug), "licenses": [{"name": licence}]}
    storage.write_text(folder / "dataset-metadata.json", json.dumps(about, indent=2) + "\n")


def own_wheel() -> bytes:
    """This package as a wheel, from the files it runs from; the same files give the same bytes.

    Reference: https://packaging.python.org/en/latest/specifications/binary-distribution-format/
    """
    package = Path(birdtpu.__file__).parent
    files = {f"birdtpu/{name}": package / name for name in _files(package)}
    if not (package / "configs").is_dir():
        configs = package.parent / "configs"
        files |= {f"birdtpu/configs/{name}": configs / name for name in _files(configs)}
    version = _version()
    info = f"birdtpu-{version}.dist-info"
    content = {name: path.read_bytes() for name, path in sorted(files.items())}
    content[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: birdtpu\nVersion: {version}\n".encode()
    content[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: birdtpu\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    rows = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in content.items()]
    content[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""]).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in content.items():
            wheel.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _files(folder: Path) -> Iterable[str]:
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found if path.suffix in (".py", ".toml") or path.name == "py.typed")


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _version() -> str:
    return birdtpu.__version__


def _title(slug: str) -> str:
    return slug.replace("-", " ")[:50]


def _fetch_wheels(folder: Path) -> None:
    """The wheels of `CARRIED`, in the versions that run here, for every Python that an image may have."""
    names = [f"{name}=={importlib.metadata.version(name)}" for name in CARRIED]
    for python in PYTHONS:
        abi = f"cp{python.replace('.', '')}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--python-version", python, "--implementation", "cp", "--dest", str(folder)]
        for tag in (abi, "abi3", "none"):
            command += ["--abi", tag]
        for platform in _PLATFORMS:
            command += ["--platform", platform]
        done = subprocess.run([*command, *names], capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
            hint = "; pip install pip" if "No module named pip" in lines[-1] else ""
            raise UserError(f"bundle: no wheels for Python {python} ({lines[-1].strip()[:200]}){hint}")
