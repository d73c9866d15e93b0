"""``mecha cluster``: the hosts of an application on Ray."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from runtime_api.terminal import DEFAULT_URL, Json, Url, fail, print_json, print_table, remote, show, tell_done

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime_api.remote import Remote

cli = typer.Typer(help="Look at a cluster, and roll it.", no_args_is_help=True)


@cli.command("status")
def cluster_status(url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Hosts, and what each owns."""
    with cluster(url) as server:
        status = server.json("GET", "/v1.0/mecha/cluster")
    if as_json:
        print_json(status)
        return
    columns = ("HOST", "PID", "VERSION", "PARTITIONS", "EPOCHS", "LAG MS", "ACTIVATIONS", "NODE")
    print_table(columns, [_host_row(host) for host in status["hosts"]])
    for name in status["silent"]:
        show(f"{name} does not answer")
    if status["unplaced"]:
        show(status["unplaced"])
    if not status["settled"]:
        show("partitions are on their way" + (f"; last error: {status['error']}" if status["error"] else ""))


@cli.command("roll")
def cluster_roll(as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Replace every host, one at a time, by one that loads the application anew. Returns at once; see `status`."""
    with cluster(url) as server:
        server.request("POST", "/v1.0/mecha/cluster/roll")
    tell_done(as_json)


@contextmanager
def cluster(url: str) -> Iterator[Remote]:
    """A server to talk to about its cluster. One that has none does not know the paths."""
    from runtime_api.remote import RemoteError

    with remote(url) as server:
        try:
            yield server
        except RemoteError as error:
            if error.status != 404:
                raise
            fail(f"{url} is one host without a cluster: it was not started with --placement ray")


def _host_row(host: dict[str, Any]) -> tuple[Any, ...]:
    epochs = [*host["owned"].values()]
    shown = f"{min(epochs)}..{max(epochs)}" if epochs else ""
    kind = len(epochs) or "spare"
    lag = round(host["lag_s"] * 1000, 1)
    return host["name"], host["pid"], host["version"], kind, shown, lag, host["activations"], host["node"][:12]
