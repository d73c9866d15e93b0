"""A simulated world for the whole runtime: one store, hosts that come and go, clients that never give up writing down.

Everything is drawn from one seed: what the clients do, how bad the network to the store is, and which disasters happen.
At the end the world heals, gets quiet, and is compared with what the clients saw (`checkers`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from actors import (
    ActorError,
    ActorFailed,
    DeadlineExceeded,
    Host,
    LoopClock,
    OutcomeUnknown,
    StoreInUse,
    Work,
    definition_of,
)
from actors.client import folded
from actors.placement.local import LocalPlacement
from statestores.errors import StoreError
from statestores.memory import MemoryJournal
from tests.simulation.faultystore import Faults, FaultyJournal
from tests.simulation.programs import TYPES, Tally
from tests.simulation.simloop import NodeDied, SimulatedLoop
from workflow import Engine, WorkflowError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from statestores.errors import CommitRefused
    from statestores.model import Ownership, TurnCommit
    from workflow import Workflow, WorkflowClient

PARTITIONS = 2
LEASE_S = 3.0
PATIENCE_S = 2.0
FOR_EVER = float("inf")


_TYPES = [definition for cls in TYPES if (definition := definition_of(cls)) is not None]


class Violation(AssertionError):
    """An invariant does not hold. The message begins with its number."""


class Truth(MemoryJournal):
    """The store behind all faults. Writes down, in order, every epoch it gave out and every turn it recorded."""

    def __init__(self, partitions: int) -> None:
        super().__init__(partitions)
        self.log: list[Ownership | TurnCommit] = []
        self._known: set[str] = set()

    async def acquire(
        self, partitions: Sequence[int], owner: str, now_ms: int, lease_ms: int, *, force: bool = False
    ) -> list[Ownership]:
        taken = await super().acquire(partitions, owner, now_ms, lease_ms, force=force)
        self.log += taken
        return taken

    async def commit(self, turns: Sequence[TurnCommit]) -> list[CommitRefused | None]:
        answers = await super().commit(turns)
        for turn, refusal in zip(turns, answers, strict=True):
            if refusal is None and turn.turn_id not in self._known:
                self._known.add(turn.turn_id)
                self.log.append(turn)
        return answers


@dataclass(slots=True, eq=False)
class Op:
    """One call of a client, as the client saw it. `failed`: certain to have left no trace. `unknown`: may take effect
    once, at any time after `called`."""

    target: str
    method: str
    args: tuple[Any, ...]
    called: float
    keyed: bool = False
    answered: float = FOR_EVER
    outcome: str = "unknown"
    value: Any = None

    @property
    def token(self) -> str:
        return str(self.args[0]) if self.args else ""


@dataclass(slots=True, eq=False)
class Life:
    """One life of a host, from its start to its death, on a node of its own."""

    node: str
    host: Host
    journal: FaultyJournal
    workflows: WorkflowClient | None
    up: bool = False


class Robber(LocalPlacement):
    """Takes the partitions over although their owner lives: a placement that is wrong."""

    async def start(self) -> None:
        await self._host.ownership.acquire(range(PARTITIONS), force=True)
        await super().start()


class Listener(logging.Handler):
    """What the runtime itself calls an error is one."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self.world = world

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.world.complaints.append(f"{record.name}: {record.getMessage()} {error!r}")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a seed is about, beside chance itself."""

    faults: Faults
    disasters: tuple[str, ...] = ()
    # A living owner may be robbed. Its reads rest on its lease, so only what is committed is checked then.
    robbery: bool = False
    # At the end the host that is there goes on, or a clean one is started.
    restart: bool = True
    in_flight: int = 64
    # Workflows are replayed for every turn, or only after their activation was lost.
    evict: bool = False


Request = Callable[[Host], Awaitable[Any]]


@dataclass(slots=True, eq=False)
class World:
    loop: SimulatedLoop
    plan: Plan
    truth: Truth = field(default_factory=lambda: Truth(PARTITIONS))
    history: list[Op] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    worked: dict[str, int] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    # What a host is deployed with, beside `TYPES`.
    workflows: tuple[Workflow[Any, Any], ...] = ()
    healed: bool = False
    _tokens: int = 0
    _routes: Random = field(init=False)
    _faults: Random = field(init=False)

    def __post_init__(self) -> None:
        self._routes = self.loop.random_for("routes")
        self._faults = self.loop.random_for("faults")

    # -- hosts ---------------------------------------------------------------------------------------------------------

    async def boot(self, *, rob: bool = False) -> Life | None:
        """A new host, owner of everything; None when the present owner keeps its lease alive."""
        while True:
            life = self._new_life(rob=rob)
            try:
                await self.loop.ask(life.node, life.host.start())
            except StoreInUse:
                return None
            except NodeDied:
                return None
            except StoreError:
                await asyncio.sleep(0.2)
                continue
            life.up = True
            return life

    def _new_life(self, *, rob: bool) -> Life:
        node = f"h{len(self.lives) + 1}"
        journal = FaultyJournal(self.truth, self._faults, Faults() if self.healed else self.plan.faults, node)
        engine = self._new_engine()
        host = Host(
            journal,
            [*_TYPES, *(engine.types if engine is not None else ())],
            clock=LoopClock(),
            host_id=node,
            lease_s=LEASE_S,
            workers={"job": self._worker(node), **(engine.workers if engine is not None else {})},
            max_in_flight_messages=self.plan.in_flight,
            store_patience_s=PATIENCE_S,
        )
        if rob:
            host.placement = Robber(host)
        life = Life(node, host, journal, engine.attach(host.client) if engine is not None else None)
        self.lives.append(life)
        return life

    def _new_engine(self) -> Engine | None:
        """Costly to make, so only in a world that has workflows."""
        if not self.workflows:
            return None
        return Engine(self.workflows, clock=LoopClock(), idle_timeout=1.0, evict_always=self.plan.evict)

    def _worker(self, node: str) -> Callable[[Work], Coroutine[Any, Any, None]]:
        async def work(posted: Work) -> None:
            token = orjson.loads(posted.body)
            self.worked[token] = self.worked.get(token, 0) + 1
            if self.worked[token] == 1 and self._routes.random() < 0.2:
                raise RuntimeError("a worker's first attempt may fail")
            await asyncio.sleep(0.05)
            client = self.life_of(node).host.client
            tally: Any = client.actor(Tally, posted.stream.partition("/")[2])
            await tally.finish(posted.id, token)

        return work

    def life_of(self, node: str) -> Life:
        return next(each for each in self.lives if each.node == node)

    def chance(self, probability: float) -> bool:
        return self._routes.random() < probability

    def kill(self, life: Life) -> None:
        life.up = False
        life.journal.crash()
        self.loop.kill(life.node)

    @property
    def living(self) -> list[Life]:
        return [life for life in self.lives if life.up]

    # -- clients -------------------------------------------------------------------------------------------------------

    def new_token(self, name: str) -> str:
        self._tokens += 1
        return f"{name}{self._tokens}"

    async def _route(self) -> Life:
        """Mostly the newest host; now and then one that was replaced, and may not know."""
        while not self.living:  # noqa: ASYNC110  # polling is fine where waiting is free
            await asyncio.sleep(0.1)
        newest = self.living[-1]
        return newest if self._routes.random() < 0.75 else self._routes.choice(self.living)

    async def call(
        self, target: str, method: str, *args: Any, timeout: float | None = None, patience: float | None = None
    ) -> Op:
        """One call, once. `timeout`: the caller's deadline; `patience`: after so long the caller cancels it."""
        life = await self._route()
        op = Op(target, method, args, self.loop.time())
        self.history.append(op)
        await self._attempt(op, life, self._request(op, None, timeout), patience)
        return op

    async def call_keyed(self, key: str, target: str, method: str, *args: Any) -> Op:
        """The impatient client: repeats under one idempotency key until there is an answer, and then once more."""
        op = Op(target, method, args, self.loop.time(), keyed=True)
        self.history.append(op)
        while op.outcome == "unknown" or (op.outcome == "failed" and op.value.startswith("again")):
            life = await self._route()
            patience = None if self.healed else self._routes.choice([0.01, 0.1, 1.0, None])
            await self._attempt(op, life, self._request(op, key, None), patience)
            await asyncio.sleep(self._routes.random() * 0.2)
        if op.outcome == "ok":
            await self._ask_again(op, key)
        return op

    async def _ask_again(self, first: Op, key: str) -> None:
        again = Op(first.target, first.method, first.args, self.loop.time(), keyed=True)
        await self._attempt(again, await self._route(), self._request(again, key, None), None)
        if again.outcome == "ok" and again.value != first.value:
            raise Violation(f"INV-8: {first} was answered {again.value!r} when it was repeated")

    async def start_workflow(self, token: str) -> Op:
        """Its instance id is the token."""
        op = Op(f"mecha.workflow/{token}", "$workflow", (token,), self.loop.time())
        self.history.append(op)
        life = await self._route()
        name, client = self.workflows[0].name, life.workflows
        assert client is not None
        await self._attempt(
            op, life, lambda host: client.start(name, token, instance_id=token, idempotency_key=token), None
        )
        return op

    async def signal(self, token: str, name: str, payload: str) -> None:
        """Raise an event, perhaps; whether it arrived is not asked."""
        life = await self._route()
        assert life.workflows is not None
        with suppress(NodeDied, ActorError, WorkflowError):
            await self.loop.ask(life.node, life.workflows.raise_event(token, name, payload))

    def _request(self, op: Op, key: str | None, timeout: float | None) -> Request:
        actor_type, _, actor_id = op.target.partition("/")
        if op.method == "$delete":
            return lambda host: host.client.delete(actor_type, actor_id)
        if op.method == "$send":
            method, *args = op.args
            return lambda host: host.client.send_raw(actor_type, actor_id, method, orjson.dumps(args))
        if self._routes.random() < 0.3:
            body = orjson.dumps(list(op.args)) if len(op.args) != 1 else orjson.dumps(op.args[0])

            async def raw(host: Host) -> Any:
                answer = await host.client.call(
                    actor_type, actor_id, op.method, body if op.args else b"", idempotency_key=key, timeout=timeout
                )
                return orjson.loads(answer)

            return raw
        cls = next(each for each in TYPES if each.__name__ == actor_type)

        async def typed(host: Host) -> Any:
            ref: Any = host.client.actor(cls, actor_id, timeout=timeout, idempotency_key=key)
            return await getattr(ref, op.method)(*op.args)

        return typed

    async def _attempt(self, op: Op, life: Life, request: Request, patience: float | None) -> None:
        op.answered = FOR_EVER
        # Most clients walk away from a host that is silent, some wait for as long as it takes.
        silence = None if self.healed else self._routes.choice([0.5, 1.0, 1.0, None])
        try:
            async with asyncio.timeout(silence):
                op.value = await self.loop.ask(life.node, _patiently(request, life.host, patience))
            op.outcome = "ok"
        except (NodeDied, OutcomeUnknown, DeadlineExceeded, TimeoutError):
            op.outcome = "unknown"
            return
        except ActorFailed as error:
            op.outcome, op.value = "failed", f"{error.error_type}:{error.message}"
        except ActorError as error:
            op.outcome, op.value = "failed", f"{'again' if error.retriable else 'never'}:{error!r}"
        op.answered = self.loop.time()

    # -- the end -------------------------------------------------------------------------------------------------------

    async def heal(self) -> None:
        self.healed = True
        for life in self.lives:
            life.journal.faults = Faults()
            life.journal._out_until_s = 0.0

    async def settle(self) -> Life:
        """One healthy host that owns everything and has nothing left to do. `Violation` when that never comes."""
        life = await self._last_life()
        for _ in range(240):
            if not self._unfinished(life):
                return life
            await asyncio.sleep(0.5)
        raise Violation(f"INV-9: never finished: {self._unfinished(life)}")

    async def keeper(self) -> Life | None:
        """The host that is up and owns everything, by the store's word."""
        owners = {each.owner for each in await self.truth.owners()}
        keepers = [life for life in self.living if len(life.host.owned()) == PARTITIONS and owners == {life.host.owner}]
        return keepers[0] if keepers else None

    async def succeed(self) -> None:
        """Boot until there is a host that owns everything: the old one after all, or a new one."""
        while await self.boot() is None and await self.keeper() is None:  # noqa: ASYNC110
            await asyncio.sleep(0.5)

    async def _last_life(self) -> Life:
        if self.plan.restart:
            for life in self.living:
                self.kill(life)
        if await self.keeper() is None:
            await self.succeed()
        keeper = await self.keeper()
        assert keeper is not None
        for life in self.living:
            if life is not keeper:
                self.kill(life)
        return keeper

    async def state_of(self, life: Life, stream: str) -> dict[str, Any]:
        """What is recorded, folded."""
        return folded(life.host.types[stream.partition("/")[0]], await self.truth.load(stream))

    def _unfinished(self, life: Life) -> list[str]:
        """What stands in the store, and what the host has in memory. Read without a call: nothing is disturbed."""
        messages = [f"message {id_}" for held in self.truth._outbox.values() for id_ in held]
        reminders = [f"reminder {name} of {stream}" for stream, of in self.truth._reminders.items() for name in of]
        busy = [f"activation {stream}" for stream, each in life.host.activations.items() if not each.quiet]
        return [*messages, *reminders, *busy]


async def _patiently(request: Request, host: Host, patience: float | None) -> Any:
    async with asyncio.timeout(patience):
        return await request(host)
