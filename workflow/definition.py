"""A function becomes a workflow or an activity: `@workflow`, `@activity`, `RetryPolicy`.

    @activity(retry=RetryPolicy(max_attempts=5))
    async def charge(card: str, cents: int) -> str: ...      # a durable step: at least once, its result recorded once

    @workflow
    async def order(input: Order) -> Receipt:                # deterministic: replayed from its history
        receipt = await charge(input.card, input.cents)
        await asyncio.sleep(3600)                            # a durable timer
        return Receipt(receipt)

Called outside a workflow both are the plain functions they decorate.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
import typing
from asyncio.events import _get_running_loop
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, ParamSpec, TypeVar, get_args, overload

from pydantic import PydanticUserError

from actors.definition import _can_suspend
from actors.hostneeds import checked_amount
from actors.names import check_name
from actors.period import MAX_MS
from actors.timetext import parse_duration_s
from statestores.codec import ATOMS, Adapter, CodecError, adapter, decode, encode
from workflow.errors import WorkflowGuardError
from workflow.guards import Scan, scan
from workflow.loop import WorkflowLoop
from workflow.pieces import Unwritten, is_large, read_array_freely

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
    from datetime import timedelta

    from workflow.pieces import Data

    Duration = str | int | float | timedelta

P = ParamSpec("P")
T = TypeVar("T")

Named = type[BaseException] | str


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a failed activity is tried again. Durations: seconds, `timedelta`, ``"1.5s"``, ``"PT1M"``.

    `max_attempts` counts the first one; 0: no limit. The wait before attempt n + 1 is ``initial_interval * backoff **
    (n - 1)``, at most `max_interval`. `timeout` limits one attempt; `overall_timeout` the whole step: no attempt starts
    after it, and the last is cut short by it. `non_retriable`: exception classes (their subclasses count) or class
    names that are not retried."""

    max_attempts: int = 3
    initial_interval: Duration = "1s"
    backoff: float = 2.0
    max_interval: Duration = "1m"
    timeout: Duration | None = None
    overall_timeout: Duration | None = None
    non_retriable: tuple[Named, ...] = ()
    initial_ms: int = field(init=False, repr=False)
    max_ms: int = field(init=False, repr=False)
    timeout_s: float | None = field(init=False, repr=False)
    overall_ms: int | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if type(self.max_attempts) is not int or self.max_attempts < 0 or not 1.0 <= self.backoff < math.inf:
            raise ValueError("RetryPolicy: max_attempts must be a whole number >= 0 and backoff >= 1.0, and finite")
        if not isinstance(self.non_retriable, tuple) or not all(map(_names_errors, self.non_retriable)):
            raise ValueError(
                "RetryPolicy: non_retriable must be a tuple of exception classes or their names, "
                f"e.g. (ValueError,), not {self.non_retriable!r}"
            )
        put = object.__setattr__
        put(self, "initial_ms", round(parse_duration_s(self.initial_interval) * 1000))
        put(self, "max_ms", round(parse_duration_s(self.max_interval) * 1000))
        put(self, "timeout_s", None if self.timeout is None else parse_duration_s(self.timeout))
        if self.timeout_s == 0:
            raise ValueError("RetryPolicy: timeout must be longer than 0, or no attempt could end; None: no limit")
        overall = self.overall_timeout
        put(self, "overall_ms", None if overall is None else round(parse_duration_s(overall) * 1000))
        if self.overall_ms == 0:
            raise ValueError("RetryPolicy: overall_timeout must be longer than 0, or no attempt could begin")

    def delay_ms(self, attempt: int) -> int:
        """How long to wait after failed attempt number `attempt` (from 1)."""
        try:
            grown_ms = self.initial_ms * float(self.backoff) ** (attempt - 1)
        except OverflowError:  # larger than any float: without a limit of attempts, it comes to that
            return self.max_ms if self.initial_ms else 0
        return int(min(grown_ms, self.max_ms))

    def retries(self, error: BaseException) -> bool:
        """Whether this kind of error is worth another attempt."""
        names = {cls.__name__ for cls in type(error).__mro__}
        return not any(n in names if isinstance(n, str) else isinstance(error, n) for n in self.non_retriable)

    def next_due_ms(self, attempt: int, error: BaseException, first_ms: int, now_ms: int) -> int | None:
        """When to try again after attempt number `attempt` failed; None: never, or later than there are reminders."""
        if (self.max_attempts and attempt >= self.max_attempts) or not self.retries(error):
            return None
        due_ms = now_ms + self.delay_ms(attempt)
        last_ms = MAX_MS if self.overall_ms is None else min(first_ms + self.overall_ms - 1, MAX_MS)
        return due_ms if due_ms <= last_ms else None


