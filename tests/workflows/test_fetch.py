"""The real client fetches competitions from a Kaggle in memory and submits to it, whatever goes wrong."""

import contextlib
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from birdtpu.cli import main
from birdtpu.errors import UserError
from birdtpu.publish.client import KaggleError
from birdtpu.storage import gone
from birdtpu.workflows.fetch import fetch, submit
from tests.fakes.kaggle import CANARIES, Dataset, Version, serving, zipped
from tests.fakes.server import Fault
from tests.test_archive import info, zip_of

ROOT = Path(__file__).resolve().parents[2]
RNG = random.Random(0)
NAME = "birdclef-2026"
FILES = {
    "train.csv": b"primary_label,filename\neurbla,eurbla/XC1.ogg\n",
    **{f"train_audio/eurbla/XC{i}.ogg": RNG.randbytes(200_000 + i) for i in range(4)},
}

PACKED = zipped(FILES)


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    with serving(tmp_path, monkeypatch) as server:
        server.kaggle.competitions[NAME] = PACKED
        yield server


def held(home) -> dict[str, bytes]:
    paths = [path for path in home.rglob("*") if path.is_file() and path.name != ".fetched.json"]
    return {path.relative_to(home).as_posix(): path.read_bytes() for path in paths}


def test_a_competition_comes_whole_and_once(cloud, tmp_path):
    assert fetch(NAME, tmp_path / "in") == len(FILES)
    assert held(tmp_path / "in") == FILES
    assert len([line for line in cloud.lines if line.startswith("GET down")]) == 1
    cloud.lines.clear()
    assert fetch(NAME, tmp_path / "in") == len(FILES) and not cloud.lines
    with pytest.raises(UserError, match="holds birdclef-2026; give another folder"):
        fetch("birdclef-2025", tmp_path / "in")


def test_a_data_set_comes_too(cloud, tmp_path):
    cloud.kaggle.datasets["me/xeno-canto"] = Dataset({"title": "x"}, [Version("", FILES)])
    assert fetch("kaggle:me/xeno-canto", tmp_path / "in") == len(FILES)
    assert held(tmp_path / "in") == FILES
    with pytest.raises(UserError, match="kaggle:me/nothing-here: not there, or not yours"):
        fetch("kaggle:me/nothing-here", tmp_path / "other")


KINDS = ["429", "500", "503", "drop", "lost", "truncate", "flip", "410"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("match", ["IntrospectToken", "DownloadDataFiles", "GET down"])
def test_fetching_survives_one_fault(cloud, tmp_path, kind, match):
    if kind == "flip" and match != "GET down":
        kind = "403"
    cloud.faults.append(Fault(kind, match))
    for _ in range(2):
        try:
            fetch(NAME, tmp_path / "in")
            break
        except UserError as error:
            # What is there by then is whole.
            there = held(tmp_path / "in") if (tmp_path / "in").exists() else {}
            assert all(
                FILES.get(name, data) == data for name, data in there.items() if not name.startswith(".download")
            )
            assert "\n" not in str(error) and "canary" not in str(error)
    assert held(tmp_path / "in") == FILES


def test_a_fetch_that_was_killed_goes_on(cloud, tmp_path):
    """SIGKILL at six moments; then one call ends it, and no byte is fetched twice that was there."""
    chance = random.Random(1)
    cloud.latency_seconds = 0.02
    command = [sys.executable, "-m", "birdtpu", "fetch", NAME, "--output", str(tmp_path / "in")]
    began = time.monotonic()
    subprocess.run([*command[:-1], str(tmp_path / "alone")], cwd=ROOT, check=True, capture_output=True)
    seconds = time.monotonic() - began
    for _ in range(6):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0.5, 1.0) * seconds)
        process.kill()
        process.wait()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and f"{len(FILES)} files of {NAME}" in done.stdout
    assert held(tmp_path / "in") == FILES == held(tmp_path / "alone")


def test_a_folder_belongs_to_what_was_begun_in_it(cloud, tmp_path):
    """An archive that was being unpacked is not taken for another competition's."""
    cloud.kaggle.competitions["other-birds"] = zipped({"train.csv": b"other"})
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f".{NAME}.download").write_bytes(cloud.kaggle.competitions[NAME][:-9])
    with pytest.raises(UserError, match="damaged"):
        fetch(NAME, tmp_path / "in")
    cloud.faults.append(Fault("truncate", "GET down", times=99))
    with pytest.raises(KaggleError, match="gave no answer"):
        fetch(NAME, tmp_path / "in")
    cloud.faults.clear()
    with pytest.raises(UserError, match="holds birdclef-2026; give another folder"):
        fetch("other-birds", tmp_path / "in")
    assert fetch(NAME, tmp_path / "in") == len(FILES) and held(tmp_path / "in") == FILES


