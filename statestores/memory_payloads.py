"""The payloads face in memory: a dict, and the reference."""

from __future__ import annotations

from statestores.model import partition_of
from statestores.store import StoredAt


class MemoryPayloads:
    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self._chunks: dict[StoredAt, dict[int, bytes]] = {}

    async def put(self, stream: str, id: str, number: int, chunk: bytes | bytearray | memoryview) -> None:
        self._chunks.setdefault(StoredAt(stream, id), {})[number] = bytes(chunk)

    async def get(self, stream: str, id: str, number: int) -> bytes | None:
        return self._chunks.get(StoredAt(stream, id), {}).get(number)

    async def stored(self, partition: int, after: tuple[str, str] | None = None, limit: int = 100) -> list[StoredAt]:
        found = sorted(at for at in self._chunks if partition_of(at.stream, self._partitions) == partition)
        return [at for at in found if after is None or at > after][:limit]

    async def remove(self, stream: str, id: str) -> None:
        self._chunks.pop(StoredAt(stream, id), None)