def _names_errors(given: object) -> bool:
    return isinstance(given, str) or (isinstance(given, type) and issubclass(given, BaseException))


ONCE = RetryPolicy(max_attempts=1)


Place = Literal["auto", "here", "spread"]
"""Where an activity runs, on a cluster. `here`: in the host, beside its workflow. `spread`: in a process that is given
a processor for it, on any node. `auto`: spread with needs, here when it is an ``async def``; a plain one is measured,
see `workflow.places`, unless it has a timeout, which waiting for a processor would use up."""


class Needs(NamedTuple):
    """What an activity asks of the place it runs at: processors, GPUs, custom resources by name."""

    cpus: float = 0
    gpus: float = 0
    resources: tuple[tuple[str, float], ...] = ()


ONE_CPU = Needs(cpus=1)


class Activity(Generic[P, T]):
    """An activity. Calling it inside a workflow is the durable step; outside, an ordinary call of `function`.

    `timeout_s`, retries: see `RetryPolicy`. A plain `def` runs in a thread of the host's bounded pool. One with `needs`
    runs in a process of its own, where the placement has such (on a Ray cluster: as a Ray task).
    """

    def __init__(
        self,
        function: Callable[P, Any],
        name: str,
        retry: RetryPolicy,
        hints: Mapping[str, Any],
        needs: Needs | None = None,
        place: Place = "auto",
    ) -> None:
        check_name("activity name", name)
        if not isinstance(retry, RetryPolicy):
            raise TypeError(f"activity {name}: retry={retry!r} is not a RetryPolicy(max_attempts=…)")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"activity {name}: a generator gives no one result: return a list")
        self.name = name
        self.function = function
        self.retry = retry
        self.needs = needs
        self.is_async = inspect.iscoroutinefunction(function)
        # Runs here or elsewhere, as its processor time says.
        self.is_measured = place == "auto" and not self.is_async and needs is None and retry.timeout_s is None
        # A coroutine function that never waits for anything: runs without a task, and without a look at the clock.
        plain = needs is None and retry.overall_ms is None
        self.is_quick = self.is_async and plain and inspect.isfunction(function) and not _can_suspend(function)
        self.result: Adapter[Any] | None = _value_adapter(hints.get("return", Any))
        declared = list(inspect.signature(function).parameters.values())
        _refuse_method(f"activity {name}", function, declared)
        self._parameters = [p for p in declared if p.kind in _POSITIONAL]
        # So many arguments by position are a call of it; -1: some must go by name.
        named = any(p.kind is inspect.Parameter.KEYWORD_ONLY and p.default is inspect.Parameter.empty for p in declared)
        self._arity = -1 if named else len(self._parameters)
        self._adapters = [_value_adapter(hints.get(p.name, Any)) for p in self._parameters]
        self._by_name = {p.name: _value_adapter(hints.get(p.name, Any)) for p in declared}
        self._signature = inspect.Signature(declared)
        # Some argument may be large, and such that its JSON can wait.
        self._may_wait = any(found is None or found.annotation in (bytes, str) for found in self._by_name.values())
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        self.__module__ = function.__module__
        self.__wrapped__ = function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        loop = _get_running_loop()
        if type(loop) is not WorkflowLoop:
            return self.function(*args, **kwargs)  # type: ignore[no-any-return]  # what the plain function returns
        caller = sys._getframe(1)
        program = loop.program
        if self._may_wait and (waits := self._unwritten(args, kwargs, program.limit)) is not None:
            arguments: bytes | Unwritten = waits
        elif not kwargs and len(args) == self._arity:
            arguments = encode(args)
        else:
            arguments = self.encode_arguments(args, kwargs)
        call = program.activity(self, arguments, caller.f_code, caller.f_lasti)
        call.__name__ = self.name  # type: ignore[attr-defined]  # names its task
        return call

    def _unwritten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], limit: int) -> Unwritten | None:
        """Arguments that are beyond the limit for certain, and may be written later."""
        for value in (*args, *kwargs.values()) if kwargs else args:
            if is_large(value) and len(value) > limit:
                bound = self._signature.bind(*args, **kwargs)
                return None if bound.kwargs else Unwritten.of_array(bound.args)
        return None

    def encode_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """JSON of the arguments: an array by position; with arguments that can only go by name, the array and an
        object. Raises `TypeError` as the function itself would, `CodecError`."""
        bound = self._signature.bind(*args, **kwargs)
        return encode({"args": bound.args, "kwargs": bound.kwargs} if bound.kwargs else bound.args)

    def decode_arguments(self, recorded: Any) -> tuple[list[Any], dict[str, Any]]:
        """What `encode_arguments` wrote, parsed, as the annotated types. Raises `CodecError`."""
        if isinstance(recorded, dict):
            named = {k: restore(self._by_name.get(k), v) for k, v in recorded["kwargs"].items()}
            return self._restore_positional(recorded["args"]), named
        return self._restore_positional(recorded), {}

    async def read_arguments(self, data: Data) -> tuple[list[Any], dict[str, Any]]:
        """`decode_arguments` of JSON that is large, in pieces where that can be."""
        found = await read_array_freely(self._adapters, data)
        if found is None:
            return self.decode_arguments(decode(data))
        values, large = found
        for place, (value, decoder) in enumerate(zip(values, self._adapters, strict=False)):
            values[place] = large[place] if place in large else restore(decoder, value)
        return values, {}

    def _restore_positional(self, values: list[Any]) -> list[Any]:
        """Values beyond the parameters stay as they are: the function will refuse them."""
        for position, (value, found) in enumerate(zip(values, self._adapters, strict=False)):
            if found is not None and type(value) is not found.atom:
                values[position] = found.restore(value)
        return values

    def __repr__(self) -> str:
        return f"<activity {self.name}>"


