"""The page of a job in Chromium: its graph, its timeline, and the log of a task."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from airflow_provider_air_executor.jobs.attempt_record import Record, claim
from airflow_provider_air_executor.jobs.models import JobState, Reason, SubmittedBy, TaskStatus, utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from tests.acceptance.browsing import save_screenshot
from tests.acceptance.with_users import WithUsers
from tests.support.jobs import publish_job, publish_tasks
from tests.support.waiting import until, wait_until

pytestmark = [pytest.mark.airflow, pytest.mark.browser]

CONN_ID = "drawn"
FAILED, COMPLETED = {"status": TaskStatus.FAILED}, {"status": TaskStatus.COMPLETED}
HOW = {
    "completed": COMPLETED,
    "running": {"status": TaskStatus.RUNNING},
    "failed": {**FAILED, "reason": Reason.EXIT, "exit_code": 1, "error": "exit code 1"},
    "upstream failed": {**FAILED, "reason": Reason.DEPENDENCY},
    "cancelled": {**FAILED, "reason": Reason.CANCELLED},
    "timed out": {**FAILED, "reason": Reason.TIMEOUT},
    "lost": {**FAILED, "reason": Reason.LOST},
}


@pytest.fixture(scope="module")
def airflow(airflow_with_users: WithUsers) -> WithUsers:
    return airflow_with_users


@pytest.fixture(scope="module")
def store(embedded_store: JobStore) -> JobStore:
    """The job filesystem of the embedded manager, which runs."""
    return embedded_store


@pytest.fixture(scope="module")
def drawn(airflow: WithUsers) -> Iterator[JobStore]:
    """A job filesystem without a manager: its jobs stand as a test says."""
    found = JobStore(airflow.home / "drawn")
    found.create_directories()
    airflow.add_connection(CONN_ID, "air_executor", base_path=str(found.base_path))
    yield found
    airflow.get(f"/api/v2/connections/{CONN_ID}", "ada", method="DELETE")


def url(airflow: WithUsers, name: str, rest: str = "") -> str:
    """The page of a job of the manager; of one that is drawn with ``drawn_url``."""
    return f"{airflow.url}/air-executor/jobs/{name}{rest}"


def drawn_url(airflow: WithUsers, name: str, rest: str = "") -> str:
    return url(airflow, name, f"?conn_id={CONN_ID}{rest}")


def draw(
    store: JobStore,
    name: str,
    tasks: list[dict[str, Any]],
    stands: Mapping[str, str] | None = None,
    state: JobState = JobState.FAILED,
    seconds: float = 10,
    days_ago: int = 0,
    **more: Any,
) -> None:
    """Put a job there; ``stands`` says how single tasks stand, the others have completed."""
    job = store.submit(name, tasks, durable=False, **more)
    began = utc_now() - timedelta(days=days_ago, hours=1)
    ended = began + timedelta(seconds=seconds)
    changed = []
    for number, task in enumerate(store.get_tasks(name)):
        how = (stands or {}).get(task.id, "completed")
        ran = how not in ("upstream failed", "cancelled")
        start = began + timedelta(seconds=seconds * number / len(tasks) / 2)
        times = {"started_at": start, "completed_at": None if how == "running" else start + (ended - start) / 2}
        changed.append(task.evolve(attempt=1, **HOW[how], **(times if ran else {})))
    publish_tasks(store, name, changed)
    publish_job(store, job.evolve(state=state, attempt=1, created_at=began, started_at=began, updated_at=ended))


def task(task_id: str, *after: str, **more: Any) -> dict[str, Any]:
    return {"id": task_id, "command": "true", "dependencies": list(after), **more}


def fan(count: int) -> list[dict[str, Any]]:
    """One task, many that depend on it, and one that depends on these."""
    shards = [f"shard-{number}" for number in range(count - 2)]
    return [task("start"), *(task(shard, "start") for shard in shards), task("end", *shards)]


def row(page: Page, task_id: str) -> Locator:
    """A task's row of the timeline."""
    return page.locator(".timeline tbody tr").filter(has=page.get_by_role("button", name=task_id, exact=True))


