"""Batches over TCP: real sockets, one process."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import uvloop

from actors import actor, method
from actors.placement import hop
from actors.placement import stream as under_test
from actors.placement.hop import PeerGone, PeerUnsure
from actors.placement.stream import Address, Door, Stream, StreamPeer
from tests.placement.network import Network, cluster_of, ids_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from actors.placement.hop import Peer

HERE = "127.0.0.1"


class Taker:
    """A host's end of it: what it has taken, and from whom."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, bytes]] = []
        self.fails = False

    def __call__(self, sender: str, batch: bytes) -> None:
        if self.fails:
            raise ValueError("a batch that nobody can read")
        self.batches.append((sender, batch))


@contextlib.asynccontextmanager
async def opened(taker: Taker) -> AsyncIterator[Address]:
    door = Door(taker)
    address = await door.open(HERE)
    try:
        async with asyncio.timeout(20):
            yield address
    finally:
        door.close()
        await asyncio.sleep(0)


class Raw:
    """A connection that sends what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, address: Address) -> Raw:
        return cls(*await asyncio.open_connection(address.host, address.port))

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def heard(self, count: int) -> bytes:
        return await self.reader.readexactly(count)

    async def rest(self) -> bytes:
        """Until the other side ends."""
        with contextlib.suppress(ConnectionError):
            return await self.reader.read()
        return b""

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


def frame(data: bytes) -> bytes:
    return len(data).to_bytes(8) + data


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_batches_are_taken_in_order_and_whole(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """From a few bytes to many megabytes, from two senders at once; `deliver` returns when a batch has been taken."""
    taker = Taker()
    sizes = [0, 1, 7, 8, 9, 100, 70_000, 9 << 20, 3]

    async def send(address: Address, sender: str) -> None:
        stream = await Stream.connect(address, sender)
        for number, size in enumerate(sizes):
            batch = bytes([number]) * size
            await stream.deliver(batch)
            assert taker.batches[-1] == (sender, batch) or (sender, batch) in taker.batches
        stream.close()

    async def run() -> None:
        async with opened(taker) as address:
            await asyncio.gather(send(address, "one"), send(address, "two"))

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(run())
    for sender in ("one", "two"):
        assert [len(batch) for name, batch in taker.batches if name == sender] == sizes


async def test_frames_may_come_in_any_pieces() -> None:
    """Byte by byte, or several in one piece: each is taken once, and answered by one byte."""
    taker = Taker()
    async with opened(taker) as address:
        raw = await Raw.to(address)
        for byte in frame(address.secret + b"slow") + frame(b"first"):
            await raw.say(bytes([byte]))
        assert await raw.heard(2) == b"\x06\x06"
        await raw.say(frame(b"second") + frame(b"") + frame(b"third") + frame(b"fourth")[:-1])
        assert await raw.heard(3) == b"\x06\x06\x06"
        await raw.say(b"h")
        assert await raw.heard(1) == b"\x06"
        await raw.close()
    assert [batch for _, batch in taker.batches] == [b"first", b"second", b"", b"third", b"fourth"]


@pytest.mark.parametrize(
    "hello",
    [
        pytest.param(frame(b"x" * 32 + b"host") + frame(b"batch"), id="a wrong secret"),
        pytest.param(frame(b"") + frame(b"batch"), id="no secret"),
        pytest.param((1 << 40).to_bytes(8) + b"batch", id="a length that would fill the memory"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n", id="HTTP"),
    ],
)
async def test_a_stranger_is_shown_out(hello: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever does not know the secret: nothing of his is taken, and the door stays open for others."""
    taker = Taker()
    async with opened(taker) as address:
        raw = await Raw.to(address)
        await raw.say(hello)
        assert await raw.rest() == b""
        await raw.close()
        assert taker.batches == []
        assert "from ('127.0.0.1', " in caplog.text
        with pytest.raises(ConnectionError):
            await Stream.connect(address._replace(secret=b"y" * 32), "host")
        stream = await Stream.connect(address, "host")
        await stream.deliver(b"batch")
        stream.close()
    assert taker.batches == [("host", b"batch")]


