"""The ``mecha`` command. Everything heavy is imported by the command that needs it: ``mecha --help`` stays quick.

Exit codes: 0 done; 1 the server answered with an error, or could not start; 2 wrong usage; 3 no answer from the server;
4 a workflow had not ended when the wait was over.
"""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path  # noqa: TC003  # typer reads the annotations of commands
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from runtime_api.remote import Remote

EXIT_FAILED, EXIT_USAGE, EXIT_UNREACHABLE, EXIT_UNFINISHED = 1, 2, 3, 4
_UNFINISHED = frozenset({"RUNNING", "PENDING", "SUSPENDED", "CONTINUED_AS_NEW"})

cli = typer.Typer(
    name="mecha",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
actor_cli = typer.Typer(help="Talk to actors of a running server.", no_args_is_help=True)
workflow_cli = typer.Typer(help="Talk to workflows of a running server.", no_args_is_help=True)
cluster_cli = typer.Typer(help="Look at a cluster, and roll it.", no_args_is_help=True)
cli.add_typer(actor_cli, name="actor")
cli.add_typer(cluster_cli, name="cluster")
cli.add_typer(workflow_cli, name="workflow")


def _named(name: str | None) -> str | None:
    """A name that goes into a path. An empty one (a variable of a script that is not set) would lead to another path,
    and so would dots."""
    if name in ("", ".", ".."):
        raise typer.BadParameter("it is empty" if not name else f"{name!r} can be no name")
    return name


Url = Annotated[str, typer.Option("--url", envvar="MECHA_URL", help="Where the server is.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="At most so many lines.")]
ActorType = Annotated[str, typer.Argument(metavar="TYPE", callback=_named)]
ActorId = Annotated[str, typer.Argument(metavar="ID", callback=_named)]
InstanceId = Annotated[str, typer.Argument(metavar="ID", callback=_named)]
Method = Annotated[str, typer.Argument(metavar="METHOD", callback=_named)]
Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="ARG",
        help="Arguments in order; each is JSON, or a string when it is not. Those that begin with - go behind --.",
    ),
]
Key = Annotated[
    str | None, typer.Option("--idempotency-key", help="It takes effect once, however often it is repeated.")
]
Data = Annotated[
    str | None, typer.Option("--data", help="The whole body as JSON instead of arguments; `-` reads stdin.")
]
Statuses = Annotated[list[str] | None, typer.Option("--status", help="Only these statuses; may be repeated.")]
Prefix = Annotated[str, typer.Option("--prefix", help="Only ids that start so.")]
Since = Annotated[str, typer.Option("--created-from", help="Only what was created at or after this RFC 3339 instant.")]
Until = Annotated[str, typer.Option("--created-to", help="Only what was created before this RFC 3339 instant.")]

_ANY_WIDTH = 100_000

DEFAULT_URL = "http://127.0.0.1:3500"


def main() -> None:
    """Entry point of the ``mecha`` command."""
    cli()


def _tell_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"mecha {version('mecha-runtime')}")
        raise typer.Exit


