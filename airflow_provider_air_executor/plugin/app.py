"""The routes below ``/air-executor``. They read only, and each asks for a login and for the right to see the job."""

from __future__ import annotations

from typing import Annotated

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import get_user
from fastapi import Depends, FastAPI, HTTPException, Query, Response, status

from airflow_provider_air_executor.exceptions import AirExecutorError
from airflow_provider_air_executor.plugin import page
from airflow_provider_air_executor.plugin.access import FoundJob, job_for

MAX_LOG_BYTES = 1_048_576  # of one answer
_FARTHEST = 2**40  # offset; file systems refuse one that no file could have

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}

# No pages of documentation: those would be public.
app = FastAPI(title="Air-Executor", docs_url=None, redoc_url=None, openapi_url=None, dependencies=[Depends(get_user)])


@app.get("/jobs/{job_name}")
def show_job(found: Annotated[FoundJob, Depends(job_for(DagAccessEntity.TASK_INSTANCE))]) -> Response:
    """The page of a job."""
    html = page.render(
        found.store, found.job, conn_id=found.conn_id, with_logs=found.permits(DagAccessEntity.TASK_LOGS)
    )
    return Response(html, media_type="text/html", headers=_HEADERS)


@app.get("/jobs/{job_name}/logs/{task_id}")
def show_log(
    found: Annotated[FoundJob, Depends(job_for(DagAccessEntity.TASK_LOGS))],
    task_id: str,
    offset: Annotated[int, Query(ge=-_FARTHEST, le=_FARTHEST)] = 0,
    limit: Annotated[int, Query(ge=0)] = MAX_LOG_BYTES,
) -> Response:
    """What a task of a job has printed, byte for byte.

    :param offset: where to start, in bytes; negative: that many bytes before the end.
    :param limit: at most so many bytes; there are never more than :data:`MAX_LOG_BYTES`.
    """
    name = found.job.name
    try:
        if all(task.id != task_id for task in found.store.get_tasks(name)):
            raise HTTPException(status.HTTP_404_NOT_FOUND, "there is no such task in this job")
        log = found.store.read_log(name, task_id, offset, min(limit, MAX_LOG_BYTES))
    except (AirExecutorError, OSError):
        raise HTTPException(status.HTTP_404_NOT_FOUND, "the log cannot be read") from None
    headers = {**_HEADERS, "Content-Disposition": "inline"}
    return Response(log.data, media_type="text/plain", headers=headers)
