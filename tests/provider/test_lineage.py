"""Lineage, as the extractor of Airflow's OpenLineage provider finds it in the operator."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.openlineage.extractors import ExtractorManager, OperatorLineage
from airflow.providers.openlineage.plugins.adapter import OpenLineageAdapter
from airflow.sdk import DAG, Asset
from airflow.sdk.exceptions import TaskDeferred
from airflow.utils.state import TaskInstanceState

from airflow_provider_air_executor import lineage
from airflow_provider_air_executor.exceptions import JobFailedError
from airflow_provider_air_executor.jobs.models import Task, parse_tasks
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.operators import AirExecutorSubmitOperator
from airflow_provider_air_executor.transfers import SqlToAirExecutorOperator
from tests.support.contexts import TaskInstance, context
from tests.support.waiting import PATIENCE, until, wait_until

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TASKS = [
    {"id": "a", "command": "echo", "args": ["two words", "$HOME"], "env": {"TOKEN": "hunter2"}},
    {"id": "b", "bash": "exit 3"},
    {"id": "c", "command": "true", "dependencies": ["b"]},
]
SOURCE = "# a\necho 'two words' '$HOME'\n# b\nbash -c 'exit 3'\n# c\ntrue"
STATES = {"start": TaskInstanceState.RUNNING, "complete": TaskInstanceState.SUCCESS, "fail": TaskInstanceState.FAILED}


def operator(tasks: Any = TASKS, **kwargs: Any) -> AirExecutorSubmitOperator:
    with DAG("d", start_date=NOW, schedule=None):
        return AirExecutorSubmitOperator(task_id="t", tasks=tasks, poll_interval=0.1, **kwargs)


def instance(**changes: Any) -> Any:
    """A task instance with what OpenLineage looks at."""
    run = SimpleNamespace(logical_date=NOW, run_after=NOW, clear_number=0, conf={})
    return TaskInstance(get_template_context=lambda: {"dag_run": run, "outlet_events": {}}, **changes)


def told(tested: Any, what: str) -> OperatorLineage[Any, Any]:
    """What the extractor makes of a task that has started or ended."""
    run = SimpleNamespace(run_id="manual__1+00:00")
    return ExtractorManager().extract_metadata(run, tested, STATES[what], instance())


def job_facet(found: OperatorLineage[Any, Any]) -> Any:
    return found.run_facets[lineage.JOB_FACET]


class TestWhatIsTold:
    def test_the_commands_when_the_task_starts(self, home: Path) -> None:
        found = told(operator(), "start")
        facet = found.job_facets["sourceCode"]
        assert (facet.language, facet.sourceCode) == ("bash", SOURCE)
        assert found.run_facets == {}
        assert "hunter2" not in str(found)

    @pytest.mark.embedded
    def test_how_each_task_of_the_job_has_ended(self, store: JobStore) -> None:
        tested = operator()
        with pytest.raises(JobFailedError):
            tested.execute(context())
        found = told(tested, "fail")
        facet = job_facet(found)
        (name,) = store.job_names()
        assert (facet.name, facet.id, facet.attempt) == (name, store.get_job(name).id, 1)
        assert (facet.state, facet.reason, facet.error) == ("failed", "exit", store.get_job(name).error)
        assert facet.taskCounts == {"completed": 1, "failed": 2}
        assert [(task["id"], task["status"], task["reason"], task["exitCode"]) for task in facet.tasks] == [
            ("b", "failed", "exit", 3),
            ("c", "failed", "dependency", None),
            ("a", "completed", None, 0),
        ]
        assert found.job_facets["sourceCode"].sourceCode == SOURCE

    @pytest.mark.embedded
    def test_a_task_that_was_deferred(self, store: JobStore, tmp_path: Path) -> None:
        """It goes on in another process, where what ``execute`` has set is gone."""
        tasks = [until(tmp_path / "go")]
        with pytest.raises(TaskDeferred):
            operator(tasks, deferrable=True).execute(context())
        (tmp_path / "go").touch()
        (name,) = store.job_names()
        wait_until(lambda: store.get_job(name).state == "completed", what="it has completed")
        assert job_facet(told(operator(tasks, deferrable=True), "complete")).state == "completed"

    def test_a_task_that_never_had_a_job(self, store: JobStore) -> None:
        found = told(operator("{{ not_a_list }}"), "fail")
        assert (found.run_facets, found.job_facets) == ({}, {})

    @pytest.mark.embedded
    def test_datasets_are_airflows_inlets_and_outlets(self, store: JobStore) -> None:
        tested = operator(["true"], inlets=[Asset("file://host/in")], outlets=[Asset("file://host/out")])
        tested.execute(context())
        for what in ("start", "complete"):
            found = told(tested, what)
            assert [(data.namespace, data.name) for data in found.inputs] == [("file://host", "/in")]
            assert [(data.namespace, data.name) for data in found.outputs] == [("file://host", "/out")]

    @pytest.mark.embedded
    def test_the_rows_of_a_query_are_not_emitted(self, store: JobStore) -> None:
        with DAG("d", start_date=NOW, schedule=None):
            tested = SqlToAirExecutorOperator(task_id="t", sql="SELECT 1", conn_id="c", task="echo $1", job_name="j")
        operator(["echo of a row"], job_name="j").execute(context())
        found = told(tested, "complete")
        assert job_facet(found).state == "completed"
        assert "of a row" not in str(found)

    def test_of_a_long_job_not_everything_is_emitted(self, store: JobStore) -> None:
        tasks = parse_tasks([Task(command="echo", args=[f"number {number}"]) for number in range(2_000)])
        store.submit("j", tasks)
        assert len(job_facet(lineage.of_job(store, "j")).tasks) == 200
        source = told(operator(list(tasks)), "start").job_facets["sourceCode"].sourceCode
        assert len(source) < 22_000
        assert source.endswith(" more tasks")


class TestCommandsMayHoldSecrets:
    """The settings of Airflow's own Bash operator decide whether they are emitted."""

    @pytest.mark.filterwarnings("ignore:.*legacy config options")
    def test_no_source_code(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AIRFLOW__OPENLINEAGE__DISABLE_SOURCE_CODE", "True")
        assert told(operator(), "start").job_facets == {}

    def test_a_policy_for_some_dags(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("airflow.providers.openlineage.utils.emission_policy")
        policy = '[{"scope": {"dag_id": "d"}, "controls": {"include_source_code": false}}]'
        monkeypatch.setenv("AIRFLOW__OPENLINEAGE__EMISSION_POLICY", policy)
        assert told(operator(), "start").job_facets == {}


class TestParent:
    @pytest.mark.embedded
    def test_the_tasks_get_the_runs_they_belong_to(self, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AIRFLOW__OPENLINEAGE__NAMESPACE", "tests")
        tasks = ["true", {"command": "true", "env": {"A": "b", lineage.PARENT_ID: "my/own/one"}}]
        operator(tasks, job_name="j", openlineage_inject_parent_job_info=True).execute({"ti": instance(try_number=2)})
        of_task = OpenLineageAdapter.build_task_instance_run_id("d", "t", 2, NOW, -1)
        root = f"tests/d/{OpenLineageAdapter.build_dag_run_id('d', NOW, 0)}"
        assert [task.env for task in store.get_tasks("j")] == [
            {lineage.PARENT_ID: f"tests/d.t/{of_task}", lineage.ROOT_PARENT_ID: root},
            {lineage.PARENT_ID: "my/own/one", lineage.ROOT_PARENT_ID: root, "A": "b"},
        ]
        assert uuid.UUID(of_task)

    def test_a_job_of_a_clients_own_integration_understands_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from openlineage.common.provider.dbt.utils import get_parent_run_metadata

        for name, value in lineage.parent_environment(instance()).items():
            monkeypatch.setenv(name, value)
        parent = get_parent_run_metadata()
        assert (parent.job_name, parent.root_parent_job_name) == ("d.t", "d")

    @pytest.mark.embedded
    def test_only_if_it_is_asked_for(self, store: JobStore) -> None:
        operator(["true"], job_name="j").execute(context())
        assert [task.env for task in store.get_tasks("j")] == [None]

    @pytest.mark.airflow
    def test_airflows_setting_is_the_default(self, home: Path) -> None:
        code = (
            "from airflow_provider_air_executor.operators import AirExecutorSubmitOperator as Operator;"
            "assert Operator(task_id='t', tasks=['true']).openlineage_inject_parent_job_info"
        )
        environment = {**os.environ, "AIRFLOW__OPENLINEAGE__SPARK_INJECT_PARENT_JOB_INFO": "True"}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=PATIENCE)

    def test_the_triggerer_does_not_submit_it_since_it_does_not_know_the_run(self) -> None:
        tested = operator(["true"], start_from_trigger=True, openlineage_inject_parent_job_info=True)
        assert not tested.start_from_trigger
        assert tested.deferrable


# Airflow itself asks each provider for its description.
ITS_MODULES = ("openlineage", "airflow.providers.openlineage.extractors", "airflow.providers.openlineage.plugins")


@pytest.mark.airflow
def test_the_provider_need_not_be_installed(home: Path) -> None:
    code = f"""
import sys, airflow.sdk
sys.modules.update(dict.fromkeys({ITS_MODULES}))
from airflow_provider_air_executor import lineage, notifications, operators, sensors, transfers
operators.AirExecutorSubmitOperator(task_id="t", tasks=["true"], openlineage_inject_parent_job_info=True)
assert lineage.parent_environment(None) == {{}}
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)


@pytest.mark.airflow
def test_nothing_of_it_is_imported_before_it_is_needed(home: Path) -> None:
    code = f"""
import sys
from airflow_provider_air_executor import lineage, notifications, operators, sensors, transfers
assert not set({ITS_MODULES}) & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)
