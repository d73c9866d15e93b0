"""The manifests of `deploy/`: valid by schema, and of one mind with each other, the image, the page and the program."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import kubernetes_validate
import pytest
import typer
import yaml
from jsonschema import Draft202012Validator

from runtime_api.app import create_app
from runtime_api.cli import cli
from runtime_api.cluster import LEASE_S
from runtime_api.runtime import Runtime
from runtime_api.settings import Settings, load_settings
from runtime_api.wire import duration_s
from statestores.redis_settings import settings_from_url

if TYPE_CHECKING:
    from collections.abc import Iterator

Object = dict[str, Any]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "cluster.md"
CONTAINERFILE = (ROOT / "deploy" / "Containerfile").read_text()
FILES = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
OBJECTS: list[Object] = [document for file in FILES for document in yaml.safe_load_all(file.read_text())]
OLDEST_KUBERNETES, NEWEST_KUBERNETES = "1.30", "1.37"


def the(kind: str, name: str) -> Object:
    found = [o for o in OBJECTS if o["kind"] == kind and o["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} objects {kind} {name}"
    return found[0]


CLUSTER = the("RayCluster", "mecha")["spec"]
HEAD = CLUSTER["headGroupSpec"]["template"]["spec"]
WORKER = CLUSTER["workerGroupSpecs"][0]["template"]["spec"]
DRIVER = next(container for container in HEAD["containers"] if container["name"] == "mecha")
RAY_CONTAINERS = [HEAD["containers"][0], WORKER["containers"][0]]


def templates() -> Iterator[tuple[dict[str, str], Object]]:
    """Labels and spec of every kind of Pod there will be; KubeRay adds its own labels."""
    for node_type, spec in ("head", HEAD), ("worker", WORKER):
        yield {"ray.io/cluster": "mecha", "ray.io/node-type": node_type}, spec
    redis = the("StatefulSet", "mecha-redis")["spec"]["template"]
    yield redis["metadata"]["labels"], redis["spec"]


def selected(labels: dict[str, str]) -> list[Object]:
    return [spec for pod_labels, spec in templates() if labels.items() <= pod_labels.items()]


def every(key: str, value: Any) -> Iterator[Any]:
    """What stands under that key, anywhere."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == key:
                yield inner
            yield from every(key, inner)
    elif isinstance(value, list):
        for inner in value:
            yield from every(key, inner)


def environment(container: Object) -> dict[str, str]:
    """With `$(NAME)` of a secret filled in by some text."""
    found: dict[str, str] = {}
    for variable in container["env"]:
        value = variable.get("value", "secret")
        found[variable["name"]] = re.sub(r"\$\((\w+)\)", lambda match: found[match[1]], value)
    return found


def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What `mecha run` makes of the driver's arguments and environment. (Parsed by the command line itself.)"""
    command = typer.main.get_command(cli).commands["run"]  # type: ignore[attr-defined]  # a group
    given = command.make_context("run", list(DRIVER["args"])).params
    known = {name: value for name, value in given.items() if name in Settings.model_fields and value is not None}
    for name, value in environment(DRIVER).items():
        monkeypatch.setenv(name, value)
    return load_settings(known)


@pytest.mark.parametrize("version", [OLDEST_KUBERNETES, NEWEST_KUBERNETES])
@pytest.mark.parametrize("thing", OBJECTS, ids=lambda o: f"{o['kind']}-{o['metadata']['name']}")
def test_every_object_is_valid(thing: Object, version: str) -> None:
    """Each object has the fields its kind has, of the right types, and no others."""
    if thing["kind"] != "RayCluster":
        kubernetes_validate.validate(thing, version, strict=True)
        return
    schema = yaml.safe_load((Path(__file__).parent / "raycluster.yaml").read_text())
    assert [error.message for error in Draft202012Validator(schema).iter_errors(thing)] == []
    for template in every("template", thing):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "checked"}, "template": template}
        kubernetes_validate.validate(pod, version, strict=True)


def test_the_check_finds_mistakes() -> None:
    """A misspelt field does not pass."""
    pod = {"apiVersion": "v1", "kind": "PodTemplate", "template": {"spec": {"containers": [], "volumess": []}}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, NEWEST_KUBERNETES, strict=True)


def test_secrets_are_those_the_page_makes() -> None:
    """Every reference to a secret finds a key that the command on the page makes."""
    made = re.search(
        r"kubectl create secret generic (\S+)((?:[\s\\]+--from-literal=[\w-]+=\$\([^)]+\))+)", PAGE.read_text()
    )
    assert made is not None
    keys = set(re.findall(r"--from-literal=([\w-]+)=", made[2]))
    wanted = {(r["name"], r["key"]) for r in every("secretKeyRef", OBJECTS)}
    wanted.add((CLUSTER["authOptions"]["secretName"], "auth_token"))  # the key KubeRay looks for
    assert wanted == {(made[1], key) for key in keys}


def test_services_find_pods_that_listen() -> None:
    """A Service's selector matches Pods, and each of them has the port it names; so do budgets and policies."""
    for service in (o for o in OBJECTS if o["kind"] == "Service"):
        pods = selected(service["spec"]["selector"])
        assert pods
        for pod in pods:
            ports = {p["name"]: p["containerPort"] for c in pod["containers"] for p in c.get("ports", ())}
            assert all(ports[port["targetPort"]] == port["port"] for port in service["spec"]["ports"])
    for labels in every("matchLabels", OBJECTS):
        assert selected(labels)


