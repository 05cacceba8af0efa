"""The pages as somebody sees them: Chromium, and a real Airflow with all its parts."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

import pytest
from playwright.sync_api import FrameLocator, Page, expect

from airflow_provider_air_executor.jobs.store import JobStore
from tests.acceptance.browsing import COLOUR, NARROW, save_screenshot
from tests.acceptance.with_users import WithUsers
from tests.support.jobs import read_log
from tests.support.waiting import until, wait_until

pytestmark = [pytest.mark.airflow, pytest.mark.browser]
HOSTILE = "<img src=x onerror='window.hacked = true'>"


@pytest.fixture(scope="module")
def airflow(airflow_with_users: WithUsers) -> WithUsers:
    return airflow_with_users


@pytest.fixture(scope="module")
def store(embedded_store: JobStore) -> JobStore:
    return embedded_store


def job_url(airflow: WithUsers, name: str) -> str:
    return f"{airflow.url}/air-executor/jobs/{name}"


def row(page: Page | FrameLocator, task_id: str) -> Any:
    """A task's row of the timeline."""
    return page.locator(".timeline tbody tr").filter(has=page.get_by_role("button", name=task_id, exact=True))


def advance(store: JobStore, name: str) -> None:
    """Let a job that waits for it go on."""
    (store.paths(name).directory / "go").touch()


def start(airflow: WithUsers, store: JobStore, name: str) -> str:
    """Start a DAG run that submits the job, and wait until its second task runs."""
    run_id = airflow.trigger("watched", {"job": name})

    def is_there() -> bool:
        airflow.must_go_on("watched", run_id)
        return name in store.job_names()

    wait_until(is_there, what=f"job {name} is there")
    wait_until(lambda: store.get_tasks(name)[1].status == "running", what="it runs")
    return run_id


def test_a_running_job_progresses_without_reload(airflow: WithUsers, store: JobStore, page: Page) -> None:
    start(airflow, store, "progress")
    page.goto(job_url(airflow, "progress"))
    page.evaluate("window.notLoadedAgain = true")
    expect(row(page, "extract")).to_contain_text("completed")
    expect(row(page, "transform-a")).to_contain_text("running")
    expect(row(page, "load")).to_contain_text("pending")
    expect(page.locator("header.job")).to_contain_text("working")
    expect(page.get_by_role("button", name="transform-a: running")).to_be_visible()  # in the graph
    expect(page.get_by_role("progressbar").first).to_have_attribute("aria-valuenow", "2")
    save_screenshot(page, "job-running")
    advance(store, "progress")
    expect(row(page, "load")).to_contain_text("completed")
    expect(page.locator("header.job")).to_contain_text("completed")
    expect(page.get_by_role("button", name="load: completed")).to_be_visible()
    expect(page.locator(".run.completed")).to_have_count(4)
    assert page.evaluate("window.notLoadedAgain") is True


def test_a_log_is_followed(airflow: WithUsers, store: JobStore, page: Page) -> None:
    start(airflow, store, "followed")
    page.goto(job_url(airflow, "followed"))
    log = page.get_by_label("What transform-a has printed")  # what runs is shown first
    expect(log).to_contain_text("tick 10\n", use_inner_text=True)
    expect(log).to_contain_text("tick 40\n", use_inner_text=True)
    at_end = "box => box.scrollHeight - box.scrollTop - box.clientHeight < 24"
    wait_until(lambda: log.evaluate(at_end), what="the end is in sight")

    def looks_back() -> bool:
        log.evaluate("box => { box.scrollTop = 0 }")
        page.wait_for_timeout(200)  # the page hears of it with the next frame; what comes before that goes to the end
        return not page.get_by_label("Follow").is_checked()

    wait_until(looks_back, what="who looks back is not torn away")
    expect(log).to_contain_text("tick 50\n", use_inner_text=True)
    assert log.evaluate("box => box.scrollTop") == 0
    advance(store, "followed")
    expect(log).to_contain_text(re.compile(r"over\s*$"))
    text = log.inner_text()
    assert re.findall(r"tick (\d+)", text) == [str(number + 1) for number in range(text.count("tick"))]
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert Path(download.value.path()).read_text() == read_log(store, "followed", "transform-a").text


