"""What the pages are given, without a server; see ``tests/acceptance/test_plugin.py`` for the rest."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.log import mask_secret
from fastapi import HTTPException, Request

import vendor
from airflow_provider_air_executor import links, plugin
from airflow_provider_air_executor.api.records import JobDetails, JobSummary
from airflow_provider_air_executor.api.task_records import TaskDetails
from airflow_provider_air_executor.hooks import AirExecutorHook
from airflow_provider_air_executor.jobs import inbox, masking
from airflow_provider_air_executor.jobs.masking import Mask
from airflow_provider_air_executor.jobs.models import JobState, SubmittedBy, Task, TaskStatus
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.plugin.access import PageView, same_site
from tests.support.jobs import publish_job
from tests.support.waiting import PATIENCE, wait_until

STATIC = files(plugin) / "static"


# -- secrets -----------------------------------------------------------------------------------------------


@pytest.fixture
def hook(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[AirExecutorHook]:
    monkeypatch.setenv(
        "AIRFLOW_CONN_AIR_EXECUTOR_DEFAULT",
        json.dumps({"conn_type": "air_executor", "extra": {"base_path": str(store.base_path)}}),
    )
    mask_secret("hunter2-of-conn")
    yield AirExecutorHook()
    from airflow.sdk._shared.secrets_masker import reset_secrets_masker

    reset_secrets_masker()


def test_what_airflow_masks_is_left_beside_the_job(hook: AirExecutorHook) -> None:
    tasks: list[Any] = [
        "curl -u me:hunter2-of-conn x",
        {"command": "x", "args": ["--pw=hunter2-of-conn"], "env": {"API_TOKEN": "by its name", "OTHER": "plain"}},
        "echo another-onehunter2-of-conn another-one",
        Task(command="y", env={"PASSWORD": "of a record"}),
    ]
    mask_secret("another-one")
    mask_secret("in-a-label")
    hook.create_job("j", tasks, labels={"of": "x in-a-label"}, outlets=["postgres://hunter2-of-conn@host/"])
    secrets = {"hunter2-of-conn", "another-one", "in-a-label", "by its name", "of a record"}
    assert masking.load(hook.store.paths("j")).secrets == secrets
    hook.create_job("plain", ["echo hello"])
    assert not hook.store.paths("plain").attached(masking.FILE).exists()


def test_what_airflow_masks_of_added_tasks_too(hook: AirExecutorHook) -> None:
    hook.create_job("j", [{"command": "x", "env": {"PASSWORD": "the first"}}])
    hook.add_tasks("j", ["echo plain"])
    hook.add_tasks("j", ["echo hunter2-of-conn"])
    assert set(masking.load(hook.store.paths("j")).secrets) == {"hunter2-of-conn", "the first"}


def test_neither_commands_nor_environment_nor_errors_show_them(hook: AirExecutorHook) -> None:
    task_with = {"command": "curl", "args": ["-u", "hunter2-of-conn"], "env": {"A": "not to be seen"}}
    everywhere = {"labels": {"l": "hunter2-of-conn"}, "outlets": ["x://hunter2-of-conn"]}
    hook.create_job("j", [{**task_with, "cwd": "/hunter2-of-conn"}], **everywhere)
    store, mask = hook.store, masking.load(hook.store.paths("j"))
    task = store.get_tasks("j")[0].evolve(
        status=TaskStatus.FAILED, error="no hunter2-of-conn", where="Pod hunter2-of-conn"
    )
    job = store.get_job("j").evolve(error="task-1: hunter2-of-conn")
    shown = TaskDetails.of(task, [], mask)
    assert (shown.command, shown.environment, shown.error) == ("curl -u '***'", ["A"], "no ***")
    details = JobDetails.shown(job, {}, mask, held_up="waits", may_edit=True, may_read_logs=True)
    assert details.error == "task-1: ***"
    row = JobSummary.of(job, {}, mask)
    assert (row.labels, details.outlets, shown.cwd) == ({"l": "***"}, ("x://***",), "/***")
    assert shown.where == "Pod ***"
    for record in (shown, details, row):
        assert "hunter2" not in record.model_dump_json()
        assert "not to be seen" not in record.model_dump_json()


def rights() -> Any:
    """Those of a user who may do everything."""
    user = SimpleNamespace(get_id=lambda: "ada", get_name=lambda: "Ada")
    everything = {"permit": lambda *_: True, "permitted": list, "permit_any": lambda _: True, "sees_jobs": True}
    return SimpleNamespace(conn_id=AirExecutorHook.default_conn_name, user=user, **everything)


def view() -> PageView:
    """What such a user sees."""
    return PageView(rights())


def listed(*label: str) -> list[str]:
    """The jobs of the list that have these labels."""
    from airflow_provider_air_executor.api.routes.jobs import list_jobs
    from airflow_provider_air_executor.api.selection import Filters

    return [job.name for job in list_jobs(view(), Filters(labels=label)).jobs]


def test_a_secret_that_is_guessed_is_not_confirmed_by_the_list(hook: AirExecutorHook) -> None:
    hook.create_job("j", ["true"], labels={"password": "hunter2-of-conn", "hunter2-of-conn": "x", "team": "a"})
    wait_until(lambda: listed("team=a") == ["j"], what="the index has seen the job")
    assert listed("password") == ["j"]
    for guess in ("password=hunter2-of-conn", "hunter2-of-conn", "hunter2-of-conn=x"):
        assert listed(guess) == []


def test_secrets_that_cannot_be_read_hide_nothing_of_other_jobs(hook: AirExecutorHook) -> None:
    hook.create_job("j", ["true"], labels={"team": "a"})
    hook.store.submit("bad", ["true"], labels={"team": "a"}, attached={masking.FILE: b"[" * 100_000})
    wait_until(lambda: sorted(listed()) == ["bad", "j"], what="the index has seen the jobs")
    assert listed("team=a") == ["j"]


@pytest.mark.parametrize("action", ["cancel", "retry"])
def test_nothing_is_done_that_cannot_be_audited(
    hook: AirExecutorHook, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    from airflow_provider_air_executor.plugin import audit
    from airflow_provider_air_executor.plugin.access import FoundJob
    from airflow_provider_air_executor.plugin.routes import job as routes

    job = hook.create_job("j", ["true"])
    if action == "retry":
        publish_job(hook.store, job.evolve(state=JobState.FAILED))

    def away() -> None:
        raise OSError("the database is away")

    monkeypatch.setattr(audit, "create_session", away)
    with pytest.raises(OSError, match="away"):
        getattr(routes, f"{action}_job")(FoundJob(hook.get_job("j"), view()))
    assert inbox.requests(hook.store) == []


# -- records -----------------------------------------------------------------------------------------------


def test_a_line_of_shell_code_is_shown_as_it_was_written() -> None:
    assert TaskDetails.of(Task(id="t", bash="echo 'a b' | wc"), [], Mask()).command == "echo 'a b' | wc"
    assert TaskDetails.of(Task(id="t", command="echo", args=("a b",)), [], Mask()).command == "echo 'a b'"
    long = TaskDetails.of(Task(id="t", bash="x" * 100_000), [], Mask()).command
    assert len(long) < 2_100


def test_who_submitted_a_job(store: JobStore) -> None:
    owner = SubmittedBy(dag_id="d", run_id="r/1", task_id="t", map_index=3)
    row = JobSummary.of(store.submit("j", ["true"], submitted_by=owner), {}, Mask(), addresses=links)
    assert row.owner is not None
    assert (row.owner.run_url, row.owner.task_url) == (
        "/dags/d/runs/r%2F1",
        "/dags/d/runs/r%2F1/tasks/t/mapped/3",
    )
    of_run = JobSummary.of(
        store.submit("k", ["true"], submitted_by=owner.evolve(task_id="")), {}, Mask(), addresses=links
    )
    assert of_run.owner is not None
    assert of_run.owner.task_url is None


# -- other sites ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"host": "airflow:8080", "origin": "http://airflow:8080"}, True),
        ({"host": "airflow:8080", "origin": "http://airflow:8081"}, False),
        ({"host": "airflow:8080", "origin": "null"}, False),
        ({"origin": "null"}, False),
        ({"host": "airflow:8080", "origin": "http://evil", "sec-fetch-site": "same-origin"}, True),
        ({"host": "airflow:8080", "origin": "http://airflow:8080", "sec-fetch-site": "cross-site"}, False),
    ],
)
def test_another_site_cannot_act_for_a_user(headers: dict[str, str], allowed: bool) -> None:
    """Without ``[api] base_url``."""
    request = Request({"type": "http", "headers": [(key.encode(), value.encode()) for key, value in headers.items()]})
    with contextlib.nullcontext() if allowed else pytest.raises(HTTPException):
        same_site(request)


# -- what the pages load -----------------------------------------------------------------------------------


def test_the_libraries_are_those_that_are_listed() -> None:
    listed = {name for package in vendor.PACKAGES for name in package.files.values()}
    assert {entry.name for entry in (STATIC / "vendor").iterdir()} == listed
    licensed = {package.files["LICENSE"] for package in vendor.PACKAGES}
    assert all("ermission" in (STATIC / "vendor" / name).read_text() for name in licensed)


def test_nothing_is_loaded_from_elsewhere() -> None:
    ours = [entry for entry in STATIC.iterdir() if entry.is_file()]
    assert len(ours) >= 12
    for entry in ours:
        text = entry.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z0-9-]+\.[a-z]|@import|\beval\b|innerHTML|dangerously", text), entry.name
        for path in re.findall(r'from "([^"]+)"', text):
            assert (STATIC / path).is_file(), path


@pytest.mark.airflow
def test_other_processes_of_airflow_do_not_load_the_web_application() -> None:
    code = """
