"""What is durable: the values, the protocol, the stores. Start reading in `statestores.model`.

The stores themselves are imported from their modules (`statestores.memory`, `statestores.sqlite`, `statestores.redis`)
or made from a URL by `statestores.components`: importing this package loads no driver.
"""

from __future__ import annotations

from statestores.errors import (
    CommitRefused,
    ComponentError,
    DuplicateTurn,
    ETagInvalid,
    ETagMismatch,
    FormatError,
    InvalidRequest,
    LeaseHeld,
    NotSupported,
    StaleEpoch,
    StoreError,
    StoreUnavailable,
    VersionConflict,
)
from statestores.model import (
    DEFAULT_PARTITIONS,
    FORMAT_VERSION,
    Event,
    IndexEntry,
    IndexQuery,
    NewEvent,
    OutboxMessage,
    Ownership,
    Receipt,
    Reminder,
    Snapshot,
    StreamState,
    TurnCommit,
    partition_of,
)
from statestores.store import Capability, DeleteKey, Journal, KeyItem, KeyQuery, Keys, SetKey, StateStore

__all__ = [
    "DEFAULT_PARTITIONS",
    "FORMAT_VERSION",
    "Capability",
    "CommitRefused",
    "ComponentError",
    "DeleteKey",
    "DuplicateTurn",
    "ETagInvalid",
    "ETagMismatch",
    "Event",
    "FormatError",
    "IndexEntry",
    "IndexQuery",
    "InvalidRequest",
    "Journal",
    "KeyItem",
    "KeyQuery",
    "Keys",
    "LeaseHeld",
    "NewEvent",
    "NotSupported",
    "OutboxMessage",
    "Ownership",
    "Receipt",
    "Reminder",
    "SetKey",
    "Snapshot",
    "StaleEpoch",
    "StateStore",
    "StoreError",
    "StoreUnavailable",
    "StreamState",
    "TurnCommit",
    "VersionConflict",
    "partition_of",
]
