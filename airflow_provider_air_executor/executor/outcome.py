"""The executor's decisions about jobs that have ended: tables, without input or output.

A supervisor reports the end of its task to Airflow itself, so an exit code says only whether it could do so. Callbacks
and connection tests have no supervisor that reports: their jobs' states are what the executor reports.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from airflow.utils.state import TaskInstanceState

from airflow_provider_air_executor.jobs.models import MAY_STILL_RUN, Job, JobState, Reason, Task
from airflow_provider_air_executor.workload import ExitCode

MAX_RESUBMISSIONS = 5


class Decision(enum.Enum):
    """Each way to deal with a workload whose job has ended."""

    SUCCEED = enum.auto()  # report that the process has done its work; Airflow has its state already, and keeps it
    FAIL = enum.auto()  # report that it failed; the workload has not reported it
    FORGET = enum.auto()  # report nothing: Airflow has heard of the end, or gave the task to another process
    RESUBMIT = enum.auto()  # it has not begun, so that running it again costs no retry
    WAIT = enum.auto()  # it may still run where nobody can see it: Airflow ends it when its heartbeats are missing


_QUEUED, _RUNNING, _RESTARTING = TaskInstanceState.QUEUED, TaskInstanceState.RUNNING, TaskInstanceState.RESTARTING
ALIVE = (_QUEUED, _RUNNING, _RESTARTING)  # in any other state Airflow does not wait for the job any more

# By the state of the task instance when its job ended. A task that restarts was cleared while it ran, and has ended as
# Airflow wanted, however it did.
_REPORTED = {_QUEUED: Decision.SUCCEED, _RUNNING: Decision.SUCCEED, _RESTARTING: Decision.SUCCEED}
_SUPERSEDED = {_QUEUED: Decision.FORGET, _RUNNING: Decision.FORGET, _RESTARTING: Decision.SUCCEED}
_OTHERWISE = {_QUEUED: Decision.RESUBMIT, _RUNNING: Decision.FAIL, _RESTARTING: Decision.SUCCEED}
_IN_VAIN = {_QUEUED: Decision.FAIL, _RUNNING: Decision.FAIL, _RESTARTING: Decision.SUCCEED}
_BY_EXIT_CODE: Mapping[int | None, Mapping[TaskInstanceState, Decision]] = {
    ExitCode.REPORTED: _REPORTED,
    ExitCode.SUPERSEDED: _SUPERSEDED,
    ExitCode.NO_AIRFLOW: _IN_VAIN,
    ExitCode.NOT_PREPARED: _IN_VAIN,
}
_EXPLANATIONS: Mapping[int | None, str] = {
    ExitCode.BAD_WORKLOAD: "its workload could not be read",
    ExitCode.UNREACHABLE: "the API server could not be reached",
    ExitCode.SUPERVISOR_FAILED: "its supervisor failed",
    ExitCode.NO_AIRFLOW: "there is no Airflow where it was to run",
    ExitCode.NOT_PREPARED: "the prologue of its queue failed",
    ExitCode.SUPERSEDED: "it was running already, or was not to run any more",
    ExitCode.REFUSED: "the API server did not accept its token",
}
_GOES_ON = "; if it still runs there it goes on, else Airflow misses its heartbeats"


def of_task(
    state: str | None, exit_code: int | None, *, can_be_resubmitted: bool, may_still_run: bool = False
) -> Decision:
    """The decision about a task.

    :param state: of the task instance in Airflow's database; None if it belongs to another job by now.
    :param exit_code: None if the process was killed, or never started.
    :param may_still_run: whether nobody knows that it has ended, since its node does not answer.
    """
    decision = _BY_EXIT_CODE.get(exit_code, _OTHERWISE).get(state, Decision.FORGET)  # type: ignore[call-overload]
    if may_still_run and state == _RUNNING:
        return Decision.WAIT
    return Decision.FAIL if decision is Decision.RESUBMIT and not can_be_resubmitted else decision


def of_other(state: JobState, *, has_started: bool, can_be_resubmitted: bool) -> Decision:
    """The decision about a callback or a connection test, by the state of its job."""
    if state is JobState.COMPLETED:
        return Decision.SUCCEED
    return Decision.RESUBMIT if can_be_resubmitted and not has_started else Decision.FAIL


def may_still_run(task: Task | None) -> bool:
    """Whether the engine of a task does not know that it has ended."""
    return task is not None and task.error is not None and MAY_STILL_RUN in task.error


def can_be_resubmitted(job: Job, task: Task | None, submissions: int) -> bool:
    """Whether to submit a workload again is of use, if it has not begun.

    :param task: that of the job; None if it is not known.
    :param submissions: how often it has been submitted.
    """
    cannot_start = task is not None and task.reason is Reason.SPAWN
    return job.reason is not Reason.CANCELLED and not cannot_start and submissions <= MAX_RESUBMISSIONS


def is_unknown_to_airflow(state: str | None, task: Task | None) -> bool:
    """Whether a task has failed for a reason that its supervisor did not know, although it has reported the end."""
    if state not in (TaskInstanceState.FAILED, TaskInstanceState.UP_FOR_RETRY) or task is None:
        return False
    return task.reason in (Reason.TIMEOUT, Reason.LOST) or (task.reason is Reason.SIGNAL and task.where is not None)


def explain(job: Job, task: Task | None) -> str:
    """Why a job has ended, in a sentence."""
    by_code = _EXPLANATIONS.get(task.exit_code) if task is not None else None
    error = (task is not None and task.error) or job.error
    # A job's own task is not tried again then. Of one of Airflow's, the heartbeats show whether it runs.
    error = error and error.replace(MAY_STILL_RUN, _GOES_ON)
    return f"{by_code or error or 'it has ended'} (job {job.name})"