def log_of(page: Page, task_id: str) -> Locator:
    return page.get_by_label(f"What {task_id} has printed")


def view_of(page: Page) -> tuple[float, float, float]:
    """Where the graph is on the screen, and how large."""
    text = page.locator(".drawing > g").get_attribute("transform") or ""
    x, y, zoom = map(float, re.findall(r"-?[\d.]+", text))
    return x, y, zoom


def is_inside(page: Page, node: Locator) -> bool:
    """Whether a node of the graph is in sight."""
    outer, inner = page.locator(".canvas").bounding_box(), node.bounding_box()
    assert outer is not None
    return inner is not None and (
        outer["x"] <= inner["x"]
        and inner["x"] + inner["width"] <= outer["x"] + outer["width"]
        and outer["y"] <= inner["y"]
        and inner["y"] + inner["height"] <= outer["y"] + outer["height"]
    )


# -- the graph ---------------------------------------------------------------------------------------------


def test_the_graph_opens_at_the_chosen_task(airflow: WithUsers, drawn: JobStore, page: Page) -> None:
    """Of 500 tasks it has groups, of which those with the chosen task are open, and siblings in their order."""
    failed = {f"shard-{number}": "failed" for number in (117, 250, 400)}
    draw(drawn, "fan", fan(500), {**failed, "end": "upstream failed"})
    page.goto(drawn_url(airflow, "fan"))
    node = page.get_by_role("button", name="shard-117: failed")
    expect(node).to_be_visible()
    expect(node).to_have_attribute("aria-pressed", "true")
    wait_until(lambda: is_inside(page, node), what="it is in sight")
    assert page.locator(".node").count() < 120
    names = [name for name in page.locator(".node text:not(.counts)").all_text_contents() if name.startswith("shard-")]
    begins = [int(re.findall(r"\d+", name)[0]) for name in names]
    tops = page.locator(".node").evaluate_all("nodes => nodes.map(node => node.getBoundingClientRect().top)")
    assert begins == sorted(begins)
    assert tops[1:-1] == sorted(tops[1:-1])
    group = page.get_by_role("button", name="shard-250 … 299, 50 tasks: 49 completed, 1 failed")
    group.dispatch_event("keydown", {"key": "Enter"})
    expect(page.get_by_role("button", name="shard-250: failed")).to_have_count(1)
    row(page, "shard-400").get_by_role("button").click()
    other = page.get_by_role("button", name="shard-400: failed")
    expect(other).to_have_attribute("aria-pressed", "true")
    wait_until(lambda: is_inside(page, other), what="the other one is in sight")
    page.get_by_role("button", name="Close groups").click()
    expect(page.get_by_role("button", name="shard-250: failed")).to_have_count(0)
    expect(other).to_be_visible()  # the chosen one stays


def test_zoom_pan_fit_and_minimap(airflow: WithUsers, drawn: JobStore, page: Page) -> None:
    draw(drawn, "wide", [task(f"t{n}", *([f"t{n - 1}"] if n else [])) for n in range(40)], state=JobState.COMPLETED)
    page.goto(drawn_url(airflow, "wide", "#task=t20"))
    node = page.get_by_role("button", name="t20: completed")
    expect(node).to_be_visible()
    assert is_inside(page, node)
    expect(page.locator(".minimap .sight")).to_be_visible()
    _, _, zoom = view_of(page)
    assert zoom == 1
    page.get_by_role("button", name="Zoom in").click()
    assert view_of(page)[2] == pytest.approx(1.3)
    page.get_by_role("button", name="Zoom out").click()
    box = page.locator(".canvas").bounding_box()
    assert box is not None
    middle = (box["x"] + box["width"] / 2, box["y"] + 20)
    before = view_of(page)
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] - 150, middle[1] + 30, steps=3)
    page.mouse.up()
    x, y, _ = view_of(page)
    assert (x, y) == (pytest.approx(before[0] - 150), pytest.approx(before[1] + 30))
    page.mouse.wheel(0, -100)
    wait_until(lambda: view_of(page)[2] > 1.2, what="the wheel makes it larger")
    assert page.evaluate("scrollY") == 0
    page.get_by_role("button", name="Fit").click()
    expect(page.locator(".minimap")).to_have_count(0)  # all is in sight
    assert page.locator(".node").count() == 40
    page.get_by_role("button", name="Chosen").click()
    node.focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("button", name="t21: completed")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Task t21")).to_be_visible()
    page.keyboard.press("0")
    page.keyboard.press("+")
    page.get_by_role("button", name="Fit").click()
    page.locator(".canvas").hover()