async def test_a_new_connection_of_a_sender_ends_the_former() -> None:
    """What was left in it comes again over the new one, and must not be taken a second time after that."""
    taker = Taker()
    async with opened(taker) as address:
        former = await Raw.to(address)
        await former.say(frame(address.secret + b"host") + frame(b"left in it")[:-1])
        assert await former.heard(1) == b"\x06"
        stream = await Stream.connect(address, "host")
        await stream.deliver(b"left in it")
        with contextlib.suppress(ConnectionError):
            await former.say(b"t")
        assert await former.rest() == b""
        other = await Stream.connect(address, "another")
        await other.deliver(b"of another host")
        await stream.deliver(b"next")
        for each in (stream, other):
            each.close()
        await former.close()
    assert taker.batches == [("host", b"left in it"), ("another", b"of another host"), ("host", b"next")]


async def test_a_batch_that_comes_the_other_way_ends_the_connection() -> None:
    """Its sender has given that up. What waits in it is older, has come again by now, and does not say so."""
    taker = Taker()
    door = Door(taker)
    stream = await Stream.connect(await door.open(HERE), "host")
    async with asyncio.timeout(20):
        former = asyncio.create_task(stream.deliver(b"1"))
        await asyncio.sleep(0)  # it is written, and not read
        for batch in (b"1, again", b"2"):
            door.take_from_detour("host", batch)
        with pytest.raises(ConnectionError):
            await former
    door.close()
    assert taker.batches == [("host", b"1, again"), ("host", b"2")]


async def test_what_was_not_acknowledged_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """A batch that could not be taken, one that was under way when the door was shut, one that is sent too late."""
    taker = Taker()
    async with opened(taker) as address:
        stream = await Stream.connect(address, "host")
        taker.fails = True
        with pytest.raises(ConnectionError):
            await stream.deliver(b"batch")
        with pytest.raises(ConnectionError):
            await stream.deliver(b"next")
        assert "a batch of host could not be taken" in caplog.text
        taker.fails = False
        stream = await Stream.connect(address, "host")
        await stream.deliver(b"again")
    with pytest.raises(ConnectionError):
        await stream.deliver(b"after the end")
    with pytest.raises(OSError, match=r"."):
        await Stream.connect(address, "host")
    assert taker.batches == [("host", b"again")]


async def test_a_shut_door_lets_nobody_in() -> None:
    """Also not whoever was connected before, and says who he is only now."""
    taker = Taker()
    async with opened(taker) as address:
        raw = await Raw.to(address)
        stream = await Stream.connect(address, "host")  # so that the door has seen the one before
    with contextlib.suppress(ConnectionError):
        await raw.say(frame(address.secret + b"late") + frame(b"batch"))
    async with asyncio.timeout(10):
        assert await raw.rest() == b""
    await raw.close()
    stream.close()
    assert taker.batches == []


async def test_who_does_not_say_who_he_is_is_shown_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection holds a file of the process: a stranger cannot keep it by saying nothing, or half of it. Whoever has
    said it may be silent for as long as he likes."""
    monkeypatch.setattr(under_test, "_HELLO_S", 0.05)
    taker = Taker()
    async with opened(taker) as address:
        stream = await Stream.connect(address, "host")
        for beginning in (b"", frame(address.secret)[:-1]):
            raw = await Raw.to(address)
            await raw.say(beginning)
            assert await raw.rest() == b""
            await raw.close()
        await stream.deliver(b"batch")
        stream.close()
    assert taker.batches == [("host", b"batch")]


async def test_who_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is frozen, or something else that listens there, is connected to and says nothing."""
    monkeypatch.setattr(under_test, "_CONNECT_S", 0.05)
    with socket.create_server((HERE, 0)) as silent, pytest.raises(ConnectionError, match="does not answer"):
        await Stream.connect(Address(HERE, silent.getsockname()[1], b"s" * 32), "host")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x06\x06", b"\x15"])
