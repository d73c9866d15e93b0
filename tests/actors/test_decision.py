"""What becomes of a turn that has run: one whole commit, or nothing at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from actors import UnserializableResult, actor, method
from statestores.model import IndexQuery, NewEvent, TurnCommit

if TYPE_CHECKING:
    from tests.actors.worlds import World


@actor
class Tally:
    count: int = 0

    @method
    async def add(self) -> int:
        self.count += 1
        return self.count

    @method
    async def add_and_boast(self) -> int:
        self.count += 1
        return 2**70  # has no JSON form


async def test_a_turn_that_only_changes_fields_makes_a_whole_commit(world: World) -> None:
    """INV-4: the commit of the short way is what its constructor would have made of the same parts."""
    client = await world.client(Tally)
    tally = client.actor(Tally, "t")
    assert [await tally.add(), await tally.add()] == [1, 2]
    commit = world.lever.commits[-1]
    (event,) = commit.events
    assert event == NewEvent("state", b'{"count":2}')
    assert (type(event), type(commit)) == (NewEvent, TurnCommit)
    by_name = TurnCommit(
        partition=commit.partition,
        epoch=commit.epoch,
        stream="Tally/t",
        turn_id=commit.turn_id,
        time_ms=commit.time_ms,
        expected_version=1,
        events=commit.events,
    )
    assert commit == by_name


async def test_a_decision_that_fails_leaves_the_activation_as_it_was(world: World) -> None:
    """INV-6: an answer that cannot be kept for a repeat fails its turn, and the next turn is the actor's first."""
    client = await world.client(Tally)
    with pytest.raises(UnserializableResult):
        await client.actor(Tally, "t", idempotency_key="k").add_and_boast()
    assert await client.actor(Tally, "t").add() == 1
    assert [entry.stream for entry in await client.listing(IndexQuery("Tally"))] == ["Tally/t"]
    assert [event.version for event in await client.history("Tally", "t")] == [1]
