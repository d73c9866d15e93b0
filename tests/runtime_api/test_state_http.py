"""The state API over HTTP, row by row of Dapr's API reference, on each embedded store."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.servers import PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STATE = "/v1.0/state/statestore"


def save(client: httpx.Client, *items: dict[str, Any], **params: str) -> httpx.Response:
    return client.post(STATE, json=list(items), params=params)


def error_of(response: httpx.Response) -> tuple[int, str]:
    """Status and code of an error, whose body must be in the rich shape."""
    body = response.json()
    assert set(body) == {"errorCode", "message", "details"}
    assert body["details"][0]["@type"].endswith("ErrorInfo")
    assert body["details"][0]["domain"] == "dapr.io"
    return response.status_code, body["errorCode"]


def test_save_and_read(state: httpx.Client) -> None:
    """A saved value comes back byte for byte, with its ETag; saving answers 204 without a body."""
    body = b'[{"key":"exact","value": {"b": 1.00, "a": 123456789012345678901234567890}}]'
    saved = state.post(STATE, content=body)
    assert (saved.status_code, saved.content) == (204, b"")
    found = state.get(f"{STATE}/exact")
    assert found.status_code == 200
    assert found.content == b'{"b": 1.00, "a": 123456789012345678901234567890}'
    assert found.headers["etag"]
    assert found.headers["content-type"] == "application/json"


@pytest.mark.parametrize("value", ["text", "", 0, 1.5, True, None, [], {"a": [1]}, "ünï\u2028"])
def test_every_kind_of_value(state: httpx.Client, value: Any) -> None:
    """All of JSON can be stored."""
    assert save(state, {"key": "kind", "value": value}).status_code == 204
    assert state.get(f"{STATE}/kind").json() == value


def test_missing_key(state: httpx.Client) -> None:
    """An absent key is 204 without a body."""
    found = state.get(f"{STATE}/absent")
    assert (found.status_code, found.content) == (204, b"")


def test_keys_are_case_insensitive_in_bodies(state: httpx.Client) -> None:
    """JSON keys of classic endpoints match without case, unknown ones are ignored, null is not given."""
    body = b'[{"KEY":"cased","VaLuE":7,"etag":null,"whatever":[1]}]'
    assert state.put(STATE, content=body).status_code == 204
    assert state.get(f"{STATE}/cased").json() == 7


def test_empty_save(state: httpx.Client) -> None:
    """Saving nothing succeeds."""
    assert save(state).status_code == 204


def test_base64_values(state: httpx.Client) -> None:
    """octet-stream values are stored as the bytes they encode, and read back inside JSON as base64."""
    raw = b"\x00\xffraw"
    item = {"key": "bin", "value": base64.b64encode(raw).decode(), "contentType": "application/octet-stream"}
    assert save(state, item).status_code == 204
    assert state.get(f"{STATE}/bin").content == raw
    lines = state.post(f"{STATE}/bulk", json={"keys": ["bin"]}).json()
    assert base64.b64decode(lines[0]["data"]) == raw
    for wrong in ("%%%", "ä"):
        answer = save(state, {**item, "value": wrong})
        assert (answer.status_code, answer.json()["errorCode"]) == (400, "ERR_MALFORMED_REQUEST")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (STATE, "[%s]"),
        (f"{STATE}/bulk", '{"keys":[%s]}'),
        (f"{STATE}/transaction", '{"operations":[%s]}'),
        ("/v1.0-alpha1/state/statestore/query", '{"sort":[%s]}'),
        ("/v1.0/actors/Account/many/state", "[%s]"),
    ],
)
def test_more_items_than_a_body_may_have(state: httpx.Client, path: str, body: str) -> None:
    """They are counted before they are looked at, or a body of the smallest would keep the host busy for seconds."""
    answer = state.post(path, content=body % ",".join(["7"] * 10_001))
    assert (answer.status_code, answer.json()["errorCode"]) == (400, "ERR_MALFORMED_REQUEST")
    assert answer.json()["message"].endswith("more than 10000 items: send them in several requests")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{}",
        b"7",
        b"[7]",
        b'[{"key":7}]',
        b'[{"value":1}]',
        b'[{"key":""}]',
        b'[{"key":"a||b"}]',
        b'[{"key":"k","metadata":{"a":1}}]',
        b'[{"key":"k","options":[]}]',
        b"[null]",
        b"\xff",
    ],
)
def test_malformed_saves(state: httpx.Client, body: bytes) -> None:
    """Bad JSON, wrong types, empty keys and keys with || are 400 ERR_MALFORMED_REQUEST."""
    answer = state.post(STATE, content=body)
    assert (answer.status_code, answer.json()["errorCode"]) == (400, "ERR_MALFORMED_REQUEST")


def test_illegal_key_is_rich(state: httpx.Client) -> None:
    """A key with || is told with its reason, also when reading and deleting."""
    for answer in (state.get(f"{STATE}/a%7C%7Cb"), state.delete(f"{STATE}/a%7C%7Cb"), save(state, {"key": "a||b"})):
        assert error_of(answer) == (400, "ERR_MALFORMED_REQUEST")
        assert answer.json()["details"][0]["reason"] == "DAPR_STATE_ILLEGAL_KEY"


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("GET", "/v1.0/state/nowhere/k"),
        ("DELETE", "/v1.0/state/nowhere/k"),
        ("POST", "/v1.0/state/nowhere"),
        ("PUT", "/v1.0/state/nowhere/bulk"),
        ("POST", "/v1.0/state/nowhere/transaction"),
        ("POST", "/v1.0-alpha1/state/nowhere/query"),
    ],
)
def test_unknown_store(state: httpx.Client, verb: str, path: str) -> None:
    """An unknown store is 400 ERR_STATE_STORE_NOT_FOUND whatever is asked of it."""
    answer = state.request(verb, path, content=b"[]" if verb != "GET" else None)
    assert error_of(answer) == (400, "ERR_STATE_STORE_NOT_FOUND")
    details = answer.json()["details"]
    assert len(details) == 1
    assert details[0]["reason"] == "DAPR_STATE_NOT_FOUND"
    assert details[0]["metadata"] == {"appID": "sample"}


def test_etags(state: httpx.Client) -> None:
    """A right tag writes, a stale one is 409, a malformed one 400, and both tell the documented text."""
    save(state, {"key": "tagged", "value": 1})
    tag = state.get(f"{STATE}/tagged").headers["etag"]
    assert save(state, {"key": "tagged", "value": 2, "etag": tag}).status_code == 204
    stale = save(state, {"key": "tagged", "value": 3, "etag": tag})
    assert error_of(stale) == (409, "ERR_STATE_SAVE")
    begin = "failed saving state in state store statestore: possible etag mismatch. error from state store: "
    assert stale.json()["message"].startswith(begin)
    assert error_of(save(state, {"key": "tagged", "value": 3, "etag": "bogus"})) == (400, "ERR_STATE_SAVE")
    assert error_of(state.delete(f"{STATE}/tagged", headers={"if-match": tag})) == (409, "ERR_STATE_DELETE")
    assert error_of(state.delete(f"{STATE}/tagged", headers={"if-match": "bogus"})) == (400, "ERR_STATE_DELETE")
    assert state.get(f"{STATE}/tagged").json() == 2
    newest = state.get(f"{STATE}/tagged").headers["etag"]
    assert state.delete(f"{STATE}/tagged", headers={"if-match": newest}).status_code == 204


def test_bulk_save_applies_what_it_can(state: httpx.Client) -> None:
    """One item's wrong tag fails the request, the others are saved all the same."""
    save(state, {"key": "b1", "value": 1})
    answer = save(state, {"key": "b1", "value": 2, "etag": "9999"}, {"key": "b2", "value": 2})
    assert error_of(answer) == (409, "ERR_STATE_SAVE")
    assert state.get(f"{STATE}/b1").json() == 1
    assert state.get(f"{STATE}/b2").json() == 2


