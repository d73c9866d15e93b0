"""The keys face in a plain dict: the reference. When the text of `Keys` and this file disagree, this file wins.

No method awaits, so each one is atomic between the tasks of an event loop, and no lock is needed.
"""

from __future__ import annotations

from itertools import count, islice
from typing import TYPE_CHECKING

from statestores import keyquery, keyrules
from statestores.store import KeyItem, SetKey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from statestores.errors import StoreError
    from statestores.store import DeleteKey, KeyQuery


class MemoryKeys:
    """Values by key, for as long as the object lives. ETags are a store-wide counter, so none is ever given twice."""

    def __init__(self) -> None:
        self._items: dict[str, KeyItem] = {}
        self._etags = count(1)

    async def get(self, keys: Sequence[str], now_ms: int) -> list[KeyItem | None]:
        return [self._live(key, now_ms) for key in keys]

    async def apply(self, operations: Sequence[SetKey | DeleteKey], now_ms: int) -> list[StoreError | None]:
        return [self._apply_one(operation, now_ms) for operation in operations]

    async def transact(self, operations: Sequence[SetKey | DeleteKey], now_ms: int) -> None:
        before = {operation.key: self._items.get(operation.key) for operation in operations}
        for operation in operations:
            if (error := self._apply_one(operation, now_ms)) is not None:
                self._restore(before)
                raise error

    async def query(self, query: KeyQuery, now_ms: int) -> tuple[list[KeyItem], str]:
        live = (item for item in self._items.values() if not keyrules.is_expired(item.expires_ms, now_ms))
        return keyquery.page(query, (item for item in live if item.key.startswith(query.prefix)))

    async def delete_prefix(self, prefix: str) -> int:
        prefix = keyrules.children_prefix(prefix)
        return self._remove([key for key in self._items if keyrules.is_direct_child(key, prefix)])

    async def purge_expired(self, now_ms: int, limit: int) -> int:
        expired = (key for key, item in self._items.items() if keyrules.is_expired(item.expires_ms, now_ms))
        return self._remove(list(islice(expired, limit)))

    def _live(self, key: str, now_ms: int) -> KeyItem | None:
        item = self._items.get(key)
        return None if item is None or keyrules.is_expired(item.expires_ms, now_ms) else item

    def _apply_one(self, operation: SetKey | DeleteKey, now_ms: int) -> StoreError | None:
        current = self._live(operation.key, now_ms)
        error = keyrules.malformed(operation) or keyrules.refusal(operation, current.etag if current else None)
        if error is not None:
            return error
        if isinstance(operation, SetKey):
            self._items[operation.key] = KeyItem(
                operation.key, operation.value, str(next(self._etags)), keyrules.expiry_ms(operation, now_ms)
            )
        else:
            self._items.pop(operation.key, None)
        return None

    def _restore(self, before: dict[str, KeyItem | None]) -> None:
        for key, item in before.items():
            if item is None:
                self._items.pop(key, None)
            else:
                self._items[key] = item

    def _remove(self, keys: list[str]) -> int:
        for key in keys:
            del self._items[key]
        return len(keys)
