"""The protocol before the parser and uvicorn's parser are one server: the same bytes get the same answers in the same
order, whatever they are and however they are cut."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import re
import socket
import struct
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import pytest
import uvicorn
import uvloop
from hypothesis import example, given, settings
from hypothesis import strategies as st
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from actors import actor, method
from runtime_api import Runtime
from runtime_api.edge import Token
from runtime_api.hotpath import HotPath
from runtime_api.hotprotocol import MOST_FRAMING, HotCalls, hot_protocol
from runtime_api.hotroutes import HotRoutes
from runtime_api.problems import TABLE, Problem
from runtime_api.server import Server
from runtime_api.settings import load_settings
from runtime_api.startup import bind
from runtime_api.workflows import WorkflowApi
from workflow import activity, wait_event, workflow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

_DATE = re.compile(rb"date: [^\r]*\r\n")
# Times and random ids. A time without milliseconds is shorter.
_CHANGING = re.compile(rb"\d{4}-\d\d-\d\dT[^\"]*Z|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LENGTH_OF_TIMES = re.compile(
    rb"content-length: \d+(?=\r\n(?:[^\r]+\r\n)*\r\n\{\"instanceID\":\"[^\"]*\",\"workflowName)"
)
_BODY_LIMIT = 5000
_PATIENCE_S = 20.0
_doors: dict[str, asyncio.Event] = {}


@actor(mailbox_limit=1)
class Part:
    """One method for each way a call can go."""

    total: int = 0

    @method
    async def add(self, by: int = 1) -> int:
        self.total += by
        return self.total

    @method
    async def echo(self, value: Any) -> Any:
        return value

    @method
    async def fill(self, size: int) -> str:
        return "x" * size

    @method
    async def fail(self, text: str) -> None:
        raise ValueError(text)

    @method
    async def unserialisable(self) -> Any:
        return object()

    @method
    async def enter(self, door: str) -> str:
        await _doors[door].wait()
        return door

    @method
    async def enter_and_fail(self, door: str) -> str:
        await _doors[door].wait()
        raise ValueError(door)


@activity
async def twice(number: int) -> int:
    return number * 2


@workflow
async def doubling(number: int = 1) -> int:
    return await twice(await twice(number))


@workflow
async def breaking(text: str) -> None:
    raise LookupError(text)


@workflow
async def waiting(value: Any) -> Any:
    return [value, await wait_event("go")]


# -- a server in the test's loop, and clients that see how far it is ---------------------------------------------------


def _watched(protocol: type[HttpToolsProtocol]) -> type[HttpToolsProtocol]:
    """`protocol`, telling how many bytes it was given, and whether anything is left to do about them."""

    class Watched(protocol):  # type: ignore[valid-type,misc]  # a class made at run time
        received = 0
        hot_answers = 0

        def data_received(self, data: bytes) -> None:
            self.received += len(data)
            super().data_received(data)

        def _expect_more(self) -> None:
            self.hot_answers += 1
            self.received -= len(self._held)
            super()._expect_more()

        def settled(self, sent: int) -> bool:
            """All that was sent is here, and answered as far as it can be without more."""
            if self.transport.is_closing():
                return True
            waits_for_more = self.cycle is None or self.cycle.response_complete
            if not waits_for_more:
                waits_for_more = self.cycle.more_body and not self.cycle.message_event.is_set()
            in_hand = self.pipeline or getattr(self, "_call", None) is not None
            return self.received == sent and waits_for_more and not in_hand

    return Watched


async def until(condition: Callable[[], bool], times: int = 1) -> None:
    """Let the loop turn until `condition` has held for `times` turns on end."""
    async with asyncio.timeout(_PATIENCE_S):
        held = 0
        while held < times:
            held = held + 1 if condition() else 0
            await asyncio.sleep(0)


class Client:
    def __init__(self, server: uvicorn.Server, connection: socket.socket, protocol: Any) -> None:
        self.server, self.protocol = server, protocol
        self._connection = connection
        self.sent = 0

    async def send(self, data: bytes, *, answered: bool = True) -> None:
        """Send, and wait until the server has it; with `answered`, until it has done what it can about it."""
        if self.protocol.transport.is_closing():
            return
        await self.push(data)
        protocol = self.protocol
        await until(lambda: protocol.received >= self.sent or protocol.transport.is_closing())
        if answered:
            await self.settle()

    async def push(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._connection, data)
        self.sent += len(data)

    async def settle(self) -> None:
        await until(lambda: bool(self.protocol.settled(self.sent)), times=10)

    async def read(self, size: int) -> bytes:
        found = b""
        # A server that closes with bytes unread resets the connection; what it said before is read first.
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(_PATIENCE_S):
                while len(found) < size:
                    chunk = await asyncio.get_running_loop().sock_recv(self._connection, min(65536, size - len(found)))
                    if not chunk:
                        break
                    found += chunk
        return found

    async def rest(self) -> bytes:
        """Everything until the server closes."""
        return await self.read(1 << 40)

    async def all_answers(self) -> bytes:
        """Everything, once nothing more is to come; then the connection is closed."""
        await self.settle()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
        return _CHANGING.sub(b"X", _LENGTH_OF_TIMES.sub(b"", _DATE.sub(b"", await self.rest())))

    async def read_answer(self) -> bytes:
        """The body of one answer of known length."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await self.read(1)
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None
        return await self.read(int(length[1]))

    def end(self) -> None:
        self._connection.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def close(self) -> None:
        self._connection.close()


async def connect(server: uvicorn.Server) -> Client:
    address = server.servers[0].sockets[0].getsockname()
    connection = socket.socket()
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    await asyncio.get_running_loop().sock_connect(connection, address)
    mine = connection.getsockname()

    def found() -> list[Any]:
        return [p for p in server.server_state.connections if cast("Any", p).client == mine]

    await until(lambda: bool(found()))
    return Client(server, connection, found()[0])


@contextlib.asynccontextmanager
async def connected(server: uvicorn.Server) -> AsyncIterator[Client]:
    client = await connect(server)
    try:
        yield client
    finally:
        client.close()


@contextlib.asynccontextmanager
async def running(server: uvicorn.Server) -> AsyncIterator[uvicorn.Server]:
    with bind("127.0.0.1", 0) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await until(lambda: server.started or serving.done())
            yield server
        finally:
            server.should_exit = True
            await serving