def test_the_end_of_a_log_is_shown_first(airflow: WithUsers, store: JobStore, page: Page) -> None:
    """Also of a task that has ended, whose log comes in one piece; and no half of a line at the beginning."""
    line = "for i in $(seq 9000); do echo INFO step $i; done; echo FATAL; exit 9"
    store.submit("noisy", [{"id": "a", "bash": line}])
    wait_until(lambda: store.get_job("noisy").state.is_terminal, what="it has ended")
    page.goto(job_url(airflow, "noisy"))
    log = page.get_by_label("What a has printed")
    expect(log).to_contain_text("FATAL")
    at_end = "box => box.scrollTop > 0 && box.scrollHeight - box.scrollTop - box.clientHeight < 24"
    wait_until(lambda: log.evaluate(at_end), what="the end is in sight")
    assert re.match(r"INFO step \d+\n", log.inner_text())


def test_a_line_that_is_written_over_and_a_log_that_is_truncated(
    airflow: WithUsers, store: JobStore, page: Page, tmp_path: Path
) -> None:
    """Of a progress bar there is its last state; a log that was truncated begins anew, with a note."""
    bar = "for i in $(seq 20); do printf 'step %s\\r' $i; done"
    line = f"echo first; {bar}; {until(tmp_path / 'go')}; printf 'step 21\\nlast\\n'"
    store.submit("bar", [{"id": "a", "bash": line}])
    page.goto(job_url(airflow, "bar"))
    log = page.get_by_label("What a has printed")
    expect(log).to_have_text("first\nstep 20", use_inner_text=True)
    os.truncate(store.paths("bar").log("a"), 0)
    note = "(The log has been truncated; it begins anew.)"
    expect(log).to_have_text(f"first\nstep 20\n{note}", use_inner_text=True)
    (tmp_path / "go").touch()
    expect(log).to_have_text(f"first\nstep 20\n{note}\nstep 21\nlast", use_inner_text=True)


def test_a_job_is_cancelled_and_retried(airflow: WithUsers, store: JobStore, page: Page) -> None:
    start(airflow, store, "cancelled")
    page.goto(job_url(airflow, "cancelled"))
    page.get_by_role("button", name="Cancel job").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Cancel this job?")
    dialog.get_by_role("button", name="Let it run").click()
    expect(dialog).to_be_hidden()
    page.get_by_role("button", name="Cancel job").click()
    dialog.get_by_role("button", name="Cancel the job").click()
    expect(page.locator("header.job .status")).to_have_text("cancelled")
    assert store.get_job("cancelled").state == "failed"
    expect(row(page, "transform-a")).to_contain_text("cancelled")
    save_screenshot(page, "job-cancelled")
    page.get_by_role("button", name="Retry failed tasks").click()
    expect(row(page, "transform-a")).to_contain_text("running")
    expect(page.get_by_role("button", name="Cancel job")).to_be_visible()
    advance(store, "cancelled")
    expect(page.locator("header.job")).to_contain_text("completed")
    tasks = store.get_tasks("cancelled")
    assert [task.attempt for task in tasks] == [1, 2, *(task.attempt for task in tasks[2:])]


def test_a_server_that_is_away_for_a_while(airflow: WithUsers, store: JobStore, page: Page) -> None:
    start(airflow, store, "away")
    page.route("**/api/jobs/**", lambda route: route.fulfill(status=502))
    page.goto(job_url(airflow, "away"))
    expect(page.get_by_role("alert")).to_be_visible()
    page.route("**/events*", lambda route: route.fulfill(status=502))
    page.unroute("**/api/jobs/**")
    expect(row(page, "transform-a")).to_contain_text("running")
    log = page.get_by_label("What transform-a has printed")
    expect(log).to_contain_text("tick 1")  # what there was
    page.unroute("**/events*")
    advance(store, "away")
    expect(log).to_contain_text("over")
    expect(page.locator("header.job")).to_contain_text("completed")


def test_a_job_that_is_replaced_by_another_one(airflow: WithUsers, store: JobStore, page: Page) -> None:
    for text in ("the old one", "the new one"):
        if text != "the old one":
            store.delete("replaced")
        store.submit("replaced", [{"id": "say", "bash": f"echo {text}; false"}])
        wait_until(lambda: store.get_job("replaced").state == "failed", what="it has failed")
        if text == "the old one":
            page.goto(job_url(airflow, "replaced"))
        log = page.get_by_label("What say has printed")
        expect(log).to_have_text(re.compile(rf"^{text}\s*$"))  # and nothing of the other one


