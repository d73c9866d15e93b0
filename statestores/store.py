"""The state-store abstraction: one protocol, two faces, and a third for what is too large for them.

The **journal** is what actors and workflows stand on: fenced commits of turns, streams, scans of unfinished work. The
**keys** are the application's own state API: values by key, with ETags, TTL and transactions. The **payloads** are what
records refer to in place of containing it (claim check). A store says what it can by its `capabilities`; asking for
more raises `NotSupported`.

A new method needs a case in `statestores.conformance` and a reason. The in-memory store is the reference: when this
text and `memory.py` disagree, `memory.py` wins.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from statestores.errors import CommitRefused, StoreError
    from statestores.model import (
        Event,
        IndexEntry,
        IndexQuery,
        OutboxMessage,
        Ownership,
        Receipt,
        Reminder,
        StreamState,
        TurnCommit,
    )


class Capability(Enum):
    """What a store can do. The values are Dapr's names where Dapr has one."""

    ETAG = "ETAG"
    TRANSACTIONAL = "TRANSACTIONAL"
    QUERY_API = "QUERY_API"
    TTL = "TTL"
    DELETE_WITH_PREFIX = "DELETE_WITH_PREFIX"
    JOURNAL = "JOURNAL"
    """Has the journal face: can hold actors and workflows."""
    DURABLE = "DURABLE"
    """Survives the end of the process that wrote it."""
    SHARED = "SHARED"
    """Processes on several machines can use it at once."""
    PAYLOADS = "PAYLOADS"
    """Has the payloads face: values of any size stand beside the journal."""


class Journal(Protocol):
    """Fenced, atomic, ordered. All methods may raise `StoreUnavailable`; a cancelled call may or may not have
    happened."""

    @property
    def partitions(self) -> int:
        """How many partitions this namespace has; recorded in the store when it was made. Known after `open`."""

    async def acquire(
        self, partitions: Sequence[int], owner: str, now_ms: int, lease_ms: int, *, force: bool = False
    ) -> list[Ownership]:
        """Take partitions over: each gets a new epoch, greater than all before, atomically, all or none. Raises
        `LeaseHeld` (nothing is taken) when one of them has an unexpired lease of another owner and not `force`. `owner`
        may acquire what it owns already: that is a take-over too, with a new epoch. This may come long after `open`:
        raises `FormatError` (nothing is taken) when the store has been migrated or made anew since, so that what
        this program writes would not fit it."""

    async def renew(self, owned: Sequence[tuple[int, int]], owner: str, now_ms: int, lease_ms: int) -> list[Ownership]:
        """Extend the leases of (partition, epoch) pairs. Returns those that were extended; a pair that is missing from
        the answer has a newer epoch and is lost."""

    async def release(self, owned: Sequence[tuple[int, int]]) -> None:
        """End the leases of (partition, epoch) pairs at once. The epoch stays recorded. Stale pairs are ignored."""

    async def owners(self) -> list[Ownership]:
        """Ownership of every partition that ever had an owner, by partition."""

    async def commit(self, turns: Sequence[TurnCommit]) -> list[CommitRefused | None]:
        """Make turns durable, each whole or not at all, in order; one answer per turn, None for success.

        A refused turn does not affect the others. On `StoreUnavailable` the outcome of every turn is unknown: repeat
        the same call; turns that were recorded are recognised by their `turn_id`. Those that were refused are judged
        anew, beside what the turns behind them have recorded: so a deletion that its `expected_version` may refuse must
        not stand before turns that make that version, or the repeat would delete what they recorded. On return without
        an error everything is as durable as the store can make it. Raises `InvalidRequest`, before anything was
        recorded, when a turn contradicts itself or holds a value that the store cannot (a lone surrogate, say).
        """

    async def load(self, stream: str, at_version: int | None = None) -> StreamState:
        """Snapshot and events needed to fold the stream's state, as of `at_version` (default: its head).
        `StreamState.version` is min(at_version, head)."""

    async def events(self, stream: str, after_version: int = 0, limit: int = 1000) -> list[Event]:
        """Events with version > `after_version`, in order, at most `limit`."""

    async def receipts(self, stream: str, keys: Sequence[str]) -> list[Receipt | None]:
        """The receipts of keys, one answer per key, in order; expired ones that were not purged yet included."""

    async def purge_receipts(self, partition: int, now_ms: int, limit: int) -> int:
        """Forget expired receipts (see `Receipt` for when one may go), at most `limit`; returns how many went."""

    async def outbox(
        self, partition: int, after: str = "", limit: int = 1000, *, dead: bool = False
    ) -> list[OutboxMessage]:
        """Undelivered (or, with `dead`, given-up) messages of a partition in commit order, after the message with the
        id `after`. When that message is gone the scan restarts from the beginning: callers must expect repeats."""

    async def due_reminders(self, partitions: Sequence[int], until_ms: int, limit: int) -> list[Reminder]:
        """Reminders with due_ms <= until_ms, soonest first, at most `limit`."""

    async def reminders(self, stream: str) -> list[Reminder]:
        """All reminders of one stream, by name."""

    async def index(self, query: IndexQuery) -> list[IndexEntry]:
        """One page of the index, over all partitions, ordered by stream."""