@contextlib.asynccontextmanager
async def serving(hot: bool = True, keep_alive_s: float = 75.0, **changes: Any) -> AsyncIterator[Server]:
    """The server of `mecha run`; without `hot`, uvicorn's protocol serves everything."""
    wanted = {"port": 0, "store": "memory://", "drain": 5.0, "max_body_size": _BODY_LIMIT, "api_token": None, **changes}
    async with Runtime([Part, twice, doubling, breaking, waiting], store="memory://", app_id="test") as runtime:
        server = Server(runtime, load_settings(wanted))
        chosen = cast("type[HttpToolsProtocol] | str", server.config.http if hot else HttpToolsProtocol)
        server.config.http = chosen if isinstance(chosen, str) else _watched(chosen)
        server.config.timeout_keep_alive = keep_alive_s  # type: ignore[assignment]  # whole seconds, it says
        async with running(server):
            yield server


@contextlib.contextmanager
def _loop(factory: Callable[[], asyncio.AbstractEventLoop]) -> Iterator[asyncio.Runner]:
    """What fails in a callback, or a failed call nobody looked at, fails the module."""
    overlooked: list[dict[str, Any]] = []
    with asyncio.Runner(loop_factory=factory) as made:
        made.get_loop().set_exception_handler(lambda _, report: overlooked.append(report))
        yield made
        gc.collect()
    assert overlooked == []


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """The loop that `mecha run` uses."""
    with _loop(uvloop.new_event_loop) as made:
        yield made


class Pair:
    """A server with the short cut and one without."""

    def __init__(self, runner: asyncio.Runner, hot: Server, general: Server) -> None:
        self.runner, self.hot, self.general = runner, hot, general

    def told(self, segments: Sequence[bytes], waits: Sequence[bool] = ()) -> tuple[bytes, bytes, int]:
        """What each says to the segments, and how many answers the short cut gave."""

        async def talk() -> tuple[bytes, bytes, int]:
            (hot, count), (general, _) = [await _say(s, segments, waits) for s in (self.hot, self.general)]
            return hot, general, count

        return self.runner.run(talk())


async def _say(server: Server, segments: Sequence[bytes], waits: Sequence[bool]) -> tuple[bytes, int]:
    async with connected(server) as client:
        for at, segment in enumerate(segments):
            await client.send(segment, answered=at < len(waits) and waits[at])
        answers = await client.all_answers()
        return answers, getattr(client.protocol, "hot_answers", 0)


