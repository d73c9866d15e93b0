"""What the outside world uses: calls, messages, and looking at actors. Runtime and the HTTP API stand on it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from actors.activation import Phase
from actors.definition import definition_of
from actors.errors import InvalidName, UnknownActorType
from actors.message import Call, Heard
from actors.names import check_key, check_name, check_text, stream_of
from actors.ref import ActorRef, keyed_target_of
from actors.state import fold, new_instance, plain_state
from actors.turn import current_turn, refuse_replayed
from statestores.codec import ATOMS, encode
from statestores.model import IndexQuery, partition_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence

    from actors.deadletters import DeadLetter
    from actors.definition import ActorDefinition, Method
    from actors.host import Host
    from actors.ref import MakeReference
    from actors.reminders import ReminderInfo
    from actors.timetext import Duration
    from statestores.model import Event, IndexEntry, StreamState

_BREATHE_EVERY = 64
_LOOKED_AT = 200


class ActorClient:
    """Every error is an `ActorError` (see `actors.errors`) or, from the methods that only look, a `StoreError`."""

    def __init__(self, host: Host) -> None:
        self._host = host
        # Calls that were answered before they were awaited: reads, mostly.
        self._at_once = 0
        # Bound once, as it is on the path of every call.
        self.new_call: Callable[[str, str], Call] = host.new_call

    # -- calling -------------------------------------------------------------------------------------------------------

    @property
    def actor(self) -> MakeReference:
        """A reference. `timeout` (seconds, or a duration like ``"1.5s"``) bounds each call made through it;
        `idempotency_key` makes its call take effect once, however often it is made (use one reference per keyed call).
        Raises `InvalidName`, `InvalidSchedule`, `UnknownActorType`."""
        return self._refer

    def _refer(
        self,
        actor_type: type | str,
        actor_id: str,
        *,
        timeout: Duration | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        if isinstance(actor_type, str):
            definition, name = None, actor_type
            check_name("actor type", name)
        else:
            definition = definition_of(actor_type)
            if definition is None:
                shown = getattr(actor_type, "__qualname__", None) or repr(actor_type)
                raise UnknownActorType(f"{shown} is not an actor type: give a class decorated with @actor, or a name")
            name = definition.name
        check_name("actor id", actor_id)
        return ActorRef(self, definition, stream_of(name, actor_id), timeout, idempotency_key)

    def call_method(
        self,
        stream: str,
        method: Method,
        args: tuple[Any, ...],
        *,
        fresh: bool = False,
        key: str | None = None,
        key_is_new: bool = False,
    ) -> asyncio.Future[Any]:
        """A call of a hosted type's method, made by the runtime itself outside of any turn: what a reference does,
        without one. `fresh`: see `Call`. `key`: its idempotency key; `key_is_new`: it was made for this call. Raises
        `InvalidArguments`; every other error comes through the future."""
        call = self._host.new_call(stream, method.name)
        call.method = method
        call.args = method.signature.bind_python(args, {})
        if call.args is not args and not ATOMS.issuperset(map(type, call.args)):
            call.payload = method.signature.encode_bound(call.args)
        if fresh:
            call.fresh = True
        if key is not None:
            call.key, call.looked_up = key, key_is_new
        self._host.placement.submit(call)
        return call.future

    def tell(
        self, stream: str, method: Method, args: tuple[Any, ...], heard: Callable[[BaseException | None], None]
    ) -> None:
        """`call_method` for turns that the runtime makes by the thousand: the arguments are of the right types, and
        nobody else's; `heard` is told what went wrong, see `Heard`."""
        call = Call(stream, method.name, Heard(heard))
        call.method, call.args = method, args
        self._host.placement.submit(call)

    def start(self, call: Call, timeout: float | None) -> asyncio.Future[Any]:
        """Make a prepared call; the future of its answer. Cancelling that cancels the call."""
        if timeout is not None:
            deadline = self._host.loop_time() + timeout
            call.deadline = deadline if call.deadline is None else min(deadline, call.deadline)
        if call.deadline is not None:
            call.timer = asyncio.get_running_loop().call_at(call.deadline, self._host.expire, call)
        self._host.placement.submit(call)
        if call.future.done():
            self._at_once += 1
            if self._at_once % _BREATHE_EVERY == 0:
                return self._breathing(call.future)
        return call.future

    def _breathing(self, answered: asyncio.Future[Any]) -> asyncio.Future[Any]:
        """The same answer, by way of the event loop: a program that asks again and again, and is answered at once, must
        not keep everybody else from running."""
        loop = asyncio.get_running_loop()
        later = loop.create_future()
        loop.call_soon(_pass_on, answered, later)
        return later

    def invoke_nowait(
        self,
        actor_type: str,
        actor_id: str,
        method: str,
        payload: bytes = b"",
        *,
        idempotency_key: str | None = None,
        timeout: float | None = None,
        caller: str = "",
        trace_id: str = "",
        chain_id: str | None = None,
    ) -> asyncio.Future[bytes]:
        """A call with JSON in and JSON out (see `Signature.bind_json`); never raises, the future does. The hot path of
        HTTP."""
        call = self._host.new_call(f"{actor_type}/{actor_id}", method)
        call.payload = payload
        call.raw = True
        try:
            if idempotency_key is not None:
                check_key(idempotency_key)
                call.key = idempotency_key
            if caller:
                check_text("caller", caller)
                call.caller = caller
            if trace_id:
                check_text("trace id", trace_id)
                call.trace_id = trace_id
        except InvalidName as error:
            call.future.set_exception(error)
            return call.future
        if chain_id is not None:
            call.chain_id = chain_id
        return self.start(call, timeout)

    async def call(self, actor_type: str, actor_id: str, method: str, payload: bytes = b"", **options: Any) -> bytes:
        """`invoke_nowait`, awaited."""
        refuse_replayed()
        return await self.invoke_nowait(actor_type, actor_id, method, payload, **options)

    async def send(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Send a durable one-way message from outside an actor: ``await client.send(client.actor(Airport,
        "JFK").departed, 10)``. Returns when it is durably accepted, before it takes effect. With a reference that has
        an idempotency key, however often it is sent, one message."""
        stream, name, payload, key = keyed_target_of(method, args, kwargs)
        actor_type, _, actor_id = stream.partition("/")
        await self.send_raw(actor_type, actor_id, name, payload, idempotency_key=key)

    async def send_raw(
        self,
        actor_type: str,
        actor_id: str,
        method: str,
        payload: bytes = b"",
        *,
        idempotency_key: str | None = None,
    ) -> None:
        """`send` with JSON arguments; with a key, however often it is made, one message. Raises `UnknownActorType`,
        `InvalidName`, `UnknownMethod`, `InvalidArguments`."""
        await self._builtin(actor_type, actor_id, "$accept", [method, payload.decode()], idempotency_key)

    # -- looking -------------------------------------------------------------------------------------------------------

    async def listing(self, query: IndexQuery) -> list[IndexEntry]:
        """One page of the actors that have state, by stream."""
        refuse_replayed()
        if not isinstance(query, IndexQuery):
            raise TypeError(f"listing() takes an IndexQuery (of statestores), such as IndexQuery({query!r})")
        return await self._host.journal.index(query)

    async def history(self, actor_type: str, actor_id: str, *, after: int = 0, limit: int = 1000) -> list[Event]:
        """Recorded events, oldest first, from the version after `after`."""
        refuse_replayed()
        return await self._host.journal.events(_stream(actor_type, actor_id), after, limit)

    async def state(
        self, actor_type: str, actor_id: str, *, at_version: int | None = None
    ) -> tuple[int, dict[str, Any]] | None:
        """(version, committed state as JSON values), now or as it was at a version, without activating the actor. None:
        it has no history. Raises `UnknownActorType`."""
        refuse_replayed()
        definition = self._definition(actor_type)
        history = await self._host.journal.load(_stream(actor_type, actor_id), at_version)
        if history.version == 0 and at_version != 0:
            return None
        return history.version, folded(definition, history)

    async def field(self, actor_type: str, actor_id: str, name: str) -> bytes | None:
        """One committed field as JSON; None when the actor, or the field, is not there."""
        found = await self.state(actor_type, actor_id)
        return encode(found[1][name]) if found is not None and name in found[1] else None

    def is_active(self, actor_type: str, actor_id: str) -> bool:
        """On this host."""
        return f"{actor_type}/{actor_id}" in self._host.activations

    def object_here(self, stream: str) -> Any | None:
        """The object of an actor that is active on this host, None otherwise. To look at outside of turns: what it
        shows may not be durable yet, and may never be."""
        activation = self._host.activations.get(stream)
        return activation.instance if activation is not None and activation.phase is Phase.ACTIVE else None

    @property
    def is_stopped(self) -> bool:
        """The host does nothing any more."""
        return self._host.aborted

    def is_at_work(self, message_id: str) -> bool:
        """Whether work posted under this id is with its worker in this process."""
        return self._host.outbox.is_at_work(message_id)

    def epoch(self, stream: str) -> int:
        """Under which this host owns the actor; 0: it does not."""
        return self._host.epochs[partition_of(stream, len(self._host.epochs))]

    def epochs(self) -> dict[int, int]:
        """Of the partitions this host owns."""
        return {partition: epoch for partition, epoch in enumerate(self._host.epochs) if epoch}

    async def mentions(self, stream: str, names: Iterable[str]) -> set[str]:
        """Those of the names (unique, as no other text contains them) that occur in what is recorded of an actor: its
        events, or messages it has sent that still stand. Raises `StoreError`."""
        journal, missing = self._host.journal, {name.encode() for name in names}
        found: set[bytes] = set()
        version = 0
        while missing and (events := await journal.events(stream, version, _LOOKED_AT)):
            found |= {name for name in missing if any(name in event.data for event in events)}
            missing -= found
            version = events[-1].version
        partition = partition_of(stream, journal.partitions)
        for dead in (False, True):
            after = ""
            while missing and (messages := await journal.outbox(partition, after, _LOOKED_AT, dead=dead)):
                own = [message.body for message in messages if message.stream == stream]
                found |= {name for name in missing if any(name in body for body in own)}
                missing -= found
                after = messages[-1].id
        return {name.decode() for name in found}

    def when_started(self, callback: Callable[[], None]) -> None:
        """Call back, on the event loop, when the host has started."""
        self._host.when_started.append(callback)

    def create_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task of the host: cancelled with it."""
        return self._host.create_task(work)

    def when_stopped(self, callback: Callable[[], None]) -> None:
        """Call back, on the event loop, when the host does nothing any more."""
        self._host.when_stopped.append(callback)

    def when_lost(self, callback: Callable[[Callable[[str], bool]], None]) -> None:
        """Call back, on the event loop, when this host has lost actors to another one; with what tells whether a stream
        is one of them."""
        partitions = self._host.journal.partitions
        self._host.when_lost.append(lambda lost: callback(lambda stream: partition_of(stream, partitions) == lost))

    def active_counts(self) -> dict[str, int]:
        """Activations in memory, for every hosted type."""
        counts = dict.fromkeys(self._host.types, 0)
        for activation in self._host.activations.values():
            counts[activation.definition.name] += 1
        return counts

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """Messages that were given up: they could never succeed, or failed too often."""
        refuse_replayed()
        return await self._host.dead_letters.listing(limit)

    async def resend_dead_letter(self, letter: DeadLetter) -> None:
        """Let a message leave again, once what was wrong with it has been mended."""
        await self._host.dead_letters.settle(letter, resend=True)

    async def discard_dead_letter(self, letter: DeadLetter) -> None:
        await self._host.dead_letters.settle(letter, resend=False)

    # -- changing from outside: turns like any other -------------------------------------------------------------------

    async def delete(self, actor_type: str, actor_id: str) -> bool:
        """Remove an actor with everything it owns. False when there was nothing."""
        return bool(await self._builtin(actor_type, actor_id, "$delete", []))

    async def patch(self, actor_type: str, actor_id: str, operations: Sequence[Sequence[Any]]) -> None:
        """Set ([field, value]) or reset ([field]) fields of an active actor, all or nothing. Raises `ActorNotActive`,
        `InvalidState`."""
        await self._builtin(actor_type, actor_id, "$patch", [list(o) for o in operations])

    async def set_reminder(
        self, actor_type: str, actor_id: str, name: str, options: Mapping[str, Any], *, overwrite: bool = True
    ) -> None:
        """`options` are the keyword arguments of `Turn.set_reminder`, times as text or seconds. Raises
        `InvalidSchedule`, `ReminderExists`."""
        check_name("reminder name", name)
        await self._builtin(actor_type, actor_id, "$set_reminder", [name, dict(options), overwrite])

    async def reminder(self, actor_type: str, actor_id: str, name: str) -> ReminderInfo | None:
        return next((r for r in await self.reminders(actor_type, actor_id) if r.name == name), None)

    async def reminders(self, actor_type: str, actor_id: str) -> list[ReminderInfo]:
        refuse_replayed()
        self._definition(actor_type)
        return await self._host.reminders.of(_stream(actor_type, actor_id))

    async def clear_reminder(self, actor_type: str, actor_id: str, name: str) -> None:
        await self._builtin(actor_type, actor_id, "$clear_reminder", [name])

    async def set_timer(self, actor_type: str, actor_id: str, name: str, options: Mapping[str, Any]) -> None:
        """`options` are the keyword arguments of `Turn.set_timer`. Raises `InvalidSchedule`."""
        check_name("timer name", name)
        await self._builtin(actor_type, actor_id, "$set_timer", [name, dict(options)])

    async def clear_timer(self, actor_type: str, actor_id: str, name: str) -> None:
        await self._builtin(actor_type, actor_id, "$clear_timer", [name])

    # -- leaves --------------------------------------------------------------------------------------------------------

    def _definition(self, actor_type: str) -> ActorDefinition:
        definition = self._host.types.get(actor_type)
        if definition is None:
            raise UnknownActorType(f"no host has the type {actor_type!r}; it has {', '.join(sorted(self._host.types))}")
        return definition

    async def _builtin(
        self, actor_type: str, actor_id: str, method: str, arguments: list[Any], key: str | None = None
    ) -> Any:
        refuse_replayed()
        if key is not None:
            check_key(key)
        call = self._host.new_call(_stream(actor_type, actor_id), method)
        call.key = key
        call.payload = encode(arguments)
        if (turn := current_turn()) is not None:
            call.chain = (*turn.call.chain, turn.stream)
        # A host that is leaving takes no new ones itself, but sends them on.
        call.internal = not (self._host.draining and self._host.owns(call.stream))
        return await self._host.place(call)


def folded(definition: ActorDefinition, history: StreamState) -> dict[str, Any]:
    """The state a history records, as JSON values. Raises `InvalidState`."""
    instance = new_instance(definition)
    fold(definition, instance, history)
    return plain_state(definition, instance)


def _pass_on(answered: asyncio.Future[Any], later: asyncio.Future[Any]) -> None:
    if later.done():  # given up
        return
    error = answered.exception()
    if error is None:
        later.set_result(answered.result())
    else:
        later.set_exception(error)


def _stream(actor_type: str, actor_id: str) -> str:
    check_name("actor type", actor_type)
    check_name("actor id", actor_id)
    return stream_of(actor_type, actor_id)
