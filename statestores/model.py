"""What a state store makes durable: the values, and nothing else.  Start reading here.

A *stream* is one ordered log of *events*, named ``type/id``; every actor and every workflow instance has one. Streams
are spread over a fixed number of *partitions*; a partition is owned by one host at a time, under an *epoch* that only
grows. One *turn* of an actor produces one :class:`TurnCommit`; the store makes it durable whole or not at all.

The values are ``NamedTuple``s rather than frozen dataclasses: equally immutable, and several times cheaper to make,
which counts in a structure that is built once per turn.

Payloads (`data`, `body`, `reply`, `snapshot`) are opaque bytes to a store. Times are integer milliseconds since the
Unix epoch, UTC, always passed in by the caller: a store never reads a clock.
"""

from __future__ import annotations

from typing import NamedTuple
from zlib import crc32

FORMAT_VERSION = 1
"""The version of the durable layout. A store with a newer one is refused, an older one is migrated on open."""

DEFAULT_PARTITIONS = 32


def partition_of(stream: str, partitions: int) -> int:
    """The partition a stream lives in. The function is part of the durable format: changing it strands every stream."""
    return crc32(stream.encode()) % partitions


class NewEvent(NamedTuple):
    """A fact to be recorded; its version follows from its place in the commit."""

    name: str
    data: bytes


class Event(NamedTuple):
    """A recorded fact. Invariant: for a stream and a version at most one is ever recorded (INV-1)."""

    version: int
    name: str
    data: bytes
    time_ms: int
    turn_id: str
    caller: str
    trace_id: str


class Snapshot(NamedTuple):
    """The folded state of a stream after the event `version`."""

    version: int
    data: bytes


class StreamState(NamedTuple):
    """What a fold starts from: the newest usable snapshot and the events after it, in order.

    `version` is the stream's head: the version of its last event, 0 when there is none.
    """

    version: int
    snapshot: Snapshot | None
    events: list[Event]


class Reminder(NamedTuple):
    """A durable wake-up of a stream. (`stream`, `name`) identifies it; setting it again replaces it."""

    stream: str
    name: str
    due_ms: int
    body: bytes


class OutboxMessage(NamedTuple):
    """Something a committed turn wants done elsewhere: kept until its sender's side records that it was.

    `id` is unique for ever (ids are never reused). Messages of a partition are scanned in the order of their commit.
    `dead` holds the reason once delivery was given up; a dead message is kept for people, never sent again.
    """

    id: str
    stream: str
    body: bytes
    dead: str = ""


class Receipt(NamedTuple):
    """Proof that a stream consumed a message or a keyed call, with the answer it gave (INV-8).

    (stream, `key`) is unique. `expires_ms` is the end of retention. For a message out of an outbox `key` is the
    message's id and `outbox_partition` the partition that holds it: such a receipt is kept for as long as the message
    still stands there, however old, since it could be delivered again. -1 means: a client's idempotency key.
    """

    key: str
    reply: bytes
    expires_ms: int
    outbox_partition: int = -1


class IndexEntry(NamedTuple):
    """One line of the listing of streams. `name` and `status` are the owner's (a workflow's name and status).

    Written again, an entry keeps the `created_ms` it has. An empty `name` in a commit keeps the recorded name and
    status.
    """

    stream: str
    name: str
    status: str
    created_ms: int
    updated_ms: int


class IndexQuery(NamedTuple):
    """Filter and page over the index, ordered by stream (by code point).

    `type` matches the part of the stream before the first ``/`` exactly, `id_prefix` the start of the rest. An empty
    filter does not filter. `after` is the last stream of the page before (exclusive), "" for the first.
    """

    type: str
    id_prefix: str = ""
    name: str = ""
    statuses: tuple[str, ...] = ()
    created_from_ms: int | None = None
    created_to_ms: int | None = None
    after: str = ""
    limit: int = 100


class TurnCommit(NamedTuple):
    """All one turn wants made durable. Becomes visible together or not at all (INV-4).

    The store refuses it with `StaleEpoch` when `epoch` is not the partition's newest (INV-2), with `VersionConflict`
    when `expected_version` is given and is not the stream's head (INV-1), and with `DuplicateTurn` when the stream
    already holds a receipt of that key (INV-8): nothing of it is then recorded. A refusal touches this turn alone.

    `turn_id` is unique for ever. A commit that is repeated because its answer was lost (same `turn_id`, already
    recorded) succeeds again without further effect.
    """

    partition: int
    epoch: int
    stream: str
    turn_id: str
    time_ms: int
    # None: no check. Used by bookkeeping that is not a turn of the stream (removing delivered outbox messages).
    expected_version: int | None = None
    caller: str = ""
    trace_id: str = ""
    # Recorded at expected_version + 1, + 2, … Requires expected_version.
    events: tuple[NewEvent, ...] = ()
    # The state after `events`, replacing what was there as the newest snapshot (older ones may be kept or dropped,
    # but state as of an older version must stay readable: at least the events are kept).
    snapshot: bytes | None = None
    listing: IndexEntry | None = None
    reminders_set: tuple[Reminder, ...] = ()
    # Names of reminders of this stream. A name in both is set: clearing is done first.
    reminders_cleared: tuple[str, ...] = ()
    outbox: tuple[OutboxMessage, ...] = ()
    # Ids of outbox messages in this partition that are done with. Unknown ids are ignored.
    outbox_done: tuple[str, ...] = ()
    # (id, reason) of outbox messages in this partition that were given up.
    outbox_dead: tuple[tuple[str, str], ...] = ()
    receipt: Receipt | None = None
    # Removes events, snapshots, index entry and reminders of the stream, before anything else of this commit is
    # applied: reminders of the same commit stay. `events` must be empty. The stream's head is 0 afterwards. Deleting an
    # absent stream succeeds. What concerns others outlives the stream: messages it has sent (INV-9), and the receipts
    # of what it has consumed (INV-8), which go when they would have gone without the deletion.
    delete: bool = False


class Ownership(NamedTuple):
    """Who owns a partition. Invariant: `epoch` of a partition only grows, and is never used twice (INV-2)."""

    partition: int
    epoch: int
    owner: str
    lease_until_ms: int
