"""Settings of the server: command line over environment (``MECHA_…``) over a YAML file over the defaults here."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from runtime_api.edge import DEFAULT_BODY_LIMIT
from runtime_api.wire import LONGEST_WAIT_S, duration_s
from workflow.payloads import DEFAULT_LIMIT

if TYPE_CHECKING:
    from collections.abc import Mapping

_SIZE_UNITS = {"": 1, "k": 1000, "ki": 1024, "m": 1000**2, "mi": 1024**2, "g": 1000**3, "gi": 1024**3}


class SettingsError(Exception):
    """A setting has a value it cannot have; the text is one line that names it."""


def _not_empty(value: object) -> object:
    """A variable of a script that is not set would else choose the default store."""
    if value == "":
        raise ValueError("it is empty: give a URL, or leave it out")
    return value


def parse_size(value: object) -> object:
    """Bytes out of ``4Mi``, ``512Ki``, ``1M``, ``4194304``; what is no text is left for the model to judge. Raises
    `ValueError`."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(\d+)\s*([kmg]i?|)b?", value.strip().lower())
    if found is None:
        raise ValueError(f"{value!r} is no size such as 4194304, 512Ki or 4Mi")
    return int(found[1]) * _SIZE_UNITS[found[2]]


def _parse_duration(value: object) -> object:
    return duration_s(value) if isinstance(value, str) else value


def _split_paths(value: object) -> object:
    return tuple(filter(None, value.split(os.pathsep))) if isinstance(value, str) else value


def _dapr_token() -> SecretStr | None:
    token = os.environ.get("DAPR_API_TOKEN")
    return SecretStr(token) if token else None


_OF_RAY = {"ray_address", "hosts", "hosts_per_node", "spares"}

Paths = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_split_paths)]
Seconds = Annotated[float, BeforeValidator(_parse_duration), Field(gt=0, le=LONGEST_WAIT_S)]
Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]


class Settings(BaseSettings):
    """Each field is a flag of ``mecha run`` (``--max-body-size``), a variable (``MECHA_MAX_BODY_SIZE``) and a YAML key
    (``max_body_size``)."""

    model_config = SettingsConfigDict(env_prefix="MECHA_", extra="forbid", env_ignore_empty=True)

    store: Annotated[str | None, BeforeValidator(_not_empty)] = Field(
        None,
        description="URL of the store that holds actors and workflows; default: the component with actorStateStore, "
        "else sqlite:///mecha.db",
    )
    resources_path: Paths = Field((), description="Files and directories of component YAML")
    host: str = "127.0.0.1"
    port: int = Field(3500, ge=0, le=65535, description="0: any free port")
    app_id: str = Field("", description="Default: the name of the application's file")
    namespace: str = "default"
    placement: Literal["local", "ray"] = Field("local", description="local: one process; ray: several hosts on Ray")
    ray_address: str = Field("", description="Ray cluster to join, e.g. auto; default: a small one is started here")
    hosts: int = Field(2, gt=0, description="With placement ray: hosts that serve")
    hosts_per_node: int = Field(0, ge=0, description="With placement ray: so many hosts on each node instead")
    spares: int = Field(1, ge=0, description="With placement ray: further hosts, ready to take over")
    lease: Seconds = 10.0
    drain: Seconds = Field(30.0, description="How long a graceful stop may take, in all")
    max_body_size: Size = DEFAULT_BODY_LIMIT
    large_value_bytes: Size = Field(
        DEFAULT_LIMIT, description="Values of workflows whose JSON is longer are stored beside the history"
    )
    max_connections: int = Field(10_000, gt=0)
    keep_alive: Seconds = 75.0
    api_token: SecretStr | None = Field(default_factory=_dapr_token, description="Default: `DAPR_API_TOKEN`")
    log_level: Literal["debug", "info", "warning", "error", "critical"] = "warning"
    access_log: bool = False

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls)


def _check_file(file: Path) -> None:
    if not file.is_file():
        raise SettingsError(f"settings file {file} does not exist")
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise SettingsError(f"settings file {file}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict | None) or not all(isinstance(name, str) for name in content or ()):
        raise SettingsError(f"settings file {file}: it has no lines such as `port: 4000`")


def load_settings(given: Mapping[str, Any], file: Path | None = None) -> Settings:
    """`given`: what the command line said (leave out what it did not). Raises `SettingsError`."""
    if file is not None:
        _check_file(file)

    class FromFile(Settings):
        model_config = SettingsConfigDict(yaml_file=file, yaml_file_encoding="utf-8")

    try:
        settings = FromFile(**given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"])) or "settings"
        is_unknown = first["type"] == "extra_forbidden"
        reason = "unknown setting" if is_unknown else first["msg"].removeprefix("Value error, ")
        # What may be the token is not told, neither under its name nor under one that is misspelled.
        shown = "" if is_unknown or name == "api_token" else f" (got {first['input']!r})"
        raise SettingsError(f"setting {name}: {reason}{shown}") from None
    except (ValueError, TypeError) as error:
        raise SettingsError(f"settings file {file}: {' '.join(str(error).split())}") from None
    if settings.placement == "local" and (of_ray := _OF_RAY & settings.model_fields_set):
        raise SettingsError(f"setting {min(of_ray)} is for hosts on Ray: set placement to ray, or leave it out")
    return settings
