"""What can be said about a Redis store, and the two ways to say it: a URL, or a Dapr component's metadata.

    redis://[[user]:password@]host[:port][/db][?namespace=…&partitions=…&…]
    rediss://…                       the same over TLS
    unix:///path/to.sock[?db=0&…]

The parameters of a URL are `_PARAMETERS`; the names in metadata are Dapr's where Dapr has one (`_METADATA`).
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from statestores.errors import ComponentError
from statestores.model import DEFAULT_PARTITIONS
from statestores.settingtext import duration_s, flag
from statestores.storeurl import MAX_PARTITIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)

_DEFAULT_PORT = 6379


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """Everything a `RedisStore` needs to know. Durations in seconds."""

    hosts: tuple[tuple[str, int], ...] = (("localhost", _DEFAULT_PORT),)  # several: seeds of a cluster
    unix_socket: str = ""
    db: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    tls: bool = False
    tls_insecure: bool = False  # do not check the server's certificate
    tls_ca_file: str = ""
    tls_certificate_file: str = ""
    tls_key_file: str = ""
    cluster: bool = False
    namespace: str = "default"
    partitions: int = DEFAULT_PARTITIONS  # used when the namespace is made; afterwards the recorded number holds
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 5.0
    max_retries: int = 10
    retry_base_s: float = 0.02
    retry_cap_s: float = 1.0
    pool_size: int = 32
    # A commit returns only after the server has its AOF on disk (`WAITAOF 1 0`, Redis 7.2, Valkey). Worth it under
    # appendfsync everysec, where an acknowledged commit could otherwise be lost with the machine; it then takes up to
    # a second. Under appendfsync always every answer is durable anyway.
    wait_aof: bool = False
    wait_replicas: int = 0  # a commit returns only after that many replicas have it (`WAIT`)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", self.namespace):
            raise ComponentError(f"redis: namespace must be letters, digits, '.', '_' or '-', not {self.namespace!r}")
        if not 1 <= self.partitions <= MAX_PARTITIONS:
            raise ComponentError(
                f"redis: partitions must be a number from 1 to {MAX_PARTITIONS}, not {self.partitions}"
            )
        if self.cluster and self.db:
            raise ComponentError("redis: a cluster has database 0 only: remove redisDB")
        if self.cluster and (self.wait_aof or self.wait_replicas):
            raise ComponentError("redis: waitAOF and waitReplicas need redisType node")
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise ComponentError(f"redis: {name} must be greater than 0")
        if not self.hosts:
            raise ComponentError("redis: redisHost is missing: give host:port")

    @property
    def address(self) -> str:
        """Where, for people; never with a password."""
        return self.unix_socket or ",".join(f"{host}:{port}" for host, port in self.hosts)


def settings_from_url(url: str) -> RedisSettings:
    """Raises `ComponentError` for a URL that is not one of ours."""
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORT
    except ValueError as error:
        raise ComponentError(f"redis: the URL cannot be read: {error}") from None
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ComponentError(f"redis: a URL begins with redis://, rediss:// or unix://, not {parts.scheme}://")
    if parts.fragment:
        raise ComponentError("redis: a URL has nothing after a #; one in a password is written %23")
    fields: dict[str, object] = {
        "username": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "tls": parts.scheme == "rediss",
    }
    if parts.scheme == "unix":
        fields["unix_socket"] = unquote(parts.path)
    else:
        fields["hosts"] = ((parts.hostname or "localhost", port),)
        if path := parts.path.strip("/"):
            fields["db"] = _number("redis: the database in the URL", path)
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        if name not in _PARAMETERS:
            raise ComponentError(f"redis: unknown parameter {name!r} in the URL, there are {', '.join(_PARAMETERS)}")
        _take(fields, *_PARAMETERS[name], name, text)
    return RedisSettings(**fields)  # type: ignore[arg-type]  # each reader gives what its field takes


def settings_from_metadata(metadata: Mapping[str, str]) -> RedisSettings:
    """Raises `ComponentError` naming the field. Names that mean nothing here are passed over: a component file is
    shared with other runtimes, which have settings of their own."""
    fields: dict[str, object] = {}
    names = {name.lower(): name for name in _METADATA}
    for given, text in metadata.items():
        name = names.get(given.lower())  # Dapr takes them in any case
        if name is None:
            log.debug("redis: metadata %s is not used here", given)
            continue
        if str(text) != "":
            _take(fields, *_METADATA[name], name, str(text))
    if fields.pop("failover", False):
        raise ComponentError("redis: failover (Sentinel) is not supported: give the primary's redisHost, or a cluster")
    return RedisSettings(**fields)  # type: ignore[arg-type]  # each reader gives what its field takes


_POSITIVE = frozenset({"connect_timeout_s", "read_timeout_s", "pool_size"})


def _take(fields: dict[str, object], target: str, read: Reader, name: str, text: str) -> None:
    """Read one setting into its field. What cannot be zero is left out when it is, which means the default, as it does
    to Dapr."""
    value = read(f"redis: {name}", text)
    if value or target not in _POSITIVE:
        fields[target] = value


def _text(name: str, text: str) -> str:
    return text


def _file(name: str, text: str) -> str:
    if text.startswith("-----BEGIN"):
        raise ComponentError(f"{name} must be the name of a PEM file, not its text")
    return text


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ComponentError(f"{name} must be a whole number, 0 or more, not {text!r}")
    return int(text)


def _hosts(name: str, text: str) -> tuple[tuple[str, int], ...]:
    return tuple(_host(name, part.strip()) for part in text.split(",") if part.strip())


def _host(name: str, text: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        return parts.hostname or "localhost", parts.port or _DEFAULT_PORT
    except ValueError:
        raise ComponentError(f"{name} must be host:port, not {text!r}") from None


def _is_cluster(name: str, text: str) -> bool:
    if text not in ("node", "cluster"):
        raise ComponentError(f"{name} must be node or cluster, not {text!r}")
    return text == "cluster"


if TYPE_CHECKING:
    Reader = Callable[[str, str], object]

_COMMON: dict[str, tuple[str, Reader]] = {
    "namespace": ("namespace", _text),
    "partitions": ("partitions", _number),
    "redisType": ("cluster", _is_cluster),
    "dialTimeout": ("connect_timeout_s", duration_s),
    "readTimeout": ("read_timeout_s", duration_s),
    "maxRetries": ("max_retries", _number),
    "poolSize": ("pool_size", _number),
    "waitAOF": ("wait_aof", flag),
    "waitReplicas": ("wait_replicas", _number),
}
_PARAMETERS: dict[str, tuple[str, Reader]] = {**_COMMON, "db": ("db", _number), "caFile": ("tls_ca_file", _file)}
_METADATA: dict[str, tuple[str, Reader]] = {
    **_COMMON,
    "redisHost": ("hosts", _hosts),
    "redisUsername": ("username", _text),
    "redisPassword": ("password", _text),
    "redisDB": ("db", _number),
    "enableTLS": ("tls", flag),
    "insecureSkipTLSVerify": ("tls_insecure", flag),
    "caFile": ("tls_ca_file", _file),
    "clientCert": ("tls_certificate_file", _file),
    "clientKey": ("tls_key_file", _file),
    "redisMinRetryInterval": ("retry_base_s", duration_s),
    "redisMaxRetryInterval": ("retry_cap_s", duration_s),
    "failover": ("failover", flag),
}
