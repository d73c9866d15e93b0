"""The two hot routes as plain ASGI, in front of everything else: actor method calls and reads of a state key.

Only what needs no thought is served here: a path of plain segments, a body that arrived in one piece. Anything else (an
escape, ``//``, a trailing slash, a long body, a missing token, malformed headers) goes to the general path with nothing
consumed, and gets the same answer there, only later. Measured:
this callable adds 2 µs to plain ASGI; the general path, most of it FastAPI's routing, 100 times as much.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from runtime_api.problems import Problem, internal, invoke_problem, problem_of
from runtime_api.wire import CALL_HEADERS, PLAIN_CALL, BadHeader, call_options

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container, Coroutine

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from runtime_api.edge import Token
    from runtime_api.state import StateAnswer
    from runtime_api.wire import CallOptions, Header

# Letters that need neither unescaping nor checking in any segment; "." and ".." are names that need checking.
_SEGMENT = r"((?!\.\.?(?:/|$))[A-Za-z0-9_.~:@$!*'(),;=&-]+)"
_log = logging.getLogger("mecha.http")
ACTOR_METHOD = re.compile(rf"/v1\.0/actors/{_SEGMENT}/{_SEGMENT}/method/{_SEGMENT}")
STATE_KEY = re.compile(rf"/v1\.0/state/{_SEGMENT}/{_SEGMENT}")
_MOST_DIGITS = 5
_METHOD_VERBS = frozenset({"GET", "POST", "PUT", "DELETE"})
_JSON = (b"content-type", b"application/json")


class HotPath:
    """`general` is the general path; `types` are the actor types of the application; `invoke` is
    `ActorClient.invoke_nowait`; `read_state` answers a read of a key, or None for a store it does not know."""

    def __init__(
        self,
        general: ASGIApp,
        types: Container[str],
        invoke: Callable[..., Awaitable[bytes]],
        read_state: Callable[[str, str], Coroutine[Any, Any, StateAnswer] | None],
        token: Token,
        body_limit: int,
    ) -> None:
        self._general = general
        self._types = types
        self._invoke = invoke
        self.read_state = read_state
        self._token = token
        self._body_limit = body_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and len(path := scope["path"]) == len(scope["raw_path"]):
            if (found := ACTOR_METHOD.fullmatch(path)) is not None:
                if scope["method"] in _METHOD_VERBS and found[1] in self._types:
                    return await self._actor_method(found, scope, receive, send)
            elif scope["method"] == "GET" and (found := STATE_KEY.fullmatch(path)) is not None:
                return await self._state_key(found, scope, receive, send)
        return await self._general(scope, receive, send)

    async def _actor_method(self, path: re.Match[str], scope: Scope, receive: Receive, send: Send) -> None:
        options = self._options(scope["headers"])
        if options is None:
            return await self._general(scope, receive, send)
        message = await receive()
        body = message.get("body", b"")
        if message.get("more_body", False) or message["type"] != "http.request" or len(body) > self._body_limit:
            return await self._general(scope, _given_back(message, receive), send)
        actor_type, actor_id, method = path.groups()
        try:
            if options is PLAIN_CALL:
                result = await self._invoke(actor_type, actor_id, method, body)
            else:
                result = await self._invoke(actor_type, actor_id, method, body, **options._asdict())
        except Exception as error:
            problem = invoke_problem(error, actor_type, actor_id, method)
            return await _send_problem(problem, error, scope, receive, send)
        length = (b"content-length", b"%d" % len(result))
        await send({"type": "http.response.start", "status": 200, "headers": [_JSON, length]})
        return await send({"type": "http.response.body", "body": result})

    async def _state_key(self, path: re.Match[str], scope: Scope, receive: Receive, send: Send) -> None:
        answer = self.read_state(path[1], path[2]) if self._options(scope["headers"]) is not None else None
        if answer is None:
            return await self._general(scope, receive, send)
        try:
            status, headers, body = await answer
        except Exception as error:
            return await _send_problem(problem_of(error), error, scope, receive, send)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        return await send({"type": "http.response.body", "body": body})

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


def _given_back(message: Message, receive: Receive) -> Receive:
    waiting = [message]

    async def receive_again() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_again


async def _send_problem(problem: Problem | None, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    if problem is None:
        _log.error("unexpected error in %s %s", scope["method"], scope["path"], exc_info=error)
        problem = internal(error)
    await problem.response(scope, receive, send)
