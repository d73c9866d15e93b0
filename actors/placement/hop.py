"""The hop between two hosts: calls and answers as plain values, and a link that carries whatever has gathered.

A message between processes costs about the same whatever it carries, so a link sends one batch at a time, and what is
asked or answered meanwhile makes the next. A lone call leaves at once. One at a time also keeps the order, and is the
back-pressure: a peer that takes batches slowly gets them slowly, and fuller.

The wire form is a list of tuples of plain values, pickled: both ends are processes of one cluster, of one release of
the code or two neighbouring ones. Fields are added at the end, with defaults, never renamed or removed.

    ("ask", Asked)  ("answer", id, result)  ("fail", id, error)  ("cancel", id)
    ("still", (time, ids))  is answered by  ("busy", (time, ids)), with those of the calls that have not been answered
    ("took", {partition: epoch})  is said to all others by a new owner
    ("probe", …)  ("cycle", …)    see `actors.placement.cycles`

A release lets pass what it does not know, so new kinds may be added; but three fields are an answer to older ones.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from actors import errors
from actors.errors import ActorError, ActorFailed, Deadlock, MailboxFull
from actors.errortext import message_of
from statestores.codec import decode

if TYPE_CHECKING:
    from collections.abc import Callable

    from actors.message import Call

Item: TypeAlias = tuple[Any, ...]

log = logging.getLogger(__name__)

_MOST_ITEMS = 1000
_MOST_BYTES = 4 << 20
_MOST_WAITING = 50_000
_MOST_WAITING_BYTES = 256 << 20
_RESEND_S = 0.1
# What a release that does not say it took for the life of a receipt.
_RECEIPT_MS = 120_000


class PeerGone(Exception):
    """The peer has ended, or is not to be found: whatever it had not answered may or may not have been done."""


class PeerUnsure(Exception):
    """The batch may or may not have arrived; the peer may still be there."""


class Peer(Protocol):
    """The way to another host."""

    @property
    def spacing_s(self) -> float:
        """From one batch to the next, unless so much waits that it would not fit into one: what a batch costs decides
        how full it should be."""

    async def deliver(self, sender: str, batch: bytes) -> None:
        """Hand a batch to the peer's `ClusterPlacement.receive`. Returns when it has been taken, not when it is done.
        Raises `PeerGone`, `PeerUnsure`."""

    def close(self) -> None:
        """It is not used any more."""


class Peers(Protocol):
    """How a host reaches others by their names: the transport of a cluster."""

    async def connect(self, name: str) -> Peer:
        """Raises `PeerGone`."""


class Asked(NamedTuple):
    """A call on the wire: see `actors.message.Call` for the fields. `id` is the same for every attempt."""

    id: str
    stream: str
    method: str
    payload: bytes
    key: str | None
    outbox_id: str | None
    outbox_partition: int
    redelivered: bool
    reply_to: tuple[str, str, str] | None
    caller: str
    trace_id: str
    chain: tuple[str, ...]
    waiter: str
    chain_id: str | None
    left_s: float | None
    internal: bool
    again_until_ms: int = 0
    receipt_ms: int = _RECEIPT_MS


def asked(call: Call, call_id: str, now_s: float) -> Asked:
    """`now_s`: the loop's time. A deadline travels as what is left of it, since clocks differ."""
    return Asked(
        call_id,
        call.stream,
        call.method_name,
        call.encoded(),
        call.key,
        call.outbox_id,
        call.outbox_partition,
        call.redelivered,
        call.reply_to,
        call.caller,
        call.trace_id,
        call.chain,
        call.waiter,
        call.chain_id,
        None if call.deadline is None else max(0.0, call.deadline - now_s),
        call.internal,
        call.again_until_ms,
        call.receipt_ms,
    )


def result_of(call: Call, data: bytes) -> Any:
    """What the caller gets for the JSON of an answer. Raises `UnserializableResult`."""
    if call.raw:
        return data
    if not data:  # the receipt of a message: nobody looks at its result
        return None
    if call.method is not None:
        return call.method.signature.decode_result(data)
    return decode(data)


def encode_error(error: BaseException) -> tuple[str, ...]:
    """An error on the wire: its name and what it is made of. One that is not an `ActorError` arrives as
    `ActorFailed`."""
    if isinstance(error, ActorFailed):
        return "ActorFailed", error.error_type, error.message, error.traceback
    if isinstance(error, Deadlock):
        return "Deadlock", *error.chain
    if isinstance(error, ActorError):
        return type(error).__name__, message_of(error)
    return "ActorFailed", type(error).__name__, message_of(error), ""


def decode_error(fields: tuple[str, ...]) -> ActorError:
    name, *rest = fields
    if name == "Deadlock":
        return Deadlock(tuple(rest))
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, ActorError):
        error: ActorError = kind(*rest)
        return error
    return ActorFailed(name, *rest[:2])


def encode_batch(items: list[Item]) -> bytes:
    return pickle.dumps([("ask", tuple(item[1])) if item[0] == "ask" else item for item in items], 5)


def decode_batch(batch: bytes) -> list[Item]:
    items: list[Item] = pickle.loads(batch)
    return [("ask", asked_of(item[1])) if item[0] == "ask" else item for item in items]


