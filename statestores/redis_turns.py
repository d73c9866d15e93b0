"""A commit as the script reads it: the names of the keys it touches, and the turns as flat arguments.

The order of both is the script's; see "commit" in ``redis_journal.lua``.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from statestores import redis_records as records

if TYPE_CHECKING:
    from collections.abc import Iterator

    from statestores.model import TurnCommit
    from statestores.redis_link import Argument

_TURN = struct.Struct("<qqIIIIIIB")  # epoch, expected version or -1, six counts, flags
_DELETE, _SNAPSHOT, _INDEXED, _RECEIPT, _REMINDERS = 1, 2, 4, 8, 16


class PartitionKeys:
    """The names of a partition's keys. All carry its hash tag, so that a cluster keeps them together."""

    __slots__ = ("all", "dead", "due", "expiry", "index", "meta", "outbox", "queue", "streams", "tag")

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.meta = f"{tag}:meta"
        self.due = f"{tag}:due"
        self.expiry = f"{tag}:receipts"
        self.streams = f"{tag}:streams"
        self.index = f"{tag}:index"
        self.outbox = f"{tag}:outbox"
        self.queue = f"{tag}:queue"
        self.dead = f"{tag}:dead"
        turns = (f"{tag}:turns", f"{tag}:turns0")
        scans = (self.due, self.expiry, self.streams, self.index, self.outbox, self.queue, self.dead)
        self.all = (self.meta, *turns, *scans)  # in the order the commit script takes them

    def events(self, stream: str) -> str:
        return f"{self.tag}:e:{stream}"

    def snapshot(self, stream: str) -> str:
        return f"{self.tag}:s:{stream}"

    def reminders(self, stream: str) -> str:
        return f"{self.tag}:m:{stream}"

    def receipts(self, stream: str) -> str:
        return f"{self.tag}:r:{stream}"


class PartitionTurns:
    """One partition's turns of a commit, as the script reads them."""

    __slots__ = ("_partition", "arguments", "keys", "places", "turn_ids")

    def __init__(self, partition: PartitionKeys) -> None:
        self._partition = partition
        self.places: list[int] = []
        self.turn_ids: list[Argument] = []
        self.keys: list[Argument] = [*partition.all]
        self.arguments: list[Argument] = []

    def add(self, place: int, turn: TurnCommit) -> int:
        """Returns about how many bytes it adds to the call."""
        arguments = _arguments_of(turn)
        self.places.append(place)
        self.turn_ids.append(turn.turn_id)
        self.keys += _keys_of_turn(self._partition, turn)
        self.arguments += arguments
        return sum(map(len, arguments))


def _keys_of_turn(keys: PartitionKeys, turn: TurnCommit) -> Iterator[str]:
    stream, delete = turn.stream, turn.delete
    yield keys.events(stream)
    if turn.snapshot is not None or delete:
        yield keys.snapshot(stream)
    if turn.reminders_set or turn.reminders_cleared or delete:
        yield keys.reminders(stream)
    if turn.receipt is not None:
        yield keys.receipts(stream)


def _arguments_of(turn: TurnCommit) -> list[str | bytes]:
    """The turn as the script reads it; the order is the script's."""
    arguments: list[str | bytes] = [turn.stream, _header(turn)]
    if turn.events:
        arguments += records.event_blobs(turn)
    if turn.snapshot is not None:
        arguments.append(turn.snapshot)
    if turn.listing is not None:
        arguments.append(records.entry_blob(turn.listing))
    arguments += turn.reminders_cleared
    for reminder in turn.reminders_set:
        arguments += (reminder.name, records.reminder_blob(reminder))
    for message in turn.outbox:
        arguments += (message.id, records.message_blob(message))
    arguments += turn.outbox_done
    for given_up in turn.outbox_dead:
        arguments += given_up
    if turn.receipt is not None:
        arguments += (turn.receipt.key, records.receipt_blob(turn.receipt, turn.turn_id))
    return arguments


def _header(turn: TurnCommit) -> bytes:
    flags = (
        (_DELETE if turn.delete else 0)
        | (_SNAPSHOT if turn.snapshot is not None else 0)
        | (_INDEXED if turn.listing is not None else 0)
        | (_RECEIPT if turn.receipt is not None else 0)
        | (_REMINDERS if turn.reminders_set or turn.reminders_cleared else 0)
    )
    return _TURN.pack(
        turn.epoch,
        -1 if turn.expected_version is None else turn.expected_version,
        len(turn.events),
        len(turn.reminders_cleared),
        len(turn.reminders_set),
        len(turn.outbox),
        len(turn.outbox_done),
        len(turn.outbox_dead),
        flags,
    )
