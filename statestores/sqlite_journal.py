"""The journal face on SQLite: a batch of turns is one SQL statement, whatever its size and whatever it does.

sqlite3 lets go of the interpreter lock in every step and has to win it back afterwards, which beside a busy event loop
can take a switch interval (5 ms) each time. So the number of steps of a commit decides its speed, and it must not grow
with the batch. Hence:

- The effects of a turn are flattened into *effects*, rows of one shape, in the order in which they apply. They are
  inserted, all turns together, into a temporary view whose triggers check them and write them to their tables
  (`_TRIGGERS`). A statement is atomic, and outside a transaction it is one: check, write and fsync are a single step.
- A batch is first tried whole (*optimism*: refusals are rare). If a trigger objects, nothing of it has happened, and
  the batch is halved until the turns that are refused stand alone (*bisection*, in one transaction). The losing
  alternative, to ask for heads, epochs and receipts first, costs every good batch steps to spare a bad one some.

No version or epoch is cached: the triggers look, in the same step, at the page the write needs anyway.
"""

from __future__ import annotations

import json
import sqlite3
from bisect import bisect_left
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from statestores.errors import DuplicateTurn, InvalidRequest, LeaseHeld, StaleEpoch, VersionConflict
from statestores.model import Event, IndexEntry, OutboxMessage, Ownership, Receipt, Reminder
from statestores.sqlite_format import check_same
from statestores.sqlite_loads import Loads, load
from statestores.sqlite_plain import Fence, is_plain, rows_of
from statestores.sqlite_transaction import in_transaction, undo
from statestores.turnrules import check_partitions, check_possible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from statestores.errors import CommitRefused
    from statestores.model import IndexQuery, StreamState, TurnCommit
    from statestores.sqlite import SqliteStore

    Answers = list[CommitRefused | None]

# ---- effects: rows of (kind, a, b, c, d, e, f, g, h) ---------------------------------------------------------------

_WIDTH = 9
(
    _NOTHING,
    _FENCE,
    _EVENT,
    _HEAD,
    _SNAPSHOT,
    _LISTING,
    _REMINDER,
    _NO_REMINDER,
    _OUTBOX,
    _DONE,
    _DEAD,
    _RECEIPT,
    _DELETE,
    _RECENT,
) = range(14)

_HEAD_OF = "coalesce((SELECT max(version) FROM main.events WHERE stream = NEW.a), 0)"
_LAST_POSITION = "coalesce((SELECT max(position) FROM main.outbox WHERE partition = NEW.a AND given_up = {}), 0)"