import sys
from airflow.plugins_manager import AirflowPlugin
before = set(sys.modules)
from airflow_provider_air_executor.plugin import AirExecutorPlugin
loaded = {name for name in set(sys.modules) - before if name != "airflow_provider_air_executor"}
assert loaded == {"airflow_provider_air_executor.plugin"}, loaded
for plugin in (AirExecutorPlugin, AirExecutorPlugin()):
    (app,) = plugin.fastapi_apps
    assert app["url_prefix"] == "/air-executor"
    assert [view["destination"] for view in plugin.external_views] == ["nav", "task_instance", "dag_run"]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)


# -- the description of the API ----------------------------------------------------------------------------


def test_the_api_describes_its_answers() -> None:
    from airflow_provider_air_executor.plugin.app import app

    told = {
        (method, path): route["responses"]
        for path, routes in app.openapi()["paths"].items()
        for method, route in routes.items()
    }
    for (method, path), answers in told.items():
        of_jobs = {"/api/jobs", "/api/jobs/bulk", "/api/dags", "/api/manager"}
        about = {"403", "404", "503"} if "{job_name}" in path or path in of_jobs else set()
        changes = method == "post"
        state = {"409"} if path.endswith("/retry") else set()
        static = {"404"} if path.startswith("/static") else set()
        assert set(answers) - {"422"} == {"202" if changes else "200", "401"} | about | state | static, path
    for path, kind in (("log", "text/plain"), ("events", "text/event-stream")):
        answer = told["get", f"/api/jobs/{{job_name}}/tasks/{{task_id}}/{path}"]["200"]
        assert set(answer["content"]) == {kind}
