"""An activation: the in-memory incarnation of one actor, and the loop its turns go through.

Who may do what when:

- *One writer.* At most one writing turn runs at a time, from its start to its decision, across every await (INV-5);
  calls of its own chain may join it when the type is reentrant. `read_only` turns run beside each other, never beside a
  writer.
- *Pipelining.* The next turn starts as soon as the last was decided; its answer waits for the commit, in order. When a
  commit is refused the activation is dead: turns decided on top of it are refused by the store as well (their expected
  version is gone), and every caller behind is run again on a fresh activation, which first waits for the store's
  answers to all of them.
- *The gate.* Nothing leaves an actor that rests on an uncommitted turn (INV-7): answers, errors, reads and calls to
  other actors all wait for it.

No lock guards any of this: everything here runs on the host's event loop, and `submit`, `_run_inline`, `ended` and
`committed` do not await, so each is atomic to all others.

A turn whose method cannot suspend runs inside `submit`, without a task; any other runs in the activation's pump task,
which lives as long as there is work.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any

from actors.decision import as_actor_error, decide, decide_failure
from actors.definition import versioned_name
from actors.errors import (
    ActorError,
    ActorFailed,
    Deadlock,
    HostStopping,
    MailboxFull,
    NotOwner,
    OutcomeUnknown,
)
from actors.joined import comes_back
from actors.message import Call
from actors.state import capture, changed_names, fold, new_instance, restore
from actors.turn import Turn, _current
from actors.turntask import run_in_task
from statestores.codec import CodecError
from statestores.errors import DuplicateTurn, ImpossibleTurn, StaleEpoch, StoreError, StoreUnavailable
from statestores.groupcommit import settle

if TYPE_CHECKING:
    from actors.definition import ActorDefinition, Method
    from actors.host import Host
    from statestores.errors import CommitRefused
    from statestores.model import Receipt, Reminder, TurnCommit

log = logging.getLogger(__name__)

_YIELD_EVERY = 64
# A full mailbox is not searched again so soon for calls that were given up.
_LOOK_AGAIN_S = 0.01


class Phase(Enum):
    LOADING = "loading"
    ACTIVE = "active"
    DEAD = "dead"


_ACTIVE, _DEAD = Phase.ACTIVE, Phase.DEAD  # looking up the member of an enum costs as much as a call, and turns look


class Mailbox(deque["Call"]):
    """Calls that wait for their turns, and when it was searched in vain for such as nobody waits for any more."""

    looked_s = -math.inf


class Activation:
    __slots__ = (
        "_decided",
        "_idle",
        "base",
        "confirming",
        "definition",
        "half_done",
        "host",
        "indexed",
        "instance",
        "last_used",
        "limit",
        "mailbox",
        "marks",
        "partition",
        "phase",
        "pump",
        "readers",
        "rolled_back",
        "running",
        "snapshot_version",
        "stream",
        "uncommitted",
        "version",
        "was_refused",
    )

    def __init__(self, host: Host, definition: ActorDefinition, stream: str, partition: int) -> None:
        self.host = host
        self.definition = definition
        self.stream = stream
        self.partition = partition
        self.limit = definition.options.mailbox_limit
        self.phase = Phase.LOADING
        self.instance: Any = None
        self.base: list[Any] = []
        # The version after the last *decided* turn; what is committed lags behind by `uncommitted` turns.
        self.version = 0
        self.snapshot_version = 0
        self.indexed = False
        self.uncommitted = 0
        # Reads and failures that wait for what they rest on, or for the store's word.
        self.confirming = 0
        # Allocated only while needed: an idle activation should cost little more than its state.
        self.mailbox: Mailbox | None = None
        self.pump: asyncio.Task[None] | None = None
        self.running: Turn | None = None
        self.readers: set[asyncio.Task[Any]] | None = None
        # Reminders changed by decided turns of this activation that are not known to be committed: name -> row, None
        # for cleared. A tick of another row is stale. (What is committed, `Reminders.is_superseded` knows.)
        self.marks: dict[str, Reminder | None] | None = None
        # The writing turn in a task that is neither decided nor rolled back: `running`, and beyond, while it is ending.
        # Those that had changed something, and were rolled back, are counted.
        self.half_done: Turn | None = None
        self.rolled_back = 0
        self._decided: asyncio.Future[None] | None = None
        self._idle: asyncio.Future[None] | None = None
        self.last_used = 0.0
        # A decided turn was refused: what was read from here since then may never have been.
        self.was_refused = False

    @property
    def dead(self) -> bool:
        return self.phase is _DEAD

    @property
    def quiet(self) -> bool:
        """Nothing runs, waits, is being committed or confirmed: may be deactivated."""
        at_the_store = self.uncommitted + self.confirming
        return self.pump is None and not self.mailbox and not self.readers and at_the_store == 0

    def event_name(self, name: str) -> str:
        return versioned_name(name, self.definition.options.schema)

    # -- the way in ----------------------------------------------------------------------------------------------------

    def submit(self, call: Call) -> None:
        """Run the call as a turn, now or in its turn. `call.method` and `call.args` are set. Answers through
        `call.future` only."""
        method = call.method
        assert method is not None
        self.last_used = self.host.loop_time()
        if self.pump is None and self.phase is _ACTIVE:
            if method.inline and not call.may_be_repeated and (method.read_only or not self.readers):
                if self.uncommitted + self.confirming >= self.limit and self._is_full(call):
                    self._refuse(call)
                    return
                begun = self._run_inline(call, method)
                if begun is not None:  # calls that come meanwhile wait in the mailbox
                    self.pump = self.host.create_task_for(call, self._pump(begun))
                return
        elif self.running is not None and call.chain_id is not None and comes_back(self, self.running, call):
            return
        if method.read_only and self._may_read_now(call, method):
            if self.readers and len(self.readers) >= self.limit and not method.interleave and self._is_full(call):
                self._refuse(call)
            else:
                self._start_reader(call, method)
            return
        self._enqueue(call)

    def start(self, *, after_commits: bool) -> None:
        """Begin loading. With `after_commits` a former activation still has turns at the store: their fate comes
        first."""
        self.pump = self.host.create_task(self._load_and_pump(after_commits))

    def begin(self) -> None:
        """Without loading: there is nothing to load. See `Call.fresh`."""
        instance = new_instance(self.definition)
        self.base = [] if self.definition.event_sourced else capture(self.definition, instance)
        self.instance = instance
        self.phase = Phase.ACTIVE

    async def wait_committed(self) -> None:
        """Return when every turn decided so far has its answer from the store."""
        if self.uncommitted:
            settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.host.group.submit(None, lambda _: settle(settled))
            await settled

    async def wait_quiet(self) -> None:
        """Return when it is quiet, or out of service."""
        while not self.quiet and not self.dead:
            if self._idle is None:  # shared by everybody who waits
                self._idle = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._idle)

    async def wait_decided(self, writer: Turn) -> None:
        """Return when that turn is decided or rolled back, or this is out of service."""
        while self.half_done is writer and not self.dead:
            if self._decided is None:  # shared by everybody who waits
                self._decided = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._decided)

    def retire(self) -> None:
        """Take the activation out of service: what waits in its mailbox is run elsewhere, what runs is discarded."""
        if self.phase is Phase.DEAD:
            return
        self.phase = Phase.DEAD
        self.host.forget(self)
        waiting, self.mailbox = self.mailbox, None
        for call in waiting or ():
            self.host.resubmit(call)
        self._tell_decided()
        self.tell_idle()

    def deactivate(self) -> None:
        """Leave memory. Only when quiet."""
        assert self.quiet
        self.phase = Phase.DEAD
        self.host.forget(self)

    # -- waiting -------------------------------------------------------------------------------------------------------

    def _may_read_now(self, call: Call, method: Method) -> bool:
        """Reads go beside reads. One whose chain has a read under way here may not queue behind a writer either, since
        that writer waits for the read."""
        if self.phase is not Phase.ACTIVE:
            return False
        return method.interleave or self.pump is None or (bool(self.readers) and self.stream in call.chain)

    def _enqueue(self, call: Call) -> None:
        if call.waiter and (cycle := self.host.waits.cycle(call.waiter, self.stream)) is not None:
            self.host.fail(call, Deadlock(cycle))
            return
        if self._is_full(call):
            self._refuse(call)
            return
        mailbox = self.mailbox
        if mailbox is None:
            mailbox = self.mailbox = Mailbox()
        mailbox.append(call)
        if call.waiter and self.host.when_standing is not None:
            self.host.when_standing(call)
        if self.pump is None:
            self.pump = self.host.create_task(self._pump())

    def _waiting(self) -> int:
        """Calls that wait, read, or have been decided and wait for the store."""
        return len(self.mailbox or ()) + len(self.readers or ()) + self.uncommitted + self.confirming

    def _is_full(self, call: Call) -> bool:
        """Whether the call is one too many. Messages count each other only where they queue: elsewhere the outbox they
        come from bounds them, and one that is refused loses its place in the order."""
        waiting = self._waiting() if call.outbox_id is None else len(self.mailbox or ())
        if waiting < self.limit or call.passes_limit:
            return False
        return waiting - self._drop_given_up() >= self.limit

    def _drop_given_up(self) -> int:
        """Take calls whose callers wait no longer out of the mailbox. How many there were.

        Only when they may be in somebody's way, and not at every refusal: to look at each would cost as much every
        time, when there is no time to spare."""
        mailbox = self.mailbox
        if mailbox is None or (now_s := self.host.loop_time()) < mailbox.looked_s + _LOOK_AGAIN_S:
            return 0
        waiting = [call for call in mailbox if not call.future.done()]
        if not (gone := len(mailbox) - len(waiting)):
            mailbox.looked_s = now_s
            return 0
        mailbox.clear()
        mailbox.extend(waiting)
        return gone

    def _refuse(self, call: Call) -> None:
        self.host.fail(call, MailboxFull(f"{self.stream} has {self._waiting()} calls waiting: try again later"))

    async def _load_and_pump(self, after_commits: bool) -> None:
        if await self._loaded(after_commits):
            await self._pump()

    async def _loaded(self, after_commits: bool) -> bool:
        """Load, or load again when recorded events are to replace what failed ones left behind. False: it failed, and
        everybody who waits has been told."""
        try:
            if after_commits:
                await self.host.group.drain()
            await self._load()
        except (Exception, asyncio.CancelledError) as error:
            self._load_failed(error)
            if isinstance(error, asyncio.CancelledError):
                raise
        return not self.dead

    def _load_failed(self, error: BaseException) -> None:
        self.phase = Phase.DEAD
        self.pump = None
        self.host.forget(self)
        failure: ActorError
        if isinstance(error, StoreError):
            failure = NotOwner(f"{self.stream} cannot be loaded, nothing was applied: {error}")
        elif isinstance(error, asyncio.CancelledError):
            failure = HostStopping("this host has stopped")
        else:
            failure = as_actor_error(error)
        waiting, self.mailbox = self.mailbox, None
        for call in waiting or ():
            self.host.fail(call, failure)
        self.tell_idle()

    async def _load(self) -> None:
        history = await self.host.journal.load(self.stream)
        definition = self.definition
        instance = new_instance(definition)
        fold(definition, instance, history)
        self.version = history.version
        self.snapshot_version = history.snapshot.version if history.snapshot is not None else 0
        self.indexed = history.version > 0
        self.instance = instance
        self.base = [] if definition.event_sourced else capture(definition, instance)
        hook = definition.methods.get("on_activate")
        if hook is not None and not self.dead:
            await self._run_hook(hook)
        if not self.dead:
            self.phase = Phase.ACTIVE

    async def _run_hook(self, hook: Method) -> None:
        """A hook is a turn. Raises what it raised. Nobody waits for its commit, hence not for its answer: if that is
        refused, the next incarnation runs its own."""
        call = Call(self.stream, hook.name, asyncio.get_running_loop().create_future())
        call.method, call.internal = hook, True
        call.future.set_result(None)
        failure = await run_in_task(self, call, hook)
        if failure is not None:
            raise failure

    async def run_deactivation_hook(self) -> None:
        """The last turn of this incarnation, if its class wants one. Calls that come meanwhile go to the next one, as
        this one may have let go of what it needs. Raises what the hook raised.

        What a failed turn has left behind is put right before (INV-6): the hook would act on it, and may record it. The
        losing alternative, to leave the hook out, would not give back what `on_activate` has opened."""
        hook = self.definition.methods.get("on_deactivate")
        if hook is None:
            return
        self.pump = asyncio.current_task()  # holds off inline turns; calls that come meanwhile wait in the mailbox
        try:
            if self.phase is Phase.LOADING and not await self._loaded(after_commits=True):
                return
            await self._run_hook(hook)
        finally:
            self.pump = None
            self.retire()

    async def _pump(self, begun: Turn | None = None) -> None:
        """Run what waits, after the rest of a turn that has begun."""
        turns = 0
        try:
            if begun is not None:
                await run_in_task(self, begun.call, begun.method, begun=begun)
            while self.mailbox:
                if self.phase is Phase.LOADING and not await self._loaded(after_commits=True):
                    return
                call = self.mailbox.popleft()
                if call.future.done():
                    continue
                await self._take(call)
                turns += 1
                if turns % _YIELD_EVERY == 0:
                    await asyncio.sleep(0)
        finally:
            self.pump = None
            if not self.mailbox:
                self.mailbox = None
            elif not self.dead and not self.host.aborted:
                self.pump = self.host.create_task(self._pump())
            self.tell_idle()

    async def _take(self, call: Call) -> None:
        """Run a call of the mailbox. It is answered if that fails: nobody else knows of it any more."""
        try:
            await self._take_in_turn(call)
        except BaseException as error:
            self.host.fail_unanswered(call, error)
            raise

    async def _take_in_turn(self, call: Call) -> None:
        method = call.method
        assert method is not None
        if method.read_only and not (method.inline and not call.may_be_repeated):
            self._start_reader(call, method)
            return
        while self.readers and not method.read_only:
            await asyncio.wait(self.readers)
        if call.future.done():  # its caller gave up while it waited for the readers
            return
        if self.dead:
            self.host.resubmit(call)
        elif method.inline and not call.may_be_repeated:
            begun = self._run_inline(call, method)
            if begun is not None:
                await run_in_task(self, call, method, begun=begun)
        else:
            await run_in_task(self, call, method)

    # -- running -------------------------------------------------------------------------------------------------------

    def _run_inline(self, call: Call, method: Method) -> Turn | None:
        """The turn, when there is a rest of it that waits (see `Turn.go_on`); None: it is decided or has failed."""
        turn = Turn(self, call, method)
        if call.reminder is not None and self.is_stale(call):
            self.host.answer(call, None)
            return None
        if call.internal:  # others are not looked for before they are answered
            call.turn = turn
        token = _current.set(turn)
        try:
            result = method.function(self.instance, *call.args)
            if method.is_async:
                try:
                    result.send(None)
                except StopIteration as stop:
                    result = stop.value
                else:
                    result.close()
                    raise RuntimeError(f"{method.name} was found unable to suspend, and did suspend")
        except BaseException as error:
            _current.reset(token)
            self.failed(turn, error)
            if isinstance(error, KeyboardInterrupt):  # not the method's, and meant for the process
                raise
        else:
            _current.reset(token)
            if turn.rest is None:
                self.ended(turn, result)
            else:
                turn.result = result
                self.half_done = turn
                return turn
        return None

    def _start_reader(self, call: Call, method: Method) -> None:
        task: asyncio.Task[Any] = self.host.create_task_for(call, run_in_task(self, call, method, alone=False))
        if method.interleave:  # overlaps writers, so nobody waits for it
            return
        self.readers = self.readers or set()
        self.readers.add(task)
        task.add_done_callback(self._reader_done)

    def _reader_done(self, task: asyncio.Task[Any]) -> None:
        assert self.readers is not None
        self.readers.discard(task)
        if not self.readers:
            self.readers = None
            self.tell_idle()

    async def answered_before(self, turn: Turn) -> bool:
        """INV-8: a call that was consumed before gets the first answer again. So do those in the mailbox that may have
        been, by the same look: one each would cost a whole group commit each, since it comes after what was decided
        before it."""
        asked = {turn.call.receipt_key: turn.call}
        if self.running is turn:  # nothing else is decided before it has ended
            asked |= self._repeated_behind(turn.call)
        if self.uncommitted:
            await self.wait_committed()
        receipts = await self.host.journal.receipts(self.stream, [*asked])
        for call, receipt in zip(asked.values(), receipts, strict=True):
            if call.future.done():
                continue
            if receipt is not None:
                self._answer_receipt(call, receipt)
            elif call.redelivered and call.is_too_late(turn.now_ms()):
                late = f"{self.stream}: made again too late to know whether an earlier attempt was recorded"
                self.host.fail(call, OutcomeUnknown(late))
            else:
                call.looked_up = True
        return not turn.call.looked_up

    def _repeated_behind(self, first: Call) -> dict[str, Call]:
        """By their keys. One behind another attempt of its own is left out: that one is not recorded yet."""
        found: dict[str, Call] = {}
        before = {first.receipt_key}
        for call in self.mailbox or ():
            if not call.needs_receipt and call.hop is None:
                continue
            if call.receipt_key not in before and call.may_be_repeated:
                found[call.receipt_key] = call
            before.add(call.receipt_key)
        return found

    def _answer_receipt(self, call: Call, receipt: Receipt) -> None:
        method = call.method
        assert method is not None
        if call.raw or not receipt.reply:
            self.host.answer(call, receipt.reply)
            return
        try:
            self.host.answer(call, method.signature.decode_result(receipt.reply))
        except ActorError as error:
            self.host.fail(call, error)

    def is_stale(self, call: Call) -> bool:
        """Whether another turn has changed the reminder of this tick, or what is known of it no longer holds."""
        assert call.reminder is not None
        reminder = call.reminder.reminder
        if self.marks is not None and self.marks.get(reminder.name, reminder) != reminder:
            return True
        return self.host.reminders.is_superseded(reminder)

    # -- deciding ------------------------------------------------------------------------------------------------------

    def ended(self, turn: Turn, result: Any) -> ActorError | None:
        """What went wrong at the last moment, if anything did."""
        turn.closed = True
        if self.phase is _DEAD:
            self.host.resubmit(turn.call)
            return None
        try:
            commit = decide(self, turn, result)
        except Exception as error:  # what cannot be encoded, above all; nothing has been handed to the store yet
            return self.failed(turn, error)
        if commit is None:
            self._answer_read(turn)
        else:
            self._hand_over(turn, commit)
        return None

    def _hand_over(self, turn: Turn, commit: TurnCommit) -> None:
        self.uncommitted += 1
        if turn.timers is not None or turn.deleting:
            self.host.timers.withdraw(self.stream, None if turn.deleting else turn.timers)
        self.host.group.submit(commit, turn)
        if turn.deleting:
            self.retire()

    # -- after ---------------------------------------------------------------------------------------------------------

    def committed(self, turn: Turn, outcome: CommitRefused | StoreUnavailable | None) -> None:
        """The store's answer to a decided turn."""
        self.uncommitted -= 1
        if outcome is None:
            short_of = self.host.act(turn) if turn.wrote or turn.callbacks is not None else None
            if short_of is not None and turn.call.is_from_outside:
                self.host.outbox.pace(short_of, lambda: self.host.answer(turn.call, turn.result), turn.call.deadline)
            else:
                self.host.answer(turn.call, turn.result)
        else:
            self._refused(turn, outcome)
        if self.uncommitted == 0:
            self.marks = None
            self.tell_idle()

    def _refused(self, turn: Turn, outcome: CommitRefused | StoreUnavailable) -> None:
        self.was_refused = True
        self.retire()
        match outcome:
            case DuplicateTurn():
                self._answer_receipt(turn.call, outcome.receipt)
            case ImpossibleTurn():
                self.host.fail(turn.call, ActorFailed(type(outcome).__name__, str(outcome)))
            case StoreUnavailable():
                self.host.recover(self)  # it may have been recorded all the same
                self.host.fail(turn.call, OutcomeUnknown(f"{self.stream}: {outcome}"))
            case StaleEpoch():
                self.host.lost_partition(self.partition, outcome)
                self.host.resubmit(turn.call)
            case _:
                self.host.resubmit(turn.call)

    def _answer_read(self, turn: Turn) -> None:
        """A read waits for what it has read, and, unless its method asks for less, is given only while this host is
        sure to own the actor."""
        host = self.host
        if self.uncommitted == 0 and host.may_answer(turn.method):
            if turn.callbacks is not None:
                host.act(turn)
            host.answer(turn.call, turn.result)
        else:
            host.answer_confirmed(turn)

    def failed(self, turn: Turn, error: BaseException) -> ActorError:
        turn.closed = True
        self.roll_back(turn)
        failure = as_actor_error(error, turn.method)
        self._answer_failure(turn, failure)
        return failure

    def roll_back(self, turn: Turn) -> None:
        """INV-6. State-style: back to the base. Event-sourced: the fold of what is recorded, before the next turn; and
        state-style, too, when the base is not what the annotations ask for (made so by a factory, or a validator that
        has changed its mind).

        What a method that may suspend has left running may hold objects of the actor, hence it gets new ones."""
        turn.failed = True
        if self.instance is None or turn.method.interleave or self.dead:
            return
        if turn.task is not None and not turn.method.read_only and self._has_changes(turn):
            self.rolled_back += 1
        if not self.definition.event_sourced:
            try:
                renew = turn.task is not None and not turn.method.read_only
                restore(self.definition, self.instance, self.base, renew=renew)
            except CodecError:
                self.phase = Phase.LOADING
        elif turn.events is not None:
            self.phase = Phase.LOADING

    def _answer_failure(self, turn: Turn, error: ActorError) -> None:
        """A failure is an answer: it waits for what the turn had read, like any other. One that was reached on a state
        that never became durable says nothing, so the turn is run again."""
        call, cancelled = turn.call, turn.cancelled_by is not None
        if self.dead and not cancelled:
            self.host.resubmit(call)
        elif call.reply_to is not None and not error.retriable and not self.dead:
            self._hand_over(*decide_failure(self, turn, error))
        elif cancelled or (self.uncommitted == 0 and self.host.may_answer(turn.method)):
            self.host.fail(call, error)
        else:
            self.host.answer_confirmed(turn, error)

    def writer_with_changes(self) -> Turn | None:
        """The turn that is half done, if it has changed what others may see, and may yet be rolled back."""
        turn = self.half_done
        return turn if turn is not None and self._has_changes(turn) else None

    def _has_changes(self, turn: Turn) -> bool:
        if self.definition.event_sourced:
            return turn.events is not None
        return bool(changed_names(self.definition, self.instance, self.base))

    def no_longer_half_done(self) -> None:
        self.half_done = None
        self._tell_decided()

    def _tell_decided(self) -> None:
        decided, self._decided = self._decided, None
        if decided is not None and not decided.done():
            decided.set_result(None)

    def tell_idle(self) -> None:
        """To who waits for it, if it is."""
        if self._idle is not None and (self.quiet or self.dead):
            idle, self._idle = self._idle, None
            if not idle.done():
                idle.set_result(None)
