"""The machine as it is found in /dev, /sys, /proc and the environment, and the causes named from it."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy
import pytest

from birdtpu.errors import UserError
from birdtpu.training.machine import (
    Machine,
    engine,
    installed,
    machine,
    no_tpu,
    prepare_for_tpu,
    problems,
    tpu_environment,
)

JAX = {"jax": "0.7.2", "libtpu": "0.0.21", "tensorflow-cpu": "2.20.0"}
TENSORFLOW = {"tensorflow-tpu": "2.19.1", "libtpu": "0.0.10"}


class Tree:
    """A folder with a machine's /dev, /sys, /proc and /."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("dev/vfio", "sys/bus/pci/devices", "proc"):
            (folder / name).mkdir(parents=True)

    def node(self, name: str) -> Path:
        (self.folder / "dev" / name).touch()
        return self.folder / "dev" / name

    def card(self, address: str, device: str, vendor: str = "0x1ae0", subsystem: str = "0x0000") -> None:
        card = self.folder / "sys" / "bus" / "pci" / "devices" / address
        card.mkdir()
        for name, value in (("vendor", vendor), ("device", device), ("subsystem_device", subsystem)):
            (card / name).write_text(value + "\n")

    def look(self, *, proc: Path | None = None, env: Mapping[str, str] | None = None) -> Machine:
        place = {name: self.folder / name for name in ("dev", "sys", "proc")} | ({"proc": proc} if proc else {})
        return machine(**place, root=self.folder, env=env or {}, versions={})


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def make(
    versions: Mapping[str, str], chips: int = 8, place="kaggle", holders: Mapping[int, bool] | None = None
) -> Machine:
    return Machine(place, "3.12.1", versions, chips, "v5e" if chips else "", holders or {}, 24, 2**36, 2**34)


@pytest.mark.parametrize(
    ("device", "subsystem", "generation", "cores", "hbm_gib"),
    [
        ("0x0027", "0x004e", "v2", 2, 8),
        ("0x0027", "0x004f", "v3", 2, 16),
        ("0x005e", "0x0000", "v4", 1, 32),
        ("0x0062", "0x0000", "v5p", 1, 95),
        ("0x0063", "0x0000", "v5e", 1, 16),
        ("0x006f", "0x0000", "v6e", 1, 32),
        ("0x0076", "0x0000", "tpu7x", 2, 96),
    ],
)
def test_the_bus_names_the_generation(tree: Tree, device, subsystem, generation, cores, hbm_gib) -> None:
    tree.card("0000:00:04.0", device, subsystem=subsystem)
    tree.node("accel0")
    found = tree.look()
    assert (found.chips, found.generation, found.cores, found.hbm_gib) == (1, generation, cores, hbm_gib)


def test_ids_are_those_of_jax(tmp_path: Path) -> None:
    jax = pytest.importorskip("jax._src.hardware_utils")
    for device, version in jax._TPU_PCI_DEVICE_IDS.items():
        tree = Tree(tmp_path / device)
        tree.card("0000:00:04.0", device, subsystem="0x004f")
        tree.node("vfio/0")
        if version.name != "plc":  # has no public name
            assert tree.look().generation == version.name


def test_chips_are_counted(tree: Tree) -> None:
    assert tree.look().chips == 0
    for i in range(8):
        tree.card(f"0000:00:{i:02}.0", "0x0063")
        tree.node(f"vfio/{i}")
    tree.node("vfio/vfio")  # the driver's own
    tree.card("0000:00:20.0", "0x0042")  # Google's network card
    assert tree.look().chips == 8


def test_a_chip_that_the_table_does_not_know_is_a_chip(tree: Tree) -> None:
    tree.card("0000:00:04.0", "0x0099")
    tree.node("accel0")
    found = tree.look()
    assert (found.chips, found.generation) == (1, "")


def test_a_chip_of_two_functions_is_one_chip(tree: Tree) -> None:
    for i in range(2):
        tree.card(f"0000:00:04.{i}", "0x0076")
        tree.node(f"vfio/{i}")
    assert tree.look().chips == 1


