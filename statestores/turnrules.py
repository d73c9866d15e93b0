"""The rules of the journal face that are the same in every store, as pure functions.

A turn that breaks one of these can never succeed: it is a mistake of the program that made it, so the whole call fails
with `InvalidRequest` before anything is recorded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from statestores.errors import InvalidRequest
from statestores.model import partition_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from statestores.model import IndexEntry, IndexQuery, TurnCommit


def check_possible(turns: Sequence[TurnCommit], partitions: int) -> None:
    """Raises `InvalidRequest` when one of the turns contradicts itself."""
    for turn in turns:
        fault = turn_fault(turn, partitions)
        if fault is not None:
            raise InvalidRequest(f"turn {turn.turn_id!r} of {turn.stream!r}: {fault}")


def turn_fault(turn: TurnCommit, partitions: int) -> str | None:
    """What is impossible about a turn, or None."""
    if turn.expected_version is None:
        if turn.events:
            return "events need an expected_version"
        if turn.snapshot is not None:
            return "a snapshot needs an expected_version"
    elif turn.expected_version < 0:
        return "versions are never negative"
    elif turn.partition != partition_of(turn.stream, partitions):
        return f"the stream does not live in partition {turn.partition}"
    if turn.delete and (turn.events or turn.snapshot is not None):
        return "a deletion carries no events and no snapshot"
    if turn.listing is not None and turn.listing.stream != turn.stream:
        return "the index entry is another stream's"
    if turn.reminders_set and any(reminder.stream != turn.stream for reminder in turn.reminders_set):
        return "a reminder is another stream's"
    if turn.outbox_dead and not all(reason for _, reason in turn.outbox_dead):
        return "giving a message up needs a reason"
    return None


def check_partitions(partitions: Sequence[int], count: int) -> None:
    """Raises `InvalidRequest` for a partition that does not exist."""
    for partition in partitions:
        if not 0 <= partition < count:
            raise InvalidRequest(f"there is no partition {partition}, this store has {count}")


def index_matches(entry: IndexEntry, query: IndexQuery) -> bool:
    """Whether the listing shows an entry: all filters but the page."""
    type_, _, id_ = entry.stream.partition("/")
    return (
        (not query.type or type_ == query.type)
        and id_.startswith(query.id_prefix)
        and (not query.name or entry.name == query.name)
        and (not query.statuses or entry.status in query.statuses)
        and (query.created_from_ms is None or entry.created_ms >= query.created_from_ms)
        and (query.created_to_ms is None or entry.created_ms < query.created_to_ms)
    )
