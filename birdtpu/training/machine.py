"""What the machine has and what keeps its TPU from training, found without a framework: asking one takes the chip."""

import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from birdtpu.errors import UserError

DISTRIBUTIONS = (
    "birdtpu", "keras", "numpy", "soundfile", "tensorflow", "tensorflow-cpu", "tensorflow-tpu", "jax", "jaxlib",
    "libtpu", "libtpu-nightly",
)  # fmt: skip
# Builds that cannot drive a TPU; they share one folder with tensorflow-tpu, and the last one installed is imported.
_PLAIN = ("tensorflow", "tensorflow-cpu")

_GOOGLE = "0x1ae0"
# PCI ids as in jax's hardware_utils and in tpu-info; v2 and v3 share a device id, theirs are the subsystem's.
_V2_OR_V3 = "0x0027"
_GENERATIONS = {
    "0x004e": "v2", "0x004f": "v3", "0x005e": "v4", "0x0062": "v5p", "0x0063": "v5e", "0x006f": "v6e",
    "0x0076": "tpu7x",
}  # fmt: skip
# Cores of a chip as a framework sees them (v4 and v5p join their two), and GiB of HBM of each.
_CORES = {
    "v2": (2, 8), "v3": (2, 16), "v4": (1, 32), "v5e": (1, 16), "v5p": (1, 95), "v6e": (1, 32), "tpu7x": (2, 96),
}  # fmt: skip
# Release of tensorflow-tpu -> the libtpu versions seen to import beside it, first and last, and the one to install.
_LIBTPU = {"2.19": ((0, 0, 10), (0, 0, 10), "0.0.10"), "2.20": ((0, 0, 14), (0, 0, 40), "0.0.20")}

_CHOOSE_A_CHIP = {
    "colab": "choose Runtime > Change runtime type > v5e-1 TPU",
    "kaggle": "choose Settings > Accelerator > TPU v5e-8",
    "cloud": "start the container with --privileged, which shows it the chips under /dev",
    "local": "train without --tpu",
}
_OWN_ENVIRONMENT = "python colab_bootstrap.py --engine tensorflow"

Place = Literal["colab", "kaggle", "cloud", "local"]


@dataclass(frozen=True)
class Machine:
    """What there is.

    Args:
        place: Colab, Kaggle, a TPU VM of Google Cloud, or any other.
        python: Its version.
        versions: Of the installed ones among `DISTRIBUTIONS`.
        chips: How many TPU chips this process may open.
        generation: `v5e` and the like; empty where it is unknown.
        holders: Other processes that hold a chip open: the pid and whether it is a notebook's kernel.
        cpus: Logical cores.
        memory_bytes: Main memory.
        free_bytes: Disk space free in the working folder.
    """

    place: Place
    python: str
    versions: Mapping[str, str]
    chips: int
    generation: str
    holders: Mapping[int, bool]
    cpus: int
    memory_bytes: int
    free_bytes: int

    @property
    def cores(self) -> int:
        """Cores a chip; 0 where the generation is unknown."""
        return _CORES.get(self.generation, (0, 0))[0]

    @property
    def hbm_gib(self) -> int:
        """GiB of HBM a core; 0 where the generation is unknown."""
        return _CORES.get(self.generation, (0, 0))[1]


@dataclass(frozen=True)
class Problem:
    """What is wrong, and the command (or the menu) that mends it."""

    what: str
    mend: str


def machine(
    *,
    dev: Path = Path("/dev"),
    sys: Path = Path("/sys"),
    proc: Path = Path("/proc"),
    root: Path = Path("/"),
    env: Mapping[str, str] = os.environ,
    versions: Mapping[str, str] | None = None,
) -> Machine:
    """Look at the machine; opens no chip.

    Args:
        dev, sys, proc: The folders of that name.
        root: Where Colab's `content` and Kaggle's `kaggle` lie.
        env: The environment variables.
        versions: Distribution -> version; default: what is installed.

    Returns: the machine. Raises: nothing; what cannot be read counts as not there.
    """
    nodes, chips, generation = _chips(dev, sys)
    memory = re.search(r"MemTotal:\s+(\d+) kB", _text(proc / "meminfo"))
    return Machine(
        place=_place(env, root, chips),
        python=platform.python_version(),
        versions=installed() if versions is None else versions,
        chips=chips,
        generation=generation,
        holders=_holders(nodes, proc),
        cpus=os.cpu_count() or 1,
        memory_bytes=1024 * int(memory[1]) if memory else 0,
        free_bytes=shutil.disk_usage(".").free,
    )


