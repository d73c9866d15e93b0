"""The worker that runs activities: an open order in, a turn of its workflow out.

An activity is run at least once: its order is open until the turn that records its outcome is committed, and as long as
it is open, its instance can be found (see `workflow.orders`), so a crash in between runs it again, with the same
`activity_id`. Its outcome is recorded once: that turn closes the order. Whether to try again is decided here, by the
policy the code has now, and recorded as a fact.

A result longer than `Keeper.limit` is stored beside the history before it is reported, and what is reported is where it
is; arguments that were recorded so are read back. Neither is the activity's business, or its failure: a store that does
not answer is asked until it does.

What is under way in this process is known here, by execution, step and attempt: an order that is given twice, by the
turn that opened it and by a scan that found its instance, is begun once.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import orjson

from actors import ActorFailed, HostStopping, Retriable
from actors.errortext import message_of, trace_of
from statestores.codec import encode
from workflow.definition import ONE_CPU
from workflow.errors import PayloadLost, WorkflowError
from workflow.orders import Order
from workflow.payloads import Stored, patiently
from workflow.pieces import encode_freely
from workflow.places import Places
from workflow.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from actors import ActorClient, Clock, Work
    from actors.definition import Method
    from workflow.definition import Activity, Needs
    from workflow.payloads import Keeper
    from workflow.pieces import Data

_LONGEST_TRACEBACK = 20_000
_REPORT_RETRY_S = 0.05
_LONGEST_RETRY_S = 5.0
# Tasks of activities on one host. Others wait, in memory: the live programs that wait for them are there as well.
_MOST_RUNNING = 10_000
_QUICK_AT_ONCE = 64
# A process may die by no fault of the activity's: so often an attempt is begun again as if nothing had happened.
_MOST_REPEATS = 3
_REPEAT_S = 0.1
_LONGEST_REPEAT_S = 5.0

log = logging.getLogger("workflow")


class ActivityInfo(NamedTuple):
    """What an activity may know of itself. `activity_id` is the same for all attempts and redeliveries of one step: an
    idempotency key for whatever the activity does outside."""

    activity_id: str
    name: str
    attempt: int
    instance_id: str
    redelivered: bool


# Few activities ask what it says.
_info: contextvars.ContextVar[Order] = contextvars.ContextVar("mecha_activity")


def activity_info() -> ActivityInfo:
    """Of the running activity. Raises `RuntimeError` outside of one."""
    try:
        order = _info.get()
    except LookupError:
        raise RuntimeError("activity_info() works inside an activity that a workflow called") from None
    activity_id = f"{order.instance_id}:{order.execution}:{order.step}"
    return ActivityInfo(activity_id, order.name, order.attempt, order.instance_id, order.redelivered)


class Ran(NamedTuple):
    """`result`: JSON, or where it is stored. `busy_s`: how long the activity used the processor."""

    result: bytes | Stored
    busy_s: float


class Elsewhere(Protocol):
    """Where activities run that ask for something (`Activity.needs`), or compute for long (`workflow.places`)."""

    def has_processors(self) -> bool:
        """Whether what asks for one processor could run, sooner or later. Called often: an answer that is known."""

    async def run(self, order: Order, needs: Needs, keeper: Keeper | None, arguments: Data | None) -> Ran:
        """`run_here`, once, in a process that has what is needed. `arguments`: when they are not in the order. A result
        longer than the keeper's limit may be stored over there already, durably, under an id the keeper has reserved.

        Raises what the activity raised, `WorkerDied` when its process has ended, `WorkerLost` when more than that has.
        Cancelled, it cancels the work."""


class ActivityTimeout(WorkflowError):
    """An attempt, or the step as a whole, took longer than its policy allows."""


class WorkerDied(WorkflowError):
    """The process in which the activity ran has ended, time after time: the activity's own doing, as far as anybody can
    know, and an attempt that failed."""


class WorkerLost(Exception):
    """The activity's process is gone with the node it was on, or was taken away: no doing of the activity's."""


class ActivityWorker:
    """Runs activities: coroutines on the host's loop, plain functions in at most `threads` threads, and `elsewhere`, if
    given, what belongs there."""

    # `attach` comes before anything is begun.
    _client: ActorClient

    def __init__(
        self,
        activities: Mapping[str, Activity[Any, Any]],
        clock: Clock,
        threads: int,
        elsewhere: Elsewhere | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        self._activities = activities
        self._keeper = keeper
        self._limit = sys.maxsize if keeper is None else keeper.limit
        self._elsewhere = elsewhere
        self._places = Places()
        self._clock = clock
        self._threads = Threads(threads, "mecha-activity")
        self._methods: Mapping[str, Method] = {}
        # From their beginning until their outcome is recorded.
        self._under_way: dict[tuple[str, str, int], Order] = {}
        # Those of them that have not been begun: code that cannot suspend runs one after the other, as soon as the
        # event loop gets to it, other code in tasks, and waits when there are too many.
        self._quick: deque[tuple[Activity[Any, Any], Order]] = deque()
        self._waiting: deque[tuple[Activity[Any, Any], Order]] = deque()
        self._running = 0
        # Those of them that run elsewhere.
        self._elsewhere_now: dict[tuple[str, str, int], asyncio.Task[Any]] = {}

    def attach(self, client: ActorClient, methods: Mapping[str, Method]) -> None:
        """Outcomes go through this client, to these methods of instances. Call before the host starts."""
        self._client, self._methods = client, methods

    def close(self) -> None:
        """Threads that are busy end with their work."""
        self._threads.close()

    # -- what there is to do -------------------------------------------------------------------------------------------

    def begin(self, marker: str, orders: Sequence[Order], redelivered: bool) -> None:
        """Open orders of an instance, durable by now. Those under way go on. Where the marker is not at work here (more
        stand than may be at a time), nothing is begun: its turn will come."""
        if self._client.is_at_work(marker):
            for order in orders:
                self._begin(order, redelivered)

    def take_marker(self, work: Work) -> None:
        """An instance with open orders. The turn that posted the marker begins them itself, from memory."""
        if not work.scanned:
            return

        def heard(error: BaseException | None) -> None:
            if error is not None:
                work.failed(error)

        self._client.tell(work.stream, self._methods["resume_orders"], (work.id, work.redelivered), heard)

    def take_row(self, work: Work) -> None:
        """An order with a row of its own."""
        order = Order.decode(work.stream.partition("/")[2], work.id, work.body)
        known = self._under_way.get(order.key)
        if known is None:
            self._begin(order, work.redelivered)
        else:
            known.row = order.row  # its workflow has ended meanwhile

    def _begin(self, order: Order, redelivered: bool) -> None:
        key = order.key
        if key in self._under_way:
            return
        found = self._activities.get(order.name)
        if found is None:
            log.error(
                "activity %r of workflow instance %s is not deployed here, and waits for a host that has it",
                order.name, order.instance_id,
            )  # fmt: skip
            return
        order.redelivered = redelivered
        self._under_way[key] = order
        if found.is_quick and not order.stored:
            self._quick.append((found, order))
            if len(self._quick) == 1:
                asyncio.get_running_loop().call_soon(self._run_quick)
        elif self._running < _MOST_RUNNING:
            self._start(found, order)
        else:
            self._waiting.append((found, order))

    def cancel(self, orders: Sequence[Order]) -> None:
        """Nobody will hear the outcome of these. What runs elsewhere is cancelled, since it holds what others wait for;
        what runs here ends by itself; what waits for its place is not begun."""
        for key in [order.key for order in orders]:
            if (order := self._under_way.get(key)) is not None:  # by its key: the instance may have made it anew
                order.given_up = True
            if (task := self._elsewhere_now.get(key)) is not None:
                task.cancel()

    # -- running ------------------------------------------------------------------------------------------------------

    def _start(self, found: Activity[Any, Any], order: Order) -> None:
        self._running += 1
        self._client.create_task(self._work(found, order)).add_done_callback(self._ended)

    def _ended(self, _task: asyncio.Task[None]) -> None:
        self._running -= 1
        if self._waiting and not self._client.is_stopped:
            self._start(*self._waiting.popleft())

    async def _work(self, found: Activity[Any, Any], order: Order) -> None:
        _info.set(order)
        try:
            result = await self._run(found, order)
        except BaseException as error:
            if self._is_ours(order, error):
                self._under_way.pop(order.key, None)
                raise
            self._report_failure(order, found, error)
        else:
            await self._report_result(found, order, result)

    async def _large_arguments(self, order: Order) -> Data | None:
        """None: they are in the order. Raises `PayloadLost`: the instance was purged meanwhile."""
        if not order.stored:
            return None
        keeper = self._keeper
        if keeper is None:
            raise PayloadLost("this host's store has no payloads")
        data: Data = await patiently(lambda: keeper.load(order.stream, Stored.parse(order.stored)))
        return data

    async def _report_result(self, found: Activity[Any, Any], order: Order, result: bytes | Stored) -> None:
        """Durably, by then, if it is large (PAY-1). One that cannot be stored, whatever the patience, is a failure."""
        if isinstance(result, bytes):
            if len(result) <= self._limit or self._keeper is None:
                self._report(order, "activity_done", (order.execution, order.step, result.decode()))
                return
            try:
                result = await self._keeper.keep_patiently(order.stream, result)
            except BaseException as error:
                if self._is_ours(order, error):
                    self._under_way.pop(order.key, None)
                    raise
                self._report_failure(order, found, error)
                return
        self._report(order, "activity_done_large", (order.execution, order.step, str(result)))

    def _is_ours(self, order: Order, error: BaseException) -> bool:
        """Not the activity's failure: it was cancelled, not by itself, or somebody is at the keyboard."""
        if isinstance(error, asyncio.CancelledError):
            return order.given_up or self._client.is_stopped
        return isinstance(error, KeyboardInterrupt)

    def _run_quick(self) -> None:
        quick = self._quick
        try:
            for _ in range(min(len(quick), _QUICK_AT_ONCE)):
                if self._client.is_stopped:  # as if crashed: whoever has the partition next finds the orders
                    quick.clear()
                    return
                self._work_quickly(*quick[0])
                quick.popleft()
        except BaseException:  # somebody is at the keyboard
            quick.popleft()
            raise
        finally:
            if quick:
                asyncio.get_running_loop().call_soon(self._run_quick)

    def _work_quickly(self, found: Activity[Any, Any], order: Order) -> None:
        """As `_work`, in one go."""
        _info.set(order)
        try:
            positional, named = found.decode_arguments(orjson.loads(order.arguments))
            result = encode(_result_of(found.function(*positional, **named)))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._report_failure(order, found, error)
        else:
            if len(result) > self._limit:
                self._client.create_task(self._report_result(found, order, result))
            else:
                self._report(order, "activity_done", (order.execution, order.step, result.decode()))

    async def _run(self, found: Activity[Any, Any], order: Order) -> bytes | Stored:
        """JSON of the result, or where it is. What was given up while it waited is not begun."""
        if order.given_up:
            raise asyncio.CancelledError
        elsewhere = self._elsewhere
        if elsewhere is not None and (needs := self._needs_elsewhere(found, elsewhere)) is not None:
            return await self._run_elsewhere(elsewhere, found, needs, order)
        if found.is_async:
            return await encode_freely(await self._run_on_loop(found, order))
        await self._threads.acquire()
        if order.given_up:
            self._threads.release()
            raise asyncio.CancelledError
        # Those before it in the queue may have been measured meanwhile.
        if elsewhere is not None and (needs := self._needs_elsewhere(found, elsewhere)) is not None:
            self._threads.release()
            return await self._run_elsewhere(elsewhere, found, needs, order)
        return await encode_freely(await self._run_in_thread(found, order))

    def _needs_elsewhere(self, found: Activity[Any, Any], elsewhere: Elsewhere) -> Needs | None:
        """What it asks for when it is to run elsewhere."""
        if not found.is_measured:
            return found.needs
        return ONE_CPU if elsewhere.has_processors() and self._places.is_away(found.name) else None

    async def _arguments(self, found: Activity[Any, Any], order: Order) -> tuple[list[Any], dict[str, Any]]:
        # Not by a name, which would keep the JSON for as long as the activity runs.
        if not order.stored:
            return found.decode_arguments(orjson.loads(order.arguments))
        data = await self._large_arguments(order)
        assert data is not None
        return await found.read_arguments(data)

    async def _run_on_loop(self, found: Activity[Any, Any], order: Order) -> Any:
        args, kwargs = await self._arguments(found, order)
        limit_s = self._limit_s(found, order)
        if limit_s is None:
            return await found.function(*args, **kwargs)
        return await _limited(found.function(*args, **kwargs), limit_s, order)

    async def _run_elsewhere(
        self, elsewhere: Elsewhere, found: Activity[Any, Any], needs: Needs, order: Order
    ) -> bytes | Stored:
        limit_s = self._limit_s(found, order)
        running = self._repeated(elsewhere, order, needs)
        task = asyncio.current_task()
        assert task is not None
        self._elsewhere_now[order.key] = task
        try:
            ran: Ran = await (running if limit_s is None else _limited(running, limit_s, order))
        finally:
            del self._elsewhere_now[order.key]
        if found.is_measured:
            self._places.measured(found.name, ran.busy_s)
        return ran.result

    async def _repeated(self, elsewhere: Elsewhere, order: Order, needs: Needs) -> Ran:
        """One attempt: begun again when its process dies, a few times, and when it is lost with its node, ever more
        slowly. Raises `WorkerDied`, and what the activity raises."""
        deaths, pause_s = 0, _REPEAT_S
        while True:
            try:
                return await elsewhere.run(order, needs, self._keeper, await self._large_arguments(order))
            except WorkerLost as lost:
                log.warning("activity %s of %s is run again: %s", order.name, order.instance_id, lost)
            except WorkerDied as died:
                deaths += 1
                if deaths > _MOST_REPEATS:
                    often = f"the process of {order.name} has died {deaths} times; the last time: {died}"
                    raise WorkerDied(often) from died
                log.warning("activity %s of %s is run again: %s", order.name, order.instance_id, died)
            order.redelivered = True
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_REPEAT_S)

    async def _run_in_thread(self, found: Activity[Any, Any], order: Order) -> Any:
        """In a thread that was acquired. A thread cannot be stopped: after a timeout it runs on, unheard, and is busy
        until it ends. Waiting for a free one does not count."""
        try:
            args, kwargs = await self._arguments(found, order)
            limit_s = self._limit_s(found, order)
        except BaseException:
            self._threads.release()
            raise
        run = contextvars.copy_context().run
        outcome = self._threads.run(lambda: run(_caught, lambda: found.function(*args, **kwargs)))
        if found.is_measured and self._elsewhere is not None:
            outcome.add_done_callback(lambda ended: self._measured(found, ended))
        if limit_s is None:
            result, error, _ = await outcome
        else:
            result, error, _ = await _limited(_awaited(asyncio.shield(outcome)), limit_s, order)
        if error is not None:
            raise error
        return result

    def _measured(self, found: Activity[Any, Any], ended: asyncio.Future[_Caught]) -> None:
        """Before whoever waits for the thread asks for its place anew."""
        if not ended.cancelled():
            self._places.measured(found.name, ended.result().busy_s)

    def _limit_s(self, found: Activity[Any, Any], order: Order) -> float | None:
        """Seconds this attempt may take: its own timeout, or what is left of the step's. Raises `ActivityTimeout` when
        nothing is: it must not begin."""
        policy = found.retry
        if policy.overall_ms is None:
            return policy.timeout_s
        left_s = (order.first_ms + policy.overall_ms - self._clock.now_ms()) / 1000
        if left_s <= 0:
            raise ActivityTimeout(f"{order.name} is out of time: attempt {order.attempt} is not begun")
        return left_s if policy.timeout_s is None else min(left_s, policy.timeout_s)

    # -- reporting ----------------------------------------------------------------------------------------------------

    def _report_failure(self, order: Order, found: Activity[Any, Any], error: BaseException) -> None:
        """Never raises: what went wrong here could only wait for a crash of the host."""
        now_ms = self._clock.now_ms()
        try:
            due_ms = found.retry.next_due_ms(order.attempt, error, order.first_ms, now_ms)
        except Exception:  # classes of the application have their say in what an exception is
            log.exception("activity %s of %s has failed, and is not tried again", order.name, order.instance_id)
            due_ms = None
        retry_ms = -1 if due_ms is None else due_ms - now_ms
        message = message_of(error)
        if due_ms is None and found.retry.overall_ms is not None and isinstance(error, ActivityTimeout):
            message = f"{message}{_after(order)}"
        failure = [type(error).__name__, message, trace_of(error, _LONGEST_TRACEBACK)]
        self._report(order, "activity_failed", (order.execution, order.step, order.attempt, failure, retry_ms))

    def _report(self, order: Order, method: str, outcome: tuple[Any, ...], pause_s: float = _REPORT_RETRY_S) -> None:
        """Make the turn that records the outcome. Whatever is in its way, it is reported again, rather than the
        activity run again."""
        row = order.row

        def heard(error: BaseException | None) -> None:
            if error is None and order.row == row:
                self._under_way.pop(order.key, None)
                self._settle(method, outcome)
            elif _is_lost(error):  # only where the order was begun anew, by a host that had the partition meanwhile
                self._settle(method, outcome)
                self._under_way.pop(order.key, None)
                self._begin(order, True)
            elif error is None:  # the row came in between
                self._report(order, method, outcome)
            elif not isinstance(error, HostStopping):
                if not isinstance(error, Retriable):
                    log.warning("the outcome of %s in %s is reported again: %s", order.step, order.instance_id, error)
                longer_s = min(pause_s * 2, _LONGEST_RETRY_S)
                asyncio.get_running_loop().call_later(pause_s, self._report, order, method, outcome, longer_s)

        self._client.tell(order.stream, self._methods[method], (row, *outcome), heard)

    def _settle(self, method: str, outcome: tuple[Any, ...]) -> None:
        if method == "activity_done_large" and self._keeper is not None:
            self._keeper.settled(Stored.parse(outcome[2]).id)


