"""How requests are read: paths, parameters, headers, durations."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_api import wire


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"/a/b", "/a/b"),
        (b"//a///b//", "/a/b"),
        (b"/a/", "/a"),
        (b"/", "/"),
        (b"//", "/"),
        (b"/a%2Fb/c+d", "/a%2Fb/c+d"),
        ("/ä".encode(), "/%C3%A4"),
    ],
)
def test_paths_are_normalised_with_their_escapes_kept(raw: bytes, path: str) -> None:
    """Slashes collapse, a trailing one goes, escapes stay for the parameters."""
    assert wire.normal_path(raw) == path


@pytest.mark.parametrize("raw", [b"/a%", b"/a%2", b"/%zz", b"/%ff", b"/\xff"])
def test_bad_escapes_are_refused(raw: bytes) -> None:
    """A percent sign must begin an escape, and escapes must be UTF-8."""
    with pytest.raises(wire.BadEscape):
        wire.normal_path(raw)


def test_parameters_are_query_unescaped() -> None:
    """`%2F` is a slash and `+` a blank inside a parameter, `%2B` a plus."""
    assert wire.unescape("a%2Fb+c%2Bd") == "a/b c+d"


@given(st.text().filter(lambda text: text.isprintable()))
def test_every_quoted_parameter_comes_back(text: str) -> None:
    """What a client quotes is what an endpoint gets."""
    assert wire.unescape(quote(text, safe="")) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10", 10),
        ("0.5", 0.5),
        (".5", 0.5),
        ("1.5s", 1.5),
        ("1h30m", 5400),
        ("200ms", 0.2),
        ("3µs", 3e-6),
        ("3μs", 3e-6),
        ("PT1H30M", 5400),
        ("p1d", 86_400),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    """Plain seconds, Go durations, with both micro signs, and those of ISO 8601 are understood."""
    assert wire.duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "x", "1x", "-1s", "1 s", "1s x", "1e3", "nan", "٣", "P1M", "PT", "PT1.5S"])
def test_other_texts_are_no_durations(text: str) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match=r"neither seconds nor a duration such as 1\.5s.*whole numbers only"):
        wire.duration_s(text)


def test_call_options_come_from_headers() -> None:
    """Key, timeout, trace id and reentrancy id are found."""
    trace = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    headers = [
        (b"idempotency-key", b"k1"),
        (b"mecha-timeout", b"1.5s"),
        (b"traceparent", trace),
        (b"dapr-reentrancy-id", b"r"),
    ]
    assert wire.call_options(headers) == wire.CallOptions("k1", 1.5, "4bf92f3577b34da6a3ce929d0e0e4736", "r")


@pytest.mark.parametrize(
    "header",
    [
        (b"idempotency-key", b""),
        (b"idempotency-key", b"x" * 256),
        (b"mecha-timeout", b"soon"),
        (b"mecha-timeout", b"0"),
        (b"mecha-timeout", b"P1M"),
        (b"mecha-timeout", b"P366D"),
        (b"mecha-timeout", b"9" * 400),
        (b"baggage", b"no pair"),
        (b"baggage", b"a=1,,b=2"),
    ],
)
def test_malformed_headers_are_refused(header: tuple[bytes, bytes]) -> None:
    """A header that does not say what it must is the client's error."""
    with pytest.raises(wire.BadHeader):
        wire.call_options([header])


@pytest.mark.parametrize("value", [b"", b"00-0-0-0", b"00-" + b"0" * 32 + b"-" + b"1" * 16 + b"-01", b"garbage"])
def test_malformed_traceparents_are_ignored(value: bytes) -> None:
    """Tracing never makes a call fail."""
    assert wire.trace_id(value) == ""


@pytest.mark.parametrize("value", [b"a=1", b"a=1, b=2;p=x;q", b"k=%20x"])
def test_good_baggage_passes(value: bytes) -> None:
    """Baggage by its specification is accepted."""
    wire.check_baggage([(b"baggage", value)])


def test_headers_of_baggage_are_one_list() -> None:
    """As in Dapr: nothing at all is no baggage; an empty member of it is malformed."""
    wire.check_baggage([(b"baggage", b"")])
    wire.check_baggage([(b"baggage", b"a=1"), (b"x", b""), (b"baggage", b"b=2")])
    with pytest.raises(wire.BadHeader):
        wire.check_baggage([(b"baggage", b"a=1"), (b"baggage", b"")])


@pytest.mark.parametrize(
    ("name", "cleaned"), [("m", "m"), ("a/b", "a/b"), ("a/../b", "b"), ("../../x", "x"), ("a//b/", "a/b")]
)
def test_methods_are_cleaned_like_paths(name: str, cleaned: str) -> None:
    """`..` is resolved and leading `../` stripped."""
    assert wire.normal_method(name) == cleaned


@pytest.mark.parametrize("name", ["a#b", "a?b", "a\x00", "a\n"])
def test_methods_with_forbidden_characters_are_refused(name: str) -> None:
    """`#`, `?` and control characters make no method name."""
    with pytest.raises(ValueError, match="not allowed"):
        wire.normal_method(name)


def test_query_metadata() -> None:
    """`metadata.` parameters are the request's metadata; the first of a repeated name wins."""
    query = wire.query_of(b"metadata.ttlInSeconds=5&metadata.a=%20x&b=1&metadata.a=2")
    assert wire.metadata_of(query) == {"ttlInSeconds": "5", "a": " x"}


def test_instants() -> None:
    """RFC 3339 becomes milliseconds; a plus that was read as a blank is understood; junk is refused."""
    assert wire.millis("1970-01-01T00:00:01Z") == 1000
    assert wire.millis("1970-01-01T01:00:01 01:00") == 1000
    assert wire.millis("") is None
    with pytest.raises(wire.BadParameter):
        wire.millis("yesterday")
