"""Bad input is told as the client's: never as an error of ours (500 `ERROR`, and a traceback in the log)."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest

from tests.servers import PLAIN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.runtime_api.conftest import ServerFactory

STATE = "/v1.0/state/statestore"
DIGITS = ("9223372036854775808", "9" * 20, "9" * 23, "9" * 400, "1" * 5000)
TEXTS = (
    *DIGITS,
    *(
        "",
        "0",
        "-1",
        "+1",
        "1e5",
        "1e400",
        "inf",
        "nan",
        "0x1",
        "1_000",
        "１２",
        "²",
        "٣",
        "\x00",
        "\ud800",
        "?",
        "x" * 300,
    ),
    *("99999999999h", "9" * 400 + "h", "-1h", "1.5", "٣h", "@every 99999999999h", "@every", "@never"),
    *("R", "R/", "R0/PT1S", f"R{'9' * 30}/PT1S", f"P{'9' * 30}Y", f"PT{'9' * 30}S", "P9999Y", "P1M", "P", "PT"),
    *("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.9Z"),
    *("2030-02-30T00:00:00Z", "2030-01-01", "2030-W01-1", "٢٠٣٠-01-01T00:00:00Z", "2030-01-01T24:00:00Z"),
    *("0 0 30 2 *", "* * * * * * *", "99 * * * *", "CRON_TZ=../etc 0 9 * * *", "CRON_TZ=Nowhere 0 9 * * *", "CRON_TZ="),
)
JSON_TEXTS = (*DIGITS, "-1", "1.5", "1e400", "true", "null", "[]", "{}", "[null]", '{"ttlInSeconds":"9e9"}', '"9"')
NAMES = {"actor_type": "Account", "store": "statestore", "component": "dapr", "method": "statement", "event": "e"}


@pytest.fixture
def client(serve: ServerFactory, tmp_path: Path) -> Iterator[httpx.Client]:
    """On SQLite, whose integers end."""
    with (
        serve(store=f"sqlite:///{tmp_path / 'bad.db'}") as server,
        httpx.Client(base_url=server.url, timeout=30, **PLAIN) as client,
    ):
        yield client


def spelled(path: str) -> str:
    """A route with names in it that lead somewhere."""
    named = NAMES | {
        "name": "doubling" if "workflows" in path else "n",
        "actor_id": "a",
        "key": "k",
        "instance_id": "w",
    }
    return path.format(**named)


def operations(client: httpx.Client) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Verb, path, description and body's schema of every route; one of those that are the same."""
    page = client.get("/openapi.json").json()
    for path, verbs in page["paths"].items():
        if path.startswith(("/v1.0-beta1", "/v1.0-alpha1/workflows")) or path == "/v1.0/shutdown":
            continue
        for verb, operation in verbs.items():
            if verb == "put" and "post" in verbs:
                continue
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            yield verb, spelled(path), operation, resolved(content.get("schema", {}), page["components"]["schemas"])


