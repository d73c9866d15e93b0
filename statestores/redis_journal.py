"""The journal face on Redis. The layout, and what is atomic, stand at the top of ``redis_journal.lua``.

Ownership of all partitions is one hash, so that taking several over is one step. The fence that commits are checked
against stands with each partition, under its own hash tag, and is raised after the ownership was written and before
`acquire` returns: nobody holds an epoch that the fence does not know. When the taker dies between the two, the old
owner may go on committing, rightly, since nobody took its place.
"""

from __future__ import annotations

import struct
from heapq import merge
from itertools import islice
from secrets import token_hex
from typing import TYPE_CHECKING

from statestores import redis_records as records
from statestores.errors import (
    DuplicateTurn,
    FormatError,
    InvalidRequest,
    LeaseHeld,
    StaleEpoch,
    StoreError,
    VersionConflict,
)
from statestores.model import (
    FORMAT_VERSION,
    IndexEntry,
    NewEvent,
    OutboxMessage,
    Ownership,
    Receipt,
    Reminder,
    StreamState,
    TurnCommit,
    partition_of,
)
from statestores.redis_link import load_scripts
from statestores.redis_turns import PartitionKeys, PartitionTurns
from statestores.turnrules import check_partitions, check_possible

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from statestores.errors import CommitRefused
    from statestores.model import Event, IndexQuery
    from statestores.redis_link import Answer, Call, RedisLink

SCRIPTS = load_scripts("redis_journal.lua")

TURNS_REMEMBERED = 4096
"""Of each partition, at least so many of the latest turn ids are kept to recognise a repeat. Turns that recorded events
or a receipt are recognised by those as well, for as long as they stand."""

_TURNS_PER_CALL = 1000
_BYTES_PER_CALL = 16 * 1024 * 1024
_PAGE = 1000
_LEAST_PAGE = 100
_EVENTS_PER_CALL = 5000

_STALE_EPOCH, _VERSION_CONFLICT, _DUPLICATE_TURN = 1, 2, 3

_REHEARSED = "rehearsal"


