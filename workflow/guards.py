"""Guards: inside workflow code real clocks, randomness, threads, files and sockets are refused, by name.

Three nets, since no one of them catches everything:

1. *Patches.* Module attributes such as `time.time` or `random.random` are replaced while workflows step; in any other
   thread, and outside workflows, a replacement calls the original. They cannot see ``from time import time`` done
   before.
2. *Audit.* CPython reports opening of files, sockets and processes to audit hooks, however the function was reached.
3. *Scan.* Before a workflow first runs, its code and the functions of its package that it names are read, for what the
   first two cannot see: a refused function imported by name, and ``datetime.now``. It is found whether it would run or
   not.

Logging (handlers, formatters and filters of the application included), warnings, tracebacks and imports may read the
clock and files: nothing of that flows back into the workflow.
"""

from __future__ import annotations

import contextvars
import dis
import functools
import os
import random
import secrets
import sys
import threading
import time
import types
import uuid
from asyncio import events
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from workflow.errors import WorkflowGuardError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

_CLOCK = "use workflow.current().now(), or asyncio.get_running_loop().time()"
_RANDOM = "use workflow.current().random"
_UUID = "use workflow.current().uuid4()"
_ACTIVITY = "do it in an @activity"
_SLEEP = "use await asyncio.sleep(...), a durable timer"

_CLOCK_NAMES = ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time")
_MOMENT_NAMES = ("localtime", "gmtime", "ctime", "asctime", "strftime")
_RANDOM_NAMES = (
    *(
        "random",
        "uniform",
        "triangular",
        "randint",
        "choice",
        "randrange",
        "sample",
        "shuffle",
        "choices",
        "gauss",
        "seed",
    ),
    *(
        "normalvariate",
        "lognormvariate",
        "expovariate",
        "vonmisesvariate",
        "gammavariate",
        "betavariate",
        "paretovariate",
    ),
    *("weibullvariate", "getrandbits", "randbytes"),
)

_Refused = tuple[types.ModuleType | type, dict[str, str]]

# Called so often elsewhere that the process must not pay for the guard: replaced while workflows step, and put back
# when the event loop comes round. (To do it for each step would cost as much as the step.)
_SWAPPED: tuple[_Refused, ...] = (
    (time, {**dict.fromkeys((*_CLOCK_NAMES, *_MOMENT_NAMES), _CLOCK), "sleep": _SLEEP}),
    (random, dict.fromkeys(_RANDOM_NAMES, _RANDOM)),
)
# Rare and slow by themselves: replaced for good when the first workflow steps. Outside workflows they pass straight on.
_WRAPPED: tuple[_Refused, ...] = (
    (secrets, dict.fromkeys(("token_bytes", "token_hex", "token_urlsafe", "choice", "randbelow", "randbits"), _RANDOM)),
    (uuid, dict.fromkeys(("uuid1", "uuid4"), _UUID)),
    (os, dict.fromkeys(("urandom", "getrandom"), _RANDOM)),
    (random.Random, {"seed": _RANDOM + ", or give a seed"}),
    (random.SystemRandom, dict.fromkeys(("random", "getrandbits", "randbytes"), _RANDOM)),
    (threading.Thread, {"start": _ACTIVITY + " (a plain def activity runs in a thread)"}),
)

# Refused only when the argument at this place, or of this name ("": it has none), is missing or None: the moment, which
# is then the present one, or the seed, which is then the system's. With it they are plain functions.
_GIVEN_AT: dict[tuple[object, str], tuple[int, str]] = {
    **{(time, name): (0, "") for name in _MOMENT_NAMES},
    (time, "strftime"): (1, ""),
    (random.Random, "seed"): (1, "a"),
}

