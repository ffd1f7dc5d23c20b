"""The real client against a bucket in memory, through TLS and with credentials."""

import contextlib
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import gcs_tools
from gcs_tools import manifest
from gcs_tools.__main__ import main
from tests.fakes.google import CANARIES, google
from tests.fakes.server import Fault

ROOT = Path(__file__).resolve().parents[2]
URL = "gs://bucket/data/one"
RNG = random.Random(0)
FILES = {
    **{f"shards/shard-{i}.tfrecord": RNG.randbytes(30_000 + i) for i in range(5)},
    # Beyond 8 MiB a file goes in a session of its own.
    "large.bin": RNG.randbytes((8 << 20) + 1),
    "empty.csv": b"",
    "bräunlich 1.csv": b"--x\r\n\r\nlines\n",
    "manifest.json": b"{}",
    ".hidden": b"not sent",
}
# What a push of them leaves, by the first test that wants it.
LEFT = {}


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    home = tmp_path / "cloud"
    home.mkdir()
    server, storage, environment = google(home, "bucket")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    # What the client waits before it tries again.
    pause = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: pause(seconds / 50))
    with server.running():
        server.storage = storage
        yield server


@pytest.fixture
def folder(tmp_path):
    home = tmp_path / "folder"
    (home / "shards").mkdir(parents=True)
    for name, data in FILES.items():
        (home / name).write_bytes(data)
    return home


@pytest.fixture
def pushed(cloud, folder):
    """The folder, with all of it in the bucket."""
    if not LEFT:
        gcs_tools.push(folder, URL)
        LEFT.update(cloud.storage.objects)
    cloud.storage.restore(LEFT)
    return folder


def held(home) -> dict[str, bytes]:
    paths = (path for path in Path(home).rglob("*") if path.is_file())
    return {path.relative_to(home).as_posix(): path.read_bytes() for path in paths if path.name[0] != "."}


def sent(cloud) -> dict[str, bytes]:
    """What lies below the prefix, without our manifest."""
    found = cloud.storage.data("bucket", "data/one/")
    return {name[9:]: data for name, data in found.items() if not name.endswith(manifest.NAME)}


def test_a_folder_goes_up_and_comes_back(cloud, folder, tmp_path):
    report = gcs_tools.push(folder, URL)
    assert (report.files, report.moved, report.others) == (9, 9, 0)
    assert sent(cloud) == held(folder)
    assert gcs_tools.verify(URL) == []
    assert {name: entry.size for name, entry in gcs_tools.ls(URL).items() if name != manifest.NAME} == {
        name: len(data) for name, data in held(folder).items()
    }
    back = tmp_path / "back"
    assert gcs_tools.pull(URL, back).moved == 9
    assert held(back) == held(folder)
    # What is whole is not moved again.
    cloud.lines.clear()
    assert gcs_tools.push(folder, URL).moved == 0 and gcs_tools.pull(URL, back).moved == 0
    assert not [line for line in cloud.lines if "upload" in line or "shard-" in line]


def test_the_manifest_and_what_a_reader_takes_for_one_come_last(cloud, folder):
    gcs_tools.push(folder, URL)
    uploads = list(cloud.storage.objects)
    assert [name for _, name in uploads][-2:] == ["data/one/manifest.json", f"data/one/{manifest.NAME}"]
    (folder / "shards" / "shard-1.tfrecord").write_bytes(b"other")
    cloud.faults.append(Fault("403", "upload"))
    with pytest.raises(gcs_tools.TransferError, match="no permission by the credentials of GOOGLE_APPLICATION_CREDE"):
        gcs_tools.push(folder, URL)
    assert "data/one/manifest.json" not in cloud.storage.data("bucket")
    with pytest.raises(gcs_tools.TransferError, match=r"no gcs-manifest\.json: nothing was pushed here, or not all"):
        gcs_tools.verify(URL)
    report = gcs_tools.push(folder, URL)
    assert report.moved == 2 and sent(cloud) == held(folder) and gcs_tools.verify(URL) == []


