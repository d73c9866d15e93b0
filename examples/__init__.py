"""Programs that use the runtime; each runs with ``python -m examples.<name>``."""
