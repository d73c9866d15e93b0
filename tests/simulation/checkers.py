"""What must be true in the end, told from what clients saw and from what the store wrote down.

Each checker is a plain function and raises `Violation`, naming the invariant of the design it checks.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from actors.activation import Phase
from actors.state import plain_state
from statestores.model import Ownership
from tests.simulation.world import FOR_EVER, Op, Violation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from statestores.model import TurnCommit
    from tests.simulation.world import Life, World

Tokens = dict[str, list[str]]


# -- the log of the store ----------------------------------------------------------------------------------------------


def check_log(log: Sequence[Ownership | TurnCommit]) -> None:
    """INV-1, INV-2, INV-3, by bookkeeping of its own."""
    epochs: dict[int, int] = {}
    heads: dict[str, int] = {}
    writers: dict[str, int] = {}
    for entry in log:
        if isinstance(entry, Ownership):
            if entry.epoch <= epochs.get(entry.partition, 0):
                raise Violation(f"INV-2: epoch {entry.epoch} of partition {entry.partition} was given out again")
            epochs[entry.partition] = entry.epoch
            continue
        if entry.epoch != epochs.get(entry.partition):
            raise Violation(f"INV-2: {entry} was recorded, the newest epoch was {epochs.get(entry.partition)}")
        if entry.epoch < writers.get(entry.stream, 0):
            raise Violation(f"INV-3: {entry} was recorded after a turn of epoch {writers[entry.stream]}")
        if entry.stream:
            writers[entry.stream] = entry.epoch
        if entry.expected_version is not None and entry.expected_version != heads.get(entry.stream, 0):
            raise Violation(f"INV-1: {entry} was recorded, the head was {heads.get(entry.stream, 0)}")
        heads[entry.stream] = 0 if entry.delete else heads.get(entry.stream, 0) + len(entry.events)


async def check_streams(world: World) -> None:
    """INV-1: versions are contiguous in every stream."""
    for stream in sorted(world.truth._streams):
        versions = [event.version for event in await world.truth.events(stream)]
        if versions != list(range(1, len(versions) + 1)):
            raise Violation(f"INV-1: {stream} has versions {versions}")


async def check_memory(world: World, life: Life) -> None:
    """INV-6: what an activation has in memory is what is recorded, neither more nor less."""
    for stream, activation in life.host.activations.items():
        if activation.phase is not Phase.ACTIVE or not activation.quiet:
            continue
        definition = activation.definition
        have, want = plain_state(definition, activation.instance), await world.state_of(life, stream)
        if have != want:
            raise Violation(f"INV-6: {stream} has {have} in memory, recorded is {want}")


# -- tokens ------------------------------------------------------------------------------------------------------------


def check_tokens(history: Iterable[Op], tokens: Tokens, worked: Mapping[str, int]) -> None:
    """Acknowledged effects are there once, unacknowledged at most once, failed ones not at all; what follows from an
    effect follows exactly once."""
    counted = {stream: Counter(listed) for stream, listed in tokens.items()}
    expected: dict[str, set[str]] = {}

    def times(stream: str, token: str) -> int:
        expected.setdefault(stream, set()).add(token)
        return counted.get(stream, Counter())[token]

    for op in history:
        if op.target.startswith("Register/") or op.method in ("read", "slow_read", "$workflow"):
            continue
        if op.method == "$send":
            _check_effect(op, times(op.target, str(op.args[1])))
            continue
        _check_effect(op, times(op.target, op.token))
        _check_consequences(op, times(op.target, op.token) == 1, times, worked)
    for stream, listed in tokens.items():
        if unknown := set(listed) - expected.get(stream, set()):
            raise Violation(f"INV-6: {stream} has {sorted(unknown)}, which nothing explains")


def _check_effect(op: Op, found: int) -> None:
    if found > 1:
        raise Violation(f"INV-8: {op} took effect {found} times")
    if op.outcome == "ok" and found != 1:
        raise Violation(f"INV-7: {op} was acknowledged and has no effect")
    if op.outcome == "failed" and found:
        raise Violation(f"INV-6: {op} failed and has left a trace")


def _check_consequences(op: Op, happened: bool, times: Any, worked: Mapping[str, int]) -> None:
    """What each method of `programs` sets in motion."""
    token, once = op.token, int(happened)

    def exactly(invariant: str, stream: str, suffix: str, want: int) -> None:
        found = times(stream, token + suffix)
        if found != want:
            raise Violation(f"{invariant}: {op}: {token + suffix} is in {stream} {found} times, not {want}")

    match op.method:
        case "tell":
            exactly("INV-8", f"Tally/{op.args[1]}", ">", once)
        case "pay" | "slow_pay":
            exactly("INV-8", f"Ledger/{op.args[1]}", ">", once)
        case "spoil":
            exactly("INV-6", "Tally/a" if len(op.args) == 1 else f"Ledger/{op.args[1]}", ">", 0)
            exactly("INV-6", op.target, "~", 0)
        case "remind":
            exactly("INV-8", op.target, "~", once * op.args[3])
        case "time":
            if times(op.target, f"{token}@") > once:
                raise Violation(f"INV-8: the timer of {op} fired more than once")
        case "order":
            exactly("INV-9", op.target, "!", once)
            if happened and not worked.get(token):
                raise Violation(f"INV-9: the work {op} posted was never done")
        case "ask":
            succeeded = times(op.target, f"{token}=ok")
            if succeeded + times(op.target, f"{token}=error") != once:
                raise Violation(f"INV-8: {op}: {succeeded} replies of success, in all not {once}")
            exactly("INV-8", f"{op.args[1]}/{op.args[2]}", "?", succeeded)
        case "call":
            _check_nested(op, happened, times(f"Tally/{op.args[1]}", f"{token}/"))
        case "circle":
            exactly("INV-6", f"Tally/{op.args[1]}", "/", 0)
            exactly("INV-6", op.target, "//", 0)
            exactly("INV-6", op.target, "", 0)
        case "begin" | "begin_and_fail":
            _check_nested(op, happened, times(f"Pair/{op.args[1]}", f"{token}/"))
            _check_joined(op, once, times(op.target, f"{token}//"))
        case _:
            pass


def _check_nested(op: Op, happened: bool, found: int) -> None:
    """A call inside a turn is done once the turn is; only a key makes it exactly one when the turn is run again."""
    if happened and not found:
        raise Violation(f"INV-7: {op} took effect, the call it had made did not")
    if op.keyed and found > 1:
        raise Violation(f"INV-8: the call that {op} made took effect {found} times")


def _check_joined(op: Op, once: int, found: int) -> None:
    """A call that came back is part of the turn it came back to. A repeated keyed call may miss it: what it calls over
    there has its receipt by then, and does not come back again."""
    if found > once or (found < once and not op.keyed):
        raise Violation(f"INV-4: {op} took effect {once} times, the call that came back to it {found} times")


def check_reads(history: Sequence[Op], tokens: Tokens, *, fresh: bool) -> None:
    """INV-7: a read shows all that was acknowledged before it was asked for (`fresh`), nothing that is lost later."""
    reads = [op for op in history if op.method in ("read", "slow_read") and op.outcome == "ok"]
    for read in reads:
        if lost := set(read.value) - set(tokens.get(read.target, ())):
            raise Violation(f"INV-7: {read} has shown {sorted(lost)}, which is gone")
        if not fresh:
            continue
        for op in history:
            mine = op.target == read.target and op.outcome == "ok" and op.answered < read.called
            if mine and op not in reads and op.method != "$send" and op.token not in read.value:
                raise Violation(f"INV-7: {read} does not show {op}, which was acknowledged before")


def check_money(states: Mapping[str, Mapping[str, Any]]) -> None:
    """INV-4, INV-8: transfers neither make money nor lose it."""
    balances = [state["balance"] for stream, state in states.items() if stream.startswith("Ledger/")]
    if sum(balances) != 100 * len(balances):
        raise Violation(f"INV-4: the ledgers hold {balances}")
    if any(balance < 0 for balance in balances):
        raise Violation(f"INV-3: a ledger was overdrawn: {balances}")


# -- registers ---------------------------------------------------------------------------------------------------------


def check_registers(history: Sequence[Op]) -> None:
    """INV-3, INV-7: every register is linearizable."""
    targets = {op.target for op in history if op.target.startswith("Register/")}
    for target in sorted(targets):
        ops = [op for op in history if op.target == target and not _is_idle(op)]
        if not linearizable(ops):
            lines = "\n  ".join(str(op) for op in ops)
            raise Violation(f"INV-7: no order of these explains them:\n  {lines}")


def _is_idle(op: Op) -> bool:
    """Says nothing about the register."""
    if op.method in ("get", "slow_get"):
        return op.outcome != "ok"
    if op.method == "expect":
        return op.outcome == "unknown" or (op.outcome == "failed" and not op.value.startswith("Refused:"))
    return op.outcome == "failed"


def linearizable(ops: Sequence[Op], value: int = 0) -> bool:
    """Whether some order of the operations, each between its call and its answer, explains all answers (Wing and Gong).

    One that is `unknown` may come any time after its call, or never. Exponential in what overlaps: for short histories.
    """
    seen: set[tuple[int, int]] = set()
    must = sum(1 << i for i, op in enumerate(ops) if op.outcome != "unknown")
    stack = [(0, value)]
    while stack:
        done, value = stack.pop()
        if done & must == must:
            return True
        if (done, value) in seen:
            continue
        seen.add((done, value))
        open_ = [i for i in range(len(ops)) if not done >> i & 1]
        horizon = min(ops[i].answered for i in open_)
        stack += [
            (done | 1 << i, following)
            for i in open_
            if ops[i].called <= horizon and (following := _effect(ops[i], value)) is not None
        ]
    return False


def _effect(op: Op, value: int) -> int | None:
    """The value after the operation; None when it would have answered otherwise."""
    unknown = op.answered == FOR_EVER
    match op.method:
        case "get" | "slow_get":
            return value if op.value == value else None
        case "expect":
            told = op.args[0] if op.outcome == "ok" else int(op.value.partition(":")[2])
            return value if told == value else None
        case "set":
            return int(op.args[0])
        case "swap":
            return int(op.args[0]) if unknown or op.value == value else None
        case "wipe" | "$delete":
            return 0
        case _:
            raise AssertionError(op.method)


# -- all of it ---------------------------------------------------------------------------------------------------------


async def check_world(world: World, life: Life) -> None:
    """Everything, once the world is quiet."""
    if world.complaints:
        raise Violation(f"the runtime complained: {world.complaints}")
    check_log(world.truth.log)
    await check_streams(world)
    await check_memory(world, life)
    states: dict[str, dict[str, Any]] = {}
    for stream in sorted(world.truth._streams):
        states[stream] = await world.state_of(life, stream)
    # What workflows write to is theirs to check.
    tokens = {stream: state["tokens"] for stream, state in states.items() if "tokens" in state and stream != "Tally/w"}
    check_tokens(world.history, tokens, world.worked)
    check_reads(world.history, tokens, fresh=not world.plan.robbery)
    check_money(states)
    check_registers(world.history)
