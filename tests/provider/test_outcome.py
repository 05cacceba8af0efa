"""What the executor decides about a job that has ended, for all that may come together."""

from __future__ import annotations

import pytest
from airflow.utils.state import TaskInstanceState

from airflow_provider_air_executor.executor import outcome
from airflow_provider_air_executor.executor.outcome import Decision
from airflow_provider_air_executor.jobs.models import MAY_STILL_RUN, Job, JobState, Reason, Task
from airflow_provider_air_executor.workload import ExitCode

ALIVE = {"queued", "running", "restarting"}
STATES = [*(state.value for state in TaskInstanceState), None]
EXIT_CODES = [*ExitCode, 1, -9, None]


@pytest.mark.parametrize("exit_code", EXIT_CODES)
@pytest.mark.parametrize("state", [state for state in STATES if state not in ALIVE])
def test_of_a_task_that_airflow_does_not_wait_for_nothing_is_reported(state: str | None, exit_code: int | None) -> None:
    for again in (False, True):
        assert outcome.of_task(state, exit_code, can_be_resubmitted=again) is Decision.FORGET


@pytest.mark.parametrize("exit_code", EXIT_CODES)
def test_a_task_that_was_cleared_while_it_ran_has_ended_as_it_should(exit_code: int | None) -> None:
    for again in (False, True):
        assert outcome.of_task("restarting", exit_code, can_be_resubmitted=again) is Decision.SUCCEED


@pytest.mark.parametrize("exit_code", EXIT_CODES)
@pytest.mark.parametrize("state", ["queued", "running"])
def test_of_other_tasks_the_exit_code_decides(state: str, exit_code: int | None) -> None:
    expected = {ExitCode.REPORTED: Decision.SUCCEED, ExitCode.SUPERSEDED: Decision.FORGET}.get(exit_code, Decision.FAIL)  # type: ignore[call-overload]
    assert outcome.of_task(state, exit_code, can_be_resubmitted=False) is expected
    is_in_vain = exit_code in (ExitCode.NO_AIRFLOW, ExitCode.NOT_PREPARED)
    if state == "queued" and expected is Decision.FAIL and not is_in_vain:
        expected = Decision.RESUBMIT
    assert outcome.of_task(state, exit_code, can_be_resubmitted=True) is expected


@pytest.mark.parametrize("state", [JobState.COMPLETED, JobState.FAILED])
@pytest.mark.parametrize("has_started", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_of_callbacks_and_connection_tests_the_job_decides(state: JobState, has_started: bool, again: bool) -> None:
    expected = Decision.SUCCEED
    if state is JobState.FAILED:
        expected = Decision.RESUBMIT if again and not has_started else Decision.FAIL
    assert outcome.of_other(state, has_started=has_started, can_be_resubmitted=again) is expected


def job(reason: Reason | None = None, error: str | None = None) -> Job:
    return Job(id="j", name="j", state=JobState.FAILED, reason=reason, error=error)


def task(reason: Reason | None = None, exit_code: int | None = None, error: str | None = None) -> Task:
    return Task(id="t", command="true", reason=reason, exit_code=exit_code, error=error)


@pytest.mark.parametrize(
    ("of_job", "of_task", "submissions", "expected"),
    [
        (Reason.EXIT, Reason.EXIT, 1, True),
        (Reason.LOST, None, outcome.MAX_RESUBMISSIONS, True),
        (Reason.LOST, None, outcome.MAX_RESUBMISSIONS + 1, False),
        (Reason.CANCELLED, Reason.CANCELLED, 1, False),
        (Reason.EXIT, Reason.SPAWN, 1, False),
    ],
)
def test_what_can_be_submitted_again(of_job: Reason, of_task: Reason | None, submissions: int, expected: bool) -> None:
    assert outcome.can_be_resubmitted(job(of_job), task(of_task), submissions) is expected
    assert outcome.can_be_resubmitted(job(of_job), None, 1) is (of_job is not Reason.CANCELLED)


@pytest.mark.parametrize(
    ("of_job", "of_task", "expected"),
    [
        (job(), task(exit_code=ExitCode.REFUSED, error="exit code 77"), "the API server did not accept its token"),
        (job(), task(exit_code=9, error="exit code 9"), "exit code 9"),
        (job(error="it was lost"), task(), "it was lost"),
        (job(error="its job is gone"), None, "its job is gone"),
        (job(), None, "it has ended"),
    ],
)
def test_explanations_name_the_job(of_job: Job, of_task: Task | None, expected: str) -> None:
    assert outcome.explain(of_job, of_task) == f"{expected} (job j)"


@pytest.mark.parametrize("state", STATES)
def test_a_task_that_may_still_run_is_waited_for(state: str | None) -> None:
    """As long as Airflow takes it for running, which it does until its heartbeats are missing."""
    found = outcome.of_task(state, None, can_be_resubmitted=True, may_still_run=True)
    expected = outcome.of_task(state, None, can_be_resubmitted=True)
    assert found is (Decision.WAIT if state == "running" else expected)


def test_a_lost_task_of_airflows_goes_on_if_it_still_runs() -> None:
    """Other than a job's own task, which nobody can know to run."""
    task = Task(command="x", reason=Reason.LOST, error=f"Slurm job 1 on n1 ended as NODE_FAIL{MAY_STILL_RUN}")
    said = outcome.explain(Job(id="j", name="j"), task)
    assert "not tried again" not in said
    assert said.startswith("Slurm job 1 on n1 ended as NODE_FAIL; if it still runs there it goes on")
    assert outcome.may_still_run(task)
    assert not outcome.may_still_run(Task(command="x", reason=Reason.LOST, error="it was lost"))


@pytest.mark.parametrize(
    ("state", "reason", "where", "expected"),
    [
        ("failed", Reason.TIMEOUT, None, True),
        ("up_for_retry", Reason.LOST, "Slurm job 1", True),
        ("failed", Reason.SIGNAL, "Slurm job 1", True),
        ("failed", Reason.SIGNAL, None, False),
        ("failed", Reason.CANCELLED, "Slurm job 1", False),
        ("success", Reason.TIMEOUT, "Slurm job 1", False),
        (None, Reason.TIMEOUT, "Slurm job 1", False),
    ],
)
def test_what_ended_a_task_is_said_although_airflow_has_its_end(
    state: str | None, reason: Reason, where: str | None, expected: bool
) -> None:
    task = Task(command="x", reason=reason, where=where)
    assert outcome.is_unknown_to_airflow(state, task) is expected
