"""The actor API over HTTP, row by row of Dapr's API reference, and what we add to it."""

from __future__ import annotations

import threading
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.servers import PLAIN

ACTORS = "/v1.0/actors"
OWN = "/v1.0/mecha/actors"


def error_of(response: httpx.Response) -> tuple[int, str]:
    """Status and code of an error, whose body must be in the plain shape."""
    body = response.json()
    assert set(body) == {"errorCode", "message"}
    return response.status_code, body["errorCode"]


@pytest.fixture
def account() -> str:
    """The path of an account nobody else uses."""
    return f"{ACTORS}/Account/{uuid4().hex}"


def test_call(api: httpx.Client, account: str) -> None:
    """The body is the argument, the answer the result as JSON, whatever the content type and verb."""
    assert api.post(f"{account}/method/deposit", content=b"5").json() == 5
    answer = api.put(f"{account}/method/deposit", content=b"7", headers={"content-type": "text/plain"})
    assert (answer.status_code, answer.json(), answer.headers["content-type"]) == (200, 12, "application/json")
    assert api.get(f"{account}/method/statement").json() == 12
    assert api.delete(f"{account}/method/statement").json() == 12


def test_arguments(api: httpx.Client, account: str) -> None:
    """Several parameters: an object by name, or an array by position; defaults hold."""
    where = f"{account}/method/rename"
    assert api.post(where, json={"owner": "alice"}).json() == "alice:0"
    assert api.post(where, json={"bonus": 2, "owner": "bob"}).json() == "bob:2"
    assert api.post(where, json=["carol", 3]).json() == "carol:5"


def test_none_is_null(api: httpx.Client, account: str) -> None:
    """A method without result answers 200 with `null`."""
    answer = api.post(f"{account}/method/nothing")
    assert (answer.status_code, answer.content) == (200, b"null")


def test_failing_method(api: httpx.Client, account: str) -> None:
    """An exception is 500 ERR_ACTOR_INVOKE_METHOD in Dapr's words, and leaves no trace."""
    api.post(f"{account}/method/deposit", content=b"5")
    answer = api.post(f"{account}/method/fail", json="no funds")
    assert error_of(answer) == (500, "ERR_ACTOR_INVOKE_METHOD")
    message = "error invoke actor method: error from actor service: (500) ValueError: no funds"
    assert answer.json()["message"] == message
    assert api.get(f"{account}/method/statement").json() == 5


def test_unserialisable_result(api: httpx.Client, account: str) -> None:
    """A result without a JSON form has an error of its own, and leaves no trace."""
    answer = api.post(f"{account}/method/unserialisable")
    assert error_of(answer) == (500, "ERR_ACTOR_RESULT_UNSERIALIZABLE")
    assert api.get(f"{account}/method/statement").json() == 0


def test_unknown_method(api: httpx.Client, account: str) -> None:
    """An unknown method is 500 with Dapr's text; so are hooks and the runtime's own methods."""
    for method in ("nix", "on_activate", "receive_reminder", "$delete"):
        answer = api.post(f"{account}/method/{method}")
        assert error_of(answer) == (500, "ERR_ACTOR_INVOKE_METHOD")
        where = account.removeprefix("/v1.0/")
        assert answer.json()["message"] == f"error invoke actor method: actor method not found: {where}/method/{method}"


def test_unknown_type(api: httpx.Client) -> None:
    """A type nobody hosts is told at once, with the phrase Dapr's clients look for."""
    answer = api.post(f"{ACTORS}/Nobody/1/method/m")
    assert error_of(answer) == (500, "ERR_ACTOR_INVOKE_METHOD")
    assert answer.json()["message"].endswith("did not find address for actor 'Nobody/1'")


@pytest.mark.parametrize("name", ["a%2Fb", "a%23b", "a%3Fb", "a%00b", "a%5Cb", "%2E", "%2E%2E", "a%0Ab"])
def test_names_are_checked(api: httpx.Client, name: str) -> None:
    """Forbidden characters in a type or an id are 400 ERR_BAD_REQUEST."""
    for path in (f"/Account/{name}/method/deposit", f"/{name}/id/method/deposit"):
        assert error_of(api.post(ACTORS + path, content=b"1")) == (400, "ERR_BAD_REQUEST")