def test_what_has_arrived_outlives_errors(cloud, tmp_path):
    """The line breaks, and the server is busy when the rest is asked for: the part stays, and only the rest is sent."""
    size = len(cloud.kaggle.competitions[NAME])
    cloud.faults += [Fault("truncate", "GET down"), Fault("503", "GET down", at=3, times=9)]
    with pytest.raises(KaggleError):
        fetch(NAME, tmp_path / "in")
    part = tmp_path / "in" / f".{NAME}.download.part"
    assert size // 3 < part.stat().st_size < size
    cloud.faults.clear()
    before = cloud.sent
    fetch(NAME, tmp_path / "in")
    assert held(tmp_path / "in") == FILES and cloud.sent - before < 1.9 * size


def test_a_bucket_is_no_folder(tmp_path):
    with pytest.raises(UserError, match="fetch into a local folder"):
        fetch(NAME, "gs://bucket/x")


@pytest.mark.parametrize("token", ["canary" + "a" * 300, "canary-with\nnewline", "canary-ünï"])
def test_what_is_no_token_is_not_shown(cloud, tmp_path, capsys, monkeypatch, token):
    monkeypatch.setenv("KAGGLE_API_TOKEN", token)
    monkeypatch.setattr(sys, "argv", ["birdtpu", "fetch", NAME, "--output", str(tmp_path / "in")])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and re.fullmatch(r"birdtpu: .*token of KAGGLE_API_TOKEN.*\n", err), err
    assert "canary" not in out + err


def test_a_hostile_archive_writes_nothing(cloud, tmp_path):
    cloud.kaggle.competitions[NAME] = zip_of({"train.csv": b"x", info("../evil"): b"x"})
    with pytest.raises(UserError, match=r"'\.\./evil': a name that leads out of the folder"):
        fetch(NAME, tmp_path / "in")
    assert not (tmp_path / "evil").exists() and not (tmp_path / "in" / "train.csv").exists()


def test_who_has_not_accepted_the_rules_is_told(cloud, tmp_path):
    cloud.kaggle.refused.add("DownloadDataFiles")
    with pytest.raises(KaggleError, match=r"Accept its rules at https://www\.kaggle\.com/competitions/birdclef-2026"):
        fetch(NAME, tmp_path / "in")
    cloud.kaggle.refused.clear()
    with pytest.raises(KaggleError, match="birdclef-1999: not there"):
        fetch("birdclef-1999", tmp_path / "in")
    with pytest.raises(UserError, match="no competition; give its name"):
        fetch("../x", tmp_path / "in")


def test_a_submission_arrives_once(cloud, tmp_path):
    path = tmp_path / "submission.csv"
    path.write_text("row_id,eurbla\n1,0.5\n")
    assert "Successfully submitted" in submit(NAME, path, "mine")
    name, message, data = cloud.kaggle.submissions[0]
    assert (name, data) == (NAME, path.read_bytes()) and re.fullmatch(r"mine \[[0-9a-f]{12}\]", message)
    cloud.faults.append(Fault("lost", "CreateSubmission"))
    path.write_text("row_id,eurbla\n1,0.6\n")
    assert "the reply was lost, but Kaggle lists it" in submit(NAME, path)
    cloud.faults.append(Fault("drop", "CreateSubmission"))
    path.write_text("row_id,eurbla\n1,0.7\n")
    with pytest.raises(KaggleError, match="not known whether the submission arrived"):
        submit(NAME, path)
    assert len(cloud.kaggle.submissions) == 2
    # One that was sent before is not taken for the one that was lost.
    cloud.faults.append(Fault("drop", "CreateSubmission"))
    path.write_text("row_id,eurbla\n1,0.6\n")
    with pytest.raises(KaggleError, match="not known whether the submission arrived") as caught:
        submit(NAME, path)
    assert "run the same command again" not in str(caught.value)
    assert len([line for line in cloud.lines if "CreateSubmission" in line]) == 4
    with pytest.raises(UserError, match=r"no such file, or an empty one; birdtpu predict --submission"):
        submit(NAME, tmp_path / "none.csv")


def test_an_expired_bucket_is_recognised():
    assert "about once a week" in gone("gs://kds-0123abc/train") and gone("gs://mine/kds-x") == ""


def test_no_secret_is_shown_where_kaggle_refuses(tmp_path, cloud):
    environment = {**os.environ, "KAGGLE_API_TOKEN": "canary-token-that-is-wrong"}
    command = [sys.executable, "-m", "birdtpu", "fetch", NAME, "--output", str(tmp_path / "in")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "did not take the token of KAGGLE_API_TOKEN" in done.stderr
    assert not any(word in done.stdout + done.stderr for word in ("canary", *CANARIES))
    assert not (tmp_path / "in").exists()