async def test_only_a_door_acknowledges(answer: bytes) -> None:
    """What else listens there, since the host has ended, must not pass for one: its answer is no acknowledgement."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, HERE, 0) as other:
        address = Address(HERE, other.sockets[0].getsockname()[1], b"s" * 32)
        with pytest.raises(ConnectionError):
            await Stream.connect(address, "host")


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_nothing_is_written_to_a_connection_that_is_closing(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Its end may be known, and not told yet. (From Python 3.12 on, asyncio would go on to watch the closed file.)"""

    async def run() -> None:
        taker = Taker()
        async with opened(taker) as address:
            for _ in range(3):
                stream = await Stream.connect(address, "host")
                await stream.deliver(b"batch")
                stream.close()
                with pytest.raises(ConnectionError):
                    await stream.deliver(b"too late")
        assert taker.batches == [("host", b"batch")] * 3

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(run())


# -- with a detour -----------------------------------------------------------------------------------------------------


class Long:
    """The long way. `door`: the address it tells, or the error."""

    def __init__(self, door: Address | Exception | None) -> None:
        self.door = door
        self.asked = 0
        self.batches: list[bytes] = []

    async def address(self) -> Address | None:
        self.asked += 1
        if isinstance(self.door, Exception):
            raise self.door
        return self.door

    async def deliver(self, sender: str, batch: bytes) -> None:
        self.batches.append(batch)


async def test_a_connection_is_made_once_and_carries_all() -> None:
    """Nothing takes the detour, and batches need not wait for others."""
    taker = Taker()
    async with opened(taker) as address:
        long = Long(address)
        peer = StreamPeer("there", long)
        for batch in (b"1", b"2", b"3"):
            await peer.deliver("here", batch)
        assert peer.spacing_s < 0.003
        peer.close()
    assert (long.asked, long.batches) == (1, [])
    assert taker.batches == [("here", b"1"), ("here", b"2"), ("here", b"3")]


