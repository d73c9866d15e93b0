"""What keeps a cluster from being started, before there is any process of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from runtime_api.cluster import run_cluster
from runtime_api.settings import Settings
from runtime_api.startup import StartupError

if TYPE_CHECKING:
    from pathlib import Path

APP = "tests.runtime_api.sample_app"
COMPONENT = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: mine}}
spec:
  type: {type}
  version: v1
  metadata:
    - {{name: connectionString, value: "{tmp}/mine.db"}}
    - {{name: actorStateStore, value: "{actors}"}}
"""


def component(tmp_path: Path, kind: str, actors: str = "true") -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(COMPONENT.format(type=kind, tmp=tmp_path, actors=actors))
    return file


@pytest.mark.parametrize("url", [None, "memory://", "sqlite:///mine.db"])
def test_a_store_of_one_process_is_refused(url: str | None) -> None:
    """Hosts could not see what others of them have recorded. The default store is such a one."""
    with pytest.raises(StartupError, match="belongs to one process: a cluster needs one that all hosts reach"):
        run_cluster(APP, Settings.model_validate({"store": url, "port": 0}))


@pytest.mark.parametrize("kind", ["state.sqlite", "state.in-memory"])
def test_so_it_is_when_a_component_brings_it(tmp_path: Path, kind: str) -> None:
    """The error names the component."""
    file = component(tmp_path, kind)
    with pytest.raises(StartupError, match=r"the store of .*mine.* belongs to one process"):
        run_cluster(APP, Settings.model_validate({"resources_path": (file,), "port": 0}))


def test_a_component_without_actors_does_not_count(tmp_path: Path) -> None:
    """Then actors live in the default store, which is refused by its own name."""
    file = component(tmp_path, "state.sqlite", "false")
    with pytest.raises(StartupError, match=r"store sqlite:///mecha.db belongs to one process"):
        run_cluster(APP, Settings.model_validate({"resources_path": (file,), "port": 0}))


def test_a_component_that_is_wrong_is_refused(tmp_path: Path) -> None:
    """Before hosts are started, each of which would say so. The file and the component are named."""
    file = component(tmp_path, "state.nonsense")
    with pytest.raises(StartupError, match=r"mine\.yaml.*mine.*state\.nonsense"):
        run_cluster(APP, Settings.model_validate({"resources_path": (file,), "port": 0}))