def test_many_boxes_in_sight_are_drawn_as_places(airflow: WithUsers, drawn: JobStore, page: Page) -> None:
    """So that 3,000 tasks cost no more than some paths, when all groups are open and all is in sight."""
    draw(drawn, "three-thousand", fan(3000), {"shard-2000": "failed"})
    page.goto(drawn_url(airflow, "three-thousand"))
    expect(page.get_by_role("button", name="shard-2000: failed")).to_be_visible()
    assert page.locator(".node").count() <= 300
    expect(page.locator(".tools")).to_contain_text("3000 tasks")
    for _ in range(8):
        groups = page.locator(".node.group")
        if not groups.count():
            break
        groups.first.dispatch_event("keydown", {"key": "Enter"})
    page.get_by_role("button", name="Fit").click()
    expect(page.locator(".drawing .place.completed")).to_have_count(1)
    expect(page.locator(".drawing .place.failed")).to_have_count(1)
    expect(page.locator(".node")).to_have_count(0)
    save_screenshot(page, "graph-places")
    box = page.locator(".canvas").bounding_box()
    assert box is not None
    page.get_by_role("button", name="Chosen").click()


def test_kinds_of_failure_look_different(airflow: WithUsers, drawn: JobStore, page: Page) -> None:
    tasks = [task(word.replace(" ", "-"), *(["failed"] if word == "upstream failed" else [])) for word in HOW]
    draw(drawn, "kinds", tasks, {word.replace(" ", "-"): word for word in HOW}, state=JobState.WORKING)
    page.goto(drawn_url(airflow, "kinds"))
    shapes = set()
    for word in HOW:
        name = word.replace(" ", "-")
        status = row(page, name).locator(".status")
        expect(status).to_have_text(re.compile(rf"^{word}"))
        look = status.evaluate(
            """element => [getComputedStyle(element.querySelector("path")).stroke + getComputedStyle(
                element.querySelector("path")).fill, element.querySelector("svg").innerHTML]"""
        )
        shapes.add(look[1])
        sign = page.get_by_role("button", name=f"{name}: {word}").locator("g").inner_html()
        assert re.findall(' d="([^"]+)"', sign) == re.findall(' d="([^"]+)"', look[1])
    assert len(shapes) == len(HOW)
    progress = page.get_by_role("progressbar").first
    expect(progress).to_have_attribute(
        "aria-valuetext",
        "1 of 7 tasks done, 1 failed, 1 timed out, 1 lost, 1 cancelled, 1 upstream failed, 1 running",
    )
    expect(page.get_by_label("Task failed")).to_be_visible()  # the cause, not what follows from it


# -- the timeline ------------------------------------------------------------------------------------------


