"""``mecha workflow``: workflows of a running server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime_api.terminal import (
    DEFAULT_URL,
    EXIT_UNFINISHED,
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
    seconds_of,
    show,
    tell_done,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runtime_api.remote import Remote

cli = typer.Typer(help="Talk to workflows of a running server.", no_args_is_help=True)
_UNFINISHED = frozenset({"RUNNING", "PENDING", "SUSPENDED", "CONTINUED_AS_NEW"})

InstanceId = Annotated[str, typer.Argument(metavar="ID", callback=named)]


@cli.command("start")
def workflow_start(
    name: Annotated[str, typer.Argument(metavar="NAME", callback=named)],
    value: Annotated[str | None, typer.Argument(metavar="INPUT", help="JSON, or a string when it is not.")] = None,
    data: Data = None,
    instance_id: Annotated[
        str | None, typer.Option("--id", callback=named, help="The instance's id; default: a random one.")
    ] = None,
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
        params = {"instanceID": instance_id or "", "start": start}
        where = path("v1.0", "workflows", "dapr", name, "start")
        started = server.json("POST", where, params=params, content=body)
        if wait:
            _wait(server, started["instanceID"], timeout_s, as_json)
    if not wait:
        print_json(started) if as_json else show(started["instanceID"])


@cli.command("get")
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


@cli.command("list")
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
        params = filters(prefix, name, status, created_from, created_to)
        items = pages(server, "/v1.0/mecha/workflows", params, limit)
    if as_json:
        print_json(items)
    else:
        columns = ("instanceID", "workflowName", "runtimeStatus", "createdAt", "lastUpdatedAt")
        print_table(("ID", "WORKFLOW", "STATUS", "CREATED", "UPDATED"), ([item[c] for c in columns] for item in items))


@cli.command("history")
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


@cli.command("wait")
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
        show(json.dumps(found.get("output"), ensure_ascii=False))
    if found["runtimeStatus"] in _UNFINISHED:
        fail(f"workflow {instance_id} is still {found['runtimeStatus']}", EXIT_UNFINISHED)
    if found["runtimeStatus"] != "COMPLETED":
        failure = found.get("failure") or {}
        reason = f": {failure['type']}: {failure['message']}" if failure else ""
        fail(f"workflow {instance_id} is {found['runtimeStatus']}{reason}")


@cli.command("raise-event")
def workflow_raise_event(
    instance_id: InstanceId,
    event: Annotated[str, typer.Argument(metavar="EVENT", callback=named)],
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


@cli.command("pause")
def workflow_pause(instance_id: InstanceId, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Pause an instance: it starts nothing new until it is resumed."""
    _command(instance_id, "pause", as_json, url)


@cli.command("resume")
def workflow_resume(instance_id: InstanceId, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Resume an instance that was paused, or is stalled."""
    _command(instance_id, "resume", as_json, url)


@cli.command("terminate")
def workflow_terminate(instance_id: InstanceId, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """End an instance where it stands."""
    _command(instance_id, "terminate", as_json, url)


@cli.command("purge")
def workflow_purge(
    instance_id: InstanceId,
    force: Annotated[bool, typer.Option("--force", help="Also when it has not ended.")] = False,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Forget an ended instance with its history."""
    _command(instance_id, "purge", as_json, url, force=force)
