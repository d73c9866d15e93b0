"""The outermost layer of the general path: what holds for every request before a route is looked at.

Order: path, baggage, token, body. The body is read here, whole and bounded, so that no endpoint can forget the limit.
Errors of endpoints are told by the handlers in `runtime_api.app`.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from runtime_api import wire
from runtime_api.pages import VALUES_AT_ONCE
from runtime_api.problems import PlainText, Problem, body_too_large, internal, problem_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Sequence

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from runtime_api.wire import Header

T = TypeVar("T")

DEFAULT_BODY_LIMIT = 4 * 1024 * 1024
_OPEN_PATHS = frozenset({"/v1.0/healthz", "/v1.0/healthz/outbound"})
_log = logging.getLogger("mecha.http")


class Limits(NamedTuple):
    """`body`: longest request body in bytes. `bodies`: bytes of bodies held at once, over all requests."""

    body: int = DEFAULT_BODY_LIMIT
    bodies: int = 64 * DEFAULT_BODY_LIMIT

    @property
    def answer(self) -> int:
        """Bytes an answer may have that is put together of several values."""
        return VALUES_AT_ONCE * self.body


DEFAULT_LIMITS = Limits()


class Disconnected(Exception):
    """The client went away before its request was complete: nobody is left to answer."""


async def while_connected(work: Awaitable[T], receive: Receive) -> T:
    """The result of `work`, which is cancelled when the client goes away before: raises `Disconnected` then. The
    request has been read: nothing but its end is to be received."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Disconnected
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Token:
    """The API token, when one is set; compared in constant time."""

    def __init__(self, token: str | None) -> None:
        self._token = token.encode(errors="surrogateescape") if token else None

    def admits(self, headers: Iterable[Header]) -> bool:
        return self._token is None or hmac.compare_digest(wire.header(headers, b"dapr-api-token") or b"", self._token)


class Edge:
    def __init__(self, app: ASGIApp, limits: Limits, token: Token) -> None:
        self._app, self._limits, self._token = app, limits, token
        # Bytes of bodies held by all requests. Needs no lock: nothing awaits between reading and writing it.
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            body = _Body(self)
            try:
                await self._http(body, scope, receive, send)
            finally:
                body.drop()
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        else:
            await self._app(scope, receive, send)

    async def _http(self, body: _Body, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            scope["path"] = path = wire.normal_path(scope["raw_path"])
            wire.check_baggage(scope["headers"])
            if not self._token.admits(scope["headers"]) and not (path in _OPEN_PATHS and scope["method"] == "GET"):
                raise PlainText(401, "invalid api token")
            await body.read(scope["headers"], receive)
        except Disconnected:
            return
        except Exception as error:
            await _refuse(error, scope, receive, send)
            return
        try:
            await self._app(scope, body.replay(receive), send)
        except Exception:
            # The handlers in `runtime_api.app` have logged and answered it; Starlette raises it again for servers'
            # logs.
            _log.debug("raised again after it was answered", exc_info=True)

    def hold(self, size: int) -> None:
        """Count `size` bytes more. Raises `Problem` 503 when all requests together hold too much."""
        if self._held + size > self._limits.bodies:
            raise Problem(503, "ERR_OVERLOADED", "too many long request bodies at once: try again later", retry=True)
        self._held += size

    def let_go(self, size: int) -> None:
        self._held -= size

    @property
    def body_limit(self) -> int:
        return self._limits.body


async def _refuse(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    problem = problem_of(error)
    if problem is None:
        _log.error("unexpected error before %s %r", scope["method"], scope["raw_path"], exc_info=error)
        problem = internal(error)
    await problem.response(scope, receive, send)


class _Body:
    """One request's body: read once, counted while it is held."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        # Not a list of what has come: chunks may be as short as a byte, and an object of Python's has fifty more.
        self._bytes = bytearray()
        self._size = 0

    async def read(self, headers: Sequence[Header], receive: Receive) -> None:
        """Raises `Problem` 413 over the limit (at once, when the length is announced), `Disconnected`."""
        announced = wire.header(headers, b"content-length")
        if announced is not None and int(announced) > self._edge.body_limit:
            raise body_too_large(self._edge.body_limit)
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            more = message.get("more_body", False)
            self._add(message.get("body", b""))

    def _add(self, chunk: bytes) -> None:
        if self._size + len(chunk) > self._edge.body_limit:
            raise body_too_large(self._edge.body_limit)
        self._edge.hold(len(chunk))
        self._size += len(chunk)
        self._bytes += chunk

    def replay(self, receive: Receive) -> Receive:
        """A `receive` that gives the body as one message, then what the connection has to say."""
        waiting: list[Message] = [{"type": "http.request", "body": bytes(self._bytes), "more_body": False}]
        self._bytes = bytearray()

        async def replayed() -> Message:
            return waiting.pop() if waiting else await receive()

        return replayed

    def drop(self) -> None:
        self._edge.let_go(self._size)
        self._size = 0
