"""A hostile or broken Kaggle, a full disk, an impatient user: each ends in one line, and the next call goes on."""

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from birdtpu.errors import UserError
from birdtpu.publish.client import KaggleError
from birdtpu.workflows.fetch import DONE, fetch
from tests.fakes.kaggle import CANARIES, DOWNLOADS, Dataset, Version, serving, tarred, zipped
from tests.fakes.server import Fault, Reply
from tests.workflows.test_fetch import FILES, NAME, PACKED, held

ROOT = Path(__file__).resolve().parents[2]
SET = "kaggle:me/xeno-canto"
JSON = {"Content-Type": "application/json"}
MESSAGE = json.dumps({"code": 400, "message": f"\x1b[2J no\r\nsuch {CANARIES[0]}\x9b"}).encode()
STRANGE = {
    "length-of-letters": Reply(200, b"x", {"Content-Length": "many", "Connection": "close"}),
    "length-negative": Reply(200, b"x", {"Content-Length": "-5", "Connection": "close"}),
    "length-too-long": Reply(200, b"x" * 99, {"Content-Length": "1000", "Connection": "close"}),
    "length-too-short": Reply(200, b"x" * 99, {"Content-Length": "9", "Connection": "close"}),
    "length-zero": Reply(200, b"x" * 99, {"Content-Length": "0", "Connection": "close"}),
    "length-no-disk-has": Reply(200, b"x", {"Content-Length": "1" + "0" * 17, "Connection": "close"}),
    "length-no-number-has": Reply(200, b"x", {"Content-Length": "9" * 40, "Connection": "close"}),
    "packed": Reply(200, b"no gzip", {"Content-Encoding": "gzip"}),
    "to-http": Reply(302, b"", {"Location": f"http://{DOWNLOADS}/x"}),
    "to-file": Reply(302, b"", {"Location": "file:///etc/passwd"}),
    "to-nowhere": Reply(302, b"", {"Location": "https://[::1"}),
    "to-itself": Reply(302, b"", {"Location": ""}),
    "a-part": Reply(206, b"x" * 99, {"Content-Range": "bytes 0-98/2000"}),
    "nothing": Reply(200, b""),
    "a-page": Reply(200, b"<html>Sign in to the hotel's network</html>", {"Content-Type": "text/html"}),
    "a-list": Reply(200, b"[1]", JSON),
    "null": Reply(200, b"null", JSON),
    "code-of-no-kind": Reply(400, b'{"code": [], "message": {}}', JSON),
    "code-infinite": Reply(500, b'{"code": Infinity}', JSON),
    "nested": Reply(200, b"[" * 100_000, JSON),
    "nested-error": Reply(418, b"[" * 100_000, JSON),
    "message": Reply(400, MESSAGE, JSON),
}


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    with serving(tmp_path, monkeypatch) as server:
        server.kaggle.competitions[NAME] = PACKED
        server.kaggle.datasets[SET[7:]] = Dataset({"title": "x"}, [Version("", FILES)])
        yield server


def one_line(error: BaseException) -> str:
    said = str(error)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", said) and not any(secret in said for secret in CANARIES), said
    return said


@pytest.mark.parametrize("match", ["IntrospectToken", "DownloadDataFiles", "GET down"])
@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_reply_is_one_line(cloud, tmp_path, name, match):
    cloud.faults.append(Fault("", match, times=99, reply=STRANGE[name]))
    with pytest.raises(UserError) as caught:
        fetch(NAME, tmp_path / "in")
    said = one_line(caught.value)
    assert "passwd" not in said and not (tmp_path / "in" / "train.csv").exists()
    if name in ("to-http", "to-file") and match != "IntrospectToken":
        assert "led to an address that is not https" in said
    cloud.faults.clear()
    assert fetch(NAME, tmp_path / "in") == len(FILES) and held(tmp_path / "in") == FILES


@pytest.mark.parametrize("name", ["a-list", "null", "nested", "code-infinite", "to-http", "to-itself", "message"])
@pytest.mark.parametrize("match", ["GetDataset", "DownloadDataset"])
def test_so_it_is_for_data_sets(cloud, tmp_path, name, match):
    cloud.faults.append(Fault("", match, times=99, reply=STRANGE[name]))
    with pytest.raises(UserError) as caught:
        fetch(SET, tmp_path / "in")
    one_line(caught.value)
    cloud.faults.clear()
    assert fetch(SET, tmp_path / "in") == len(FILES) and held(tmp_path / "in") == FILES


