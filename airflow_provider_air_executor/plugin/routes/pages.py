"""The pages, and the files that they load."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException, Response, status
from fastapi.responses import HTMLResponse

from airflow_provider_air_executor.plugin import pages
from airflow_provider_air_executor.plugin.pages import HEADERS
from airflow_provider_air_executor.plugin.routes.shared import ABOUT_A_JOB, SeenJob, refusals

router = APIRouter()


@router.get("/jobs", response_class=HTMLResponse)
def show_jobs() -> Response:
    """The page of all jobs."""
    return pages.show("jobs", "Jobs")


@router.get("/jobs/{job_name}", response_class=HTMLResponse, responses=ABOUT_A_JOB)
def show_job(found: SeenJob) -> Response:
    """The page of a job."""
    return pages.show("job", found.job.name, {"job": found.job.name})


@router.get("/owned", response_class=HTMLResponse)
def show_owned() -> Response:
    """The jobs of one DAG run or task instance, which the query names: the tab in Airflow's pages of those."""
    return pages.show("owned", "Jobs")


@router.get("/static/{path:path}", response_class=Response, responses=refusals(status.HTTP_404_NOT_FOUND))
def get_static(path: str) -> Response:
    """A file that the pages load."""
    content = pages.static_files().get(path)
    if content is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "there is no such file")
    kind = pages.STATIC_TYPES[path[path.rindex(".") :]]
    return Response(content, media_type=kind, headers={**HEADERS, "Cache-Control": "private, no-cache"})
