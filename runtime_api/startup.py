"""Before a server is there: its port, the name of its store, and what is said when it cannot start."""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from runtime_api.settings import Settings

DEFAULT_STORE = "sqlite:///mecha.db"

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class StartupError(Exception):
    """The server cannot start; the text is one line that says why."""


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A bound socket that does not listen yet, so a taken port is known before any store is touched. `shared`: with
    other processes of this user that say so too; the kernel spreads connections over them."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise StartupError(f"cannot listen on {host}: {error.strerror}") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise StartupError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return listener


def warn_if_open(settings: Settings) -> None:
    if settings.host not in _LOOPBACK and settings.api_token is None:
        print(
            "mecha: warning: reachable from outside without an API token (DAPR_API_TOKEN)", file=sys.stderr, flush=True
        )


def shown_url(url: str | None) -> str:
    """A store's URL without its password. None: the default one."""
    url = DEFAULT_STORE if url is None else url
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":***@")))
