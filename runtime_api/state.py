"""The state API: ``/v1.0/state`` and the query on ``/v1.0-alpha1``.

The rules (what a request becomes, what an outcome is told as) are plain functions; the router below only reads and
sends.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from runtime_api import bodies, rawjson, wire
from runtime_api.answers import JSON, Answer, response_of
from runtime_api.openapi import CONCURRENCY, CONSISTENCY, IF_MATCH, TTL, Name, StoreName, errors, reads, takes
from runtime_api.pages import LINE_BYTES, VALUES_AT_ONCE
from runtime_api.problems import Operation, Problem, bad_field, error_info, failing_as, malformed, resource_info
from statestores import Capability, DeleteKey, ETagInvalid, ETagMismatch, InvalidRequest, KeyQuery, SetKey
from statestores.keyrules import SEPARATOR

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence

    from runtime_api.bodies import SortKey, StateItem, StateOperation
    from runtime_api.components import StateComponent
    from statestores import KeyItem, StoreError

T = TypeVar("T")

LONG_BODY_BYTES = 65_536
"""Longer bodies of several items are read beside the event loop: to check and cut 4 MB can take a second."""

_TTL = "ttlInSeconds"
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,20}")
_PAGE = 1000
_CONCURRENCY = frozenset({"", "first-write", "last-write"})
_CONSISTENCY = frozenset({"", "strong", "eventual"})


_MISSING = Answer(204, [], b"")


# -- outcomes --------------------------------------------------------------------------------------------------------


def _details(component: str, code: str) -> list[dict[str, Any]]:
    reason = "DAPR_STATE_" + code.removeprefix("ERR_STATE_").removeprefix("STORE_")
    return [error_info(reason), resource_info("state", component)]


def _operation(component: StateComponent, code: str, prefix: str, status: int | None = None) -> Operation:
    return Operation(code, prefix, status, partial(_details, component.name))


def store_not_found(name: str, app_id: str) -> Problem:
    details = [error_info("DAPR_STATE_NOT_FOUND", {"appID": app_id})]
    return Problem(400, "ERR_STATE_STORE_NOT_FOUND", f"state store {name} is not found", details=details)


def check_key(component: StateComponent, key: str) -> None:
    """Raises `Problem` 400 for a key that no state store takes."""
    if not key:
        reason = "key is empty"
    elif SEPARATOR in key:
        reason = f"input key/keyPrefix '{key}' can't contain '{SEPARATOR}'"
    else:
        return
    found = [error_info("DAPR_STATE_ILLEGAL_KEY"), resource_info("state", component.name), bad_field(key, reason)]
    raise malformed(reason, found)


def _write_problem(component: StateComponent, code: str, begin: str, failures: Sequence[StoreError]) -> Problem:
    """One answer for the writes that failed: a mismatch counts most, since the client can do something about it."""
    text = "; ".join(map(str, failures))
    for kind, status, hint in ((ETagMismatch, 409, "possible etag mismatch"), (ETagInvalid, 400, "invalid etag value")):
        if any(isinstance(failure, kind) for failure in failures):
            message = f"{begin}: {hint}. error from state store: {text}"
            return Problem(status, code, message, details=_details(component.name, code))
    return Problem(500, code, f"{begin}: {text}", details=_details(component.name, code))


def _expiry(item: KeyItem) -> str | None:
    if item.expires_ms is None:
        return None
    return datetime.fromtimestamp(item.expires_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# -- requests --------------------------------------------------------------------------------------------------------


def set_key(component: StateComponent, item: StateItem, raw: str | None, query: Mapping[str, str]) -> SetKey:
    """What an item of a save becomes. `raw`: the value's own text. `query`: the request metadata, which counts more
    than the item's. Raises `Problem` 400, `InvalidRequest`."""
    check_key(component, item.key)
    _check_options(item.options.concurrency, item.options.consistency)
    return SetKey(
        component.stored(item.key),
        _value(item, raw),
        item.etag or None,
        item.options.concurrency == "first-write",
        _ttl_s({**item.metadata, **query}, component.ttl_s),
    )


def _value(item: StateItem, raw: str | None) -> bytes:
    if item.content_type.partition(";")[0].strip() == "application/octet-stream" and isinstance(item.value, str):
        try:
            return base64.b64decode(item.value, validate=True)
        except ValueError as error:  # a value that is not ASCII is no binascii.Error
            raise malformed(f"value of key {item.key!r} is not base64, as its contentType says: {error}") from None
    return raw.encode() if raw is not None else b"null"


def _check_options(concurrency: str, consistency: str) -> None:
    """Raises `InvalidRequest` for what is none of Dapr's words."""
    if concurrency not in _CONCURRENCY:
        raise InvalidRequest(f"unrecognized concurrency type {concurrency!r}: use first-write or last-write")
    if consistency not in _CONSISTENCY:
        raise InvalidRequest(f"unrecognized consistency type {consistency!r}: use strong or eventual")