KINDS = ["429", "500", "503", "drop", "lost", "truncate", "flip"]


@pytest.mark.parametrize("kind", [*KINDS, "flip-sent", "410"])
@pytest.mark.parametrize("match", ["uploadType=multipart", "uploadType=resumable$", "PUT", "GET .*/o ", "DELETE"])
def test_a_push_survives_one_fault(cloud, pushed, kind, match):
    folder = pushed
    for name in ("shards/shard-1.tfrecord", "shards/shard-2.tfrecord", "large.bin"):
        (folder / name).write_bytes(RNG.randbytes(len((folder / name).read_bytes())))
    cloud.faults.append(Fault(kind, match, at=RNG.choice([1, 2]) if "multipart" in match else 1))
    try:
        gcs_tools.push(folder, URL)
    except gcs_tools.TransferError as error:
        # Only what no client tries again: then nothing claims to be whole, or all still is as it was.
        assert kind in ("410", "flip", "truncate") and "\n" not in str(error)
        cloud.faults.clear()
        gcs_tools.push(folder, URL)
    assert sent(cloud) == held(folder) and gcs_tools.verify(URL) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("match", ["shard-3", "large", manifest.NAME.replace(".", r"\.")])
def test_a_pull_survives_one_fault(cloud, pushed, tmp_path, kind, match):
    cloud.faults.append(Fault(kind, f"GET .*{match}"))
    back = tmp_path / "back"
    gcs_tools.pull(URL, back)
    assert held(back) == held(pushed) and not list(back.rglob(".*"))


@pytest.mark.parametrize("kind", ["429", "500", "503", "drop", "lost", "truncate"])
@pytest.mark.parametrize("call", [gcs_tools.verify, gcs_tools.ls, gcs_tools.rm])
def test_other_calls_survive_one_fault(cloud, pushed, kind, call):
    cloud.storage.page = 4
    cloud.faults.append(Fault(kind, "GET .*/o ", at=2))
    found = call(URL)
    if call is gcs_tools.verify:
        assert found == []
    elif call is gcs_tools.ls:
        assert len(found) == 10
    else:
        assert cloud.storage.objects == {}


@pytest.mark.parametrize("kind", ["503", "drop"])
def test_a_fault_that_stays_ends_in_bounded_time_and_the_next_call_goes_on(cloud, folder, kind):
    cloud.faults.append(Fault(kind, "shard|multipart", at=3, times=10_000))
    began = time.monotonic()
    with pytest.raises(gcs_tools.TransferError, match=r"no good answer within 3 s .*; run the same command again"):
        gcs_tools.push(folder, URL, deadline_seconds=3)
    assert time.monotonic() - began < 20
    before = len(cloud.storage.objects)
    cloud.faults.clear()
    assert gcs_tools.push(folder, URL).moved == 9 - before
    assert sent(cloud) == held(folder)


