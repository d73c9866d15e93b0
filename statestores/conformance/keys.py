"""What every keys face must do: derive a test class from `KeysConformance` and give it a fixture named `store`.

    class TestMyKeys(KeysConformance):
        @pytest.fixture
        async def store(self) -> AsyncIterator[StateStore]: ...   # opened, and empty for each test

A store that does not declare a capability passes a case about it by refusing with `NotSupported`. The cases cover every
row of Dapr's own state conformance that concerns a store (its HTTP layer has the rest), and then: exact bytes, races,
and a long random run beside the in-memory reference.

Time is a number that the cases pass in. It lies in the future, so that a server's own clock never expires a key first.
"""

from __future__ import annotations

import asyncio
import functools
import random
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import orjson
import pytest

from statestores.errors import ETagInvalid, ETagMismatch, InvalidRequest, NotSupported, StoreError
from statestores.memory_keys import MemoryKeys
from statestores.store import Capability, DeleteKey, KeyItem, KeyQuery, SetKey

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from statestores.store import Keys, StateStore

NOW_MS = 4_000_000_000_000
MALFORMED_ETAG = "not-a-tag"

Case = TypeVar("Case", bound="Callable[..., Awaitable[None]]")


def needs(*capabilities: Capability) -> Callable[[Case], Case]:
    """The case for stores with the capabilities; for others it becomes: what is lacking is refused."""

    def decorate(case: Case) -> Case:
        @functools.wraps(case)
        async def run(self: object, store: StateStore, **parameters: object) -> None:
            lacking = [capability for capability in capabilities if capability not in store.capabilities]
            for capability in lacking:
                await assert_refused(store, capability)
            if not lacking:
                await case(self, store, **parameters)

        return cast("Case", run)

    return decorate


async def assert_refused(store: StateStore, capability: Capability) -> None:
    """The store refuses, with `NotSupported`, the plainest request that takes the capability."""
    with pytest.raises(NotSupported):
        await _ask_for(store, capability)


async def _ask_for(store: StateStore, capability: Capability) -> None:
    match capability:
        case Capability.ETAG:
            await write(store, SetKey("k", b"1", etag="1"))
        case Capability.TTL:
            await write(store, SetKey("k", b"1", ttl_s=1))
        case Capability.TRANSACTIONAL:
            await store.keys.transact([SetKey("k", b"1")], NOW_MS)
        case Capability.QUERY_API:
            await store.keys.query(KeyQuery({}), NOW_MS)
        case Capability.DELETE_WITH_PREFIX:
            await store.keys.delete_prefix("p||")
        case _:
            raise AssertionError(f"{capability} is not about keys")


async def write(store: StateStore, *operations: SetKey | DeleteKey, now_ms: int = NOW_MS) -> None:
    """Apply operations that must all succeed."""
    for error in await store.keys.apply(operations, now_ms):
        if error is not None:
            raise error


async def read(store: StateStore, key: str, now_ms: int = NOW_MS) -> KeyItem:
    """A key that must be there."""
    (item,) = await store.keys.get([key], now_ms)
    assert item is not None, f"{key} is missing"
    return item


async def values(store: StateStore, *keys: str, now_ms: int = NOW_MS) -> list[bytes | None]:
    return [item and item.value for item in await store.keys.get(keys, now_ms)]


async def matches(store: StateStore, filter: dict[str, Any], prefix: str = "") -> list[str]:
    items, token = await store.keys.query(KeyQuery(filter, prefix=prefix), NOW_MS)
    assert token == ""
    return [item.key for item in items]


