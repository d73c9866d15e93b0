"""The outbox at work: what committed turns want done elsewhere is done, exactly once in its effect.

A message is a row that stands from the commit of its turn until it is *acknowledged*: its target's turn has committed
(with a receipt of the message's id) or, for posted work, a turn of its own actor has committed `done`. Delivery starts
from memory right after the commit; after a crash, or when more is waiting than may be in flight, from a scan of the
rows. A message that may have been delivered before is marked so, and the target looks for the receipt first (INV-8).
There is no second queue: memory holds only what is in flight (INV-9).

Messages of one actor to another are delivered in the order of their commit, unless one has to be retried.

What keeps a backlog moving, however long it is:

- A receiver is given no more at once than its mailbox takes. What is refused would come again later, behind others.
- Only what an earlier attempt may have recorded is redelivered; the receiver looks for the receipts of all that wait.
- Callers from outside are answered later while there is no room: who feeds in a closed loop is slowed down to what can
  be delivered. Nothing that is delivered waits for such an answer, and none waits for long.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from actors.errors import CallerError, OutcomeUnknown, Retriable
from actors.errortext import message_of
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
# A one-way message whose turn has failed so often is given up (kept as a dead letter). What was refused has not failed.
_FAILURES = 8
_PAGE = 1000
# Posted work under way at once, on one host. More waits in its rows, and so do messages behind it.
_MOST_WORK = 10_000
# Messages that one receiver is given at once: enough to fill the batches of group commit. At most half its mailbox.
_MOST_AT_RECEIVER = 512
_LONGEST_PACE_S = 1.0


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
    __slots__ = ("attempts", "envelope", "failures", "id", "partition", "redelivered", "scanned", "stream")

    def __init__(
        self, message: OutboxMessage, envelope: Envelope, partition: int, *, redelivered: bool, scanned: bool
    ) -> None:
        self.id = message.id
        self.stream = message.stream
        self.envelope = envelope
        self.partition = partition
        self.redelivered = redelivered
        self.scanned = scanned
        # Those of them that failed are counted apart from those that were refused.
        self.attempts = 0
        self.failures = 0

    @property
    def is_work(self) -> bool:
        return self.envelope.kind != "turn"


class _Line:
    """Of one receiver: how many messages it has been given and has not answered, and the ones behind them."""

    __slots__ = ("given", "limit", "waiting")

    def __init__(self, limit: int) -> None:
        self.given = 0
        self.limit = limit
        self.waiting: deque[_Delivery] = deque()


class Outbox:
    def __init__(self, host: Host, workers: dict[str, Worker], max_in_flight: int) -> None:
        self._host = host
        self._workers = workers
        self._max_in_flight = max_in_flight
        self._in_flight: dict[str, _Delivery] = {}
        # How many of them are work: that may take days, and must not hold up the messages to actors.
        self._working = 0
        self._lines: dict[str, _Line] = {}
        # Answers that wait for room.
        self._paced: list[Callable[[], None]] = []
        # Partitions with rows that are not in flight. Nothing of them is delivered from memory, which keeps their
        # order.
        self._behind: set[int] = set()
        # Partitions in which something was committed since their current scan read its page.
        self._missed: set[int] = set()
        # The one whose scan ran out of room: the others come first the next time.
        self._last = -1
        # Partitions in whose rows there may be messages made by this host that have been delivered already, by it or by
        # another owner; until a scan has seen all of them.
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
        self.end_pacing()

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    def recover(self, partitions: list[int]) -> None:
        """Deliver what stands in the rows of partitions that are newly owned, or in which the outcome of a commit is
        unknown. Work under way is handed to its worker again: a turn that is recorded after all may have added to it,
        or finished it."""
        self._doubted.update(partitions)
        self._unsure.update(partitions)
        self._missed.update(partitions)
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
        if self._behind or self._paced:
            self._check_behind()
        if self._scanning:
            self._recently.update(message_ids)

    @property
    def crowded(self) -> bool:
        """Rows wait for room."""
        return bool(self._behind) and self._room_for_messages() < self._max_in_flight // 2

    def pace(self, answer: Callable[[], None]) -> None:
        """Call back when there is room again, or when a moment has passed: room may depend on who waits here."""
        if not self._paced:
            asyncio.get_running_loop().call_later(_LONGEST_PACE_S, self.end_pacing)
        self._paced.append(answer)

    def end_pacing(self) -> None:
        paced, self._paced = self._paced, []
        for answer in paced:
            answer()

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
        if not self._is_ours(delivery):
            return
        if delivery.is_work:
            delivery.attempts += 1
            self._start_work(delivery)
            return
        stream = delivery.envelope.stream
        line = self._lines.get(stream)
        if line is None:
            line = self._lines[stream] = _Line(self._limit(stream))
        line.waiting.append(delivery)
        self._give(stream, line)

    def _is_ours(self, delivery: _Delivery) -> bool:
        """Whether it is still to be delivered, and from here."""
        if self._stopped or self._host.aborted or self._in_flight.get(delivery.id) is not delivery:
            return False
        if not self._host.epochs[delivery.partition]:  # its new owner has found the row
            self.finished([delivery.id])
            return False
        return True

    def _limit(self, stream: str) -> int:
        definition = self._host.types.get(stream.partition("/")[0])
        mailbox = definition.options.mailbox_limit if definition is not None else _MOST_AT_RECEIVER
        return max(1, min(_MOST_AT_RECEIVER, mailbox // 2))

    def _give(self, stream: str, line: _Line) -> None:
        while line.waiting and line.given < line.limit:
            delivery = line.waiting.popleft()
            if not self._is_ours(delivery):
                continue
            line.given += 1
            delivery.attempts += 1
            call = self._call(delivery)
            call.future.add_done_callback(functools.partial(self._answered, delivery, call))
            self._host.place(call)
        if not line.given and not line.waiting:
            self._lines.pop(stream, None)

    def _answered(self, delivery: _Delivery, call: Call, future: asyncio.Future[Any]) -> None:
        stream = delivery.envelope.stream
        line = self._lines[stream]
        line.given -= 1
        self._give(stream, line)
        self._delivered(delivery, call, future)

    def _call(self, delivery: _Delivery) -> Call:
        envelope = delivery.envelope
        call = self._host.new_call(envelope.stream, envelope.method)
        call.payload, call.trace_id, call.caller = envelope.payload, envelope.trace_id, delivery.stream
        call.outbox_id, call.outbox_partition = delivery.id, delivery.partition
        call.redelivered = delivery.redelivered
        if envelope.reply_method:
            call.reply_to = (delivery.stream, envelope.reply_method, envelope.reply_token)
        return call

    def _delivered(self, delivery: _Delivery, call: Call, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            self._acknowledge(delivery)
            return
        # Whatever else went wrong left no trace (INV-6), unless this was a second attempt on its way to another host.
        if isinstance(error, OutcomeUnknown) or call.redelivered:
            delivery.redelivered = True
        if delivery.envelope.reply_method and not isinstance(error, Retriable):
            self._reply_failure(delivery, error)
        else:
            self._not_delivered(delivery, error)

    def _not_delivered(self, delivery: _Delivery, error: BaseException) -> None:
        if isinstance(error, Retriable):
            self._later(delivery, delivery.attempts - delivery.failures)
            return
        delivery.failures += 1
        if isinstance(error, CallerError) or delivery.failures >= _FAILURES:
            self._bury(delivery, error)
        else:
            log.warning("message %s to %s failed, trying again: %s", delivery.id, delivery.envelope.stream, error)
            self._later(delivery, delivery.failures)

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
        self._later(delivery, delivery.attempts)

    def _later(self, delivery: _Delivery, times: int) -> None:
        """Try again, after a pause that grows with how many times that has been so."""
        delay = min(_FIRST_RETRY_S * 2 ** min(times - 1, 16), _LONGEST_RETRY_S)
        asyncio.get_running_loop().call_later(delay, self._deliver, delivery)

    def _reply_failure(self, delivery: _Delivery, error: BaseException) -> None:
        """A durable call that never reached a turn (no such type, no such method, bad arguments): its caller is
        told."""
        envelope = delivery.envelope
        call = self._host.new_call(delivery.stream, envelope.reply_method)
        failure = {"type": type(error).__name__, "message": message_of(error)}
        call.payload = encode([envelope.reply_token, None, failure])
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
        else:
            self._not_delivered(delivery, error)

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
        self._submit(delivery.partition, (), ((delivery.id, f"{type(error).__name__}: {message_of(error)}"),))

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
        """Remove it; with `resend` it leaves again, under a new id (the old one is known to have had no effect), also
        when the caller does not wait for this. Raises `CommitRefused`, `StoreUnavailable`: it may leave all the
        same."""
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

        def settled(outcome: StoreError | None) -> None:
            if resend:  # whatever the outcome, and whoever still waits: the row may stand
                self.recover([letter.partition])
            if not answer.done():
                answer.set_result(outcome)

        host.group.submit(commit, settled)
        if (refusal := await answer) is not None:
            raise refusal

    # -- catching up ---------------------------------------------------------------------------------------------------

    def _room(self) -> int:
        """How many more may be begun."""
        return min(self._room_for_messages(), _MOST_WORK - self._working)

    def _room_for_messages(self) -> int:
        return self._max_in_flight - len(self._in_flight) + self._working

    def _check_behind(self) -> None:
        if self._room() >= min(self._max_in_flight, _MOST_WORK) // 2:
            self._wake.set()
        if self._paced and not self.crowded:
            self.end_pacing()

    async def _scan_all(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            for partition in sorted(self._behind, key=lambda p: (p <= self._last, p)):
                if self._room() <= 0:
                    break
                self._last = partition
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
        while True:
            if partition in self._unsure:  # from the beginning, also when that is learned in the middle
                after = ""
                self._unsure.discard(partition)
                for known in [d for d in self._in_flight.values() if d.partition == partition and d.is_work]:
                    self._let_go(known.id)
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
                self._doubted.discard(partition)
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
