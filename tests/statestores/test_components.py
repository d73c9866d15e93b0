"""From URLs and Dapr's Component YAML to stores: what is read, what is refused, and what the refusal says."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from statestores import components
from statestores.components import (
    Component,
    StoreComponent,
    actor_component,
    key_prefix,
    load_resources,
    make_secret_store,
    make_store,
    open_url,
    store_component,
)
from statestores.errors import ComponentError
from statestores.keyrules import MAX_TTL_S
from statestores.memory import MemoryStore
from statestores.redis import RedisStore
from statestores.resources import Metadata
from statestores.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a YAML file of that content into the resources directory, and gives the directory."""
    directory = tmp_path / "resources"
    directory.mkdir()

    def write_file(text: str) -> Path:
        number = sum(1 for _ in directory.iterdir())
        (directory / f"{number}.yaml").write_text(dedent(text), encoding="utf-8")
        return directory

    return write_file


def component_yaml(spec: str = "", *, name: str = "store", type: str = "state.in-memory", top: str = "") -> str:
    """A component's YAML; `spec` are lines below `spec.metadata`, `top` lines at the top level."""
    lines = ["apiVersion: dapr.io/v1alpha1", "kind: Component", f"metadata: {{name: {name}}}", top]
    lines += ["spec:", f"  type: {type}", "  version: v1", "  metadata:"]
    return "\n".join(lines) + "\n" + "\n".join(f"    {line}" for line in dedent(spec).splitlines() or ["[]"]) + "\n"


def load(directory: Path, environ: Mapping[str, str] | None = None) -> list[Component]:
    return load_resources(directory, "app", environ=environ or {})


def metadata_of(directory: Path, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    return dict(load(directory, environ)[-1].metadata)


def state_component(**metadata: str) -> Component:
    return Component("store", "state.in-memory", metadata=Metadata(metadata))


# ---- URLs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("memory://", MemoryStore),
        ("sqlite:///file.db", SqliteStore),
        ("SQLite:///file.db", SqliteStore),
        ("redis://localhost:6379/0", RedisStore),
        ("rediss://localhost", RedisStore),
        ("unix:///run/redis.sock", RedisStore),
    ],
)
def test_url_gives_the_store_of_its_scheme(url: str, expected: type) -> None:
    """A URL's scheme names the store; nothing is opened yet."""
    assert type(open_url(url)) is expected


@pytest.mark.parametrize("url", ["memory://file.db", "memory:///file.db", "memory:file.db", "memory://#x"])
def test_a_url_for_memory_has_no_place(url: str) -> None:
    """Who names a file or a host means something that memory is not."""
    with pytest.raises(ComponentError, match="memory:"):
        open_url(url)


@pytest.mark.parametrize("url", ["mongodb://user:hunter2@host/db", "x+y.z://"])
def test_unknown_scheme_lists_the_known_ones(url: str) -> None:
    """An unknown scheme is answered with the known ones, and never with the URL, which may hold a password."""
    with pytest.raises(ComponentError, match=r"memory://, redis://, rediss://, sqlite://") as caught:
        open_url(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "file.db", "/var/lib/file.db", "://x"])
def test_text_that_is_no_url_is_answered_with_examples(text: str) -> None:
    """A bare path is the commonest slip: the error shows what to write."""
    with pytest.raises(ComponentError, match=r"sqlite:///file\.db"):
        open_url(text)


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Installs a package that brings a store: its entry point's name and value."""
    (tmp_path / "acme_store.py").write_text(
        "class AcmeStore:\n"
        "    def __init__(self, source): self.source = source\n"
        "    from_url = from_metadata = classmethod(lambda cls, source: cls(source))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "acme_store", raising=False)

    def install(name: str, value: str) -> None:
        info = tmp_path / f"acme_{sum(1 for _ in tmp_path.iterdir())}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {info.stem}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{components.ENTRY_POINT_GROUP}]\n{name} = {value}\n")

    return install