def test_the_axis_leaves_out_the_time_between_two_runs_of_a_job(
    airflow: WithUsers, drawn: JobStore, page: Page
) -> None:
    draw(drawn, "gap", [task(f"t{n}") for n in range(30)], {"t7": "failed"}, seconds=20)
    paths = drawn.paths("gap")
    tasks = drawn.get_tasks("gap")
    again = utc_now() - timedelta(minutes=5)
    later = {"started_at": again, "completed_at": again + timedelta(seconds=8), "attempt": 2}
    paths.runs.mkdir(exist_ok=True)
    assert tasks[7].started_at is not None
    record = paths.record("t7", 1)
    os.close(claim(record, Record(1, tasks[7].started_at, "token", 1)))
    os.utime(record, times=(tasks[7].started_at.timestamp() + 2,) * 2)
    publish_tasks(drawn, "gap", [item.evolve(**later) if item.id == "t7" else item for item in tasks])
    page.goto(drawn_url(airflow, "gap"))
    expect(page.locator(".timeline thead .break")).to_have_count(1)
    expect(page.locator(".timeline thead .break")).to_have_attribute("title", re.compile("in which nothing ran"))
    bars = row(page, "t7").locator(".run")
    expect(bars).to_have_count(2)
    widths = bars.evaluate_all("bars => bars.map(bar => bar.getBoundingClientRect().width)")
    assert min(widths) > 10
    place = "bar => [bar.style.left, bar.style.width]"
    before = row(page, "t9").locator(".run").evaluate(place)
    page.get_by_label("Task", exact=True).fill("t9")
    expect(page.locator(".timeline tbody tr")).to_have_count(1)
    assert row(page, "t9").locator(".run").evaluate(place) == before  # it is the axis of the whole job
    save_screenshot(page, "timeline-gap")


def test_a_run_is_compared_with_those_before(airflow: WithUsers, drawn: JobStore, page: Page) -> None:
    for number, seconds in enumerate((60, 62, 61, 64, 60, 300)):
        owner = SubmittedBy(dag_id="seen", run_id=f"run-{number}", task_id="compared")
        state = JobState.FAILED if number == 3 else JobState.COMPLETED
        draw(drawn, f"run-{number}", [task("a")], state=state, seconds=seconds, days_ago=9 - number, submitted_by=owner)
    path = f"/air-executor/api/jobs/run-5/durations?conn_id={CONN_ID}"  # the server looks once a second for new jobs
    wait_until(lambda: len(json.loads(airflow.get(path, "ada").text)["runs"]) == 5, what="the server knows all runs")
    page.goto(drawn_url(airflow, "run-5"))
    expect(page.locator(".durations .past")).to_have_count(5)
    expect(page.locator(".durations .past.failed")).to_have_count(1)
    expect(page.locator(".durations")).to_contain_text("Usually 1 m (1 m to 1 m 1 s, 4 runs)")
    expect(page.locator(".durations .verdict")).to_have_text("slower than usual")
    save_screenshot(page, "job-slower")
    page.locator(".durations a").nth(1).click()
    expect(page.get_by_role("heading", name="run-1")).to_be_visible()
    expect(page.locator(".durations .past")).to_have_count(1)
    expect(page.locator(".durations .verdict")).to_have_count(0)  # one run is not enough to know


def test_filters_and_the_chosen_task_are_in_the_address(airflow: WithUsers, drawn: JobStore, page: Page) -> None:
    stands = {f"t{n}": "upstream failed" for n in range(20, 30)}
    draw(drawn, "filtered", [task(f"t{n}") for n in range(40)], {**stands, "t19": "failed"})
    page.goto(drawn_url(airflow, "filtered"))
    page.get_by_label("Status").select_option("upstream_failed")
    expect(page.locator(".timeline tbody tr")).to_have_count(10)
    page.get_by_label("Task", exact=True).fill("5")
    expect(page.locator(".timeline tbody tr")).to_have_count(1)
    row(page, "t25").get_by_role("button").click()
    wait_until(lambda: "task=t25" in page.url, what="the task is in the address")
    assert {"outcome=upstream_failed", "text=5", f"conn_id={CONN_ID}"} <= set(re.split("[?&#]", page.url))
    page.reload()
    expect(page.get_by_label("Task t25")).to_be_visible()
    expect(page.locator(".timeline tbody tr")).to_have_count(1)
    expect(page.get_by_label("Status")).to_have_value("upstream_failed")


# -- the log -----------------------------------------------------------------------------------------------