def run_here(found: Activity[Any, Any], order: Order, large: Data | None = None) -> tuple[bytes, float]:
    """One attempt, in this process and thread: JSON of the result, and how long it used the processor. `large`: the
    arguments, when they are not in the order. Raises what the activity raises, `CodecError`."""
    _info.set(order)
    positional, named = found.decode_arguments(orjson.loads(order.arguments if large is None else large))
    begun_s = time.thread_time()
    result = found.function(*positional, **named)
    if found.is_async:
        result = asyncio.run(result)
    busy_s = time.thread_time() - begun_s
    return encode(result), busy_s


def _result_of(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Of one that cannot suspend."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} was found unable to suspend, and did suspend")


def _after(order: Order) -> str:
    """Why there was an attempt that the time of the step has cut short: that says more than the want of time."""
    return f"; attempt {order.attempt - 1} failed: {order.failure}" if order.failure else ""


def _is_lost(error: BaseException | None) -> bool:
    """The value that was reported is not in the store any more."""
    return isinstance(error, ActorFailed) and error.error_type == PayloadLost.__name__


async def _limited(running: Coroutine[Any, Any, Any], limit_s: float, order: Order) -> Any:
    try:
        async with asyncio.timeout(limit_s) as scope:
            return await running
    except TimeoutError as error:
        if scope.expired():
            raise ActivityTimeout(f"attempt {order.attempt} of {order.name} ran longer than {limit_s:g} s") from error
        raise


async def _awaited(future: asyncio.Future[Any]) -> Any:
    return await future


class _Caught(NamedTuple):
    """`busy_s`: how long the function used the processor."""

    result: Any
    error: BaseException | None
    busy_s: float


def _caught(function: Callable[[], Any]) -> _Caught:
    """As data: an exception like SystemExit must not travel through a future into the event loop. Nobody's keyboard
    interrupts a thread, so what looks like it is the function's own failure."""
    begun_s = time.thread_time()
    try:
        return _Caught(function(), None, time.thread_time() - begun_s)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            error = RuntimeError(f"KeyboardInterrupt was raised in a thread: {message_of(error)}")
        return _Caught(None, error, time.thread_time() - begun_s)
