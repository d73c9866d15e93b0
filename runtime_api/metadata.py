"""Metadata, health and shutdown, as Dapr has them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from runtime_api.actors import json_response
from runtime_api.openapi import Name, errors, takes
from runtime_api.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime_api.runtime import Runtime

_MOST_EXTENDED = 256
_LONGEST_EXTENDED = 4096


def runtime_version() -> str:
    try:
        return package_version("mecha-runtime")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0.0.0+source"


def metadata_answer(runtime: Runtime, extended: dict[str, str]) -> dict[str, Any]:
    """What ``GET /v1.0/metadata`` says; what is empty is left out, as Dapr does."""
    counts = runtime.actors.active_counts() if runtime.is_ready else {}
    active = [{"type": name, "count": counts.get(name, 0)} for name in sorted(runtime.application_types)]
    components = [
        {"name": c.name, "type": c.type, "version": c.version, "capabilities": c.capabilities}
        for c in runtime.components.values()
    ]
    answer: dict[str, Any] = {
        "id": runtime.app_id,
        "runtimeVersion": runtime_version(),
        "actors": active,
        "components": components,
        "extended": {**extended, "daprRuntimeVersion": runtime_version()},
        "actorRuntime": {
            "runtimeStatus": "RUNNING" if active else "DISABLED",
            "activeActors": active,
            "hostReady": runtime.is_ready,
            "placement": "placement: connected",
        },
        "workflows": {"connectedWorkers": 1} if runtime.application.workflows else {},
    }
    return {name: value for name, value in answer.items() if value}


def router(runtime: Runtime, shutdown: Callable[[bool], None]) -> APIRouter:
    """`shutdown(force)` begins the end of the process and returns at once."""
    routes = APIRouter(tags=["runtime"])
    extended: dict[str, str] = {}

    @routes.get("/v1.0/metadata", summary="What runs here")
    async def get_metadata() -> Response:
        return json_response(metadata_answer(runtime, extended))

    @routes.put(
        "/v1.0/metadata/{name}",
        summary="Add a line to `extended`",
        status_code=204,
        response_class=Response,
        responses=errors(400),
        openapi_extra=takes(media="text/plain", text="The value"),
    )
    async def set_metadata(name: Name, request: Request) -> Response:
        value = (await request.body()).decode(errors="replace")
        if len(name) + len(value) > _LONGEST_EXTENDED:
            raise Problem(400, "ERR_BAD_REQUEST", f"name and value must have at most {_LONGEST_EXTENDED} characters")
        if name not in extended and len(extended) >= _MOST_EXTENDED:
            raise Problem(400, "ERR_BAD_REQUEST", f"there are {_MOST_EXTENDED} values already")
        extended[name] = value
        return Response(status_code=204)

    @routes.get(
        "/v1.0/healthz", summary="Is everything up?", status_code=204, response_class=Response, responses=errors(500)
    )
    async def healthz(appid: str | None = None) -> Response:
        if appid is not None and appid != runtime.app_id:
            raise Problem(500, "ERR_HEALTH_APPID_NOT_MATCH", "dapr app-id does not match")
        if not runtime.is_ready:
            raise Problem(500, "ERR_HEALTH_NOT_READY", "dapr is not ready: [actor runtime]")
        return Response(status_code=204)

    @routes.get(
        "/v1.0/healthz/outbound",
        summary="Can calls be served?",
        status_code=204,
        response_class=Response,
        responses=errors(500),
    )
    async def outbound() -> Response:
        if not runtime.is_ready:
            raise Problem(500, "ERR_OUTBOUND_HEALTH_NOT_READY", "dapr outbound is not ready: [actor runtime]")
        return Response(status_code=204)

    @routes.post("/v1.0/shutdown", summary="Stop: drain, commit, exit", status_code=204, response_class=Response)
    async def stop(request: Request) -> Response:
        shutdown(request.headers.get("dapr-force-shutdown", "").lower() == "true")
        return Response(status_code=204)

    return routes
