"""The pages of jobs in a real API server, and what leads there: the link, the notifier and the lineage of a DAG run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPMessage
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest

from airflow_provider_air_executor.jobs.models import SubmittedBy
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.plugin.app import MAX_LOG_BYTES, app
from tests.acceptance.auth_manager import WITHOUT_LOGS
from tests.acceptance.installation import Installation
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(600)
DAG_FILE = Path(__file__).parent / "dags" / "plugin_dags.py"
ROOT = Path(__file__).resolve().parents[2]

USERS = {"ada": "ADMIN", "bob": "VIEWER", WITHOUT_LOGS: "VIEWER"}
BELOW = "/airflow"  # the path that Airflow is served at
HOSTILE = "<script>alert(1)</script>"


class Answer(NamedTuple):
    status: int
    text: str
    headers: HTTPMessage


class ApiServer(Installation):
    """An API server alone, below a path, with users that have a password."""

    def start(self) -> None:
        passwords = self.home / "passwords.json"
        passwords.write_text(json.dumps({name: name for name in USERS}))
        self.lineage = self.home / "lineage.jsonl"
        self.environment |= {
            "AIRFLOW__API__BASE_URL": f"{self.url}{BELOW}",
            "AIRFLOW__CORE__AUTH_MANAGER": "tests.acceptance.auth_manager.PerDagAuthManager",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{name}:{role}" for name, role in USERS.items()),
            "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(
                {"type": "file", "log_file_path": str(self.lineage), "append": True}
            ),
            "AIRFLOW__OPENLINEAGE__NAMESPACE": "tests",
            "PYTHONPATH": str(ROOT),
        }
        self.tokens: dict[str, str] = {}
        self.airflow("db", "migrate")
        self.start_component("api-server")
        self.airflow("connections", "add", "other", "--conn-type", "http", "--conn-extra", '{"base_path": "/tmp"}')
        wait_until(self._answers, timeout=180, what="the API server answers", interval=0.5)

    def _answers(self) -> bool:
        try:
            return self.get("/api/v2/version").status == 200
        except (urllib.error.URLError, ConnectionError):
            return False

    def airflow(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "airflow", *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def get(self, path: str, user: str = "") -> Answer:
        """Ask for a page; its path is below Airflow's, or one that was found in a page."""
        path = path.removeprefix(BELOW)
        headers = {"Cookie": f"_token={self.token(user)}"} if user else {}
        request = urllib.request.Request(f"{self.url}{BELOW}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return Answer(answer.status, answer.read().decode(errors="replace"), answer.headers)
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.read().decode(errors="replace"), error.headers)

    def token(self, user: str) -> str:
        if user not in self.tokens:
            body = json.dumps({"username": user, "password": user}).encode()
            request = urllib.request.Request(
                f"{self.url}{BELOW}/auth/token", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                self.tokens[user] = json.load(answer)["access_token"]
        return self.tokens[user]


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    dags = tmp_path_factory.mktemp("dags")
    (dags / DAG_FILE.name).symlink_to(DAG_FILE)
    with ApiServer(dags) as installation:
        installation.airflow("dags", "reserialize")
        yield installation


@pytest.fixture(scope="module")
def store(airflow: ApiServer) -> JobStore:
    """The embedded job filesystem, with jobs that no manager has looked at."""
    found = JobStore(airflow.base_path)
    tasks = [{"id": "talk", "command": HOSTILE, "args": ["a b"], "env": {"SECRET": "hunter2"}}]
    for name, dag_id in (("of-seen", "seen"), ("of-hidden", "hidden"), ("of-unknown", "unknown"), ("of-none", "")):
        owner = SubmittedBy(dag_id=dag_id, run_id="r/1", task_id="t", map_index=2) if dag_id else None
        found.submit(name, tasks, submitted_by=owner)
        found.log_path(name, "talk").write_bytes(b"0123456789\n\xff" + HOSTILE.encode() + b"\x1b[31m\n")
    return found


# -- who may see what --------------------------------------------------------------------------------------


def addresses(job_name: str) -> list[str]:
    """All routes there are, for a job."""
    return [f"/air-executor{route.path}".format(job_name=job_name, task_id="talk") for route in app.routes]  # type: ignore[attr-defined]


def test_all_routes_read_only() -> None:
    assert len(app.routes) == 2
    assert all(route.methods == {"GET"} for route in app.routes)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("user", "job_name", "status"),
    [
        ("", "of-seen", 401),
        ("", "of-none", 401),
        ("", "no-such-job", 401),
        ("bob", "of-seen", 200),
        ("bob", "of-hidden", 403),
        ("bob", "of-unknown", 403),
        ("bob", "of-none", 403),
        ("bob", "no-such-job", 403),  # or bob would learn which jobs there are
        ("ada", "of-seen", 200),
        ("ada", "of-hidden", 200),
        ("ada", "of-unknown", 403),  # fails closed
        ("ada", "of-none", 200),
        ("ada", "no-such-job", 404),
    ],
)
def test_who_may_see_a_job(airflow: ApiServer, store: JobStore, user: str, job_name: str, status: int) -> None:
    for path in addresses(job_name):
        assert airflow.get(path, user).status == status, path


