"""Group commit, over a journal that begins and ends each commit when the test says so."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import TYPE_CHECKING

import pytest

from statestores.errors import ImpossibleTurn, InvalidRequest, StaleEpoch, StoreError, StoreUnavailable
from statestores.groupcommit import GroupCommit
from statestores.memory import MemoryJournal
from statestores.model import TurnCommit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from statestores.errors import CommitRefused
    from statestores.groupcommit import Outcome


class HeldJournal(MemoryJournal):
    """Commits wait in `held`, in the order in which they were begun."""

    def __init__(self) -> None:
        super().__init__(4)
        self.held: list[tuple[int, asyncio.Future[None]]] = []

    async def commit(self, turns: Sequence[TurnCommit]) -> list[CommitRefused | None]:
        gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.held.append((len(turns), gate))
        await gate
        return [None] * len(turns)

    @property
    def sizes(self) -> list[int]:
        return [size for size, _ in self.held]


class FailingJournal(MemoryJournal):
    """Records what it is told to, except when `fault` has something to say of a call."""

    def __init__(self, fault: Callable[[Sequence[TurnCommit]], BaseException | None]) -> None:
        super().__init__(1)
        self.fault = fault
        self.recorded: list[str] = []

    async def commit(self, turns: Sequence[TurnCommit]) -> list[CommitRefused | None]:
        if (error := self.fault(turns)) is not None:
            raise error
        self.recorded += [turn.turn_id for turn in turns]
        return [None] * len(turns)


def _turn(number: int) -> TurnCommit:
    return TurnCommit(0, 1, "a/1", f"turn-{number}", 1_000, number)


async def _settle() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


def _noting(answers: list[object], number: int) -> Callable[[Outcome], None]:
    return lambda outcome: answers.append(number if outcome is None else outcome)


async def test_the_next_batch_is_begun_before_anybody_goes_on_with_an_answer() -> None:
    """One batch is at the store at a time, and the next one is there before those who waited for the last one run."""
    journal = HeldJournal()
    group = GroupCommit(journal)
    group.start()
    begun: list[list[int]] = []

    def go_on(_: Outcome) -> None:
        asyncio.get_running_loop().call_soon(lambda: begun.append(journal.sizes))

    group.submit(_turn(1), go_on)
    await _settle()
    group.submit(_turn(2), lambda _: None)
    await _settle()
    assert journal.sizes == [1]
    journal.held[0][1].set_result(None)
    await _settle()
    assert begun == [[1, 1]]
    journal.held[1][1].set_result(None)
    await group.close()
    assert group.idle


async def test_much_in_flight_is_written_in_halves_and_answered_in_order() -> None:
    """With much in flight a batch takes half of it; the order of submission is the order of answers all the same."""
    journal = HeldJournal()
    group = GroupCommit(journal)
    group.start()
    answers: list[object] = []
    for number in range(200):
        group.submit(_turn(number), _noting(answers, number))
    group.submit(None, _noting(answers, 200))
    await _settle()
    assert journal.sizes == [100]
    journal.held[0][1].set_result(None)
    await _settle()
    journal.held[1][1].set_result(None)
    await _settle()
    assert journal.sizes == [100, 100]
    assert answers == list(range(201))
    await group.close()


async def test_turns_that_answers_bring_about_at_once_go_together() -> None:
    """Two circles of callers, each of which makes its next turn when the last is answered, become one; when the answers
    bring nothing new any more, the next batch is begun before them again."""
    journal = HeldJournal()
    group = GroupCommit(journal)
    group.start()
    going_on = True
    numbers = itertools.count(1)

    def call() -> None:
        group.submit(_turn(next(numbers)), again)

    def again(_: Outcome) -> None:
        if going_on:
            asyncio.get_running_loop().call_soon(call)

    async def answer() -> None:
        journal.held[-1][1].set_result(None)
        await _settle()

    for _ in range(3):
        call()
    await _settle()
    for _ in range(3):
        call()
    assert journal.sizes == [3]
    await answer()  # nothing is known of the callers yet: the others go before the answers
    assert journal.sizes == [3, 3]
    await answer()
    assert journal.sizes == [3, 3, 6]
    await answer()
    assert journal.sizes == [3, 3, 6, 6]
    going_on = False
    await answer()
    group.submit(_turn(next(numbers)), lambda _: None)
    await _settle()
    assert journal.sizes == [3, 3, 6, 6, 1]
    await answer()
    await group.close()


async def test_an_answer_that_stops_everything_leaves_nobody_waiting() -> None:
    """Every submission gets one outcome, also when an answer before it aborts and abandons the group."""
    journal = HeldJournal()
    group = GroupCommit(journal)
    group.start()
    answers: list[object] = []

    def stop(outcome: Outcome) -> None:
        answers.append(outcome)
        group.abort()
        group.abandon()

    group.submit(_turn(0), stop)
    for number in range(1, 200):
        group.submit(_turn(number), _noting(answers, number))
    await _settle()
    journal.held[0][1].set_result(None)
    await _settle()
    assert len(answers) == 200
    assert answers[0] is None
    assert all(isinstance(answer, StoreUnavailable) for answer in answers[1:])
    assert journal.sizes == [100], "a batch was begun after the abort"


async def _outcomes(journal: MemoryJournal, count: int) -> list[Outcome]:
    """Of so many turns that are committed together, in order."""
    group = GroupCommit(journal, patience_s=0.0)
    outcomes: list[Outcome] = []
    group.start()
    for number in range(count):
        group.submit(_turn(number), outcomes.append)
    await group.close()
    return outcomes


def _about(number: int, error: BaseException) -> Callable[[Sequence[TurnCommit]], BaseException | None]:
    return lambda turns: error if _turn(number) in turns else None


@pytest.mark.parametrize("count", [1, 2, 7, 50])
async def test_a_turn_that_cannot_be_held_fails_alone_and_for_good(count: int) -> None:
    """What the store says can never be recorded is `ImpossibleTurn`; the turns beside it are recorded, in order."""
    bad = count // 2
    journal = FailingJournal(_about(bad, InvalidRequest("too odd")))
    outcomes = await _outcomes(journal, count)
    assert [type(o) for o in outcomes] == [ImpossibleTurn if n == bad else type(None) for n in range(count)]
    assert journal.recorded == [f"turn-{n}" for n in range(count) if n != bad]


@pytest.mark.parametrize("error", [RuntimeError("a bug"), asyncio.CancelledError()])
async def test_a_store_that_fails_is_unknown_for_the_turn_it_fails_for(error: BaseException) -> None:
    """An error nobody expected says nothing of what was recorded: the turn's outcome is unknown, not that it failed."""
    journal = FailingJournal(_about(3, error))
    outcomes = await _outcomes(journal, 8)
    assert isinstance(outcomes[3], StoreUnavailable)
    if isinstance(error, Exception):
        assert [o for o in outcomes if o is not None] == [outcomes[3]]


