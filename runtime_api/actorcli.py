"""``mecha actor``: actors of a running server."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from runtime_api.terminal import (
    DEFAULT_URL,
    EXIT_USAGE,
    Data,
    Json,
    Limit,
    Prefix,
    Since,
    Statuses,
    Until,
    Url,
    body_of,
    fail,
    filters,
    named,
    pages,
    print_json,
    print_table,
    remote,
    show,
    tell_done,
)

cli = typer.Typer(help="Talk to actors of a running server.", no_args_is_help=True)

ActorType = Annotated[str, typer.Argument(metavar="TYPE", callback=named)]
ActorId = Annotated[str, typer.Argument(metavar="ID", callback=named)]
Method = Annotated[str, typer.Argument(metavar="METHOD", callback=named)]
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


@cli.command("call")
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
            show(server.request("POST", where, content=body, headers=headers).text)


@cli.command("send")
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


@cli.command("list")
def actor_list(
    actor_type: Annotated[
        str | None, typer.Argument(metavar="TYPE", help="None: list the types.", callback=named)
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

    params = filters(prefix, name, status, created_from, created_to)
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


@cli.command("get")
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
        show(f"{found['type']}/{found['id']} at version {found['version']}")
        print_table(("FIELD", "VALUE"), sorted(found["state"].items()))


@cli.command("history")
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


@cli.command("delete")
def actor_delete(actor_type: ActorType, actor_id: ActorId, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Delete an actor with everything it owns: state, history, reminders."""
    from runtime_api.remote import path

    with remote(url) as server:
        server.request("DELETE", path("v1.0", "mecha", "actors", actor_type, actor_id))
    tell_done(as_json)
