"""The worker that runs activities: a piece of posted work in, a turn of its workflow out.

An activity is run at least once: the work stands in the outbox until the turn that records its outcome is committed, so
a crash in between runs it again, with the same `activity_id`. Its outcome is recorded once: the turn that consumes the
work removes it. Whether to try again is decided here, by the policy the code has now, and recorded as a fact.
"""

from __future__ import annotations

import asyncio
import contextvars
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from actors import HostStopping, Retriable
from statestores.codec import encode
from workflow.errors import WorkflowError
from workflow.history import ACTOR_TYPE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping

    from actors import ActorClient, Clock, Work
    from actors.definition import Method
    from workflow.definition import Activity

_LONGEST_TRACEBACK = 20_000
_REPORT_RETRY_S = 0.05
_LONGEST_RETRY_S = 5.0


class ActivityInfo(NamedTuple):
    """What an activity may know of itself. `activity_id` is the same for all attempts and redeliveries of one step: an
    idempotency key for whatever the activity does outside."""

    activity_id: str
    name: str
    attempt: int
    instance_id: str
    redelivered: bool


class _Order(NamedTuple):
    """A piece of work, parsed."""

    message: str
    instance_id: str
    execution: str
    step: str
    name: str
    arguments: Any
    attempt: int
    first_ms: int


# The order, and whether it was given before: few activities ask what it says.
_info: contextvars.ContextVar[tuple[_Order, bool]] = contextvars.ContextVar("mecha_activity")


def activity_info() -> ActivityInfo:
    """Of the running activity. Raises `RuntimeError` outside of one."""
    try:
        order, redelivered = _info.get()
    except LookupError:
        raise RuntimeError("activity_info() works inside an activity that a workflow called") from None
    activity_id = f"{order.instance_id}:{order.execution}:{order.step}"
    return ActivityInfo(activity_id, order.name, order.attempt, order.instance_id, redelivered)


class ActivityTimeout(WorkflowError):
    """An attempt, or the step as a whole, took longer than its policy allows."""


