"""One seed, one run: who calls what, what goes wrong, and the comparison at the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from actors import ActorError
from tests.simulation.checkers import check_world
from tests.simulation.errands import WORLD, check_errands, errand, run_errands
from tests.simulation.faultystore import Faults
from tests.simulation.simloop import NodeDied, SimulatedLoop, run
from tests.simulation.world import LEASE_S, Listener, Plan, Violation, World

if TYPE_CHECKING:
    from tests.simulation.world import Life

Client = Callable[[World, Random, str], Coroutine[Any, Any, None]]

_NETWORKS = (
    Faults(),
    Faults(delay_s=0.02, lose_answer=0.15),
    Faults(delay_s=0.02, lose_answer=0.1, fail=0.1, tear_batch=0.2),
    Faults(delay_s=0.05, slow=0.1, slow_s=2.5, lose_answer=0.05),
)
_DISASTERS = ("kill", "kill", "stop", "zombie", "zombie", "outage", "blackout", "rob")


# -- clients -----------------------------------------------------------------------------------------------------------


async def _think(random: Random) -> None:
    """Between two calls: often nothing, so that clients meet."""
    await asyncio.sleep(random.choice([0.0, 0.0, random.random() * 0.1, random.random()]))


async def _write_registers(world: World, random: Random, name: str) -> None:
    """Values are unique, so that a history has few explanations. No reads when owners are robbed: see `Plan`."""
    for _ in range(6):
        target = f"Register/{random.choice('ab')}"
        writes = ["set", "swap", "swap", "wipe", "$delete"]
        method = random.choice(writes if world.plan.robbery else [*writes, "get", "get", "slow_get", "expect"])
        value = random.randrange(1, 4) if method == "expect" else random.randrange(1_000_000)
        if random.random() < 0.3:
            value = random.randrange(1, 4)
        args = (value,) if method in ("set", "swap", "expect") else ()
        timeout, patience = random.choice([(None, None), (None, None), (0.05, None), (None, 0.05)])
        await world.call(target, method, *args, timeout=timeout, patience=patience)
        await _think(random)


async def _watch(world: World, random: Random, name: str) -> None:
    """One register over a longer time, so that somebody asks whoever wakes up."""
    for _ in range(14):
        if world.plan.robbery or random.random() < 0.4:
            await world.call("Register/a", "set", random.randrange(1_000_000))
        else:
            await world.call("Register/a", "get")
        await asyncio.sleep(random.random())


async def _wipe(world: World, random: Random, name: str) -> None:
    """One register is deleted, and made again, all the time."""
    for _ in range(8):
        method = random.choice(
            ["set", "wipe", "$delete"] if world.plan.robbery else ["set", "wipe", "get", "get", "get"]
        )
        await world.call("Register/a", method, *([random.randrange(1_000_000)] if method == "set" else []))
        await asyncio.sleep(random.random() * 0.1)


async def _add_tokens(world: World, random: Random, name: str) -> None:
    for _ in range(6):
        target, other = f"Tally/{random.choice('ab')}", random.choice("abc")
        token = world.new_token(name)
        method = random.choice(
            [
                "add",
                "add",
                "slow_add",
                "tell",
                "tell",
                "call",
                "circle",
                "spoil",
                "slow_spoil",
                "read",
                "slow_read",
                "$send",
            ]
        )
        if method in ("call", "circle") and target.endswith(other):
            method = "tell"
        if method == "$send":
            await world.call(target, method, "add", token)
        elif method in ("read", "slow_read"):
            await world.call(target, method)
        elif method in ("add", "slow_add", "tell", "call") and random.random() < 0.4:
            await world.call_keyed(
                f"key-{token}", target, method, token, *([other] if method in ("tell", "call") else [])
            )
        else:
            args = (token, other) if method in ("tell", "call", "circle") else (token,)
            timeout, patience = random.choice([(None, None), (None, None), (0.1, None), (None, 0.1)])
            await world.call(target, method, *args, timeout=timeout, patience=patience)
        await _think(random)


async def _move_money(world: World, random: Random, name: str) -> None:
    for _ in range(6):
        target, other = f"Ledger/{random.choice('abc')}", random.choice("abc")
        token = world.new_token(name)
        method = random.choice(["pay", "pay", "slow_pay", "slow_pay", "spoil", "read"])
        if method == "read":
            await world.call(target, method)
        elif method != "spoil" and random.random() < 0.4:
            await world.call_keyed(f"key-{token}", target, method, token, other, random.randrange(60))
        else:
            await world.call(target, method, token, other, random.randrange(60))
        await _think(random)


async def _do_chores(world: World, random: Random, name: str) -> None:
    for _ in range(5):
        target, token = f"Tally/{random.choice('ab')}", world.new_token(name)
        match random.choice(["remind", "remind", "time", "order", "ask", "ask"]):
            case "remind":
                schedule = (random.choice([0.0, 0.3, 4.0]), random.choice([0.2, 3.0]), random.randrange(1, 4))
                await world.call(target, "remind", token, *schedule)
            case "time":
                await world.call(target, "time", token, random.choice([0.0, 0.4]))
            case "order":
                await world.call(target, "order", token)
            case _:
                await world.call(target, "ask", token, random.choice(["Tally", "Ledger"]), random.choice("abc"))
        await _think(random)


async def _come_back(world: World, random: Random, name: str) -> None:
    for _ in range(5):
        first, second = random.choice([("a", "b"), ("b", "a"), ("a", "c")])
        token = world.new_token(name)
        method = random.choice(["begin", "begin", "begin_and_fail", "read"])
        if method == "read":
            await world.call(f"Pair/{first}", method)
        elif method == "begin" and random.random() < 0.4:
            await world.call_keyed(f"key-{token}", f"Pair/{first}", method, token, second)
        else:
            await world.call(f"Pair/{first}", method, token, second, patience=random.choice([None, 0.05]))
        await _think(random)


CLIENTS: dict[str, Client] = {
    "registers": _write_registers,
    "watchers": _watch,
    "wipers": _wipe,
    "tokens": _add_tokens,
    "money": _move_money,
    "chores": _do_chores,
    "pairs": _come_back,
    "errands": run_errands,
}


# -- disasters ---------------------------------------------------------------------------------------------------------


async def _strike(world: World, disaster: str, random: Random) -> None:
    """Returns when there is a host again that owns everything."""
    if not world.living:
        await world.succeed()
    life: Life = random.choice(world.living[-1:] * 3 + world.living)
    match disaster:
        case "kill":
            world.kill(life)
            await asyncio.sleep(random.random())
        case "stop":
            life.up = random.random() < 0.5  # clients may not have heard of it yet
            with suppress(NodeDied):
                await world.loop.ask(life.node, life.host.stop(random.choice([0.2, 5.0])))
            life.up = False
        case "zombie":
            world.loop.freeze(life.node, random.uniform(0.5, 2.5) * LEASE_S)
        case "outage":
            life.journal.outage(random.uniform(0.5, 6.0))
            return
        case "blackout":
            for each in world.lives:
                each.journal.outage(random.uniform(0.5, 6.0))
            return
        case _:
            await world.boot(rob=True)
            return
    await world.succeed()


# -- the run -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Focus:
    """What is left to chance otherwise: for tests that look for something in particular."""

    disasters: tuple[str, ...]
    behaviours: tuple[str, ...]
    faults: Faults | None = None


def draw_plan(random: Random, focus: Focus | None = None) -> tuple[Plan, list[str]]:
    """What a seed is about: its plan, and the behaviours of its clients."""
    if focus is not None:
        robbery = "rob" in focus.disasters
        faults = focus.faults or random.choice(_NETWORKS)
        plan = Plan(faults, focus.disasters, robbery=robbery, restart=random.random() < 0.5)
        return plan, list(focus.behaviours)
    disasters = tuple(random.choice(_DISASTERS) for _ in range(random.choice([0, 1, 1, 2, 2, 3])))
    plan = Plan(
        faults=random.choice(_NETWORKS),
        disasters=disasters,
        robbery="rob" in disasters,
        restart=random.random() < 0.5,
        in_flight=random.choice([1, 2, 64]),
        evict=random.random() < 0.5,
    )
    topics = random.sample(sorted(CLIENTS), random.choice([1, 2]))
    return plan, [random.choice(topics) for _ in range(random.choice([2, 3, 4]))]


async def play(world: World, behaviours: list[str]) -> None:
    """Clients and disasters side by side, then the end. Raises `Violation`."""
    loop, random = world.loop, world.loop.random_for("play")
    assert await world.boot() is not None
    clients = [
        loop.spawn(f"client-{i}", CLIENTS[behaviour](world, loop.random_for(f"client-{i}"), f"c{i}-"))
        for i, behaviour in enumerate(behaviours)
    ]
    for disaster in world.plan.disasters:
        await asyncio.sleep(random.random() * 2)
        await _strike(world, disaster, random)
    await asyncio.wait(
        clients, timeout=random.random() * 6
    )  # bad networks are no disaster: they are there all the time
    await world.heal()
    if await world.keeper() is None:
        await world.succeed()
    _, hanging = await asyncio.wait(clients, timeout=300)
    for client in clients:
        if client.done():
            client.result()
    if hanging:
        last = [op for op in world.history if op.outcome == "unknown"][-len(behaviours) :]
        raise Violation(f"INV-9: {len(hanging)} clients wait for ever, perhaps for {[str(op) for op in last]}")
    await _finish(world)


async def _finish(world: World) -> None:
    life = await world.settle()
    for target in sorted({op.target for op in world.history if op.target.startswith("Register/")}):
        await world.call(target, "get")
    await check_world(world, life)
    await check_errands(world, life)


async def _program(loop: SimulatedLoop, focus: Focus | None) -> int:
    plan, behaviours = draw_plan(loop.random_for("plan"), focus)
    world = World(loop, plan, workflows=(errand,) if "errands" in behaviours else ())
    WORLD.set(world)
    listener = Listener(world)
    logging.getLogger().addHandler(listener)
    loop.set_exception_handler(_judge)
    try:
        await play(world, behaviours)
    except BaseException as error:
        error.add_note(f"{plan}\nclients: {behaviours}")
        raise
    finally:
        logging.getLogger().removeHandler(listener)
    return loop.digest


def _judge(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An error nobody handles ends the run; that the one who made a call is dead, or had given it up, is no error."""
    unheard = str(context.get("message")).startswith("Future exception was never retrieved")
    if not (unheard and isinstance(context.get("exception"), ActorError)):
        loop.default_exception_handler(context)


def run_seed(seed: int, focus: Focus | None = None) -> int:
    """The whole life of the world of one seed: a checksum of what ran, in which order, and when. Raises what went
    wrong."""
    try:
        return run(seed, lambda loop: _program(loop, focus), max_steps=200_000)
    except BaseException as error:
        error.add_note(f"again: MECHA_SEED={seed} pytest tests/simulation/test_runtime.py -k one_seed")
        raise