_TRIGGERS: dict[int, str] = {
    # Invariant: only the newest epoch of a partition may write (INV-2). a: JSON list of [partition, epoch]
    _FENCE: """SELECT RAISE(ABORT, 'epoch') FROM json_each(NEW.a) AS held WHERE json_extract(held.value, '$[1]') IS NOT
        (SELECT epoch FROM main.ownership WHERE partition = json_extract(held.value, '$[0]'));""",
    # Invariant: versions of a stream have no gap and no repetition (INV-1). a: stream, b: version, then as the table
    _EVENT: f"""SELECT RAISE(ABORT, 'version') WHERE {_HEAD_OF} <> NEW.b - 1;
        INSERT INTO events VALUES (NEW.a, NEW.b, NEW.c, NEW.d, NEW.e, NEW.f, NEW.g, NEW.h);""",
    # a: stream, b: its expected head
    _HEAD: f"SELECT RAISE(ABORT, 'version') WHERE {_HEAD_OF} <> NEW.b;",
    # a: stream, b: version, c: data
    _SNAPSHOT: "INSERT OR REPLACE INTO snapshots VALUES (NEW.a, NEW.b, NEW.c);",
    # a: stream, b: name ("": as recorded, like the status), c: status, d: created_ms (the first stays), e: updated_ms
    _LISTING: """INSERT INTO streams VALUES (NEW.a, NEW.b, NEW.c, NEW.d, NEW.e) ON CONFLICT (stream) DO UPDATE SET
        status = CASE excluded.name WHEN '' THEN status ELSE excluded.status END,
        name = CASE excluded.name WHEN '' THEN name ELSE excluded.name END,
        updated_ms = excluded.updated_ms;""",
    # a: stream, b: name, c: due_ms, d: partition, e: body
    _REMINDER: "INSERT OR REPLACE INTO reminders VALUES (NEW.a, NEW.b, NEW.c, NEW.d, NEW.e);",
    # a: stream, b: name
    _NO_REMINDER: "DELETE FROM reminders WHERE stream = NEW.a AND name = NEW.b;",
    # a: partition, b: id, c: stream, d: body, e: dead. Ids are unique for ever: one that is there is this message.
    _OUTBOX: f"""INSERT OR IGNORE INTO outbox VALUES (NEW.a, NEW.e <> '',
        1 + max({_LAST_POSITION.format(0)}, {_LAST_POSITION.format(1)}), NEW.b, NEW.c, NEW.d, NEW.e);""",
    # a: partition, b: id
    _DONE: "DELETE FROM outbox WHERE id = NEW.b AND partition = NEW.a;",
    # a: partition, b: id, c: reason
    _DEAD: "UPDATE outbox SET given_up = 1, dead = NEW.c WHERE id = NEW.b AND partition = NEW.a;",
    # Invariant: a stream consumes a key once (INV-8): the primary key objects. Columns as the table.
    _RECEIPT: "INSERT INTO receipts VALUES (NEW.a, NEW.b, NEW.c, NEW.d, NEW.e, NEW.f, NEW.g);",
    # a: stream
    _DELETE: """DELETE FROM events WHERE stream = NEW.a;
        DELETE FROM snapshots WHERE stream = NEW.a;
        DELETE FROM streams WHERE stream = NEW.a;
        DELETE FROM reminders WHERE stream = NEW.a;""",
    # a: partition, b: see `_recent`. Objects to a repeat, whose turns could pass the other checks a second time.
    _RECENT: """SELECT RAISE(ABORT, 'repeat') WHERE EXISTS
        (SELECT 1 FROM main.ownership WHERE substr(recent, 1, 33) = substr(NEW.b, 1, 33));
        UPDATE ownership SET recent = NEW.b WHERE partition = NEW.a;""",
}

# A trigger whose WHEN says no still costs a third of inserting an event. So the way to a kind's trigger branches: the
# effects of most turns come first, the others go through a second view, the rare ones through a third.
_VIEWS = (
    ("effects", (_EVENT,), "more_effects"),
    ("more_effects", (_FENCE, _HEAD, _RECEIPT, _OUTBOX, _DONE), "rare_effects"),
    ("rare_effects", (_SNAPSHOT, _LISTING, _REMINDER, _NO_REMINDER, _DEAD, _DELETE, _RECENT), ""),
)


def _views() -> list[str]:
    """The statements that make the views and their triggers, for the life of a connection."""
    statements = []
    for view, kinds, rest in _VIEWS:
        columns = "(kind, a, b, c, d, e, f, g, h)"
        statements.append(f"CREATE TEMP VIEW {view} {columns} AS SELECT {', '.join(['NULL'] * _WIDTH)}")
        bodies = {f"kind = {kind}": _TRIGGERS[kind] for kind in kinds}
        if rest:
            others = ", ".join(map(str, (*kinds, _NOTHING)))
            values = "NEW.kind, NEW.a, NEW.b, NEW.c, NEW.d, NEW.e, NEW.f, NEW.g, NEW.h"
            bodies[f"kind NOT IN ({others})"] = f"INSERT INTO {rest} VALUES ({values});"
        statements += [
            f"CREATE TEMP TRIGGER {view}_{number} INSTEAD OF INSERT ON {view} WHEN NEW.{condition} BEGIN {body} END"
            for number, (condition, body) in enumerate(bodies.items())
        ]
    return statements


# How many effects one statement takes: eight sizes to each doubling, so that each stays prepared (all together in a few
# megabytes) and little is filled up with nothing.
_SIZES = (*range(1, 16), *(eighths << doubling for doubling in range(1, 6) for eighths in range(8, 16)), 512)
_NO_EFFECT = (_NOTHING, *[None] * (_WIDTH - 1))
_ROW = "(" + ",".join("?" * _WIDTH) + ")"
_STATEMENTS = {size: "INSERT INTO effects VALUES " + ",".join([_ROW] * size) for size in _SIZES}
_LARGEST = _SIZES[-1] * _WIDTH