def with_log(store: JobStore, name: str, text: bytes, times: str = "", **how: Any) -> None:
    """A job with one task that has printed this."""
    draw(store, name, [task("a")], {"a": "failed"}, **how)
    store.paths(name).log("a").write_bytes(text)
    if times:
        store.paths(name).log_times("a").write_text(times)


def shown(page: Page) -> list[str]:
    """The rows of the log that are in the page."""
    return page.locator(".lines .row .text").all_inner_texts()


def test_a_log_is_searched(airflow: WithUsers, drawn: JobStore, page: Page) -> None:
    lines = [f"line {number}{' Needle <b>' if number % 1000 == 7 else ''}" for number in range(4000)]
    with_log(drawn, "searched", "\n".join(lines).encode())
    page.goto(drawn_url(airflow, "searched"))
    expect(log_of(page, "a")).to_contain_text("line 3999")
    page.keyboard.press("/")
    expect(page.get_by_label("Search the log")).to_be_focused()
    page.keyboard.type("needle <")
    count = page.locator(".log-tools [aria-live]")
    expect(count).to_have_text("4 of 4")
    expect(page.locator("mark.current")).to_have_text("Needle <")
    assert page.locator("mark.current").evaluate("mark => mark.closest('.row').innerText") == "line 3007 Needle <b>"
    page.get_by_role("button", name="Previous match").click()
    expect(count).to_have_text("3 of 4")
    expect(page.locator("mark.current")).to_be_in_viewport()
    page.get_by_label("Search the log").press("Enter")
    expect(count).to_have_text("4 of 4")
    page.get_by_label("Search the log").press("Enter")
    expect(count).to_have_text("1 of 4")
    expect(page.get_by_label("Follow")).to_have_count(0)  # the job is over
    page.get_by_label("Search the log").fill("nowhere")
    expect(count).to_have_text("not found")
    save_screenshot(page, "log-search")


def test_colours_wrapping_numbers_and_times(airflow: WithUsers, drawn: JobStore, page: Page) -> None:
    line = b"\x1b[1;31mred\x1b[0m \x1b[38;5;208morange\x1b[0m <img src=x>\n"
    long = b"x" * 3000 + b"\n"
    times = f"1767225600 {len(line)} 1\n1767225605 {len(line + long)} 1\n"
    with_log(drawn, "coloured", line + long + b"end\n", times)
    page.goto(drawn_url(airflow, "coloured"))
    expect(page.locator(".lines .fg-red.bold")).to_have_text("red")
    expect(page.locator(".lines .row").first).to_have_text("red orange <img src=x>")
    orange = page.locator(".lines span", has_text=re.compile("^orange$"))
    assert orange.last.evaluate("span => getComputedStyle(span).color") == "rgb(255, 135, 0)"
    expect(page.locator("main img")).to_have_count(0)
    fits = "box => box.scrollWidth <= box.clientWidth"
    assert log_of(page, "a").evaluate(fits)
    page.get_by_label("Wrap").uncheck()
    wait_until(lambda: not log_of(page, "a").evaluate(fits), what="the line goes on to the right")
    page.get_by_label("Numbers").check()
    page.get_by_label("Times").check()
    numbers = page.locator(".lines .row")
    expect(numbers.nth(1)).to_have_attribute("data-number", "2")
    expect(numbers.nth(1)).to_have_attribute("data-time", re.compile(r"^\d\d:\d\d:05$"))
    page.reload()
    expect(page.get_by_label("Numbers")).to_be_checked()  # it is remembered
    page.get_by_label("Wrap").check()
    save_screenshot(page, "log-colours")
    page.evaluate("localStorage.removeItem('air-executor-log')")


