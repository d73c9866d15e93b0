"""The `mecha` command against a running server."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints
from uuid import uuid4

import httpx
import pytest
from typer.testing import CliRunner

from runtime_api import bench
from runtime_api.cli import cli, run
from runtime_api.settings import Settings, load_settings
from runtime_api.terminal import body_of
from tests.runtime_api.conftest import ROOT, clean_environment, mecha_command
from tests.servers import PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable

    from typer.testing import Result

    from tests.runtime_api.conftest import Sample

    Mecha = Callable[..., str]


_COLUMNS = "200"


def invoke(url: str, *arguments: str, stdin: str = "") -> Result:
    """A command in this process: the same code, without the second that an interpreter takes to start."""
    return CliRunner().invoke(cli, arguments, input=stdin, env={"MECHA_URL": url, "COLUMNS": _COLUMNS})


@pytest.fixture
def done(sample: Sample) -> Mecha:
    """Runs a command against the server, expects success, and gives what it printed."""

    def run(*arguments: str, stdin: str = "") -> str:
        ended = invoke(sample.url, *arguments, stdin=stdin)
        assert (ended.exit_code, ended.stderr) == (0, "")
        return ended.stdout

    return run


@pytest.fixture
def failed(sample: Sample) -> Callable[..., tuple[int, str]]:
    """Runs a command against the server, expects failure, and gives the exit code and the one line it said."""

    def run(*arguments: str) -> tuple[int, str]:
        ended = invoke(sample.url, *arguments)
        assert ended.exit_code != 0
        assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
        return ended.exit_code, ended.stderr.strip()

    return run


def test_help() -> None:
    """Every command is explained."""
    shown = invoke("", "--help").stdout
    assert all(command in shown for command in ("run", "actor", "workflow", "bench"))
    for group, commands in {
        "actor": ("call", "send", "list", "get", "history", "delete"),
        "workflow": ("start", "get", "list", "wait", "raise-event", "pause", "resume", "terminate", "purge", "history"),
    }.items():
        shown = invoke("", group, "--help").stdout
        assert all(command in shown for command in commands)


@pytest.mark.parametrize("name", sorted(Settings.model_fields.keys() - {"api_token"}))
def test_help_of_run_says_what_is_so_without_an_option(name: str) -> None:
    """docs/cli.md: "`mecha COMMAND --help` explains each"; the defaults it names are those of the settings."""
    _, option = get_args(get_type_hints(run, include_extras=True)[name])
    default = Settings.model_fields[name].default
    said = re.search(r"Default: (\S+)$", option.help)
    assert said is not None or default in (None, "", ()), option.help
    if said is not None:
        assert getattr(load_settings({"placement": "ray", name: said[1]}), name) == default


def test_version() -> None:
    """The version is the package's."""
    assert invoke("", "--version").stdout == f"mecha {version('mecha-runtime')}\n"