@pytest.fixture(scope="module", params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    stack = contextlib.AsyncExitStack()

    async def begin(runner: asyncio.Runner) -> Pair:
        hot = await stack.enter_async_context(serving())
        general = await stack.enter_async_context(serving(hot=False))
        return Pair(runner, hot, general)

    with _loop(request.param) as runner:
        yield runner.run(begin(runner))
        runner.run(stack.aclose())


# -- what is said to them ----------------------------------------------------------------------------------------------


def call(method: bytes = b"add", body: bytes = b"1", *headers: bytes, line: bytes = b"", length: bool = True) -> bytes:
    """A request that is hot unless `headers` or `line` make it something else."""
    first = line or b"POST /v1.0/actors/Part/ID/method/" + method + b" HTTP/1.1"
    lines = [first, b"host: x", *headers]
    if length:
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join([*lines, b"", body])


def read(key: bytes, store: bytes = b"statestore") -> bytes:
    return b"GET /v1.0/state/%b/%b HTTP/1.1\r\nhost: x\r\n\r\n" % (store, key)


def start(name: bytes, instance: bytes = b"", body: bytes = b"1", prefix: bytes = b"v1.0") -> bytes:
    query = b"?instanceID=" + instance if instance else b""
    return call(line=b"POST /%b/workflows/dapr/%b/start%b HTTP/1.1" % (prefix, name, query), body=body)


def run(name: bytes, instance: bytes, body: bytes = b"1") -> bytes:
    return call(line=b"POST /v1.0/mecha/workflows/%b/run?instanceID=%b HTTP/1.1" % (name, instance), body=body)


def result(instance: bytes, timeout: bytes = b"") -> bytes:
    query = b"?timeout=" + timeout if timeout else b""
    return b"GET /v1.0/mecha/workflows/%b/result%b HTTP/1.1\r\nhost: x\r\n\r\n" % (instance, query)


def status(instance: bytes, prefix: bytes = b"v1.0") -> bytes:
    return b"GET /%b/workflows/dapr/%b HTTP/1.1\r\nhost: x\r\n\r\n" % (prefix, instance)


def raise_event(instance: bytes, event: bytes = b"go", body: bytes = b"2") -> bytes:
    return call(line=b"POST /v1.0/workflows/dapr/%b/raiseEvent/%b HTTP/1.1" % (instance, event), body=body)


HEALTH = b"GET /v1.0/healthz HTTP/1.1\r\nhost: x\r\n\r\n"
CHUNKED = call(b"add", b"1\r\n5\r\n0\r\n\r\n", b"transfer-encoding: chunked", length=False)
_TARGET = b"/v1.0/actors/Part/ID/method/add"

_ITEMS = b'[{"key": "ID", "value": {"a": [1]}}, {"key": "text", "value": "\xc3\xa9"}, {"key": "null", "value": null}]'
SAVE = call(line=b"POST /v1.0/state/statestore HTTP/1.1", body=_ITEMS)

HOT = [
    call(),
    call(b"add", b""),
    call(b"add", b"", length=False),
    call(line=b"PUT " + _TARGET + b" HTTP/1.1"),
    call(b"echo", b'{"a": [1, "\xc3\xa9"]}', b"content-type: application/json", b"accept: */*", b"user-agent: x y/1 z"),
    call(b"echo", b"\r\n\r\n1", b"ACCEPT-Encoding:gzip", b"Connection: Keep-Alive", b"accept-language:  \t en"),
    call(b"add", b"1", b"content-length:\t1", length=False),
    call(b"add", b"1", b"dapr-api-token: none is needed"),
    call(b"add", b'"x"'),
    call(b"add", b"{"),
    call(b"add", b"\xff\x00"),
    call(b"echo", b'"\\ud800"'),
    call(b"fail", b'"text"'),
    call(b"unserialisable", b""),
    call(b"nix"),
    call(b"fill", b"100000"),
    call(b"fill", b"0"),
    call(b"echo", b'"' + b"x" * (_BODY_LIMIT - 2) + b'"'),
    call(line=b"POST /v1.0/actors/Part/" + b"i" * 1024 + b"/method/add HTTP/1.1"),
    call(line=b"POST /v1.0/actors/Part/" + b"i" * 1025 + b"/method/add HTTP/1.1"),
    call(line=b"POST /v1.0/actors/Part/~ID$!*'(),;=:@&_-./method/... HTTP/1.1"),
    call(line=b"POST /v1.0/actors/Part/ID/method/$delete HTTP/1.1"),
    call(line=b"POST /v1.0/actors/Part/ID/method/_private HTTP/1.1"),
    call(line=b"POST /v1.0/actors/Part/ID/method/on_activate HTTP/1.1"),
    read(b"ID"),
    read(b"text"),
    read(b"null"),
    read(b"nothing"),
    read(b"..."),
    read(b"k" * 2000),
    call(line=b"GET /v1.0/state/statestore/ID HTTP/1.1"),
    read(b"ID?consistency=strong&metadata.a=%2f%"),
    call(line=b"GET " + _TARGET + b" HTTP/1.1"),
    call(line=b"DELETE " + _TARGET + b" HTTP/1.1"),
    call(line=b"POST " + _TARGET + b"?a=1&b=/.. HTTP/1.1"),
    # Nothing here ends the instance I or changes what is shown of it, so any order of them is answered alike.
    start(b"waiting", b"I"),
    start(b"waiting", b"I", b'{"a": "\xc3\xa9"}', b"v1.0-beta1"),
    start(b"waiting", b"I", b"text \xff", b"v1.0-alpha1"),
    start(b"waiting", b"i" * 65),
    start(b"doubling", b"I-2", b'"x"'),
    start(b"nix", b"I-2"),
    start(b"nix"),
    status(b"I"),
    status(b"I", b"v1.0-beta1"),
    status(b"I-2"),
    status(b"I.x"),
    raise_event(b"I", b"other"),
    raise_event(b"I-2"),
    result(b"I", b"1ms"),
    result(b"I", b"0.001"),
    result(b"I", b"later"),
    result(b"I-2"),
    run(b"nix", b"I-2"),
    run(b"doubling", b"i" * 65),
]

NOT_HOT = [
    # framing
    CHUNKED,
    call(b"add", b"1\r\n5\r\n0\r\n\r\n", b"Transfer-Encoding: chunked"),
    call(b"add", b"1", b"transfer-encoding: identity"),
    call(b"add", b"1", b"transfer-encoding : chunked"),
    call(b"add", b"1", b"content-length: 1"),
    call(b"add", b"1", b"content-length: 0"),
    call(b"add", b"1", b"content-length: 2"),
    call(b"add", b"1", b"Content-Length : 1"),
    *(
        call(b"add", b"1", b"content-length:" + value, length=False)
        for value in (b"+1", b" 01", b"-1", b"1 ", b" 1,1", b"0x1", b"", b" 1 1", b"1_0", b"\xb2", b"1\x00")
    ),
    *(
        call(b"add", b"1", b"content-length: " + value, length=False)
        for value in (b"5001", b"99999999", b"9" * 10, b"18446744073709551616", b"9" * 400)
    ),
    call(b"add", b"", b"content-length: 1", length=False),
    # headers
    call(b"add", b"1", b" folded: 1"),
    call(b"add", b"1", b"accept: a", b" b"),
    call(b"add", b"1", b"accept: a", b"\tb"),
    call(b"add", b"1", b"host: y"),
    call(b"add", b"1", b"accept: a", b"accept: b"),
    call(b"add", b"1", b"user-agent: \xff"),
    call(b"add", b"1", b"user-agent: \x00"),
    call(b"add", b"1", b"user-agent: \x7f"),
    call(b"add", b"1", b"user-agent: a\rb"),
    call(b"add", b"1", b"user-agent: a\nb: c"),
    call(b"add", b"1", b"user-agent: a\tb"),
    call(b"add", b"1", b"user-agent:"),
    call(b"add", b"1", b"user-agent : a"),
    call(b"add", b"1", b"user\xc3\xa9: a"),
    call(b"add", b"1", b"no colon"),
    call(b"add", b"1", b": nameless"),
    call(b"add", b"1", b"accept: " + b"a" * 5000),
    call(b"add", b"1", b"x-unknown: 1"),
    call(b"add", b"1", b"idempotency-key: k"),
    call(b"add", b"1", b"mecha-timeout: never"),
    call(b"add", b"1", b"baggage: bad"),
    call(b"add", b"1", b"expect: 100-continue"),
    call(b"add", b"1", b"connection: close"),
    call(b"add", b"1", b"connection: keep-alive, close"),
    call(b"add", b"1", b"connection: upgrade", b"upgrade: h2c"),
    call(b"add", b"1", b"connection: upgrade", b"upgrade: websocket"),
    b"POST " + _TARGET + b" HTTP/1.1\r\ncontent-length: 1\r\n\r\n1",
    b"POST " + _TARGET + b" HTTP/1.1\r\nhost:\r\ncontent-length: 1\r\n\r\n1",
    b"POST " + _TARGET + b" HTTP/1.1\r\n\r\n",
    b"POST " + _TARGET + b" HTTP/1.1\nhost: x\ncontent-length: 1\n\n1",
    b"POST " + _TARGET + b" HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\n1",
    b"POST " + _TARGET + b" HTTP/1.1\r\nhost: x\r\ncontent-length: 1\n\r\n1",
    # the request line
    *(
        call(line=line)
        for line in (
            b"HEAD " + _TARGET + b" HTTP/1.1",
            b"PATCH " + _TARGET + b" HTTP/1.1",
            b"OPTIONS * HTTP/1.1",
            b"CONNECT x:1 HTTP/1.1",
            b"post " + _TARGET + b" HTTP/1.1",
            b"POST  " + _TARGET + b" HTTP/1.1",
            b"POST " + _TARGET + b"  HTTP/1.1",
            b"POST " + _TARGET + b" HTTP/1.0",
            b"POST " + _TARGET + b" HTTP/1.2",
            b"POST " + _TARGET + b" HTTP/2.0",
            b"POST " + _TARGET + b" http/1.1",
            b"POST " + _TARGET + b" HTTP/1.1 ",
            b"POST " + _TARGET,
            b"POST http://x" + _TARGET + b" HTTP/1.1",
            b"POST /" + _TARGET + b" HTTP/1.1",
            b"POST " + _TARGET + b"/ HTTP/1.1",
            b"POST " + _TARGET + b"#a HTTP/1.1",
            b"POST /v1.0/actors/Part/../method/add HTTP/1.1",
            b"POST /v1.0/actors/Part/./method/add HTTP/1.1",
            b"POST /v1.0/actors/Part/ID/method/.. HTTP/1.1",
            b"POST /v1.0/actors/Part/ID/method/a/b HTTP/1.1",
            b"POST /v1.0/actors/Part/ID%20/method/add HTTP/1.1",
            b"POST /v1.0/actors/Part/a+b/method/add HTTP/1.1",
            b"POST /v1.0/actors/Part/%zz/method/add HTTP/1.1",
            b"POST /v1.0/actors/Part/\xc3\xa9/method/add HTTP/1.1",
            b"POST /v1.0/actors/Nobody/ID/method/add HTTP/1.1",
            b"POST /v1.0/actors/mecha.workflow/ID/method/pause HTTP/1.1",
        )
    ),
    b"\r\n" + call(),
    b"\n" + call(),
    b" " + call(),
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\x00",
    HEALTH,
    SAVE,
    read(b"k", b"nowhere"),
    read(b".."),
    read(b"a%7C%7Cb"),
    read(b"a||b"),
    read(b"k").replace(b"GET", b"HEAD"),
    read(b"k").replace(b"GET", b"DELETE"),
    read(b"k").replace(b"\r\n\r\n", b"\r\nif-match: 1\r\n\r\n"),
    read(b"k?a#b"),
    read(b"k??"),
    start(b"nix", b"a.b"),
    start(b"nix", b"I&instanceID=J"),
    start(b"nix", b"I&start=1s"),
    start(b"nix", prefix=b"v1.1"),
    start(b"nix").replace(b"POST", b"PUT"),
    result(b"nix", b"1%20s"),
    result(b"nix", b"1s&timeout=2s"),
    status(b"nix?appID=other"),
    status(b".."),
]


@pytest.mark.parametrize("request_", HOT, ids=range(len(HOT)))
def test_hot_requests(pair: Pair, request_: bytes) -> None:
    """Each is answered from the short cut, as the general path answers it; and so is the next."""
    pair.told([SAVE], [True])
    hot, general, count = pair.told([request_, call()], [True])
    assert hot == general
    assert count == 2


@pytest.mark.parametrize("request_", NOT_HOT, ids=range(len(NOT_HOT)))
def test_other_requests(pair: Pair, request_: bytes) -> None:
    """Each goes to the parser, whatever it makes of it, and whether or not it is the first of its connection."""
    hot, general, count = pair.told([request_], [True])
    assert (hot, count) == (general, 0)
    hot, general, _ = pair.told([call(), request_, call(), HEALTH], [True, True])
    assert hot == general


def test_any_cut(pair: Pair) -> None:
    """Requests in two segments, wherever they are cut, are answered in their order."""
    for at in range(1, len(call() + call() + HEALTH), 2):
        request = (call() + call(b"add", b"2") + HEALTH).replace(b"ID", b"%d" % at)
        hot, general, _ = pair.told([request[:at], request[at:]], [at % 4 == 1])
        assert hot == general
        assert re.fullmatch(rb"HTTP/1.1 200 [^{]*\r\n\r\n1HTTP/1.1 200 [^{]*\r\n\r\n3HTTP/1.1 204 [^{]*\r\n\r\n", hot)


_requests = st.sampled_from([*HOT, *NOT_HOT])
_PIECES = [b"\r\n", b"\r", b"\n", b"\0", b" ", b"\t", b":", b"\xff", b"%", b"/", b"0", b"1", b"+", b"-", b",", b"\x7f"]
_LINES = [b"host: x\r\n", b"content-length: 1\r\n", b"transfer-encoding: chunked\r\n", b"connection: close\r\n"]
_insertions = st.sampled_from([*_PIECES, *_LINES])


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[bytes], list[bool]]:
    """Requests, some bytes of them changed, in segments; and whether the client waits for answers after each."""
    data = bytearray(re.sub(rb"\bID\b", b"id", b"".join(draw(st.lists(_requests, min_size=1, max_size=4)))))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, min(len(data), 400)))
        data[at : at + draw(st.integers(0, 2))] = draw(_insertions | st.just(b""))
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(data) - 1)), max_size=4)))
    segments = [bytes(data[a:b]) for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b]
    return segments, draw(st.lists(st.booleans(), min_size=len(segments), max_size=len(segments)))


