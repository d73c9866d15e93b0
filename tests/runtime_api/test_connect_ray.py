"""`Runtime.connect` by Ray, when the cluster is not where it was, or not there at all."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest

from actors import OutcomeUnknown
from runtime_api import Runtime
from tests.placements import ON_RAY, cluster_on
from tests.runtime_api import sample_app
from tests.runtime_api.sample_app import Account, doubling

pytestmark = ON_RAY

APP = Path(sample_app.__file__)


async def test_workflows_and_messages_follow_the_cluster(ray_address: str) -> None:
    """The host that they went to is gone, and its URL with it: the cluster is asked for another one."""
    app_id = f"moves-{uuid4().hex}"
    with cluster_on(ray_address, APP, app_id, "--hosts", "1") as first:
        runtime = await Runtime.connect(f"ray:{ray_address}", app_id=app_id).__aenter__()
        try:
            assert await runtime.workflows.run(doubling, 21) == 84
            assert first.stop() == 0
            with cluster_on(ray_address, APP, app_id, "--hosts", "1"):
                assert await runtime.workflows.run(doubling, 21) == 84
                await runtime.send(runtime.actor(Account, "a").deposit, 4)
        finally:
            await runtime.__aexit__(None, None, None)


async def test_who_finds_no_cluster_leaves_ray(ray_address: str) -> None:
    """A connection that fails leaves nothing behind: the program may join this Ray, or another one, as before."""
    from actors.placement.ray import join_ray, stop_ray

    with pytest.raises(OutcomeUnknown):
        async with Runtime.connect(f"ray:{ray_address}", app_id="nobody"):
            pass
    assert join_ray(ray_address)
    stop_ray()
