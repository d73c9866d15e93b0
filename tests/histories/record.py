"""Write histories of programs that have none yet: ``python -m tests.histories.record 0.2.0``. Never overwrites one."""

from __future__ import annotations

import sys
from pathlib import Path

import orjson

from tests.histories.programs import PROGRAMS
from workflow.testing import Rehearsal

HERE = Path(__file__).parent


def record(version: str) -> list[Path]:
    """Returns the files that were written."""
    written = []
    (HERE / version).mkdir(exist_ok=True)
    for name, (definition, value, play) in PROGRAMS.items():
        if any(HERE.glob(f"*/{name}.json")):
            continue
        run = Rehearsal(definition, value, instance_id=name, execution=f"{name}-1")
        play(run)
        path = HERE / version / f"{name}.json"
        lines = [{"t": r.time_ms, "i": r.inputs, "c": r.commands} for r in run.records]
        path.write_bytes(orjson.dumps({"status": run.status, "records": lines}, option=orjson.OPT_INDENT_2) + b"\n")
        written.append(path)
    return written


if __name__ == "__main__":
    for made in record(sys.argv[1]):
        print(made)