@settings(deadline=None, max_examples=120)
@given(conversations())
@example(([call() + HEALTH[:10], HEALTH[10:] + call()], [False, False]))
@example(([call(), call(), HEALTH, CHUNKED, call()], [False] * 5))
def test_any_conversation(pair: Pair, conversation: tuple[list[bytes], list[bool]]) -> None:
    """Whatever is sent, changed and cut at random, both servers say the same."""
    hot, general, _ = pair.told(*conversation)
    assert hot == general


def test_workflow_from_start_to_result(pair: Pair) -> None:
    """What depends on how far a workflow is, step by step, is answered alike; all of it by the short cut."""
    steps = [
        start(b"waiting", b"W"),
        raise_event(b"W"),
        result(b"W"),
        status(b"W"),
        raise_event(b"W"),
        start(b"breaking", b"W-2", b'"gone"'),
        result(b"W-2", b"10s"),
        status(b"W-2"),
        run(b"doubling", b"W-3"),
    ]
    hot, general, count = pair.told(steps, [True] * len(steps))
    assert hot == general
    assert count == len(steps)
    assert b'"output":[1,2]' in hot
    assert b'"output":4' in hot


def test_counted_alike(pair: Pair) -> None:
    """Answers from the short cut count as requests of the server."""
    before = [server.server_state.total_requests for server in (pair.hot, pair.general)]
    pair.told([call(), HEALTH, call(b"fail", b'"a"')], [True, True, True])
    after = [server.server_state.total_requests for server in (pair.hot, pair.general)]
    assert [b - a for a, b in zip(before, after, strict=True)] == [3, 3]


# -- errors ------------------------------------------------------------------------------------------------------------

_TEXT = "é\ud800 \x00 'text'"


def _errors() -> list[Exception]:
    """One of each kind that has a line in the table, and some that have none."""
    made = [row.error.__new__(row.error, _TEXT) for row in TABLE]
    for error in made:
        error.instance_id = "i"  # type: ignore[attr-defined]  # what one text of the table shows
    return [
        *made,
        Problem(418, "ERR_X", _TEXT, details=[{"a": 1}], retry=True),
        KeyError(_TEXT),
        ExceptionGroup("g", made[:1]),
    ]