class ActivityWorker:
    """Runs activities: coroutines on the host's loop, plain functions in at most `threads` threads."""

    def __init__(self, activities: Mapping[str, Activity[Any, Any]], clock: Clock, threads: int) -> None:
        self._activities = activities
        self._clock = clock
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._free: asyncio.Semaphore | None = None
        self._client: ActorClient | None = None
        self._methods: Mapping[str, Method] = {}

    def attach(self, client: ActorClient, methods: Mapping[str, Method]) -> None:
        """Outcomes go through this client, to these methods of instances. Call before the host starts."""
        self._client, self._methods = client, methods

    def close(self) -> None:
        """Threads that are busy end with their work."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def __call__(self, work: Work) -> Awaitable[None] | None:
        """Raises later: `HostStopping`; `LookupError` for an activity that is not deployed here, whose work then waits
        for a host that has it. One whose code cannot suspend runs without a task, as soon as the event loop gets to
        it."""
        fields = orjson.loads(work.body)
        instance_id = work.stream.partition("/")[2]
        order = _Order(
            work.id, instance_id, fields["x"], fields["s"], fields["n"], fields["a"], fields["k"], fields["f"]
        )
        found = self._activities.get(order.name)
        if found is None:
            return self._not_deployed(order)
        if not found.is_quick:
            return self._work(found, order, work.redelivered)
        asyncio.get_running_loop().call_soon(self._work_quickly, found, order, work)
        return None

    async def _not_deployed(self, order: _Order) -> None:
        """Work for an instance that has ended or was purged would wait for a deployment that never comes."""
        assert self._client is not None
        args = (order.message, order.execution, order.step)
        stream = f"{ACTOR_TYPE}/{order.instance_id}"
        if await self._client.call_method(stream, self._methods["wants"], args):
            raise LookupError(
                f"activity {order.name!r} is not deployed here; there is {', '.join(sorted(self._activities))}"
            )

    # -- running ------------------------------------------------------------------------------------------------------

    async def _work(self, found: Activity[Any, Any], order: _Order, redelivered: bool) -> None:
        _info.set((order, redelivered))
        try:
            result = encode(await self._run(found, order)).decode()
        except BaseException as error:
            if _is_ours(error):
                raise
            report, args = "activity_failed", self._failure(order, found, error)
        else:
            report, args = "activity_done", (order.message, order.execution, order.step, result)
        heard: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._report(order, report, args, lambda error: _settle(heard, error))
        await heard

    def _work_quickly(self, found: Activity[Any, Any], order: _Order, work: Work) -> None:
        """As `_work`, in one go."""
        assert self._client is not None
        if self._client.is_stopped:  # as if crashed: whoever has the partition next finds the work
            return
        _info.set((order, work.redelivered))
        try:
            positional, named = found.decode_arguments(order.arguments)
            result = encode(_result_of(found.function(*positional, **named))).decode()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            report, args = "activity_failed", self._failure(order, found, error)
        else:
            report, args = "activity_done", (order.message, order.execution, order.step, result)
        self._report(order, report, args, lambda error: None if error is None else work.failed(error))

    async def _run(self, found: Activity[Any, Any], order: _Order) -> Any:
        args, kwargs = found.decode_arguments(order.arguments)
        if not found.is_async:
            return await self._run_in_thread(found, order, args, kwargs)
        limit_s = self._limit_s(found, order)
        if limit_s is None:
            return await found.function(*args, **kwargs)
        return await _limited(found.function(*args, **kwargs), limit_s, order)

    async def _run_in_thread(
        self, found: Activity[Any, Any], order: _Order, args: list[Any], kwargs: dict[str, Any]
    ) -> Any:
        """A thread cannot be stopped: after a timeout it runs on, unheard, and is busy until it ends. Waiting for a
        free one does not count."""
        if self._pool is None or self._free is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="mecha-activity")
            self._free = asyncio.Semaphore(self._threads)
        free, run = self._free, contextvars.copy_context().run
        await free.acquire()
        loop = asyncio.get_running_loop()
        try:
            thread = self._pool.submit(run, _caught, lambda: found.function(*args, **kwargs))
        except BaseException:
            free.release()
            raise
        thread.add_done_callback(lambda _: loop.is_closed() or loop.call_soon_threadsafe(free.release))
        outcome: asyncio.Future[tuple[Any, BaseException | None]] = asyncio.wrap_future(thread)
        limit_s = self._limit_s(found, order)
        if limit_s is None:
            result, error = await outcome
        else:
            result, error = await _limited(_awaited(asyncio.shield(outcome)), limit_s, order)
        if error is not None:
            raise error
        return result

    def _limit_s(self, found: Activity[Any, Any], order: _Order) -> float | None:
        """Seconds this attempt may take: its own timeout, or what is left of the step's."""
        policy = found.retry
        if policy.overall_ms is None:
            return policy.timeout_s
        left_s = max(0.0, (order.first_ms + policy.overall_ms - self._clock.now_ms()) / 1000)
        return left_s if policy.timeout_s is None else min(left_s, policy.timeout_s)

    # -- reporting ----------------------------------------------------------------------------------------------------

    def _failure(self, order: _Order, found: Activity[Any, Any], error: BaseException) -> tuple[Any, ...]:
        """Arguments of `WorkflowInstance.activity_failed`."""
        now_ms = self._clock.now_ms()
        due_ms = found.retry.next_due_ms(order.attempt, error, order.first_ms, now_ms)
        retry_ms = -1 if due_ms is None else due_ms - now_ms
        trace = "".join(traceback.format_exception(error))[-_LONGEST_TRACEBACK:]
        failure = [type(error).__name__, _storable(str(error)), _storable(trace)]
        return order.message, order.execution, order.step, order.attempt, failure, retry_ms

    def _report(
        self,
        order: _Order,
        method: str,
        args: tuple[Any, ...],
        heard: Callable[[BaseException | None], None],
        pause_s: float = _REPORT_RETRY_S,
    ) -> None:
        """Make the turn that records the outcome, and call `heard`, with what went wrong. A host in trouble is asked
        again, rather than the activity run again."""
        assert self._client is not None, "attach() comes before the host starts"

        def answered(answer: asyncio.Future[None]) -> None:
            error = HostStopping("the outcome was not taken") if answer.cancelled() else answer.exception()
            if isinstance(error, Retriable) and not isinstance(error, HostStopping):
                longer_s = min(pause_s * 2, _LONGEST_RETRY_S)
                loop = asyncio.get_running_loop()
                loop.call_later(pause_s, self._report, order, method, args, heard, longer_s)
            else:
                heard(error)

        stream = f"{ACTOR_TYPE}/{order.instance_id}"
        self._client.call_method(stream, self._methods[method], args).add_done_callback(answered)


def _settle(heard: asyncio.Future[None], error: BaseException | None) -> None:
    if heard.done():
        return
    if error is None:
        heard.set_result(None)
    else:
        heard.set_exception(error)


def _result_of(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Of one that cannot suspend."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} was found unable to suspend, and did suspend")


def _is_ours(error: BaseException) -> bool:
    """Not the activity's failure: the host is stopping, or somebody is at the keyboard."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    return isinstance(error, KeyboardInterrupt)


async def _limited(running: Coroutine[Any, Any, Any], limit_s: float, order: _Order) -> Any:
    try:
        async with asyncio.timeout(limit_s) as scope:
            return await running
    except TimeoutError as error:
        if scope.expired():
            raise ActivityTimeout(f"attempt {order.attempt} of {order.name} ran longer than {limit_s:g} s") from error
        raise


async def _awaited(future: asyncio.Future[Any]) -> Any:
    return await future


def _caught(function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """As data: an exception like SystemExit must not travel through a future into the event loop."""
    try:
        return function(), None
    except BaseException as error:
        return None, error


def _storable(text: str) -> str:
    """Without half surrogate pairs, which have no UTF-8 form."""
    return text.encode("utf-8", "replace").decode()
