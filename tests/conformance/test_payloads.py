"""The payloads face of every store passes the shipped suite."""

from __future__ import annotations

from statestores.conformance.payloads import PayloadsConformance


class TestPayloads(PayloadsConformance):
    """The suite, on every store of the `reopen` fixture."""