def test_errors(runner: asyncio.Runner, caplog: pytest.LogCaptureFixture) -> None:
    """Every error is told in the same bytes by the short cut and by the ASGI application; bugs are logged by both."""
    errors = _errors()

    def invoke(_: str, which: str, *__: object) -> asyncio.Future[bytes]:
        future = asyncio.get_running_loop().create_future()
        future.set_exception(errors[int(which)])
        return future

    async def read_state(_: str, which: str) -> Any:
        raise errors[int(which)]

    async def unreachable(*_: object) -> None:
        raise AssertionError

    class Client:
        """What the workflow routes ask."""

        async def get(self, which: str) -> Any:
            raise errors[int(which)]

    runtime = cast("Runtime", SimpleNamespace(workflows=Client(), app_id="test"))
    routes = HotRoutes({"Part"}, invoke, read_state, WorkflowApi(runtime))

    async def told(http: type[HttpToolsProtocol]) -> list[tuple[bytes, int]]:
        app = HotPath(unreachable, routes, Token(None), _BODY_LIMIT)
        config = uvicorn.Config(
            app, http=_watched(http), ws="none", lifespan="off", loop="none", log_config=None, access_log=False
        )
        found = []
        async with running(uvicorn.Server(config)) as server:
            for at in range(len(errors)):
                caplog.clear()
                async with connected(server) as client:
                    await client.send(call().replace(b"ID", b"%d" % at))
                    await client.send(read(b"%d" % at))
                    await client.send(status(b"%d" % at))
                    answer = await client.all_answers()
                found.append((answer, len([r for r in caplog.records if r.name == "mecha.http"])))
        return found

    hot = runner.run(told(hot_protocol(HotCalls(routes, Token(None), _BODY_LIMIT))))
    general = runner.run(told(HttpToolsProtocol))
    assert hot == general
    assert [logged for _, logged in hot] == [0] * (len(errors) - 2) + [3, 3]
    assert len({answer[:13] for answer, _ in hot}) > 6


# -- calls under way ---------------------------------------------------------------------------------------------------


@pytest.fixture
def door() -> Iterator[bytes]:
    """The name of a door of this test's own. `enter` waits for it, in the hot path's hands."""
    name = uuid4().hex
    _doors[name] = asyncio.Event()
    yield name.encode()
    del _doors[name]


def enter(door: bytes, method: bytes = b"enter") -> bytes:
    return call(method, b'"%b"' % door)


def bodies_of(answers: bytes) -> list[bytes]:
    """Of answers of known length."""
    found = []
    while answers:
        head, _, answers = answers.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        size = int(length[1]) if length is not None else 0
        found.append(answers[:size])
        answers = answers[size:]
    return found


def test_what_comes_meanwhile_waits(runner: asyncio.Runner, door: bytes) -> None:
    """Bytes that arrive during a call are looked at after its answer, in their order: hot, not hot, in pieces."""

    async def talk() -> None:
        async with serving() as server, connected(server) as client:
            await client.send(enter(door), answered=False)
            for segment in (call(b"add", b"2"), HEALTH[:9], HEALTH[9:] + CHUNKED[:-4], CHUNKED[-4:], call()[:30]):
                await client.send(segment, answered=False)
            assert client.protocol.hot_answers == 0
            _doors[door.decode()].set()
            await client.send(call()[30:])
            await client.send(call())
            assert bodies_of(await client.all_answers()) == [b'"%b"' % door, b"2", b"", b"7", b"8", b"9"]
            assert client.protocol.hot_answers == 2

    runner.run(talk())


def test_flood_during_a_call(runner: asyncio.Runner, door: bytes) -> None:
    """A client that sends on and on during a call is not read any further; then all of it is answered."""

    async def talk() -> None:
        async with serving() as server, connected(server) as client:
            await client.send(enter(door), answered=False)
            many, body = 400, b'"%b"' % (b"x" * 4000)
            flood = asyncio.create_task(client.send(call(b"echo", body) * many, answered=False))
            await until(lambda: bool(client.protocol.flow.read_paused))
            await until(lambda: not client.protocol.transport.is_reading(), times=50)
            assert client.protocol.received < 1 << 20 < len(body) * many
            _doors[door.decode()].set()
            reading = asyncio.create_task(client.rest())
            await flood
            await client.settle()
            client.end()
            assert bodies_of(await reading) == [b'"%b"' % door, *[body] * many]

    runner.run(talk())


def test_slow_reader(runner: asyncio.Runner) -> None:
    """To a client that takes no answers few are written; once it reads, it gets all, in their order."""

    async def talk() -> None:
        async with serving() as server, connected(server) as client:
            sizes: list[int] = []
            more = range(1, 10)
            while not client.protocol.flow.write_paused:
                sizes.append(1_000_000 + len(sizes))
                await client.send(call(b"fill", b"%d" % sizes[-1]))
            hot = client.protocol.hot_answers
            assert hot == len(sizes)
            await client.send(call(b"fill", b"%d" % more[0]), answered=False)
            await until(lambda: client.protocol.flow.write_paused, times=50)
            for size in more[1:]:
                await client.push(call(b"fill", b"%d" % size))
            await until(lambda: client.protocol.flow.write_paused, times=100)
            assert client.protocol.transport.get_write_buffer_size() < 2_000_000
            assert client.protocol.hot_answers == hot
            assert [len(await client.read_answer()) - 2 for _ in range(len(sizes) + len(more))] == [*sizes, *more]
            await client.send(call())
            assert await client.read_answer() == b"1"

    runner.run(talk())


def test_client_goes_away(runner: asyncio.Runner, door: bytes) -> None:
    """A call whose client is gone runs to its end, counted as running; nobody complains about its error."""

    async def talk() -> None:
        async with serving() as server:
            for method in (b"enter", b"enter_and_fail"):
                async with connected(server) as client:
                    await client.send(enter(door, method).replace(b"ID", method), answered=False)
                    await client.send(call() * 3, answered=False)
                await until(lambda: not server.server_state.connections)
            assert len(server.server_state.tasks) == 2
            _doors[door.decode()].set()
            await until(lambda: not server.server_state.tasks)
            async with connected(server) as client:
                await client.send(call())
                assert bodies_of(await client.all_answers()) == [b"1"]

    runner.run(talk())