def _add_effects(effects: list[Any], turn: TurnCommit, *, events_apart: bool = False) -> None:
    """Append one turn's effects, in the order in which they apply; with `events_apart` all but its events."""
    (
        partition, _, stream, turn_id, time_ms, expected_version, caller, trace_id, events, snapshot, listing,
        reminders_set, reminders_cleared, outbox, outbox_done, outbox_dead, receipt, delete,
    ) = turn  # fmt: skip
    if events and events_apart:
        version = (expected_version or 0) + len(events)
    elif events:
        version = expected_version or 0
        for name, data in events:
            version += 1
            effects += (_EVENT, stream, version, name, data, time_ms, turn_id, caller, trace_id)
    elif expected_version is not None:
        version = expected_version
        effects += (_HEAD, stream, version, None, None, None, None, None, None)
    if delete:
        effects += (_DELETE, stream, None, None, None, None, None, None, None)
    if snapshot is not None:
        effects += (_SNAPSHOT, stream, version, snapshot, None, None, None, None, None)
    if listing is not None:
        effects += (_LISTING, *listing, None, None, None)
    for reminder_name in reminders_cleared:
        effects += (_NO_REMINDER, stream, reminder_name, None, None, None, None, None, None)
    for reminder in reminders_set:
        effects += (_REMINDER, stream, reminder.name, reminder.due_ms, partition, reminder.body, None, None, None)
    for message in outbox:
        effects += (_OUTBOX, partition, *message, None, None, None)
    for id_ in outbox_done:
        effects += (_DONE, partition, id_, None, None, None, None, None, None)
    for id_, reason in outbox_dead:
        effects += (_DEAD, partition, id_, reason, None, None, None, None, None)
    if receipt is not None:
        effects += (_RECEIPT, stream, *receipt, partition, turn_id, None)


def _effects_of(turns: Sequence[TurnCommit]) -> list[Any]:
    """The effects of turns, after a fence for the epochs they carry."""
    epochs = json.dumps([*{(turn.partition, turn.epoch) for turn in turns}])
    effects: list[Any] = [_FENCE, epochs, None, None, None, None, None, None, None]
    for turn in turns:
        _add_effects(effects, turn)
    return effects


def _apply(connection: sqlite3.Connection, effects: list[Any]) -> None:
    """All or nothing. Raises `sqlite3.IntegrityError` when a trigger or a key objects.

    Outside a transaction this is one; inside, a failure undoes these effects and leaves the transaction open.
    """
    if len(effects) <= _LARGEST:
        _insert(connection, effects)
        return
    connection.execute("SAVEPOINT effects")
    try:
        for start in range(0, len(effects), _LARGEST):
            _insert(connection, effects[start : start + _LARGEST])
        connection.execute("RELEASE effects")
    except BaseException:
        undo(connection, "ROLLBACK TO effects", "RELEASE effects")
        raise


def _insert(connection: sqlite3.Connection, effects: list[Any]) -> None:
    count = len(effects) // _WIDTH
    size = _SIZES[bisect_left(_SIZES, count)]
    connection.execute(_STATEMENTS[size], [*effects, *_NO_EFFECT * (size - count)])


# ---- commit --------------------------------------------------------------------------------------------------------


def _effects_beside_events(turns: Sequence[TurnCommit], others: Sequence[TurnCommit]) -> list[Any]:
    """What the `others` among the turns do beside recording events."""
    effects: list[Any] = []
    for turn in others:
        _add_effects(effects, turn, events_apart=True)
    if effects:
        _add_record(effects, turns)
    return effects


def _add_record(effects: list[Any], turns: Sequence[TurnCommit]) -> None:
    """Append the record of the call, where it needs one."""
    if any(map(_needs_record, turns)):
        record = _recent(turns, "1" * len(turns))
        effects += (_RECENT, turns[0].partition, record, None, None, None, None, None, None)


