"""The outbox at work: what committed turns want done elsewhere is done, exactly once in its effect.

A message is a row that stands from the commit of its turn until it is *acknowledged*: its target's turn has committed
(with a receipt of the message's id) or, for posted work, a turn of its own actor has committed `done`. Delivery starts
from memory right after the commit; after a crash, or when more is waiting than may be in flight, from a scan of the
rows. A message that may have been delivered before is marked so, and the target looks for the receipt first (INV-8).
There is no second queue: memory holds only what is in flight (INV-9).

Messages of one actor to another are delivered in the order of their commit, unless one has to be retried.

What is in flight needs room; messages have theirs, and work has its own. A receiver takes at most half of what all the
others leave, so that those that are stuck leave some to the rest. What has no room waits in its row, and a *backlog*
stands for it: the rows of one partition that are to one receiver, all messages, all work, or just all, from a place on;
but not those for which a narrower one stands. Two invariants:

- A row that stands is in flight, or a backlog stands for it, or it is work that nobody here does.
- A row for which a backlog stands is begun by a scan of that backlog, in the order of the rows, and by nothing else.

A scan goes past what has no room while others may have some, and leaves it to a backlog of its own, which begins there.
So a row is read once for each receiver that was full when the scan came by, not once for each scan.

What keeps a backlog moving, however long it is:

- A receiver is given no more at once than its mailbox takes. What is refused would come again later, behind others.
- Only what an earlier attempt may have recorded is redelivered; the receiver looks for the receipts of all that wait.
- Callers from outside are answered later while there is no room for what their turn sent: who feeds in a closed loop is
  slowed down to what can be delivered. Nothing that is delivered waits for such an answer, and none waits for long.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
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
# Posted work under way at once, on one host.
_MOST_WORK = 10_000
# A receiver's share of the room for messages is no less than one part in so many. So no more receivers than that are
# full at a time: each has backlogs of its own, to be scanned.
_SHARES = 64
# When less than half of a backlog's room is free, it is filled so much later.
_LOOK_S = 0.05
# After a scan that has failed.
_PAUSE_S = 1.0
# Messages that one receiver is given at once: enough to fill the batches of group commit. At most half its mailbox.
_MOST_AT_RECEIVER = 512
_LONGEST_PACE_S = 1.0
# What a backlog is of, and room is for, if not one receiver, whose stream has a slash.
_ALL = "all"
_MESSAGES = "messages"
_WORK = "work"


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
        return _is_work(self.envelope)


class _Line:
    """Of one receiver: how many messages are in flight to it (`taken`), how many of them it has been given and has not
    answered, and those that wait behind these. The rest has been delivered, or waits to be tried again."""

    __slots__ = ("given", "limit", "taken", "waiting")

    def __init__(self, limit: int) -> None:
        self.taken = 0
        self.given = 0
        self.limit = limit
        self.waiting: deque[_Delivery] = deque()


class _Backlog:
    """Rows of one partition `of` one receiver, `_MESSAGES`, `_WORK` or `_ALL`: `first`, if that is known, and all of
    them after the row `after` ("": from the beginning). Those before are in flight, or another backlog stands for them,
    so that to begin from the beginning again would be right as well.

    `doubted`: there may be messages among them that were made by this host and have been delivered, by it or another
    owner. `unsure`: the work under way is to be compared with the rows."""

    __slots__ = ("after", "doubted", "first", "of", "partition", "paused", "unsure")

    def __init__(self, partition: int, of: str, *, doubted: bool, unsure: bool = False) -> None:
        self.partition = partition
        self.of = of
        self.first: OutboxMessage | None = None
        self.after = ""
        self.doubted = doubted
        self.unsure = unsure
        self.paused = False  # the store has failed, and is given a moment

    def begin_at(self, row: OutboxMessage) -> None:
        # Invariant: `first` is not in flight. So its row stands, unless a turn finishes it (`_forget_places`).
        self.first, self.after = row, row.id

    def go_on_after(self, row: OutboxMessage) -> None:
        self.first, self.after = None, row.id


class Outbox:
    def __init__(self, host: Host, workers: dict[str, Worker], max_in_flight: int) -> None:
        self._host = host
        self._workers = workers
        self._max_in_flight = max_in_flight
        self._in_flight: dict[str, _Delivery] = {}
        # How many of them are work: that may take days, and must not hold up the messages to actors.
        self._working = 0
        self._lines: dict[str, _Line] = {}
        # By what they are of, and partition. Both in the order in which they are looked at: who was comes last.
        self._backlogs: dict[str, dict[int, _Backlog]] = {}
        # Partitions in which something was left to the rows since the current scan read its page.
        self._missed: set[int] = set()
        # What was finished while a scan was under way: its page may still show it.
        self._scanning = False
        self._recently: set[str] = set()
        # What the messages that were dispatched last had no room in.
        self._short_of: str | None = None
        # Answers that wait for room, by what it is for; and what ends their wait.
        self._paced: dict[str, tuple[asyncio.TimerHandle, list[Callable[[], None]]]] = {}
        # Kinds of work that nobody here does.
        self._undone: set[str] = set()
        self._acks: dict[int, list[str]] = {}
        self._wake = asyncio.Event()
        # The next look is at all backlogs that have any room, and by when.
        self._look_at_all = False
        self._look: asyncio.TimerHandle | None = None
        self._scanner: asyncio.Task[None] | None = None
        self._stopped = False

    def start(self, partitions: list[int]) -> None:
        """Begin, with what stands in the rows of the partitions this host owns."""
        for partition in partitions:
            self._scan_anew(partition, doubted=False)
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
        for partition in partitions:
            self._scan_anew(partition, doubted=True)
        self._wake.set()

    def dispatch(self, partition: int, messages: list[tuple[OutboxMessage, Envelope]]) -> None:
        """Deliver messages of a turn that has just been committed."""
        self._short_of = None
        if self._stopped:
            return
        for message, envelope in messages:
            if message.id in self._in_flight or not self._has_worker(envelope):  # in flight: a scan has found its row
                continue
            backlog = self._backlog_with(partition, envelope)
            if backlog is None:
                of = self._lacks_room(envelope)
                if of is None:
                    self._begin(_Delivery(message, envelope, partition, redelivered=False, scanned=False))
                    continue
                backlog = self._begin_backlog(_Backlog(partition, of, doubted=False), message)
            self._missed.add(partition)
            if backlog.of != _WORK:
                self._short_of = backlog.of

    def finished(self, message_ids: list[str]) -> None:
        """A committed turn removed these rows itself."""
        not_begun = {message_id for message_id in message_ids if not self._let_go(message_id)}
        if not_begun and self._backlogs:
            self._forget_places(not_begun)
        if self._scanning:
            self._recently.update(message_ids)
        self._offer_room()

    @property
    def crowded(self) -> bool:
        """There was no room for messages of the last `dispatch`, and still is little: to be asked right after it."""
        of = self._short_of
        return of is not None and not self._stopped and not self._has_ample_room(of)

    def pace(self, answer: Callable[[], None]) -> None:
        """Where it is crowded: call back when there is room again, or when a moment has passed, since room may depend
        on who waits here."""
        of = self._short_of
        assert of is not None
        if of not in self._paced:
            timer = asyncio.get_running_loop().call_later(_LONGEST_PACE_S, self._end_pace, of)
            self._paced[of] = timer, []
        self._paced[of][1].append(answer)

    def end_pacing(self) -> None:
        while self._paced:
            self._end_pace(next(iter(self._paced)))

    def _end_pace(self, of: str) -> None:
        timer, answers = self._paced.pop(of)
        timer.cancel()  # or it would end the next wait too early
        for answer in answers:
            answer()

    def is_at_work(self, message_id: str) -> bool:
        """Whether posted work is with its worker here: delivered, and not finished."""
        return message_id in self._in_flight and not self._stopped

    def forget_partition(self, partition: int) -> None:
        """Its rows are another host's to deliver, and its work to finish: it takes no room here."""
        self._drop_backlogs(partition)
        self._let_go_work(partition)
        self._offer_room()

    # -- delivering ----------------------------------------------------------------------------------------------------

    def _begin(self, delivery: _Delivery) -> None:
        self._in_flight[delivery.id] = delivery
        if delivery.is_work:
            self._working += 1
        else:
            self._line(delivery.envelope.stream).taken += 1
        self._deliver(delivery)

    def _let_go(self, message_id: str) -> bool:
        """False: it was not in flight."""
        delivery = self._in_flight.pop(message_id, None)
        if delivery is None:
            return False
        if delivery.is_work:
            self._working -= 1
        else:
            stream = delivery.envelope.stream
            line = self._lines[stream]
            line.taken -= 1
            self._drop_if_empty(stream, line)
        return True

    def _let_go_work(self, partition: int) -> None:
        for known in [d for d in self._in_flight.values() if d.partition == partition and d.is_work]:
            self._let_go(known.id)

    def _line(self, stream: str) -> _Line:
        line = self._lines.get(stream)
        if line is None:
            line = self._lines[stream] = _Line(self._limit(stream))
        return line

    def _drop_if_empty(self, stream: str, line: _Line) -> None:
        if not line.taken and not line.given and not line.waiting and self._lines.get(stream) is line:
            del self._lines[stream]

    def _deliver(self, delivery: _Delivery) -> None:
        if not self._is_ours(delivery):
            return
        if delivery.is_work:
            delivery.attempts += 1
            self._start_work(delivery)
            return
        stream = delivery.envelope.stream
        line = self._lines[stream]
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

    # -- room ----------------------------------------------------------------------------------------------------------

    def _room(self, of: str) -> tuple[int, int]:
        """How many more may be begun, and how many may be in flight at all."""
        if of == _ALL:  # a scan goes past whatever has none
            return 1, 1
        if of == _WORK:
            return _MOST_WORK - self._working, _MOST_WORK
        most = self._max_in_flight
        free = most - len(self._in_flight) + self._working
        if of == _MESSAGES:
            return free, most
        line = self._lines.get(of)
        taken = line.taken if line is not None else 0
        share = max((free + taken) // 2, most // _SHARES, 1)
        return min(free, share - taken), share

    def _has_ample_room(self, of: str) -> bool:
        room, limit = self._room(of)
        return room > 0 and 2 * room >= limit

    def _has_little_room(self, of: str) -> bool:
        room, limit = self._room(of)
        return 0 < 2 * room < limit

    def _lacks_room(self, envelope: Envelope) -> str | None:
        """What there is no room in for this. None: it may be begun."""
        if _is_work(envelope):
            return _WORK if self._working >= _MOST_WORK else None
        if self._room(_MESSAGES)[0] <= 0:
            return _MESSAGES
        return envelope.stream if self._room(envelope.stream)[0] <= 0 else None

    def _offer_room(self) -> None:
        """Something has ended: go on with what waited for that."""
        if not self._backlogs and not self._paced:
            return
        for of in tuple(self._paced):
            if of in self._paced and (of not in self._backlogs or self._has_ample_room(of)):
                self._end_pace(of)
        if not self._wake.is_set():
            if any(self._has_ample_room(of) for of in self._backlogs):
                self._wake.set()
            else:
                self._look_later()

    def _look_later(self) -> None:
        """Room that is worth no scan by itself is filled all the same, many at a time: the rest of it may be taken for
        days."""
        if self._look is None and any(self._has_little_room(of) for of in self._backlogs):
            self._look = asyncio.get_running_loop().call_later(_LOOK_S, self._look_now)

    def _look_now(self) -> None:
        self._look, self._look_at_all = None, True
        self._wake.set()

    # -- backlogs ------------------------------------------------------------------------------------------------------

    def _has_worker(self, envelope: Envelope) -> bool:
        """Work that nobody here does takes no room, and waits in its row for a host that has its worker."""
        if not _is_work(envelope) or envelope.kind in self._workers:
            return True
        if envelope.kind not in self._undone:
            self._undone.add(envelope.kind)
            log.error("no worker for %r: what is posted for it waits for a host that has one", envelope.kind)
        return False

    def _backlog_with(self, partition: int, envelope: Envelope) -> _Backlog | None:
        """Which stands for a message that is committed now."""
        backlogs = self._backlogs
        if not backlogs:
            return None
        for of in (_WORK, _ALL) if _is_work(envelope) else (envelope.stream, _MESSAGES, _ALL):
            if of in backlogs and partition in backlogs[of]:
                return backlogs[of][partition]
        return None

    def _begin_backlog(self, backlog: _Backlog, first: OutboxMessage | None = None) -> _Backlog:
        if first is not None:
            backlog.begin_at(first)
        self._backlogs.setdefault(backlog.of, {})[backlog.partition] = backlog
        return backlog

    def _scan_anew(self, partition: int, *, doubted: bool) -> None:
        self._drop_backlogs(partition)
        self._begin_backlog(_Backlog(partition, _ALL, doubted=doubted, unsure=doubted))

    def _drop_backlogs(self, partition: int) -> None:
        for backlog in [each[partition] for each in self._backlogs.values() if partition in each]:
            self._drop_backlog(backlog)

    def _drop_backlog(self, backlog: _Backlog) -> None:
        if self._stands(backlog):
            del self._backlogs[backlog.of][backlog.partition]
            if not self._backlogs[backlog.of]:
                del self._backlogs[backlog.of]

    def _stands(self, backlog: _Backlog) -> bool:
        return self._backlogs.get(backlog.of, {}).get(backlog.partition) is backlog

    def _forget_places(self, gone: set[str]) -> None:
        """A turn may finish work that has not been begun."""
        for backlogs in self._backlogs.values():
            for backlog in backlogs.values():
                if backlog.first is not None and backlog.first.id in gone:
                    backlog.first = None

    # -- scanning ------------------------------------------------------------------------------------------------------

    async def _scan_all(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            at_all, self._look_at_all = self._look_at_all, False
            for backlog in [each for of in self._backlogs.values() for each in of.values()]:
                if not self._stands(backlog) or backlog.paused or not self._is_worth_a_scan(backlog.of, at_all):
                    continue
                self._comes_last(backlog)
                try:
                    await self._scan(backlog)
                except StoreError as error:
                    partition = backlog.partition
                    log.warning("the outbox of partition %d cannot be scanned, trying again: %s", partition, error)
                    backlog.paused = True
                    asyncio.get_running_loop().call_later(_PAUSE_S, self._end_pause, backlog)
            self._look_later()

    def _end_pause(self, backlog: _Backlog) -> None:
        backlog.paused = False
        self._wake.set()

    def _is_worth_a_scan(self, of: str, at_all: bool) -> bool:
        return self._room(of)[0] > 0 if at_all else self._has_ample_room(of)

    def _comes_last(self, backlog: _Backlog) -> None:
        """Round robin, so that nobody takes what becomes free again and again."""
        others = self._backlogs.pop(backlog.of)
        others[backlog.partition] = others.pop(backlog.partition)
        self._backlogs[backlog.of] = others

    async def _page(self, partition: int, after: str) -> list[OutboxMessage]:
        self._scanning = True
        self._recently.clear()
        try:
            return await self._host.journal.outbox(partition, after, _PAGE)
        finally:
            self._scanning = False

    async def _scan(self, backlog: _Backlog) -> None:
        """Begin what there is room for. When the end is reached, the backlog is no more."""
        partition = backlog.partition
        while self._host.epochs[partition]:
            if backlog.unsure:
                backlog.unsure = False
                self._let_go_work(partition)
            self._missed.discard(partition)
            page = await self._page(partition, backlog.after)
            if not self._stands(backlog):  # the partition is lost, or to be scanned anew
                return
            for row in page if backlog.first is None else [backlog.first, *page]:
                if not self._reach(backlog, row):
                    backlog.begin_at(row)
                    return
            if page:
                backlog.go_on_after(page[-1])
            at_end = len(page) < _PAGE and partition not in self._missed
            if at_end or all(partition in self._backlogs.get(of, {}) for of in (_MESSAGES, _WORK)):
                break
        self._drop_backlog(backlog)

    def _reach(self, backlog: _Backlog, row: OutboxMessage) -> bool:
        """Begin a row, if this backlog stands for it. False: there is no room."""
        if row.id in self._in_flight or row.id in self._recently:
            return True
        partition, envelope = backlog.partition, Envelope.decode(row.body)
        if self._backlog_with(partition, envelope) is not backlog or not self._has_worker(envelope):
            return True
        of = self._lacks_room(envelope)
        if of is None:
            again = backlog.doubted or not self._host.has_made(row.id)
            self._begin(_Delivery(row, envelope, partition, redelivered=again, scanned=True))
        elif of == backlog.of or (of == _MESSAGES and backlog.of != _ALL):
            return False
        else:  # the others may go past it
            self._begin_backlog(_Backlog(partition, of, doubted=backlog.doubted), row)
        return True


def _is_work(envelope: Envelope) -> bool:
    return envelope.kind != "turn"


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
