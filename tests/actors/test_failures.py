"""Failures that are hard to tell: whatever a method raises, its caller hears of it, and the actor goes on."""

from __future__ import annotations

import asyncio
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, cast

import pytest
from pydantic import AfterValidator

from actors import (
    ActorFailed,
    HostStopping,
    InvalidArguments,
    OutcomeUnknown,
    actor,
    context,
    definition_of,
    method,
)
from actors.errortext import message_of, trace_of
from tests.actors.test_messages import until_delivered
from tests.actors.worlds import settled, until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from statestores.model import Ownership
    from statestores.store import Journal
    from tests.actors.worlds import World


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class MuteForGood(Exception):
    def __str__(self) -> str:
        raise KeyError

    __repr__ = __str__


class Odd(str):
    __slots__ = ()

    def encode(self, *_: str) -> bytes:
        raise RuntimeError("not me")


class OddText(Exception):
    def __str__(self) -> str:
        return Odd("a text of its own kind")


class Halves(ValueError):
    """As `os.listdir` gives names that are not UTF-8."""

    def __init__(self) -> None:
        super().__init__("caf\udce9.txt")


class Quits(BaseException):
    """None of `Exception`'s."""


HARD_TO_TELL: list[tuple[type[BaseException], str]] = [
    (Mute, "<exception str() failed>"),
    (MuteForGood, "<exception str() failed>"),
    (OddText, "a text of its own kind"),
    (Halves, "caf\\udce9.txt"),
    (Quits, ""),
    (asyncio.CancelledError, ""),
]


@actor
class Moody:
    count: int = 0

    def on_activate(self) -> None:
        self._gate = asyncio.Event()

    @method
    def at_once(self, which: int) -> None:
        self.count = 99
        raise HARD_TO_TELL[which][0]

    @method
    async def later(self, which: int) -> None:
        self.count = 99
        await asyncio.sleep(0)
        raise HARD_TO_TELL[which][0]

    @method
    async def leave(self) -> None:
        self.count = 99
        await asyncio.sleep(0)
        raise GeneratorExit

    @method
    async def cancel_itself(self, then: str) -> str:
        self.count += 10
        return await self._cancel_itself(then)

    @method(read_only=True)
    async def cancel_itself_beside(self, then: str) -> str:
        return await self._cancel_itself(then)

    async def _cancel_itself(self, then: str) -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        if then == "return":
            return then
        if then == "raise":
            raise ValueError(then)
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            if then != "go on":
                raise
        return then

    @method
    async def add_later(self) -> int:
        await asyncio.sleep(0)
        self.count += 1
        return self.count

    @method(read_only=True)
    async def beside(self, which: int) -> None:
        await asyncio.sleep(0)
        raise HARD_TO_TELL[which][0]

    @method
    def add(self) -> int:
        self.count += 1
        return self.count

    @method(read_only=True)
    async def look(self) -> int:
        await self._gate.wait()
        return self.count

    @method(read_only=True, consistency="linearizable")
    def look_closely(self) -> int:
        return self.count


@pytest.mark.parametrize(("kind", "text"), HARD_TO_TELL)
def test_every_exception_has_a_text(kind: type[BaseException], text: str) -> None:
    """Message and traceback of any exception are text that every store takes."""
    with pytest.raises(kind) as caught:
        raise kind
    assert message_of(caught.value) == text
    assert type(message_of(caught.value)) is str
    assert kind.__name__ in trace_of(caught.value).encode().decode()


def test_a_traceback_has_its_end() -> None:
    """A long traceback is cut at its beginning."""
    shown = trace_of(ValueError("x" * 1000 + "the end"), longest=100)
    assert shown.endswith("the end\n")
    assert len(shown) == 100


@pytest.mark.parametrize("which", range(len(HARD_TO_TELL)))
@pytest.mark.parametrize("name", ["at_once", "later", "beside"])
async def test_the_caller_hears_of_every_failure(world: World, name: str, which: int) -> None:
    """A turn that fails is answered, whatever it raises, and leaves no trace (INV-6); those behind it are served."""
    client = await world.client(Moody)
    ref: Any = client.actor(Moody, "m")
    assert await ref.add() == 1
    call: Any = getattr(ref, name)
    async with asyncio.timeout(5):
        outcomes = await asyncio.gather(call(which), ref.add(), call(which), ref.add(), return_exceptions=True)
    assert list(outcomes[1::2]) == [2, 3]
    kind, text = HARD_TO_TELL[which]
    for failed in outcomes[::2]:
        assert isinstance(failed, ActorFailed)
        assert (failed.error_type, failed.message) == (kind.__name__, text)


