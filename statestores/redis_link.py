"""The line to a Redis server: connections, scripts, and what to do when a call fails.

A *call* is one command as a tuple, usually of a script. Every call made here may be repeated without harm: reads change
nothing, and scripts that write recognise a repeat (by turn id or request id). That is what allows the one policy for
lost connections: send it again, with backoff, for a bounded time, then `StoreUnavailable`, outcome unknown.

What failures mean:

    connection lost, timeout, LOADING, READONLY or MASTERDOWN (a failover), CLUSTERDOWN, TRYAGAIN,
    BUSY, NOREPLICAS, MISCONF (the disk is full)              retry, then StoreUnavailable
    NOSCRIPT                                                  load the scripts, send again
    OOM                                                       StoreUnavailable at once: it takes a person
    wrong password, NOPERM, MOVED outside of a cluster        ComponentError: the settings are wrong
    anything else                                             StoreError: our mistake
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

from redis import asyncio as aioredis
from redis import exceptions
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import EqualJitterBackoff, NoBackoff

from statestores.errors import ComponentError, StoreError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from statestores.redis_settings import RedisSettings

    Argument = str | bytes | int
    Call = tuple[Argument, ...]
    Answer = Any  # what the server gave: bytes, int, None, or a list of those

_RETRY_FOR_S = 10.0
"""The retries of one call end after this time even when some are left."""

_TRANSIENT_CODES = ("BUSY", "NOREPLICAS", "MISCONF", "LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN")


class Script(NamedTuple):
    """A Lua script on the server, called by the hash of its text."""

    text: str
    sha: str

    def call(self, keys: Sequence[Argument], *arguments: Argument) -> Call:
        return ("EVALSHA", self.sha, len(keys), *keys, *arguments)


def load_scripts(resource: str) -> Mapping[str, Script]:
    """The scripts of a .lua file in this package, by the names of its sections."""
    text = files("statestores").joinpath(resource).read_text()
    parts = re.split(r"^--@ (\w+)\n", text, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    common = sections.pop("common")
    return {name: _script(common + body) for name, body in sections.items()}


def _script(text: str) -> Script:
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


class RedisLink:
    """Sends calls. Open it before, close it after; safe to use from many tasks of one event loop."""

    def __init__(self, settings: RedisSettings, scripts: Sequence[Script]) -> None:
        self._settings = settings
        self._scripts = {script.sha: script for script in scripts}
        self._client: aioredis.Redis | RedisCluster | None = None
        self._backoff = EqualJitterBackoff(cap=settings.retry_cap_s, base=settings.retry_base_s)

    def open(self) -> None:
        """Connections are made when they are needed."""
        if self._client is None:
            self._client = _cluster(self._settings) if self._settings.cluster else _node(self._settings)

    async def close(self) -> None:
        """Idempotent."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def one(self, call: Call, *, durable: bool = False) -> Answer:
        """The answer to one call."""
        return (await self.all([call], durable=durable))[0]

    async def all(self, calls: Sequence[Call], *, durable: bool = False) -> list[Answer]:
        """The answers to calls that may run in any order, made together. `durable`: return when what was written has
        reached the disk and the replicas, as far as the settings ask for that."""
        if not calls:
            return []
        confirmations = self._confirmations() if durable else []
        give_up = asyncio.get_running_loop().time() + _RETRY_FOR_S
        failures = 0
        while True:
            answers = await self._send([*calls, *confirmations])
            failure = _worst_of(answers)
            if failure is None:
                self._check_confirmed(answers[len(calls) :])
                return answers[: len(calls)]
            if isinstance(failure, exceptions.NoScriptError):
                await self._load(failure)
                continue
            failures += 1
            delay = self._backoff.compute(failures)
            late = asyncio.get_running_loop().time() + delay > give_up
            if failures > self._settings.max_retries or late or not _is_transient(failure):
                raise self._error(failure) from failure
            if isinstance(failure, exceptions.ReadOnlyError):
                await self._disconnect()  # the address may lead to the new primary by now
            await asyncio.sleep(delay)

    def _confirmations(self) -> list[Call]:
        """Sent behind the writes on the same connection: they wait for the last write of theirs."""
        timeout_ms = int(self._settings.read_timeout_s * 900)
        calls: list[Call] = []
        if self._settings.wait_replicas:
            calls.append(("WAIT", self._settings.wait_replicas, timeout_ms))
        if self._settings.wait_aof:
            calls.append(("WAITAOF", 1, 0, timeout_ms))
        return calls

    def _check_confirmed(self, answers: Sequence[Answer]) -> None:
        for answer, call in zip(answers, self._confirmations(), strict=False):
            reached = answer[0] if isinstance(answer, list) else answer
            if reached < int(call[1]):
                raise StoreUnavailable(
                    f"redis at {self._settings.address}: {call[0]} {call[1]} was not reached in time"
                )

    async def _send(self, calls: Sequence[Call]) -> list[Answer]:
        """One answer per call; failures are answers too. A lost connection fails them all."""
        client = self._client
        if client is None:
            raise StoreUnavailable("redis: the store is not open")
        try:
            if len(calls) == 1:
                return [await client.execute_command(*calls[0])]
            pipeline = client.pipeline() if isinstance(client, RedisCluster) else client.pipeline(transaction=False)
            for call in calls:
                pipeline.execute_command(*call)
            return await pipeline.execute(raise_on_error=False)
        except (exceptions.RedisError, OSError) as error:
            return [error] * len(calls)

    async def _load(self, failure: exceptions.NoScriptError) -> None:
        """Bring every script to the server: it was restarted, or is new. Bounded, since a script that is loaded and not
        found would send us round for ever."""
        assert self._client is not None
        loaded = set()
        try:
            for script in self._scripts.values():
                answer = await self._client.execute_command("SCRIPT LOAD", script.text)
                loaded.add(answer.decode() if isinstance(answer, bytes) else str(answer))
        except (exceptions.RedisError, OSError) as error:
            if not _is_transient(error):
                raise self._error(error) from error
            return  # the call that comes next meets the same trouble, and retries
        if loaded != set(self._scripts):
            raise StoreError("redis: the server computes other script hashes than SHA-1") from failure

    async def _disconnect(self) -> None:
        if isinstance(self._client, aioredis.Redis):
            await self._client.connection_pool.disconnect(inuse_connections=False)

    def _error(self, failure: Exception) -> StoreError:
        where = f"redis at {self._settings.address}"
        if _is_refused(failure):
            return ComponentError(
                f"{where} refuses us: {failure}. Check redisUsername, redisPassword and the user's rights"
            )
        if isinstance(failure, exceptions.AskError) and not self._settings.cluster:
            return ComponentError(f"{where} is part of a cluster: set redisType to cluster")
        if isinstance(failure, exceptions.OutOfMemoryError):
            return StoreUnavailable(f"{where} is full and records nothing: raise maxmemory. It says: {failure}")
        if _is_transient(failure):
            return StoreUnavailable(f"{where}: {failure or type(failure).__name__}")
        return StoreError(f"{where} answered: {failure}")


