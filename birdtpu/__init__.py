"""Find which birds sing, and when, in recordings.

The public names load on first use; importing the package loads no framework.
"""

from typing import TYPE_CHECKING, Any

# Before anybody imports TensorFlow: how it reads gs:// is settled there.
from birdtpu import storage as _storage  # noqa: F401

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from birdtpu.workflows.cross_validate import cross_validate
    from birdtpu.workflows.evaluate import evaluate
    from birdtpu.workflows.noisy_student import noisy_student
    from birdtpu.workflows.predict import load, predict
    from birdtpu.workflows.prepare import prepare
    from birdtpu.workflows.pseudo_label import pseudo_label
    from birdtpu.workflows.thresholds import thresholds
    from birdtpu.workflows.train import train

_HOMES = {
    "cross_validate": "birdtpu.workflows.cross_validate",
    "evaluate": "birdtpu.workflows.evaluate",
    "load": "birdtpu.workflows.predict",
    "noisy_student": "birdtpu.workflows.noisy_student",
    "predict": "birdtpu.workflows.predict",
    "prepare": "birdtpu.workflows.prepare",
    "pseudo_label": "birdtpu.workflows.pseudo_label",
    "thresholds": "birdtpu.workflows.thresholds",
    "train": "birdtpu.workflows.train",
}

__all__ = [
    "__version__", "cross_validate", "evaluate", "load", "noisy_student", "predict", "prepare", "pseudo_label",
    "thresholds", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'birdtpu' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
