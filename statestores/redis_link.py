"""The line to a Redis server: connections, scripts, and what to do when a call fails.

A *call* is one command as a tuple, usually of a script. Every call made here may be repeated without harm: reads change
nothing, and scripts that write recognise a repeat (by turn id or request id). That is what allows the one policy for
lost connections: send it again, with backoff, for a bounded time, then `StoreUnavailable`, outcome unknown.

Commits are the exception (`once`). The fence comes before a repeat is recognised, so when the partition changes hands
meanwhile, a turn that was recorded is refused as if it never had been. Only who knows that it is a repeat can read that
answer: a commit that may have run is `StoreUnavailable` at once, and repeated by the caller (`GroupCommit`). What the
server refused without running it, and what was never sent, is sent again here as well.

What failures mean:

    connection lost, timeout, LOADING, READONLY or MASTERDOWN (a failover), CLUSTERDOWN, TRYAGAIN,
    BUSY, NOREPLICAS, MISCONF (the disk is full),
    no connection of the cluster's client is free             retry, then StoreUnavailable
    NOSCRIPT                                                  load the scripts, send again
    OOM                                                       StoreUnavailable at once: it takes a person
    wrong password, NOPERM, MOVED outside of a cluster,
    a server without cluster support for one                  ComponentError: the settings are wrong
    anything else                                             StoreError: our mistake
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import hiredis
from redis import asyncio as aioredis
from redis import exceptions
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import EqualJitterBackoff, NoBackoff

from statestores.errors import ComponentError, StoreError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from redis.asyncio.connection import AbstractConnection

    from statestores.redis_settings import RedisSettings

    Argument = str | bytes | int
    Call = tuple[Argument, ...]
    Answer = Any  # what the server gave: bytes, int, None, or a list of those

_RETRY_FOR_S = 10.0
"""The retries of one call end after this time even when some are left."""

_MOST_LOADS = 3
"""A server that loses the scripts again and again is broken."""

# Looked for anywhere in the text: before Redis 7 an error inside a script comes wrapped.
_PASSING = re.compile(r"\b(BUSY|NOREPLICAS|MISCONF|LOADING|READONLY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN)\b")
_REFUSED = re.compile(r"\b(NOPERM|NOAUTH|WRONGPASS)\b|^ACL failure")
_FULL = re.compile(r"\bOOM\b")
_NO_CLUSTER = "cluster support disabled"


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


class _NotSentError(exceptions.ConnectionError):
    """There was no connection to send anything over."""


class Line(Protocol):
    """How calls reach a server: one node, or a cluster. Calls the server refused are answers; a lost connection
    raises."""

    async def send(self, calls: Sequence[Call]) -> list[Answer]: ...

    async def spread_scripts(self, texts: Sequence[str]) -> None:
        """Make the scripts known to every server that may be called."""

    async def reset(self) -> None:
        """Forget connections that are idle: the next ones are new."""

    async def close(self) -> None: ...


class RedisLink:
    """Sends calls. Open it before, close it after; safe to use from many tasks of one event loop."""

    def __init__(self, settings: RedisSettings, scripts: Sequence[Script]) -> None:
        self._settings = settings
        self._scripts = [script.text for script in scripts]
        self._line: Line | None = None
        self._backoff = EqualJitterBackoff(cap=settings.retry_cap_s, base=settings.retry_base_s)

    def open(self) -> None:
        """Connections are made when they are needed."""
        if self._line is None:
            self._line = _Cluster(self._settings) if self._settings.cluster else _Node(self._settings)

    async def close(self) -> None:
        """Idempotent."""
        line, self._line = self._line, None
        if line is not None:
            await line.close()

    async def one(self, call: Call, *, durable: bool = False) -> Answer:
        """The answer to one call."""
        return (await self.all([call], durable=durable))[0]

    async def all(self, calls: Sequence[Call], *, durable: bool = False, once: bool = False) -> list[Answer]:
        """The answers to calls that may run in any order, made together. `durable`: return when what was written has
        reached the disk and the replicas, as far as the settings ask for that. `once`: none of them is sent again when
        it may have run already."""
        if not calls:
            return []
        confirmations = self._confirmations() if durable else []
        clock = asyncio.get_running_loop().time
        give_up = clock() + _RETRY_FOR_S
        failures = loads = 0
        given: list[Answer] = [None] * len(calls)
        open_places = [*range(len(calls))]
        while True:
            answers = await self._send([*(calls[place] for place in open_places), *confirmations])
            failure = _worst_of(answers)
            for place, answer in zip(open_places, answers, strict=False):
                given[place] = answer
            if failure is None:
                self._check_confirmed(answers[len(open_places) :])
                return given
            if once and (lost := next((answer for answer in answers if _may_have_run(answer)), None)) is not None:
                await self._reset()
                raise self._error(lost) from lost
            if once:
                open_places = [place for place in open_places if isinstance(given[place], Exception)]
                if not open_places:  # only the confirmation failed, and another connection could not confirm it
                    raise self._error(failure) from failure
            if isinstance(failure, exceptions.NoScriptError) and loads < _MOST_LOADS:
                loads += 1
                failure = await self._load_scripts()
                if failure is None:
                    continue
            failures += 1
            delay = self._backoff.compute(failures)
            if failures > self._settings.max_retries or clock() + delay > give_up or not _is_passing(failure):
                raise self._error(failure) from failure
            if not isinstance(failure, exceptions.ResponseError) or isinstance(failure, exceptions.ReadOnlyError):
                await self._reset()  # other idle connections are dead too, or lead to what was the primary
            await asyncio.sleep(delay)

    async def _load_scripts(self) -> Exception | None:
        """Bring the scripts to a server that is new, or was restarted. Returns what went wrong."""
        if self._line is None:
            return None
        try:
            await self._line.spread_scripts(self._scripts)
        except _FAILURES as error:
            return _origin(error)
        return None

    async def _reset(self) -> None:
        if self._line is not None:
            await self._line.reset()

    def _confirmations(self) -> list[Call]:
        """Sent behind the writes on the same connection: they wait for the last write of theirs."""
        timeout_ms = int(self._settings.read_timeout_s * 500)
        calls: list[Call] = []
        if self._settings.wait_replicas:
            calls.append(("WAIT", self._settings.wait_replicas, timeout_ms))
        if self._settings.wait_aof:
            calls.append(("WAITAOF", 1, 0, timeout_ms))
        return calls

    def _check_confirmed(self, answers: Sequence[Answer]) -> None:
        wanted = self._settings.wait_replicas
        reached = [answer[0] if isinstance(answer, list) else answer for answer in answers]
        for number, least in zip(reached, [wanted, 1] if wanted else [1], strict=False):
            if number < least:
                raise StoreUnavailable(f"redis at {self._settings.address}: not on disk or on the replicas in time")

    async def _send(self, calls: Sequence[Call]) -> list[Answer]:
        if self._line is None:
            raise StoreUnavailable("redis: the store is not open")
        try:
            answers = await self._line.send(calls)
        except _FAILURES as error:
            answers = [error] * len(calls)
        return [_origin(answer) if isinstance(answer, Exception) else answer for answer in answers]

    def _error(self, failure: Exception) -> StoreError:
        where = f"redis at {self._settings.address}"
        reason = str(failure).rstrip(".") or type(failure).__name__
        if _is_refused(failure):
            return ComponentError(
                f"{where} refuses us: {reason}. Check redisUsername, redisPassword and the user's rights"
            )
        if isinstance(failure, exceptions.AskError) and not self._settings.cluster:
            return ComponentError(f"{where} is part of a cluster: set redisType to cluster")
        if _NO_CLUSTER in str(failure):
            return ComponentError(f"{where} is no cluster: set redisType to node")
        if "WAITAOF" in str(failure):
            return ComponentError(f"{where} has no AOF to wait for: set appendonly yes on it, or leave waitAOF out")
        if isinstance(failure, exceptions.OutOfMemoryError) or _FULL.search(str(failure)):
            return StoreUnavailable(f"{where} is full and records nothing: raise maxmemory. It says: {failure}")
        if isinstance(failure, exceptions.MaxConnectionsError):
            return StoreUnavailable(f"{where}: all connections to it are in use. Make fewer calls at once")
        if _is_short_of_slots(failure):
            remedy = "See what redis-cli --cluster check says of it"
            return StoreUnavailable(f"{where} is a cluster that lacks slots: {reason}. {remedy}")
        if _is_silent(failure):
            remedy = "Is the server started, and is that its address?"
            return StoreUnavailable(f"{where} does not answer: {reason}. {remedy}")
        if _is_passing(failure):
            return StoreUnavailable(f"{where}: {reason}")
        return StoreError(f"{where} answered: {failure}")


_LOST = exceptions.ConnectionError | exceptions.TimeoutError
_FAILURES = (exceptions.RedisError, exceptions.RedisClusterException, OSError)


def _origin(error: Exception) -> Exception:
    """Where no node of a cluster could be asked for the slots: what the last one that was asked has said. Not all that
    the client makes of it names its cause."""
    if not isinstance(error, exceptions.RedisClusterException):
        return error
    met = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return _origin(met) if isinstance(met, _FAILURES) else error  # any other is what our caller is handling


def _may_have_run(answer: Answer) -> bool:
    """Whether a call failed so that nobody knows whether it ran. Our scripts check before they write, and what a server
    refuses (a full disk, a lost failover) it refuses from the first write on."""
    return isinstance(answer, Exception) and not isinstance(answer, exceptions.ResponseError | _NotSentError)


def _worst_of(answers: Sequence[Answer]) -> Exception | None:
    """The failure that decides what to do: one that is final before one that passes, NOSCRIPT last."""
    failures = [answer for answer in answers if isinstance(answer, Exception)]
    if not failures:
        return None
    return min(failures, key=lambda error: (_is_passing(error), isinstance(error, exceptions.NoScriptError)))


def _is_refused(error: Exception) -> bool:
    return isinstance(
        error, exceptions.AuthenticationError | exceptions.AuthorizationError | exceptions.NoPermissionError
    ) or bool(_REFUSED.search(str(error)))


def _is_silent(error: Exception) -> bool:
    """It was not reached, or lost: it has said nothing itself."""
    return isinstance(error, OSError | _LOST) and not isinstance(error, exceptions.BusyLoadingError)


def _is_short_of_slots(error: Exception) -> bool:
    return isinstance(error, exceptions.RedisClusterException | exceptions.ClusterDownError) and not isinstance(
        error, exceptions.MasterDownError
    )


def _is_passing(error: Exception) -> bool:
    if _is_refused(error):
        return False
    if isinstance(error, OSError | _LOST):
        return True
    if isinstance(error, exceptions.ReadOnlyError | exceptions.ClusterError | exceptions.TryAgainError):
        return True
    if isinstance(error, exceptions.NoScriptError | exceptions.RedisClusterException):
        return True  # the latter: a slot has no owner just now
    return isinstance(error, exceptions.ResponseError) and bool(_PASSING.search(str(error)))


class _Node:
    """One server. Packs calls with hiredis and sends them in one write: through the client's own pipeline a batch of
    turns costs three times the processor time."""

    def __init__(self, settings: RedisSettings) -> None:
        self._timeout_s = settings.read_timeout_s
        self._connection_class, self._options = _connection(settings)
        self._places = asyncio.Semaphore(settings.pool_size)
        self._idle: list[AbstractConnection] = []
        self._closed = False

    async def send(self, calls: Sequence[Call]) -> list[Answer]:
        packed = [hiredis.pack_command(call) for call in calls]  # type: ignore[arg-type]  # its stub says 1-tuple
        async with self._places:
            connection = self._idle.pop() if self._idle else self._connection_class(**self._options)
            try:
                async with asyncio.timeout(self._timeout_s):
                    await _connect(connection)
                    await connection.send_packed_command(packed, check_health=False)
                    answers = [await _answer(connection) for _ in calls]
            except BaseException:
                # Answers that are still under way must not be taken for those of another call.
                await connection.disconnect(nowait=True)
                raise
            if self._closed:
                await connection.disconnect()
            else:
                self._idle.append(connection)
            return answers

    async def spread_scripts(self, texts: Sequence[str]) -> None:
        _raise_first(await self.send([("SCRIPT", "LOAD", text) for text in texts]))

    async def reset(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.disconnect(nowait=True)

    async def close(self) -> None:
        self._closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.disconnect()


async def _connect(connection: AbstractConnection) -> None:
    try:
        await connection.connect()  # type: ignore[no-untyped-call]  # redis-py leaves it bare
    except _FAILURES as error:
        if _is_refused(error) or not _is_passing(error):
            raise
        raise _NotSentError(str(error) or type(error).__name__) from error


async def _answer(connection: AbstractConnection) -> Answer:
    try:
        return await connection.read_response()
    except exceptions.ResponseError as error:
        return error


class _Cluster:
    """A cluster, through the client that follows its slots."""

    def __init__(self, settings: RedisSettings) -> None:
        self._client = RedisCluster(
            startup_nodes=[ClusterNode(host, port) for host, port in settings.hosts],
            ssl=settings.tls,
            socket_timeout=settings.read_timeout_s,
            **(_tls_options(settings) if settings.tls else {}),
            **_common_options(settings),
        )

    async def send(self, calls: Sequence[Call]) -> list[Answer]:
        if len(calls) == 1:
            try:
                return [await self._client.execute_command(*calls[0])]
            except exceptions.ResponseError as error:
                return [error]
        pipeline = self._client.pipeline()
        for call in calls:
            pipeline.execute_command(*call)
        return await pipeline.execute(raise_on_error=False)

    async def spread_scripts(self, texts: Sequence[str]) -> None:
        for text in texts:
            await self._client.execute_command("SCRIPT LOAD", text, target_nodes=RedisCluster.PRIMARIES)

    async def reset(self) -> None:
        """The client does so itself."""

    async def close(self) -> None:
        await self._client.aclose()


def _raise_first(answers: Sequence[Answer]) -> None:
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer


def _connection(settings: RedisSettings) -> tuple[type[AbstractConnection], dict[str, Any]]:
    """What makes a connection of a node. It has no timeout of its own for reading: `_Node.send` has one for all."""
    options = {"db": settings.db, "socket_timeout": None, **_common_options(settings)}
    if settings.unix_socket:
        return aioredis.UnixDomainSocketConnection, {**options, "path": settings.unix_socket}
    host, port = settings.hosts[0]
    options |= {"host": host, "port": port, "socket_keepalive": True}
    if settings.tls:
        return aioredis.SSLConnection, {**options, **_tls_options(settings)}
    return aioredis.Connection, options


def _common_options(settings: RedisSettings) -> dict[str, Any]:
    """The client's own retries are off: one policy, ours, decides (see the top of this file)."""
    return {
        "username": settings.username or None,
        "password": settings.password or None,
        "socket_connect_timeout": settings.connect_timeout_s,
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
