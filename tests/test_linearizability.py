"""The checker of linearizability: right about every history, soon about long ones."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, permutations
from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.linearizability import (
    NEVER,
    History,
    NotLinearizable,
    RegisterOp,
    TooHard,
    register_effect,
    register_only_looks,
    unexplained,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


def made(seed: int, *, count: int, processes: int, unknown: float = 0.1) -> History:
    """What clients see of a real register: each operation takes effect at one moment, drawn between call and answer;
    now and then the answer is lost, or the operation with it."""
    luck, history = Random(seed), History()
    free_at, moments = [0.0] * processes, []
    for _ in range(count):
        process = min(range(processes), key=free_at.__getitem__)
        called = free_at[process] + luck.expovariate(2)
        moment = called + luck.expovariate(1)
        free_at[process] = moment + luck.expovariate(1)
        moments.append((moment, process, called, free_at[process]))
    value, seen = 0, [0] * processes
    for _, process, called, answered in sorted(moments):
        op = history.call(process, "r", *history.draw(luck, luck.choice([value, seen[process]])), called)
        lost = luck.random() < unknown
        if lost and luck.random() < 0.5:
            continue
        fits = op.kind != "swap" or op.args[0] == value
        if op.kind != "read" and fits:
            value = op.args[-1]
        if not lost:
            op.answer({"read": value, "write": None, "swap": fits}[op.kind], answered)
            seen[process] = value
    return history


def is_linearizable(ops: Sequence[RegisterOp]) -> bool:
    return not unexplained(ops, register_effect, register_only_looks, 0)


def by_brute_force(ops: Sequence[RegisterOp]) -> bool:
    """Every order, of the answered operations and of each choice of the others, is tried."""
    answered = [op for op in ops if op.answered < NEVER]
    open_ = [op for op in ops if op.answered == NEVER and op.kind != "read"]
    return any(
        _explains(order)
        for size in range(len(open_) + 1)
        for chosen in combinations(open_, size)
        for order in permutations([*answered, *chosen])
    )


def _explains(order: Sequence[RegisterOp]) -> bool:
    value: int | None = 0
    latest_call = 0.0
    for op in order:
        latest_call = max(latest_call, op.called)
        if op.answered < latest_call or value is None:
            return False
        value = register_effect(op, value)
    return value is not None


@pytest.mark.parametrize("processes", [1, 3, 12])
@pytest.mark.parametrize("unknown", [0.0, 0.2])
def test_what_a_register_did_is_accepted(processes: int, unknown: float) -> None:
    """A history of a real register is linearizable, however its operations overlap and whatever answers are lost."""
    for seed in range(40):
        made(seed, count=250, processes=processes, unknown=unknown).check()


def test_it_agrees_with_trying_everything() -> None:
    """Of small histories, right ones and ones with any answer changed, the checker says what all orders say."""
    verdicts = []
    for seed in range(1500):
        luck = Random(f"small/{seed}")
        ops = made(seed, count=5, processes=3, unknown=0.3).ops
        # Few values, so that operations are easily mistaken for each other.
        for op in ops:
            op.args = tuple(arg % 3 for arg in op.args)
            if op.kind == "read" and op.result is not None:
                op.result = luck.choice([op.result % 3, luck.randrange(3)])
            elif op.kind == "swap" and op.answered < NEVER:
                op.result = luck.random() < 0.5
        ops = [op for op in ops if not op.says_nothing]
        verdicts.append(is_linearizable(ops))
        assert verdicts[-1] == by_brute_force(ops), [str(op) for op in ops]
    assert 300 < sum(verdicts) < 1200


def stale_read(ops: list[RegisterOp], luck: Random) -> bool:
    """Show what had been overwritten by an acknowledged write before the read was asked for."""
    reads = [op for op in ops if op.kind == "read" and op.answered < NEVER]
    read = luck.choice(reads)
    writes = sorted((op for op in ops if op.kind == "write" and op.answered < read.called), key=lambda op: op.answered)
    if len(writes) < 2 or writes[-1].called <= writes[0].answered or read.result == writes[0].args[0]:
        return False
    read.result = writes[0].args[0]
    return True


def lost_write(ops: list[RegisterOp], luck: Random) -> bool:
    """Take away an acknowledged write that a read has shown."""
    shown = {op.result for op in ops if op.kind == "read" and op.answered < NEVER}
    writes = [op for op in ops if op.kind == "write" and op.args[0] in shown]
    if not writes:
        return False
    ops.remove(luck.choice(writes))
    return True


def double_effect(ops: list[RegisterOp], luck: Random) -> bool:
    """A write takes effect once more: what it wrote is shown again after a later write was shown."""
    end = max(op.called if op.answered == NEVER else op.answered for op in ops)
    writes = [op for op in ops if op.kind == "write" and op.answered < NEVER]
    if not writes:
        return False
    write = luck.choice(writes)
    for n, result in enumerate([None, -1, write.args[0]]):
        if result is None:
            again = replace(write, called=end + 1, answered=end + 2, args=(-1,))
        else:
            again = RegisterOp(0, "r", "read", (), end + 2 * n + 1, end + 2 * n + 2, result)
        ops.append(again)
    return True


def two_winners(ops: list[RegisterOp], luck: Random) -> bool:
    """Two swaps from the same value succeed."""
    swaps = [op for op in ops if op.kind == "swap" and op.result]
    if not swaps:
        return False
    first = luck.choice(swaps)
    ops.append(replace(first, args=(first.args[0], -1)))
    return True


@pytest.mark.parametrize("mutate", [stale_read, lost_write, double_effect, two_winners])
def test_what_no_register_does_is_refused(mutate: object) -> None:
    """A stale read, a lost write, a doubled one, two winners of one swap: each is found in a long history."""
    assert callable(mutate)
    refused = 0
    for seed in range(60):
        history = made(seed, count=200, processes=5, unknown=0.05)
        if mutate(history.ops, Random(seed)):
            with pytest.raises(NotLinearizable):
                history.check()
            refused += 1
    assert refused > 30


def test_registers_are_checked_one_by_one() -> None:
    """What is wrong with one register is found beside others, and told with its name and its operations."""
    history = made(1, count=100, processes=3)
    history.call(0, "wrong", "write", (7,), 0.0).answer(None, 1.0)
    history.call(0, "wrong", "read", (), 2.0).answer(8, 3.0)
    with pytest.raises(NotLinearizable, match=r"of wrong:\n.*write\(7\)\n.*-> 8 .*read"):
        history.check()


def test_an_operation_that_certainly_failed_is_no_part_of_it() -> None:
    """What a failed call would have written must never be shown; what an unknown one would have, may be, once."""
    history = History()
    write = history.call(0, "r", "write", (1,), 0.0)
    history.call(1, "r", "read", (), 1.0).answer(0, 2.0)
    history.call(1, "r", "read", (), 3.0).answer(1, 4.0)
    history.check()
    write.failed = True
    with pytest.raises(NotLinearizable):
        history.check()


def test_it_gives_up_loudly() -> None:
    """A history that cannot be decided in the time given is not taken for a right one."""
    with pytest.raises(TooHard, match="undecided"):
        made(1, count=200, processes=3).check(budget_s=0.0)


def test_long_histories_are_decided_soon() -> None:
    """Thousands of operations of many processes, with many answers lost, need a point each, not an exponent."""
    made(5, count=1500, processes=12, unknown=0.03).check(budget_s=20.0)
