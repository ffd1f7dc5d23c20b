"""Kaggle's client: signed in, every request bounded in time, every error one line that shows no secret."""

import contextlib
import io
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from birdtpu.errors import UserError
from birdtpu.storage import FULL

SETTINGS = "https://www.kaggle.com/settings"
# How long a connection may take, a proxy's answer included, and how long nothing may come over one.
CONNECT_SECONDS, READ_SECONDS = 30.0, 60.0
_ATTEMPTS = 4
_BUSY = (429, 500, 502, 503, 504)
AGAIN = "run the same command again"
_NONSENSE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
_NEW_TOKEN = f"make a token at {SETTINGS} and set KAGGLE_API_TOKEN (on Colab and Kaggle: a secret of the notebook)"

T = TypeVar("T")


class KaggleError(UserError):
    """What Kaggle did not do.

    Args:
        message: One line.
        status: HTTP's; 0 where no answer came, or none that makes sense.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    @property
    def unknown(self) -> bool:
        """Whether the request may have been carried out all the same."""
        return self.status == 0 or self.status >= 500


class Kaggle:
    """A context: Kaggle's own client, signed in as the client does it, from the environment or its files.

    Args:
        anonymous: Whether it may go without credentials, which is enough for what is public.

    Attributes:
        user: The name that the credentials belong to; empty without.

    Raises: UserError where the client is not installed; KaggleError where there are no credentials or Kaggle does not
        take them.
    """

    def __init__(self, anonymous: bool = False) -> None:
        try:
            _bound_all()
            # Importing it signs in, and says so where it cannot.
            with contextlib.redirect_stdout(None):
                from kaggle.api.kaggle_api_extended import KaggleApi
        except ImportError as error:
            raise UserError("Kaggle's client is not installed: pip install 'birdtpu[cloud]'") from error
        self._api: Any = KaggleApi()
        self.user = self._credential = ""
        self._stack = contextlib.ExitStack()
        source = _token_source()
        with self._named("signing in"):
            signed_in = self._sign_in(source)
        if not signed_in and not anonymous:
            if source:
                raise KaggleError(f"Kaggle did not take the token of {source}: {_NEW_TOKEN}", 401)
            raise KaggleError(f"no Kaggle credentials: {_NEW_TOKEN}, or put kaggle.json into {_config(self._api)}", 401)
        if not signed_in and source:
            # The client sends it all the same.
            self._credential = f"the token of {source}"
        self.user = self.said(self._api.get_config_value(self._api.CONFIG_NAME_USER) or "")

    def __enter__(self) -> "Kaggle":
        import requests

        # It warns of every connection that it opens again, by the whole of a signed address.
        log = logging.getLogger("urllib3.connectionpool")
        log.addFilter(_no_warning)
        self._stack.callback(log.removeFilter, _no_warning)
        # Whoever only asks may ask again; what makes something is sent once.
        self._asking = self._client(_ATTEMPTS)
        self._making = self._client(0)
        self._sending = self._stack.enter_context(requests.Session())
        _bound(self._sending, 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def said(self, text: object) -> str:
        """What Kaggle says as part of a line: short, without what moves a cursor, and without our credentials."""
        line, values = " ".join(str(text).split()), self._api.config_values
        for secret in (values.get(self._api.CONFIG_NAME_KEY), values.get(self._api.CONFIG_NAME_TOKEN), _token()):
            line = line.replace(secret, "***") if secret else line
        return re.sub(r"[\x00-\x1f\x7f-\x9f]", "", line)[:200]

    def ask(self, place: str, call: Callable[[Any], T]) -> T:
        """What a request that changes nothing answers; it is tried again where Kaggle is busy or the line breaks.

        Args:
            place: What it is about, for the message.
            call: Gets a `kagglesdk.KaggleClient`.

        Raises: KaggleError.
        """
        from requests.exceptions import ChunkedEncodingError

        with self._named(place):
            for _ in range(_ATTEMPTS - 1):
                # The connection's own retries end where the reply has begun.
                with contextlib.suppress(ChunkedEncodingError, ValueError):
                    return call(self._asking)
            return call(self._asking)

    def make(self, place: str, call: Callable[[Any], T]) -> T:
        """What a request that makes something answers. It is sent once.

        Raises: KaggleError; where it is `unknown`, the thing may have been made.
        """
        with self._named(place):
            return call(self._making)

    def upload(self, place: str, path: Path, url: str) -> None:
        """Send a file to an upload that Kaggle began, from where it broke off if it does.

        Raises: KaggleError.
        """
        import requests

        session, size = self._sending, path.stat().st_size
        with self._named(place), open(path, "rb") as file:
            for attempt in range(_ATTEMPTS):
                try:
                    start = _arrived(session, url, size) if attempt else 0
                    if start is None:
                        return
                    file.seek(start)
                    span = {"Content-Range": f"bytes {start}-{size - 1}/{size}"} if start else {}
                    # requests would send a file without bytes as a stream without an end.
                    reply = session.put(url, data=file if size else b"", headers=span)
                    if reply.status_code == 308:
                        raise requests.ConnectionError("not all bytes arrived")
                    reply.raise_for_status()
                    return
                except requests.RequestException as error:
                    response = getattr(error, "response", None)
                    last = attempt == _ATTEMPTS - 1
                    if last or (response is not None and response.status_code not in _BUSY):
                        raise
                    time.sleep(0.5 * 2**attempt)

    def download(self, place: str, call: Callable[[Any], Any], path: Path, check: Callable[[int], None]) -> None:
        """Fetch a file, going on where an earlier call was interrupted if it still is the same.

        Args:
            place: What it is, for the message.
            call: Gets a `kagglesdk.KaggleClient` and returns the response whose body is the file.
            path: Where it shall stand. Until it is whole it has `.part` behind its name, and a note of what it is.
            check: Told how many bytes are to come, before the first; raises where that is too much.

        Raises: KaggleError; UserError where the disk is full. What has arrived is kept.
        """
        part, note = path.with_name(path.name + ".part"), path.with_name(path.name + ".part.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(_ATTEMPTS):
            # Asked anew each time: an address is good for minutes only.
            response = self.ask(place, call)
            try:
                with self._named(place), _room(place, path), contextlib.ExitStack() as stack:
                    stack.callback(response.close)
                    self._receive(stack, response, part, note, check)
                os.replace(part, path)
                note.unlink(missing_ok=True)
                return
            except KaggleError as error:
                if attempt == _ATTEMPTS - 1 or (error.status and error.status not in _BUSY):
                    raise
                time.sleep(0.5 * 2**attempt)

    def _receive(
        self, stack: contextlib.ExitStack, response: Any, part: Path, note: Path, check: Callable[[int], None]
    ) -> None:
        """Fill `part` with a response's body, or with the rest of it where its beginning has arrived before."""
        import requests
        from tqdm.auto import tqdm

        size = _length(response)
        about = {"tag": response.headers.get("ETag") or response.headers.get("Last-Modified"), "size": size}
        start = part.stat().st_size if about["tag"] and size > 0 and _noted(note) == about and part.exists() else 0
        # What comes in reply to the question itself has no address of its own where the rest could be had.
        if start > size or (start < size and not response.history):
            start = 0
        check(max(size - start, 0))
        if 0 < start < size:
            response.close()
            span = {"Range": f"bytes={start}-", "If-Range": str(about["tag"])}
            response = stack.enter_context(self._sending.get(response.url, headers=span, stream=True))
            if response.status_code != 416:
                response.raise_for_status()
            if response.headers.get("Content-Range") != f"bytes {start}-{size - 1}/{size}":
                part.unlink()
                raise requests.ConnectionError("not the rest of it")
        elif not start:
            part.write_bytes(b"")
            note.write_text(json.dumps(about))
        if start != size:
            bar = tqdm(total=max(size, 0) or None, initial=start, unit="B", unit_scale=True, disable=None)
            with bar, open(part, "ab") as file:
                for block in response.iter_content(1 << 16):
                    file.write(block)
                    bar.update(len(block))
                file.flush()
                os.fsync(file.fileno())
        if 0 <= size != part.stat().st_size:
            raise requests.ConnectionError("cut short")

    def _sign_in(self, source: str) -> bool:
        api = self._api
        try:
            with contextlib.redirect_stdout(None), contextlib.redirect_stderr(io.StringIO()):
                api.authenticate()
        except (SystemExit, NameError):
            # Nothing is configured: the client then calls `exit`, which notebooks do not have.
            return False
        except (OSError, ValueError, TypeError, KeyError) as error:
            import requests

            if isinstance(error, requests.RequestException) and not isinstance(
                error, requests.exceptions.InvalidHeader
            ):
                raise
            # Its text may be the token.
            what = f"the token of {source}" if source else f"what {_config(api)}/kaggle.json holds"
            raise KaggleError(f"signing in: {what} is none ({type(error).__name__}); {_NEW_TOKEN}", 401) from None
        method = str(api.get_config_value(api.CONFIG_NAME_AUTH_METHOD) or "").rpartition(".")[2].upper()
        if "TOKEN" in method:
            self._credential = f"the token of {source}"
        elif "LEGACY" in method:
            by_name = "KAGGLE_KEY" in os.environ
            self._credential = "KAGGLE_USERNAME and KAGGLE_KEY" if by_name else f"the key in {_config(api)}"
        elif method:
            self._credential = "the login of `kaggle auth login`"
        return bool(method)

    def _client(self, retries: int) -> Any:
        client = self._stack.enter_context(self._api.build_kaggle_client())
        _bound(client.http_client()._session, retries)
        return client

    @contextlib.contextmanager
    def _named(self, place: str) -> Iterator[None]:
        """The client's errors as KaggleErrors. Their own texts hold signed addresses, which nobody shall see."""
        import requests

        try:
            yield
        except UserError:
            raise
        except requests.HTTPError as error:
            raise self._answered(place, error) from None
        except requests.exceptions.InvalidSchema:
            raise KaggleError(
                f"{place}: led to an address that is not https, or to a proxy of an unknown kind; not followed", 0
            ) from None
        except requests.RequestException as error:
            raise KaggleError(f"{place}: Kaggle gave no answer ({type(error).__name__}); {AGAIN}", 0) from None
        except _NONSENSE as error:
            # What a cut or strange reply does to the client.
            raise KaggleError(f"{place}: Kaggle's answer makes no sense ({type(error).__name__}); {AGAIN}", 0) from None

    def _answered(self, place: str, error: Any) -> KaggleError:
        import requests

        response = error.response
        status, said = response.status_code, ""
        if urlsplit(response.url).hostname != "api.kaggle.com" and status in (400, 401, 403, 404, 410):
            return KaggleError(f"{place}: Kaggle's address for the bytes was refused ({status}); {AGAIN}", 0)
        with contextlib.suppress(requests.RequestException, *_NONSENSE):
            said = self.said(response.json().get("message") or "")
            status = int(response.json().get("code") or status)
        said = f" ({said})" if said else ""
        who = self._credential or "a call without credentials"
        if status == 401:
            return KaggleError(f"{place}: Kaggle did not take {who}: {_NEW_TOKEN}", status)
        if status == 403:
            return KaggleError(f"{place}: no permission by {who}{said}; is it there, and yours to use?", status)
        if status == 404:
            return KaggleError(f"{place}: not there, or not for {self.user or who}{said}", status)
        hint = f"; {AGAIN}" if status in _BUSY else ""
        return KaggleError(f"{place}: Kaggle answered {status}{said}{hint}", status)


