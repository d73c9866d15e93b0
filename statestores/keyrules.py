"""The rules of the keys face that are the same in every store, as pure functions of (operation, what is there).

A store looks up what it must, asks these functions, and writes. Keeping the rules here leaves each store nothing to
decide, so that no two can decide differently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from statestores.errors import ETagInvalid, ETagMismatch, InvalidRequest
from statestores.store import SetKey

if TYPE_CHECKING:
    from statestores.errors import StoreError
    from statestores.store import DeleteKey

MAX_TTL_S = 2**31 - 1
"""68 years. A bound keeps every store's arithmetic exact; "never" is said by leaving the TTL out."""

SEPARATOR = "||"
"""Between the parts of a key. An application's keys may not contain it; prefixes end with it."""

_HIGHEST_ETAG = 2**63 - 1


def wanted_etag(operation: SetKey | DeleteKey) -> str | None:
    """The tag the key must carry, None for any. Clients send an empty tag when they mean none."""
    return operation.etag or None


def is_conditional(operation: SetKey | DeleteKey) -> bool:
    """Whether the operation depends on what is there, so that the store has to look first."""
    return wanted_etag(operation) is not None or _is_first_write(operation)


def refusal(operation: SetKey | DeleteKey, current_etag: str | None) -> StoreError | None:
    """Why the operation may not be done on a key that carries `current_etag` (None: no live key), or None: go ahead."""
    wanted = wanted_etag(operation)
    if wanted is None:
        if _is_first_write(operation) and current_etag is not None:
            return ETagMismatch(f"key {operation.key!r} exists already: read it and send its ETag to change it")
        return None
    if wanted == current_etag:
        return None
    if current_etag is None:
        return ETagMismatch(f"key {operation.key!r} does not exist, the request expected ETag {wanted}")
    return ETagMismatch(f"key {operation.key!r} carries ETag {current_etag}, the request expected {wanted}")


def malformed(operation: SetKey | DeleteKey) -> StoreError | None:
    """What makes the operation impossible whatever the store holds, or None.

    Tags are the decimal text of a counter (1 and up): anything else was never given out by a store of ours.
    """
    if (fault := key_fault(operation.key)) is not None:
        return fault
    if isinstance(operation, SetKey) and (operation.ttl_s or 0) > MAX_TTL_S:
        return InvalidRequest(
            f"a TTL is at most {MAX_TTL_S} seconds, got {operation.ttl_s}: leave it out for no expiry"
        )
    wanted = wanted_etag(operation)
    if wanted is not None and not is_counter_etag(wanted):
        return ETagInvalid(f"{wanted!r} is not an ETag of this store: send one that a read has returned")
    return None


def key_fault(key: str) -> InvalidRequest | None:
    """What is wrong with a key that no store can hold, or None."""
    if not key:
        return InvalidRequest("a key must not be empty")
    try:
        key.encode()
    except UnicodeEncodeError:
        return InvalidRequest(f"the key {key!r} is not valid Unicode text")
    return None


def is_counter_etag(etag: str) -> bool:
    """Whether `etag` is the canonical decimal text of a counter that fits 63 bits."""
    return etag.isascii() and etag.isdigit() and etag[0] != "0" and len(etag) <= 19 and int(etag) <= _HIGHEST_ETAG


def expiry_ms(operation: SetKey, now_ms: int) -> int | None:
    """When the written key expires; None for never."""
    if operation.ttl_s is None or operation.ttl_s <= 0:
        return None
    return now_ms + operation.ttl_s * 1000


def is_expired(expires_ms: int | None, now_ms: int) -> bool:
    """A key is gone at the very millisecond it expires."""
    return expires_ms is not None and expires_ms <= now_ms


def children_prefix(prefix: str) -> str:
    """`prefix` as `delete_prefix` means it: ending with the separator. Raises `InvalidRequest` for an empty one."""
    if prefix in ("", SEPARATOR):
        raise InvalidRequest("a prefix is required: deleting every key of a store takes more than an empty prefix")
    return prefix if prefix.endswith(SEPARATOR) else prefix + SEPARATOR


def is_direct_child(key: str, prefix: str) -> bool:
    """Whether `key` lies right under `prefix` (as made by `children_prefix`), not deeper."""
    return key.startswith(prefix) and SEPARATOR not in key[len(prefix) :]


def _is_first_write(operation: SetKey | DeleteKey) -> bool:
    return isinstance(operation, SetKey) and operation.first_write
