"""The workflow API: Dapr's paths under three version prefixes, and ours under ``/v1.0/mecha/workflows``."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import orjson
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response  # noqa: TC002  # FastAPI reads the annotations of endpoints

from actors import InvalidSchedule
from actors.names import check_name
from actors.timetext import format_instant
from runtime_api.actors import json_response, page_of
from runtime_api.answers import json_answer, response_of
from runtime_api.edge import while_connected
from runtime_api.openapi import After, AfterVersion, IdempotencyKey, InstanceId, Limit, Name, errors, takes
from runtime_api.pages import read_events
from runtime_api.problems import Operation, Problem, failing_as, malformed
from runtime_api.wire import DURATIONS, PLAIN, BadParameter, call_options, duration_s, instant, query_of
from statestores.codec import CodecError, check_json_integers, encode
from workflow import STATUSES, InstanceNotFound, InvalidWorkflowInput
from workflow.client import history_entry
from workflow.history import ACTOR_TYPE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime_api.answers import Answer, Result
    from runtime_api.runtime import Runtime
    from runtime_api.wire import Header
    from statestores import IndexEntry
    from workflow.client import WorkflowState

VERSIONS = ("v1.0", "v1.0-beta1", "v1.0-alpha1")
_OWN = "/v1.0/mecha/workflows"
_DAPR = "/v1.0/workflows/dapr"
_LONGEST_ID = 64
_ID = re.compile(r"[A-Za-z0-9_-]+")
_APP_ID = re.compile(r"[A-Za-z0-9_.-]+")
_DEFAULT_WAIT_S = 30.0
_LONGEST_WAIT_S = 300.0
_PROPERTY = "dapr.workflow."
_INSTANCE_ID = "workflow instance ID"
"""What a name that no instance can have is called in its error, instead of the actor's id it would be."""

_ACCEPTED = json_answer({}, 202)

GET = Operation("ERR_GET_WORKFLOW", "error while getting workflow info: ")
LIST = Operation("ERR_LIST_WORKFLOWS", "error listing workflows: ")

Wait = Annotated[
    str, Query(alias="timeout", description="Longest wait: seconds or a duration such as `30s`; at most 300 s")
]


async def _chosen_id(
    request: Request,
    _: Annotated[str, Query(alias="instanceID", description="Default: a random UUID")] = "",
) -> str:
    """Of several the first counts, as in Go, and on the hot paths; FastAPI gives the last."""
    return query_of(request.scope["query_string"]).get("instanceID", "")


ChosenId = Annotated[str, Depends(_chosen_id)]


# -- answers ---------------------------------------------------------------------------------------------------------


def status_answer(state: WorkflowState) -> dict[str, Any]:
    """An instance as Dapr shows it. Values stand in `properties` as JSON text, what is empty is left out."""
    properties = {
        "input": None if state.input is None else encode(state.input).decode(),
        "output": None if state.output is None or state.failure is not None else encode(state.output).decode(),
        "custom_status": None if state.custom_status is None else _plain_text(state.custom_status),
    }
    if state.failure is not None:
        properties["failure.error_type"] = state.failure.type
        properties["failure.error_message"] = state.failure.message
        properties["failure.stack_trace"] = state.failure.traceback or None
    return {
        "instanceID": state.instance_id,
        "workflowName": state.name,
        "createdAt": format_instant(state.created_ms),
        "lastUpdatedAt": format_instant(state.updated_ms),
        "runtimeStatus": "UNKNOWN" if state.status == "STALLED" else state.status,
        "properties": {_PROPERTY + name: text for name, text in properties.items() if text is not None},
    }


def _plain_text(value: Any) -> str:
    return value if isinstance(value, str) else encode(value).decode()


def result_answer(state: WorkflowState) -> dict[str, Any]:
    """An instance as we show it: values as JSON, our own names for statuses."""
    answer: dict[str, Any] = {
        "instanceID": state.instance_id,
        "workflowName": state.name,
        "runtimeStatus": state.status,
        "createdAt": format_instant(state.created_ms),
        "lastUpdatedAt": format_instant(state.updated_ms),
        "input": state.input,
        "output": state.output,
        "customStatus": state.custom_status,
    }
    if state.failure is not None:
        answer["failure"] = state.failure._asdict()
    return answer