def test_what_failed_of_a_large_job(airflow: WithUsers, store: JobStore, page: Page) -> None:
    tasks = [{"id": f"t{number}", "command": "false" if number == 750 else "true"} for number in range(1000)]
    for number in range(1, 1000):
        tasks[number]["dependencies"] = [f"t{number - 1}"] if number % 100 else []
    store.submit("large", tasks, max_parallel_tasks=20)
    wait_until(lambda: store.get_job("large").state.is_terminal, what="it has ended")
    page.goto(job_url(airflow, "large"))
    expect(page.get_by_label("Task t750")).to_contain_text("exit code 1")  # on the second page of the list
    expect(page.get_by_role("button", name="t750: failed")).to_be_visible()
    expect(page.get_by_role("button", name="t751: upstream failed")).to_be_visible()
    expect(page.locator(".node")).to_have_count(60)  # nine chains, half of its own one, and the tasks of the other half
    expect(page.locator(".pager")).to_contain_text("1 to 500 of 1000 tasks")
    page.get_by_label("Status").select_option("upstream_failed")
    expect(page.locator(".timeline tbody tr")).to_have_count(49)
    page.goto(job_url(airflow, "large#task=t960"))
    page.reload()
    expect(page.get_by_label("Task t960")).to_contain_text("completed")


def test_times_are_in_the_zone_that_was_chosen(airflow: WithUsers, store: JobStore, page: Page) -> None:
    finished(store, "zone")
    page.goto(job_url(airflow, "zone"))
    page.evaluate("""localStorage.setItem("timezone", '"Asia/Tokyo"')""")  # as Airflow does
    page.reload()
    submitted = page.locator("dl.facts [title]").first.get_attribute("title") or ""
    created_at = store.get_job("zone").created_at
    assert created_at is not None
    assert f"{created_at.astimezone(ZoneInfo('Asia/Tokyo')):%-I:%M:%S}" in submitted
    page.evaluate("localStorage.removeItem('timezone')")


def test_the_tabs_of_task_instance_and_run(airflow: WithUsers, store: JobStore, page: Page) -> None:
    run_id = start(airflow, store, "tabs")
    run = f"{airflow.url}/dags/watched/runs/{quote(run_id, safe='')}"
    page.goto(f"{run}/tasks/process")
    page.get_by_role("link", name="Job", exact=True).click()
    frame = page.frame_locator("iframe")
    expect(frame.get_by_role("heading", name="tabs")).to_be_visible()
    expect(row(frame, "transform-a")).to_contain_text("running")
    expect(frame.get_by_label("What transform-a has printed")).to_contain_text("tick 5")
    save_screenshot(page, "tab-of-task-instance")
    advance(store, "tabs")
    expect(row(frame, "load")).to_contain_text("completed")
    # The link leads the page around the frame to the run, and the run has its jobs.
    frame.get_by_role("link", name="watched").click()
    expect(page).to_have_url(re.compile(r"/dags/watched/runs/[^/]+$"))
    page.get_by_role("link", name="Jobs", exact=True).click()
    expect(frame.get_by_role("row").filter(has_text="tabs")).to_contain_text("4/4")
    frame.get_by_role("link", name="tabs").click()
    expect(row(frame, "load")).to_contain_text("completed")


def test_the_tab_of_who_waits_for_a_job_of_somebody_else(airflow: WithUsers, store: JobStore, page: Page) -> None:
    store.submit("of-nobody", [{"id": "tick", "bash": 'until [ -e "$AIR_EXECUTOR_JOB_DIR/go" ]; do sleep 0.2; done'}])
    run_id = airflow.trigger("waiting")
    page.goto(f"{airflow.url}/dags/waiting/runs/{quote(run_id, safe='')}/tasks/wait")
    page.get_by_role("link", name="Job", exact=True).click()
    frame = page.frame_locator("iframe")
    expect(frame.get_by_role("heading", name="of-nobody")).to_be_visible()
    advance(store, "of-nobody")
    expect(frame.locator("header.job")).to_contain_text("completed")


