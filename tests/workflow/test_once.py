"""What is asked of a workflow from outside takes effect once, also when the store's answer was lost (INV-8)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from actors import ActorFailed, Host, InvalidName, actor, definition_of, method
from statestores.memory import MemoryStore
from statestores.sqlite import SqliteStore
from tests.actors.worlds import Lever
from workflow import (
    Engine,
    InstanceExists,
    InstanceNotFound,
    InstanceNotTerminal,
    WorkflowClient,
    instance_id_of,
    wait_event,
    workflow,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from statestores.store import Journal, StateStore

LIMIT = 100


@workflow
async def collecting() -> list[Any]:
    found = []
    while (event := await wait_event("money")) != "end":
        found.append(event)
    return found


@workflow
async def taking(given: str) -> list[Any]:
    """As `collecting`."""
    return await collecting()


@workflow
async def other() -> None:
    """Has ended when it has begun."""


class Bank:
    """A host whose store loses answers, and which does not wait for it to find them again."""

    lever: Lever
    host: Host
    client: WorkflowClient

    async def start(self, store: StateStore) -> None:
        self.lever = Lever(store.journal)
        self._engine = Engine([collecting, taking, other], payloads=store.payloads, large_value_bytes=LIMIT)
        teller = definition_of(Teller)
        assert teller is not None
        types = [teller, *self._engine.types]
        journal = cast("Journal", self.lever)
        self.host = Host(journal, types, workers=self._engine.workers, host_id="one", store_patience_s=0.0)
        self.client = self._engine.attach(self.host.client)
        await self.host.start()

    async def stop(self) -> None:
        await self.host.stop(2)
        self._engine.close()

    async def collected(self, instance_id: str) -> list[Any]:
        await self.client.raise_event(instance_id, "money", "end")
        found: list[Any] = await self.client.wait(instance_id, 10)
        return found


banks: dict[str, Bank] = {}


@actor
class Teller:
    """Raises an event as part of its turn, and fails after it when told to."""

    paid: int = 0

    @method
    async def pay(self, instance_id: str, fail: bool) -> int:
        await banks["bank"].client.raise_event(instance_id, "money", 7)
        self.paid += 1
        if fail:
            raise ConnectionError("the line is dead")
        return self.paid

    @method
    async def pay_two(self, instance_id: str, first: int, second: int, fail: bool) -> None:
        client = banks["bank"].client
        await client.raise_event(instance_id, "money", first)
        if fail:
            raise ConnectionError("the line is dead")
        await client.raise_event(instance_id, "money", second)

    @method
    async def open(self, instance_id: str | None, fail: bool) -> list[str]:
        client = banks["bank"].client
        opened = [await client.start(collecting, instance_id=instance_id)]
        if fail:
            raise ConnectionError("the line is dead")
        if instance_id is None:
            opened.append(await client.start(collecting))
        return opened


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StateStore]:
    made: StateStore = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "once.db")
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def bank(store: StateStore) -> AsyncIterator[Bank]:
    made = banks["bank"] = Bank()
    await made.start(store)
    yield made
    await made.stop()


@pytest.mark.parametrize("payload", [100, "x" * LIMIT], ids=["small", "large"])
async def test_an_event_whose_answer_was_lost_arrives_once(bank: Bank, payload: Any) -> None:
    """The client asks again, and is told that it has arrived."""
    await bank.client.start(collecting, instance_id="a")
    bank.lever.lose_answers = 1
    await bank.client.raise_event("a", "money", payload)
    assert bank.lever.lose_answers == 0
    assert await bank.collected("a") == [payload]


async def test_the_first_attempt_looks_for_no_receipt(bank: Bank) -> None:
    """An event that is raised under no key of the caller's costs no look into the store, since nobody has raised it."""
    await bank.client.start(collecting, instance_id="a")
    for number in range(3):
        await bank.client.raise_event("a", "money", number)
    assert not {"receipt", "receipts"} & {*bank.lever.calls}
    assert await bank.collected("a") == [0, 1, 2]


async def test_events_under_one_key_are_one_event(bank: Bank, store: StateStore) -> None:
    """Keys belong to one instance and one name of events, whose case does not matter; they outlive the host."""
    for instance in ("a", "b"):
        await bank.client.start(collecting, instance_id=instance)
    await bank.client.raise_event("a", "money", 1, idempotency_key="k")
    await bank.client.raise_event("a", "Money", 2, idempotency_key="k")
    await bank.client.raise_event("a", "other", 3, idempotency_key="k")
    await bank.client.raise_event("a", "money", 4, idempotency_key="l")
    await bank.client.raise_event("b", "money", 5, idempotency_key="k")
    await bank.stop()
    await bank.start(store)
    await bank.client.raise_event("a", "money", 6, idempotency_key="k")
    assert await bank.collected("a") == [1, 4]
    assert await bank.collected("b") == [5]
    names = [item[1] for entry in await bank.client.history("a") for item in entry.inputs if item[0] == "event"]
    assert names == ["money", "other", "money", "money"]


