"""The workflow API over HTTP, row by row of Dapr's API reference, and what we add to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

if TYPE_CHECKING:
    import httpx

DAPR = "/v1.0/workflows/dapr"
OWN = "/v1.0/mecha/workflows"


def error_of(response: httpx.Response) -> tuple[int, str]:
    body = response.json()
    assert set(body) == {"errorCode", "message"}
    return response.status_code, body["errorCode"]


@pytest.fixture
def instance() -> str:
    """An instance id nobody else uses."""
    return uuid4().hex


def start(api: httpx.Client, name: str, instance: str, body: bytes = b"", **params: str) -> httpx.Response:
    return api.post(f"{DAPR}/{name}/start", params={"instanceID": instance, **params}, content=body)


def result(api: httpx.Client, instance: str) -> dict[str, Any]:
    answer = api.get(f"{OWN}/{instance}/result", params={"timeout": "30s"})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize("prefix", ["v1.0", "v1.0-beta1", "v1.0-alpha1"])
def test_start_and_look_under_each_prefix(api: httpx.Client, instance: str, prefix: str) -> None:
    """Start answers 202 with the id and where to look; the status object is Dapr's; the component means nothing."""
    base = f"/{prefix}/workflows/anything"
    started = api.post(f"{base}/doubling/start", params={"instanceID": instance}, content=b"10")
    assert (started.status_code, started.json()) == (202, {"instanceID": instance})
    assert started.headers["location"] == f"{base}/{instance}"
    assert result(api, instance)["output"] == 40
    status = api.get(started.headers["location"]).json()
    assert set(status) == {
        "instanceID", "workflowName", "createdAt", "lastUpdatedAt", "runtimeStatus", "properties",
    }  # fmt: skip
    assert (status["workflowName"], status["runtimeStatus"]) == ("doubling", "COMPLETED")
    assert status["properties"] == {"dapr.workflow.input": "10", "dapr.workflow.output": "40"}


def test_random_id(api: httpx.Client) -> None:
    """Without an id the instance gets a UUID; without a body the workflow gets its default."""
    started = api.post(f"{DAPR}/doubling/start").json()["instanceID"]
    assert str(UUID(started)) == started
    assert result(api, started)["output"] == 4


@pytest.mark.parametrize("where", [f"{DAPR}/doubling/start", f"{OWN}/doubling/run"])
def test_of_several_ids_the_first_counts(api: httpx.Client, instance: str, where: str) -> None:
    """As in Go. It is the one that a proxy in front may have looked at."""
    started = api.post(where, params={"instanceID": [instance, f"{instance}-second"]}, content=b"1")
    assert started.json()["instanceID"] == instance


@pytest.mark.parametrize(
    ("body", "value"), [(b'{"a": 1}', {"a": 1}), (b'"text"', "text"), (b"plain text", "plain text"), (b"", None)]
)
def test_inputs(api: httpx.Client, instance: str, body: bytes, value: Any) -> None:
    """The body is JSON when it is JSON, else text."""
    start(api, "echoing", instance, body)
    assert result(api, instance)["output"] == value


def test_ids_are_checked(api: httpx.Client, instance: str) -> None:
    """Too long and forbidden characters are Dapr's 400s; an id in use is 500 ERR_START_WORKFLOW."""
    assert error_of(start(api, "doubling", "x" * 65)) == (400, "ERR_INSTANCE_ID_TOO_LONG")
    for bad in ("a b", "a/b", "a.b", "ä"):
        assert error_of(start(api, "doubling", bad)) == (400, "ERR_INSTANCE_ID_INVALID")
    assert start(api, "approval", instance, b"{}").status_code == 202
    again = start(api, "approval", instance, b"{}")
    assert error_of(again) == (500, "ERR_START_WORKFLOW")
    assert "already exists" in again.json()["message"]
    api.post(f"{DAPR}/{instance}/terminate")


