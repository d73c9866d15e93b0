"""Registers of a real cluster, used by many clients while it is hurt; what they saw must be linearizable.

    python -m tests.e2e.linearizability --seconds 600 --seed 7

Every operation is sent once, without a key, and reads are of the default level; so an operation that got no answer may
have taken effect, or not. A register lives for a while, then another takes its place: that keeps each history short
enough to be decided (see `tests.linearizability`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.e2e.clusters import Connection, Failed
from tests.e2e.verifier import ALL_FAULTS, Verifier, victim
from tests.linearizability import History

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.e2e.verifier import Victim
    from tests.linearizability import RegisterOp

FAULTS = ("kill", "freeze", "redis", "answers")
_CLIENTS = 12
_REGISTERS = 4
_LIFE_S = 15.0
_CALM_S = 0.02
# Answers that say so: the call was not applied.
_CERTAIN = (b"ERR_ACTOR_MOVED", b"ERR_ACTOR_RUNTIME_CLOSED", b"ERR_ACTOR_MAILBOX_FULL")


@dataclass
class Registers:
    """Clients of a cluster, and what they saw."""

    port: int
    seconds: float
    seed: int
    history: History = field(default_factory=History)
    outcomes: Counter[str] = field(default_factory=Counter)
    connections: list[Connection] = field(default_factory=list)

    async def run(self) -> None:
        """Raises `NotLinearizable`, `TooHard`, or `AssertionError` when hardly anything was answered."""
        end = time.monotonic() + self.seconds
        await asyncio.gather(*(self._drive(process, end) for process in range(_CLIENTS)))
        reader = Connection(self.port)
        for register in self.history.by_register():
            path = f"/v1.0/actors/Register/{register}/method/read"
            value = await reader.insist("POST", path)
            now_s = time.monotonic()
            self.history.call(_CLIENTS, register, "read", (), now_s).answer(value, now_s)
        reader.close()
        assert self.outcomes["ok"] > 5 * self.seconds, f"hardly anything was answered: {dict(self.outcomes)}"
        self.history.check()

    async def _drive(self, process: int, end: float) -> None:
        luck = random.Random(f"{self.seed}/{process}")
        connection = Connection(self.port)
        self.connections.append(connection)
        seen: Counter[str] = Counter()
        begun = time.monotonic()
        while (now_s := time.monotonic()) < end:
            life = int((now_s - begun) / _LIFE_S)
            register = f"r{self.seed}-{life}-{luck.randrange(_REGISTERS)}"
            kind, args = self.history.draw(luck, seen[register])
            op = self.history.call(process, register, kind, args, time.monotonic())
            await self._attempt(connection, op)
            if kind == "read" and isinstance(op.result, int):
                seen[register] = op.result
            await asyncio.sleep(luck.random() * 2 * _CALM_S)
        connection.close()

    async def _attempt(self, connection: Connection, op: RegisterOp) -> None:
        """Once; what is known of it is written down."""
        body = json.dumps(op.args[0] if len(op.args) == 1 else op.args).encode() if op.args else b""
        try:
            answer = await connection.request("POST", f"/v1.0/actors/Register/{op.register}/method/{op.kind}", body)
        except Failed as error:
            op.failed = any(code in error.body for code in _CERTAIN)
            self.outcomes["failed" if op.failed else "unknown"] += 1
        except ConnectionRefusedError:
            op.failed = True
            self.outcomes["refused"] += 1
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            self.outcomes["unknown"] += 1
        else:
            op.answer(json.loads(answer) if answer else None, time.monotonic())
            self.outcomes["ok"] += 1


async def play(hurt: Victim, seconds: float, seed: int, faults: Sequence[str] = FAULTS) -> str:
    """One line that says what was done. Raises what `Registers.run` raises."""
    registers = Registers(hurt.port, seconds, seed)
    nemesis = Verifier(hurt, seed, 0, faults, connections=registers.connections)
    trouble = asyncio.create_task(nemesis.trouble())
    try:
        await registers.run()
    finally:
        trouble.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await trouble
    return f"seed {seed}: {seconds:.0f} s, {dict(registers.outcomes)}, faults {dict(nemesis.hurt)}: linearizable"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--faults", default=",".join(ALL_FAULTS), help="of " + ", ".join(ALL_FAULTS))
    given = parser.parse_args()
    faults = [fault for fault in given.faults.split(",") if fault]
    print(f"seed {given.seed}", flush=True)
    with victim(faults, "--lease", "3s") as hurt:
        try:
            print(asyncio.run(play(hurt, given.seconds, given.seed, faults)))
        except AssertionError as error:
            sys.exit(f"WRONG (seed {given.seed}) {error}")


if __name__ == "__main__":
    main()
