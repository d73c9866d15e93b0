"""What holds for every request: paths, verbs, the token, limits, headers, health, metadata."""

from __future__ import annotations

import asyncio
import re
import socket
import tracemalloc
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest

from actors.placement.owners import make_owner
from runtime_api.edge import Edge, Limits, Token
from runtime_api.problems import Problem
from tests.servers import PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Message, Receive, Scope, Send

    from tests.runtime_api.conftest import Sample

NOT_FOUND = {
    "errorCode": "ERR_DIRECT_INVOKE",
    "message": "failed getting app id either from the URL path or the header dapr-app-id",
}


def raw(url: str, request: bytes) -> bytes:
    """Bytes to the server as they are, and its answer to the end of the connection."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


def get(url: str, target: bytes) -> bytes:
    return raw(url, b"GET " + target + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("GET", "/"),
        ("GET", "/v1.0/nothing"),
        ("POST", "/v1.0/metadata"),
        ("PATCH", "/v1.0/actors/Account/a/method/deposit"),
        ("HEAD", "/v1.0/actors/Account/a/method/deposit"),
        ("OPTIONS", "/v1.0/state/statestore/k"),
        ("POST", "/v1.0/state/statestore/k"),
        ("DELETE", "/v1.0/actors/Account/a"),
        ("PATCH", "/v1.0/actors/Account/a/reminders/r"),
        ("GET", "/v1.0/%61ctors/Account/a/method/statement"),
        ("GET", "/v2.0/metadata"),
        ("GET", "/v1.0/actors/Account/a/method/m/more"),
        ("GET", "/V1.0/metadata"),
    ],
)
def test_unknown_routes_and_wrong_verbs(api: httpx.Client, verb: str, path: str) -> None:
    """Both are the one 404 of Dapr: there are no 405s."""
    answer = api.request(verb, path)
    assert answer.status_code == 404
    if verb != "HEAD":
        assert answer.json() == NOT_FOUND


def test_slashes(sample: Sample) -> None:
    """Repeated slashes collapse and a trailing one is tolerated, on every route."""
    for target in (b"//v1.0///healthz", b"/v1.0/healthz/", b"/v1.0//healthz//outbound//"):
        assert get(sample.url, target).startswith(b"HTTP/1.1 204")
    assert b"200 OK" in get(sample.url, b"/v1.0/actors//Account/slash//method/statement/")


@pytest.mark.parametrize("target", [b"/v1.0/state/statestore/%", b"/v1.0/state/%zz/k", b"/v1.0/%ff", b"/%e2%28"])
def test_bad_escapes(sample: Sample, target: bytes) -> None:
    """A bad escape is 400 in plain text."""
    answer = get(sample.url, target)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"content-type: text/plain" in answer


def test_dot_segments_are_names(sample: Sample) -> None:
    """`.` and `..` are not resolved: as names of actors they are refused."""
    for name in (b".", b".."):
        answer = get(sample.url, b"/v1.0/actors/Account/" + name + b"/method/statement")
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"ERR_BAD_REQUEST" in answer


def test_body_limit(api: httpx.Client) -> None:
    """A body over the limit is 413 with a clear code, announced or not, and the connection still works."""
    long = b'"' + b"x" * 262_144 + b'"'
    for path in ("/v1.0/actors/Account/big/method/echo", "/v1.0/state/statestore", "/v1.0/nothing"):
        chunked = (long[at : at + 50_000] for at in range(0, len(long), 50_000))
        for body in (long, chunked):
            answer = api.post(path, content=body)
            assert (answer.status_code, answer.json()["errorCode"]) == (413, "ERR_BODY_TOO_LARGE")
            assert "262144" in answer.json()["message"]
            assert api.get("/v1.0/healthz").status_code == 204


def test_long_bodies_below_the_limit(api: httpx.Client) -> None:
    """A long body arrives whole, also in chunks."""
    long = b'"' + b"x" * 262_000 + b'"'
    where = "/v1.0/actors/Account/big/method/echo"
    assert api.post(where, content=long).content == long
    assert api.post(where, content=(long[at : at + 50_000] for at in range(0, len(long), 50_000))).content == long


def test_early_refusal_of_an_announced_body(sample: Sample) -> None:
    """A client that waits for 100 Continue is refused before it sends anything."""
    answer = raw(
        sample.url,
        b"POST /v1.0/actors/Account/a/method/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999\r\n"
        b"expect: 100-continue\r\nconnection: close\r\n\r\n",
    )
    assert answer.startswith(b"HTTP/1.1 413")


def test_pipelined_requests(sample: Sample) -> None:
    """Requests sent in one go are answered in order, hot and general ones mixed."""
    one = b"POST /v1.0/actors/Account/pipe/method/deposit HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\n1"
    other = b"POST /v1.0/actors//Account/pipe/method/deposit HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n"
    answer = raw(sample.url, one + other + b"\r\n1" + one + other + b"connection: close\r\n\r\n1")
    assert [part.partition(b"\r\n\r\n")[2][:1] for part in answer.split(b"HTTP/1.1 200 OK")[1:]] == [
        b"1",
        b"2",
        b"3",
        b"4",
    ]


def test_rubbish_is_refused(sample: Sample) -> None:
    """What is no HTTP gets a 400, and the server goes on."""
    assert raw(sample.url, b"\x00\x01rubbish\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert get(sample.url, b"/v1.0/healthz").startswith(b"HTTP/1.1 204")


@pytest.mark.parametrize(
    "path", ["/v1.0/metadata", "/v1.0/actors/Account/a/method/statement", "/v1.0/state/statestore/k"]
)
def test_malformed_baggage(api: httpx.Client, path: str) -> None:
    """Malformed baggage is 400 everywhere, a malformed traceparent is ignored."""
    assert api.get(path, headers={"baggage": "no pair"}).status_code == 400
    assert api.get(path, headers={"traceparent": "rubbish"}).status_code in (200, 204)


def test_token(serve: Callable[..., Any]) -> None:
    """With a token set everything but health needs it: 401 in plain text otherwise, on hot routes too."""
    with serve(api_token="secret") as server, httpx.Client(base_url=server.url, **PLAIN) as client:
        for path in (
            "/v1.0/metadata",
            "/v1.0/actors/Account/a/method/statement",
            "/v1.0/state/statestore/k",
            "/docs",
            "/x",
        ):
            for token in (b"", b"wrong", b"secrets", "sécret".encode()):
                answer = client.get(path, headers=[(b"dapr-api-token", token)])
                assert (answer.status_code, answer.text) == (401, "invalid api token")
        assert client.get("/v1.0/actors/Account/a/method/statement", headers={"dapr-api-token": "secret"}).json() == 0
        assert client.get("/v1.0/metadata", headers={"dapr-api-token": "secret"}).status_code == 200
        for path in ("/v1.0/healthz", "/v1.0/healthz/outbound"):
            assert client.get(path).status_code == 204
        assert client.post("/v1.0/healthz").status_code == 401


def test_health(api: httpx.Client) -> None:
    """204 when all is up; the app id can be asked for."""
    for path in ("/v1.0/healthz", "/v1.0/healthz/outbound"):
        answer = api.get(path)
        assert (answer.status_code, answer.content) == (204, b"")
    assert api.get("/v1.0/healthz", params={"appid": "sample"}).status_code == 204
    other = api.get("/v1.0/healthz", params={"appid": "other"})
    assert (other.status_code, other.json()["errorCode"]) == (500, "ERR_HEALTH_APPID_NOT_MATCH")


def test_health_while_it_stops(serve: Callable[..., Any]) -> None:
    """Whoever balances load sends nothing more to a server that drains; what is connected learns it as well."""
    with serve() as server, httpx.Client(base_url=server.url, **PLAIN) as client:
        server.loop.call_soon_threadsafe(server.runtime.begin_stop)
        for path, code in (("/v1.0/healthz", "ERR_HEALTH"), ("/v1.0/healthz/outbound", "ERR_OUTBOUND_HEALTH")):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["errorCode"]) == (500, f"{code}_NOT_READY")


def test_health_of_a_server_that_has_lost_its_partitions(serve: Callable[..., Any]) -> None:
    """Not ready while another process owns the actors, so that a supervisor may restart it; ready again by itself when
    that one has ended."""
    paths = ("/v1.0/healthz", "/v1.0/healthz/outbound")
    with serve(lease=0.3) as server, httpx.Client(base_url=server.url, **PLAIN) as client:
        journal = server.runtime.store.journal
        taken = asyncio.run_coroutine_threadsafe(
            journal.acquire(range(journal.partitions), make_owner("other"), 0, 2**50, force=True), server.loop
        ).result(30)
        while {client.get(path).status_code for path in paths} != {500}:
            pass
        assert client.get(paths[0]).json()["errorCode"] == "ERR_HEALTH_NOT_READY"
        assert not client.get("/v1.0/metadata").json()["actorRuntime"].get("hostReady")
        call = client.post("/v1.0/actors/Account/lost/method/deposit", content=b"5")
        assert (call.status_code, call.json()["errorCode"]) == (503, "ERR_ACTOR_MOVED")
        pairs = [(each.partition, each.epoch) for each in taken]
        asyncio.run_coroutine_threadsafe(journal.release(pairs), server.loop).result(30)
        while {client.get(path).status_code for path in paths} != {204}:
            pass
        assert client.post("/v1.0/actors/Account/lost/method/deposit", content=b"5").json() == 5


def test_metadata(api: httpx.Client) -> None:
    """What runs here, on the host that is asked; `extended` can be added to."""
    for number in range(24):  # of a cluster's hosts, each has some of them
        api.post(f"/v1.0/actors/Account/meta{number}/method/statement")
    found = api.get("/v1.0/metadata").json()
    assert found["id"] == "sample"
    counts = {line["type"]: line["count"] for line in found["actorRuntime"]["activeActors"]}
    assert counts["Account"] >= 1
    assert "mecha.workflow" not in counts
    assert found["actorRuntime"]["runtimeStatus"] == "RUNNING"
    assert found["actorRuntime"]["hostReady"] is True
    assert found["components"][0]["name"] == "statestore"
    assert found["workflows"] == {"connectedWorkers": 1}
    version = found["extended"]["daprRuntimeVersion"]
    assert version
    assert api.put("/v1.0/metadata/cliPID", content=b"123").status_code == 204
    api.put("/v1.0/metadata/daprRuntimeVersion", content=b"hidden")
    extended = api.get("/v1.0/metadata").json()["extended"]
    assert (extended["cliPID"], extended["daprRuntimeVersion"]) == ("123", version)
    assert api.put("/v1.0/metadata/long", content=b"x" * 5000).status_code == 400


def test_openapi(api: httpx.Client) -> None:
    """Every route stands on the page, hot ones too, with bodies and errors described; FastAPI's 422 does not."""
    document = api.get("/openapi.json").json()
    paths = document["paths"]
    method = paths["/v1.0/actors/{actor_type}/{actor_id}/method/{method}"]
    assert set(method) == {"get", "post", "put", "delete"}
    assert "get" in paths["/v1.0/state/{store}/{key}"]
    assert "/v1.0/workflows/{component}/{name}/start" in paths
    body = paths["/v1.0/actors/{actor_type}/{actor_id}/reminders/{name}"]["put"]["requestBody"]
    reference = body["content"]["application/json"]["schema"]["$ref"]
    properties = document["components"]["schemas"][reference.rpartition("/")[2]]["properties"]
    assert {"dueTime", "period", "ttl", "data", "overwrite"} == set(properties)
    headers = {parameter["name"] for parameter in method["post"]["parameters"] if parameter["in"] == "header"}
    assert headers == {"Idempotency-Key", "Mecha-Timeout", "Dapr-Reentrancy-Id"}
    deleting = paths["/v1.0/state/{store}/{key}"]["delete"]["parameters"]
    assert {parameter["name"] for parameter in deleting} >= {"If-Match", "concurrency", "consistency"}
    for path in ("/v1.0/state/{store}", "/v1.0/state/{store}/transaction"):
        assert "metadata.ttlInSeconds" in [parameter["name"] for parameter in paths[path]["put"]["parameters"]]
    operations = [operation for path in paths.values() for operation in path.values()]
    assert all("422" not in operation["responses"] and operation["summary"] for operation in operations)
    assert len({operation["operationId"] for operation in operations}) == len(operations)