def test_tables_in_a_pipe(done: Mecha, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line stays a line, however narrow the terminal is from which it is piped on."""
    name = uuid4().hex
    done("workflow", "start", "doubling", "1", "--id", name)
    monkeypatch.setitem(globals(), "_COLUMNS", "20")
    assert done("workflow", "list", "--prefix", name).splitlines()[1].startswith(f"{name}  doubling ")


def test_actor_commands(done: Mecha) -> None:
    """Call, send, get, history, list, delete: for people as tables, for programs as JSON."""
    name = uuid4().hex
    assert done("actor", "call", "Account", name, "deposit", "5") == "5\n"
    assert done("actor", "call", "Account", name, "rename", "alice", "2") == '"alice:7"\n'
    assert done("actor", "call", "Account", name, "rename", "--data", "-", stdin='{"owner": "bob"}') == '"bob:7"\n'
    for _ in range(2):
        assert done("actor", "call", "Account", name, "deposit", "1", "--idempotency-key", "k") == "8\n"
    got = json.loads(done("actor", "get", "Account", name, "--json"))
    assert got["state"]["balance"] == 8
    assert json.loads(done("actor", "get", "Account", name, "--version", "1", "--json"))["state"]["balance"] == 5
    table = done("actor", "get", "Account", name)
    assert "balance" in table
    assert "bob" in table
    history = json.loads(done("actor", "history", "Account", name, "--json"))
    assert [event["version"] for event in history] == list(range(1, got["version"] + 1))
    assert "VERSION" in done("actor", "history", "Account", name)
    assert [line["id"] for line in json.loads(done("actor", "list", "Account", "--prefix", name, "--json"))] == [name]
    assert name in done("actor", "list", "Account", "--prefix", name)
    assert "Ledger" in done("actor", "list")
    done("actor", "send", "Account", name, "deposit", "1")
    done("actor", "delete", "Account", name)


def test_listing_goes_over_pages(done: Mecha, sample: Sample) -> None:
    """The limit counts lines, not pages."""
    mark = uuid4().hex[:8]
    for n in range(3):
        done("actor", "call", "Ledger", f"{mark}{n}", "post", "1")
    assert len(json.loads(done("actor", "list", "Ledger", "--prefix", mark, "--limit", "2", "--json"))) == 2


def test_workflow_commands(done: Mecha) -> None:
    """Start, get, list, events, pause, resume, wait, history, terminate, purge."""
    name = uuid4().hex
    assert done("workflow", "start", "approval", '{"n": 1}', "--id", name) == f"{name}\n"
    assert "waiting" in done("workflow", "get", name)
    done("workflow", "pause", name)
    assert json.loads(done("workflow", "get", name, "--json"))["runtimeStatus"] == "SUSPENDED"
    done("workflow", "resume", name)
    done("workflow", "raise-event", name, "approve", "yes")
    assert json.loads(done("workflow", "wait", name)) == {"asked": {"n": 1}, "answer": "yes"}
    assert json.loads(done("workflow", "list", "--prefix", name, "--json"))[0]["runtimeStatus"] == "COMPLETED"
    assert name in done("workflow", "list", "--prefix", name)
    assert json.loads(done("workflow", "history", name, "--json"))[0]["version"] == 1
    assert "started" in done("workflow", "history", name)
    done("workflow", "purge", name)
    assert done("workflow", "start", "doubling", "3", "--wait") == "12\n"
    done("workflow", "start", "approval", "{}", "--id", f"{name}-2")
    done("workflow", "terminate", f"{name}-2")
    done("workflow", "start", "approval", "{}", "--id", f"{name}-3")
    done("workflow", "purge", f"{name}-3", "--force")
    assert json.loads(done("workflow", "list", "--prefix", f"{name}-3", "--json")) == []


def test_a_stalled_instance_is_shown_as_one(done: Mecha, failed: Callable[..., tuple[int, str]]) -> None:
    """What a person has to see to is named: the status, and why. Dapr's protocol has no word for it."""
    name = uuid4().hex
    done("workflow", "start", "clockwatching", "--id", name)
    assert "STALLED: WorkflowGuardError" in failed("workflow", "wait", name)[1]
    lines = dict(line.split(maxsplit=1) for line in done("workflow", "get", name).splitlines())
    assert lines["runtimeStatus"].strip() == "STALLED"
    assert "time.time" in lines["failure.message"]
    shown = json.loads(done("workflow", "get", name, "--json"))
    assert (shown["runtimeStatus"], shown["failure"]["type"]) == ("STALLED", "WorkflowGuardError")


def test_every_command_has_an_answer_for_programs(done: Mecha) -> None:
    """Whatever a command does, with --json it prints JSON: a result, or an empty object when there is none."""
    name = uuid4().hex
    assert json.loads(done("actor", "call", "Account", name, "deposit", "5", "--json")) == 5
    done("workflow", "start", "approval", "{}", "--id", name, "--json")
    for command in (
        ("actor", "send", "Account", name, "deposit", "5"),
        ("actor", "delete", "Account", name),
        ("workflow", "pause", name),
        ("workflow", "resume", name),
        ("workflow", "raise-event", f"{name}", "ignored"),
        ("workflow", "terminate", name),
        ("workflow", "purge", name),
    ):
        assert json.loads(done(*command, "--json")) == {}, command


@pytest.mark.parametrize("name", ["", ".", ".."])
@pytest.mark.parametrize(
    "arguments",
    [
        ("actor", "get", "Account", "@"),
        ("actor", "get", "@", "a"),
        ("actor", "list", "@"),
        ("actor", "history", "Account", "@"),
        ("actor", "delete", "Account", "@"),
        ("actor", "call", "Account", "@", "deposit", "1"),
        ("actor", "send", "Account", "a", "@", "1"),
        ("workflow", "get", "@"),
        ("workflow", "wait", "@"),
        ("workflow", "purge", "@", "--force"),
        ("workflow", "start", "@"),
        ("workflow", "start", "greet", "--id", "@"),
        ("workflow", "raise-event", "a", "@"),
    ],
    ids=" ".join,
)
def test_names_that_lead_elsewhere(arguments: tuple[str, ...], name: str) -> None:
    """A variable that is not set, or dots, would make the path of another request: they are wrong usage, told before
    anything is asked for."""
    ended = invoke("http://127.0.0.1:1", *(name if argument == "@" else argument for argument in arguments))
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ("it is empty" if not name else f"'{name}' can be no name") in ended.stderr


def test_filters_without_a_type() -> None:
    """Types are not filtered: what leaves out actors needs to know which."""
    ended = invoke("http://127.0.0.1:1", "actor", "list", "--prefix", "a")
    assert (ended.exit_code, "give a TYPE" in ended.stderr) == (2, True)


def test_a_message_with_a_key_is_sent_once(done: Mecha) -> None:
    """docs/cli.md: `send … --idempotency-key`."""
    name = uuid4().hex
    for _ in range(2):
        done("actor", "send", "Account", name, "deposit", "5", "--idempotency-key", "k")
    done("actor", "send", "Account", name, "deposit", "1", "--idempotency-key", "other")
    while (state := _state(done, name)) is None or state["balance"] % 5 != 1:
        pass
    assert state["balance"] == 6


def _state(done: Mecha, name: str) -> dict[str, Any] | None:
    """What is recorded of an account, if anything is."""
    found = json.loads(done("actor", "list", "Account", "--prefix", name, "--json"))
    return dict(json.loads(done("actor", "get", "Account", name, "--json"))["state"]) if found else None


def test_no_cluster(serve: Callable[..., Any]) -> None:
    """One host is not asked for its cluster by a path that nobody knows: the command says that there is none."""
    with serve() as server:
        for command in ("status", "roll"):
            ended = invoke(server.url, "cluster", command)
            assert (ended.exit_code, ended.stdout) == (1, "")
            assert "not started with --placement ray" in ended.stderr


def test_errors_are_one_line_with_the_code(failed: Callable[..., tuple[int, str]]) -> None:
    """What the server refuses is exit code 1 and its code; wrong usage is 2; unfinished is 4."""
    name = uuid4().hex
    code, line = failed("actor", "call", "Account", name, "fail", "no funds")
    assert (code, line.startswith("mecha: ERR_ACTOR_INVOKE_METHOD (500): ")) == (1, True)
    assert "ValueError: no funds" in line
    assert failed("actor", "get", "Account", name)[0] == 1
    assert "ERR_INSTANCE_ID_NOT_FOUND" in failed("workflow", "get", name)[1]
    assert failed("actor", "call", "Account", name, "deposit", "1", "--data", "1")[0] == 2
    code, line = failed("workflow", "start", "breaking", "gone", "--wait")
    assert code == 1
    assert "FAILED: LookupError: gone" in line
    assert failed("workflow", "start", "approval", "{}", "--id", name, "--wait", "--timeout", "10ms")[0] == 4
    assert failed("workflow", "wait", name, "--timeout", "never")[0] == 2
    assert failed("workflow", "start", "approval", "{}", "--id", f"{name}-2", "--wait", "--timeout", "never")[0] == 2
    assert "ERR_INSTANCE_ID_NOT_FOUND" in failed("workflow", "get", f"{name}-2")[1]


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        ([], ""),
        (["alice"], '"alice"'),
        (["1.00"], "1.00"),
        (['"a"', "b", "[1]"], '["a","b",[1]]'),
        (["NaN", "-Infinity", "[NaN]"], '["NaN","-Infinity","[NaN]"]'),
    ],
)
def test_arguments_are_json_or_texts(arguments: list[str], body: str) -> None:
    """JSON goes as it was written; what only Python takes for JSON is a text."""
    assert body_of(arguments, None) == body.encode()