class Workflow(Generic[P, T]):
    """A workflow: an `async def` of at most one parameter, its input. Calling it runs the plain coroutine function."""

    def __init__(self, function: Callable[P, Coroutine[Any, Any, T]], name: str, hints: Mapping[str, Any]) -> None:
        check_name("workflow name", name)
        if not inspect.iscoroutinefunction(function):
            raise TypeError(f"workflow {name}: must be an async def")
        parameters = list(inspect.signature(function).parameters.values())
        _refuse_method(f"workflow {name}", function, parameters)
        if len(parameters) > 1 or any(p.kind not in _POSITIONAL for p in parameters):
            raise TypeError(
                f"workflow {name}: takes at most one parameter, its input (a dataclass or model for several values)"
            )
        self.name = name
        self.function = function
        self.parameter = parameters[0] if parameters else None
        self.input = _value_adapter(hints.get(parameters[0].name, Any)) if parameters else None
        self.output = _value_adapter(hints.get("return", Any))
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        self.__module__ = function.__module__
        self.__wrapped__ = function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        return self.function(*args, **kwargs)

    @functools.cached_property
    def scan(self) -> Scan:
        """What the code names, and what of it no workflow may use."""
        return scan(self.function)

    def begin(self, value: Any) -> Coroutine[Any, Any, T]:
        """The coroutine of a run. `value` is the parsed JSON of the input. Raises `CodecError`."""
        if self.parameter is None or (value is None and self.parameter.default is not inspect.Parameter.empty):
            start: Callable[..., Coroutine[Any, Any, T]] = self.function
            return start()
        return self.begin_with(restore(self.input, value))

    def begin_with(self, value: Any) -> Coroutine[Any, Any, T]:
        """`begin`, with what the code is given. For one that has a parameter."""
        start: Callable[..., Coroutine[Any, Any, T]] = self.function
        return start() if self.parameter is None else start(value)

    def check_input(self, value: Any) -> None:
        """Raises `CodecError` for parsed JSON that `begin` would refuse, or drop."""
        if self.parameter is None:
            if value not in _NO_INPUT:
                raise CodecError("takes no input: leave it out")
        elif value is not None or self.parameter.default is inspect.Parameter.empty:
            restore(self.input, value)

    def is_sure_of(self, result: Any) -> bool:
        """Whether the JSON of a result is read again as what the annotation says, whatever it holds."""
        found = self.output
        return found is None or (type(result) is found.annotation and found.annotation in _READ_AGAIN)

    def check_output(self, data: bytes) -> None:
        """Raises `CodecError` for the JSON of a result that would not be read again as what the annotation says."""
        try:
            if self.output is not None:
                self.output.decode(data)
        except PydanticUserError:  # the annotation is at fault
            return
        except CodecError as error:
            if not isinstance(error.__cause__, WorkflowGuardError):  # a validator may ask that where it is read
                raise CodecError(f"the result is not what the annotation says: {error}") from error

    def __repr__(self) -> str:
        return f"<workflow {self.name}>"