def test_reset(runner: asyncio.Runner, door: bytes) -> None:
    """A connection that is reset in the middle of a call leaves nothing behind."""

    async def talk() -> None:
        async with serving() as server:
            async with connected(server) as client:
                await client.send(call())
                await client.send(enter(door), answered=False)
                client.reset()
            await until(lambda: not server.server_state.connections)
            _doors[door.decode()].set()
            await until(lambda: not server.server_state.tasks)

    runner.run(talk())


# -- long polls --------------------------------------------------------------------------------------------------------

_FOREIGN = b"x-unknown: 1\r\n"
_WAITING = [
    pytest.param(result(b"I-WAIT"), id="result"),
    pytest.param(run(b"waiting", b"I-WAIT"), id="run"),
    pytest.param(result(b"I-WAIT").replace(b"host", _FOREIGN + b"host"), id="result-asgi"),
    pytest.param(run(b"waiting", b"I-WAIT").replace(b"host", _FOREIGN + b"host"), id="run-asgi"),
    pytest.param(result(b"I-WAIT").replace(b"/v1.0", b"//v1.0"), id="result-general"),
    pytest.param(run(b"waiting", b"I-WAIT").replace(b"/v1.0", b"//v1.0"), id="run-general"),
]


async def _wait(client: Client, request: bytes) -> None:
    """Send a request that waits, and see that it does."""
    if request.startswith(b"GET"):
        await client.send(start(b"waiting", b"I-WAIT"))
        await client.read_answer()
    await client.send(request, answered=False)
    await until(lambda: _waits(client.server) == 1)


def _waits(server: uvicorn.Server) -> int:
    """How many clients wait for a workflow's end."""
    return len(cast("Any", server.config.app).routes._workflows._waits)


@pytest.mark.parametrize("request_", _WAITING)
def test_client_of_a_long_poll_goes_away(runner: asyncio.Runner, request_: bytes) -> None:
    """Nobody waits on for a client that has gone; the instance goes on."""

    async def talk() -> None:
        async with serving() as server:
            async with connected(server) as client:
                await _wait(client, request_)
            await until(lambda: not server.server_state.connections and not server.server_state.tasks)
            assert _waits(server) == 0
            async with connected(server) as client:
                await client.send(raise_event(b"I-WAIT"))
                await client.send(result(b"I-WAIT"))
                assert b'"output":[1,2]' in await client.all_answers()

    runner.run(talk())


@pytest.mark.parametrize("request_", _WAITING)
def test_shutdown_during_a_long_poll(runner: asyncio.Runner, request_: bytes) -> None:
    """A server that stops does not keep its clients waiting: they are told how far the instance is."""

    async def talk() -> None:
        async with serving() as server, connected(server) as client:
            await _wait(client, request_)
            server.stop()
            answer = await client.rest()
            assert answer.startswith(b"HTTP/1.1 202")
            assert b'"runtimeStatus":"RUNNING"' in answer

    runner.run(talk())


def test_run_whose_client_goes_at_once(runner: asyncio.Runner) -> None:
    """A client may leave before its start is durable: the instance is started all the same."""

    async def talk() -> None:
        async with serving() as server:
            async with connected(server) as client:
                await client.send(run(b"doubling", b"left"), answered=False)
            async with connected(server) as client:
                answers = b""
                while b"COMPLETED" not in answers:
                    await client.send(result(b"left"))
                    answers = await client.read_answer()

    runner.run(talk())


# -- limits ------------------------------------------------------------------------------------------------------------


def test_too_many_connections(runner: asyncio.Runner) -> None:
    """At the limit the answer is 503, with a time to come again, below it the short cut's."""

    async def talk() -> None:
        async with serving(max_connections=2) as server, connected(server) as client:
            await client.send(call())
            async with connected(server):
                await client.send(call())
            answers = await client.all_answers()
            assert bodies_of(answers) == [b"1", b"Service Unavailable"]
            assert b"\r\nretry-after: 1\r\n" in answers

    runner.run(talk())


def test_too_many_calls_left_behind(runner: asyncio.Runner, door: bytes) -> None:
    """Calls whose clients are gone count towards the limit, as those of the general path do."""

    async def talk() -> list[bytes]:
        async with serving(max_connections=3) as server:
            for at in range(3):
                async with connected(server) as client:
                    await client.send(enter(door).replace(b"ID", b"%d" % at), answered=False)
                await until(lambda: not server.server_state.connections)
            async with connected(server) as client:
                await client.send(call())
                _doors[door.decode()].set()
                return bodies_of(await client.all_answers())

    assert runner.run(talk()) == [b"Service Unavailable"]


_LONG = b"x" * 1000
_FLOODS = {
    "target": (b"GET /", _LONG),
    "headers": (b"GET /v1.0/healthz HTTP/1.1\r\nhost: x\r\n", b"x-y: " + _LONG + b"\r\n"),
    "one header": (b"GET /v1.0/healthz HTTP/1.1\r\nhost: ", _LONG),
    "trailers": (CHUNKED[:-2], b"x-y: " + _LONG + b"\r\n"),
    "one trailer": (CHUNKED[:-2] + b"x-y: ", _LONG),
    "a chunk's size": (CHUNKED[:-5], b"0" * 1000),
    "a chunk's extension": (CHUNKED[:-5] + b"0;", _LONG),
}


@pytest.mark.parametrize(("begin", "more"), _FLOODS.values(), ids=_FLOODS)
def test_what_is_no_body_is_bounded(runner: asyncio.Runner, begin: bytes, more: bytes) -> None:
    """A client that never ends its target, headers or trailers is told so and cut off, before it fills the memory."""

    async def talk() -> None:
        async with serving() as server, connected(server) as client:
            await client.send(begin, answered=False)
            with contextlib.suppress(OSError):
                while not client.protocol.transport.is_closing():
                    assert client.sent < 4 * MOST_FRAMING
                    await client.send(more, answered=False)
            await until(lambda: not server.server_state.connections)
            if begin.startswith(b"GET"):
                assert b"ERR_HEAD_TOO_LARGE" in await client.rest()

    runner.run(talk())


@pytest.mark.parametrize("size", [MOST_FRAMING, MOST_FRAMING + 1, 2 * MOST_FRAMING])
def test_a_target_that_is_too_long_is_told_so(runner: asyncio.Runner, size: int) -> None:
    """Also when it comes at once: the parser takes it in, and then finds that it does not read such ones."""

    async def talk() -> None:
        async with serving() as server, connected(server) as client:
            await client.send(b"GET /" + b"x" * (size - 1) + b" HTTP/1.1\r\nhost: x\r\n\r\n", answered=False)
            answer = await client.rest()
            assert answer.startswith(b"HTTP/1.1 431")
            assert b"ERR_HEAD_TOO_LARGE" in answer

    runner.run(talk())


