"""A deterministic asyncio event loop: no clock, no I/O, no selector, stepped from outside until nothing is ready.

A workflow's coroutine runs on it as an ordinary asyncio task, so everything that asyncio builds from tasks, futures and
timers works unchanged: `gather`, `wait`, `wait_for`, `timeout`, `TaskGroup`, `as_completed`, `shield`, `Queue`,
`Event`, `Lock`, `Condition`, `Semaphore`. What makes a run repeatable:

- Time stands still during a step. `time()` is the time of the turn, which is recorded.
- `call_at` in the future is a command of the program, a durable timer; cancelling its handle is another.
- Ready callbacks run in the order they became ready. Futures of steps are resolved by recorded inputs alone.
- The loop holds its tasks (asyncio's hold them weakly), so the garbage collector decides nothing.
- Tasks hash by their number, not their address, so that a set of tasks, as `wait` gives it, has one order; and the set
  of coroutines that `as_completed` makes of its argument keeps the order of the argument.
- An async generator that is dropped before its end is dropped: its `finally` does not run, on any run.

It nests inside whatever loop runs the host: a step makes it the thread's running loop and puts the other one back. No
other task of the host can run meanwhile, since a step never waits.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
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
    from collections.abc import Callable, Coroutine, Iterable

    from workflow.program import Program

T = TypeVar("T")

_programs = itertools.count(1)

SPIN_LIMIT = 1_000_000
"""Callbacks in one step, after which the workflow is taken to spin (`while True: await asyncio.sleep(0)`)."""

_FEW_TASKS = 64

_logger = logging.getLogger("workflow")
_ASYNCIO = asyncio.__name__
# Before 3.12 it is written in Python, around this look into a dictionary.
if sys.version_info >= (3, 12):
    _current_task = asyncio.current_task
else:
    _current_task = asyncio.tasks._current_tasks.get  # type: ignore[attr-defined]  # private, and there in 3.11


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


class _Task(asyncio.Task[T]):
    """A task with a place in the program, and a hash that is the same on every replay. Programs are far apart in the
    high bits, which asyncio's own set of all tasks needs and a set of this program's tasks does not see."""

    __slots__ = ("_hash", "scope")
    _hash: int
    scope: Scope

    def __hash__(self) -> int:
        return self._hash


class _Handle(asyncio.Handle):
    """As asyncio's, made without its look at debug mode: see `call_soon`."""

    __slots__ = ()
    _repr = None
    _source_traceback = None
    _callback: Callable[..., Any]
    _args: Any
    _loop: asyncio.AbstractEventLoop
    _context: contextvars.Context
    _cancelled: bool


class _Timer(asyncio.TimerHandle):
    """`step`: of the durable timer it is; "": it was due at once. (Two handles may be equal; steps never are.)"""

    __slots__ = ("step",)
    step: str


class WorkflowLoop(asyncio.AbstractEventLoop):
    """See the module. Owned by one `Program`, which it has until it is killed; used by one thread at a time."""

    def __init__(self, program: Program, context: contextvars.Context) -> None:
        self.program = program
        self.now_s = 0.0
        self.dead = False
        self.root_scope = Scope("")
        self._context = context
        self._ready: deque[asyncio.Handle] = deque()
        # Those that have ended are let go of now and then: a callback of each would be one more for every step.
        self._tasks: list[_Task[Any]] = []
        self._most_tasks = _FEW_TASKS
        self._next_hash = next(_programs) << 24 & sys.maxsize
        self._armed: dict[str, _Timer] = {}

    # -- stepping -----------------------------------------------------------------------------------------------------

    def enter(self) -> Any:
        """Make this the running loop of the thread, guards on. Give the result to `leave`."""
        outside = events._get_running_loop()
        hooks = sys.get_asyncgen_hooks()
        if type(hooks.firstiter) is not _Generators:
            _watch_generators(hooks)
        events._set_running_loop(self)
        guards.enter()
        return outside

    def leave(self, outside: Any) -> None:
        guards.leave(outside)
        events._set_running_loop(outside)

    def run_ready(self) -> None:
        """Run until nothing is ready. Between `enter` and `leave`. Raises `Stall` for code that never gets there."""
        ready, budget = self._ready, SPIN_LIMIT
        while ready:
            handle = ready.popleft()
            if not handle._cancelled:
                try:
                    handle._context.run(handle._callback, *handle._args)  # type: ignore[attr-defined]  # private
                except KeyboardInterrupt:
                    raise
                except SystemExit:
                    pass  # the task has it as its exception
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
            self._ready.append(handle)

    def kill(self) -> None:
        """End for good: no frame of any task runs again, on no account."""
        self.let_go()
        self.dead = True
        tasks = self._tasks
        discard([task.get_coro() for task in tasks])
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's own switch, for `gather`
        self._ready.clear()
        self._tasks = []
        self._armed.clear()
        # The one circle: without it a run is freed when it is let go of. Left to the garbage collector, runs that have
        # ended were most of what set it off under load.
        del self.program

    def let_go(self) -> None:
        """Of tasks that have ended. Those whose error nobody has looked at say so now."""
        self._tasks = [task for task in self._tasks if not task.done()]
        self._most_tasks = _FEW_TASKS + 2 * len(self._tasks)

    def armed(self) -> list[str]:
        """Steps of the timers that are pending."""
        return list(self._armed)

    @property
    def has_timers(self) -> bool:
        return bool(self._armed)

    def scope(self) -> Scope:
        """Of the running task; of the whole run for plain callbacks."""
        task = _current_task(self)
        return task.scope if type(task) is _Task else self.root_scope

    def is_last_to_run(self) -> bool:
        """Nothing more happens in this step when the running task waits now (and nobody has cancelled it)."""
        if self._ready:
            return False
        task = _current_task(self)
        return task is not None and not task._must_cancel  # what its next wait asks

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
        """`name` is the task's alone: its place is called after the coroutine, since only newer Pythons tell the loop
        of names. `_options` (eager_start, of those as well) would change nothing but the order, which is ours."""
        if self.dead:
            coro.close()
            raise WorkflowEvicted
        running = _current_task(self)
        scope = running.scope if type(running) is _Task else self.root_scope
        path = scope.child(getattr(coro, "__name__", None) or type(coro).__name__)  # `anext` makes one without a name
        if context is None and running is None:
            context = self.base_context()
        return self._task(coro, path if name is None else str(name), context, Scope(path))

    def create_root(self, coro: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        return self._task(coro, self.program.definition.name, self.base_context(), self.root_scope)

    def _task(
        self, coro: Coroutine[Any, Any, T], name: str, context: contextvars.Context | None, scope: Scope
    ) -> asyncio.Task[T]:
        # Everything a hash needs comes before __init__, which puts the task into asyncio's set.
        task: _Task[T] = _Task.__new__(_Task)
        task._hash = self._next_hash
        task.scope = scope
        self._next_hash += 1
        task.__init__(coro, loop=self, name=name, context=context)  # type: ignore[misc]  # made by __new__
        if len(self._tasks) >= self._most_tasks:
            self.let_go()
        self._tasks.append(task)
        return task

    def call_soon(  # type: ignore[override]  # typeshed's variadic generics
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        # What its constructor would do, written out: every wake-up of a task comes through here.
        handle: _Handle = _Handle.__new__(_Handle)
        handle._callback = callback
        handle._args = args
        handle._loop = self
        handle._context = context if context is not None else self.base_context()
        handle._cancelled = False
        if not self.dead:
            self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]  # the same
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]  # the same
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        if self.dead:
            raise WorkflowEvicted
        handle = _Timer(when, callback, args, self, context if context is not None else self.base_context())
        if when <= self.now_s:
            handle.step = ""
            self._ready.append(handle)
        else:
            handle.step = step = self.program.start_timer(when, *_calling_site())
            self._armed[step] = handle
        return handle

    def _timer_handle_cancelled(self, handle: _Timer) -> None:
        if self._armed.pop(handle.step, None) is not None:
            self.program.cancel_timer(handle.step)

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


