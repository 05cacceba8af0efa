"""Two Airflows on one base path: the jobs of one are not those of the other."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import ErrorResponse, GetVariable, PutVariable, VariableResult

from airflow_provider_air_executor import triggers
from airflow_provider_air_executor.event_triggers import AirExecutorJobEventTrigger
from airflow_provider_air_executor.exceptions import JobExistsError
from airflow_provider_air_executor.hooks import AirExecutorHook
from airflow_provider_air_executor.installation import VARIABLE, installation_of, known_installation
from airflow_provider_air_executor.jobs import inbox
from airflow_provider_air_executor.jobs.file_jobs import FileJobs
from airflow_provider_air_executor.jobs.models import SubmittedBy, default_job_name
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.notifications import AirExecutorNotifier
from airflow_provider_air_executor.operators import AirExecutorSubmitOperator
from airflow_provider_air_executor.triggers import AirExecutorSubmitTrigger
from tests.support.contexts import TaskInstance, context
from tests.support.waiting import PATIENCE


class Airflow:
    """What of an installation answers a task: its Variables. A real one is asked in ``acceptance/test_operator.py``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.variables: dict[str, str] = {}
        self.error: ErrorType | None = None
        self._monkeypatch = monkeypatch

    def send(self, message: Any) -> Any:
        if self.error is not None:
            return ErrorResponse(error=self.error)
        if isinstance(message, PutVariable):
            self.variables[message.key] = str(message.value)
            return None
        assert isinstance(message, GetVariable)
        if message.key not in self.variables:
            return ErrorResponse(error=ErrorType.VARIABLE_NOT_FOUND)
        return VariableResult(key=message.key, value=self.variables[message.key])

    def runs(self) -> None:
        """What comes next is done in a process of this installation."""
        self._monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", self, raising=False)


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> Airflow:
    return Airflow(monkeypatch)


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Airflow:
    return Airflow(monkeypatch)


@pytest.fixture(autouse=True)
def _no_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    """What becomes of the jobs is no matter here."""

    async def location(conn_id: str) -> tuple[str, bool]:
        return AirExecutorHook(conn_id).location

    monkeypatch.setattr(triggers, "location_of", location)
    monkeypatch.setattr("airflow_provider_air_executor.event_triggers.location_of", location)
    monkeypatch.setattr("airflow_provider_air_executor.hooks.start_manager_if_none", lambda store: None)


def submit(**changes: Any) -> str:
    """Submit the job of the same task, from a worker; its name."""
    more = {name: changes.pop(name) for name in ("job_name", "on_retry") if name in changes}
    tested = AirExecutorSubmitOperator(task_id="t", tasks=["true"], wait_for_completion=False, **more)
    name: str = tested.execute(context(**changes))
    return name


async def submitted_by_trigger(**kwargs: Any) -> str:
    """The same from a triggerer, which is ended as soon as the job is there."""
    tested = AirExecutorSubmitTrigger(tasks=["true"], poll_interval=0.1, **kwargs)
    tested.task_instance = TaskInstance()
    waiting = asyncio.create_task(anext(tested.run()))
    async with asyncio.timeout(PATIENCE):
        while not waiting.done() and tested._submitting is None:  # noqa: ASYNC110 - it sets no event
            await asyncio.sleep(0.01)
        if tested._submitting is not None:
            await asyncio.wait([tested._submitting])
    waiting.cancel()
    return tested.job_name