@pytest.mark.parametrize("name", ["cancel_itself", "cancel_itself_beside"])
@pytest.mark.parametrize(
    ("then", "told"),
    [("wait", "CancelledError"), ("raise", "ValueError"), ("return", ""), ("go on", "")],
)
async def test_a_turn_that_cancels_itself_has_failed(world: World, name: str, then: str, told: str) -> None:
    """No host stops: a failure of its method, unless that takes no notice. The turns behind it, in the same task, do
    not hear of it."""
    client = await world.client(Moody)
    call = getattr(client.actor(Moody, "m"), name)
    added = 0
    for _ in range(3):  # the first one finds the actor not loaded
        outcome, *after = await asyncio.gather(
            call(then), *(client.actor(Moody, "m").add_later() for _ in range(3)), return_exceptions=True
        )
        if told:
            assert isinstance(outcome, ActorFailed)
            assert outcome.error_type == told
        else:
            assert outcome == then
            added += 10 if name == "cancel_itself" else 0
        assert after == [added + 1, added + 2, added + 3]
        added += 3


async def test_a_message_whose_turn_cancels_itself_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has failed, not been refused."""
    monkeypatch.setattr("actors.outbox._FIRST_RETRY_S", 0.0)
    client = await world.client(Moody)
    await client.send(client.actor(Moody, "m").cancel_itself, "wait")
    async with asyncio.timeout(20):
        while not (letters := await client.dead_letters()):  # noqa: ASYNC110  # nobody tells of them
            await asyncio.sleep(0.01)
    assert "CancelledError" in letters[0].reason


class Unreadable(list[None]):
    def __iter__(self) -> Iterator[None]:
        raise RuntimeError("not now")


@actor
class Keeper:
    count: int = 0
    kept: Any = None

    @method
    async def keep_and_fail(self) -> None:
        self.count, self.kept = 1, Unreadable([None])
        await asyncio.sleep(0)
        raise ValueError("no")

    @method(read_only=True)
    async def look(self) -> list[Any]:
        return [self.count, self.kept]


async def test_a_turn_that_fails_with_what_cannot_be_looked_at_leaves_no_trace(world: World) -> None:
    """INV-6: whatever comes of looking for its changes, they are taken back."""
    client = await world.client(Keeper)
    with pytest.raises(ActorFailed, match="ValueError: no"):
        await client.actor(Keeper, "k").keep_and_fail()
    assert await client.actor(Keeper, "k").look() == [0, None]


async def test_a_turn_that_ends_as_if_it_were_closed_leaves_no_trace(world: World) -> None:
    """INV-6: what a method raises may be what tells its coroutine that the loop has ended; others go on."""
    ref: Any = (await world.client(Moody)).actor(Moody, "m")
    assert await ref.add() == 1
    outcomes = await asyncio.wait_for(asyncio.gather(ref.leave(), ref.add(), return_exceptions=True), 5)
    assert isinstance(outcomes[0], OutcomeUnknown)
    assert outcomes[1] == 2


async def test_the_caller_of_a_message_hears_of_every_failure(world: World) -> None:
    """JSON in and out, as HTTP has it: the failure is an `ActorFailed` with a text that can be sent."""
    client = await world.client(Moody)
    for which, (kind, _) in enumerate(HARD_TO_TELL):
        with pytest.raises(ActorFailed, match=kind.__name__) as caught:
            await asyncio.wait_for(client.call("Moody", "m", "at_once", str(which).encode()), 5)
        assert str(caught.value).encode()


def known(number: int) -> int:
    return {1: 1}[number]  # a KeyError is none of the errors that pydantic catches


@actor
class Clumsy:
    sent: int = 0

    @method
    async def send(self, name: str, number: int) -> int:
        context().send_raw("Taker", name, "take", str(number).encode())
        self.sent += 1
        return self.sent

    @method
    async def remind(self) -> None:
        context().set_reminder("r", due=0, data=2, callback="hear")

    @method
    async def hear(self, number: Annotated[int, AfterValidator(known)]) -> None:
        self.sent += number


@actor
class Taker:
    taken: int = 0

    @method
    async def take(self, number: Annotated[int, AfterValidator(known)]) -> int:
        self.taken += number
        return self.taken


async def test_a_validator_that_raises_anything_refuses_the_value(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the caller's mistake, whatever it raises: of a call, a message (a dead letter; the messages of others, and
    the turn that has sent it, go on, also after a crash), a reminder (which stands, for a release that takes the
    data)."""
    for attempt in (1, 2):
        client = await world.client(Clumsy, Taker)
        with pytest.raises(InvalidArguments, match="KeyError: 2"):
            await client.invoke_nowait("Taker", "a", "take", b"2")
        sends = [client.actor(Clumsy, "c").send("a", number) for number in (2, 1, 2, 1)]
        await asyncio.wait_for(asyncio.gather(*sends), 5)
        await client.actor(Clumsy, "c").remind()
        await until_delivered(world)
        letters = await client.dead_letters()
        assert [each.reason for each in letters] == ["InvalidArguments: argument 'number': KeyError: 2"] * 2 * attempt
        await until(lambda: "cannot be fired" in caplog.text)
        assert [each.name for each in await client.reminders("Clumsy", "c")] == ["r"]
        assert "this is a bug" not in caplog.text
        caplog.clear()
        await world.crash(world.hosts[-1])
    client = await world.client(Clumsy, Taker)
    assert await client.state("Taker", "a") == (4, {"taken": 4})


