"""What the outside world does with workflows: start, look, wait, signal, pause, resume, terminate, purge, list.

Every call but the looking ones is durable when it returns. A host in trouble (`actors.Retriable`), or a store, is asked
again until `patience_s` are over, or this host has stopped: each operation is safe to repeat, by its nature or by a
key.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, TypeVar

import orjson

from actors import ActorFailed, HostStopping, InvalidSchedule, OutcomeUnknown, Retriable
from actors.names import check_key, check_name, check_text
from actors.period import MAX_MS
from actors.timetext import parse_duration_s
from actors.turn import current_turn, refuse_replayed
from statestores.codec import CodecError, decode, encode
from statestores.errors import StoreUnavailable
from statestores.model import IndexEntry, IndexQuery
from workflow.definition import Workflow, read, restore
from workflow.errors import (
    Failure,
    InstanceExists,
    InstanceNotFound,
    InstanceNotTerminal,
    InvalidWorkflowInput,
    PayloadLost,
    Refused,
    UnknownWorkflow,
    WorkflowFailed,
    WorkflowStalled,
    WorkflowTerminated,
)
from workflow.history import ACTOR_TYPE, COMPLETED, FAILED, STATUSES, TERMINAL, TERMINATED, parse
from workflow.instance import MISSING, definition_for
from workflow.payloads import Stored
from workflow.pieces import read_freely

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from datetime import timedelta

    from actors import ActorClient
    from actors.timetext import Duration
    from statestores.model import Event
    from workflow.deployment import Deployment
    from workflow.instance import WorkflowInstance
    from workflow.pieces import Data

P = ParamSpec("P")
T = TypeVar("T")

_NAMESPACE = uuid.UUID("6d656368-612d-5772-8b66-6c6f77000001")
# The original, which is no workflow's business to find guarded.
_time_ns = time.time_ns
# Not `os.urandom` for each id: it gives up the interpreter lock, and has to wait for it.
_random = random.Random()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)
_FIRST_RETRY_S = 0.02
_LONGEST_RETRY_S = 1.0
_HISTORY_PAGE = 1000
# Well within the calendar, whatever the clock of the host says that adds it.
_LONGEST_DELAY_MS = 1000 * 365 * 86_400_000


class WorkflowState(NamedTuple):
    """An instance as it is shown. Times in ms since the epoch; `input`, `output`, `custom_status` are JSON values;
    `failure` is there when the status is FAILED (the exception) or STALLED (the reason)."""

    instance_id: str
    name: str
    status: str
    created_ms: int
    updated_ms: int
    input: Any
    output: Any
    custom_status: Any
    failure: Failure | None
    execution_id: str

    @property
    def is_terminal(self) -> bool:
        return self.status in TERMINAL


class HistoryEntry(NamedTuple):
    """One recorded turn: see `workflow.history` for the kinds of inputs and commands."""

    version: int
    time_ms: int
    inputs: list[Any]
    commands: list[Any]


class WorkflowHandle(Generic[T]):
    """One started instance, with the type of its result."""

    def __init__(self, client: WorkflowClient, instance_id: str) -> None:
        self._client = client
        self.instance_id = instance_id

    async def state(self) -> WorkflowState:
        return await self._client.get(self.instance_id)

    async def result(self, timeout: Duration | None = None) -> T:
        """See `WorkflowClient.wait`."""
        value: T = await self._client.wait(self.instance_id, timeout)
        return value

    async def raise_event(self, name: str, payload: Any = None, *, idempotency_key: str | None = None) -> None:
        await self._client.raise_event(self.instance_id, name, payload, idempotency_key=idempotency_key)

    async def pause(self) -> None:
        await self._client.pause(self.instance_id)

    async def resume(self) -> None:
        await self._client.resume(self.instance_id)

    async def terminate(self, output: Any = None) -> None:
        await self._client.terminate(self.instance_id, output)


class WorkflowClient:
    """Made by `Engine.attach`."""

    def __init__(
        self,
        client: ActorClient,
        instance_type: type[WorkflowInstance],
        deployment: Deployment,
        patience_s: float = 30.0,
    ) -> None:
        self._client = client
        self._type = instance_type
        self._methods = definition_for(instance_type).methods
        self._deployment = deployment
        self._workflows: Mapping[str, Workflow[Any, Any]] = deployment.workflows
        self._patience_s = patience_s

    # -- starting -----------------------------------------------------------------------------------------------------

    async def start(
        self,
        workflow: Workflow[Any, Any] | str,
        input: Any = None,
        *,
        instance_id: str | None = None,
        start_at: datetime | None = None,
        delay: str | float | timedelta | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Start an instance; its id. It is durable when this returns, and may have ended already.

        `start_at` or `delay`: it is PENDING until then. `idempotency_key`: a start of this workflow that is made again
        under it is the first one, whether that is running or over, for as long as that is what is recorded under the
        id, and for an hour after it was made whatever has become of it; without `instance_id` the id follows from the
        key. One that is refused leaves its key unused. The id of an ended instance can be used again: what was recorded
        under it is removed.

        Raises `UnknownWorkflow`, `InvalidWorkflowInput`, `InvalidSchedule`, `InstanceExists`, `InvalidName`,
        `ActorError`.
        """
        definition = self.definition(workflow)
        if instance_id is not None:
            check_name("instance id", instance_id)
        text = _input_text(definition, input)
        request, is_new = _identity(idempotency_key, instance_id or "", "start", definition.name, text)
        fresh = False
        if instance_id is None:
            if is_new:
                instance_id, fresh = request, True
            else:
                instance_id = str(uuid.uuid5(_NAMESPACE, f"{definition.name}:{request}"))
        if start_at is not None and delay is not None:
            raise InvalidSchedule("start_at and delay both say when a workflow begins: give one of them")
        at_ms = _ms("start_at", start_at) or 0
        delay_ms = 0 if delay is None else round(parse_duration_s(delay) * 1000)
        if at_ms > MAX_MS or delay_ms > _LONGEST_DELAY_MS:
            raise InvalidSchedule(
                "a workflow begins within a thousand years from now, or by the year 9999: begin sooner"
            )
        large = self._is_large(text)
        ask = self._ask_large if large else self._ask
        asked = (definition.name, text, at_ms, delay_ms, request)
        while True:
            answer: str
            if is_new:
                answer = await ask(instance_id, "start_large" if large else "start", *asked, fresh=fresh)
            else:
                key = _Identity(_behind(definition.name, request), False)
                answer = await ask(instance_id, "start_once", *asked, large, key=key)
            if answer == "exists":
                raise InstanceExists(instance_id)
            if not answer:
                return instance_id
            # Somebody else may do the same at the same time: only the execution that had ended is removed.
            await self._ask(instance_id, "purge", False, answer.removeprefix("terminal "))

    async def run(self, workflow: Workflow[P, T], input: Any = None, **options: Any) -> T:
        """`start` and `wait` in one; `options` as for `start`."""
        handle = await self.handle(workflow, input, **options)
        return await handle.result()

    async def handle(self, workflow: Workflow[P, T], input: Any = None, **options: Any) -> WorkflowHandle[T]:
        """`start`, giving a typed handle."""
        return WorkflowHandle(self, await self.start(workflow, input, **options))

    # -- looking ------------------------------------------------------------------------------------------------------

    async def get(self, instance_id: str) -> WorkflowState:
        """A large value that the store has lost is None. Raises `InstanceNotFound`; `PayloadLost` when the instance was
        purged meanwhile, and its id used again."""
        return await self._state(instance_id, await self._described(instance_id))

    async def wait(self, instance_id: str, timeout: Duration | None = None) -> Any:
        """The result of the instance, once it has one: the workflow's annotated type where it is deployed here, else
        JSON.

        Raises `WorkflowFailed`, `WorkflowTerminated`, `WorkflowStalled`, `InstanceNotFound`, `PayloadLost`;
        `TimeoutError` after `timeout` (seconds, or a duration as text). Waiting costs nothing, and goes on when the
        instance moves.
        """
        shown = orjson.loads(await self._wait_shown(instance_id, timeout))
        if shown["status"] == COMPLETED:
            definition = self._workflows.get(shown["name"])
            adapter = None if definition is None else definition.output
            if (stored := shown.get("payloads", {}).get("output")) is not None:
                data = await self._load(instance_id, stored)
                value = await read_freely(adapter, data)
                return read(adapter, data) if value is None else value
            return restore(adapter, shown["output"])
        if shown["status"] == TERMINATED:
            raise WorkflowTerminated(instance_id, shown["output"])
        failure = _failure(shown) or Failure("Unknown", "")
        raise (WorkflowFailed if shown["status"] == FAILED else WorkflowStalled)(instance_id, failure)

    async def wait_state(self, instance_id: str, timeout: Duration | None = None) -> WorkflowState:
        """`get`, once the instance has ended or stalled. Raises `TimeoutError` as well."""
        return await self._state(instance_id, orjson.loads(await self._wait_shown(instance_id, timeout)))

    async def listing(
        self,
        *,
        name: str = "",
        statuses: tuple[str, ...] = (),
        prefix: str = "",
        created_from: datetime | None = None,
        created_to: datetime | None = None,
        after: str = "",
        limit: int = 100,
    ) -> list[IndexEntry]:
        """One page of instances by id; `after` is the last instance id of the page before. `instance_id_of` reads an
        entry. Raises `ValueError` for a status there is not."""
        if unknown := [status for status in statuses if status not in STATUSES]:
            raise ValueError(f"no status is {unknown[0]!r}: give a tuple of {', '.join(sorted(STATUSES))}")
        query = IndexQuery(
            ACTOR_TYPE,
            id_prefix=prefix,
            name=name,
            statuses=statuses,
            created_from_ms=_ms("created_from", created_from),
            created_to_ms=_ms("created_to", created_to),
            after=f"{ACTOR_TYPE}/{after}" if after else "",
            limit=limit,
        )
        return await self._client.listing(query)

    async def history(self, instance_id: str, *, after: int = 0, limit: int = _HISTORY_PAGE) -> list[HistoryEntry]:
        """Recorded turns, oldest first, from the version after `after`. From the beginning, raises
        `InstanceNotFound`."""
        recorded = await self._client.history(ACTOR_TYPE, instance_id, after=after, limit=limit)
        if not recorded and not after:
            await self.get(instance_id)
        return [*map(history_entry, recorded)]

    # -- acting -------------------------------------------------------------------------------------------------------

    async def raise_event(
        self, instance_id: str, name: str, payload: Any = None, *, idempotency_key: str | None = None
    ) -> None:
        """Kept until the workflow waits for it; ignored when the instance has ended. It arrives once (INV-8);
        `idempotency_key`: so do all that are raised under one name with this key, which is remembered for an hour.
        Raises `InstanceNotFound` (which is not remembered), `InvalidName`, `CodecError`."""
        check_text("event name", name)
        text = encode(payload).decode()
        folded = name.casefold()
        key = _identity(idempotency_key, instance_id, "raise_event", folded, text, name=folded)
        if self._is_large(text):
            answer = await self._ask_large(instance_id, "raise_event", name, text, True, key=key)
        else:
            answer = await self._ask(instance_id, "raise_event", name, text, key=key)
        if answer == MISSING:
            raise InstanceNotFound(instance_id)

    async def pause(self, instance_id: str) -> None:
        """From now on inputs are recorded, but wait for `resume`. Activities already running finish."""
        await self._command(instance_id, "pause")

    async def resume(self, instance_id: str) -> None:
        """End a pause; or try a stalled instance again, with the code that is deployed now."""
        await self._command(instance_id, "resume")

    async def terminate(self, instance_id: str, output: Any = None) -> None:
        """End it now, as TERMINATED. An instance that has ended stays as it is."""
        text = encode(output).decode()
        await self._command(instance_id, "terminate", text)

    async def purge(self, instance_id: str, *, force: bool = False, idempotency_key: str | None = None) -> None:
        """Remove everything of an ended instance; with `force`, of any. `idempotency_key`: as for `raise_event`. Raises
        `InstanceNotFound`, `InstanceNotTerminal`."""
        answer = await self._command(
            instance_id, "purge", force, "", key=_identity(idempotency_key, instance_id, "purge", force)
        )
        if answer:
            raise InstanceNotTerminal(instance_id, answer)

    # -- leaves -------------------------------------------------------------------------------------------------------

    def _is_large(self, text: str) -> bool:
        keeper = self._deployment.keeper
        return keeper is not None and len(text) > keeper.limit

    async def _ask_large(
        self,
        instance_id: str,
        method: str,
        name: str,
        text: str,
        *args: Any,
        fresh: bool = False,
        key: _Identity | None = None,
    ) -> Any:
        """`_ask` with where the JSON is, in place of it. It is durable before, and in flight while we ask."""
        keeper = self._deployment.keeper
        assert keeper is not None
        while True:
            stored = await self._patiently(lambda: keeper.keep(_stream(instance_id), text.encode(), at_hand=True))
            try:
                return await self._ask(instance_id, method, name, str(stored), *args, fresh=fresh, key=key)
            except ActorFailed as error:
                if error.error_type != PayloadLost.__name__:
                    raise
                # It took so long, by way of other hosts, that a sweep came past.
            finally:
                keeper.settled(stored.id)

    async def _load(self, instance_id: str, stored: str) -> Data:
        """Raises `PayloadLost`."""
        keeper = self._deployment.keeper
        if keeper is None:
            raise PayloadLost("this host's store has no payloads")
        return await self._patiently(lambda: keeper.load(_stream(instance_id), Stored.parse(stored)))

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """What the store is asked for from here, with the patience, and in the end the error, of `_ask`."""
        clock = asyncio.get_running_loop().time
        pause_s, until_s = _FIRST_RETRY_S, clock() + self._patience_s
        while True:
            try:
                return await attempt()
            except StoreUnavailable as error:
                if self._client.is_stopped:
                    raise HostStopping("this host has stopped") from error
                if clock() >= until_s:
                    raise OutcomeUnknown(str(error)) from error
            pause_s = await _paused(pause_s)

    async def _described(self, instance_id: str) -> dict[str, Any]:
        """Raises `InstanceNotFound`."""
        shown: str = await self._ask(instance_id, "describe")
        if not shown:
            raise InstanceNotFound(instance_id)
        fields: dict[str, Any] = orjson.loads(shown)
        return fields

    async def _state(self, instance_id: str, fields: dict[str, Any]) -> WorkflowState:
        """With large values read. Raises `InstanceNotFound`, or `PayloadLost` when there is another instance by now."""
        for name, stored in fields.get("payloads", {}).items():
            try:
                data = await self._load(instance_id, stored)
                value = await read_freely(None, data)
                fields[name] = decode(data) if value is None else value
            except PayloadLost:
                if (await self._described(instance_id))["execution"] != fields["execution"]:
                    raise
                # The instance stands, and is perhaps stalled for this: the rest of it is to be seen.
                fields[name] = None
        return WorkflowState(
            instance_id,
            fields["name"],
            fields["status"],
            fields["created_ms"],
            fields["updated_ms"],
            fields["input"],
            fields["output"],
            fields["custom_status"],
            _failure(fields),
            fields["execution"],
        )

    async def _wait_shown(self, instance_id: str, timeout: Duration | None) -> str:
        refuse_replayed()
        if timeout is None:
            return await self._shown_at_end(instance_id)
        try:
            async with asyncio.timeout(parse_duration_s(timeout)) as scope:
                return await self._shown_at_end(instance_id)
        except TimeoutError:
            if not scope.expired():
                raise
            raise TimeoutError(f"workflow instance {instance_id!r} has not ended within {timeout!r}") from None

    async def _shown_at_end(self, instance_id: str) -> str:
        # An instance that is seen here to go on will be heard of here: that needs no turn.
        found: WorkflowInstance | None = self._client.object_here(f"{ACTOR_TYPE}/{instance_id}")
        if found is not None and found.is_going_on:
            shown = await self._deployment.wait_told(instance_id)
        else:
            shown = ""
        while not shown:
            shown = await self._ask(instance_id, "wait_ended")
        if shown == MISSING:
            raise InstanceNotFound(instance_id)
        return shown

    def definition(self, workflow: Workflow[Any, Any] | str) -> Workflow[Any, Any]:
        """Raises `UnknownWorkflow`; `TypeError` for what is no workflow at all."""
        if not isinstance(workflow, Workflow | str):
            raise TypeError(f"{workflow!r} is not a workflow: decorate it with @workflow, or give the name of one")
        name = workflow if isinstance(workflow, str) else workflow.name
        found = self._workflows.get(name)
        if found is None:
            raise UnknownWorkflow(name, list(self._workflows))
        return found

    async def _command(self, instance_id: str, method: str, *args: Any, key: _Identity | None = None) -> str:
        answer: str = await self._ask(instance_id, method, *args, key=key)
        if answer == MISSING:
            raise InstanceNotFound(instance_id)
        return answer

    async def _ask(
        self, instance_id: str, method: str, *args: Any, fresh: bool = False, key: _Identity | None = None
    ) -> Any:
        """`fresh`: the id was made for this, nothing is recorded under it. `key`: of what takes effect each time it is
        recorded."""
        clock = asyncio.get_running_loop().time
        pause_s, until_s = _FIRST_RETRY_S, clock() + self._patience_s
        text, is_new = (None, False) if key is None else key
        while True:
            try:
                if current_turn() is None:
                    stream = f"{ACTOR_TYPE}/{instance_id}"
                    return await self._client.call_method(
                        stream, self._methods[method], args, fresh=fresh, key=text, key_is_new=is_new
                    )
                # In a turn of the application's: part of its call chain.
                return await getattr(self._client.actor(self._type, instance_id, idempotency_key=text), method)(*args)
            except ActorFailed as error:
                if error.error_type == Refused.__name__:
                    return error.message
                raise
            except Retriable:
                if clock() >= until_s or self._client.is_stopped:
                    raise
            fresh = is_new = False
            pause_s = await _paused(pause_s)


