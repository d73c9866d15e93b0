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

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from actors import ActorClient, Clock, Work
    from workflow.definition import Activity
    from workflow.instance import WorkflowInstance

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


_info: contextvars.ContextVar[ActivityInfo] = contextvars.ContextVar("mecha_activity")


def activity_info() -> ActivityInfo:
    """Of the running activity. Raises `RuntimeError` outside of one."""
    try:
        return _info.get()
    except LookupError:
        raise RuntimeError("activity_info() works inside an activity that a workflow called") from None


class ActivityTimeout(WorkflowError):
    """An attempt, or the step as a whole, took longer than its policy allows."""


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


class ActivityWorker:
    """Runs activities: coroutines on the host's loop, plain functions in at most `threads` threads."""

    def __init__(self, activities: Mapping[str, Activity[Any, Any]], clock: Clock, threads: int) -> None:
        self._activities = activities
        self._clock = clock
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._free: asyncio.Semaphore | None = None
        self._client: ActorClient | None = None
        self._instance_type: type[WorkflowInstance] | None = None

    def attach(self, client: ActorClient, instance_type: type[WorkflowInstance]) -> None:
        """Outcomes go through this client. Call before the host starts."""
        self._client, self._instance_type = client, instance_type

    def close(self) -> None:
        """Threads that are busy end with their work."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    async def __call__(self, work: Work) -> None:
        """Raises `LookupError` for an activity that is not deployed here (the work then waits for a host that has it),
        and `HostStopping`."""
        fields = orjson.loads(work.body)
        instance_id = work.stream.partition("/")[2]
        order = _Order(
            work.id, instance_id, fields["x"], fields["s"], fields["n"], fields["a"], fields["k"], fields["f"]
        )
        found = self._activities.get(order.name)
        if found is None:
            raise LookupError(
                f"activity {order.name!r} is not deployed here; there is {', '.join(sorted(self._activities))}"
            )
        activity_id = f"{instance_id}:{order.execution}:{order.step}"
        _info.set(ActivityInfo(activity_id, order.name, order.attempt, instance_id, work.redelivered))
        try:
            result = encode(await self._run(found, order)).decode()
        except BaseException as error:
            if _is_ours(error):
                raise
            await self._report_failure(order, found, error)
        else:
            await self._report(order, lambda to: to.activity_done(order.message, order.execution, order.step, result))

    # -- running ------------------------------------------------------------------------------------------------------

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

    async def _report_failure(self, order: _Order, found: Activity[Any, Any], error: BaseException) -> None:
        now_ms = self._clock.now_ms()
        due_ms = found.retry.next_due_ms(order.attempt, error, order.first_ms, now_ms)
        retry_ms = -1 if due_ms is None else due_ms - now_ms
        trace = "".join(traceback.format_exception(error))[-_LONGEST_TRACEBACK:]
        failure = [type(error).__name__, _text(error), trace]
        await self._report(
            order,
            lambda to: to.activity_failed(order.message, order.execution, order.step, order.attempt, failure, retry_ms),
        )

    async def _report(self, order: _Order, send: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
        """Make the turn that records the outcome. A host in trouble is asked again, rather than the activity run
        again."""
        assert self._client is not None, "attach() comes before the host starts"
        assert self._instance_type is not None, "attach() comes before the host starts"
        pause_s = _REPORT_RETRY_S
        while True:
            try:
                return await send(self._client.actor(self._instance_type, order.instance_id))
            except HostStopping:
                raise
            except Retriable:
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _LONGEST_RETRY_S)


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


def _text(error: BaseException) -> str:
    """The exception's message, in characters that can be stored."""
    return str(error).encode("utf-8", "replace").decode()
