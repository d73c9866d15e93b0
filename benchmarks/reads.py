"""Reads by key over HTTP: the state API, beside FastAPI reading a dict."""

from __future__ import annotations

import json
import sys
import urllib.request

from benchmarks.calls import serve_command
from benchmarks.httpload import Request
from benchmarks.model import Benchmark, Sample, Series, Setting, check
from benchmarks.plainapi import KEYS
from benchmarks.processes import free_port, server


def _state(setting: Setting) -> Sample:
    """Keys saved through the API, then read from the store, on SQLite: no cache in front of it."""
    port = free_port()
    with server(serve_command(setting.directory / "state.db", port), port, setting.directory):
        base = f"http://127.0.0.1:{port}/v1.0/state/statestore"
        items = [{"key": f"k{number}", "value": {"number": number}} for number in range(KEYS)]
        request = urllib.request.Request(base, json.dumps(items).encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            check("status of saving", answer.status, 204)
        _check_read(f"{base}/k7")
        return _load(setting, port, "/v1.0/state/statestore/k%d")


def _plain(setting: Setting) -> Sample:
    port = free_port()
    with server([sys.executable, "-m", "benchmarks.plainapi", str(port)], port, setting.directory):
        _check_read(f"http://127.0.0.1:{port}/state/k7")
        return _load(setting, port, "/state/k%d")


def _check_read(url: str) -> None:
    with urllib.request.urlopen(url) as answer:
        check(url, json.loads(answer.read()), {"number": 7})


def _load(setting: Setting, port: int, path: str) -> Sample:
    request = Request("GET", path)
    setting.loader.run(port, request, KEYS, setting.warm_up_s)
    load = setting.loader.run(port, request, KEYS, setting.seconds)
    return Sample(load.rate, load.detail)


READS = Benchmark(
    name="reads",
    question="How many reads by key a second does the state API answer, 32 connections, 1,000 keys?",
    unit="reads/s",
    series=(Series("state API, SQLite", _state), Series("plain FastAPI, dict", _plain)),
)