def _refuse_method(what: str, function: Callable[..., Any], parameters: Sequence[inspect.Parameter]) -> None:
    """Raises `TypeError`. (A function in the body of a class may be one; so may a method that is bound.)"""
    owner = function.__qualname__.rpartition(".")[0]
    if owner and not owner.endswith("<locals>") and parameters and parameters[0].name in ("self", "cls"):
        raise TypeError(
            f"{what}: {function.__qualname__} is a method, and nobody would be there to give it its "
            f"{parameters[0].name!r}: write a function that is given all it needs, outside of the class"
        )


def restore(found: Adapter[Any] | None, value: Any) -> Any:
    """The typed value of a parsed JSON value; without adapter the value itself. Raises `CodecError`."""
    if found is None or type(value) is found.atom:
        return value
    return found.restore(value)


def read(found: Adapter[Any] | None, data: Data) -> Any:
    """`restore` of JSON that nobody has parsed. Raises `CodecError`."""
    if found is None:
        return decode(data)
    return found.decode(bytes(data) if isinstance(data, memoryview) else data)


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
# Annotations that any JSON value satisfies: nothing to validate or convert.
_PLAIN: tuple[Any, ...] = (Any, object)
# What says that there are no arguments, as it does to a method of an actor.
_NO_INPUT: tuple[Any, ...] = (None, [], {})
# Annotations that whatever is of that very type fits again, once it has been JSON: nothing to check.
_READ_AGAIN = (*ATOMS, bytes, list, dict)


def _value_adapter(annotation: Any) -> Adapter[Any] | None:
    return None if annotation in _PLAIN else adapter(annotation)