class TestTheWord:
    def test_it_is_made_once_and_kept(self, store: JobStore, ours: Airflow, theirs: Airflow) -> None:
        ours.runs()
        assert known_installation() is None
        word = installation_of(FileJobs(store))
        assert word
        assert installation_of(FileJobs(store)) == known_installation() == ours.variables[VARIABLE] == word
        theirs.runs()
        assert installation_of(FileJobs(store)) != word

    def test_all_that_come_first_get_the_same(
        self, store: JobStore, ours: Airflow, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours.runs()
        asked = threading.Barrier(8)
        first = threading.local()

        def ask() -> str | None:
            answer = known_installation()
            if not hasattr(first, "has_asked"):
                first.has_asked = True
                asked.wait()  # nobody has made it up before all have asked
            return answer

        monkeypatch.setattr("airflow_provider_air_executor.installation.known_installation", ask)
        with ThreadPoolExecutor(8) as pool:
            words = set(pool.map(lambda _: installation_of(FileJobs(store)), range(8)))
        assert words == {ours.variables[VARIABLE]}

    def test_no_answer_is_not_taken_for_no_word(self, store: JobStore, ours: Airflow) -> None:
        """A new word would make all jobs those of somebody else."""
        ours.runs()
        word = installation_of(FileJobs(store))
        ours.error = ErrorType.API_SERVER_ERROR
        with pytest.raises(AirflowRuntimeError):
            installation_of(FileJobs(store))
        with pytest.raises(AirflowRuntimeError):
            submit()
        assert ours.variables == {VARIABLE: word}

    def test_names_alone_count_where_airflow_cannot_be_asked(self, store: JobStore) -> None:
        assert installation_of(FileJobs(store)) is None

    def test_a_team_does_not_take_it_from_the_others(
        self, store: JobStore, ours: Airflow, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
        ours.runs()
        assert installation_of(FileJobs(store)) is None
        ours.variables[VARIABLE] = "made-by-hand"
        assert installation_of(FileJobs(store)) == "made-by-hand"


class TestTheJobs:
    def test_the_same_task_of_two_installations_has_two_jobs(
        self, store: JobStore, ours: Airflow, theirs: Airflow
    ) -> None:
        ours.runs()
        name = submit()
        job = store.get_job(name)
        theirs.runs()
        other = submit()
        assert other != name
        assert asyncio.run(submitted_by_trigger()) == other
        assert store.get_job(name) == job
        ours.runs()
        assert submit(try_number=2) == name
        assert asyncio.run(submitted_by_trigger()) == name
        assert store.job_names() == sorted([name, other])

    def test_a_name_that_a_user_gave_is_refused_to_the_other(
        self, store: JobStore, ours: Airflow, theirs: Airflow
    ) -> None:
        ours.runs()
        submit(job_name="j")
        job = store.get_job("j")
        theirs.runs()
        for changes in ({}, {"try_number": 2}, {"max_tries": 1}, {"on_retry": "all"}):
            with pytest.raises(JobExistsError, match="task t of DAG d, run .* in another Airflow"):
                submit(job_name="j", **changes)
        asyncio.run(submitted_by_trigger(job_name="j"))
        assert store.get_job("j") == job
        assert inbox.requests(store) == []

    def test_one_does_not_cancel_the_jobs_of_the_other(self, store: JobStore, ours: Airflow, theirs: Airflow) -> None:
        ours.runs()
        job = store.get_job(submit())
        theirs.runs()
        owner = SubmittedBy.of_task(TaskInstance(), max_tries=0, installation=installation_of(FileJobs(store)))
        assert not inbox.cancel(store, job.name, owner)
        assert inbox.cancel(store, job.name, job.submitted_by)

    @pytest.mark.parametrize("name", [None, "j"])
    def test_a_job_of_an_earlier_version_is_reattached(self, store: JobStore, ours: Airflow, name: str | None) -> None:
        """It did not say which Airflow it was, and made another default name."""
        before = SubmittedBy.of_task(TaskInstance(), max_tries=0)
        job = store.submit(name or default_job_name(before), ["true"], submitted_by=before)
        ours.runs()
        more = {} if name is None else {"job_name": name}
        assert asyncio.run(submitted_by_trigger(**more)) == job.name
        assert submit(try_number=2, **more) == job.name
        assert store.job_names() == [job.name]
        assert store.get_job(job.name) == job

    def test_callbacks_of_two_installations_have_two_jobs(
        self, store: JobStore, ours: Airflow, theirs: Airflow
    ) -> None:
        given = context(state="success")
        for airflow in (ours, theirs, ours):
            airflow.runs()
            installation_of(FileJobs(store))
            AirExecutorNotifier(tasks=["true"])(given)
        assert len(store.job_names()) == 2


def test_each_installation_gets_a_completion(store: JobStore, ours: Airflow, theirs: Airflow) -> None:
    """Two equal watchers would be one subscriber, of which one gets nothing."""
    subscribers = set()
    for airflow in (ours, theirs, ours):
        airflow.runs()
        subscribers.add(asyncio.run(AirExecutorJobEventTrigger(job_name="j").completions())._subscriber)
    assert len(subscribers) == 2
