"""The keys face on Redis. The layout stands at the top of ``redis_keys.lua``.

Every write carries a request id, by which the server recognises one that is repeated because its answer was lost: a
condition that was true the first time would fail the second.
"""

from __future__ import annotations

import struct
from secrets import token_hex
from typing import TYPE_CHECKING

from statestores import keyquery, keyrules
from statestores.redis_link import load_scripts
from statestores.store import DeleteKey, KeyItem, SetKey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from statestores.errors import StoreError
    from statestores.redis_link import Answer, Argument, RedisLink
    from statestores.store import KeyQuery

SCRIPTS = load_scripts("redis_keys.lua")

_HEADER = struct.Struct("<qq")  # etag, expires_ms or 0; then the value
_PAGE = 500
_BYTES_AT_ONCE = 8 * 1024 * 1024

_PHYSICAL_SLACK_MS = 3_600_000
"""A value is deleted by the server itself this long after it was hidden: the server's clock is not the caller's."""


class RedisKeys:
    """Values by key, all of a namespace under one hash tag. Each call that writes is one script on the server, but for
    those of very many keys that need not be: while a script runs, the server serves nobody."""

    def __init__(self, link: RedisLink, namespace: str) -> None:
        self._link = link
        self._namespace = namespace
        self._tag = f"{{mecha:{namespace}:keys}}"
        self._meta = f"{self._tag}:meta"
        self._names = f"{self._tag}:names"
        self._expiry = f"{self._tag}:expiry"
        self._requests = [f"{self._tag}:done", f"{self._tag}:done0"]

    async def rehearse(self) -> None:
        """Use the commands of the write script on a scratch namespace; `RedisJournal.rehearse` gives the reason."""
        scratch = RedisKeys(self._link, f"{self._namespace}:rehearsal")  # no namespace can be called so
        await scratch.apply([SetKey("a", b"", ttl_s=60), SetKey("a", b"", first_write=True), DeleteKey("a")], 0)
        await self._link.one(("UNLINK", scratch._meta, *scratch._requests))

    async def get(self, keys: Sequence[str], now_ms: int) -> list[KeyItem | None]:
        wanted = [key for key in dict.fromkeys(keys) if keyrules.key_fault(key) is None]
        found: dict[str, KeyItem | None] = {}
        for start in range(0, len(wanted), _PAGE):
            found |= await self._read(wanted[start : start + _PAGE], now_ms)
        return [found.get(key) for key in keys]

    async def apply(self, operations: Sequence[SetKey | DeleteKey], now_ms: int) -> list[StoreError | None]:
        answers = [keyrules.malformed(operation) for operation in operations]
        places = [place for place, fault in enumerate(answers) if fault is None]
        for start in range(0, len(places), _PAGE):
            page = places[start : start + _PAGE]
            for number, etag in await self._write("each", [operations[place] for place in page], now_ms):
                answers[page[number]] = keyrules.refusal(operations[page[number]], etag)
        return answers

    async def transact(self, operations: Sequence[SetKey | DeleteKey], now_ms: int) -> None:
        faults = (keyrules.malformed(operation) for operation in operations)
        first_fault = next(((place, fault) for place, fault in enumerate(faults) if fault is not None), None)
        if first_fault is None:
            refused = await self._write("all", operations, now_ms)
        else:  # nothing will be written, but an operation before the faulty one may fail first
            refused = await self._write("check", operations[: first_fault[0]], now_ms)
        for number, etag in refused:
            error = keyrules.refusal(operations[number], etag)
            assert error is not None, "the script refuses by the rules of keyrules.refusal"
            raise error
        if first_fault is not None:
            raise first_fault[1]

    async def query(self, query: KeyQuery, now_ms: int) -> tuple[list[KeyItem], str]:
        """Reads every live document under the prefix and filters here, like every store does; a bounded number of
        bytes at once."""
        found = keyquery.Page(query)
        async for names in self._names_with(query.prefix):
            while names:
                call = SCRIPTS["read"].call([self._key(name) for name in names], _BYTES_AT_ONCE)
                values = await self._link.one(call)
                items = (_live(name, value, now_ms) for name, value in zip(names, values, strict=False))
                found.add(item for item in items if item is not None)
                names = names[len(values) :]
        return found.result()

    async def delete_prefix(self, prefix: str) -> int:
        """A thousand keys at a time; a key that is made meanwhile may stay or go."""
        prefix = keyrules.children_prefix(prefix)
        gone = 0
        async for names in self._names_with(prefix):
            gone += await self._remove([name for name in names if keyrules.is_direct_child(name, prefix)], "")
        return gone

    async def purge_expired(self, now_ms: int, limit: int) -> int:
        gone = 0
        while gone < limit:
            page = min(_PAGE, limit - gone)
            expired = await self._link.one(("ZRANGEBYSCORE", self._expiry, "-inf", now_ms, "LIMIT", 0, page))
            if not expired:
                break
            gone += await self._remove([name.decode() for name in expired], now_ms)
        return gone

    async def _read(self, names: Sequence[str], now_ms: int) -> dict[str, KeyItem | None]:
        if not names:
            return {}
        values = await self._link.one(("MGET", *(self._key(name) for name in names)))
        return {name: _live(name, value, now_ms) for name, value in zip(names, values, strict=True)}

    async def _write(
        self, mode: str, operations: Sequence[SetKey | DeleteKey], now_ms: int
    ) -> list[tuple[int, str | None]]:
        """What was refused: (place, etag of the live key that is there)."""
        if not operations:
            return []
        keys = [self._meta, self._names, self._expiry, *self._requests]
        keys += [self._key(operation.key) for operation in operations]
        fields = [field for operation in operations for field in _fields(operation, now_ms)]
        call = SCRIPTS["write"].call(keys, mode, token_hex(8), now_ms, *fields)
        answer = await self._link.one(call, durable=True)
        return [(number, etag.decode() or None) for number, etag in zip(answer[::2], answer[1::2], strict=True)]

    async def _remove(self, names: Sequence[str], expired_until_ms: int | str) -> int:
        if not names:
            return 0
        keys = [self._names, self._expiry, *self._requests, *(self._key(name) for name in names)]
        call = SCRIPTS["remove"].call(keys, token_hex(8), expired_until_ms, *names)
        return int(await self._link.one(call, durable=True))

    async def _names_with(self, prefix: str) -> AsyncIterator[list[str]]:
        """The names of all keys that start with `prefix`, in order, in pages."""
        start = prefix.encode(errors="surrogatepass")
        low, high = b"[" + start, b"(" + start + b"\xff"  # no UTF-8 text contains this byte
        while page := await self._link.one(("ZRANGEBYLEX", self._names, low, high, "LIMIT", 0, _PAGE)):
            yield [name.decode() for name in page]
            low = b"(" + page[-1]

    def _key(self, name: str) -> str:
        return f"{self._tag}:k:{name}"


def _fields(operation: SetKey | DeleteKey, now_ms: int) -> tuple[Argument, ...]:
    """As the script reads an operation."""
    wanted = keyrules.wanted_etag(operation) or ""
    if not isinstance(operation, SetKey):
        return operation.key, "d", wanted, 0, 0, b""
    expires_ms = keyrules.expiry_ms(operation, now_ms)
    what = "f" if operation.first_write else "s"
    left_ms = 0 if expires_ms is None else expires_ms - now_ms + _PHYSICAL_SLACK_MS
    return operation.key, what, wanted, expires_ms or 0, left_ms, operation.value


def _live(name: str, value: Answer, now_ms: int) -> KeyItem | None:
    if value is None:
        return None
    etag, expires_ms = _HEADER.unpack_from(value)
    if keyrules.is_expired(expires_ms or None, now_ms):
        return None
    return KeyItem(name, value[_HEADER.size :], str(etag), expires_ms or None)
