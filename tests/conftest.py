"""Shared fixtures. Real recordings lie beside the project and are never part of it."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")
# One core a worker: the suite runs in as many processes as there are cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones, which have a timeout of their own, begin first: no core shall wait for one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)


SHARED_AUDIO = Path(__file__).resolve().parents[1].parent / "shared" / "audio"


@pytest.fixture(scope="session")
def shared_audio() -> Path:
    """The folder of real recordings; skips where it is absent."""
    if not SHARED_AUDIO.is_dir():
        pytest.skip("no real recordings beside the project (../shared/audio)")
    return SHARED_AUDIO