def test_a_token_that_is_not_valid_is_no_login(airflow: ApiServer, store: JobStore) -> None:
    airflow.tokens["mallory"] = airflow.token("ada")[:-4] + "AAAA"
    for path in addresses("of-seen"):
        assert airflow.get(path, "mallory").status in (401, 403)


def test_who_may_not_see_the_dags_logs(airflow: ApiServer, store: JobStore) -> None:
    page, log = (airflow.get(path, WITHOUT_LOGS) for path in addresses("of-seen"))
    assert (page.status, log.status) == (200, 403)
    assert "0123456789" in airflow.get(addresses("of-seen")[0], "bob").text
    assert "0123456789" not in page.text
    assert "/logs/" not in page.text


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json"])
def test_nothing_is_public(airflow: ApiServer, path: str) -> None:
    assert airflow.get(f"/air-executor{path}").status == 404


@pytest.mark.parametrize("conn_id", ["other", "missing", "", "/tmp", "../air-executor"])
def test_only_our_connections_lead_to_a_job_filesystem(airflow: ApiServer, store: JobStore, conn_id: str) -> None:
    for path in addresses("of-seen"):
        assert airflow.get(f"{path}?conn_id={quote(conn_id, safe='')}", "ada").status == 404


def test_a_connection_of_our_own(airflow: ApiServer, store: JobStore, tmp_path: Path) -> None:
    extra = json.dumps({"base_path": str(tmp_path)})
    airflow.airflow("connections", "add", "elsewhere", "--conn-type", "air_executor", "--conn-extra", extra)
    other = JobStore(tmp_path)
    other.submit("there", [{"id": "talk", "command": "true"}])
    other.log_path("there", "talk").write_text("from elsewhere")
    page, log = (airflow.get(f"{path}?conn_id=elsewhere", "ada") for path in addresses("there"))
    assert log.text == "from elsewhere"
    (link,) = re.findall(r'<td><a href="([^"]+)">talk', page.text)
    assert airflow.get(link, "ada").text == "from elsewhere"
    assert airflow.get("/air-executor/jobs/there", "ada").status == 404


# -- what it looks like ------------------------------------------------------------------------------------


def test_what_a_job_says_is_text_and_no_markup(airflow: ApiServer, store: JobStore) -> None:
    page = airflow.get("/air-executor/jobs/of-seen", "ada")
    assert page.headers.get_content_type() == "text/html"
    assert "<script" not in page.text
    assert "hunter2" not in page.text
    assert page.text.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2  # the command, and what it printed
    assert "\x1b" not in page.text
    assert 'href="/airflow/dags/seen/runs/r%2F1/tasks/t/mapped/2"' in page.text
    assert "script-src" not in page.headers["Content-Security-Policy"]
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'unsafe-inline';")
    assert not re.findall(r"(?:src|href)=\"?(?:https?:)?//", page.text)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("", "0123456789\n\ufffd<script>alert(1)</script>\x1b[31m\n"),
        ("?offset=2&limit=3", "234"),
        ("?offset=-6&limit=9", "\x1b[31m\n"),
        ("?offset=999999", ""),
        ("?offset=1099511627776", ""),
        ("?limit=0", ""),
    ],
)
def test_a_log_is_text(airflow: ApiServer, store: JobStore, query: str, text: str) -> None:
    log = airflow.get(f"/air-executor/jobs/of-seen/logs/talk{query}", "bob")
    assert log.text == text
    assert log.headers.get_content_type() == "text/plain"
    assert log.headers["X-Content-Type-Options"] == "nosniff"
    assert log.headers["Content-Disposition"] == "inline"


