"""An event loop in a simulated world: time jumps, the order is drawn from a seed, machines freeze and die.

`run(seed, program)` runs a coroutine function on a fresh `SimulatedLoop`. Nothing in it is real: when nobody can go on,
the clock jumps to the next timer; when there is no timer either, the program is deadlocked and fails, naming who waits.
Threads, sockets and processes are refused. One integer reproduces a run; `loop.digest` tells two runs apart, so code
that is not deterministic (hash order, real clocks, real randomness) can be caught by running a seed twice.

**What is shuffled.** asyncio promises that callbacks run in the order of `call_soon`, and its primitives and our own
code may rely on it: whoever calls `call_soon(f)` and yields, finds that `f` has run. In which order *different tasks*
go on that became ready together is another matter: in production it follows from when sockets and disks happened to
answer. So within one iteration of the loop, tasks of one node that stand next to each other are shuffled, plain
callbacks stay where they are between them, and the nodes, which know nothing of each other's queues, are interleaved
at random. Nothing overtakes the iteration before. Timers that are due at the same instant fire in random order.
`shuffle=False` is asyncio's own order.

**Nodes.** A node is a machine: everything that a coroutine started by `spawn(node, …)` starts in turn, told by a
context variable. `freeze` holds all of it back for a while (a paused process: it wakes up late and knows nothing),
`kill` never runs it again: no `except`, no `finally`, like ``kill -9``. Nodes that share objects must call each other
through `ask(node, …)`, else the work is done in the name, and with the luck, of the caller.
"""

from __future__ import annotations

import asyncio
import heapq
import sys
import threading
from collections import deque
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field
from itertools import groupby
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, TypeVarTuple, Unpack, cast
from weakref import WeakKeyDictionary, WeakSet
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterator

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_NODE: ContextVar[str] = ContextVar("simulated_node", default="")


class SimulationFailed(AssertionError):
    """The program did something that no correct program does. The message has the seed."""


class SimulatedDeadlock(SimulationFailed):
    """Nothing is ready and no timer is set, yet the program has not ended."""


class StepLimitReached(SimulationFailed):
    """The program runs in circles, or the limit is too low."""


class RealWorldRefused(SimulationFailed):
    """The program asked for a thread, a socket, a process or a signal."""


class NodeDied(ConnectionError):
    """The node that was asked died before it answered: the outcome is unknown."""


def current_node() -> str:
    """The node that runs now, "" outside all."""
    return _NODE.get()


def run(
    seed: int,
    program: Callable[[SimulatedLoop], Coroutine[Any, Any, T]],
    *,
    shuffle: bool = True,
    max_steps: int = 1_000_000,
) -> T:
    """The result of the program in the world of that seed. When it returns, the world ends: whatever is still under way
    is closed where it stands, and nothing it does then has an effect. Every exception carries the seed as a note."""
    loop = SimulatedLoop(seed, shuffle=shuffle, max_steps=max_steps)
    try:
        return loop.run_until_complete(program(loop))
    except BaseException as error:
        error.add_note(f"simulation seed {seed}, at {loop.time():.6f} s after {loop.steps} steps")
        raise
    finally:
        loop.close()


class _Step(NamedTuple):
    """A callback that is ready. `task`: the one whose step it is, None for a plain callback."""

    handle: asyncio.Handle
    callback: Callable[..., object]
    args: tuple[Any, ...]
    context: Context
    node: str
    task: asyncio.Task[Any] | None


@dataclass(slots=True)
class _Node:
    frozen_until: float = 0.0
    dead: bool = False
    # Steps that wait for the thaw; of a dead node: kept, since letting go of a coroutine would run its `finally`.
    held: list[_Step] = field(default_factory=list)
    # Likewise, of a dead node.
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)
    # What callers outside wait for: each answers one `ask`.
    asked: list[asyncio.Future[Any]] = field(default_factory=list)


if TYPE_CHECKING:
    _Base = (
        asyncio.BaseEventLoop
    )  # has no abstract methods left: ours are filled in below, where a checker cannot see it
else:
    _Base = asyncio.AbstractEventLoop


