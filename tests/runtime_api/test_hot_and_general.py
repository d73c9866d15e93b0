"""The hot path gives the answers of the general path, only sooner; and no request gets an answer that is not ours."""

from __future__ import annotations

import re
from uuid import uuid4

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime_api.hotroutes import ACTOR_METHOD, RAISE_EVENT, RESULT, RUN, START, STATE_KEY, STATUS

PATTERNS = (ACTOR_METHOD, STATE_KEY, START, RESULT, RUN, STATUS, RAISE_EVENT)
_IGNORED = {"date"}
_TIME = re.compile(rb"\d{4}-\d\d-\d\dT[^\"]*Z")


def told(response: httpx.Response, called: str) -> tuple[int, dict[str, str], bytes]:
    """An answer without what differs from one time, and from one id, to the other."""
    headers = {name: value.replace(called, "ID") for name, value in response.headers.items() if name not in _IGNORED}
    assert int(headers.pop("content-length", "0")) == len(response.content)
    return response.status_code, headers, _TIME.sub(b"T", response.content).replace(called.encode(), b"ID")


@pytest.mark.parametrize(
    ("verb", "path", "body", "headers"),
    [
        ("POST", "actors/Account/ID/method/deposit", b"5", {}),
        ("PUT", "actors/Account/ID/method/deposit", b"5", {"mecha-timeout": "5s"}),
        ("GET", "actors/Account/ID/method/statement", b"", {}),
        ("DELETE", "actors/Account/ID/method/statement", b"", {}),
        ("POST", "actors/Account/ID/method/nothing", b"", {}),
        ("POST", "actors/Account/ID/method/deposit", b'"x"', {}),
        ("POST", "actors/Account/ID/method/deposit", b"{", {}),
        ("POST", "actors/Account/ID/method/fail", b'"text"', {}),
        ("POST", "actors/Account/ID/method/unserialisable", b"", {}),
        ("POST", "actors/Account/ID/method/nix", b"", {}),
        ("POST", "actors/Nobody/ID/method/nix", b"", {}),
        ("POST", "actors/Account/../method/deposit", b"1", {}),
        ("POST", "actors/mecha.workflow/ID/method/pause", b"1", {}),
        ("POST", "actors/Odd.Type-1/~ID$!*'(),;=:@_-./method/get", b"", {}),
        ("POST", "actors/Account/ID/method/deposit", b"1", {"mecha-timeout": "never"}),
        ("POST", "actors/Account/ID/method/deposit", b"1", {"baggage": "bad"}),
        ("POST", "actors/Account/ID/method/trace", b"", {"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"}),
        ("POST", "actors/Gate/ID/method/enter", b"", {"mecha-timeout": "1ms"}),
        ("PATCH", "actors/Account/ID/method/deposit", b"1", {}),
        ("GET", "state/statestore/ID", b"", {}),
        ("GET", "state/nowhere/ID", b"", {}),
        ("GET", "state/statestore/kept", b"", {}),
    ],
)
def test_same_answers(api: httpx.Client, verb: str, path: str, body: bytes, headers: dict[str, str]) -> None:
    """Status, headers and body are the same on both paths; the second slash is what sends a request to the general
    one."""
    api.post("/v1.0/state/statestore", json=[{"key": "kept", "value": 1, "metadata": {"ttlInSeconds": "1000"}}])
    one, other = uuid4().hex, uuid4().hex
    hot = api.request(verb, f"/v1.0/{path}".replace("ID", one), content=body, headers=headers)
    general = api.request(verb, f"/v1.0//{path}".replace("ID", other), content=body, headers=headers)
    assert told(hot, one) == told(general, other)


