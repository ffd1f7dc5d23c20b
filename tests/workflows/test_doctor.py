"""The doctor's table."""

import subprocess
import sys
import time

import pytest

from birdtpu.training.machine import Machine
from birdtpu.workflows.doctor import doctor

VERSIONS = {"birdtpu": "0.1.0", "jax": "0.7.2", "libtpu": "0.0.21", "tensorflow-cpu": "2.20.0"}


@pytest.fixture(autouse=True)
def _no_backend(monkeypatch) -> None:
    monkeypatch.delenv("KERAS_BACKEND", raising=False)


def make(chips: int = 8, generation: str = "v3") -> Machine:
    return Machine("kaggle", "3.12.1", VERSIONS, chips, generation, {}, 24, 47 * 2**30, 20 * 2**30)


def rows(text: str) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in text.replace("free disk", "free_disk").splitlines())


def test_the_table_of_a_sound_machine() -> None:
    text, wrong = doctor(here=make())
    assert not wrong
    table = rows(text)
    assert table["TPU"] == "v3, chips: 8, cores: 16"
    assert table["HBM"] == "16 GiB a core, 256 GiB in all"
    assert table["host"] == "24 CPUs, 47.0 GiB memory"
    assert table["free_disk"] == "20.0 GiB"
    assert table["engine"] == "jax"
    assert {name: table[name] for name in VERSIONS} == VERSIONS
    assert "mend" not in table


def test_what_is_wrong_comes_with_what_mends_it() -> None:
    text, wrong = doctor("tensorflow", make())
    assert wrong
    assert rows(text)["wrong"] == "tensorflow-cpu 2.20.0 cannot drive a TPU"
    assert rows(text)["mend"] == "python colab_bootstrap.py --engine tensorflow, or --backend jax"


def test_the_backend_of_the_environment_counts(monkeypatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    assert rows(doctor(here=make())[0])["engine"] == "tensorflow"


def test_a_machine_without_a_chip() -> None:
    text, wrong = doctor(here=make(0, ""))
    assert wrong
    assert rows(text)["TPU"] == "none"
    assert "HBM" not in rows(text)


def test_an_unknown_generation_is_said() -> None:
    assert rows(doctor(here=make(2, ""))[0])["TPU"] == "2 chips of unknown generation"


def test_it_takes_a_moment_and_no_framework() -> None:
    heavy = {"tensorflow", "jax", "keras", "libtpu", "numpy", "pandas"}
    code = (
        "import sys\n"
        "from birdtpu.workflows.doctor import doctor\n"
        "doctor('jax')\n"
        f"print(sorted({heavy!r} & set(sys.modules)))"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    # A tenth of a second of its own; a busy machine has the rest.
    assert time.monotonic() - began < 5
