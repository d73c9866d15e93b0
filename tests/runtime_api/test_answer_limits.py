"""No short request makes the server allocate without bound: answers that are put together of several values have a
limit of bytes, and are made without holding more."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest

from runtime_api import state
from runtime_api.components import StateComponent
from runtime_api.edge import Limits
from runtime_api.pages import VALUES_AT_ONCE
from runtime_api.problems import Problem
from statestores import SetKey
from statestores.memory import MemoryStore
from tests.servers import PLAIN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from statestores import KeyItem
    from tests.runtime_api.conftest import ServerFactory

STATE = "/v1.0/state/statestore"
QUERY = "/v1.0-alpha1/state/statestore/query"
BODY = 10_000
ANSWER = Limits(BODY).answer
LONG = "x" * 9_000


@pytest.fixture(params=["memory", "sqlite"])
def client(request: pytest.FixtureRequest, serve: ServerFactory, tmp_path: Path) -> Iterator[httpx.Client]:
    """Of a server whose answers may have 160,000 bytes."""
    store = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'limits.db'}"
    with (
        serve(store=store, max_body_size=BODY) as server,
        httpx.Client(base_url=server.url, timeout=30, **PLAIN) as client,
    ):
        yield client


def save(client: httpx.Client, **values: Any) -> None:
    for key, value in values.items():
        assert client.post(STATE, json=[{"key": key, "value": value}]).status_code == 204


def pages(client: httpx.Client, path: str, limit: int) -> list[list[dict[str, Any]]]:
    """All pages of a listing."""
    found, after = [], None
    while True:
        answer = client.get(path, params={"limit": limit, **({"after": after} if after is not None else {})})
        assert len(answer.content) < 2 * ANSWER
        found.append(answer.json()["items"])
        if "next" not in answer.json():
            return found
        after = answer.json()["next"]


def test_a_key_that_is_repeated(client: httpx.Client) -> None:
    """A key is answered as often as it is asked for, as in Dapr, until the answer is too long: then not at all."""
    save(client, long=LONG, short=1)
    lines = client.post(f"{STATE}/bulk", json={"keys": ["long", "short", "long", "none", "none"]}).json()
    assert [line["key"] for line in lines] == ["long", "short", "long", "none", "none"]
    assert lines[0] == lines[2] == {"key": "long", "data": LONG, "etag": lines[0]["etag"]}
    for keys in (["long"] * 100, ["short", "long"] * 50, ["none"] * 1400):
        refused = client.post(f"{STATE}/bulk", json={"keys": keys})
        assert (refused.status_code, refused.json()["errorCode"]) == (400, "ERR_STATE_ANSWER_TOO_LARGE")
        assert str(ANSWER) in refused.json()["message"]
        assert refused.json()["details"][0]["reason"] == "DAPR_STATE_ANSWER_TOO_LARGE"


def test_many_long_keys(client: httpx.Client) -> None:
    """Keys that are short to name may be long to answer."""
    save(client, **{f"k{n}": LONG for n in range(20)})
    assert client.post(f"{STATE}/bulk", json={"keys": [f"k{n}" for n in range(15)]}).status_code == 200
    refused = client.post(f"{STATE}/bulk", json={"keys": [f"k{n}" for n in range(20)]})
    assert refused.json()["errorCode"] == "ERR_STATE_ANSWER_TOO_LARGE"


def test_what_will_be_refused_is_not_read() -> None:
    """A bulk read reads a few keys at a time, each once, and none after the answer has become too long."""

    async def scenario() -> None:
        store = MemoryStore()
        keys = [f"k{n}" for n in range(1000)]
        await store.keys.apply([SetKey(key, b"x" * 100) for key in keys], 0)
        read: list[str] = []
        get = store.keys.get

        async def noted(wanted: list[str], now_ms: int) -> list[KeyItem | None]:
            assert len(wanted) <= VALUES_AT_ONCE
            read.extend(wanted)
            return await get(wanted, now_ms)

        store.keys.get = noted  # type: ignore[method-assign,assignment]  # the real one, looked at
        component = StateComponent("statestore", "state.in-memory", "v1", store, "")
        body = orjson.dumps({"keys": [*keys, *keys]})
        with pytest.raises(Problem):
            await state.bulk_get(component, body, 0, 100_000)
        assert read == keys[: len(read)]
        assert len(read) <= 100_000 / 600 + VALUES_AT_ONCE
        read.clear()
        assert len(await state.bulk_get(component, body, 0, 10**6)) == 2000
        assert read == keys

    asyncio.run(scenario())


def test_a_query_without_limit(client: httpx.Client) -> None:
    """It gives pages, too: of a thousand, or as long as an answer may be."""
    values = [{"key": f"t{n:04}", "value": {"tiny": 1}} for n in range(1100)]
    for start in range(0, 1100, 100):
        assert client.post(STATE, json=values[start : start + 100]).status_code == 204
    # A tiny item counts for 200 bytes and more.
    tiny = {"filter": {"EQ": {"tiny": 1}}}
    assert _query_all(client, tiny) == [f"t{n:04}" for n in range(1100)]
    save(client, **{f"q{n:02}": {"long": LONG} for n in range(40)})
    first = client.post(QUERY, json={"filter": {"EQ": {"long": LONG}}, "page": {"limit": 1000}})
    assert len(first.content) < ANSWER + BODY
    assert _query_all(client, {"filter": {"EQ": {"long": LONG}}}) == [f"q{n:02}" for n in range(40)]


def _query_all(client: httpx.Client, query: dict[str, Any]) -> list[str]:
    keys: list[str] = []
    answers = 0
    while not answers or query["page"]["token"]:
        answer = client.post(QUERY, json=query).json()
        assert len(answer["results"]) <= 1000
        keys += [line["key"] for line in answer["results"]]
        query = {**query, "page": {"token": answer.get("token", "")}}
        answers += 1
    assert answers > 1
    return keys


def test_the_default_page(serve: ServerFactory) -> None:
    """Without a limit a page has at most a thousand items."""
    with serve() as server, httpx.Client(base_url=server.url, timeout=30, **PLAIN) as client:
        assert client.post(STATE, json=[{"key": f"k{n:04}", "value": n} for n in range(1001)]).status_code == 204
        first = client.post(QUERY, json={}).json()
        assert [line["data"] for line in first["results"]] == list(range(1000))
        rest = client.post(QUERY, json={"page": {"token": first["token"]}}).json()
        assert [line["data"] for line in rest["results"]] == [1000]
        assert "token" not in rest
        assert len(client.post(QUERY, json={"page": {"limit": 2000}}).json()["results"]) == 1001


def test_a_history_of_long_events(client: httpx.Client) -> None:
    """Pages of a history are as short as they must be, and join to the whole."""
    for _ in range(30):
        assert client.post("/v1.0/actors/Account/long/method/rename", json=LONG).status_code == 200
        assert client.post("/v1.0/actors/Account/long/method/rename", json="").status_code == 200
    found = pages(client, "/v1.0/mecha/actors/Account/long/history", 1000)
    assert len(found) > 1
    assert [item["version"] for page in found for item in page] == list(range(1, 61))
    assert [len(page) for page in pages(client, "/v1.0/mecha/actors/Account/long/history", 50)][:2] != [50, 10]
    assert [len(page) for page in pages(client, "/v1.0/mecha/actors/Account/long/history", 20)] == [20, 20, 20, 0]


def test_a_history_of_long_turns(client: httpx.Client) -> None:
    """The same of a workflow's."""
    assert client.post("/v1.0/workflows/dapr/approval/start?instanceID=long", json={"x": 1}).status_code == 202
    assert client.post("/v1.0/workflows/dapr/long/pause").status_code == 202
    for _ in range(30):
        assert client.post("/v1.0/workflows/dapr/long/raiseEvent/other", json=LONG).status_code == 202
    found = pages(client, "/v1.0/mecha/workflows/long/history", 1000)
    assert len(found) > 1
    versions = [item["version"] for page in found for item in page]
    assert versions == list(range(1, len(versions) + 1))
    assert sum(item["inputs"].count(["event", "other", LONG]) for page in found for item in page) == 30