def asked_of(fields: tuple[Any, ...]) -> Asked:
    """What a peer of a neighbouring release sent: fields that this one does not know are left out."""
    return Asked(*fields[: len(Asked._fields)])


class Sent(NamedTuple):
    """A call that a peer has been asked, and has not answered."""

    call: Call
    partition: int


class Link:
    """One direction to one peer, and what is waited for from it. `gone` is called once, when the peer has ended, with
    what it had not answered; the link is then of no more use."""

    def __init__(self, own_name: str, peer_name: str, peers: Peers, gone: Callable[[Link], None]) -> None:
        self.peer_name = peer_name
        self.unanswered: dict[str, Sent] = {}
        # A batch has been handed to the peer, and may have arrived.
        self.reached = False
        # When the peer was asked last what has become of old calls; see `ClusterPlacement`.
        self.asked_after_ms = 0
        self._own_name = own_name
        self._peers = peers
        self._gone = gone
        self._outgoing: list[Item] = []
        # The arguments of the calls in it.
        self._waiting_bytes = 0
        self._wake: asyncio.Future[None] | None = None
        self._sending = True
        self._ended = False
        self._sent: asyncio.Future[None] | None = None
        self._sender = asyncio.get_running_loop().create_task(self._send_for_ever(), name=f"link to {peer_name}")

    def ask(self, call: Call, call_id: str, partition: int) -> None:
        """Raises `MailboxFull` when the peer takes calls more slowly than they come, `InvalidArguments`."""
        if len(self._outgoing) >= _MOST_WAITING or self._waiting_bytes >= _MOST_WAITING_BYTES:
            waiting = f"{len(self._outgoing)} calls with {self._waiting_bytes >> 20} MiB"
            raise MailboxFull(f"{waiting} wait for host {self.peer_name}: try again later")
        item = ("ask", asked(call, call_id, asyncio.get_running_loop().time()))
        self._waiting_bytes += len(item[1].payload)
        self.unanswered[call_id] = Sent(call, partition)
        self.put(item)

    def cancel(self, call_id: str) -> None:
        """The caller has given up."""
        if self.unanswered.pop(call_id, None) is not None:
            self.put(("cancel", call_id))

    def put(self, item: Item) -> None:
        self._outgoing.append(item)
        if self._wake is not None:
            wake, self._wake = self._wake, None
            if not wake.done():
                wake.set_result(None)

    def close(self) -> None:
        self._sender.cancel()

    async def wait_sent(self) -> None:
        """Returns when everything put until now has been taken by the peer, or the peer is gone."""
        if not self._ended and (self._sending or self._outgoing):
            self._sent = self._sent or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._sent)

    async def _send_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        peer: Peer | None = None
        try:
            peer = await self._connected()
            next_s = 0.0
            while True:
                if not self._outgoing:
                    self._all_sent()
                    self._wake = loop.create_future()
                    await self._wake
                self._sending = True
                left_s = next_s - loop.time()
                if left_s > 0 and len(self._outgoing) < _MOST_ITEMS:
                    await asyncio.sleep(left_s)
                next_s = loop.time() + peer.spacing_s
                await self._send(peer, self._take())
        except PeerGone:
            self._gone(self)
        except Exception:
            # Better a link that is made anew, and calls that are made again, than one that is silent for ever.
            log.exception("the link to %s failed: this is a bug", self.peer_name)
            await asyncio.sleep(_RESEND_S)
            self._gone(self)
        finally:
            if peer is not None:
                peer.close()
            self._ended = True
            self._all_sent()

    async def _connected(self) -> Peer:
        while True:
            try:
                return await self._peers.connect(self.peer_name)
            except PeerGone:
                raise
            except Exception as error:  # nobody says that it is gone
                log.warning("host %s cannot be looked up, trying again: %s", self.peer_name, error)
                await asyncio.sleep(_RESEND_S)

    def _all_sent(self) -> None:
        self._sending = False
        if self._sent is not None:
            sent, self._sent = self._sent, None
            if not sent.done():
                sent.set_result(None)

    async def _send(self, peer: Peer, items: list[Item]) -> None:
        """Until the batch has been taken. What is sent twice says so; answers may come twice."""
        while items := [i for i in items if i[0] != "ask" or i[1].id in self.unanswered]:  # others were given up
            try:
                self.reached = True
                await peer.deliver(self._own_name, encode_batch(items))
                return
            except PeerUnsure:
                items = [("ask", i[1]._replace(redelivered=True)) if i[0] == "ask" else i for i in items]
                await asyncio.sleep(_RESEND_S)

    def _take(self) -> list[Item]:
        """The next batch: bounded in number and, but for a single large item, in bytes."""
        size = 0
        for count, item in enumerate(self._outgoing[:_MOST_ITEMS]):
            if item[0] == "ask":
                size += len(item[1].payload)
            elif item[0] == "answer":
                size += len(item[2])
            if size > _MOST_BYTES and count:
                break
        else:
            count = _MOST_ITEMS
        items = self._outgoing[:count]
        del self._outgoing[:count]
        self._waiting_bytes -= sum(len(item[1].payload) for item in items if item[0] == "ask")
        return items