def test_unknown_workflow_and_wrong_input(api: httpx.Client, instance: str) -> None:
    """Each has a status and code of its own, and starts nothing."""
    assert error_of(start(api, "nix", instance)) == (404, "ERR_WORKFLOW_UNKNOWN")
    assert error_of(start(api, "doubling", instance, b'"x"')) == (400, "ERR_MALFORMED_REQUEST")
    refused = start(api, "doubling", instance, b"{x")
    assert error_of(refused) == (400, "ERR_MALFORMED_REQUEST")
    assert refused.json()["message"].startswith("doubling: Input should be a valid integer")
    assert "the body is no JSON, so it was taken as text" in refused.json()["message"]
    assert error_of(start(api, "approval", instance, b"[1]")) == (400, "ERR_MALFORMED_REQUEST")
    refused = api.post(f"{DAPR}/approval/start", params={"instanceID": instance})
    assert "the body is empty, so the input is null" in refused.json()["message"]
    refused = start(api, "clockwatching", instance, b"1")
    assert error_of(refused) == (400, "ERR_MALFORMED_REQUEST")
    assert refused.json()["message"] == "clockwatching: takes no input: leave it out"
    assert error_of(api.get(f"{DAPR}/{instance}")) == (404, "ERR_INSTANCE_ID_NOT_FOUND")


@pytest.mark.parametrize("body", [b"", b"null", b"{}", b"[]"])
def test_no_input(api: httpx.Client, instance: str, body: bytes) -> None:
    """A workflow without a parameter may be sent what says so."""
    assert start(api, "clockwatching", instance, body).status_code == 202


def test_names_no_instance_can_have(api: httpx.Client, instance: str) -> None:
    """An id that cannot be one is 400 and called what it is, whatever is asked of it."""
    for bad in ("a%2Fb", "%2E%2E", "%23", "%00"):
        for answer in (
            api.get(f"{DAPR}/{bad}"),
            api.get(f"{OWN}/{bad}/result"),
            api.get(f"{OWN}/{bad}/history"),
            api.post(f"{DAPR}/{bad}/raiseEvent/e"),
            api.post(f"{DAPR}/{bad}/purge"),
        ):
            assert error_of(answer) == (400, "ERR_BAD_REQUEST")
            assert answer.json()["message"].startswith("workflow instance ID ")


def test_the_component_is_a_path_not_a_header(api: httpx.Client, instance: str) -> None:
    """Whatever the client calls the component comes back escaped: no line of the answer can be written by it."""
    for component in ("a%0D%0Ax-evil:%201", "%E2%82%AC", "a%2Fb", "a%20b"):
        started = api.post(f"/v1.0/workflows/{component}/nothing/start", content=b"1")
        assert error_of(started) == (404, "ERR_WORKFLOW_UNKNOWN")
        started = api.post(f"/v1.0/workflows/{component}/echoing/start", content=b"1")
        assert "x-evil" not in started.headers
        assert started.headers["location"] == f"/v1.0/workflows/{component}/{started.json()['instanceID']}"
        assert result(api, started.json()["instanceID"])["output"] == 1
        assert api.get(started.headers["location"]).json()["runtimeStatus"] == "COMPLETED"


def test_failure(api: httpx.Client, instance: str) -> None:
    """A failed instance shows what happened, and no output."""
    start(api, "breaking", instance, b'"gone"')
    found = result(api, instance)
    assert found["runtimeStatus"] == "FAILED"
    assert (found["failure"]["type"], found["failure"]["message"]) == ("LookupError", "gone")
    properties = api.get(f"{DAPR}/{instance}").json()["properties"]
    assert properties["dapr.workflow.failure.error_type"] == "LookupError"
    assert properties["dapr.workflow.failure.error_message"] == "gone"
    assert "dapr.workflow.output" not in properties


