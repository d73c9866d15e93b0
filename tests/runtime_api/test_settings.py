"""Settings: command line over environment over file over defaults."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime_api.settings import SettingsError, load_settings


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MECHA_PORT", "MECHA_STORE", "DAPR_API_TOKEN", "MECHA_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def test_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is nearer to the command wins, setting by setting."""
    file = tmp_path / "mecha.yaml"
    file.write_text("port: 1001\nstore: memory://\nhost: 0.0.0.0\n")
    monkeypatch.setenv("MECHA_PORT", "1002")
    monkeypatch.setenv("MECHA_STORE", "sqlite:///env.db")
    settings = load_settings({"port": 1003}, file)
    assert (settings.port, settings.store, settings.host) == (1003, "sqlite:///env.db", "0.0.0.0")
    assert settings.lease == 10.0


def test_sizes_durations_and_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units are understood wherever a setting comes from."""
    monkeypatch.setenv("MECHA_LEASE", "1m30s")
    monkeypatch.setenv("MECHA_RESOURCES_PATH", "a:b/c.yaml")
    monkeypatch.setenv("MECHA_LARGE_VALUE_BYTES", "1Mi")
    settings = load_settings({"max_body_size": "16Mi", "drain": "500ms"})
    assert (settings.max_body_size, settings.drain, settings.lease) == (16 * 1024**2, 0.5, 90.0)
    assert settings.resources_path == (Path("a"), Path("b/c.yaml"))
    assert settings.large_value_bytes == 1024**2
    assert load_settings({"large_value_bytes": "512Ki"}).large_value_bytes == 512 * 1024


def test_the_token_is_daprs_unless_it_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """DAPR_API_TOKEN is honoured, MECHA_API_TOKEN wins, and neither is ever shown."""
    monkeypatch.setenv("DAPR_API_TOKEN", "theirs")
    settings = load_settings({})
    assert settings.api_token is not None
    assert settings.api_token.get_secret_value() == "theirs"
    assert "theirs" not in repr(settings)
    monkeypatch.setenv("MECHA_API_TOKEN", "ours")
    settings = load_settings({})
    assert settings.api_token is not None
    assert settings.api_token.get_secret_value() == "ours"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("portt: 1\n", "portt"),
        ("port: abc\n", "port"),
        ("port: 99999\n", "port"),
        ("a: [\n", "mecha.yaml"),
        ("- 1\n", "mecha.yaml: it has no lines such as `port: 4000`"),
        ("- [port, 4000]\n", "mecha.yaml: it has no lines"),
        ("[]\n", "mecha.yaml: it has no lines"),
        ("port\n", "mecha.yaml: it has no lines"),
        ("1: 2\n", "mecha.yaml"),
    ],
)
def test_mistakes_in_the_file_are_one_line_that_names_them(tmp_path: Path, content: str, named: str) -> None:
    """A person can see from the message what to mend."""
    file = tmp_path / "mecha.yaml"
    file.write_text(content)
    with pytest.raises(SettingsError) as caught:
        load_settings({}, file)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "value", "remedy"),
    [
        ("max_body_size", "4Q", "'4Q' is no size such as 4194304, 512Ki or 4Mi"),
        ("lease", "soon", "setting lease: 'soon' is neither seconds nor a duration"),
        ("log_level", "loud", "'debug', 'info', 'warning', 'error' or 'critical'"),
        ("placement", "mars", "'local' or 'ray'"),
        ("store", "", "setting store: it is empty: give a URL, or leave it out"),
    ],
)
def test_a_wrong_value_is_told_with_what_it_could_be(setting: str, value: str, remedy: str) -> None:
    """Nobody has to read a pattern, or to guess a unit."""
    with pytest.raises(SettingsError) as caught:
        load_settings({setting: value})
    assert remedy in str(caught.value)


@pytest.mark.parametrize("setting", ["ray_address", "hosts", "hosts_per_node", "spares"])
def test_hosts_without_ray_are_refused(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three hosts that are asked for, and one that comes, would be found out when it is lost."""
    with pytest.raises(SettingsError, match=f"setting {setting} is for hosts on Ray: set placement to ray"):
        load_settings({setting: "3"})
    assert str(getattr(load_settings({setting: "3", "placement": "ray"}), setting)) == "3"
    monkeypatch.setenv(f"MECHA_{setting.upper()}", "3")
    with pytest.raises(SettingsError, match=setting):
        load_settings({})


@pytest.mark.parametrize("content", ["api_tokn: s3cret\n", "api_token: [s3cret]\n"])
def test_mistakes_do_not_tell_the_token(tmp_path: Path, content: str) -> None:
    """Neither under its name nor under one that was misspelled."""
    file = tmp_path / "mecha.yaml"
    file.write_text(content)
    with pytest.raises(SettingsError) as caught:
        load_settings({}, file)
    assert "api_tok" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """Asking for a file that is not there is an error, not a default."""
    with pytest.raises(SettingsError, match=r"nowhere\.yaml"):
        load_settings({}, tmp_path / "nowhere.yaml")
