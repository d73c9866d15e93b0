"""Large values stand beside the history, which refers to them (a *claim check*; Temporal's external storage).

An argument, result, input, output or event whose JSON is longer than `Keeper.limit` is stored in chunks through the
store's payloads face; what is recorded is a *reference*, its digest and size, and with the record that first has it the
*id* under which the value was stored. An id is used once: by one writer, for one value.

    Invariant (PAY-1): a reference that is recorded can be read, for as long as its record, or a message that has it,
    stands.
    Invariant (PAY-2): a value that nothing recorded refers to is removed: at once where this process knows that it was
    given up, else by a sweep, which comes past every value once in (values / `_SWEPT_AT_ONCE`) minutes and leaves it
    alone while it is younger than `GRACE_MS`.

PAY-1 needs two things. The value is durable before its record is: nobody commits an id that `keep` has not returned.
And no sweep removes what may still be recorded, however late, paused or deposed those are who would record it, or who
sweeps. That follows from the epochs (INV-2), by one rule:

    Rule: an id begins with the epoch of whoever made it, and a turn records for the first time only ids of its own
    epoch. A value that comes under another one, from a host that had the partition before or never had it, is stored
    again under an id of the turn's.

    whose id               may a record of it still come?       so the owner under epoch E
    ---------------------  -----------------------------------  ------------------------------------------------------
    of an epoch before E   no: the store refuses that epoch,    removes it, if no record that it reads now has it
                           and turns of E do not record it
    of epoch E             yes, by this process: it is in       leaves it alone while it is in flight; else as above,
                           flight until its turn is over        since it was out of flight before the record was read
    of an epoch after E    yes: we are deposed                  leaves it alone

A sweep that was decided on long ago is as right as a new one: what it found unrecorded stays so. The grace saves the
call of whoever stores a value for an actor that another host owns. Safety rests on it in two cases, both of an id that
is out of flight while its commit is still on its way to the store, `GRACE_MS` after its value: the host has given up
the commit, its outcome unknown; or whoever had asked for the turn (`WorkflowClient`) was cancelled meanwhile.

    crash                                  what is left                        who cleans up
    -------------------------------------  ----------------------------------  ---------------------------------------
    while chunks are stored                a part of a value                   the sweep of the next owner
    stored, before the commit              a value without record              the same; the activity runs again
    commit refused                         the same                            a sweep, when the turn is over
    purged, before the values were         values without record               a sweep
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import secrets
from typing import TYPE_CHECKING, Any, NamedTuple

from statestores.errors import StoreError
from workflow.errors import PayloadLost

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from actors import ActorClient, Clock
    from statestores.store import Payloads, StoredAt
    from workflow.pieces import Data

DEFAULT_LIMIT = 256 * 1024
"""JSON longer than this is stored beside the history, unless told otherwise."""

CHUNK = 8 << 20
GRACE_MS = 600_000

_SWEEP_EVERY_S = 60.0
_SWEPT_AT_ONCE = 1000
_PAGE = 100
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 5.0

log = logging.getLogger("workflow")


class Stored(NamedTuple):
    """A value and where it is. As text it travels between processes."""

    digest: str
    size: int
    id: str

    def __str__(self) -> str:
        return f"{self.digest} {self.size} {self.id}"

    @classmethod
    def parse(cls, text: str) -> Stored:
        digest, size, id_ = text.split(" ")
        return cls(digest, int(size), id_)

    @property
    def epoch(self) -> int:
        return _facts_of(self.id)[0]


def reference(digest: str, size: int) -> dict[str, Any]:
    """As it is recorded."""
    return {"@": digest, "n": size}


async def write(payloads: Payloads, stream: str, id_: str, data: Data) -> Stored:
    """Store a value under an id that was never used. Durable when this returns. Raises `StoreError`."""
    digest = hashlib.sha256()
    view = memoryview(data)
    for number, start in enumerate(range(0, max(1, len(data)), CHUNK)):
        chunk = view[start : start + CHUNK]
        digest.update(chunk)
        await payloads.put(stream, id_, number, chunk)
    return Stored(digest.hexdigest(), len(data), id_)


async def read(payloads: Payloads, stream: str, stored: Stored) -> bytes:
    """The value, checked. Raises `PayloadLost`, `StoreError`."""
    data = io.BytesIO()  # gives what it has without a copy
    digest = hashlib.sha256()
    for number, start in enumerate(range(0, max(1, stored.size), CHUNK)):
        chunk = await payloads.get(stream, stored.id, number)
        if chunk is None or len(chunk) != min(CHUNK, stored.size - start):
            raise PayloadLost(f"{stream}: value {stored.id} of {stored.size} bytes is not in the store")
        digest.update(chunk)
        data.write(chunk)
    if digest.hexdigest() != stored.digest:
        raise PayloadLost(f"{stream}: value {stored.id} is not what was stored")
    return data.getvalue()


class Keeper:
    """Large values of one process. `limit`: see `DEFAULT_LIMIT`."""

    # `attach` comes before anything is kept.
    _client: ActorClient

    def __init__(self, payloads: Payloads, limit: int, clock: Clock) -> None:
        self.limit = limit
        self._payloads = payloads
        self._clock = clock
        # Ids that may still be recorded by this process; with what tells that they cannot any more, None: `settled`
        # will. Removed only after the commit was answered, if there was one.
        self._in_flight: dict[str, Callable[[], bool] | None] = {}
        # Values in flight that need not be read back.
        self._at_hand: dict[str, Data] = {}
        self._swept: tuple[int, StoredAt | None] = (0, None)

    def attach(self, client: ActorClient) -> None:
        self._client = client
        client.when_started(self._start_sweeping)

    def _start_sweeping(self) -> None:
        self._client.create_task(self._sweep_for_ever())

    # -- storing, reading ----------------------------------------------------------------------------------------------

    def reserve(self, stream: str, over: Callable[[], bool] | None = None) -> str:
        """A new id, in flight from now on: until `over()`, or `settled`."""
        id_ = f"{self._client.epoch(stream)}.{self._clock.now_ms()}.{secrets.token_hex(8)}"
        self._in_flight[id_] = over
        return id_

    async def keep(
        self, stream: str, data: Data, over: Callable[[], bool] | None = None, *, at_hand: bool = False
    ) -> Stored:
        """Durable when this returns. `at_hand`: somebody will `load` it before it is `settled`. Raises `StoreError`."""
        id_ = self.reserve(stream, over)
        try:
            stored = await write(self._payloads, stream, id_, data)
        except BaseException:
            self.settled(id_)
            raise
        if at_hand:
            self.hand_over(id_, data)
        return stored

    async def keep_patiently(self, stream: str, data: Data) -> Stored:
        """`keep`, at hand, again and again until the store takes it."""
        stored: Stored = await patiently(lambda: self.keep(stream, data, at_hand=True))
        return stored

    async def load(self, stream: str, stored: Stored) -> Data:
        """Raises `PayloadLost`, `StoreError`."""
        found = self._at_hand.get(stored.id)
        return found if found is not None else await read(self._payloads, stream, stored)

    def hand_over(self, id_: str, data: Data) -> None:
        """The value of an id in flight, from elsewhere."""
        if id_ in self._in_flight:
            self._at_hand[id_] = data

    def settled(self, id_: str) -> None:
        """The id is recorded, or nobody here will record it."""
        self._in_flight.pop(id_, None)
        self._at_hand.pop(id_, None)

    # -- removing ------------------------------------------------------------------------------------------------------

    def forget(self, stream: str, ids: Iterable[str]) -> None:
        """The records of a stream are gone, durably: remove these values of it, but for those that messages need."""
        known = list(ids)
        if known:
            self._client.create_task(self._forget(stream, known))

    async def _forget(self, stream: str, ids: list[str]) -> None:
        try:
            await self._remove_unrecorded(stream, ids)
        except StoreError as error:
            log.info("values of %s are left to a sweep: %s", stream, error)

    async def sweep(self, most: int = _SWEPT_AT_ONCE) -> int:
        """Look at the next values, at most so many, of the partitions owned here; how many were removed. Raises
        `StoreError`."""
        self._land()  # also where nothing is stored that is old enough: what is in flight holds its turn
        removed, first = 0, self._swept[0]
        epochs = self._client.epochs()
        order = sorted(epochs, key=lambda partition: (partition < first, partition))
        for partition in order:
            after = self._swept[1] if partition == self._swept[0] else None
            while page := await self._payloads.stored(partition, after, min(_PAGE, most)):
                removed += await self._sweep_page(page, epochs[partition])
                after, most = page[-1], most - len(page)
                self._swept = (partition, after)
                if most <= 0:
                    return removed
            self._swept = (partition + 1, None)
        return removed

    async def _sweep_page(self, page: list[StoredAt], epoch: int) -> int:
        old_ms = self._clock.now_ms() - GRACE_MS
        found: dict[str, list[str]] = {}
        for at in page:
            made_under, made_ms = _facts_of(at.id)
            if made_under <= epoch and made_ms < old_ms:
                found.setdefault(at.stream, []).append(at.id)
        removed = 0
        for stream, ids in found.items():
            removed += await self._remove_unrecorded(stream, ids)
        return removed

    async def _remove_unrecorded(self, stream: str, ids: list[str]) -> int:
        # What is in flight is left out before the records are read: see the table above.
        self._land()
        landed = [id_ for id_ in ids if id_ not in self._in_flight]
        needed = await self._client.mentions(stream, landed) if landed else set()
        gone = [id_ for id_ in landed if id_ not in needed]
        for id_ in gone:
            await self._payloads.remove(stream, id_)
        return len(gone)

    def _land(self) -> None:
        for id_ in [id_ for id_, over in self._in_flight.items() if over is not None and over()]:
            self.settled(id_)

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_EVERY_S)
            try:
                await self.sweep()
            except StoreError as error:
                log.warning("large values cannot be swept, trying again: %s", error)


async def patiently(make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Again and again until the store answers."""
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            return await make()
        except StoreError as error:
            log.warning("a large value cannot be stored or read, trying again: %s", error)
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


def _facts_of(id_: str) -> tuple[int, int]:
    """Epoch and time of an id."""
    epoch, made_ms, _ = id_.split(".")
    return int(epoch), int(made_ms)