def installed() -> dict[str, str]:
    """Distribution -> version of the installed ones among `DISTRIBUTIONS`. Raises nothing."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def engine(here: Machine, backend: str | None = None) -> str | None:
    """The Keras backend that would train here.

    Returns: `backend` where one is asked for, else the installed one that suits the machine, else None.
    Raises: UserError where `backend` is neither tensorflow nor jax.
    """
    if backend not in (None, "tensorflow", "jax"):
        raise UserError(f"backend {backend}: tensorflow or jax")
    # On a TPU a plain TensorFlow only reads for JAX.
    jax_first = here.chips and "tensorflow-tpu" not in here.versions
    there = {"tensorflow": bool(_tensorflows(here)), "jax": "jax" in here.versions}
    order = ("jax", "tensorflow") if jax_first else ("tensorflow", "jax")
    return backend or next((name for name in order if there[name]), None)


def tpu_environment(backend: str | None) -> dict[str, str]:
    """Environment variables without which TensorFlow, when it is imported, finds no TPU; none for JAX. Raises nothing.

    Source: the TPU example of keras-rs, and what tensorflow-tpu asks of a pluggable device.
    """
    library = importlib.util.find_spec("libtpu")
    if backend != "tensorflow" or library is None or not library.submodule_search_locations:
        return {}
    passes = ("bridge", "convert_control_to_data_outputs_pass", "merge_control_flow_pass")
    return {
        "PJRT_DEVICE": "TPU",
        "NEXT_PLUGGABLE_DEVICE_USE_C_API": "true",
        "TF_PLUGGABLE_DEVICE_LIBRARY_PATH": str(Path(library.submodule_search_locations[0]) / "libtpu.so"),
        "TF_XLA_FLAGS": " ".join(
            f"--tf_mlir_enable_{'mlir_' if name == 'bridge' else ''}{name}=true" for name in passes
        ),
    }


def prepare_for_tpu(backend: str | None = None) -> str | None:
    """Set what TensorFlow reads when it is imported, where it is not set; to be called before Keras is.

    Args:
        backend: tensorflow or jax; default: Keras' own where it is imported or told, else what `engine` chooses.

    Returns: the backend.
    Raises: UserError where there is no chip: without one, TensorFlow's TPU build waits for minutes.
    """
    here = machine()
    told = os.environ.get("KERAS_BACKEND") or None
    imported = sys.modules["keras"].config.backend() if "keras" in sys.modules else None
    chosen = backend or imported or told or engine(here)
    if not here.chips:
        raise no_tpu(here, chosen)
    for name, value in tpu_environment(chosen).items():
        mine = os.environ.setdefault(name, value)
        if name == "TF_XLA_FLAGS" and value not in mine:
            os.environ[name] = f"{mine} {value}"
    if chosen is not None:
        os.environ["KERAS_BACKEND"] = chosen
    return chosen


def problems(here: Machine, backend: str | None = None) -> list[Problem]:
    """What keeps a TPU from training here, the likeliest first.

    Args:
        here: What there is.
        backend: tensorflow or jax; default: the one that `engine` chooses.

    Returns: an empty list where nothing is seen. Raises: UserError for another backend.
    """
    chosen = engine(here, backend)
    found = []
    if not here.chips:
        found.append(Problem("no TPU chip on this machine", _CHOOSE_A_CHIP[here.place]))
    found += [_held(pid, kernel) for pid, kernel in here.holders.items()]
    if chosen is None:
        tpu = "python colab_bootstrap.py" if here.chips else 'pip install "birdtpu[cpu]"'
        found.append(Problem("no TensorFlow and no JAX is installed", tpu))
    elif here.chips:
        found += _of_tensorflow(here) if chosen == "tensorflow" else _of_jax(here)
    return found


def no_tpu(here: Machine, backend: str | None = None, error: str = "") -> UserError:
    """The one line for somebody who asked for a TPU and gets none.

    Args:
        here: What there is.
        backend: tensorflow or jax.
        error: The text of what the framework raised.

    Returns: the error, to raise. Raises: UserError for another backend.
    """
    found = problems(here, backend)
    if here.chips:
        found = _told_by(error, here, engine(here, backend)) + found
    if not found:
        reason = (error.strip().splitlines() or ["the framework sees none"])[0][:200]
        found = [Problem(reason, "birdtpu doctor shows what is there")]
    return UserError(f"no TPU to train on: {found[0].what}; {found[0].mend}")


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace").strip()
    except OSError:
        return ""


def _place(env: Mapping[str, str], root: Path, chips: int) -> Place:
    # Kaggle first: one of its images is built on Colab's.
    if "KAGGLE_KERNEL_RUN_TYPE" in env or (root / "kaggle").is_dir():
        return "kaggle"
    if "COLAB_RELEASE_TAG" in env or (root / "content").is_dir():
        return "colab"
    return "cloud" if chips or {"TPU_ACCELERATOR_TYPE", "TPU_NAME", "TPU_WORKER_ID"} & set(env) else "local"


def _chips(dev: Path, sys: Path) -> tuple[set[str], int, str]:
    """The device files, how many chips they are, and their generation."""
    nodes = {str(path) for pattern in ("accel[0-9]*", "vfio/[0-9]*") for path in dev.glob(pattern)}
    devices = sorted((sys / "bus" / "pci" / "devices").glob("*"))
    if not devices:
        return nodes, len(nodes), ""
    chips = {}
    for device in devices:
        model = _text(device / "device")
        if model == _V2_OR_V3:
            model = _text(device / "subsystem_device")
        # Google's network card has the vendor's id too.
        if _text(device / "vendor") == _GOOGLE and model in _GENERATIONS:
            # A chip of two cores may stand on the bus as two functions, ADDRESS.0 and ADDRESS.1.
            chips[device.name.rpartition(".")[0]] = _GENERATIONS[model]
    if not chips and any("/accel" in node and _text(d / "vendor") == _GOOGLE for d in devices for node in nodes):
        # Of a generation that the table does not know.
        return nodes, len(nodes), ""
    # The bus shows the chips of the whole host, /dev those of this container; vfio alone may be any other card.
    count = min(len(chips), len(nodes))
    return (nodes, count, next(iter(chips.values()))) if count else (set(), 0, "")


def _holders(nodes: set[str], proc: Path) -> dict[int, bool]:
    found = {}
    for process in proc.glob("[0-9]*") if nodes else ():
        try:
            holds = any(str(link.resolve()) in nodes for link in (process / "fd").iterdir())
        except OSError:  # another user's, or it has ended meanwhile
            continue
        if holds and int(process.name) != os.getpid():
            found[int(process.name)] = "kernel_launcher" in _text(process / "cmdline")
    return found


def _tensorflows(here: Machine) -> list[str]:
    return [name for name in (*_PLAIN, "tensorflow-tpu") if name in here.versions]


def _libtpu(here: Machine) -> str | None:
    return here.versions.get("libtpu") or here.versions.get("libtpu-nightly")


def _of_tensorflow(here: Machine) -> list[Problem]:
    there = _tensorflows(here)
    if not there:
        return [Problem("TensorFlow is not installed", _OWN_ENVIRONMENT)]
    found = [_plain(here)] if there[0] in _PLAIN else []
    if "tensorflow-tpu" in there:
        version, fine = _libtpu(here), _LIBTPU.get(_release(here))
        numbers = tuple(map(int, re.findall(r"\d+", version or "")))
        if version is None or (fine and not fine[0] <= numbers <= fine[1]):
            found.append(_mismatch(here))
    return found


def _of_jax(here: Machine) -> list[Problem]:
    if "jax" not in here.versions:
        return [Problem("JAX is not installed", 'pip install "jax[tpu]"')]
    if _libtpu(here) is None:
        return [Problem("JAX has no libtpu", _jax_with_libtpu(here))]
    if not _tensorflows(here):
        return [Problem("no TensorFlow to read shards with", "pip install tensorflow-cpu")]
    return []


def _held(pid: int | None, kernel: bool = False) -> Problem:
    if pid is None:
        return Problem("another process holds the chip", "end it: sudo lsof /dev/accel* /dev/vfio/* names it")
    if kernel:
        return Problem(f"a notebook's kernel (process {pid}) holds the chip", "restart that kernel")
    return Problem(f"process {pid} holds the chip", f"kill {pid}")


def _plain(here: Machine) -> Problem:
    names = " and ".join(f"{name} {here.versions[name]}" for name in _PLAIN if name in here.versions)
    jax = ", or --backend jax" if "jax" in here.versions and _libtpu(here) else ""
    return Problem(f"{names or 'this TensorFlow'} cannot drive a TPU", _OWN_ENVIRONMENT + jax)


def _release(here: Machine) -> str:
    return ".".join(here.versions["tensorflow-tpu"].split(".")[:2])


def _mismatch(here: Machine) -> Problem:
    version, fine = here.versions["tensorflow-tpu"], _LIBTPU.get(_release(here))
    mend = f"libtpu=={fine[2]}" if fine else f"tensorflow-tpu=={version}"
    what = f"tensorflow-tpu {version} does not work with libtpu {_libtpu(here) or '(none installed)'}"
    return Problem(what, f"pip install {mend}")


def _jax_with_libtpu(here: Machine) -> str:
    return f'pip install "jax[tpu]=={here.versions["jax"]}"'


def _told_by(error: str, here: Machine, chosen: str | None) -> list[Problem]:
    if "ConfigureDistributedTPU" in error:
        return [_plain(here)]
    if re.search(r"TPU is already in use|libtpu\S* already in use|already in use by process", error):
        pid = re.search(r"by process (?:with pid )?(\d+)", error)
        # What /proc shows knows kernels from other processes; another user's processes it does not show.
        return [] if here.holders else [_held(int(pid[1]) if pid else None)]
    if "No TPU platform" in error or "libtpu version" in error:
        if chosen == "jax" and "jax" in here.versions:
            return [Problem("this JAX does not work with this libtpu", _jax_with_libtpu(here))]
        return [_mismatch(here) if "tensorflow-tpu" in here.versions else _plain(here)]
    return []