@cli.callback()
def every_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Virtual actors and durable workflows: run an application, and talk to one that runs."""


# -- leaves ----------------------------------------------------------------------------------------------------------


def fail(message: object, code: int = EXIT_FAILED) -> NoReturn:
    """One line on stderr, and out."""
    print(f"mecha: {' '.join(str(message).split())}", file=sys.stderr)
    raise typer.Exit(code)


@contextmanager
def remote(url: str) -> Iterator[Remote]:
    """A server to talk to; what goes wrong ends the command with one line."""
    from runtime_api.remote import Remote, RemoteError, Unreachable

    try:
        with Remote(url) as server:
            yield server
    except RemoteError as error:
        fail(error)
    except Unreachable as error:
        fail(error, EXIT_UNREACHABLE)


def json_of(text: str) -> str:
    """An argument of the command line: itself when it is JSON, else the JSON of the text."""
    try:
        json.loads(text, parse_constant=_refuse)
    except ValueError:
        return json.dumps(text)
    return text


def _refuse(constant: str) -> NoReturn:
    """NaN and infinities, which only Python takes for JSON."""
    raise ValueError(constant)


def seconds_of(text: str) -> float:
    from runtime_api.wire import duration_s

    try:
        return duration_s(text)
    except ValueError as error:
        fail(error, EXIT_USAGE)


def body_of(arguments: Sequence[str] | None, data: str | None) -> bytes:
    """A request body out of arguments (none: empty; one: the value itself; several: an array) or out of `data`."""
    if data is not None:
        if arguments:
            fail("give arguments or --data, not both", EXIT_USAGE)
        return sys.stdin.buffer.read() if data == "-" else data.encode()
    values = [json_of(text) for text in arguments or ()]
    return (f"[{','.join(values)}]" if len(values) > 1 else "".join(values)).encode()


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


def tell_done(as_json: bool) -> None:
    """The end of a command that has nothing to show: silence for people, an empty object for programs."""
    if as_json:
        print_json({})


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table for people. Values are shown as they are: nothing in them is markup. The first column, which says what a
    line is about, stays whole, to be copied; so does every line that goes into a file or a pipe."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*(Text(cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)) for cell in row))
    Console(width=None if sys.stdout.isatty() else _ANY_WIDTH).print(table)


def pages(server: Remote, where: str, params: dict[str, Any], limit: int) -> list[dict[str, Any]]:
    """Items of a listing, page by page until there are `limit` of them or no more."""
    items: list[dict[str, Any]] = []
    while len(items) < limit:
        answer = server.json("GET", where, params={**params, "limit": min(1000, limit - len(items))})
        items += answer["items"]
        if "next" not in answer:
            break
        params = {**params, "after": answer["next"]}
    return items


# -- mecha run -------------------------------------------------------------------------------------------------------


@cli.command()
def run(
    app: Annotated[
        str, typer.Argument(metavar="APP", help="app.py, app.py:name, package.module or package.module:name")
    ],
    store: Annotated[
        str | None,
        typer.Option(
            help="Store URL: sqlite:///file.db, memory://, redis://host:6379 … "
            "Without it: the component with actorStateStore, else sqlite:///mecha.db."
        ),
    ] = None,
    resources_path: Annotated[
        list[Path] | None, typer.Option(help="File or directory of component YAML; may be repeated.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0: any free one. Default: 3500")] = None,
    app_id: Annotated[str | None, typer.Option(help="Without it: the name of the application's file.")] = None,
    namespace: Annotated[
        str | None,
        typer.Option(
            help="Part of keyPrefix: namespace, of {namespace} in components, and of the application's name on Ray; it "
            "divides no store. Default: default"
        ),
    ] = None,
    placement: Annotated[
        str | None, typer.Option(help="local: one process; ray: several hosts on Ray. Default: local")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Ray cluster to join; without it, one is started here.")
    ] = None,
    hosts: Annotated[int | None, typer.Option(help="On Ray: hosts that serve. Default: 2")] = None,
    hosts_per_node: Annotated[
        int | None, typer.Option(help="On Ray: so many hosts on each node instead. Default: 0")
    ] = None,
    spares: Annotated[int | None, typer.Option(help="On Ray: further hosts, ready to take over. Default: 1")] = None,
    lease: Annotated[
        str | None, typer.Option(help="How long a vanished host is waited for; on Ray 3s. Default: 10s")
    ] = None,
    drain: Annotated[str | None, typer.Option(help="How long a graceful stop may take. Default: 30s")] = None,
    max_body_size: Annotated[str | None, typer.Option(help="Longest request body. Default: 4Mi")] = None,
    large_value_bytes: Annotated[
        str | None, typer.Option(help="Larger values of workflows stand beside the history. Default: 256Ki")
    ] = None,
    max_connections: Annotated[
        int | None, typer.Option(help="Connections at once; more are answered 503. Default: 10000")
    ] = None,
    keep_alive: Annotated[str | None, typer.Option(help="How long an idle connection is kept. Default: 75s")] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning, error or critical. Default: warning")
    ] = None,
    access_log: Annotated[
        bool | None, typer.Option("--access-log/--no-access-log", help="Log each request. Default: false")
    ] = None,
    settings: Annotated[
        Path | None, typer.Option("--settings", envvar="MECHA_SETTINGS", help="YAML file of settings.")
    ] = None,
) -> None:
    """Serve an application: the decorated classes and functions in a module, over HTTP.

    Every option is also a variable (MECHA_STORE, MECHA_PORT, …) and a key of the settings file; the command line wins.
    """
    given = {
        "store": store,
        "resources_path": tuple(resources_path) if resources_path else None,
        "host": host,
        "port": port,
        "app_id": app_id,
        "namespace": namespace,
        "placement": placement,
        "ray_address": ray_address,
        "hosts": hosts,
        "hosts_per_node": hosts_per_node,
        "spares": spares,
        "lease": lease,
        "drain": drain,
        "max_body_size": max_body_size,
        "large_value_bytes": large_value_bytes,
        "max_connections": max_connections,
        "keep_alive": keep_alive,
        "log_level": log_level,
        "access_log": access_log,
    }
    from runtime_api.server import StartupError, run_server
    from runtime_api.settings import SettingsError, load_settings

    try:
        chosen = load_settings({k: v for k, v in given.items() if v is not None}, settings)
        if chosen.placement == "ray":
            from runtime_api.cluster import run_cluster

            run_cluster(app, chosen)
        else:
            run_server(app, chosen)
    except SettingsError as error:
        fail(error, EXIT_USAGE)
    except StartupError as error:
        fail(error)
    except KeyboardInterrupt:
        fail("stopped before it was up")


# -- mecha cluster ---------------------------------------------------------------------------------------------------


@cluster_cli.command("status")
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
        print(f"{name} does not answer")
    if status["unplaced"]:
        print(status["unplaced"])
    if not status["settled"]:
        print("partitions are on their way" + (f"; last error: {status['error']}" if status["error"] else ""))


@cluster_cli.command("roll")
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


# -- mecha actor -----------------------------------------------------------------------------------------------------


@actor_cli.command("call")
def actor_call(
    actor_type: ActorType,
    actor_id: ActorId,
    method: Method,
    arguments: Arguments = None,
    data: Data = None,
    idempotency_key: Key = None,
    timeout: Annotated[str | None, typer.Option(help="Longest wait for the answer, e.g. 1.5s.")] = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Call a method and print its result, as JSON on one line, or laid out with --json."""
    headers = _keyed(idempotency_key)
    if timeout is not None:
        headers["mecha-timeout"] = timeout
    body = body_of(arguments, data)
    from runtime_api.remote import path

    with remote(url) as server:
        where = path("v1.0", "actors", actor_type, actor_id, "method", method)
        if as_json:
            print_json(server.json("POST", where, content=body, headers=headers))
        else:
            print(server.request("POST", where, content=body, headers=headers).text)