def test_external_event(api: httpx.Client, instance: str) -> None:
    """An event with a payload wakes the workflow; its custom status shows meanwhile."""
    start(api, "approval", instance, b'{"n": 1}')
    waiting = api.get(f"{OWN}/{instance}/result", params={"timeout": "10ms"})
    assert (waiting.status_code, waiting.json()["runtimeStatus"]) == (202, "RUNNING")
    assert waiting.headers["retry-after"] == "1"
    assert api.get(f"{DAPR}/{instance}").json()["properties"]["dapr.workflow.custom_status"] == "waiting"
    raised = api.post(f"{DAPR}/{instance}/raiseEvent/approve", content=b'{"by": "me"}')
    assert (raised.status_code, raised.json()) == (202, {})
    assert result(api, instance)["output"] == {"asked": {"n": 1}, "answer": {"by": "me"}}


def test_pause_resume_terminate_purge(api: httpx.Client, instance: str) -> None:
    """Each command answers 202 with {} and does what it says."""
    start(api, "approval", instance, b"{}")
    for verb, status in (("pause", "SUSPENDED"), ("resume", "RUNNING"), ("terminate", "TERMINATED")):
        answer = api.post(f"{DAPR}/{instance}/{verb}")
        assert (answer.status_code, answer.json()) == (202, {})
        assert api.get(f"{DAPR}/{instance}").json()["runtimeStatus"] == status
    assert api.post(f"{DAPR}/{instance}/purge").status_code == 202
    assert error_of(api.get(f"{DAPR}/{instance}")) == (404, "ERR_INSTANCE_ID_NOT_FOUND")


def test_commands_on_unknown_instances(api: httpx.Client, instance: str) -> None:
    """404 where Dapr answers 404, 500 where it answers 500."""
    missing = (404, "ERR_INSTANCE_ID_NOT_FOUND")
    wanted = {
        "terminate": missing,
        "purge": missing,
        "pause": (500, "ERR_PAUSE_WORKFLOW"),
        "resume": (500, "ERR_RESUME_WORKFLOW"),
        "raiseEvent/e": (500, "ERR_RAISE_EVENT_WORKFLOW"),
    }
    assert {verb: error_of(api.post(f"{DAPR}/{instance}/{verb}")) for verb in wanted} == wanted
    for path in ("", "/result", "/history"):
        assert error_of(api.get(f"{OWN}/{instance}{path}")) == missing


def test_purge_of_an_unfinished_instance(api: httpx.Client, instance: str) -> None:
    """What has not ended is forgotten only when that is asked for."""
    start(api, "approval", instance, b"{}")
    assert error_of(api.post(f"{DAPR}/{instance}/purge")) == (500, "ERR_PURGE_WORKFLOW")
    assert api.post(f"{DAPR}/{instance}/purge", params={"force": "true"}).status_code == 202
    assert error_of(api.get(f"{DAPR}/{instance}")) == (404, "ERR_INSTANCE_ID_NOT_FOUND")


def test_app_id(api: httpx.Client, instance: str) -> None:
    """`?appID=` may name this app; bad characters are 400; another app cannot be reached."""
    assert start(api, "doubling", instance, appID="sample").status_code == 202
    assert error_of(start(api, "doubling", instance, appID="a b")) == (400, "ERR_WORKFLOW_APP_ID_INVALID")
    other = api.get(f"{DAPR}/{instance}", params={"appID": "other"})
    assert error_of(other) == (500, "ERR_GET_WORKFLOW")
    assert "did not find address for actor" in other.json()["message"]


def test_delayed_start(api: httpx.Client, instance: str) -> None:
    """With `start`, the instance is PENDING until then; a time that cannot be read is 400."""
    start(api, "doubling", instance, b"1", start="PT1H")
    assert api.get(f"{DAPR}/{instance}").json()["runtimeStatus"] == "PENDING"
    api.post(f"{DAPR}/{instance}/terminate")
    assert start(api, "doubling", f"{instance}-2", b"1", start="2000-01-01T00:00:00Z").status_code == 202
    assert result(api, f"{instance}-2")["output"] == 4
    wrong = start(api, "doubling", f"{instance}-3", start="PT1.5S")
    assert error_of(wrong) == (400, "ERR_BAD_REQUEST")
    assert "ISO 8601 whole numbers only" in wrong.json()["message"]


