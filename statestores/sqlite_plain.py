"""The short way into SQLite: the events of a batch by one plain INSERT.

Events are most of what turns record, and the general way (`sqlite_journal`, a row of a trigger's view for each effect)
costs about twice as much for them. This one statement fences, checks and writes as well; it differs in what happens
when something is wrong. A row whose check fails has no version, to which the table objects, and nothing of the batch is
recorded; the caller goes the general way with the same turns, which finds and words the refusals. (To leave such rows
out would be dearer: the general way would then find all other turns recorded, and look at each.)
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from statestores.model import TurnCommit

_SIZES = (*range(1, 17), *(eighths << doubling for doubling in range(1, 6) for eighths in range(9, 17)))
_COLUMNS = 9
_ROW = "(" + ",".join("?" * _COLUMNS) + ")"
_PADDING = (None,) * _COLUMNS
# Everything of a TurnCommit after its events, when there is nothing.
_NOTHING_ELSE = (None, None, (), (), (), (), (), None, False)

_VECTOR = "SELECT group_concat(epoch) FROM (SELECT epoch FROM ownership ORDER BY partition)"


def _statement(size: int) -> str:
    """Column 9 is the head that the first of the stream's turns in the batch expects. That it is there, and that the
    versions after it are free, which the primary key sees to, makes it the head (INV-1)."""
    return f"""INSERT INTO events
        SELECT column1, CASE WHEN ({_VECTOR}) = ? AND (column9 = 0
                OR EXISTS (SELECT 1 FROM events WHERE stream = column1 AND version = column9)) THEN column2 END,
            column3, column4, column5, column6, column7, column8
        FROM (VALUES {",".join([_ROW] * size)})
        WHERE column1 IS NOT NULL"""


_STATEMENTS = {size: _statement(size) for size in _SIZES}


def is_plain(turn: TurnCommit) -> bool:
    """Whether a turn records events and nothing else."""
    return bool(turn.events) and turn[9:] == _NOTHING_ELSE


def rows_of(turns: Sequence[TurnCommit]) -> list[Any] | None:
    """The values of the events' rows, one after the other; None when the turns need the general way, since what some of
    them do to a stream comes between the events of others."""
    values: list[Any] = []
    # Of each stream: its head before the batch, and after the turns so far; the latter is -1 when it may not move.
    heads: dict[str, tuple[int, int]] = {}
    for turn in turns:
        _, _, stream, turn_id, time_ms, version, caller, trace_id, events, *_, delete = turn
        if version is None:  # bookkeeping: of no stream
            continue
        before, head = heads.get(stream, (version, version))
        if head != version or delete:
            return None
        for name, data in events:
            version += 1
            values += (stream, version, name, data, time_ms, turn_id, caller, trace_id, before)
        if not events and before != head:  # it asks for a head that the events before it have not made yet
            return None
        heads[stream] = before, version if events else -1
    return values if values and len(values) <= _SIZES[-1] * _COLUMNS else None


class Fence:
    """The epochs of all partitions as last seen, and their text for the statement to compare with (INV-2): one short
    scan for the whole batch, whichever partitions its turns are of."""

    def __init__(self) -> None:
        self._epochs: dict[int, int] = {}
        self._vector = ""

    def admits(self, connection: sqlite3.Connection, turns: Sequence[TurnCommit]) -> bool:
        pairs = {(turn.partition, turn.epoch) for turn in turns}
        if not pairs <= self._epochs.items():
            self._epochs = dict(connection.execute("SELECT partition, epoch FROM ownership"))
            self._vector = ",".join(str(epoch) for _, epoch in sorted(self._epochs.items()))
        return pairs <= self._epochs.items()

    def insert(self, connection: sqlite3.Connection, values: list[Any]) -> None:
        """Raises `sqlite3.IntegrityError` when a check fails, or an event is there already; no row was written then."""
        count = len(values) // _COLUMNS
        size = _SIZES[bisect_left(_SIZES, count)]
        try:
            connection.execute(_STATEMENTS[size], [self._vector, *values, *_PADDING * (size - count)])
        except sqlite3.IntegrityError:
            self._epochs = {}  # it may have been these
            raise
