"""Google Cloud Storage in memory: objects with generations, preconditions, ranges, resumable uploads and crc32c."""

import base64
import hashlib
import itertools
import json
import re
import struct
from dataclasses import dataclass, field

import google_crc32c

from tests.fakes.server import Failure, Reply, Request

UPDATED = "2026-11-21T12:00:00.000Z"


def crc32c(data: bytes) -> str:
    """As Google writes it: four bytes, base64."""
    return base64.b64encode(struct.pack(">I", google_crc32c.value(data))).decode()


def md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


@dataclass
class Object:
    data: bytes
    generation: int
    crc32c: str
    md5: str
    content_type: str = "application/octet-stream"
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass
class Upload:
    """A resumable session."""

    bucket: str
    resource: dict
    query: dict[str, str]
    data: bytes = b""


class FakeStorage:
    """A `server.Service`.

    Args:
        buckets: Those that are there.

    Attributes:
        objects: (bucket, name) -> `Object`.
        forbidden: Whether every request is answered by 403.
        page: Objects in a listing's page.
    """

    def __init__(self, *buckets: str) -> None:
        self.buckets = set(buckets)
        self.objects: dict[tuple[str, str], Object] = {}
        self.uploads: dict[str, Upload] = {}
        self.forbidden = False
        self.page = 1000
        self._generations = itertools.count(1_700_000_000_000_001)
        self._ids = itertools.count()

    def __call__(self, request: Request) -> Reply:
        try:
            if self.forbidden:
                raise Failure(403, "does not have storage.objects access to the Google Cloud Storage object")
            return self._route(request)
        except Failure as failure:
            body = {"error": {"code": failure.status, "message": failure.message}}
            return Reply(failure.status, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def data(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        """Name -> bytes of a bucket's objects."""
        found = sorted(self.objects.items())
        return {name: o.data for (b, name), o in found if b == bucket and name.startswith(prefix)}

    def restore(self, objects: dict[tuple[str, str], Object]) -> None:
        """Hold what another one held; what is written from now on has later generations."""
        self.objects = dict(objects)
        self._generations = itertools.count(1 + max(found.generation for found in objects.values()))

    def _route(self, request: Request) -> Reply:
        path = request.path
        if match := re.fullmatch(r"/(?:resumable/)?upload/storage/v1/b/([^/]+)/o", path):
            return self._upload(match[1], request)
        if match := re.fullmatch(r"/storage/v1/b/([^/]+)/o/(.+)/rewriteTo/b/([^/]+)/o/(.+)", path):
            return self._rewrite(*match.groups(), request=request)
        if match := re.fullmatch(r"/(?:download/)?storage/v1/b/([^/]+)/o/(.+)", path):
            return self._object(match[1], match[2].replace("%2F", "/"), request)
        if match := re.fullmatch(r"/storage/v1/b/([^/]+)/o", path):
            return self._list(match[1], request.query)
        if match := re.fullmatch(r"/storage/v1/b/([^/]+)", path):
            self._bucket(match[1])
            return _json({"kind": "storage#bucket", "name": match[1], "location": "US"})
        if request.method in ("GET", "HEAD") and (match := re.fullmatch(r"/([^/]+)/(.+)", path)):
            return self._content(self._get(match[1], match[2].replace("%2F", "/")), request)
        raise Failure(400, f"the fake does not know {request.line}")

    def _bucket(self, name: str) -> None:
        if name not in self.buckets:
            raise Failure(404, "The specified bucket does not exist.")

    def _get(self, bucket: str, name: str) -> Object:
        self._bucket(bucket)
        if (bucket, name) not in self.objects:
            raise Failure(404, f"No such object: {bucket}/{name}")
        return self.objects[bucket, name]

    def _check(self, bucket: str, name: str, query: dict[str, str]) -> None:
        self._bucket(bucket)
        now = self.objects[bucket, name].generation if (bucket, name) in self.objects else 0
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != now:
            raise Failure(412, "At least one of the pre-conditions you specified did not hold.")
        if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == now:
            raise Failure(304, "")

    def _object(self, bucket: str, name: str, request: Request) -> Reply:
        if request.method == "DELETE":
            self._get(bucket, name)
            self._check(bucket, name, request.query)
            del self.objects[bucket, name]
            return Reply(204)
        found = self._get(bucket, name)
        self._check(bucket, name, request.query)
        if request.query.get("generation", str(found.generation)) != str(found.generation):
            raise Failure(404, f"No such object: {bucket}/{name}")
        if request.query.get("alt") == "media":
            return self._content(found, request)
        return _json(self._resource(bucket, name))

    def _content(self, found: Object, request: Request) -> Reply:
        hashes = f"crc32c={found.crc32c},md5={found.md5}"
        headers = {
            "X-Goog-Hash": hashes,
            "X-Goog-Generation": str(found.generation),
            "Content-Type": found.content_type,
        }
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
        if not match:
            return Reply(200, found.data, headers)
        size = len(found.data)
        first = int(match[1]) if match[1] else max(0, size - int(match[2]))
        last = min(int(match[2]), size - 1) if match[1] and match[2] else size - 1
        if first >= size:
            return Reply(416, b"", headers | {"Content-Range": f"bytes */{size}"})
        return Reply(206, found.data[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{size}"})

    def _resource(self, bucket: str, name: str) -> dict:
        found = self.objects[bucket, name]
        link = f"https://storage.googleapis.com/download/storage/v1/b/{bucket}/o/{name.replace('/', '%2F')}?alt=media"
        return {
            "kind": "storage#object", "id": f"{bucket}/{name}/{found.generation}", "name": name, "bucket": bucket,
            "generation": str(found.generation), "metageneration": "1", "size": str(len(found.data)),
            "crc32c": found.crc32c, "md5Hash": found.md5, "contentType": found.content_type,
            "metadata": found.metadata, "updated": UPDATED, "timeCreated": UPDATED, "mediaLink": link,
        }  # fmt: skip

    def _list(self, bucket: str, query: dict[str, str]) -> Reply:
        self._bucket(bucket)
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        names, prefixes = [], set()
        for name in self.data(bucket, prefix):
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                names.append(name)
        entries = sorted([*names, *prefixes])
        entries = [entry for entry in entries if entry > query.get("pageToken", "")]
        count = min(self.page, int(query.get("maxResults", self.page)))
        shown = entries[:count]
        body: dict = {"kind": "storage#objects"}
        body["items"] = [self._resource(bucket, name) for name in shown if name not in prefixes]
        body["prefixes"] = [name for name in shown if name in prefixes]
        if len(entries) > count:
            body["nextPageToken"] = shown[-1]
        return _json({key: value for key, value in body.items() if value})

    def _rewrite(self, bucket: str, name: str, to_bucket: str, to_name: str, request: Request) -> Reply:
        found = self._get(bucket, name.replace("%2F", "/"))
        target = to_name.replace("%2F", "/")
        self._check(to_bucket, target, request.query)
        self._store(to_bucket, target, found.data, {"contentType": found.content_type})
        size = str(len(found.data))
        resource = self._resource(to_bucket, target)
        return _json({"done": True, "objectSize": size, "totalBytesRewritten": size, "resource": resource})

    def _store(self, bucket: str, name: str, data: bytes, resource: dict, hashes: str = "") -> None:
        told = dict(part.strip().split("=", 1) for part in hashes.split(",") if "=" in part)
        crc, digest = crc32c(data), md5(data)
        for mine, theirs in (
            (crc, resource.get("crc32c")), (digest, resource.get("md5Hash")),
            (crc, told.get("crc32c")), (digest, told.get("md5")),
        ):  # fmt: skip
            if theirs and mine != theirs:
                raise Failure(400, f"Provided hash {theirs} does not match calculated {mine}.")
        kind = resource.get("contentType", "application/octet-stream")
        self.objects[bucket, name] = Object(
            data, next(self._generations), crc, digest, kind, resource.get("metadata", {})
        )

    def _upload(self, bucket: str, request: Request) -> Reply:
        query, hashes = request.query, request.headers.get("x-goog-hash", "")
        self._bucket(bucket)
        if "upload_id" in query:
            return self._resume(query["upload_id"], request)
        kind = query["uploadType"]
        if kind == "resumable":
            resource = json.loads(request.body or b"{}")
            resource.setdefault("name", query.get("name"))
            self._check(bucket, resource["name"], query)
            key = f"session-{next(self._ids)}"
            self.uploads[key] = Upload(bucket, resource, query)
            home = f"https://{request.host}" if request.host else f"http://{request.headers['host']}"
            where = f"{home}{request.path}?uploadType=resumable&upload_id={key}"
            return Reply(200, b"", {"Location": where, "X-GUploader-UploadID": key})
        if kind == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', request.headers["content-type"])
            _, first, second, _ = request.body.split(b"--" + boundary[1].encode())
            resource = json.loads(first.split(b"\r\n\r\n", 1)[1])
            data = second.split(b"\r\n\r\n", 1)[1][:-2]
        else:
            data, resource = request.body, {"contentType": request.headers.get("content-type", "")}
        name = resource.get("name") or query["name"]
        self._check(bucket, name, query)
        self._store(bucket, name, data, resource, hashes)
        return _json(self._resource(bucket, name))

    def _resume(self, key: str, request: Request) -> Reply:
        if key not in self.uploads:
            raise Failure(410, "The upload session has expired.")
        upload = self.uploads[key]
        if request.method == "DELETE":
            del self.uploads[key]
            return Reply(499)
        match = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", request.headers.get("content-range", ""))
        total: str | None = None
        if match:
            if match[1] is not None:
                if int(match[1]) > len(upload.data):
                    raise Failure(503, "bytes are missing before these")
                upload.data = upload.data[: int(match[1])] + request.body
            total = match[3]
        else:
            upload.data = request.body
        if total is not None and (total == "*" or len(upload.data) < int(total)):
            held = {"Range": f"bytes=0-{len(upload.data) - 1}"} if upload.data else {}
            return Reply(308, b"", held)
        name = upload.resource["name"]
        self._check(upload.bucket, name, upload.query)
        self._store(upload.bucket, name, upload.data, upload.resource, request.headers.get("x-goog-hash", ""))
        del self.uploads[key]
        return _json(self._resource(upload.bucket, name))


def _json(content: dict) -> Reply:
    return Reply(200, json.dumps(content).encode(), {"Content-Type": "application/json; charset=UTF-8"})
