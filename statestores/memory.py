"""The in-memory store: plain dicts, and the reference.

When the text of `Journal` and this file disagree, this file wins. No method suspends between its first line and its
last: each call is atomic between the tasks of an event loop, no lock is needed, and a simulated clock can drive it. The
data lives as long as the object: `close` keeps it, `open` finds it again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import nsmallest
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from statestores.errors import ComponentError, DuplicateTurn, LeaseHeld, StaleEpoch, VersionConflict
from statestores.memory_keys import MemoryKeys
from statestores.memory_payloads import MemoryPayloads
from statestores.model import (
    DEFAULT_PARTITIONS,
    Event,
    Ownership,
    Receipt,
    Reminder,
    Snapshot,
    StreamState,
    partition_of,
)
from statestores.store import Capability
from statestores.storeurl import partitions_parameter
from statestores.turnrules import check_partitions, check_possible, index_matches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    from statestores.errors import CommitRefused
    from statestores.model import IndexEntry, IndexQuery, OutboxMessage, TurnCommit


class MemoryStore:
    """Both faces in this process, gone with it. For tests, simulations and trying things out."""

    capabilities = frozenset(Capability) - {Capability.DURABLE, Capability.SHARED}

    def __init__(self, *, partitions: int = DEFAULT_PARTITIONS) -> None:
        self.journal = MemoryJournal(partitions)
        self.keys = MemoryKeys()
        self.payloads = MemoryPayloads(partitions)

    @classmethod
    def from_url(cls, url: str) -> Self:
        """``memory://`` or ``memory://?partitions=8``."""
        parts = urlsplit(url)
        if parts.netloc or parts.path:
            raise ComponentError(f"{url}: write memory:// alone, or memory://?partitions=8: memory has no place")
        return cls(partitions=partitions_parameter(url))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Self:
        """``state.in-memory`` has no settings of its own: whatever is there is for the runtime."""
        return cls()

    async def open(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to let go of."""


class _KeptReceipt(NamedTuple):
    receipt: Receipt
    turn_id: str
    partition: int


@dataclass(slots=True)
class _Stream:
    """One stream. Invariant: `events[i].version == i + 1` (INV-1)."""

    events: list[Event] = field(default_factory=list)
    snapshot: Snapshot | None = None  # the newest; older states are folded from the events, which are all kept
    receipts: dict[str, _KeptReceipt] = field(default_factory=dict)


class MemoryJournal:
    """Fenced, atomic, ordered. A turn is applied between two suspensions: nobody sees a part of it (INV-4)."""

    def __init__(self, partitions: int) -> None:
        self.partitions = partitions
        self._owners: dict[int, Ownership] = {}
        self._streams: dict[str, _Stream] = {}
        self._reminders: dict[str, dict[str, Reminder]] = {}
        self._index: dict[str, IndexEntry] = {}
        self._outbox: dict[int, dict[str, OutboxMessage]] = {}
        # Per partition, the turns recorded by the latest call: a call is repeated, if at all, before any other is made
        # for that partition, so these recognise exactly the turns which leave no event or receipt to be known by.
        self._latest: dict[int, set[str]] = {}

    # ---- ownership -------------------------------------------------------------------------------------------------

    async def acquire(
        self, partitions: Sequence[int], owner: str, now_ms: int, lease_ms: int, *, force: bool = False
    ) -> list[Ownership]:
        check_partitions(partitions, self.partitions)
        for partition in partitions:
            holder = self._owners.get(partition)
            if holder is not None and not force and holder.owner != owner and holder.lease_until_ms > now_ms:
                raise LeaseHeld(holder)
        for partition in partitions:
            # Invariant: epochs only grow (INV-2).
            self._owners[partition] = Ownership(partition, self._epoch(partition) + 1, owner, now_ms + lease_ms)
        return [self._owners[partition] for partition in partitions]

    async def renew(self, owned: Sequence[tuple[int, int]], owner: str, now_ms: int, lease_ms: int) -> list[Ownership]:
        kept = [(p, epoch) for p, epoch in owned if epoch == self._epoch(p) and self._owners[p].owner == owner]
        for partition, epoch in kept:
            self._owners[partition] = Ownership(partition, epoch, owner, now_ms + lease_ms)
        return [self._owners[partition] for partition, _ in kept]

    async def release(self, owned: Sequence[tuple[int, int]]) -> None:
        for partition, epoch in owned:
            if epoch == self._epoch(partition):
                self._owners[partition] = self._owners[partition]._replace(lease_until_ms=0)

    async def owners(self) -> list[Ownership]:
        return sorted(self._owners.values())

    def _epoch(self, partition: int) -> int:
        """The newest epoch, 0 before the first owner."""
        holder = self._owners.get(partition)
        return 0 if holder is None else holder.epoch

    # ---- commit ----------------------------------------------------------------------------------------------------

    async def commit(self, turns: Sequence[TurnCommit]) -> list[CommitRefused | None]:
        check_possible(turns, self.partitions)
        before = {turn.partition: self._latest.get(turn.partition, set()) for turn in turns}
        answers: list[CommitRefused | None] = []
        recorded: dict[int, set[str]] = {}
        for turn in turns:
            refusal: CommitRefused | None = self._fence(turn)
            if refusal is None and turn.turn_id not in before[turn.partition] and not self._is_recorded(turn):
                refusal = self._refusal(turn)
                if refusal is None:
                    self._apply(turn)
            if refusal is None:
                recorded.setdefault(turn.partition, set()).add(turn.turn_id)
            answers.append(refusal)
        self._latest.update(recorded)
        return answers

    def _fence(self, turn: TurnCommit) -> StaleEpoch | None:
        """Invariant: only the newest epoch of a partition may write (INV-2). Checked before anything else."""
        newest = self._epoch(turn.partition)
        return None if turn.epoch == newest != 0 else StaleEpoch(turn.partition, turn.epoch, newest)

    def _is_recorded(self, turn: TurnCommit) -> bool:
        """Whether the stream itself shows that this very turn was recorded: its answer was lost, this is the repeat."""
        stream = self._streams.get(turn.stream)
        if stream is None:
            return False
        if turn.receipt is not None and (kept := stream.receipts.get(turn.receipt.key)) is not None:
            return kept.turn_id == turn.turn_id
        if turn.events and turn.expected_version is not None and turn.expected_version < len(stream.events):
            return stream.events[turn.expected_version].turn_id == turn.turn_id
        return False

    def _refusal(self, turn: TurnCommit) -> CommitRefused | None:
        """A receipt says more than a version does (the answer is already known), so it is looked at first (INV-8)."""
        stream = self._streams.get(turn.stream, _Stream())
        if turn.receipt is not None and (kept := stream.receipts.get(turn.receipt.key)) is not None:
            return DuplicateTurn(turn.stream, kept.receipt)
        if turn.expected_version is not None and turn.expected_version != len(stream.events):
            return VersionConflict(turn.stream, turn.expected_version, len(stream.events))
        return None

    def _apply(self, turn: TurnCommit) -> None:
        """The order matters: deletion before everything else, clearing before setting."""
        outbox = self._outbox.setdefault(turn.partition, {})
        if turn.delete:
            self._delete(turn.stream)
        stream = self._streams.get(turn.stream) or _Stream()
        if turn.events or turn.snapshot is not None or turn.receipt is not None:
            self._streams[turn.stream] = stream
        for version, event in enumerate(turn.events, start=len(stream.events) + 1):
            stream.events.append(
                Event(version, event.name, event.data, turn.time_ms, turn.turn_id, turn.caller, turn.trace_id)
            )
        if turn.snapshot is not None:
            stream.snapshot = Snapshot(len(stream.events), turn.snapshot)
        if turn.listing is not None:
            self._list(turn.listing)
        self._set_reminders(turn)
        for message in turn.outbox:
            outbox.setdefault(message.id, message)
        for id_ in turn.outbox_done:
            outbox.pop(id_, None)
        for id_, reason in turn.outbox_dead:
            if id_ in outbox:
                outbox[id_] = outbox[id_]._replace(dead=reason)
        if turn.receipt is not None:
            stream.receipts[turn.receipt.key] = _KeptReceipt(turn.receipt, turn.turn_id, turn.partition)

    def _list(self, entry: IndexEntry) -> None:
        """The first `created_ms` stays; an empty name keeps name and status."""
        if (before := self._index.get(entry.stream)) is not None:
            entry = entry._replace(created_ms=before.created_ms)
            if not entry.name:
                entry = entry._replace(name=before.name, status=before.status)
        self._index[entry.stream] = entry

    def _set_reminders(self, turn: TurnCommit) -> None:
        """Streams without a reminder have no entry: the scan for due ones then costs nothing for them."""
        if not turn.reminders_cleared and not turn.reminders_set:
            return
        reminders = self._reminders.setdefault(turn.stream, {})
        for name in turn.reminders_cleared:
            reminders.pop(name, None)
        reminders.update({reminder.name: reminder for reminder in turn.reminders_set})
        if not reminders:
            del self._reminders[turn.stream]

    def _delete(self, name: str) -> None:
        """Receipts and outbox messages stay: others rely on them (INV-8, INV-9)."""
        stream = self._streams.pop(name, None)
        if stream is not None and stream.receipts:
            self._streams[name] = _Stream(receipts=stream.receipts)
        self._reminders.pop(name, None)
        self._index.pop(name, None)

    # ---- streams ---------------------------------------------------------------------------------------------------

    async def load(self, stream: str, at_version: int | None = None) -> StreamState:
        found = self._streams.get(stream, _Stream())
        head = len(found.events)
        version = head if at_version is None else max(0, min(at_version, head))
        snapshot = found.snapshot if found.snapshot is not None and found.snapshot.version <= version else None
        return StreamState(version, snapshot, found.events[snapshot.version if snapshot else 0 : version])

    async def events(self, stream: str, after_version: int = 0, limit: int = 1000) -> list[Event]:
        start = max(0, after_version)
        return self._streams.get(stream, _Stream()).events[start : start + limit]

    # ---- receipts --------------------------------------------------------------------------------------------------

    async def receipts(self, stream: str, keys: Sequence[str]) -> list[Receipt | None]:
        kept = self._streams.get(stream, _Stream()).receipts
        return [kept[key].receipt if key in kept else None for key in keys]

    async def purge_receipts(self, partition: int, now_ms: int, limit: int) -> int:
        gone = [
            (stream, key)
            for stream in self._streams.values()
            for key, kept in stream.receipts.items()
            if kept.partition == partition and kept.receipt.expires_ms <= now_ms and self._may_go(kept.receipt)
        ][:limit]
        for stream, key in gone:
            del stream.receipts[key]
        return len(gone)

    def _may_go(self, receipt: Receipt) -> bool:
        """Invariant: while a message can be delivered again, the proof that it was consumed stays (INV-8)."""
        return receipt.key not in self._outbox.get(receipt.outbox_partition, {})

    # ---- scans -----------------------------------------------------------------------------------------------------

    async def outbox(
        self, partition: int, after: str = "", limit: int = 1000, *, dead: bool = False
    ) -> list[OutboxMessage]:
        held = self._outbox.get(partition, {})
        ids = list(held)
        start = ids.index(after) + 1 if after in held else 0
        return [held[id_] for id_ in ids[start:] if bool(held[id_].dead) is dead][:limit]

    async def due_reminders(self, partitions: Sequence[int], until_ms: int, limit: int) -> list[Reminder]:
        wanted = set(partitions)
        due = [
            (reminder.due_ms, reminder.stream, reminder.name, reminder)
            for stream, reminders in self._reminders.items()
            if partition_of(stream, self.partitions) in wanted
            for reminder in reminders.values()
            if reminder.due_ms <= until_ms
        ]
        return [reminder for *_, reminder in nsmallest(limit, due)]

    async def reminders(self, stream: str) -> list[Reminder]:
        return sorted(self._reminders.get(stream, {}).values())

    async def index(self, query: IndexQuery) -> list[IndexEntry]:
        matching = (entry for name, entry in self._index.items() if name > query.after and index_matches(entry, query))
        return nsmallest(query.limit, matching)
