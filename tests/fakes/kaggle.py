"""Kaggle in memory: data sets, models and competitions with their versions, and uploads that can be taken up again."""

import contextlib
import hashlib
import io
import json
import os
import re
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fakes.server import Failure, Reply, Request, Server

USER = "ornithologist"
# What must never be seen in an output.
CANARIES = ("KGAT_canary-kaggle-91d2", "canary-kaggle-key-3c4e")
SIGNATURE = "canary-signature-0d1f"
UPLOADS, DOWNLOADS = "uploads.kaggle.com", "downloads.kaggle.com"
MODIFIED = "Sat, 21 Nov 2026 12:00:00 GMT"


@dataclass
class Blob:
    """An upload: `name` and `size` as announced, `data` as far as it came."""

    name: str
    size: int
    data: bytes = b""


@dataclass
class Version:
    notes: str
    files: dict[str, bytes]


@dataclass
class Dataset:
    """A data set, or one variation of a model.

    Args:
        unseen: So many questions are answered as if its last version were not there yet.
        failed: Whether Kaggle could not make the last version.
    """

    about: dict
    versions: list[Version] = field(default_factory=list)
    unseen: int = 0
    failed: bool = False


class FakeKaggle:
    """A `server.Service`.

    Attributes:
        datasets: `owner/slug` -> `Dataset`; a model's variation is `owner/model/framework/variation`.
        models: `owner/model` -> what was told of it.
        competitions: Name -> the archive of its files.
        submissions: (competition, message, bytes), in their order.
        creations: The bodies of all requests that made something, in their order.
        lag: `unseen` of new versions.
        refused: RPCs that are answered by 403.
        packs: Whether a single file comes zipped.
    """

    def __init__(self) -> None:
        self.datasets: dict[str, Dataset] = {}
        self.models: dict[str, dict] = {}
        self.competitions: dict[str, bytes] = {}
        self.submissions: list[tuple[str, str, bytes]] = []
        self.creations: list[tuple[str, dict]] = []
        self.lag = 0
        self.refused: set[str] = set()
        self.packs = False
        self._blobs: dict[str, Blob] = {}
        self._files: dict[str, bytes] = {}

    def __call__(self, request: Request) -> Reply:
        try:
            if request.host == UPLOADS:
                return self._upload(request)
            if request.host == DOWNLOADS:
                return self._download(request)
            return self._rpc(request)
        except Failure as failure:
            return _json({"code": failure.status, "message": failure.message}, failure.status)

    def _rpc(self, request: Request) -> Reply:
        match = re.fullmatch(r"/v1/(\w+)\.(\w+)/(\w+)", request.path)
        rpc = match[3] if match else ""
        handler = getattr(self, "_" + re.sub(r"(?<!^)(?=[A-Z])", "_", rpc).lower(), None)
        if not rpc or handler is None:
            raise Failure(404, f"the fake does not know {request.path}")
        body = json.loads(request.body or b"{}")
        if rpc != "IntrospectToken" and request.headers.get("authorization") not in (
            f"Bearer {CANARIES[0]}",
            _basic(USER, CANARIES[1]),
        ):
            raise Failure(401, "Unauthenticated")
        if rpc in self.refused:
            raise Failure(403, f"Permission was denied for {rpc}")
        return handler(body)

    def _introspect_token(self, body: dict) -> Reply:
        return _json({"active": body.get("token") == CANARIES[0], "username": USER})

    def _start(self, name: str, size: int) -> tuple[str, str]:
        token = f"token-{len(self._blobs)}"
        self._blobs[token] = Blob(name, size)
        return token, f"https://{UPLOADS}/upload?upload_id={token}"

    def _start_blob_upload(self, body: dict) -> Reply:
        token, url = self._start(body["name"], int(body["contentLength"]))
        return _json({"token": token, "createUrl": url})

    def _start_submission_upload(self, body: dict) -> Reply:
        self._competition(body["competitionName"])
        token, url = self._start(body["fileName"], int(body["contentLength"]))
        return _json({"token": token, "createUrl": url})

    def _upload(self, request: Request) -> Reply:
        blob = self._blobs.get(request.query.get("upload_id", ""))
        if blob is None:
            raise Failure(404, "no such upload")
        match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+)", request.headers.get("content-range", ""))
        if not match:
            blob.data = request.body
        elif match[1] is not None:
            if int(match[1]) != len(blob.data):
                raise Failure(400, "not where the upload stands")
            blob.data += request.body
        if len(blob.data) < blob.size:
            held = {"Range": f"bytes=0-{len(blob.data) - 1}"} if blob.data else {}
            return Reply(308, b"", held)
        return Reply(200, b"{}")

    def _taken(self, files: list[dict]) -> dict[str, bytes]:
        taken = {}
        for file in files:
            blob = self._blobs.get(file["token"])
            if blob is None or len(blob.data) != blob.size:
                raise Failure(400, "a file's upload has not ended")
            taken[blob.name] = blob.data
        return taken

    def _create_dataset(self, body: dict) -> Reply:
        self.creations.append(("CreateDataset", body))
        key = f"{body['ownerSlug']}/{body['slug']}"
        if key in self.datasets:
            return _json({"status": "error", "error": f"The slug {key} is already in use."})
        if not (6 <= len(body["slug"]) <= 50 and 6 <= len(body["title"]) <= 50):
            return _json({"status": "error", "error": "Title or slug has a wrong length."})
        self.datasets[key] = Dataset(body, [Version("Initial release", self._taken(body["files"]))], self.lag)
        return _json({"ref": f"/{key}", "url": f"https://www.kaggle.com/datasets/{key}", "status": "ok", "error": ""})

    def _create_dataset_version(self, body: dict) -> Reply:
        self.creations.append(("CreateDatasetVersion", body))
        key = f"{body['ownerSlug']}/{body['datasetSlug']}"
        found = self._found(key)
        found.versions.append(Version(body["body"]["versionNotes"], self._taken(body["body"]["files"])))
        found.unseen = self.lag
        return _json({"ref": f"/{key}", "url": f"https://www.kaggle.com/datasets/{key}", "status": "ok", "error": ""})

    def _found(self, key: str) -> Dataset:
        if key not in self.datasets:
            # Kaggle does not tell what is not there from what is not for you.
            raise Failure(403, "Permission 'datasets.get' was denied")
        return self.datasets[key]

    def _seen(self, key: str) -> list[Version]:
        """The versions that Kaggle shows by now."""
        found = self._found(key)
        if found.unseen:
            found.unseen -= 1
            return found.versions[:-1]
        return found.versions

    def _get_dataset(self, body: dict) -> Reply:
        key = f"{body['ownerSlug']}/{body['datasetSlug']}"
        count = len(self._seen(key))
        if not count:
            raise Failure(404, "not yet")
        return _json({"ref": key, "title": self.datasets[key].about["title"], "currentVersionNumber": count})

    def _get_dataset_status(self, body: dict) -> Reply:
        found = self._found(f"{body['ownerSlug']}/{body['datasetSlug']}")
        waiting = found.unseen > 0
        found.unseen = max(0, found.unseen - 1)
        return _json({"status": "FAILED" if found.failed else "BLOBS_RECEIVED" if waiting else "READY"})

    def _download_dataset(self, body: dict) -> Reply:
        versions = self._found(f"{body['ownerSlug']}/{body['datasetSlug']}").versions
        return self._sent(versions, body.get("datasetVersionNumber"), body.get("fileName"), zipped)

    def _sent(self, versions: list[Version], number: object, name: str | None, pack: object) -> Reply:
        number = int(number or len(versions))  # type: ignore[call-overload]
        if not 1 <= number <= len(versions):
            raise Failure(404, "no such version")
        files = versions[number - 1].files
        if name and name not in files:
            raise Failure(404, "no such file")
        if not name:
            return self._redirect("archive", pack(files))  # type: ignore[operator]
        if self.packs:
            return self._redirect(f"{name}.zip", zipped({name.rpartition("/")[2]: files[name]}))
        return self._redirect(name, files[name])

    def _get_model(self, body: dict) -> Reply:
        key = f"{body['ownerSlug']}/{body['modelSlug']}"
        if key not in self.models:
            raise Failure(404, "not there")
        return _json({"ref": key, "title": self.models[key]["title"]})

    def _create_model(self, body: dict) -> Reply:
        self.creations.append(("CreateModel", body))
        self.models[f"{body['ownerSlug']}/{body['slug']}"] = body
        return _json({"id": 1, "url": "https://www.kaggle.com/models"})

    def _create_model_instance(self, body: dict) -> Reply:
        self.creations.append(("CreateModelInstance", body))
        inner = body["body"]
        key = _variation(body, inner["framework"], inner["instanceSlug"])
        if key in self.datasets:
            return _json({"error": f"{key} is already in use."})
        self.datasets[key] = Dataset(inner, [Version("", self._taken(inner["files"]))], self.lag)
        return _json({"id": 1, "url": f"https://www.kaggle.com/models/{key}"})

    def _create_model_instance_version(self, body: dict) -> Reply:
        self.creations.append(("CreateModelInstanceVersion", body))
        key = _variation(body, body["framework"], body["instanceSlug"])
        found = self._found(key)
        found.versions.append(Version(body["body"]["versionNotes"], self._taken(body["body"]["files"])))
        found.unseen = self.lag
        return _json({"id": 1, "url": f"https://www.kaggle.com/models/{key}"})

    def _get_model_instance(self, body: dict) -> Reply:
        key = _variation(body, body["framework"], body["instanceSlug"])
        if key not in self.datasets:
            raise Failure(404, "not there")
        count = len(self._seen(key))
        if not count:
            raise Failure(404, "not yet")
        return _json({"id": 1, "slug": body["instanceSlug"], "versionNumber": count})

    def _download_model_instance_version(self, body: dict) -> Reply:
        key = _variation(body, body["framework"], body["instanceSlug"])
        return self._sent(self._found(key).versions, body["versionNumber"], body.get("path"), tarred)

    def _competition(self, name: str) -> bytes:
        if name not in self.competitions:
            raise Failure(404, "Competition not found")
        return self.competitions[name]

    def _download_data_files(self, body: dict) -> Reply:
        return self._redirect(f"{body['competitionName']}.zip", self._competition(body["competitionName"]))

    def _create_submission(self, body: dict) -> Reply:
        self.creations.append(("CreateSubmission", body))
        blob = self._blobs[body["blobFileTokens"]]
        if len(blob.data) != blob.size:
            raise Failure(400, "the upload has not ended")
        name = body["competitionName"]
        self.submissions.append((name, body.get("submissionDescription", ""), blob.data))
        return _json({"message": f"Successfully submitted to {name}", "ref": len(self.submissions)})

    def _list_submissions(self, body: dict) -> Reply:
        rows = [(i, *row) for i, row in enumerate(self.submissions, 1) if row[0] == body["competitionName"]]
        listed = [{"ref": i, "description": text, "totalBytes": len(data)} for i, _, text, data in reversed(rows)]
        return _json({"submissions": listed})

    def _redirect(self, name: str, data: bytes) -> Reply:
        key = hashlib.sha256(data).hexdigest()[:16]
        self._files[key] = data
        where = f"https://{DOWNLOADS}/{key}/{name}?X-Goog-Signature={SIGNATURE}"
        return Reply(302, b"", {"Location": where})

    def _download(self, request: Request) -> Reply:
        key = request.path.split("/")[1]
        if key not in self._files:
            raise Failure(404, "expired")
        data = self._files[key]
        tag = f'"{key}"'
        headers = {
            "ETag": tag, "Accept-Ranges": "bytes", "Last-Modified": MODIFIED, "Content-Type": "application/zip",
        }  # fmt: skip
        match = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
        if not match or request.headers.get("if-range", tag) != tag:
            return Reply(200, data, headers)
        first = int(match[1])
        if first >= len(data):
            return Reply(416, b"", headers | {"Content-Range": f"bytes */{len(data)}"})
        return Reply(206, data[first:], headers | {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"})


def kaggle(folder: Path) -> tuple[Server, FakeKaggle, dict[str, str]]:
    """The server, what stands behind it and the environment in which the client reaches it with a token."""
    fake = FakeKaggle()
    server = Server({r"(api|uploads|downloads)\.kaggle\.com": fake}, fake, folder)
    return server, fake, {**server.environment, **private(folder)}


@contextlib.contextmanager
def serving(folder: Path, monkeypatch: Any) -> Iterator[Server]:
    """The running server, with what stands behind it as `kaggle`, for the client of this process and of its children.

    What a client waits before it tries again is shortened here, not in children.
    """
    home, pause = folder / "cloud", time.sleep
    home.mkdir()
    server, fake, environment = kaggle(home)
    for name in [name for name in os.environ if name.startswith("KAGGLE_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(time, "sleep", lambda seconds: pause(seconds / 50))
    with server.running():
        server.kaggle = fake  # type: ignore[attr-defined]
        yield server


def private(folder: Path) -> dict[str, str]:
    """Variables that give the client a home of its own, and a token."""
    home, temporary = folder / "home", folder / "tmp"
    for made in (home, temporary):
        made.mkdir(exist_ok=True)
    return {
        "HOME": str(home), "TMPDIR": str(temporary), "KAGGLE_CONFIG_DIR": str(home / ".kaggle"),
        "XDG_CACHE_HOME": str(home / ".cache"), "KAGGLE_API_TOKEN": CANARIES[0],
    }  # fmt: skip


def zipped(files: dict[str, bytes]) -> bytes:
    """A zip archive, the same bytes for the same files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED, 1)
    return buffer.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    """A .tar.gz archive, the same bytes for the same files."""
    import gzip
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return gzip.compress(buffer.getvalue(), mtime=0)


def _variation(body: dict, framework: str, variation: str) -> str:
    name = framework.removeprefix("MODEL_FRAMEWORK_").replace("_", "").lower()
    return f"{body['ownerSlug']}/{body['modelSlug']}/{name}/{variation}"


def _basic(user: str, key: str) -> str:
    import base64

    return "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode()


def _json(content: dict, status: int = 200) -> Reply:
    return Reply(status, json.dumps(content).encode(), {"Content-Type": "application/json"})