def test_a_long_log_is_loaded_in_parts(airflow: WithUsers, drawn: JobStore, page: Page) -> None:
    line = b"%07d of the very many lines of this log\n"
    with_log(drawn, "parts", b"".join(line % number for number in range(50_000)))
    page.goto(drawn_url(airflow, "parts"))
    log = log_of(page, "a")
    expect(log).to_contain_text("0049999 of")
    assert re.match(r"\d{7} of the very", shown(page)[0])  # no half of a line
    page.get_by_label("Numbers").check()
    expect(page.locator(".lines .row").last).to_have_attribute("data-number", "50000")
    top = int(shown(page)[0][:7])
    log.evaluate("box => { box.scrollTop = 0 }")
    first = f"{50_000 - 65536 // len(line % 1):07}"
    expect(log).to_contain_text(f"{first} of")
    page.get_by_role("button", name="Load earlier").click()
    expect(page.locator(".more")).to_contain_text("1.5 MiB before this")
    expect(log).to_contain_text(f"{first} of")  # what was in sight stays
    assert top > int(first) - 100
    page.get_by_role("button", name="Go to the beginning").click()
    expect(log).to_contain_text("0000000 of")
    expect(page.locator(".lines .row").first).to_have_attribute("data-number", "1")
    page.get_by_role("button", name="Load later").click()
    expect(page.locator(".more")).to_contain_text("after this")
    page.get_by_role("button", name="Go to the end").click()
    expect(log).to_contain_text("0049999 of")
    page.evaluate("localStorage.removeItem('air-executor-log')")


def test_a_log_of_a_hundred_megabytes_and_a_line_of_one(airflow: WithUsers, drawn: JobStore, page: Page) -> None:
    """The page holds a few rows of it."""
    with_log(drawn, "huge", b"")
    with drawn.paths("huge").log("a").open("wb") as file:
        for _ in range(2):
            file.write((b"x" * 99 + b"\n") * 250_000 + b"a needle\n" + (b"x" * 99 + b"\n") * 250_000)
        file.write(b"y" * 1_000_000 + b"FATAL\n")
    page.goto(drawn_url(airflow, "huge"))
    expect(log_of(page, "a")).to_contain_text("FATAL")
    for _ in range(3):
        page.get_by_role("button", name="Load earlier").click()
        expect(page.get_by_role("button", name="Load earlier")).to_be_enabled()
    assert page.locator(".lines .row").count() < 400
    assert len(log_of(page, "a").inner_text()) < 400_000
    page.get_by_label("Search the log").fill("fatal")
    expect(page.locator(".log-tools [aria-live]")).to_have_text("1 of 1 in what is loaded")
    expect(page.locator("mark.current")).to_be_in_viewport()
    page.get_by_label("Search the log").fill("needle")
    page.get_by_role("button", name="Search all of it").click()
    expect(page.locator(".log-tools [aria-live]")).to_have_text("2 of 2 lines of the whole log")
    expect(page.locator("mark.current")).to_be_in_viewport()
    page.get_by_role("button", name="Previous match").click()
    expect(page.locator(".log-tools [aria-live]")).to_have_text("1 of 2 lines of the whole log")
    expect(page.locator("mark.current")).to_be_in_viewport()
    expect(page.get_by_role("button", name="Go to the end")).to_be_visible()


def test_each_attempt_has_its_part_of_the_log(airflow: WithUsers, store: JobStore, page: Page, tmp_path: Path) -> None:
    line = f'echo "this is number $AIR_EXECUTOR_ATTEMPT"; {until(tmp_path / "go")}; exit 7'
    store.submit("attempts", [{"id": "a", "bash": line, "retries": 1}])
    page.goto(url(airflow, "attempts"))
    log = log_of(page, "a")
    expect(log).to_contain_text("this is number")
    (tmp_path / "go").touch()
    wait_until(lambda: store.get_job("attempts").state.is_terminal, what="both attempts have ended")
    select = page.get_by_label("Attempt", exact=True)
    expect(select).to_have_value("last")
    expect(page.locator(".lines .row")).to_have_count(1)
    expect(page.locator(".about")).to_contain_text("Attempt 2")
    expect(page.locator(".about")).to_contain_text("exit code 7")
    select.select_option("1")
    expect(page.locator(".about")).to_contain_text("Attempt 1")
    expect(page.locator(".lines .row")).to_have_count(1)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert Path(download.value.path()).read_text().count("this is number") == 1
    select.select_option("all")
    expect(page.locator(".lines .row")).to_have_count(2)
    expect(page.locator(".lines .seam-name")).to_have_text("attempt 2")
    save_screenshot(page, "log-attempts")


