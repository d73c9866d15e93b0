"""What the hosts of a cluster tell of it over HTTP; only where there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from fastapi import APIRouter
from fastapi.responses import Response

from actors.placement.hop import PeerGone
from actors.placement.supervisor import new_version
from runtime_api.actors import json_response
from runtime_api.openapi import errors
from runtime_api.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_OWN = "/v1.0/mecha/cluster"


class ClusterControl(Protocol):
    """`actors.placement.ray.RayCluster`. Every method raises `PeerGone` while there is no controller."""

    async def status(self) -> dict[str, Any]: ...
    async def roll(self, version: str) -> None: ...


def router(cluster: ClusterControl) -> APIRouter:
    routes = APIRouter(tags=["cluster"])

    @routes.get(_OWN, summary="Hosts, their partitions and epochs, lag, activations", responses=errors(503))
    async def status() -> Response:
        return json_response(await _asked(cluster.status))

    @routes.post(
        _OWN + "/roll",
        summary="Replace every host, one at a time, by one that loads the application anew",
        status_code=202,
        response_class=Response,
        responses=errors(503),
    )
    async def roll() -> Response:
        await _asked(lambda: cluster.roll(new_version()))
        return Response(status_code=202)

    return routes


async def _asked(question: Callable[[], Awaitable[Any]]) -> Any:
    try:
        return await question()
    except PeerGone as error:
        raise Problem(503, "ERR_CLUSTER_CONTROLLER", f"calls go on, but {error}") from error