def test_third_party_store_is_found_by_its_entry_point(third_party: Callable[[str, str], None]) -> None:
    """An installed package adds a store under its entry point's name, for URLs and for components."""
    third_party("acme", "acme_store:AcmeStore")
    assert vars(open_url("acme://host/x")) == {"source": "acme://host/x"}
    made = make_store(Component("s", "state.acme", metadata=Metadata({"Region": "eu", "keyPrefix": "none"})))
    assert vars(made) == {"source": {"Region": "eu"}}
    with pytest.raises(ComponentError, match=r"acme://, memory://"):
        open_url("other://")


def test_third_party_store_cannot_replace_ours(third_party: Callable[[str, str], None]) -> None:
    """A package that takes the name of a built-in store is not used for it."""
    third_party("memory", "acme_store:AcmeStore")
    assert type(open_url("memory://")) is MemoryStore


def test_two_packages_with_one_store_name_are_refused(third_party: Callable[[str, str], None]) -> None:
    """Which of two stores is meant is not guessed."""
    third_party("acme", "acme_store:AcmeStore")
    third_party("acme", "other_store:OtherStore")
    with pytest.raises(ComponentError, match="several installed packages bring a store named 'acme'"):
        open_url("acme://")


@pytest.mark.parametrize("value", ["no_such_module:Store", "acme_store:NoSuchStore"])
def test_broken_third_party_store_is_named(third_party: Callable[[str, str], None], value: str) -> None:
    """A store that cannot be imported says which entry point is to blame."""
    third_party("acme", value)
    with pytest.raises(ComponentError, match=f"'acme' .{value}. cannot be loaded"):
        open_url("acme://")


# ---- reading files -------------------------------------------------------------------------------------------------


def test_component_is_read_whole(write: Write) -> None:
    """Every field of a component arrives, with the file it came from."""
    directory = write("""
        apiVersion: dapr.io/v1alpha1
        kind: Component
        metadata:
          name: statestore
          namespace: production
          labels: {team: a}
        spec:
          type: state.redis
          version: v1
          ignoreErrors: true
          initTimeout: 1m30s
          metadata:
          - name: redisHost
            value: localhost:6379
        scopes: [app, other]
    """)
    (component,) = load(directory)
    assert component == Component(
        name="statestore",
        type="state.redis",
        version="v1",
        metadata=Metadata({"redisHost": "localhost:6379"}),
        scopes=("app", "other"),
        ignore_errors=True,
        source=directory / "0.yaml",
        init_timeout_s=90.0,
    )


def test_plain_component_has_defaults(write: Write) -> None:
    """What a component leaves out has Dapr's defaults."""
    (component,) = load(write(component_yaml()))
    assert (component.ignore_errors, component.init_timeout_s, component.scopes) == (False, 5.0, ())


def test_directories_and_files_are_read_in_order(write: Write, tmp_path: Path) -> None:
    """Directories give their .yaml and .yml files by name, not deeper; single files are read as they are."""
    directory = write(component_yaml(name="b"))
    (directory / "a.yml").write_text(component_yaml(name="a"))
    (directory / "c.txt").write_text("not: [yaml")
    (directory / "deeper").mkdir()
    (directory / "deeper" / "d.yaml").write_text(component_yaml(name="d"))
    single = tmp_path / "single.conf"
    single.write_text(component_yaml(name="single"))
    loaded = load_resources([single, directory], "app", environ={})
    assert [component.name for component in loaded] == ["single", "b", "a"]


def test_documents_of_other_kinds_are_passed_over(write: Write) -> None:
    """A file may hold many documents; those of other kinds, of other systems and empty ones do no harm."""
    others = ["kind: Subscription", "kind: Resiliency", "kind: Configuration", "kind: HTTPEndpoint"]
    documents = [f"apiVersion: dapr.io/v2alpha1\n{kind}\nmetadata: {{name: x}}\nspec: {{}}\n" for kind in others]
    documents += ["apiVersion: apps/v1\nkind: Component\n", "services: {web: {image: x}}\n", "", "- a list\n", "text\n"]
    directory = write("---\n".join([component_yaml(name="first"), *documents, component_yaml(name="last")]))
    assert [component.name for component in load(directory)] == ["first", "last"]


