"""The interpreter's switch interval: shortened while a runtime runs, and given back."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from runtime_api import Runtime, interpreter
from runtime_api.switching import restore, switch_often

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _own_interval(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(interpreter, "TUNING", interpreter.Tuning())  # other tests' runtimes may run meanwhile
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


async def test_shortened_while_a_runtime_runs_and_given_back() -> None:
    """An application's process is left as it was found."""
    sys.setswitchinterval(0.005)
    async with Runtime([], store="memory://"):
        assert sys.getswitchinterval() < 0.001
    assert sys.getswitchinterval() == pytest.approx(0.005)


async def test_the_last_of_several_runtimes_gives_it_back() -> None:
    """Whichever started first: while one runs, nothing is given back."""
    sys.setswitchinterval(0.005)
    first, second = Runtime([], store="memory://"), Runtime([], store="memory://")
    await first.start()
    await second.start()
    await first.stop()
    assert sys.getswitchinterval() < 0.001
    await second.stop()
    assert sys.getswitchinterval() == pytest.approx(0.005)


def test_what_an_application_set_itself_stands() -> None:
    """The interval is never lengthened, and one that was set meanwhile is not overwritten."""
    sys.setswitchinterval(0.0001)
    former = switch_often()
    assert sys.getswitchinterval() == pytest.approx(0.0001)
    sys.setswitchinterval(0.002)
    restore(former)
    assert sys.getswitchinterval() == pytest.approx(0.002)
