"""The other side of `processes.apart`: ``python -m benchmarks.apart module:function '{"argument": 1}'``."""

from __future__ import annotations

import json
import sys
from importlib import import_module

if __name__ == "__main__":
    module, _, name = sys.argv[1].partition(":")
    function = getattr(import_module(module), name)
    print(json.dumps(function(**json.loads(sys.argv[2]))))