def test_scopes_select_the_app(write: Write) -> None:
    """A component with scopes is for those apps alone, so two apps may each have their own of one name."""
    write(component_yaml(name="mine", top="scopes: [app]"))
    write(component_yaml(name="mine", top="scopes: [other]"))
    directory = write(component_yaml(name="all", top="scopes:"))
    assert [component.name for component in load(directory)] == ["mine", "all"]


def test_two_components_of_one_name_are_refused(write: Write) -> None:
    """The error names both documents."""
    write(component_yaml())
    directory = write(component_yaml(name="other") + "---\n" + component_yaml())
    with pytest.raises(ComponentError, match=r"1\.yaml, document 2 .*'store'.* is taken by .*0\.yaml, document 1"):
        load(directory)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", r"0\.yaml: is not YAML: .*line \d"),
        ("apiVersion: dapr.io/v1alpha1\nmetadata: {name: x}", r"document 1: kind is missing: write kind: Component"),
        ("kind: Component\nmetadata: {name: x}\nspec: {type: state.x}", r"document 1: apiVersion is missing: add it"),
        (component_yaml().replace("v1alpha1", "v9"), r"apiVersion is 'dapr.io/v9': write dapr.io/v1alpha1"),
        (component_yaml(name="''"), r"metadata\.name is empty: fill it in"),
        (component_yaml(type="sqlite"), r"spec\.type is 'sqlite': write a block and a name, like state.sqlite"),
        (component_yaml(top="scopes: app"), r"scopes is wrong: .*, got 'app'"),
        (component_yaml().replace("metadata: {name: store}", "metadata: {}"), r"metadata\.name is missing: add it"),
        (component_yaml("- {value: x}"), r"spec\.metadata\[0\]\.name is missing"),
        (component_yaml("- {name: x}"), r"spec\.metadata\[0\] has no value: add value, secretKeyRef or envRef"),
        (component_yaml("- {name: x, value: 1, envRef: X}"), r"spec\.metadata\[0\] has more than one of value"),
        (component_yaml("- {name: x, value: {a: b}}"), r"spec\.metadata\[0\]\.value must be a text, .* in quotes"),
        (component_yaml("- {name: x, value: 1}\n- {name: X, value: 2}"), r"'store'.* spec\.metadata\[1\] repeats 'X'"),
        (component_yaml().replace("  version: v1", "  initTimeout: soon"), r"spec\.initTimeout is 'soon': write a dur"),
        (component_yaml().replace("  version: v1", "  ignoreErrors: perhaps"), r"spec\.ignoreErrors is wrong: "),
    ],
)
def test_wrong_documents_are_refused_by_field(write: Write, text: str, message: str) -> None:
    """The error names file, document and field, and says what to do."""
    with pytest.raises(ComponentError, match=message) as caught:
        load(write(text))
    assert "0.yaml" in str(caught.value)


def test_missing_path_is_refused(tmp_path: Path) -> None:
    """A path with nothing there is a slip, not an empty set of components."""
    with pytest.raises(ComponentError, match="nowhere does not exist"):
        load(tmp_path / "nowhere")


def test_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are refused with the file's name."""
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ComponentError, match=r"x\.yaml: cannot be read"):
        load(tmp_path)


# ---- values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("text", "text"),
        ('"quoted: 1"', "quoted: 1"),
        ("6379", "6379"),
        ("1.10", "1.10"),
        ("0123", "0123"),
        ("10:30", "10:30"),
        ("2024-01-02", "2024-01-02"),
        ("true", "true"),
        ("False", "false"),
        ("''", ""),
        ("", ""),
    ],
)
def test_values_become_text(write: Write, written: str, value: str) -> None:
    """Texts, numbers and truth values are taken; numbers and dates as they are written, not as YAML would read them."""
    assert metadata_of(write(component_yaml(f"- name: x\n  value: {written}"))) == {"x": value}