def test_chips_that_the_container_may_not_open_are_not_there(tree: Tree) -> None:
    for i in range(4):
        tree.card(f"0000:00:{i:02}.0", "0x0063")
    assert tree.look().chips == 0
    tree.node("vfio/3")
    assert tree.look().chips == 1


def test_another_vendors_card_is_no_chip(tree: Tree) -> None:
    tree.card("0000:00:04.0", "0x0063", vendor="0x10de")
    tree.node("vfio/0")
    assert tree.look().chips == 0


def test_without_a_bus_the_device_files_count(tree: Tree) -> None:
    for name in ("accel0", "accel1"):
        tree.node(name)
    found = tree.look()
    assert (found.chips, found.generation, found.cores) == (2, "", 0)


def test_memory_is_read(tree: Tree) -> None:
    assert tree.look().memory_bytes == 0
    (tree.folder / "proc" / "meminfo").write_text("MemTotal:       2048 kB\nMemFree:        7 kB\n")
    assert tree.look().memory_bytes == 2048 * 1024


@pytest.mark.parametrize(
    ("env", "folders", "chip", "place"),
    [
        ({}, [], False, "local"),
        ({"COLAB_RELEASE_TAG": "r"}, [], True, "colab"),
        ({}, ["content"], False, "colab"),
        ({"KAGGLE_KERNEL_RUN_TYPE": "Batch"}, [], False, "kaggle"),
        ({"COLAB_RELEASE_TAG": "r", "TPU_NAME": "t"}, ["kaggle", "content"], True, "kaggle"),
        ({"TPU_ACCELERATOR_TYPE": "v5litepod-8"}, [], False, "cloud"),
        ({}, [], True, "cloud"),
    ],
)
def test_places(tree: Tree, env, folders, chip, place) -> None:
    for folder in folders:
        (tree.folder / folder).mkdir()
    if chip:
        tree.card("0000:00:04.0", "0x0063")
        tree.node("vfio/0")
    assert tree.look(env=env).place == place


