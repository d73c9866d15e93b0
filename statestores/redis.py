"""A state store on Redis 6.2+, Valkey, or a cluster of either. Both faces; needs nothing on the server but Lua.

`open` makes the namespace or finds it, brings the scripts, and runs a turn that uses every command on a scratch
partition: a user whose rights are too narrow is found out there, and not half-way through somebody's turn.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from statestores import redis_journal, redis_keys, redis_payloads
from statestores.errors import FormatError, StoreError
from statestores.model import FORMAT_VERSION
from statestores.redis_journal import RedisJournal
from statestores.redis_keys import RedisKeys
from statestores.redis_link import RedisLink
from statestores.redis_payloads import RedisPayloads
from statestores.redis_settings import RedisSettings, settings_from_metadata, settings_from_url
from statestores.store import Capability

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from typing import Self

    Migration = Callable[[RedisLink, RedisSettings], Awaitable[None]]

log = logging.getLogger(__name__)

MIGRATIONS: dict[int, Migration] = {}
"""From a format to the next one: the entry of n makes n + 1 of it. Each must bear being run again when it was
interrupted; the number on the server is raised after it."""


class RedisStore:
    """One namespace on a Redis server. Namespaces on one server know nothing of each other."""

    capabilities = frozenset(Capability)

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        scripts = (redis_journal.SCRIPTS, redis_keys.SCRIPTS, redis_payloads.SCRIPTS)
        self._link = RedisLink(settings, [script for some in scripts for script in some.values()])
        self.journal = RedisJournal(self._link, settings.namespace, one_slot=settings.cluster)
        self.keys = RedisKeys(self._link, settings.namespace)
        self.payloads = RedisPayloads(self._link, settings.namespace)

    @classmethod
    def from_url(cls, url: str) -> Self:
        """``redis://user:password@host:6379/0?namespace=default&partitions=32``; see `statestores.redis_settings`."""
        return cls(settings_from_url(url))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Self:
        """``state.redis`` with Dapr's names: redisHost, redisPassword, …"""
        return cls(settings_from_metadata(metadata))

    async def open(self) -> None:
        self._link.open()
        try:
            partitions = await self._recorded_partitions()
            self.journal.set_partitions(partitions)
            self.payloads.set_partitions(partitions)
            await self.journal.rehearse()
            await self.keys.rehearse()
            await self._warn()
        except BaseException:
            await self._link.close()
            raise

    async def close(self) -> None:
        await self._link.close()

    async def _recorded_partitions(self) -> int:
        meta = f"{{mecha:{self._settings.namespace}}}:meta"
        script = redis_journal.SCRIPTS["open"]
        recorded = await self._link.one(script.call([meta], FORMAT_VERSION, self._settings.partitions), durable=True)
        try:
            found, partitions = (int(number) for number in recorded)
        except (TypeError, ValueError):
            raise FormatError(
                f"namespace {self._settings.namespace} at {self._settings.address} was made by something else:"
                " give the store another namespace"
            ) from None
        await self._migrate(found, meta)
        return partitions

    async def _migrate(self, found: int, meta: str) -> None:
        where = f"namespace {self._settings.namespace} at {self._settings.address}"
        if found > FORMAT_VERSION:
            raise FormatError(f"{where} has format {found}, this program knows {FORMAT_VERSION}: upgrade the program")
        for version in range(found, FORMAT_VERSION):
            if version not in MIGRATIONS:
                raise FormatError(
                    f"{where} has format {found}, this program cannot migrate from {version}:"
                    " migrate it with an earlier release first"
                )
            log.info("migrating %s from format %d to %d", where, version, version + 1)
            await MIGRATIONS[version](self._link, self._settings)
            await self._link.one(("HSET", meta, "format", version + 1), durable=True)

    async def _warn(self) -> None:
        """Say it when the server is set up so that it may forget. Not every user may ask; then nothing is said."""
        if self._settings.cluster:
            return
        try:
            facts = _facts(await self._link.one(("INFO",)))
        except StoreError as error:
            log.debug("redis: INFO is not allowed: %s", error)
            return
        where = self._settings.address
        if facts.get("aof_enabled") == "0":
            log.warning("redis at %s has no AOF: what was acknowledged is lost when it ends (appendonly yes)", where)
        if facts.get("maxmemory", "0") != "0" and facts.get("maxmemory_policy") != "noeviction":
            log.warning("redis at %s may evict what is durable: set maxmemory-policy noeviction", where)


def _facts(info: bytes | str) -> dict[str, str]:
    text = info.decode() if isinstance(info, bytes) else info
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
