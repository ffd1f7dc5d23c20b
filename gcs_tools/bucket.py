"""One prefix of a bucket: list, read, put and delete, each checked and each done in bounded time."""

import base64
import contextlib
import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# How often bytes that came out damaged, or an upload that expired, are sent again.
_ATTEMPTS = 3
# The client reads a larger object 8 KiB at a time, which costs more than to decrypt it.
_AT_ONCE_BYTES = 128 << 20
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._:-]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MEANWHILE = "somebody else wrote it meanwhile; run the same command again"
_LOGIN = (
    "gcloud auth application-default login, or on Colab google.colab.auth.authenticate_user(), "
    "or name a key file in GOOGLE_APPLICATION_CREDENTIALS"
)


class TransferError(ValueError):
    """What its reader can mend or try again: one line that names the file or object."""


@dataclass(frozen=True)
class Entry:
    """An object, or a file that shall become one.

    Args:
        size: In bytes.
        crc32c: In hex.
        generation: Of the object; 0 where there is none.
    """

    size: int
    crc32c: str
    generation: int = 0

    def same_bytes(self, other: "Entry | None") -> bool:
        return other is not None and (self.size, self.crc32c) == (other.size, other.crc32c)


class Prefix:
    """The objects below `gs://bucket/prefix/`, by their names behind it.

    Args:
        url: `gs://bucket/prefix`, or `gs://bucket` for all of it.
        deadline_seconds: How long one request is tried again where the server does not answer or is overloaded.

    Raises: TransferError where the address is none, the client is not installed, or no credentials are found.
    """

    def __init__(self, url: str, deadline_seconds: float = 120.0) -> None:
        bucket, _, prefix = url.removeprefix("gs://").removesuffix("/").partition("/")
        # An empty part is a name to Cloud Storage, but not to those who read through TensorFlow.
        odd = "//" in url[5:] or {".", ".."} & set(prefix.split("/"))
        if not url.startswith("gs://") or not _BUCKET.fullmatch(bucket) or odd or _CONTROL.search(url):
            raise TransferError(f"{plain(url)}: no address of Cloud Storage; one is gs://bucket/prefix")
        self.url = url.removesuffix("/")
        self.prefix = f"{prefix}/" if prefix else ""
        self._seconds = deadline_seconds
        try:
            from google.cloud.storage.retry import DEFAULT_RETRY
        except ImportError as error:
            raise TransferError("google-cloud-storage is not installed: pip install 'birdtpu[cloud]'") from error
        retry = DEFAULT_RETRY.with_timeout(deadline_seconds)
        self._bounds: dict[str, Any] = {"retry": retry, "timeout": (min(10.0, deadline_seconds), deadline_seconds)}
        with self._named(self.url):
            self._client = _client()
            self._bucket = self._client.bucket(bucket)

    def __enter__(self) -> "Prefix":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def list(self) -> dict[str, Entry]:
        """Name -> what is there; folder marks are left out. Raises TransferError."""
        with self._named(self.url):
            found, seen = {}, set()
            pages = self._client.list_blobs(self._bucket, prefix=self.prefix, **self._bounds)
            for page in pages.pages:
                found |= {b.name[len(self.prefix) :]: _entry(b) for b in page if not b.name.endswith("/")}
                if pages.next_page_token in seen:
                    raise TransferError(f"{self.url}: its list leads back to a page that was read before")
                seen.add(pages.next_page_token)
            return found

    def stat(self, name: str) -> Entry | None:
        """An object, or None. Raises TransferError."""
        with self._named(f"{self.url}/{name}"):
            blob = self._bucket.get_blob(self.prefix + name, **self._bounds)
            return _entry(blob) if blob is not None else None

    def put(self, name: str, path: Path, wanted: Entry, held: Entry | None) -> None:
        """Send a file, unless somebody else wrote there since.

        Args:
            name: The object's.
            path: The file.
            wanted: What the file held when it was looked at.
            held: The object that it replaces; None: there is none.

        Raises: TransferError, also where the file or the object has changed meanwhile.
        """
        from google.api_core.exceptions import GoogleAPICallError
        from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

        place, reason = f"{self.url}/{name}", ""
        for _ in range(_ATTEMPTS):
            generation = held.generation if held else 0
            blob = self._bucket.blob(self.prefix + name)
            with self._named(place):
                try:
                    blob.upload_from_filename(path, checksum="crc32c", if_generation_match=generation, **self._bounds)
                    found: Entry | None = _entry(blob)
                except (GoogleAPICallError, InvalidResponse, DataCorruption) as error:
                    reason = _first_line(error)
                    if _code(error) not in (400, 410, 412) and not isinstance(error, DataCorruption):
                        raise
                    # 412 may be the answer to a second try whose first reply was lost; only the bytes can tell.
                    found = self.stat(name)
                    moved = (found.generation if found else 0) != generation
                    if _code(error) == 412 and moved and not wanted.same_bytes(found):
                        raise TransferError(f"{place}: {_MEANWHILE}") from error
            if wanted.same_bytes(found):
                return
            now = file_entry(path)
            if not wanted.same_bytes(now):
                raise TransferError(f"{path}: changed while it was sent; run the same command again")
            held = found
        raise TransferError(f"{place}: arrived damaged {_ATTEMPTS} times ({reason or 'its crc32c differs'})")

    def read(self, name: str) -> bytes | None:
        """A small object's bytes, checked; None where there is none. Raises TransferError."""
        from google.api_core.exceptions import NotFound

        with self._named(f"{self.url}/{name}"):
            try:
                return self._retried(lambda: self._bucket.blob(self.prefix + name).download_as_bytes(**self._bounds))
            except NotFound:
                return None

    def get(self, name: str, wanted: Entry, target: Path) -> None:
        """Fetch an object into a file that appears when it is whole and holds what is wanted.

        Raises: TransferError, also where the object is not there or is another.
        """
        from google.api_core.exceptions import NotFound

        place = f"{self.url}/{name}"
        temporary = target.with_name(f".{target.name}.{os.urandom(4).hex()}.tmp")

        def fetch() -> None:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                self._bucket.blob(self.prefix + name).download_to_file(
                    file, checksum="crc32c", single_shot_download=wanted.size <= _AT_ONCE_BYTES, **self._bounds
                )
                file.flush()
                os.fsync(file.fileno())

        try:
            with self._named(place):
                try:
                    self._retried(fetch)
                except NotFound:
                    raise TransferError(f"{place}: the manifest lists it, but it is not there; push it again") from None
            if not wanted.same_bytes(file_entry(temporary)):
                raise TransferError(f"{place}: not what the manifest lists; push it again")
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def delete(self, name: str, generation: int) -> None:
        """Remove one generation of an object; one that is not there is no error.

        Raises: TransferError where somebody else wrote it meanwhile.
        """
        from google.api_core.exceptions import NotFound, PreconditionFailed

        place = f"{self.url}/{name}"
        with self._named(place), contextlib.suppress(NotFound):
            try:
                self._bucket.blob(self.prefix + name).delete(if_generation_match=generation, **self._bounds)
            except PreconditionFailed:
                if self.stat(name) is not None:
                    raise TransferError(f"{place}: {_MEANWHILE}") from None

    def _retried(self, fetch: Any) -> Any:
        """A download, again where its bytes came damaged or short."""
        from google.cloud.storage.exceptions import DataCorruption

        for _ in range(_ATTEMPTS - 1):
            with contextlib.suppress(DataCorruption):
                return fetch()
        return fetch()

    @contextlib.contextmanager
    def _named(self, place: str) -> Iterator[None]:
        """Errors of the client as one line each; none of them shows a secret."""
        import requests
        from google.api_core import exceptions
        from google.auth import exceptions as auth
        from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

        try:
            yield
        except auth.DefaultCredentialsError as error:
            raise TransferError(f"{place}: no Google credentials: {_LOGIN}") from error
        except auth.RefreshError as error:
            raise TransferError(f"{place}: {_tried()} was refused or has expired: {_LOGIN}") from error
        except (exceptions.Unauthorized, exceptions.Forbidden) as error:
            raise TransferError(f"{place}: no permission by {_tried()} ({_first_line(error)})") from error
        except (exceptions.RetryError, requests.RequestException, auth.TransportError, ConnectionError) as error:
            raise TransferError(
                f"{place}: no good answer within {self._seconds:g} s ({_reason(error)}); run the same command again"
            ) from error
        except DataCorruption as error:
            raise TransferError(f"{place}: arrived damaged {_ATTEMPTS} times; run the same command again") from error
        except (exceptions.GoogleAPICallError, InvalidResponse) as error:
            raise TransferError(f"{place}: {_first_line(error)}") from error
        except TransferError:
            raise
        except OSError as error:
            hint = "; free space, and the same command goes on" if error.errno in _FULL else ""
            raise TransferError(f"{error.filename or place}: {error.strerror or error}{hint}") from error
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise TransferError(f"{place}: the answer makes no sense ({type(error).__name__})") from error


