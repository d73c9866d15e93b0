"""How the journal's values lie in Redis, and back: numbers, little-endian, then the texts and bytes they measure.

Scripts read some of these fields (``redis_journal.lua`` says which). A change here changes the durable format.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

from statestores.model import Event, IndexEntry, OutboxMessage, Ownership, Receipt, Reminder, Snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from statestores.model import TurnCommit

_EVENT = struct.Struct("<qIIII")  # time, lengths of turn id, caller, trace id, name; then these and the data
_VERSION = struct.Struct("<q")  # of a snapshot; then the data
_DUE = struct.Struct("<q")  # of a reminder; then the body
_MESSAGE = struct.Struct("<II")  # lengths of the reason for giving up and of the stream; then these and the body
_KEPT = struct.Struct("<qiI")  # of a receipt: expiry, outbox partition, length of the turn id; then this and the reply
_ENTRY = struct.Struct("<qqI")  # created, updated, length of the name; then the name and the status
_OWNED = struct.Struct("<qq")  # epoch, lease end; then the owner
_SEPARATOR = re.compile(rb"\0(?!\xff)")


def event_blobs(turn: TurnCommit) -> list[bytes]:
    turn_id, caller, trace_id = turn.turn_id.encode(), turn.caller.encode(), turn.trace_id.encode()
    origin = turn_id + caller + trace_id
    blobs = []
    for name, data in turn.events:
        text = name.encode()
        lengths = _EVENT.pack(turn.time_ms, len(turn_id), len(caller), len(trace_id), len(text))
        blobs.append(lengths + origin + text + data)
    return blobs


def events(blobs: Sequence[bytes], after_version: int) -> list[Event]:
    return [event(blob, version) for version, blob in enumerate(blobs, start=after_version + 1)]


def event(blob: bytes, version: int) -> Event:
    time_ms, turn_id, caller, trace_id, name = _EVENT.unpack_from(blob)
    caller_at = _EVENT.size + turn_id
    trace_at = caller_at + caller
    name_at = trace_at + trace_id
    data_at = name_at + name
    return Event(
        version,
        blob[name_at:data_at].decode(),
        blob[data_at:],
        time_ms,
        blob[_EVENT.size : caller_at].decode(),
        blob[caller_at:trace_at].decode(),
        blob[trace_at:name_at].decode(),
    )


def reminder(stream: str, name: bytes, blob: bytes) -> Reminder:
    return Reminder(stream, name.decode(), _DUE.unpack_from(blob)[0], blob[_DUE.size :])


def message_blob(message: OutboxMessage) -> bytes:
    dead, stream = message.dead.encode(), message.stream.encode()
    return _MESSAGE.pack(len(dead), len(stream)) + dead + stream + message.body


def message(id_: bytes, blob: bytes) -> OutboxMessage:
    dead, stream = _MESSAGE.unpack_from(blob)
    stream_at = _MESSAGE.size + dead
    body_at = stream_at + stream
    return OutboxMessage(
        id_.decode(), blob[stream_at:body_at].decode(), blob[body_at:], blob[_MESSAGE.size : stream_at].decode()
    )


def receipt_blob(receipt: Receipt, turn_id: str) -> bytes:
    by = turn_id.encode()
    return _KEPT.pack(receipt.expires_ms, receipt.outbox_partition, len(by)) + by + receipt.reply


def receipt(key: str, blob: bytes) -> Receipt:
    expires_ms, outbox_partition, by = _KEPT.unpack_from(blob)
    return Receipt(key, blob[_KEPT.size + by :], expires_ms, outbox_partition)


def entry_blob(entry: IndexEntry) -> bytes:
    name = entry.name.encode()
    return _ENTRY.pack(entry.created_ms, entry.updated_ms, len(name)) + name + entry.status.encode()


def entry(stream: bytes, blob: bytes) -> IndexEntry:
    created_ms, updated_ms, name = _ENTRY.unpack_from(blob)
    status_at = _ENTRY.size + name
    return IndexEntry(
        stream.decode(), blob[_ENTRY.size : status_at].decode(), blob[status_at:].decode(), created_ms, updated_ms
    )


def ownership(partition: int, blob: bytes) -> Ownership:
    epoch, lease_until_ms = _OWNED.unpack_from(blob)
    return Ownership(partition, epoch, blob[_OWNED.size :].decode(), lease_until_ms)


def member_parts(member: bytes) -> tuple[bytes, bytes]:
    """Stream and name of a member of a sorted set; the inverse of `member_prefix` in the scripts."""
    stream, name = _SEPARATOR.split(member, maxsplit=1)
    return stream.replace(b"\0\xff", b"\0"), name


def reminder_blob(reminder: Reminder) -> bytes:
    return _DUE.pack(reminder.due_ms) + reminder.body


def snapshot(blob: bytes) -> Snapshot | None:
    """b"" means none."""
    return Snapshot(_VERSION.unpack_from(blob)[0], blob[_VERSION.size :]) if blob else None


def outbox_partition(receipt_blob: bytes) -> int:
    """The partition whose outbox holds the message a receipt is for; -1: a client's key."""
    number: int = _KEPT.unpack_from(receipt_blob)[1]
    return number
