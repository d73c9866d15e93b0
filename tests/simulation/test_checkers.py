"""The checkers themselves: each accepts what is right and refuses the least that is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from statestores.model import NewEvent, Ownership, TurnCommit
from tests.simulation.checkers import check_log, check_money, check_reads, check_tokens, linearizable
from tests.simulation.world import Op, Violation


def op(method: str, *args: Any, at: tuple[float, float] = (0, 1), value: Any = None, outcome: str = "ok") -> Op:
    called, answered = at
    if outcome == "unknown":
        answered = float("inf")
    return Op("Register/a", method, args, called, answered=answered, outcome=outcome, value=value)


def tell(outcome: str = "ok", *, keyed: bool = False) -> Op:
    return Op("Tally/a", "tell", ("t", "b"), 0, keyed, 1, outcome)


SET_1 = op("set", 1, at=(0, 1))


@pytest.mark.parametrize(
    ("history", "explained"),
    [
        ([SET_1, op("get", at=(2, 3), value=1)], True),
        ([SET_1, op("get", at=(2, 3), value=0)], False),
        ([op("set", 1, at=(0, 5)), op("get", at=(1, 2), value=1), op("get", at=(3, 4), value=0)], False),
        ([op("set", 1, at=(0, 5)), op("get", at=(1, 2), value=0), op("get", at=(3, 4), value=1)], True),
        ([op("set", 1, outcome="unknown"), op("get", at=(8, 9), value=1)], True),
        ([op("set", 1, outcome="unknown"), op("get", at=(8, 9), value=0)], True),
        ([op("swap", 1, value=0), op("swap", 2, value=0)], False),
        ([op("swap", 1, value=0), op("swap", 2, value=1)], True),
        ([SET_1, op("$delete", at=(2, 3)), op("get", at=(4, 5), value=0)], True),
        ([SET_1, op("expect", 2, at=(2, 3), outcome="failed", value="Refused:1")], True),
        ([SET_1, op("expect", 2, at=(2, 3), outcome="failed", value="Refused:0")], False),
    ],
)
def test_linearizability(history: list[Op], explained: bool) -> None:
    """INV-7: a history is linearizable when some order between calls and answers explains every answer."""
    assert linearizable(history) is explained


@pytest.mark.parametrize(
    ("history", "tokens", "names"),
    [
        ([tell()], {"Tally/a": ["t"], "Tally/b": ["t>"]}, ""),
        ([tell("unknown")], {"Tally/a": ["t"], "Tally/b": ["t>"]}, ""),
        ([tell("unknown")], {}, ""),
        ([tell()], {}, "INV-7"),
        ([tell("failed")], {"Tally/a": ["t"], "Tally/b": ["t>"]}, "INV-6"),
        ([tell("unknown")], {"Tally/a": ["t", "t"], "Tally/b": ["t>"]}, "INV-8"),
        ([tell()], {"Tally/a": ["t"]}, "INV-8"),
        ([tell()], {"Tally/a": ["t"], "Tally/b": ["t>", "t>"]}, "INV-8"),
        ([tell("unknown")], {"Tally/b": ["t>"]}, "INV-8"),
        ([], {"Tally/a": ["t"]}, "INV-6"),
    ],
)
def test_counting_tokens(history: list[Op], tokens: dict[str, list[str]], names: str) -> None:
    """INV-6 to INV-8: too much, too little, and what nobody asked for are told apart."""
    if not names:
        check_tokens(history, tokens, {})
        return
    with pytest.raises(Violation, match=names):
        check_tokens(history, tokens, {})


def test_reads() -> None:
    """INV-7: a read that misses an acknowledged effect, or shows a lost one, is refused."""
    read = Op("Tally/a", "read", (), 2, answered=3, outcome="ok", value=["t"])
    check_reads([tell(), read], {"Tally/a": ["t"]}, fresh=True)
    with pytest.raises(Violation, match="which is gone"):
        check_reads([tell(), read], {}, fresh=True)
    read.value = []
    check_reads([tell(), read], {"Tally/a": ["t"]}, fresh=False)
    with pytest.raises(Violation, match="does not show"):
        check_reads([tell(), read], {"Tally/a": ["t"]}, fresh=True)


def commit(version: int, epoch: int) -> TurnCommit:
    return TurnCommit(0, epoch, "A/a", f"{epoch}-{version}", 0, version, events=(NewEvent("e", b""),))


FIRST, SECOND = Ownership(0, 1, "a", 0), Ownership(0, 2, "b", 0)


@pytest.mark.parametrize(
    ("log", "names"),
    [
        ([FIRST, commit(0, 1), SECOND, commit(1, 2)], ""),
        ([FIRST, FIRST], "INV-2"),
        ([FIRST, SECOND, commit(0, 1)], "INV-2"),
        ([FIRST, commit(0, 1), commit(0, 1)], "INV-1"),
        ([FIRST, commit(1, 1)], "INV-1"),
    ],
)
def test_the_log(log: list[Ownership | TurnCommit], names: str) -> None:
    """INV-1, INV-2: epochs grow, only the newest writes, and versions have no gap and no fork."""
    if not names:
        check_log(log)
        return
    with pytest.raises(Violation, match=names):
        check_log(log)


def test_money() -> None:
    """INV-4: a sum that has changed, or a debt, is refused."""
    check_money({"Ledger/a": {"balance": 60}, "Ledger/b": {"balance": 140}})
    with pytest.raises(Violation, match="INV-4"):
        check_money({"Ledger/a": {"balance": 60}, "Ledger/b": {"balance": 100}})
    with pytest.raises(Violation, match="INV-3"):
        check_money({"Ledger/a": {"balance": -1}, "Ledger/b": {"balance": 201}})
