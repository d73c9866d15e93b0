"""What has no room in memory waits in its row, and a *backlog* stands for it.

A backlog is the rows of one partition that are to one receiver, all messages, all work, or just all, from a place on;
but not those for which a narrower one stands. Two invariants:

- A row that stands is in flight, or a backlog stands for it, or it is work that nobody here does.
- A row for which a backlog stands is begun by a scan of that backlog, in the order of the rows, and by nothing else.

A scan goes past what has no room while others may have some, and leaves it to a backlog of its own, which begins there.
So a row is read once for each receiver that was full when the scan came by, not once for each scan.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from actors.message import Envelope
from actors.room import ALL, MESSAGES, WORK
from statestores.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actors.host import Host
    from actors.outbox import Outbox
    from actors.room import Room
    from statestores.model import OutboxMessage

log = logging.getLogger(__name__)

_PAGE = 1000
# When less than half of a backlog's room is free, it is filled so much later.
_LOOK_S = 0.05
# After a scan that has failed.
_PAUSE_S = 1.0


class Backlog:
    """Rows of one partition `of` what room is for (see `Room`): `first`, if that is known, and all of them after the
    row `after` ("": from the beginning). Those before are in flight, or another backlog stands for them, so that to
    begin from the beginning again would be right as well.

    `doubted`: there may be messages among them that were made by this host and have been delivered, by it or another
    owner. `unsure`: the work under way is to be compared with the rows."""

    __slots__ = ("after", "doubted", "first", "of", "partition", "paused", "unsure")

    def __init__(self, partition: int, of: str, *, doubted: bool, unsure: bool = False) -> None:
        self.partition = partition
        self.of = of
        self.first: OutboxMessage | None = None
        self.after = ""
        self.doubted = doubted
        self.unsure = unsure
        self.paused = False  # the store has failed, and is given a moment

    def begin_at(self, row: OutboxMessage) -> None:
        # Invariant: `first` is not in flight. So its row stands, unless a turn finishes it (`Backlogs.finished`).
        self.first, self.after = row, row.id

    def go_on_after(self, row: OutboxMessage | None) -> None:
        """After the last row of a page; None: behind `first` there is none."""
        self.first = None
        if row is not None:
            self.after = row.id


class Backlogs:
    """Of one host, and the scans that work them off. What they find, the outbox begins."""

    def __init__(self, host: Host, outbox: Outbox, room: Room) -> None:
        self._host = host
        self._outbox = outbox
        self._room = room
        # By what they are of, and partition. Both in the order in which they are looked at: who was comes last.
        self._standing: dict[str, dict[int, Backlog]] = {}
        # Partitions in which something was left to the rows since the current scan read its page.
        self._missed: set[int] = set()
        # What was finished while a scan was under way: its page may still show it.
        self._scanning = False
        self._recently: set[str] = set()
        self._wake = asyncio.Event()
        # The next look is at all backlogs that have any room, and by when.
        self._look_at_all = False
        self._look: asyncio.TimerHandle | None = None
        self._scanner: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._scanner = self._host.create_task(self._scan_all())

    async def stop(self) -> None:
        if self._scanner is not None:
            self._scanner.cancel()
            await asyncio.gather(self._scanner, return_exceptions=True)

    def __contains__(self, of: str) -> bool:
        return of in self._standing

    def begin_anew(self, partition: int, *, doubted: bool) -> None:
        """All that stands in the rows of the partition; the work under way is compared with it when it is `doubted`."""
        self.drop(partition)
        self._add(Backlog(partition, ALL, doubted=doubted, unsure=doubted))
        self._wake.set()

    def drop(self, partition: int) -> None:
        for backlog in [each[partition] for each in self._standing.values() if partition in each]:
            self._drop(backlog)

    def take_in(self, partition: int, message: OutboxMessage, envelope: Envelope) -> str | None:
        """What there is no room in for a message that has just been committed; a backlog stands for it then. None: it
        may be begun."""
        backlog = self._standing_for(partition, envelope)
        if backlog is None:
            of = self._room.lacking(envelope)
            if of is None:
                return None
            backlog = Backlog(partition, of, doubted=False)
            backlog.begin_at(message)
            self._add(backlog)
        self._missed.add(partition)
        return backlog.of

    def finished(self, message_ids: list[str], not_begun: set[str]) -> None:
        """These rows are gone, some of them (work that a turn has finished) before they were begun."""
        if not_begun:
            for backlog in (each for of in self._standing.values() for each in of.values()):
                if backlog.first is not None and backlog.first.id in not_begun:
                    backlog.first = None
        if self._scanning:
            self._recently.update(message_ids)

    def offer_room(self) -> None:
        """Something has ended: go on with what waited for that."""
        if self._standing and not self._wake.is_set():
            if any(self._room.is_ample_for(of) for of in self._standing):
                self._wake.set()
            else:
                self._look_later()

    def _look_later(self) -> None:
        """Room that is worth no scan by itself is filled all the same, many at a time: the rest of it may be taken for
        days."""
        if self._look is None and any(self._room.is_scant_for(of) for of in self._standing):
            self._look = asyncio.get_running_loop().call_later(_LOOK_S, self._look_now)

    def _look_now(self) -> None:
        self._look, self._look_at_all = None, True
        self._wake.set()

    # -- which stand ---------------------------------------------------------------------------------------------------

    def _standing_for(self, partition: int, envelope: Envelope) -> Backlog | None:
        """Which stands for a message."""
        standing = self._standing
        if not standing:
            return None
        for of in (WORK, ALL) if envelope.is_work else (envelope.stream, MESSAGES, ALL):
            if of in standing and partition in standing[of]:
                return standing[of][partition]
        return None

    def _add(self, backlog: Backlog) -> None:
        self._standing.setdefault(backlog.of, {})[backlog.partition] = backlog

    def _drop(self, backlog: Backlog) -> None:
        if self._stands(backlog):
            del self._standing[backlog.of][backlog.partition]
            if not self._standing[backlog.of]:
                del self._standing[backlog.of]

    def _stands(self, backlog: Backlog) -> bool:
        return self._standing.get(backlog.of, {}).get(backlog.partition) is backlog

    # -- scanning ------------------------------------------------------------------------------------------------------

    async def _scan_all(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            at_all, self._look_at_all = self._look_at_all, False
            for backlog in [each for of in self._standing.values() for each in of.values()]:
                if not self._stands(backlog) or backlog.paused or not self._is_worth_a_scan(backlog.of, at_all):
                    continue
                self._comes_last(backlog)
                try:
                    await self._scan(backlog)
                except Exception as error:  # a bug that one backlog runs into must not end the scans of all
                    log.warning(
                        "the outbox of partition %d cannot be scanned, trying again: %s", backlog.partition, error,
                        exc_info=not isinstance(error, StoreError),
                    )  # fmt: skip
                    backlog.paused = True
                    asyncio.get_running_loop().call_later(_PAUSE_S, self._end_pause, backlog)
            self._look_later()

    def _end_pause(self, backlog: Backlog) -> None:
        backlog.paused = False
        self._wake.set()

    def _is_worth_a_scan(self, of: str, at_all: bool) -> bool:
        return self._room.is_any_for(of) if at_all else self._room.is_ample_for(of)

    def _comes_last(self, backlog: Backlog) -> None:
        """Round robin, so that nobody takes what becomes free again and again."""
        others = self._standing.pop(backlog.of)
        others[backlog.partition] = others.pop(backlog.partition)
        self._standing[backlog.of] = others

    async def _page(self, partition: int, after: str) -> Sequence[OutboxMessage]:
        self._scanning = True
        self._recently.clear()
        try:
            return await self._host.journal.outbox(partition, after, _PAGE)
        finally:
            self._scanning = False

    async def _scan(self, backlog: Backlog) -> None:
        """Begin what there is room for. When the end is reached, the backlog is no more."""
        partition = backlog.partition
        while self._host.epochs[partition]:
            if backlog.unsure:
                backlog.unsure = False
                self._outbox.let_go_work(partition)
            self._missed.discard(partition)
            page = await self._page(partition, backlog.after)
            if not self._stands(backlog):  # the partition is lost, or to be scanned anew
                return
            for row in page if backlog.first is None else [backlog.first, *page]:
                if not self._reach(backlog, row):
                    backlog.begin_at(row)
                    return
            backlog.go_on_after(page[-1] if page else None)
            at_end = len(page) < _PAGE and partition not in self._missed
            if at_end or (backlog.of == ALL and self._stand_for_all(partition)):
                break
        self._drop(backlog)

    def _stand_for_all(self, partition: int) -> bool:
        """Whatever comes behind where a scan has got has a backlog that begins before it."""
        return all(partition in self._standing.get(of, {}) for of in (MESSAGES, WORK))

    def _reach(self, backlog: Backlog, row: OutboxMessage) -> bool:
        """Begin a row, if this backlog stands for it. False: there is no room."""
        if self._outbox.is_in_flight(row.id) or row.id in self._recently:
            return True
        partition, envelope = backlog.partition, Envelope.decode(row.body)
        if self._standing_for(partition, envelope) is not backlog or not self._outbox.has_worker(envelope):
            return True
        of = self._room.lacking(envelope)
        if of is None:
            again = backlog.doubted or not self._host.has_made(row.id)
            self._outbox.begin(partition, row, envelope, redelivered=again, scanned=True)
        elif of == backlog.of or (of == MESSAGES and backlog.of != ALL):
            return False
        else:  # the others may go past it
            narrower = Backlog(partition, of, doubted=backlog.doubted)
            narrower.begin_at(row)
            self._add(narrower)
        return True