def _links(base: str, instance_id: str) -> list[Header]:
    """Where to look for the status, and for the result."""
    escaped = quote(instance_id, safe="")
    return [
        (b"location", f"{base}/{escaped}".encode()),
        (b"link", f'<{_OWN}/{escaped}/result>; rel="result"'.encode()),
    ]


def _entry(entry: IndexEntry) -> dict[str, Any]:
    return {
        "instanceID": entry.stream.partition("/")[2],
        "workflowName": entry.name,
        "runtimeStatus": entry.status,
        "createdAt": format_instant(entry.created_ms),
        "lastUpdatedAt": format_instant(entry.updated_ms),
    }


# -- requests --------------------------------------------------------------------------------------------------------

# orjson says it by these texts alone.
_TOO_MUCH = ("depth limit exceeded", "number is infinity")


def input_of(body: bytes) -> Any:
    """A workflow's input, or an event's payload: the body parsed as JSON when it is JSON, else its text; empty:
    None. Raises `Problem` 400 for JSON that is too deep to be read, or has numbers that are too large for us, which is
    no text either."""
    if not body:
        return None
    try:
        value = orjson.loads(body)
        check_json_integers(body)
    except orjson.JSONDecodeError as error:
        if not error.msg.startswith(_TOO_MUCH):
            return body.decode(errors="replace")
        raise malformed(f"the body cannot be read as JSON: {error}") from error
    except CodecError as error:
        raise malformed(f"the body cannot be taken as it is: {error}") from error
    return value


def _how_taken(body: bytes) -> str:
    """Where `input_of` may have made of a body what its sender did not mean: a remark for the end of an error."""
    if not body:
        return " (the body is empty, so the input is null)"
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError as error:
        return f" (the body is no JSON, so it was taken as text: {error})"
    return ""


def check_instance_id(instance_id: str) -> None:
    """Dapr's rule for the ids of new instances. Raises `Problem` 400."""
    if len(instance_id) > _LONGEST_ID:
        message = f"workflow instance ID exceeds the max length of {_LONGEST_ID} characters"
        raise Problem(400, "ERR_INSTANCE_ID_TOO_LONG", message)
    if not _ID.fullmatch(instance_id):
        allowed = "only alphanumeric, underscore and dash characters are allowed"
        message = f"workflow instance ID '{instance_id}' is invalid: {allowed}"
        raise Problem(400, "ERR_INSTANCE_ID_INVALID", message)


def start_time(text: str) -> dict[str, Any]:
    """When an instance begins, as `WorkflowClient.start` takes it: an RFC 3339 instant, or a delay. Raises
    `BadParameter`."""
    if not text:
        return {}
    with suppress(ValueError):
        return {"delay": duration_s(text)}
    try:
        return {"start_at": instant(text)}
    except BadParameter as error:
        raise BadParameter(f"{error}, nor a delay such as {DURATIONS}") from None


def wait_s(text: str) -> float:
    """How long a long poll waits. Raises `BadParameter`."""
    try:
        return min(duration_s(text), _LONGEST_WAIT_S) if text else _DEFAULT_WAIT_S
    except ValueError as error:
        raise BadParameter(str(error)) from None


# -- the work --------------------------------------------------------------------------------------------------------