def _ttl_s(metadata: dict[str, str], default: int | None) -> int | None:
    """Names match without case, and the last one counts."""
    text = next((value for name, value in reversed(metadata.items()) if name.lower() == _TTL.lower()), "")
    if not text:
        return default
    if not _WHOLE_NUMBER.fullmatch(text) or (ttl_s := int(text)) < -1:
        raise InvalidRequest(f"metadata {_TTL} must be a whole number of seconds, -1 for no expiry; not {text!r}")
    return ttl_s if ttl_s > 0 else None


def _raw_values(body: bytes, *path: str) -> list[str | None]:
    """The text of each item's value in an array of items; `path` leads from an element to what holds the value."""
    return [_raw_value(element, path) for element in rawjson.items(body.decode())]


def _raw_value(element: str, path: Iterable[str]) -> str | None:
    for name in path:
        element = rawjson.member(element, name) or "{}"
    return rawjson.member(element, "value")


async def read_key(component: StateComponent, key: str, now_ms: int) -> Answer:
    """GET of one key. Raises `Problem` for every failure."""
    check_key(component, key)
    with failing_as(_operation(component, "ERR_STATE_GET", f"fail to get {key} from state store {component.name}: ")):
        item = (await component.store.keys.get([component.stored(key)], now_ms))[0]
    if item is None or not item.value:
        return _MISSING
    headers = [
        JSON,
        (b"content-length", b"%d" % len(item.value)),
        (b"etag", item.etag.encode()),
    ]
    if (expiry := _expiry(item)) is not None:
        headers.append((b"metadata.ttlexpiretime", expiry.encode()))
    return Answer(200, headers, item.value)


async def save(component: StateComponent, writes: Awaitable[list[SetKey]], now_ms: int) -> None:
    begin = f"failed saving state in state store {component.name}"
    with failing_as(_operation(component, "ERR_STATE_SAVE", begin + ": ")):
        outcomes = await component.store.keys.apply(await writes, now_ms)
    if failures := [outcome for outcome in outcomes if outcome is not None]:
        raise _write_problem(component, "ERR_STATE_SAVE", begin, failures)


def save_writes(component: StateComponent, query: Mapping[str, str], body: bytes) -> list[SetKey]:
    """Raises `Problem` 400, `InvalidRequest`."""
    items = bodies.read(body, bodies.STATE_ITEMS)
    return [set_key(component, item, raw, query) for item, raw in zip(items, _raw_values(body), strict=True)]


async def delete(component: StateComponent, key: str, etag: str | None, query: Mapping[str, str], now_ms: int) -> None:
    check_key(component, key)
    begin = f"failed deleting state with key {key}"
    with failing_as(_operation(component, "ERR_STATE_DELETE", begin + ": ")):
        _check_options(query.get("concurrency", ""), query.get("consistency", ""))
        outcome = (await component.store.keys.apply([DeleteKey(component.stored(key), etag)], now_ms))[0]
    if outcome is not None:
        raise _write_problem(component, "ERR_STATE_DELETE", begin, [outcome])


async def bulk_get(component: StateComponent, body: bytes, now_ms: int, most_bytes: int) -> list[dict[str, Any]]:
    """A line for each key, as often as it is asked for. `most_bytes`: of all lines, about."""
    request = bodies.read(body, bodies.BULK_GET)
    for key in request.keys:
        check_key(component, key)
    begin = f"failed to get keys from state store {component.name}: "
    with failing_as(_operation(component, "ERR_STATE_BULK_GET", begin)):
        found = await _read_keys(component, Counter(request.keys), now_ms, most_bytes)
    return [_bulk_line(key, found[key]) for key in request.keys]


async def _read_keys(
    component: StateComponent, wanted: Counter[str], now_ms: int, most_bytes: int
) -> dict[str, KeyItem | None]:
    """What the keys hold. `wanted`: how often the answer tells each of them. Raises `Problem` when it would be longer
    than `most_bytes`, `StoreError`."""
    found: dict[str, KeyItem | None] = {}
    size = 0
    keys = list(wanted)
    for start in range(0, len(keys), VALUES_AT_ONCE):
        part = keys[start : start + VALUES_AT_ONCE]
        items = await component.store.keys.get([component.stored(key) for key in part], now_ms)
        for key, item in zip(part, items, strict=True):
            size += wanted[key] * (LINE_BYTES + len(key) + (len(item.value) if item is not None else 0))
            found[key] = item
        if size > most_bytes:
            raise _answer_too_large(component, most_bytes)
    return found


