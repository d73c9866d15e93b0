"""What tests rely on in the servers they use."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from redis import Redis

from tests.servers import RedisServer


def test_a_redis_outlives_the_thread_that_started_it() -> None:
    """It is to end with the process that started it; the kernel counts by threads."""
    with RedisServer() as server:
        threads: list[int] = []

        def restart() -> None:
            threads.append(threading.get_native_id())
            server.restart()

        thread = threading.Thread(target=restart)
        thread.start()
        thread.join()
        task = Path(f"/proc/{os.getpid()}/task/{threads[0]}")
        while task.exists():  # its end follows the end of what it ran
            pass
        with Redis(port=server.port) as client:
            assert client.ping()