class NoJson(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>welcome</html>")

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


def test_another_server() -> None:
    """What answers, but not with JSON, is said to be no server of ours."""
    with ThreadingHTTPServer(("127.0.0.1", 0), NoJson) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        for command in (["actor", "list"], ["actor", "call", "A", "1", "do", "--json"]):
            ended = invoke(f"http://127.0.0.1:{server.server_port}", *command)
            assert (ended.exit_code, "is no JSON" in ended.stderr) == (1, True)
        server.shutdown()
        serving.join()


def test_no_server(mecha: Callable[..., Any]) -> None:
    """Nobody there is exit code 3, and says so."""
    ended = mecha("actor", "list", "--url", "http://127.0.0.1:1")
    assert ended.returncode == 3
    assert "cannot reach http://127.0.0.1:1" in ended.stderr


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "ftp://127.0.0.1",
        "http://",
        "",
        "localhost:3500",
        "http://localhost:abc",
        "http://localhost:99999",
        "http://xn--",
    ],
)
def test_what_is_no_url_is_wrong_usage(url: str) -> None:
    """Nobody was asked: exit code 2, and one line that says what to write, and where."""
    ended = CliRunner().invoke(cli, ["actor", "list", "--url", url])
    assert (ended.exit_code, len(ended.stderr.splitlines())) == (2, 1)
    assert f"mecha: --url (MECHA_URL) is {url!r}: write where the server is, like http://127.0.0.1:3500" in ended.stderr