def test_first_write(state: httpx.Client) -> None:
    """first-write without a tag creates only."""
    item = {"key": "first", "value": 1, "etag": "", "options": {"concurrency": "first-write"}}
    assert save(state, item).status_code == 204
    assert error_of(save(state, item)) == (409, "ERR_STATE_SAVE")


def test_unknown_options(state: httpx.Client) -> None:
    """Options that mean nothing are an error, not ignored."""
    for options in ({"concurrency": "never"}, {"consistency": "maybe"}):
        answer = save(state, {"key": "k", "value": 1, "options": options})
        assert error_of(answer) == (500, "ERR_STATE_SAVE")
        assert "unrecognized" in answer.json()["message"]
        answer = state.delete(f"{STATE}/k", params=options)
        assert error_of(answer) == (500, "ERR_STATE_DELETE")
        assert "unrecognized" in answer.json()["message"]
        operations = [{"operation": "delete", "request": {"key": "k", "options": options}}]
        answer = state.post(f"{STATE}/transaction", json={"operations": operations})
        assert error_of(answer) == (500, "ERR_STATE_TRANSACTION")
    answer = state.post("/v1.0-alpha1/state/statestore/query", json={"sort": [{"key": "n", "order": "UP"}]})
    assert error_of(answer) == (500, "ERR_STATE_QUERY")
    assert "use ASC or DESC" in answer.json()["message"]


