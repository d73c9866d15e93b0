"""What the code of a workflow may call beside activities and asyncio: events, status, actors, facts about itself."""

from __future__ import annotations

import asyncio
import logging
import sys
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from actors.definition import definition_of
from actors.names import check_name
from actors.ref import target_of
from actors.timetext import parse_duration_s
from statestores.codec import CodecError, adapter, encode
from workflow.definition import restore
from workflow.errors import WorkflowGuardError
from workflow.loop import running_program

if TYPE_CHECKING:
    import types
    from collections.abc import Callable, Coroutine, MutableMapping

    from actors.definition import Method
    from workflow.program import DeterministicRandom, Program

P = ParamSpec("P")
T = TypeVar("T")

_logger = logging.getLogger("workflow")


def _program() -> Program:
    program = running_program()
    if program is None:
        raise RuntimeError("this works inside a running workflow only")
    return program


class WorkflowInfo:
    """Facts about the running workflow, the same on every replay."""

    __slots__ = ("_program",)

    def __init__(self, program: Program) -> None:
        self._program = program

    @property
    def instance_id(self) -> str:
        return self._program.instance_id

    @property
    def name(self) -> str:
        return self._program.definition.name

    @property
    def execution_id(self) -> str:
        """New for each start under the same instance id."""
        return self._program.execution

    @property
    def is_replaying(self) -> bool:
        """True while recorded turns run again. For logging and metrics; code must not decide by it."""
        return self._program.replaying

    @property
    def random(self) -> DeterministicRandom:
        """A generator seeded with the execution id. ``current().random()`` is a float, too."""
        return self._program.random

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """Says everything once: silent while replaying."""
        return _ReplaySafeLogger(_logger, self._program)

    def now(self) -> datetime:
        """The time of this turn, UTC. It does not move while the code runs without waiting."""
        return datetime.fromtimestamp(self._program.loop.now_s, UTC)

    def uuid4(self) -> uuid.UUID:
        return uuid.UUID(int=self._program.random.getrandbits(128), version=4)


class _ReplaySafeLogger(logging.LoggerAdapter[logging.Logger]):
    def __init__(self, logger: logging.Logger, program: Program) -> None:
        super().__init__(logger, {"workflow": program.definition.name, "instance_id": program.instance_id})
        self._program = program

    def isEnabledFor(self, level: int) -> bool:
        return not self._program.replaying and super().isEnabledFor(level)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        message, kwargs = super().process(msg, kwargs)
        return f"{self._program.instance_id}: {message}", kwargs


def current() -> WorkflowInfo:
    """The running workflow. Raises `RuntimeError` outside of one."""
    return WorkflowInfo(_program())


def set_status(value: Any) -> None:
    """Set the custom status that listings and `get` show. Any JSON-able value. Visible when the turn is committed."""
    _program().set_status(value, sys._getframe(1))


@overload
async def wait_event(name: str, *, timeout: str | float | timedelta | None = None) -> Any: ...
@overload
async def wait_event(name: str, type: type[T], *, timeout: str | float | timedelta | None = None) -> T: ...
async def wait_event(name: str, type: Any = Any, *, timeout: str | float | timedelta | None = None) -> Any:
    """The payload of the next external event of that name, the case of which does not matter.

    Events are kept in order until somebody waits for them, each is given to one waiter. `type` validates and converts
    the payload (raises `CodecError` when it does not fit). After `timeout` (a durable timer) raises `TimeoutError`;
    with 0 it takes what is there.
    """
    program = _program()
    folded = name.casefold()
    limit_s = None if timeout is None else parse_duration_s(timeout)
    expected = None if type is Any else adapter(type)
    future = program.event_future(folded, awaited=limit_s is None)
    try:
        if limit_s is None:
            payload = await future
        else:
            async with asyncio.timeout(limit_s):
                payload = await future
    except TimeoutError:
        _give_up(program, folded, future)
        raise TimeoutError(f"no event {name!r} within {timeout}") from None
    except BaseException:  # cancelled, or the timer is refused
        _give_up(program, folded, future)
        raise
    try:
        return payload if expected is None else restore(expected, payload)
    except CodecError as error:
        raise CodecError(f"event {name!r}: {error}") from None