class RedisJournal:
    """Fenced, atomic, ordered: a partition's turns of a commit are one run of a script, which is whole (INV-4)."""

    def __init__(self, link: RedisLink, namespace: str, *, one_slot: bool) -> None:
        """`one_slot`: a call must keep to one hash slot, as on a cluster."""
        self._link = link
        self._one_slot = one_slot
        self._namespace = namespace
        self._partitions = 0
        self._owners = f"{{mecha:{namespace}}}:owners"
        self._meta = f"{{mecha:{namespace}}}:meta"
        self._keys: list[PartitionKeys] = []

    @property
    def partitions(self) -> int:
        """0 before the store was opened."""
        return self._partitions

    def set_partitions(self, partitions: int) -> None:
        """For the store's `open`, which reads the number from the server."""
        self._partitions = partitions
        self._keys = [PartitionKeys(f"{{mecha:{self._namespace}:{number}}}") for number in range(partitions)]

    @property
    def _record(self) -> tuple[int, int]:
        """What the namespace says of itself."""
        return FORMAT_VERSION, self._partitions

    async def rehearse(self) -> None:
        """Run turns that use every command of the commit script on a scratch partition. A user whose rights are too
        narrow is found out here: an error half-way through a real turn would leave half of it.

        Stores that open at the same moment share the place, so that one which dies leaves nothing that the next does
        not clear. What it takes to share it: their turns have ids of their own, the script is whole, and who finds
        the fence cleared away puts it up again."""
        unique = token_hex(8)
        keys = PartitionKeys(f"{{mecha:{self._namespace}:rehearsal}}")
        part = PartitionTurns(keys)
        for place, turn in enumerate(_rehearsal(unique)):
            part.add(place, turn)
        owners, record = f"{keys.tag}:owners", f"{keys.tag}:record"
        await self._link.one(SCRIPTS["acquire"].call([owners, record], _REHEARSED, 0, 0, 0, *self._record, 0))
        cleared = True
        while cleared:
            await self._link.one(SCRIPTS["fence"].call([keys.meta], 1))
            refused = await self._link.one(_commit_call([part], generation=1))
            cleared = any(kind == _STALE_EPOCH for _, kind, _ in refused)
        await self._link.one(("UNLINK", owners, record, *keys.all, keys.receipts(_REHEARSED)))
        assert not refused, refused

    # ---- ownership -------------------------------------------------------------------------------------------------

    async def acquire(
        self, partitions: Sequence[int], owner: str, now_ms: int, lease_ms: int, *, force: bool = False
    ) -> list[Ownership]:
        check_partitions(partitions, self._partitions)
        if not partitions:
            return []
        until_ms = now_ms + lease_ms
        call = SCRIPTS["acquire"].call(
            [self._owners, self._meta], owner, now_ms, until_ms, int(force), *self._record, *partitions
        )
        what, *answer = await self._link.one(call, durable=True)
        if what == b"other":
            raise FormatError(
                f"namespace {self._namespace} has been migrated or made anew since it was opened: start this program"
                " again"
            )
        if what == b"held":
            raise LeaseHeld(records.ownership(int(answer[0]), answer[1]))
        fences = [
            SCRIPTS["fence"].call([self._keys[partition].meta], epoch)
            for partition, epoch in zip(partitions, answer, strict=True)
        ]
        await self._link.all(fences, durable=True)
        return [Ownership(p, epoch, owner, until_ms) for p, epoch in zip(partitions, answer, strict=True)]

    async def renew(self, owned: Sequence[tuple[int, int]], owner: str, now_ms: int, lease_ms: int) -> list[Ownership]:
        kept = await self._extend(owned, owner, now_ms + lease_ms)
        return [Ownership(partition, epoch, owner, now_ms + lease_ms) for partition, epoch in kept]

    async def release(self, owned: Sequence[tuple[int, int]]) -> None:
        await self._extend(owned, "", 0)

    async def owners(self) -> list[Ownership]:
        found = await self._link.one(SCRIPTS["hash"].call([self._owners]))
        return sorted(records.ownership(int(partition), held) for partition, held in _pairs(found))

    async def _extend(self, owned: Sequence[tuple[int, int]], owner: str, until_ms: int) -> list[tuple[int, int]]:
        """The pairs whose epoch is still the newest; their lease now ends at `until_ms`."""
        if not owned:
            return []
        pairs = [number for pair in owned for number in pair]
        # Durable: were a lease forgotten that its owner relies on, another could serve before it ends (INV-7).
        kept = await self._link.one(SCRIPTS["renew"].call([self._owners], owner, until_ms, *pairs), durable=True)
        return [owned[number] for number in kept]

    # ---- commit ----------------------------------------------------------------------------------------------------

    async def commit(self, turns: Sequence[TurnCommit]) -> list[CommitRefused | None]:
        check_possible(turns, self._partitions)
        _check_storable(turns, self._partitions)
        answers: list[CommitRefused | None] = [None] * len(turns)
        try:
            rounds = self._rounds(turns)
        except (ValueError, struct.error) as error:  # a lone surrogate, or a number of more than 64 bits
            raise InvalidRequest(f"a turn holds a value that Redis cannot: {error}") from error
        for parts in rounds:
            bundles = [[part] for part in parts] if self._one_slot else [parts]
            calls = [_commit_call(bundle) for bundle in bundles]
            try:
                refusals = await self._link.all(calls, durable=True, once=True)
            except UnicodeEncodeError as error:
                if len(rounds) > 1 or len(calls) > 1:  # others may have been recorded: nothing can be said of all
                    raise
                raise InvalidRequest(f"a turn holds a text that Redis cannot: {error}") from error
            for bundle, refused in zip(bundles, refusals, strict=True):
                places = [place for part in bundle for place in part.places]
                for number, kind, detail in refused:
                    answers[places[number]] = _refusal(turns[places[number]], kind, detail)
        return answers

    def _rounds(self, turns: Sequence[TurnCommit]) -> list[list[PartitionTurns]]:
        """What may go out together: a cluster takes a call per partition, since a call must keep to one slot; a server
        alone takes all in one call, which costs it half as much. Very many turns, or very large ones, are several
        rounds, each of which waits for the answer to the one before: that keeps their order whatever is retried."""
        rounds: list[dict[int, PartitionTurns]] = []
        turns_left = bytes_left = 0
        for place, turn in enumerate(turns):
            if turns_left <= 0 or bytes_left <= 0:
                parts: dict[int, PartitionTurns] = {}
                rounds.append(parts)
                turns_left, bytes_left = _TURNS_PER_CALL, _BYTES_PER_CALL
            part = parts.get(turn.partition)
            if part is None:
                part = parts[turn.partition] = PartitionTurns(self._keys[turn.partition])
            turns_left -= 1
            bytes_left -= part.add(place, turn)
        return [[*parts.values()] for parts in rounds]

    # ---- streams ---------------------------------------------------------------------------------------------------

    async def load(self, stream: str, at_version: int | None = None) -> StreamState:
        keys = self._keys_of(stream)
        wanted = -1 if at_version is None else max(0, at_version)
        call = SCRIPTS["load"].call([keys.events(stream), keys.snapshot(stream)], wanted, _EVENTS_PER_CALL)
        version, kept, *raw = await self._link.one(call)
        snapshot = records.snapshot(kept)
        events = records.events(raw, snapshot.version if snapshot else 0)
        while (reached := events[-1].version if events else version) < version:
            # Recorded events never change, so what comes in pages is what one answer would have held.
            page = await self.events(stream, reached, min(_EVENTS_PER_CALL, version - reached))
            if not page:
                raise StoreError(f"{stream} was deleted while it was being read")
            events += page
        return StreamState(version, snapshot, events)

    async def events(self, stream: str, after_version: int = 0, limit: int = 1000) -> list[Event]:
        start = max(0, after_version)
        if limit <= 0:
            return []
        key = self._keys_of(stream).events(stream)
        return records.events(await self._link.one(("LRANGE", key, start, start + limit - 1)), start)

    # ---- receipts --------------------------------------------------------------------------------------------------

    async def receipts(self, stream: str, keys: Sequence[str]) -> list[Receipt | None]:
        if not keys:
            return []
        found = await self._link.one(("HMGET", self._keys_of(stream).receipts(stream), *keys))
        return [None if kept is None else records.receipt(key, kept) for key, kept in zip(keys, found, strict=True)]

    async def purge_receipts(self, partition: int, now_ms: int, limit: int) -> int:
        """Looks at the outbox a receipt belongs to before the receipt goes. The two need not be looked at in one step:
        ids are never used again, so a message that is gone stays gone."""
        keys = self._keys[partition]
        gone = blocked = 0
        while gone < limit:
            page = min(_PAGE, max(_LEAST_PAGE, limit - gone))
            expired = ("ZRANGEBYSCORE", keys.expiry, "-inf", now_ms, "LIMIT", blocked, page)
            members = [records.member_parts(member) for member in await self._link.one(expired)]
            if not members:
                break
            free = await self._without_message(keys, members)
            went = await self._purge(keys, free[: limit - gone], now_ms)
            gone += went
            blocked += len(members) - went
        return gone

    async def _without_message(
        self, keys: PartitionKeys, members: list[tuple[bytes, bytes]]
    ) -> list[tuple[bytes, bytes]]:
        """Those receipts whose message, if they are a message's, is in its outbox no more."""
        kept = await self._link.all([("HGET", keys.receipts(stream.decode()), key) for stream, key in members])
        origins = [-1 if one is None else records.outbox_partition(one) for one in kept]
        asked = [i for i, origin in enumerate(origins) if 0 <= origin < self._partitions]
        stand = await self._link.all([("HEXISTS", self._keys[origins[i]].outbox, members[i][1]) for i in asked])
        standing = {i for i, found in zip(asked, stand, strict=True) if found}
        return [member for i, member in enumerate(members) if i not in standing]

    async def _purge(self, keys: PartitionKeys, members: list[tuple[bytes, bytes]], now_ms: int) -> int:
        if not members:
            return 0
        names = [keys.expiry, *(keys.receipts(stream.decode()) for stream, _ in members)]
        flat = [part for member in members for part in member]
        return int(await self._link.one(SCRIPTS["purge"].call(names, now_ms, *flat)))

    # ---- scans -----------------------------------------------------------------------------------------------------

    async def outbox(
        self, partition: int, after: str = "", limit: int = 1000, *, dead: bool = False
    ) -> list[OutboxMessage]:
        keys = self._keys[partition]
        queues = [keys.dead, keys.queue] if dead else [keys.queue, keys.dead]
        answer = await self._link.one(SCRIPTS["outbox"].call([keys.outbox, *queues], after, max(0, limit)))
        return [records.message(id_, kept) for id_, kept in zip(answer[::2], answer[1::2], strict=True)]

    async def due_reminders(self, partitions: Sequence[int], until_ms: int, limit: int) -> list[Reminder]:
        """The soonest of each partition, merged; then the bodies of those that are wanted. A reminder that is cleared
        or moved between the two reads is left out. Every partition is asked for its share of the limit and some more,
        and for more again only while it could still hold one of the soonest: from its start, since places move."""
        if limit <= 0 or not partitions:
            return []
        share = 16 + 2 * limit // len(partitions)
        asked = dict.fromkeys(partitions, min(limit, share))
        pages: dict[int, list[tuple[int, bytes, bytes, int]]] = {}
        behind = [*asked]
        while behind:
            scans = await self._link.all([self._soonest(p, until_ms, asked[p]) for p in behind])
            for p, scan in zip(behind, scans, strict=True):
                pages[p] = [_due(member, due, p) for member, due in _pairs(scan)]
            due = list(islice(merge(*pages.values()), limit))
            last = due[-1] if len(due) == limit else None
            behind = [
                p for p, page in pages.items() if len(page) == asked[p] < limit and (last is None or page[-1] < last)
            ]
            asked |= {p: min(limit, 4 * asked[p]) for p in behind}
        bodies = await self._link.all(
            [("HGET", self._keys[p].reminders(stream.decode()), name) for _, stream, name, p in due]
        )
        found = (
            records.reminder(stream.decode(), name, body)
            for (_, stream, name, _), body in zip(due, bodies, strict=True)
            if body is not None
        )
        return sorted((r for r in found if r.due_ms <= until_ms), key=lambda r: (r.due_ms, r.stream, r.name))

    def _soonest(self, partition: int, until_ms: int, count: int) -> Call:
        return ("ZRANGEBYSCORE", self._keys[partition].due, "-inf", until_ms, "WITHSCORES", "LIMIT", 0, count)

    async def reminders(self, stream: str) -> list[Reminder]:
        found = await self._link.one(SCRIPTS["hash"].call([self._keys_of(stream).reminders(stream)]))
        return sorted(records.reminder(stream, name, body) for name, body in _pairs(found))

    async def index(self, query: IndexQuery) -> list[IndexEntry]:
        """Every partition is asked at once for its share of a page and some more; then only those that could still
        hold one of the wanted entries are asked again."""
        if query.limit <= 0 or "/" in query.type:  # a type ends at the first slash
            return []
        share = 16 + 2 * query.limit // self._partitions
        scans = [_IndexScan(keys, query, share) for keys in self._keys]
        while True:
            found = sorted(entry for scan in scans for entry in scan.found)[: query.limit]
            last = found[-1].stream.encode() if len(found) == query.limit else None
            behind = [scan for scan in scans if not scan.done and (last is None or scan.reached < last)]
            if not behind:
                return found
            answers = await self._link.all([scan.call() for scan in behind])
            for scan, answer in zip(behind, answers, strict=True):
                scan.take(answer)

    def _keys_of(self, stream: str) -> PartitionKeys:
        return self._keys[partition_of(stream, self._partitions)]