def test_delete(state: httpx.Client) -> None:
    """Deleting answers 204, for absent keys too."""
    save(state, {"key": "gone", "value": 1})
    for _ in range(2):
        assert state.delete(f"{STATE}/gone").status_code == 204
    assert state.get(f"{STATE}/gone").status_code == 204


def test_time_to_live(state: httpx.Client) -> None:
    """A TTL shows as ttlExpireTime, also from the query and in bulk; -1 removes it; junk is an error."""
    now = datetime.now(UTC).timestamp()
    save(state, {"key": "t1", "value": 1, "metadata": {"ttlInSeconds": "100"}})
    save(state, {"key": "t2", "value": 1}, **{"metadata.ttlInSeconds": "100"})
    for key in ("t1", "t2"):
        expiry = state.get(f"{STATE}/{key}").headers["metadata.ttlExpireTime"]
        assert datetime.fromisoformat(expiry).timestamp() == pytest.approx(now + 100, abs=30)
    bulk = state.post(f"{STATE}/bulk", json={"keys": ["t1"]}).json()
    assert "ttlExpireTime" in bulk[0]["metadata"]
    save(state, {"key": "t1", "value": 1, "metadata": {"ttlInSeconds": "-1"}})
    assert "metadata.ttlExpireTime" not in state.get(f"{STATE}/t1").headers
    for junk in ("soon", "1.5", "-2", "٣"):
        answer = save(state, {"key": "t1", "value": 1, "metadata": {"ttlInSeconds": junk}})
        assert error_of(answer) == (500, "ERR_STATE_SAVE")


def test_bulk_get(state: httpx.Client) -> None:
    """A missing key yields its name only; the order is the request's."""
    save(state, {"key": "x", "value": {"n": 1}})
    answer = state.post(f"{STATE}/bulk", json={"keys": ["nope", "x"], "parallelism": 2})
    assert answer.status_code == 200
    missing, found = answer.json()
    assert missing == {"key": "nope"}
    assert (found["key"], found["data"]) == ("x", {"n": 1})
    assert found["etag"] == state.get(f"{STATE}/x").headers["etag"]
    assert state.post(f"{STATE}/bulk", content=b"[]").status_code == 400
    assert state.post(f"{STATE}/bulk", json={}).json() == []


def transact(client: httpx.Client, *operations: dict[str, Any]) -> httpx.Response:
    return client.post(f"{STATE}/transaction", json={"operations": list(operations)})


def test_transaction(state: httpx.Client) -> None:
    """All or nothing, in order, the last operation on a key wins."""
    answer = transact(
        state,
        {"operation": "upsert", "request": {"key": "tx1", "value": 1}},
        {"operation": "delete", "request": {"key": "tx1"}},
        {"operation": "upsert", "request": {"key": "tx1", "value": {"last": 1.0}}},
        {"operation": "delete", "request": {"key": "tx-absent"}},
    )
    assert answer.status_code == 204
    assert state.get(f"{STATE}/tx1").content == b'{"last":1.0}'
    assert transact(state).status_code == 204


def test_failed_transaction(state: httpx.Client) -> None:
    """Every failure of the store, a wrong tag too, is 500 ERR_STATE_TRANSACTION, and nothing is applied."""
    answer = transact(
        state,
        {"operation": "upsert", "request": {"key": "tx2", "value": 1}},
        {"operation": "upsert", "request": {"key": "tx3", "value": 1, "etag": "9999"}},
    )
    assert error_of(answer) == (500, "ERR_STATE_TRANSACTION")
    assert state.get(f"{STATE}/tx2").status_code == 204


def test_request_metadata_of_a_transaction(state: httpx.Client) -> None:
    """As of a save: what the query says counts more than what an item says, and that more than the transaction's."""

    def remaining_s(key: str) -> float:
        expires = datetime.fromisoformat(state.get(f"{STATE}/{key}").headers["metadata.ttlExpireTime"])
        return (expires - datetime.now(UTC)).total_seconds()

    own = {"key": "txm2", "value": 1, "metadata": {"ttlInSeconds": "5000"}}
    body = {
        "operations": [{"operation": "upsert", "request": item} for item in ({"key": "txm1", "value": 1}, own)],
        "metadata": {"ttlInSeconds": "90000"},
    }
    assert state.post(f"{STATE}/transaction", json=body).status_code == 204
    assert remaining_s("txm1") > 5000 > remaining_s("txm2")
    for name in ("ttlInSeconds", "ttlinseconds"):
        state.post(f"{STATE}/transaction", json=body)
        assert state.post(f"{STATE}/transaction", params={f"metadata.{name}": "100"}, json=body).status_code == 204
        assert remaining_s("txm1") <= 100
        assert remaining_s("txm2") <= 100
        assert state.post(STATE, params={f"metadata.{name}": "50"}, json=[own]).status_code == 204
        assert remaining_s("txm2") <= 50
    answer = state.post(f"{STATE}/transaction", params={"metadata.ttlInSeconds": "soon"}, json=body)
    assert error_of(answer) == (500, "ERR_STATE_TRANSACTION")


