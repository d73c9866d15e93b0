"""The hot routes as plain ASGI, in front of everything else.

Only what needs no thought is served here: a plain request line (see `hotroutes`), a body that arrived in one piece.
Anything else (an escape, ``//``, a trailing slash, a long body, a missing token, malformed headers) goes to the general
path with nothing consumed, and gets the same answer there, only later.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from runtime_api.answers import JSON, Answer
from runtime_api.edge import Disconnected, while_connected
from runtime_api.hotroutes import arguments_of
from runtime_api.problems import internal
from runtime_api.wire import CALL_HEADERS, PLAIN_CALL, BadHeader, call_options

if TYPE_CHECKING:
    import re

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from runtime_api.edge import Token
    from runtime_api.hotroutes import HotRoute, HotRoutes
    from runtime_api.wire import CallOptions, Header

_log = logging.getLogger("mecha.http")
_MOST_DIGITS = 5


class HotPath:
    """`general` is the general path."""

    def __init__(self, general: ASGIApp, routes: HotRoutes, token: Token, body_limit: int) -> None:
        self._general = general
        self.routes = routes
        self._token = token
        self._body_limit = body_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (hot := self.routes.find(_request_line(scope))) is not None:
            options = self._options(scope["headers"])
            if options is not None:
                return await self._hot(*hot, options, scope, receive, send)
        return await self._general(scope, receive, send)

    async def _hot(
        self,
        route: HotRoute,
        found: re.Match[bytes],
        options: CallOptions,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        message = await receive()
        body = message.get("body", b"")
        names = arguments_of(found)
        plain = message["type"] == "http.request" and not message.get("more_body", False)
        work = route.begin(names, body, options) if plain and len(body) <= self._body_limit else None
        if work is None:
            return await self._general(scope, _given_back(message, receive), send)
        try:
            result = await (while_connected(work, receive) if route.waits else work)
        except Disconnected:
            return None
        except Exception as error:
            problem = route.problem(error, names)
            if problem is None:
                _log.error("unexpected error in %s %s", scope["method"], scope["path"], exc_info=error)
                problem = internal(error)
            return await problem.response(scope, receive, send)
        if isinstance(result, bytes):
            result = Answer(200, [JSON, (b"content-length", b"%d" % len(result))], result)
        await send({"type": "http.response.start", "status": result.status, "headers": result.headers})
        return await send({"type": "http.response.body", "body": result.body})

    def _options(self, headers: list[Header]) -> CallOptions | None:
        """None: the general path has to look at this request."""
        if not self._token.admits(headers):
            return None
        for name, value in headers:
            # A long body comes in pieces, and may be refused before it is read.
            if name == b"content-length" and len(value) > _MOST_DIGITS:
                return None
            if name in CALL_HEADERS:
                try:
                    return call_options(headers)
                except BadHeader:
                    return None
        return PLAIN_CALL


def _request_line(scope: Scope) -> bytes:
    """As HTTP/1.1 has it, whichever version carried it."""
    query = scope["query_string"]
    target = b"%b?%b" % (scope["raw_path"], query) if query else scope["raw_path"]
    return b"%b %b HTTP/1.1\r\n" % (scope["method"].encode(), target)


def _given_back(message: Message, receive: Receive) -> Receive:
    waiting = [message]

    async def receive_again() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_again
