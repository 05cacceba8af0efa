"""The pages of jobs in a real API server, and what leads there: the link, the notifier and the lineage of a DAG run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from airflow_provider_air_executor.api.routes.logs import MAX_LOG_BYTES
from airflow_provider_air_executor.jobs import inbox, masking
from airflow_provider_air_executor.jobs.models import Job, JobState, Reason, SubmittedBy, TaskStatus
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.plugin.app import app
from tests.acceptance.auth_manager import WITHOUT_LOGS
from tests.acceptance.with_users import BELOW, Answer, WithUsers
from tests.support.jobs import publish_job, publish_tasks, read_log
from tests.support.waiting import wait_until

pytestmark = pytest.mark.airflow

PLAIN = "plain"  # a connection to a job filesystem whose manager nobody starts
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def airflow(airflow_with_users: WithUsers) -> WithUsers:
    return airflow_with_users


@pytest.fixture(scope="module")
def store(airflow: WithUsers) -> JobStore:
    """A job filesystem without a manager, with jobs that have failed."""
    found = JobStore(airflow.home / "plain")
    found.create_directories()
    airflow.add_connection(PLAIN, "air_executor", base_path=str(found.base_path))
    airflow.add_connection("other", "http", base_path="/tmp")
    tasks = [{"id": "talk", "command": HOSTILE, "args": ["a b"], "env": {"SECRET": "hunter2"}}]
    for name, dag_id in (("of-seen", "seen"), ("of-hidden", "hidden"), ("of-unknown", "unknown"), ("of-none", "")):
        owner = SubmittedBy(dag_id=dag_id, run_id="r/1", task_id="t", map_index=2) if dag_id else None
        job = found.submit(name, tasks, submitted_by=owner, labels={"of": dag_id or "none"})
        found.paths(name).log("talk").write_bytes(b"0123456789\n\xff" + HOSTILE.encode() + b"\x1b[31m\n")
        publish_job(found, job.evolve(state=JobState.FAILED, error=HOSTILE))
    return found


def api(path: str, **query: Any) -> str:
    """A path of the JSON API."""
    return f"/air-executor/api{path}?{urlencode({'conn_id': PLAIN, **query}, doseq=True)}"


# -- who may see what --------------------------------------------------------------------------------------

# Routes that are about no job in particular; the tests below say what they show to whom.
OF_A_CONNECTION = {"/api/jobs", "/api/jobs/bulk", "/api/dags", "/api/manager"}
OF_NO_JOB = {"/jobs", "/owned", "/static/{path:path}", "/api/openapi.json", "/api/connections", *OF_A_CONNECTION}
EDITING = {"/api/jobs/{job_name}/cancel", "/api/jobs/{job_name}/retry"}
OF_LOGS = {
    "/api/jobs/{job_name}/tasks/{task_id}/log",
    "/api/jobs/{job_name}/tasks/{task_id}/log/times",
    "/api/jobs/{job_name}/tasks/{task_id}/log/search",
    "/api/jobs/{job_name}/tasks/{task_id}/events",
    "/api/jobs/{job_name}/results",
}


def routes() -> Iterator[tuple[str, str]]:
    """All routes there are, with their methods."""
    for route in app.routes:
        for method in route.methods:  # type: ignore[attr-defined]
            yield method, route.path  # type: ignore[attr-defined]


def ask(airflow: WithUsers, method: str, route: str, job_name: str, user: str, conn_id: str = PLAIN) -> Answer:
    path = route.replace("{path:path}", "app.js").format(job_name=job_name, task_id="talk")
    body = {"action": "cancel", "jobs": [job_name]} if route == "/api/jobs/bulk" else None
    return airflow.get(f"/air-executor{path}?conn_id={quote(conn_id, safe='')}", user, method=method, body=body)


def test_each_route_is_about_a_job_or_listed_here() -> None:
    found = set(routes())
    assert {route for _, route in found if "{job_name}" not in route} == OF_NO_JOB
    assert {route for method, route in found if method != "GET"} == EDITING | {"/api/jobs/bulk"}
    assert {method for method, _ in found} == {"GET", "POST"}
    of_logs = {route for _, route in found if "/log" in route or "{task_id}/" in route or "results" in route}
    assert of_logs == OF_LOGS


@pytest.mark.parametrize(("method", "route"), sorted(routes()))
def test_every_route_needs_a_login(airflow: WithUsers, store: JobStore, method: str, route: str) -> None:
    for job_name in ("of-seen", "of-none", "no-such-job"):
        assert ask(airflow, method, route, job_name, "").status == 401
    airflow.tokens["mallory"] = airflow.token("ada")[:-4] + "AAAA"
    assert ask(airflow, method, route, "of-seen", "mallory").status in (401, 403)


@pytest.mark.parametrize(
    ("user", "job_name", "may_see", "may_edit"),
    [
        ("bob", "of-seen", 200, 403),
        ("bob", "of-hidden", 403, 403),
        ("bob", "of-unknown", 403, 403),
        ("bob", "of-none", 403, 403),
        ("bob", "no-such-job", 403, 403),  # or bob would learn which jobs there are
        ("eve", "of-hidden", 200, 202),
        ("eve", "of-none", 200, 403),  # she may not edit the connection
        ("ada", "of-seen", 200, 202),
        ("ada", "of-hidden", 200, 202),
        ("ada", "of-unknown", 403, 403),  # fails closed
        ("ada", "of-none", 200, 202),
        ("ada", "no-such-job", 404, 404),
    ],
)
@pytest.mark.parametrize(("method", "route"), sorted(route for route in routes() if "{job_name}" in route[1]))
def test_who_may_see_and_edit_a_job(
    airflow: WithUsers, store: JobStore, method: str, route: str, user: str, job_name: str, may_see: int, may_edit: int
) -> None:
    expected = may_edit if route in EDITING else may_see
    assert ask(airflow, method, route, job_name, user).status == expected


@pytest.mark.parametrize(("method", "route"), sorted(route for route in routes() if "{job_name}" in route[1]))
def test_who_may_not_see_the_dags_logs(airflow: WithUsers, store: JobStore, method: str, route: str) -> None:
    answer = ask(airflow, method, route, "of-seen", WITHOUT_LOGS)
    assert answer.status == (403 if route in OF_LOGS | EDITING else 200)
    assert "0123456789" not in answer.text


def test_the_page_gets_the_rights_of_the_user(airflow: WithUsers, store: JobStore) -> None:
    def told(user: str) -> tuple[bool, bool]:
        job = json.loads(airflow.get(api("/jobs/of-seen"), user).text)
        return job["may_edit"], job["may_read_logs"]

    assert (told("ada"), told("bob"), told(WITHOUT_LOGS)) == ((True, True), (False, True), (False, False))


def listed(airflow: WithUsers, user: str, **query: Any) -> list[str]:
    found = json.loads(airflow.get(api("/jobs", **query), user).text)
    assert sum(found["state_counts"].values()) >= found["total"] >= len(found["jobs"])
    return sorted(job["name"] for job in found["jobs"] if job["name"].startswith("of-"))


def test_the_list_has_what_the_user_may_see(airflow: WithUsers, store: JobStore) -> None:
    wait_until(lambda: len(listed(airflow, "ada")) == 3, what="the index has seen the jobs")
    assert listed(airflow, "ada") == ["of-hidden", "of-none", "of-seen"]
    assert listed(airflow, "bob") == ["of-seen"]
    assert json.loads(airflow.get(api("/jobs"), "bob").text)["total"] == 1
    assert airflow.get(api("/jobs", dag_id="hidden"), "bob").status == 403
    assert airflow.get(api("/jobs", dag_id="unknown"), "ada").status == 403


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({"name": "SEEN"}, ["of-seen"]),
        ({"state": "failed"}, ["of-hidden", "of-none", "of-seen"]),
        ({"state": ["waiting", "failed"], "name": "of-s"}, ["of-seen"]),
        ({"state": "completed"}, []),
        ({"label": "of"}, ["of-hidden", "of-none", "of-seen"]),
        ({"label": "of=none"}, ["of-none"]),
        ({"label": ["of", "of=seen"]}, ["of-seen"]),
        ({"label": "of=seen=x"}, []),
        ({"dag_id": "seen"}, ["of-seen"]),
        ({"dag_id": "seen", "run_id": "r/1", "task_id": "t", "map_index": 2}, ["of-seen"]),
        ({"dag_id": "seen", "run_id": "r/1", "task_id": "t", "map_index": -1}, []),
        ({"dag_id": "seen", "run_id": "r/2"}, []),
        ({"name": "of-", "limit": 2}, ["of-hidden", "of-none"]),  # the newest first
        ({"name": "of-", "limit": 2, "offset": 2}, ["of-seen"]),
        ({"limit": 0}, []),
    ],
)
def test_filters_and_pages(airflow: WithUsers, store: JobStore, query: dict[str, Any], names: list[str]) -> None:
    assert listed(airflow, "ada", **query) == names


@pytest.mark.parametrize("query", ["state=odd", "limit=-1", "limit=501", "offset=-1", "map_index=x"])
def test_filters_that_are_none(airflow: WithUsers, store: JobStore, query: str) -> None:
    assert airflow.get(f"/air-executor/api/jobs?{query}", "ada").status == 422


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json"])
def test_nothing_is_public(airflow: WithUsers, path: str) -> None:
    assert airflow.get(f"/air-executor{path}").status == 404


@pytest.mark.parametrize("conn_id", ["other", "missing", "", "/tmp", "../air-executor"])
def test_only_our_connections_lead_to_a_job_filesystem(airflow: WithUsers, store: JobStore, conn_id: str) -> None:
    for method, route in routes():
        if route not in OF_NO_JOB - OF_A_CONNECTION:
            assert ask(airflow, method, route, "of-seen", "ada", conn_id).status == 404, route


def test_the_connections_where_a_user_sees_a_job(airflow: WithUsers, store: JobStore, tmp_path: Path) -> None:
    JobStore(tmp_path).submit("j", ["true"], submitted_by=SubmittedBy(dag_id="hidden", run_id="r", task_id="t"))
    airflow.add_connection("secret-place", "air_executor", base_path=str(tmp_path))
    bobs, adas = (json.loads(airflow.get("/air-executor/api/connections", user).text) for user in ("bob", "ada"))
    assert (bobs, adas) == (["air_executor_default", PLAIN], ["air_executor_default", PLAIN, "secret-place"])


def test_a_job_filesystem_that_cannot_be_written_to(airflow: WithUsers, store: JobStore, tmp_path: Path) -> None:
    other = JobStore(tmp_path / "base")
    job = other.submit("j", ["true"])
    publish_job(other, job.evolve(state=JobState.FAILED))
    airflow.add_connection("read-only", "air_executor", base_path=str(other.base_path))
    other.inbox_path.rmdir()
    other.inbox_path.symlink_to("/proc")
    for action in ("retry", "cancel"):
        publish_job(other, job.evolve(state=JobState.FAILED if action == "retry" else JobState.WORKING))
        answer = airflow.get(f"/air-executor/api/jobs/j/{action}?conn_id=read-only", "ada", method="POST")
        assert (answer.status, "cannot be asked" in answer.text) == (503, True)


@pytest.mark.parametrize(
    ("user", "codes"),
    [
        ("bob", [403, 403, 403, 403, 403]),
        ("eve", [202, 202, 403, 403, 403]),
        ("ada", [202, 202, 403, 202, 404]),
        (WITHOUT_LOGS, [403, 403, 403, 403, 403]),
    ],
)
def test_of_which_of_several_jobs_a_user_may_ask_something(
    airflow: WithUsers, store: JobStore, user: str, codes: list[int]
) -> None:
    jobs = ["of-seen", "of-hidden", "of-unknown", "of-none", "no-such-job"]
    for action in ("retry", "cancel"):
        body = {"action": action, "jobs": jobs}
        answer = airflow.get(api("/jobs/bulk"), user, method="POST", body=body)
        assert answer.status == 202
        found = json.loads(answer.text)
        assert [(one["job"], one["status"]) for one in found] == list(zip(jobs, codes, strict=True))
        # They have failed: there is nothing to be cancelled.
        assert [one["requested"] for one in found] == [action == "retry" and code == 202 for code in codes]


def test_what_a_user_sees_of_the_manager(airflow: WithUsers, store: JobStore) -> None:
    told = {user: airflow.get(api("/manager"), user) for user in ("ada", "eve", "bob")}
    assert {user: answer.status for user, answer in told.items()} == dict.fromkeys(told, 200)
    commands = {user: json.loads(answer.text)["command"] for user, answer in told.items()}
    assert commands == {"ada": f"air-executor manager --base-path {store.base_path}", "eve": None, "bob": None}
    unseen = JobStore(airflow.home / "unseen")
    unseen.submit("j", ["true"], submitted_by=SubmittedBy(dag_id="hidden", run_id="r", task_id="t"))
    airflow.add_connection("unseen", "air_executor", base_path=str(unseen.base_path))
    codes = {user: airflow.get("/air-executor/api/manager?conn_id=unseen", user).status for user in ("eve", "bob")}
    airflow.get("/api/v2/connections/unseen", "ada", method="DELETE")
    assert codes == {"eve": 200, "bob": 403}


def test_the_dags_of_the_jobs_that_a_user_sees(airflow: WithUsers, store: JobStore) -> None:
    wait_until(lambda: len(listed(airflow, "ada")) == 3, what="the index has seen the jobs")
    found = {user: json.loads(airflow.get(api("/dags"), user).text) for user in ("ada", "bob")}
    assert found == {"ada": ["hidden", "seen"], "bob": ["seen"]}


# -- who may change what -----------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["cancel", "retry"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 202),  # no browser
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://whatever.example"}, 202),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://localhost:1"}, 403),
    ],
)
def test_another_site_cannot_act_for_a_user(
    airflow: WithUsers, store: JobStore, action: str, headers: dict[str, str], status: int
) -> None:
    path = f"/air-executor/api/jobs/of-seen/{action}?conn_id={PLAIN}"
    assert airflow.get(path, "ada", method="POST", headers=headers).status == status
    assert airflow.get(path, "ada", method="GET").status == 405
    assert airflow.get(path, "ada", method="POST", headers={"Origin": airflow.origin}).status == 202


def test_a_manager_that_a_click_starts_has_none_of_the_secrets_of_the_api_server(airflow: WithUsers) -> None:
    """The connection to the database above all, which Airflow keeps from tasks."""
    embedded = JobStore(airflow.base_path)
    airflow.air_executor("stop", check=False)  # the one that other tests have started, if it runs
    job = embedded.submit("of-ours", [{"id": "shows", "command": "env"}])
    (shows,) = embedded.get_tasks("of-ours")
    publish_tasks(embedded, "of-ours", [shows.evolve(status=TaskStatus.FAILED, reason=Reason.LOST, attempt=1)])
    publish_job(embedded, job.evolve(state=JobState.FAILED))
    assert airflow.get("/air-executor/api/jobs/of-ours/retry", "ada", method="POST").status == 202
    has_completed = lambda: embedded.get_job("of-ours").state == "completed"  # noqa: E731
    wait_until(has_completed, what="the job has run again")
    lines = read_log(embedded, "of-ours", "shows").text.splitlines()
    assert "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=sqlite://" in lines
    assert not any(airflow.environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] in line for line in lines)
    assert f"AIRFLOW_HOME={airflow.home}" in lines


def test_what_is_asked_reaches_the_manager_and_the_audit_log(airflow: WithUsers, store: JobStore) -> None:
    store.submit("of-eve", ["true"], submitted_by=SubmittedBy(dag_id="hidden", run_id="r", task_id="t"))
    before = set(inbox.requests(store))
    assert airflow.get(api("/jobs/of-eve/retry"), "eve", method="POST").status == 409
    answer = airflow.get(api("/jobs/of-eve/cancel"), "eve", method="POST")
    assert (answer.status, json.loads(answer.text)) == (202, {"requested": True})
    (asked,) = (inbox.load_request(path) for path in set(inbox.requests(store)) - before)
    assert (asked.request, asked.job) == ("cancel", "of-eve")
    logged = json.loads(airflow.get("/api/v2/eventLogs?event=air_executor.cancel_job&dag_id=hidden", "ada").text)
    (entry,) = logged["event_logs"]
    assert (entry["owner"], entry["task_id"], json.loads(entry["extra"])["job"]) == ("eve", "t", "of-eve")


# -- what is shown -----------------------------------------------------------------------------------------


def test_a_page_has_no_data_but_the_name(airflow: WithUsers, store: JobStore) -> None:
    page = ask(airflow, "GET", "/jobs/{job_name}", "of-seen", "ada")
    assert page.headers.get_content_type() == "text/html"
    assert 'data-page="job" data-root="/airflow" data-job="of-seen"' in page.text
    assert "alert" not in page.text
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(loaded) == 4
    for path in loaded:
        assert path.startswith(f"{BELOW}/air-executor/static/")
        file = airflow.get(path, "bob")
        assert (file.status, file.headers["X-Content-Type-Options"]) == (200, "nosniff")


def test_errors_are_pages_for_people(airflow: WithUsers, store: JobStore) -> None:
    people = {"Accept": "text/html,*/*"}
    login = airflow.get("/air-executor/jobs/of-seen?conn_id=plain", headers=people)
    assert login.status == 401
    assert f'href="{BELOW}/auth/login?next=%2Fairflow%2Fair-executor%2Fjobs%2Fof-seen%3Fconn_id%3Dplain"' in login.text
    assert "<p>Forbidden</p>" in airflow.get("/air-executor/jobs/of-hidden", "bob", headers=people).text
    missing = airflow.get("/air-executor/jobs/a%3Cb%3E?conn_id=plain", "ada", headers=people)
    assert missing.status == 404
    assert "There is no job <strong>a&lt;b&gt;</strong>" in missing.text
    assert f'<a href="{BELOW}/air-executor/jobs?conn_id=plain">All jobs</a>' in missing.text


@pytest.mark.parametrize(
    "path", ["app.js%2f..%2fapp.js", "../app.py", "%2e%2e/app.py", "vendor", "vendor/preact.LICENSE", "", "/etc/passwd"]
)
def test_only_the_pages_files_are_served(airflow: WithUsers, path: str) -> None:
    assert airflow.get(f"/air-executor/static/{path}", "ada").status == 404


def test_what_a_job_says_is_data(airflow: WithUsers, store: JobStore) -> None:
    job, tasks = (airflow.get(api(f"/jobs/of-seen{rest}"), "bob") for rest in ("", "/tasks"))
    for answer in (job, tasks):
        assert answer.headers.get_content_type() == "application/json"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "hunter2" not in answer.text
    details = json.loads(job.text)
    assert details["error"] == HOSTILE
    assert details["owner"]["task_url"] == "/airflow/dags/seen/runs/r%2F1/tasks/t/mapped/2"
    ((task,), total, busy) = json.loads(tasks.text).values()
    assert (total, busy, task["id"], task["environment"]) == (1, [], "talk", ["SECRET"])
    assert task["command"] == f"'{HOSTILE}' 'a b'"


def test_tasks_come_in_pages(airflow: WithUsers, store: JobStore) -> None:
    store.submit("many", [{"id": f"t{number}", "command": "true"} for number in range(2_500)])

    def found(**query: Any) -> tuple[list[str], int]:
        answer = json.loads(airflow.get(api("/jobs/many/tasks", **query), "ada").text)
        return [task["id"] for task in answer["tasks"]], answer["total"]

    assert found() == ([f"t{number}" for number in range(500)], 2_500)
    assert found(offset=2_498) == (["t2498", "t2499"], 2_500)
    assert found(text="T2499") == (["t2499"], 1)
    assert found(task_id=["t7", "t2400", "missing"]) == (["t7", "t2400"], 2)
    assert found(status="failed") == ([], 0)
    assert found(near="t1500", limit=5) == (["t1500"], 1)
    assert found(near="missing") == ([], 0)
    assert airflow.get(api("/jobs/many/tasks", limit=2_001), "ada").status == 422


def test_events(airflow: WithUsers, store: JobStore) -> None:
    answer = airflow.get(api("/jobs/of-seen/tasks/talk/events", offset=4), "bob")
    assert answer.headers.get_content_type() == "text/event-stream"
    assert re.findall("event: (.*)", answer.text) == ["changed", "log", "end"]
    assert '"text": "456789\\n\\ufffd<script>' in answer.text
    again = airflow.get(api("/jobs/of-seen/tasks/talk/events", offset=4), "bob", headers={"Last-Event-ID": "9"})
    assert '"text": "9\\n' in again.text
    assert re.findall("event: (.*)", airflow.get(api("/jobs/of-seen/events"), "bob").text) == ["changed", "end"]


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ({}, "0123456789\n\ufffd<script>alert(1)</script>\x1b[31m\n"),
        ({"offset": 2, "limit": 3}, "234"),
        ({"offset": -6, "limit": 9}, "\x1b[31m\n"),
        ({"offset": 999999}, ""),
        ({"offset": 1099511627776}, ""),
        ({"limit": 0}, ""),
    ],
)
def test_a_log_is_text(airflow: WithUsers, store: JobStore, query: dict[str, int], text: str) -> None:
    log = airflow.get(api("/jobs/of-seen/tasks/talk/log", **query), "bob")
    assert log.text == text
    assert log.headers.get_content_type() == "text/plain"
    assert log.headers["X-Content-Type-Options"] == "nosniff"
    assert log.headers["Content-Disposition"] == "inline"
    assert ("X-Next-Offset" in log.headers) is ("limit" in query)


def test_a_long_log_comes_in_pieces(airflow: WithUsers, store: JobStore) -> None:
    store.submit("long", [{"id": "talk", "command": "true"}])
    store.paths("long").log("talk").write_bytes(b"x" * (MAX_LOG_BYTES + 5))
    pieces = [airflow.get(api("/jobs/long/tasks/talk/log", limit=9_999_999, offset=n), "ada") for n in (0, 2**20)]
    assert [len(piece.text) for piece in pieces] == [MAX_LOG_BYTES, 5]
    assert [piece.headers["X-Next-Offset"] for piece in pieces] == [str(2**20), str(2**20 + 5)]
    assert len(airflow.get(api("/jobs/long/tasks/talk/log"), "ada").text) == MAX_LOG_BYTES + 5
    assert len(airflow.get(api("/jobs/long/tasks/talk/log", offset=-(2**20)), "ada").text) == 2**20


@pytest.mark.parametrize("query", [{"offset": "x"}, {"limit": -1}, {"offset": 2**63}, {"offset": 1.5}])
def test_numbers_that_are_none(airflow: WithUsers, store: JobStore, query: dict[str, Any]) -> None:
    assert airflow.get(api("/jobs/of-seen/tasks/talk/log", **query), "ada").status == 422


@pytest.mark.parametrize(
    "path",
    [
        "/..",
        "/%2e%2e",
        "/%2e%2e%2f%2e%2e%2fetc",
        "/..%5c..",
        "/of-seen%00",
        "/.submit-1",
        "/of-seen%0a",
        "/of-seen/tasks/..%2f..%2fstate/log",
        "/of-seen/tasks/%2e%2e/log",
        "/of-seen/tasks/talk.log/log",
        "/of-seen/tasks/.airflow.offsets/log",
        "/of-seen/tasks/talk%00/log",
        "/of-seen/tasks/talk%00/events",
        "/of-seen/tasks/linked/log",
        "/linked-job",
        "/linked-job/tasks",
        "/linked-job/tasks/talk/log",
    ],
)
def test_names_that_lead_elsewhere(airflow: WithUsers, store: JobStore, path: str, tmp_path: Path) -> None:
    for link, target in (
        (store.paths("of-seen").log("linked"), Path("/etc/passwd")),
        (store.jobs_path / "linked-job", store.paths("of-seen").directory),
    ):
        if not link.is_symlink():
            link.symlink_to(target)
    assert airflow.get(api(f"/jobs{path}"), "ada").status == 404


def test_a_log_that_is_a_link_is_not_followed(airflow: WithUsers, store: JobStore) -> None:
    job = store.submit("bad-log", [{"id": "talk", "command": "true"}])
    publish_job(store, job.evolve(state=JobState.FAILED))
    store.paths("bad-log").log("talk").symlink_to("/etc/passwd")
    assert airflow.get(api("/jobs/bad-log/tasks/talk/log"), "ada").status == 404
    assert "root:" not in airflow.get(api("/jobs/bad-log/tasks/talk/events"), "ada").text


def test_files_that_cannot_be_read(airflow: WithUsers, store: JobStore) -> None:
    store.submit("half", [{"id": "talk", "command": "true"}])
    paths = [api(f"/jobs/half{rest}") for rest in ("", "/tasks", "/tasks/talk/log")]
    store.paths("half").tasks.write_text("[{")
    assert [airflow.get(path, "ada").status for path in paths] == [200, 404, 404]
    store.paths("half").attached(masking.FILE).write_text("[")  # nobody knows what must not be shown
    assert airflow.get(paths[0], "ada").status == 404
    store.paths("half").state.write_text("{")
    assert [airflow.get(path, "ada").status for path in paths] == [404, 404, 404]


def test_the_api_describes_itself(airflow: WithUsers) -> None:
    described = json.loads(airflow.get("/air-executor/api/openapi.json", "bob").text)
    assert set(described["paths"]) == {re.sub(":path}", "}", route) for _, route in routes()}


# -- a DAG run ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_id(airflow: WithUsers) -> str:
    """A DAG run that has ended."""
    found = airflow.trigger("seen")
    airflow.follow("seen", found)
    return found


def test_every_task_has_its_link(airflow: WithUsers, run_id: str) -> None:
    """Complaint: links are missing when a task fails (#58227)."""
    tasks = f"/api/v2/dags/seen/dagRuns/{quote(run_id, safe='')}/taskInstances"
    states = {}
    for ti in json.loads(airflow.get(tasks, "ada").text)["task_instances"]:
        query = f"?map_index={ti['map_index']}" if ti["map_index"] >= 0 else ""
        links = json.loads(airflow.get(f"{tasks}/{ti['task_id']}/links{query}", "ada").text)["extra_links"]
        states[ti["task_id"], ti["map_index"]] = ti["state"]
        assert links["Job"].startswith(f"{BELOW}/air-executor/jobs/")
        assert airflow.get(links["Job"], "bob").status == 200
        job = json.loads(airflow.get(links["Job"].replace("/jobs/", "/api/jobs/"), "bob").text)
        task_id = "submit" if ti["task_id"] == "wait" else ti["task_id"]
        mapped = f"/mapped/{ti['map_index']}" if ti["map_index"] >= 0 else ""
        assert job["owner"]["task_url"] == f"{BELOW}/dags/seen/runs/{quote(run_id, safe='')}/tasks/{task_id}{mapped}"
        assert airflow.get(links["Job"]).status == 401
    assert states == {
        ("submit", -1): "success",
        ("wait", -1): "success",
        ("deferred", -1): "failed",
        ("mapped", 0): "success",
        ("mapped", 1): "success",
        ("fails", -1): "failed",
    }


def printed(store: JobStore, name: str) -> str:
    wait_until(lambda: store.get_job(name).state == "completed", what=f"job {name} has completed")
    return read_log(store, name, "task-1").text.strip()


def test_callbacks_have_submitted_their_jobs(airflow: WithUsers, run_id: str) -> None:
    store = JobStore(airflow.base_path)

    def of_callbacks() -> list[Job]:
        return [
            job for job in store.list_jobs() if job.submitted_by is not None and job.submitted_by.callback is not None
        ]

    wait_until(lambda: len(of_callbacks()) >= 4, what="the callbacks have run, which they do after the tasks")
    found = {printed(store, job.name): job for job in of_callbacks()}
    assert sorted(found) == ["another job", "fails has failed", "mapped 0", "mapped 1"]
    assert found["fails has failed"].name.startswith("failure__seen__fails__manual__")
    assert found["another job"].name.startswith("alert-manual__")
    assert found["another job"].labels == {"task": "fails"}
    job = json.loads(airflow.get(f"/air-executor/api/jobs/{found['mapped 1'].name}", "bob").text)
    assert (job["owner"]["task_id"], job["owner"]["map_index"]) == ("mapped", 1)


def told_of(airflow: WithUsers, task_id: str, kind: str) -> dict[str, Any]:
    """The last event of a kind that OpenLineage got of a task; that of its end comes after that."""

    def last() -> dict[str, Any] | None:
        lines = airflow.lineage.read_text().split("\n")[:-1] if airflow.lineage.exists() else []
        events = [event for event in map(json.loads, lines) if event["job"]["name"] == f"seen.{task_id}"]
        return next((event for event in reversed(events) if event["eventType"] == kind), None)

    return wait_until(last, what=f"OpenLineage has the {kind} of {task_id}")


def test_the_events_of_openlineage(airflow: WithUsers, run_id: str) -> None:
    start, complete = (told_of(airflow, "submit", kind) for kind in ("START", "COMPLETE"))
    assert f"echo hello of {run_id}; env" in start["job"]["facets"]["sourceCode"]["sourceCode"]
    assert [(data["namespace"], data["name"]) for data in complete["inputs"]] == [("file://host", "/in.csv")]
    assert [(data["namespace"], data["name"]) for data in complete["outputs"]] == [("file://host", "/out.csv")]
    facet = complete["run"]["facets"]["airExecutor_job"]
    assert (facet["name"], facet["state"], facet["taskCounts"]) == ("seen", "completed", {"completed": 1})
    assert [(task["id"], task["status"], task["exitCode"]) for task in facet["tasks"]] == [("print", "completed", 0)]
    assert "hunter2" not in airflow.lineage.read_text()


def test_openlineage_gets_the_failure_of_a_deferred_task(airflow: WithUsers, run_id: str) -> None:
    facet = told_of(airflow, "deferred", "FAIL")["run"]["facets"]["airExecutor_job"]
    assert (facet["state"], facet["reason"], facet["taskCounts"]) == ("failed", "exit", {"failed": 1, "completed": 1})
    assert [task["status"] for task in facet["tasks"]] == ["failed", "completed"]


def test_the_tasks_of_a_job_know_their_openlineage_parent(airflow: WithUsers, run_id: str) -> None:
    log = read_log(JobStore(airflow.base_path), "seen", "print").text
    told = told_of(airflow, "submit", "START")["run"]
    root = told["facets"]["parent"]["run"]["runId"]
    assert f"OPENLINEAGE_PARENT_ID=tests/seen.submit/{told['runId']}\n" in log
    assert f"OPENLINEAGE_ROOT_PARENT_ID=tests/seen/{root}\n" in log
