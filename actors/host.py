"""The host: everything that runs actors in one process, put together.

It owns partitions, keeps the activations of their actors, and has one group commit through which every decision of all
of them becomes durable. What it holds in memory can be lost at any moment: a successor finds everything unfinished by
scanning the partitions it takes over (INV-9).
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import secrets
import sys
from typing import TYPE_CHECKING, Any

from actors.activation import Activation
from actors.builtins import ACTIVE_ONLY, BUILTINS
from actors.clock import Clock, SystemClock
from actors.deadletters import DeadLetters
from actors.definition import HOOKS
from actors.errors import (
    ActorError,
    ActorMoved,
    ActorNotActive,
    DeadlineExceeded,
    HostStopping,
    NotOwner,
    OutcomeUnknown,
    Retriable,
    UnknownActorType,
    UnknownMethod,
)
from actors.errortext import message_of
from actors.message import Call
from actors.names import check_name
from actors.outbox import Outbox, Worker
from actors.ownership import Ownership
from actors.placement.local import LocalPlacement
from actors.placement.owners import make_owner
from actors.reminders import Reminders
from actors.timers import Timers
from actors.turn import _current
from actors.turntask import cancel_turn
from actors.waits import Waits
from statestores.errors import StoreError
from statestores.groupcommit import GroupCommit
from statestores.model import partition_of

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Coroutine, Iterable, Iterator, Mapping, Sequence

    from actors.client import ActorClient
    from actors.definition import ActorDefinition, Method
    from actors.placement import Placement
    from actors.turn import Turn
    from statestores.errors import StaleEpoch
    from statestores.store import Journal

log = logging.getLogger(__name__)

_MOST_ATTEMPTS = 8
_RETRY_S = 0.02
_SWEEP_SLICE = 2_000
# When so many activations have left, the table of the others is looked at; and it is made anew when it takes more than
# so much for each of them. (A dict that has only grown takes up to 44 bytes each.)
_LOOK_AT_TABLE_EVERY = 4096
_MOST_TABLE_BYTES = 256
# Activations whose last turn, or the wait for it, goes on at the same time.
_MOST_LEAVING = 100
# How long what a stop has cancelled may clean up before the leases are ended without it.
_LETTING_GO_S = 1.0
_PURGE_EVERY_S = 60.0
_PURGED_AT_ONCE = 500  # what one step of the store may take, since commits wait behind it


class Host:
    """Runs the actors of the given types. `start` takes partitions over, `stop` drains and gives them back.

    `placement` brings calls to the host that owns their actor; by default this one, which then owns all partitions. On
    a cluster somebody else says which ones it is to `take` and to `give` back. `workers` do posted work by kind (see
    `Turn.post`). `lease_s` is how long reads may be served after the store was last asked, and how long a crashed host
    on another machine is waited for. `store_patience_s`: how long commits are repeated while the store is away before
    their callers get `OutcomeUnknown`.
    """

    def __init__(
        self,
        journal: Journal,
        types: Iterable[ActorDefinition],
        *,
        clock: Clock | None = None,
        host_id: str | None = None,
        lease_s: float = 10.0,
        workers: Mapping[str, Worker] | None = None,
        max_in_flight_messages: int = 8192,
        store_patience_s: float = 30.0,
        placement: Callable[[Host], Placement] = LocalPlacement,
    ) -> None:
        from actors.client import ActorClient

        self.journal = journal
        self.types: dict[str, ActorDefinition] = {}
        for definition in types:
            if self.types.setdefault(definition.name, definition) is not definition:
                raise ValueError(f"two actor types are named {definition.name!r}: give one @actor(name=…)")
        self.clock: Clock = clock if clock is not None else SystemClock()
        unique = host_id if host_id is not None else secrets.token_hex(6)
        self.owner = make_owner(unique)
        self.group = GroupCommit(journal, patience_s=store_patience_s)
        self.activations: dict[str, Activation] = {}
        self.waits = Waits()
        # Told of calls of turns that have to queue.
        self.when_standing: Callable[[Call], None] | None = None
        self.ownership = Ownership(journal, self.owner, self.clock, lease_s, self._lost)
        self.epochs = self.ownership.epochs
        self.lease_holds = self.ownership.lease_holds
        self.reminders = Reminders(self)
        self.timers = Timers(self)
        self.outbox = Outbox(self, dict(workers or {}), max_in_flight_messages)
        self.dead_letters = DeadLetters(self)
        self.placement: Placement = placement(self)
        self.client: ActorClient = ActorClient(self)
        self.draining = False
        self.aborted = False
        self._unique = unique
        self._id_prefix = f"{secrets.token_hex(6)}-"
        self._ids = 0
        # Streams whose former activation still has turns at the store.
        self._unsettled: dict[str, Activation] = {}
        # Idle activations whose `on_deactivate` runs.
        self._leaving: set[asyncio.Task[Any]] = set()
        # What every task of the host begins with: context variables as they were when it started, so that nothing of
        # the caller who has it made is seen in it.
        self._context = contextvars.Context()
        # In the order of their start, not of their addresses: a simulated run must be the same each time. Each with the
        # call that it is to answer, if it was made for one.
        self._tasks: dict[asyncio.Task[Any], Call | None] = {}
        self.when_started: list[Callable[[], None]] = []
        self.when_stopped: list[Callable[[], None]] = []
        self.when_lost: list[Callable[[int], None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self.loop_time: Callable[[], float] = self.clock.monotonic  # the loop's own clock, once started

    # -- life ----------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take over the partitions that are ours from the beginning, and find what was left unfinished in them. Raises
        `StoreInUse`, `StoreError`."""
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self.loop_time = self._loop.time
        self.group.start()
        try:
            await self.placement.start()
        except BaseException:
            await self.group.close()
            raise
        self._id_prefix = f"{self._unique[:12]}-{self._first_epoch() or secrets.token_hex(8)}-"
        self.ownership.start_renewing()
        self.outbox.start(self.ownership.owned)
        self.reminders.start()
        self.create_task(self._sweep())
        self.create_task(self._purge())
        for callback in self.when_started:
            callback()

    async def take(self, partitions: Sequence[int], *, force: bool) -> None:
        """Own these partitions too, from now on, and find what was left unfinished in them. `force`: although the lease
        of another owner runs, which is safe (INV-2) but lets that owner, if it lives, answer reads until its lease
        ends. Raises `LeaseHeld`, with nothing taken, `StoreError`."""
        await self.ownership.acquire(partitions, force=force)
        self.find_unfinished(partitions)

    def find_unfinished(self, partitions: Sequence[int]) -> None:
        """In partitions that are newly owned (INV-9)."""
        self.outbox.recover(list(partitions))
        self.reminders.rescan()

    async def give(self, partitions: Sequence[int], timeout_s: float) -> None:
        """Hand partitions over: finish the turns that run or wait in them, commit, deactivate, end the leases. What has
        not finished after `timeout_s` is rolled back and runs elsewhere. New calls are the placement's to keep away."""
        leaving = frozenset(partitions)
        await self._within(timeout_s, self._drain(leaving))
        self.outbox.flush()
        await self.group.drain()
        await self.ownership.release(leaving)

    async def stop(self, timeout_s: float = 30.0) -> None:
        """Drain: refuse new calls, finish the turns that are queued, commit, deactivate, give the partitions back. What
        has not finished after `timeout_s` is cancelled and rolled back. Durable work goes on at the next start.

        A method that swallows its cancellation, or is in a thread, may run on beside its successor elsewhere. It can do
        nothing here: its activation is dead, so that its turn is never decided, calls are refused, and nobody writes
        commits any more; one that is in the store's hands is recorded before its partition is taken, or refused
        (INV-2)."""
        self.draining = True
        loop = asyncio.get_running_loop()
        end_s = loop.time() + timeout_s
        await self.reminders.stop()
        await self.timers.stop()
        await self.outbox.stop()
        await self._within(timeout_s, self._drain_all())
        running = [activation.running.call for activation in self.activations.values() if activation.running]
        self.abort()
        if self._tasks:
            _, left = await asyncio.wait(self._tasks, timeout=max(_LETTING_GO_S, end_s - loop.time()))
            if left:
                log.warning("%d tasks do not end although they are cancelled: the leases end without them", len(left))
                for call in (*running, *filter(None, map(self._tasks.get, left))):
                    self.fail_unanswered(call, asyncio.CancelledError())
        await self.ownership.release(self.owned())

    def abort(self) -> None:
        """Stop at once, as a crash would; memory is dropped, nothing is written any more. Whoever waits is told what is
        known: `OutcomeUnknown` of a turn that was decided, else that it was not applied."""
        self.aborted = self.draining = True
        self.group.abort()
        self.group.abandon()
        self.outbox.end_pacing()
        for activation in tuple(self.activations.values()):
            activation.retire()
        self.ownership.stop()
        self.placement.stop()
        for task in tuple(self._tasks):
            task.cancel()
        for callback in self.when_stopped:
            callback()

    async def _within(self, timeout_s: float, draining: Coroutine[Any, Any, None]) -> None:
        """Drain. What has not finished after `timeout_s` is cancelled, not waited for: it might not let go."""
        drain = self.create_task(draining)
        try:
            done, _ = await asyncio.wait([drain], timeout=timeout_s)
        finally:
            drain.cancel()
        if not done:
            log.warning("the %g s left for turns to end are over: what still runs is rolled back", timeout_s)
        elif not drain.cancelled():  # by an abort meanwhile
            drain.result()

    async def _drain_all(self) -> None:
        await self._drain()
        await self.group.close()
        await self.placement.drain()

    async def _drain(self, partitions: Container[int] | None = None) -> None:
        """Deactivate all activations, or those of some partitions."""
        while True:
            found = [a for a in self.activations.values() if partitions is None or a.partition in partitions]
            if not found:
                break
            # What is idle leaves first; and nobody waits for one whose last turns, or hook, take long.
            waiting = iter(sorted(found, key=lambda activation: not activation.quiet))
            await asyncio.gather(*(self._deactivate_in_turn(waiting) for _ in range(min(_MOST_LEAVING, len(found)))))
        await self.group.drain()

    async def _deactivate_in_turn(self, waiting: Iterator[Activation]) -> None:
        """One of several who share the iterator."""
        for activation in waiting:
            await activation.wait_quiet()
            await self._deactivate(activation)

    # -- calls ---------------------------------------------------------------------------------------------------------

    def new_call(self, stream: str, method: str) -> Call:
        assert self._loop is not None, "the host has not been started"
        return Call(stream, method, self._loop.create_future())

    def place(self, call: Call) -> asyncio.Future[Any]:
        """Send a call to wherever its actor lives; its future."""
        self.placement.submit(call)
        return call.future

    def submit(self, call: Call) -> None:
        """Run a call on the actor's activation here. Never raises: the answer, or the error, goes to `call.future`."""
        activation = self.activations.get(call.stream)
        try:
            try:
                if activation is None:
                    activation = self._activate(call)
                elif self.draining and not call.chain and not call.internal:
                    raise HostStopping("this host is shutting down")
                if call.method is None:
                    call.method = self._method(activation.definition, call)
                if call.payload is not None:  # kept: a turn that is run again must not see what the first made of it
                    call.args = call.method.signature.bind_json(call.payload)
            except ActorError as error:
                self.fail(call, error)
                return
            activation.submit(call)
        except Exception as error:
            log.exception("a turn of the host failed: this is a bug")
            self.fail_unanswered(call, error)

    def resubmit(self, call: Call) -> None:
        """Run again a call that has certainly left no trace."""
        call.turn = None
        call.fresh = call.looked_up = False
        call.attempt += 1
        if call.future.done():
            return
        if self.aborted:
            self.fail(call, HostStopping(f"{call.stream}: this host stopped before the call was recorded"))
            return
        if call.attempt > _MOST_ATTEMPTS:
            moved = (
                f"{call.stream} was moved, dropped or rolled back {call.attempt} times before the call had an answer"
            )
            self.fail(call, ActorMoved(moved))
            return
        assert self._loop is not None
        self._loop.call_later(_RETRY_S * (call.attempt - 1), self._submit_again, call)

    def _submit_again(self, call: Call) -> None:
        if not call.future.done():  # meanwhile its caller was told that it was not applied, or gave it up
            self.placement.submit(call)

    def answer(self, call: Call, result: Any) -> None:
        call.turn = None  # which refers to the call: a circle would be left to the garbage collector
        if call.timer is not None:
            call.timer.cancel()
        if not call.future.done():
            call.future.set_result(result)

    def fail(self, call: Call, error: BaseException) -> None:
        call.turn = None
        if call.timer is not None:
            call.timer.cancel()
        if not call.future.done():
            call.future.set_exception(_of_all_attempts(call, error) if call.redelivered else error)

    def expire(self, call: Call) -> None:
        """The call's deadline has come: out of the mailbox, or cancelled and rolled back."""
        if call.future.done():
            return
        turn = call.turn
        error = DeadlineExceeded(f"{call.stream}.{call.method_name} was not answered before its deadline")
        if turn is not None and not turn.closed:
            cancel_turn(turn, error)
        else:
            self.fail(call, error)

    def may_answer(self, method: Method) -> bool:
        """Whether what a turn of that method has read may be shown without asking the store who owns the actor."""
        return method.consistency == "cached" or (method.consistency == "lease" and self.lease_holds())

    def answer_confirmed(self, turn: Turn, error: ActorError | None = None) -> None:
        """Answer a read, or a failure, once all it has read is durable and this host has proof that it owns the
        actor."""
        turn.activation.confirming += 1
        self.create_task_for(turn.call, self._answer_when_confirmed(turn, error))

    async def _answer_when_confirmed(self, turn: Turn, failure: ActorError | None) -> None:
        try:
            await self._answer_confirmed(turn, failure)
        finally:
            turn.activation.confirming -= 1
            turn.activation.tell_idle()

    async def _answer_confirmed(self, turn: Turn, failure: ActorError | None) -> None:
        activation, call = turn.activation, turn.call
        await activation.wait_committed()
        if not self.may_answer(turn.method):
            try:
                await self.ownership.confirm_now(activation.partition)
            except StoreError as error:
                self.fail(call, NotOwner(f"ownership of {call.stream} cannot be confirmed: {error}"))
                return
        # Its actor may have been elsewhere meanwhile, and be back: what it saw is then of an activation that is dead.
        if activation.dead or activation.was_refused or not self.epochs[activation.partition]:
            self.resubmit(call)
        elif failure is not None:
            self.fail(call, failure)
        else:
            if turn.callbacks is not None:
                self.act(turn)
            self.answer(call, turn.result)

    # -- what a committed turn sets in motion --------------------------------------------------------------------------

    def act(self, turn: Turn) -> str | None:
        """Only now does anything leave the turn (INV-7). What there was no room in for its messages, or None: see
        `Outbox.dispatch`."""
        short_of: str | None = None
        if turn.outbox_done is not None:
            self.outbox.finished(turn.outbox_done)
        if turn.outbox is not None:
            short_of = self.outbox.dispatch(turn.activation.partition, turn.outbox)
        if turn.deleting:
            self.reminders.forget(turn.stream)
            self.timers.forget(turn.stream)
        if turn.reminders_set is not None or turn.reminders_cleared is not None:
            self.reminders.changed(turn)
        if turn.timers is not None:
            self.timers.apply(turn.stream, turn.timers)
        if turn.callbacks is not None:
            _call_back(turn, turn.callbacks)
        return short_of

    def recover(self, activation: Activation) -> None:
        """The outcome of one of its commits is unknown: what that may have left in the store is found there."""
        self.outbox.recover([activation.partition])
        self.reminders.forget(activation.stream)
        self.reminders.rescan()

    # -- activations ---------------------------------------------------------------------------------------------------

    def forget(self, activation: Activation) -> None:
        """An activation has left service. Its successor must not load before the store has answered all of its
        turns."""
        if self.activations.get(activation.stream) is activation:
            del self.activations[activation.stream]
            if len(self.activations) % _LOOK_AT_TABLE_EVERY == 0:
                _close_gaps(self.activations)
            if activation.uncommitted:  # a former one that is there has none: this one has waited for it
                self._unsettled[activation.stream] = activation

    def owns(self, stream: str) -> bool:
        return self.epochs[partition_of(stream, len(self.epochs))] > 0

    def owned(self) -> list[int]:
        return self.ownership.owned

    def lost_partition(self, partition: int, reason: StaleEpoch) -> None:
        log.warning("partition %d is lost: %s", partition, reason)
        self.ownership.lose(partition, reason.epoch)

    def _lost(self, partition: int) -> None:
        for activation in [a for a in self.activations.values() if a.partition == partition]:
            activation.retire()
        self.timers.forget_partition(partition)
        self.reminders.forget_partition(partition)
        self.outbox.forget_partition(partition)
        for callback in self.when_lost:
            callback(partition)

    def _activate(self, call: Call) -> Activation:
        # One that may have been run before is looked for among the receipts, which takes an activation.
        if call.internal and call.method_name in ACTIVE_ONLY and not call.attempt and not call.redelivered:
            raise ActorNotActive(f"actor {call.stream} is not active")
        actor_type, _, actor_id = call.stream.partition("/")
        definition = self.types.get(actor_type)
        if definition is None:
            raise UnknownActorType(
                f"did not find address for actor '{call.stream}': no host has the type {actor_type!r}"
            )
        check_name("actor id", actor_id)
        if self.aborted or (self.draining and not call.chain and not call.internal):
            raise HostStopping("this host is shutting down")
        partition = partition_of(call.stream, len(self.epochs))
        if not self.epochs[partition]:
            raise NotOwner(f"this host does not own partition {partition} of {call.stream}")
        activation = Activation(self, definition, call.stream, partition)
        self.activations[call.stream] = activation
        former = self._unsettled.get(call.stream)
        if former is not None and not former.uncommitted:
            del self._unsettled[call.stream]
            former = None
        if call.fresh and former is None and "on_activate" not in definition.methods:
            activation.begin()
        else:
            activation.start(after_commits=former is not None)
        return activation

    def _method(self, definition: ActorDefinition, call: Call) -> Method:
        method = definition.methods.get(call.method_name)
        if method is not None and (call.internal or call.method_name not in HOOKS):
            return method
        if call.internal and call.method_name in BUILTINS:
            return BUILTINS[call.method_name]
        raise UnknownMethod(f"actor method not found: {call.stream.replace('/', '.', 1)}.{call.method_name}")

    async def _deactivate(self, activation: Activation) -> None:
        """If nothing runs or waits there."""
        if activation.dead or not activation.quiet:
            return
        try:
            await activation.run_deactivation_hook()
        except ActorError as error:
            log.warning("on_deactivate of %s failed, it leaves memory all the same: %s", activation.stream, error)
        if activation.quiet and not activation.dead:
            activation.deactivate()

    async def _sweep(self) -> None:
        """Time and again. What a sweep has looked at is not kept while this waits for the next."""
        while True:
            shortest = min((d.options.idle_timeout_s for d in self.types.values()), default=600.0)
            await asyncio.sleep(min(max(shortest / 4, 0.05), 60.0))
            await self._sweep_once()

    async def _sweep_once(self) -> None:
        """Deactivate what has been idle for its type's time. In slices, so that a million activations do not stop the
        loop."""
        for position, activation in enumerate(tuple(self.activations.values())):
            if position % _SWEEP_SLICE == _SWEEP_SLICE - 1:
                await asyncio.sleep(0)
            if not self._is_idle(activation):
                continue
            if "on_deactivate" not in activation.definition.methods:
                activation.deactivate()
            elif len(self._leaving) < _MOST_LEAVING:  # the others leave when some of these have
                task = self.create_task(self._deactivate(activation))
                self._leaving.add(task)
                task.add_done_callback(self._leaving.discard)
        for stream in [s for s, a in self._unsettled.items() if not a.uncommitted]:
            del self._unsettled[stream]

    def _is_idle(self, activation: Activation) -> bool:
        idle_s = self.loop_time() - activation.last_used
        return idle_s >= activation.definition.options.idle_timeout_s and activation.quiet and not activation.dead

    async def _purge(self) -> None:
        """Forget expired receipts, partition by partition."""
        while True:
            for partition in self.owned():
                await asyncio.sleep(_PURGE_EVERY_S / max(1, len(self.epochs)))
                try:
                    await self._purge_partition(partition)
                except StoreError as error:
                    log.warning("receipts cannot be purged, trying again: %s", error)
            await asyncio.sleep(1.0)

    async def _purge_partition(self, partition: int) -> None:
        gone = _PURGED_AT_ONCE
        while gone == _PURGED_AT_ONCE and self.epochs[partition]:
            gone = await self.journal.purge_receipts(partition, self.clock.now_ms(), _PURGED_AT_ONCE)
            await asyncio.sleep(0)

    # -- small things --------------------------------------------------------------------------------------------------

    def _first_epoch(self) -> str:
        """One epoch this host holds. A host that is started again under its old name has newer ones."""
        return next((f"{partition:x}.{epoch:x}" for partition, epoch in enumerate(self.epochs) if epoch), "")

    def new_id(self) -> str:
        """Unique for ever: the host, an epoch that only this start of it ever had (INV-2), a counter."""
        self._ids += 1
        return f"{self._id_prefix}{self._ids:x}"

    def has_made(self, message_id: str) -> bool:
        """Whether a message was posted here, since this start of this host."""
        return message_id.startswith(self._id_prefix)

    def create_task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task of this host: cancelled with it. It sees context variables as they were when the host started."""
        assert self._loop is not None
        task = self._loop.create_task(work, context=self._context.copy())
        self._tasks[task] = None
        task.add_done_callback(self._task_done)
        return task

    def create_task_for(self, call: Call, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task that will answer the call. Cancelled with the host, even before its first step, it says so, and so it
        does when it fails, which it must not."""
        task = self.create_task(work)
        self._tasks[task] = call
        task.add_done_callback(lambda task: self._task_for_done(call, task))
        return task

    def _task_for_done(self, call: Call, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            self.fail_unanswered(call, asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self.fail_unanswered(call, error)

    def fail_unanswered(self, call: Call, error: BaseException) -> None:
        """What was to answer the call was cancelled with the host, or has failed by a bug: then its turn may have been
        decided, for all we know."""
        if isinstance(error, asyncio.CancelledError):
            self.fail(call, HostStopping(f"{call.stream}: this host stopped before it had answered"))
        else:
            bug = f"{type(error).__name__}: {message_of(error)}"
            self.fail(call, OutcomeUnknown(f"{call.stream}.{call.method_name} was not answered, by a bug: {bug}"))

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the host failed: this is a bug", exc_info=error)


# -- leaves ------------------------------------------------------------------------------------------------------------


def _call_back(turn: Turn, callbacks: Iterable[Callable[[], None]]) -> None:
    """In the context of the turn, which is closed: they are no part of the one that may run by now (INV-5)."""
    token = _current.set(turn)
    try:
        for callback in callbacks:
            try:
                callback()
            except Exception:
                log.exception("a callback after the commit of %s failed", turn.stream)
    finally:
        _current.reset(token)


def _close_gaps(activations: dict[str, Activation]) -> None:
    """A dict has gaps where entries were, and keeps room for as many as there ever were until new ones have filled it:
    38 bytes for each of 200,000 actors, of which none need be active. In place, since others refer to it."""
    if sys.getsizeof(activations) > _MOST_TABLE_BYTES * (len(activations) + 1):
        kept = dict(activations)  # a copy has no gaps
        activations.clear()
        activations.update(kept)


def _of_all_attempts(call: Call, error: BaseException) -> BaseException:
    """A refusal says that this attempt was not applied, and nothing of an earlier one whose receipt was not looked for.
    (A peer knows that itself, and sends elsewhere what is refused here.)"""
    if call.looked_up or call.from_peer or isinstance(error, OutcomeUnknown) or not isinstance(error, Retriable):
        return error
    return OutcomeUnknown(f"{error}; an earlier attempt may have been recorded")
