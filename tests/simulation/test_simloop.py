"""The simulated world keeps asyncio's promises, reproduces a run from its seed, and tells what went wrong."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.simulation.simloop import (
    NodeDied,
    RealWorldRefused,
    SimulatedDeadlock,
    SimulatedLoop,
    SimulationFailed,
    StepLimitReached,
    current_node,
    run,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

SEEDS = range(100)


# -- what asyncio promises: the same programs on the real loop and on this one -----------------------------------------


async def gathered() -> Any:
    async def double(n: int) -> int:
        await asyncio.sleep(0.001 * (5 - n))
        return 2 * n

    return await asyncio.gather(*(double(n) for n in range(5)))


async def gathered_with_failure() -> Any:
    async def fail() -> None:
        raise KeyError("x")

    return [repr(each) for each in await asyncio.gather(asyncio.sleep(0, 1), fail(), return_exceptions=True)]


async def task_group_cancels_siblings() -> Any:
    seen: list[str] = []

    async def wait_long() -> None:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def fail() -> None:
        await asyncio.sleep(0.001)
        raise ValueError("boom")

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(wait_long())
            group.create_task(fail())
    except* ValueError as errors:
        seen += [str(error) for error in errors.exceptions]
    return seen


async def timeouts() -> Any:
    seen: list[str] = []
    try:
        async with asyncio.timeout(0.001):
            await asyncio.sleep(100)
    except TimeoutError:
        seen.append("timeout")
    try:
        await asyncio.wait_for(asyncio.sleep(100), 0.001)
    except TimeoutError:
        seen.append("wait_for")
    async with asyncio.timeout(100):
        seen.append(await asyncio.wait_for(asyncio.sleep(0.001, "in time"), 100))
    return seen


async def queue_of_producers_and_consumers() -> Any:
    queue: asyncio.Queue[int] = asyncio.Queue(maxsize=2)
    taken: list[int] = []

    async def produce(start: int) -> None:
        for n in range(start, start + 10):
            await queue.put(n)

    async def consume() -> None:
        while True:
            taken.append(await queue.get())
            queue.task_done()

    consumers = [asyncio.create_task(consume()) for _ in range(3)]
    await asyncio.gather(*(produce(start) for start in (0, 10, 20)))
    await queue.join()
    for consumer in consumers:
        consumer.cancel()
    return sorted(taken), [type(each) for each in await asyncio.gather(*consumers, return_exceptions=True)]


async def one_producer_one_consumer_keep_order() -> Any:
    queue: asyncio.Queue[int] = asyncio.Queue(maxsize=1)

    async def produce() -> None:
        for n in range(20):
            await queue.put(n)

    producer = asyncio.create_task(produce())
    taken = [await queue.get() for _ in range(20)]
    await producer
    return taken


async def locks_exclude() -> Any:
    lock, semaphore, inside, most = asyncio.Lock(), asyncio.Semaphore(2), [0, 0], [0, 0]

    async def enter(which: int, guard: asyncio.Lock | asyncio.Semaphore) -> None:
        async with guard:
            inside[which] += 1
            most[which] = max(most[which], inside[which])
            await asyncio.sleep(0)
            inside[which] -= 1

    await asyncio.gather(*(enter(n % 2, (lock, semaphore)[n % 2]) for n in range(12)))
    return most


async def events_and_conditions_wake() -> Any:
    event, all_woken, condition, woken = asyncio.Event(), asyncio.Event(), asyncio.Condition(), [0]

    async def wait_event() -> None:
        await event.wait()
        woken[0] += 1
        if woken[0] == 3:
            all_woken.set()

    async def wait_condition() -> None:
        async with condition:
            await condition.wait_for(lambda: woken[0] == 3)

    waiting = [asyncio.create_task(wait_event()) for _ in range(3)] + [asyncio.create_task(wait_condition())]
    await asyncio.sleep(0)
    event.set()
    await all_woken.wait()
    async with condition:
        condition.notify_all()
    await asyncio.gather(*waiting)
    return woken


async def waiting_for_the_first() -> Any:
    fast, slow = asyncio.create_task(asyncio.sleep(0.001, "fast")), asyncio.create_task(asyncio.sleep(50, "slow"))
    done, pending = await asyncio.wait([fast, slow], return_when=asyncio.FIRST_COMPLETED)
    slow.cancel()
    await asyncio.wait([slow])
    order = [await each for each in asyncio.as_completed([asyncio.sleep(0.02, 2), asyncio.sleep(0.001, 1)])]
    return [task.result() for task in done], len(pending), slow.cancelled(), order


async def shielded() -> Any:
    inner = asyncio.create_task(asyncio.sleep(0.01, "kept"))
    outer = asyncio.ensure_future(asyncio.shield(inner))
    await asyncio.sleep(0)
    outer.cancel()
    return await inner, outer.cancelled()


async def async_generators_are_closed() -> Any:
    closed: list[str] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await asyncio.sleep(0)
        finally:
            await asyncio.sleep(0)
            closed.append("closed")

    async for _ in numbers():
        break
    for _ in range(5):
        await asyncio.sleep(0)
    return closed


async def callbacks_keep_their_order() -> Any:
    loop, seen, future = asyncio.get_running_loop(), list[int](), asyncio.get_running_loop().create_future()

    def note(n: int) -> Callable[[asyncio.Future[None]], None]:
        return lambda _: seen.append(n)

    for n in range(10):
        loop.call_soon(seen.append, n)
        future.add_done_callback(note(n + 10))
    future.set_result(None)
    await asyncio.sleep(0)
    return seen


async def a_task_runs_between_two_yields_of_another() -> Any:
    seen: list[str] = []

    async def other() -> None:
        seen.append("other")

    asyncio.get_running_loop().create_task(other()).add_done_callback(lambda _: seen.append("done"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return seen


PROGRAMS: list[Callable[[], Coroutine[Any, Any, Any]]] = [
    gathered,
    gathered_with_failure,
    task_group_cancels_siblings,
    timeouts,
    queue_of_producers_and_consumers,
    one_producer_one_consumer_keep_order,
    locks_exclude,
    events_and_conditions_wake,
    waiting_for_the_first,
    shielded,
    async_generators_are_closed,
    callbacks_keep_their_order,
    a_task_runs_between_two_yields_of_another,
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_end_as_they_do_on_the_real_loop(program: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """Whatever the seed, a program that relies on asyncio's promises alone ends as it does on asyncio's own loop."""
    expected = asyncio.run(program())
    assert run(0, lambda _: program(), shuffle=False) == expected
    for seed in SEEDS:
        assert run(seed, lambda _: program()) == expected


# -- order and time ----------------------------------------------------------------------------------------------------


async def race(loop: SimulatedLoop) -> list[int]:
    """Four tasks that step at the same instants; their order, and with it the result, depends on the seed."""
    seen: list[int] = []

    async def step(n: int) -> None:
        for _ in range(3):
            await asyncio.sleep(0.5)
            seen.append(n)

    await asyncio.gather(*(step(n) for n in range(4)))
    return seen


def digest_of(seed: int, program: Callable[[SimulatedLoop], Coroutine[Any, Any, Any]]) -> int:
    async def measured(loop: SimulatedLoop) -> int:
        await program(loop)
        return loop.digest

    return run(seed, measured)


def test_a_seed_reproduces_its_run() -> None:
    """The same seed gives the same steps at the same times, another seed another order."""
    for seed in SEEDS:
        assert run(seed, race) == run(seed, race)
        assert digest_of(seed, race) == digest_of(seed, race)
    assert len({tuple(run(seed, race)) for seed in SEEDS}) > 90
    assert len({digest_of(seed, race) for seed in SEEDS}) > 90


def test_without_shuffling_the_order_is_asyncios() -> None:
    """`shuffle=False` runs tasks first in, first out, whatever the seed."""
    for seed in range(5):
        assert run(seed, race, shuffle=False) == [0, 1, 2, 3] * 3


def test_ready_tasks_run_in_every_order() -> None:
    """Tasks that become ready together go on in any order: all six of three tasks are seen."""

    async def program(loop: SimulatedLoop) -> tuple[int, ...]:
        seen: list[int] = []
        gate = asyncio.Event()

        async def wait(n: int) -> None:
            await gate.wait()
            seen.append(n)

        tasks = [asyncio.create_task(wait(n)) for n in range(3)]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*tasks)
        return tuple(seen)

    assert len({run(seed, program) for seed in SEEDS}) == 6


def test_nothing_overtakes_the_iteration_before() -> None:
    """What becomes ready during an iteration runs after everything that was ready at its start."""

    async def program(loop: SimulatedLoop) -> None:
        seen: list[tuple[int, int]] = []

        async def step(n: int) -> None:
            for round_ in range(10):
                seen.append((round_, n))
                await asyncio.sleep(0)

        await asyncio.gather(*(step(n) for n in range(5)))
        assert [round_ for round_, _ in seen] == sorted(round_ for round_, _ in seen)

    for seed in SEEDS:
        run(seed, program)


def test_time_jumps_to_the_next_timer() -> None:
    """A year of sleep takes no time, timers fire in the order of their time, cancelled ones neither fire nor count."""

    async def program(loop: SimulatedLoop) -> list[float]:
        fired: list[float] = []
        for when in (30.0, 10.0, 20.0):
            loop.call_at(when, lambda: fired.append(loop.time()))
        loop.call_later(5.0, fired.append, -1.0).cancel()
        loop.call_later(-5.0, lambda: fired.append(loop.time()))
        await asyncio.sleep(365 * 86_400)
        loop.call_later(99.0, fired.append, -1.0).cancel()
        return [*fired, loop.time()]

    assert run(1, program) == [0.0, 10.0, 20.0, 30.0, 365 * 86_400]


def test_randomness_by_purpose() -> None:
    """Each purpose has its own reproducible randomness, so that more of one does not change another."""

    async def program(loop: SimulatedLoop) -> tuple[float, float]:
        return loop.random_for("load").random(), loop.random_for("faults").random()

    assert run(7, program) == run(7, program)
    assert len({*run(7, program), *run(8, program)}) == 4


# -- what is caught ----------------------------------------------------------------------------------------------------


def test_a_deadlock_names_who_waits() -> None:
    """When nothing can go on the run fails at once and names each task and the line it waits at, and the seed."""

    async def wait_for_nobody() -> None:
        await asyncio.Event().wait()

    async def program(loop: SimulatedLoop) -> None:
        await asyncio.gather(asyncio.create_task(wait_for_nobody(), name="lonely"))

    with pytest.raises(SimulatedDeadlock, match=r"lonely.*wait_for_nobody at .*test_simloop") as caught:
        run(42, program)
    assert any("seed 42" in note for note in caught.value.__notes__)


def test_a_step_limit_ends_a_livelock() -> None:
    """A program that runs in circles without letting time pass is stopped."""

    async def program(loop: SimulatedLoop) -> None:
        flags = [asyncio.Event(), asyncio.Event()]

        async def pass_on(mine: asyncio.Event, other: asyncio.Event) -> None:
            while True:
                await mine.wait()
                mine.clear()
                other.set()

        flags[0].set()
        await asyncio.gather(pass_on(*flags), pass_on(*reversed(flags)))

    with pytest.raises(StepLimitReached, match="more than 1000 steps"):
        run(0, program, max_steps=1000)


@pytest.mark.parametrize(
    "reach_out",
    [
        lambda loop: loop.run_in_executor(None, print),
        lambda loop: asyncio.to_thread(print),
        lambda loop: asyncio.open_connection("localhost", 1),
        lambda loop: asyncio.start_server(print, "localhost", 0),
        lambda loop: asyncio.create_subprocess_exec("true"),
        lambda loop: loop.getaddrinfo("localhost", 1),
    ],
)
def test_the_real_world_is_refused(reach_out: Callable[[SimulatedLoop], Any]) -> None:
    """Threads, sockets, processes and names of the real world do not exist here, and the error says so."""

    async def program(loop: SimulatedLoop) -> None:
        await reach_out(loop)

    with pytest.raises(RealWorldRefused, match="no threads, sockets, processes"):
        run(0, program)


def test_other_threads_are_refused() -> None:
    """A thread that calls into the loop is told that there are none."""
    caught: list[BaseException] = []

    async def program(loop: SimulatedLoop) -> None:
        caught.append(KeyError("from this thread it works"))
        loop.call_soon_threadsafe(caught.clear)

        def intrude() -> None:
            try:
                loop.call_soon_threadsafe(print)
            except RealWorldRefused as error:
                caught.append(error)

        await asyncio.sleep(0)
        assert caught == []
        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()

    run(0, program)
    assert len(caught) == 1


def test_an_error_nobody_handles_fails_the_run() -> None:
    """An exception in a callback, or in a task nobody waits for, is not a log line but the end."""

    async def in_a_callback(loop: SimulatedLoop) -> None:
        loop.call_soon(lambda: 1 / 0)
        await asyncio.sleep(1)

    async def in_a_task(loop: SimulatedLoop) -> None:
        async def fail() -> None:
            raise KeyError("unseen")

        task = asyncio.create_task(fail())
        await asyncio.sleep(1)
        del task
        await asyncio.sleep(1)

    with pytest.raises(SimulationFailed, match="division by zero"):
        run(0, in_a_callback)
    with pytest.raises(SimulationFailed, match="unseen"):
        run(0, in_a_task)


def test_the_end_of_the_world_is_final() -> None:
    """When the program returns, what is left is closed where it stands; what its `finally` starts has no effect."""
    seen: list[str] = []

    async def linger() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            seen.append("closed")
            await asyncio.sleep(1)
            seen.append("never")

    async def program(loop: SimulatedLoop) -> str:
        tasks.append(asyncio.create_task(linger()))
        await asyncio.sleep(1)
        tasks.append(asyncio.create_task(linger()))
        return "done"

    tasks: list[asyncio.Task[None]] = []
    assert run(0, program) == "done"
    assert seen == ["closed"]


# -- nodes -------------------------------------------------------------------------------------------------------------


async def beat(seen: list[tuple[str, float]]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        seen.append((current_node(), loop.time()))
        await asyncio.sleep(1)


def test_a_frozen_node_wakes_up_late() -> None:
    """While a node is frozen others go on; afterwards it goes on with timers that are long due."""

    async def program(loop: SimulatedLoop) -> list[tuple[str, float]]:
        seen: list[tuple[str, float]] = []
        for node in ("a", "b"):
            loop.spawn(node, beat(seen))
        await asyncio.sleep(1.5)
        loop.freeze("a", 3)
        await asyncio.sleep(3.9)
        return seen

    seen = run(3, program)
    assert [at for node, at in seen if node == "b"] == [0, 1, 2, 3, 4, 5]
    assert [at for node, at in seen if node == "a"] == [0, 1, 4.5]


def test_a_killed_node_never_runs_again() -> None:
    """`kill` stops a node and all it started between two steps: no handler and no `finally` runs, others go on."""
    seen: list[tuple[str, float]] = []
    cleaned_up: list[str] = []

    async def work() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(beat(seen))
                asyncio.get_running_loop().call_later(5, seen.append, ("late", 0.0))
        finally:
            cleaned_up.append(current_node())

    async def program(loop: SimulatedLoop) -> None:
        loop.spawn("a", work())
        loop.spawn("b", beat(seen))
        await asyncio.sleep(1.5)
        loop.kill("a")
        await asyncio.sleep(10)
        assert not loop.is_alive("a")
        assert loop.is_alive("b")
        assert not cleaned_up
        with pytest.raises(NodeDied, match="another name"):
            loop.spawn("a", beat(seen))

    run(0, program)
    assert [at for node, at in seen if node == "a"] == [0, 1]
    assert len([at for node, at in seen if node == "b"]) == 12
    assert ("late", 0.0) not in seen


def test_asking_a_node() -> None:
    """A request runs on the node that was asked; answer, error or the node's death reach the one that asked."""

    async def where() -> str:
        await asyncio.sleep(1)
        return await asyncio.create_task(asyncio.sleep(1, current_node()))

    async def fail() -> None:
        await asyncio.sleep(1)
        raise KeyError("x")

    async def program(loop: SimulatedLoop) -> None:
        assert await loop.ask("a", where()) == "a"
        assert current_node() == ""
        with pytest.raises(KeyError):
            await loop.ask("a", fail())
        loop.call_later(0.5, loop.kill, "a")
        with pytest.raises(NodeDied, match="a died"):
            await loop.ask("a", where())
        assert loop.time() == 3.5

    run(0, program)


def test_a_request_outlives_the_one_that_asked() -> None:
    """Neither the caller's cancellation nor its node's death calls a request back; its error disturbs nobody."""
    done: list[str] = []

    async def work(label: str) -> None:
        await asyncio.sleep(2)
        done.append(label)
        raise KeyError("nobody hears")

    async def program(loop: SimulatedLoop) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.ask("b", work("cancelled")), 1)
        loop.spawn("a", loop.ask("b", work("orphaned")))
        await asyncio.sleep(1)
        loop.kill("a")
        await asyncio.sleep(5)

    run(0, program)
    assert done == ["cancelled", "orphaned"]


def test_a_dead_node_is_no_deadlock_partner() -> None:
    """A deadlock report leaves out the tasks of the dead: they will never be waited for."""

    async def stuck() -> None:
        await asyncio.Event().wait()

    async def program(loop: SimulatedLoop) -> None:
        loop.spawn("dead", stuck(), name="ghost")
        loop.spawn("alive", stuck(), name="waiter")
        await asyncio.sleep(1)
        loop.kill("dead")
        await asyncio.Event().wait()

    with pytest.raises(SimulatedDeadlock, match="waiter") as caught:
        run(0, program)
    assert "ghost" not in str(caught.value)
