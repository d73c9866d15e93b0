"""Replay: a program's state again, from the record of its turns, later and elsewhere.

    run = replay(definition, instance_id, records) # raises `Stall`

Every input is applied again, and what the code commands must be what is recorded (INV-10): the first difference stalls
the instance, with both commands and the source line.
"""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING, Any

import orjson

from workflow.errors import Stall
from workflow.history import Command, Input, Record, encode_commands, parse
from workflow.payloads import reference
from workflow.pieces import digest_freely, read_freely
from workflow.program import Program

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Sequence

    from workflow.definition import Workflow
    from workflow.pieces import Data
    from workflow.program import Wanted

_PARSED_AT_ONCE = 1000


def replay(
    definition: Workflow[Any, Any], instance_id: str, records: Sequence[Record], surface: object = None
) -> Program:
    """The program as it was after the last record. Raises `Stall`: at the first command that differs, or when the code
    stops where it did not stop before. The program is then closed."""
    program = Program(definition, instance_id, surface)
    for _ in _replaying(program, records, reading=False):
        raise AssertionError("nobody is there to read")
    return program


async def replay_reading(
    definition: Workflow[Any, Any],
    instance_id: str,
    records: Sequence[Record],
    surface: object,
    load: Callable[[dict[str, Any]], Awaitable[Data]],
) -> Program:
    """`replay` of a history that refers to large values: each is loaded when its turn comes, and let go of when the
    code has seen it. Raises what `load` raises as well; the program is then closed."""
    program = Program(definition, instance_id, surface)
    try:
        with contextlib.closing(_replaying(program, records, reading=True)) as steps:
            for wanted in steps:
                if wanted is not None:
                    await supply(program, wanted, load)
                while program.outgoing:
                    await settle(program)
    except BaseException:
        program.close()
        raise
    return program


async def supply(program: Program, wanted: Sequence[Wanted], load: Callable[[dict[str, Any]], Awaitable[Data]]) -> None:
    """Raises what `load` raises."""
    for found in wanted:
        data = await load(found.reference)
        program.supply(found, data, await read_freely(found.decoder, data))


async def settle(program: Program) -> bytes:
    """Write the last of `program.outgoing`, and fill in where it is referred to. Returns its JSON."""
    refers, value = program.outgoing.pop()
    data = value if isinstance(value, bytes) else await value.write()
    del value
    refers.update(reference(await digest_freely(data), len(data)))
    return data


class Track:
    """The records of a replay, and which of them is being applied.

    Most turns of most histories are alike: one task waits for one thing, nothing else can run, and that thing is the
    next input. To wait for it by way of the loop would only give it back to the same line, so whoever is about to wait
    asks for it here (`pass_to`), and the code goes on at once. What it can observe is the same: the order of everything
    that runs, the time, the commands of each turn, which are compared as ever. Where anything is different from that
    plain case it waits, and the turn ends in the loop."""

    __slots__ = ("_program", "inputs", "position", "records")

    def __init__(self, program: Program) -> None:
        self._program = program
        self.records: Sequence[Record] = ()
        self.inputs: list[list[Input]] = []
        self.position = 0

    def lay(self, records: Sequence[Record]) -> None:
        """The next piece of it."""
        self.records = records
        self.inputs = orjson.loads(f"[{','.join([r.inputs for r in records])}]")
        self.position = 0

    def pass_to(self, kind: str, name: str) -> Input | None:
        """The next input, when it is of that kind (done, event) and name and all that was to happen before it has
        happened; the program is in the next turn then. None: wait."""
        position = self.position
        inputs, following = self.inputs, position + 1
        if following == len(inputs) or len(inputs[position]) != 1 or len(inputs[following]) != 1:
            return None
        item = inputs[following][0]
        if item[0] != kind or item[1] != name or len(item) != 3:
            return None
        records = self.records
        if not self._program.goes_on(records[position].commands, records[following].time_ms):
            return None
        self.position = following
        return item


def _replaying(
    program: Program, records: Sequence[Record], *, reading: bool
) -> Generator[list[Wanted] | None, None, None]:
    """Replay step by step: `reading`, it gives what must be supplied before it goes on, or None where what the program
    refers to must be settled, and stands outside of the program's loop then."""
    if not records:
        return
    program.track = track = Track(program)
    outside = program.loop.enter()
    collects = gc.isenabled() and len(records) > _PARSED_AT_ONCE
    if collects:
        # A replay makes many objects and little garbage: the collector would go over all of them again and again.
        gc.disable()
    try:
        apply = program.apply_within
        for start in range(0, len(records), _PARSED_AT_ONCE):
            track.lay(records[start : start + _PARSED_AT_ONCE])
            some, all_inputs = track.records, track.inputs
            while (position := track.position) < len(some):
                inputs = all_inputs[position]
                if reading and (wanted := program.wanted(inputs)):
                    outside = yield from _standing_aside(program, outside, wanted)
                commands = apply(some[position].time_ms, inputs)
                if reading and program.outgoing:
                    outside = yield from _standing_aside(program, outside, None)
                record = some[track.position]  # the code may have passed by some
                if (commands or record.commands) and encode_commands(commands) != record.commands:
                    raise _difference(program, commands, record)
                track.position += 1
        program.loop.let_go()
    except BaseException:
        program.close()
        raise
    finally:
        if collects:
            gc.enable()
        program.loop.leave(outside)
    program.track = None


def _standing_aside(
    program: Program, outside: Any, wanted: list[Wanted] | None
) -> Generator[list[Wanted] | None, None, Any]:
    """Others run meanwhile."""
    collects = not gc.isenabled()
    program.loop.leave(outside)
    if collects:
        gc.enable()
    try:
        yield wanted
    finally:
        if collects:
            gc.disable()
        outside = program.loop.enter()
    return outside


def _difference(program: Program, fresh: list[Command], record: Record) -> Stall:
    recorded = parse(record.commands)
    for position in range(max(len(fresh), len(recorded))):
        new = encode_commands([fresh[position]]) if position < len(fresh) else ""
        old = encode_commands([recorded[position]]) if position < len(recorded) else ""
        if new != old:
            break
    where = (new and program.place_of(fresh[position])) or program.waiting_at()
    answers = ", ".join(" ".join(map(str, i[:2])) for i in parse(record.inputs)) or "nothing"
    return Stall(
        "NondeterminismError",
        f"the code no longer does what the history says: after {answers} it issued {_describe(new)}, "
        f"recorded is {_describe(old)}{f' ({where})' if where else ''}",
    )


def _describe(command: str) -> str:
    return f"{command[1:-1][:200]}" if command else "no command"
