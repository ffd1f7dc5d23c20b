"""Strange replies, names, links, disks and impatient users: each ends in one line, and the next call goes on."""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

import gcs_tools
from gcs_tools import manifest
from tests.fakes.server import Fault, Reply
from tests.gcs_tools.test_transfer import ROOT, URL, cloud, folder, held, pushed, run, sent

__all__ = ["cloud", "folder", "pushed"]
JSON = {"Content-Type": "application/json"}


def listing(**item: object) -> Reply:
    whole = {"name": "data/one/x", "size": "1", "generation": "1", "crc32c": "AAAAAA=="}
    return Reply(200, json.dumps({"items": [{**whole, **item}]}).encode(), JSON)


STRANGE = {
    "a-page": Reply(200, b"<html>Sign in to the hotel's network</html>", {"Content-Type": "text/html"}),
    "nested": Reply(200, b"[" * 100_000, JSON),
    "a-list": Reply(200, b"[1]", JSON),
    "items-of-no-kind": Reply(200, b'{"items": 5}', JSON),
    "no-size": listing(size=None),
    "size-of-letters": listing(size="many"),
    "no-generation": listing(generation=None),
    "no-name": listing(name=None),
    "message": Reply(400, json.dumps({"error": {"message": "\x1b[2J no\x9b\r\nsuch"}}).encode(), JSON),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_list_is_one_line(cloud, pushed, name):
    cloud.faults.append(Fault("", "GET .*/o ", times=99, reply=STRANGE[name]))
    for call in (gcs_tools.ls, gcs_tools.verify, lambda url: gcs_tools.push(pushed, url, deadline_seconds=2)):
        with pytest.raises(gcs_tools.TransferError) as caught:
            call(URL)
        said = str(caught.value)
        assert said.startswith(URL) and not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in said)
    cloud.faults.clear()
    assert gcs_tools.verify(URL) == [] and sent(cloud) == held(pushed)


def test_a_list_that_never_ends_is_given_up(cloud, pushed):
    pages = cloud.storage._list

    def again(bucket, query):
        body = json.loads(pages(bucket, {**query, "pageToken": ""}).body)
        return Reply(200, json.dumps({**body, "nextPageToken": "the first one"}).encode(), JSON)

    cloud.storage._list = again
    with pytest.raises(gcs_tools.TransferError, match="its list leads back to a page that was read before"):
        gcs_tools.ls(URL)
    assert len([line for line in cloud.lines if "/o " in line and "pageToken" in line]) == 1


@pytest.mark.parametrize(
    "url",
    ["gs://", "gs:///x", "gs://bucket//x", "gs://bucket/a//b", "gs://bucket/a\nb", "gs://bucket/../x", "gs://bucket/.",
     "gs://bucket//", "gs://buck et/x", "gs://Bucket/x", "gs://bucket?x/y", "bucket/x", "gs://bucket/\x1b[2J"],
)  # fmt: skip
def test_what_is_no_address_is_told_before_a_byte_is_sent(cloud, folder, tmp_path, url):
    for call in (
        lambda: gcs_tools.push(folder, url),
        lambda: gcs_tools.pull(url, tmp_path / "x"),
        lambda: gcs_tools.rm(url),
    ):
        with pytest.raises(
            gcs_tools.TransferError, match="no address of Cloud Storage; one is gs://bucket/prefix"
        ) as e:
            call()
        assert str(e.value).isprintable()
    assert not cloud.lines


def test_the_bucket_itself_is_never_asked_for(cloud, pushed, tmp_path):
    """The client would in a thread of its own, to label traces: a request nobody waits for, and a permission more."""
    gcs_tools.pull(URL, tmp_path / "back")
    gcs_tools.rm(URL)
    assert cloud.lines and not [line for line in cloud.lines if "/b/bucket " in line]


def test_names_of_others_cannot_write_on_the_terminal(cloud, capsys, monkeypatch):
    cloud.storage._store("bucket", "data/one/a\x1b[2J\nb", b"x", {})
    code, out, _ = run(capsys, monkeypatch, "ls", URL)
    assert code == 0 and "  a?[2J?b\n" in out and "\x1b" not in out