@pytest.fixture
def hold(tmp_path: Path) -> Iterator:
    """Starts a process, of a script of that name, that holds a file open; returns its pid."""
    started = []

    def start(path: Path, script: str) -> int:
        (tmp_path / script).write_text(f"file = open({str(path)!r})\nprint('open', flush=True)\ninput()\n")
        command = [sys.executable, str(tmp_path / script)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout.readline() == b"open\n"
        return process.pid

    yield start
    for process in started:
        process.communicate()


def test_processes_that_hold_a_chip_are_found(tree: Tree, hold) -> None:
    tree.card("0000:00:04.0", "0x0063")
    node = tree.node("vfio/0")
    proc = Path("/proc")
    with node.open():
        assert tree.look(proc=proc).holders == {}, "our own hold is none"
        train = hold(node, "train.py")
        kernel = hold(node, "ipykernel_launcher.py")
        found = tree.look(proc=proc)
    assert found.holders == {train: False, kernel: True}
    mends = {problem.what: problem.mend for problem in problems(found, "jax")}
    assert mends[f"process {train} holds the chip"] == f"kill {train}"
    assert mends[f"a notebook's kernel (process {kernel}) holds the chip"] == "restart that kernel"


def test_a_process_that_ends_meanwhile_is_no_holder(tree: Tree) -> None:
    tree.node("accel0")
    (tree.folder / "proc" / "17").mkdir()
    (tree.folder / "proc" / "18" / "fd").mkdir(parents=True)
    (tree.folder / "proc" / "18" / "fd" / "3").symlink_to(tree.folder / "gone")
    (tree.folder / "proc" / "19" / "fd").mkdir(parents=True)
    (tree.folder / "proc" / "19" / "fd" / "3").symlink_to(tree.folder / "dev" / "accel0")
    assert tree.look().holders == {19: False}


def test_versions_are_the_installed_ones() -> None:
    found = installed()
    assert found["numpy"] == numpy.__version__
    assert "libtpu-nightly" not in found


@pytest.mark.parametrize(
    ("versions", "chips", "backend", "chosen"),
    [
        (JAX, 8, None, "jax"),
        (JAX, 0, None, "tensorflow"),
        (JAX, 8, "tensorflow", "tensorflow"),
        (TENSORFLOW | {"jax": "0.7.2"}, 8, None, "tensorflow"),
        ({"jax": "0.7.2"}, 0, None, "jax"),
        ({"tensorflow": "2.20.0"}, 8, None, "tensorflow"),
        ({}, 8, None, None),
    ],
)
def test_engine(versions, chips, backend, chosen) -> None:
    assert engine(make(versions, chips), backend) == chosen


def test_another_backend_is_an_error() -> None:
    with pytest.raises(UserError, match="backend torch: tensorflow or jax"):
        problems(make(JAX), "torch")


def test_tensorflow_is_told_where_libtpu_lies(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "libtpu").mkdir()
    (tmp_path / "libtpu" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    told = tpu_environment("tensorflow")
    assert told["TF_PLUGGABLE_DEVICE_LIBRARY_PATH"] == str(tmp_path / "libtpu" / "libtpu.so")
    assert told["TF_XLA_FLAGS"] == (
        "--tf_mlir_enable_mlir_bridge=true --tf_mlir_enable_convert_control_to_data_outputs_pass=true"
        " --tf_mlir_enable_merge_control_flow_pass=true"
    )
    assert tpu_environment("jax") == {}


def test_the_environment_is_set_before_keras_and_keeps_the_users_flags(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "libtpu").mkdir()
    (tmp_path / "libtpu" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("os.environ", {"TF_XLA_FLAGS": "--mine", "KERAS_BACKEND": ""})
    monkeypatch.setattr("birdtpu.training.machine.machine", lambda: make(TENSORFLOW))
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    for _ in range(2):
        assert prepare_for_tpu() == "tensorflow"
        flags = os.environ["TF_XLA_FLAGS"].split()
        assert flags[0] == "--mine" and len(flags) == 4 and os.environ["PJRT_DEVICE"] == "TPU"
    assert os.environ["KERAS_BACKEND"] == "tensorflow" and prepare_for_tpu("jax") == "jax"
    monkeypatch.setattr("birdtpu.training.machine.machine", lambda: make(JAX, 0))
    with pytest.raises(UserError, match="no TPU chip"):
        prepare_for_tpu()


@pytest.mark.parametrize(
    ("here", "backend", "what", "mend"),
    [
        (make(JAX, 0, "colab"), "jax", "no TPU chip", "Runtime > Change runtime type"),
        (make(JAX, 0, "kaggle"), "jax", "no TPU chip", "TPU v5e-8"),
        (make(JAX, 0, "local"), "tensorflow", "no TPU chip", "train without --tpu"),
        (make(JAX, 0, "cloud"), "jax", "no TPU chip", "--privileged"),
        (make(JAX, 0, holders={7: False}), "jax", "no TPU chip", "TPU v5e-8"),
        (make(JAX, holders={7: False}), "tensorflow", "process 7 holds", "kill 7"),
        (make(JAX), "tensorflow", "tensorflow-cpu 2.20.0 cannot", "--engine tensorflow, or --backend jax"),
        (make({"tensorflow": "2.19.0"}), None, "tensorflow 2.19.0 cannot", "colab_bootstrap.py --engine tensorflow"),
        (make(TENSORFLOW | {"tensorflow": "2.19.1"}), None, "tensorflow 2.19.1 cannot", "--engine tensorflow"),
        (make({"jax": "0.7.2"}), "tensorflow", "TensorFlow is not installed", "--engine tensorflow"),
        (make({"tensorflow-tpu": "2.20.0", "libtpu": "0.0.51"}), None, "libtpu 0.0.51", "pip install libtpu==0.0.20"),
        (make({"tensorflow-tpu": "2.20.0", "libtpu": "0.0.10"}), None, "libtpu 0.0.10", "pip install libtpu==0.0.20"),
        (make({"tensorflow-tpu": "2.19.1", "libtpu": "0.0.51"}), None, "libtpu 0.0.51", "pip install libtpu==0.0.10"),
        (make({"tensorflow-tpu": "2.19.1"}), None, "(none installed)", "pip install libtpu==0.0.10"),
        (make({"jax": "0.7.2", "tensorflow-cpu": "2.20.0"}), "jax", "no libtpu", 'pip install "jax[tpu]==0.7.2"'),
        (make({"jax": "0.7.2", "libtpu": "0.0.21"}), None, "no TensorFlow to read", "pip install tensorflow-cpu"),
        (make({"tensorflow-cpu": "2.20.0"}), "jax", "JAX is not installed", 'pip install "jax[tpu]"'),
        (make({}), None, "no TensorFlow and no JAX", "python colab_bootstrap.py"),
    ],
)  # fmt: skip
def test_causes_and_what_mends_them(here: Machine, backend, what, mend) -> None:
    first = problems(here, backend)[0]
    assert what in first.what
    assert mend in first.mend
    error = no_tpu(here, backend)
    assert isinstance(error, UserError)
    assert str(error) == f"no TPU to train on: {first.what}; {first.mend}"


@pytest.mark.parametrize(
    ("versions", "backend"),
    [
        (JAX, None),
        ({"jax": "0.4.26", "libtpu-nightly": "0.1.dev20240403+default", "tensorflow": "2.15.0"}, "jax"),
        (TENSORFLOW, None),
        ({"tensorflow-tpu": "2.20.0", "libtpu": "0.0.14"}, None),
        ({"tensorflow-tpu": "2.20.0", "libtpu": "0.0.40"}, None),
        ({"tensorflow-tpu": "2.18.0", "libtpu": "2.18.0"}, None),
    ],
)
def test_what_is_fine_is_no_problem(versions, backend) -> None:
    assert problems(make(versions), backend) == []


@pytest.mark.parametrize(
    ("here", "backend", "error", "told"),
    [
        (
            make(TENSORFLOW),
            "tensorflow",
            "No OpKernel was registered to support Op 'ConfigureDistributedTPU' used by {{node}}\nRegistered: [CPU]",
            "this TensorFlow cannot drive a TPU; python colab_bootstrap.py --engine tensorflow",
        ),
        (
            make(JAX),
            "jax",
            "Unable to initialize backend 'tpu': ABORTED: The TPU is already in use by process with pid 4711. Not",
            "process 4711 holds the chip; kill 4711",
        ),
        (
            make(JAX, holders={4711: True}),
            "jax",
            "The TPU is already in use by process with pid 4711.",
            "a notebook's kernel (process 4711) holds the chip; restart that kernel",
        ),
        (
            make(JAX),
            "jax",
            "The TPU is already in use by another process probably owned by another user.",
            "another process holds the chip; end it: sudo lsof /dev/accel* /dev/vfio/* names it",
        ),
        (
            make({"tensorflow-tpu": "2.20.0", "libtpu": "0.0.40"}),
            "tensorflow",
            "NOT_FOUND: No TPU platform found.",
            "tensorflow-tpu 2.20.0 does not work with libtpu 0.0.40; pip install libtpu==0.0.20",
        ),
        (
            make(JAX),
            "jax",
            "INTERNAL: this libtpu version is too old",
            'this JAX does not work with this libtpu; pip install "jax[tpu]==0.7.2"',
        ),
        (make(JAX), "jax", "\nsomething new\nat line 3", "something new; birdtpu doctor shows what is there"),
        (make(JAX), "jax", "", "the framework sees none; birdtpu doctor shows what is there"),
        (
            make(JAX, 0, "local"),
            "tensorflow",
            "No OpKernel was registered to support Op 'ConfigureDistributedTPU'",
            "no TPU chip on this machine; train without --tpu",
        ),
    ],
)
def test_error_texts_are_one_line_with_the_way_out(here: Machine, backend, error, told) -> None:
    assert str(no_tpu(here, backend, error)) == f"no TPU to train on: {told}"


def test_this_machine_is_read() -> None:
    here = machine()
    assert here.cpus == os.cpu_count()
    assert here.memory_bytes > 0
    assert here.free_bytes > 0
