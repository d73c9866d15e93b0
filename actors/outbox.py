"""The outbox at work: what committed turns want done elsewhere is done, exactly once in its effect.

A message is a row that stands from the commit of its turn until it is *acknowledged*: its target's turn has committed
(with a receipt of the message's id) or, for posted work, a turn of its own actor has committed `done`. Delivery starts
from memory right after the commit; after a crash, or when more is waiting than may be in flight, from a scan of the
rows. A message that may have been delivered before is marked so, and the target looks for the receipt first (INV-8).
There is no second
queue: memory holds only what is in flight (INV-9).

Messages of one actor to another are delivered in the order of their commit, unless one has to be retried.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from actors.errors import CallerError, Retriable
from actors.message import Envelope
from statestores.codec import encode
from statestores.errors import StoreError, StoreUnavailable
from statestores.model import OutboxMessage, TurnCommit

if TYPE_CHECKING:
    from actors.host import Host
    from actors.message import Call

log = logging.getLogger(__name__)

_ACK_DELAY_S = 0.002
_FIRST_RETRY_S = 0.1
_LONGEST_RETRY_S = 30.0
# A one-way message whose turn keeps failing is given up (kept as a dead letter) after so many attempts.
_ATTEMPTS = 8
_PAGE = 1000
# Posted work under way at once, on one host. More waits in its rows, and so do messages behind it.
_MOST_WORK = 10_000


class Work(NamedTuple):
    """Posted work for a worker. `body` is the JSON that was posted; `redelivered`: it may have been started before;
    `scanned`: its row was found by a scan, otherwise the turn that posted it has been committed here, just now, and its
    `after_commit` callbacks come next; `failed`: see `Worker`."""

    kind: str
    id: str
    stream: str
    body: bytes
    redelivered: bool
    scanned: bool
    failed: Callable[[BaseException], None]


class DeadLetter(NamedTuple):
    """A message that was given up. `actor` and `method` are empty for posted work; `payload` is JSON."""

    id: str
    partition: int
    sender: str
    kind: str
    actor: str
    method: str
    payload: bytes
    reason: str
    body: bytes


Worker = Callable[[Work], Awaitable[None] | None]
"""Does the work and makes the stream's turn commit `done(id)`. Called again, after a pause, when it raises; and,
perhaps while it is at work, when the outcome of a commit is unknown: what memory says of unfinished work is in doubt
then. What it gives is run as a task of the host; None: the work goes on without one, and `Work.failed` is called should
it fail."""


class _Delivery:
    __slots__ = ("attempts", "envelope", "id", "partition", "redelivered", "scanned", "stream")

    def __init__(
        self, message: OutboxMessage, envelope: Envelope, partition: int, *, redelivered: bool, scanned: bool
    ) -> None:
        self.id = message.id
        self.stream = message.stream
        self.envelope = envelope
        self.partition = partition
        self.redelivered = redelivered
        self.scanned = scanned
        self.attempts = 0

    @property
    def is_work(self) -> bool:
        return self.envelope.kind != "turn"


class Outbox:
    def __init__(self, host: Host, workers: dict[str, Worker], max_in_flight: int) -> None:
        self._host = host
        self._workers = workers
        self._max_in_flight = max_in_flight
        self._in_flight: dict[str, _Delivery] = {}
        # How many of them are work: that may take days, and must not hold up the messages to actors.
        self._working = 0
        # Partitions with rows that are not in flight. Nothing of them is delivered from memory, which keeps their
        # order.
        self._behind: set[int] = set()
        # Partitions in which something was committed since their current scan read its page.
        self._missed: set[int] = set()
        # Partitions in which messages made by this host may have been delivered already, by it or by another owner.
        self._doubted: set[int] = set()
        # Partitions whose work under way is to be compared with the rows, by their next scan.
        self._unsure: set[int] = set()
        # What was finished while a scan was under way: its page may still show it.
        self._scanning = False
        self._recently: set[str] = set()
        self._acks: dict[int, list[str]] = {}
        self._wake = asyncio.Event()
        self._scanner: asyncio.Task[None] | None = None
        self._stopped = False

    def start(self, partitions: list[int]) -> None:
        """Begin, with what stands in the rows of the partitions this host owns."""
        self._behind.update(partitions)
        self._wake.set()
        self._scanner = self._host.create_task(self._scan_all())

    async def stop(self) -> None:
        """Stop delivering; what is in flight may finish and is acknowledged."""
        self._stopped = True
        if self._scanner is not None:
            self._scanner.cancel()
            await asyncio.gather(self._scanner, return_exceptions=True)
        self.flush()

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    def recover(self, partitions: list[int]) -> None:
        """Deliver what stands in the rows of partitions that are newly owned, or in which the outcome of a commit is
        unknown. Work under way is handed to its worker again: a turn that is recorded after all may have added to it,
        or finished it."""
        self._doubted.update(partitions)
        self._unsure.update(partitions)
        self._behind.update(partitions)
        self._wake.set()

    def dispatch(self, partition: int, messages: list[tuple[OutboxMessage, Envelope]]) -> None:
        """Deliver messages of a turn that has just been committed."""
        if partition in self._behind or self._stopped:
            self._missed.add(partition)
            return
        if self._room() < len(messages):
            self._behind.add(partition)
            self._wake.set()
            return
        for message, envelope in messages:
            self._begin(_Delivery(message, envelope, partition, redelivered=False, scanned=False))

    def finished(self, message_ids: list[str]) -> None:
        """A committed turn removed these rows itself."""
        for message_id in message_ids:
            self._let_go(message_id)
        if self._behind:
            self._check_behind()
        if self._scanning:
            self._recently.update(message_ids)

    def is_at_work(self, message_id: str) -> bool:
        """Whether posted work is with its worker here: delivered, and not finished."""
        return message_id in self._in_flight and not self._stopped

    def forget_partition(self, partition: int) -> None:
        """Its work is another host's to finish: it takes no room here."""
        for known in [d for d in self._in_flight.values() if d.partition == partition and d.is_work]:
            self._let_go(known.id)
        self._check_behind()

    # -- delivering ----------------------------------------------------------------------------------------------------

    def _begin(self, delivery: _Delivery) -> None:
        self._in_flight[delivery.id] = delivery
        if delivery.is_work:
            self._working += 1
        self._deliver(delivery)

    def _let_go(self, message_id: str) -> None:
        delivery = self._in_flight.pop(message_id, None)
        if delivery is not None and delivery.is_work:
            self._working -= 1

    def _deliver(self, delivery: _Delivery) -> None:
        if self._stopped or self._in_flight.get(delivery.id) is not delivery:
            return
        if not self._host.epochs[delivery.partition]:  # its new owner has found the row
            self.finished([delivery.id])
            return
        delivery.attempts += 1
        if delivery.envelope.kind == "turn":
            call = self._call(delivery)
            call.future.add_done_callback(lambda future: self._delivered(delivery, future))
            self._host.place(call)
        else:
            self._start_work(delivery)

    def _call(self, delivery: _Delivery) -> Call:
        envelope = delivery.envelope
        call = self._host.new_call(envelope.stream, envelope.method)
        call.payload, call.trace_id, call.caller = envelope.payload, envelope.trace_id, delivery.stream
        call.outbox_id, call.outbox_partition = delivery.id, delivery.partition
        call.redelivered = delivery.redelivered
        if envelope.reply_method:
            call.reply_to = (delivery.stream, envelope.reply_method, envelope.reply_token)
        return call

    def _delivered(self, delivery: _Delivery, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            self._acknowledge(delivery)
            return
        delivery.redelivered = True
        if isinstance(error, Retriable):
            self._later(delivery)
        elif delivery.envelope.reply_method:
            self._reply_failure(delivery, error)
        elif isinstance(error, CallerError) or delivery.attempts >= _ATTEMPTS:
            self._bury(delivery, error)
        else:
            log.warning("message %s to %s failed, trying again: %s", delivery.id, delivery.envelope.stream, error)
            self._later(delivery)

    def _start_work(self, delivery: _Delivery) -> None:
        worker = self._workers.get(delivery.envelope.kind)
        if worker is None:
            log.error("no worker for %r, message %s waits for a host that has one", delivery.envelope.kind, delivery.id)
            return
        work = Work(
            delivery.envelope.kind,
            delivery.id,
            delivery.stream,
            delivery.envelope.payload,
            delivery.redelivered,
            delivery.scanned,
            lambda error: self._work_failed(delivery, error),
        )
        try:
            under_way = worker(work)
        except Exception as error:
            self._work_failed(delivery, error)
            return
        if under_way is not None:
            self._host.create_task(self._work(delivery, under_way))

    async def _work(self, delivery: _Delivery, under_way: Awaitable[None]) -> None:
        try:
            await under_way
        except Exception as error:
            self._work_failed(delivery, error)

    def _work_failed(self, delivery: _Delivery, error: BaseException) -> None:
        delivery.redelivered = delivery.scanned = True
        log.warning("work %s of %s failed, trying again: %r", delivery.id, delivery.stream, error)
        self._later(delivery)

    def _later(self, delivery: _Delivery) -> None:
        delay = min(_FIRST_RETRY_S * 2 ** min(delivery.attempts - 1, 16), _LONGEST_RETRY_S)
        asyncio.get_running_loop().call_later(delay, self._deliver, delivery)

    def _reply_failure(self, delivery: _Delivery, error: BaseException) -> None:
        """A durable call that never reached a turn (no such type, no such method, bad arguments): its caller is
        told."""
        envelope = delivery.envelope
        call = self._host.new_call(delivery.stream, envelope.reply_method)
        call.payload = encode([envelope.reply_token, None, {"type": type(error).__name__, "message": str(error)}])
        call.outbox_id, call.outbox_partition = f"{delivery.id}.failed", delivery.partition
        call.redelivered, call.caller = True, envelope.stream
        call.future.add_done_callback(lambda future: self._failure_told(delivery, future))
        self._host.place(call)

    def _failure_told(self, delivery: _Delivery, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            self._acknowledge(delivery)
        elif isinstance(error, CallerError) or delivery.attempts >= _ATTEMPTS:
            self._bury(delivery, error)
        else:
            self._later(delivery)

    # -- done with a message -------------------------------------------------------------------------------------------

    def _acknowledge(self, delivery: _Delivery) -> None:
        """Remove the row, together with others: losing this to a crash costs a redelivery that finds its receipt."""
        if not self._acks:
            asyncio.get_running_loop().call_later(_ACK_DELAY_S, self.flush)
        self._acks.setdefault(delivery.partition, []).append(delivery.id)

    def flush(self) -> None:
        """Send what has been acknowledged, without waiting for more."""
        acks, self._acks = self._acks, {}
        for partition, ids in acks.items():
            self._submit(partition, tuple(ids), ())

    def _bury(self, delivery: _Delivery, error: BaseException) -> None:
        log.error(
            "message %s from %s to %s.%s is given up and kept as a dead letter: %s",
            delivery.id, delivery.stream, delivery.envelope.stream, delivery.envelope.method, error,
        )  # fmt: skip
        self._submit(delivery.partition, (), ((delivery.id, f"{type(error).__name__}: {error}"),))

    def _submit(self, partition: int, done: tuple[str, ...], dead: tuple[tuple[str, str], ...]) -> None:
        host = self._host
        commit = TurnCommit(
            partition,
            host.epochs[partition],
            "",
            host.new_id(),
            host.clock.now_ms(),
            outbox_done=done,
            outbox_dead=dead,
        )
        ids = [*done, *(message_id for message_id, _ in dead)]
        host.group.submit(commit, lambda outcome: self._submitted(partition, outcome, ids))

    def _submitted(self, partition: int, outcome: StoreError | None, ids: list[str]) -> None:
        # A refusal means the partition is another host's now, which has found the rows itself and delivers them.
        self.finished(ids)
        if isinstance(outcome, StoreUnavailable):  # the rows may still stand: delivered again, they find their receipts
            self._recently.difference_update(ids)
            self.recover([partition])

    # -- dead letters --------------------------------------------------------------------------------------------------

    async def dead_letters(self, limit: int) -> list[DeadLetter]:
        """Of the partitions this host owns, at most `limit`."""
        found: list[DeadLetter] = []
        for partition in self._host.owned():
            rows = await self._host.journal.outbox(partition, "", limit - len(found), dead=True)
            found += [_dead_letter(partition, row) for row in rows]
            if len(found) >= limit:
                break
        return found

    async def settle_dead_letter(self, letter: DeadLetter, *, resend: bool) -> None:
        """Remove it; with `resend` it leaves again, under a new id (the old one is known to have had no effect). Raises
        `CommitRefused`, `StoreUnavailable`."""
        host = self._host
        message = OutboxMessage(f"{host.new_id()}.again", letter.sender, letter.body)
        commit = TurnCommit(
            letter.partition,
            host.epochs[letter.partition],
            "",
            host.new_id(),
            host.clock.now_ms(),
            outbox=(message,) if resend else (),
            outbox_done=(letter.id,),
        )
        answer: asyncio.Future[StoreError | None] = asyncio.get_running_loop().create_future()
        host.group.submit(commit, answer.set_result)
        if (refusal := await answer) is not None:
            raise refusal
        if resend:
            self.recover([letter.partition])

    # -- catching up ---------------------------------------------------------------------------------------------------

    def _room(self) -> int:
        """How many more may be begun."""
        return min(self._max_in_flight - len(self._in_flight) + self._working, _MOST_WORK - self._working)

    def _check_behind(self) -> None:
        if self._room() >= min(self._max_in_flight, _MOST_WORK) // 2:
            self._wake.set()

    async def _scan_all(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            for partition in sorted(self._behind):
                if self._room() <= 0:
                    break
                try:
                    await self._scan(partition)
                except StoreError as error:
                    log.warning("the outbox of partition %d cannot be scanned, trying again: %s", partition, error)
                    asyncio.get_running_loop().call_later(1.0, self._wake.set)

    async def _page(self, partition: int, after: str) -> list[OutboxMessage]:
        self._scanning = True
        self._recently.clear()
        try:
            return await self._host.journal.outbox(partition, after, _PAGE)
        finally:
            self._scanning = False

    async def _scan(self, partition: int) -> None:
        after = ""
        if partition in self._unsure:
            self._unsure.discard(partition)
            for known in [d for d in self._in_flight.values() if d.partition == partition and d.is_work]:
                self._let_go(known.id)
        while True:
            self._missed.discard(partition)
            page = await self._page(partition, after)
            for message in page:
                if message.id in self._in_flight or message.id in self._recently:
                    continue
                if self._room() <= 0:
                    return
                again = partition in self._doubted or not self._host.has_made(message.id)
                envelope = Envelope.decode(message.body)
                self._begin(_Delivery(message, envelope, partition, redelivered=again, scanned=True))
            if page:
                after = page[-1].id
            if len(page) < _PAGE and partition not in self._missed:
                self._behind.discard(partition)
                return


def _dead_letter(partition: int, row: OutboxMessage) -> DeadLetter:
    envelope = Envelope.decode(row.body)
    return DeadLetter(
        row.id,
        partition,
        row.stream,
        envelope.kind,
        envelope.stream,
        envelope.method,
        envelope.payload,
        row.dead,
        row.body,
    )
