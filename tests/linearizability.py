"""Whether a history of operations on registers is linearizable: a checker in the way of Wing and Gong, with Lowe's
memory of what was tried.

A history says when each operation was called, when it was answered, and what with. It is linearizable when the
operations can be put into one order, each somewhere between its call and its answer, in which a register that does one
thing at a time would have given the same answers. An *open* operation, one without an answer, may take effect at any
time after its call, or never; one that is certain to have left no trace is not part of the history.

`unexplained` is the search, for any kind of operation that an *effect* function describes; `History` is registers with
read, write and compare-and-swap, as clients record them.

**Why it ends soon.** What is being searched for can be told by (which operations are placed, the value then), and each
such point is visited once. Two rules leave out orders that need not be looked at, because wherever one of them explains
the history, so does an order that is looked at:

- An answered operation that only looks, and fits now, is placed now: it constrains nothing that follows. (One that
  happens to change nothing now may be needed later for what it changes then.)
- Open operations are placed only right before an answered one that does not fit without them. In an order
  where what follows them fits without them as well, they can be left out (it overwrites what they wrote) or come
  after it (it left alone what they change).

What is left is exponential in what overlaps, so registers should live for hundreds of operations, not for millions, and
the time is bounded.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator
    from random import Random

NEVER = math.inf
BUDGET_S = 30.0
_CONTEXT = 12


class Timed(Protocol):
    """`answered` is `NEVER` when nobody knows what became of it: the operation is open."""

    @property
    def called(self) -> float: ...
    @property
    def answered(self) -> float: ...


O = TypeVar("O", bound=Timed)  # noqa: E741  # an operation
S = TypeVar("S", bound="Hashable")


class NotLinearizable(AssertionError):
    """No order explains the history. The message has the operations around the place where every order got stuck."""


class TooHard(AssertionError):
    """The history could not be decided within the time given: which is neither yes nor no."""


class _Point(NamedTuple):
    """Of the answered operations, in the order of their calls, the first `prefix` are placed, and of those behind them
    the bits of `beyond`; of the open ones, the bits of `used`."""

    prefix: int
    beyond: int
    used: int

    @property
    def placed(self) -> int:
        return self.prefix + self.beyond.bit_count()

    def place(self, index: int, used: int) -> _Point:
        prefix, beyond = self.prefix, self.beyond | 1 << (index - self.prefix)
        while beyond & 1:
            prefix, beyond = prefix + 1, beyond >> 1
        return _Point(prefix, beyond, used)


def unexplained(
    history: Iterable[O],
    effect: Callable[[O, S], S | None],
    only_looks: Callable[[O], bool],
    initial: S,
    *,
    budget_s: float = BUDGET_S,
) -> list[O]:
    """Empty when the history is linearizable; else the operations around the farthest point that any order reached.

    `effect`: the value after an operation, None when it would have been answered otherwise; of an open operation, None
    when it would change nothing. A changed value must not depend on the one before, but for whether the operation fits
    at all. `only_looks`: it changes nothing, whatever the value is. Raises `TooHard`.
    """
    return _Search(history, effect, only_looks, time.monotonic() + budget_s).run(initial)


class _Search(Generic[O, S]):
    def __init__(
        self,
        history: Iterable[O],
        effect: Callable[[O, S], S | None],
        only_looks: Callable[[O], bool],
        give_up: float,
    ) -> None:
        by_call = sorted(history, key=lambda op: op.called)
        self._answered = [op for op in by_call if op.answered < NEVER]
        self._open = [op for op in by_call if op.answered == NEVER]
        self._effect, self._only_looks = effect, only_looks
        self._give_up = give_up

    def run(self, initial: S) -> list[O]:
        start = _Point(0, 0, 0)
        farthest, seen, stack = start, {(start, initial)}, [(start, initial)]
        while stack:
            point, value = stack.pop()
            if point.prefix == len(self._answered):
                return []
            if point.placed > farthest.placed:
                farthest = point
            for move in self._moves(point, value):
                if move not in seen:
                    seen.add(move)
                    stack.append(move)
            if time.monotonic() > self._give_up:
                raise TooHard(f"undecided after {len(seen)} points, {farthest.placed} of {len(self._answered)} placed")
        return self._around(farthest)

    def _moves(self, point: _Point, value: S) -> list[tuple[_Point, S]]:
        """What one more answered operation leads to: see the module for what is left out."""
        indices, horizon = self._possible(point)
        fits: list[tuple[_Point, S]] = []
        misfits: list[int] = []
        for index in indices:
            after = self._effect(self._answered[index], value)
            if after is None:
                misfits.append(index)
            elif self._only_looks(self._answered[index]):
                return [(point.place(index, point.used), value)]
            else:
                fits.append((point.place(index, point.used), after))
        if not self._open or self._open[0].called > horizon:
            return fits
        for index in misfits:
            op = self._answered[index]
            for used, reached in self._bridges(op, point.used, value, horizon):
                after = self._effect(op, reached)
                assert after is not None
                fits.append((point.place(index, used), after))
        return fits

    def _possible(self, point: _Point) -> tuple[list[int], float]:
        """Those that no other one that is still to be placed was answered before; and when the first of those is."""
        indices: list[int] = []
        horizon, index, placed = NEVER, point.prefix, point.beyond
        while index < len(self._answered) and self._answered[index].called <= horizon:
            if not placed & 1:
                indices.append(index)
                horizon = min(horizon, self._answered[index].answered)
            index, placed = index + 1, placed >> 1
        return [i for i in indices if self._answered[i].called <= horizon], horizon

    def _bridges(self, goal: O, used: int, value: S, horizon: float) -> Iterator[tuple[int, S]]:
        """The ways by open operations to a value that `goal` fits: (those used then, the value). Each needs the one
        before it, for else that one could be left out."""
        unused = [i for i, op in enumerate(self._open) if op.called <= horizon and not used >> i & 1]
        stack = [(used, value, unused)]
        while stack:
            used, value, candidates = stack.pop()
            results = [(i, self._effect(self._open[i], value)) for i in candidates]
            not_yet = [i for i, after in results if after is None]
            for i, after in results:
                if after is None or after == value:
                    continue
                if self._effect(goal, after) is not None:
                    yield used | 1 << i, after
                elif not_yet:
                    stack.append((used | 1 << i, after, not_yet))

    def _around(self, point: _Point) -> list[O]:
        first = max(0, point.prefix - _CONTEXT)
        shown = self._answered[first : point.prefix + point.beyond.bit_length() + _CONTEXT]
        until = max(op.called for op in shown)
        return sorted([*shown, *(op for op in self._open if op.called <= until)], key=lambda op: op.called)


# -- registers ---------------------------------------------------------------------------------------------------------

Kind = Literal["read", "write", "swap"]


@dataclass(slots=True, eq=False)
class RegisterOp:
    """``read()`` -> value, ``write(value)``, ``swap(expected, value)`` -> whether it was so. `failed`: certain to have
    left no trace."""

    process: int
    register: str
    kind: Kind
    args: tuple[int, ...]
    called: float
    answered: float = NEVER
    result: int | bool | None = None
    failed: bool = False

    def answer(self, result: int | bool | None, now_s: float) -> None:
        self.result, self.answered = result, now_s

    @property
    def says_nothing(self) -> bool:
        return self.failed or (self.kind == "read" and self.answered == NEVER)

    def __str__(self) -> str:
        what = f"{self.kind}{self.args}" if len(self.args) != 1 else f"{self.kind}({self.args[0]})"
        told = f"{self.answered:.6f} -> {self.result}" if self.answered < NEVER else "unknown"
        return f"{self.called:.6f} .. {told:24} process {self.process}: {what}"


def register_effect(op: RegisterOp, value: int) -> int | None:
    """See `unexplained`."""
    match op.kind:
        case "read":
            return value if op.result == value else None
        case "write":
            return op.args[0]
        case "swap":
            expected, new = op.args
            if op.answered < NEVER and not op.result:
                return value if value != expected else None
            return new if value == expected else None


def register_only_looks(op: RegisterOp) -> bool:
    return op.kind == "read" or op.result is False


@dataclass(slots=True)
class History:
    """What clients saw. Times are of one clock. Written values should be unique: the more there are of one value, the
    more a history explains, and the longer the search."""

    ops: list[RegisterOp] = field(default_factory=list)
    _values: int = 0

    def call(self, process: int, register: str, kind: Kind, args: tuple[int, ...], now_s: float) -> RegisterOp:
        """Of a process that has no other operation under way. What it becomes is told to the operation; told nothing,
        it remains open."""
        op = RegisterOp(process, register, kind, args, now_s)
        self.ops.append(op)
        return op

    def draw(self, luck: Random, seen: int) -> tuple[Kind, tuple[int, ...]]:
        """An operation that a client who last saw that value may try. It writes what was never written before."""
        self._values += 1
        kind: Kind = luck.choice(["read", "read", "write", "swap"])
        if kind == "swap":
            return kind, (seen, self._values)
        return kind, (self._values,) if kind == "write" else ()

    def by_register(self) -> dict[str, list[RegisterOp]]:
        found: defaultdict[str, list[RegisterOp]] = defaultdict(list)
        for op in self.ops:
            if not op.says_nothing:
                found[op.register].append(op)
        return found

    def check(self, initial: int = 0, *, budget_s: float = BUDGET_S) -> None:
        """Every register by itself, which is enough. Raises `NotLinearizable`, `TooHard`."""
        for register, ops in self.by_register().items():
            if around := unexplained(ops, register_effect, register_only_looks, initial, budget_s=budget_s):
                lines = "\n  ".join(map(str, around))
                raise NotLinearizable(f"no order of these explains what was answered of {register}:\n  {lines}")