@pytest.mark.parametrize("wrong", ["416", "200", "another part", "another file's"])
def test_the_rest_of_another_file_is_not_appended(cloud, tmp_path, wrong):
    cloud.faults += [Fault("truncate", "GET down"), Fault("503", "GET down", at=2, times=9)]
    with pytest.raises(KaggleError):
        fetch(NAME, tmp_path / "in")
    size = len(cloud.kaggle.competitions[NAME])
    start = (tmp_path / "in" / f".{NAME}.download.part").stat().st_size
    assert 0 < start < size
    cloud.faults.clear()
    replies = {
        "416": Reply(416),
        "200": Reply(200, b"x" * (size - start)),
        "another part": Reply(206, b"x" * (size - start), {"Content-Range": f"bytes 0-{size - start - 1}/{size}"}),
        "another file's": Reply(206, b"x" * (size - start), {"Content-Range": f"bytes {start}-{size}/{size + 1}"}),
    }
    # The first one is asked for the whole, and tells how large it is.
    cloud.faults.append(Fault("", "GET down", at=2, reply=replies[wrong]))
    assert fetch(NAME, tmp_path / "in") == len(FILES) and held(tmp_path / "in") == FILES


def test_versions_are_not_mixed(cloud, tmp_path):
    """The data set gets a version between two calls: the folder that was begun with the old one is ended with it."""
    cloud.faults.append(Fault("truncate", "GET down", times=99))
    with pytest.raises(KaggleError):
        fetch(SET, tmp_path / "in")
    cloud.faults.clear()
    cloud.kaggle.datasets[SET[7:]].versions.append(Version("", {"other.csv": b"new"}))
    cloud.faults.append(Fault("404", "DownloadDataset"))
    with pytest.raises(KaggleError, match=r"versions/1: not there.* was begun with this version: remove it, and fetch"):
        fetch(SET, tmp_path / "in")
    assert fetch(SET, tmp_path / "in") == len(FILES) and held(tmp_path / "in") == FILES
    assert fetch(SET, tmp_path / "new") == 1 and held(tmp_path / "new") == {"other.csv": b"new"}


def test_what_nobody_fetched_is_not_overwritten(cloud, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "train.csv").write_bytes(b"my own")
    with pytest.raises(UserError, match=r"in: holds train\.csv, which was not fetched; give an empty folder"):
        fetch(NAME, tmp_path / "in")
    assert held(tmp_path / "in") == {"train.csv": b"my own"} and not cloud.lines


@pytest.mark.parametrize("name", [DONE, DONE.upper(), f"{DONE}/x", ".PLACE.download", ".PLACE.download.part.json"])
@pytest.mark.parametrize("source", [NAME, SET])
def test_an_archive_cannot_write_our_notes(cloud, tmp_path, source, name):
    name = name.replace("PLACE", NAME if source == NAME else "xeno-canto-1")
    files = {"train.csv": b"x", name: b'{"source": "me", "files": 9}'}
    cloud.kaggle.competitions[NAME] = zipped(files)
    cloud.kaggle.datasets[SET[7:]].versions[:] = [Version("", files)]
    with pytest.raises(UserError, match="a name under which birdtpu keeps its own notes; unpack it by hand"):
        fetch(source, tmp_path / "in")
    assert not [path for path in (tmp_path / "in").glob("*") if path.name != DONE]
    cloud.kaggle.competitions[NAME] = PACKED
    cloud.kaggle.datasets[SET[7:]].versions[:] = [Version("", FILES)]
    assert fetch(source, tmp_path / "in") == len(FILES) and held(tmp_path / "in") == FILES


def test_a_model_whose_archive_was_cut_is_fetched_again(cloud, tmp_path):
    """Kaggle packs what it has of a tar: whole by gzip's checksum, but files are missing."""
    import gzip

    cloud.kaggle.datasets["me/m/keras/v"] = Dataset({"title": "x"}, [Version("", FILES)])
    cut = gzip.compress(gzip.decompress(tarred(FILES))[:1024])
    cloud.faults.append(Fault("", "GET down", reply=Reply(200, cut)))
    assert fetch("kaggle:me/m/keras/v", tmp_path / "in") == len(FILES) and held(tmp_path / "in") == FILES