def test_a_server_that_never_answers_is_given_up(folder, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(gcs_tools.TransferError, match="no good answer within 2 s"):
            gcs_tools.push(folder, URL, deadline_seconds=2)
    assert time.monotonic() - began < 15


def test_nobody_elses_object_is_overwritten(cloud, folder):
    gcs_tools.push(folder, URL)
    (folder / "shards" / "shard-1.tfrecord").write_bytes(b"ours")
    route = cloud.storage._upload

    def meanwhile(bucket, request):
        if b"shard-1" in request.body:
            cloud.storage._store(bucket, "data/one/shards/shard-1.tfrecord", b"theirs", {})
        return route(bucket, request)

    cloud.storage._upload = meanwhile
    with pytest.raises(gcs_tools.TransferError, match=r"shard-1\.tfrecord: somebody else wrote it meanwhile"):
        gcs_tools.push(folder, URL)
    assert sent(cloud)["shards/shard-1.tfrecord"] == b"theirs"


def test_what_is_not_whole_is_named(cloud, folder, tmp_path):
    gcs_tools.push(folder, URL)
    objects = cloud.storage.objects
    del objects["bucket", "data/one/shards/shard-0.tfrecord"]
    cloud.storage._store("bucket", "data/one/shards/shard-1.tfrecord", b"short", {})
    problems = gcs_tools.verify(URL)
    assert [line.split(": ")[0].rsplit("/")[-1] for line in problems] == ["shard-0.tfrecord", "shard-1.tfrecord"]
    assert problems[0].endswith("missing") and "5 bytes with crc32c" in problems[1]
    with pytest.raises(gcs_tools.TransferError, match=r"shard-[01]\.tfrecord: .*; push it again"):
        gcs_tools.pull(URL, tmp_path / "back")
    assert not list((tmp_path / "back").rglob(".*"))
    cloud.storage._store("bucket", f"data/one/{manifest.NAME}", b"{", {})
    with pytest.raises(gcs_tools.TransferError, match="damaged, or of another version"):
        gcs_tools.verify(URL)
    gcs_tools.push(folder, URL)
    assert gcs_tools.verify(URL) == []


@pytest.mark.parametrize(
    "name", ["../out", "/tmp/out", "a/../../out", "a\\..\\out", "", "a//b", ".", "a\nb", "\ud800", ".bashrc", "a\x9bb"]
)
def test_a_manifest_leads_nowhere_else(cloud, tmp_path, name):
    body = manifest.to_bytes({name: gcs_tools.Entry(1, "00000000")})
    cloud.storage._store("bucket", f"data/one/{manifest.NAME}", body, {})
    with pytest.raises(gcs_tools.TransferError, match="cannot be a file's name"):
        gcs_tools.pull(URL, tmp_path / "back")
    assert not (tmp_path / "out").exists() and not (tmp_path / "back").exists()


def test_rm_removes_what_the_manifest_lists(cloud, folder):
    gcs_tools.push(folder, URL)
    cloud.storage._store("bucket", "data/one/mine.txt", b"mine", {})
    cloud.storage._store("bucket", "data/one-more/x", b"x", {})
    cloud.faults.append(Fault("403", "DELETE .*shard", at=2, times=100))
    with pytest.raises(gcs_tools.TransferError, match="no permission"):
        gcs_tools.rm(URL)
    with pytest.raises(gcs_tools.TransferError, match="its removal was interrupted"):
        gcs_tools.verify(URL)
    cloud.faults.clear()
    report = gcs_tools.rm(URL)
    assert report.others == 1
    assert cloud.storage.data("bucket") == {"data/one/mine.txt": b"mine", "data/one-more/x": b"x"}
    with pytest.raises(gcs_tools.TransferError, match="no gcs-manifest"):
        gcs_tools.rm(URL)


def test_kills_do_no_harm(cloud, folder):
    command = [sys.executable, "-m", "gcs_tools", "push", str(folder), URL, "--workers", "2"]
    for moment in (0.9, 1.0, 1.1, 1.2):
        cloud.latency_seconds = 0.05
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = cloud.storage.data("bucket")
        assert f"data/one/{manifest.NAME}" not in found or sent(cloud) == held(folder)
    cloud.latency_seconds = 0
    assert subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0
    assert sent(cloud) == held(folder) and gcs_tools.verify(URL) == []


def run(capsys, monkeypatch, *arguments: object) -> tuple[int, str, str]:
    """The command line in this process, where the clients are imported already; "n" is what it is answered."""
    monkeypatch.setattr(sys, "argv", ["gcs_tools", *map(str, arguments)])
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert not [canary for canary in CANARIES if canary in out + err]
    return int(ended.value.code or 0), out, err


def test_the_command_line(cloud, folder, tmp_path, capsys, monkeypatch):
    command = [sys.executable, "-m", "gcs_tools", "push", folder, URL]
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"9 files, 9 sent (8.1 MiB); {URL} is whole\n"
    here = capsys, monkeypatch
    assert run(*here, "verify", URL)[:2] == (0, f"{URL} is whole\n")
    code, out, _ = run(*here, "ls", URL)
    assert code == 0 and out.splitlines()[-1] == "10 objects, 8.1 MiB" and "  shards/shard-0.tfrecord" in out
    assert run(*here, "pull", URL, tmp_path / "back")[0] == 0 and held(tmp_path / "back") == held(folder)
    del cloud.storage.objects["bucket", "data/one/empty.csv"]
    assert run(*here, "verify", URL) == (1, "", f"{URL}/empty.csv: missing\n")
    assert run(*here, "rm", URL)[0] == 1 and len(cloud.storage.objects) == 9
    assert run(*here, "rm", URL, "--yes")[:2] == (0, "8 objects removed (8.1 MiB), 0 others left alone\n")


def test_errors_are_one_line(cloud, folder, tmp_path, capsys, monkeypatch):
    for arguments, said in (
        (["push", tmp_path / "none", URL], "no such folder"),
        (["push", folder, "bucket/x"], "no address of Cloud Storage"),
        (["ls", "gs://nobucket/x"], "gs://nobucket/x: The specified bucket does not exist."),
        (["pull", URL, tmp_path], "no gcs-manifest.json"),
        (["pull", URL, folder / "large.bin"], "no gcs-manifest.json"),
    ):
        code, out, err = run(capsys, monkeypatch, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1) and said in err, err
    gcs_tools.push(folder, URL)
    code, out, err = run(capsys, monkeypatch, "pull", URL, folder / "large.bin")
    assert (code, out, err.count("\n")) == (2, "", 1) and "large.bin: File exists" in err


def test_without_the_client_there_is_one_line(tmp_path):
    code = "import sys; sys.modules['google.cloud'] = None; from gcs_tools.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "ls", URL], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == (
        "gcs_tools: google-cloud-storage is not installed: pip install 'birdtpu[cloud]'\n"
    )