@overload
def activity(function: Callable[P, Awaitable[T]], /) -> Activity[P, T]: ...
@overload
def activity(function: Callable[P, T], /) -> Activity[P, T]: ...
@overload
def activity(
    *,
    name: str | None = None,
    retry: RetryPolicy = ONCE,
    num_cpus: float = 0,
    num_gpus: float = 0,
    resources: Mapping[str, float] | None = None,
    place: Place = "auto",
) -> _ActivityDecorator: ...
def activity(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    retry: RetryPolicy = ONCE,
    num_cpus: float = 0,
    num_gpus: float = 0,
    resources: Mapping[str, float] | None = None,
    place: Place = "auto",
) -> Any:
    """Make a function an activity. It runs at least once, its result is recorded once.

    `name`: recorded in histories; default: the function's. `retry`: default one attempt (a crash of the host still runs
    it again). Arguments and result must have a JSON form, see `statestores.codec`.

    `num_cpus`, `num_gpus`, `resources`: on a Ray cluster it runs as a Ray task that has so much for itself, in another
    process, perhaps on another node; elsewhere they change nothing. `place`: where it runs on a Ray cluster when it
    asks for none of these, see `Place`; it may be another process, so an activity that uses what only the host's memory
    has says ``here``. An attempt whose process dies is begun again; when that has happened four times it has failed, as
    `WorkerDied`.

    Raises `TypeError` for options that cannot be, or contradict each other.
    """
    locals_ = sys._getframe(1).f_locals
    needs = _needs(_asked(num_cpus, num_gpus, resources), place)
    if function is not None:
        return Activity(function, name or function.__name__, retry, _hints(function, locals_))
    return lambda f: Activity(f, name or f.__name__, retry, _hints(f, locals_), needs, place)


def _asked(num_cpus: float, num_gpus: float, resources: Mapping[str, float] | None) -> Needs:
    if resources is not None and not isinstance(resources, dict):
        raise TypeError(f"resources= takes a dict by name, not {resources!r}")
    for name in ("num_cpus", "num_gpus", "memory", "object_store_memory"):
        if name in (resources or {}):
            raise TypeError(f"activity: resources= takes custom ones, not {name!r}")
    return Needs(
        checked_amount("num_cpus", num_cpus),
        checked_amount("num_gpus", num_gpus),
        tuple((name, checked_amount(name, amount)) for name, amount in (resources or {}).items()),
    )


def _needs(asked: Needs, place: Place) -> Needs | None:
    if place not in get_args(Place):
        raise TypeError(f"unknown place {place!r}: use {', '.join(get_args(Place))}")
    if asked != Needs():
        if place == "here":
            raise TypeError('an activity that asks for processors, GPUs or resources cannot have place="here"')
        return asked
    return ONE_CPU if place == "spread" else None


class _ActivityDecorator(typing.Protocol):
    @overload
    def __call__(self, function: Callable[P, Awaitable[T]], /) -> Activity[P, T]: ...
    @overload
    def __call__(self, function: Callable[P, T], /) -> Activity[P, T]: ...


@overload
def workflow(function: Callable[P, Coroutine[Any, Any, T]], /) -> Workflow[P, T]: ...
@overload
def workflow(*, name: str | None = None) -> _WorkflowDecorator: ...
def workflow(function: Callable[..., Any] | None = None, /, *, name: str | None = None) -> Any:
    """Make an `async def` a workflow. `name` is recorded with each instance; default: the function's."""
    locals_ = sys._getframe(1).f_locals
    if function is not None:
        return Workflow(function, name or function.__name__, _hints(function, locals_))
    return lambda f: Workflow(f, name or f.__name__, _hints(f, locals_))


class _WorkflowDecorator(typing.Protocol):
    def __call__(self, function: Callable[P, Coroutine[Any, Any, T]], /) -> Workflow[P, T]: ...


def _hints(function: Callable[..., Any], locals_: Mapping[str, Any]) -> dict[str, Any]:
    """Resolved annotations; names are looked up in the module and where the decorator stands."""
    try:
        return typing.get_type_hints(function, localns=dict(locals_), include_extras=True)
    except NameError as error:
        raise TypeError(
            f"{function.__qualname__}: annotation cannot be resolved ({error}); "
            "import the type at module level (not under TYPE_CHECKING)"
        ) from error
