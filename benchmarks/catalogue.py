"""All benchmarks, in the order in which they are told."""

from __future__ import annotations

from benchmarks import calls, clusters, footprint, netherite, reads, recovery, workflows

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        calls.HTTP_CALLS,
        calls.CALLS,
        workflows.RATE,
        workflows.LATENCY,
        netherite.HELLO,
        netherite.BANK,
        netherite.FAN_OUT,
        footprint.ACTIVATION,
        footprint.MEMORY,
        recovery.RESTART,
        recovery.LONG_HISTORY,
        reads.READS,
        clusters.RATE,
        clusters.HOPS,
        clusters.GAPS,
        clusters.SPARES,
        clusters.START,
        clusters.PLACES,
    )
}