def test_the_page_needs_no_internet(api: httpx.Client) -> None:
    """All that the OpenAPI page loads comes from this server."""
    page = api.get("/docs")
    assert page.status_code == 200
    loaded = re.findall(r"""(?:src|href)=["']([^"']+)|url: ["']([^"']+)""", page.text)
    assert len(loaded) == 4
    for url in (first or second for first, second in loaded):
        assert url.startswith("/")
        assert api.get(url).status_code == 200
    assert "//" not in re.sub(r"<!--.*?-->|(?m:^\s*//.*$)", "", page.text)
    missing = api.get("/docs/static/../nothing.js")
    assert (missing.status_code, missing.json()["errorCode"]) == (404, "ERR_DIRECT_INVOKE")


def test_too_many_long_bodies_at_once() -> None:
    """All requests together hold a bounded number of bytes; what is too much is told to come again."""
    edge = Edge(_nowhere, Limits(body=10, bodies=15), Token(None))
    edge.hold(10)
    with pytest.raises(Problem) as caught:
        edge.hold(10)
    assert (caught.value.status, caught.value.code, caught.value.retry) == (503, "ERR_OVERLOADED", True)
    edge.let_go(10)
    edge.hold(10)


async def _nowhere(*_: Any) -> None:
    raise AssertionError("not called")


