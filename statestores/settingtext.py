"""What the text of a setting says, in the notations that Dapr's users know. Errors name the setting."""

from __future__ import annotations

import re

from statestores.errors import ComponentError

_TRUE = frozenset({"1", "t", "true", "y", "yes", "on"})
_FALSE = frozenset({"0", "f", "false", "n", "no", "off", ""})
_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(h|ms|us|µs|ns|m|s)")


def flag(name: str, text: str) -> bool:
    """True or false; an empty text is false."""
    lowered = text.strip().lower()
    if lowered not in _TRUE | _FALSE:
        raise ComponentError(f"{name} is {text!r}: write true or false")
    return lowered in _TRUE


def duration_s(name: str, text: str) -> float:
    """Go's notation (``1h30m``, ``500ms``) in seconds; a bare number means seconds."""
    stripped = text.strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", stripped):
        return float(stripped)
    parts = _PART.findall(stripped)
    if not parts or "".join(number + unit for number, unit in parts) != stripped:
        raise ComponentError(f"{name} is {text!r}: write a duration such as 2s, 500ms or 1h30m")
    return sum(float(number) * _UNIT_S[unit] for number, unit in parts)
