"""The embedded form: `async with Runtime(...)`. It is local by its nature; what it serves is tested beside a cluster in
`test_connect.py`."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from actors import ActorFailed, actor, method
from runtime_api import Runtime
from runtime_api.loader import Application
from statestores.components import open_url
from statestores.errors import ComponentError, StoreError, StoreUnavailable
from workflow import activity, workflow

if TYPE_CHECKING:
    from actors import Host


@actor
class Tally:
    count: int = 0

    @method
    async def add(self, by: int) -> int:
        self.count += by
        return self.count

    @method
    async def refuse(self) -> None:
        raise ValueError("no")


@activity
async def triple(value: int) -> int:
    return 3 * value


@workflow
async def tripling(value: int) -> int:
    return await triple(value)


async def test_the_callers_module_is_the_application() -> None:
    """Without `app`, what is decorated in the module that makes the runtime is served."""
    async with Runtime(store="memory://") as runtime:
        assert await runtime.actor(Tally, "a").add(2) == 2
        assert await runtime.actor("Tally", "a").add(3) == 5
        assert await runtime.workflows.run(tripling, 5) == 15
        with pytest.raises(ActorFailed, match="no"):
            await runtime.actor(Tally, "a").refuse()


async def test_large_values_stand_beside_the_history() -> None:
    """`large_value_bytes`: longer values are referred to."""
    async with Runtime(store="memory://", large_value_bytes=1) as runtime:
        instance = await runtime.workflows.start(tripling, 500)
        assert await runtime.workflows.wait(instance) == 1500
        items = [item for entry in await runtime.workflows.history(instance) for item in entry.inputs]
        assert [(item[0], item[2]) for item in items[1:]] == [("done", None)]
        assert items[0][1]["input"] is None
        state = await runtime.workflows.get(instance)
        assert (state.input, state.output) == (500, 1500)


async def test_chosen_application() -> None:
    """With `app`, only what is listed."""
    runtime = Runtime([Tally], store="memory://")
    assert [d.name for d in runtime.application.actors] == ["Tally"]
    assert runtime.application.workflows == ()


async def test_send_takes_effect(tmp_path: Path) -> None:
    """A sent message is durable when `send` returns: a later runtime on the same store has it."""
    store = f"sqlite:///{tmp_path / 'send.db'}"
    async with Runtime([Tally], store=store) as runtime:
        await runtime.send(runtime.actor(Tally, "a").add, 4)
    async with Runtime([Tally], store=store) as runtime:
        while await runtime.actor(Tally, "a").add(0) != 4:
            pass


async def test_what_was_done_is_there_next_time(tmp_path: Path) -> None:
    """State outlives the runtime."""
    store = f"sqlite:///{tmp_path / 'bank.db'}"
    for expected in (1, 2, 3):
        async with Runtime([Tally], store=store) as runtime:
            assert await runtime.actor(Tally, "a").add(1) == expected


async def test_outside_of_its_life() -> None:
    """Before start and after stop, use is an error that says what to do; starting twice and stopping twice are safe."""
    runtime = Runtime([Tally], store="memory://")
    with pytest.raises(RuntimeError, match="async with"):
        runtime.actor(Tally, "a")
    assert not runtime.is_ready
    async with runtime:
        assert runtime.is_ready
        with pytest.raises(RuntimeError, match="already"):
            await runtime.start()
        runtime.begin_stop()
        assert not runtime.is_ready
    await runtime.stop()
    for use in (lambda: runtime.actors, lambda: runtime.workflows, lambda: runtime.store):
        with pytest.raises(RuntimeError, match="not running"):
            use()


async def test_of_two_starts_at_once_one_is_refused(tmp_path: Path) -> None:
    """The other one is not disturbed: the stores are closed by whoever has opened them."""
    runtime = Runtime([Tally], store=f"sqlite:///{tmp_path / 'once.db'}")
    started, refused = await asyncio.gather(runtime.start(), runtime.start(), return_exceptions=True)
    assert started is None
    assert isinstance(refused, RuntimeError)
    assert "already" in str(refused)
    assert await runtime.actor(Tally, "a").add(1) == 1
    await runtime.stop()


class Gate:
    """Where turns of `Slow` stand until it is opened."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()


gates: dict[str, Gate] = {}


@actor
class Slow:
    count: int = 0

    @method
    async def add(self, gate: str) -> int:
        gates[gate].reached.set()
        await gates[gate].opened.wait()
        self.count += 1
        return self.count