class WorkflowApi:
    """What the routes of all prefixes do, on whichever path they are served. Raises `Problem`, `BadParameter`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._waits: set[asyncio.Timeout] = set()
        self._ending_waits: asyncio.Task[None] | None = None

    def check_app(self, app_id: str, instance_id: str, operation: Operation) -> None:
        """`?appID=` may name this app only. Raises `Problem`."""
        if app_id in ("", self._runtime.app_id):
            return
        if not _APP_ID.fullmatch(app_id):
            raise Problem(400, "ERR_WORKFLOW_APP_ID_INVALID", f"app ID '{app_id}' is invalid")
        where = f"dapr.internal.{self._runtime.namespace}.{app_id}.workflow/{instance_id}"
        raise Problem(500, operation.code, f"{operation.prefix}did not find address for actor '{where}'")

    async def start(
        self, base: str, name: str, body: bytes, key: str | None, instance_id: str, start: str = "", app_id: str = ""
    ) -> Answer:
        """`base`: the path up to the component, as the client sent it: where it finds the instance, too."""
        started = await self._start(name, body, key, instance_id, start, app_id)
        return json_answer({"instanceID": started}, 202, _links(base, started))

    async def _start(
        self, name: str, body: bytes, key: str | None, instance_id: str, start: str = "", app_id: str = ""
    ) -> str:
        """The id of the started instance."""
        operation = Operation("ERR_START_WORKFLOW", f"error starting workflow '{name}': ")
        self.check_app(app_id, instance_id, operation)
        options = start_time(start)
        if instance_id:
            check_instance_id(instance_id)
        with failing_as(operation):
            try:
                return await self._runtime.workflows.start(
                    name, input_of(body), instance_id=instance_id or None, idempotency_key=key, **options
                )
            except InvalidSchedule as error:
                raise BadParameter(f"start {start!r}: {error}") from error
            except InvalidWorkflowInput as error:
                raise InvalidWorkflowInput(f"{error}{_how_taken(body)}") from error

    async def status(self, instance_id: str, app_id: str = "") -> bytes:
        self.check_app(app_id, instance_id, GET)
        return orjson.dumps(status_answer(await self.get(instance_id)))

    async def get(self, instance_id: str) -> WorkflowState:
        check_name(_INSTANCE_ID, instance_id)
        with failing_as(GET):
            return await self._runtime.workflows.get(instance_id)

    async def command(self, instance_id: str, verb: str, app_id: str, **options: Any) -> None:
        """pause, resume, terminate or purge, with what `WorkflowClient` has as options. An unknown instance is 404 for
        the last two, 500 for the others, as in Dapr."""
        doing = {"pause": "pausing", "resume": "resuming", "terminate": "terminating", "purge": "purging"}[verb]
        owns = (InstanceNotFound,) if verb in ("pause", "resume") else ()
        operation = Operation(f"ERR_{verb.upper()}_WORKFLOW", f"error {doing} workflow '{instance_id}': ", owns=owns)
        self.check_app(app_id, instance_id, operation)
        check_name(_INSTANCE_ID, instance_id)
        act = getattr(self._runtime.workflows, verb)
        with failing_as(operation):
            await act(instance_id, **options)

    async def raise_event(self, instance_id: str, event: str, body: bytes, key: str | None, app_id: str = "") -> Answer:
        prefix = f"error raising event on workflow '{instance_id}': "
        operation = Operation("ERR_RAISE_EVENT_WORKFLOW", prefix, owns=(InstanceNotFound,))
        self.check_app(app_id, instance_id, operation)
        check_name(_INSTANCE_ID, instance_id)
        with failing_as(operation):
            await self._runtime.workflows.raise_event(instance_id, event, input_of(body), idempotency_key=key)
        return _ACCEPTED

    async def run(self, name: str, body: bytes, key: str | None, instance_id: str, timeout: str = "") -> Answer:
        """`start` and `result`. The instance goes on when this is cancelled, even before it has begun."""
        longest_s = wait_s(timeout)
        started = await asyncio.shield(self._start(name, body, key, instance_id))
        state = await self._ended(started, longest_s)
        return await self._told(started, state, _links(_DAPR, started))

    async def result(self, instance_id: str, timeout: str = "") -> Result:
        """200 when the instance has ended (or is stalled) in time, 202 when it has not, or the server is about to
        stop."""
        state = await self._ended(instance_id, wait_s(timeout))
        if state is not None:
            return orjson.dumps(result_answer(state))
        return await self._told(instance_id, None)

    async def _told(self, instance_id: str, ended: WorkflowState | None, headers: Sequence[Header] = ()) -> Answer:
        if ended is not None:
            return json_answer(result_answer(ended), 200, headers)
        unfinished = await self.get(instance_id)
        return json_answer(result_answer(unfinished), 202, [(b"retry-after", b"1"), *headers])

    async def _ended(self, instance_id: str, timeout_s: float) -> WorkflowState | None:
        """The instance once it has ended or stalled; None: the time is over, or the server is about to stop."""
        check_name(_INSTANCE_ID, instance_id)
        patience = asyncio.timeout(timeout_s)
        self._waits.add(patience)
        try:
            with failing_as(GET):
                async with patience:
                    if self._ending_waits is None or self._ending_waits.done():
                        self._ending_waits = asyncio.create_task(self._end_waits())
                    return await self._runtime.workflows.wait_state(instance_id)
        except TimeoutError:
            return None
        finally:
            self._waits.discard(patience)

    async def _end_waits(self) -> None:
        """One task for all waits: when the server stops, the time of each is over."""
        await self._runtime.wait_stopping()
        for patience in self._waits:
            if not patience.expired():
                patience.reschedule(0.0)


# -- routes ----------------------------------------------------------------------------------------------------------


def router(runtime: Runtime, api: WorkflowApi, most_bytes: int) -> APIRouter:
    """`most_bytes`: how long an answer may be that is put together of several values."""
    routes = APIRouter(tags=["workflows"])
    for version in VERSIONS:
        _dapr_routes(routes, api, version)
    _own_routes(routes, runtime, api, most_bytes)
    return routes


def _dapr_routes(routes: APIRouter, api: WorkflowApi, version: str) -> None:
    """`component` is part of the path and means nothing."""
    base = f"/{version}/workflows/{{component}}"
    suffix = version.replace(".", "_").replace("-", "_")

    @routes.post(
        base + "/{name}/start",
        operation_id=f"start_workflow_{suffix}",
        summary="Start a workflow",
        status_code=202,
        responses=errors(400, 404, 500),
        openapi_extra=takes(text="The input: JSON, or any text"),
    )
    async def start_workflow(
        component: Name,
        name: Name,
        request: Request,
        instance_id: ChosenId = "",
        start: Annotated[str, Query(description="When it begins: an RFC 3339 instant, or a delay such as `10m`")] = "",
        app_id: Annotated[str, Query(alias="appID")] = "",
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        key = call_options(request.scope["headers"]).idempotency_key
        where = f"/{version}/workflows/{quote(component, safe=PLAIN)}"
        return response_of(await api.start(where, name, await request.body(), key, instance_id, start, app_id))

    @routes.get(
        base + "/{instance_id}",
        operation_id=f"get_workflow_{suffix}",
        summary="Status of an instance",
        responses=errors(400, 404, 500),
    )
    async def get_workflow(
        component: Name, instance_id: InstanceId, app_id: Annotated[str, Query(alias="appID")] = ""
    ) -> Response:
        return response_of(await api.status(instance_id, app_id))

    @routes.post(
        base + "/{instance_id}/raiseEvent/{event}",
        operation_id=f"raise_workflow_event_{suffix}",
        summary="Send an external event",
        status_code=202,
        responses=errors(400, 500),
        openapi_extra=takes(text="The payload: JSON, or any text"),
    )
    async def raise_event(
        component: Name,
        instance_id: InstanceId,
        event: Name,
        request: Request,
        app_id: Annotated[str, Query(alias="appID")] = "",
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        key = call_options(request.scope["headers"]).idempotency_key
        return response_of(await api.raise_event(instance_id, event, await request.body(), key, app_id))

    for verb in ("pause", "resume", "terminate"):
        _command_route(routes, api, f"{base}/{{instance_id}}/{verb}", verb, suffix)

    @routes.post(
        base + "/{instance_id}/purge",
        operation_id=f"purge_workflow_{suffix}",
        summary="Forget an ended instance",
        status_code=202,
        responses=errors(400, 404, 500),
    )
    async def purge(
        component: Name,
        instance_id: InstanceId,
        request: Request,
        app_id: Annotated[str, Query(alias="appID")] = "",
        force: Annotated[bool, Query(description="Also an instance that has not ended")] = False,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        key = call_options(request.scope["headers"]).idempotency_key
        await api.command(instance_id, "purge", app_id, force=force, idempotency_key=key)
        return response_of(_ACCEPTED)


def _command_route(routes: APIRouter, api: WorkflowApi, path: str, verb: str, suffix: str) -> None:
    @routes.post(
        path,
        operation_id=f"{verb}_workflow_{suffix}",
        summary=f"{verb.capitalize()} an instance",
        status_code=202,
        responses=errors(400, 404, 500),
    )
    async def command(
        component: Name, instance_id: InstanceId, app_id: Annotated[str, Query(alias="appID")] = ""
    ) -> Response:
        await api.command(instance_id, verb, app_id)
        return response_of(_ACCEPTED)


def _statuses(wanted: list[str]) -> tuple[str, ...]:
    """Raises `BadParameter`."""
    for status in wanted:
        if status not in STATUSES:
            raise BadParameter(f"status {status!r} is none of {', '.join(sorted(STATUSES))}")
    return tuple(wanted)


def _own_routes(routes: APIRouter, runtime: Runtime, api: WorkflowApi, most_bytes: int) -> None:
    @routes.get(_OWN, summary="List instances", responses=errors(400, 500))
    async def list_workflows(
        name: Annotated[str, Query(description="Exact name of the workflow")] = "",
        status: Annotated[list[str], Query(description="Any of these statuses")] = [],  # noqa: B006  # FastAPI copies it
        prefix: Annotated[str, Query(description="Start of the instance id")] = "",
        created_from: Annotated[str, Query(alias="createdFrom", description="RFC 3339 instant, inclusive")] = "",
        created_to: Annotated[str, Query(alias="createdTo", description="RFC 3339 instant, exclusive")] = "",
        after: After = "",
        limit: Limit = 100,
    ) -> Response:
        with failing_as(LIST):
            found = await runtime.workflows.listing(
                name=name,
                statuses=_statuses(status),
                prefix=prefix,
                created_from=instant(created_from),
                created_to=instant(created_to),
                after=after,
                limit=limit,
            )
        items = [_entry(entry) for entry in found]
        return page_of(items, items[-1]["instanceID"] if items else "", more=len(items) == limit)

    @routes.get(_OWN + "/{instance_id}", summary="An instance, its values as JSON", responses=errors(400, 404, 500))
    async def get_instance(instance_id: InstanceId) -> Response:
        return json_response(result_answer(await api.get(instance_id)))

    @routes.get(
        _OWN + "/{instance_id}/history", summary="Recorded turns of an instance", responses=errors(400, 404, 500)
    )
    async def get_history(
        instance_id: InstanceId,
        after: AfterVersion = 0,
        limit: Limit = 100,
    ) -> Response:
        check_name(_INSTANCE_ID, instance_id)
        with failing_as(GET):
            events, more = await read_events(
                runtime.actors, ACTOR_TYPE, instance_id, after=after, limit=limit, most_bytes=most_bytes
            )
        if not events and not after:
            await api.get(instance_id)  # 404 for an instance that does not exist
        items = [
            {"version": e.version, "time": format_instant(e.time_ms), "inputs": e.inputs, "commands": e.commands}
            for e in map(history_entry, events)
        ]
        return page_of(items, items[-1]["version"] if items else 0, more=more)

    @routes.get(
        _OWN + "/{instance_id}/result",
        summary="Wait for the end of an instance (long poll)",
        description="200 once the instance has ended or is stalled, 202 when the wait was over before.",
        responses={**errors(400, 404, 500), 202: {"description": "Not ended yet: ask again"}},
    )
    async def get_result(instance_id: InstanceId, request: Request, timeout: Wait = "") -> Response:
        return response_of(await while_connected(api.result(instance_id, timeout), request.receive))

    @routes.post(
        _OWN + "/{name}/run",
        summary="Start a workflow and wait for its end",
        description="`start` and `result` in one request. The instance goes on when the client leaves.",
        responses={**errors(400, 404, 500), 202: {"description": "Started, not ended yet"}},
        openapi_extra=takes(text="The input: JSON, or any text"),
    )
    async def run_workflow(
        name: Name,
        request: Request,
        instance_id: ChosenId = "",
        timeout: Wait = "",
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        key = call_options(request.scope["headers"]).idempotency_key
        running = api.run(name, await request.body(), key, instance_id, timeout)
        return response_of(await while_connected(running, request.receive))