@pytest.mark.parametrize("body", [b"", b'"x"', b"{}", b"[1,2]", b"{", b"\xff", b"1 2", b"null", b"1.5"])
def test_wrong_arguments(api: httpx.Client, account: str, body: bytes) -> None:
    """Wrong JSON, a wrong type or a wrong number of arguments is 400 ERR_MALFORMED_REQUEST."""
    assert error_of(api.post(f"{account}/method/deposit", content=body)) == (400, "ERR_MALFORMED_REQUEST")
    assert api.post(f"{account}/method/deposit", content=b"1").json() == 1


def test_arguments_for_a_method_without(api: httpx.Client, account: str) -> None:
    """The refusal says what to send instead."""
    refused = api.put(f"{account}/method/statement", content=b"5")
    assert refused.status_code == 400
    assert "statement takes no arguments: send an empty body" in refused.json()["message"]


def test_idempotency_key(api: httpx.Client, account: str) -> None:
    """A keyed call takes effect once and answers the same again (INV-8)."""
    headers = {"idempotency-key": "k1"}
    assert [api.post(f"{account}/method/deposit", content=b"5", headers=headers).json() for _ in range(3)] == [5, 5, 5]
    assert api.get(f"{account}/method/statement").json() == 5
    longer = api.post(f"{account}/method/deposit", content=b"5", headers={"idempotency-key": "x" * 256})
    assert error_of(longer) == (400, "ERR_BAD_REQUEST")


def test_trace_id(api: httpx.Client, account: str) -> None:
    """The trace id of a traceparent reaches the turn and stands in the history."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    assert api.post(f"{account}/method/trace", headers=headers).json() == trace
    api.post(f"{account}/method/deposit", content=b"1", headers=headers)
    history = api.get(f"{OWN}/{account.removeprefix(ACTORS + '/')}/history").json()["items"]
    assert [event["traceId"] for event in history] == [trace]


def test_full_mailbox_and_deadline(api: httpx.Client) -> None:
    """A full mailbox is 429 with Retry-After, a deadline that passes 504; the turn that was late left no trace."""
    gate = f"{ACTORS}/Gate/{uuid4().hex}/method"
    late = api.post(f"{gate}/enter", headers={"mecha-timeout": "50ms"})
    assert error_of(late) == (504, "ERR_ACTOR_DEADLINE_EXCEEDED")
    answers: list[httpx.Response] = []

    def enter() -> None:
        answers.append(httpx.post(f"{api.base_url}{gate}/enter", timeout=30, **PLAIN))

    callers = [threading.Thread(target=enter) for _ in range(8)]
    for caller in callers:
        caller.start()
    while all(a.status_code == 200 for a in answers) and any(caller.is_alive() for caller in callers):
        callers[0].join(0.005)
    assert api.post(f"{gate}/release").json() is True
    for caller in callers:
        caller.join(30)
    refused = [a for a in answers if a.status_code == 429]
    passed = sorted(a.json() for a in answers if a.status_code == 200)
    assert len(refused) + len(passed) == 8
    assert passed == list(range(1, len(passed) + 1))
    assert error_of(refused[0]) == (429, "ERR_ACTOR_MAILBOX_FULL")
    assert refused[0].headers["retry-after"] == "1"


def test_malformed_timeout(api: httpx.Client, account: str) -> None:
    """A timeout that cannot be read is the caller's error."""
    answer = api.post(f"{account}/method/deposit", content=b"1", headers={"mecha-timeout": "soon"})
    assert error_of(answer) == (400, "ERR_BAD_REQUEST")


# -- state -----------------------------------------------------------------------------------------------------------


def test_state_of_an_actor(api: httpx.Client, account: str) -> None:
    """A field is read as raw JSON without activating; missing ones are 204; a transaction needs an active actor."""
    assert api.get(f"{account}/state/balance").status_code == 204
    upsert = [{"operation": "upsert", "request": {"key": "balance", "value": 40}}]
    assert error_of(api.post(f"{account}/state", json=upsert)) == (400, "ERR_ACTOR_INSTANCE_MISSING")
    api.post(f"{account}/method/deposit", content=b"2")
    changed = api.put(
        f"{account}/state", json=[*upsert, {"operation": "upsert", "request": {"key": "owner", "value": "x"}}]
    )
    assert (changed.status_code, changed.content) == (204, b"")
    assert api.get(f"{account}/state/balance").content == b"40"
    assert api.post(f"{account}/method/deposit", content=b"2").json() == 42
    assert api.get(f"{account}/state/nix").status_code == 204
    assert (
        api.post(f"{account}/state", json=[{"operation": "delete", "request": {"key": "balance"}}]).status_code == 204
    )
    assert api.get(f"{account}/method/statement").json() == 0


