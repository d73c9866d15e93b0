"""The outbox at work: what committed turns want done elsewhere is done, exactly once in its effect.

A message is a row that stands from the commit of its turn until it is *acknowledged*: its target's turn has committed
(with a receipt of the message's id) or, for posted work, a turn of its own actor has committed `done`. Delivery starts
from memory right after the commit; after a crash, or when more is waiting than may be in flight, from a scan of the
rows. A message that may have been delivered before is marked so, and the target looks for the receipt first (INV-8).
There is no second queue: memory holds only what is in flight (INV-9).

Messages of one actor to another are delivered in the order of their commit, unless one has to be retried.

What is in flight needs room (`room.py`). What has none waits in its row, as part of a backlog (`backlogs.py`), and
callers from outside wait with it (`pacing.py`). What keeps a backlog moving, however long it is:

- A receiver is given no more at once than its mailbox takes. What is refused would come again later, behind others.
- Only what an earlier attempt may have recorded is redelivered; the receiver looks for the receipts of all that wait.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple

from actors.backlogs import Backlogs
from actors.errors import CallerError, OutcomeUnknown, Retriable
from actors.errortext import message_of
from actors.pacing import Pacing
from actors.room import WORK, Room
from statestores.codec import encode
from statestores.errors import StoreError, StoreUnavailable
from statestores.model import OutboxMessage, TurnCommit

if TYPE_CHECKING:
    from actors.host import Host
    from actors.message import Call, Envelope

log = logging.getLogger(__name__)

_ACK_DELAY_S = 0.002
_FIRST_RETRY_S = 0.1
_LONGEST_RETRY_S = 30.0
# A one-way message whose turn has failed so often is given up (kept as a dead letter). What was refused has not failed.
_FAILURES = 8
# Messages that one receiver is given at once: enough to fill the batches of group commit. At most half its mailbox.
_MOST_AT_RECEIVER = 512


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


class _Line:
    """Of one receiver: how many of the messages in flight to it it has been given and has not answered, and those that
    wait behind these. The rest has been delivered, or waits to be tried again."""

    __slots__ = ("given", "limit", "waiting")

    def __init__(self, limit: int) -> None:
        self.given = 0
        self.limit = limit
        self.waiting: deque[_Delivery] = deque()


class Outbox:
    def __init__(self, host: Host, workers: dict[str, Worker], max_in_flight: int) -> None:
        self._host = host
        self._workers = workers
        self._in_flight: dict[str, _Delivery] = {}
        self._lines: dict[str, _Line] = {}
        self._room = Room(max_in_flight)
        self._backlogs = Backlogs(host, self, self._room)
        self._pacing = Pacing(self._is_free)
        # Kinds of work that nobody here does.
        self._undone: set[str] = set()
        self._acks: dict[int, list[str]] = {}
        self._stopped = False

    def start(self, partitions: list[int]) -> None:
        """Begin, with what stands in the rows of the partitions this host owns."""
        for partition in partitions:
            self._backlogs.begin_anew(partition, doubted=False)
        self._backlogs.start()

    async def stop(self) -> None:
        """Stop delivering; what is in flight may finish and is acknowledged."""
        self._stopped = True
        await self._backlogs.stop()
        self.flush()
        self._pacing.end()

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    def is_in_flight(self, message_id: str) -> bool:
        return message_id in self._in_flight

    def recover(self, partitions: list[int]) -> None:
        """Deliver what stands in the rows of partitions that are newly owned, or in which the outcome of a commit is
        unknown. Work under way is handed to its worker again: a turn that is recorded after all may have added to it,
        or finished it."""
        for partition in partitions:
            self._backlogs.begin_anew(partition, doubted=True)

    def dispatch(self, partition: int, messages: list[tuple[OutboxMessage, Envelope]]) -> str | None:
        """Deliver messages of a turn that has just been committed. What the last one of those that have to wait had no
        room in (see `Room`; posted work is not counted), or None."""
        short_of: str | None = None
        if self._stopped:
            return None
        for message, envelope in messages:
            if message.id in self._in_flight or not self.has_worker(envelope):  # in flight: a scan has found its row
                continue
            of = self._backlogs.take_in(partition, message, envelope)
            if of is None:
                self.begin(partition, message, envelope, redelivered=False, scanned=False)
            elif of != WORK:
                short_of = of
        return short_of

    def finished(self, message_ids: list[str]) -> None:
        """A committed turn removed these rows itself."""
        not_begun = {message_id for message_id in message_ids if not self._let_go(message_id)}
        self._backlogs.finished(message_ids, not_begun)
        self._offer_room()

    def pace(self, short_of: str, answer: Callable[[], None], deadline: float | None) -> None:
        """Call back when there is room again for what `dispatch` had none for, or as soon as `Pacing.wait` says."""
        if self._stopped or self._room.is_ample_for(short_of):
            answer()
        else:
            self._pacing.wait(short_of, answer, deadline)

    def end_pacing(self) -> None:
        """Nobody waits for room any longer."""
        self._pacing.end()

    def _is_free(self, of: str) -> bool:
        return of not in self._backlogs or self._room.is_ample_for(of)

    def is_at_work(self, message_id: str) -> bool:
        """Whether posted work is with its worker here: delivered, and not finished."""
        return message_id in self._in_flight and not self._stopped

    def has_worker(self, envelope: Envelope) -> bool:
        """Work that nobody here does takes no room, and waits in its row for a host that has its worker."""
        if not envelope.is_work or envelope.kind in self._workers:
            return True
        if envelope.kind not in self._undone:
            self._undone.add(envelope.kind)
            log.error("no worker for %r: what is posted for it waits for a host that has one", envelope.kind)
        return False

    def forget_partition(self, partition: int) -> None:
        """Its rows are another host's to deliver, and its work to finish: it takes no room here."""
        self._backlogs.drop(partition)
        self.let_go_work(partition)
        self._offer_room()

    def _offer_room(self) -> None:
        if self._pacing:
            self._pacing.offer()
        self._backlogs.offer_room()

    # -- delivering ----------------------------------------------------------------------------------------------------

    def begin(
        self, partition: int, message: OutboxMessage, envelope: Envelope, *, redelivered: bool, scanned: bool
    ) -> None:
        """There is room for it."""
        delivery = _Delivery(message, envelope, partition, redelivered=redelivered, scanned=scanned)
        self._in_flight[delivery.id] = delivery
        self._room.take(envelope)
        self._deliver(delivery)

    def _let_go(self, message_id: str) -> bool:
        """Whether it was in flight until now."""
        delivery = self._in_flight.pop(message_id, None)
        if delivery is None:
            return False
        self._room.give_back(delivery.envelope)
        return True

    def let_go_work(self, partition: int) -> None:
        """Whoever does it may go on; it is no longer known here."""
        for known in [d for d in self._in_flight.values() if d.partition == partition and d.envelope.is_work]:
            self._let_go(known.id)

    def _line(self, stream: str) -> _Line:
        line = self._lines.get(stream)
        if line is None:
            line = self._lines[stream] = _Line(self._limit(stream))
        return line

    def _drop_if_empty(self, stream: str, line: _Line) -> None:
        if not line.given and not line.waiting and self._lines.get(stream) is line:
            del self._lines[stream]

    def _deliver(self, delivery: _Delivery) -> None:
        if not self._is_ours(delivery):
            return
        if delivery.envelope.is_work:
            delivery.attempts += 1
            self._start_work(delivery)
            return
        stream = delivery.envelope.stream
        line = self._line(stream)
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
        self._drop_if_empty(stream, line)

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
            under_way = self._workers[work.kind](work)
        except Exception as error:
            self._work_failed(delivery, error)
            return
        if under_way is not None:
            task = self._host.create_task(self._work(delivery, under_way))
            if isinstance(under_way, Coroutine):  # the host may stop before it has begun
                task.add_done_callback(lambda _: under_way.close())

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
            self.recover([partition])
