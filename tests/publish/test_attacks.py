"""A broken or hostile Kaggle, and impatient users: one line, one version at most, and no secret."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from birdtpu.cli import main
from birdtpu.errors import UserError
from birdtpu.publish import places, release
from birdtpu.publish.client import Kaggle, KaggleError
from birdtpu.publish.send import publish
from tests.fakes.kaggle import CANARIES, UPLOADS, serving
from tests.fakes.server import Fault, Reply
from tests.publish.test_send import FAST, ROOT, TO, versions

JSON = {"Content-Type": "application/json"}


def upload(url: str) -> Reply:
    return Reply(200, json.dumps({"token": "token-0", "createUrl": url}).encode(), JSON)


def message(**body: str) -> Reply:
    said = f"\x1b[2J no\r\nsuch {CANARIES[0]}\x9b"
    return Reply(200, json.dumps(dict.fromkeys(body, said) | {"status": "error"}).encode(), JSON)


STRANGE = {
    ("IntrospectToken", "no-user"): Reply(200, b'{"active": true}', JSON),
    ("GetDatasetStatus", "a-page"): Reply(200, b"<html>", {"Content-Type": "text/html"}),
    ("GetDatasetStatus", "nested"): Reply(200, b"[" * 100_000, JSON),
    ("GetDatasetStatus", "unknown"): Reply(200, b'{"status": "RESTING"}', JSON),
    ("StartBlobUpload", "no-address"): Reply(200, b"{}", JSON),
    ("StartBlobUpload", "to-http"): upload(f"http://{UPLOADS}/upload?upload_id=token-0"),
    ("StartBlobUpload", "to-file"): upload("file:///etc/passwd"),
    ("StartBlobUpload", "to-nowhere"): upload("https://[::1"),
    ("PUT", "to-http"): Reply(307, b"", {"Location": f"http://{UPLOADS}/upload"}),
    ("PUT", "range-of-letters"): Reply(308, b"", {"Range": "bytes=0-many"}),
    ("PUT", "range-behind-its-end"): Reply(308, b"", {"Range": "bytes=0-99999999999"}),
    ("CreateDataset", "message"): message(error="x"),
    ("CreateDataset", "list"): Reply(200, b"[]", JSON),
    ("CreateDataset", "to-http"): Reply(302, b"", {"Location": "http://api.kaggle.com/"}),
    ("CreateDataset", "to-itself"): Reply(302, b"", {"Location": ""}),
}


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    with serving(tmp_path, monkeypatch) as server:
        yield server


@pytest.mark.parametrize(("match", "name"), STRANGE)
def test_a_strange_reply_is_one_line(cloud, run, match, name):
    cloud.faults.append(Fault("", match, times=99, reply=STRANGE[match, name]))
    try:
        publish(run, TO, wait_seconds=2, unconfirmed_seconds=0.5)
    except UserError as error:
        said = str(error)
        assert not re.search(r"[\x00-\x1f\x7f-\x9f]", said) and not any(secret in said for secret in CANARIES), said
        assert "passwd" not in said
    else:
        # The token need not tell whose it is.
        assert name == "no-user"
    assert len([line for line in cloud.lines if "/Create" in line]) <= 1
    assert not any("http://" in line for line in cloud.lines)
    cloud.faults.clear()
    assert publish(run, TO, **FAST).place.version == len(versions(cloud)) == 1


def test_a_single_file_that_comes_zipped(cloud, run, tmp_path):
    """Kaggle packs some of the single files it hands out, under the last part of their name."""
    publish(run, TO, **FAST)
    cloud.kaggle.packs = True
    again = publish(run, TO, **FAST)
    assert (again.sent, len(versions(cloud))) == (False, 1)
    place, files = places.parse(f"{TO}/versions/1"), versions(cloud)[0].files
    files["deep/notes.txt"] = b"one\ntwo\n"
    with Kaggle() as kaggle:
        assert places.read(kaggle, place, release.MANIFEST) == files[release.MANIFEST]
        assert places.read(kaggle, place, "deep/notes.txt") == b"one\ntwo\n"
        with pytest.raises(KaggleError, match="not there"):
            places.read(kaggle, place, "none.txt")
        # What only looks packed, and what is not small, is nobody's manifest.
        cloud.kaggle.packs = False
        files["odd"], files["large"] = b"PK\x03\x04 and no more", bytes(12_000_000)
        assert places.read(kaggle, place, "odd") == files["odd"]
        assert len(places.read(kaggle, place, "large")) < 11_000_000


def test_two_at_once_make_one_version(cloud, run):
    answer, seen = cloud.answer, []

    def meanwhile(request):
        if "CreateDataset" in request.line and not seen:
            seen.append(True)
            with pytest.raises(UserError, match="another process is writing here"):
                publish(run, TO, **FAST)
        return answer(request)

    cloud.answer = meanwhile
    assert publish(run, TO, **FAST).sent and seen
    assert len(versions(cloud)) == len(cloud.kaggle.creations) == 1


@pytest.mark.parametrize("when", ["StartBlobUpload", "PUT", "CreateDataset", "GET down"])
def test_an_interrupted_publish_is_made_once(cloud, run, when):
    """Ctrl-C at each step, when Kaggle has what it was sent; the next call sees to the rest."""
    answer = cloud.answer

    def interrupting(request):
        reply = answer(request)
        if re.search(when, request.line):
            cloud.answer = answer
            os.kill(os.getpid(), signal.SIGINT)
        return reply

    cloud.answer = interrupting
    with pytest.raises(KeyboardInterrupt):
        publish(run, TO, **FAST)
    assert publish(run, TO, **FAST).place.version == 1
    assert len(versions(cloud)) == len(cloud.kaggle.creations) == 1


@pytest.mark.parametrize("command", ["publish", "bundle"])
def test_one_run_is_taken(capsys, run, tmp_path, monkeypatch, command):
    """A cross-validation's folder, or several runs, end in one line."""
    whole = tmp_path / "cv"
    for fold in range(2):
        shutil.copytree(run.folder, whole / f"fold-{fold}")
    (whole / "cross_validation.csv").write_text("fold\n0\n1\n")
    options = ["--to", TO, *(["--competition", "x", "--output", str(tmp_path / "o")] if command == "bundle" else [])]
    for given, said in (
        (
            [whole],
            rf"cv: a cross-validation of 2 folds, but {command} takes one run: .*/fold-0, or one that birdtpu train",
        ),
        (
            [run.folder, whole / "fold-1"],
            rf"{command} takes one run, not 2 \(.*mine, .*fold-1\); give each its own --to",
        ),
        ([tmp_path], r"no run \(run\.json is missing\); give the folder that birdtpu train --run wrote"),
    ):
        monkeypatch.setattr(sys, "argv", ["birdtpu", command, *map(str, given), *options])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert (ended.value.code, out) == (2, "") and re.fullmatch(rf"birdtpu: .*{said}.*\n", err), err
    assert not (tmp_path / "o").exists()


def test_a_command_that_is_interrupted_exits_with_130(cloud, run):
    cloud.latency_seconds = 0.01
    cloud.faults.append(Fault("", "StartBlobUpload", reply=Reply(200, b"{}", JSON)))
    command = [sys.executable, "-m", "birdtpu", "publish", run.folder, "--to", TO]
    answer = cloud.answer
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def interrupting(request):
        if "GetDatasetStatus" in request.line:
            process.send_signal(signal.SIGINT)
            process.wait(20)
        return answer(request)

    cloud.answer = interrupting
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "") and "Traceback" not in err
    assert not Path(run.path("publishing.json")).exists()