@pytest.mark.parametrize(
    "operation",
    [
        {"operation": "increment", "request": {"key": "balance"}},
        {"operation": "upsert", "request": {"value": 1}},
        {"operation": "upsert", "request": {"key": "nix", "value": 1}},
        {"operation": "upsert", "request": {"key": "balance", "value": "much"}},
        {"operation": "upsert", "request": {"key": "balance", "value": 1, "etag": "1"}},
        {"operation": "upsert", "request": {"key": "balance", "value": 1, "metadata": {"ttlInSeconds": "1"}}},
    ],
)
def test_failed_state_transactions(api: httpx.Client, account: str, operation: dict[str, Any]) -> None:
    """What cannot be done is 500 ERR_ACTOR_STATE_TRANSACTION_SAVE, and none of it is done."""
    api.post(f"{account}/method/deposit", content=b"2")
    first = {"operation": "upsert", "request": {"key": "owner", "value": "changed"}}
    answer = api.post(f"{account}/state", json=[first, operation])
    assert error_of(answer) == (500, "ERR_ACTOR_STATE_TRANSACTION_SAVE")
    assert api.get(f"{account}/state/owner").content in (b"", b'""')


def test_reserved_types(api: httpx.Client) -> None:
    """Types of the runtime itself are closed to state, reminder and timer calls."""
    base = f"{ACTORS}/dapr.internal.default.app.workflow/x"
    for answer in (
        api.get(f"{base}/state/k"),
        api.post(f"{base}/state", json=[]),
        api.post(f"{base}/reminders/r", json={}),
        api.post(f"{base}/timers/t", json={}),
    ):
        assert error_of(answer) == (403, "ERR_ACTOR_TYPE_RESERVED")


# -- reminders and timers --------------------------------------------------------------------------------------------


def test_reminder(api: httpx.Client, account: str) -> None:
    """Set, read, list, refuse to overwrite, overwrite, delete."""
    where = f"{account}/reminders/wake"
    wanted = {"dueTime": "1h", "period": "R5/PT10S", "data": {"a": 1}}
    assert api.post(where, json=wanted).status_code == 204
    found = api.get(where).json()
    assert (found["actorID"], found["actorType"]) == (account.rpartition("/")[2], "Account")
    assert (found["data"], found["period"]) == ({"a": 1}, "@every 10s")
    assert found["dueTime"].endswith("Z")
    assert "ttl" not in found
    listed = api.get(f"{OWN}/{account.removeprefix(ACTORS + '/')}/reminders").json()["items"]
    assert [line["name"] for line in listed] == ["wake"]
    taken = api.put(where, json={"dueTime": "2h", "overwrite": False})
    assert error_of(taken) == (409, "ERR_ACTOR_REMINDER_ALREADY_EXISTS")
    assert api.put(where, json={"DUETIME": "2h"}).status_code == 204
    assert "period" not in api.get(where).json()
    for _ in range(2):
        assert api.delete(where).status_code == 204
    assert error_of(api.get(where)) == (404, "ERR_ACTOR_REMINDER_NOT_FOUND")


def _fired(api: httpx.Client, account: str, wanted: str) -> bool:
    """Whether it fired; each look is a round trip, so a second passes in a few hundred of them."""
    for _ in range(2000):
        found = api.get(f"{account}/state/fired")
        if found.content and wanted in found.json():
            return True
    return False


def test_reminders_and_timers_fire(api: httpx.Client, account: str) -> None:
    """A due reminder calls receive_reminder, a due timer its callback, both with their data."""
    assert api.post(f"{account}/reminders/now", json={"dueTime": "0s", "data": "r"}).status_code == 204
    assert (
        api.post(f"{account}/timers/now", json={"dueTime": "0s", "callback": "on_timer", "data": "t"}).status_code
        == 204
    )
    assert _fired(api, account, "now:r")
    assert _fired(api, account, "timer:t")