def _no_warning(record: logging.LogRecord) -> bool:
    return record.levelno > logging.WARNING


def fill(request: T, **values: Any) -> T:
    """A request of the client with its fields set."""
    for name, value in values.items():
        setattr(request, name, value)
    return request


def _bound_all() -> None:
    """Bound the sessions of every client, those that sign in too: by itself Kaggle's waits for ever."""
    from kagglesdk.kaggle_http_client import KaggleHttpClient

    begin = KaggleHttpClient._init_session
    if getattr(begin, "bounded", False):
        return

    def bounded(self: Any) -> Any:
        fresh = self._session is None
        begun = begin(self)
        if fresh:
            _bound(self._session, 0)
        return begun

    bounded.bounded = True  # type: ignore[attr-defined]
    KaggleHttpClient._init_session = bounded


def _bound(session: Any, retries: int) -> None:
    """Give every request of a session a time limit, and as many more attempts; nothing goes where all can read it."""
    from requests.adapters import HTTPAdapter
    from requests.exceptions import InvalidSchema
    from urllib3.util.retry import Retry

    class Bounded(HTTPAdapter):
        def send(self, request: Any, *args: Any, timeout: Any = None, **kwargs: Any) -> Any:
            return super().send(request, *args, timeout=timeout or (CONNECT_SECONDS, READ_SECONDS), **kwargs)

    class Refused(HTTPAdapter):
        def send(self, *_: Any, **__: Any) -> Any:
            raise InvalidSchema("not https")

    again = Retry(
        total=retries, read=min(retries, 2), status_forcelist=_BUSY if retries else (), allowed_methods=None,
        backoff_factor=0.5, respect_retry_after_header=False, raise_on_status=False,
    )  # fmt: skip
    session.mount("https://", Bounded(max_retries=again))
    session.mount("http://", Refused())


