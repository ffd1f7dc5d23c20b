"""The parts of colab_bootstrap.py; benchmarks/bootstrap.py runs the whole of it in images like Colab's and Kaggle's."""

import ast
import importlib.util
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "colab_bootstrap.py"
SECRET = "not-to-be-seen"


@pytest.fixture
def bootstrap(monkeypatch) -> ModuleType:
    """The script as a module, in an environment without credentials or a backend."""
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KERAS_BACKEND"):
        monkeypatch.setenv(name, "")  # so that what a test sets is taken back
        monkeypatch.delenv(name)
    spec = importlib.util.spec_from_file_location("colab_bootstrap", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Missing(Exception):
    """What a vault raises of its own."""


def vault(secrets: dict[str, str], asked: list[str]):
    def get(name: str) -> str:
        asked.append(name)
        if name not in secrets:
            raise Missing(name)
        return secrets[name]

    return get


def test_it_needs_the_standard_library_only() -> None:
    nodes = list(ast.walk(ast.parse(SCRIPT.read_text("utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


@pytest.mark.parametrize("place", ["colab", "kaggle"])
@pytest.mark.parametrize(
    "secrets", [{"KAGGLE_API_TOKEN": SECRET}, {"KAGGLE_USERNAME": "wren", "KAGGLE_KEY": SECRET}, {}]
)
def test_secrets_reach_the_environment(bootstrap, monkeypatch, place, secrets) -> None:
    get = vault(secrets, [])
    if place == "colab":
        monkeypatch.setitem(sys.modules, "google", ModuleType("google"))
        monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
        monkeypatch.setitem(sys.modules, "google.colab.userdata", SimpleNamespace(get=get))
    else:
        client = SimpleNamespace(UserSecretsClient=lambda: SimpleNamespace(get_secret=get))
        monkeypatch.setitem(sys.modules, "kaggle_secrets", client)
    assert bootstrap.set_credentials() == list(secrets)
    assert {name: os.environ[name] for name in bootstrap.CREDENTIALS if name in os.environ} == secrets


def test_a_credential_that_is_set_is_not_asked_for(bootstrap, monkeypatch) -> None:
    asked = []
    monkeypatch.setenv("KAGGLE_API_TOKEN", "mine")
    client = SimpleNamespace(get_secret=vault({"KAGGLE_API_TOKEN": SECRET}, asked))
    monkeypatch.setitem(sys.modules, "kaggle_secrets", SimpleNamespace(UserSecretsClient=lambda: client))
    assert bootstrap.set_credentials() == ["KAGGLE_API_TOKEN"]
    assert os.environ["KAGGLE_API_TOKEN"] == "mine"
    assert asked == ["KAGGLE_USERNAME", "KAGGLE_KEY"]


def test_without_a_vault_there_are_no_credentials(bootstrap) -> None:
    assert bootstrap.set_credentials() == []


def test_the_jax_engine_prints_no_secret_and_shows_the_table(bootstrap, monkeypatch, capsys) -> None:
    ran = []
    client = SimpleNamespace(get_secret=vault({"KAGGLE_API_TOKEN": SECRET}, []))
    monkeypatch.setitem(sys.modules, "kaggle_secrets", SimpleNamespace(UserSecretsClient=lambda: client))
    monkeypatch.setattr(bootstrap, "add_to_image", ran.append)
    monkeypatch.setattr(bootstrap, "run", lambda command: ran.append(command) or 1)
    assert bootstrap.main() == 1
    assert ran == [str(SCRIPT.parent), [sys.executable, "-m", "birdtpu", "doctor"]]
    assert os.environ["KERAS_BACKEND"] == "jax"
    out = capsys.readouterr()
    assert "KAGGLE_API_TOKEN" in out.out
    assert SECRET not in out.out + out.err


def test_versions_are_those_that_are_installed(bootstrap) -> None:
    found = bootstrap.versions()
    assert {name: found[name] for name in ("numpy", "pydantic-core")} == {
        name: metadata.version(name) for name in ("numpy", "pydantic-core")
    }
    assert "birdtpu" not in found, "which a second run may renew"


@pytest.mark.parametrize(
    ("image", "extra"), [({"tensorflow-hub": "0.16.1"}, "[cpu]"), ({"tensorflow-cpu": "2.20.0"}, "")]
)
def test_pip_is_held_to_the_images_versions(bootstrap, monkeypatch, image, extra) -> None:
    image = {"numpy": metadata.version("numpy"), **image}
    commands = []

    def run(command) -> int:
        commands.append([*command, Path(command[command.index("-c") + 1]).read_text()])
        return 0

    monkeypatch.setattr(bootstrap, "versions", lambda: image)
    monkeypatch.setattr(bootstrap, "run", run)
    bootstrap.add_to_image("/checkout")
    ((*_, what, constraints),) = commands
    assert what == f"/checkout{extra}"
    assert constraints.splitlines() == [f"{name}==={version}" for name, version in image.items()]


def test_a_package_that_moved_is_an_error(bootstrap, monkeypatch) -> None:
    seen = iter([{"numpy": "2.1.3", "jax": "0.7.2"}, {"numpy": "2.2.0", "jax": "0.7.2"}])
    monkeypatch.setattr(bootstrap, "versions", lambda: next(seen))
    monkeypatch.setattr(bootstrap, "run", lambda command: 0)
    with pytest.raises(SystemExit, match=r"moved: numpy 2\.1\.3 -> 2\.2\.0;"):
        bootstrap.add_to_image("birdtpu")


def test_a_failed_installation_is_an_error(bootstrap) -> None:
    with pytest.raises(SystemExit, match="installation failed"):
        bootstrap.install([sys.executable, "-c", "raise SystemExit(3)"])


def test_what_a_command_prints_is_printed_by_us(bootstrap, capsys) -> None:
    code = "import sys; print('one'); print('two', file=sys.stderr); sys.exit(4)"
    assert bootstrap.run([sys.executable, "-u", "-c", code]) == 4
    assert capsys.readouterr().out == "one\ntwo\n"


@pytest.mark.parametrize(
    ("source", "extra", "requirement"),
    [
        ("birdtpu", "", "birdtpu"),
        ("birdtpu", "cpu", "birdtpu[cpu]"),
        ("/a/checkout", "tpu", "/a/checkout[tpu]"),
        ("git+https://example.org/birdtpu", "cpu", "birdtpu[cpu] @ git+https://example.org/birdtpu"),
    ],
)
def test_requirement(bootstrap, source, extra, requirement) -> None:
    assert bootstrap.requirement(source, extra) == requirement


def test_birdtpu_is_the_checkout_that_the_script_lies_in(bootstrap, tmp_path, monkeypatch) -> None:
    assert bootstrap.default_source() == str(SCRIPT.parent)
    monkeypatch.setattr(bootstrap, "__file__", str(tmp_path / "colab_bootstrap.py"))
    assert bootstrap.default_source() == "birdtpu"


def test_the_tensorflow_engine_has_an_environment_and_a_command_of_its_own(bootstrap, monkeypatch, tmp_path) -> None:
    environment = tmp_path / "an environment"
    commands = []

    def run(command) -> int:
        commands.append(command)
        if "venv" in command:
            # Stands for the environment's Python, and shows how birdtpu is called.
            python = environment / "bin" / "python"
            python.parent.mkdir(parents=True)
            python.write_text('#!/bin/sh\nenv\necho "$@"\n')
            python.chmod(0o755)
        return 0

    monkeypatch.setattr(bootstrap, "run", run)
    monkeypatch.setattr(bootstrap, "ENVIRONMENT", environment)
    monkeypatch.setenv("PYTHONPATH", "/the/image")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    command = bootstrap.make_environment("/checkout")
    assert commands[-1][-1] == "/checkout[tpu]"
    assert "3.12" in commands[1]
    done = subprocess.run([command, "train", "a b"], capture_output=True, text=True, check=True)
    shown = done.stdout.splitlines()
    assert shown[-1] == "-m birdtpu train a b"
    assert "KERAS_BACKEND=tensorflow" in shown
    assert not any(line.startswith("PYTHONPATH=") for line in shown)
    bootstrap.make_environment("/checkout")
    assert sum("venv" in command for command in commands) == 1, "an environment that is there is taken up"
