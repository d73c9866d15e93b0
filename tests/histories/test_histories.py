"""The order of replay is a wire format: recorded runs of every released version are replayed, for ever (INV-10)."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from tests.histories.programs import PROGRAMS
from workflow.context import SURFACE
from workflow.errors import Stall
from workflow.history import Record, Summary
from workflow.replay import replay

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("*/*.json"))


def load(path: Path) -> tuple[str, list[Record]]:
    data = orjson.loads(path.read_bytes())
    return data["status"], [Record(r["t"], r["i"], r["c"]) for r in data["records"]]


def test_every_program_has_a_history() -> None:
    """No program stands here without a recorded run."""
    assert {path.stem for path in FILES} == set(PROGRAMS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_history_replays(path: Path) -> None:
    """A run recorded by that version issues the same commands today."""
    status, records = load(path)
    replay(PROGRAMS[path.stem][0], path.stem, records, SURFACE).close()
    summary = Summary()
    for record in records:
        summary.apply(record)
    assert summary.status == status


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_changed_history_is_noticed(path: Path) -> None:
    """The check can fail: a history with one command more does not replay."""
    _, records = load(path)
    records[0] = records[0]._replace(commands='[["activity","made.up","up",[]]]')
    with pytest.raises(Stall, match=r"made\.up"):
        replay(PROGRAMS[path.stem][0], path.stem, records, SURFACE)