async def _paused(pause_s: float) -> float:
    """Between two attempts; how long the next pause is."""
    await asyncio.sleep(pause_s)
    return min(pause_s * 2, _LONGEST_RETRY_S)


class _Identity(NamedTuple):
    """Of something that is to be done once, however often it is asked for. `is_new`: it was made for this."""

    key: str
    is_new: bool


def _identity(given: str | None, instance_id: str, method: str, *args: Any, name: str | None = None) -> _Identity:
    """What is given goes behind the name, if there is one. In a turn that has a key itself the identity follows from
    that, and from what is asked for, so that a repeated turn repeats no effects."""
    refuse_replayed()
    if given is not None:
        check_key(given)
        return _Identity(given if name is None else _behind(name, given), False)
    turn = current_turn()
    if turn is None or turn.idempotency_key is None:
        return _Identity(_new_id(), True)
    return _Identity(turn.nested_key(_stream(instance_id), method, encode(args)), False)


def _behind(name: str, key: str) -> str:
    """With the length of the name before it, since both may contain whatever would separate them."""
    return f"{len(name)}:{name}:{key}"


def _failure(shown: Mapping[str, Any]) -> Failure | None:
    return None if shown["failure"] is None else Failure(*shown["failure"])


def history_entry(recorded: Event) -> HistoryEntry:
    """An event of an instance's stream, read."""
    data = orjson.loads(recorded.data)
    return HistoryEntry(recorded.version, data["t"], parse(data["i"]), parse(data["c"]))