def _give_up(program: Program, name: str, future: asyncio.Future[Any]) -> None:
    """Nobody looks at this future any more: out of the queue with it, or back into it with its event."""
    if future.done() and not future.cancelled():
        program.put_back(name, future.result())
    else:
        program.forget_waiter(name, future)


# -- actors -----------------------------------------------------------------------------------------------------------


class ActorMethod:
    """A method of another actor: awaiting a call of it is a durable step, `send` makes it a one-way message."""

    __slots__ = ("_method", "_target")

    def __init__(self, actor_type: str, actor_id: str, name: str, method: Method | None) -> None:
        self._target = (actor_type, actor_id, name)
        self._method = method

    def __call__(self, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        decoder = None if self._method is None else self._method.signature.result
        return _program().actor_call(self._target, self._encode(args, kwargs), decoder, sys._getframe(1))

    def send(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _program().actor_send(self._target, self._encode(args, kwargs), _user_frame())

    def _encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        if self._method is not None:
            return self._method.signature.encode_arguments(args, kwargs)
        if args and kwargs:
            raise TypeError("an actor named by a string takes arguments by position or by name, not both")
        if kwargs:
            return encode(kwargs)
        return encode(args[0] if len(args) == 1 else args) if args else b""


class ActorRef:
    """Another actor, as workflow code sees it."""

    __slots__ = ("_actor_id", "_actor_type", "_methods")

    def __init__(self, actor_type: type | str, actor_id: str) -> None:
        definition = None if isinstance(actor_type, str) else definition_of(actor_type)
        if definition is None and not isinstance(actor_type, str):
            raise TypeError(f"{actor_type.__qualname__} is not an @actor class")
        self._actor_type = definition.name if definition is not None else str(actor_type)
        check_name("actor type", self._actor_type)
        check_name("actor id", actor_id)
        self._actor_id = actor_id
        self._methods = None if definition is None else definition.methods

    def __getattr__(self, name: str) -> ActorMethod:
        if name.startswith("_"):
            raise AttributeError(name)
        if self._methods is None:
            return ActorMethod(self._actor_type, self._actor_id, name, None)
        if name not in self._methods:
            raise AttributeError(f"{self._actor_type} has no method {name!r}; it has {', '.join(self._methods)}")
        return ActorMethod(self._actor_type, self._actor_id, name, self._methods[name])


@overload
def actor(actor_type: type[T], actor_id: str) -> T: ...
@overload
def actor(actor_type: str, actor_id: str) -> Any: ...
def actor(actor_type: type[Any] | str, actor_id: str) -> Any:
    """A reference to an actor. ``await actor(Account, "a").deposit(5)`` is a durable call: the turn over there runs
    exactly once, its result (or failure: `ActorCallFailed`) is recorded here once."""
    _program()
    return ActorRef(actor_type, actor_id)


def send(method: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
    """A durable one-way message, delivered exactly once: ``send(actor(Account, "a").deposit, 5)``."""
    _send(method, args, kwargs)


def _send(method: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if isinstance(method, ActorMethod):
        method.send(args, kwargs)
    else:
        stream, name, payload = target_of(method, args, kwargs)
        actor_type, _, actor_id = stream.partition("/")
        _program().actor_send((actor_type, actor_id, name), payload, _user_frame())


def _user_frame() -> types.FrameType:
    """The frame that called into this package, perhaps through `actors.send`."""
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__") in ("workflow.context", "actors.turn") and frame.f_back is not None:
        frame = frame.f_back
    return frame


class Surface:
    """What `actors.context()` gives inside a workflow, so that ``actors.send`` and ``context().actor`` work there as
    they do in an actor. Everything else of a turn is not for a workflow: turns come and go beneath it, and are
    replayed."""

    __slots__ = ()
    closed = failed = False

    def actor(self, actor_type: Any, actor_id: str, **_options: Any) -> Any:
        return actor(actor_type, actor_id)

    def send(self, method: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        _send(method, args, kwargs)

    @property
    def activation(self) -> Any:
        """What references and clients of a runtime ask a turn for, to make their call a part of it; or only to be
        refused here (`actors.turn.refuse_replayed`)."""
        raise WorkflowGuardError(
            "a runtime's references and clients do not work inside a workflow: use workflow.actor(...) and "
            "workflow.send(...), or call from an @activity"
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError(f"{name!r} of an actor's turn is not available inside a workflow; see the workflow package")


SURFACE = Surface()