def test_bodies_in_the_smallest_chunks(runner: asyncio.Runner) -> None:
    """What stands around a body does not count against it, however often it is cut."""

    async def talk() -> None:
        async with serving(max_body_size=1 << 20) as server, connected(server) as client:
            size = MOST_FRAMING // 2
            chunks = b'1\r\n"\r\n' + b"1\r\nx\r\n" * size + b'1\r\n"\r\n0\r\n\r\n'
            await client.send(call(b"echo", chunks, b"transfer-encoding: chunked", length=False))
            assert len(await client.read_answer()) == size + 2

    runner.run(talk())


def test_what_is_remembered_is_bounded() -> None:
    """Headers that are never the same twice do not fill the memory, and still get the right verdict."""
    calls = HotCalls(cast("HotRoutes", None), Token(None), _BODY_LIMIT)
    for at in range(5000):
        assert calls.content_length(b"host: x\r\nuser-agent: %d\r\ncontent-length: %d" % (at, at)) == at
        assert calls.content_length(b"host: x\r\nx-%d: 1" % at) < 0
    held = [value for value in vars(calls).values() if isinstance(value, dict)]
    assert [len(verdicts) <= 1024 for verdicts in held] == [True]


def test_long_heads_are_not_remembered(runner: asyncio.Runner) -> None:
    """What is remembered is bounded in bytes, too: a long block of headers never gets there."""

    async def talk() -> None:
        async with serving() as server, connected(server) as client:
            asked: list[bytes] = []
            judge = client.protocol.calls.content_length

            def judged(headers: bytes) -> int:
                asked.append(headers)
                return int(judge(headers))

            client.protocol.calls.content_length = judged
            for size in (10, 3000, 4100, 50_000):
                await client.send(call(b"add", b"1", b"user-agent: " + b"a" * size))
            assert bodies_of(await client.all_answers()) == [b"1", b"2", b"3", b"4"]
            assert [len(headers) // 1000 for headers in asked] == [0, 3]

    runner.run(talk())


# -- when it is off ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["info", "warning", "error"])
def test_access_log(
    runner: asyncio.Runner, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    """With the access log on, every call is in it, whatever else is logged: the short cut, which keeps none, is not
    used."""
    monkeypatch.setattr(logging.getLogger("uvicorn.access"), "propagate", True)

    async def talk() -> None:
        async with serving(access_log=True, log_level=level) as server, connected(server) as client:
            await client.send(call())
            await client.send(call())
            assert bodies_of(await client.all_answers()) == [b"1", b"2"]
            assert client.protocol.hot_answers == 0

    runner.run(talk())
    assert {
        record.getMessage().partition(" - ")[2] for record in caplog.records if record.name == "uvicorn.access"
    } == {'"POST /v1.0/actors/Part/ID/method/add HTTP/1.1" 200'}


def test_token(runner: asyncio.Runner) -> None:
    """With an API token there is no short cut past it: without it, or with another, the answer is 401, again and
    again."""

    async def talk() -> None:
        async with serving(api_token="secret") as server, connected(server) as client:
            for headers, answer in (
                ([b"dapr-api-token: secret"], b"0"),
                ([], b"invalid api token"),
                ([b"dapr-api-token: Secret"], b"invalid api token"),
                ([b"dapr-api-token: wrong", b"dapr-api-token: secret"], b"invalid api token"),
            ) * 2:
                await client.send(call(b"add", b"0", *headers))
                assert await client.read_answer() == answer
            assert client.protocol.hot_answers == 2

    runner.run(talk())


# -- time --------------------------------------------------------------------------------------------------------------

_SOON_S = 0.1
_SLOW = call(b"echo", b'6\r\n"slow"\r\n0\r\n\r\n', b"transfer-encoding: chunked", length=False)


@pytest.mark.parametrize(
    "requests", [[call()], [call(), call()], [HEALTH, call()], [call(), HEALTH], [call(), HEALTH, call()]]
)
def test_idle_connections_close(runner: asyncio.Runner, requests: list[bytes]) -> None:
    """After its last answer a connection that stays idle is closed, whoever gave the answers."""

    async def talk() -> None:
        async with serving(keep_alive_s=_SOON_S) as server, connected(server) as client:
            started = asyncio.get_running_loop().time()
            for request in requests:
                await client.send(request)
            assert len(bodies_of(await client.rest())) == len(requests)
            assert asyncio.get_running_loop().time() - started > _SOON_S * 0.9

    runner.run(talk())


@pytest.mark.parametrize("first", [call(), HEALTH, call() + HEALTH])
def test_busy_connections_stay(runner: asyncio.Runner, door: bytes, first: bytes) -> None:
    """A call that takes longer than a connection may be idle is answered; so is one whose body arrives that slowly."""

    async def a_while(server: uvicorn.Server, client: Client, meanwhile: bytes = b"") -> None:
        async with connected(server) as other:
            await other.send(call().replace(b"ID", b"other"))
            while not other.protocol.transport.is_closing():
                await client.send(meanwhile, answered=False)

    async def talk() -> None:
        async with serving(keep_alive_s=_SOON_S) as server, connected(server) as client:
            await client.send(first)
            await client.send(enter(door), answered=False)
            await client.send(_SLOW[:-5], answered=False)
            await a_while(server, client)
            _doors[door.decode()].set()
            await client.settle()
            await a_while(server, client, meanwhile=b"1\r\n \r\n")
            await client.send(_SLOW[-5:])
            assert bodies_of(await client.rest())[-2:] == [b'"%b"' % door, b'"slow"']

    runner.run(talk())


@pytest.mark.parametrize("beginning", [b"", b"\r\n", HEALTH[:1], HEALTH[:-2], call()[:30]])
@pytest.mark.parametrize("requests", [[], [call()], [HEALTH]])
def test_connections_whose_next_request_does_not_come_close(
    runner: asyncio.Runner, requests: list[bytes], beginning: bytes
) -> None:
    """Of a client that says nothing, or half of what makes a request, from the start or after others: it is not waited
    for without end, and gets no answer for it."""

    async def talk() -> None:
        async with serving(keep_alive_s=_SOON_S) as server, connected(server) as client:
            for request in requests:
                await client.send(request)
            await client.send(beginning)
            assert len(bodies_of(await client.rest())) == len(requests)
            await until(lambda: not server.server_state.connections)

    runner.run(talk())


@pytest.mark.parametrize("first", [b"", call(), HEALTH])
def test_connections_whose_next_request_never_ends_close(runner: asyncio.Runner, first: bytes) -> None:
    """A client that goes on with the head of a request, little by little, does not keep its connection by that."""

    async def talk() -> None:
        async with serving(keep_alive_s=_SOON_S) as server, connected(server) as client:
            await client.send(first + HEALTH[:-2])
            async with asyncio.timeout(_PATIENCE_S):
                while not client.protocol.transport.is_closing():
                    await client.send(b"x: y\r\n")
            assert len(bodies_of(await client.rest())) == (first != b"")

    runner.run(talk())


_TOO_LONG = call(body=b"1" * (_BODY_LIMIT + 1))


@pytest.mark.parametrize(
    ("unfinished", "answers"),
    [
        (SAVE[:-1], 0),
        (SAVE[: SAVE.index(b"\r\n\r\n") + 4], 0),
        (CHUNKED[:-5], 0),
        (CHUNKED[:-2] + b"x: y\r\n", 0),
        (_TOO_LONG[:-1000], 1),
    ],
    ids=["body", "no body", "chunks", "trailers", "body that was refused"],
)
@pytest.mark.parametrize("first", [b"", call(), HEALTH])
def test_connections_whose_body_does_not_go_on_close(
    runner: asyncio.Runner, first: bytes, unfinished: bytes, answers: int
) -> None:
    """Bodies that do not come to their end do not stay: what all bodies may have together is there for others."""

    async def talk() -> None:
        async with serving(keep_alive_s=_SOON_S) as server, connected(server) as client:
            await client.send(first)
            await client.send(unfinished[:-1])
            await client.send(unfinished[-1:])
            assert len(bodies_of(await client.rest())) == (first != b"") + answers
            await until(lambda: not server.server_state.connections and not server.server_state.tasks)
            assert cast("Any", server.config.app)._general._held == 0

    runner.run(talk())


@pytest.mark.parametrize("behind", [SAVE, HEALTH], ids=["body", "head"])
def test_what_is_behind_a_slow_answer_has_its_time(runner: asyncio.Runner, door: bytes, behind: bytes) -> None:
    """A pipelined request is not waited for while the answer in front of it is not given: its client may be waiting for
    that."""

    async def talk() -> None:
        async with serving(keep_alive_s=_SOON_S) as server, connected(server) as client:
            await client.send(enter(door).replace(b"host: x", b"host: x\r\nx-y: z") + behind[:-1], answered=False)
            async with connected(server) as other:
                await other.send(HEALTH)
                assert len(bodies_of(await other.rest())) == 1
            assert not client.protocol.transport.is_closing()
            _doors[door.decode()].set()
            assert await client.read_answer() == b'"%b"' % door
            await client.send(behind[-1:])
            assert len(bodies_of(await client.rest())) == 1

    runner.run(talk())


def test_what_follows_an_early_answer_is_bounded(runner: asyncio.Runner) -> None:
    """A client that goes on with a body that was refused is not read without end: as much as may be a body, then its
    connection ends. One that has less to say keeps it."""

    async def talk() -> None:
        async with serving() as server:
            async with connected(server) as client:
                await client.send(_TOO_LONG[:-1])
                await client.send(_TOO_LONG[-1:] + HEALTH)
                assert len(bodies_of(await client.all_answers())) == 2
            async with connected(server) as client:
                await client.send(call(b"add", b"", b"content-length: 1000000000000", length=False))
                assert b"ERR_BODY_TOO_LARGE" in await client.read_answer()
                while not client.protocol.transport.is_closing():
                    assert client.sent < 3 * _BODY_LIMIT
                    await client.send(b"1" * 100, answered=False)

    runner.run(talk())


# -- the end -----------------------------------------------------------------------------------------------------------


def test_shutdown_during_a_call(runner: asyncio.Runner, door: bytes) -> None:
    """The call is answered, the client told that the connection ends, what it sent behind it is not begun; the server
    exits."""

    async def talk() -> None:
        async with serving() as server, connected(server) as idle, connected(server) as client:
            await client.send(enter(door), answered=False)
            await client.send(call(), answered=False)
            server.stop()
            assert await idle.rest() == b""
            _doors[door.decode()].set()
            answer = await client.rest()
            assert b"\r\nconnection: close\r\n" in answer
            assert bodies_of(answer) == [b'"%b"' % door]
            await until(lambda: not server.server_state.connections)

    runner.run(talk())


def test_shutdown_is_told_in_errors(runner: asyncio.Runner, door: bytes) -> None:
    """A call that fails while the server stops gets its error, and the same farewell."""

    async def talk() -> None:
        async with serving() as server, connected(server) as client:
            await client.send(enter(door, b"enter_and_fail"), answered=False)
            server.stop()
            await until(lambda: bool(client.protocol._closing))
            _doors[door.decode()].set()
            answer = await client.rest()
            assert answer.startswith(b"HTTP/1.1 500")
            assert b"\r\nconnection: close\r\n\r\n{" in answer

    runner.run(talk())


@pytest.mark.parametrize("stuck", [SAVE[:-1], call()[:-1], call(b"fill", b"30000000")], ids=["body", "hot", "answer"])
def test_shutdown_does_not_wait_for_a_client_that_is_stuck(runner: asyncio.Runner, stuck: bytes) -> None:
    """The time for the end is that of all of it, also for who does not finish a request, or does not take an answer."""

    async def talk() -> None:
        loop = asyncio.get_running_loop()
        async with serving(drain=0.5) as server, connected(server) as client:
            await client.send(stuck, answered=False)
            await until(lambda: not client.protocol._call)
            server.stop()
            stopped_at = loop.time()
            await until(lambda: not server.server_state.connections)
            # Machines may be slow; uvicorn's time was five seconds more.
            assert loop.time() - stopped_at < 0.5 + 2.0

    runner.run(talk())


def test_shutdown_waits_for_calls_left_behind(runner: asyncio.Runner, door: bytes) -> None:
    """A call whose client is gone is waited for, too."""

    async def talk() -> None:
        async with serving() as server:
            async with connected(server) as client:
                await client.send(enter(door), answered=False)
            await until(lambda: not server.server_state.connections)
            left = asyncio.create_task(server.shutdown())
            await until(lambda: not server.servers[0].is_serving(), times=10)
            assert not left.done()
            _doors[door.decode()].set()
            await left

    runner.run(talk())
