"""A loopback server for the real clients: a proxy that ends TLS, fakes of services behind it, faults on demand.

A client reaches it unpatched where `environment` is its own: what it sends to https://storage.googleapis.com arrives
here. Requests to the server itself, as STORAGE_EMULATOR_HOST makes them, go to the service named in `direct`.
"""

import contextlib
import functools
import io
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

import trustme


@dataclass
class Request:
    """What a client sent. `path` is decoded but for `%2F`, so that an object's name is one part of it."""

    method: str
    host: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def line(self) -> str:
        return f"{self.method} {self.host}{self.path}" + "".join(f" {k}={v}" for k, v in sorted(self.query.items()))


@dataclass
class Reply:
    """What a service answers."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Failure(Exception):
    """What a service refuses, by HTTP's status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass
class Fault:
    """What goes wrong, at the `at`-th request whose line matches, and at `times` of them in a row.

    Args:
        kind: A status such as `503`; `drop` (the connection ends before anything is done), `lost` (it is done, but the
            reply never comes), `truncate` (half of the reply), `flip` (one bit of the reply's body), `flip-sent` (one
            bit of what was sent).
        reply: What is answered instead of the service, whatever the kind.
    """

    kind: str
    match: str = ""
    at: int = 1
    times: int = 1
    seen: int = 0
    reply: Reply | None = None

    def strikes(self, line: str) -> bool:
        if not re.search(self.match, line):
            return False
        self.seen += 1
        return self.at <= self.seen < self.at + self.times


Service = Callable[[Request], Reply]


class Server:
    """Runs on 127.0.0.1 in threads of this process.

    Args:
        services: Pattern of host names -> service.
        direct: The service of requests that are not proxied.
        folder: Where the certificate of its authority is written.

    Attributes:
        faults: Those to come; tests add to it.
        lines: `Request.line` of each request.
        received, sent: Bytes of bodies.
        latency_seconds: Waited before each reply.
    """

    def __init__(self, services: dict[str, Service], direct: Service, folder: Path) -> None:
        self.services, self.direct = services, direct
        self.faults: list[Fault] = []
        self.lines: list[str] = []
        self.received = self.sent = 0
        self.latency_seconds = 0.0
        self._lock = threading.Lock()
        authority, certificate = _certificates()
        self.certificate = folder / "ca.pem"
        authority.cert_pem.write_to_path(self.certificate)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(self.tls)
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.fake = self
        self.port = self._http.server_address[1]

    @property
    def environment(self) -> dict[str, str]:
        """What sends google-cloud-storage, kaggle and TensorFlow's gs:// here."""
        proxy, authority = f"http://127.0.0.1:{self.port}", str(self.certificate)
        return {
            "HTTPS_PROXY": proxy, "https_proxy": proxy, "REQUESTS_CA_BUNDLE": authority, "CURL_CA_BUNDLE": authority,
            "SSL_CERT_FILE": authority, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "NO_GCE_CHECK": "true",
        }  # fmt: skip

    @contextlib.contextmanager
    def running(self) -> Iterator["Server"]:
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()
            thread.join()

    def answer(self, request: Request) -> tuple[Reply | None, str]:
        """The reply and the fault to play on its way back; None ends the connection."""
        with self._lock:
            self.lines.append(request.line)
            self.received += len(request.body)
            struck = [fault for fault in self.faults if fault.strikes(request.line)]
        kind = struck[0].kind if struck else ""
        if self.latency_seconds:
            # Not by time.sleep, which tests shorten for the clients.
            threading.Event().wait(self.latency_seconds)
        if struck and struck[0].reply:
            return struck[0].reply, kind
        if kind == "drop":
            return None, kind
        if kind.isdigit():
            return Reply(int(kind), b'{"error": {"message": "a fault"}}', {"Content-Type": "application/json"}), kind
        if kind == "flip-sent":
            request.body = flipped(request.body)
        service = next((s for pattern, s in self.services.items() if re.fullmatch(pattern, request.host)), self.direct)
        with self._lock:
            reply = service(request)
            self.sent += len(reply.body)
        if kind == "lost":
            return None, kind
        if kind == "flip":
            reply.body = flipped(reply.body)
        return reply, kind


@functools.cache
def _certificates() -> tuple[trustme.CA, trustme.LeafCert]:
    """An authority of this process, and what it vouches for."""
    authority = trustme.CA()
    return authority, authority.issue_cert("*.googleapis.com", "*.kaggle.com", "kaggle.com", "localhost")


def flipped(data: bytes) -> bytes:
    """One bit turned in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if data else data


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    fake: Server

    def handle_error(self, *_: object) -> None:
        """A client may hang up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body are two packets, and the second shall not wait for the first one's receipt.
    disable_nagle_algorithm = True
    server: _Http
    host = ""

    def log_message(self, *_: object) -> None:
        pass

    def do_CONNECT(self) -> None:
        self.host = self.path.rsplit(":", 1)[0]
        self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        try:
            self.connection = self.server.fake.tls.wrap_socket(self.connection, server_side=True)
        except (OSError, ssl.SSLError):
            self.close_connection = True
            return
        reader, writer = self.connection.makefile("rb"), self.connection.makefile("wb", buffering=0)
        with self.connection, reader as self.rfile, writer as self.wfile:
            self.close_connection = False
            while not self.close_connection:
                self.handle_one_request()
        self.rfile, self.wfile = io.BytesIO(), io.BytesIO()

    def _serve(self) -> None:
        # A client that waits for the receipt of its head before it sends the body shall not wait long.
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        body = self._chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self._body()
        parts = urlsplit(self.path)
        path = "/".join(unquote(part).replace("/", "%2F") for part in parts.path.split("/"))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.host, path, dict(parse_qsl(parts.query, True)), headers, body)
        reply, kind = self.server.fake.answer(request)
        if reply is None:
            self._end()
            return
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if "Content-Length" not in reply.headers:
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body[: len(reply.body) // 2] if kind == "truncate" else reply.body)
        if kind == "truncate":
            self._end()

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _serve  # noqa: RUF100, N815

    def _end(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)
