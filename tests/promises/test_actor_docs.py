"""docs/actors.md is a program: its examples run, one after the other, as they stand."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parents[2] / "docs" / "actors.md"


@pytest.fixture
def module() -> Iterator[ModuleType]:
    """Where the examples live: annotations are resolved through it."""
    made = ModuleType("actors_page")
    sys.modules[made.__name__] = made
    yield made
    del sys.modules[made.__name__]


async def test_every_example_runs(module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/actors.md: each block of Python, with its assertions, in order."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 8
    for block in blocks:
        code = compile(block, str(PAGE), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        result = eval(code, vars(module))
        if inspect.isawaitable(result):
            await result
    assert {"Account", "Ledger", "Airport", "Invoice"} <= vars(module).keys()


def test_every_error_is_in_the_page() -> None:
    """docs/actors.md: "All derive from `ActorError`"; none is left out."""
    import actors

    text = PAGE.read_text()
    for name in actors.__all__:
        found = getattr(actors, name)
        if inspect.isclass(found) and issubclass(found, actors.ActorError) and not found.__subclasses__():
            assert name in text, name