def test_metadata_names_are_found_in_any_case() -> None:
    """Dapr's components write redisHost, redishost and RedisHost alike."""
    metadata = Metadata({"redisHost": "h"})
    assert metadata["REDISHOST"] == metadata.get("redishost") == "h"
    assert "RedisHost" in metadata
    assert "redis" not in metadata
    assert list(metadata) == ["redisHost"]


def test_values_stay_out_of_representations() -> None:
    """A component that ends up in a log does not take its password there."""
    assert "hunter2" not in repr(state_component(redisPassword="hunter2"))


def test_templates_are_filled_in(write: Write) -> None:
    """{appID}, {namespace}, {podName} and {uuid} are replaced, each {uuid} by a new one; other braces stay."""
    directory = write(component_yaml('- {name: x, value: "{appID}/{namespace}/{podName}/{other}"}'))
    write(component_yaml('- {name: x, value: "{uuid} {uuid}"}', name="ids"))
    first, ids = load_resources(directory, "app", "ns", {"POD_NAME": "pod-0"})
    assert first.metadata["x"] == "app/ns.app/pod-0/{other}"
    one, other = ids.metadata["x"].split()
    assert len(one) == len(other) == 36
    assert one != other


def test_pod_name_must_be_known(write: Write) -> None:
    """A template that cannot be filled in is refused rather than left or emptied."""
    with pytest.raises(ComponentError, match=r"spec\.metadata\[0\] \(x\): uses \{podName\}: set .* POD_NAME"):
        load(write(component_yaml('- {name: x, value: "{podName}"}')))


def test_env_ref_reads_the_environment(write: Write) -> None:
    """envRef takes a variable as it is: nothing in it is a template."""
    directory = write(component_yaml("- {name: x, envRef: MY_VAR}"))
    assert metadata_of(directory, {"MY_VAR": "a{appID}"}) == {"x": "a{appID}"}
    with pytest.raises(ComponentError, match=r"\(x\): the variable 'MY_VAR' is not set"):
        load(directory)


@pytest.mark.parametrize("name", ["APP_API_TOKEN", "DAPR_API_TOKEN", "DAPR_x", "dapr_api_token", "App_Api_Token"])
def test_env_ref_refuses_the_runtimes_own(write: Write, name: str) -> None:
    """Tokens of the runtime cannot leak into a component."""
    with pytest.raises(ComponentError, match=f"envRef '{name}' is the runtime's own"):
        load(write(component_yaml(f"- {{name: x, envRef: {name}}}")), {name: "secret"})


# ---- secrets -------------------------------------------------------------------------------------------------------

ENV_STORE = component_yaml(name="envs", type="secretstores.local.env")


def secret_ref(name: str, key: str = "", store: str = "envs") -> str:
    reference = f"{{name: '{name}', key: '{key}'}}" if key else f"{{name: '{name}'}}"
    return component_yaml(f"- {{name: x, secretKeyRef: {reference}}}", top=f"auth: {{secretStore: {store}}}")


def file_store(tmp_path: Path, content: str, more: str = "") -> str:
    file = tmp_path / "secrets.json"
    file.write_text(content)
    spec = f"- {{name: secretsFile, value: '{file}'}}\n{more}"
    return component_yaml(spec, name="files", type="secretstores.local.file")


@pytest.mark.parametrize("key", ["", "PASSWORD"])
def test_secret_from_the_environment(write: Write, key: str) -> None:
    """The store may stand after its user, and the key may be left out; a secret is never taken for a template."""
    write(ENV_STORE)
    assert metadata_of(write(secret_ref("PASSWORD", key)), {"PASSWORD": "{uuid}"}) == {"x": "{uuid}"}


def test_secret_store_may_stand_after_its_user(write: Write) -> None:
    """The order of documents means nothing."""
    write(secret_ref("PASSWORD"))
    component, _ = load(write(ENV_STORE), {"PASSWORD": "p"})
    assert component.metadata["x"] == "p"