async def test_a_name_and_a_key_are_kept_apart(bank: Bank) -> None:
    """Wherever the colons are, another name is another event."""
    await bank.client.start(collecting, instance_id="a")
    raised = [("money:b", "c"), ("money", "b:c"), ("7:money", "b:c"), ("", "5:money:b:c")]
    for name, key in raised * 2:
        await bank.client.raise_event("a", name, 1, idempotency_key=key)
    names = [item[1] for entry in await bank.client.history("a") for item in entry.inputs if item[0] == "event"]
    assert names == [name for name, _ in raised]


async def test_under_one_key_the_size_does_not_matter(bank: Bank) -> None:
    """The first of a small and a large payload is the event."""
    large = "x" * LIMIT
    await bank.client.start(collecting, instance_id="a")
    for key, payloads in (("k", (1, large)), ("l", (large, 1))):
        for payload in payloads:
            await bank.client.raise_event("a", "money", payload, idempotency_key=key)
    assert await bank.collected("a") == [1, large]


@pytest.mark.parametrize("name", ["\ud800", None, 5])
async def test_a_name_no_store_can_hold_is_refused(bank: Bank, name: Any) -> None:
    """Before it is anybody's event."""
    await bank.client.start(collecting, instance_id="a")
    with pytest.raises(InvalidName, match="event name"):
        await bank.client.raise_event("a", name, 1)
    assert await bank.collected("a") == []


async def test_a_repeated_turn_repeats_no_events(bank: Bank) -> None:
    """An event that is raised in a turn with a key takes its own from that: the turn that failed after it, and is made
    again, raises it no second time."""
    await bank.client.start(collecting, instance_id="a")
    with pytest.raises(Exception, match="the line is dead"):
        await bank.host.client.actor(Teller, "t", idempotency_key="k").pay("a", True)
    assert await bank.host.client.actor(Teller, "t", idempotency_key="k").pay("a", False) == 1
    assert await bank.host.client.actor(Teller, "t", idempotency_key="l").pay("a", False) == 2
    assert await bank.host.client.actor(Teller, "t").pay("a", False) == 3
    assert await bank.collected("a") == [7, 7, 7]


async def test_a_repeated_turn_may_raise_its_events_in_another_order(bank: Bank) -> None:
    """Each has arrived once."""
    await bank.client.start(collecting, instance_id="a")
    teller = bank.host.client.actor
    with pytest.raises(ActorFailed, match="the line is dead"):
        await teller(Teller, "t", idempotency_key="k").pay_two("a", 1, 2, True)
    await teller(Teller, "t", idempotency_key="k").pay_two("a", 2, 1, False)
    assert await bank.collected("a") == [1, 2]


@pytest.mark.parametrize("instance_id", ["a", None])
async def test_a_repeated_turn_starts_no_second_instance(bank: Bank, instance_id: str | None) -> None:
    """Nor is it told that the first one, which it has started itself, exists."""
    teller = bank.host.client.actor
    with pytest.raises(ActorFailed, match="the line is dead"):
        await teller(Teller, "t", idempotency_key="k").open(instance_id, True)
    (before,) = await bank.client.listing()
    opened = await teller(Teller, "t", idempotency_key="k").open(instance_id, False)
    assert instance_id_of(before) == opened[0]
    assert {instance_id_of(entry) for entry in await bank.client.listing()} == {*opened}
    assert len({*opened}) == (1 if instance_id else 2)


async def test_a_lost_answer_within_a_turn_is_asked_for_again(bank: Bank) -> None:
    """The turn goes on once it is known that the event has arrived, and it has arrived once."""
    await bank.client.start(collecting, instance_id="a")
    for number, key in enumerate((None, "k"), 1):
        bank.lever.lose_answers = 1
        assert await bank.host.client.actor(Teller, "t", idempotency_key=key).pay("a", False) == number
        assert bank.lever.lose_answers == 0
    assert await bank.collected("a") == [7, 7]


async def test_a_purge_whose_answer_was_lost_is_done(bank: Bank) -> None:
    """Nothing is there any more, which is what was asked for, and no error."""
    await bank.client.start(collecting, instance_id="a")
    assert await bank.collected("a") == []
    bank.lever.lose_answers = 1
    await bank.client.purge("a")
    assert bank.lever.lose_answers == 0
    with pytest.raises(InstanceNotFound):
        await bank.client.get("a")
    with pytest.raises(InstanceNotFound):
        await bank.client.purge("a")


