"""docs/workflows.md is a program: its examples run, one after the other, as they stand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import workflow
from tests.promises.pages import DOCS, run_page, unnamed_errors

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

PAGE = DOCS / "workflows.md"


async def test_every_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/workflows.md: each block of Python, with its assertions, in order."""
    monkeypatch.chdir(tmp_path)
    assert {"order", "handle"} <= (await run_page(PAGE)).keys()


def test_every_error_is_in_the_page() -> None:
    """docs/workflows.md: what workflow code, and what clients get; none is left out."""
    assert unnamed_errors(PAGE, workflow, workflow.WorkflowError) == []