def _needs_record(turn: TurnCommit) -> bool:
    """Whether a repeat of this turn, or of one before it in the batch, could not be told from a new one by what the
    turn leaves in its stream, though it would be judged differently the second time."""
    if turn.events or turn.receipt is not None:
        return turn.delete
    only_ends_messages = turn.expected_version is None and not (
        turn.outbox or turn.reminders_set or turn.reminders_cleared or turn.listing or turn.delete
    )
    return not only_ends_messages


def _recent(turns: Sequence[TurnCommit], recorded: str) -> str:
    """The record of a call, kept with a partition it wrote to: which turns these were, and which of them were recorded.

    A call whose answer was lost is repeated before the same owner makes another one, so the latest is enough. Written
    only for batches in which some turn `_needs_record`; all others are recognised by their events and receipts.
    """
    ids = "\n".join(turn.turn_id for turn in turns).encode(errors="surrogatepass")
    return f"{blake2b(ids, digest_size=16).hexdigest()}:{recorded}"


def _commit(connection: sqlite3.Connection, turns: Sequence[TurnCommit], effects: list[Any]) -> Answers:
    try:
        _apply(connection, effects)
    except sqlite3.IntegrityError:
        return in_transaction(connection, lambda _: _Bisection(connection, turns).run())
    return [None] * len(turns)


class _Bisection:
    """Finds and refuses the turns of a batch that cannot be recorded, and records the others, in order."""

    def __init__(self, connection: sqlite3.Connection, turns: Sequence[TurnCommit]) -> None:
        self._connection = connection
        self._turns = turns
        self._answers: Answers = [None] * len(turns)

    def run(self) -> Answers:
        owned = self._ownership()
        recorded = self._recorded_before(owned)
        for place, turn in enumerate(self._turns):
            newest, _ = owned.get(turn.partition, (0, ""))
            if turn.epoch != newest or newest == 0:
                self._answers[place] = StaleEpoch(turn.partition, turn.epoch, newest)
        open_places = [
            place for place, answer in enumerate(self._answers) if answer is None and recorded[place : place + 1] != "1"
        ]
        self._record(open_places)
        self._remember()
        return self._answers

    def _ownership(self) -> dict[int, tuple[int, str]]:
        partitions = json.dumps([*{turn.partition for turn in self._turns}])
        rows = self._connection.execute(
            "SELECT partition, epoch, recent FROM ownership WHERE partition IN (SELECT value FROM json_each(?))",
            (partitions,),
        )
        return {partition: (epoch, recent) for partition, epoch, recent in rows}

    def _recorded_before(self, owned: dict[int, tuple[int, str]]) -> str:
        """A "1" for each turn that the same call has recorded before, "" when this is no repeat of the latest call."""
        this = _recent(self._turns, "")
        return next((recent.removeprefix(this) for _, recent in owned.values() if recent.startswith(this)), "")

    def _record(self, places: list[int]) -> None:
        if not places:
            return
        effects: list[Any] = []
        for place in places:
            _add_effects(effects, self._turns[place])
        try:
            _apply(self._connection, effects)
        except sqlite3.IntegrityError as objection:
            if len(places) == 1:
                self._answers[places[0]] = _verdict(self._connection, self._turns[places[0]], objection)
                return
            middle = len(places) // 2
            self._record(places[:middle])
            self._record(places[middle:])

    def _remember(self) -> None:
        recorded = [turn for turn, answer in zip(self._turns, self._answers, strict=True) if answer is None]
        if any(map(_needs_record, recorded)):
            marks = "".join("1" if answer is None else "0" for answer in self._answers)
            self._connection.execute(
                "UPDATE ownership SET recent = ? WHERE partition = ?",
                (_recent(self._turns, marks), recorded[0].partition),
            )


def _verdict(connection: sqlite3.Connection, turn: TurnCommit, objection: Exception) -> CommitRefused | None:
    """Why a turn was objected to; None when it is there already."""
    if turn.receipt is not None:
        kept = connection.execute(
            f"SELECT {_RECEIPT_COLUMNS}, turn_id FROM receipts WHERE stream = ? AND key = ?",
            (turn.stream, turn.receipt.key),
        ).fetchone()
        if kept is not None:
            return None if kept[-1] == turn.turn_id else DuplicateTurn(turn.stream, Receipt(*kept[:-1]))
    if turn.expected_version is not None:
        head, recorded_by = connection.execute(
            "SELECT coalesce(max(version), 0), (SELECT turn_id FROM events WHERE stream = :stream AND version = :next)"
            " FROM events WHERE stream = :stream",
            {"stream": turn.stream, "next": turn.expected_version + 1},
        ).fetchone()
        if turn.events and recorded_by == turn.turn_id:
            return None
        if head != turn.expected_version:
            return VersionConflict(turn.stream, turn.expected_version, head)
    raise objection  # no refusal: the turn holds a value that the layout does not allow