def test_a_log_is_copied(airflow: WithUsers, drawn: JobStore, page: Page) -> None:
    with_log(drawn, "copied", b"one\n\x1b[31mtwo\x1b[0m\nthree")
    page.goto(drawn_url(airflow, "copied"))
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    expect(log_of(page, "a")).to_contain_text("three")
    page.get_by_role("button", name="Copy", exact=True).click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "one\ntwo\nthree"
    page.get_by_role("button", name="Copy command").click()
    wait_until(lambda: page.evaluate("navigator.clipboard.readText()") == "true", what="the command is there")


# -- the panel of a task -----------------------------------------------------------------------------------


def test_what_a_task_is_and_what_it_left(airflow: WithUsers, store: JobStore, page: Page) -> None:
    line = 'echo \'{"rows": 12, "note": "<b>"}\' > "$AIR_EXECUTOR_OUTPUT"' + "\n# " + "long " * 600 + "\necho the end"
    given = {"id": "a", "bash": line, "resources": {"cpus": 0.5, "memory": "64Mi"}, "retry_delay": 30, "timeout": 900}
    store.submit("described", [given])
    wait_until(lambda: store.get_job("described").state.is_terminal, what="it has ended")
    page.goto(url(airflow, "described"))
    panel = page.get_by_label("Task a", exact=True)
    expect(page.get_by_label("Result of a").locator("pre")).to_have_text(
        re.compile(r'^\{\s+"rows": 12,\s+"note": "<b>"\s+\}$')
    )
    panel.locator("summary").click()
    for text in ("0.5 CPUs, 64 MiB", "30 s", "15 m"):
        expect(panel).to_contain_text(text)
    expect(panel.locator("dt", has_text="Started")).to_be_visible()
    panel.get_by_role("button", name="Whole command").click()
    dialog = page.get_by_role("dialog", name="Whole command of a")
    expect(dialog).to_contain_text("echo the end")
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()


def test_single_tasks_are_cancelled_and_run_again(
    airflow: WithUsers, store: JobStore, page: Page, tmp_path: Path
) -> None:
    lines = {name: until(tmp_path / f"go-{name}") for name in ("slow", "other")}
    store.submit("single", [{"id": name, "bash": line} for name, line in lines.items()], max_parallel_tasks=2)
    page.goto(url(airflow, "single", "#task=slow"))
    expect(row(page, "slow")).to_contain_text("running")

    def ask(name: str, answer: str) -> None:
        page.get_by_role("button", name=name).click()
        page.get_by_role("dialog").get_by_role("button", name=answer).click()

    page.get_by_role("button", name="Cancel this task").click()
    page.get_by_role("dialog").get_by_role("button", name="Let it run").click()
    ask("Cancel this task", "Cancel the task")
    expect(row(page, "slow")).to_contain_text("cancelled")
    expect(row(page, "other")).to_contain_text("running")
    (tmp_path / "go-other").touch()
    expect(row(page, "other")).to_contain_text("completed")
    expect(page.locator("header.job .status").first).to_contain_text(re.compile("failed|cancelled"))
    (tmp_path / "go-slow").touch()
    ask("Retry this task", "Run it again")
    expect(row(page, "slow")).to_contain_text("completed")
    expect(page.locator("header.job .status").first).to_contain_text("completed")
    assert [item.attempt for item in store.get_tasks("single")] == [2, 1]
    ask("Run this task again", "Run it again")
    wait_until(lambda: [item.attempt for item in store.get_tasks("single")] == [3, 1], what="it has run again")
    expect(page.locator("header.job .status").first).to_contain_text("completed")
    ask("Run all again", "Run all again")
    wait_until(lambda: [item.attempt for item in store.get_tasks("single")] == [4, 2], what="all have run again")