@pytest.mark.parametrize("body", [{"dueTime": "soon"}, {}, {"ttl": "1s"}, {"period": "R0/PT1S"}])
def test_bad_reminders(api: httpx.Client, account: str, body: dict[str, Any]) -> None:
    """Times that cannot be read, or never come, are 500 ERR_ACTOR_REMINDER_CREATE."""
    assert error_of(api.post(f"{account}/reminders/r", json=body)) == (500, "ERR_ACTOR_REMINDER_CREATE")


def test_bad_timers(api: httpx.Client, account: str) -> None:
    """A timer's bad time, a callback and a type that are not there are 500 ERR_ACTOR_TIMER_CREATE."""
    answer = api.post(f"{account}/timers/t", json={"callback": "nowhere"})
    assert error_of(answer) == (500, "ERR_ACTOR_TIMER_CREATE")
    assert "Account has no method 'nowhere'" in answer.json()["message"]
    assert error_of(api.post(f"{account}/timers/t", json={"dueTime": "soon"})) == (500, "ERR_ACTOR_TIMER_CREATE")
    answer = api.post(f"{account}/timers/t", json={"dueTime": "1h"})
    assert error_of(answer) == (500, "ERR_ACTOR_TIMER_CREATE")
    assert "Account has no receive_timer(name, data)" in answer.json()["message"]
    assert error_of(api.post(f"{ACTORS}/Nobody/1/timers/t", json={})) == (500, "ERR_ACTOR_TIMER_CREATE")
    assert api.delete(f"{account}/timers/t").status_code == 204
    assert api.delete(f"{ACTORS}/Nobody/1/timers/t").status_code == 204


def test_reminders_of_types_hosted_elsewhere(api: httpx.Client) -> None:
    """403 ERR_ACTOR_REMINDER_NON_HOSTED for each verb."""
    where = f"{ACTORS}/Nobody/1/reminders/r"
    for answer in (api.post(where, json={"dueTime": "1s"}), api.get(where), api.delete(where)):
        assert error_of(answer) == (403, "ERR_ACTOR_REMINDER_NON_HOSTED")


@pytest.mark.parametrize("kind", ["reminders", "timers"])
def test_malformed_reminders_and_timers(api: httpx.Client, account: str, kind: str) -> None:
    """Bad JSON and wrong types are 400 ERR_MALFORMED_REQUEST, a bad name 400 ERR_BAD_REQUEST."""
    for body in (b"", b"{", b"[]", b'{"dueTime":5}', b'{"overwrite":"yes","callback":1}'):
        assert error_of(api.post(f"{account}/{kind}/n", content=body)) == (400, "ERR_MALFORMED_REQUEST")
    assert error_of(api.post(f"{account}/{kind}/a%2Fb", json={})) == (400, "ERR_BAD_REQUEST")


def test_malformed_keys_are_named_as_they_were_sent(api: httpx.Client, account: str) -> None:
    """What is wrong is said about the key of the protocol, not about ours."""
    answer = api.post(f"{account}/reminders/r", json={"DUETIME": 5})
    assert error_of(answer) == (400, "ERR_MALFORMED_REQUEST")
    assert "dueTime: " in answer.json()["message"]


# -- additions -------------------------------------------------------------------------------------------------------


def test_list_types(api: httpx.Client) -> None:
    """The served types with their methods and activations."""
    types = {line["type"]: line for line in api.get(OWN).json()["types"]}
    assert set(types) == {"Account", "Ledger", "Gate", "Odd.Type-1"}
    assert "deposit" in types["Account"]["methods"]


def test_list_actors_in_pages(api: httpx.Client) -> None:
    """By prefix, in order of id, page by page to the end; filters that match nothing give an empty page."""
    mark = uuid4().hex
    for n in range(5):
        api.post(f"{ACTORS}/Ledger/{mark}-{n}/method/post", content=b"1")
    ids, after = [], ""
    for _ in range(3):
        page = api.get(f"{OWN}/Ledger", params={"prefix": mark, "limit": 2, "after": after}).json()
        ids += [line["id"] for line in page["items"]]
        after = page.get("next", "")
    assert ids == [f"{mark}-{n}" for n in range(5)]
    assert after == ""
    for nothing in ({"status": "odd"}, {"name": "odd"}, {"createdTo": "2000-01-01T00:00:00Z"}):
        assert api.get(f"{OWN}/Ledger", params={"prefix": mark, **nothing}).json() == {"items": []}
    assert (
        len(api.get(f"{OWN}/Ledger", params={"prefix": mark, "createdFrom": "2000-01-01T00:00:00Z"}).json()["items"])
        == 5
    )


