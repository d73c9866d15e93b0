"""The journal of every store passes the shipped suite."""

from __future__ import annotations

from statestores.conformance.journal import JournalConformance


class TestJournal(JournalConformance):
    """The suite, on every store of the `store` fixture."""
