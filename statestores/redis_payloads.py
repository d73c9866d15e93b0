"""The payloads face on Redis: a hash of chunks for each payload, and the names of a partition's payloads.

    {mecha:<namespace>:<partition>}:p:<stream>\\0<id>    hash: number -> chunk
    {mecha:<namespace>:<partition>}:payloads             sorted set of <stream>\\0<id>, all of score 0

A name stands in the set exactly as long as there is any chunk. Chunks are hash fields rather than keys of their own, so
that all of them go with one UNLINK, which does not block the server however large they are. None comes near the 512 MB
that Redis allows for one string.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from statestores.model import partition_of
from statestores.redis_link import load_scripts
from statestores.store import StoredAt

if TYPE_CHECKING:
    from statestores.redis_link import RedisLink

SCRIPTS = load_scripts("redis_payloads.lua")

_BETWEEN = "\0"  # no name of an actor contains it, see actors.names


class RedisPayloads:
    def __init__(self, link: RedisLink, namespace: str) -> None:
        self._link = link
        self._namespace = namespace
        self._partitions = 0

    def set_partitions(self, partitions: int) -> None:
        """For the store's `open`."""
        self._partitions = partitions

    async def put(self, stream: str, id: str, number: int, chunk: bytes | bytearray | memoryview) -> None:
        keys, name = self._place(stream, id)
        await self._link.one(SCRIPTS["put"].call(keys, name, number, bytes(chunk)), durable=True)

    async def get(self, stream: str, id: str, number: int) -> bytes | None:
        (_, payload), _ = self._place(stream, id)
        found: bytes | None = await self._link.one(("HGET", payload, number))
        return found

    async def stored(self, partition: int, after: tuple[str, str] | None = None, limit: int = 100) -> list[StoredAt]:
        low = "-" if after is None else f"({_BETWEEN.join(after)}"
        names = await self._link.one(("ZRANGEBYLEX", f"{self._tag(partition)}:payloads", low, "+", "LIMIT", 0, limit))
        return [StoredAt(*name.decode().split(_BETWEEN)) for name in names]

    async def remove(self, stream: str, id: str) -> None:
        keys, name = self._place(stream, id)
        await self._link.one(SCRIPTS["remove"].call(keys, name), durable=True)

    def _place(self, stream: str, id: str) -> tuple[tuple[str, str], str]:
        """The keys as the scripts take them, and the name."""
        tag = self._tag(partition_of(stream, self._partitions))
        name = f"{stream}{_BETWEEN}{id}"
        return (f"{tag}:payloads", f"{tag}:p:{name}"), name

    def _tag(self, partition: int) -> str:
        return f"{{mecha:{self._namespace}:{partition}}}"
