"""Batches from host to host over a TCP connection of their own.

A call through Ray costs both ends together 0.5 ms or more of processor time, whatever it carries, and passes several
threads; a batch here costs a tenth of that, so it need not wait for others to fill it. Which host has which address is
asked through Ray, and so is whether one has ended: a broken connection says nothing of that.

Invariants:

- Nothing is taken from whoever does not know the secret of this process, which only processes of the cluster are told.
  (Batches are pickled: to take one is to run it.)
- What one sender sends is taken in its order. A connection that it makes anew ends the former one before anything is
  taken from the new one, and so does a batch that comes by the detour: batches that were left in the former were not
  acknowledged, and come again, saying so.
- A batch is acknowledged when it has been taken. One that is not may have been taken or not.

On the wire a frame is its length, eight bytes, and so many bytes. The first frame of a connection is the secret and the
sender's name, the others are batches. Each is answered by one byte.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import socket
import sys
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from actors.placement.hop import PeerUnsure

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

_TAKEN = b"\x06"
_LENGTH = 8
_SECRET = 32
_LONGEST_HELLO = 1024
_CONNECT_S = 2.0
# Longer than who connects waits for the answer, so a process that is late, not a stranger, is never shown out.
_HELLO_S = 10.0
# A door that could not be reached is tried again so much later; twice that the next time, up to the other. An attempt
# may hold up a batch for `_CONNECT_S`, and where a firewall drops what it does not let through, each does.
_TRY_AGAIN_S = 60.0
_LONGEST_PAUSE_S = 3600.0
_SPACING_S = 0.001
# On the detour a batch costs so much that it is to be shared by many.
_DETOUR_SPACING_S = 0.003
# A machine that has gone silent is given up after 5 + 3 * 2 s. One whose process is frozen answers for it, and is not,
# unless its buffers are full: what waits for room is given up after 11 s too, and comes again.
_KEEP_ALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 11_000}


class Address(NamedTuple):
    host: str
    port: int
    secret: bytes


class Door:
    """Where batches come in. `take(sender, batch)` is called for each, on the event loop; when it raises, the
    connection ends, and the batch comes again."""

    def __init__(self, take: Callable[[str, bytes], None]) -> None:
        self.take = take
        self._secret = secrets.token_bytes(_SECRET)
        self._server: asyncio.Server | None = None
        self._connections: set[_Incoming] = set()
        self._senders: dict[str, _Incoming] = {}
        self._is_shut = False

    async def open(self, host: str) -> Address:
        """Listen on a free port of this address of the machine. Raises `OSError`."""
        self._server = await asyncio.get_running_loop().create_server(lambda: _Incoming(self), host, 0)
        return Address(host, self._server.sockets[0].getsockname()[1], self._secret)

    def close(self) -> None:
        """Take nothing any more, of whoever is connected neither."""
        self._is_shut = True
        if self._server is not None:
            self._server.close()
        for incoming in tuple(self._connections):
            incoming.end()

    def enter(self, incoming: _Incoming) -> None:
        self._connections.add(incoming)
        if self._is_shut:  # it was accepted before
            incoming.end()

    def take_from_detour(self, sender: str, batch: bytes) -> None:
        """Take what came the other way. Its sender has given up his connection."""
        self._end_former(sender)
        self.take(sender, batch)

    def let_in(self, incoming: _Incoming, hello: bytes) -> str:
        """The sender's name. Raises `PermissionError`."""
        if not hmac.compare_digest(hello[:_SECRET], self._secret):
            raise PermissionError("a connection without the secret of this host")
        sender = hello[_SECRET:].decode()
        self._end_former(sender)
        self._senders[sender] = incoming
        return sender

    def _end_former(self, sender: str) -> None:
        """What is left in it comes again, by another way."""
        if (former := self._senders.get(sender)) is not None:
            former.end()

    def let_out(self, incoming: _Incoming, sender: str) -> None:
        self._connections.discard(incoming)
        if self._senders.get(sender) is incoming:
            del self._senders[sender]


