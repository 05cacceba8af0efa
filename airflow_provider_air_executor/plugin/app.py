"""The application below ``/air-executor``: pages, their JSON API, and the files that the pages load.

Each route asks for a login, and each that is about a job for the rights that :mod:`.access` describes.
"""

from __future__ import annotations

import html
import logging
from typing import Any
from urllib.parse import quote

from airflow.api_fastapi.core_api.security import get_user
from fastapi import Depends, FastAPI, HTTPException, Request, Response, status
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from airflow_provider_air_executor import links
from airflow_provider_air_executor.api.reading import reading_routes
from airflow_provider_air_executor.api.view import CONNECTION_ERRORS
from airflow_provider_air_executor.exceptions import (
    AirExecutorError,
    CorruptFileError,
    InvalidJobError,
    JobNotFoundError,
    JobsAwayError,
    JobStateError,
    ManagerError,
)
from airflow_provider_air_executor.plugin.access import MISSING, page_view
from airflow_provider_air_executor.plugin.away import show_away
from airflow_provider_air_executor.plugin.pages import HEADERS, page
from airflow_provider_air_executor.plugin.routes import bulk, connections, job, pages
from airflow_provider_air_executor.plugin.routes.shared import ABOUT_A_JOB, refusals

log = logging.getLogger(__name__)

# No pages of documentation, which would be public; /api/openapi.json is ours.
app = FastAPI(
    title="Air-Executor",
    docs_url=None,
    redoc_url=None,
    openapi_url=None,
    dependencies=[Depends(get_user)],
    responses=refusals(status.HTTP_401_UNAUTHORIZED),
)
for subject in (pages, connections, bulk, job):
    app.include_router(subject.router)
app.include_router(reading_routes(page_view, ABOUT_A_JOB), prefix="/api")


@app.get("/api/openapi.json")
def get_openapi() -> dict[str, Any]:
    """This API, described in OpenAPI's way."""
    return app.openapi()


@app.exception_handler(StarletteHTTPException)
async def _show_error(request: Request, error: StarletteHTTPException) -> Response:
    """Errors are JSON for programs, and a sentence for people."""
    if "text/html" not in request.headers.get("accept", ""):
        return await http_exception_handler(request, error)
    root = html.escape(links.root_path())
    text = html.escape(str(error.detail))
    if error.status_code == status.HTTP_401_UNAUTHORIZED:
        here = quote(request.url.path + (f"?{request.url.query}" if request.url.query else ""), safe="")
        text = f'<a href="{root}/auth/login?next={here}" target="_top">Log in to Airflow</a> to see this page.'
    elif error.status_code == status.HTTP_404_NOT_FOUND and "job_name" in request.path_params:
        name = html.escape(request.path_params["job_name"])
        text = f"There is no job <strong>{name}</strong>, or its files cannot be read. It may have been removed."
    conn_id = request.query_params.get("conn_id")
    jobs_url = f"{root}{links.URL_PREFIX}/jobs" + (f"?conn_id={quote(conn_id, safe='')}" if conn_id else "")
    others = f'<a href="{jobs_url}">All jobs</a> · <a href="{root}/" target="_top">Airflow</a>'
    markup = page("Air-Executor", f'<main class="message"><p>{text}</p><p>{others}</p></main>')
    return HTMLResponse(markup, error.status_code, {**HEADERS, **(error.headers or {})})


@app.exception_handler(AirExecutorError)
@app.exception_handler(OSError)
async def _show_unreadable(request: Request, error: Exception) -> Response:
    """The job's files are gone, are not valid, or cannot be reached now."""
    if isinstance(error, JobNotFoundError | CorruptFileError | InvalidJobError):
        return await _show_error(request, HTTPException(status.HTTP_404_NOT_FOUND, MISSING))
    if isinstance(error, JobStateError):
        return JSONResponse({"detail": str(error)}, status.HTTP_409_CONFLICT, HEADERS)
    if isinstance(error, JobsAwayError):  # its client has said so in the log, once
        return await show_away(request, error)
    log.warning("%s: %s", request.url.path, error)
    if isinstance(error, CONNECTION_ERRORS):
        return await show_away(request, error)
    if isinstance(error, ManagerError):
        detail = "it is asked for, but no manager is running, and none can be started here"
        return JSONResponse({"detail": detail}, status.HTTP_503_SERVICE_UNAVAILABLE, HEADERS)
    if request.method != "GET":
        detail = "the manager cannot be asked: the job filesystem cannot be written to from here"
        return JSONResponse({"detail": detail}, status.HTTP_503_SERVICE_UNAVAILABLE, HEADERS)
    return JSONResponse({"detail": "the files of the job cannot be read"}, status.HTTP_404_NOT_FOUND, HEADERS)