async def test_a_class_that_cannot_be_made_is_told_to_its_caller(world: World) -> None:
    """`Host.submit` never raises, wherever the code of the class fails: a call for which nothing is loaded hears of it
    like any other, and the next one too."""

    @actor
    class Unready:
        numbers: list[int] = field(default_factory=lambda: [1 // 0])

        @method
        async def read(self) -> list[int]:
            return self.numbers

    client = await world.client(Unready)
    definition = definition_of(Unready)
    assert definition is not None
    for error, fresh in ((OutcomeUnknown, True), (ActorFailed, False)):
        with pytest.raises(error, match="ZeroDivisionError"):
            await client.call_method("Unready/u", definition.methods["read"], (), fresh=fresh)


class Faulty:
    """A store with a bug: it raises what no store may."""

    def __init__(self, inner: Journal) -> None:
        self._inner = inner
        self.is_faulty = False

    async def renew(self, *args: Any, **options: Any) -> Sequence[Ownership]:
        if self.is_faulty:
            raise ZeroDivisionError("a bug in the store")
        return await self._inner.renew(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


async def test_a_bug_below_the_turn_is_told_to_its_caller(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A task of the host that fails unexpectedly, after the turn, leaves no caller behind; it may call again."""
    faulty = Faulty(world.journal)
    world.lever._inner = cast("Journal", faulty)
    client = await world.client(Moody)
    ref: Any = client.actor(Moody, "m")
    await ref.add()
    faulty.is_faulty = True
    with pytest.raises(OutcomeUnknown, match="ZeroDivisionError: a bug in the store"):
        await asyncio.wait_for(ref.look_closely(), 5)
    faulty.is_faulty = False
    assert await asyncio.wait_for(ref.look_closely(), 5) == 1
    assert "this is a bug" in caplog.text


async def test_a_call_that_waits_for_readers_hears_of_the_hosts_end(world: World) -> None:
    """It is out of the mailbox and has not begun: nobody but the loop of its actor knows of it."""
    host = await world.host(Moody)
    ref: Any = host.client.actor(Moody, "m")
    await ref.add()
    reading = asyncio.ensure_future(ref.look())
    await settled()
    waiting = asyncio.ensure_future(ref.add())
    (activation,) = host.activations.values()
    await until(lambda: activation.pump is not None and not activation.mailbox)
    host.abort()
    async with asyncio.timeout(5):
        outcomes = await asyncio.gather(reading, waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [HostStopping, HostStopping]