def _worst_of(answers: Sequence[Answer]) -> Exception | None:
    """The failure that decides what to do: one that is final before one that passes, NOSCRIPT last."""
    failures = [answer for answer in answers if isinstance(answer, Exception)]
    if not failures:
        return None
    return min(failures, key=lambda error: (_is_transient(error), isinstance(error, exceptions.NoScriptError)))


def _is_refused(error: Exception) -> bool:
    return isinstance(
        error, exceptions.AuthenticationError | exceptions.AuthorizationError | exceptions.NoPermissionError
    ) or str(error).startswith(("NOPERM", "NOAUTH", "WRONGPASS"))


def _is_transient(error: Exception) -> bool:
    if isinstance(error, OSError | exceptions.ConnectionError | exceptions.TimeoutError):
        return not _is_refused(error)
    if isinstance(error, exceptions.ReadOnlyError | exceptions.ClusterError | exceptions.TryAgainError):
        return True
    if isinstance(error, exceptions.RedisClusterException):
        return True  # no node of the cluster could be reached, or a slot has no owner just now
    return isinstance(error, exceptions.ResponseError) and str(error).startswith(_TRANSIENT_CODES)


def _node(settings: RedisSettings) -> aioredis.Redis:
    """A client whose own retries are off: one policy, ours, decides (see the top of this file)."""
    options: dict[str, Any] = {"db": settings.db, **_common_options(settings)}
    if settings.unix_socket:
        options["path"] = settings.unix_socket
        connection_class: type[aioredis.connection.AbstractConnection] = aioredis.UnixDomainSocketConnection
    else:
        host, port = settings.hosts[0]
        options |= {"host": host, "port": port, "socket_keepalive": True}
        connection_class = aioredis.SSLConnection if settings.tls else aioredis.Connection
        options |= _tls_options(settings) if settings.tls else {}
    pool = aioredis.BlockingConnectionPool(
        max_connections=settings.pool_size, timeout=None, connection_class=connection_class, **options
    )
    return aioredis.Redis.from_pool(pool)


def _cluster(settings: RedisSettings) -> RedisCluster:
    return RedisCluster(
        startup_nodes=[ClusterNode(host, port) for host, port in settings.hosts],
        ssl=settings.tls,
        **(_tls_options(settings) if settings.tls else {}),
        **_common_options(settings),
    )


def _common_options(settings: RedisSettings) -> dict[str, Any]:
    return {
        "username": settings.username or None,
        "password": settings.password or None,
        "socket_connect_timeout": settings.connect_timeout_s,
        "socket_timeout": settings.read_timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,  # the same shapes of answers from every server and every version of the client
    }


def _tls_options(settings: RedisSettings) -> dict[str, Any]:
    return {
        "ssl_cert_reqs": "none" if settings.tls_insecure else "required",
        "ssl_check_hostname": not settings.tls_insecure,
        "ssl_ca_certs": settings.tls_ca_file or None,
        "ssl_certfile": settings.tls_certificate_file or None,
        "ssl_keyfile": settings.tls_key_file or None,
    }