def test_unknown_operation(state: httpx.Client) -> None:
    """A transaction knows upsert and delete."""
    answer = transact(state, {"operation": "increment", "request": {"key": "a"}})
    assert error_of(answer) == (400, "ERR_NOT_SUPPORTED_STATE_OPERATION")


def test_query(state: httpx.Client) -> None:
    """Matches come with their keys un-prefixed, in order, in pages; nothing found is 204; a bad filter is 500."""
    save(state, *({"key": f"q{n}", "value": {"group": "query-test", "n": n}} for n in range(3)))
    query = {"filter": {"EQ": {"group": "query-test"}}, "sort": [{"key": "n", "order": "DESC"}], "page": {"limit": 2}}
    where = "/v1.0-alpha1/state/statestore/query"
    page = state.post(where, json=query).json()
    assert [(line["key"], line["data"]["n"]) for line in page["results"]] == [("q2", 2), ("q1", 1)]
    query["page"] = {"limit": 2, "token": page["token"]}
    assert [line["key"] for line in state.post(where, json=query).json()["results"]] == ["q0"]
    assert state.post(where, json={"filter": {"EQ": {"group": "none"}}}).status_code == 204
    assert error_of(state.post(where, json={"filter": {"LIKE": {"a": 1}}})) == (500, "ERR_STATE_QUERY")


def test_keys_are_unescaped(state: httpx.Client) -> None:
    """A key may hold a slash or a blank: `%2F`, and `+` for a blank."""
    assert save(state, {"key": "a/b c", "value": 1}).status_code == 204
    found = state.get(f"{STATE}/a%2Fb+c")
    assert (found.status_code, found.content) == (200, b"1")


def test_components_from_resources(serve: Callable[..., Any], tmp_path: Path) -> None:
    """Components of --resources-path are served by their names; keyPrefix decides what they share; scopes who sees
    them."""
    (tmp_path / "stores.yaml").write_text(
        f"""
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: mine}}
spec:
  type: state.sqlite
  version: v1
  metadata: [{{name: connectionString, value: "{tmp_path / "mine.db"}"}}]
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: fleeting}}
spec: {{type: state.in-memory, version: v1}}
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: theirs}}
spec: {{type: state.in-memory, version: v1}}
scopes: [another-app]
"""
    )
    with serve(resources_path=(tmp_path,)) as server, httpx.Client(base_url=server.url, **PLAIN) as client:
        assert client.post("/v1.0/state/mine", json=[{"key": "k", "value": 1}]).status_code == 204
        assert client.get("/v1.0/state/mine/k").json() == 1
        assert client.get("/v1.0/state/fleeting/k").status_code == 204
        for unknown in ("theirs", "statestore"):
            assert client.get(f"/v1.0/state/{unknown}/k").status_code == 400
        components = client.get("/v1.0/metadata").json()["components"]
        assert [(c["name"], c["type"]) for c in components] == [
            ("mine", "state.sqlite"),
            ("fleeting", "state.in-memory"),
        ]
        assert {"ETAG", "TRANSACTIONAL", "ACTOR"} <= set(components[0]["capabilities"])


def test_default_time_to_live(serve: Callable[..., Any], tmp_path: Path) -> None:
    """A component's `ttlInSeconds` is that of keys that are written without one; -1 keeps a key for good."""
    (tmp_path / "store.yaml").write_text(
        """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: statestore}
spec: {type: state.in-memory, version: v1, metadata: [{name: ttlInSeconds, value: "100"}]}
"""
    )
    with serve(resources_path=(tmp_path,)) as server, httpx.Client(base_url=server.url, **PLAIN) as client:
        save(client, {"key": "a", "value": 1}, {"key": "b", "value": 1, "metadata": {"ttlInSeconds": "-1"}})
        assert "metadata.ttlExpireTime" in client.get(f"{STATE}/a").headers
        assert "metadata.ttlExpireTime" not in client.get(f"{STATE}/b").headers