def test_environment_secrets_have_a_prefix_and_protected_ones_stay_hidden() -> None:
    """`prefix` goes before the name; the runtime's own variables are no secrets."""
    environ = {"MYAPP_PASSWORD": "p", "DAPR_API_TOKEN": "t", "APP_API_TOKEN": "t", "HOME": "/"}
    plain = make_secret_store(Component("s", "secretstores.local.env"), environ)
    assert plain.secret("DAPR_API_TOKEN") is None
    assert plain.secrets() == {"MYAPP_PASSWORD": {"MYAPP_PASSWORD": "p"}, "HOME": {"HOME": "/"}}
    prefixed = Component("s", "secretstores.local.env", metadata=Metadata({"prefix": "MYAPP_"}))
    assert make_secret_store(prefixed, environ).secrets() == {"PASSWORD": {"PASSWORD": "p"}}


@pytest.mark.parametrize(
    ("more", "name", "key", "value"),
    [
        ("", "plain", "", "a"),
        ("", "redis:password", "", "b"),
        ("", "redis:ports:1", "redis:ports:1", "6380"),
        ("", "redis:tls", "", "true"),
        ("- {name: nestedSeparator, value: '.'}", "redis.password", "", "b"),
        ("- {name: multiValued, value: 'true'}", "redis", "password", "b"),
        ("- {name: multiValued, value: true}", "redis", "ports:0", "6379"),
        ("- {name: multiValued, value: true}", "plain", "plain", "a"),
    ],
)
def test_secret_from_a_file(write: Write, tmp_path: Path, more: str, name: str, key: str, value: str) -> None:
    """Nested names are joined by the separator; with multiValued a top-level name holds several keys."""
    content = '{"plain": "a", "redis": {"password": "b", "ports": [6379, 6380], "tls": true}}'
    write(file_store(tmp_path, content, more))
    assert metadata_of(write(secret_ref(name, key, store="files"))) == {"x": value}


@pytest.mark.parametrize(
    ("store", "user", "message"),
    [
        (ENV_STORE, secret_ref("NONE"), r"spec\.metadata\[0\] \(x\): 'envs' has no secret 'NONE': add it there"),
        (
            ENV_STORE,
            secret_ref("PASSWORD", "other"),
            r"'PASSWORD' has no key 'other': use one of \['PASSWORD'\]",
        ),
        (ENV_STORE, secret_ref("PASSWORD", store="vault"), r"secretStore 'vault' is no .* \(there are: envs\)"),
        (ENV_STORE, secret_ref("PASSWORD").replace("auth:", "other:"), r"needs a secret store: add auth: .secretStore"),
        (
            ENV_STORE.replace("kind:", "scopes: [other]\nkind:"),
            secret_ref("PASSWORD"),
            r"is no secret store of this app \(there are: none\)",
        ),
    ],
)
def test_secret_that_cannot_be_found_is_refused(write: Write, store: str, user: str, message: str) -> None:
    """The error says which link of the chain is missing, and shows no value."""
    write(store)
    with pytest.raises(ComponentError, match=message) as caught:
        load(write(user), {"PASSWORD": "hunter2"})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON"), ("[]", "must hold a JSON object"), (None, "cannot read the secrets file")],
)
def test_broken_secrets_file_is_refused(write: Write, tmp_path: Path, content: str | None, message: str) -> None:
    """A secrets file that is missing or malformed is named with its whole path."""
    text = file_store(tmp_path, content or "")
    if content is None:
        (tmp_path / "secrets.json").unlink()
    with pytest.raises(ComponentError, match=message) as caught:
        load(write(text))
    assert str(tmp_path / "secrets.json") in str(caught.value)


def test_file_store_needs_its_file(write: Write) -> None:
    """Dapr's name of the field is in the error."""
    with pytest.raises(ComponentError, match="secretsFile is missing"):
        load(write(component_yaml(name="files", type="secretstores.local.file")))


