"""What takes much memory is carried out by few at a time; see also the slow clients of :mod:`.test_fuzz_api`."""

from __future__ import annotations

import asyncio
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.server.load import Load
from tests.support.servers import Servers

MEGABYTE = 1_000_000


def most_memory(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def test_long_requests_are_carried_out_by_few_at_a_time(servers: Servers, store: JobStore):
    """What a request of three megabytes says takes many times as much."""
    process = servers.start()
    before = most_memory(process.pid)
    tasks = [{"bash": f"echo {number}", "env": {"X": "x" * 100}} for number in range(20_000)]

    def submit(number: int) -> int:
        with servers.client() as client:
            return client.post("/jobs", content=json.dumps({"name": f"job-{number}", "tasks": tasks})).status_code

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(submit, range(8))) == [201] * 8
    assert most_memory(process.pid) - before < 500 * MEGABYTE


def test_short_lists_do_not_wait_for_long_ones(store: JobStore):
    store.submit("long", [f"echo {'x' * 1000} {number}" for number in range(2_000)])
    store.submit("short", ["true"])

    async def have() -> int:
        load = Load()
        held = [load.list_of(store, "long") for _ in range(10)]
        waiting = [asyncio.create_task(each.__aenter__()) for each in held]
        for name in ("short", "none", "../x"):
            async with load.list_of(store, name):
                pass
        done, pending = await asyncio.wait(waiting, timeout=0.1)
        while not done:
            done, pending = await asyncio.wait(waiting, timeout=0.1)
        for task in pending:
            task.cancel()
        return len(pending)

    assert asyncio.run(have()) >= 7
