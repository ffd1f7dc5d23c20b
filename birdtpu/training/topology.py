"""TPUs that are not here: what they can do, and their compiler. The one place that calls into JAX's private modules."""

import os
import re
from dataclasses import dataclass
from typing import Any

from birdtpu.errors import UserError

# Of one device, as a framework sees it: a core of v2, v3 and tpu7x, else a chip. bfloat16 FLOP/s, HBM bytes a second,
# HBM bytes. From cloud.google.com/tpu/docs/system-architecture-tpu-vm; a core has half its chip.
_GIB = 2**30
DEVICES = {
    "v2": (22.5e12, 350e9, 8 * _GIB),
    "v3": (61.5e12, 450e9, 16 * _GIB),
    "v4": (275e12, 1228e9, 32 * _GIB),
    "v5e": (197e12, 819e9, 16 * _GIB),
    "v5p": (459e12, 2765e9, 95 * _GIB),
    "v6e": (918e12, 1640e9, 32 * _GIB),
    "tpu7x": (1153e12, 3690e9, 96 * _GIB),
}
# So that libtpu, which is only to compile, asks this machine for no TPU.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}


def prepare_environment() -> None:
    """Set what libtpu reads; before JAX is imported. Variables that are set already stay."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@dataclass(frozen=True)
class Topology:
    """Devices of one generation, and what each can do.

    Args:
        name: Such as `v5e:2x4`.
        devices: JAX's, to compile for.
        flops: bfloat16 operations a second.
        bandwidth: Bytes a second between HBM and the chip.
        memory: Bytes of HBM.
    """

    name: str
    devices: list[Any]
    flops: float
    bandwidth: float
    memory: int


def open_topology(name: str) -> Topology:
    """A topology by name: `v5e:2x4`, `v4:2x2x1`; `v5e:1x1` is one chip.

    Raises: UserError where the name is none, or the compiler is not installed or does not know it.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", name)
    if found is None or found[1] not in DEVICES:
        raise UserError(f"--topology {name}: write it as v5e:2x4; the generations are {', '.join(DEVICES)}")
    prepare_environment()
    try:
        import libtpu  # noqa: F401  # pyright: ignore
        from jax.experimental import topologies
    except ImportError as error:
        raise UserError("the TPU compiler is not installed: pip install 'birdtpu[cpu,compile]'") from error
    one_chip = set(found[2].split("x")) == {"1"}
    options: dict[str, Any] = {"chips_per_host_bounds": (1, 1, 1)} if one_chip else {}
    if found[1] == "v4":
        # Both cores of a chip as one device, as frameworks see them.
        options["chip_config_name"] = "megacore"
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except Exception as error:  # libtpu raises RuntimeErrors of several kinds
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--topology {name}: the compiler does not know it ({reason})") from error
    return Topology(name, list(description.devices), *DEVICES[found[1]])


def compile_stablehlo(module: bytes, topology: Topology) -> Any:
    """Compile a serialized StableHLO module, the same program on every device of a topology.

    Returns: the executable; it has `cost_analysis()`, `get_compiled_memory_stats()` and `hlo_modules()`.
    """
    import numpy as np
    from jax._src import compiler
    from jax._src.interpreters import mlir
    from jax._src.lib import xla_client
    from jax._src.lib.mlir import ir

    devices = np.array(topology.devices)
    options = compiler.get_compile_options(len(devices), 1, devices[:, None])
    with mlir.make_ir_context() as context:
        context.allow_unregistered_dialects = True
        parsed = ir.Module.parse(module)
        _strip_copies(parsed)
        client = devices[0].client
        placed = xla_client.DeviceList(tuple(devices))
        return compiler.backend_compile_and_load(client, parsed, placed, options, [])


def _strip_copies(module: Any) -> None:
    """Take out `mhlo.copy`, which TensorFlow puts on aliased outputs and JAX's parser does not know."""

    def visit(block: Any) -> None:
        for operation in list(block.operations):
            for region in operation.operation.regions:
                for inner in region:
                    visit(inner)
            if operation.operation.name == "mhlo.copy":
                operation.operation.results[0].replace_all_uses_with(operation.operation.operands[0])
                operation.operation.erase()

    visit(module.body)