async def test_a_refusal_is_not_remembered(bank: Bank) -> None:
    """Who comes before the start, or wants to purge before the end, may come again with the same key."""
    with pytest.raises(InstanceNotFound):
        await bank.client.raise_event("w", "money", 1, idempotency_key="k")
    with pytest.raises(InstanceNotFound):
        await bank.client.raise_event("w", "money", "x" * 2 * LIMIT, idempotency_key="large")
    with pytest.raises(InstanceNotFound):
        await bank.client.purge("w", idempotency_key="p")
    await bank.client.start(collecting, instance_id="w")
    with pytest.raises(InstanceNotTerminal):
        await bank.client.purge("w", idempotency_key="p")
    for _ in range(2):
        await bank.client.raise_event("w", "money", 1, idempotency_key="k")
        await bank.client.raise_event("w", "money", "x" * 2 * LIMIT, idempotency_key="large")
    assert await bank.collected("w") == [1, "x" * 2 * LIMIT]
    await bank.client.purge("w", idempotency_key="p")


async def _ended(bank: Bank, instance_id: str) -> str:
    """Its execution, once it has ended."""
    await bank.collected(instance_id)
    return (await bank.client.get(instance_id)).execution_id


@pytest.mark.parametrize("size", [1, LIMIT], ids=["small", "large"])
async def test_a_start_under_a_key_is_the_first_one_whatever_followed(bank: Bank, store: StateStore, size: int) -> None:
    """INV-8: also when its execution was purged, or another one has begun under the id since, and in the next host."""
    start, given = bank.client.start, "x" * size
    for first in ("a", await start(taking, given, idempotency_key="k")):
        if first == "a":
            await start(taking, given, instance_id="a", idempotency_key="k")
        execution = await _ended(bank, first)
        assert await start(taking, given, instance_id=first, idempotency_key="k") == first
        assert (await bank.client.get(first)).execution_id == execution
        await bank.client.purge(first)
        assert await start(taking, "y", instance_id=first, idempotency_key="k") == first
        with pytest.raises(InstanceNotFound):
            await bank.client.get(first)
        await start(taking, given, instance_id=first, idempotency_key="l")
        following = await _ended(bank, first)
        assert await start(taking, given, instance_id=first, idempotency_key="k") == first
        assert (await bank.client.get(first)).execution_id == following != execution
    await bank.client.purge("a")
    await bank.stop()
    await bank.start(store)
    for key in ("k", "l"):
        assert await bank.client.start(taking, given, instance_id="a", idempotency_key=key) == "a"
    assert await bank.client.start(taking, given, idempotency_key="k") == first
    with pytest.raises(InstanceNotFound):
        await bank.client.get("a")


async def test_a_refused_start_leaves_its_key_unused(bank: Bank) -> None:
    """Who was told that the id is in use may come again with the same key, and then it is a start; so does the start in
    a turn that has a key."""
    teller = bank.host.client.actor
    await bank.client.start(collecting, instance_id="a")
    with pytest.raises(InstanceExists):
        await bank.client.start(collecting, instance_id="a", idempotency_key="k")
    with pytest.raises(ActorFailed, match="already exists"):
        await teller(Teller, "t", idempotency_key="k").open("a", False)
    first = await _ended(bank, "a")
    for _ in range(2):
        await bank.client.start(collecting, instance_id="a", idempotency_key="k")
    second = await _ended(bank, "a")
    for _ in range(2):
        assert await teller(Teller, "t", idempotency_key="k").open("a", False) == ["a"]
    assert len({first, second, await _ended(bank, "a")}) == 3


async def test_the_key_of_another_workflow_is_another_key(bank: Bank) -> None:
    """Its start is not taken for that of the first, whose id is in use; and starts anew when that has ended."""
    await bank.client.start(collecting, instance_id="a", idempotency_key="k")
    with pytest.raises(InstanceExists):
        await bank.client.start(other, instance_id="a", idempotency_key="k")
    await _ended(bank, "a")
    await bank.client.start(other, instance_id="a", idempotency_key="k")
    await bank.client.wait("a", 10)
    await bank.client.start(collecting, instance_id="a", idempotency_key="k")
    assert (await bank.client.get("a")).name == "other"


async def test_starts_beside_each_other_under_one_key_are_one(bank: Bank) -> None:
    """On the id of an instance that has ended, and although the new one is over before the others have come that far:
    none of them removes it."""
    await bank.client.start(other, instance_id="a")
    first = await bank.client.wait_state("a", 10)
    await asyncio.gather(*(bank.client.start(other, instance_id="a", idempotency_key="k") for _ in range(20)))
    second = await bank.client.wait_state("a", 10)
    assert second.execution_id != first.execution_id
    await bank.client.start(other, instance_id="a", idempotency_key="k")
    assert await bank.client.get("a") == second


async def test_a_start_without_a_key_looks_for_no_receipt_and_leaves_none(bank: Bank) -> None:
    """It costs what it did."""
    for instance_id in ("a", None):
        await bank.client.start(other, instance_id=instance_id)
    assert not {"receipt", "receipts"} & {*bank.lever.calls}
    assert [commit.receipt for commit in bank.lever.commits if commit.receipt is not None] == []
