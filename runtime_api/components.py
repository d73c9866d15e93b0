"""A state component as the API sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from statestores import Capability
from statestores.components import DEFAULT_PURGE_EVERY_S

if TYPE_CHECKING:
    from statestores import StateStore

# What says how the store serves the runtime, and is nothing to applications.
_OURS = frozenset({Capability.JOURNAL, Capability.DURABLE, Capability.SHARED, Capability.PAYLOADS})


class StateComponent(NamedTuple):
    """One state component as the API sees it. `key_prefix` goes before every key as it is. Every `purge_every_s` its
    expired keys are removed for good; None: never. `ttl_s`: of keys that are written without one."""

    name: str
    type: str
    version: str
    store: StateStore
    key_prefix: str
    purge_every_s: float | None = DEFAULT_PURGE_EVERY_S
    ttl_s: int | None = None

    def stored(self, key: str) -> str:
        return self.key_prefix + key

    @property
    def capabilities(self) -> list[str]:
        """As the metadata endpoint lists them: Dapr's names, and ACTOR for what can do both ETAG and TRANSACTIONAL."""
        own = {capability.value for capability in self.store.capabilities - _OURS}
        return sorted(own | ({"ACTOR"} if {"ETAG", "TRANSACTIONAL"} <= own else set()))
