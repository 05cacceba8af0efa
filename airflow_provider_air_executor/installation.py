"""The identity of this Airflow among others that use the same base path: a random word, kept as an Airflow Variable.

DAG, run and task have the same names in two installations that run the same DAG, and a job would be taken for that of
the other one. What all components of an installation share, on whatever machines they are, and no other installation
has, is the database: homes, addresses and settings may be equal in two of them, or differ within one.
"""

from __future__ import annotations

import contextlib
import uuid
from typing import Any

from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import ErrorResponse, GetVariable, PutVariable

from airflow_provider_air_executor.exceptions import JobNotFoundError
from airflow_provider_air_executor.jobs.interface import Jobs
from airflow_provider_air_executor.jobs.models import SubmittedBy, default_job_name, valid_job_name

VARIABLE = "air_executor_installation"
_DESCRIPTION = "Tells the jobs of this Airflow from those of others on the same base path. Keep it as it is."


def installation_of(jobs: Jobs) -> str | None:
    """The identity of this Airflow; it is made up now if it is not there yet.

    Nobody makes it up where Airflow is divided into teams: what one of them sets takes it from the others.

    :param jobs: those of the job filesystem that is about to be used.
    :return: None where Airflow cannot be asked, in a program of one's own for instance. Names alone count then.
    :raises AirflowRuntimeError: if Airflow does not answer; it may exist all the same.
    """
    known = known_installation()
    comms = _comms()
    if known is not None or comms is None or conf.getboolean("core", "multi_team", fallback=False):
        return known
    with jobs.only_one("installation"):  # all that could come first use this job filesystem
        if (known := known_installation()) is None:
            known = uuid.uuid4().hex
            _ask(comms, PutVariable(key=VARIABLE, value=known, description=_DESCRIPTION))
    return known


def known_installation() -> str | None:
    """The same, for processes that may only ask; None also if it is not there yet.

    It does not go through :class:`airflow.sdk.Variable`, which takes an answer that is not one for "not there".
    """
    comms = _comms()
    if comms is None:
        return None
    try:
        return _ask(comms, GetVariable(key=VARIABLE)).value or None
    except AirflowRuntimeError as error:
        if error.error.error == ErrorType.VARIABLE_NOT_FOUND:
            return None
        raise


def name_for(job_name: str | None, jobs: Jobs, owner: SubmittedBy) -> str:
    """The name of the job of an Airflow task.

    A job that an earlier version of this package has submitted for the task keeps its name.

    :param job_name: the name that the user gave it, which is mapped to a valid one; default: one is made up.
    """
    if job_name:
        return valid_job_name(job_name)
    former = default_job_name(owner.evolve(installation=None))
    with contextlib.suppress(JobNotFoundError):
        job = jobs.get_job(former)
        if job.submitted_by is not None and job.submitted_by.is_same_task(owner):
            return former
    return default_job_name(owner)


def _ask(comms: Any, message: GetVariable | PutVariable) -> Any:
    """Send a message to Airflow.

    :return: its answer.
    :raises AirflowRuntimeError: if the answer is an error.
    """
    answer = comms.send(message)
    if isinstance(answer, ErrorResponse):
        raise AirflowRuntimeError(answer)
    return answer


def _comms() -> Any:
    """The way from this process to Airflow, if it is one that runs what users write."""
    return getattr(task_runner, "SUPERVISOR_COMMS", None)