def test_idempotent_start(api: httpx.Client, instance: str) -> None:
    """A start that is repeated with its key is the first one (INV-8)."""
    headers = {"idempotency-key": instance}
    ids = {api.post(f"{DAPR}/doubling/start", content=b"1", headers=headers).json()["instanceID"] for _ in range(3)}
    assert len(ids) == 1


@pytest.mark.parametrize("query", ["", "&appID=sample"], ids=["hot", "general"])
def test_a_start_is_remembered_when_it_is_gone(api: httpx.Client, instance: str, query: str) -> None:
    """Under its key it is the first one when another has followed, and when that was purged (INV-8); the start of
    another workflow is not taken for it."""

    def started(name: str, key: str) -> tuple[int, str]:
        where = f"{DAPR}/{name}/start?instanceID={instance}{query}"
        answer = api.post(where, content=b"1", headers={"idempotency-key": key})
        return answer.status_code, answer.json().get("instanceID", "")

    assert started("doubling", "k") == (202, instance)
    result(api, instance)
    assert started("echoing", "k") == (202, instance)
    result(api, instance)
    for name, key in (("doubling", "k"), ("echoing", "m")):
        assert started(name, key) == (202, instance)
    assert result(api, instance)["workflowName"] == "echoing"
    api.post(f"{DAPR}/{instance}/purge")
    for name, key in (("doubling", "k"), ("echoing", "k"), ("echoing", "m")):
        assert started(name, key) == (202, instance)
    assert error_of(api.get(f"{DAPR}/{instance}")) == (404, "ERR_INSTANCE_ID_NOT_FOUND")


@pytest.mark.parametrize("query", ["", "?appID=sample"], ids=["hot", "general"])
def test_events_under_one_key_are_one_event(api: httpx.Client, instance: str, query: str) -> None:
    """An event that is raised again with its key has been raised once (INV-8); without one it is another."""
    start(api, "approval", instance, b"{}")
    api.post(f"{DAPR}/{instance}/pause")
    for headers in ({"idempotency-key": "k"}, {"idempotency-key": "k"}, {"idempotency-key": "l"}, {}, {}):
        raised = api.post(f"{DAPR}/{instance}/raiseEvent/other{query}", content=b"1", headers=headers)
        assert raised.status_code == 202
    bad = api.post(f"{DAPR}/{instance}/raiseEvent/other{query}", headers={"idempotency-key": ""})
    assert error_of(bad) == (400, "ERR_BAD_REQUEST")
    turns = api.get(f"{OWN}/{instance}/history").json()["items"]
    assert [item[:2] for turn in turns for item in turn["inputs"] if item[0] == "event"] == [["event", "other"]] * 4
    api.post(f"{DAPR}/{instance}/terminate")


def test_idempotent_purge(api: httpx.Client, instance: str) -> None:
    """A purge that is repeated with its key has been done; without one there is nothing any more."""
    start(api, "approval", instance, b"{}")
    api.post(f"{DAPR}/{instance}/terminate")
    for _ in range(2):
        assert api.post(f"{DAPR}/{instance}/purge", headers={"idempotency-key": "k"}).status_code == 202
    assert error_of(api.post(f"{DAPR}/{instance}/purge")) == (404, "ERR_INSTANCE_ID_NOT_FOUND")