def test_a_long_log_comes_in_pieces(airflow: ApiServer, store: JobStore) -> None:
    store.submit("long", [{"id": "talk", "command": "true"}])
    store.log_path("long", "talk").write_bytes(b"x" * (MAX_LOG_BYTES + 5))
    pieces = [airflow.get(f"/air-executor/jobs/long/logs/talk?limit=9999999&offset={n}", "ada") for n in (0, 2**20)]
    assert [len(piece.text) for piece in pieces] == [MAX_LOG_BYTES, 5]
    assert len(airflow.get("/air-executor/jobs/long", "ada").text) < 50_000


@pytest.mark.parametrize("query", ["offset=x", "limit=-1", f"offset={2**63}", "offset=1.5"])
def test_numbers_that_are_none(airflow: ApiServer, store: JobStore, query: str) -> None:
    assert airflow.get(f"/air-executor/jobs/of-seen/logs/talk?{query}", "ada").status == 422


@pytest.mark.parametrize(
    "path",
    [
        "/jobs/..",
        "/jobs/%2e%2e",
        "/jobs/%2e%2e%2f%2e%2e%2fetc",
        "/jobs/..%5c..",
        "/jobs/of-seen%00",
        "/jobs/.submit-1",
        "/jobs/of-seen%0a",
        "/jobs/of-seen/logs/..%2f..%2fstate",
        "/jobs/of-seen/logs/%2e%2e",
        "/jobs/of-seen/logs/talk.log",
        "/jobs/of-seen/logs/.airflow.offsets",
        "/jobs/of-seen/logs/talk%00",
        "/jobs/of-seen/logs/linked",
        "/jobs/linked-job",
        "/jobs/linked-job/logs/talk",
    ],
)
def test_names_that_lead_elsewhere(airflow: ApiServer, store: JobStore, path: str, tmp_path: Path) -> None:
    for link, target in (
        (store.log_path("of-seen", "linked"), Path("/etc/passwd")),
        (store.jobs_path / "linked-job", store.job_path("of-seen")),
    ):
        if not link.is_symlink():
            link.symlink_to(target)
    assert airflow.get(f"/air-executor{path}", "ada").status == 404


def test_a_log_that_is_a_link_is_not_followed(airflow: ApiServer, store: JobStore) -> None:
    store.submit("bad-log", [{"id": "talk", "command": "true"}])
    store.log_path("bad-log", "talk").symlink_to("/etc/passwd")
    page, log = (airflow.get(path, "ada") for path in addresses("bad-log"))
    assert (page.status, log.status) == (200, 404)
    assert "root:" not in page.text


def test_files_that_cannot_be_read(airflow: ApiServer, store: JobStore) -> None:
    store.submit("half", [{"id": "talk", "command": "true"}])
    store.tasks_path("half").write_text("[{")
    assert [airflow.get(path, "ada").status for path in addresses("half")] == [200, 404]
    store.state_path("half").write_text("{")
    assert [airflow.get(path, "ada").status for path in addresses("half")] == [404, 404]


# -- a DAG run ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_id(airflow: ApiServer) -> str:
    """A DAG run that has ended."""
    command = [sys.executable, "-m", "airflow", "dags", "test", "seen"]
    subprocess.run(command, env=airflow.environment, capture_output=True, check=False, timeout=300)
    (run,) = json.loads(airflow.get("/api/v2/dags/seen/dagRuns", "ada").text)["dag_runs"]
    found: str = run["dag_run_id"]
    return found