def test_unknown_secret_store_is_refused() -> None:
    """The error lists what there is."""
    with pytest.raises(ComponentError, match=r"secretstores\.local\.env, secretstores\.local\.file"):
        make_secret_store(Component("s", "secretstores.azure.keyvault"))


# ---- stores --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type", "metadata", "expected"),
    [
        ("state.in-memory", {}, MemoryStore),
        ("state.sqlite", {"connectionString": "data.db", "actorStateStore": "true"}, SqliteStore),
        ("state.redis", {"redisHost": "localhost:6379", "keyPrefix": "name"}, RedisStore),
        ("State.Redis", {"redisHost": "localhost:6379"}, RedisStore),
        ("state.In-Memory", {}, MemoryStore),
    ],
)
def test_component_gives_its_store(type: str, metadata: dict[str, str], expected: object) -> None:
    """Dapr's names of state stores and of their fields work as they are, in any case of letters."""
    assert make_store(Component("s", type, metadata=Metadata(metadata))).__class__ is expected


@pytest.mark.parametrize("type", ["state.mongodb", "pubsub.redis", "state.", "redis"])
def test_unknown_type_lists_the_known_ones(type: str) -> None:
    """A component that is no state store we know is answered with those we do."""
    with pytest.raises(ComponentError, match=r"state\.in-memory.* state\.redis.* state\.sqlite"):
        make_store(Component("s", type))


def test_what_a_store_refuses_names_the_field(write: Write) -> None:
    """An error out of a store's own settings gets their place in the file put before it."""
    (component,) = load(write(component_yaml(type="state.sqlite")))
    with pytest.raises(ComponentError, match=r"^spec\.metadata: connectionString"):
        make_store(component)


@pytest.mark.parametrize(
    ("strategy", "prefix"),
    [
        ({}, "app||"),
        ({"keyPrefix": ""}, "app||"),
        ({"keyPrefix": "appid"}, "app||"),
        ({"KEYPREFIX": "AppID"}, "app||"),
        ({"keyPrefix": "namespace"}, "ns.app||"),
        ({"keyPrefix": "name"}, "store||"),
        ({"keyPrefix": "none"}, ""),
        ({"keyPrefix": "Shared"}, "Shared||"),
    ],
)
def test_key_prefix_follows_the_strategy(strategy: dict[str, str], prefix: str) -> None:
    """The prefix keeps apps apart in a shared store, or joins them, as the component says."""
    assert key_prefix(state_component(**strategy), "app", "ns") == prefix


def test_key_prefix_cannot_contain_the_separator() -> None:
    """A prefix that looks like two would let one app reach into another's keys."""
    with pytest.raises(ComponentError, match=r"must not contain '\|\|'"):
        key_prefix(state_component(keyPrefix="a||b"), "app", "ns")


def test_store_component_holds_what_the_api_needs() -> None:
    """Name, prefix and the time between purges, read from one component."""
    assert store_component(state_component(keyPrefix="none"), "app") == StoreComponent("store", key_prefix="")
    assert store_component(state_component(cleanupInterval="1h30m"), "app").purge_every_s == 5400.0
    with pytest.raises(ComponentError, match="cleanupInterval is 'often': write a duration"):
        store_component(state_component(cleanupInterval="often"), "app")


def test_default_time_to_live() -> None:
    """Dapr's `ttlInSeconds` of a component: for keys that are written without one."""
    assert store_component(state_component(ttlInSeconds="60"), "app").ttl_s == 60
    assert [store_component(state_component(ttlInSeconds=t), "app").ttl_s for t in ("0", "-1", "")] == [None] * 3
    assert store_component(state_component(ttlInSeconds=str(MAX_TTL_S)), "app").ttl_s == MAX_TTL_S
    for wrong in ("1h", "1.5", str(MAX_TTL_S + 1), "9" * 5000):  # not found out by the first write without a TTL
        with pytest.raises(ComponentError, match=f"ttlInSeconds must be .* at most {MAX_TTL_S}, not '{wrong}'"):
            store_component(state_component(ttlInSeconds=wrong), "app")


