"""The bad road that tests of clusters use is bad in the ways it promises, and no others."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from tests.servers import Relay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


class Echo:
    """A server that answers every line with itself, and writes down what it got."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.port = 0
        self._more = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            self.got.append(line)
            self._more.set()
            writer.write(line)
        writer.close()

    async def wait_got(self, line: bytes) -> None:
        while line not in self.got:
            self._more.clear()
            await self._more.wait()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    made = Echo()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()


@pytest.fixture
def relay(echo: Echo) -> Iterator[Relay]:
    with Relay(echo.port) as made:
        yield made


class Client:
    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    async def __aenter__(self) -> Client:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._relay.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()

    async def ask(self, line: bytes) -> bytes:
        self.writer.write(line)
        return await self.reader.readline()


async def test_requests_and_answers_pass(relay: Relay) -> None:
    """Without a fault it is as if the relay were not there."""
    async with Client(relay) as client:
        assert await client.ask(b"one\n") == b"one\n"
        assert await client.ask(b"two\n") == b"two\n"


async def test_answers_are_lost_and_requests_are_not(echo: Echo, relay: Relay) -> None:
    """The fault worth most: it was done, and nobody was told. After the cut all is well with a new connection."""
    async with Client(relay) as client, Client(relay) as other:
        assert await client.ask(b"one\n") == b"one\n"
        relay.drop_answers()
        client.writer.write(b"two\n")
        await echo.wait_got(b"two\n")
        relay.cut()
        assert await client.reader.read() == b""
        assert await other.reader.read() == b""
    async with Client(relay) as client:
        assert await client.ask(b"three\n") == b"three\n"


async def test_what_is_held_arrives_late(echo: Echo, relay: Relay) -> None:
    """Of one process, by connections that were there and by new ones, also those that it gives up."""
    async with Client(relay) as client:
        assert await client.ask(b"one\n") == b"one\n"
        relay.hold(os.getpid())
        client.writer.write(b"two\n")
        async with Client(relay) as new:
            new.writer.write(b"three\n")
            await new.writer.drain()
            for _ in range(3):  # each is read after what came before, so in the end the connection is known
                relay.hold(os.getpid())
        assert echo.got == [b"one\n"]
        relay.release()
        assert await client.reader.readline() == b"two\n"
        await echo.wait_got(b"three\n")
        assert await client.ask(b"four\n") == b"four\n"


async def test_others_are_not_held(relay: Relay) -> None:
    """A hold is on the process it names alone."""
    async with Client(relay) as client:
        relay.hold(1 << 30)
        assert await client.ask(b"one\n") == b"one\n"
