"""Zombies of a real cluster: hosts that wake up after others have taken what they had, with turns decided.

    python -m tests.e2e.zombies --runs 100 --seed 7

In each run a host is stopped (SIGSTOP), or cut off from the store, in the middle of calls to it, until others own all
it had; then it goes on. A run counts only when the store has refused something of it: its log has a line for each turn.
So nothing is proven by nothing having happened. Then the histories of all actors are read and compared with what
callers were answered: versions without gaps, every call that was acknowledged there once, at the place that its answer
said; and every call, made again under its key, is answered as before, and leaves nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.e2e.clusters import Connection, hosts_of
from tests.e2e.verifier import victim

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e.verifier import Victim

FATES = ("frozen", "cut off")
_CALLERS = 24
_PAUSE_S = 0.02
_TAKEN_S = 60.0
_REFUSED = ", the commit carries "


@dataclass
class Run:
    """One zombie, and those who call. Actors are its own."""

    hurt: Victim
    name: str
    fate: str
    luck: random.Random
    # By actor and name of a call.
    answers: dict[str, dict[str, int]] = field(default_factory=dict)
    refused: int = 0
    _is_over: bool = False

    async def play(self) -> None:
        """Raises `AssertionError` if anything was recorded twice, or lost."""
        callers = [asyncio.create_task(self._drive(f"{self.name}-{number}")) for number in range(_CALLERS)]
        try:
            async with asyncio.timeout(_TAKEN_S):
                await self._wait_round()
                zombie = self.luck.choice([host for host in await hosts_of(self.hurt.port) if host["owned"]])
                log = log_of(zombie["pid"])
                before = refusals(log)
                async with self._out_of_this_world(zombie["pid"]):
                    await self._wait_taken(zombie["name"])
                await self._wait_round()
                await self._wait_round()
            self.refused = refusals(log) - before
            self._is_over = True
            await asyncio.gather(*callers)
        finally:
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
        await asyncio.gather(*(self._check(actor) for actor in self.answers))

    @contextlib.asynccontextmanager
    async def _out_of_this_world(self, pid: int) -> AsyncIterator[None]:
        if self.fate == "frozen":
            os.kill(pid, signal.SIGSTOP)
        else:
            self.hurt.relay.hold(pid)
        try:
            yield
        finally:
            if self.fate == "frozen":
                os.kill(pid, signal.SIGCONT)
            else:
                self.hurt.relay.release()

    async def _wait_taken(self, name: str) -> None:
        """Others own everything."""
        while True:
            hosts = await hosts_of(self.hurt.port)
            if sum(len(host["owned"]) for host in hosts if host["name"] != name) == 32:
                return
            await asyncio.sleep(0.02)

    async def _wait_round(self) -> None:
        """Everybody has been answered once more."""
        before = {actor: len(answers) for actor, answers in self.answers.items()}
        while len(self.answers) < _CALLERS or any(  # noqa: ASYNC110  # counted over HTTP
            len(answers) == before.get(actor, 0) for actor, answers in self.answers.items()
        ):
            await asyncio.sleep(0.01)

    async def _drive(self, actor: str) -> None:
        """One call after the other, each under its name until it is answered."""
        answers = self.answers.setdefault(actor, {})
        connection = Connection(self.hurt.port)
        while not self._is_over:
            name = f"{actor}-{len(answers)}"
            answers[name] = await self._add(connection, actor, name)
            await asyncio.sleep(self.luck.random() * 2 * _PAUSE_S)
        connection.close()

    async def _add(self, connection: Connection, actor: str, name: str) -> int:
        path = f"/v1.0/actors/Ledger/{actor}/method/add"
        return int(await connection.insist("POST", path, json.dumps(name).encode(), key=name))

    async def _check(self, actor: str) -> None:
        connection = Connection(self.hurt.port)
        answers = self.answers[actor]
        await self._check_history(connection, actor)
        for name, answer in answers.items():
            again = await self._add(connection, actor, name)
            assert again == answer, f"INV-8: {actor}: {name} was answered {answer}, and then {again}"
        await self._check_history(connection, actor)
        connection.close()

    async def _check_history(self, connection: Connection, actor: str) -> None:
        events = [event async for event in history_of(connection, actor)]
        versions = [event["version"] for event in events]
        assert versions == list(range(1, len(events) + 1)), f"INV-1: {actor}: {versions}"
        names = [event["data"]["name"] for event in events]
        twice = {name: times for name, times in Counter(names).items() if times > 1}
        assert not twice, f"INV-8: {actor}: recorded more than once: {twice}"
        recorded = {name: place for place, name in enumerate(names, 1)}
        assert recorded == self.answers[actor], f"INV-7: {actor}: {recorded} is not what was answered"


async def history_of(connection: Connection, actor: str) -> AsyncIterator[dict[str, Any]]:
    after: Any = 0
    while after is not None:
        path = f"/v1.0/mecha/actors/Ledger/{actor}/history?limit=1000&after={after}"
        page = await connection.insist("GET", path)
        for event in page["items"]:
            yield event
        after = page.get("next") or None


def log_of(pid: int) -> Path:
    """The file that Ray has a host write to."""
    return Path(os.readlink(f"/proc/{pid}/fd/2"))


def refusals(log: Path) -> int:
    """How many turns of a host the store has refused because others own the actor by now, as its log says."""
    return log.read_text(errors="replace").count(_REFUSED)


@dataclass
class Zombies:
    """Runs, one after the other, on one cluster."""

    hurt: Victim
    seed: int
    acknowledged: int = 0
    # Of each run that counts.
    refused: list[int] = field(default_factory=list)
    # In which no zombie has tried anything.
    idle: int = 0

    async def run(self, runs: int) -> None:
        luck = random.Random(self.seed)
        while len(self.refused) < runs:
            number = len(self.refused) + self.idle
            run = Run(self.hurt, f"z{self.seed}-{number}", FATES[number % len(FATES)], luck)
            await run.play()
            self.acknowledged += sum(len(answers) for answers in run.answers.values())
            if run.refused:
                self.refused.append(run.refused)
            else:
                self.idle += 1
            assert self.idle <= 3 + runs, f"seed {self.seed}: hardly any zombie tries to record anything: {self}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    with victim((), "--lease", "2s") as hurt:
        zombies, begun = Zombies(hurt, given.seed), time.monotonic()
        try:
            asyncio.run(zombies.run(given.runs))
        except AssertionError as error:
            sys.exit(f"WRONG (seed {given.seed}) after {len(zombies.refused) + zombies.idle} runs: {error}")
        print(
            f"seed {given.seed}: {given.runs} zombie runs in {time.monotonic() - begun:.0f} s (and {zombies.idle} in "
            f"which it had nothing to record), {sum(zombies.refused)} turns of zombies refused, "
            f"{zombies.acknowledged} calls acknowledged, 0 double commits"
        )


if __name__ == "__main__":
    main()
