"""A manager on another machine that cannot be reached, or does not do what it is asked for, as an answer.

Where it is, and what is wrong with the connection, is for those who may see Airflow's own jobs. Others learn for how
long it is away, and what happened when it was asked.
"""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import urlsplit

from fastapi import Request, Response, status
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from airflow_provider_air_executor.exceptions import AirExecutorError, JobsAwayError
from airflow_provider_air_executor.hooks import AirExecutorHook
from airflow_provider_air_executor.plugin.access import PageView
from airflow_provider_air_executor.plugin.pages import HEADERS, show
from airflow_provider_air_executor.plugin.records import Refusal

_AGAIN_SECONDS = 3  # after which the pages ask again


async def show_away(request: Request, error: AirExecutorError) -> Response:
    """The answer to a request about its jobs; the page of a job waits until it is there again."""
    name = request.path_params.get("job_name", "")
    if name and "text/html" in request.headers.get("accept", ""):
        return show("job", name, {"job": name}, status_code=status.HTTP_503_SERVICE_UNAVAILABLE)
    conn_id = request.query_params.get("conn_id") or AirExecutorHook.default_conn_name
    view = getattr(request.state, "page_view", None)
    sees_all = isinstance(view, PageView) and await run_in_threadpool(lambda: view.sees_all)
    body = _away(error, conn_id, sees_all) if isinstance(error, JobsAwayError) else _refused(error, conn_id, sees_all)
    headers = {**HEADERS, "Retry-After": str(_AGAIN_SECONDS)}
    return JSONResponse(body, status.HTTP_503_SERVICE_UNAVAILABLE, headers)


def _away(error: JobsAwayError, conn_id: str, sees_all: bool) -> dict[str, object]:
    place = urlsplit(error.where)
    host = place.hostname or place.path
    why = error.why if sees_all or not host else error.why.replace(host, "the other machine")
    refusal = Refusal(
        detail=f"the manager of the connection {conn_id} cannot be reached: {why}",
        away_since=None if error.since is None else datetime.fromtimestamp(error.since, UTC),
    )
    return refusal.model_dump(mode="json")


def _refused(error: AirExecutorError, conn_id: str, sees_all: bool) -> dict[str, object]:
    why = str(error) if sees_all else "the log of the API server says why"
    return {"detail": f"the manager of the connection {conn_id} cannot be asked: {why}"}