def _answer_too_large(component: StateComponent, most_bytes: int) -> Problem:
    code = "ERR_STATE_ANSWER_TOO_LARGE"
    message = f"what these keys hold is longer than the limit of {most_bytes} bytes: ask for fewer keys at once"
    return Problem(400, code, message, details=_details(component.name, code))


def _bulk_line(key: str, item: KeyItem | None) -> dict[str, Any]:
    if item is None or not item.value:
        return {"key": key}
    line: dict[str, Any] = {"key": key, "data": rawjson.fragment(item.value), "etag": item.etag}
    if (expiry := _expiry(item)) is not None:
        line["metadata"] = {"ttlExpireTime": expiry}
    return line


async def transact(component: StateComponent, operations: Awaitable[list[SetKey | DeleteKey]], now_ms: int) -> None:
    begin = "error while executing state transaction: "
    with failing_as(_operation(component, "ERR_STATE_TRANSACTION", begin, 500)):
        if wanted := await operations:
            await component.store.keys.transact(wanted, now_ms)


def transaction_steps(component: StateComponent, query: Mapping[str, str], body: bytes) -> list[SetKey | DeleteKey]:
    """Raises `Problem` 400 and 500, `InvalidRequest`."""
    request = bodies.read(body, bodies.STATE_TRANSACTION)
    if Capability.TRANSACTIONAL not in component.store.capabilities:
        message = "state store doesn't support transaction"
        raise Problem(
            500,
            "ERR_STATE_STORE_NOT_SUPPORTED",
            message,
            details=_details(component.name, "TRANSACTIONS_NOT_SUPPORTED"),
        )
    raw = _transaction_values(body)
    return [
        _transaction_step(component, operation, text, request.metadata, query)
        for operation, text in zip(request.operations, raw, strict=True)
    ]


def _transaction_values(body: bytes) -> list[str | None]:
    operations = rawjson.member(body.decode(), "operations")
    return [] if operations is None else _raw_values(operations.encode(), "request")


def _transaction_step(
    component: StateComponent,
    operation: StateOperation,
    raw: str | None,
    metadata: Mapping[str, str],
    query: Mapping[str, str],
) -> SetKey | DeleteKey:
    match operation.operation:
        case "upsert":
            item = operation.request
            return set_key(component, item.model_copy(update={"metadata": {**metadata, **item.metadata}}), raw, query)
        case "delete":
            item = operation.request
            check_key(component, item.key)
            _check_options(item.options.concurrency, item.options.consistency)
            return DeleteKey(component.stored(item.key), item.etag or None)
        case other:
            message = f"operation type {other} not supported"
            details = [error_info("DAPR_STATE_NOT_SUPPORTED_OPERATION"), resource_info("state", component.name)]
            raise Problem(400, "ERR_NOT_SUPPORTED_STATE_OPERATION", message, details=details)


async def query(component: StateComponent, body: bytes, now_ms: int, most_bytes: int) -> dict[str, Any] | None:
    """One page of matches, of at most `most_bytes`; None: there are none."""
    request = bodies.read(body, bodies.STATE_QUERY)
    if Capability.QUERY_API not in component.store.capabilities:
        message = "state store does not support querying"
        raise Problem(
            500, "ERR_STATE_STORE_NOT_SUPPORTED", message, details=_details(component.name, "QUERYING_NOT_SUPPORTED")
        )
    begin = f"failed query in state store {component.name}: "
    with failing_as(_operation(component, "ERR_STATE_QUERY", begin)):
        wanted = KeyQuery(
            request.filter,
            tuple((key.key, _is_descending(key)) for key in request.sort),
            request.page.limit or _PAGE,
            request.page.token,
            component.key_prefix,
            most_bytes,
        )
        found, token = await component.store.keys.query(wanted, now_ms)
    if not found:
        return None
    results = [_query_line(component, item) for item in found]
    return {"results": results, "token": token} if token else {"results": results}


def _is_descending(key: SortKey) -> bool:
    order = key.order.upper() or "ASC"
    if order not in ("ASC", "DESC"):
        raise InvalidRequest(f"unknown order {key.order!r} of sort key {key.key!r}: use ASC or DESC")
    return order == "DESC"


def _query_line(component: StateComponent, item: KeyItem) -> dict[str, Any]:
    key = item.key.removeprefix(component.key_prefix)
    return {"key": key, "data": rawjson.fragment(item.value), "etag": item.etag}


# -- routes ----------------------------------------------------------------------------------------------------------

_NO_CONTENT: dict[str, Any] = {"status_code": 204, "response_class": Response}