class KeyItem(NamedTuple):
    """A live key: value bytes as they were set, its ETag, and when it expires (None: never)."""

    key: str
    value: bytes
    etag: str
    expires_ms: int | None = None


class SetKey(NamedTuple):
    """Write a value. Without `etag`, last write wins; with it, the key must still carry that tag, else `ETagMismatch`.
    `first_write` without `etag`: the key must not exist. `ttl_s` None or <= 0: never expires, and an earlier TTL is
    removed.
    """

    key: str
    value: bytes
    etag: str | None = None
    first_write: bool = False
    ttl_s: int | None = None


class DeleteKey(NamedTuple):
    """Remove a key; an absent one is fine. With `etag` a key that is absent or carries another tag is
    `ETagMismatch`."""

    key: str
    etag: str | None = None


class KeyQuery(NamedTuple):
    """Dapr's query: filter tree of EQ NEQ GT GTE LT LTE IN AND OR over dotted JSON paths, sort keys, page.

    `sort`: (path, descending). `token` "" for the first page. Only keys that start with `prefix` are looked at. A page
    ends after `limit` items (0: any number), and before its keys and values together, with `keyquery.ITEM_BYTES` for
    each, are more than `max_bytes` (0: any number); it has one item at least, when there is one.
    """

    filter: dict[str, Any]
    sort: tuple[tuple[str, bool], ...] = ()
    limit: int = 0
    token: str = ""
    prefix: str = ""
    max_bytes: int = 0


class Keys(Protocol):
    """Values by key. `now_ms` decides what has expired: expired keys are hidden at once and purged some time."""

    async def get(self, keys: Sequence[str], now_ms: int) -> list[KeyItem | None]:
        """One answer per key, in order."""

    async def apply(self, operations: Sequence[SetKey | DeleteKey], now_ms: int) -> list[StoreError | None]:
        """Each operation by itself, in order; one answer each, None for success."""

    async def transact(self, operations: Sequence[SetKey | DeleteKey], now_ms: int) -> None:
        """All or nothing, in order, the last operation on a key wins. Raises the first operation's error that fails."""

    async def query(self, query: KeyQuery, now_ms: int) -> tuple[list[KeyItem], str]:
        """A page of matches and the token of the next ("" at the end)."""

    async def delete_prefix(self, prefix: str) -> int:
        """Remove the direct children of `prefix` (``p||k``, not ``p||q||k``); ``||`` is appended when missing. Returns
        how many went. An empty prefix is `InvalidRequest`."""

    async def purge_expired(self, now_ms: int, limit: int) -> int:
        """Remove expired keys for good, at most `limit`."""


class Payloads(Protocol):
    """Values too large for a record, in chunks, by stream and id. Nothing here knows who refers to them, and nothing is
    fenced: an id is used once for ever, by one writer (see `workflow.payloads` for what that is good for). All methods
    may raise `StoreUnavailable`, and may be repeated."""

    async def put(self, stream: str, id: str, number: int, chunk: bytes | bytearray | memoryview) -> None:
        """Store chunk `number` (from 0). On return it is as durable as a commit is."""

    async def get(self, stream: str, id: str, number: int) -> bytes | None:
        """None: there is no such chunk."""

    async def stored(self, partition: int, after: tuple[str, str] | None = None, limit: int = 100) -> list[StoredAt]:
        """(stream, id) of all payloads of which a partition's streams have any chunk, in their order, after `after`,
        at most `limit`."""

    async def remove(self, stream: str, id: str) -> None:
        """Remove all chunks; an absent payload is fine. Interrupted, it leaves a payload that `stored` still shows."""


class StoredAt(NamedTuple):
    stream: str
    id: str


class StateStore(Protocol):
    """A store: open it, use its faces, close it. Made from a URL or a component, see `statestores.components`."""

    @property
    def capabilities(self) -> frozenset[Capability]: ...

    @property
    def journal(self) -> Journal:
        """Raises `NotSupported` without `Capability.JOURNAL`."""

    @property
    def keys(self) -> Keys: ...

    @property
    def payloads(self) -> Payloads:
        """Raises `NotSupported` without `Capability.PAYLOADS`."""

    async def open(self) -> None:
        """Connect; make or migrate the durable layout. Raises `FormatError`, `StoreUnavailable`."""

    async def close(self) -> None:
        """Finish what is under way and let go of every resource. Idempotent."""
