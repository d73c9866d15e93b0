"""The keys face of every store passes the shipped suite, and the suite sees the faults it is there for."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

import pytest

from statestores.conformance.keys import KeysConformance
from statestores.errors import ETagMismatch, NotSupported
from statestores.memory_keys import MemoryKeys
from statestores.store import Capability, DeleteKey, SetKey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from statestores.errors import StoreError
    from statestores.store import Journal, KeyItem, KeyQuery, Payloads, StateStore


class TestKeys(KeysConformance):
    """The suite, on every store of the `store` fixture."""


@dataclass
class KeysOnly:
    """A store around a keys face."""

    keys: MemoryKeys
    capabilities: frozenset[Capability] = field(default=frozenset(Capability) - {Capability.JOURNAL})

    @property
    def journal(self) -> Journal:
        raise NotSupported("keys only")

    @property
    def payloads(self) -> Payloads:
        raise NotSupported("keys only")

    async def open(self) -> None: ...

    async def close(self) -> None: ...


class PlainKeys(MemoryKeys):
    """Can do nothing but get, set and delete, and says so."""

    async def apply(self, operations: Sequence[SetKey | DeleteKey], now_ms: int) -> list[StoreError | None]:
        return [await self._refuse_or_apply(operation, now_ms) for operation in operations]

    async def _refuse_or_apply(self, operation: SetKey | DeleteKey, now_ms: int) -> StoreError | None:
        if operation.etag or (isinstance(operation, SetKey) and (operation.first_write or operation.ttl_s)):
            return NotSupported("no conditions and no TTL")
        return (await super().apply([operation], now_ms))[0]

    async def transact(self, operations: Sequence[SetKey | DeleteKey], now_ms: int) -> None:
        raise NotSupported("no transactions")

    async def query(self, query: KeyQuery, now_ms: int) -> tuple[list[KeyItem], str]:
        raise NotSupported("no query")

    async def delete_prefix(self, prefix: str) -> int:
        raise NotSupported("no prefixes")


class TestPlainKeys(KeysConformance):
    """A store without any capability passes by refusing."""

    @pytest.fixture
    async def store(self) -> StateStore:
        return KeysOnly(PlainKeys(), frozenset())


class RepeatedTags(MemoryKeys):
    """Counts tags per key, from one again after a deletion."""

    def _apply_one(self, operation: SetKey | DeleteKey, now_ms: int) -> StoreError | None:
        current = self._live(operation.key, now_ms)
        self._etags = count(int(current.etag) + 1 if current else 1)
        return super()._apply_one(operation, now_ms)


class TornTransactions(MemoryKeys):
    """Leaves what was done before the failure."""

    def _restore(self, before: dict[str, KeyItem | None]) -> None: ...


class UnseparatedTransactions(MemoryKeys):
    """Does a transaction's operations in the order of their keys."""

    async def transact(self, operations: Sequence[SetKey | DeleteKey], now_ms: int) -> None:
        await super().transact(sorted(operations, key=lambda operation: (operation.key, str(operation))), now_ms)


class DeepDeletion(MemoryKeys):
    """Deletes everything below a prefix."""

    async def delete_prefix(self, prefix: str) -> int:
        await super().delete_prefix(prefix)
        return self._remove([key for key in self._items if key.startswith(prefix)])


class AbsentMatchesAnyTag(MemoryKeys):
    """Sets a key that has gone although the caller read it."""

    def _apply_one(self, operation: SetKey | DeleteKey, now_ms: int) -> StoreError | None:
        if self._live(operation.key, now_ms) is None:
            operation = operation._replace(etag=None)
        return super()._apply_one(operation, now_ms)


class LateExpiry(MemoryKeys):
    """Hides a key a millisecond after it expired."""

    def _live(self, key: str, now_ms: int) -> KeyItem | None:
        return super()._live(key, now_ms - 1)


class StickyTtl(MemoryKeys):
    """A rewrite without a TTL keeps the old one."""

    def _apply_one(self, operation: SetKey | DeleteKey, now_ms: int) -> StoreError | None:
        before = self._live(operation.key, now_ms)
        error = super()._apply_one(operation, now_ms)
        after = self._live(operation.key, now_ms)
        if before and after and after.expires_ms is None:
            self._items[operation.key] = after._replace(expires_ms=before.expires_ms)
        return error


class StoppingBulk(MemoryKeys):
    """Gives up a bulk request at its first error."""

    async def apply(self, operations: Sequence[SetKey | DeleteKey], now_ms: int) -> list[StoreError | None]:
        for place, operation in enumerate(operations):
            (error,) = await super().apply([operation], now_ms)
            if error is not None:
                return [*[None] * place, *[error] * (len(operations) - place)]
        return [None] * len(operations)


@pytest.mark.parametrize(
    ("faulty", "case"),
    [
        (RepeatedTags, "test_each_write_gives_a_new_etag"),
        (RepeatedTags, "test_etag_before_delete_does_not_match_the_key_made_again"),
        (AbsentMatchesAnyTag, "test_etag_of_an_absent_key_mismatches"),
        (AbsentMatchesAnyTag, "test_expired_key_counts_as_absent"),
        (StoppingBulk, "test_bulk_with_bad_etags_applies_the_others"),
        (TornTransactions, "test_transaction_with_a_repeated_first_write_does_nothing"),
        (UnseparatedTransactions, "test_transaction_keeps_order"),
        (LateExpiry, "test_key_with_ttl_expires"),
        (StickyTtl, "test_purge_spares_a_key_that_was_rewritten"),
    ],
)
async def test_suite_catches_a_planted_fault(faulty: type[MemoryKeys], case: str) -> None:
    """Each case fails on a store with the fault that it is about, and passes on the reference."""
    await getattr(KeysConformance(), case)(KeysOnly(MemoryKeys()))
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await getattr(KeysConformance(), case)(KeysOnly(faulty()))


async def test_suite_catches_a_deletion_that_goes_too_deep() -> None:
    """Deleting below the direct children is seen."""
    with pytest.raises(AssertionError):
        await KeysConformance().test_delete_prefix_removes_direct_children(KeysOnly(DeepDeletion()), prefix="app||p||")


@pytest.mark.parametrize("faulty", [RepeatedTags, TornTransactions, AbsentMatchesAnyTag, LateExpiry, StickyTtl])
async def test_random_run_catches_a_planted_fault(faulty: type[MemoryKeys]) -> None:
    """The random run alone finds each of these faults within its seeds."""
    found = 0
    for seed in range(8):
        try:
            await KeysConformance().test_random_run_agrees_with_the_reference(KeysOnly(faulty()), seed)
        except AssertionError:
            found += 1
    assert found > 0


@pytest.mark.parametrize(
    "case",
    [
        "test_racing_writers_with_etags_lose_no_update",
        "test_transaction_applies_sets_and_deletes",
        "test_key_with_ttl_expires",
        "test_query_sorts",
    ],
)
async def test_suite_catches_an_undeclared_capability(case: str) -> None:
    """A store that does what it does not declare fails: a capability that is not declared is never tested."""
    with pytest.raises((pytest.fail.Exception, ETagMismatch)):
        await getattr(KeysConformance(), case)(KeysOnly(MemoryKeys(), frozenset()))
