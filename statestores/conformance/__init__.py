"""The suite every store passes, shipped so that third parties can use it on theirs.

Derive test classes from `statestores.conformance.journal.JournalConformance` and
`statestores.conformance.keys.KeysConformance`, and give them the fixtures their texts ask for. Needs pytest and
pytest-asyncio in its automatic mode; both are imported by those modules only, not by this package.
"""