def test_token_is_sent(mecha: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """DAPR_API_TOKEN is the client's token, too."""
    with serve(api_token="secret") as server:
        assert mecha("actor", "list", "--url", server.url, DAPR_API_TOKEN="secret").returncode == 0
        refused = mecha("actor", "list", "--url", server.url)
        assert (refused.returncode, "401" in refused.stderr) == (1, True)


def test_a_token_of_any_letters_is_sent(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As the server compares it."""
    with serve(api_token="пароль") as server:
        monkeypatch.setenv("MECHA_API_TOKEN", "пароль")
        assert invoke(server.url, "actor", "list").exit_code == 0


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--idempotency-key", "ключ"),
        ("--idempotency-key", "a\nb"),
        ("--idempotency-key", " a"),
        ("--idempotency-key", "a\x7f"),
        ("--timeout", "1с"),
        ("token", "a\nb"),
        ("token", "a "),
    ],
)
def test_what_no_header_can_have_is_wrong_usage(monkeypatch: pytest.MonkeyPatch, option: str, value: str) -> None:
    """Nobody was asked: exit code 2, and one line, that does not tell the token."""
    if option == "token":
        monkeypatch.setenv("MECHA_API_TOKEN", value)
    arguments = [] if option == "token" else [option, value]
    ended = invoke("http://127.0.0.1:1", "actor", "call", "Account", "a", "statement", *arguments)
    assert (ended.exit_code, len(ended.stderr.splitlines())) == (2, 1)
    told = "MECHA_API_TOKEN" if option == "token" else repr(value)
    assert told in ended.stderr


def test_a_key_is_the_same_from_the_command_line_and_in_process(done: Mecha, sample: Sample) -> None:
    """Letters of Latin-1 are sent as the server reads them."""
    name = uuid4().hex
    deposit = ("actor", "call", "Account", name, "deposit", "1", "--idempotency-key", "clé")
    where = f"{sample.url}/v1.0/actors/Account/{name}/method/deposit"
    headers = [(b"idempotency-key", "clé".encode("latin-1"))]
    assert done(*deposit) == "1\n"
    assert httpx.post(where, content=b"1", headers=headers, **PLAIN).content == b"1"


@pytest.mark.parametrize(
    "arguments",
    [["actor", "list"], ["actor", "list", "--json"], ["actor", "call", "Account", "full", "statement"], ["--version"]],
)
@pytest.mark.parametrize("stdout", ["full", "closed"])
def test_what_does_not_get_out_is_one_line(sample_local: str, stdout: str, arguments: list[str]) -> None:
    """A disk that is full, or a stdout that is closed: the command has failed, and says why."""
    where = {"full": ">/dev/full", "closed": ">&-"}[stdout]
    ended = subprocess.run(
        ["sh", "-c", f'exec "$@" {where}', "sh", *mecha_command(*arguments)],
        env=clean_environment(MECHA_URL=sample_local),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1), ended.stderr
    assert ended.stderr.startswith("mecha: cannot write to stdout: ")


def test_bench(mecha: Callable[..., Any]) -> None:
    """The benchmark measures each case and prints what it found."""
    ended = mecha("bench", "--seconds", "0.3", "--actors", "10", "--connections", "4", "--json")
    assert ended.returncode == 0, ended.stderr
    lines = json.loads(ended.stdout)
    assert len(lines) == 4
    assert all(line["calls_per_s"] > 0 and 0 < line["p50_ms"] <= line["p99_ms"] for line in lines)


async def test_bench_waits_for_an_answer() -> None:
    """However slow the machine: a line of no calls would say nothing."""
    latencies_s, elapsed_s = await bench._drive(0.0, [partial(asyncio.sleep, 0.01)])
    assert 0 < latencies_s[0] <= elapsed_s


def test_help_is_quick_because_it_imports_little() -> None:
    """The command line loads neither the web framework nor the runtime until a command needs them."""
    code = "import sys, runtime_api.cli; print(sorted({'fastapi', 'uvicorn', 'httpx', 'actors'} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True).stdout
    assert shown.strip() == "[]"