class KeysConformance:
    """Cases on a fixture `store`, opened and empty. See the module's text for how to use it."""

    # --- set, get, delete ---

    @pytest.mark.parametrize(
        "value",
        [
            b'"text"', b'""', b"", b"0", b"-7", b"true", b"null", b"{}", b'{"a": [1, 2.50, {"b": null}]}', b'"\\u0000"',
            b'"{\\"quoted\\": 1}"', bytes(range(256)), b"\x08\x96\x01\x12\x07testing", b"\xff\xfe", b" spaced \n",
        ],
    )  # fmt: skip
    async def test_value_is_returned_byte_for_byte(self, store: StateStore, value: bytes) -> None:
        """A value is opaque: text, JSON, protobuf and raw bytes come back exactly as they were set."""
        await write(store, SetKey("k", value))
        item = await read(store, "k")
        assert item.key == "k"
        assert item.value == value
        assert item.expires_ms is None

    async def test_large_value_is_returned(self, store: StateStore) -> None:
        """A value of four megabytes, the largest request body by default, survives."""
        value = random.Random(1).randbytes(4 * 1024 * 1024)
        await write(store, SetKey("k", value))
        assert (await read(store, "k")).value == value

    @pytest.mark.parametrize(
        "key",
        [
            "app||k",
            "with space",
            "a/b?c#d%20",
            "käse🧀",
            "{tag}",
            "*?[x]",
            "'; --",
            '"',
            "_%\\",
            "line\nbreak",
            "nul\0x",
            "x" * 512,
        ],
    )
    async def test_keys_are_plain_text(self, store: StateStore, key: str) -> None:
        """No character of a key has a meaning to a store."""
        await write(store, SetKey("other", b"0"), SetKey(key, b"1"))
        assert await values(store, key, "other") == [b"1", b"0"]
        await write(store, DeleteKey(key))
        assert await values(store, key, "other") == [None, b"0"]

    async def test_keys_are_case_sensitive(self, store: StateStore) -> None:
        """Keys that differ in case or in composed characters are different keys."""
        await write(store, SetKey("k", b"1"), SetKey("K", b"2"), SetKey("\u00e9", b"3"), SetKey("e\u0301", b"4"))
        assert await values(store, "k", "K", "\u00e9", "e\u0301") == [b"1", b"2", b"3", b"4"]

    @pytest.mark.parametrize("key", ["", "\ud800"])
    async def test_impossible_keys_are_refused(self, store: StateStore, key: str) -> None:
        """An empty key and one that is not Unicode text are the caller's error, and no reader stumbles over them."""
        errors = await store.keys.apply([SetKey(key, b"1"), SetKey("good", b"2")], NOW_MS)
        assert isinstance(errors[0], InvalidRequest)
        assert errors[1] is None
        assert await values(store, key, "good") == [None, b"2"]

    async def test_missing_key_is_none(self, store: StateStore) -> None:
        """Reading what is not there is an answer, not an error."""
        assert await store.keys.get(["absent"], NOW_MS) == [None]

    async def test_set_replaces(self, store: StateStore) -> None:
        """The last write wins when no tag is given."""
        await write(store, SetKey("k", b"1"))
        await write(store, SetKey("k", b"2"))
        assert await values(store, "k") == [b"2"]

    async def test_delete_removes(self, store: StateStore) -> None:
        """A deleted key reads as missing."""
        await write(store, SetKey("k", b"1"))
        await write(store, DeleteKey("k"))
        assert await values(store, "k") == [None]

    async def test_deleting_a_missing_key_succeeds(self, store: StateStore) -> None:
        """Deleting twice is as good as once."""
        await write(store, DeleteKey("absent"), DeleteKey("absent"))
        assert await values(store, "absent") == [None]

    # --- bulk ---

    async def test_nothing_asked_is_nothing_done(self, store: StateStore) -> None:
        """Empty requests succeed."""
        assert await store.keys.get([], NOW_MS) == []
        assert await store.keys.apply([], NOW_MS) == []

    async def test_bulk_answers_in_the_order_asked(self, store: StateStore) -> None:
        """One answer per key, in order, repeated and missing ones included."""
        await write(store, SetKey("a", b"1"), SetKey("b", b"2"))
        assert await values(store, "b", "missing", "a", "b") == [b"2", None, b"1", b"2"]

    async def test_thousands_of_keys_in_one_request(self, store: StateStore) -> None:
        """No limit of the store behind shows through: many keys are set, read and deleted by one call each."""
        keys = [f"k{number}" for number in range(2500)]
        await write(store, *(SetKey(key, key.encode()) for key in keys))
        assert await values(store, *keys) == [key.encode() for key in keys]
        await write(store, *(DeleteKey(key) for key in keys))
        assert await values(store, *keys) == [None] * len(keys)

    async def test_bulk_is_applied_in_order(self, store: StateStore) -> None:
        """Operations on the same key in one call take effect one after the other."""
        await write(store, SetKey("k", b"1"), DeleteKey("k"), SetKey("k", b"2"), SetKey("k", b"3"), SetKey("d", b"1"))
        await write(store, SetKey("d", b"2"), DeleteKey("d"))
        assert await values(store, "k", "d") == [b"3", None]

    # --- ETags ---

    @needs(Capability.ETAG)
    async def test_each_write_gives_a_new_etag(self, store: StateStore) -> None:
        """No two writes of a key ever carry the same tag, not even of the same value or across a deletion."""
        seen = []
        for _ in range(3):
            await write(store, SetKey("k", b"1"))
            seen.append((await read(store, "k")).etag)
            await write(store, SetKey("k", b"1"))
            seen.append((await read(store, "k")).etag)
            await write(store, DeleteKey("k"))
        assert all(seen)
        assert len(set(seen)) == len(seen)

    @needs(Capability.ETAG)
    async def test_reading_keeps_the_etag(self, store: StateStore) -> None:
        """A tag changes by writing alone, and single and bulk reads return the same one."""
        await write(store, SetKey("a", b"1"), SetKey("b", b"1"))
        first = await read(store, "a")
        await write(store, SetKey("b", b"2"))
        assert (await store.keys.get(["b", "a"], NOW_MS))[1] == first

    @needs(Capability.ETAG)
    async def test_right_etag_writes(self, store: StateStore) -> None:
        """A write with the tag that was read succeeds, once."""
        await write(store, SetKey("k", b"1"))
        etag = (await read(store, "k")).etag
        await write(store, SetKey("k", b"2", etag=etag))
        with pytest.raises(ETagMismatch):
            await write(store, SetKey("k", b"3", etag=etag))
        assert await values(store, "k") == [b"2"]

    @needs(Capability.ETAG)
    async def test_right_etag_deletes(self, store: StateStore) -> None:
        """A delete with the tag that was read succeeds, with an older one it does not."""
        await write(store, SetKey("k", b"1"))
        stale = (await read(store, "k")).etag
        await write(store, SetKey("k", b"2"))
        with pytest.raises(ETagMismatch):
            await write(store, DeleteKey("k", etag=stale))
        assert await values(store, "k") == [b"2"]
        await write(store, DeleteKey("k", etag=(await read(store, "k")).etag))
        assert await values(store, "k") == [None]

    @needs(Capability.ETAG)
    @pytest.mark.parametrize("operation", [SetKey("k", b"2", etag=MALFORMED_ETAG), DeleteKey("k", etag=MALFORMED_ETAG)])
    async def test_malformed_etag_is_refused(self, store: StateStore, operation: SetKey | DeleteKey) -> None:
        """A tag that the store never gave is invalid or, where the store cannot tell, a mismatch; nothing changes."""
        await write(store, SetKey("k", b"1"))
        with pytest.raises((ETagInvalid, ETagMismatch)):
            await write(store, operation)
        assert await values(store, "k") == [b"1"]

    @needs(Capability.ETAG)
    async def test_etag_of_an_absent_key_mismatches(self, store: StateStore) -> None:
        """Somebody who read a key must learn that it has gone: setting and deleting with its tag fail."""
        await write(store, SetKey("k", b"1"))
        etag = (await read(store, "k")).etag
        await write(store, DeleteKey("k"))
        for operation in (SetKey("k", b"2", etag=etag), DeleteKey("k", etag=etag)):
            with pytest.raises(ETagMismatch):
                await write(store, operation)
        assert await values(store, "k") == [None]

    @needs(Capability.ETAG)
    async def test_etag_of_another_key_mismatches(self, store: StateStore) -> None:
        """A tag belongs to one key."""
        await write(store, SetKey("a", b"1"))
        await write(store, SetKey("b", b"1"))
        await write(store, SetKey("b", b"2"))
        with pytest.raises(ETagMismatch):
            await write(store, SetKey("a", b"3", etag=(await read(store, "b")).etag))

    @needs(Capability.ETAG)
    async def test_etag_before_delete_does_not_match_the_key_made_again(self, store: StateStore) -> None:
        """Deleting and making a key again is a change: a tag from before does not match."""
        await write(store, SetKey("k", b"1"))
        etag = (await read(store, "k")).etag
        await write(store, DeleteKey("k"))
        await write(store, SetKey("k", b"1"))
        with pytest.raises(ETagMismatch):
            await write(store, SetKey("k", b"2", etag=etag))

    @needs(Capability.ETAG)
    async def test_empty_etag_means_none(self, store: StateStore) -> None:
        """Clients send an empty tag when they have none: the last write wins."""
        await write(store, SetKey("k", b"1"))
        await write(store, SetKey("k", b"2", etag=""))
        assert await values(store, "k") == [b"2"]
        await write(store, DeleteKey("k", etag=""))
        assert await values(store, "k") == [None]

    @needs(Capability.ETAG)
    async def test_bulk_with_bad_etags_applies_the_others(self, store: StateStore) -> None:
        """Each operation of a bulk request stands alone: an error for each bad tag, and the rest takes effect."""
        await write(store, *(SetKey(key, b"1") for key in "abcd"))
        stale = [item.etag for item in await store.keys.get(list("abcd"), NOW_MS) if item]
        await write(store, SetKey("b", b"2"), SetKey("d", b"2"))
        errors = await store.keys.apply(
            [
                SetKey("a", b"9", etag=stale[0]),
                SetKey("b", b"9", etag=stale[1]),
                DeleteKey("c", etag=stale[2]),
                DeleteKey("d", etag=stale[3]),
                SetKey("new", b"9"),
            ],
            NOW_MS,
        )
        assert [type(error) for error in errors] == [type(None), ETagMismatch, type(None), ETagMismatch, type(None)]
        assert await values(store, *"abcd", "new") == [b"9", b"2", None, b"2", b"9"]

    @needs(Capability.ETAG)
    async def test_racing_writers_with_etags_lose_no_update(self, store: StateStore) -> None:
        """Read, change, write with the tag, again on mismatch: eight concurrent writers count to exactly 40."""
        await write(store, SetKey("count", b"0"))

        async def increment() -> None:
            while True:
                item = await read(store, "count")
                operation = SetKey("count", str(int(item.value) + 1).encode(), etag=item.etag)
                (error,) = await store.keys.apply([operation], NOW_MS)
                if error is None:
                    return
                assert isinstance(error, ETagMismatch)

        async def writer() -> None:
            for _ in range(5):
                await increment()

        await asyncio.gather(*(writer() for _ in range(8)))
        assert await values(store, "count") == [b"40"]

    # --- first write ---

    @needs(Capability.ETAG)
    @pytest.mark.parametrize("no_etag", [None, ""])
    async def test_first_write_without_etag_only_creates(self, store: StateStore, no_etag: str | None) -> None:
        """First-write without a tag succeeds once; again after the key was deleted."""
        await write(store, SetKey("k", b"1", etag=no_etag, first_write=True))
        with pytest.raises(ETagMismatch):
            await write(store, SetKey("k", b"2", etag=no_etag, first_write=True))
        assert await values(store, "k") == [b"1"]
        await write(store, DeleteKey("k"), SetKey("k", b"3", etag=no_etag, first_write=True))
        assert await values(store, "k") == [b"3"]

    @needs(Capability.ETAG)
    async def test_first_write_with_etag_replaces_once(self, store: StateStore) -> None:
        """First-write with the right tag succeeds and changes the tag; the stale tag then fails."""
        await write(store, SetKey("k", b"1", first_write=True))
        etag = (await read(store, "k")).etag
        await write(store, SetKey("k", b"2", etag=etag, first_write=True))
        assert (await read(store, "k")).etag != etag
        with pytest.raises(ETagMismatch):
            await write(store, SetKey("k", b"3", etag=etag, first_write=True))
        assert await values(store, "k") == [b"2"]

    @needs(Capability.ETAG)
    async def test_one_of_racing_first_writes_wins(self, store: StateStore) -> None:
        """Of many concurrent creations of one key exactly one succeeds, and its value stays."""
        answers = await asyncio.gather(
            *(store.keys.apply([SetKey("k", b"%d" % n, first_write=True)], NOW_MS) for n in range(16))
        )
        winners = [n for n, (error,) in enumerate(answers) if error is None]
        assert len(winners) == 1
        assert await values(store, "k") == [b"%d" % winners[0]]

    # --- transactions ---

    @needs(Capability.TRANSACTIONAL)
    async def test_transaction_applies_sets_and_deletes(self, store: StateStore) -> None:
        """Mixed operations take effect together; deleting a missing key is no failure."""
        await write(store, SetKey("old", b"1"), SetKey("kept", b"1"))
        operations: list[SetKey | DeleteKey] = [SetKey("new", b"2"), DeleteKey("old"), DeleteKey("missing")]
        operations.append(SetKey("bytes", b"\x00\xff"))
        await store.keys.transact(operations, NOW_MS)
        assert await values(store, "new", "old", "kept", "bytes") == [b"2", None, b"1", b"\x00\xff"]

    @needs(Capability.TRANSACTIONAL)
    async def test_empty_transaction_succeeds(self, store: StateStore) -> None:
        """Nothing to do is done."""
        await store.keys.transact([], NOW_MS)
        assert await store.keys.get(["k"], NOW_MS) == [None]

    @needs(Capability.TRANSACTIONAL)
    async def test_transaction_keeps_order(self, store: StateStore) -> None:
        """Operations are done in order: the last one on a key wins."""
        await write(store, SetKey("b", b"0"))
        await store.keys.transact(
            [
                SetKey("a", b"1"),
                SetKey("a", b"2"),
                DeleteKey("b"),
                SetKey("b", b"3"),
                SetKey("c", b"4"),
                DeleteKey("c"),
            ],
            NOW_MS,
        )
        assert await values(store, "a", "b", "c") == [b"2", b"3", None]

    @needs(Capability.TRANSACTIONAL)
    async def test_transaction_of_hundreds(self, store: StateStore) -> None:
        """A large transaction is still one."""
        operations = [SetKey(f"k{n}", b"%d" % n) for n in range(600)]
        await store.keys.transact(operations, NOW_MS)
        assert await values(store, *(f"k{n}" for n in range(600))) == [b"%d" % n for n in range(600)]

    @needs(Capability.TRANSACTIONAL, Capability.ETAG)
    @pytest.mark.parametrize("bad", [SetKey("k", b"9", etag="STALE"), DeleteKey("k", etag="STALE")])
    @pytest.mark.parametrize("place", [0, 1, 3])
    async def test_transaction_with_a_stale_etag_does_nothing(
        self, store: StateStore, bad: SetKey | DeleteKey, place: int
    ) -> None:
        """One tag that does not match, wherever it stands, and nothing of the transaction is there."""
        await write(store, SetKey("k", b"1"), SetKey("gone", b"1"))
        stale = (await read(store, "k")).etag
        await write(store, SetKey("k", b"2"))
        before = await store.keys.get(["k", "gone", "new"], NOW_MS)
        operations: list[SetKey | DeleteKey] = [SetKey("new", b"1"), DeleteKey("gone"), SetKey("gone", b"7")]
        operations.insert(place, bad._replace(etag=stale))
        with pytest.raises(ETagMismatch):
            await store.keys.transact(operations, NOW_MS)
        assert await store.keys.get(["k", "gone", "new"], NOW_MS) == before

    @needs(Capability.TRANSACTIONAL, Capability.ETAG)
    async def test_transaction_with_right_etags_commits(self, store: StateStore) -> None:
        """Tags are checked against what is there, and then everything is done."""
        await write(store, SetKey("a", b"1"), SetKey("b", b"1"))
        a, b = await read(store, "a"), await read(store, "b")
        await store.keys.transact(
            [SetKey("a", b"2", etag=a.etag), DeleteKey("b", etag=b.etag), SetKey("c", b"2", first_write=True)], NOW_MS
        )
        assert await values(store, "a", "b", "c") == [b"2", None, b"2"]

    @needs(Capability.TRANSACTIONAL, Capability.ETAG)
    async def test_transaction_checks_see_earlier_operations(self, store: StateStore) -> None:
        """Conditions are checked in order too: a write makes older tags stale, a delete permits a first write."""
        await write(store, SetKey("k", b"1"))
        etag = (await read(store, "k")).etag
        with pytest.raises(ETagMismatch):
            await store.keys.transact([SetKey("k", b"2"), SetKey("k", b"3", etag=etag)], NOW_MS)
        await store.keys.transact([DeleteKey("k", etag=etag), SetKey("k", b"4", first_write=True)], NOW_MS)
        assert await values(store, "k") == [b"4"]

    @needs(Capability.TRANSACTIONAL, Capability.ETAG)
    async def test_transaction_with_a_repeated_first_write_does_nothing(self, store: StateStore) -> None:
        """Creating a key that is there fails the whole transaction."""
        await write(store, SetKey("k", b"1"))
        with pytest.raises(ETagMismatch):
            await store.keys.transact([SetKey("other", b"1"), SetKey("k", b"2", first_write=True)], NOW_MS)
        assert await values(store, "k", "other") == [b"1", None]

    @needs(Capability.TRANSACTIONAL)
    async def test_transaction_with_an_impossible_key_does_nothing(self, store: StateStore) -> None:
        """A request that can never succeed fails whole as well."""
        with pytest.raises(InvalidRequest):
            await store.keys.transact([SetKey("k", b"1"), SetKey("", b"2")], NOW_MS)
        assert await values(store, "k") == [None]

    @needs(Capability.TRANSACTIONAL)
    async def test_transactions_are_seen_whole(self, store: StateStore) -> None:
        """Whoever reads two keys in one call while transactions change both, sees them change together."""
        await store.keys.transact([SetKey("a", b"0"), SetKey("b", b"0")], NOW_MS)

        async def change() -> None:
            for n in range(30):
                await store.keys.transact([SetKey("a", b"%d" % n), SetKey("b", b"%d" % n)], NOW_MS)

        changing = asyncio.create_task(change())
        while not changing.done():
            a, b = await values(store, "a", "b")
            assert a == b
            await asyncio.sleep(0)
        await changing
        assert await values(store, "a", "b") == [b"29", b"29"]

    # --- TTL ---

    @needs(Capability.TTL)
    async def test_key_with_ttl_expires(self, store: StateStore) -> None:
        """The key says when it expires, is there until the millisecond before, and is missing from then on."""
        await write(store, SetKey("k", b"1", ttl_s=2), SetKey("other", b"1"))
        expires_ms = NOW_MS + 2000
        assert (await read(store, "k")).expires_ms == expires_ms
        assert (await store.keys.get(["other", "k"], NOW_MS))[1] == await read(store, "k", expires_ms - 1)
        assert await values(store, "k", "other", now_ms=expires_ms) == [None, b"1"]

    @needs(Capability.TTL)
    @pytest.mark.parametrize("ttl_s", [None, 0, -1])
    async def test_no_ttl_means_for_ever(self, store: StateStore, ttl_s: int | None) -> None:
        """Without a positive TTL a key never expires, and a rewrite removes an earlier TTL."""
        await write(store, SetKey("k", b"1", ttl_s=5))
        await write(store, SetKey("k", b"2", ttl_s=ttl_s))
        assert (await read(store, "k", NOW_MS + 10**9)).expires_ms is None

    @needs(Capability.TTL)
    async def test_rewrite_with_ttl_starts_anew(self, store: StateStore) -> None:
        """A rewrite with a TTL counts from the rewrite."""
        await write(store, SetKey("k", b"1", ttl_s=1))
        await write(store, SetKey("k", b"2", ttl_s=10), now_ms=NOW_MS + 500)
        assert (await read(store, "k", NOW_MS + 10_000)).expires_ms == NOW_MS + 10_500

    @needs(Capability.TTL)
    async def test_endless_ttl_is_refused(self, store: StateStore) -> None:
        """A TTL beyond every calendar is the caller's error."""
        with pytest.raises(InvalidRequest):
            await write(store, SetKey("k", b"1", ttl_s=10**18))
        assert await values(store, "k") == [None]

    @needs(Capability.TTL, Capability.ETAG)
    async def test_expired_key_counts_as_absent(self, store: StateStore) -> None:
        """Conditions treat an expired key that was not purged as missing: its tag mismatches, a first write may."""
        await write(store, SetKey("k", b"1", ttl_s=1))
        etag, later = (await read(store, "k")).etag, NOW_MS + 1000
        for operation in (SetKey("k", b"2", etag=etag), DeleteKey("k", etag=etag)):
            with pytest.raises(ETagMismatch):
                await write(store, operation, now_ms=later)
        await write(store, SetKey("k", b"3", first_write=True), now_ms=later)
        assert await values(store, "k", now_ms=later) == [b"3"]

    @needs(Capability.TTL, Capability.TRANSACTIONAL)
    async def test_ttl_in_a_transaction(self, store: StateStore) -> None:
        """A transaction sets and removes TTLs like single writes do."""
        await write(store, SetKey("a", b"1", ttl_s=1))
        await store.keys.transact([SetKey("a", b"2"), SetKey("b", b"2", ttl_s=1)], NOW_MS)
        assert await values(store, "a", "b", now_ms=NOW_MS + 1000) == [b"2", None]

    @needs(Capability.TTL)
    async def test_purge_removes_expired_keys_for_good(self, store: StateStore) -> None:
        """Purging takes expired keys, no more than the limit, and leaves the living; purged ones do not come back when
        the clock is set back."""
        await write(store, *(SetKey(f"k{n}", b"1", ttl_s=1) for n in range(5)))
        await write(store, SetKey("later", b"1", ttl_s=60), SetKey("never", b"1"))
        assert await store.keys.purge_expired(NOW_MS + 999, 100) == 0
        assert await store.keys.purge_expired(NOW_MS + 1000, 3) == 3
        assert await store.keys.purge_expired(NOW_MS + 1000, 100) == 2
        assert await store.keys.purge_expired(NOW_MS + 1000, 100) == 0
        assert await values(store, *(f"k{n}" for n in range(5)), "later", "never") == [None] * 5 + [b"1"] * 2

    @needs(Capability.TTL)
    async def test_purge_spares_a_key_that_was_rewritten(self, store: StateStore) -> None:
        """A key that lost its TTL, or got a longer one, or was made again, is not purged by the old one."""
        await write(store, *(SetKey(key, b"1", ttl_s=1) for key in "abc"))
        await write(store, SetKey("a", b"2"), SetKey("b", b"2", ttl_s=60), DeleteKey("c"), SetKey("c", b"2"))
        assert await store.keys.purge_expired(NOW_MS + 1000, 100) == 0
        assert await values(store, *"abc", now_ms=NOW_MS + 1000) == [b"2"] * 3

    # --- delete with prefix ---

    @needs(Capability.DELETE_WITH_PREFIX)
    @pytest.mark.parametrize("prefix", ["app||p", "app||p||"])
    async def test_delete_prefix_removes_direct_children(self, store: StateStore, prefix: str) -> None:
        """Only keys right under the prefix go, and their number is the answer."""
        children = ["app||p||a", "app||p||b", "app||p||c|d", "app||p||nul\0x", "app||p||käse🧀"]
        others = ["app||p", "app||p||q||a", "app||p||nul\0||x", "app||pp||a", "x||app||p||a", "app||P||a", "app||o||a"]
        await write(store, *(SetKey(key, b"1") for key in children + others))
        assert await store.keys.delete_prefix(prefix) == len(children)
        assert await values(store, *children) == [None] * len(children)
        assert await values(store, *others) == [b"1"] * len(others)
        assert await store.keys.delete_prefix(prefix) == 0

    @needs(Capability.DELETE_WITH_PREFIX)
    @pytest.mark.parametrize("prefix", ["_%", "*", "[a-z]", "a.c", "\\", "'"])
    async def test_delete_prefix_knows_no_patterns(self, store: StateStore, prefix: str) -> None:
        """A prefix is plain text: characters that are wild cards elsewhere match themselves."""
        await write(store, SetKey(f"{prefix}||k", b"1"), SetKey("ab||k", b"1"), SetKey("abc||k", b"1"))
        assert await store.keys.delete_prefix(prefix) == 1
        assert await values(store, f"{prefix}||k", "ab||k", "abc||k") == [None, b"1", b"1"]

    @needs(Capability.DELETE_WITH_PREFIX)
    @pytest.mark.parametrize("prefix", ["", "||"])
    async def test_delete_prefix_needs_a_prefix(self, store: StateStore, prefix: str) -> None:
        """An empty prefix is refused, in the words that Dapr's clients look for, and removes nothing."""
        await write(store, SetKey("||k", b"1"), SetKey("k", b"1"))
        with pytest.raises(InvalidRequest, match="prefix is required"):
            await store.keys.delete_prefix(prefix)
        assert await values(store, "||k", "k") == [b"1", b"1"]

    # --- query ---

    @needs(Capability.QUERY_API)
    @pytest.mark.parametrize(
        ("filter", "expected"),
        [
            ({}, "abcd"),
            ({"EQ": {"state": "CA"}}, "ac"),
            ({"NEQ": {"state": "CA"}}, "bd"),
            ({"EQ": {"person.id": 2}}, "b"),
            ({"GT": {"person.id": 2}}, "cd"),
            ({"GTE": {"person.id": 2}}, "bcd"),
            ({"LT": {"person.id": 2}}, "a"),
            ({"LTE": {"person.id": 2}}, "ab"),
            ({"IN": {"person.org": ["Dev Ops", "Finance"]}}, "abc"),
            ({"IN": {"person.org": []}}, ""),
            ({"AND": [{"EQ": {"state": "CA"}}, {"GT": {"person.id": 1}}]}, "c"),
            ({"OR": [{"EQ": {"state": "WA"}}, {"EQ": {"person.id": 4}}]}, "bd"),
            ({"OR": [{"AND": [{"EQ": {"state": "CA"}}, {"EQ": {"person.id": 1}}]}, {"IN": {"state": ["TX"]}}]}, "ad"),
            ({"EQ": {"nothing": 1}}, ""),
        ],
    )
    async def test_query_filters(self, store: StateStore, filter: dict[str, Any], expected: str) -> None:
        """Each operator selects what it says, over dotted paths; matches come in the order of their keys."""
        await write(store, *_people(), SetKey("not-json", b"\xff"))
        assert await matches(store, filter) == list(expected)

    @needs(Capability.QUERY_API)
    async def test_query_returns_whole_items(self, store: StateStore) -> None:
        """A match is the item a read returns: exact bytes, and tag."""
        await write(store, SetKey("k", b'{ "a" : 1.0 }'))
        items, _ = await store.keys.query(KeyQuery({"EQ": {"a": 1}}), NOW_MS)
        assert items == [await read(store, "k")]

    @needs(Capability.QUERY_API)
    async def test_query_sorts(self, store: StateStore) -> None:
        """Sort keys are applied in order, each in its direction."""
        await write(store, *_people())
        items, _ = await store.keys.query(KeyQuery({}, sort=(("state", True), ("person.id", False))), NOW_MS)
        assert [item.key for item in items] == ["b", "d", "a", "c"]
        items, _ = await store.keys.query(KeyQuery({}, sort=(("state", False), ("person.id", True))), NOW_MS)
        assert [item.key for item in items] == ["c", "a", "d", "b"]

    @needs(Capability.QUERY_API)
    @pytest.mark.parametrize("sort", [(), (("person.id", False),), (("person.id", True),), (("state", True),)])
    async def test_query_pages_join_to_the_whole(self, store: StateStore, sort: tuple[tuple[str, bool], ...]) -> None:
        """Following the tokens gives everything once, in order, and the last page has no token."""
        await write(store, *_people())
        whole, _ = await store.keys.query(KeyQuery({}, sort=sort), NOW_MS)
        for limit in (1, 2, 3, 4, 5):
            pages, token = await store.keys.query(KeyQuery({}, sort=sort, limit=limit), NOW_MS)
            while token:
                more, token = await store.keys.query(KeyQuery({}, sort=sort, limit=limit, token=token), NOW_MS)
                assert 0 < len(more) <= limit
                pages += more
            assert pages == whole

    @needs(Capability.QUERY_API)
    @pytest.mark.parametrize("sort", [(), (("n", True),)])
    async def test_query_pages_are_as_long_as_they_may_be(
        self, store: StateStore, sort: tuple[tuple[str, bool], ...]
    ) -> None:
        """A page ends before it has more bytes than asked for, whatever its limit, with a token; an item that is longer
        than that makes a page of its own."""
        sizes = [10, 3000, 10, 10, 900, 900, 10]
        await write(store, *(SetKey(f"k{n}", orjson.dumps({"n": n, "x": "y" * size})) for n, size in enumerate(sizes)))
        query = KeyQuery({}, sort=sort, limit=100, max_bytes=2000)
        pages: list[list[int]] = []
        while not pages or query.token:
            items, token = await store.keys.query(query, NOW_MS)
            pages.append([int(item.key[1:]) for item in items])
            query = query._replace(token=token)
        assert pages == ([[6, 5], [4, 3, 2], [1], [0]] if sort else [[0], [1], [2, 3, 4], [5, 6]])

    @needs(Capability.QUERY_API)
    async def test_query_keeps_to_its_prefix(self, store: StateStore) -> None:
        """Another application's keys are never looked at."""
        await write(store, *(SetKey(key, b"1") for key in ("a||x", "a||y||z", "aa||x", "a|", "b||x", "A||x")))
        assert await matches(store, {}, prefix="a||") == ["a||x", "a||y||z"]

    @needs(Capability.QUERY_API, Capability.TTL)
    async def test_query_hides_expired_keys(self, store: StateStore) -> None:
        """An expired key matches nothing."""
        await write(store, SetKey("k", b"1", ttl_s=1), SetKey("other", b"1"))
        items, _ = await store.keys.query(KeyQuery({}), NOW_MS + 1000)
        assert [item.key for item in items] == ["other"]

    @needs(Capability.QUERY_API)
    @pytest.mark.parametrize(
        "query",
        [
            KeyQuery({"LIKE": {"a": 1}}),
            KeyQuery({"EQ": {}}),
            KeyQuery({"AND": {"EQ": {"a": 1}}}),
            KeyQuery({"IN": {"a": 1}}),
            KeyQuery({}, token="junk"),
            KeyQuery({}, limit=-1),
        ],
    )
    async def test_malformed_query_is_refused(self, store: StateStore, query: KeyQuery) -> None:
        """A query that says nothing sensible is the caller's error, also on an empty store."""
        with pytest.raises(InvalidRequest):
            await store.keys.query(query, NOW_MS)

    @needs(Capability.QUERY_API)
    async def test_refused_query_holds_nothing_up(self, store: StateStore) -> None:
        """As long as somebody keeps the error of a refused query, reads see the writes that came after it."""
        await write(store, SetKey("k", b"1"), SetKey("other", b"1"))
        with pytest.raises(InvalidRequest) as refusal:
            await store.keys.query(KeyQuery({"LIKE": {"a": 1}}), NOW_MS)
        await write(store, SetKey("k", b"2"))
        assert await values(store, "k") == [b"2"]
        del refusal

    # --- everything together ---

    @pytest.mark.parametrize("seed", range(8))
    async def test_random_run_agrees_with_the_reference(self, store: StateStore, seed: int) -> None:
        """A random run of all operations, time going on, gives the same answers as the in-memory reference."""
        chance, now_ms = random.Random(seed), NOW_MS
        ours, reference = _Subject(store.keys), _Subject(MemoryKeys())
        for step in range(60):
            now_ms += chance.choice((0, 0, 500, 1000))
            plans = [_plan(chance, store.capabilities) for _ in range(chance.randint(1, 4))]
            transact = Capability.TRANSACTIONAL in store.capabilities and chance.random() < 0.4
            answers = [await subject.do(plans, now_ms, transact=transact) for subject in (ours, reference)]
            assert answers[0] == answers[1], f"seed {seed}, step {step}: {plans}"


