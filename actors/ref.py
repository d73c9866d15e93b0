"""References: `runtime.actor(Account, "alice").deposit(10)`.

A reference is cheap, holds no connection, and is as good as any other to the same actor. To a type checker it *is* the
class, so calls are checked against the methods' signatures; by name (``runtime.actor("Account", "alice")``) anything
goes, and the target checks.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from actors.definition import HOOKS
from actors.joined import wait_without
from actors.names import check_key
from actors.timetext import parse_duration_s
from actors.turn import current_turn
from statestores.codec import ATOMS, decode, encode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from actors.definition import ActorDefinition, Method
    from actors.message import Call
    from actors.timetext import Duration
    from actors.turn import Turn


T = TypeVar("T")


class MakeReference(Protocol):
    """How actors are referred to, by whoever can: `runtime.actor(Account, "alice")`. Given by its class, a reference is
    typed like it; by name, it is `Any`."""

    @overload
    def __call__(
        self, actor_type: type[T], actor_id: str, *, timeout: Duration | None = None, idempotency_key: str | None = None
    ) -> T: ...
    @overload
    def __call__(
        self, actor_type: str, actor_id: str, *, timeout: Duration | None = None, idempotency_key: str | None = None
    ) -> Any: ...


class Caller(Protocol):
    """Who makes the calls of references: `ActorClient` inside a runtime, connections outside of one."""

    def new_call(self, stream: str, method: str) -> Call: ...
    def start(self, call: Call, timeout: float | None) -> Awaitable[Any]:
        """Make the call; its answer, JSON if the call is raw. Raises what `actors.errors` lists."""


class ActorRef:
    """Methods are attributes; calling one gives a coroutine that makes the call when awaited."""

    __slots__ = ("_mecha_client", "_mecha_definition", "_mecha_key", "_mecha_stream", "_mecha_timeout")

    def __init__(
        self,
        client: Caller,
        definition: ActorDefinition | None,
        stream: str,
        timeout: Duration | None,
        idempotency_key: str | None,
    ) -> None:
        if idempotency_key is not None:
            check_key(idempotency_key)
        self._mecha_client = client
        self._mecha_definition = definition
        self._mecha_stream = stream
        self._mecha_timeout = None if timeout is None else parse_duration_s(timeout)
        self._mecha_key = idempotency_key

    def __getattr__(self, name: str) -> BoundMethod:
        definition = self._mecha_definition
        if definition is None:
            if name.startswith("_"):
                raise AttributeError(name)
            return BoundMethod(self, name, None)
        method = definition.methods.get(name)
        if method is None or name in HOOKS:
            raise AttributeError(f"actor {definition.name} has no method {name!r}; mark it with @method")
        return BoundMethod(self, name, method)

    def __repr__(self) -> str:
        return f"<actor {self._mecha_stream}>"


class BoundMethod:
    __slots__ = ("method", "name", "ref")

    def __init__(self, ref: ActorRef, name: str, method: Method | None) -> None:
        self.ref = ref
        self.name = name
        self.method = method

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Make the call. Raises what `actors.errors` lists. Cancelling it cancels the turn, or takes it out of the
        mailbox; once the turn is decided it is too late."""
        ref = self.ref
        call = ref._mecha_client.new_call(ref._mecha_stream, self.name)
        if ref._mecha_key is not None:
            call.key = ref._mecha_key
        method = self.method
        if method is not None:
            call.method = method
            call.args = bound = method.signature.bind_python(args, kwargs)
            if bound is not args and not ATOMS.issuperset(map(type, bound)):
                call.payload = method.signature.encode_bound(bound)  # a turn that is run again starts afresh
        else:
            call.payload = encode_loose(args, kwargs)
            call.raw = True
        turn = current_turn()
        if turn is None:
            result = await ref._mecha_client.start(call, ref._mecha_timeout)
        else:
            result = await _call_from_turn(turn, ref._mecha_client, call, ref._mecha_timeout)
        return decode(result) if call.raw else result


async def _call_from_turn(turn: Turn, client: Caller, call: Call, timeout: float | None) -> Any:
    """A call as part of a turn: it belongs to the turn's chain, waits for what the turn rests on, and inherits what is
    left of its deadline. Below a call with an idempotency key every call has one."""
    if turn.activation.uncommitted:
        await turn.wait_committed()
    outer = turn.call
    call.caller = turn.stream
    call.trace_id = outer.trace_id
    call.chain = (*outer.chain, turn.stream)
    call.chain_id = turn.chain_id
    if call.key is None and turn.idempotency_key is not None:
        # What has not been encoded is atoms, whose text is as good, and there is one of each.
        arguments = call.payload if call.payload is not None else repr(call.args).encode()
        call.key = turn.nested_key(call.stream, call.method_name, arguments)
    call.deadline = outer.deadline
    # An interleaved turn holds up nobody at its own actor, but it may be what an outer turn waits for.
    call.waiter = outer.waiter if turn.method.interleave else turn.stream
    if not call.waiter:
        return await client.start(call, timeout)
    waits = turn.activation.host.waits
    waits.add(call)
    running = turn.activation.running
    before = tuple(running.joined or ()) if running is not None else ()
    try:
        return await client.start(call, timeout)
    except (Exception, asyncio.CancelledError) as error:
        if running is not None and running.joined and running.chain_id == turn.chain_id:
            await wait_without(running, call, error, before)
        raise
    finally:
        waits.remove(call)


def encode_loose(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
    """Arguments for a method whose signature is not known here (see `Signature.bind_json` for how they are read)."""
    if args and kwargs:
        raise TypeError("by name, pass arguments either all by position or all by keyword")
    if kwargs:
        return encode(dict(kwargs))
    if not args:
        return b""
    return encode(args[0] if len(args) == 1 else args)


def target_of(bound: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, str, bytes]:
    """(stream, method, payload) of a reference's method and its arguments, for a message out of a turn: that is sent
    once as it is, with the turn, so the reference cannot have a key. Raises `TypeError` for anything else."""
    stream, name, payload, key = keyed_target_of(bound, args, kwargs)
    if key is not None:
        raise TypeError("a message out of a turn is sent once as it is: refer to the actor without idempotency_key")
    return stream, name, payload


def keyed_target_of(bound: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, str, bytes, str | None]:
    """(stream, method, payload, idempotency key) of a reference's method and its arguments. Raises `TypeError` for
    anything else."""
    if not isinstance(bound, BoundMethod):
        raise TypeError("send takes a method of an actor reference: send(context().actor(Airport, 'JFK').departed, 10)")
    ref, method = bound.ref, bound.method
    payload = encode_loose(args, kwargs) if method is None else method.signature.encode_arguments(args, kwargs)
    return ref._mecha_stream, bound.name, payload, ref._mecha_key
