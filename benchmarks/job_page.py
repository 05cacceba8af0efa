"""How long the page of a job takes to be usable, and how long it blocks the browser's main thread (Linux, Chromium).

A real API server serves jobs of 60 to 3,000 tasks of different shapes. For each, Chromium opens the page: how long
until its graph and its list are there, and what the longest task of the main thread was (``PerformanceObserver``, which
tells of those over 50 ms), once until then and once while somebody zooms, moves, chooses tasks and opens groups. Then
the same for a long log that is opened, searched and scrolled.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from page import ApiServer, dag_file
from playwright.sync_api import Page, sync_playwright

from airflow_provider_air_executor.jobs.models import JobState, TaskStatus, utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.jobs import publish_job, publish_tasks
from tests.support.run import Run

_OBSERVER = """
    window.blocks = [];
    new PerformanceObserver(list => list.getEntries().forEach(entry => window.blocks.push(entry.duration)))
        .observe({ type: "longtask", buffered: true });
"""
_LINE = b"\x1b[32mINFO\x1b[0m a line of an ordinary log that says what was done, and so on\n"
_QUIET_MS = 700  # after which nothing more is expected to be drawn


def fan(count: int) -> list[list[int]]:
    """One task, many that depend on it, and one that depends on these."""
    return [[], *([0] for _ in range(count - 2)), list(range(1, count - 1))]


def chain(count: int) -> list[list[int]]:
    """Each depends on the one before."""
    return [[number - 1] if number else [] for number in range(count)]


def layers(count: int) -> list[list[int]]:
    """Each depends on two of the layer of fifty before."""
    return [
        sorted({number - 50, number - 50 - number % 50 + number * 7 % 50}) if number >= 50 else []
        for number in range(count)
    ]


def put(store: JobStore, name: str, dependencies: list[list[int]]) -> None:
    """Put a job there that has ended, with a failure in the middle."""
    tasks = [
        {"id": f"task-{number}", "command": "true", "dependencies": [f"task-{each}" for each in before]}
        for number, before in enumerate(dependencies)
    ]
    job = store.submit(name, tasks, durable=False)
    began = utc_now() - timedelta(hours=1)
    changed = []
    for number, task in enumerate(store.get_tasks(name)):
        status = TaskStatus.FAILED if number == len(tasks) // 2 else TaskStatus.COMPLETED
        start = began + timedelta(seconds=number / 10)
        times = {"started_at": start, "completed_at": start + timedelta(seconds=5)}
        changed.append(task.evolve(status=status, attempt=1, **times))
    publish_tasks(store, name, changed)
    publish_job(store, job.evolve(state=JobState.FAILED, started_at=began, updated_at=utc_now()))


def longest(page: Page) -> float:
    """The longest block since the last call, in milliseconds."""
    page.wait_for_timeout(_QUIET_MS)
    found: float = page.evaluate("Math.max(0, ...window.blocks.splice(0))")
    return found


def use(page: Page) -> None:
    """Zoom, move, choose tasks and open groups."""
    box = page.locator(".canvas").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    for step in range(10):
        page.mouse.wheel(0, -120 if step < 5 else 240)
    page.mouse.down()
    for step in range(10):
        page.mouse.move(x + 20 * step, y + 10 * step)
    page.mouse.up()
    for _ in range(5):
        page.keyboard.press("j")
        page.wait_for_timeout(150)
    for _ in range(3):
        groups = page.locator(".node.group")
        if groups.count():
            groups.first.focus()
            page.keyboard.press("Enter")
            page.wait_for_timeout(150)
    page.get_by_role("button", name="Fit").click()


def measure(server: ApiServer, page: Page, name: str, count: int) -> None:
    """Print a line of the table."""
    rows = min(count, 500)
    began = time.perf_counter()
    page.goto(f"{server.url}/air-executor/jobs/{name}", wait_until="commit")
    ready = f"""document.querySelector(".drawing .node, .drawing .place")
        && document.querySelectorAll(".timeline tbody tr").length >= {rows}"""
    page.wait_for_function("document.querySelector('.drawing .node, .drawing .place')")
    drawn = time.perf_counter() - began
    page.wait_for_function(ready)
    whole = time.perf_counter() - began
    first = longest(page)
    use(page)
    print(f"{name:<16}{count:>8,}{drawn:>12.2f} s{whole:>12.2f} s{first:>12.0f} ms{longest(page):>12.0f} ms")


def measure_log(server: ApiServer, store: JobStore, page: Page, megabytes: int) -> None:
    """Print what a long log costs."""
    put(store, "log", [[]])
    with store.paths("log").log("task-0").open("wb") as file:
        for _ in range(megabytes):
            file.write(_LINE * (1_000_000 // len(_LINE)))
        file.write(b"x" * 1_000_000 + b"\n")
    steps: tuple[tuple[str, Callable[[], Any]], ...] = (
        ("opened", lambda: page.goto(f"{server.url}/air-executor/jobs/log")),
        ("ten parts before it are loaded", lambda: _load_earlier(page, 10)),
        ("searched", lambda: page.get_by_label("Search the log").fill("ordinary")),
        ("scrolled", lambda: page.locator(".lines").evaluate("box => { box.scrollTop = 0 }")),
        ("without wrapping", lambda: page.get_by_label("Wrap").uncheck()),
    )
    for words, step in steps:
        step()
        page.wait_for_selector(".lines .row")
        print(f"a log of {megabytes} MB, {words}: longest block {longest(page):.0f} ms")


def _load_earlier(page: Page, times: int) -> None:
    for _ in range(times):
        page.get_by_role("button", name="Load earlier").click()
        page.wait_for_timeout(200)


def main() -> None:
    """Print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100, help="of the log (100)")
    given = parser.parse_args()
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}")
    shapes = (("fan", fan), ("chain", chain), ("layers", layers))
    with tempfile.TemporaryDirectory(prefix="air-executor-benchmark-") as folder, sync_playwright() as playwright:
        dag_file(Path(folder))
        with ApiServer(Path(folder)) as server:
            store = JobStore(server.base_path)
            store.create_directories()
            flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
            executable = os.environ.get("CHROMIUM", "/usr/bin/chromium")
            browser = playwright.chromium.launch(executable_path=executable, args=flags)
            page = browser.new_page(viewport={"width": 1280, "height": 900}, bypass_csp=True)
            page.context.add_cookies([{"name": "_token", "value": server.cookie, "url": server.url}])
            page.add_init_script(_OBSERVER)
            print(f"{'shape':<16}{'tasks':>8}{'graph':>14}{'all':>14}{'block':>15}{'in use':>15}")
            for name, shape in shapes:
                for count in (60, 500, 3000):
                    put(store, f"{name}-{count}", shape(count))
                    measure(server, page, f"{name}-{count}", count)
            measure_log(server, store, page, given.megabytes)
            browser.close()


if __name__ == "__main__":
    with Run():
        main()
