"""Make a bare Colab or Kaggle TPU notebook ready for birdtpu; standard library only.

In a cell, so that credentials and KERAS_BACKEND reach the notebook and every `!birdtpu ...` in it:

    import colab_bootstrap
    colab_bootstrap.main()

`!python colab_bootstrap.py` installs the same, but what it sets in the environment ends with it, and there Colab's
secrets cannot be read.

--engine jax (the default) adds birdtpu to the image, and TensorFlow for the CPU where there is none to read shards
with; the image's own packages stay as they are. --engine tensorflow makes an environment of its own for
TPUStrategy and prints the command to use instead of `birdtpu`.
"""

import argparse
import contextlib
import importlib
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

CREDENTIALS = ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY")
TENSORFLOWS = {"tensorflow", "tensorflow-cpu", "tensorflow-tpu"}
ENVIRONMENT = Path.home() / "birdtpu-tensorflow"


def main(arguments: Sequence[str] = ()) -> int:
    """Install, set the environment, and print birdtpu's table of what is there.

    Args:
        arguments: Of the command line.

    Returns: `birdtpu doctor`'s exit code. Raises: SystemExit where an installation fails or moves what must stay.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("jax", "tensorflow"), default="jax")
    parser.add_argument("--from", dest="source", default=default_source(), help="folder, URL or name of birdtpu")
    options = parser.parse_args(arguments)

    print("credentials:", ", ".join(set_credentials()) or "none (add KAGGLE_API_TOKEN to the notebook's secrets)")
    if options.engine == "jax":
        add_to_image(options.source)
        os.environ["KERAS_BACKEND"] = "jax"
        birdtpu = [sys.executable, "-m", "birdtpu"]
    else:
        birdtpu = [make_environment(options.source)]
        print(f"run birdtpu here as {birdtpu[0]}")
    return run([*birdtpu, "doctor"])


def default_source() -> str:
    """The checkout that this file lies in, else the package's name. Raises nothing."""
    here = Path(__file__).resolve().parent
    return str(here) if (here / "pyproject.toml").exists() else "birdtpu"


def set_credentials() -> list[str]:
    """Put Kaggle's credentials from the notebook's secrets into the environment.

    Returns: the names of those that are set, never their values. Raises: nothing.
    """
    vaults = (
        ("kaggle_secrets", lambda module: module.UserSecretsClient().get_secret),
        ("google.colab.userdata", lambda module: module.get),
    )
    for module, reader in vaults:
        for name in CREDENTIALS:
            # A secret that is missing, locked or too slow is an exception of each vault's own.
            with contextlib.suppress(Exception):
                if not os.environ.get(name):
                    os.environ[name] = reader(importlib.import_module(module))(name)
    return [name for name in CREDENTIALS if os.environ.get(name)]


def versions() -> dict[str, str]:
    """Name -> version of everything installed but birdtpu. Raises nothing."""
    importlib.invalidate_caches()
    found = {}
    for each in metadata.distributions():
        if each.name and each.version:
            # The first one on the path is the one that is imported.
            found.setdefault(each.name.lower().replace("_", "-"), each.version)
    found.pop("birdtpu", None)
    return found


def requirement(source: str, extra: str = "") -> str:
    """What pip calls birdtpu with an extra, from a folder, a URL or a name. Raises nothing."""
    option = f"[{extra}]" if extra else ""
    return f"birdtpu{option} @ {source}" if "://" in source else source + option


def add_to_image(source: str) -> None:
    """Add birdtpu, and TensorFlow for the CPU where there is none.

    Raises: SystemExit where pip fails, or moved what must stay.
    """
    before = versions()
    extra = "" if TENSORFLOWS & set(before) else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder, "constraints.txt")
        # The image's builds fit each other, its chip and what the notebook has imported: pip may move none of them.
        # === also takes the versions of the system's packages, which need not be Python's kind of version.
        constraints.write_text("".join(f"{name}==={version}\n" for name, version in before.items()))
        install([sys.executable, "-m", "pip", "install", "-q", "-c", str(constraints), requirement(source, extra)])
    after = versions()
    moved = [f"{name} {version} -> {after.get(name)}" for name, version in before.items() if after.get(name) != version]
    if moved:
        raise SystemExit(f"the image's own packages moved: {', '.join(moved)}; start a fresh notebook")


def make_environment(source: str) -> str:
    """An environment of its own with TensorFlow for TPUs, which has no build for Python 3.13.

    Returns: its `birdtpu` command. Raises: SystemExit where an installation fails.
    """
    python = ENVIRONMENT / "bin" / "python"
    # A checkout's settings for uv are the developers', not this machine's.
    uv = [sys.executable, "-m", "uv", "--no-config"]
    install([sys.executable, "-m", "pip", "install", "-q", "uv"])
    if not python.exists():
        install([*uv, "venv", "-q", "--python", "3.12", str(ENVIRONMENT)])
    install([*uv, "pip", "install", "-q", "--python", str(python), requirement(source, "tpu")])
    # The notebook's own packages and backend are not this environment's.
    lines = ["#!/bin/sh", "unset PYTHONPATH", "export KERAS_BACKEND=tensorflow"]
    command = ENVIRONMENT / "bin" / "birdtpu"
    command.write_text("\n".join([*lines, f'exec {shlex.quote(str(python))} -m birdtpu "$@"', ""]))
    command.chmod(0o755)
    return str(command)


def install(command: Sequence[str]) -> None:
    """Run an installer. Raises SystemExit where it fails; its reason stands above."""
    if run(command):
        raise SystemExit("colab_bootstrap: the installation failed; its reason stands above")


def run(command: Sequence[str]) -> int:
    """Run a command and print what it prints: a notebook does not show what a process writes by itself.

    Returns: its exit code. Raises: OSError where there is no such command.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
    return process.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
