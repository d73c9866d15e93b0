"""Other projects, measured by the same questions in the same run. They live in ``benchmarks/.peers``, apart from our
own dependencies: ``python -m benchmarks.peers install`` brings them there."""
