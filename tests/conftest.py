"""What a session starts once, for all of its tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.placements import ON_RAY, PLACEMENTS, RayHead

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "ray_address" in getattr(item, "fixturenames", ()):
            item.add_marker(ON_RAY)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Workers send reports as UTF-8, and tests print what has none."""
    return _sendable((yield))


def _sendable(data: Any) -> Any:
    match data:
        case str():
            return data.encode(errors="backslashreplace").decode()
        case dict():
            return {key: _sendable(value) for key, value in data.items()}
        case list() | tuple():
            return type(data)(map(_sendable, data))
        case _:
            return data


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """Of the session's Ray. Clusters that have it share nothing but the processes it starts."""
    pytest.importorskip("ray")
    with RayHead() as head:
        yield head.address


@pytest.fixture(params=PLACEMENTS)
def placement(request: pytest.FixtureRequest) -> str:
    """Where the application of this test runs: whoever asks for it is tested on each placement."""
    return str(request.param)
