"""The page of a job, without a server; see ``tests/acceptance/test_plugin.py`` for the rest."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import pytest

from airflow_provider_air_executor.jobs.models import SubmittedBy, TaskStatus
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.plugin import page

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


class Elements(HTMLParser):
    """The elements of a page, with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def rendered(store: JobStore, name: str, **changes: Any) -> str:
    return page.render(store, store.get_job(name), **{"conn_id": "air_executor_default", "with_logs": True, **changes})


def test_nothing_in_a_job_becomes_markup(store: JobStore) -> None:
    owner = SubmittedBy(dag_id=HOSTILE, run_id=HOSTILE, task_id=HOSTILE, map_index=1)
    task_id = HOSTILE.replace("/", "")
    job = store.submit("j", [{"id": task_id, "command": HOSTILE, "args": [HOSTILE]}], submitted_by=owner)
    store.write_job(job.evolve(error=HOSTILE))
    store.log_path("j", task_id).write_text(f"{HOSTILE}\n\x1b[1mbold\x1b[0m \x00\x9b")
    found = Elements(rendered(store, "j", conn_id=HOSTILE))
    allowed = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "span", "a", "div", "code", "pre"}
    assert {tag for tag, _ in found.found} == allowed | {"table", "tr", "th", "td"}
    assert not [name for _, attributes in found.found for name in attributes if name.startswith("on")]
    assert all(attributes["href"].startswith("/") for tag, attributes in found.found if tag == "a")  # type: ignore[union-attr]
    assert found.text.count("alert(1)") >= 8
    assert "bold" in found.text
    assert "\x1b" not in found.text


def test_it_fits_light_and_dark_and_small_screens(store: JobStore) -> None:
    store.submit("j", ["true"])
    html = rendered(store, "j")
    assert "@media (prefers-color-scheme: dark)" in html
    assert 'name="viewport" content="width=device-width' in html
    assert re.search(r"\.wide \{ overflow-x: auto; \}", html)
    assert "http" not in html.replace('http-equiv="refresh"', "")


@pytest.mark.parametrize(("state", "refreshes"), [("working", True), ("completed", False), ("failed", False)])
def test_it_is_loaded_again_until_the_job_has_ended(store: JobStore, state: str, refreshes: bool) -> None:
    job = store.submit("j", ["true"])
    store.write_job(job.evolve(state=type(job.state)(state)))
    assert ('http-equiv="refresh"' in rendered(store, "j")) is refreshes


def test_of_a_long_job_what_failed_comes_first(store: JobStore) -> None:
    store.submit("j", ["true"] * 1_000)
    tasks = list(store.get_tasks("j"))
    tasks[900] = tasks[900].evolve(status=TaskStatus.FAILED, exit_code=3)
    store.reset_tasks("j", tasks)
    for task in tasks[890:]:
        store.log_path("j", task.id).write_text("x" * 100_000)
    html = rendered(store, "j")
    rows = re.findall(r"<td><a [^>]+>(task-\d+)</a></td>", html)
    assert (rows[0], len(rows), html.count("<pre>")) == ("task-901", 200, 10)
    assert "and 800 more" in html
    assert len(html) < 400_000


def test_the_environment_of_tasks_is_not_shown(store: JobStore) -> None:
    store.submit("j", [{"command": "true", "env": {"TOKEN": "hunter2"}}])
    assert "hunter2" not in rendered(store, "j")


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
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