def test_a_manifest_with_a_file_that_is_a_folder_too_is_refused(cloud, tmp_path):
    one = gcs_tools.Entry(1, "00000000")
    body = manifest.to_bytes({"a": one, "a/b": one})
    for data, reason in ((body, "'a' is a file and a folder there"), (body.replace(b'"a/b"', b'"a"'), "damaged")):
        cloud.storage._store("bucket", f"data/one/{manifest.NAME}", data, {})
        with pytest.raises(gcs_tools.TransferError, match=reason):
            gcs_tools.pull(URL, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_linked_folders_go_up_too(cloud, folder, tmp_path):
    """Shards on another disk are a link in the folder."""
    (folder / "shards").rename(tmp_path / "large disk")
    (folder / "shards").symlink_to(tmp_path / "large disk")
    (folder / "also.csv").symlink_to(folder / "large.bin")
    assert gcs_tools.push(folder, URL).files == 10
    names = {f"shards/shard-{i}.tfrecord" for i in range(5)}
    assert names <= sent(cloud).keys() and sent(cloud)["also.csv"] == (folder / "large.bin").read_bytes()
    # And come down through one.
    back = tmp_path / "back"
    (tmp_path / "elsewhere").mkdir()
    back.mkdir()
    (back / "shards").symlink_to(tmp_path / "elsewhere")
    gcs_tools.pull(URL, back)
    assert {f"shards/{path.name}" for path in (tmp_path / "elsewhere").iterdir()} == names


def test_links_that_lead_nowhere_or_round_are_named(cloud, folder, tmp_path):
    (folder / "shards" / "gone").symlink_to(tmp_path / "nothing")
    with pytest.raises(gcs_tools.TransferError, match="shards/gone: no file, or a link that leads to none"):
        gcs_tools.push(folder, URL)
    (folder / "shards" / "gone").unlink()
    (folder / "shards" / "up").symlink_to(folder)
    with pytest.raises(gcs_tools.TransferError, match="shards/up: a link to a folder that it lies in"):
        gcs_tools.push(folder, URL)
    assert not cloud.storage.objects


def test_a_disk_that_fills_is_told_and_leaves_no_part(cloud, pushed, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(
            gcs_tools.TransferError, match=r"large\.bin: File too large; free space, and the same command"
        ):
            gcs_tools.pull(URL, tmp_path / "back")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "back").rglob(".*")) and not (tmp_path / "back" / "manifest.json").exists()
    assert gcs_tools.pull(URL, tmp_path / "back").moved < 9 and held(tmp_path / "back") == held(pushed)


def test_two_pulls_do_not_share_a_folder(cloud, pushed, tmp_path):
    """Else one would sweep away what the other one fetches."""
    import fcntl

    back = tmp_path / "back"
    (back / "shards").mkdir(parents=True)
    mine = back / "shards" / ".shard-1.tfrecord.0123abcd.tmp"
    mine.write_bytes(b"growing")
    descriptor = os.open(back, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(gcs_tools.TransferError, match="back: another process is writing here"):
        gcs_tools.pull(URL, back)
    assert mine.exists()
    os.close(descriptor)
    # What a kill left is swept, and nothing else.
    (back / ".mine.tmp").write_bytes(b"mine")
    gcs_tools.pull(URL, back)
    assert held(back) == held(pushed) and [path.name for path in back.rglob(".*")] == [".mine.tmp"]


@pytest.mark.parametrize("way", ["push", "pull"])
def test_an_interruption_ends_at_once(cloud, folder, tmp_path, way):
    """Ctrl-C while the server is silent in the middle of the files."""
    if way == "pull":
        gcs_tools.push(folder, URL)
    answer, release = cloud.answer, threading.Event()
    wanted = "upload" if way == "push" else "shard-"

    def stuck(request):
        if wanted in request.line:
            if not interrupted:
                interrupted.append(True)
                os.kill(os.getpid(), signal.SIGINT)
            release.wait(20)
        return answer(request)

    interrupted: list[bool] = []
    cloud.answer = stuck
    call = (lambda: gcs_tools.push(folder, URL)) if way == "push" else (lambda: gcs_tools.pull(URL, tmp_path / "back"))
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        call()
    assert time.monotonic() - began < 10
    if way == "pull":
        assert not (tmp_path / "back" / "manifest.json").exists()
    else:
        assert f"data/one/{manifest.NAME}" not in cloud.storage.data("bucket")
    cloud.answer = answer
    release.set()
    call()
    assert sent(cloud) == held(folder) and gcs_tools.verify(URL) == []


def test_the_command_ends_at_once_too(cloud, folder):
    """Python itself would wait for the threads."""
    cloud.latency_seconds = 0.01
    answer, began, release = cloud.answer, threading.Event(), threading.Event()

    def stuck(request):
        if "upload" in request.line:
            began.set()
            release.wait(60)
        return answer(request)

    cloud.answer = stuck
    command = [sys.executable, "-m", "gcs_tools", "push", str(folder), URL]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert began.wait(60)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    release.set()
    assert process.returncode == 130 and out == "" and "Traceback" not in err


def test_a_folder_that_cannot_be_read_is_named():
    with tempfile.TemporaryDirectory() as home:
        closed = Path(home, "x", "closed")
        closed.mkdir(parents=True)
        for path in (closed.parent, Path(home)):
            path.chmod(0o755)
        closed.chmod(0)
        before = os.geteuid()
        if not before:
            # Root may read everything.
            os.seteuid(65534)
        try:
            with pytest.raises(gcs_tools.TransferError, match="closed: Permission denied"):
                gcs_tools.push(closed.parent, URL)
        finally:
            os.seteuid(before)
            closed.chmod(0o700)