@pytest.mark.parametrize("version", ["v1.0", "v1.0-beta1", "v1.0-alpha1"])
@pytest.mark.parametrize("headers", [{}, {"x-unknown": "1"}], ids=["protocol", "asgi"])
def test_same_answers_for_workflows(api: httpx.Client, version: str, headers: dict[str, str]) -> None:
    """From start to result, right and wrong, each request is answered alike on the hot paths and on the general one,
    under each prefix."""
    steps: list[tuple[str, str, bytes]] = [
        ("POST", f"{version}/workflows/dapr/approval/start?instanceID=INST", b'{"n": 1}'),
        ("POST", f"{version}/workflows/dapr/approval/start?instanceID=INST", b'{"n": 1}'),
        ("POST", f"{version}/workflows/~c$!*'(),;=:@&_-/nix/start?instanceID=INST", b"1"),
        ("POST", f"{version}/workflows/dapr/doubling/start?instanceID=" + "x" * 65, b"1"),
        ("POST", f"{version}/workflows/dapr/doubling/start", b'"x"'),
        ("GET", "v1.0/mecha/workflows/INST/result?timeout=1ms", b""),
        ("GET", "v1.0/mecha/workflows/INST/result?timeout=soon", b""),
        ("GET", "v1.0/mecha/workflows/INST.nix/result?timeout=1ms", b""),
        ("GET", f"{version}/workflows/dapr/INST", b""),
        ("GET", f"{version}/workflows/dapr/INST.nix", b""),
        ("POST", f"{version}/workflows/dapr/INST/raiseEvent/other", b"text"),
        ("POST", f"{version}/workflows/dapr/INST.nix/raiseEvent/approve", b""),
        ("POST", f"{version}/workflows/dapr/INST/raiseEvent/approve", b'"yes"'),
        ("GET", "v1.0/mecha/workflows/INST/result", b""),
        ("GET", f"{version}/workflows/dapr/INST", b""),
        ("POST", "v1.0/mecha/workflows/breaking/run?instanceID=INST", b'"gone"'),
        ("GET", f"{version}/workflows/dapr/INST", b""),
        ("POST", "v1.0/mecha/workflows/nix/run", b""),
    ]

    def answers(slashes: str) -> list[tuple[int, dict[str, str], bytes]]:
        instance = uuid4().hex
        wanted = [(verb, path.replace("INST", instance).replace("/", slashes, 1), body) for verb, path, body in steps]
        return [told(api.request(v, f"/{path}", content=body, headers=headers), instance) for v, path, body in wanted]

    hot, general = answers("/"), answers("//")
    assert hot == general
    assert {status for status, *_ in hot} == {200, 202, 400, 404, 500}


def is_hot(verb: str, target: str) -> bool:
    return any(pattern.fullmatch(f"{verb} {target} HTTP/1.1\r\n".encode()) for pattern in PATTERNS)


def test_which_requests_are_hot() -> None:
    """Plain segments are; dots alone, escapes, empty segments and questions that have to be read are not."""
    for verb, target in (
        ("POST", "/v1.0/actors/A/1/method/m"),
        ("DELETE", "/v1.0/actors/A.b/a..b/method/m?x=%zz"),
        ("GET", "/v1.0/actors/A/.../method/m"),
        ("GET", "/v1.0/state/s/k?consistency=strong"),
        ("POST", "/v1.0/workflows/dapr/w/start"),
        ("POST", "/v1.0-beta1/workflows/dapr/w/start?instanceID=a-b_1"),
        ("GET", "/v1.0-alpha1/workflows/dapr/i"),
        ("POST", "/v1.0/workflows/dapr/i/raiseEvent/e"),
        ("GET", "/v1.0/mecha/workflows/i/result?timeout=1.5s"),
        ("POST", "/v1.0/mecha/workflows/w/run?instanceID=i"),
    ):
        assert is_hot(verb, target), target
    for verb, target in (
        ("POST", "/v1.0/actors/./1/method/m"),
        ("POST", "/v1.0/actors/A/../method/m"),
        ("POST", "/v1.0/actors/A//method/m"),
        ("POST", "/v1.0/actors/A/1/method/m/"),
        ("POST", "/v1.0/actors/A/1/method/.."),
        ("POST", "/v1.0/actors/A/1/method/..?x"),
        ("POST", "/v1.0/actors/A/a+b/method/m"),
        ("POST", "/v1.0/actors/A/a%2Fb/method/m"),
        ("POST", "/v1.0/actors/A/1/method/m\n"),
        ("PATCH", "/v1.0/actors/A/1/method/m"),
        ("GET", "/v1.0/state/s/a||b"),
        ("GET", "/v1.0/workflows/dapr/w/start"),
        ("POST", "/v1.0/workflows/dapr/w/start?instanceID="),
        ("POST", "/v1.0/workflows/dapr/w/start?instanceID=a.b"),
        ("POST", "/v1.0/workflows/dapr/w/start?instanceID=a&instanceID=b"),
        ("POST", "/v1.0/workflows/dapr/w/start?start=1s"),
        ("POST", "/v1.1/workflows/dapr/w/start"),
        ("GET", "/v1.0/workflows/dapr/i?appID=a"),
        ("GET", "/v1.0/workflows/../i"),
        ("GET", "/v1.0/workflows/dapr/.."),
        ("GET", "/v1.0/mecha/workflows/i/result?timeout=1%20s"),
    ):
        assert not is_hot(verb, target), target


