"""A turn that the store can never record, at the level of actors."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from actors import ActorFailed, Host, actor, method
from statestores.errors import InvalidRequest
from statestores.memory import MemoryJournal
from tests.actors.worlds import definitions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from statestores.errors import CommitRefused
    from statestores.model import TurnCommit


@actor
class Counter:
    count: int = 0

    @method
    async def add(self) -> int:
        self.count += 1
        return self.count


class PickyJournal(MemoryJournal):
    """Cannot hold anything of the streams in `refused`."""

    def __init__(self) -> None:
        super().__init__(4)
        self.refused: set[str] = set()

    async def commit(self, turns: Sequence[TurnCommit]) -> list[CommitRefused | None]:
        if any(turn.stream in self.refused for turn in turns):
            raise InvalidRequest("a text that cannot be encoded")
        return await super().commit(turns)


async def test_a_turn_that_cannot_be_recorded_fails_for_good() -> None:
    """INV-6: its caller is told an error that repeating would not change; the actor goes on where it was, and so do its
    neighbours in the batch."""
    journal = PickyJournal()
    host = Host(journal, definitions(Counter))
    await host.start()
    client = host.client
    streams = [client.actor(Counter, id_) for id_ in ("a", "bad", "b")]
    assert [await stream.add() for stream in streams] == [1, 1, 1]
    journal.refused = {"Counter/bad"}
    answers = await asyncio.gather(*(stream.add() for stream in streams), return_exceptions=True)
    assert [answers[0], answers[2]] == [2, 2]
    assert isinstance(answers[1], ActorFailed)
    assert not answers[1].retriable
    assert "cannot be encoded" in str(answers[1])
    journal.refused = set()
    assert await streams[1].add() == 2
    await host.stop()