def resolved(schema: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        return resolved(known[schema["$ref"].rpartition("/")[2]], known)
    parts = {name: resolved(part, known) for name, part in schema.get("properties", {}).items()}
    return {**schema, "properties": parts, **({"items": resolved(schema["items"], known)} if "items" in schema else {})}


def texts_of(schema: dict[str, Any]) -> Iterator[str]:
    """Bodies that are right but for one member, at any depth."""
    if schema.get("type") == "array":
        yield from (f"[{item}]" for item in texts_of(schema["items"]))
    names = list(schema["properties"])
    right = {name: right_text(schema["properties"][name]) for name in names}
    for name in names:
        part = schema["properties"][name]
        # Only where a text may stand do texts differ.
        texts = map(in_json, TEXTS if "string" in str(part) else TEXTS[:1])
        wrong = itertools.chain(JSON_TEXTS, texts, texts_of(part))
        for text in wrong:
            yield "{{{}}}".format(",".join(f'"{n}":{text if n == name else right[n]}' for n in names))
        for other in ("null", right[name]):
            yield "{{{}}}".format(",".join([*(f'"{n}":{right[n]}' for n in names), f'"{name.upper()}":{other}']))


def right_text(schema: dict[str, Any]) -> str:
    if schema.get("type") == "array":
        return f"[{right_text(schema['items'])}]"
    if schema.get("properties"):
        return "{{{}}}".format(",".join(f'"{name}":{right_text(part)}' for name, part in schema["properties"].items()))
    kinds = {
        "integer": "1",
        "boolean": "true",
        "object": "{}",
        "string": '"upsert"' if "upsert" in str(schema) else '""',
    }
    return kinds.get(schema.get("type", ""), '"k"' if schema.get("title") == "Key" else "null")


def in_json(text: str) -> str:
    return orjson.dumps(text.encode(errors="replace").decode()).decode()


def test_no_input_is_our_error(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    """Every query parameter and every member of a body, of every route, with numbers, times and texts that it cannot
    have: whatever is wrong is told with a code of its own, and nothing is logged as unexpected."""
    client.post("/v1.0/actors/Account/a/method/deposit", content=b"1")
    client.post("/v1.0/workflows/dapr/doubling/start?instanceID=w", content=b"1")
    client.get("/v1.0/mecha/workflows/w/result")
    asked = 0
    for verb, path, operation, schema in operations(client):
        for parameter in operation.get("parameters", []):
            if parameter["in"] != "query":
                continue
            for text in TEXTS:
                value = text.encode(errors="replace").decode()
                check(
                    client.request(verb, path, params={parameter["name"]: value}, content=b"1"), path, parameter, text
                )
                asked += 1
        for body in texts_of(schema) if "properties" in schema else ():
            answer = client.request(verb, path, content=body)
            check(answer, path, body)
            if path.endswith("/reminders/n") and answer.status_code == 204:
                check(client.get(path), path, body)
            asked += 1
    assert asked > 1000
    assert [record.getMessage() for record in caplog.records if record.name == "mecha.http"] == []


def check(answer: httpx.Response, *asked: Any) -> None:
    assert answer.status_code < 500 or answer.json()["errorCode"] != "ERROR", (asked, answer.text)


@pytest.mark.parametrize("digits", DIGITS)
def test_versions_beyond_counting(client: httpx.Client, digits: str) -> None:
    """A version that no store can count to is 400, and says what is wrong."""
    client.post("/v1.0/actors/Account/a/method/deposit", content=b"1")
    for path, name in (
        ("/v1.0/mecha/actors/Account/a", "version"),
        ("/v1.0/mecha/actors/Account/a/history", "after"),
        ("/v1.0/mecha/workflows/w/history", "after"),
    ):
        answer = client.get(path, params={name: digits})
        assert (answer.status_code, answer.json()["errorCode"]) == (400, "ERR_BAD_REQUEST")
        assert f"parameter {name}" in answer.json()["message"]
    assert client.get("/v1.0/mecha/actors/Account/a", params={"version": 2**53 - 1}).json()["version"] == 1
    assert client.get("/v1.0/mecha/actors/Account/a/history", params={"after": 2**53 - 1}).json() == {"items": []}


@pytest.mark.parametrize("when", ["99999999999h", "9" * 400, "9" * 400 + "h", "8766001h", "P9999Y"])
def test_starts_beyond_the_calendar(client: httpx.Client, when: str) -> None:
    """A start that no clock will come to is 400, and says what to do."""
    answer = client.post("/v1.0/workflows/dapr/doubling/start", params={"start": when}, content=b"1")
    assert (answer.status_code, answer.json()["errorCode"]) == (400, "ERR_BAD_REQUEST")
    assert client.get("/v1.0/mecha/workflows").json()["items"] == []


def test_one_member_spelled_twice(client: httpx.Client) -> None:
    """Of several spellings the last that is not null counts, for what is checked and for what is stored."""
    item = '{"key":"k","value":1,"VALUE":{"a": 1.00},"Value":null,"Key":null}'
    step = f'{{"operation":"upsert","request":{item},"Request":null}}'
    for path, body in (
        (STATE, f"[{item}]"),
        (f"{STATE}/transaction", f'{{"operations":[{step}],"Operations":null}}'),
        (f"{STATE}/transaction", f'{{"OPERATIONS":[],"operations":[{step}]}}'),
    ):
        assert client.post(path, content=body).status_code == 204
        assert client.get(f"{STATE}/k").content == b'{"a": 1.00}'
        assert client.delete(f"{STATE}/k").status_code == 204
    nothing = f'{{"operations":[{step}],"Operations":[]}}'
    assert client.post(f"{STATE}/transaction", content=nothing).status_code == 204
    assert client.get(f"{STATE}/k").status_code == 204


DEEP = "[" * 300 + "]" * 300


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1.0/actors/Account/a/reminders/deep", f'{{"dueTime":"1h","data":{DEEP}}}'),
        ("/v1.0/actors/Account/a/timers/deep", f'{{"dueTime":"1h","data":{DEEP}}}'),
        ("/v1.0/actors/Account/a/method/deposit", DEEP),
        ("/v1.0/actors/Account/a/state", f'[{{"operation":"upsert","request":{{"key":"balance","value":{DEEP}}}}}]'),
        ("/v1.0/workflows/dapr/doubling/start", DEEP),
        ("/v1.0/workflows/dapr/w/raiseEvent/e", DEEP),
    ],
)
def test_json_too_deep_to_be_written_again(
    client: httpx.Client, path: str, body: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Such JSON can be read, but not written: the client is told so."""
    client.post("/v1.0/actors/Account/a/method/deposit", content=b"1")
    client.post("/v1.0/workflows/dapr/approval/start?instanceID=w", content=b"1")
    answer = client.post(path, content=body)
    assert (answer.status_code, answer.json()["errorCode"]) == (400, "ERR_MALFORMED_REQUEST")
    assert [record.getMessage() for record in caplog.records if record.name == "mecha.http"] == []


@pytest.mark.parametrize("path", ["/v1.0/workflows/dapr/echoing/start", "/v1.0/workflows/dapr/deeper/raiseEvent/e"])
def test_json_too_deep_to_be_read_is_no_text(client: httpx.Client, path: str) -> None:
    """What is no JSON is a workflow's input as text; what is JSON, and too deep, is refused at any depth."""
    client.post("/v1.0/workflows/dapr/approval/start?instanceID=deeper", content=b"1")
    answer = client.post(path, content="[" * 2000 + "]" * 2000)
    assert (answer.status_code, answer.json()["errorCode"]) == (400, "ERR_MALFORMED_REQUEST")
    assert "depth limit exceeded" in answer.json()["message"]


VALUES = [
    "/v1.0/actors/Account/a/method/echo",
    "/v1.0/mecha/actors/Account/a/send/echo",
    "/v1.0/workflows/dapr/echoing/start",
    "/v1.0/mecha/workflows/echoing/run",
    "/v1.0/workflows/dapr/w/raiseEvent/e",
]


@pytest.mark.parametrize("number", ["18446744073709551616", "-9223372036854775809", pytest.param("9" * 400, id="400")])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        *((path, body) for path in VALUES for body in ("{}", '[1, {"a": {}}]')),
        ("/v1.0/actors/Account/a/reminders/r", '{"dueTime": "1h", "data": {}}'),
        ("/v1.0/actors/Account/a/timers/t", '{"dueTime": "1h", "callback": "echo", "data": [{}]}'),
        ("/v1.0/actors/Account/a/state", '[{"operation": "upsert", "request": {"key": "owner", "value": {}}}]'),
    ],
)
def test_integers_beyond_64_bits(client: httpx.Client, path: str, body: str, number: str) -> None:
    """They are told as the client's mistake, and do not become floats (nor, of a workflow, text); a later good request
    works."""
    client.post("/v1.0/actors/Account/a/method/deposit", content=b"1")
    client.post("/v1.0/workflows/dapr/approval/start?instanceID=w", content=b"{}")
    answer = client.post(path, content=body.replace("{}", number))
    assert (answer.status_code, answer.json()["errorCode"]) == (400, "ERR_MALFORMED_REQUEST")
    assert "64 bits: send it as text" in answer.json()["message"] or "number is infinity" in answer.json()["message"]
    assert client.post(path, content=body.replace("{}", f'"{number}"')).status_code in (200, 202, 204)


def test_state_keeps_any_integer(client: httpx.Client) -> None:
    """What is stored as it was sent may have any number of digits."""
    client.post(STATE, content=b'[{"key": "k", "value": 100000000000000000001}]')
    assert client.get(f"{STATE}/k").content == b"100000000000000000001"


@pytest.mark.parametrize("instant", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_instants_that_utc_cannot_write(client: httpx.Client, instant: str) -> None:
    """An instant outside the calendar is refused when it is set, not when it is read back."""
    for name in ("dueTime", "ttl"):
        path = "/v1.0/actors/Account/a/reminders/edge"
        answer = client.post(path, json={"period": "1h", name: instant})
        assert (answer.status_code, answer.json()["errorCode"]) == (500, "ERR_ACTOR_REMINDER_CREATE")
        assert "in UTC" in answer.json()["message"]
        assert client.get(path).status_code == 404