class SimulatedLoop(_Base):
    """See the module. Not thread-safe and proud of it: `call_soon_threadsafe` works from the loop's own thread only."""

    def __init__(self, seed: int = 0, *, shuffle: bool = True, max_steps: int = 1_000_000) -> None:
        self.seed = seed
        self.steps = 0
        self.digest = 0
        """A checksum of what ran, in which order, and when."""
        self._shuffle = shuffle
        self._max_steps = max_steps
        self._order = self.random_for("order")
        self._now = 0.0
        self._ready: list[_Step] = []
        # (when, tie break, number, step): the number only keeps the comparison away from the step.
        self._timers: list[tuple[float, float, int, _Step]] = []
        self._numbers = iter(range(sys.maxsize))
        self._nodes: dict[str, _Node] = {}
        self._contexts: WeakKeyDictionary[asyncio.Task[Any], Context] = WeakKeyDictionary()
        self._generators: WeakSet[AsyncGenerator[Any, Any]] = WeakSet()
        self._thread = threading.get_ident()
        self._exception_handler: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None = None
        self._failure: BaseException | None = None
        self._stopping = False
        self._ended = False

    def random_for(self, purpose: str) -> Random:
        """A source of randomness of its own for each purpose: drawing more here does not change what is drawn there."""
        return Random(f"{self.seed}/{purpose}")

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def spawn(self, node: str, coroutine: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
        """Start work on a node. A name is used for one life: a restarted node is another node."""
        if self._nodes.setdefault(node, _Node()).dead:
            coroutine.close()
            raise NodeDied(f"{node} is dead; give its next life another name")
        context = copy_context()
        context.run(_NODE.set, node)
        return self.create_task(coroutine, name=name, context=context)

    async def ask(self, node: str, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on a node and wait for its answer, like a request over a network: raises `NodeDied` when the
        node dies first; cancelling the caller does not reach the node."""
        answer: asyncio.Future[T] = self.create_future()
        task = self.spawn(node, coroutine)
        asked = self._nodes[node].asked
        asked.append(answer)

        def deliver(done: asyncio.Task[T]) -> None:
            if done.cancelled():
                if not answer.done():
                    answer.cancel()
            elif (error := done.exception()) is not None:
                if not answer.done():
                    answer.set_exception(error)
            elif not answer.done():
                answer.set_result(done.result())

        task.add_done_callback(_see, context=Context())  # on no node: also when the one that asked is gone
        task.add_done_callback(deliver)
        try:
            return await answer
        finally:
            asked.remove(answer)

    def freeze(self, node: str, seconds: float) -> None:
        """Nothing of the node runs for so long. What became due in between runs after it, late."""
        state = self._nodes.setdefault(node, _Node())
        state.frozen_until = max(state.frozen_until, self._now + seconds)
        Context().run(self.call_at, state.frozen_until, self._thaw, state)

    def kill(self, node: str) -> None:
        """Nothing of the node ever runs again, from the next step on. Who asked it gets `NodeDied`."""
        state = self._nodes.setdefault(node, _Node())
        state.dead = True
        state.tasks = [task for task in self._open_tasks() if self._node_of(task) == node]
        for answer in list(state.asked):
            if not answer.done():
                answer.set_exception(NodeDied(f"{node} died"))

    def is_alive(self, node: str) -> bool:
        return node not in self._nodes or not self._nodes[node].dead

    def _open_tasks(self) -> list[asyncio.Task[Any]]:
        """As `asyncio.all_tasks`, which looks at those of all worlds there have been."""
        return [task for task in list(self._contexts) if not task.done()]

    def _node_of(self, task: asyncio.Task[Any]) -> str:
        return self._contexts[task].get(_NODE, "")

    def _thaw(self, state: _Node) -> None:
        if not state.dead and state.frozen_until <= self._now:
            self._ready += state.held
            state.held = []

    # -- running -------------------------------------------------------------------------------------------------------

    def run_until_complete(self, future: Generator[Any, None, T] | Awaitable[T]) -> T:
        with self._running():
            main = asyncio.ensure_future(cast("Awaitable[T]", future), loop=self)
            while not main.done():
                self._iterate()
            return main.result()

    def run_forever(self) -> None:
        with self._running():
            while not self._stopping:
                self._iterate()
            self._stopping = False

    def stop(self) -> None:
        self._stopping = True

    @contextmanager
    def _running(self) -> Iterator[None]:
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=self._generators.add, finalizer=self._finalize_generator)
        asyncio._set_running_loop(self)
        try:
            yield
        finally:
            asyncio._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)

    def _iterate(self) -> None:
        """One round: everything that is ready at its start, then no more."""
        self._drop_cancelled_timers()
        if not self._ready:
            self._jump()
        while self._timers and self._timers[0][0] <= self._now:
            self._ready.append(heapq.heappop(self._timers)[3])
        ready, self._ready = self._ready, []
        batch = deque(self._shuffled(ready) if self._shuffle and len(ready) > 1 else ready)
        del ready
        while batch:
            self._take(batch.popleft())
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure

    def _drop_cancelled_timers(self) -> None:
        while self._timers and self._timers[0][3].handle.cancelled():
            heapq.heappop(self._timers)

    def _jump(self) -> None:
        if not self._timers:
            raise SimulatedDeadlock("nothing can go on; waiting are:\n  " + "\n  ".join(self._who_waits()))
        self._now = max(self._now, self._timers[0][0])

    def _who_waits(self) -> list[str]:
        tasks = [task for task in self._open_tasks() if self.is_alive(self._node_of(task))]
        return sorted(f"{task.get_name()} [{self._node_of(task)}]: {_where(task)}" for task in tasks)

    def _shuffled(self, batch: list[_Step]) -> list[_Step]:
        """A random order that is legal: see the module."""
        queues: dict[str, list[_Step]] = {}
        for step in batch:
            queues.setdefault(step.node, []).append(step)
        whose = [step.node for step in batch]
        self._order.shuffle(whose)
        queued = {node: iter(self._shuffled_tasks(queue)) for node, queue in queues.items()}
        return [next(queued[node]) for node in whose]

    def _shuffled_tasks(self, queue: list[_Step]) -> list[_Step]:
        shuffled: list[_Step] = []
        for are_tasks, neighbours in groupby(queue, key=lambda step: step.task is not None):
            steps = list(neighbours)
            if are_tasks:
                self._order.shuffle(steps)
            shuffled += steps
        return shuffled

    def _take(self, step: _Step) -> None:
        if step.handle.cancelled():
            return
        node = self._nodes.get(step.node)
        if node is not None and (node.dead or node.frozen_until > self._now):
            node.held.append(step)
            return
        self.steps += 1
        if self.steps > self._max_steps:
            raise StepLimitReached(f"more than {self._max_steps} steps; {_label(step)} was next")
        self.digest = crc32(f"{self._now!r} {step.node} {_label(step)}".encode(), self.digest)
        try:
            step.context.run(step.callback, *step.args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self.call_exception_handler({"message": f"exception in callback {_label(step)}", "exception": error})
        finally:
            # A task's exception may hold this frame: with the step in it, it would hold the task, and the report that
            # nobody has seen the exception would never come.
            del step

    # -- the end of the world ------------------------------------------------------------------------------------------

    def is_running(self) -> bool:
        return asyncio._get_running_loop() is self

    def is_closed(self) -> bool:
        return self._ended

    def close(self) -> None:
        """Close every coroutine where it stands. Nothing is scheduled any more: what a `finally` starts never runs."""
        if self._ended:
            return
        self._ended = True
        with self._running():
            for _ in range(100):  # closing may start new tasks, which are closed in turn
                tasks = [task for task in self._open_tasks() if _is_open(task)]
                if not tasks:
                    break
                for task in sorted(tasks, key=asyncio.Task.get_name):
                    self._contexts[task].run(_close, task)
        for generator in list(self._generators):
            _exhaust(generator.aclose())
        self._ready.clear()
        self._timers.clear()
        self._nodes.clear()

    async def shutdown_asyncgens(self) -> None:
        for generator in list(self._generators):
            await generator.aclose()

    async def shutdown_default_executor(self) -> None:
        """There is none."""

    def _finalize_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        if not self._ended:
            self.create_task(_aclose(generator), name="close-generator")

    # -- scheduling ----------------------------------------------------------------------------------------------------

    def time(self) -> float:
        """Simulated seconds since the world began."""
        return self._now

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        context = context if context is not None else copy_context()
        handle = asyncio.Handle(callback, args, self, context)
        if not self._ended:
            self._ready.append(_step(handle, callback, args, context))
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        if threading.get_ident() != self._thread:
            raise RealWorldRefused("call_soon_threadsafe from another thread: there are no threads in a simulation")
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        context = context if context is not None else copy_context()
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        if not self._ended:
            tie_break = self._order.random() if self._shuffle else 0.0
            step = _step(handle, callback, args, context)
            heapq.heappush(self._timers, (when, tie_break, next(self._numbers), step))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Asked for by `TimerHandle.cancel`. Cancelled timers are dropped when they come up."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: Context | None = None,
        **options: Any,
    ) -> asyncio.Task[T]:
        """Names are counted per loop, not per process: they are part of the digest and of every message."""
        context = context if context is not None else copy_context()
        named = str(name) if name is not None else f"task-{next(self._numbers)}"
        task: asyncio.Task[T] = asyncio.Task(coro, loop=self, name=named, context=context, **options)
        self._contexts[task] = context
        return task

    # -- errors and settings -------------------------------------------------------------------------------------------

    def get_exception_handler(self) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None:
        return self._exception_handler

    def set_exception_handler(
        self, handler: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None
    ) -> None:
        self._exception_handler = handler

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self._ended:
            return
        if self._exception_handler is not None:
            self._exception_handler(self, context)
        else:
            self.default_exception_handler(context)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """An error that nobody handles ends the run: a log line would be overlooked in two thousand seeds."""
        cause = context.get("exception")
        if isinstance(cause, SimulationFailed):
            self._failure = cause
            return
        self._failure = SimulationFailed(f"{context.get('message')}: {cause!r}")
        self._failure.__cause__ = cause

    def get_debug(self) -> bool:
        return False

    def set_debug(self, enabled: bool) -> None:
        """The simulation has no debug mode."""

    def get_task_factory(self) -> None:
        return None


_REAL_WORLD = (
    "add_reader remove_reader add_writer remove_writer add_signal_handler remove_signal_handler run_in_executor "
    "set_default_executor getaddrinfo getnameinfo create_connection create_server create_unix_connection "
    "create_unix_server create_datagram_endpoint connect_accepted_socket connect_read_pipe connect_write_pipe "
    "subprocess_exec subprocess_shell sock_recv sock_recv_into sock_recvfrom sock_recvfrom_into sock_sendall "
    "sock_sendto sock_connect sock_accept sock_sendfile sendfile start_tls set_task_factory"
)


def _refusal(name: str) -> Callable[..., Any]:
    def refuse(self: SimulatedLoop, *args: object, **kwargs: object) -> Any:
        raise RealWorldRefused(f"loop.{name}: there are no threads, sockets, processes or signals in a simulation")

    refuse.__name__ = name
    return refuse


for _name in _REAL_WORLD.split():
    setattr(SimulatedLoop, _name, _refusal(_name))


def _step(handle: asyncio.Handle, callback: Callable[..., object], args: tuple[Any, ...], context: Context) -> _Step:
    node = context.get(_NODE, "")
    owner = getattr(callback, "__self__", None)
    return _Step(handle, callback, args, context, node, owner if isinstance(owner, asyncio.Task) else None)


def _label(step: _Step) -> str:
    if step.task is not None:
        return step.task.get_name()
    return getattr(step.callback, "__qualname__", type(step.callback).__name__)


def _where(task: asyncio.Task[Any]) -> str:
    """The innermost line a task waits at."""
    frames = task.get_stack()
    if not frames:
        return "not started"
    innermost = frames[-1]
    return f"{innermost.f_code.co_qualname} at {innermost.f_code.co_filename}:{innermost.f_lineno}"


def _is_open(task: asyncio.Task[Any]) -> bool:
    coroutine = task.get_coro()
    return getattr(coroutine, "cr_frame", None) is not None


def _close(task: asyncio.Task[Any]) -> None:
    coroutine = task.get_coro()
    for _ in range(100):  # a `finally` that awaits refuses to be closed, once for every await
        try:
            if coroutine is not None:
                coroutine.close()
        except RuntimeError:
            continue
        except BaseException:  # the world has ended: nobody is left to hear of it
            return
        return


def _exhaust(closing: Awaitable[None]) -> None:
    steps = closing.__await__()
    for _ in range(100):
        try:
            next(steps)
        except BaseException:  # StopIteration, or an error at the end of the world
            return


def _see(task: asyncio.Task[Any]) -> None:
    """Mark the task's error as seen."""
    if not task.cancelled():
        task.exception()


async def _aclose(generator: AsyncGenerator[Any, Any]) -> None:
    await generator.aclose()
