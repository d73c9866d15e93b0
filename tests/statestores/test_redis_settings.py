"""What a URL and a Dapr component say about a Redis store."""

from __future__ import annotations

import pytest

from statestores.errors import ComponentError
from statestores.redis_settings import RedisSettings, settings_from_metadata, settings_from_url


@pytest.mark.parametrize(
    ("url", "settings"),
    [
        ("redis://", RedisSettings()),
        (
            "redis://ann:p%40ss@db.example:7000/3?namespace=shop&partitions=8",
            RedisSettings(
                hosts=(("db.example", 7000),), username="ann", password="p@ss", db=3, namespace="shop", partitions=8
            ),
        ),
        (
            "rediss://db.example?waitAOF=true&waitReplicas=1",
            RedisSettings(hosts=(("db.example", 6379),), tls=True, wait_aof=True, wait_replicas=1),
        ),
        ("unix:///run/redis.sock?db=2", RedisSettings(unix_socket="/run/redis.sock", db=2)),
        ("redis://[::1]:7000?redisType=cluster", RedisSettings(hosts=(("::1", 7000),), cluster=True)),
    ],
)
def test_a_url_says_where_and_how(url: str, settings: RedisSettings) -> None:
    """Every part of a URL lands in its setting."""
    assert settings_from_url(url) == settings


def test_metadata_has_daprs_names_in_any_case() -> None:
    """A Dapr component works as it is; what means nothing here is passed over."""
    settings = settings_from_metadata(
        {
            "redisHost": "a:1,b",
            "redisusername": "ann",
            "REDISPASSWORD": "secret",
            "redisType": "cluster",
            "enableTLS": "true",
            "maxRetries": "3",
            "dialTimeout": "250ms",
            "readTimeout": "1m30s",
            "redisMinRetryInterval": "8ms",
            "actorStateStore": "true",
            "idleCheckFrequency": "1s",
        }
    )
    assert settings == RedisSettings(
        hosts=(("a", 1), ("b", 6379)),
        username="ann",
        password="secret",
        cluster=True,
        tls=True,
        max_retries=3,
        connect_timeout_s=0.25,
        read_timeout_s=90.0,
        retry_base_s=0.008,
    )
    assert settings_from_metadata({"redisHost": "a:1", "redisDB": ""}) == RedisSettings(hosts=(("a", 1),))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://x", "redis://"),
        ("redis://x:notaport", "cannot be read"),
        ("redis://x/one", "database"),
        ("redis://ann:1#2@x", "written %23"),
        ("redis://x?partition=4", "unknown parameter 'partition'"),
        ("redis://x?partitions=0", "1 to 4096"),
        ("redis://x?partitions=many", "a whole number, 0 or more, not 'many'"),
        ("redis://x?maxRetries=-5", "a whole number, 0 or more, not '-5'"),
        ("redis://x?namespace=a{b}", "namespace"),
        ("redis://x/2?redisType=cluster", "database 0"),
        ("redis://x?redisType=cluster&waitAOF=yes", "redisType node"),
        ("redis://x?waitAOF=perhaps", "true or false"),
        ("redis://x?redisType=ring", "node or cluster"),
    ],
)
def test_a_wrong_url_is_named(url: str, says: str) -> None:
    """A URL that cannot be meant is refused with what is wrong with it."""
    with pytest.raises(ComponentError, match=says):
        settings_from_url(url)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("redisHost", "x:y", "host:port"),
        ("redisHost", " , ", "redisHost is missing"),
        ("readTimeout", "soon", "duration"),
        ("readTimeout", "5 s", "duration"),
        ("failover", "true", "Sentinel"),
        ("clientCert", "-----BEGIN CERTIFICATE-----", "PEM file"),
    ],
)
def test_wrong_metadata_is_named(name: str, text: str, says: str) -> None:
    """A component's wrong field is refused, and named."""
    with pytest.raises(ComponentError, match=says):
        settings_from_metadata({name: text})


@pytest.mark.parametrize("name", ["poolSize", "dialTimeout", "readTimeout"])
def test_zero_means_the_default(name: str) -> None:
    """Where zero makes no sense it means what leaving the setting out does, as in Dapr; below it nothing does."""
    assert settings_from_metadata({name: "0"}) == RedisSettings()
    assert settings_from_url(f"redis://?{name}=0") == RedisSettings()
    for wrong in ("-1", "-1s"):
        with pytest.raises(ComponentError, match=f"redis: {name}"):
            settings_from_metadata({name: wrong})


@pytest.mark.parametrize("name", ["pool_size", "connect_timeout_s", "read_timeout_s"])
def test_settings_of_which_nothing_could_work(name: str) -> None:
    """A store that could only wait for ever is not made."""
    with pytest.raises(ComponentError, match=f"{name} must be greater than 0"):
        RedisSettings(**{name: 0})  # type: ignore[arg-type]  # of whichever type


def test_a_password_is_never_shown() -> None:
    """Settings are logged and compared in failures: the password stays out."""
    settings = settings_from_url("redis://ann:secret@db.example")
    assert "secret" not in repr(settings)
    assert "secret" not in settings.address