_AUDITED = {
    "open": "open(): " + _ACTIVITY,
    **dict.fromkeys(
        ("socket.__new__", "socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname"),
        "a socket: " + _ACTIVITY,
    ),
    **dict.fromkeys(
        ("subprocess.Popen", "os.system", "os.fork", "os.posix_spawn", "os.exec"), "starting a process: " + _ACTIVITY
    ),
    **dict.fromkeys(
        ("os.remove", "os.rename", "os.mkdir", "os.listdir", "os.scandir"), "the file system: " + _ACTIVITY
    ),
    "sqlite3.connect": "a database: " + _ACTIVITY,
}

_TRUSTED = ("logging", "warnings", "traceback", "linecache", "importlib", "tokenize", "zipimport")
# Makes the records of `logging` wherever Ray has been imported, and asks for the time to do so.
_RAY_LOG = "ray._private.log"


def _is_trusted(module: str) -> bool:
    return module.partition(".")[0] in _TRUSTED or module == _RAY_LOG


def _in_workflow() -> bool:
    # Looked up by attribute: the loop's module imports this one.
    return getattr(type(events._get_running_loop()), "__module__", "") == "workflow.loop"


def _guarded(module: types.ModuleType | type, name: str, instead: str) -> Callable[..., Any]:
    original = getattr(module, name)
    given_at = _GIVEN_AT.get((module, name))

    @functools.wraps(original)
    def guard(*args: Any, **kwargs: Any) -> Any:
        if (
            _stepping
            and _in_workflow()
            and not (given_at is not None and _is_given(given_at, args, kwargs))
            and not _below_trusted()
        ):
            raise WorkflowGuardError(f"{module.__name__}.{name} inside a workflow: {instead}")
        return original(*args, **kwargs)

    return guard