@pytest.mark.parametrize("params", [{"limit": "0"}, {"limit": "x"}, {"createdFrom": "yesterday"}])
def test_bad_listing_parameters(api: httpx.Client, params: dict[str, str]) -> None:
    """A parameter that cannot be read is 400 ERR_BAD_REQUEST."""
    assert error_of(api.get(f"{OWN}/Ledger", params=params)) == (400, "ERR_BAD_REQUEST")


def test_history_and_state_as_of_a_version(api: httpx.Client) -> None:
    """The journal is the audit log, and any version can be read."""
    name = uuid4().hex
    for amount in (b"1", b"10", b"100"):
        api.post(f"{ACTORS}/Ledger/{name}/method/post", content=amount)
    history = api.get(f"{OWN}/Ledger/{name}/history").json()["items"]
    assert [(e["version"], e["name"], e["data"]) for e in history] == [
        (1, "posted", {"amount": 1}),
        (2, "posted", {"amount": 10}),
        (3, "posted", {"amount": 100}),
    ]
    assert all(e["turnId"] and e["time"].endswith("Z") for e in history)
    second = api.get(f"{OWN}/Ledger/{name}/history", params={"after": 1, "limit": 1}).json()
    assert ([e["version"] for e in second["items"]], second["next"]) == ([2], 2)
    assert api.get(f"{OWN}/Ledger/{name}").json() == {
        "type": "Ledger",
        "id": name,
        "version": 3,
        "state": {"total": 111},
    }
    assert api.get(f"{OWN}/Ledger/{name}", params={"version": 2}).json()["state"] == {"total": 11}


def test_delete_actor(api: httpx.Client, account: str) -> None:
    """Deleting removes state, history and reminders; deleting what is not there succeeds, reading it is 404."""
    own = f"{OWN}/{account.removeprefix(ACTORS + '/')}"
    api.post(f"{account}/method/deposit", content=b"5")
    api.post(f"{account}/reminders/r", json={"dueTime": "1h"})
    for _ in range(2):
        assert api.delete(own).status_code == 204
    for path in ("", "?version=0", "/history", "/history?after=1", "/reminders"):
        assert error_of(api.get(own + path)) == (404, "ERR_ACTOR_NOT_FOUND")
    assert api.post(f"{account}/method/deposit", content=b"1").json() == 1
    for path in ("?version=0", "/history", "/history?after=1", "/reminders"):
        assert api.get(own + path).status_code == 200


def test_send(api: httpx.Client, account: str) -> None:
    """A message is accepted with 202 and takes effect later; what can never be delivered is refused."""
    own = f"{OWN}/{account.removeprefix(ACTORS + '/')}"
    sent = api.post(f"{own}/send/deposit", content=b"5")
    assert (sent.status_code, sent.json()) == (202, {})
    while api.get(f"{account}/method/statement").json() != 5:
        pass
    assert error_of(api.post(f"{own}/send/deposit", content=b"{")) == (400, "ERR_MALFORMED_REQUEST")
    assert error_of(api.post(f"{OWN}/Nobody/1/send/deposit", content=b"1")) == (404, "ERR_ACTOR_TYPE_UNKNOWN")
    long = {"idempotency-key": "k" * 2000}
    for where in (f"{own}/send/deposit", f"{account}/method/deposit"):
        assert error_of(api.post(where, content=b"5", headers=long)) == (400, "ERR_BAD_REQUEST")


@pytest.mark.parametrize("path", ["Nobody", "Nobody/1", "Nobody/1/history", "Nobody/1/reminders"])
def test_additions_on_unknown_types(api: httpx.Client, path: str) -> None:
    """404 with what there is instead."""
    answer = api.get(f"{OWN}/{path}")
    assert error_of(answer) == (404, "ERR_ACTOR_TYPE_UNKNOWN")
    assert "Account" in answer.json()["message"]
