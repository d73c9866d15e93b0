"""The command line's way to a running server: HTTP, and errors as one line."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

_CONNECT_S = 5.0
_ANSWER_S = 300.0
_LAST_PORT = 65535
_SENDABLE = re.compile(rb"|[^\x00-\x20\x7f](?:[^\x00-\x1f\x7f]*[^\x00-\x20\x7f])?")


class RemoteError(Exception):
    """The server answered with an error; the text is one line with its code."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{code or 'error'} ({status}): {' '.join(message.split())}")
        self.status, self.code = status, code


class BadUrl(ValueError):
    """It names no server."""


class Unsendable(ValueError):
    """A header would have a value that no header can have."""


class Unreachable(Exception):
    """There was no answer; whether the request took effect is unknown unless the connection was refused."""


def path(*parts: str) -> str:
    """A path of literal parts, each escaped."""
    return "/" + "/".join(quote(part, safe="") for part in parts)


class Remote:
    """`token` None: taken from ``MECHA_API_TOKEN`` or ``DAPR_API_TOKEN``. Raises `BadUrl`, `Unsendable`."""

    def __init__(self, url: str, token: str | None = None) -> None:
        token = token or os.environ.get("MECHA_API_TOKEN") or os.environ.get("DAPR_API_TOKEN")
        self._url = url
        self._client = httpx.Client(
            base_url=_server_url(url),
            headers=[(b"dapr-api-token", _token_header(token))] if token else [],
            timeout=httpx.Timeout(_ANSWER_S, connect=_CONNECT_S),
            trust_env=False,
        )

    def __enter__(self) -> Remote:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def request(
        self,
        method: str,
        where: str,
        *,
        params: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Raises `RemoteError` for every status of 400 and more, `Unreachable`, `Unsendable`. Empty parameters are left
        out."""
        sent = [(name.encode(), _header(name, value)) for name, value in (headers or {}).items()]
        given = {name: value for name, value in (params or {}).items() if value not in (None, "", [])}
        try:
            response = self._client.request(method, where, params=given, content=content, headers=sent)
        except httpx.ConnectError as error:
            raise Unreachable(f"cannot reach {self._url}: {error} (is `mecha run` running there?)") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unreachable(f"no answer from {self._url}: {str(error) or type(error).__name__}") from error
        if response.status_code >= 400:
            raise _error_of(response)
        return response

    def json(self, method: str, where: str, **options: Any) -> Any:
        """What the answer says, None when it is empty. Raises as `request` does, and `RemoteError` for what is no
        JSON."""
        response = self.request(method, where, **options)
        try:
            return response.json() if response.content else None
        except ValueError:
            message = f"the answer from {self._url} is no JSON (is that `mecha run`?)"
            raise RemoteError(response.status_code, "", message) from None


def _token_header(token: str) -> bytes:
    """As the server compares it."""
    value = token.encode(errors="surrogateescape")
    if not _SENDABLE.fullmatch(value):
        raise Unsendable("MECHA_API_TOKEN or DAPR_API_TOKEN has control characters, or blanks around it")
    return value


def _header(name: str, text: str) -> bytes:
    """As the server reads it."""
    try:
        value = text.encode("latin-1")
    except UnicodeEncodeError:
        value = b"\0"
    if not _SENDABLE.fullmatch(value):
        raise Unsendable(f"{name} {text!r} cannot be sent: printable characters of Latin-1 can, without blanks around")
    return value


def _server_url(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
        is_servers = url.scheme in ("http", "https") and bool(url.host)
    except (httpx.InvalidURL, UnicodeError) as error:  # the latter: of a name that idna cannot read
        raise BadUrl(str(error)) from None
    if not is_servers:
        raise BadUrl("it begins with http:// or https://, and names a host")
    if url.port is not None and url.port > _LAST_PORT:
        raise BadUrl(f"there is no port {url.port}")
    return url


def _error_of(response: httpx.Response) -> RemoteError:
    try:
        body = response.json()
        return RemoteError(response.status_code, str(body["errorCode"]), str(body["message"]))
    except (ValueError, KeyError, TypeError):
        return RemoteError(response.status_code, "", response.text or response.reason_phrase)