def _is_given(at: tuple[int, str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    place, name = at
    return (args[place] if place < len(args) else kwargs.get(name)) is not None


class _Swap:
    """The guarded names of one module, and what stood there before the step (perhaps somebody's test double)."""

    __slots__ = ("_guards", "_namespace", "_saved")

    def __init__(self, module: types.ModuleType | type, refused: dict[str, str]) -> None:
        self._namespace: dict[str, Any] = vars(module)
        self._guards = {name: _guarded(module, name, instead) for name, instead in refused.items()}
        self._saved: dict[str, Any] = {}

    def put(self) -> None:
        """A guard that is there already (somebody patched the name and took his patch off again) covers what it did."""
        namespace, saved = self._namespace, self._saved
        for name, guard in self._guards.items():
            found = namespace[name]
            if found is not guard:
                saved[name] = found
                namespace[name] = guard

    def restore(self) -> None:
        """What somebody else has put there since then is left alone."""
        namespace, guards = self._namespace, self._guards
        for name, found in self._saved.items():
            if namespace[name] is guards[name]:
                namespace[name] = found


_swaps = [_Swap(*refused) for refused in _SWAPPED]
_lock = threading.Lock()
_stepping = 0
_installed = False
_is_put = False
# The event loop that will put the originals back when it comes round.
_restoring: asyncio.AbstractEventLoop | None = None
_NO_CONTEXT = contextvars.Context()


def enter() -> None:
    """A workflow starts to step. Counted: hosts in several threads may step at the same time."""
    global _stepping, _is_put
    with _lock:
        _stepping += 1
        if not _is_put:
            if not _installed:
                _install()
            _is_put = True
            for swap in _swaps:
                swap.put()


def leave(outside: asyncio.AbstractEventLoop | None) -> None:
    """The end of a step. `outside`: the event loop that runs this thread, if one does."""
    global _stepping, _restoring
    with _lock:
        _stepping -= 1
        if _stepping:
            return
        if outside is None:
            _restore()
        elif _restoring is not outside:
            _restoring = outside
            outside.call_soon(_come_round, outside, context=_NO_CONTEXT)


def _come_round(loop: asyncio.AbstractEventLoop) -> None:
    """Unless a loop in another thread has taken over, or a workflow steps there: then its `leave` sees to it."""
    global _restoring
    with _lock:
        if _restoring is loop:
            _restoring = None
            if not _stepping:
                _restore()


def _restore() -> None:
    global _is_put
    _is_put = False
    for swap in _swaps:
        swap.restore()


def _install() -> None:
    """What stays. Audit hooks cannot be removed, so this is done when the first workflow steps, not at import."""
    global _installed
    _installed = True
    for module, refused in _WRAPPED:
        for name, instead in refused.items():
            if hasattr(module, name):
                setattr(module, name, _guarded(module, name, instead))
    sys.addaudithook(_audit)


def _audit(event: str, _args: Any) -> None:
    if event in _AUDITED and _stepping and _in_workflow() and not _below_trusted():
        raise WorkflowGuardError(f"inside a workflow: {_AUDITED[event]}")


def _below_trusted() -> bool:
    """Whether the caller of our caller is what may look at the world, or was called by it within this step."""
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") != "workflow.loop":
        if _is_trusted(frame.f_globals.get("__name__", "")):
            return True
        frame = frame.f_back
    return False


# -- the scan ---------------------------------------------------------------------------------------------------------


class Finding(NamedTuple):
    """A name in workflow code that must not be used there."""

    where: str
    message: str


class Scan(NamedTuple):
    findings: tuple[Finding, ...]
    # Every object the code names: globals, closures and attributes of modules. Activities among them are served.
    named: tuple[object, ...]


_BY_ID = {
    id(function): (f"{module.__name__}.{name}", instead)
    for module, refused in (*_SWAPPED, *_WRAPPED)
    for name, instead in refused.items()
    if (module, name) not in _GIVEN_AT and (function := getattr(module, name, None)) is not None
}
_CLASS_CLOCKS = {(datetime, "now"), (datetime, "utcnow"), (datetime, "today"), (date, "today")}


def scan(function: Callable[..., Any]) -> Scan:
    """Read a workflow function and what it names, functions of the same top-level package included."""
    findings: list[Finding] = []
    named: dict[int, object] = {}
    seen: set[int] = set()
    todo: list[types.FunctionType] = [function] if isinstance(function, types.FunctionType) else []
    package = (function.__module__ or "").partition(".")[0]
    while todo:
        current = todo.pop()
        for code in _codes(current.__code__):
            if id(code) in seen:
                continue
            seen.add(id(code))
            for found, line, by_module in _named_objects(code, current):
                named[id(found)] = found
                _judge(found, f"{code.co_filename}:{line}", by_module, findings)
                if isinstance(found, types.FunctionType) and (found.__module__ or "").partition(".")[0] == package:
                    todo.append(found)
    return Scan(tuple(findings), tuple(named.values()))


def _judge(found: object, where: str, by_module: bool, findings: list[Finding]) -> None:
    refused = None if by_module else _BY_ID.get(id(found))  # the patch of the module sees it when it runs
    if refused is not None:
        findings.append(Finding(where, f"{refused[0]}: {refused[1]}"))
    elif isinstance(found, types.BuiltinMethodType) and (found.__self__, found.__name__) in _CLASS_CLOCKS:
        findings.append(Finding(where, f"{found.__qualname__}: {_CLOCK}"))


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _named_objects(code: types.CodeType, function: types.FunctionType) -> Iterator[tuple[object, int | None, bool]]:
    """Objects loaded by global or closure name, and what is read from them as long as they are modules or classes."""
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    nothing = object()
    held: object = nothing
    by_module = False
    line: int | None = code.co_firstlineno
    for instruction in dis.get_instructions(code):
        line = instruction.positions.lineno if instruction.positions and instruction.positions.lineno else line
        name = instruction.argval
        by_module = isinstance(held, types.ModuleType)
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            held = function.__globals__.get(name, nothing)
        elif instruction.opname in ("LOAD_DEREF", "LOAD_CLASSDEREF") and name in cells:
            held = _cell(cells[name], nothing)
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and isinstance(held, (types.ModuleType, type)):
            held = getattr(held, name, nothing)
        elif instruction.opname not in ("CACHE", "PUSH_NULL", "PRECALL"):
            held = nothing
        if held is not nothing:
            yield held, line, by_module


def _cell(cell: types.CellType, missing: object) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return missing
