"""AirExecutorJobLink: from an Airflow task to the page of its job, and the addresses of such pages.

Airflow asks for a link in the worker when a task, or its part before a deferral, has ended, and its API server shows
what it finds in XCom. That is too late for a task that waits in its worker, and never happens if the worker dies, so
operator and sensor leave the link in XCom as soon as they know the job (:func:`push_job`).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from airflow.sdk import BaseOperatorLink
from airflow.sdk.configuration import conf

from airflow_provider_air_executor.hooks import AirExecutorHook

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.types import TaskInstanceKey

    from airflow_provider_air_executor.jobs.models import SubmittedBy

URL_PREFIX = "/air-executor"  # of the pages, below the path of Airflow's own
_JOB_NAME = "job_name"  # the key in XCom


class AirExecutorJobLink(BaseOperatorLink):
    """The page of the job that a task has submitted or waits for."""

    name = "Job"

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:
        """The address of the page; empty if the task did not come as far as having a job."""
        from airflow.sdk.execution_time.xcom import XCom  # it looks for the installation's backend

        job_name = XCom.get_value(ti_key=ti_key, key=_JOB_NAME)
        return job_url(job_name, operator.air_executor_conn_id) if job_name else ""


def push_job(context: Context, job_name: str, conn_id: str) -> None:
    """Leave the name of a job in XCom, and the link to its page."""
    for key, value in xcoms_of(job_name, conn_id).items():
        context["ti"].xcom_push(key=key, value=value)


def xcoms_of(job_name: str, conn_id: str) -> dict[str, str]:
    """The XComs of a task that has submitted a job or waits for it: its name, and the link to its page."""
    return {_JOB_NAME: job_name, AirExecutorJobLink().xcom_key: job_url(job_name, conn_id)}


def job_url(job_name: str, conn_id: str = AirExecutorHook.default_conn_name) -> str:
    """The address of the page of a job, without the host."""
    query = "" if conn_id == AirExecutorHook.default_conn_name else "?" + urlencode({"conn_id": conn_id})
    return f"{root_path()}{URL_PREFIX}/jobs/{quote(job_name, safe='')}{query}"


def run_url(owner: SubmittedBy) -> str:
    """The address of a DAG run in Airflow's UI, without the host."""
    return f"{root_path()}/dags/{quote(owner.dag_id, safe='')}/runs/{quote(owner.run_id, safe='')}"


def task_url(owner: SubmittedBy) -> str:
    """The address of an Airflow task in Airflow's UI, without the host."""
    mapped = f"/mapped/{owner.map_index}" if owner.map_index >= 0 else ""
    return f"{run_url(owner)}/tasks/{quote(owner.task_id, safe='')}{mapped}"


@cache
def root_path() -> str:
    """The path below which Airflow is served, from ``[api] base_url``; empty if it is not below one."""
    return urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/")