def test_credentials_that_are_refused_are_named(cloud, folder, tmp_path, capsys, monkeypatch):
    here = capsys, monkeypatch
    key = json.loads(Path(os.environ["GOOGLE_APPLICATION_CREDENTIALS"]).read_text())
    other = tmp_path / "other" / "credentials.json"
    other.parent.mkdir()
    other.write_text(json.dumps({**key, "refresh_token": "canary-old"}))
    cloud.storage.forbidden = True
    code, _, err = run(*here, "push", folder, URL)
    assert code == 2 and "no permission by the credentials of GOOGLE_APPLICATION_CREDENTIALS" in err
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(other))
    code, _, err = run(*here, "push", folder, URL)
    assert code == 2 and err.count("\n") == 1 and f"({other}) was refused or has expired: gcloud auth" in err
    assert "canary" not in err
    for name, value in {"HOME": tmp_path, "CLOUDSDK_CONFIG": tmp_path, "GOOGLE_APPLICATION_CREDENTIALS": ""}.items():
        monkeypatch.setenv(name, str(value))
    code, _, err = run(*here, "ls", URL)
    assert code == 2 and "no Google credentials: gcloud auth application-default login" in err


def test_a_file_that_changes_while_it_is_sent_is_named(cloud, folder):
    route, changing = cloud.storage._upload, folder / "shards" / "shard-2.tfrecord"

    def meanwhile(bucket, request):
        if "shard-1" in str(request.body[:2000]):
            threading.Event().wait(0.3)
        return route(bucket, request)

    cloud.storage._upload = meanwhile
    from gcs_tools import bucket

    original = bucket.file_entry
    looked = []

    def look(path):
        found = original(path)
        if path == changing and not looked:
            looked.append(path)
            path.write_bytes(b"changed")
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gcs_tools.transfer.file_entry", look)
        with pytest.raises(gcs_tools.TransferError, match=r"shard-2\.tfrecord: changed while it was sent"):
            gcs_tools.push(folder, URL)
    assert f"data/one/{manifest.NAME}" not in cloud.storage.data("bucket")
    gcs_tools.push(folder, URL)
    assert sent(cloud) == held(folder)
