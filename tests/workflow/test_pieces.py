"""Large bytes and texts are written and read in pieces, with the event loop free between them: the same JSON, the same
values, the same references as in one go."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from typing import TYPE_CHECKING, Any
from unittest.mock import ANY

import orjson
import pytest

from actors import Host
from actors.clock import SystemClock
from statestores.codec import adapter, encode
from statestores.sqlite import SqliteStore
from workflow import Engine, activity, workflow
from workflow.history import Record, Start, encode_commands, encode_inputs
from workflow.payloads import reference
from workflow.pieces import PIECE, Unwritten, digest_freely, encode_freely, is_large, read_array_freely, read_freely
from workflow.program import Program
from workflow.replay import replay_reading, settle, supply

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

LIMIT = 256 * 1024
SIZES = [PIECE + 1, PIECE + 2, 2 * PIECE - 1, 2 * PIECE, 2 * PIECE + 1]


async def turns_of_the_loop(work: Coroutine[Any, Any, Any]) -> tuple[Any, int]:
    """What it gives, and how often others had their turn meanwhile."""
    count = 0

    async def tick() -> None:
        nonlocal count
        while True:
            await asyncio.sleep(0)
            count += 1

    ticking = asyncio.create_task(tick())
    try:
        return await work, count
    finally:
        ticking.cancel()


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def some_bytes(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def plain(size: int) -> str:
    return "0123456789" * (size // 10) + "x" * (size % 10)


def quoted(size: int) -> str:
    return ('"\\\n' * (size // 3 + 1))[:size]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", [some_bytes, plain, quoted])
async def test_pieces_are_the_whole(make: Callable[[int], Any], size: int) -> None:
    """What is written in pieces is what is written in one go, wherever a piece ends, and is read as what it was."""
    value = make(size)
    kind = adapter(type(value))
    whole = encode(value)
    written, turns = await turns_of_the_loop(encode_freely(value))
    assert written == whole
    assert turns >= size // PIECE
    unwritten = Unwritten.of_array(["a", value, 1, value])
    assert unwritten is not None
    assert await unwritten.write() == encode(["a", value, 1, value])
    assert await digest_freely(whole) == digest_of(whole)
    for data in (whole, bytearray(whole), memoryview(whole)):
        found = await read_freely(kind, data)
        assert found == (None if make is quoted else value)
    array = await unwritten.write()
    decoders = [None, kind, adapter(int), None if make is plain else kind]
    assert await read_array_freely(decoders, array) == (None if make is quoted else (ANY, {1: value, 3: value}))


async def test_what_is_not_one_plain_string_is_left_to_others() -> None:
    """Several values, other types, and base64 that is none: whoever reads it whole says what is wrong with it."""
    long = encode(some_bytes(2 * PIECE))
    whole = adapter(bytes)
    for array in (
        b"[%b,%b]" % (long, long),  # more than the function takes
        b'[%b,"\\"",1]' % long,
        b'[["a",%b]]' % long,
        b'["%b"%b]' % (b"a" * 2 * PIECE, b',"b"' * 1000),
        b"[%b1]" % (b"1," * 2 * PIECE),
    ):
        assert await read_array_freely([whole], array) is None
    assert await read_freely(adapter(list[int]), long) is None
    assert await read_freely(whole, b"[1]") is None
    for wrong in (b"====", b"!!!!", b'"  "'):
        for at in (1, 1 + PIECE // 3 * 4 - 4, 5 + PIECE):
            data = long[:at] + wrong + long[at + 4 :]
            assert await read_freely(whole, data) is None
    assert await read_freely(whole, b'"' + b"QQ==" * PIECE + b'"') is None


def test_only_what_cannot_change_waits() -> None:
    """Lists and bytearrays are written when the call is made, and so is text that might turn out to have no JSON."""
    assert is_large(b"x" * (PIECE + 1))
    assert is_large("x" * (PIECE + 1))
    for value in (b"x" * PIECE, "é" * (PIECE + 1), "x" * PIECE + "\ud800", bytearray(PIECE + 1), [b"x" * (PIECE + 1)]):
        assert not is_large(value)


@activity
def make(size: int) -> bytes:
    return some_bytes(size)


@activity
def measure(data: bytes, name: str) -> int:
    return len(data)


@activity
def only(data: bytes) -> bytes:
    return data


@workflow
async def handing_on(size: int) -> bytes:
    data = await make(size)
    await measure(data, "first")
    await asyncio.gather(measure(name="second", data=data), only(data))
    return data


async def test_a_replay_comes_to_the_same_references() -> None:
    """Commands refer to what is written after they were issued, as if it had been written before, and a replay finds
    them so; others have their turn between all the pieces of it."""
    data = some_bytes(3 * PIECE)
    result = encode(data)
    program = Program(handing_on, "i")
    inputs: list[Any] = [
        [Start("i", "e", "handing_on", 3 * PIECE, None, "", LIMIT).to_input()],
        [("done", "handing_on>make[0]", None, reference(digest_of(result), len(result)))],
    ]
    records: list[Record] = []

    async def load(_: dict[str, Any]) -> bytes:
        return result

    async def live() -> None:
        text = encode_inputs(inputs[len(records)])
        await supply(program, program.wanted(orjson.loads(text)), load)
        commands = program.apply(1, orjson.loads(text))
        while program.outgoing:
            await settle(program)
        records.append(Record(1, text, encode_commands(commands)))

    await live()
    step = orjson.loads(records[0].commands)[0][1]
    inputs[1] = [("done", step, None, reference(digest_of(result), len(result)))]
    _, turns = await turns_of_the_loop(live())
    assert turns > 4 * 3  # read, and written, and digested; each in three pieces
    ((_, step, name, _, refers),) = orjson.loads(records[1].commands)
    arguments = encode([data, "first"])
    assert (name, refers) == ("measure", reference(digest_of(arguments), len(arguments)))
    inputs.append([("done", step, 1)])
    await live()
    referred = [command[4] for command in orjson.loads(records[2].commands)]
    assert referred == [reference(digest_of(a), len(a)) for a in (encode([data, "second"]), encode([data]))]
    program.close()

    again, turns = await turns_of_the_loop(replay_reading(handing_on, "i", records, None, load))
    assert turns > 8 * 3
    assert again.outgoing == []
    again.close()


async def test_the_loop_of_a_host_is_free_between_pieces(tmp_path: Path) -> None:
    """A large result on its way through the code to other activities and out: no turn of the event loop takes more than
    a small part of the processor time that all of it takes. (In one go, a seventh.)"""
    store = SqliteStore(tmp_path / "store.db", partitions=4)  # what is in memory is there at once
    await store.open()
    clock = SystemClock()
    engine = Engine([handing_on], [make, measure, only], clock=clock, payloads=store.payloads)
    host = Host(store.journal, engine.types, host_id="one", clock=clock, workers=engine.workers)
    client = engine.attach(host.client)
    await host.start()
    took: list[float] = []

    async def watch() -> None:
        while True:
            begun_s = time.thread_time()
            await asyncio.sleep(0)
            took.append(time.thread_time() - begun_s)

    watching = asyncio.create_task(watch())
    try:
        instance = await client.start(handing_on, 20 * PIECE)
        assert len(await client.wait(instance, 60)) == 20 * PIECE
    finally:
        watching.cancel()
        await host.stop(5)
        engine.close()
        await store.close()
    busy_s = sum(each for each in took if each > 0.001)  # the rest is waiting
    assert max(took) < busy_s / 20
