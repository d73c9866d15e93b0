"""docs/actors.md is a program: its examples run, one after the other, as they stand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import actors
from tests.promises.pages import DOCS, run_page, unnamed_errors

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

PAGE = DOCS / "actors.md"


async def test_every_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/actors.md: each block of Python, with its assertions, in order."""
    monkeypatch.chdir(tmp_path)
    assert {"Account", "Ledger", "Price", "Airport", "Invoice"} <= (await run_page(PAGE)).keys()


def test_every_error_is_in_the_page() -> None:
    """docs/actors.md: "All derive from `ActorError`"; none is left out."""
    assert unnamed_errors(PAGE, actors, actors.ActorError) == []
