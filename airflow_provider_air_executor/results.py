"""The results of a job for Airflow: the outputs of its tasks, for operator, sensor and triggers."""

from __future__ import annotations

from typing import Any

from airflow.sdk.exceptions import AirflowFailException

from airflow_provider_air_executor.exceptions import OutputError
from airflow_provider_air_executor.jobs.interface import Jobs

# An object with all keys of one of these sets is taken for one of its own by what keeps XCom (airflow.sdk.serde): it
# refuses the first two when they are written, and makes another value of the third, or none, when it is read.
RESERVED = (frozenset({"__classname__"}), frozenset({"__id__"}), frozenset({"__type", "__var"}))


class UnfitResultError(OutputError, AirflowFailException):
    """XCom cannot keep the output of a task. The job has completed, so that a retry is of no use."""


def results_of(jobs: Jobs, job_name: str) -> dict[str, Any]:
    """The outputs of the completed tasks of a job, by their ids.

    :raises UnfitResultError: naming the task and the file, if it cannot be read, or Airflow cannot keep it.
    """
    try:
        return jobs.results(job_name, RESERVED)
    except OutputError as error:
        raise UnfitResultError(error.job_name, error.task_id, error.why) from None
