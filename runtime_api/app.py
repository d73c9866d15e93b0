"""The whole HTTP application: hot path, edge, FastAPI, put together.

HotPath -> Edge -> FastAPI(routers)      a request stops at the first that can answer it
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from runtime_api import actors, clusterapi, metadata, openapi, state, workflows
from runtime_api.edge import DEFAULT_LIMITS, Disconnected, Edge, Limits, Token
from runtime_api.hotpath import HotPath
from runtime_api.hotroutes import HotRoutes
from runtime_api.problems import TABLE, Problem, internal, problem_of, unknown_route
from runtime_api.wire import BadEscape

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI, Request

    from runtime_api.clusterapi import ClusterControl
    from runtime_api.runtime import Runtime

_log = logging.getLogger("mecha.http")


def _ignore(force: bool) -> None:
    """Shutdown of an application that is embedded in another server: that server's business."""


def create_app(
    runtime: Runtime,
    *,
    limits: Limits = DEFAULT_LIMITS,
    api_token: str | None = None,
    shutdown: Callable[[bool], None] = _ignore,
    cluster: ClusterControl | None = None,
) -> HotPath:
    """An ASGI application that serves `runtime`, which somebody else starts and stops."""
    token = Token(api_token)
    state_api = state.StateApi(runtime.components, runtime.app_id, runtime.clock.now_ms, limits.answer)
    workflow_api = workflows.WorkflowApi(runtime)
    api = create_api(runtime, state_api, workflow_api, limits, shutdown)
    if cluster is not None:
        api.include_router(clusterapi.router(cluster))
    general = Edge(api, limits, token)
    routes = HotRoutes(runtime.application_types, runtime.actors.invoke_nowait, state_api.read_nowait, workflow_api)
    return HotPath(general, routes, token, limits.body)


def create_api(
    runtime: Runtime,
    state_api: state.StateApi,
    workflow_api: workflows.WorkflowApi,
    limits: Limits,
    shutdown: Callable[[bool], None],
) -> FastAPI:
    """Routing and the OpenAPI page; expects its requests to come through an `Edge`."""
    # FastAPI with the page's scripts in the package: FastAPI's own come from a CDN, and the page is empty without one.
    api = FastAPIOffline(
        title="mecha-runtime",
        version=metadata.runtime_version(),
        description=openapi.DESCRIPTION,
        redoc_url=None,
        static_url="/docs/static",
        redirect_slashes=False,
    )
    api.include_router(actors.router(runtime, limits.answer))
    api.include_router(workflows.router(runtime, workflow_api, limits.answer))
    api.include_router(state.router(state_api))
    api.include_router(metadata.router(runtime, shutdown))
    for row in TABLE:
        api.add_exception_handler(row.error, _tell)
    for kind in (Problem, BadEscape, Exception):
        api.add_exception_handler(kind, _tell)
    api.add_exception_handler(HTTPException, _no_such_route)
    api.add_exception_handler(Disconnected, _to_nobody)
    api.add_exception_handler(RequestValidationError, _bad_parameter)
    api.openapi = partial(openapi.describe, api)  # type: ignore[method-assign]  # FastAPI's documented way
    return api


async def _tell(request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    if problem is None:
        _log.error("unexpected error in %s %s", request.method, request.url.path, exc_info=error)
        problem = internal(error)
    return problem.response


async def _no_such_route(request: Request, error: Exception) -> Response:
    """Routing's 404 and 405 are one answer in Dapr; anything else Starlette raises is the client's bad request."""
    assert isinstance(error, HTTPException)
    if error.status_code in (404, 405):
        return unknown_route().response
    return Problem(error.status_code, "ERR_BAD_REQUEST", str(error.detail)).response


async def _to_nobody(request: Request, error: Exception) -> Response:
    """The client has gone; the server drops what it is given."""
    return Response(status_code=204)


async def _bad_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return Problem(400, "ERR_BAD_REQUEST", f"parameter {first['loc'][-1]}: {first['msg']}").response