def test_every_task_has_its_link(airflow: ApiServer, run_id: str) -> None:
    """Complaint: links are missing when a task fails (#58227)."""
    tasks = f"/api/v2/dags/seen/dagRuns/{quote(run_id, safe='')}/taskInstances"
    states = {}
    for ti in json.loads(airflow.get(tasks, "ada").text)["task_instances"]:
        query = f"?map_index={ti['map_index']}" if ti["map_index"] >= 0 else ""
        links = json.loads(airflow.get(f"{tasks}/{ti['task_id']}/links{query}", "ada").text)["extra_links"]
        states[ti["task_id"], ti["map_index"]] = ti["state"]
        assert links["Job"].startswith(f"{BELOW}/air-executor/jobs/")
        page = airflow.get(links["Job"], "bob")
        assert page.status == 200
        task_id = "submit" if ti["task_id"] == "wait" else ti["task_id"]
        mapped = f"/mapped/{ti['map_index']}" if ti["map_index"] >= 0 else ""
        assert f'href="{BELOW}/dags/seen/runs/{quote(run_id, safe="")}/tasks/{task_id}{mapped}"' in page.text
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
    return store.read_log(name, "task-1").text.strip()


def test_callbacks_have_submitted_their_jobs(airflow: ApiServer, run_id: str) -> None:
    store = JobStore(airflow.base_path)
    found = {}
    for job in store.list_jobs():
        if job.submitted_by is not None and job.submitted_by.callback is not None:
            found[printed(store, job.name)] = job
    assert sorted(found) == ["another job", "fails has failed", "mapped 0", "mapped 1"]
    assert found["fails has failed"].name.startswith("failure__seen__fails__manual__")
    assert found["another job"].name.startswith("alert-manual__")
    assert found["another job"].labels == {"task": "fails"}
    page = airflow.get(f"/air-executor/jobs/{found['mapped 1'].name}", "bob")
    assert "task mapped[1]</a>" in page.text


def events(airflow: ApiServer, task_id: str) -> dict[str, Any]:
    """The last event of each kind that OpenLineage was told of a task."""
    lines = map(json.loads, airflow.lineage.read_text().splitlines())
    return {line["eventType"]: line for line in lines if line["job"]["name"] == f"seen.{task_id}"}


def test_what_openlineage_is_told(airflow: ApiServer, run_id: str) -> None:
    told = events(airflow, "submit")
    assert f"echo hello of {run_id}; env" in told["START"]["job"]["facets"]["sourceCode"]["sourceCode"]
    assert [(data["namespace"], data["name"]) for data in told["COMPLETE"]["inputs"]] == [("file://host", "/in.csv")]
    assert [(data["namespace"], data["name"]) for data in told["COMPLETE"]["outputs"]] == [("file://host", "/out.csv")]
    facet = told["COMPLETE"]["run"]["facets"]["airExecutor_job"]
    assert (facet["name"], facet["state"], facet["taskCounts"]) == ("seen", "completed", {"completed": 1})
    assert [(task["id"], task["status"], task["exitCode"]) for task in facet["tasks"]] == [("print", "completed", 0)]
    assert "hunter2" not in airflow.lineage.read_text()


def test_openlineage_is_told_how_a_deferred_task_failed(airflow: ApiServer, run_id: str) -> None:
    facet = events(airflow, "deferred")["FAIL"]["run"]["facets"]["airExecutor_job"]
    assert (facet["state"], facet["reason"], facet["taskCounts"]) == ("failed", "exit", {"failed": 1, "completed": 1})
    assert [task["status"] for task in facet["tasks"]] == ["failed", "completed"]


def test_the_tasks_of_a_job_know_their_openlineage_parent(airflow: ApiServer, run_id: str) -> None:
    log = JobStore(airflow.base_path).read_log("seen", "print").text
    told = events(airflow, "submit")["START"]["run"]
    root = told["facets"]["parent"]["run"]["runId"]
    assert f"OPENLINEAGE_PARENT_ID=tests/seen.submit/{told['runId']}\n" in log
    assert f"OPENLINEAGE_ROOT_PARENT_ID=tests/seen/{root}\n" in log