def instance_id_of(entry: IndexEntry) -> str:
    return entry.stream.partition("/")[2]


def _new_id() -> str:
    """A UUID of version 7 (RFC 9562): random, after the time in milliseconds. Instances of one time are neighbours in a
    store's trees, and share its pages: the cost of a commit on SQLite is a third less than with ids at random."""
    digits = f"{_time_ns() // 1_000_000:012x}{_random.getrandbits(80):020x}"
    return (
        f"{digits[:8]}-{digits[8:12]}-7{digits[13:16]}-{'89ab'[int(digits[16], 16) & 3]}{digits[17:20]}-{digits[20:]}"
    )


def _input_text(definition: Workflow[Any, Any], value: Any) -> str:
    """JSON of the input, checked against the annotation."""
    try:
        text = encode(value)
        if definition.input is not None and type(value) is definition.input.atom:
            return text.decode()
        definition.check_input(orjson.loads(text))
    except CodecError as error:
        raise InvalidWorkflowInput(f"{definition.name}: {error}") from None
    return text.decode()


def _stream(instance_id: str) -> str:
    return f"{ACTOR_TYPE}/{instance_id}"


def _ms(what: str, instant: datetime | None) -> int | None:
    """A naive one is UTC, as it is in a reminder."""
    if instant is None:
        return None
    if not isinstance(instant, datetime):
        raise TypeError(f"{what}={instant!r} is not a datetime, e.g. datetime(2030, 1, 31, 9, tzinfo=UTC)")
    return round((instant if instant.tzinfo is not None else instant.replace(tzinfo=UTC)).timestamp() * 1000)