@actor_cli.command("send")
def actor_send(
    actor_type: ActorType,
    actor_id: ActorId,
    method: Method,
    arguments: Arguments = None,
    data: Data = None,
    idempotency_key: Key = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Send a durable one-way message; it takes effect exactly once, later."""
    body = body_of(arguments, data)
    from runtime_api.remote import path

    with remote(url) as server:
        where = path("v1.0", "mecha", "actors", actor_type, actor_id, "send", method)
        server.request("POST", where, content=body, headers=_keyed(idempotency_key))
    tell_done(as_json)


def _keyed(idempotency_key: str | None) -> dict[str, str]:
    """The headers of a body that may have a key."""
    headers = {"content-type": "application/json"}
    return headers if idempotency_key is None else {**headers, "idempotency-key": idempotency_key}


@actor_cli.command("list")
def actor_list(
    actor_type: Annotated[
        str | None, typer.Argument(metavar="TYPE", help="None: list the types.", callback=_named)
    ] = None,
    prefix: Prefix = "",
    name: Annotated[str, typer.Option("--name", help="Only with this index name.")] = "",
    status: Statuses = None,
    created_from: Since = "",
    created_to: Until = "",
    limit: Limit = 100,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List actor types, or the actors of a type."""
    from runtime_api.remote import path

    params = _filters(prefix, name, status, created_from, created_to)
    if actor_type is None and any(params.values()):
        fail("actors are listed by type: give a TYPE before what is to be left out", EXIT_USAGE)
    with remote(url) as server:
        if actor_type is None:
            types = server.json("GET", "/v1.0/mecha/actors")["types"]
            if as_json:
                print_json(types)
            else:
                print_table(
                    ("TYPE", "ACTIVE", "METHODS"), ((t["type"], t["active"], ", ".join(t["methods"])) for t in types)
                )
            return
        items = pages(server, path("v1.0", "mecha", "actors", actor_type), params, limit)
    if as_json:
        print_json(items)
    else:
        columns = ("id", "name", "status", "createdAt", "updatedAt")
        print_table(("ID", "NAME", "STATUS", "CREATED", "UPDATED"), ([item[c] for c in columns] for item in items))


def _filters(prefix: str, name: str, status: list[str] | None, created_from: str, created_to: str) -> dict[str, Any]:
    return {
        "prefix": prefix,
        "name": name,
        "status": status or [],
        "createdFrom": created_from,
        "createdTo": created_to,
    }


@actor_cli.command("get")
def actor_get(
    actor_type: ActorType,
    actor_id: ActorId,
    version: Annotated[int | None, typer.Option(min=0, help="State as it was at this version.")] = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Show the durable state of an actor, now or as of a version."""
    from runtime_api.remote import path

    with remote(url) as server:
        found = server.json("GET", path("v1.0", "mecha", "actors", actor_type, actor_id), params={"version": version})
    if as_json:
        print_json(found)
    else:
        print(f"{found['type']}/{found['id']} at version {found['version']}")
        print_table(("FIELD", "VALUE"), sorted(found["state"].items()))


@actor_cli.command("history")
def actor_history(
    actor_type: ActorType,
    actor_id: ActorId,
    after: Annotated[int, typer.Option(min=0, help="Only events after this version.")] = 0,
    limit: Limit = 100,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Show the recorded events of an actor."""
    from runtime_api.remote import path

    with remote(url) as server:
        items = pages(server, path("v1.0", "mecha", "actors", actor_type, actor_id, "history"), {"after": after}, limit)
    _print_events(items, as_json)


def _print_events(items: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(items)
    else:
        rows = (
            [str(item["version"]), item["time"], item["name"], json.dumps(item["data"], ensure_ascii=False)]
            for item in items
        )
        print_table(("VERSION", "TIME", "EVENT", "DATA"), rows)


@actor_cli.command("delete")
def actor_delete(actor_type: ActorType, actor_id: ActorId, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Delete an actor with everything it owns: state, history, reminders."""
    from runtime_api.remote import path

    with remote(url) as server:
        server.request("DELETE", path("v1.0", "mecha", "actors", actor_type, actor_id))
    tell_done(as_json)


# -- mecha workflow --------------------------------------------------------------------------------------------------


@workflow_cli.command("start")
def workflow_start(
    name: Annotated[str, typer.Argument(metavar="NAME", callback=_named)],
    value: Annotated[str | None, typer.Argument(metavar="INPUT", help="JSON, or a string when it is not.")] = None,
    data: Data = None,
    instance_id: Annotated[str, typer.Option("--id", help="The instance's id; default: a random one.")] = "",
    start: Annotated[str, typer.Option("--start", help="When: an RFC 3339 instant, or a delay such as 10m.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end, and print the result.")] = False,
    timeout: Annotated[str, typer.Option(help="How long to wait, with --wait; then exit code 4.")] = "60s",
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Start a workflow and print its instance id."""
    timeout_s = seconds_of(timeout)
    body = body_of([value] if value is not None else [], data)
    from runtime_api.remote import path

    with remote(url) as server:
        params = {"instanceID": instance_id, "start": start}
        where = path("v1.0", "workflows", "dapr", name, "start")
        started = server.json("POST", where, params=params, content=body)
        if wait:
            _wait(server, started["instanceID"], timeout_s, as_json)
    if not wait:
        print_json(started) if as_json else print(started["instanceID"])


@workflow_cli.command("get")
def workflow_get(instance_id: InstanceId, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Show the status of an instance."""
    from runtime_api.remote import path

    with remote(url) as server:
        found = server.json("GET", path("v1.0", "mecha", "workflows", instance_id))
    if as_json:
        print_json(found)
    else:
        failure = {f"failure.{name}": text or None for name, text in found.pop("failure", {}).items()}
        lines = ((name, value) for name, value in {**found, **failure}.items() if value is not None)
        print_table(("FIELD", "VALUE"), lines)


@workflow_cli.command("list")
def workflow_list(
    name: Annotated[str, typer.Option("--name", help="Only this workflow.")] = "",
    status: Statuses = None,
    prefix: Prefix = "",
    created_from: Since = "",
    created_to: Until = "",
    limit: Limit = 100,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List workflow instances."""
    with remote(url) as server:
        params = _filters(prefix, name, status, created_from, created_to)
        items = pages(server, "/v1.0/mecha/workflows", params, limit)
    if as_json:
        print_json(items)
    else:
        columns = ("instanceID", "workflowName", "runtimeStatus", "createdAt", "lastUpdatedAt")
        print_table(("ID", "WORKFLOW", "STATUS", "CREATED", "UPDATED"), ([item[c] for c in columns] for item in items))


@workflow_cli.command("history")
def workflow_history(
    instance_id: InstanceId,
    after: Annotated[int, typer.Option(min=0, help="Only events after this version.")] = 0,
    limit: Limit = 100,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Show the recorded history of an instance."""
    from runtime_api.remote import path

    with remote(url) as server:
        where = path("v1.0", "mecha", "workflows", instance_id, "history")
        items = pages(server, where, {"after": after}, limit)
    if as_json:
        print_json(items)
    else:
        rows = ((str(i["version"]), i["time"], _lines(i["inputs"]), _lines(i["commands"])) for i in items)
        print_table(("VERSION", "TIME", "INPUTS", "COMMANDS"), rows)


def _lines(values: Iterable[Any]) -> str:
    return "\n".join(json.dumps(value, ensure_ascii=False) for value in values)


@workflow_cli.command("wait")
def workflow_wait(
    instance_id: InstanceId,
    timeout: Annotated[str, typer.Option(help="How long to wait, e.g. 60s.")] = "60s",
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Wait for the end of an instance and print its result. Exit code 1: it failed; 4: it had not ended in time."""
    timeout_s = seconds_of(timeout)
    with remote(url) as server:
        _wait(server, instance_id, timeout_s, as_json)


def _wait(server: Remote, instance_id: str, timeout_s: float, as_json: bool) -> None:
    """Long polls, one after the other, until the instance ends or the time is over."""
    import time

    from runtime_api.remote import path

    end = time.monotonic() + timeout_s
    where = path("v1.0", "mecha", "workflows", instance_id, "result")
    while True:
        left_s = end - time.monotonic()
        found = server.json("GET", where, params={"timeout": f"{min(30.0, max(0.001, left_s)):.3f}"})
        if found["runtimeStatus"] not in _UNFINISHED or left_s <= 0:
            break
    if as_json:
        print_json(found)
    elif found["runtimeStatus"] == "COMPLETED":
        print(json.dumps(found.get("output"), ensure_ascii=False))
    if found["runtimeStatus"] in _UNFINISHED:
        fail(f"workflow {instance_id} is still {found['runtimeStatus']}", EXIT_UNFINISHED)
    if found["runtimeStatus"] != "COMPLETED":
        failure = found.get("failure") or {}
        reason = f": {failure['type']}: {failure['message']}" if failure else ""
        fail(f"workflow {instance_id} is {found['runtimeStatus']}{reason}")


@workflow_cli.command("raise-event")
def workflow_raise_event(
    instance_id: InstanceId,
    event: Annotated[str, typer.Argument(metavar="EVENT", callback=_named)],
    value: Annotated[str | None, typer.Argument(metavar="VALUE", help="JSON, or a string when it is not.")] = None,
    data: Data = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Send an external event to an instance."""
    body = body_of([value] if value is not None else [], data)
    from runtime_api.remote import path

    with remote(url) as server:
        server.request("POST", path("v1.0", "workflows", "dapr", instance_id, "raiseEvent", event), content=body)
    tell_done(as_json)


def _command(instance_id: str, verb: str, as_json: bool, url: str, *, force: bool = False) -> None:
    from runtime_api.remote import path

    with remote(url) as server:
        params = {"force": "true"} if force else {}
        server.request("POST", path("v1.0", "workflows", "dapr", instance_id, verb), params=params)
    tell_done(as_json)


@workflow_cli.command("pause")
def workflow_pause(instance_id: InstanceId, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Pause an instance: it starts nothing new until it is resumed."""
    _command(instance_id, "pause", as_json, url)


@workflow_cli.command("resume")
def workflow_resume(instance_id: InstanceId, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Resume an instance that was paused, or is stalled."""
    _command(instance_id, "resume", as_json, url)


@workflow_cli.command("terminate")
def workflow_terminate(instance_id: InstanceId, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """End an instance where it stands."""
    _command(instance_id, "terminate", as_json, url)


@workflow_cli.command("purge")
def workflow_purge(
    instance_id: InstanceId,
    force: Annotated[bool, typer.Option("--force", help="Also when it has not ended.")] = False,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Forget an ended instance with its history."""
    _command(instance_id, "purge", as_json, url, force=force)


# -- mecha bench -----------------------------------------------------------------------------------------------------


@cli.command()
def bench(
    store: Annotated[str, typer.Option(help="Store URL. Default: a new SQLite file in a temporary directory.")] = "",
    seconds: Annotated[float, typer.Option(min=0.2, help="How long each line is measured.")] = 3.0,
    actors: Annotated[int, typer.Option(min=1, help="How many actors the calls go to.")] = 1000,
    in_flight: Annotated[int, typer.Option(min=1, help="Calls under way at once, in process.")] = 256,
    connections: Annotated[int, typer.Option(min=1, help="HTTP connections.")] = 32,
    as_json: Json = False,
) -> None:
    """Measure durable actor calls on this machine, in process and over HTTP."""
    from runtime_api.bench import run_bench
    from statestores.errors import StoreError

    try:
        lines = run_bench(store, seconds, actors, in_flight, connections)
    except StoreError as error:
        fail(error)
    if as_json:
        print_json([line._asdict() for line in lines])
    else:
        rows = ((line.what, f"{line.calls_per_s:,.0f}", f"{line.p50_ms:.2f}", f"{line.p99_ms:.2f}") for line in lines)
        print_table(("DURABLE CALLS", "PER SECOND", "P50 ms", "P99 ms"), rows)


if __name__ == "__main__":
    main()
