"""Group commit, over a journal that begins and ends each commit when the test says so."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

from statestores.errors import StoreUnavailable
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
