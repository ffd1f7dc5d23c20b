"""Kaggle's client: signed in, every request bounded in time, every error one line that shows no secret."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from birdtpu.errors import UserError

SETTINGS = "https://www.kaggle.com/settings"
_CONNECT_SECONDS, _READ_SECONDS = 30.0, 60.0
_ATTEMPTS = 4
_BUSY = (429, 500, 502, 503, 504)
_AGAIN = "run the same command again"
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
            # Importing it signs in, and says so where it cannot.
            with contextlib.redirect_stdout(None):
                from kaggle.api.kaggle_api_extended import KaggleApi
        except ImportError as error:
            raise UserError("Kaggle's client is not installed: pip install 'birdtpu[cloud]'") from error
        self._api: Any = KaggleApi()
        self.user = self._credential = ""
        self._stack = contextlib.ExitStack()
        with self._named("signing in"):
            signed_in = self._sign_in()
        if not signed_in and not anonymous:
            if source := _token_source():
                raise KaggleError(f"Kaggle did not take the token of {source}: {_NEW_TOKEN}", 401)
            raise KaggleError(f"no Kaggle credentials: {_NEW_TOKEN}, or put kaggle.json into {_config(self._api)}", 401)
        self.user = self._api.get_config_value(self._api.CONFIG_NAME_USER) or ""

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

    def download(self, place: str, call: Callable[[Any], Any], path: Path, size_bytes: Callable[[int], None]) -> None:
        """Fetch a file, going on where an earlier call was interrupted if it still is the same.

        Args:
            place: What it is, for the message.
            call: Gets a `kagglesdk.KaggleClient` and returns the response whose body is the file.
            path: Where it shall stand. Until it is whole it has `.part` behind its name.
            size_bytes: Told how large it is, before the first byte; raises where that is too much.

        Raises: KaggleError.
        """
        part = path.with_name(path.name + ".part")
        path.parent.mkdir(parents=True, exist_ok=True)
        response = self.ask(place, call)
        size_bytes(int(response.headers.get("Content-Length") or 0))
        with self._named(place), contextlib.redirect_stdout(None):
            try:
                quiet = not sys.stderr.isatty()
                self._api.download_file(response, str(part), self._asking.http_client(), quiet, True)
            except ValueError as error:
                # Its length is not what was announced: what is there is good for nothing.
                part.unlink(missing_ok=True)
                raise KaggleError(f"{place}: arrived damaged; {_AGAIN}", 0) from error
        os.replace(part, path)

    def _sign_in(self) -> bool:
        api = self._api
        if not api.get_config_value(api.CONFIG_NAME_AUTH_METHOD):
            try:
                with contextlib.redirect_stdout(None):
                    api.authenticate()
            except SystemExit:
                return False
        method = str(api.get_config_value(api.CONFIG_NAME_AUTH_METHOD) or "").rpartition(".")[2].upper()
        if "TOKEN" in method:
            self._credential = f"the token of {_token_source()}"
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
        except requests.RequestException as error:
            raise KaggleError(f"{place}: Kaggle gave no answer ({type(error).__name__}); {_AGAIN}", 0) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            # What a cut reply does to the client.
            raise KaggleError(
                f"{place}: Kaggle's answer makes no sense ({type(error).__name__}); {_AGAIN}", 0
            ) from None

    def _answered(self, place: str, error: Any) -> KaggleError:
        response = error.response
        status, said = response.status_code, ""
        with contextlib.suppress(ValueError, AttributeError):
            said = str(response.json().get("message") or "")
            status = int(response.json().get("code") or status)
        said = f" ({' '.join(said.split())[:200]})" if said else ""
        who = self._credential or "a call without credentials"
        if status == 401:
            return KaggleError(f"{place}: Kaggle did not take {who}: {_NEW_TOKEN}", status)
        if status == 403:
            return KaggleError(f"{place}: no permission by {who}{said}; is it there, and yours to use?", status)
        if status == 404:
            return KaggleError(f"{place}: not there, or not for {self.user or who}{said}", status)
        hint = f"; {_AGAIN}" if status in _BUSY else ""
        return KaggleError(f"{place}: Kaggle answered {status}{said}{hint}", status)


def _no_warning(record: logging.LogRecord) -> bool:
    return record.levelno > logging.WARNING


def fill(request: T, **values: Any) -> T:
    """A request of the client with its fields set."""
    for name, value in values.items():
        setattr(request, name, value)
    return request


def _bound(session: Any, retries: int) -> None:
    """Give every request of a session a time limit, and as many more attempts."""
    from requests.adapters import HTTPAdapter
    from urllib3.util.retry import Retry

    class Bounded(HTTPAdapter):
        def send(self, request: Any, *args: Any, timeout: Any = None, **kwargs: Any) -> Any:
            return super().send(request, *args, timeout=timeout or (_CONNECT_SECONDS, _READ_SECONDS), **kwargs)

    again = Retry(
        total=retries, read=min(retries, 2), status_forcelist=_BUSY if retries else (), allowed_methods=None,
        backoff_factor=0.5, respect_retry_after_header=False, raise_on_status=False,
    )  # fmt: skip
    session.mount("https://", Bounded(max_retries=again))


def _arrived(session: Any, url: str, size: int) -> int | None:
    """How many bytes of an upload that broke off have arrived; None: all, and it is ended."""
    reply = session.put(url, headers={"Content-Length": "0", "Content-Range": f"bytes */{size}"})
    if reply.status_code == 308:
        return int(reply.headers["Range"].rpartition("-")[2]) + 1 if "Range" in reply.headers else 0
    reply.raise_for_status()
    return None


def _token_source() -> str:
    """Where the client finds a token, in words; empty where there is none."""
    from kagglesdk.kaggle_env import get_access_token_from_env

    token, source = get_access_token_from_env()
    return {"access_token": "~/.kaggle/access_token"}.get(str(source), str(source)) if token else ""


def _config(api: Any) -> str:
    return str(Path(api.config).parent)
