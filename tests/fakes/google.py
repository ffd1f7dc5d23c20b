"""The token service of Google, and the credentials that it knows."""

import json
from pathlib import Path

from tests.fakes.gcs import FakeStorage
from tests.fakes.server import Reply, Request, Server

# What must never be seen in an output.
CANARIES = ("canary-refresh-5f1c", "canary-secret-77ab", "canary-access-e09d")


def tokens(request: Request) -> Reply:
    """`oauth2.googleapis.com/token`."""
    if CANARIES[0].encode() not in request.body:
        return Reply(400, b'{"error": "invalid_grant", "error_description": "Token has been expired or revoked."}')
    content = {"access_token": CANARIES[2], "expires_in": 3600, "token_type": "Bearer"}
    return Reply(200, json.dumps(content).encode(), {"Content-Type": "application/json"})


def guarded(storage: FakeStorage) -> object:
    """The storage for those who bring the token; others get a 401."""

    def service(request: Request) -> Reply:
        # TensorFlow asks for its token here.
        if request.path == "/oauth2/v3/token":
            return tokens(request)
        if request.headers.get("authorization") != f"Bearer {CANARIES[2]}":
            return Reply(401, b'{"error": {"code": 401, "message": "Invalid Credentials"}}')
        return storage(request)

    return service


def google(folder: Path, *buckets: str) -> tuple[Server, FakeStorage, dict[str, str]]:
    """The server, its storage and the environment in which clients reach it with credentials."""
    storage = FakeStorage(*buckets)
    hosts = {r"oauth2\.googleapis\.com": tokens, r"(storage|www)\.googleapis\.com": guarded(storage)}
    server = Server(hosts, storage, folder)
    key = folder / "credentials.json"
    content = {"type": "authorized_user", "client_id": "me", "client_secret": CANARIES[1], "refresh_token": CANARIES[0]}
    key.write_text(json.dumps(content))
    return server, storage, {**server.environment, "GOOGLE_APPLICATION_CREDENTIALS": str(key)}
