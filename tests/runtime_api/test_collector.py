"""The collector's thresholds: raised while a runtime runs, and given back."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

from runtime_api import Runtime, interpreter
from runtime_api.collector import collect_rarely, restore

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _own_thresholds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(interpreter, "TUNING", interpreter.Tuning())  # other tests' runtimes may run meanwhile
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


async def test_raised_while_a_runtime_runs_and_given_back() -> None:
    """An application's process is left as it was found."""
    gc.set_threshold(700, 10, 10)
    async with Runtime([], store="memory://"):
        assert gc.get_threshold()[0] > 700
    assert gc.get_threshold() == (700, 10, 10)


async def test_the_last_of_several_runtimes_gives_them_back() -> None:
    """Whichever started first: while one runs, nothing is given back."""
    gc.set_threshold(700, 10, 10)
    first, second = Runtime([], store="memory://"), Runtime([], store="memory://")
    await first.start()
    await second.start()
    await first.stop()
    assert gc.get_threshold()[0] > 700
    await second.stop()
    assert gc.get_threshold() == (700, 10, 10)


@pytest.mark.parametrize("own", [(0, 10, 10), (100_000, 10, 10)])
def test_what_an_application_set_itself_stands(own: tuple[int, int, int]) -> None:
    """Thresholds are never lowered, and a collector that is off stays off."""
    gc.set_threshold(*own)
    former = collect_rarely()
    assert gc.get_threshold() == own
    gc.set_threshold(900, 5, 5)
    restore(former)
    assert gc.get_threshold() == (900, 5, 5)
