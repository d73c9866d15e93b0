"""A deterministic asyncio event loop: no clock, no I/O, no selector, stepped from outside until nothing is ready.

A workflow's coroutine runs on it as an ordinary asyncio task, so everything that asyncio builds from tasks, futures and
timers works unchanged: `gather`, `wait`, `wait_for`, `timeout`, `TaskGroup`, `as_completed`, `shield`, `Queue`,
`Event`, `Lock`, `Condition`, `Semaphore`. What makes a run repeatable:

- Time stands still during a step. `time()` is the time of the turn, which is recorded.
- `call_at` in the future is a command of the program, a durable timer; cancelling its handle is another.
- Ready callbacks run in the order they became ready. Futures of steps are resolved by recorded inputs alone.
- The loop holds its tasks (asyncio's hold them weakly), so the garbage collector decides nothing.
- An async generator that is dropped before its end is dropped: its `finally` does not run, on any run.

It nests inside whatever loop runs the host: a step makes it the thread's running loop and puts the other one back. No
other task of the host can run meanwhile, since a step never waits.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from asyncio import events
from collections import deque
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from workflow import guards
from workflow.discard import discard
from workflow.errors import Stall, WorkflowEvicted, WorkflowGuardError

if TYPE_CHECKING:
    import contextvars
    import types
    from collections.abc import Callable, Coroutine

    from workflow.replay import Program

T = TypeVar("T")

SPIN_LIMIT = 1_000_000
"""Callbacks in one step, after which the workflow is taken to spin (`while True: await asyncio.sleep(0)`)."""

_logger = logging.getLogger("workflow")
_ASYNCIO = asyncio.__name__


class Scope:
    """Lexical place of one task: its path in the tree of tasks, and what was counted at each call site in it."""

    __slots__ = ("children", "path", "sites")

    def __init__(self, path: str) -> None:
        self.path = path
        self.sites: dict[tuple[str, str], list[Any]] = {}
        self.children: dict[str, int] = {}

    def step(self, site: str, callee: str) -> str:
        """The next step id of a call of `callee` in function `site`: unique in the run, and the same on every run."""
        counted = self.sites.get((site, callee))
        if counted is None:
            prefix = f"{self.path}>{site}.{callee}" if self.path else f"{site}.{callee}"
            self.sites[site, callee] = [prefix, 1]
            return prefix
        counted[1] += 1
        return f"{counted[0]}[{counted[1]}]"

    def child(self, name: str) -> str:
        """The path of the next task of that name started by this one."""
        count = self.children.get(name, 0) + 1
        self.children[name] = count
        own = name if count == 1 else f"{name}[{count}]"
        return f"{self.path}>{own}" if self.path else own


class _Handle(asyncio.Handle):
    """As asyncio's, without its look at debug mode: made for every wake-up of a task."""

    __slots__ = ()

    def __init__(
        self,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        loop: WorkflowLoop,
        context: contextvars.Context | None,
    ) -> None:
        self._callback = callback
        self._args = args
        self._loop = loop
        self._context = context if context is not None else loop.base_context()
        self._cancelled = False
        self._repr = None
        self._source_traceback = None