async def test_without_a_door_all_takes_the_detour(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A peer that has none, or whose door cannot be reached: it is looked for again, not at every batch."""
    taker = Taker()
    with socket.create_server((HERE, 0)) as closed:
        port = closed.getsockname()[1]
    now_s = 1000.0
    monkeypatch.setattr(under_test, "time", SimpleNamespace(monotonic=lambda: now_s))
    for door in (None, Address(HERE, port, b"s" * 32)):
        long = Long(door)
        peer = StreamPeer("there", long)
        for batch in (b"1", b"2"):
            await peer.deliver("here", batch)
            assert peer.spacing_s > 0  # what costs so much is to carry much
        assert (long.asked, long.batches) == (1, [b"1", b"2"])
        async with opened(taker) as address:
            long.door = address
            now_s += 61
            await peer.deliver("here", b"3")
            peer.close()
        assert (long.asked, long.batches) == (2, [b"1", b"2"])
    assert taker.batches == [("here", b"3")] * 2
    assert caplog.text.count("no connection to there") == 1


async def test_a_door_that_cannot_be_reached_is_tried_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attempt may hold up a batch for as long as it is waited for; after one that was lost, it is soon again."""
    now_s = 1000.0
    monkeypatch.setattr(under_test, "time", SimpleNamespace(monotonic=lambda: now_s))
    taker = Taker()
    long = Long(None)
    peer = StreamPeer("there", long)

    async def asked_within(seconds: float) -> int:
        nonlocal now_s
        before, end_s = long.asked, now_s + seconds
        while now_s < end_s:
            await peer.deliver("here", b"batch")
            now_s += 10
        return long.asked - before

    assert await asked_within(200) == 3
    assert 4 <= await asked_within(10_000) <= 8
    assert 9 <= await asked_within(36_000) <= 11
    async with opened(taker) as address:
        long.door = address
        assert await asked_within(3_700) == 1
        long.door = None
        taker.fails = True
        with pytest.raises(PeerUnsure):
            await peer.deliver("here", b"batch")
        assert await asked_within(200) == 3
        peer.close()


async def test_a_lost_connection_is_made_anew(caplog: pytest.LogCaptureFixture) -> None:
    """The batch that was under way may have been taken. The peer is there, as the detour says."""
    taker = Taker()
    async with opened(taker) as address:
        peer = StreamPeer("there", Long(address))
        await peer.deliver("here", b"1")
        taker.fails = True
        with pytest.raises(PeerUnsure):
            await peer.deliver("here", b"2")
        taker.fails = False
        await peer.deliver("here", b"2")
        peer.close()
    assert taker.batches == [("here", b"1"), ("here", b"2")]


async def test_a_peer_is_gone_when_the_detour_says_so() -> None:
    """A broken connection alone means nothing; before the first batch, and after."""
    with pytest.raises(PeerGone):
        await StreamPeer("there", Long(PeerGone("there"))).deliver("here", b"1")
    taker = Taker()
    async with opened(taker) as address:
        long = Long(address)
        peer = StreamPeer("there", long)
        await peer.deliver("here", b"1")
        long.door = PeerGone("there")
    with pytest.raises(PeerGone):
        await peer.deliver("here", b"2")
    assert taker.batches == [("here", b"1")]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems name these options otherwise")
async def test_a_silent_machine_is_noticed_by_the_kernel() -> None:
    """It is asked to look after the other one, also while nothing is under way."""
    async with opened(Taker()) as address:
        stream = await Stream.connect(address, "host")
        connection = stream._transport.get_extra_info("socket")
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) < 10
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) < 20_000
        stream.close()


# -- hosts over it -----------------------------------------------------------------------------------------------------


@actor
class Tally:
    value: int = 0

    @method
    async def add(self) -> int:
        self.value += 1
        return self.value


class Breaking(Network):
    """Hosts with doors, at which connections break: of every five batches, one has not been taken by then, and of one
    nobody hears that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.doors: dict[str, tuple[Door, Address]] = {}
        self.broken = 0

    async def open(self, name: str) -> None:
        count = itertools.count(1)

        def take(sender: str, batch: bytes) -> None:
            number = next(count)
            if number % 5 != 2:
                self.placements[name].receive(sender, batch)
            if number % 5 in (2, 4):
                self.broken += 1
                raise ConnectionError("broken")

        door = Door(take)
        self.doors[name] = door, await door.open(HERE)

    async def connect(self, name: str) -> Peer:
        return StreamPeer(name, Long(self.doors[name][1]))

    def close(self) -> None:
        for door, _ in self.doors.values():
            door.close()


async def test_calls_survive_broken_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever breaks: each call is answered, and made once (INV-8)."""
    monkeypatch.setattr(hop, "_RESEND_S", 0.001)
    callers, calls, names = 8, 25, [name for partition in (2, 3) for name in ids_in(partition, "Tally")[:4]]
    async with cluster_of(Tally) as cluster, asyncio.timeout(60):
        cluster.network = network = Breaking()
        for name, partitions in (("one", [0, 1]), ("two", [2, 3])):
            await network.open(name)
            await cluster.add(name, partitions)
        client = cluster.hosts["one"].client
        answers: dict[str, list[int]] = {name: [] for name in names}

        async def drive() -> None:
            for _ in range(calls):
                for name in names:
                    answers[name].append(await client.actor(Tally, name).add())

        await asyncio.gather(*(drive() for _ in range(callers)))
        await cluster.close()
        network.close()
    assert network.broken > 20
    for name in names:
        assert sorted(answers[name]) == list(range(1, callers * calls + 1))
