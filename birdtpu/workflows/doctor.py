"""One table of what the machine has, what keeps its TPU from training, and the command that mends it."""

import os

from birdtpu.training.machine import Machine, engine, machine, problems

_GIB = 2**30


def doctor(backend: str | None = None, here: Machine | None = None) -> tuple[str, bool]:
    """Look at the machine; imports no framework and opens no chip.

    Args:
        backend: tensorflow or jax; default: KERAS_BACKEND, else what suits the machine.
        here: What to look at instead of this one.

    Returns: the table, and whether anything keeps a TPU from training.
    Raises: UserError where the backend is another one.
    """
    here = here or machine()
    backend = backend or os.environ.get("KERAS_BACKEND") or None
    found = problems(here, backend)
    rows = [("place", here.place), ("Python", here.python), *_chip_rows(here)]
    rows.append(("host", f"{here.cpus} CPUs, {here.memory_bytes / _GIB:.1f} GiB memory"))
    rows.append(("free disk", f"{here.free_bytes / _GIB:.1f} GiB"))
    rows.append(("engine", engine(here, backend) or "none"))
    rows += here.versions.items()
    for problem in found:
        rows += [("wrong", problem.what), ("mend", problem.mend)]
    if not found:
        rows.append(("wrong", "nothing that shows before a TPU starts"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows), bool(found)


def _chip_rows(here: Machine) -> list[tuple[str, str]]:
    if not here.chips:
        return [("TPU", "none")]
    if not here.cores:
        return [("TPU", f"{here.chips} chips of unknown generation")]
    cores = here.chips * here.cores
    return [
        ("TPU", f"{here.generation}, chips: {here.chips}, cores: {cores}"),
        ("HBM", f"{here.hbm_gib} GiB a core, {cores * here.hbm_gib} GiB in all"),
    ]