# ---- reads ---------------------------------------------------------------------------------------------------------

_EVENT_COLUMNS = "version, name, data, time_ms, turn_id, caller, trace_id"
_RECEIPT_COLUMNS = "key, reply, expires_ms, outbox_partition"
# Parameters of one statement, well below what SQLite can be built to refuse.
_KEYS_AT_ONCE = 500


def _receipts(connection: sqlite3.Connection, stream: str, keys: Sequence[str]) -> dict[str, Receipt]:
    """Keys are parameters, not JSON, which would end at a NUL in one of them. Their number is rounded up by repeating
    one, so that there are few statements to prepare."""
    found: dict[str, Receipt] = {}
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        some = keys[start : start + _KEYS_AT_ONCE]
        size = 1 << (len(some) - 1).bit_length()
        select = f"SELECT {_RECEIPT_COLUMNS} FROM receipts WHERE stream = ? AND key IN ({','.join('?' * size)})"
        rows = connection.execute(select, (stream, *some, *[some[-1]] * (size - len(some))))
        found.update((row[0], Receipt._make(row)) for row in rows)
    return found


def _prefix_range(prefix: str) -> tuple[bytes, bytes]:
    """No UTF-8 text contains the byte 0xFF: it is above whatever follows the prefix."""
    start = prefix.encode()
    return start, start + b"\xff"


def _index(connection: sqlite3.Connection, query: IndexQuery) -> list[IndexEntry]:
    conditions = ["stream > ?"]
    parameters: list[Any] = [query.after]
    if query.type:
        conditions.append("stream >= CAST(? AS TEXT) AND stream < CAST(? AS TEXT)")
        parameters += _prefix_range(f"{query.type}/{query.id_prefix}")
    elif query.id_prefix:
        prefix = query.id_prefix.encode()
        conditions.append("substr(CAST(stream AS BLOB), instr(CAST(stream AS BLOB), x'2f') + 1, ?) = ?")
        parameters += (len(prefix), prefix)
    if query.name:
        conditions.append("name = ?")
        parameters.append(query.name)
    if query.statuses:
        conditions.append(f"status IN ({','.join('?' * len(query.statuses))})")
        parameters += query.statuses
    if query.created_from_ms is not None:
        conditions.append("created_ms >= ?")
        parameters.append(query.created_from_ms)
    if query.created_to_ms is not None:
        conditions.append("created_ms < ?")
        parameters.append(query.created_to_ms)
    rows = connection.execute(
        f"SELECT * FROM streams WHERE {' AND '.join(conditions)} ORDER BY stream LIMIT ?", (*parameters, query.limit)
    )
    return [IndexEntry._make(row) for row in rows]


# ---- ownership -----------------------------------------------------------------------------------------------------

_OWNERSHIP = "SELECT partition, epoch, owner, lease_until_ms FROM ownership"
_PAIRS = "(partition, epoch) IN (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?))"


def _owners_of(connection: sqlite3.Connection, partitions: Sequence[int]) -> list[Ownership]:
    rows = connection.execute(
        f"{_OWNERSHIP} WHERE partition IN (SELECT value FROM json_each(?))", (json.dumps([*partitions]),)
    )
    by_partition = {row[0]: Ownership._make(row) for row in rows}
    return [by_partition[partition] for partition in partitions if partition in by_partition]


