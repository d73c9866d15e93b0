"""Expired keys are removed for good, now and then. Only their space is at stake: no reader has seen them since the
millisecond at which they expired."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from statestores import Capability
from statestores.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from actors import Clock
    from runtime_api.components import StateComponent

_log = logging.getLogger("mecha.runtime")
_AT_ONCE = 10_000  # then writes that wait have their turn


async def purge_expired(components: Iterable[StateComponent], clock: Clock) -> None:
    """Each component in its own time, until cancelled."""
    async with asyncio.TaskGroup() as tasks:
        for component in components:
            if component.purge_every_s is not None and Capability.TTL in component.store.capabilities:
                tasks.create_task(_purge_every(component.purge_every_s, component, clock))


async def _purge_every(interval_s: float, component: StateComponent, clock: Clock) -> None:
    while True:
        await asyncio.sleep(interval_s)
        try:
            gone = _AT_ONCE
            while gone == _AT_ONCE:
                gone = await component.store.keys.purge_expired(clock.now_ms(), _AT_ONCE)
                await asyncio.sleep(0)  # a store in memory waits for nothing
        except StoreError as error:
            _log.warning("expired keys of %s cannot be purged, trying again: %s", component.name, error)
        except Exception:  # of a store that is not ours: it must not end the purges of the others
            _log.exception("expired keys of %s cannot be purged, by a bug of its store, trying again", component.name)