def _commit_call(parts: Sequence[PartitionTurns], generation: int | None = None) -> Call:
    keys = [key for part in parts for key in part.keys]
    arguments = [a for part in parts for a in (len(part.places), *part.turn_ids, *part.arguments)]
    return SCRIPTS["commit"].call(keys, generation or TURNS_REMEMBERED, len(parts), *arguments)


def _check_storable(turns: Sequence[TurnCommit], partitions: int) -> None:
    """What this layout asks for beyond the rules all stores share."""
    for turn in turns:
        if not 0 <= turn.partition < partitions:
            raise InvalidRequest(f"turn {turn.turn_id!r}: there is no partition {turn.partition}")
        owns = turn.delete or turn.listing or turn.receipt or turn.reminders_set or turn.reminders_cleared
        if owns and turn.expected_version is None and turn.partition != partition_of(turn.stream, partitions):
            raise InvalidRequest(f"turn {turn.turn_id!r}: {turn.stream!r} does not live in partition {turn.partition}")


def _refusal(turn: TurnCommit, kind: int, detail: Answer) -> CommitRefused:
    if kind == _STALE_EPOCH:
        return StaleEpoch(turn.partition, turn.epoch, detail)
    if kind == _DUPLICATE_TURN:
        assert turn.receipt is not None
        return DuplicateTurn(turn.stream, records.receipt(turn.receipt.key, detail))
    assert kind == _VERSION_CONFLICT
    assert turn.expected_version is not None
    return VersionConflict(turn.stream, turn.expected_version, detail)