def _people() -> list[SetKey]:
    rows = [("a", "CA", 1, "Dev Ops"), ("b", "WA", 2, "Dev Ops"), ("c", "CA", 3, "Finance"), ("d", "TX", 4, "Hardware")]
    return [
        SetKey(key, orjson.dumps({"state": state, "person": {"id": number, "org": org}}))
        for key, state, number, org in rows
    ]


_RANDOM_KEYS = ("a", "b", "c")


class _Plan(NamedTuple):
    """An operation without its tag: `etag_age` picks the n-th last tag seen of the key (None: no tag)."""

    key: str
    value: bytes | None
    etag_age: int | None
    first_write: bool
    ttl_s: int | None


def _plan(chance: random.Random, capabilities: frozenset[Capability]) -> _Plan:
    etags, ttl = Capability.ETAG in capabilities, Capability.TTL in capabilities
    return _Plan(
        key=chance.choice(_RANDOM_KEYS),
        value=None if chance.random() < 0.3 else chance.randbytes(4),
        etag_age=chance.choice((None, 0, 0, 1)) if etags else None,
        first_write=etags and chance.random() < 0.2,
        ttl_s=chance.choice((None, None, 1, 2)) if ttl else None,
    )


class _Subject:
    """A keys face and the tags it gave out: tags differ between stores, their ages and effects may not."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._seen: dict[str, list[str]] = {key: [] for key in _RANDOM_KEYS}

    async def do(self, plans: Sequence[_Plan], now_ms: int, *, transact: bool) -> object:
        """What a caller can tell of the run: the kinds of errors, and then every key's value, expiry and tag's age."""
        operations = [self._operation(plan) for plan in plans]
        errors = await (self._transact(operations, now_ms) if transact else self._keys.apply(operations, now_ms))
        items = await self._keys.get(_RANDOM_KEYS, now_ms)
        return [type(error) for error in errors], [self._observe(item) for item in items]

    async def _transact(self, operations: Sequence[SetKey | DeleteKey], now_ms: int) -> list[StoreError | None]:
        try:
            await self._keys.transact(operations, now_ms)
        except StoreError as error:
            return [error]
        return [None]

    def _operation(self, plan: _Plan) -> SetKey | DeleteKey:
        seen = self._seen[plan.key]
        etag = None if plan.etag_age is None or plan.etag_age >= len(seen) else seen[-1 - plan.etag_age]
        if plan.value is None:
            return DeleteKey(plan.key, etag)
        return SetKey(plan.key, plan.value, etag, plan.first_write, plan.ttl_s)

    def _observe(self, item: KeyItem | None) -> object:
        if item is None:
            return None
        seen = self._seen[item.key]
        if item.etag and item.etag not in seen:
            seen.append(item.etag)
        return item.value, item.expires_ms, seen.index(item.etag) if item.etag else None