def test_actors_live_in_one_store(write: Write) -> None:
    """One component may be the actors' store; a second one is refused, and both are named."""
    first = component_yaml("- {name: actorStateStore, value: 'true'}", name="one")
    write(component_yaml(name="other"))
    directory = write(first)
    actors = actor_component(load(directory))
    assert actors is not None
    assert actors.name == "one"
    assert actor_component([]) is None
    assert actor_component([state_component()]) is None
    component = state_component(actorStateStore="True")
    assert actor_component([component]) is component
    with pytest.raises(ComponentError, match="actorStateStore is 'maybe': write true or false"):
        actor_component([state_component(actorStateStore="maybe")])
    write(first.replace("name: one", "name: two"))
    with pytest.raises(ComponentError, match=r"'one'.*'two'.*actors live in one store"):
        load(directory)


def test_types_are_matched_in_any_case(write: Write) -> None:
    """As Dapr's registry does: actors must not go to the default store for a capital letter."""
    write(component_yaml(name="secrets", type="SecretStores.Local.Env"))
    secret = "- {name: actorStateStore, value: 'true'}\n- {name: x, secretKeyRef: {name: X}}"
    directory = write(component_yaml(secret, name="s", type="State.SQLite", top="auth: {secretStore: secrets}"))
    actors = actor_component(load(directory, {"X": "y"}))
    assert actors is not None
    assert (actors.type, actors.metadata["x"]) == ("State.SQLite", "y")


def test_an_actor_store_that_is_passed_over_is_told(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever wrote actorStateStore is told when actors do not go there: its type is no state store."""
    load(write(component_yaml("- {name: actorStateStore, value: 'true'}", name="s", type="stat.redis")))
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "component 's' has actorStateStore" in warning
    assert "'stat.redis' is no state store" in warning
    caplog.clear()
    load(write(component_yaml(name="other", type="pubsub.redis")) / "1.yaml")
    assert not caplog.records


# ---- the documentation -----------------------------------------------------------------------------------------------

STORES_MD = Path(__file__).parents[2] / "docs" / "stores.md"


def test_documented_components_work(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The YAML in docs/stores.md loads as it stands, for the app it is scoped to, and gives the stores it names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secrets.json").write_text('{"redis": {"password": "p"}}')
    cluster, embedded = re.findall(r"```yaml\n(.*?)```", STORES_MD.read_text(encoding="utf-8"), re.DOTALL)
    store, secrets = load_resources(write(cluster), "orders", environ={"REDIS_USER": "u"})
    assert (store.metadata["redisPassword"], store.metadata["redisUsername"]) == ("p", "u")
    assert store_component(store, "orders") == StoreComponent("statestore", "orders||")
    assert actor_component([store, secrets]) is store
    assert secrets.type == "secretstores.local.file"
    assert type(make_store(store)) is RedisStore
    (tmp_path / "embedded.yaml").write_text(embedded)
    (component,) = load(tmp_path / "embedded.yaml")
    assert type(make_store(component)) is SqliteStore


def test_documented_urls_work() -> None:
    """Each URL in the list of docs/stores.md makes a store."""
    listed = re.findall(r"^(\w+://\S*)(?:  |$)", STORES_MD.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(listed) == 6
    for url in listed:
        assert type(open_url(url)) in (MemoryStore, SqliteStore, RedisStore)


def test_documented_key_prefixes_hold() -> None:
    """The table of key prefixes in docs/stores.md says what the code does."""
    rows = re.findall(r"^\| `(\w+)`.*?\| `(\S*?)k` \|", STORES_MD.read_text(encoding="utf-8"), re.MULTILINE)
    assert [strategy for strategy, _ in rows] == ["appid", "namespace", "name", "none"]
    for strategy, prefix in rows:
        component = Component("statestore", "state.redis", metadata=Metadata({"keyPrefix": strategy}))
        assert key_prefix(component, "orders") == prefix.replace("\\", "")