def _rehearsal(unique: str) -> Iterator[TurnCommit]:
    """Turns that use everything, and delete the stream they make; its receipts stay."""
    stream = _REHEARSED
    bare = TurnCommit(partition=0, epoch=1, stream=stream, turn_id="", time_ms=0)
    yield bare._replace(turn_id=f"{unique}-1", delete=True)
    yield bare._replace(
        turn_id=f"{unique}-2",
        expected_version=0,
        events=(NewEvent("rehearsed", b""),),
        snapshot=b"",
        listing=IndexEntry(stream, "", "", 0, 0),
        reminders_set=(Reminder(stream, "a", 0, b""), Reminder(stream, "b", 0, b"")),
        outbox=tuple(OutboxMessage(f"{unique}-{name}", stream, b"") for name in "abc"),
        receipt=Receipt(unique, b"", 0),
    )
    yield bare._replace(
        turn_id=f"{unique}-3",
        reminders_cleared=("a",),
        outbox_done=(f"{unique}-a",),
        outbox_dead=((f"{unique}-b", "rehearsed"),),
    )
    yield bare._replace(turn_id=f"{unique}-3", expected_version=0, events=(NewEvent("rehearsed", b""),))
    yield bare._replace(turn_id=f"{unique}-4", delete=True)


def _due(member: bytes, due: bytes, partition: int) -> tuple[int, bytes, bytes, int]:
    """What reminders are merged by; the partition says where the body is."""
    stream, name = records.member_parts(member)
    return int(float(due)), stream, name, partition