@pytest.fixture
def gate() -> Gate:
    made = gates["gate"] = Gate()
    return made


async def draining(host: Host) -> None:
    while not host.draining:  # noqa: ASYNC110
        await asyncio.sleep(0)


async def test_two_stops_are_one(tmp_path: Path, gate: Gate) -> None:
    """Who stops a runtime that is stopping waits for the same end: the store stays open until the turns have ended."""
    runtime = Runtime([Slow], store=f"sqlite:///{tmp_path / 'stop.db'}")
    await runtime.start()
    host = runtime.host
    adding = asyncio.ensure_future(runtime.actor(Slow, "a").add("gate"))
    await gate.reached.wait()
    first = asyncio.create_task(runtime.stop())
    await draining(host)
    second = asyncio.create_task(runtime.stop(0.0))
    with pytest.raises(RuntimeError, match="still stopping"):
        await runtime.start()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not first.done()
    assert not second.done()
    gate.opened.set()
    await asyncio.gather(first, second)
    assert await adding == 1
    async with runtime:
        assert await runtime.actor(Slow, "a").add("gate") == 2


async def test_a_stop_goes_on_without_its_caller(tmp_path: Path, gate: Gate) -> None:
    """Cancelling whoever waits for the end leaves nothing half stopped."""
    runtime = Runtime([Slow], store=f"sqlite:///{tmp_path / 'stop.db'}")
    await runtime.start()
    host = runtime.host
    adding = asyncio.ensure_future(runtime.actor(Slow, "a").add("gate"))
    await gate.reached.wait()
    stopping = asyncio.create_task(runtime.stop())
    await draining(host)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    gate.opened.set()
    await runtime.stop()
    assert await adding == 1
    async with runtime:
        assert await runtime.actor(Slow, "a").add("gate") == 2


async def test_a_store_that_is_given_stays_the_callers() -> None:
    """A store object is used and left open."""
    store = open_url("memory://")
    async with Runtime([Tally], store=store) as runtime:
        assert runtime.store is store
        await runtime.actor(Tally, "a").add(1)
    assert (await store.journal.load("Tally/a")).version == 1
    await store.close()


def component(directory: Path, name: str, kind: str, **metadata: str) -> None:
    items = ", ".join(f'{{name: {key}, value: "{value}"}}' for key, value in metadata.items())
    (directory / f"{name}.yaml").write_text(
        f"apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {{name: {name}}}\n"
        f"spec: {{type: {kind}, version: v1, metadata: [{items}]}}\n"
    )


async def test_actors_live_in_the_component_that_says_so(tmp_path: Path) -> None:
    """`actorStateStore` chooses the store, unless a store is given."""
    database = tmp_path / "actors.db"
    component(tmp_path, "plain", "state.in-memory")
    component(tmp_path, "durable", "state.sqlite", connectionString=str(database), actorStateStore="true")
    async with Runtime([Tally], resources_path=tmp_path) as runtime:
        assert runtime.store is runtime.components["durable"].store
        await runtime.actor(Tally, "a").add(1)
    async with Runtime([Tally], resources_path=tmp_path, store="memory://") as runtime:
        assert await runtime.actor(Tally, "a").add(1) == 1
    async with Runtime([Tally], resources_path=tmp_path) as runtime:
        assert await runtime.actor(Tally, "a").add(1) == 2


async def test_an_empty_url_is_not_the_default_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a variable that is not set leaves would else put the actors where nobody looks for them."""
    monkeypatch.chdir(tmp_path)
    component(tmp_path, "durable", "state.sqlite", connectionString="c.db", actorStateStore="true")
    with pytest.raises(ComponentError, match="a store is given by a URL"):
        async with Runtime([Tally], resources_path=tmp_path, store=""):
            pass
    assert not (tmp_path / "mecha.db").exists()


@pytest.mark.parametrize("store", [Path("app.db"), 5])
def test_what_is_no_store_is_refused(store: Any) -> None:
    """Before anything is opened."""
    with pytest.raises(TypeError, match=r"store= takes a URL such as sqlite:///app\.db"):
        Runtime([Tally], store=store)


async def test_resources_for_other_applications_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Components that are all meant for others leave the default store, and a word about it."""
    monkeypatch.chdir(tmp_path)
    component(tmp_path, "theirs", "state.in-memory")
    scoped = tmp_path / "theirs.yaml"
    scoped.write_text(scoped.read_text() + "scopes: [another-app]\n")
    async with Runtime([Tally], resources_path=tmp_path, app_id="mine") as runtime:
        assert await runtime.actor(Tally, "a").add(1) == 1
    assert "is meant for app-id mine: everything goes to sqlite:///mecha.db" in caplog.text
    assert (tmp_path / "mecha.db").exists()