class StateApi:
    """The components by name, the clock their expiry is judged by, and how many bytes an answer may have that is put
    together of several values."""

    def __init__(
        self, components: Mapping[str, StateComponent], app_id: str, now_ms: Callable[[], int], most_bytes: int
    ) -> None:
        self._components, self._app_id, self.now_ms, self.most_bytes = components, app_id, now_ms, most_bytes
        # Its own thread, since the application may keep those of `asyncio.to_thread` busy; one, so that long bodies
        # take turns and leave the interpreter to the loop.
        self._beside = ThreadPoolExecutor(1, "mecha-bodies")

    async def read(self, reading: Callable[[bytes], T], body: bytes) -> T:
        """What `reading` makes of a body, beside the loop when it is long."""
        if len(body) <= LONG_BODY_BYTES:
            return reading(body)
        return await asyncio.get_running_loop().run_in_executor(self._beside, reading, body)

    def component(self, name: str) -> StateComponent:
        if name not in self._components:
            raise store_not_found(name, self._app_id)
        return self._components[name]

    def read_nowait(self, name: str, key: str) -> Coroutine[Any, Any, Answer] | None:
        """The hot paths' read; None for an unknown store."""
        component = self._components.get(name)
        return None if component is None else read_key(component, key, self.now_ms())


def router(api: StateApi) -> APIRouter:
    routes = APIRouter(tags=["state"])

    @routes.get(
        "/v1.0/state/{store}/{key}",
        responses={
            **errors(400, 500, rich=True),
            200: {"description": "The value; `ETag` in the headers"},
            204: {"description": "No such key"},
        },
        summary="Read a key",
    )
    async def get_state(store: StoreName, key: Name) -> Response:
        return response_of(await read_key(api.component(store), key, api.now_ms()))

    @routes.delete(
        "/v1.0/state/{store}/{key}",
        **_NO_CONTENT,
        responses=errors(400, 409, 500, rich=True),
        openapi_extra=reads(IF_MATCH, CONCURRENCY, CONSISTENCY),
        summary="Delete a key",
    )
    async def delete_state(store: StoreName, key: Name, request: Request) -> Response:
        etag = (request.headers.get("if-match") or "").strip('"') or None
        query = wire.query_of(request.scope["query_string"])
        await delete(api.component(store), key, etag, query, api.now_ms())
        return Response(status_code=204)

    for verb in ("POST", "PUT"):
        _writing_routes(routes, api, verb)
    return routes


def _metadata_of(request: Request) -> dict[str, str]:
    return wire.metadata_of(wire.query_of(request.scope["query_string"]))


def _writing_routes(routes: APIRouter, api: StateApi, verb: str) -> None:
    """The routes that take either verb, registered once for each so that both stand on the OpenAPI page."""

    @routes.api_route(
        "/v1.0/state/{store}",
        methods=[verb],
        **_NO_CONTENT,
        responses=errors(400, 409, 500, rich=True),
        openapi_extra=takes(bodies.STATE_ITEMS) | reads(TTL),
        summary="Save keys, each by itself",
        operation_id=f"save_state_{verb.lower()}",
    )
    async def save_state(store: StoreName, request: Request) -> Response:
        component, query = api.component(store), _metadata_of(request)
        writes = api.read(partial(save_writes, component, query), await request.body())
        await save(component, writes, api.now_ms())
        return Response(status_code=204)

    @routes.api_route(
        "/v1.0/state/{store}/bulk",
        methods=[verb],
        responses=errors(400, 500, rich=True),
        openapi_extra=takes(bodies.BULK_GET),
        summary="Read many keys",
        operation_id=f"bulk_get_state_{verb.lower()}",
    )
    async def bulk(store: StoreName, request: Request) -> Response:
        lines = await bulk_get(api.component(store), await request.body(), api.now_ms(), api.most_bytes)
        return Response(orjson.dumps(lines), media_type="application/json")

    @routes.api_route(
        "/v1.0/state/{store}/transaction",
        methods=[verb],
        **_NO_CONTENT,
        responses=errors(400, 500, rich=True),
        openapi_extra=takes(bodies.STATE_TRANSACTION) | reads(TTL),
        summary="Write keys, all or none",
        operation_id=f"transact_state_{verb.lower()}",
    )
    async def transaction(store: StoreName, request: Request) -> Response:
        component, query = api.component(store), _metadata_of(request)
        steps = api.read(partial(transaction_steps, component, query), await request.body())
        await transact(component, steps, api.now_ms())
        return Response(status_code=204)

    @routes.api_route(
        "/v1.0-alpha1/state/{store}/query",
        methods=[verb],
        responses={**errors(400, 500, rich=True), 204: {"description": "Nothing matches"}},
        openapi_extra=takes(bodies.STATE_QUERY),
        summary="Find keys by what their values hold",
        operation_id=f"query_state_{verb.lower()}",
    )
    async def query_state(store: StoreName, request: Request) -> Response:
        found = await query(api.component(store), await request.body(), api.now_ms(), api.most_bytes)
        return (
            Response(status_code=204) if found is None else Response(orjson.dumps(found), media_type="application/json")
        )