def file_entry(path: Path) -> Entry:
    """Size and crc32c of a file."""
    import google_crc32c

    checksum, size = google_crc32c.Checksum(), 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            checksum.update(block)
            size += len(block)
    return Entry(size, checksum.digest().hex())


def plain(text: str) -> str:
    """Text without what moves a cursor."""
    return _CONTROL.sub("?", text)


def _entry(blob: Any) -> Entry:
    # An object under a customer's own key is listed without its checksum: it is like nothing that is known.
    return Entry(int(blob.size), base64.b64decode(blob.crc32c or "").hex(), int(blob.generation))


def _client() -> Any:
    # Else a thread of the client asks for the bucket itself, to label traces, and may do so after the client is closed.
    os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    if os.environ.get("STORAGE_EMULATOR_HOST"):
        return storage.Client(project="emulator", credentials=AnonymousCredentials())
    import google.auth

    # The project is only asked for where buckets are made, which is not done here.
    credentials, project = google.auth.default(scopes=["https://www.googleapis.com/auth/devstorage.read_write"])
    return storage.Client(project=project or "none", credentials=credentials)


def _tried() -> str:
    named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    return f"the credentials of GOOGLE_APPLICATION_CREDENTIALS ({named})" if named else "the default credentials"


def _code(error: BaseException) -> int:
    response = getattr(error, "response", None)
    return int(getattr(error, "code", None) or getattr(response, "status_code", 0) or 0)


def _first_line(error: Exception) -> str:
    text = str(getattr(error, "message", None) or error).strip()
    # The client puts method and address before the reason.
    return plain(re.sub(r"^[A-Z]+ https?://\S+: ", "", (text.splitlines() or [type(error).__name__])[0]))


def _reason(error: BaseException) -> str:
    cause = getattr(error, "cause", None) or error
    return f"status {_code(cause)}" if _code(cause) else type(cause).__name__