segments = st.one_of(
    st.sampled_from(
        [
            "v1.0", "v1.0-alpha1", "v1.0-beta1", "actors", "Account", "Ledger", "method", "deposit", "echo", "state",
            "statestore", "reminders", "timers", "workflows", "dapr", "doubling", "start", "bulk", "query",
            "transaction", "mecha", "history", "result", "healthz", "metadata", "raiseEvent", "pause", "a", "", ".",
            "..", "%2F", "%00",
        ]
    ),
    st.text(alphabet="abz019%+~|\\#?é /", max_size=6),
)  # fmt: skip
bodies = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [b"1", b"null", b"[]", b"{}", b'"x"', b"[1,2]", b'[{"key":"k","value":1}]', b'{"keys":["k"]}', b"\xed\xa0\x80",
         b'"\\ud800"', b"[" * 2000, b'{"operations":[{"operation":"upsert","request":{"key":"\\ud800"}}]}',
         b"1e999", b"-0",         b'{"dueTime":"R/P1Y"}', b'{"filter":{"EQ":{"a":{}}}}', b"9" * 400]
    ),
)  # fmt: skip
headers = st.dictionaries(
    st.sampled_from(["idempotency-key", "mecha-timeout", "traceparent", "baggage", "if-match", "content-type"]),
    st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20),
    max_size=2,
)
KNOWN_STATUSES = {200, 202, 204, 400, 403, 404, 409, 413, 429, 500, 503, 504}


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH"]),
    st.lists(segments, max_size=8),
    st.text(alphabet="abtimeoul=&%+.0139", max_size=20),
    bodies,
    headers,
)
def test_no_request_breaks_the_server(
    api: httpx.Client,
    verb: str,
    path: list[str],
    query: str,
    body: bytes,
    extra: dict[str, str],
) -> None:
    """Whatever is asked, the answer is one of ours: an error is JSON with a code (never the unclassified one), or
    one of the few plain texts; and the next request is served."""
    target = "/" + "/".join(path) + (f"?{query}" if query else "")
    raw_target = b"".join(bytes([b]) if 33 <= b < 127 and b != 35 else b"%%%02X" % b for b in target.encode())
    url = httpx.URL(str(api.base_url)).copy_with(raw_path=raw_target)
    # A wait of the default length would only make the test slow.
    extra.setdefault("mecha-timeout", "2s")
    answer = api.request(verb, url, content=body, headers=extra)
    assert answer.status_code in KNOWN_STATUSES, answer.text
    if answer.status_code >= 400 and not answer.headers["content-type"].startswith("text/plain"):
        found = answer.json()
        assert found["errorCode"].startswith("ERR_"), found
        assert found["message"]
    assert api.get("/v1.0/healthz").status_code == 204