def test_run(api: httpx.Client, instance: str) -> None:
    """Start and wait in one request; 202 when the wait was too short, and the instance goes on."""
    done = api.post(f"{OWN}/doubling/run", params={"instanceID": instance}, content=b"5")
    assert (done.status_code, done.json()["output"]) == (200, 20)
    assert done.headers["location"] == f"{DAPR}/{instance}"
    waiting = api.post(f"{OWN}/approval/run", params={"instanceID": f"{instance}-2", "timeout": "10ms"}, content=b"{}")
    assert (waiting.status_code, waiting.json()["runtimeStatus"]) == (202, "RUNNING")
    api.post(f"{DAPR}/{instance}-2/terminate")
    assert error_of(api.post(f"{OWN}/nix/run")) == (404, "ERR_WORKFLOW_UNKNOWN")
    assert error_of(api.post(f"{OWN}/doubling/run", params={"timeout": "long"})) == (400, "ERR_BAD_REQUEST")


def test_listing(api: httpx.Client, instance: str) -> None:
    """By prefix, name and status, page by page."""
    for n in range(3):
        start(api, "doubling", f"{instance}-{n}", b"1")
        result(api, f"{instance}-{n}")
    start(api, "approval", f"{instance}-9", b"{}")
    page = api.get(OWN, params={"prefix": instance, "limit": 3}).json()
    assert [line["instanceID"] for line in page["items"]] == [f"{instance}-{n}" for n in range(3)]
    rest = api.get(OWN, params={"prefix": instance, "limit": 3, "after": page["next"]}).json()
    assert [(line["instanceID"], line["runtimeStatus"]) for line in rest["items"]] == [(f"{instance}-9", "RUNNING")]
    for filters, count in (
        ({"name": "doubling"}, 3),
        ({"status": ["RUNNING", "PENDING"]}, 1),
        ({"status": "FAILED"}, 0),
    ):
        assert len(api.get(OWN, params={"prefix": instance, **filters}).json()["items"]) == count
    api.post(f"{DAPR}/{instance}-9/terminate")


def test_history(api: httpx.Client, instance: str) -> None:
    """The recorded turns, oldest first."""
    start(api, "doubling", instance, b"1")
    result(api, instance)
    items = api.get(f"{OWN}/{instance}/history").json()["items"]
    assert [item["version"] for item in items] == list(range(1, len(items) + 1))
    assert items[0]["inputs"][0][0] == "started"


def test_instances_are_no_actors_of_the_application(api: httpx.Client, instance: str) -> None:
    """The actor type that workflows stand on cannot be called, changed or listed from outside."""
    for answer in (
        api.post(f"/v1.0/actors/mecha.workflow/{instance}/method/pause"),
        api.put(f"/v1.0/actors/mecha.workflow/{instance}//method/pause"),
        api.get(f"/v1.0/actors/mecha.workflow/{instance}/state/status"),
        api.post(f"/v1.0/actors/mecha.workflow/{instance}/reminders/r", json={"dueTime": "1s"}),
        api.delete(f"/v1.0/mecha/actors/mecha.workflow/{instance}"),
    ):
        assert error_of(answer) == (403, "ERR_ACTOR_TYPE_RESERVED")
    assert error_of(api.get("/v1.0/mecha/actors/mecha.workflow"))[0] == 404


def test_an_unknown_status_in_a_listing(api: httpx.Client) -> None:
    """Asking for a status there is not says which there are, rather than finding nothing."""
    refused = api.get(OWN, params={"status": ["COMPLETED", "DONE"]})
    assert refused.status_code == 400
    assert "'DONE' is none of COMPLETED, FAILED," in refused.json()["message"]
    assert api.get(OWN, params={"status": "COMPLETED"}).status_code == 200


def test_a_stalled_instance_is_unknown_to_dapr(api: httpx.Client, instance: str) -> None:
    """Dapr's protocol has no word for it, our own paths have."""
    start(api, "clockwatching", instance)
    assert api.get(f"{OWN}/{instance}/result").json()["runtimeStatus"] == "STALLED"
    assert api.get(f"{DAPR}/{instance}").json()["runtimeStatus"] == "UNKNOWN"
