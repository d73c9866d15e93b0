"""The actor API: ``/v1.0/actors`` as Dapr has it, and what we add under ``/v1.0/mecha/actors``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from actors.names import check_name, stream_of
from actors.timetext import format_instant, format_period
from runtime_api import bodies, rawjson
from runtime_api.openapi import (
    HIGHEST_VERSION,
    REENTRANCY_ID,
    ActorId,
    ActorType,
    After,
    AfterVersion,
    IdempotencyKey,
    Limit,
    Name,
    Timeout,
    errors,
    reads,
    takes,
)
from runtime_api.pages import read_events
from runtime_api.problems import Operation, Problem, failing_as, invoke_problem
from runtime_api.wire import call_options, millis, normal_method
from statestores import IndexQuery

if TYPE_CHECKING:
    from actors.reminders import ReminderInfo
    from runtime_api.bodies import ActorStateOperation, ReminderRequest, TimerRequest
    from runtime_api.runtime import Runtime
    from statestores import Event, IndexEntry

STATE_GET = Operation("ERR_ACTOR_STATE_GET", "error getting actor state: ")
STATE_SAVE = Operation("ERR_ACTOR_STATE_TRANSACTION_SAVE", "error saving actor transaction state: ")
REMINDER_CREATE = Operation("ERR_ACTOR_REMINDER_CREATE", "error creating actor reminder: ")
REMINDER_GET = Operation("ERR_ACTOR_REMINDER_GET", "error getting actor reminder: ")
REMINDER_DELETE = Operation("ERR_ACTOR_REMINDER_DELETE", "error deleting actor reminder: ")
TIMER_CREATE = Operation("ERR_ACTOR_TIMER_CREATE", "error creating actor timer: ")
TIMER_DELETE = Operation("ERR_ACTOR_TIMER_DELETE", "error deleting actor timer: ")
RESERVED_PREFIXES = ("dapr.internal.", "mecha.")

Version = Annotated[
    int | None, Query(ge=0, le=HIGHEST_VERSION, description="State as of this version; default: the newest")
]


def invoke_failed(error: Exception, actor_type: str, actor_id: str, method: str) -> Exception:
    """What to raise when an actor call failed: its `Problem`, or the error itself when it is no part of any
    contract."""
    return invoke_problem(error, actor_type, actor_id, method) or error


def check_names(actor_type: str, actor_id: str, *names: tuple[str, str]) -> None:
    """Raises `InvalidName`, and `Problem` 403 for types that belong to the runtime."""
    for what, name in (("actor type", actor_type), ("actor id", actor_id), *names):
        check_name(what, name)
    if actor_type.startswith(RESERVED_PREFIXES):
        raise Problem(403, "ERR_ACTOR_TYPE_RESERVED", f"actor type {actor_type!r} is reserved for the runtime")


def reminder_answer(actor_type: str, actor_id: str, found: ReminderInfo) -> dict[str, Any]:
    """A reminder as GET shows it, what is empty left out. `dueTime`: when it fires next."""
    ttl = found.schedule.expires_ms
    answer = {
        "actorID": actor_id,
        "actorType": actor_type,
        "data": found.data,
        "dueTime": format_instant(found.due_ms),
        "period": format_period(found.schedule.period),
        "ttl": format_instant(ttl) if ttl is not None else None,
    }
    return {name: value for name, value in answer.items() if value not in (None, "")}


def patch_operation(operation: ActorStateOperation) -> tuple[str] | tuple[str, Any]:
    """One step of a state transaction as `ActorClient.patch` takes it. Raises `Problem`."""
    request = operation.request
    if operation.operation not in ("upsert", "delete"):
        raise _save_failed(f"operation {operation.operation!r} is unknown: use upsert or delete")
    if not request.key:
        raise _save_failed("the key is missing")
    if request.etag:
        raise _save_failed("etag mismatch: fields of an actor carry no ETag, turns are what guards them")
    if "ttlinseconds" in map(str.lower, request.metadata):
        raise _save_failed("ttlInSeconds is not supported (feature ActorStateTTL is off): use a reminder")
    return (request.key, request.value) if operation.operation == "upsert" else (request.key,)


def schedule_options(wanted: ReminderRequest | TimerRequest) -> dict[str, Any]:
    """What `set_reminder` and `set_timer` have in common."""
    times = {"due": wanted.due_time or None, "period": wanted.period or None, "ttl": wanted.ttl or None}
    return {**times, "data": wanted.data}


def _save_failed(reason: str) -> Problem:
    return Problem(500, STATE_SAVE.code, STATE_SAVE.prefix + reason)


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers, media_type="application/json")


def router(runtime: Runtime, most_bytes: int) -> APIRouter:
    """`most_bytes`: how long an answer may be that is put together of several values."""
    routes = APIRouter(tags=["actors"])
    for verb in ("POST", "PUT", "GET", "DELETE"):
        _method_route(routes, runtime, verb)
    _state_routes(routes, runtime)
    _reminder_routes(routes, runtime)
    _timer_routes(routes, runtime)
    _own_routes(routes, runtime, most_bytes)
    return routes


def _method_route(routes: APIRouter, runtime: Runtime, verb: str) -> None:
    @routes.api_route(
        "/v1.0/actors/{actor_type}/{actor_id}/method/{method}",
        methods=[verb],
        operation_id=f"call_actor_{verb.lower()}",
        summary="Call an actor",
        description="A turn of the actor. The body is the argument: one parameter takes the JSON value itself, "
        "several an object by name or an array by position, none an empty body. The answer is the result as JSON, "
        "once the turn is durable.",
        responses=errors(400, 413, 429, 500, 503, 504),
        openapi_extra=takes(text="The method's argument") | reads(REENTRANCY_ID),
    )
    async def call_actor(
        actor_type: ActorType,
        actor_id: ActorId,
        method: Name,
        request: Request,
        idempotency_key: IdempotencyKey = None,
        mecha_timeout: Timeout = None,
    ) -> Response:
        options = call_options(request.scope["headers"])
        try:
            name = _method_name(method)
            check_names(actor_type, actor_id)
            result = await runtime.actors.call(actor_type, actor_id, name, await request.body(), **options._asdict())
        except Exception as error:
            raise invoke_failed(error, actor_type, actor_id, method) from error
        return Response(result, media_type="application/json")


def _method_name(method: str) -> str:
    try:
        return normal_method(method)
    except ValueError as error:
        raise Problem(400, "ERR_BAD_REQUEST", str(error)) from None


def _state_routes(routes: APIRouter, runtime: Runtime) -> None:
    base = "/v1.0/actors/{actor_type}/{actor_id}/state"

    @routes.get(
        base + "/{key}",
        summary="Read one durable field",
        responses={**errors(400, 403, 500), 204: {"description": "No such field, or it is not set"}},
    )
    async def get_actor_state(actor_type: ActorType, actor_id: ActorId, key: Name) -> Response:
        check_names(actor_type, actor_id)
        with failing_as(STATE_GET):
            value = await runtime.actors.field(actor_type, actor_id, key)
        return Response(status_code=204) if not value else Response(value, media_type="application/json")

    for verb in ("POST", "PUT"):

        @routes.api_route(
            base,
            methods=[verb],
            operation_id=f"save_actor_state_{verb.lower()}",
            summary="Change durable fields of an active actor, all or none",
            status_code=204,
            response_class=Response,
            responses=errors(400, 403, 500),
            openapi_extra=takes(bodies.ACTOR_OPERATIONS),
        )
        async def save_actor_state(actor_type: ActorType, actor_id: ActorId, request: Request) -> Response:
            check_names(actor_type, actor_id)
            operations = [
                patch_operation(step) for step in bodies.read_values(await request.body(), bodies.ACTOR_OPERATIONS)
            ]
            with failing_as(STATE_SAVE):
                await runtime.actors.patch(actor_type, actor_id, operations)
            return Response(status_code=204)


def _check_hosted(runtime: Runtime, actor_type: str) -> None:
    if not runtime.hosts(actor_type):
        message = "operations on actor reminders are only possible on hosted actor types"
        raise Problem(403, "ERR_ACTOR_REMINDER_NON_HOSTED", message)


def _reminder_routes(routes: APIRouter, runtime: Runtime) -> None:
    path = "/v1.0/actors/{actor_type}/{actor_id}/reminders/{name}"

    for verb in ("POST", "PUT"):

        @routes.api_route(
            path,
            methods=[verb],
            operation_id=f"set_reminder_{verb.lower()}",
            summary="Set a durable reminder",
            status_code=204,
            response_class=Response,
            responses=errors(400, 403, 409, 500),
            openapi_extra=takes(bodies.REMINDER),
        )
        async def set_reminder(actor_type: ActorType, actor_id: ActorId, name: Name, request: Request) -> Response:
            check_names(actor_type, actor_id, ("reminder name", name))
            _check_hosted(runtime, actor_type)
            wanted: ReminderRequest = bodies.read_values(await request.body(), bodies.REMINDER)
            with failing_as(REMINDER_CREATE):
                options = schedule_options(wanted)
                await runtime.actors.set_reminder(actor_type, actor_id, name, options, overwrite=wanted.overwrite)
            return Response(status_code=204)

    @routes.get(path, summary="Read a reminder", responses=errors(400, 403, 404, 500))
    async def get_reminder(actor_type: ActorType, actor_id: ActorId, name: Name) -> Response:
        check_names(actor_type, actor_id, ("reminder name", name))
        _check_hosted(runtime, actor_type)
        with failing_as(REMINDER_GET):
            found = await runtime.actors.reminder(actor_type, actor_id, name)
        if found is None:
            message = f"actor reminder {name!r} of {actor_type}/{actor_id} was not found"
            raise Problem(404, "ERR_ACTOR_REMINDER_NOT_FOUND", message)
        return json_response(reminder_answer(actor_type, actor_id, found))

    @routes.delete(
        path, summary="Clear a reminder", status_code=204, response_class=Response, responses=errors(400, 403, 500)
    )
    async def delete_reminder(actor_type: ActorType, actor_id: ActorId, name: Name) -> Response:
        check_names(actor_type, actor_id, ("reminder name", name))
        _check_hosted(runtime, actor_type)
        with failing_as(REMINDER_DELETE):
            await runtime.actors.clear_reminder(actor_type, actor_id, name)
        return Response(status_code=204)


def _timer_routes(routes: APIRouter, runtime: Runtime) -> None:
    path = "/v1.0/actors/{actor_type}/{actor_id}/timers/{name}"

    for verb in ("POST", "PUT"):

        @routes.api_route(
            path,
            methods=[verb],
            operation_id=f"set_timer_{verb.lower()}",
            summary="Set a volatile timer",
            status_code=204,
            response_class=Response,
            responses=errors(400, 403, 500),
            openapi_extra=takes(bodies.TIMER),
        )
        async def set_timer(actor_type: ActorType, actor_id: ActorId, name: Name, request: Request) -> Response:
            check_names(actor_type, actor_id, ("timer name", name))
            wanted: TimerRequest = bodies.read_values(await request.body(), bodies.TIMER)
            with failing_as(TIMER_CREATE):
                options = {**schedule_options(wanted), "callback": wanted.callback or None}
                await runtime.actors.set_timer(actor_type, actor_id, name, options)
            return Response(status_code=204)

    @routes.delete(
        path, summary="Clear a timer", status_code=204, response_class=Response, responses=errors(400, 403, 500)
    )
    async def delete_timer(actor_type: ActorType, actor_id: ActorId, name: Name) -> Response:
        check_names(actor_type, actor_id, ("timer name", name))
        if runtime.hosts(actor_type):
            with failing_as(TIMER_DELETE):
                await runtime.actors.clear_timer(actor_type, actor_id, name)
        return Response(status_code=204)


# -- additions -------------------------------------------------------------------------------------------------------


def _entry(entry: IndexEntry) -> dict[str, Any]:
    actor_type, _, actor_id = entry.stream.partition("/")
    return {
        "type": actor_type,
        "id": actor_id,
        "name": entry.name,
        "status": entry.status,
        "createdAt": format_instant(entry.created_ms),
        "updatedAt": format_instant(entry.updated_ms),
    }


def event_answer(event: Event) -> dict[str, Any]:
    return {
        "version": event.version,
        "name": event.name,
        "data": rawjson.fragment(event.data),
        "time": format_instant(event.time_ms),
        "turnId": event.turn_id,
        "caller": event.caller,
        "traceId": event.trace_id,
    }


def page_of(items: list[dict[str, Any]], next_after: Any, *, more: bool) -> Response:
    """A page: its items and, when there may be more, what to give as `after` for the next."""
    return json_response({"items": items, "next": next_after} if more else {"items": items})


def check_known(runtime: Runtime, actor_type: str) -> None:
    if not runtime.hosts(actor_type):
        known = ", ".join(sorted(runtime.application_types)) or "none"
        raise Problem(
            404, "ERR_ACTOR_TYPE_UNKNOWN", f"no actor type named {actor_type!r} is served here; there is {known}"
        )


def _not_found(actor_type: str, actor_id: str) -> Problem:
    return Problem(404, "ERR_ACTOR_NOT_FOUND", f"actor {actor_type}/{actor_id} has no recorded state")


def _own_routes(routes: APIRouter, runtime: Runtime, most_bytes: int) -> None:
    base = "/v1.0/mecha/actors"
    one = base + "/{actor_type}/{actor_id}"
    own_operation = Operation("ERR_ACTOR_RUNTIME")

    async def is_recorded(actor_type: str, actor_id: str) -> bool:
        return bool(await runtime.actors.history(actor_type, actor_id, limit=1))

    @routes.get(base, summary="Actor types served here", responses=errors(401))
    async def list_types() -> Response:
        active = runtime.actors.active_counts()
        types = [
            {"type": name, "active": active.get(name, 0), "methods": sorted(definition.methods)}
            for name, definition in sorted(runtime.application_types.items())
        ]
        return json_response({"types": types})

    @routes.get(base + "/{actor_type}", summary="List actors of a type", responses=errors(400, 404))
    async def list_actors(
        actor_type: ActorType,
        prefix: Annotated[str, Query(description="Start of the id")] = "",
        name: Annotated[str, Query(description="Exact index name")] = "",
        status: Annotated[list[str], Query(description="Any of these statuses")] = [],  # noqa: B006  # FastAPI copies it
        created_from: Annotated[str, Query(alias="createdFrom", description="RFC 3339 instant, inclusive")] = "",
        created_to: Annotated[str, Query(alias="createdTo", description="RFC 3339 instant, exclusive")] = "",
        after: After = "",
        limit: Limit = 100,
    ) -> Response:
        check_known(runtime, actor_type)
        query = IndexQuery(
            actor_type,
            prefix,
            name,
            tuple(status),
            millis(created_from),
            millis(created_to),
            stream_of(actor_type, after) if after else "",
            limit,
        )
        with failing_as(own_operation):
            found = await runtime.actors.listing(query)
        items = [_entry(entry) for entry in found]
        return page_of(items, items[-1]["id"] if items else "", more=len(items) == limit)

    @routes.get(one, summary="State of an actor, now or as of a version", responses=errors(400, 404))
    async def get_actor(actor_type: ActorType, actor_id: ActorId, version: Version = None) -> Response:
        check_names(actor_type, actor_id)
        check_known(runtime, actor_type)
        with failing_as(own_operation):
            found = await runtime.actors.state(actor_type, actor_id, at_version=version)
            if found is None or (version == 0 and not await is_recorded(actor_type, actor_id)):
                raise _not_found(actor_type, actor_id)
        return json_response({"type": actor_type, "id": actor_id, "version": found[0], "state": found[1]})

    @routes.get(one + "/history", summary="Recorded events of an actor", responses=errors(400, 404))
    async def get_history(
        actor_type: ActorType,
        actor_id: ActorId,
        after: AfterVersion = 0,
        limit: Limit = 100,
    ) -> Response:
        check_names(actor_type, actor_id)
        check_known(runtime, actor_type)
        with failing_as(own_operation):
            events, more = await read_events(
                runtime.actors, actor_type, actor_id, after=after, limit=limit, most_bytes=most_bytes
            )
            if not events and not (after and await is_recorded(actor_type, actor_id)):
                raise _not_found(actor_type, actor_id)
        return page_of([event_answer(event) for event in events], events[-1].version if events else 0, more=more)

    @routes.get(one + "/reminders", summary="Pending reminders of an actor", responses=errors(400, 404))
    async def list_reminders(actor_type: ActorType, actor_id: ActorId) -> Response:
        check_names(actor_type, actor_id)
        check_known(runtime, actor_type)
        with failing_as(own_operation):
            found = await runtime.actors.reminders(actor_type, actor_id)
            if not found and not await is_recorded(actor_type, actor_id):
                raise _not_found(actor_type, actor_id)
        lines = [{"name": r.name, **reminder_answer(actor_type, actor_id, r)} for r in found]
        return json_response({"items": lines})

    @routes.delete(
        one,
        summary="Delete an actor with everything it owns",
        status_code=204,
        response_class=Response,
        responses=errors(400, 404),
    )
    async def delete_actor(actor_type: ActorType, actor_id: ActorId) -> Response:
        check_names(actor_type, actor_id)
        check_known(runtime, actor_type)
        with failing_as(own_operation):
            await runtime.actors.delete(actor_type, actor_id)
        return Response(status_code=204)

    @routes.post(
        one + "/send/{method}",
        summary="Send to an actor: durable, one-way, exactly once",
        description="Answers 202 once the message is durable; the turn runs later.",
        status_code=202,
        responses=errors(400, 404, 413, 503),
        openapi_extra=takes(text="The method's argument"),
    )
    async def send_to_actor(
        actor_type: ActorType,
        actor_id: ActorId,
        method: Name,
        request: Request,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        key = call_options(request.scope["headers"]).idempotency_key
        check_names(actor_type, actor_id)
        check_known(runtime, actor_type)
        try:
            body = bodies.json_text(await request.body())
            await runtime.actors.send_raw(actor_type, actor_id, _method_name(method), body, idempotency_key=key)
        except Exception as error:
            raise invoke_failed(error, actor_type, actor_id, method) from error
        return json_response({}, 202)