def test_the_driver_is_told_what_it_understands(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's arguments are options of `mecha run`, with values they can have; the port is the one all Pods open,
    and it can be reached from other Pods only with a token."""
    chosen = settings(monkeypatch)
    assert (chosen.placement, chosen.ray_address, chosen.host) == ("ray", "auto", "0.0.0.0")
    assert chosen.api_token is not None
    http = [p["containerPort"] for c in RAY_CONTAINERS for p in c["ports"] if p["name"] == "http"]
    assert http == [chosen.port, chosen.port]
    assert Settings.model_fields["port"].default == chosen.port
    # A head alone is a beginning: the driver must not give up because workers take long to come.
    assert chosen.hosts == 1
    budget = the("PodDisruptionBudget", "mecha")["spec"]["minAvailable"]
    assert 0 < budget < CLUSTER["workerGroupSpecs"][0]["minReplicas"]


def test_the_page_lists_options_with_their_defaults() -> None:
    """An option on the page is one of `mecha run`, and so is its default."""
    rows = re.findall(r"^\| `--([\w-]+)` \| `(\w+)` \| (?:`([^`]*)`)?[^|]*\|", PAGE.read_text(), re.MULTILINE)
    shown = {name.replace("-", "_"): default for name, _, default in rows}
    assert {"placement", "ray_address", "hosts", "hosts_per_node", "spares", "lease", "drain"} <= set(shown)
    assert all(variable == f"MECHA_{name.replace('-', '_').upper()}" for name, variable, _ in rows)
    defaults = {name: Settings.model_fields[name].default for name in shown} | {"lease": LEASE_S}
    assert {name: str(value) for name, value in defaults.items() if not isinstance(value, float)} == {
        name: text for name, text in shown.items() if not text.endswith("s")
    }
    assert {name: value for name, value in defaults.items() if isinstance(value, float)} == {
        name: duration_s(text) for name, text in shown.items() if text.endswith("s")
    }


def test_the_store_is_the_redis_that_is_deployed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Actors, and Ray's own memory, are in the Redis of the manifests; it forgets nothing and asks for a password."""
    service = the("Service", "mecha-redis")
    address = (service["metadata"]["name"], service["spec"]["ports"][0]["port"])
    url = settings(monkeypatch).store
    assert url is not None
    store = settings_from_url(url)
    assert store.hosts == (address,)
    assert store.password
    assert CLUSTER["gcsFaultToleranceOptions"]["redisAddress"] == "redis://{}:{}".format(*address)
    arguments = the("StatefulSet", "mecha-redis")["spec"]["template"]["spec"]["containers"][0]["args"]
    options = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] in ("always", "everysec")
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--requirepass"] == "$(REDIS_PASSWORD)"


def test_a_pod_has_time_to_hand_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Pod is killed after what comes before its end has had its time: the pause, the drain, Ray's own end."""
    ray_constants = pytest.importorskip("ray._private.ray_constants")
    name = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
    assert hasattr(ray_constants, name)
    for pod, container in zip((HEAD, WORKER), RAY_CONTAINERS, strict=True):
        drain_s = float(environment(container)[name])
        pause_s = float(container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [0])[-1])
        assert drain_s > settings(monkeypatch).drain
        assert pod["terminationGracePeriodSeconds"] >= pause_s + drain_s + 10


async def test_ready_means_that_clients_are_served() -> None:
    """A worker's readiness is asked for where the API answers without a token."""
    probe = WORKER["containers"][0]["readinessProbe"]["httpGet"]
    assert probe["port"] == "http"
    async with Runtime(store="memory://") as runtime:
        transport = httpx.ASGITransport(create_app(runtime, api_token="a token"))
        async with httpx.AsyncClient(transport=transport, base_url="http://pod") as client:
            answers = [(await client.get(path)).status_code for path in (probe["path"], "/v1.0/metadata")]
    assert answers == [204, 401]


def test_the_image_has_what_the_manifest_runs() -> None:
    """One image for all of Ray, with the version of Ray that is said, the driver's program and the application, run by
    the user the Pods name."""
    images = {image for image in every("image", CLUSTER)}
    assert len(images) == 1
    assert images.pop() in PAGE.read_text()
    assert f"ARG RAY={CLUSTER['rayVersion']}\n" in CONTAINERFILE
    copied = dict(re.findall(r"^COPY (\S+) (\S+)$", CONTAINERFILE, re.MULTILINE))
    assert DRIVER["command"] == [copied["deploy/driver.sh"] + "driver.sh"]
    assert DRIVER["args"][0] == copied["${APP}"]
    users = {context["runAsUser"] for context in every("securityContext", CLUSTER) if "runAsUser" in context}
    assert users == {int(re.findall(r"^USER (\d+)$", CONTAINERFILE, re.MULTILINE)[0])}


def test_the_image_is_made_of_what_there_is() -> None:
    """What is copied into the image exists, and is every package of the project."""
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", CONTAINERFILE, re.MULTILINE) for name in line.split()]
    app = re.findall(r"^ARG APP=(\S+)$", CONTAINERFILE, re.MULTILINE)[0]
    assert all((ROOT / name.replace("${APP}", app)).exists() for name in copied)
    ignored = (ROOT / "deploy" / "Containerfile.dockerignore").read_text().splitlines()
    assert {f"!{name.partition('/')[0]}" for name in copied if "$" not in name} | {"!examples"} <= set(ignored)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {package.removesuffix("*") for package in packages} <= set(copied)