class WorkflowLoop(asyncio.AbstractEventLoop):
    """See the module. Owned by one `Program`; used by one thread at a time."""

    def __init__(self, program: Program, context: contextvars.Context) -> None:
        self.program = program
        self.now_s = 0.0
        self.dead = False
        self.root_scope = Scope("")
        self._context = context
        self._ready: deque[asyncio.Handle] = deque()
        self._scopes: dict[asyncio.Task[Any], Scope] = {}
        self._timers: dict[asyncio.TimerHandle, str] = {}
        self._armed: dict[str, asyncio.TimerHandle] = {}

    # -- stepping -----------------------------------------------------------------------------------------------------

    def enter(self) -> Any:
        """Make this the running loop of the thread, guards on. Give the result to `leave`."""
        outside = (events._get_running_loop(), sys.get_asyncgen_hooks())
        events._set_running_loop(self)
        sys.set_asyncgen_hooks(None, _drop_generator)
        guards.enter()
        return outside

    def leave(self, outside: Any) -> None:
        guards.leave()
        sys.set_asyncgen_hooks(*outside[1])
        events._set_running_loop(outside[0])

    def run_ready(self) -> None:
        """Run until nothing is ready. Between `enter` and `leave`. Raises `Stall` for code that never gets there."""
        ready, budget = self._ready, SPIN_LIMIT
        while ready:
            handle = ready.popleft()
            if not handle._cancelled:
                try:
                    handle._context.run(handle._callback, *handle._args)  # type: ignore[attr-defined]
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:
                    self.call_exception_handler(
                        {"message": "exception in callback", "exception": error, "handle": handle}
                    )
            budget -= 1
            if not budget:
                raise Stall("StuckWorkflow", f"the code ran {SPIN_LIMIT} callbacks without waiting for anything")

    def fire(self, step: str) -> None:
        """The durable timer of that step has fired; one that was cancelled meanwhile is ignored."""
        handle = self._armed.pop(step, None)
        if handle is not None:
            del self._timers[handle]
            self._ready.append(handle)

    def kill(self) -> None:
        """End for good: no frame of any task runs again, on no account."""
        self.dead = True
        tasks = list(self._scopes)
        discard([task.get_coro() for task in tasks if not task.done()])
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's own switch, for `gather`
        self._ready.clear()
        self._scopes.clear()
        self._timers.clear()
        self._armed.clear()

    def armed(self) -> list[str]:
        """Steps of the timers that are pending."""
        return list(self._armed)

    @property
    def has_timers(self) -> bool:
        return bool(self._armed)

    def scope(self) -> Scope:
        """Of the running task; of the whole run for plain callbacks."""
        task = asyncio.current_task(self)
        return self.root_scope if task is None else self._scopes.get(task, self.root_scope)

    # -- what asyncio asks of a loop ----------------------------------------------------------------------------------

    def time(self) -> float:
        return self.now_s

    def get_debug(self) -> bool:
        return False

    def set_debug(self, enabled: bool) -> None:
        pass

    def is_running(self) -> bool:
        return not self.dead

    def is_closed(self) -> bool:
        return self.dead

    def base_context(self) -> contextvars.Context:
        return self._context.copy()

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]  # the base says Generator or Coroutine, and so do we in effect
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: contextvars.Context | None = None,
        **_options: Any,
    ) -> asyncio.Task[T]:
        """`_options` (eager_start, of newer Pythons) would change nothing but the order, which is ours."""
        if self.dead:
            coro.close()
            raise WorkflowEvicted
        path = self.scope().child(str(name) if name is not None else coro.__name__)  # type: ignore[attr-defined]
        if context is None and asyncio.current_task(self) is None:
            context = self.base_context()
        task: asyncio.Task[T] = asyncio.Task(coro, loop=self, name=path, context=context)
        self._scopes[task] = Scope(path)
        task.add_done_callback(self._forget, context=self._context)
        return task

    def create_root(self, coro: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task: asyncio.Task[T] = asyncio.Task(
            coro, loop=self, name=self.program.definition.name, context=self.base_context()
        )
        self._scopes[task] = self.root_scope
        return task

    def call_soon(  # type: ignore[override]  # typeshed's variadic generics
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context)
        if not self.dead:
            self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        if self.dead:
            raise WorkflowEvicted
        handle = asyncio.TimerHandle(
            when, callback, args, self, context if context is not None else self.base_context()
        )
        if when <= self.now_s:
            self._ready.append(handle)
        else:
            step = self.program.start_timer(when, *_calling_site())
            self._timers[handle] = step
            self._armed[step] = handle
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        step = self._timers.pop(handle, None)
        if step is not None:
            del self._armed[step]
            self.program.cancel_timer(step)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.dead and not self.program.replaying:
            error = context.get("exception")
            _logger.error("%s: %s", self.program.instance_id, context.get("message"), exc_info=error)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)

    def get_exception_handler(self) -> None:
        return None

    def get_task_factory(self) -> None:
        return None

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._scopes.pop(task, None)


def running_program() -> Program | None:
    """The workflow whose code is running in this thread, if any."""
    loop = events._get_running_loop()
    return loop.program if type(loop) is WorkflowLoop else None


def _drop_generator(_generator: Any) -> None:
    """Finalizer of async generators: asyncio would close them, at a moment the garbage collector chooses."""


def _calling_site() -> tuple[str, str, tuple[types.CodeType, int]]:
    """The user's function that starts a timer and what it called for it: the last frames outside and inside of
    asyncio."""
    callee = "timer"
    frame = sys._getframe(2)
    while True:
        if not frame.f_globals.get("__name__", "").startswith(_ASYNCIO) and frame.f_globals is not globals():
            return frame.f_code.co_name, callee, (frame.f_code, frame.f_lasti)
        callee = frame.f_code.co_name
        if frame.f_back is None:
            break
        frame = frame.f_back
    return "asyncio", callee, (frame.f_code, frame.f_lasti)


_IO_METHODS = (
    *(
        "getaddrinfo",
        "getnameinfo",
        "create_connection",
        "create_server",
        "create_unix_connection",
        "create_unix_server",
    ),
    *("create_datagram_endpoint", "connect_accepted_socket", "connect_read_pipe", "connect_write_pipe", "start_tls"),
    *("subprocess_shell", "subprocess_exec", "add_reader", "remove_reader", "add_writer", "remove_writer", "sendfile"),
    *("sock_recv", "sock_recv_into", "sock_recvfrom", "sock_recvfrom_into", "sock_sendall", "sock_sendto"),
    *("sock_connect", "sock_accept", "sock_sendfile"),
)
_REFUSED = {
    "run_in_executor": "call an @activity; a plain def one runs in a thread",
    "call_soon_threadsafe": "threads cannot reach a workflow; use an external event",
    "set_task_factory": "the loop makes its own tasks",
    "set_exception_handler": "the loop logs unhandled exceptions",
    "add_signal_handler": "use an external event",
    "remove_signal_handler": "use an external event",
    "set_default_executor": "call an @activity",
    **dict.fromkeys(("run_forever", "run_until_complete", "stop", "close"), "the engine runs the loop"),
    **dict.fromkeys(("shutdown_asyncgens", "shutdown_default_executor"), "the engine runs the loop"),
    **dict.fromkeys(
        _IO_METHODS,
        "do I/O in an @activity",
    ),
}


def _refuse(name: str, instead: str) -> Callable[..., NoReturn]:
    def refused(self: WorkflowLoop, *args: object, **kwargs: object) -> NoReturn:
        raise WorkflowGuardError(f"loop.{name} inside a workflow: {instead}")

    refused.__name__ = name
    return refused


for _name, _instead in _REFUSED.items():
    setattr(WorkflowLoop, _name, _refuse(_name, _instead))
# The methods above exist; the abstract base never noticed.
WorkflowLoop.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]