def _acquire(
    connection: sqlite3.Connection, partitions: Sequence[int], owner: str, now_ms: int, lease_ms: int, force: bool
) -> list[Ownership]:
    for holder in _owners_of(connection, partitions):
        if not force and holder.owner != owner and holder.lease_until_ms > now_ms:
            raise LeaseHeld(holder)
    # Invariant: epochs only grow (INV-2). An owner's record of its latest call ends with its epoch.
    connection.execute(
        "INSERT INTO ownership (partition, epoch, owner, lease_until_ms)"
        " SELECT DISTINCT value, 1, ?, ? FROM json_each(?) WHERE true ON CONFLICT (partition) DO UPDATE SET"
        " epoch = epoch + 1, owner = excluded.owner, lease_until_ms = excluded.lease_until_ms, recent = ''",
        (owner, now_ms + lease_ms, json.dumps([*partitions])),
    )
    return _owners_of(connection, partitions)


def _renew(
    connection: sqlite3.Connection, owned: Sequence[tuple[int, int]], owner: str, lease_until_ms: int
) -> list[Ownership]:
    connection.execute(
        f"UPDATE ownership SET lease_until_ms = ? WHERE owner = ? AND {_PAIRS}",
        (lease_until_ms, owner, json.dumps([*owned])),
    )
    current = {(held.partition, held.epoch): held for held in _owners_of(connection, [p for p, _ in owned])}
    return [current[pair] for pair in owned if pair in current and current[pair].owner == owner]


def _release(connection: sqlite3.Connection, owned: Sequence[tuple[int, int]]) -> None:
    connection.execute(f"UPDATE ownership SET lease_until_ms = 0 WHERE {_PAIRS}", (json.dumps([*owned]),))


# ---- the face ------------------------------------------------------------------------------------------------------


# A value that cannot be bound (a lone surrogate, a number of more than 64 bits), that is too long, or that a column
# refuses. Nothing is recorded: what is raised ends the statement or the transaction.
_IMPOSSIBLE = (ValueError, OverflowError, sqlite3.IntegrityError, sqlite3.DataError)


