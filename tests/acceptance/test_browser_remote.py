"""A manager on another machine as somebody sees it: Chromium, a real Airflow, and a server that is reached by HTTPS."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from airflow_provider_air_executor.jobs.models import JobState, SubmittedBy
from airflow_provider_air_executor.jobs.store import JobStore
from tests.acceptance.browsing import NARROW, save_screenshot
from tests.acceptance.with_users import WithUsers
from tests.support.remote_manager import RemoteManager
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.airflow, pytest.mark.browser]
CONNECTION = "other-machine"
READING = "other-machine-reading"
BANNER = re.compile(f"The manager of the connection {CONNECTION} cannot be reached: .+")


@pytest.fixture(scope="module")
def airflow(airflow_with_users: WithUsers) -> WithUsers:
    return airflow_with_users


@pytest.fixture(scope="module")
def manager(airflow: WithUsers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteManager]:
    """A manager with its server, and two connections to it: one may do everything, the other one may read."""
    with RemoteManager(tmp_path_factory.mktemp("remote") / "base", tmp_path_factory.mktemp("tls")) as found:
        for conn_id, scope in ((CONNECTION, "admin"), (READING, "read")):
            fields = found.connection() | {
                "password": found.run("token", "create", scope, "--scope", scope).split()[-1]
            }
            airflow.api("/connections", {"connection_id": conn_id, **fields, "extra": json.dumps(fields["extra"])})
        yield found
        for conn_id in (CONNECTION, READING):  # the Airflow is that of other tests, too
            airflow.api(f"/connections/{conn_id}", method="DELETE")


@pytest.fixture(scope="module")
def store(manager: RemoteManager) -> JobStore:
    """Its job filesystem, which Airflow does not look at."""
    return JobStore(manager.base_path)


def address(airflow: WithUsers, path: str = "/jobs", conn_id: str = CONNECTION) -> str:
    return f"{airflow.url}/air-executor{path}?conn_id={conn_id}"


def submit(store: JobStore, name: str, *, dag_id: str = "watched") -> None:
    """A job that prints a line every second, until it may end."""
    counting = f"n=0; until [ -e {store.base_path}/{name}.go ]; do n=$((n+1)); echo tick $n; sleep 1; done; echo over"
    tasks: list[dict[str, Any]] = [
        {"id": "extract", "bash": "echo extracted"},
        {"id": "count", "bash": counting, "dependencies": ["extract"]},
        {"id": "load", "bash": """echo '{"rows": 3}' > $AIR_EXECUTOR_OUTPUT""", "dependencies": ["count"]},
    ]
    owner = SubmittedBy(dag_id=dag_id, run_id="manual__1", task_id="process")
    store.submit(name, tasks, submitted_by=owner, labels={"team": "geo"})
    wait_until(lambda: store.get_tasks(name)[1].status == "running", what="it runs")


def advance(store: JobStore, name: str) -> None:
    """Let the job end."""
    (store.base_path / f"{name}.go").touch()


def is_at(log: Any, line: str) -> None:
    expect(log).to_contain_text(f"{line}\n", use_inner_text=True)


def test_a_job_of_another_machine_is_listed_and_followed(airflow: WithUsers, store: JobStore, page: Page) -> None:
    submit(store, "followed-there")
    page.goto(address(airflow))
    row = page.locator("tr[data-job=followed-there]")
    expect(row).to_contain_text("working")
    expect(row.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "1")
    expect(page.get_by_label("Manager", exact=True)).to_contain_text("Manager running")
    save_screenshot(page, "remote-list")
    row.get_by_role("link", name="followed-there").click()
    page.evaluate("window.notLoadedAgain = true")
    expect(page.get_by_role("button", name="count: running")).to_be_visible()  # in the graph
    log = page.get_by_label("What count has printed")
    is_at(log, "tick 1")
    is_at(log, "tick 4")
    save_screenshot(page, "remote-job")
    page.get_by_label("Search the log").fill("TICK 2")
    expect(page.locator(".log .hit")).to_have_count(1)
    advance(store, "followed-there")
    expect(log).to_contain_text(re.compile(r"over\s*$"))
    expect(page.locator("header.job")).to_contain_text("completed")
    page.get_by_role("button", name="load: completed").click()
    expect(page.get_by_label("Result of load")).to_contain_text('"rows": 3')
    assert page.evaluate("window.notLoadedAgain") is True


def test_a_job_of_another_machine_is_cancelled_retried_and_removed(
    airflow: WithUsers, store: JobStore, page: Page
) -> None:
    submit(store, "changed-there")
    page.goto(address(airflow, "/jobs/changed-there"))
    page.get_by_role("button", name="Cancel job").click()
    page.get_by_role("button", name="Cancel the job").click()
    expect(page.locator("header.job")).to_contain_text("cancelled")
    assert store.get_job("changed-there").state is JobState.FAILED
    advance(store, "changed-there")
    page.get_by_role("button", name="Retry failed tasks").click()
    expect(page.locator("header.job")).to_contain_text("completed")
    page.goto(address(airflow))
    page.get_by_label("Select changed-there").check()
    page.get_by_role("button", name="Remove 1").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove 1 job").click()
    expect(page.locator("tr[data-job=changed-there]")).to_have_count(0)
    assert "changed-there" not in store.job_names()
    log = airflow.api("/eventLogs?order_by=-event_log_id&limit=20")["event_logs"]
    asked = {entry["event"] for entry in log if "changed-there" in str(entry["extra"])}
    assert asked == {f"air_executor.{word}_job" for word in ("cancel", "retry", "remove")}


def test_what_the_token_may_not_do_is_not_offered(airflow: WithUsers, store: JobStore, page: Page) -> None:
    submit(store, "read-there")
    page.goto(address(airflow, "/jobs/read-there", READING))
    is_at(page.get_by_label("What count has printed"), "tick 1")
    expect(page.get_by_role("button", name="Cancel job")).to_have_count(0)
    page.goto(address(airflow, conn_id=READING))
    expect(page.locator("tr[data-job=read-there]")).to_contain_text("working")
    expect(page.locator("input[type=checkbox]")).to_have_count(0)
    advance(store, "read-there")


def test_who_sees_one_dag_sees_its_jobs_there(airflow: WithUsers, store: JobStore) -> None:
    submit(store, "of-hidden", dag_id="hidden")
    submit(store, "of-seen", dag_id="seen")
    path = f"/air-executor/api/jobs?conn_id={CONNECTION}"

    def names(user: str) -> set[str]:
        return {job["name"] for job in json.loads(airflow.get(path, user).text)["jobs"]}

    wait_until(lambda: {"of-seen", "of-hidden"} <= names("ada"), what="they are listed")
    assert names("bob") == {"of-seen"}
    assert airflow.get(f"/air-executor/api/jobs/of-hidden?conn_id={CONNECTION}", "bob").status == 403
    sent = {"Sec-Fetch-Site": "same-origin"}
    cancel = f"/air-executor/api/jobs/of-seen/cancel?conn_id={CONNECTION}"
    assert airflow.get(cancel, "bob", method="POST", headers=sent).status == 403
    assert CONNECTION in json.loads(airflow.get("/air-executor/api/connections", "bob").text)
    for name in ("of-hidden", "of-seen"):
        advance(store, name)


def test_a_manager_that_is_away_is_shown_as_that_and_comes_back(
    airflow: WithUsers, manager: RemoteManager, store: JobStore, page: Page
) -> None:
    submit(store, "away")
    others = page.context.new_page()
    page.goto(address(airflow, "/jobs/away"))
    log = page.get_by_label("What count has printed")
    is_at(log, "tick 2")
    others.goto(address(airflow))
    expect(others.locator("tr[data-job=away]")).to_be_visible()
    for each in (page, others):
        each.evaluate("window.notLoadedAgain = true")

    manager.stop()
    for each in (page, others):
        banner = each.get_by_role("alert", name="The manager is away")
        expect(banner).to_contain_text(BANNER)
        expect(banner).to_contain_text("It was reached last")
    expect(page.locator("header.job")).to_contain_text("working")  # as it was
    expect(others.locator("tr[data-job=away]")).to_be_visible()
    save_screenshot(page, "remote-job-away")
    save_screenshot(others, "remote-list-away")
    # Who comes now sees no empty list, and no job that is said to be missing.
    late = page.context.new_page()
    late.goto(address(airflow))
    expect(late.get_by_role("alert", name="The manager is away")).to_contain_text(BANNER)
    expect(late.get_by_text("There are no jobs")).to_have_count(0)
    expect(late.get_by_text("Loading")).to_have_count(0)
    late.set_viewport_size(NARROW)  # type: ignore[arg-type]
    save_screenshot(late, "remote-list-away-narrow")
    answer = late.goto(address(airflow, "/jobs/away"))
    assert answer is not None
    assert answer.status == 503
    expect(late.get_by_role("alert", name="The manager is away")).to_contain_text(BANNER)
    late.evaluate("window.notLoadedAgain = true")
    # A tab of a DAG run that has jobs elsewhere shows those, and that it does not know all.
    tab = page.context.new_page()
    tab.goto(f"{airflow.url}/air-executor/owned?dag_id=watched&run_id=manual__1")
    expect(tab.get_by_role("alert", name="The manager is away")).to_be_visible()
    expect(tab.get_by_text("No task of this run")).to_have_count(0)
    # Airflow itself answers as ever, and so do the pages of other connections.
    assert airflow.get("/air-executor/api/jobs", "ada").status == 200

    manager.start()
    for each in (page, others, late):
        expect(each.get_by_role("alert", name="The manager is away")).to_have_count(0)
        assert each.evaluate("window.notLoadedAgain") is True
    expect(others.locator("tr[data-job=away]")).to_contain_text("working")
    expect(late.locator("header.job")).to_contain_text("working")
    advance(store, "away")
    expect(page.locator("header.job")).to_contain_text("completed")
    expect(log).to_contain_text(re.compile(r"over\s*$"))
    text = log.inner_text()
    assert re.findall(r"tick (\d+)", text) == [str(number + 1) for number in range(text.count("tick"))]
    save_screenshot(page, "remote-job-back")