@contextlib.contextmanager
def largest_file(size: int):
    """Let no file of this process become larger: the system's own limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("source", [NAME, SET])
def test_a_disk_that_fills_keeps_what_has_arrived(cloud, tmp_path, source):
    with largest_file(300_000), pytest.raises(UserError, match=r"in: File too large; free space, and the same command"):
        fetch(source, tmp_path / "in")
    (part,) = (tmp_path / "in").glob(".*.part")
    assert part.stat().st_size == 300_000
    spans, answer = [], cloud.answer

    def noted(request):
        spans.append(request.headers.get("range"))
        return answer(request)

    cloud.answer = noted
    assert fetch(source, tmp_path / "in") == len(FILES) and held(tmp_path / "in") == FILES
    assert "bytes=300000-" in spans


def test_a_disk_that_fills_while_unpacking_keeps_the_archive(cloud, tmp_path):
    table = b"row_id,eurbla\n" + b"".join(b"%d,0.5\n" % i for i in range(50_000))
    cloud.kaggle.competitions[NAME] = zipped({"sample.csv": table})
    limit = len(cloud.kaggle.competitions[NAME]) + 1000
    assert limit < len(table)
    with largest_file(limit), pytest.raises(UserError, match="File too large; free space, and the same call goes on"):
        fetch(NAME, tmp_path / "in")
    cloud.lines.clear()
    assert fetch(NAME, tmp_path / "in") == 1 and held(tmp_path / "in") == {"sample.csv": table}
    assert not [line for line in cloud.lines if "GET down" in line]


def test_a_small_disk_that_somebody_else_fills(cloud, tmp_path):
    """On a file system of its own, where one may be had: the room goes after the rest was asked for."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting is not allowed here")
    try:
        answer, filler = cloud.answer, disk / "filler"

        def meanwhile(request):
            if request.headers.get("range"):
                filler.write_bytes(bytes(2_500_000))
            return answer(request)

        cloud.answer = meanwhile
        cloud.faults.append(Fault("truncate", "GET down"))
        with pytest.raises(UserError, match="No space left on device; free space, and the same command goes on"):
            fetch(NAME, disk / "in")
        assert (disk / "in" / f".{NAME}.download.part").stat().st_size > 420_000
        cloud.answer = answer
        filler.unlink()
        assert fetch(NAME, disk / "in") == len(FILES) and held(disk / "in") == FILES
    finally:
        subprocess.run(["umount", disk], check=True)


PATIENCE = """
import sys
from birdtpu.publish import client
client.CONNECT_SECONDS = client.READ_SECONDS = 0.4
from birdtpu.workflows.fetch import fetch
fetch("birdclef-2026", sys.argv[1])
"""


def test_a_proxy_that_never_answers_is_given_up(cloud, tmp_path):
    """In a process of its own: the client signs in when it is imported, and once more when it is asked to."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        proxy = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environment = {**os.environ, "HTTPS_PROXY": proxy, "https_proxy": proxy}
        command = [sys.executable, "-c", PATIENCE, str(tmp_path / "in")]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30)
    last = done.stderr.splitlines()[-1]
    assert "signing in: Kaggle gave no answer" in last and not any(secret in done.stderr for secret in CANARIES)
    assert not (tmp_path / "in").exists()


def test_an_interrupted_fetch_ends_at_once_and_goes_on(cloud, tmp_path):
    """Ctrl-C while the server is silent in the middle of the bytes."""
    cloud.faults.append(Fault("truncate", "GET down"))
    answer, release = cloud.answer, threading.Event()

    def stuck(request):
        if request.headers.get("range"):
            os.kill(os.getpid(), signal.SIGINT)
            release.wait(20)
        return answer(request)

    cloud.answer = stuck
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fetch(NAME, tmp_path / "in")
    assert time.monotonic() - began < 10
    release.set()
    cloud.answer = answer
    assert (tmp_path / "in" / f".{NAME}.download.part").stat().st_size > 300_000
    assert fetch(NAME, tmp_path / "in") == len(FILES) and held(tmp_path / "in") == FILES