def test_light_and_dark_as_airflow_is(airflow: WithUsers, store: JobStore, page: Page) -> None:
    page.goto(airflow.url)
    for theme, others in (("dark", "light"), ("light", "dark")):
        page.evaluate("theme => localStorage.setItem('theme', theme)", theme)
        page.goto(f"{airflow.url}/plugin/air-executor")
        frame = page.frame_locator("iframe")
        expect(frame.get_by_role("heading", name="Air-Executor jobs")).to_be_visible()
        outside, inside = page.locator("html").evaluate(COLOUR), frame.locator("body").evaluate(COLOUR)
        assert outside == inside
        assert (sum(inside[:3]) < 200) is (theme == "dark")
        if theme == "dark":
            save_screenshot(page, "jobs-dark")
        # Somebody switches while the page is open.
        page.evaluate("([on, off]) => document.documentElement.classList.replace(on, off)", [theme, others])
        expect(frame.locator("html")).to_have_class(
            re.compile("dark") if others == "dark" else re.compile("^(?!.*dark)")
        )
    page.evaluate("localStorage.setItem('theme', 'dark')")
    page.goto(f"{airflow.url}/air-executor/jobs")  # alone, without Airflow's page around it
    expect(page.locator("html")).to_have_class("dark")


def test_nothing_in_a_job_becomes_markup(airflow: WithUsers, store: JobStore, page: Page) -> None:
    task_id = HOSTILE.replace("/", "")
    script = r"""printf '%s\n\033[1mbold\033[0m \000end' "$0"; exit 3"""
    task = {"id": task_id, "command": "bash", "args": ["-c", script, HOSTILE]}
    store.submit("hostile", [task], labels={HOSTILE: HOSTILE})
    page.goto(job_url(airflow, "hostile"))
    log = page.get_by_label(f"What {task_id} has printed")
    expect(log).to_contain_text("bold end")
    assert log.inner_text() == f"{HOSTILE}\nbold end"
    expect(page.locator("pre.command")).to_contain_text("onerror")
    expect(page.locator("main img")).to_have_count(0)
    page.goto(f"{airflow.url}/air-executor/jobs?name=hostile")
    expect(page.locator("table.jobs")).to_contain_text("onerror")
    expect(page.locator("main img")).to_have_count(0)
    assert page.evaluate("window.hacked") is None


def test_a_narrow_screen(airflow: WithUsers, store: JobStore, page: Page) -> None:
    finished(store, "narrow")
    page.set_viewport_size(NARROW)
    fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    for path in ("/air-executor/jobs", "/air-executor/jobs/narrow", "/air-executor/owned?dag_id=watched&run_id=x"):
        page.goto(f"{airflow.url}{path}")
        expect(page.locator("table, .empty").first).to_be_visible()
        assert page.evaluate(fits), path
    page.goto(job_url(airflow, "narrow"))
    row(page, "second").get_by_role("button").click()
    heading = page.get_by_role("heading", name="second")
    expect(heading).to_be_in_viewport()  # below the list, and yet in sight
    assert page.evaluate(fits)
    save_screenshot(page, "job-400px")


def finished(store: JobStore, name: str) -> None:
    """A job that has failed in its second task."""
    tasks = [
        {"id": "first", "bash": "echo one"},
        {"id": "second", "bash": "echo oops; false", "dependencies": ["first"]},
        {"id": "a-task-with-a-name-of-some-length-that-is-cut", "bash": "true", "dependencies": ["first", "second"]},
    ]
    job = store.submit(name, tasks)
    wait_until(lambda: store.get_job(job.name).state.is_terminal, what="it has ended")


def test_the_keyboard_and_a_screen_reader_are_enough(airflow: WithUsers, store: JobStore, page: Page) -> None:
    finished(store, "keys")
    page.goto(job_url(airflow, "keys"))
    expect(page.get_by_label("Task second")).to_be_visible()  # what went wrong is shown first
    node = page.get_by_role("button", name="first: completed")
    node.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Task first")).to_be_visible()
    expect(node).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Close the task").press("Enter")
    expect(page.get_by_label("Task first")).to_have_count(0)
    row(page, "second").get_by_role("button").press("Enter")
    expect(page.get_by_label("Task second")).to_contain_text("Exit code")
    expect(page.get_by_label("What second has printed")).to_contain_text("oops")
    reached: set[str] = set()
    page.locator("body").focus()
    for _ in range(45):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.innerText")
        )
    assert {"Retry failed tasks", "first: completed", "first", "Download", "What second has printed"} <= reached
    nameless = """() => [...document.querySelectorAll('button, a, input, select, [role=button]')].filter(element =>
        !(element.innerText || element.textContent || element.getAttribute('aria-label') || element.labels?.length))
        .map(element => element.outerHTML)"""
    assert page.evaluate(nameless) == []
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.get_by_role("heading", level=1).count() == 1
