"""What the commands of ``mecha`` share: options, how a command ends, talking to a server, and what it prints.

Exit codes: 0 done; 1 the server answered with an error, or could not start, or a workflow ended without a result, or is
stalled; 2 wrong usage, or a setting with a value it cannot have; 3 no answer from the server; 4 a workflow had not
ended when the wait was over.
"""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from runtime_api.remote import Remote

EXIT_FAILED, EXIT_USAGE, EXIT_UNREACHABLE, EXIT_UNFINISHED = 1, 2, 3, 4
DEFAULT_URL = "http://127.0.0.1:3500"

_ANY_WIDTH = 100_000


def named(name: str | None) -> str | None:
    """A name that goes into a path. An empty one (a variable of a script that is not set) would lead to another path,
    and so would dots."""
    if name in ("", ".", ".."):
        raise typer.BadParameter("it is empty" if not name else f"{name!r} can be no name")
    return name


Url = Annotated[str, typer.Option("--url", envvar="MECHA_URL", help="Where the server is.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="At most so many lines.")]
Data = Annotated[
    str | None, typer.Option("--data", help="The whole body as JSON instead of arguments; `-` reads stdin.")
]
Statuses = Annotated[list[str] | None, typer.Option("--status", help="Only these statuses; may be repeated.")]
Prefix = Annotated[str, typer.Option("--prefix", help="Only ids that start so.")]
Since = Annotated[str, typer.Option("--created-from", help="Only what was created at or after this RFC 3339 instant.")]
Until = Annotated[str, typer.Option("--created-to", help="Only what was created before this RFC 3339 instant.")]


def fail(message: object, code: int = EXIT_FAILED) -> NoReturn:
    """One line on stderr, and out."""
    print(f"mecha: {' '.join(str(message).split())}", file=sys.stderr)
    raise typer.Exit(code)


@contextmanager
def remote(url: str) -> Iterator[Remote]:
    """A server to talk to; what goes wrong ends the command with one line."""
    from runtime_api.remote import BadUrl, Remote, RemoteError, Unreachable, Unsendable

    try:
        with Remote(url) as server:
            yield server
    except BadUrl as error:
        fail(f"--url (MECHA_URL) is {url!r}: write where the server is, like {DEFAULT_URL}; {error}", EXIT_USAGE)
    except Unsendable as error:
        fail(error, EXIT_USAGE)
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


def show(text: str) -> None:
    """Print what was asked for. A command that cannot has failed."""
    from runtime_api.output import OutputError, write_line

    try:
        write_line(text)
    except OutputError as error:
        fail(error)


def print_json(value: Any) -> None:
    show(json.dumps(value, ensure_ascii=False, indent=2))


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
    is_seen = sys.stdout is not None and sys.stdout.isatty()
    shown = StringIO()
    Console(file=shown, force_terminal=is_seen, width=None if is_seen else _ANY_WIDTH).print(table)
    show(shown.getvalue().removesuffix("\n"))


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


def filters(prefix: str, name: str, status: list[str] | None, created_from: str, created_to: str) -> dict[str, Any]:
    return {
        "prefix": prefix,
        "name": name,
        "status": status or [],
        "createdFrom": created_from,
        "createdTo": created_to,
    }
