"""The ``mecha`` command. Everything heavy is imported by the command that needs it: ``mecha --help`` stays quick.
What the exit codes mean: `runtime_api.terminal`."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # typer reads the annotations of commands
from typing import Annotated

import typer

from runtime_api import actorcli, clustercli, workflowcli
from runtime_api.terminal import EXIT_USAGE, Json, fail, print_json, print_table, show

cli = typer.Typer(
    name="mecha",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cli.add_typer(actorcli.cli, name="actor")
cli.add_typer(clustercli.cli, name="cluster")
cli.add_typer(workflowcli.cli, name="workflow")


def main() -> None:
    """Entry point of the ``mecha`` command."""
    cli()


def _tell_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        show(f"mecha {version('mecha-runtime')}")
        raise typer.Exit


@cli.callback()
def every_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Virtual actors and durable workflows: run an application, and talk to one that runs."""


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
        int | None, typer.Option(help="While so many connections are open, requests get 503. Default: 10000")
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
    from runtime_api.output import OutputError
    from runtime_api.settings import SettingsError, load_settings
    from runtime_api.startup import StartupError

    try:
        chosen = load_settings({k: v for k, v in given.items() if v is not None}, settings)
        if chosen.placement == "ray":
            from runtime_api.cluster import run_cluster

            run_cluster(app, chosen)
        else:
            from runtime_api.server import run_server

            run_server(app, chosen)
    except SettingsError as error:
        fail(error, EXIT_USAGE)
    except (StartupError, OutputError) as error:
        fail(error)
    except KeyboardInterrupt:
        fail("stopped before it was up")


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
