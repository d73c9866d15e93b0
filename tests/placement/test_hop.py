"""The wire form of calls between hosts."""

from __future__ import annotations

import asyncio
import pickle
from typing import TYPE_CHECKING

import pytest

from actors import ActorFailed, Deadlock, MailboxFull, NotOwner
from actors.message import Call
from actors.placement import hop
from actors.placement.hop import (
    Asked,
    Link,
    PeerGone,
    asked_of,
    decode_batch,
    decode_error,
    encode_batch,
    encode_error,
)

if TYPE_CHECKING:
    from actors.placement.hop import Peer

ASKED = Asked("id", "A/a", "m", b"1", None, None, -1, False, None, "", "", ("B/b",), "B/b", None, 1.5, False)


def test_batches_arrive_as_they_left() -> None:
    """Calls, answers, failures and cancellations cross in one batch, in order."""
    items = [("ask", ASKED), ("answer", "x", b"2"), ("fail", "y", ("NotOwner", "no")), ("cancel", "z")]
    assert decode_batch(encode_batch(items)) == items


def test_fields_of_a_newer_release_are_left_out() -> None:
    """While a cluster is rolled, hosts of two releases talk: the older one takes what it knows."""
    newer = pickle.dumps([("ask", (*ASKED, "a field of tomorrow"))], 5)
    assert decode_batch(newer) == [("ask", ASKED)]
    assert asked_of(tuple(ASKED)) == ASKED


def test_errors_arrive_as_what_they_are() -> None:
    """Errors keep their kind and their text; what is no error of ours arrives as the method's."""
    for error in (NotOwner("no"), ActorFailed("ValueError", "bad", "trace"), Deadlock(("A/a", "B/b", "A/a"))):
        arrived = decode_error(encode_error(error))
        assert type(arrived) is type(error)
        assert str(arrived) == str(error)
    assert str(decode_error(encode_error(KeyError("k")))) == "KeyError: 'k'"


class Way:
    """To a peer that takes nothing."""

    spacing_s = 0.0

    def __init__(self, error: Exception) -> None:
        self._error = error
        self.closed = asyncio.Event()

    async def connect(self, name: str) -> Peer:
        return self

    async def deliver(self, sender: str, batch: bytes) -> None:
        raise self._error

    def close(self) -> None:
        self.closed.set()


async def test_a_link_that_fails_says_that_it_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    """An error nobody has thought of ends a link loudly, and what it carried is made again by whoever is told."""
    gone: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
    link = Link("here", "there", Way(ZeroDivisionError("nobody has thought of it")), gone.set_result)
    link.put(("cancel", "z"))
    async with asyncio.timeout(10):
        assert await gone is link
        await link.wait_sent()
    assert "the link to there failed" in caplog.text


async def test_a_link_that_ends_lets_go_of_its_way_to_the_peer() -> None:
    """Whether the peer is gone or the link is closed."""
    way = Way(PeerGone("there"))
    link = Link("here", "there", way, lambda _: None)
    link.put(("cancel", "z"))
    async with asyncio.timeout(10):
        await way.closed.wait()
    way = Way(PeerGone("there"))
    link = Link("here", "there", way, lambda _: None)
    async with asyncio.timeout(10):
        await link.wait_sent()  # it has connected
        link.close()
        await way.closed.wait()


class Slow(Way):
    """To a peer that takes its first batch when it is told to, and the others at once."""

    def __init__(self) -> None:
        self.may_take = asyncio.Event()
        self.offered = asyncio.Event()
        self.batches: list[list[bytes]] = []

    async def deliver(self, sender: str, batch: bytes) -> None:
        self.batches.append([item[1].payload for item in decode_batch(batch)])
        self.offered.set()
        await self.may_take.wait()

    def close(self) -> None: ...


def ask(link: Link, payload: bytes) -> None:
    call = Call("A/a", "m", asyncio.get_running_loop().create_future(), payload=payload)
    link.ask(call, payload.decode(), 0)


@pytest.mark.parametrize(("bound", "value"), [("_MOST_WAITING", 3), ("_MOST_WAITING_BYTES", 5)])
async def test_calls_that_wait_for_a_slow_peer_are_bounded(
    monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    """Their number and their bytes: one more is refused, and was not sent. Those that had been taken go out."""
    monkeypatch.setattr(hop, bound, value)
    way = Slow()
    link = Link("here", "there", way, lambda _: None)
    ask(link, b"11")
    async with asyncio.timeout(10):
        await way.offered.wait()
    for payload in (b"22", b"33", b"44"):
        ask(link, payload)
    for payload in (b"55", b""):
        with pytest.raises(MailboxFull, match="3 calls with 0 MiB wait for host there"):
            ask(link, payload)
    assert len(link.unanswered) == 4
    way.may_take.set()
    async with asyncio.timeout(10):
        await link.wait_sent()
    assert way.batches == [[b"11"], [b"22", b"33", b"44"]]
    ask(link, b"66")  # there is room again
    link.close()


@pytest.mark.parametrize(
    ("bound", "value", "batches"),
    [
        ("_MOST_ITEMS", 2, [[b"22", b"33"], [b"4444444", b"5"], [b"6"]]),
        ("_MOST_BYTES", 4, [[b"22", b"33"], [b"4444444"], [b"5", b"6"]]),
    ],
)
async def test_batches_are_bounded(
    monkeypatch: pytest.MonkeyPatch, bound: str, value: int, batches: list[list[bytes]]
) -> None:
    """In number and bytes, but for a single large item; what does not fit into one is in the next, in order."""
    monkeypatch.setattr(hop, bound, value)
    way = Slow()
    link = Link("here", "there", way, lambda _: None)
    ask(link, b"1")
    async with asyncio.timeout(10):
        await way.offered.wait()
    for payload in (b"22", b"33", b"4444444", b"5", b"6"):
        ask(link, payload)
    way.may_take.set()
    async with asyncio.timeout(10):
        await link.wait_sent()
    link.close()
    assert way.batches == [[b"1"], *batches]