def running_program() -> Program | None:
    """The workflow whose code is running in this thread, if any."""
    loop = events._get_running_loop()
    return loop.program if type(loop) is WorkflowLoop else None


def _ordered_set(items: Iterable[Any] = ()) -> Any:
    """What asyncio.tasks finds under the name `set`. In a workflow a collection of coroutines (they hash by address)
    becomes one that keeps its order; all it is used for is iteration."""
    if type(events._get_running_loop()) is WorkflowLoop:
        kept = dict.fromkeys(items)
        if any(asyncio.iscoroutine(item) for item in kept):
            return kept.keys()
        return set(kept)
    return set(items)


# For good: taking it away after each step would cost everybody more than the call does.
asyncio.tasks.set = _ordered_set  # type: ignore[attr-defined]  # hides the built-in there


def _watch_generators(before: Any) -> None:
    watch = _Generators(before)
    sys.set_asyncgen_hooks(watch, watch.end)


class _Generators:
    """Hooks for the async generators of one thread: itself for their beginning, `end`. Those of workflows are dropped:
    asyncio would close them, at a moment the garbage collector chooses. All others go to whoever had the hooks before,
    as a rule the thread's event loop, which takes them back when it stops. (Setting hooks is slow: not for each
    step.)"""

    __slots__ = ("_before", "_ours")

    def __init__(self, before: Any) -> None:
        self._before = before
        # By address, since nothing else is left of a generator when it ends. One that reuses the address begins first.
        self._ours: set[int] = set()

    def __call__(self, generator: Any) -> None:
        if type(events._get_running_loop()) is WorkflowLoop:
            self._ours.add(id(generator))
            return
        self._ours.discard(id(generator))
        if self._before.firstiter is not None:
            self._before.firstiter(generator)

    def end(self, generator: Any) -> None:
        if id(generator) in self._ours:
            self._ours.discard(id(generator))
        elif self._before.finalizer is not None:
            self._before.finalizer(generator)


def site_name(code: types.CodeType) -> str:
    """The named function a call stands in. Comprehensions and lambdas count as part of the function around them (newer
    Pythons make no frame for most of them)."""
    name = code.co_name
    return name if name[0] != "<" else _named_part(code.co_qualname)


@functools.lru_cache(maxsize=1024)
def _named_part(qualname: str) -> str:
    named = [part for part in qualname.split(".") if not part.startswith("<")]
    return named[-1] if named else "module"


_STEPPING = WorkflowLoop.run_ready.__code__


def _calling_site() -> tuple[str, str, tuple[types.CodeType, int] | None]:
    """The user's function that starts a timer and what it called for it: the last frames outside and inside of
    asyncio. Where a task is of asyncio's own coroutine (`gather(sleep(1), …)`), no function of the user's is there."""
    callee = "timer"
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code is not _STEPPING:
        if not frame.f_globals.get("__name__", "").startswith(_ASYNCIO) and frame.f_globals is not globals():
            return site_name(frame.f_code), callee, (frame.f_code, frame.f_lasti)
        callee = frame.f_code.co_name
        frame = frame.f_back
    return "asyncio", callee, None


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
WorkflowLoop.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]  # of the machinery of `abc`