POST = {"type": "http", "method": "POST", "raw_path": b"/v1.0/state/statestore", "headers": []}


async def test_a_body_that_is_given_up_is_not_counted() -> None:
    """Whatever ends a request while its body is read, a cancel included, gives back what it held."""
    edge = Edge(_nowhere, Limits(body=10, bodies=10), Token(None))
    waiting = asyncio.Event()
    messages = iter([{"type": "http.request", "body": b"x" * 10, "more_body": True}])

    async def receive() -> Message:
        for message in messages:
            return message
        waiting.set()
        return await asyncio.Future()

    request = asyncio.create_task(edge(dict(POST), receive, _nowhere))
    await waiting.wait()
    with pytest.raises(Problem):
        edge.hold(1)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    edge.hold(10)


async def test_a_body_takes_its_own_size_however_it_is_cut() -> None:
    """A chunk as an object of its own is twenty times as long as the two bytes in it."""
    count, gathered = 50_000, []
    chunks = ({"type": "http.request", "body": bytes((n % 256, 1)), "more_body": n < count} for n in range(count + 1))

    async def receive() -> Message:
        return next(chunks)

    async def app(_: Scope, receive: Receive, __: Send) -> None:
        gathered.append((await receive())["body"])

    edge = Edge(app, Limits(), Token(None))
    tracemalloc.start()
    try:
        await edge(dict(POST), receive, _nowhere)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert gathered == [b"".join(bytes((n % 256, 1)) for n in range(count + 1))]
    assert peak < 5 * len(gathered[0])