def _arrived(session: Any, url: str, size: int) -> int | None:
    """How many bytes of an upload that broke off have arrived; None: all, and it is ended."""
    reply = session.put(url, headers={"Content-Length": "0", "Content-Range": f"bytes */{size}"})
    if reply.status_code == 308:
        return int(reply.headers["Range"].rpartition("-")[2]) + 1 if "Range" in reply.headers else 0
    reply.raise_for_status()
    return None


def _length(response: Any) -> int:
    """How many bytes a response's body has; -1 where it does not tell, or is packed on its way."""
    told = response.headers.get("Content-Length") or ""
    return int(told) if re.fullmatch(r"[0-9]{1,18}", told) and not response.headers.get("Content-Encoding") else -1


def _token() -> str:
    """The token that the client finds; empty where there is none."""
    from kagglesdk.kaggle_env import get_access_token_from_env

    with contextlib.suppress(OSError, ValueError):
        return get_access_token_from_env()[0] or ""
    return os.environ.get("KAGGLE_API_TOKEN") or ""


def _token_source() -> str:
    """Where the client finds a token, in words; empty where there is none."""
    from kagglesdk.kaggle_env import get_access_token_from_env

    try:
        token, source = get_access_token_from_env()
    except (OSError, ValueError):
        # It takes a token for a path first, and one that is too long for that raises.
        return "KAGGLE_API_TOKEN"
    return {"access_token": "~/.kaggle/access_token"}.get(str(source), str(source)) if token else ""


def _noted(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def _room(place: str, path: Path) -> Iterator[None]:
    """A full disk as one line that names what was fetched, and where to."""
    import requests

    try:
        yield
    except requests.RequestException:
        raise
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(
            f"{place}: {path.parent}: {error.strerror}; free space, and the same command goes on"
        ) from error


def _config(api: Any) -> str:
    return str(Path(api.config).parent)