async def test_an_error_of_the_store_itself_is_no_turns_fault() -> None:
    """A wrong setting fails all turns alike: nothing is gained by trying them one by one."""
    calls = 0

    def fault(turns: Sequence[TurnCommit]) -> BaseException:
        nonlocal calls
        calls += 1
        return StoreError("no rights")

    outcomes = await _outcomes(FailingJournal(fault), 8)
    assert [type(o) for o in outcomes] == [StoreUnavailable] * 8
    assert calls == 1


async def test_a_refusal_after_an_unexpected_error_is_no_first_answer() -> None:
    """INV-8: half of a batch may have been recorded when a store fails: a `StaleEpoch` after that leaves it unknown."""

    class Fenced(FailingJournal):
        async def commit(self, turns: Sequence[TurnCommit]) -> list[CommitRefused | None]:
            await super().commit(turns)
            return [StaleEpoch(0, 1, 2) for _ in turns]

    outcomes = await _outcomes(Fenced(lambda turns: RuntimeError("a bug") if len(turns) == 4 else None), 4)
    assert [type(o) for o in outcomes] == [StoreUnavailable] * 4


async def test_a_store_that_breaks_its_contract_leaves_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    """An answer too few: everybody is told that the outcome is unknown, and the next turns are written as ever."""

    class Short(MemoryJournal):
        broken = True

        async def commit(self, turns: Sequence[TurnCommit]) -> list[CommitRefused | None]:
            return [None] * (len(turns) - self.broken)

    journal = Short(1)
    outcomes = await _outcomes(journal, 3)
    assert [type(o) for o in outcomes] == [StoreUnavailable] * 3
    assert "2 answers to 3 turns" in caplog.text
    journal.broken = False
    assert await _outcomes(journal, 3) == [None] * 3


async def test_a_writer_that_ends_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever ends the writer, those who wait are told, and later turns are written, one batch at a time."""
    journal = HeldJournal()
    group = GroupCommit(journal)
    group.start()
    answers: list[object] = []
    take = group._take

    def failing() -> None:
        raise RuntimeError("a bug of ours")

    group.submit(_turn(0), lambda outcome: failing())
    group.submit(_turn(1), _noting(answers, 1))
    await _settle()
    group._take = failing  # type: ignore[assignment, method-assign]  # a bug, planted
    group.submit(_turn(2), _noting(answers, 2))
    group.submit(None, _noting(answers, 3))
    with caplog.at_level(logging.CRITICAL):
        journal.held[0][1].set_result(None)
        await _settle()
    assert "a bug of ours" in caplog.text
    assert [type(answer) for answer in answers] == [StoreUnavailable, StoreUnavailable, int]
    group._take = take  # type: ignore[method-assign]  # the real one again
    group.submit(_turn(4), _noting(answers, 4))
    await _settle()
    journal.held[1][1].set_result(None)
    await group.close()
    assert answers[-1] == 4
