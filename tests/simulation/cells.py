"""What scenarios of a simulated cluster have in common: an actor that counts, and a wait that costs no time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from actors import actor, method

if TYPE_CHECKING:
    from collections.abc import Callable

_LONGEST_S = 300.0


@actor
class Cell:
    value: int = 0

    @method
    async def add(self, amount: int = 1) -> int:
        self.value += amount
        return self.value


async def wait_until(condition: Callable[[], object], step_s: float = 0.05) -> None:
    """Raises `TimeoutError` after five simulated minutes."""
    async with asyncio.timeout(_LONGEST_S):
        while not condition():  # noqa: ASYNC110  # time is free here
            await asyncio.sleep(step_s)
