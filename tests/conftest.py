"""Shared fixtures. Real recordings lie beside the project and are never part of it."""

import os
import signal
from collections.abc import Generator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")
# One core a worker: the suite runs in as many processes as there are cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests.fakes import google, kaggle

# A shell starts what runs in the background without Ctrl-C, which some tests press.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Planted in the environments of all tests that have a `cloud`; no output and no file may hold one.
CANARIES = (*google.CANARIES, *kaggle.CANARIES, kaggle.SIGNATURE)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail what prints or logs a credential."""
    report = yield
    if any(secret in text for _, text in report.sections for secret in CANARIES):
        report.outcome, report.longrepr = "failed", f"{item.nodeid}: a credential was printed or logged"
    return report


@pytest.fixture(autouse=True)
def _no_credential_is_written(request: pytest.FixtureRequest) -> Generator[None]:
    yield
    if {"cloud", "tmp_path"} <= request.node.funcargs.keys():
        for path in request.node.funcargs["tmp_path"].rglob("*"):
            # Google's clients read theirs from this file, which the fixture made.
            if path.is_file() and path.name != "credentials.json":
                # What they all have, so that large files are searched once.
                assert b"canary" not in path.read_bytes(), path


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
