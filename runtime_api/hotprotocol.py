"""The hot routes without ASGI: uvicorn's protocol with a short cut before its parser.

A request that arrives whole, alone, and in the plainest form of HTTP/1.1 is answered from here: no scope, no task, no
messages between a server and an application that live in the same process. That is about half of what a request costs.
Everything else (any other route, escapes, unusual headers, bodies in pieces, pipelined requests, HTTP/1.0) goes to
uvicorn's parser as it came, with nothing consumed, and so to `HotPath` or the general path, which give the same
answers.

Deciding which of the two may be looser than a parser without being wrong, so it is stricter. A request is taken only if

- no other request of this connection is under way, and the parser stands between two messages;
- the request line is that of a hot route (see `hotroutes`), byte for byte;
- every header is one of `_KNOWN`, of legal characters, none of them twice, with exactly one `host`, a plain
  `content-length`, and the API token where one is set; so nothing can be framed, delegated or smuggled differently from
  what uvicorn would make of it;
- the bytes received end exactly where the body does.

The verdict on a block of headers depends on its bytes alone and is remembered: clients repeat themselves.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, cast

from starlette.responses import PlainTextResponse
from uvicorn.protocols.http.flow_control import service_unavailable
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from runtime_api.hotroutes import arguments_of
from runtime_api.problems import RETRY_AFTER, head_too_large, internal
from runtime_api.wire import PLAIN_CALL

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from runtime_api.answers import Result
    from runtime_api.edge import Token
    from runtime_api.hotroutes import Arguments, HotRoute, HotRoutes

    ServerHeaders = list[tuple[bytes, bytes]]

_log = logging.getLogger("mecha.http")

_HEADER = re.compile(rb"([A-Za-z-]+):[ \t]*([\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?)")
_KNOWN = frozenset(
    {b"host", b"content-length", b"content-type", b"user-agent", b"accept", b"accept-encoding", b"accept-language"}
    | {b"connection", b"dapr-api-token"}
)
_LONGEST_HEAD = 4096
_VERDICTS = 1024
_MOST_HELD = 65536
MOST_FRAMING = 65536
# A byte of a body, in the smallest chunk: with what stands around it, and some more.
_FRAMED_BYTE = 12
_NOT_HOT = -1


class HotCalls:
    """What the connections of one server share: where requests go, and what was found out about header blocks."""

    def __init__(self, routes: HotRoutes, token: Token, body_limit: int) -> None:
        self.routes = routes
        self._token = token
        self._body_limit = body_limit
        # Bytes that a client may send of a body although it was answered before.
        self.most_wasted = body_limit
        self._verdicts: dict[bytes, int] = {}
        self._told: ServerHeaders | None = None
        self._success = b""

    def content_length(self, headers: bytes) -> int:
        """The length of the body that follows these headers, or `_NOT_HOT`."""
        verdict = self._verdicts.get(headers)
        if verdict is None:
            if len(self._verdicts) >= _VERDICTS:
                self._verdicts.clear()
            verdict = self._verdicts[headers] = _judge(headers, self._token, self._body_limit)
        return verdict

    def success(self, server_headers: ServerHeaders) -> bytes:
        """A 200's head up to the length's value. uvicorn makes a new list of its headers every second, for the date."""
        if server_headers is not self._told:
            self._told = server_headers
            self._success = b"".join(
                (STATUS_LINE[200], *_lines(server_headers), b"content-type: application/json\r\ncontent-length: ")
            )
        return self._success


def hot_protocol(calls: HotCalls) -> type[HttpToolsProtocol]:
    """The protocol class to give to ``uvicorn.Config(http=…)``."""
    return type("HotProtocol", (_HotProtocol,), {"calls": calls})


class _HotProtocol(HttpToolsProtocol):
    calls: HotCalls
    # What is being answered from here, its route and arguments.
    _call: asyncio.Future[Result] | None = None
    _route: HotRoute
    _names: Arguments = ()
    # What arrived meanwhile.
    _held: bytes = b""
    _in_message = _in_head = False
    # Bytes of a message that are not its body.
    _framing = 0
    _closing = False
    # Ends a connection whose next request does not come, or does not get beyond its head, or does not go on with its
    # body. After its own answers uvicorn has a timer for the first, which the first byte of anything ends.
    _watch: asyncio.TimerHandle | None = None
    _waiting_since = 0.0
    # Bytes of a body that came after its answer.
    _wasted = 0

    # -- deciding ------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._call is not None:
            self._hold(data)
        elif self._in_message or self._parser_answers() or not self._take(data):
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        """The parser keeps a target, headers and trailers of any length: it is stopped when they are too long."""
        self._framing += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._framing > MOST_FRAMING:
            self._refuse_head()
        elif self._wasted > self.calls.most_wasted:
            self.transport.close()
        elif self._watch is None and self._awaits_client():
            self._watch = self.loop.call_later(self.timeout_keep_alive, self._check_idle)

    def _refuse_head(self) -> None:
        if not self._parser_answers():
            self._closing = True
            refused = head_too_large(MOST_FRAMING).response
            self._send(refused.status_code, refused.raw_headers, bytes(refused.body))
        self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        super()._start_asgi_task(cycle, _crowded() if app is service_unavailable else app)

    def send_400_response(self, msg: str) -> None:
        """uvicorn's, for what its parser does not read. A target that is too long is one such thing."""
        if self._in_head and len(self.url) >= MOST_FRAMING:
            self._refuse_head()
        else:
            super().send_400_response(msg)

    def on_message_begin(self) -> None:
        self._in_message = self._in_head = True
        self._waiting_since = self.loop.time()
        self._framing = self._wasted = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._in_head = False
        self._waiting_since = self.loop.time()

    def on_body(self, body: bytes) -> None:
        self._framing = max(0, self._framing - _FRAMED_BYTE * len(body))
        self._waiting_since = self.loop.time()
        if self.cycle.response_complete:
            self._wasted += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_message = False
        self._framing = 0
        super().on_message_complete()

    def _take(self, data: bytes) -> bool:
        calls = self.calls
        hot = calls.routes.find(data)
        if hot is None:
            return False
        route, line = hot
        head_end = data.find(b"\r\n\r\n", line.end() - 2, _LONGEST_HEAD)
        if head_end < 0:
            return False
        length = calls.content_length(data[line.end() : head_end])
        if length < 0 or len(data) != head_end + 4 + length or self.config.access_log or self._pressed():
            return False
        names = arguments_of(line)
        work = route.begin(names, data[head_end + 4 :], PLAIN_CALL)
        if work is None:
            return False
        self._unset_keepalive_if_required()
        self._route, self._names = route, names
        self._call = call = asyncio.ensure_future(work, loop=self.loop)
        call.add_done_callback(self._answer)
        return True

    def _parser_answers(self) -> bool:
        """A request that went to uvicorn's parser is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _awaits_client(self) -> bool:
        """For its next request, or the rest of one. (A head is of the request behind the one that is answered.)"""
        return not self._parser_answers() or (self._in_message and not self._in_head)

    def _reads(self) -> bool:
        """Else it is for us that the client waits: for the answer to what it has sent already."""
        return self._call is None and not self.pipeline and not self.flow.read_paused

    def _pressed(self) -> bool:
        """The client does not take its answers, or there are too many clients: uvicorn knows what to do."""
        limit = self.limit_concurrency
        crowded = limit is not None and (len(self.connections) >= limit or len(self.tasks) >= limit)
        return crowded or self.flow.write_paused

    # -- answering -----------------------------------------------------------------------------------------------------

    def _answer(self, call: asyncio.Future[Result]) -> None:
        self._call = None
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            call.cancelled() or call.exception()  # looked at, so that nobody reports it as overlooked
            return
        error = asyncio.CancelledError() if call.cancelled() else call.exception()
        if error is not None:
            self._answer_error(error)
        elif isinstance(result := call.result(), bytes):
            self.transport.write(b"%b%d\r\n%b\r\n%b" % (self._head(), len(result), self._farewell(), result))
        else:
            self._send(*result)
        if self._closing:
            self.transport.close()
            return
        self._expect_more()

    def _head(self) -> bytes:
        return self.calls.success(self.server_state.default_headers)

    def _farewell(self) -> bytes:
        return b"connection: close\r\n" if self._closing else b""

    def _answer_error(self, error: BaseException) -> None:
        problem = self._route.problem(error, self._names)
        if problem is None:
            _log.error("unexpected error in a request for %s", "/".join(self._names), exc_info=error)
            problem = internal(error)
        response = problem.response
        self._send(response.status_code, response.raw_headers, bytes(response.body))

    def _send(self, status: int, headers: ServerHeaders, body: bytes) -> None:
        lines = _lines([*self.server_state.default_headers, *headers])
        self.transport.write(b"".join((STATUS_LINE[status], *lines, self._farewell(), b"\r\n", body)))

    def _expect_more(self) -> None:
        self._waiting_since = self.loop.time()
        if self._watch is None:
            self._watch = self.loop.call_later(self.timeout_keep_alive, self._check_idle)
        if self._held:
            held, self._held = self._held, b""
            self.flow.resume_reading()
            self.data_received(held)

    def _check_idle(self) -> None:
        """One timer for many answers: it looks when the last one was, instead of being set anew by each."""
        self._watch = None
        if self.timeout_keep_alive_task is not None or not self._awaits_client():
            return  # uvicorn's turn: it sets its timer after its answer
        idle_s = self.loop.time() - self._waiting_since if self._reads() else 0.0
        if idle_s >= self.timeout_keep_alive:
            self.timeout_keep_alive_handler()
        else:
            self._watch = self.loop.call_later(self.timeout_keep_alive - idle_s, self._check_idle)

    def on_response_complete(self) -> None:
        self._waiting_since = self.loop.time()  # for the body of the next request, if that waited for this answer
        super().on_response_complete()

    # -- the connection ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # of TCP it is one
        super().connection_made(transport)
        self._waiting_since = self.loop.time()
        self._watch = self.loop.call_later(self.timeout_keep_alive, self._check_idle)

    def _hold(self, data: bytes) -> None:
        """Pipelined bytes wait for the answer before them; a client that sends on and on is not read any further."""
        self._held += data
        if len(self._held) > _MOST_HELD:
            self.flow.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._held = b""
        if self._call is not None:
            if self._route.waits:
                self._call.cancel()
            # It runs on, counted where uvicorn counts what runs on: its limit holds, a shutdown waits for it.
            left = cast("asyncio.Task[None]", self._call)
            self.tasks.add(left)
            left.add_done_callback(self.tasks.discard)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server stops: what is being answered is answered, then the connection closes."""
        if self._call is None:
            super().shutdown()
        else:
            self._closing = True


def _crowded() -> ASGI3Application:
    """uvicorn's answer at its limit, and when to come again."""
    answer = PlainTextResponse("Service Unavailable", 503, {"connection": "close", **RETRY_AFTER})
    return cast("ASGI3Application", answer)


def _judge(headers: bytes, token: Token, body_limit: int) -> int:
    seen: dict[bytes, bytes] = {}
    for line in headers.split(b"\r\n"):
        header = _HEADER.fullmatch(line)
        name = header[1].lower() if header is not None else b""
        if header is None or name not in _KNOWN or name in seen:
            return _NOT_HOT
        seen[name] = header[2]
    length = seen.get(b"content-length", b"0")
    plain = re.fullmatch(rb"0|[1-9][0-9]{0,8}", length) is not None
    if b"host" not in seen or not plain or seen.get(b"connection", b"keep-alive").lower() != b"keep-alive":
        return _NOT_HOT
    return int(length) if int(length) <= body_limit and token.admits(seen.items()) else _NOT_HOT


def _lines(headers: ServerHeaders) -> list[bytes]:
    return [b"%b: %b\r\n" % header for header in headers]
