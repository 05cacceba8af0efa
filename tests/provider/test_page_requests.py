"""What users ask of jobs and see of their manager, results and logs, by the routes of the pages; without a server."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta
from typing import Any

import pytest
from airflow.models.log import Log

from airflow_provider_air_executor.exceptions import NotRemovedError
from airflow_provider_air_executor.jobs import history, inbox, manager_info, manager_status, masking
from airflow_provider_air_executor.jobs.manager_info import ManagerInfo, OldestWaiting, Slots
from airflow_provider_air_executor.jobs.models import JobState, Reason, SubmittedBy, TaskStatus, utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.plugin import audit
from tests.provider.page_client import ALL, Client
from tests.support.jobs import publish_job, publish_tasks


def owner(dag_id: str) -> SubmittedBy:
    return SubmittedBy(dag_id=dag_id, run_id="r", task_id="t")


@pytest.fixture
def some(base: JobStore) -> JobStore:
    """Jobs of two DAGs and of none, waiting or ended."""
    for dag_id in ("seen", "hidden", ""):
        for state in (JobState.WAITING, JobState.FAILED, JobState.COMPLETED):
            name = f"{dag_id or 'none'}-{state.value}"
            job = base.submit(name, ["true"], submitted_by=owner(dag_id) if dag_id else None)
            publish_job(base, job.evolve(state=state))
    return base


def asked(store: JobStore) -> list[tuple[str, str]]:
    """What is asked of the manager."""
    found = map(inbox.load_request, inbox.requests(store))
    return [(request.request.value, request.job) for request in found]


# -- one job -----------------------------------------------------------------------------------------------


@pytest.fixture
def half(base: JobStore) -> JobStore:
    """A job whose second task has failed, and so its third one, and a job that has completed."""
    ids = {"a": (), "b": ("a",), "c": ("b",)}
    tasks = [{"id": task_id, "command": "true", "dependencies": before} for task_id, before in ids.items()]
    for name, ends in (("half", "completed exit dependency"), ("whole", "completed completed completed")):
        job = base.submit(name, tasks, submitted_by=owner("seen"))
        stand = [
            task.evolve(status=TaskStatus.COMPLETED)
            if end == "completed"
            else task.evolve(status=TaskStatus.FAILED, reason=Reason(end))
            for task, end in zip(base.get_tasks(name), ends.split(), strict=True)
        ]
        publish_tasks(base, name, stand)
        publish_job(base, job.evolve(state=JobState.FAILED if name == "half" else JobState.COMPLETED))
    return base


@pytest.mark.parametrize(
    ("name", "query", "code", "task_ids", "is_whole"),
    [
        ("half", {}, 202, (), False),
        ("half", {"all": 1}, 202, (), True),
        ("half", {"task": "b"}, 202, ("b",), False),
        ("half", {"task": ["a", "b"]}, 202, ("a", "b"), False),
        ("half", {"task": "c"}, 409, None, False),  # it cannot run before b
        ("half", {"task": "x"}, 404, None, False),
        ("half", {"task": "b", "all": "true"}, 422, None, False),
        ("whole", {}, 409, None, False),
        ("whole", {"all": True}, 202, (), True),
        ("whole", {"task": "a"}, 202, ("a",), False),
    ],
)
def test_what_of_a_job_runs_again(
    half: JobStore,
    client: Client,
    audited: list[Log],
    name: str,
    query: dict[str, Any],
    code: int,
    task_ids: tuple[str, ...] | None,
    is_whole: bool,
) -> None:
    assert client().post(f"/api/jobs/{name}/retry", params=query).status_code == code
    found = [inbox.load_request(path) for path in inbox.requests(half)]
    assert [(request.task_ids, request.all) for request in found] == (
        [] if task_ids is None else [(task_ids, is_whole)]
    )
    if task_ids is not None:
        (entry,) = audited
        told = json.loads(entry.extra or "")
        assert (tuple(told.get("tasks", ())), told.get("all", False)) == (task_ids, is_whole)


@pytest.mark.parametrize(
    ("query", "code", "requested", "task_ids"),
    [
        ({}, 202, True, ()),
        ({"task": "b"}, 202, True, ("b",)),
        ({"task": ["b", "c"]}, 202, True, ("b", "c")),
        ({"task": "a"}, 202, False, None),  # it has ended
        ({"task": "x"}, 404, None, None),
    ],
)
def test_what_of_a_job_is_cancelled(
    half: JobStore,
    client: Client,
    audited: list[Log],
    query: dict[str, Any],
    code: int,
    requested: bool | None,
    task_ids: tuple[str, ...] | None,
) -> None:
    publish_job(half, half.get_job("half").evolve(state=JobState.WORKING))
    a, b, c = half.get_tasks("half")
    running = b.evolve(status=TaskStatus.RUNNING, reason=None)
    publish_tasks(half, "half", [a, running, c.evolve(status=TaskStatus.PENDING, reason=None)])
    answer = client().post("/api/jobs/half/cancel", params=query)
    assert (answer.status_code, answer.json().get("requested")) == (code, requested)
    found = [inbox.load_request(path).task_ids for path in inbox.requests(half)]
    assert found == ([] if task_ids is None else [task_ids])
    assert len(audited) == (code == 202)


@pytest.mark.parametrize("action", ["cancel", "retry"])
def test_who_may_not_edit_a_job_asks_nothing_of_its_tasks(
    half: JobStore, client: Client, audited: list[Log], action: str
) -> None:
    api = client(ALL, (), is_admin=False)
    for query in ({}, {"task": "b"}, {"task": "x"}, {"all": 1}):
        assert api.post(f"/api/jobs/half/{action}", params=query).status_code == 403
    assert (inbox.requests(half), audited) == ([], [])


# -- several jobs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "answers"),
    [
        (
            "cancel",
            {
                "seen-waiting": (True, 202),
                "seen-failed": (False, 202),
                "seen-completed": (False, 202),
                "hidden-waiting": (False, 403),
                "none-waiting": (False, 403),
                "missing": (False, 403),
            },
        ),
        (
            "retry",
            {
                "seen-waiting": (False, 409),
                "seen-failed": (True, 202),
                "seen-completed": (False, 409),
                "hidden-failed": (False, 403),
                "none-failed": (False, 403),
                "../seen-failed": (False, 403),
            },
        ),
        (
            "remove",
            {
                "seen-waiting": (False, 409),
                "seen-failed": (True, 202),
                "seen-completed": (True, 202),
                "hidden-failed": (False, 403),
                "none-failed": (False, 403),
                "missing": (False, 403),
            },
        ),
    ],
)
def test_each_of_several_jobs_has_an_answer(
    some: JobStore, client: Client, audited: list[Log], action: str, answers: dict[str, tuple[bool, int]]
) -> None:
    api = client(ALL, ("seen",), is_admin=False)
    answer = api.post("/api/jobs/bulk", json={"action": action, "jobs": [*answers, *answers]})
    assert answer.status_code == 202
    assert {one["job"]: (one["requested"], one["status"]) for one in answer.json()} == answers
    assert all(bool(one["detail"]) is not one["requested"] for one in answer.json())
    done = [name for name, (requested, _) in answers.items() if requested]
    assert asked(some) == ([] if action == "remove" else [(action, name) for name in done])
    assert [(entry.event, json.loads(entry.extra or "")["job"]) for entry in audited] == [
        (f"air_executor.{action}_job", name) for name in done
    ]


def test_jobs_that_have_ended_are_removed(some: JobStore, client: Client, audited: list[Log]) -> None:
    """Nothing is asked of a manager, and none is started."""
    kept = {job.name for job in some.list_jobs()} - {"seen-failed", "none-completed"}
    body = {"action": "remove", "jobs": ["seen-failed", "none-completed", "hidden-waiting"]}
    answers = client().post("/api/jobs/bulk", json=body).json()
    assert [(one["requested"], one["status"]) for one in answers] == [(True, 202), (True, 202), (False, 409)]
    assert "is waiting; only a job that has ended" in answers[2]["detail"]
    assert {job.name for job in some.list_jobs()} == kept
    assert {past.name for past in history.read(some)} == {"seen-failed", "none-completed"}
    assert len(audited) == 2
    assert (asked(some), manager_status.is_running(some)) == ([], False)


def test_a_job_that_cannot_be_removed_says_why(
    some: JobStore, client: Client, audited: list[Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(store: JobStore, name: str) -> None:
        raise NotRemovedError(name, store.paths(name).directory, "Permission denied")

    monkeypatch.setattr(JobStore, "delete", refuse)
    (answer,) = client().post("/api/jobs/bulk", json={"action": "remove", "jobs": ["seen-failed"]}).json()
    assert (answer["requested"], answer["status"]) == (False, 503)
    assert "could not be removed: Permission denied" in answer["detail"]


def test_an_admin_may_ask_it_of_all_jobs(some: JobStore, client: Client, audited: list[Log]) -> None:
    jobs = ["seen-failed", "missing", "none-failed", "hidden-failed"]
    answer = client().post("/api/jobs/bulk", json={"action": "retry", "jobs": jobs}).json()
    assert [(one["job"], one["status"]) for one in answer] == [
        ("seen-failed", 202),
        ("missing", 404),
        ("none-failed", 202),
        ("hidden-failed", 202),
    ]
    assert len(asked(some)) == 3


@pytest.mark.parametrize(
    "body",
    [
        {"action": "forget", "jobs": ["a"]},
        {"action": "cancel", "jobs": []},
        {"action": "cancel", "jobs": [f"j{number}" for number in range(501)]},
        {"action": "cancel"},
        {"jobs": ["a"]},
    ],
)
def test_requests_about_several_jobs_that_are_none(some: JobStore, client: Client, body: dict[str, Any]) -> None:
    assert client().post("/api/jobs/bulk", json=body).status_code == 422


def test_another_site_cannot_ask_it(some: JobStore, client: Client) -> None:
    body = {"action": "cancel", "jobs": ["seen-waiting"]}
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}):
        assert client().post("/api/jobs/bulk", json=body, headers=headers).status_code == 403
    assert asked(some) == []


def test_nothing_is_asked_of_any_job_that_cannot_be_audited(
    some: JobStore, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        raise OSError("the database is away")

    monkeypatch.setattr(audit, "create_session", away)
    body = {"action": "cancel", "jobs": ["seen-waiting", "hidden-waiting"]}
    assert client().post("/api/jobs/bulk", json=body).status_code == 503
    assert asked(some) == []


def test_an_inbox_that_cannot_be_written_to(some: JobStore, client: Client, audited: list[Log]) -> None:
    some.inbox_path.rmdir()
    some.inbox_path.symlink_to("/proc")
    (answer,) = client().post("/api/jobs/bulk", json={"action": "cancel", "jobs": ["seen-waiting"]}).json()
    assert (answer["requested"], answer["status"]) == (False, 503)
    assert "cannot be asked" in answer["detail"]


# -- the manager -------------------------------------------------------------------------------------------


@pytest.fixture
def running(some: JobStore, monkeypatch: pytest.MonkeyPatch) -> ManagerInfo:
    """A manager that is full."""
    waiting = OldestWaiting("hidden-waiting", utc_now())
    info = ManagerInfo(
        7, "1.2.3", utc_now(), "box", slots={"local": Slots(3, 4)}, queued=9, oldest_waiting=waiting, idle=False
    )
    manager_info.path_of(some).write_text(json.dumps(info.as_json()))
    monkeypatch.setattr(manager_status, "pid", lambda store: 7)
    return info


def test_how_full_the_manager_is(running: ManagerInfo, client: Client) -> None:
    found = client().get("/api/manager").json()
    assert (found["running"], found["version"], found["paused"], found["queued"]) == (True, "1.2.3", False, 9)
    assert (found["pid"], found["host"], found["command"]) == (7, "box", None)
    assert found["slots"] == {"local": {"used": 3, "limit": 4}}
    assert found["oldest_waiting"]["job"] == "hidden-waiting"
    found = client(("seen",), is_admin=False).get("/api/manager").json()
    assert (found["running"], found["queued"], found["pid"], found["host"]) == (True, 9, None, None)
    assert found["oldest_waiting"] == {"job": None, "since": found["oldest_waiting"]["since"]}


def test_who_sees_no_job_sees_nothing_of_its_manager(running: ManagerInfo, client: Client) -> None:
    answer = client((), is_admin=False).get("/api/manager")
    assert (answer.status_code, answer.json()) == (403, {"detail": "Forbidden"})


def test_no_manager_runs(some: JobStore, client: Client) -> None:
    found = client().get("/api/manager").json()
    assert (found["running"], found["embedded"], found["slots"], found["version"]) == (False, False, {}, None)
    assert found["command"] == f"air-executor manager --base-path {some.base_path}"
    assert client(is_admin=False).get("/api/manager").json()["command"] is None


def test_it_is_not_known_whether_a_manager_runs(
    some: JobStore, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(store: JobStore) -> None:
        raise OSError(5, "away")

    monkeypatch.setattr(manager_status, "pid", unknown)
    found = client().get("/api/manager").json()
    assert (found["running"], "away" in found["problem"]) == (None, True)


# -- durations ---------------------------------------------------------------------------------------------


def test_how_long_earlier_jobs_of_a_task_took(base: JobStore, client: Client) -> None:
    begin = utc_now() - timedelta(days=1)
    for number in range(6):
        by = SubmittedBy(dag_id="seen", run_id=f"run-{number}", task_id="other" if number == 4 else "t")
        job = base.submit(f"j{number}", ["true"], submitted_by=by)
        at = begin + timedelta(hours=number)
        state = JobState.FAILED if number == 1 else JobState.COMPLETED
        publish_job(
            base, job.evolve(state=state, started_at=at, updated_at=at + timedelta(seconds=number), created_at=at)
        )
    history.append(base, history.line_of(base.get_job("j2"), base.paths("j2")))
    shutil.rmtree(base.paths("j2").directory)

    def told(name: str, **query: int) -> list[tuple[str, float, str, bool]]:
        runs = client().get(f"/api/jobs/{name}/durations", params=query).json()["runs"]
        return [(run["name"], run["seconds"], run["state"], run["is_there"]) for run in runs]

    expected = [("j3", 3.0, "completed", True), ("j2", 2.0, "completed", False), ("j1", 1.0, "failed", True)]
    assert told("j5")[:3] == expected
    assert told("j5", limit=1) == expected[:1]
    assert told("j3")[:2] == expected[1:]
    assert told("j4") == []
    assert client().get("/api/jobs/j5/durations", params={"limit": 0}).status_code == 422
    assert client((), is_admin=False).get("/api/jobs/j5/durations").status_code == 403


# -- results -----------------------------------------------------------------------------------------------


@pytest.fixture
def with_results(base: JobStore) -> JobStore:
    """A job some of whose tasks have written results."""
    ids = ["a", "b", "c", "bad", "pending"]
    tasks = [{"id": task_id, "command": "true"} for task_id in ids]
    secrets = {masking.FILE: masking.dump(["hunter2", "123456"])}
    base.submit("j", tasks, submitted_by=owner("seen"), attached=secrets)
    done = [task.evolve(status=TaskStatus.COMPLETED, attempt=1) for task in base.get_tasks("j")]
    publish_tasks(base, "j", [*done[:-1], done[-1].evolve(status=TaskStatus.RUNNING)])
    values = {"a": {"rows": 3, "hunter2": ["x hunter2", 123456, None, True]}, "c": "plain", "pending": 1}
    for task_id, value in values.items():
        base.paths("j").output(task_id, 1).write_text(json.dumps(value))
    base.paths("j").output("bad", 1).write_text("{half")
    return base


def test_results_are_shown_without_secrets(with_results: JobStore, client: Client) -> None:
    answer = client().get("/api/jobs/j/results").json()
    assert answer["total"] == 3
    a, c, bad = answer["results"]
    assert a == {"task_id": "a", "value": {"rows": 3, "***": ["x ***", "***", None, True]}, "problem": None}
    assert (c["task_id"], c["value"]) == ("c", "plain")
    assert (bad["task_id"], bad["value"]) == ("bad", None)
    assert "is not JSON" in bad["problem"]


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ({"task_id": "c"}, ["c"]),
        ({"task_id": ["c", "a", "b", "x"]}, ["a", "c"]),
        ({"limit": 1}, ["a"]),
        ({"limit": 5, "offset": 1}, ["c", "bad"]),
    ],
)
def test_some_results(with_results: JobStore, client: Client, query: dict[str, Any], ids: list[str]) -> None:
    answer = client().get("/api/jobs/j/results", params=query)
    assert [result["task_id"] for result in answer.json()["results"]] == ids


# -- logs --------------------------------------------------------------------------------------------------


@pytest.fixture
def tried_twice(base: JobStore) -> JobStore:
    """A job whose task has printed in three attempts."""
    base.submit("j", [{"id": "a", "command": "true"}], submitted_by=owner("seen"))
    base.paths("j").log("a").write_bytes(b"first\nsecond\nthird\n")
    base.paths("j").log_times("a").write_text("100 6 1\n200.5 6 2\n300 13 3\n")
    return base


def test_the_times_of_a_log(tried_twice: JobStore, client: Client) -> None:
    found = client().get("/api/jobs/j/tasks/a/log/times").json()
    assert [tuple(part.values()) for part in found["attempts"]] == [(1, 0, 6), (2, 6, 13), (3, 13, 19)]
    assert found["times"][:3] == [[100, 6], [200.5, 6], [300, 13]]
    assert found["times"][3][1] == 19
    assert client().get("/api/jobs/j/tasks/x/log/times").status_code == 404


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ({"attempt": 1}, "first\n"),
        ({"attempt": 2}, "second\n"),
        ({"attempt": 3}, "third\n"),
        ({"attempt": 2, "limit": 3}, "sec"),
        ({"attempt": 2, "limit": 30, "offset": 9}, "ond\n"),
        ({"attempt": 2, "offset": -3}, "nd\n"),
        ({"attempt": 2, "offset": -300, "limit": 3}, "sec"),
        ({"attempt": 2, "offset": 300}, ""),
        ({"attempt": 2, "offset": 2, "limit": 2}, "se"),
    ],
)
def test_the_log_of_one_attempt(tried_twice: JobStore, client: Client, query: dict[str, int], text: str) -> None:
    answer = client().get("/api/jobs/j/tasks/a/log", params=query)
    assert (answer.status_code, answer.text) == (200, text)


@pytest.mark.parametrize(("attempt", "code"), [(4, 404), (0, 422), ("x", 422)])
def test_an_attempt_that_is_not_there(tried_twice: JobStore, client: Client, attempt: Any, code: int) -> None:
    assert client().get("/api/jobs/j/tasks/a/log", params={"attempt": attempt}).status_code == code