def test_keys(airflow: WithUsers, drawn: JobStore, page: Page) -> None:
    draw(drawn, "keyed", [task(name) for name in ("one", "two", "three")], {"two": "failed"})
    page.goto(drawn_url(airflow, "keyed"))
    expect(page.get_by_label("Task two")).to_be_visible()
    page.keyboard.press("j")
    expect(page.get_by_label("Task three")).to_be_visible()
    page.keyboard.press("j")
    expect(page.get_by_label("Task three")).to_be_visible()  # there is no other one
    pressed = "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'k', bubbles: true}))"
    page.evaluate(f"{pressed}; {pressed}")
    expect(page.get_by_label("Task one")).to_be_visible()  # also if they come faster than the page is drawn
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("the next task")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.keyboard.press("Escape")
    expect(page.get_by_label("Task one")).to_have_count(0)


def test_the_follow_key(airflow: WithUsers, store: JobStore, page: Page, tmp_path: Path) -> None:
    store.submit("followed-by-key", [{"id": "a", "bash": f"seq 300; {until(tmp_path / 'go')}; echo over"}])
    page.goto(url(airflow, "followed-by-key"))
    expect(log_of(page, "a")).to_contain_text("300")
    expect(page.get_by_label("Follow")).to_be_checked()
    page.keyboard.press("f")
    expect(page.get_by_label("Follow")).not_to_be_checked()
    page.keyboard.press("f")
    expect(page.get_by_label("Follow")).to_be_checked()
    (tmp_path / "go").touch()
    expect(log_of(page, "a")).to_contain_text("over")


# -- as people see it --------------------------------------------------------------------------------------


def layers(count: int) -> list[dict[str, Any]]:
    """Tasks of which each depends on two of the layer before."""
    wide = 12
    return [
        task(
            f"{['extract', 'transform', 'load', 'check', 'report'][number // wide % 5]}-{number}",
            *(
                f"{['extract', 'transform', 'load', 'check', 'report'][(number // wide - 1) % 5]}-{before}"
                for before in sorted({number - wide, number - wide - number % wide + (number * 7) % wide})
                if number >= wide
            ),
        )
        for number in range(count)
    ]


PICTURES = {
    3: [task("extract"), task("transform", "extract"), task("load", "transform")],
    60: layers(60),
    500: fan(500),
    3000: layers(3000),
}


@pytest.mark.parametrize("count", PICTURES)
def test_pictures(airflow: WithUsers, drawn: JobStore, page: Page, count: int) -> None:
    """Light and dark, narrow and wide; nothing is wider than the screen."""
    tasks = PICTURES[count]
    failed = tasks[count // 2]["id"]
    follows = {item["id"]: "upstream failed" for item in tasks if failed in item["dependencies"]}
    draw(drawn, f"of-{count}", tasks, {failed: "failed", **follows})
    drawn.paths(f"of-{count}").log(failed).write_bytes(
        b"".join(b"step %d\n" % n for n in range(200)) + b"\x1b[31mFATAL\n"
    )
    for theme in ("light", "dark"):
        page.goto(airflow.url + "/air-executor/jobs")
        page.evaluate("theme => localStorage.setItem('theme', theme)", theme)
        for width in (1600, 400):
            page.set_viewport_size({"width": width, "height": 1000})
            page.goto(drawn_url(airflow, f"of-{count}"))
            expect(page.locator(".node").first).to_be_visible()
            expect(page.get_by_role("button", name=f"{failed}: failed")).to_be_visible()
            expect(log_of(page, failed)).to_contain_text("FATAL")
            expect(page.locator(".timeline tbody tr")).to_have_count(min(count, 500))
            assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
            save_screenshot(page, f"job-{count}-{theme}-{width}")
    page.evaluate("localStorage.removeItem('theme')")
