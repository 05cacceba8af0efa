"""The list of jobs as somebody sees it: Chromium, and a real Airflow with all its parts."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import FrameLocator, Page, expect

from airflow_provider_air_executor.jobs import inbox, manager_control, masking
from airflow_provider_air_executor.jobs.models import (
    JobState,
    Reason,
    SubmittedBy,
    TaskStatus,
    default_job_name,
    utc_now,
)
from airflow_provider_air_executor.jobs.store import JobStore
from tests.acceptance.browsing import NARROW, WIDE, save_screenshot
from tests.acceptance.with_users import WithUsers
from tests.support.jobs import publish_job, publish_tasks
from tests.support.managers import Managers
from tests.support.waiting import until, wait_until

pytestmark = [pytest.mark.airflow, pytest.mark.browser]
LISTED = "listed"  # a connection to a job filesystem without a manager
LARGE = {"width": 1600, "height": 1000}
ENDS = {
    "completed": (JobState.COMPLETED, None),
    "failed": (JobState.FAILED, Reason.EXIT),
    "cancelled": (JobState.FAILED, Reason.CANCELLED),
    "timed-out": (JobState.FAILED, Reason.TIMEOUT),
    "lost": (JobState.FAILED, Reason.LOST),
    "waiting": (JobState.WAITING, None),
}


@pytest.fixture(scope="module")
def airflow(airflow_with_users: WithUsers) -> WithUsers:
    return airflow_with_users


@pytest.fixture(scope="module")
def listed(airflow: WithUsers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobStore]:
    """A job filesystem with 240 jobs, six of which are of the last hour, and ended in all ways there are."""
    store = JobStore(tmp_path_factory.mktemp("listed") / "base")
    now = utc_now()
    for number in range(234):
        owner = SubmittedBy(dag_id="watched", run_id=f"manual__{number:03}", task_id="process", map_index=number)
        job = store.submit(default_job_name(owner), ["true"], submitted_by=owner, labels={"kind": str(number % 3)})
        at = now - timedelta(hours=2 + number)
        ended = at + timedelta(seconds=number + 1)
        publish_job(store, job.evolve(state=JobState.COMPLETED, created_at=at, started_at=at, updated_at=ended))
        publish_tasks(store, job.name, [task.evolve(status=TaskStatus.COMPLETED) for task in store.get_tasks(job.name)])
    for minutes, (name, (state, reason)) in enumerate(ENDS.items()):
        job = store.submit(f"end-{name}", ["true"] * 4, labels={"team": "data", "way": name})
        at = now - timedelta(minutes=30 - minutes)
        started = None if state is JobState.WAITING else at
        publish_job(store, job.evolve(state=state, reason=reason, created_at=at, started_at=started, updated_at=now))
        if state is JobState.FAILED:
            tasks = [task.evolve(status=TaskStatus.FAILED, reason=reason) for task in store.get_tasks(job.name)]
            tasks[3] = tasks[3].evolve(reason=Reason.DEPENDENCY)
            publish_tasks(store, job.name, tasks)
        if state is JobState.COMPLETED:
            tasks = [task.evolve(status=TaskStatus.COMPLETED) for task in store.get_tasks(job.name)]
            publish_tasks(store, job.name, tasks)
    airflow.add_connection(LISTED, "air_executor", base_path=str(store.base_path))
    yield store
    airflow.get(f"/api/v2/connections/{LISTED}", "ada", method="DELETE")


def url(airflow: WithUsers, query: str = "", conn_id: str = LISTED) -> str:
    return f"{airflow.url}/air-executor/jobs?conn_id={conn_id}&{query}"


def rows(page: Page | FrameLocator) -> Any:
    return page.locator("table.jobs tbody tr")


def row(page: Page, name: str) -> Any:
    return page.locator(f'table.jobs tr[data-job="{name}"]')


def names(page: Page) -> list[str]:
    return [text or "" for text in page.locator("table.jobs tbody a.name").all_inner_texts()]


def test_the_list_in_the_menu_of_airflow(airflow: WithUsers, embedded_store: JobStore, page: Page) -> None:
    for number in range(120):
        command = "true" if number % 10 else "false"
        embedded_store.submit(f"row-{number:03}", [command], labels={"kind": "odd" if number % 2 else "even"})
    ours = [f"row-{number:03}" for number in range(120)]
    wait_until(lambda: all(embedded_store.get_job(name).state.is_terminal for name in ours), what="they have ended")
    page.goto(airflow.url)
    page.get_by_role("button", name="Browse").click()
    page.get_by_role("menuitem", name="Air-Executor jobs").click()
    frame = page.frame_locator("iframe")
    frame.get_by_label("Name").fill("ROW-")
    expect(frame.locator(".pager")).to_contain_text("1 to 50 of 120 jobs")
    expect(rows(frame)).to_have_count(50)
    expect(rows(frame).first).to_contain_text("row-119")
    expect(frame.locator(".states").get_by_role("button", name="failed")).to_contain_text("12")
    expect(frame.get_by_label("Manager")).to_contain_text("Manager running for")
    expect(frame.get_by_role("meter", name="Slots of local")).to_be_visible()
    save_screenshot(page, "jobs")
    frame.get_by_role("link", name="Page 3").click()
    expect(rows(frame)).to_have_count(20)
    frame.locator(".states").get_by_role("button", name="failed").click()
    expect(rows(frame)).to_have_count(12)
    frame.get_by_label("Label").fill("kind=odd")
    frame.get_by_label("Label").press("Enter")
    expect(frame.get_by_text("No job fits these filters.")).to_be_visible()
    frame.get_by_role("button", name="Remove the filter kind=odd").click()
    frame.get_by_label("Label").fill("kind=even")
    frame.get_by_label("Label").press("Enter")
    expect(rows(frame)).to_have_count(12)
    embedded_store.submit("row-new", ["true"], labels={"kind": "even"})
    frame.locator(".states").get_by_role("button", name="failed").click()
    expect(rows(frame).first).to_contain_text("row-new")  # by itself


def test_ends_look_different(airflow: WithUsers, listed: JobStore, page: Page) -> None:
    page.goto(url(airflow, "name=end-"))
    expect(rows(page)).to_have_count(6)
    looks = set()
    for name, (state, _) in ENDS.items():
        status = row(page, f"end-{name}").locator(".status")
        expect(status).to_have_text(name.replace("-", " "))
        sign = status.locator(".sign")
        looks.add((sign.inner_html(), sign.evaluate("element => getComputedStyle(element).color")))
        button = page.locator(".states button").filter(has_text=re.compile(rf"^\s*{name.replace('-', ' ')} "))
        expect(button).to_contain_text("1")
        if state is JobState.FAILED:
            progress = row(page, f"end-{name}").get_by_role("progressbar")
            expect(progress).to_have_attribute("aria-valuetext", re.compile("1 upstream failed"))
    assert len(looks) == len(ENDS)
    for width, size in (("400px", NARROW), ("1600px", LARGE)):
        for theme in ("light", "dark"):
            page.set_viewport_size(size)
            page.evaluate("theme => localStorage.setItem('theme', theme)", theme)
            page.reload()
            expect(rows(page)).to_have_count(6)
            save_screenshot(page, f"list-{width}-{theme}")
            assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), width
    page.evaluate("localStorage.removeItem('theme')")


def test_what_is_asked_for_is_in_the_address(airflow: WithUsers, listed: JobStore, page: Page) -> None:
    page.goto(url(airflow))
    expect(rows(page)).to_have_count(50)
    page.get_by_label("Submitted").select_option("1h")
    expect(rows(page)).to_have_count(6)
    expect(page).to_have_url(re.compile("since=1h"))
    page.locator(".states").get_by_role("button", name="lost").click()
    page.locator(".states").get_by_role("button", name="cancelled").click()
    expect(rows(page)).to_have_count(2)
    expect(page).to_have_url(re.compile("outcome=cancelled&outcome=lost"))
    row(page, "end-lost").get_by_role("link", name="way=lost").click()
    expect(rows(page)).to_have_count(1)
    expect(page).to_have_url(re.compile("label=way%3Dlost"))
    page.reload()
    expect(rows(page)).to_have_count(1)
    expect(page.get_by_role("button", name="Remove the filter way=lost")).to_be_visible()
    page.go_back()
    expect(rows(page)).to_have_count(2)
    page.go_back()
    page.go_back()
    expect(rows(page)).to_have_count(6)
    page.go_forward()
    expect(rows(page)).to_have_count(1)
    page.get_by_role("button", name="Clear the filters").click()
    expect(rows(page)).to_have_count(50)
    # What is typed letter by letter is one step.
    page.get_by_label("Name").press_sequentially("end-")
    expect(rows(page)).to_have_count(6)
    page.go_back()
    expect(rows(page)).to_have_count(50)
    page.get_by_label("DAG").select_option("watched")
    expect(page.locator(".pager")).to_contain_text("of 234 jobs")


def test_times_between(airflow: WithUsers, listed: JobStore, page: Page) -> None:
    page.goto(url(airflow))
    page.evaluate("""localStorage.setItem("timezone", '"Asia/Tokyo"')""")
    page.reload()
    page.get_by_label("Submitted").select_option("between")
    first, last = (listed.get_job(f"end-{name}").created_at for name in ("failed", "lost"))
    assert first is not None
    assert last is not None
    tokyo = timedelta(hours=9)
    page.get_by_label("From", exact=True).fill(f"{first + tokyo:%Y-%m-%dT%H:%M}")
    page.get_by_label("To", exact=True).fill(f"{last + tokyo:%Y-%m-%dT%H:%M}")
    page.get_by_label("To", exact=True).press("Tab")
    expect(rows(page)).to_have_count(3)
    assert sorted(names(page)) == ["end-cancelled", "end-failed", "end-timed-out"]
    expect(page).to_have_url(re.compile(rf"created_after={first:%Y-%m-%dT%H}%3A{first:%M}%3A00.000Z"))
    page.reload()
    expect(page.get_by_label("From", exact=True)).to_have_value(f"{first + tokyo:%Y-%m-%dT%H:%M}")
    page.evaluate("localStorage.removeItem('timezone')")


def test_columns_sort(airflow: WithUsers, listed: JobStore, page: Page) -> None:
    page.goto(url(airflow, "name=end-"))
    expect(rows(page)).to_have_count(6)
    ends = sorted(f"end-{name}" for name in ENDS)

    def heading(name: str) -> Any:
        return page.get_by_role("columnheader", name=name, exact=True)

    heading("Job").get_by_role("button").click()
    expect(heading("Job")).to_have_attribute("aria-sort", "ascending")
    wait_until(lambda: names(page) == ends, what="they are sorted by name")
    heading("Job").get_by_role("button").click()
    wait_until(lambda: names(page) == ends[::-1], what="the other way round")
    expect(page).to_have_url(re.compile("sort=name&order=desc"))
    heading("Duration").get_by_role("button").click()
    expect(heading("Duration")).to_have_attribute("aria-sort", "descending")
    wait_until(lambda: names(page)[0] == "end-completed", what="the longest is the first")
    assert names(page)[-1] == "end-waiting"


def test_numbered_pages(airflow: WithUsers, listed: JobStore, page: Page) -> None:
    page.goto(url(airflow))
    pages = page.get_by_label("Pages")
    expect(pages).to_contain_text("1 to 50 of 240 jobs")
    expect(pages.get_by_role("link", name="Page")).to_have_count(4)
    pages.get_by_role("link", name="Page 5").click()
    expect(rows(page)).to_have_count(40)
    expect(page).to_have_url(re.compile("offset=200"))
    expect(pages.get_by_role("button", name="Page 5")).to_have_attribute("aria-current", "page")
    expect(pages.get_by_role("button", name="Next")).to_be_disabled()
    pages.get_by_role("link", name="Previous").click()
    expect(pages).to_contain_text("151 to 200 of 240 jobs")
    page.go_back()
    expect(pages).to_contain_text("201 to 240 of 240 jobs")


def test_a_generated_name_is_shown_as_its_task(airflow: WithUsers, listed: JobStore, page: Page) -> None:
    page.goto(url(airflow, "dag_id=watched"))
    owner = SubmittedBy(dag_id="watched", run_id="manual__007", task_id="process", map_index=7)
    one = row(page, default_job_name(owner))
    expect(one.locator("a.name")).to_have_text("process [7]")
    expect(one.locator("a.name")).to_have_attribute("title", default_job_name(owner))
    expect(one.locator("th")).to_contain_text("of watched")
    expect(one.get_by_role("link", name="manual__007")).to_have_attribute(
        "href", "/airflow/dags/watched/runs/manual__007"
    )


def test_a_waiting_job_says_what_for(airflow: WithUsers, listed: JobStore, page: Page) -> None:
    page.goto(url(airflow, "name=end-waiting"))
    expect(row(page, "end-waiting")).to_contain_text("no manager is running")
    manager = page.get_by_label("Manager")
    expect(manager).to_contain_text("No manager is running. 1 job waits.")
    expect(manager).to_contain_text(f"air-executor manager --base-path {listed.base_path}")


def test_how_full_the_manager_is(airflow: WithUsers, several: JobStore, page: Page, tmp_path: Path) -> None:
    with contextlib.closing(Managers(several)) as managers:
        managers.start(
            "--max-concurrent-runners", "2", "--capacity", '{"cpus": 4, "memory": "3Gi", "gpus": ["0", "1"]}'
        )
        page.goto(url(airflow, "sort=name&order=asc", "several"))
        manager = page.get_by_label("Manager", exact=True)
        expect(manager).to_contain_text("Manager running for")
        expect(manager).to_contain_text("Nothing waits for room.")
        expect(manager).not_to_contain_text("Free:")
        needed = {"resources": {"cpus": 1.5, "memory": "512Mi", "gpus": 1}}
        for number in range(4):
            several.submit(f"full-{number}", [{"bash": until(tmp_path / "go"), **(needed if number == 0 else {})}])
        expect(page.get_by_role("meter", name="Slots of local")).to_have_attribute(
            "aria-valuetext", "local: 2 of 2 slots used"
        )
        expect(manager).to_contain_text("Free: 2.5 of 4 cpus, 2.5 of 3 GiB of memory, 1 of 2 gpus")
        expect(manager).to_contain_text("2 tasks wait for room, the oldest job for")
        expect(manager.get_by_role("link", name="the oldest job")).to_have_attribute("title", "full-2")
        expect(row(page, "full-2")).to_contain_text("waits for room: it is next")
        expect(row(page, "full-3")).to_contain_text("waits for room: 1 job before it")
        manager_control.set_paused(several, True)
        expect(manager).to_contain_text("Paused: no further task starts.")
        expect(row(page, "full-3")).to_contain_text("the manager is paused")
        save_screenshot(page, "list-manager-paused")
        manager_control.set_slots(several, 3)
        expect(page.get_by_role("meter", name="Slots of local")).to_have_attribute("aria-valuemax", "3")
        manager_control.set_paused(several, False)
        (tmp_path / "go").touch()
        expect(manager).to_contain_text("Nothing waits for room.")
        expect(row(page, "full-3").locator(".status")).to_have_text("completed")
    expect(manager).to_contain_text("No manager is running.")  # it was killed


def test_the_keyboard_is_enough_for_the_list(airflow: WithUsers, listed: JobStore, page: Page) -> None:
    page.goto(url(airflow, "name=end-&sort=name&order=asc"))
    expect(rows(page)).to_have_count(6)
    focused = "document.activeElement.innerText"
    page.keyboard.press("j")
    assert page.evaluate(focused) == "end-cancelled"
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    assert page.evaluate(focused) == "end-completed"
    page.keyboard.press("x")
    expect(page.get_by_label("Selected jobs")).to_contain_text("1 job selected")
    page.keyboard.press("x")
    expect(page.get_by_label("Selected jobs")).not_to_contain_text("selected")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("the next job")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("/")
    page.keyboard.type("x?j")  # these are letters now
    expect(page.get_by_label("Name")).to_have_value("end-x?j")
    page.get_by_label("Name").fill("end-lost")
    page.keyboard.press("Escape")
    expect(rows(page)).to_have_count(1)
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="end-lost")).to_be_visible()
    page.go_back()
    page.get_by_label("Name").fill("")
    expect(rows(page)).to_have_count(50)
    page.locator("h1").click()
    page.keyboard.press("n")
    expect(page.locator(".pager")).to_contain_text("51 to 100")
    page.keyboard.press("p")
    expect(page.locator(".pager")).to_contain_text("1 to 50")


@pytest.fixture
def several(airflow: WithUsers, tmp_path: Path) -> Iterator[JobStore]:
    """A job filesystem without a manager, with jobs that wait, and ones that have failed."""
    store = JobStore(tmp_path / "base")
    for number in range(7):
        job = store.submit(f"bulk-{number}", ["true"])
        if number >= 4:
            publish_job(store, job.evolve(state=JobState.FAILED, reason=Reason.EXIT))
    airflow.add_connection("several", "air_executor", base_path=str(store.base_path))
    yield store
    airflow.get("/api/v2/connections/several", "ada", method="DELETE")


def asked(store: JobStore) -> list[tuple[str, str]]:
    found = map(inbox.load_request, inbox.requests(store))
    return sorted((request.request.value, request.job) for request in found)


def test_several_jobs_are_cancelled_and_retried(airflow: WithUsers, several: JobStore, page: Page) -> None:
    page.goto(url(airflow, "sort=name&order=asc", "several"))
    bulk, dialog = page.get_by_label("Selected jobs"), page.get_by_role("dialog")
    for name in ("bulk-0", "bulk-1", "bulk-5"):
        page.get_by_label(f"Select {name}").check()
    expect(bulk).to_contain_text("3 jobs selected")
    bulk.get_by_role("button", name="Cancel 2").click()
    expect(dialog).to_contain_text("Cancel 2 jobs?")
    expect(dialog.get_by_role("listitem")).to_have_text(["bulk-0", "bulk-1"])
    expect(dialog).to_contain_text("1 of the 3 selected has ended already.")
    save_screenshot(page, "list-bulk-question")
    dialog.get_by_role("button", name="Let them run").click()
    expect(dialog).to_have_count(0)
    assert asked(several) == []
    bulk.get_by_role("button", name="Cancel 2").click()
    dialog.get_by_role("button", name="Cancel 2 jobs").click()
    expect(bulk).to_contain_text("2 cancellations are requested.")
    expect(bulk).to_contain_text("1 job selected")  # of which nothing was asked
    assert asked(several) == [("cancel", "bulk-0"), ("cancel", "bulk-1")]
    page.get_by_label("Select all jobs of this page").check()
    expect(bulk).to_contain_text("7 jobs selected")
    several.delete("bulk-6")  # somebody else was faster
    bulk.get_by_role("button", name="Retry 3").click()
    expect(dialog).to_contain_text("Retry 3 jobs?")
    dialog.get_by_role("button", name="Retry 3 jobs").click()
    expect(bulk).to_contain_text("2 retries are requested.")
    expect(bulk.get_by_role("alert")).to_contain_text("bulk-6: there is no such job")
    assert [name for action, name in asked(several) if action == "retry"] == ["bulk-4", "bulk-5"]
    bulk.get_by_role("button", name="Clear").click()
    expect(bulk).not_to_contain_text("selected")


def test_several_jobs_are_removed(airflow: WithUsers, several: JobStore, page: Page) -> None:
    page.goto(url(airflow, "sort=name&order=asc", "several"))
    bulk, dialog = page.get_by_label("Selected jobs"), page.get_by_role("dialog")
    page.get_by_label("Select all jobs of this page").check()
    bulk.get_by_role("button", name="Remove 3").click()
    expect(dialog).to_contain_text("Remove 3 jobs?")
    expect(dialog).to_contain_text("4 of the 7 selected have not ended.")
    save_screenshot(page, "list-bulk-remove")
    dialog.get_by_role("button", name="Keep them").click()
    assert len(list(several.list_jobs())) == 7
    bulk.get_by_role("button", name="Remove 3").click()
    dialog.get_by_role("button", name="Remove 3 jobs").click()
    expect(bulk).to_contain_text("3 jobs are removed.")
    expect(rows(page)).to_have_count(4)
    assert sorted(job.name for job in several.list_jobs()) == [f"bulk-{number}" for number in range(4)]


def test_all_jobs_that_fit_are_selected(airflow: WithUsers, listed: JobStore, page: Page) -> None:
    page.goto(url(airflow, "dag_id=watched"))
    page.get_by_label("Select all jobs of this page").check()
    bulk = page.get_by_label("Selected jobs")
    expect(bulk).to_contain_text("50 jobs selected")
    bulk.get_by_role("button", name="Select all 234 that fit").click()
    expect(bulk).to_contain_text("234 jobs selected")
    expect(bulk.get_by_role("button", name="Cancel")).to_be_disabled()  # they have ended
    page.get_by_label("Name").fill("process")
    expect(bulk).not_to_contain_text("selected")


def test_lists_without_jobs_say_why(airflow: WithUsers, listed: JobStore, page: Page, tmp_path: Path) -> None:
    places = {"empty": tmp_path / "empty", "away": tmp_path / "away", "broken": tmp_path / "broken"}
    JobStore(places["empty"]).create_directories()
    places["broken"].mkdir()
    (places["broken"] / "jobs").write_text("no directory")
    for name, path in places.items():
        airflow.add_connection(f"list-{name}", "air_executor", base_path=str(path))
    try:
        page.goto(url(airflow, conn_id="list-empty"))
        expect(page.locator(".empty")).to_contain_text("There are no jobs here yet")
        save_screenshot(page, "list-empty")
        page.goto(url(airflow, conn_id="list-away"))
        expect(page.locator(".empty")).to_contain_text("the base path of this connection does not exist yet")
        for conn_id, words in (("list-broken", "cannot be read by the API server"), ("list-none", "no connection")):
            page.goto(url(airflow, conn_id=conn_id))
            expect(page.get_by_role("alert")).to_contain_text(words)
            save_screenshot(page, conn_id)
            page.get_by_role("link", name="Jobs of the default connection").click()
            expect(page).to_have_url(f"{airflow.url}/air-executor/jobs")
        page.goto(url(airflow, "name=nothing-like-it"))
        expect(page.locator(".empty")).to_contain_text("No job fits these filters.")
        page.get_by_role("button", name="Show all jobs").click()
        expect(rows(page)).to_have_count(50)
        page.goto(f"{airflow.url}/air-executor/jobs/not-there?conn_id={LISTED}")
        expect(page.locator("main")).to_contain_text("There is no job not-there")
        save_screenshot(page, "job-not-there")
        page.get_by_role("link", name="All jobs").click()
        expect(rows(page)).to_have_count(50)
    finally:
        for name in places:
            airflow.get(f"/api/v2/connections/list-{name}", "ada", method="DELETE")


def test_labels_are_links_but_secret_ones(airflow: WithUsers, several: JobStore, page: Page) -> None:
    secret = {masking.FILE: masking.dump(["hunter2"])}
    several.submit("secret-label", ["true"], labels={"token": "hunter2", "open": "yes"}, attached=secret)
    page.goto(url(airflow, "name=secret-label", "several"))
    expect(row(page, "secret-label")).to_contain_text("token=***")
    expect(row(page, "secret-label").locator("a.label")).to_have_text(["open=yes"])


def test_who_may_edit_nothing_selects_nothing(airflow: WithUsers, listed: JobStore, page: Page) -> None:
    page.route(
        re.compile("/api/jobs[?]"),
        lambda route: route.fulfill(
            body=route.fetch().text().replace('"may_edit":true', '"may_edit":false'), content_type="application/json"
        ),
    )
    page.goto(url(airflow))
    expect(rows(page)).to_have_count(50)
    expect(page.get_by_role("checkbox")).to_have_count(0)
    assert json.loads(airflow.get(f"/air-executor/api/jobs?conn_id={LISTED}", "ada").text)["jobs"][0]["may_edit"]


def test_a_narrow_list(airflow: WithUsers, listed: JobStore, page: Page) -> None:
    page.set_viewport_size(NARROW)
    page.goto(url(airflow))
    expect(rows(page)).to_have_count(50)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    page.get_by_role("checkbox").nth(0).check()
    expect(page.get_by_label("Selected jobs")).to_contain_text("1 job selected")
    page.set_viewport_size(WIDE)


def test_the_jobs_of_a_run_are_called_by_their_tasks(airflow: WithUsers, embedded_store: JobStore, page: Page) -> None:
    """In the tab of a DAG run, where DAG and run are known."""
    for index in range(3):
        owner = SubmittedBy(dag_id="watched", run_id="tab__of__run", task_id="process", map_index=index)
        embedded_store.submit(default_job_name(owner), ["true"], submitted_by=owner)
    page.goto(f"{airflow.url}/air-executor/owned?dag_id=watched&run_id=tab__of__run")
    expect(rows(page)).to_have_count(3)
    assert sorted(names(page)) == ["process [0]", "process [1]", "process [2]"]
    expect(rows(page).first).not_to_contain_text("watched")
    expect(page.get_by_role("checkbox")).to_have_count(0)
    for width, size in (("400px", NARROW), ("1600px", LARGE)):
        page.set_viewport_size(size)
        save_screenshot(page, f"tab-of-run-{width}")
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), width
    page.locator("a.name").first.click()
    expect(page.locator("header.job")).to_be_visible()