async def test_component_that_does_not_open_in_time(tmp_path: Path) -> None:
    """A server that takes connections and never answers: said in one line, with what to look at."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        (tmp_path / "store.yaml").write_text(
            f"""
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: statestore}}
spec:
  type: state.redis
  initTimeout: 50ms
  metadata: [{{name: redisHost, value: "127.0.0.1:{port}"}}]
"""
        )
        with pytest.raises(StoreUnavailable, match="component 'statestore': did not open within its initTimeout"):
            await Runtime([Tally], resources_path=tmp_path).start()


async def test_errors_may_be_ignored_of_a_component_without_actors(tmp_path: Path) -> None:
    """`ignoreErrors` leaves a store out that does not open, unless actors live in it: then it is said what is wrong."""
    component(tmp_path, "lost", "state.sqlite", connectionString=f"{tmp_path}/missing/x.db", actorStateStore="true")
    file = tmp_path / "lost.yaml"
    file.write_text(file.read_text().replace("spec: {", "spec: {ignoreErrors: true, "))
    runtime = Runtime([Tally], resources_path=tmp_path)
    with pytest.raises(StoreError, match="component 'lost': "):
        await runtime.start()
    async with Runtime([Tally], resources_path=tmp_path, store="memory://") as runtime:
        assert "lost" not in runtime.components
        assert await runtime.actor(Tally, "a").add(1) == 1


@pytest.mark.parametrize(
    ("kind", "metadata", "says"),
    [
        ("state.nothing", {}, "spec.type 'state.nothing' is no state store"),
        ("state.sqlite", {}, "spec.metadata: connectionString: name the database file"),
        ("state.sqlite", {"connectionString": "missing/x.db"}, "missing/x.db: there is no directory missing"),
        ("state.in-memory", {"ttlInSeconds": "2147483648"}, "ttlInSeconds must be a whole number of seconds, at most"),
    ],
)
async def test_errors_name_a_component_and_its_file_once(
    tmp_path: Path, kind: str, metadata: dict[str, str], says: str
) -> None:
    """Whoever finds a component wrong, its settings, its store or the disk: file, component, what is wrong."""
    component(tmp_path, "bad", kind, actorStateStore="true", **metadata)
    with pytest.raises(ComponentError) as caught:
        await Runtime([Tally], resources_path=tmp_path).start()
    assert str(caught.value).startswith(f"{tmp_path}/bad.yaml: component 'bad': {says}")
    assert str(caught.value).count("'bad'") == 1


async def test_a_bad_component_closes_what_was_opened(tmp_path: Path) -> None:
    """Nothing stays open after a start that failed, and it can be tried again."""
    component(tmp_path, "good", "state.in-memory")
    component(tmp_path, "worse", "state.nothing")
    runtime = Runtime([Tally], resources_path=tmp_path, store="memory://")
    with pytest.raises(ComponentError, match="worse"):
        await runtime.start()
    (tmp_path / "worse.yaml").unlink()
    async with runtime:
        assert await runtime.actor(Tally, "a").add(1) == 1


async def test_an_empty_application_can_be_run() -> None:
    """State alone is a use, too."""
    async with Runtime(Application(), store="memory://") as runtime:
        assert set(runtime.components) == {"statestore"}


BLOCKED = """
import asyncio, threading
from runtime_api import Runtime
from workflow import activity, workflow

blocked = threading.Event()

@activity
def blocks():
    blocked.set()
    threading.Event().wait()

@workflow
async def blocking():
    await blocks()

async def main():
    async with Runtime(store="memory://", drain_s=0.1) as runtime:
        await runtime.workflows.start(blocking)
        await asyncio.to_thread(blocked.wait)

asyncio.run(main())
print("ended")
"""


def test_a_blocked_activity_does_not_keep_the_program_alive() -> None:
    """The interpreter does not wait for the threads of plain activities; the program ends as ever."""
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", BLOCKED], capture_output=True, text=True, cwd=root, check=False, timeout=60
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ended\n", "")


def test_embedding_needs_no_web_framework() -> None:
    """`from runtime_api import Runtime` loads neither FastAPI nor uvicorn."""
    code = (
        "import sys; from runtime_api import Runtime; print(sorted({'fastapi', 'uvicorn', 'typer'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True).stdout
    assert shown.strip() == "[]"
