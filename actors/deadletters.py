"""Dead letters: messages that were given up, in the store until somebody sends them again or discards them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from actors.message import Envelope
from statestores.model import OutboxMessage, TurnCommit

if TYPE_CHECKING:
    from actors.host import Host
    from statestores.errors import StoreError


class DeadLetter(NamedTuple):
    """A message that was given up, for `actor` (its stream) and `method`; `payload` is JSON, the arguments."""

    id: str
    partition: int
    sender: str
    actor: str
    method: str
    payload: bytes
    reason: str
    body: bytes


class DeadLetters:
    """Of the partitions that a host owns."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def listing(self, limit: int) -> list[DeadLetter]:
        """At most `limit`. Raises `StoreError`."""
        found: list[DeadLetter] = []
        for partition in self._host.owned():
            rows = await self._host.journal.outbox(partition, "", limit - len(found), dead=True)
            found += [_dead_letter(partition, row) for row in rows]
            if len(found) >= limit:
                break
        return found

    async def settle(self, letter: DeadLetter, *, resend: bool) -> None:
        """Remove it; with `resend` it leaves again, under a new id (the old one is known to have had no effect), also
        when the caller does not wait for this. Raises `CommitRefused`, `StoreUnavailable`: it may leave all the
        same."""
        host = self._host
        message = OutboxMessage(f"{host.new_id()}.again", letter.sender, letter.body)
        commit = TurnCommit(
            letter.partition,
            host.epochs[letter.partition],
            "",
            host.new_id(),
            host.clock.now_ms(),
            outbox=(message,) if resend else (),
            outbox_done=(letter.id,),
        )
        answer: asyncio.Future[StoreError | None] = asyncio.get_running_loop().create_future()

        def settled(outcome: StoreError | None) -> None:
            if resend:  # whoever still waits
                self._sent_again(letter.partition, message, outcome)
            if not answer.done():
                answer.set_result(outcome)

        host.group.submit(commit, settled)
        if (refusal := await answer) is not None:
            raise refusal

    def _sent_again(self, partition: int, message: OutboxMessage, outcome: StoreError | None) -> None:
        """Not found by a scan if that can be helped, which would read all rows of the partition for each letter."""
        if outcome is None:
            self._host.outbox.dispatch(partition, [(message, Envelope.decode(message.body))])
        else:  # the row may stand
            self._host.outbox.recover([partition])


def _dead_letter(partition: int, row: OutboxMessage) -> DeadLetter:
    envelope = Envelope.decode(row.body)
    return DeadLetter(
        row.id, partition, row.stream, envelope.stream, envelope.method, envelope.payload, row.dead, row.body
    )