class _Incoming(asyncio.Protocol):
    _transport: asyncio.Transport
    _patience: asyncio.TimerHandle

    def __init__(self, door: Door) -> None:
        self._door = door
        self._sender = ""
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # of TCP it is one
        self._transport = transport
        _keep_alive(transport)
        self._patience = asyncio.get_running_loop().call_later(_HELLO_S, self.end)
        self._door.enter(self)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        try:
            while (frame := self._next_frame(buffer)) is not None:
                self._take(frame)
        except PermissionError as error:
            log.warning("%s from %s", error, self._transport.get_extra_info("peername"))
            self.end()
        except Exception:
            log.exception("a batch of %s could not be taken", self._sender)
            self.end()

    def _next_frame(self, buffer: bytearray) -> bytes | None:
        if len(buffer) < _LENGTH:
            return None
        size = int.from_bytes(buffer[:_LENGTH])
        if not self._sender and size > _LONGEST_HELLO:
            raise PermissionError("a connection that is not a host's")
        if len(buffer) < (end := _LENGTH + size):
            return None
        frame = bytes(memoryview(buffer)[_LENGTH:end])
        del buffer[:end]
        return frame

    def _take(self, frame: bytes) -> None:
        if self._sender:
            self._door.take(self._sender, frame)
        else:
            self._sender = self._door.let_in(self, frame)
            self._patience.cancel()
        self._transport.write(_TAKEN)

    def end(self) -> None:
        """Nothing that is still in it is taken: no data is received any more."""
        self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._patience.cancel()
        self._door.let_out(self, self._sender)


class Stream(asyncio.Protocol):
    """A connection to another host's door. Made by `connect`."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._taken: asyncio.Future[None] | None = None
        self._lost = False

    @classmethod
    async def connect(cls, address: Address, sender: str) -> Stream:
        """`sender`: this host's name. Raises `OSError`, also when there is nobody who takes anything."""
        try:
            async with asyncio.timeout(_CONNECT_S):
                _, stream = await asyncio.get_running_loop().create_connection(cls, address.host, address.port)
                try:
                    await stream.deliver(address.secret + sender.encode())
                except BaseException:
                    stream.close()
                    raise
        except TimeoutError as error:
            raise ConnectionError(f"{address.host}:{address.port} does not answer") from error
        return stream

    async def deliver(self, batch: bytes) -> None:
        """One at a time. Returns when the batch has been taken. Raises `ConnectionError`: it may have been taken or
        not, and the connection is of no more use, as it is when this was cancelled."""
        # Python 3.12 and later must not write to a closing one: they go on to watch its file, and the next connection
        # that gets the number fails.
        if self._lost or self._transport.is_closing():
            raise ConnectionResetError("the connection is lost")
        self._taken = asyncio.get_running_loop().create_future()
        self._transport.writelines((len(batch).to_bytes(_LENGTH), batch))
        await self._taken

    def close(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # of TCP it is one
        self._transport = transport
        _keep_alive(transport)

    def data_received(self, data: bytes) -> None:
        if data != _TAKEN:  # whoever that is, it is no door
            self.close()
        elif self._taken is not None and not self._taken.done():
            self._taken.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        if self._taken is not None and not self._taken.done():
            self._taken.set_exception(ConnectionResetError(f"the connection is lost: {error or 'it was closed'}"))


class Detour(Protocol):
    """The long way to a host, which says where its door is, and whether it has ended."""

    async def address(self) -> Address | None:
        """None: it has no door. Raises `PeerGone`, `PeerUnsure`."""

    async def deliver(self, sender: str, batch: bytes) -> None:
        """As `Peer.deliver`."""


class StreamPeer:
    """`Peer`. Batches go over a connection; where none can be had, on the detour."""

    def __init__(self, name: str, detour: Detour) -> None:
        self._name = name
        self._detour = detour
        self._stream: Stream | None = None
        self._try_again_s = 0.0
        self._pause_s = _TRY_AGAIN_S

    @property
    def spacing_s(self) -> float:
        return _DETOUR_SPACING_S if self._stream is None else _SPACING_S

    async def deliver(self, sender: str, batch: bytes) -> None:
        stream = self._stream or await self._connect(sender)
        if stream is None:
            await self._detour.deliver(sender, batch)
            return
        try:
            await stream.deliver(batch)
        except ConnectionError as error:
            self._stream = None
            await self._detour.address()  # raises `PeerGone` when that is why, which it is as a rule
            raise PeerUnsure(f"{self._name}: {error}") from error

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    async def _connect(self, sender: str) -> Stream | None:
        if time.monotonic() < self._try_again_s:
            return None
        address = await self._detour.address()
        if address is not None:
            try:
                self._stream = await Stream.connect(address, sender)
            except OSError as error:
                log.warning("no connection to %s, its batches take the detour: %s", self._name, error)
        if self._stream is None:
            self._try_again_s = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        else:
            self._pause_s = _TRY_AGAIN_S
        return self._stream


def _keep_alive(transport: asyncio.Transport) -> None:
    """So that it is lost when the machine at the other end is, even though nothing is under way."""
    connection: socket.socket = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        for name, value in _KEEP_ALIVE.items():
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