def _pairs(flat: Sequence[Answer]) -> Iterator[tuple[Answer, Answer]]:
    return zip(flat[::2], flat[1::2], strict=True)


class _IndexScan:
    """One partition's part of a listing: what was found so far, and up to where. Streams come as bytes, whose order is
    that of code points."""

    __slots__ = ("_from", "_keys", "_query", "_share", "_to", "done", "found", "reached")

    def __init__(self, keys: PartitionKeys, query: IndexQuery, share: int) -> None:
        self.found: list[IndexEntry] = []
        self.reached = b""  # everything up to here was looked at
        self.done = False
        self._keys = keys
        self._query = query
        self._share = share
        prefix = f"{query.type}/{query.id_prefix}".encode() if query.type else b""
        after = query.after.encode()
        self._from = (b"[" + prefix if prefix > after else b"(" + after) if prefix or after else b"-"
        self._to = b"(" + prefix + b"\xff" if prefix else b"+"  # no UTF-8 text contains this byte

    def call(self) -> Call:
        query = self._query
        return SCRIPTS["index"].call(
            [self._keys.streams, self._keys.index],
            self._from,
            self._to,
            self._share,
            _PAGE if self._is_filtered else self._share,
            "" if query.type else query.id_prefix,
            query.name,
            "" if query.created_from_ms is None else query.created_from_ms,
            "" if query.created_to_ms is None else query.created_to_ms,
            *query.statuses,
        )

    @property
    def _is_filtered(self) -> bool:
        """Whether entries in the range may not match, so that it takes a look at more of them than are wanted."""
        query = self._query
        bounds = (query.created_from_ms, query.created_to_ms)
        return bool(query.name or query.statuses or (query.id_prefix and not query.type)) or bounds != (None, None)

    def take(self, answer: Answer) -> None:
        last, *flat = answer
        self.found += [records.entry(stream, blob) for stream, blob in _pairs(flat)]
        self.done = not last
        self.reached = last
        self._from = b"(" + last
