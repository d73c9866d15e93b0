"""What may stand in a store's URL after the question mark."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

from statestores.errors import ComponentError
from statestores.model import DEFAULT_PARTITIONS

MAX_PARTITIONS = 4096
"""More gain nothing: a partition is a unit of hand-over between hosts, not of speed."""


def partitions_parameter(url: str) -> int:
    """The ``partitions`` parameter of a store's URL. Raises `ComponentError` for anything else that stands there."""
    parts = urlsplit(url)
    if parts.fragment:
        raise ComponentError(f"{url}: a store's URL has nothing after a #; one in a name is written %23")
    parameters = dict(parse_qsl(parts.query, keep_blank_values=True))
    given = parameters.pop("partitions", str(DEFAULT_PARTITIONS))
    if parameters:
        raise ComponentError(
            f"{url}: unknown parameter {sorted(parameters)[0]!r}, a store's URL takes 'partitions' alone"
        )
    if not given.isascii() or not given.isdigit() or not 1 <= int(given) <= MAX_PARTITIONS:
        raise ComponentError(f"{url}: partitions must be a number from 1 to {MAX_PARTITIONS}, not {given!r}")
    return int(given)