class SqliteJournal:
    """The journal in the store's file. Each call is one transaction, or one statement that is one."""

    # A transaction of two statements takes the interpreter lock four times where one statement takes it once. It is
    # worth it when at most one turn in so many does more than record events.
    worth_two_statements = 8

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._fence = Fence()
        self._loads = Loads(store.read)

    @staticmethod
    def prepare_writer(connection: sqlite3.Connection) -> None:
        """Give the writer's connection the view and triggers that commits go through. They live as long as it does."""
        connection.execute("PRAGMA temp_store = MEMORY")
        for statement in _views():
            connection.execute(statement)

    @property
    def partitions(self) -> int:
        return self._store.partitions

    async def acquire(
        self, partitions: Sequence[int], owner: str, now_ms: int, lease_ms: int, *, force: bool = False
    ) -> list[Ownership]:
        check_partitions(partitions, self.partitions)

        def take(connection: sqlite3.Connection) -> list[Ownership]:
            check_same(connection, self._store.path, self.partitions)
            return _acquire(connection, partitions, owner, now_ms, lease_ms, force)

        return await self._store.write(take)

    async def renew(self, owned: Sequence[tuple[int, int]], owner: str, now_ms: int, lease_ms: int) -> list[Ownership]:
        return await self._store.write(lambda c: _renew(c, owned, owner, now_ms + lease_ms))

    async def release(self, owned: Sequence[tuple[int, int]]) -> None:
        await self._store.write(lambda c: _release(c, owned))

    async def owners(self) -> list[Ownership]:
        rows = await self._store.read(lambda c: c.execute(f"{_OWNERSHIP} ORDER BY partition").fetchall())
        return [Ownership._make(row) for row in rows]

    async def commit(self, turns: Sequence[TurnCommit]) -> list[CommitRefused | None]:
        if not turns:
            return []
        check_possible(turns, self.partitions)
        try:
            return await self._commit(turns)
        except _IMPOSSIBLE as error:
            raise InvalidRequest(f"a turn holds a value that SQLite cannot: {error}") from error

    async def _commit(self, turns: Sequence[TurnCommit]) -> Answers:
        """The effects are laid out here, on the caller's thread: it holds the interpreter lock already."""
        others = [turn for turn in turns if not is_plain(turn)]
        if len(turns) >= self.worth_two_statements * len(others) and (values := rows_of(turns)) is not None:
            beside = _effects_beside_events(turns, others)
            if await self._store.run_writer(lambda c: self._commit_events(c, turns, values, beside)):
                return [None] * len(turns)
        effects = _effects_of(turns)
        _add_record(effects, turns)
        return await self._store.run_writer(lambda connection: _commit(connection, turns, effects))

    def _commit_events(
        self, connection: sqlite3.Connection, turns: Sequence[TurnCommit], values: list[Any], beside: list[Any]
    ) -> bool:
        """The short way: events first, then what the turns do beside them. False: nothing was recorded."""
        if not self._fence.admits(connection, turns):
            return False
        try:
            if not beside:
                self._fence.insert(connection, values)
            else:
                in_transaction(connection, lambda _: self._insert_both(connection, values, beside))
        except sqlite3.IntegrityError:
            return False
        return True

    def _insert_both(self, connection: sqlite3.Connection, values: list[Any], beside: list[Any]) -> None:
        """Invariant: the fence that the first statement checks holds to the end of the transaction (INV-2)."""
        self._fence.insert(connection, values)
        _apply(connection, beside)

    async def load(self, stream: str, at_version: int | None = None) -> StreamState:
        if at_version is None:
            return await self._loads.load(stream)
        return await self._store.read(lambda connection: load(connection, stream, at_version))

    async def events(self, stream: str, after_version: int = 0, limit: int = 1000) -> list[Event]:
        select = f"SELECT {_EVENT_COLUMNS} FROM events WHERE stream = ? AND version > ? ORDER BY version LIMIT ?"
        rows = await self._store.read(lambda c: c.execute(select, (stream, after_version, limit)).fetchall())
        return [Event._make(row) for row in rows]

    async def receipts(self, stream: str, keys: Sequence[str]) -> list[Receipt | None]:
        found = await self._store.read(lambda connection: _receipts(connection, stream, keys))
        return [found.get(key) for key in keys]

    async def purge_receipts(self, partition: int, now_ms: int, limit: int) -> int:
        """Invariant: while a message can be delivered again, the proof that it was consumed stays (INV-8)."""
        delete = (
            "DELETE FROM receipts WHERE (stream, key) IN (SELECT stream, key FROM receipts AS kept"
            " WHERE partition = ? AND expires_ms <= ? AND NOT EXISTS (SELECT 1 FROM outbox"
            " WHERE id = kept.key AND outbox.partition = kept.outbox_partition) LIMIT ?)"
        )
        return await self._store.write(lambda c: c.execute(delete, (partition, now_ms, limit)).rowcount)

    async def outbox(
        self, partition: int, after: str = "", limit: int = 1000, *, dead: bool = False
    ) -> list[OutboxMessage]:
        select = (
            "SELECT id, stream, body, dead FROM outbox WHERE partition = :partition AND given_up = :dead AND position >"
            " coalesce((SELECT position FROM outbox WHERE id = :after AND partition = :partition), 0)"
            " ORDER BY position LIMIT :limit"
        )
        wanted = {"partition": partition, "dead": dead, "after": after, "limit": limit}
        rows = await self._store.read(lambda c: c.execute(select, wanted).fetchall())
        return [OutboxMessage._make(row) for row in rows]

    async def due_reminders(self, partitions: Sequence[int], until_ms: int, limit: int) -> list[Reminder]:
        select = (
            "SELECT stream, name, due_ms, body FROM reminders WHERE due_ms <= ?"
            " AND partition IN (SELECT value FROM json_each(?)) ORDER BY due_ms, stream, name LIMIT ?"
        )
        wanted = json.dumps([*partitions])
        rows = await self._store.read(lambda c: c.execute(select, (until_ms, wanted, limit)).fetchall())
        return [Reminder._make(row) for row in rows]

    async def reminders(self, stream: str) -> list[Reminder]:
        select = "SELECT stream, name, due_ms, body FROM reminders WHERE stream = ? ORDER BY name"
        rows = await self._store.read(lambda c: c.execute(select, (stream,)).fetchall())
        return [Reminder._make(row) for row in rows]

    async def index(self, query: IndexQuery) -> list[IndexEntry]:
        return [] if "/" in query.type else await self._store.read(lambda c: _index(c, query))
