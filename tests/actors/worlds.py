"""What the tests of actors run on: real hosts on a real store, and a journal that can be held, broken and watched."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from actors import DeadlineExceeded, Host, definition_of
from statestores.errors import StoreUnavailable, VersionConflict

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from actors import ActorClient, ActorDefinition
    from statestores.errors import CommitRefused
    from statestores.model import TurnCommit
    from statestores.store import Journal


class Lever:
    """A journal in a tester's hand. Everything that is not pulled goes to the real one."""

    def __init__(self, inner: Journal) -> None:
        self._inner = inner
        self._open = asyncio.Event()
        self._open.set()
        # Called with each batch before it is written.
        self.on_commit: Callable[[Sequence[TurnCommit]], None] | None = None
        self.commits: list[TurnCommit] = []
        self.down = False
        self.turned_away = 0  # calls that were made while it was down
        self.lose_answers = 0
        self.refuse: Callable[[TurnCommit], bool] | None = None
        self.calls: dict[str, int] = {}
        # By name of a method: its calls, once counted, wait for the event.
        self.gates: dict[str, asyncio.Event] = {}

    def hold(self) -> None:
        """Let no commit through until `release`."""
        self._open.clear()

    def let_go(self) -> None:
        self._open.set()

    async def commit(self, turns: Sequence[TurnCommit]) -> list[CommitRefused | None]:
        await self._open.wait()
        self._check()
        if self.on_commit is not None:
            self.on_commit(turns)
        refused = [t for t in turns if self.refuse is not None and self.refuse(t)]
        passed = [t for t in turns if t not in refused]
        answers = iter(await self._inner.commit(passed))
        self.commits += passed
        if self.lose_answers:
            self.lose_answers -= 1
            raise StoreUnavailable("the answer is lost")
        return [VersionConflict(t.stream, -1, -1) if t in refused else next(answers) for t in turns]

    def _check(self) -> None:
        if self.down:
            self.turned_away += 1
            raise StoreUnavailable("the store is down")

    def __getattr__(self, name: str) -> Any:
        inner = getattr(self._inner, name)
        if not callable(inner):
            return inner

        async def call(*args: Any, **options: Any) -> Any:
            self._check()
            self.calls[name] = self.calls.get(name, 0) + 1
            if name in self.gates:
                await self.gates[name].wait()
            return await inner(*args, **options)

        return call


class World:
    """One store, and the hosts on it. Hosts of one name take over from each other at once, as after a restart."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.lever = Lever(journal)
        self.hosts: list[Host] = []

    async def host(self, *classes: type, name: str = "one", **options: Any) -> Host:
        host = Host(cast("Journal", self.lever), definitions(*classes), host_id=name, **options)
        self.hosts.append(host)
        await host.start()
        return host

    async def client(self, *classes: type, **options: Any) -> ActorClient:
        return (await self.host(*classes, **options)).client

    async def crash(self, host: Host) -> None:
        """Drop everything the host has in memory; the store keeps what it has."""
        host.abort()
        await asyncio.sleep(0)

    async def close(self) -> None:
        self.lever.let_go()
        self.lever.down = False
        for host in self.hosts:
            if not host.aborted:
                # Some tests leave turns behind that would never end.
                await host.stop(timeout_s=0.2)


def definitions(*classes: type) -> list[ActorDefinition]:
    found = [definition_of(cls) for cls in classes]
    assert all(found)
    return [definition for definition in found if definition is not None]


async def until(condition: Callable[[], object], *, timeout_s: float = 5.0) -> None:
    """Let the others run until it is so. Fails after a generous time."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  # the condition is anybody's
            await asyncio.sleep(0.001)


async def overrun(call: Callable[[float], Awaitable[object]], has_begun: Callable[[], object]) -> None:
    """Make a call whose deadline comes while it runs; with more time, if a busy machine had not begun it by then."""
    for timeout_s in (0.05, 0.5, 5.0):
        with pytest.raises(DeadlineExceeded):
            await call(timeout_s)
        if has_begun():
            return
    raise AssertionError("it did not begin before its deadline")


async def settled(rounds: int = 20) -> None:
    """Let everything that can run without the store or the clock run."""
    for _ in range(rounds):
        await asyncio.sleep(0)
